"""The Natural Scenes Dataset (Allen et al. 2022) as its bucket holds it."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimind.data.roi import label_mask, voxels_of_hdf5, voxels_of_nifti
from unimind.data.sources.base import DROP, TEST, TRAIN, Further, RawSubject, RemoteFile, Stimulus, StimulusSet, Trials, below, reading
from unimind.data.sources.trials import SessionFile, labelled, place
from unimind.errors import InputError
from unimind.progress import say
from unimind.study import Decode, Study

BUCKET = "s3://natural-scenes-dataset"
#: Sessions that subj01 to subj08 finished.
SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
TABLE = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
PICTURES = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
#: Labels of two ROI volumes, and the names voxels are ordered by: the retinotopic areas, then the streams.
PRF = {1: "V1", 2: "V1", 3: "V2", 4: "V2", 5: "V3", 6: "V3", 7: "hV4"}
STREAMS = {1: "early", 2: "midventral", 3: "midlateral", 4: "midparietal", 5: "ventral", 6: "lateral", 7: "parietal"}
#: NSD-synthetic: design, grey pictures and those of each subject's own colours, trials of a run, and the tasks of odd and even runs.
SYNTHETIC_DESIGN = "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat"
SYNTHETIC_PICTURES = "nsddata_stimuli/stimuli/nsdsynthetic/nsdsynthetic_stimuli.hdf5"
SYNTHETIC_COLOURS = "nsddata_stimuli/stimuli/nsdsynthetic/nsdsynthetic_colorstimuli_{subject}.hdf5"
SYNTHETIC_RUN, SYNTHETIC_TASKS = 93, ("fixation", "one-back")
SCALE = 300  # integer betas are percent signal change times 300


class NsdSource:
    """Reader of NSD's files.

    Parameters
    ----------
    study : Study
    dataset : str
        Its name in the study.
    root : path
        Folder that stands for the bucket.
    """

    def __init__(self, study: Study, dataset: str, root: Path) -> None:
        self.study, self.name, self.root = study, dataset, Path(root)
        self.section: Any = study.datasets[dataset]
        self.address: str | None = BUCKET

    # What the data set's section of the study says; simulated data answer for themselves.

    @property
    def betas(self) -> str:
        return self.section.betas

    @property
    def space(self) -> str:
        return self.section.space

    @property
    def form(self) -> str:
        return self.section.form

    def n_sessions(self, subject: str) -> int:
        """How many sessions are read: as many as the study asks for, or as the subject finished."""
        return min(self._asked, SESSIONS[_number(subject, self.name) - 1])

    @property
    def _asked(self) -> int:
        asked = self.section.sessions
        return asked if isinstance(asked, int) else max(SESSIONS) if asked == "all" else int(asked.split("/")[1])

    # Files

    def files(self, subject: str | None) -> list[RemoteFile]:
        """See `Source.files`."""
        paths = [DESIGN, TABLE, PICTURES] if subject is None else self._subject_files(subject)
        return [RemoteFile(path, f"{self.address}/{path}" if self.address else None) for path in paths]

    def _subject_files(self, subject: str) -> list[str]:
        regions = dict.fromkeys(rois.file for rois in self.section.rois)
        if self.section.roi_labels:
            regions |= {"prf-visualrois": None, "streams": None}
        sessions = [self._session(subject, number) for number in range(1, self.n_sessions(subject) + 1)]
        return [*(self._roi(subject, name) for name in regions), self._noise_ceiling(subject), *sessions]

    def _roi(self, subject: str, name: str) -> str:
        return f"nsddata/ppdata/{subject}/{self.space}/roi/{name}.nii.gz"

    def _noise_ceiling(self, subject: str) -> str:
        return f"nsddata_betas/ppdata/{subject}/{self.space}/{self.betas}/ncsnr.nii.gz"

    def _session(self, subject: str, number: int) -> str:
        ending = "hdf5" if self.form == "hdf5" else "nii.gz"
        return f"nsddata_betas/ppdata/{subject}/{self.space}/{self.betas}/betas_session{number:02d}.{ending}"

    @property
    def _again(self) -> str:
        return f"delete it and fetch {self.name} again"

    def _local(self, path: str) -> Path:
        found = below(self.root, path)
        if not found.exists():
            raise InputError(f"{found}: no such file; fetch {self.name} again, or put the file there")
        return found

    # Design

    @cached_property
    def _design(self) -> dict[str, NDArray]:
        from scipy.io import loadmat

        path = self._local(DESIGN)
        with reading(path, "a readable MATLAB file with NSD's design", self._again):
            content = loadmat(path)
            design = {key: np.asarray(content[key]).astype(np.int64) for key in ("masterordering", "sharedix", "subjectim", "stimpattern")}
        design["masterordering"], design["sharedix"] = design["masterordering"].ravel(), design["sharedix"].ravel()
        design["trials"] = design.pop("stimpattern").sum(axis=(1, 2))
        return design

    def _table(self, columns: list[str]):
        import pandas as pd

        path = self._local(TABLE)
        with reading(path, "a readable table", self._again):
            return pd.read_csv(path, usecols=columns)

    def _shown(self, subject: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Session (1-based), picture (0-based nsdId) and whether it is a shared one, of every trial that is read."""
        design, number, sessions = self._design, _number(subject, self.name), self.n_sessions(subject)
        if sessions > len(design["trials"]):
            path, known = below(self.root, DESIGN), len(design["trials"])
            raise InputError(f"{path}: describes {known} sessions, {sessions} are asked for; lower datasets.{self.name}.sessions")
        session = np.repeat(np.arange(1, sessions + 1), design["trials"][:sessions])
        order = design["masterordering"][: len(session)]
        picture = design["subjectim"][number - 1, order - 1] - 1
        self._check(number, picture)
        return session, picture, np.isin(picture + 1, design["sharedix"])

    def _check(self, number: int, picture: NDArray[np.int64]) -> None:
        """Compare the experiment design with the stimulus table, trial by trial."""
        import pandas as pd

        path = self._local(TABLE)
        with reading(path, "a readable table", self._again):
            names = pd.read_csv(path, nrows=0).columns
        repeats = [name for name in names if name.startswith(f"subject{number}_rep")]
        if not repeats:
            raise InputError(f"{path}: has no column subject{number}_rep0; fetch {self.name} again")
        table = self._table(["nsdId", *repeats])
        listed = np.full(len(picture), -1, np.int64)
        row_of = np.full(len(picture), -1, np.int64)
        for name in repeats:
            trial = table[name].to_numpy(np.int64) - 1
            rows = np.flatnonzero((trial >= 0) & (trial < len(picture)))
            listed[trial[rows]], row_of[trial[rows]] = table["nsdId"].to_numpy(np.int64)[rows], rows
        wrong = np.flatnonzero(listed != picture)
        if len(wrong):
            trial = int(wrong[0])
            said = f"row {row_of[trial] + 2} (nsdId {listed[trial]})" if listed[trial] >= 0 else "no row"
            raise InputError(
                f"{path}: {said} names trial {trial + 1} of subject {number}, but nsd_expdesign.mat shows nsdId {picture[trial]} there "
                f"({len(wrong)} trials disagree); fetch both files again"
            )

    # Pictures

    def stimuli(self, subject: str | None, size: int) -> StimulusSet:
        """See `Source.stimuli`: all pictures of the data set, the shared ones are test images."""
        import h5py

        path = self._local(PICTURES)
        table = self._table(["nsdId", "shared1000"]).sort_values("nsdId")
        test = table["shared1000"].to_numpy().astype(bool)
        if not np.array_equal(table["nsdId"], np.arange(len(table))):
            raise InputError(f"{below(self.root, TABLE)}: nsdId does not count from 0 to {len(table) - 1}; fetch {self.name} again")
        wrong = np.flatnonzero(np.isin(np.arange(len(table)), self._design["sharedix"] - 1) != test)
        if len(wrong):
            raise InputError(f"{below(self.root, TABLE)}: shared1000 of nsdId {wrong[0]} disagrees with sharedix of nsd_expdesign.mat; fetch both files again")
        with reading(path, "a readable file of pictures (imgBrick)", self._again), h5py.File(path, "r") as file:
            shape = file["imgBrick"].shape
        if shape[0] != len(table):
            raise InputError(f"{path}: {shape[0]} pictures for {len(table)} ids of nsd_stim_info_merged.csv; fetch {self.name} again")
        return StimulusSet(len(table), self._pictures(path, test, size))

    def _pictures(self, path: Path, test: NDArray[np.bool_], size: int) -> Iterator[Stimulus]:
        import h5py

        with h5py.File(path, "r") as file:
            brick = file["imgBrick"]
            for start in range(0, len(test), 64):
                with reading(path, f"readable from picture {start} on", self._again):
                    pictures = brick[start : start + 64]
                for row, pixels in enumerate(pictures, start):
                    yield Stimulus.from_pixels(_id(row), pixels, test[row], size)

    # Trials

    def subject(self, subject: str) -> RawSubject:
        """See `Source.subject`: percent signal change of the voxels of the study's ROIs."""
        session, picture, shared = self._shown(subject)
        _, position, counts = np.unique(picture, return_inverse=True, return_counts=True)
        often = counts[position] >= self.section.test_repeats
        split = np.where(~shared, TRAIN, np.where(often, TEST, DROP))
        tests = len(np.unique(picture[split == TEST]))
        self._check_protocol(subject, tests)
        mask, affine = self._mask(subject)
        voxels = np.flatnonzero(mask)
        for number in range(1, self.n_sessions(subject) + 1):
            self._check_session(self._local(self._session(subject, number)), mask.shape)
        roi, names = self._labels(subject, mask) if self.section.roi_labels else (None, None)
        ratio = np.nan_to_num(self._volume(self._noise_ceiling(subject), mask.shape)[mask]).astype(np.float32)
        from nibabel.affines import apply_affine

        return RawSubject(
            n_voxels=len(voxels),
            trials=Trials(
                session=session,
                stimulus=np.array([_id(index) for index in picture]),
                responses=lambda: self._responses(subject, mask, np.bincount(session)[1:]),
                split=split,
            ),
            units="percent signal change",
            xyz=apply_affine(affine, np.argwhere(mask)).astype(np.float32),
            roi=roi,
            roi_names=names,
            noise_ceiling=ratio**2 / (ratio**2 + 1),
            protocol={
                "protocol": f"{tests}/{self.n_sessions(subject)}", "sessions": self.n_sessions(subject), "test_repeats": self.section.test_repeats,
                "betas": self.betas, "space": self.space, "rois": [rois.model_dump() for rois in self.section.rois],
            },
        )  # fmt: skip

    # Further experiments

    def _further_betas(self, subject: str, asked: Decode) -> str:
        name = f"nsd{asked.set}"
        return f"nsddata_betas/ppdata/{subject}/{self.space}/{name}{asked.betas or self.betas}/betas_{name}.{'hdf5' if self.form == 'hdf5' else 'nii.gz'}"

    def further_files(self, subject: str, asked: Decode) -> list[RemoteFile]:
        """Betas of NSD-Imagery or NSD-synthetic and the ROIs; the design that NSD ships, or the table of the user's own."""
        paths = [self._roi(subject, rois.file) for rois in self.section.rois] + [self._further_betas(subject, asked)]
        paths += [SYNTHETIC_DESIGN] if asked.set == "synthetic" else []
        files = [RemoteFile(path, f"{self.address}/{path}" if self.address else None) for path in dict.fromkeys(paths)]
        if asked.trials is not None:
            table = Path(place(self.root, asked.trials, subject))
            files.append(RemoteFile((table.relative_to(self.root) if table.is_relative_to(self.root) else table.absolute()).as_posix()))
        return files

    def further(self, subject: str, asked: Decode) -> Further:
        """Single trials of NSD-Imagery, labelled by the user's table, or of NSD-synthetic, called `synthetic001` to `synthetic284`."""
        mask, _ = self._mask(subject)
        path = self._local(self._further_betas(subject, asked))
        self._check_session(path, mask.shape)
        with reading(path, "readable betas", self._again):
            betas = read_betas(path, mask)
        protocol = {"experiment": f"NSD-{asked.set}", "betas": asked.betas or self.betas, "space": self.space}
        if asked.set == "imagery":
            table = SessionFile(Path(place(self.root, asked.trials or "", subject)))
            found = labelled([table], [SessionFile(path)], [len(betas)], asked.label, asked.condition, None, f"{self.name} {subject}")
            blocks = [betas[found.row[found.session == number]] for number in dict.fromkeys(found.session.tolist())]
            return Further(found.session, found.label, found.condition, lambda: iter(blocks), "percent signal change", found.run, protocol)
        shown = self._synthetic_order()
        if len(shown) != len(betas):
            raise InputError(f"{path}: {len(betas)} trials, {SYNTHETIC_DESIGN} has {len(shown)}; fetch {self.name} again")
        run = np.arange(len(shown)) // SYNTHETIC_RUN + 1
        tasks = [SYNTHETIC_TASKS[(number - 1) % 2] for number in run]
        labels = [_synthetic(number) for number in shown]
        return Further(np.ones(len(shown), int), labels, tasks, lambda: iter([betas]), "percent signal change", run, protocol)

    def _synthetic_order(self) -> NDArray[np.int64]:
        """Number of the picture, from 1, of every trial of NSD-synthetic."""
        from scipy.io import loadmat

        path = self._local(SYNTHETIC_DESIGN)
        with reading(path, "a readable MATLAB file with NSD-synthetic's design", self._again):
            return np.asarray(loadmat(path)["masterordering"]).astype(np.int64).ravel()

    def shown_files(self, subject: str) -> list[RemoteFile]:
        """The pictures of NSD-synthetic that a subject was shown."""
        paths = [SYNTHETIC_PICTURES, SYNTHETIC_COLOURS.format(subject=subject)]
        return [RemoteFile(path, f"{self.address}/{path}" if self.address else None) for path in paths]

    def shown(self, subject: str, size: int) -> StimulusSet:
        """The pictures of NSD-synthetic that a subject was shown: the grey ones, then those of its own colours; their centre squares."""
        import h5py

        bricks = []
        for file in self.shown_files(subject):
            path = self._local(file.path)
            with reading(path, "a readable file of pictures (imgBrick)", self._again), h5py.File(path, "r") as opened:
                bricks.append((path, len(opened["imgBrick"])))

        def items() -> Iterator[Stimulus]:
            number = 0
            for path, count in bricks:
                with h5py.File(path, "r") as opened:
                    for row in range(count):
                        number += 1
                        with reading(path, f"readable at picture {row}", self._again):
                            pixels = np.asarray(opened["imgBrick"][row])
                        yield Stimulus.from_pixels(_synthetic(number), pixels, False, size)

        return StimulusSet(sum(count for _, count in bricks), items())

    # Betas

    def _check_protocol(self, subject: str, tests: int) -> None:
        """A protocol's name promises its numbers of test images and sessions; a number of sessions promises nothing."""
        asked, sessions = self.section.sessions, self.n_sessions(subject)
        if isinstance(asked, int) and sessions < asked:
            say(f"{self.name} {subject}: finished {sessions} sessions, {asked} are asked for; all of them are used")
        if isinstance(asked, str) and asked not in ("all", f"{tests}/{sessions}"):
            raise InputError(
                f"datasets.{self.name}.sessions: {asked} does not hold for {subject}, who has {tests} test images in {sessions} sessions; "
                f"give `sessions: {sessions}`, or leave the subject out"
            )

    def _volume(self, path: str, shape: tuple[int, ...] | None = None) -> NDArray:
        import nibabel

        local = self._local(path)
        with reading(local, "a readable NIfTI volume", self._again):
            image: Any = nibabel.load(local)
            volume = np.asanyarray(image.dataobj)
        volume = volume[..., 0] if volume.ndim == 4 and volume.shape[3] == 1 else volume
        if shape is not None and volume.shape != shape:
            raise InputError(f"{local}: its grid is {volume.shape}, that of the ROI is {shape}; use files of one space")
        return volume

    def _mask(self, subject: str) -> tuple[NDArray[np.bool_], NDArray]:
        """The union of the study's ROIs, bool (X, Y, Z), and the grid's affine."""
        import nibabel

        mask: NDArray[np.bool_] | None = None
        for rois in self.section.rois:
            volume = self._volume(self._roi(subject, rois.file), None if mask is None else mask.shape)
            found = label_mask(volume, rois.labels)
            if not found.any():
                wanted = "a positive label" if rois.labels is None else f"one of the labels {rois.labels}"
                raise InputError(f"{below(self.root, self._roi(subject, rois.file))}: no voxel has {wanted}; check datasets.{self.name}.rois")
            mask = found if mask is None else mask | found
        assert mask is not None
        image: Any = nibabel.load(self._local(self._roi(subject, self.section.rois[0].file)))
        return mask, image.affine

    def _labels(self, subject: str, mask: NDArray[np.bool_]) -> tuple[NDArray[np.int16], list[str]]:
        """A label for every voxel: its retinotopic area, else its stream, else the study's ROI file that holds it."""
        files = [rois.file for rois in self.section.rois]
        names = list(dict.fromkeys([*PRF.values(), *STREAMS.values(), *files]))
        labels = np.full(mask.sum(), -1, np.int16)
        layers: list[tuple[str, dict[int, str] | None]] = [("prf-visualrois", PRF), ("streams", STREAMS), *((file, None) for file in files)]
        for file, meaning in layers:
            if not below(self.root, self._roi(subject, file)).exists():
                continue
            values = self._volume(self._roi(subject, file), mask.shape)[mask]
            chosen = {int(v): file for v in np.unique(values[values > 0])} if meaning is None else meaning
            for value, name in chosen.items():
                labels[(labels < 0) & (values == value)] = names.index(name)
        used = np.unique(labels[labels >= 0])
        compact = np.full(len(names) + 1, -1, np.int16)
        compact[used] = np.arange(len(used))
        return compact[labels], [names[index] for index in used]

    def _check_session(self, path: Path, shape: tuple[int, ...]) -> None:
        import h5py
        import nibabel

        with reading(path, "readable betas", self._again):
            if self.form == "hdf5":
                with h5py.File(path, "r") as file:
                    grid = file["betas"].shape[:0:-1]
            else:
                image: Any = nibabel.load(path)
                grid = image.shape[:3]
        if grid != shape:
            raise InputError(f"{path}: the grid of the betas is {grid}, that of the ROI is {shape}; use files of one space")

    def _responses(self, subject: str, mask: NDArray[np.bool_], trials: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        for number, count in enumerate(trials, 1):
            path = self._local(self._session(subject, number))
            with reading(path, "readable betas", self._again):
                betas = read_betas(path, mask)
            if len(betas) != count:
                raise InputError(f"{path}: {len(betas)} trials, the design has {count} in session {number}; fetch {self.name} again")
            missing = int(np.isnan(betas).any(axis=0).sum())
            if missing:
                raise InputError(f"{path}: session {number} has NaN betas in {missing} of {mask.sum()} voxels; use another beta version or a narrower ROI")
            yield betas


def _number(subject: str, dataset: str) -> int:
    number = subject.removeprefix("subj0")
    if number not in "12345678" or len(number) != 1:
        raise InputError(f"datasets.{dataset}: {subject} is not a subject of NSD; they are called subj01 to subj08")
    return int(number)


def _id(row: int) -> str:
    """Name of a picture by its 0-based nsdId."""
    return f"nsd{row:05d}"


def _synthetic(number: int) -> str:
    """Name of a picture of NSD-synthetic by its number, from 1."""
    return f"synthetic{number:03d}"


def read_betas(path: str | Path, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Betas of the voxels in `mask`, from a NIfTI or HDF5 file: float32 (n_trials, n_voxels), percent signal change.

    Integer betas are percent signal change times 300; floating ones are percent signal change.
    """
    stored = voxels_of_hdf5(path, "betas", mask) if Path(path).suffix in (".hdf5", ".h5") else voxels_of_nifti(path, mask)
    betas = stored.astype(np.float32)
    return betas / np.float32(SCALE) if stored.dtype.kind in "iu" else betas
