"""MOSAIC: people of eight data sets, prepared alike, one HDF5 file each of 91 282 grayordinates a trial."""

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from unimind.data.sources.arrayfile import AGAIN, missing
from unimind.data.sources.base import DROP, TEST, TRAIN, RawSubject, RemoteFile, Stimulus, StimulusSet, Trials, own_file, reading
from unimind.data.sources.hcp import GRAYORDINATES, glasser
from unimind.data.sources.pictures import Pictures, pictures_in
from unimind.data.sources.trials import place
from unimind.errors import InputError
from unimind.progress import say
from unimind.study import MosaicData, Study

ADDRESS = "https://mosaicfmri.s3.amazonaws.com/fMRIPrepv23_2_0/task_fMRI/betas/GLMsinglev1_2"
_NAME = re.compile(r".+?_stimulus-(?P<stimulus>.+)_phase-(?P<phase>train|test)_rep-(?P<repeat>\d+)")


@dataclass(frozen=True)
class _Trial:
    key: str
    picture: int
    phase: str


class MosaicSource:
    """Reader of `sub-XX_DATASET.hdf5`."""

    def __init__(self, study: Study, dataset: str, root: Path) -> None:
        section = study.datasets[dataset]
        assert isinstance(section, MosaicData)
        self.section, self.dataset, self.root = section, dataset, Path(root)
        self.subjects = section.training_subjects or section.subjects
        self._trials = functools.cache(self._read_trials)
        wrong = [name for name in section.subjects if not re.fullmatch(r"sub-\d\d_[A-Za-z0-9]+", name)]
        if wrong:
            raise InputError(f"datasets.{dataset}: {', '.join(wrong)} is no subject of MOSAIC; they are called sub-01_NSD, sub-03_GOD and the like")

    def files(self, subject: str | None) -> list[RemoteFile]:
        """See `Source.files`: the pictures' split by phase stands in the subjects' files."""
        named = [subject] if subject is not None else self.subjects if self.section.split == "phase" else []
        found = [self._remote(name) for name in named]
        images = self._path(self.section.images)
        paths = (pictures_in(images) or [images]) if images.is_dir() else [images]
        found += [own_file(self.root, path) for path in paths]
        return found + ([own_file(self.root, self._path(self.section.split))] if self.section.split != "phase" else [])

    def _path(self, pattern: str) -> Path:
        return Path(place(self.root, pattern, None))

    def _remote(self, subject: str) -> RemoteFile:
        """The file as it lies there, with a checksum in its name or without."""
        there = sorted(self.root.glob(f"{subject}_crc32-*.hdf5"))
        return RemoteFile(there[0].name) if there else RemoteFile(f"{subject}.hdf5", f"{ADDRESS}/{subject}.hdf5")

    # --- pictures ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _pictures(self) -> Pictures:
        return Pictures.open(self._path(self.section.images))

    def _find(self, name: str, where: str) -> int:
        """A picture by the file name that was presented, or by its name without ending."""
        return self._pictures.find(PurePosixPath(name).name, where)

    def stimuli(self, subject: str | None, size: int) -> StimulusSet:
        """See `Source.stimuli`."""
        pictures, test = self._pictures, self._test_pictures(self.subjects)
        keep = [index for index, first in enumerate(pictures.first.tolist()) if index == first]

        def items() -> Iterator[Stimulus]:
            for index in keep:
                yield Stimulus.from_pixels(pictures.names[index], pictures.load(pictures.names[index]), index in test, size)

        return StimulusSet(len(keep), items())

    @functools.cached_property
    def _lists(self) -> dict[str, set[int]]:
        """Pictures of the split's file, by the list they stand in; names of which there is no picture are counted and left out."""
        path = self._path(self.section.split)
        if not path.exists():
            raise missing(path)
        with reading(path, "a readable JSON file", AGAIN):
            content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("train", "test")):
            raise InputError(
                f"{path}: expected lists of picture names under train and test; "
                f"{', '.join(content) if isinstance(content, dict) else type(content).__name__} given"
            )
        known: dict[str, int] = {}
        for index, name in enumerate(self._pictures.names):
            for alias in (PurePosixPath(name).name, PurePosixPath(name).stem):
                known.setdefault(alias, index)
        found, absent = {}, 0
        for key in ("train", "test", "artificial"):
            names = [PurePosixPath(str(name)).name for name in content.get(key, [])]
            indices = [known.get(name, known.get(PurePosixPath(name).stem, -1)) for name in names]
            absent += indices.count(-1)
            found[key] = {int(self._pictures.first[index]) for index in indices if index >= 0}
        if absent:
            say(f"{self.dataset}: {absent} pictures of {path.name} are not in {self._pictures.where}")
        return found

    def _test_pictures(self, subjects: list[str]) -> set[int]:
        if self.section.split != "phase":
            return self._lists["test"] | (self._lists["artificial"] if self.section.artificial == "test" else set())
        return {int(self._pictures.first[trial.picture]) for name in subjects for trial in self._trials(name) if trial.phase == "test"}

    # --- trials --------------------------------------------------------------------------------------------------

    def _file(self, subject: str) -> Path:
        path = self.root / self._remote(subject).path
        if not path.exists():
            raise missing(path)
        return path

    def _read_trials(self, subject: str) -> list[_Trial]:
        """Trials in the order of their names; that is not the order they were presented in, which the file does not hold."""
        import h5py

        path, found = self._file(subject), []
        with reading(path, "a readable HDF5 file with a group `betas`", AGAIN), h5py.File(path, "r") as file:
            for key in sorted(file["betas"]):
                data, held = file["betas"][key], _NAME.fullmatch(key)
                if held is None:
                    raise InputError(f"{path}: betas/{key} is not named sub-XX_DATASET_stimulus-NAME_phase-PHASE_rep-N; get the file again")
                if data.shape != (GRAYORDINATES,):
                    raise InputError(f"{path}: betas/{key} has shape {data.shape}; expected ({GRAYORDINATES},)")
                name = data.attrs.get("presented_stimulus_filename", held["stimulus"])
                picture = self._find(name.decode() if isinstance(name, bytes) else str(name), f"{path}: betas/{key}")
                found.append(_Trial(key, picture, held["phase"]))
        if not found:
            raise InputError(f"{path}: holds no betas; get the file again")
        return found

    def _areas(self) -> tuple[NDArray[np.integer], NDArray[np.int16]]:
        """Grayordinates of the study's areas, and the area of each."""
        labels, known = glasser()
        unknown = [area for area in self.section.areas if area not in known]
        if unknown:
            raise InputError(
                f"datasets.{self.dataset}.areas: {', '.join(unknown)} not in the HCP MMP1 map; areas are called V1, V2, V3, V4, V3A, LO1, MT, ... as there"
            )
        parts = [np.flatnonzero(np.isin(labels, known[area])) for area in self.section.areas]
        return np.concatenate(parts), np.repeat(np.arange(len(parts), dtype=np.int16), [len(part) for part in parts])

    def subject(self, subject: str) -> RawSubject:
        """All trials of a subject; grayordinates missing in any trial are left out."""
        import h5py

        path, trials = self._file(subject), self._trials(subject)
        where, roi = self._areas()
        whole = np.ones(GRAYORDINATES, bool)
        with reading(path, "a readable HDF5 file", AGAIN), h5py.File(path, "r") as file:
            for trial in trials:
                data = file["betas"][trial.key]
                gone = data.attrs.get("nan_indices")
                whole[np.asarray(gone, int) if gone is not None else ~np.isfinite(data[()])] = False
            ceiling = self._noise_ceiling(file)
        kept = whole[where]
        if not kept.any():
            raise InputError(f"{path}: every grayordinate of datasets.{self.dataset}.areas has missing values; choose other areas")
        counts = np.bincount(roi[~kept], minlength=len(self.section.areas))
        dropped = {name: int(count) for name, count in zip(self.section.areas, counts, strict=True) if count}
        if not kept.all():
            say(
                f"{self.dataset} {subject}: dropped {int((~kept).sum())} of {len(kept)} grayordinates with missing values; "
                f"by area: {', '.join(f'{name} {count}' for name, count in dropped.items())}"
            )
        where, roi = where[kept], roi[kept]
        shown = self._pictures.first[[trial.picture for trial in trials]]
        test = self._test_pictures(self.subjects if subject in self.subjects else [*self.subjects, subject])
        split = np.where(np.isin(shown, list(test)), TEST, TRAIN)
        if self.section.split != "phase":
            split[~np.isin(shown, list(test | self._lists["train"]))] = DROP
        if not (split == TRAIN).any() or not (split == TEST).any():
            raise InputError(f"datasets.{self.dataset}.split: {subject} has no {'training' if not (split == TRAIN).any() else 'test'} trial; choose another")

        def responses() -> Iterator[NDArray[np.float32]]:
            values = np.empty((len(trials), len(where)), np.float32)
            with reading(path, "a readable HDF5 file", AGAIN), h5py.File(path, "r") as file:
                for row, trial in enumerate(trials):
                    values[row] = file["betas"][trial.key][()][where]
            yield values

        return RawSubject(
            n_voxels=len(where), trials=Trials(np.ones(len(trials), int), [self._pictures.names[index] for index in shown], responses, split),
            units="GLMsingle beta, normalised as distributed", roi=roi, roi_names=list(self.section.areas),
            noise_ceiling=None if ceiling is None else ceiling[where], order="surface",
            protocol={
                "areas": self.section.areas, "split": self.section.split, "dropped_units": int((~kept).sum()), "dropped_by_roi": dropped,
                "presentation_order": False,
            },
        )  # fmt: skip

    def _noise_ceiling(self, file) -> NDArray[np.float32] | None:
        """Mean over the phases of the ceiling for one trial, as a share; None where the file has none."""
        group = next((file[name] for name in ("noiseceilings", "noiseceiling") if name in file), None)
        single = [group[key][()] for key in group if str(group[key].attrs.get("n", "1")) == "1" and "_n-1" in key] if group is not None else []
        if not single:
            return None
        mean = np.nan_to_num(np.mean(single, axis=0))
        return np.clip(mean / (100 if mean.max() > 1 else 1), 0, 1).astype(np.float32)
