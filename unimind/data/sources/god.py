"""Generic Object Decoding (Horikawa & Kamitani 2017): BData files, and a folder of pictures got from the authors."""

import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimind.data.pixels import decode_picture
from unimind.data.sources.base import TEST, TRAIN, Further, RawSubject, RemoteFile, Stimulus, StimulusSet, Trials, content_of, reading
from unimind.data.sources.pictures import pictures_in
from unimind.errors import InputError
from unimind.progress import say
from unimind.study import Decode, GodData, Study

#: Numbers of the subjects' files at figshare (article 7387130).
FIGSHARE_FILES = {"Subject1": 24080120, "Subject2": 24080123, "Subject3": 24080126, "Subject4": 24080129, "Subject5": 24080132}
PERCEPTION_TRAINING, PERCEPTION_TEST, IMAGERY = 1, 2, 3  # values of DataType
AREAS = ("V1", "V2", "V3", "V4", "LOC", "FFA", "PPA")
UNITS = "signal amplitude, normalised per run as distributed"
REQUEST = "the pictures are given on request: https://forms.gle/ujvA34948Xg49jdn9"
_AGAIN = "delete it and fetch again"
_NEAREST = 4e-7  # a stimulus id has six decimals


class GodSource:
    """Reader of `SubjectN.h5` and of pictures named `n<synset>_<number>.JPEG`."""

    def __init__(self, study: Study, dataset: str, root: Path) -> None:
        section = study.datasets[dataset]
        assert isinstance(section, GodData)
        self.section, self.dataset, self.root = section, dataset, Path(root)
        self.folder = Path(os.path.expandvars(section.images)) if section.images else self.root / "images"

    def files(self, subject: str | None) -> list[RemoteFile]:
        """A subject's BData file; for the pictures, those of the folder and one BData file, which says what was shown."""
        name = self._reference if subject is None else subject
        if name not in FIGSHARE_FILES:
            raise InputError(f"datasets.{self.dataset}: {name} is no subject of GOD; they are called {', '.join(FIGSHARE_FILES)}")
        files = [RemoteFile(f"{name}.h5", f"https://ndownloader.figshare.com/files/{FIGSHARE_FILES[name]}")]
        if subject is None:
            pictures = pictures_in(self.folder) or [self.folder]
            files += [RemoteFile(Path(os.path.relpath(path, self.root)).as_posix()) for path in pictures]
        return files

    @property
    def _reference(self) -> str:
        """The subject whose file says which pictures were shown; all subjects saw the same."""
        return self.section.subjects[0]

    # --- pictures ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _pictures(self) -> tuple[list[Path], NDArray[np.float64]]:
        """Picture files and their stimulus ids, by id."""
        found = {}
        for path in pictures_in(self.folder):
            named = re.fullmatch(r"n(\d+)_(\d+)", path.stem)
            if named:
                found[float(f"{named[1]}.{named[2]:0>6}")] = path
        if not found:
            raise InputError(f"{self.folder}: holds no pictures named like n01443537_22563.JPEG; {REQUEST}")
        ids = sorted(found)
        return [found[value] for value in ids], np.array(ids)

    def _find(self, values: NDArray[np.float64], synset_alone: bool = False) -> NDArray[np.integer]:
        """Index of the picture whose stimulus id is nearest to each value; -1 where none is near enough.

        With `synset_alone`, an id that has no picture number stands for the one test picture of its synset.
        """
        _, ids = self._pictures
        index = np.clip(np.searchsorted(ids, values), 1, len(ids) - 1) if len(ids) > 1 else np.zeros(len(values), int)
        index = np.where(abs(ids[index - 1] - values) < abs(ids[index] - values), index - 1, index)
        near = abs(ids[index] - values) < _NEAREST
        if synset_alone:
            shown = _BData.read(self._file(self._reference))
            tests = self._find(np.unique(shown.column("stimulus_id", "Label")[shown.column("DataType") == PERCEPTION_TEST]))
            of_synset = {int(ids[test]): int(test) for test in tests if test >= 0}
            named = np.array([of_synset.get(int(value), -1) for value in values])
            return np.where(near, index, named)
        return np.where(near, index, -1)

    def stimuli(self, subject: str | None, size: int) -> StimulusSet:
        """The 1250 pictures that were shown; InputError, with a report on what is missing, when the folder lacks some."""
        data = _BData.read(self._file(subject or self._reference))
        kinds, values = data.column("DataType"), data.column("stimulus_id", "Label")
        shown = np.unique(values[kinds != IMAGERY])
        index = self._find(shown)
        self._report_missing(shown[index < 0], len(shown))
        tests = set(self._find(np.unique(values[kinds == PERCEPTION_TEST])).tolist())
        paths, _ = self._pictures

        def items() -> Iterator[Stimulus]:
            for at in index.tolist():
                yield Stimulus.from_pixels(paths[at].stem, decode_picture(content_of(paths[at]), paths[at]), at in tests, size)

        return StimulusSet(count=len(index), items=items())

    def _report_missing(self, values: NDArray[np.float64], total: int) -> None:
        if not len(values):
            return
        names = [_name(value) for value in values]
        for name in names:
            say(f"{self.dataset}: missing picture {name}")
        more = f" and {len(names) - 3} more (all in the log)" if len(names) > 3 else ""
        raise InputError(f"{self.folder}: {len(names)} of {total} pictures are missing: {', '.join(names[:3])}{more}; {REQUEST}")

    # --- trials --------------------------------------------------------------------------------------------------

    def _file(self, subject: str) -> Path:
        path = self.root / f"{subject}.h5"
        if not path.exists():
            raise InputError(f"{path}: no such file; fetch {self.dataset} again")
        return path

    def subject(self, subject: str) -> RawSubject:
        """Perception trials, the 35 repeats of every test picture kept."""
        path = self._file(subject)
        data = _BData.read(path)
        kinds = data.column("DataType")
        values = data.column("stimulus_id", "Label")
        chosen = data.columns(self.section.roi)
        if not chosen.any():
            raise InputError(f"{path}: no voxel is in {self.section.roi}")
        perception = np.flatnonzero(np.isin(kinds, (PERCEPTION_TRAINING, PERCEPTION_TEST)))
        areas = [area for area in AREAS if f"ROI_{area}" in data.keys]
        roi = np.full(int(chosen.sum()), -1, np.int16)
        for index in reversed(range(len(areas))):
            roi[data.row(f"ROI_{areas[index]}")[chosen] == 1] = index
        places = [data.row(f"voxel_{axis}")[chosen] for axis in "xyz"] if all(f"voxel_{axis}" in data.keys for axis in "xyz") else None
        return RawSubject(
            n_voxels=int(chosen.sum()),
            trials=self._trials(data, perception, chosen, values, np.where(kinds[perception] == PERCEPTION_TEST, TEST, TRAIN).astype(np.int8)),
            units=UNITS,
            xyz=None if places is None else np.stack(places, axis=1).astype(np.float32),
            roi=roi if areas else None,
            roi_names=areas or None,
            protocol={"roi": self.section.roi},
        )

    def further_files(self, subject: str, asked: Decode) -> list[RemoteFile]:
        """The imagery trials stand in the subject's one file; what they are called, in the pictures' names."""
        return self.files(subject)

    def further(self, subject: str, asked: Decode) -> Further:
        """The imagery trials, each called as the picture that was imagined: the test picture of its category where the file names that alone."""
        path = self._file(subject)
        data = _BData.read(path)
        values, chosen = data.column("stimulus_id", "Label"), data.columns(self.section.roi)
        rows = np.flatnonzero(data.column("DataType") == IMAGERY)
        if not len(rows):
            raise InputError(f"{path}: has no imagery trials (DataType {IMAGERY}); leave {subject} out of the set's `subjects:`")
        index = self._find(values[rows], synset_alone=True)
        self._report_missing(np.unique(values[rows][index < 0]), len(np.unique(values[rows])))
        labels = [self._pictures[0][at].stem for at in index]
        return Further(np.ones(len(rows), int), labels, ["imagery"] * len(rows), lambda: iter([data.values(rows, chosen)]), units=UNITS)

    def _trials(self, data: "_BData", rows: NDArray[np.integer], chosen: NDArray[np.bool_], values: NDArray[np.float64], split: NDArray[np.int8]) -> Trials:
        index = self._find(values[rows])
        self._report_missing(np.unique(values[rows][index < 0]), len(np.unique(values[rows])))
        paths, _ = self._pictures
        return Trials(np.ones(len(rows), int), [paths[at].stem for at in index], lambda: iter([data.values(rows, chosen)]), split)


def _name(value: float) -> str:
    synset, number = f"{value:.6f}".split(".")
    return f"n{int(synset):08d}_{int(number)}"


@dataclass(frozen=True)
class _BData:
    """A BData HDF5 file: samples by columns, and rows of metadata that say what each column is."""

    path: Path
    group: str
    dataset: str
    keys: dict[str, int]
    meta: NDArray[np.float64]

    @classmethod
    def read(cls, path: Path) -> "_BData":
        import h5py

        with reading(path, "a readable BData file", _AGAIN), h5py.File(path, "r") as file:
            group = "metadata" if "metadata" in file else "metaData"
            dataset = "dataset" if "dataset" in file else "dataSet"
            names = [name.decode() if isinstance(name, bytes) else str(name) for name in np.ravel(file[group]["key"][()])]
            meta = np.asarray(file[group]["value"][()], np.float64)
            columns = file[dataset].shape[1]
        if meta.shape != (len(names), columns):
            raise InputError(f"{path}: {len(names)} metadata keys and {columns} columns, but metadata of shape {meta.shape}; {_AGAIN}")
        return cls(path, group, dataset, {name.strip(): row for row, name in enumerate(names)}, meta)

    def row(self, key: str) -> NDArray[np.float64]:
        """A metadata row: one value a column, NaN where the key says nothing of it."""
        if key not in self.keys:
            raise InputError(f"{self.path}: has no metadata {key}; it has {', '.join(self.keys)}")
        return self.meta[self.keys[key]]

    def columns(self, key: str) -> NDArray[np.bool_]:
        """Columns for which a metadata key is 1, as bdpy's `select('key = 1')`."""
        return self.row(key) == 1

    def column(self, *keys: str) -> NDArray[np.float64]:
        """The samples of the one column that the first key known to the file marks."""
        key = next((key for key in keys if key in self.keys), keys[0])
        at = np.flatnonzero(self.columns(key))
        if len(at) != 1:
            raise InputError(f"{self.path}: {len(at)} columns are marked {key}; expected one")
        return self.values(slice(None), int(at[0]), np.float64)

    def values(self, rows: Any, columns: Any, kind: type = np.float32) -> NDArray[Any]:
        """Samples of some rows and columns."""
        import h5py

        with reading(self.path, "a readable BData file", _AGAIN), h5py.File(self.path, "r") as file:
            data = file[self.dataset]
            if isinstance(columns, int):
                return np.asarray(data[rows, columns], kind)
            at = np.flatnonzero(columns)
            return np.asarray(data[:, at[0] : at[-1] + 1][:, at - at[0]][rows], kind)
