"""Own data: a file of responses, pictures in a folder, an archive or an array, and a trial table where one is needed."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimind.data.sources.arrayfile import AGAIN, ARRAY_ENDINGS, array_shape, masked_volumes, open_nifti, read_array, read_text
from unimind.data.sources.base import TEST, TRAIN, RawSubject, RemoteFile, Stimulus, StimulusSet, Trials, reading
from unimind.data.sources.pictures import Pictures, natural, pictures_in
from unimind.errors import InputError
from unimind.progress import say
from unimind.study import ArraysData, Study


class ArraysSource:
    """Reader of a laboratory's own files, as `ArraysData` describes them."""

    def __init__(self, study: Study, dataset: str, root: Path) -> None:
        section = study.datasets[dataset]
        assert isinstance(section, ArraysData)
        self.section, self.dataset, self.root = section, dataset, Path(root)
        self._pictures = functools.cache(self._read_pictures)
        self._table = functools.cache(self._read_table)

    # --- files ---------------------------------------------------------------------------------------------------

    def files(self, subject: str | None) -> list[RemoteFile]:
        """Responses, mask, trial table, split list and pictures of a subject; pictures and what splits them for None."""
        section = self.section
        paths: list[str] = []
        if subject is not None:
            paths += [self._relative(path) for path in self._response_files(subject)]
            paths += [section.mask] if section.mask else []
            paths += [section.trials] if section.trials else []
        elif section.trials and not section.images_per_subject and self._split_by_table:
            paths += [section.trials.replace("{subject}", name) for name in self._splitting_subjects(None)]
        paths += [section.split.images] if section.split.images else []
        if subject is not None or not section.images_per_subject:
            paths += self._picture_files(subject)
        named = [path.replace("{subject}", subject or "") for path in paths]
        return [RemoteFile(path) for path in dict.fromkeys(named)]

    def _path(self, pattern: str, subject: str | None) -> Path:
        return self.root / pattern.replace("{subject}", subject or "")

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _picture_files(self, subject: str | None) -> list[str]:
        path = self._path(self.section.images, subject)
        if not path.is_dir():
            return [self._relative(path)]
        return [self._relative(file) for file in pictures_in(path)] or [self._relative(path)]

    def _response_files(self, subject: str) -> list[Path]:
        """The file of responses, or one a session, in the order of the sessions."""
        pattern = self.section.responses.replace("{subject}", subject)
        if "{session}" not in pattern:
            return [self.root / pattern]
        found = sorted(self.root.glob(pattern.replace("{session}", "*")), key=lambda path: natural(path.name))
        if not found:
            raise InputError(f"{self.root / pattern}: no file of responses matches; see datasets.{self.dataset}.responses")
        return found

    # --- pictures ------------------------------------------------------------------------------------------------

    def stimuli(self, subject: str | None, size: int) -> StimulusSet:
        """Pictures in number order; those with the same pixels are one stimulus, named as the first of them."""
        pictures = self._pictures(subject if self.section.images_per_subject else None)
        test = self._test_pictures(subject)
        keep = [index for index, first in enumerate(pictures.first) if index == first]

        def items() -> Iterator[Stimulus]:
            for index in keep:
                yield Stimulus.from_pixels(pictures.names[index], pictures.load(pictures.names[index]), index in test, size)

        return StimulusSet(count=len(keep), items=_Again(items))

    def _read_pictures(self, subject: str | None) -> "Pictures":
        path = self._path(self.section.images, subject)
        return Pictures.open(path, self.section.images_key, self.section.images_shape, self.section.images_transposed)

    @property
    def _split_by_table(self) -> bool:
        return self.section.split.column is not None or self.section.split.sessions is not None

    def _splitting_subjects(self, subject: str | None) -> list[str]:
        """Whose trials say which pictures of a stimulus set are test pictures; a new subject never changes a shared set."""
        if self.section.images_per_subject and subject is not None:
            return [subject]
        return self.section.training_subjects or self.section.subjects

    def _test_pictures(self, subject: str | None, own: bool = False) -> set[int]:
        """Indices of test pictures, each the first of its pixels; with `own`, also those only this subject's trials name."""
        pictures = self._pictures(subject if self.section.images_per_subject else None)
        split = self.section.split
        where = f"datasets.{self.dataset}.split"
        if split.every is not None:
            marked = set(range(0, len(pictures), split.every))
        elif split.images is not None:
            listed = self._path(split.images, subject)
            marked = {pictures.find(line, str(listed)) for line in read_text(listed).splitlines() if line.strip()}
        else:
            marked = set()
            for name in dict.fromkeys([*self._splitting_subjects(subject), *([subject] if own and subject else [])]):
                table = self._table(name)
                marked |= set(table.picture[table.test].tolist())
        test = {int(pictures.first[index]) for index in marked}
        if not test:
            raise InputError(f"{where}: the test split is empty; no picture of {self._path(self.section.images, subject)} is a test picture")
        if len(test) == len(set(pictures.first.tolist())):
            raise InputError(f"{where}: every picture of {self._path(self.section.images, subject)} is a test picture; none is left to train on")
        return test

    # --- trials --------------------------------------------------------------------------------------------------

    def subject(self, subject: str) -> RawSubject:
        """Trials and units of a subject; units without variance in training trials or with missing values are left out."""
        section = self.section
        pictures = self._pictures(subject if section.images_per_subject else None)
        table = self._table(subject)
        shown = pictures.first[table.picture]
        test = self._test_pictures(subject, own=True)
        split = np.where(np.isin(shown, list(test)), TEST, TRAIN)
        if not (split == TEST).any() or not (split == TRAIN).any():
            missing = "test" if (split == TRAIN).any() else "training"
            raise InputError(f"datasets.{self.dataset}.split: {subject} has no {missing} trials; no trial shows a {missing} picture")
        responses = self._responses(subject, table, split)
        good, silent, missing_values = _usable(responses.blocks(), split)
        bad = int(silent.sum() + missing_values.sum())
        if bad:
            what = f"{bad} of {len(good)} units ({int(silent.sum())} without variance, {int(missing_values.sum())} with missing values)"
            if not section.drop_bad_voxels:
                raise InputError(f"{responses.where}: {what} cannot be used; mend them, or set datasets.{self.dataset}.drop_bad_voxels: true")
            if not good.any():
                raise InputError(f"{responses.where}: no unit can be used: {what}; if whole trials are missing, leave their `picture` empty in the trial table")
            say(f"{self.dataset} {subject}: dropped {what}")
        roi, names = (responses.roi[good], responses.roi_names) if section.roi_labels and responses.roi is not None else (None, None)
        return RawSubject(
            n_voxels=int(good.sum()),
            trials=Trials(
                session=table.session,
                stimulus=[pictures.names[index] for index in shown],
                responses=lambda: (np.ascontiguousarray(block[:, good]) for block in responses.blocks()),
                split=split.astype(np.int8) if self._split_by_table else None,
            ),
            units="z-scored per run" if section.blocks else section.units,
            xyz=None if responses.xyz is None else responses.xyz[good],
            roi=roi,
            roi_names=names,
            protocol={
                "split": section.split.model_dump(exclude_none=True),
                "dropped_units": bad,
                **({"blocks": section.blocks.model_dump(mode="json")} if section.blocks else {}),
            },
        )

    def _read_table(self, subject: str) -> "_Table":
        """The trials of a subject, those of a session side by side."""
        pictures = self._pictures(subject if self.section.images_per_subject else None)
        if self.section.blocks is not None:
            return self._blocks(subject, pictures)
        files = self._response_files(subject)
        counts = [self._trials_in(path) for path in files]
        total = sum(counts)
        if self.section.trials is None:
            if total != len(pictures):
                self._refuse_count(files, total, len(pictures), f"pictures in {pictures.where}", "give a trial table (`trials:`)")
            by_file = np.repeat(np.arange(1, len(files) + 1), counts)
            return self._marked(_Table(np.arange(total), np.arange(total), by_file, np.zeros(total, bool)))
        import pandas as pd

        path = self._path(self.section.trials, subject)
        try:
            frame = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
        except FileNotFoundError:
            raise InputError(f"{path}: no such trial table; see datasets.{self.dataset}.trials") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not a text file in UTF-8 ({error}); save it as UTF-8") from None
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            raise InputError(f"{path}: not a trial table: {error}") from None
        frame.columns = frame.columns.str.strip()
        needed = ["picture", *([self.section.split.column] if self.section.split.column else [])]
        for column in needed:
            if column not in frame:
                raise InputError(f"{path}: no column {column!r}; it has {', '.join(frame.columns)}")
        if len(frame) != total:
            self._refuse_count(files, total, len(frame), f"rows in {path}", "the table needs one row a trial")
        session = self._sessions(frame, path, counts)
        frame = frame.assign(_row=np.arange(len(frame)), _session=session)
        blank = frame["picture"].str.strip() == ""
        if blank.any():
            say(f"{self.dataset} {subject}: {int(blank.sum())} of {len(frame)} trials show no picture and are left out")
            frame = frame[~blank]
        frame = frame.sort_values("_session", kind="stable")
        picture = np.array([pictures.find(value, f"{path} line {row + 2}") for value, row in zip(frame["picture"], frame["_row"], strict=True)], int)
        test = np.zeros(len(frame), bool)
        if self.section.split.column:
            words = frame[self.section.split.column].str.strip().str.lower()
            wrong = ~words.isin(["train", "test"])
            if wrong.any():
                row = int(frame["_row"][wrong].iloc[0])
                raise InputError(f"{path} line {row + 2}: {self.section.split.column} is {words[wrong].iloc[0]!r}; expected train or test")
            test = (words == "test").to_numpy()
        return self._marked(_Table(frame["_row"].to_numpy(), picture, frame["_session"].to_numpy(), test))

    def _marked(self, table: "_Table") -> "_Table":
        if self.section.split.sessions is None:
            return table
        return _Table(table.row, table.picture, table.session, np.isin(table.session, self.section.split.sessions))

    def _sessions(self, frame: Any, path: Path, counts: list[int]) -> NDArray[np.integer]:
        """Session of every row of the table, checked against the files where there is one a session."""
        by_file = np.repeat(np.arange(1, len(counts) + 1), counts)
        if "session" not in frame:
            return by_file
        try:
            given = frame["session"].astype(int).to_numpy()
        except ValueError:
            raise InputError(f"{path}: column session holds {frame['session'].iloc[0]!r} and the like; expected whole numbers") from None
        if len(counts) > 1:
            ordered = np.sort(given, kind="stable")
            names = np.unique(given)
            if len(names) != len(counts) or [int((given == name).sum()) for name in names] != counts or not np.array_equal(ordered, given):
                raise InputError(f"{path}: trials per session are {[int((given == name).sum()) for name in names]}, but the session files hold {counts}")
        return given

    def _refuse_count(self, files: list[Path], total: int, given: int, what: str, hint: str) -> None:
        array = files[0]
        if array.suffix in ARRAY_ENDINGS and given in (shape := array_shape(array, self.section.key)) and given != total:
            other = "voxels_by_trials" if self.section.orientation == "trials_by_voxels" else "trials_by_voxels"
            hint = f"its shape is {shape}: set datasets.{self.dataset}.orientation: {other}"
        raise InputError(f"{array}: {total} trials, but {given} {what}; {hint}")

    def _trials_in(self, path: Path) -> int:
        if path.suffix in ARRAY_ENDINGS:
            shape = array_shape(path, self.section.key)
            if len(shape) != 2:
                raise InputError(f"{path}: responses of shape {shape}; expected two axes, {self.section.orientation}")
            return shape[0] if self.section.orientation == "trials_by_voxels" else shape[1]
        shape = open_nifti(path).shape
        if len(shape) != 4:
            raise InputError(f"{path}: volumes of shape {shape}; expected four axes, the last one trials")
        return int(shape[3])

    # --- block designs -------------------------------------------------------------------------------------------

    def _shifted_labels(self, subject: str) -> NDArray[np.integer]:
        """Label of every volume after the haemodynamic delay, one row a run; -1 where the delay leaves none."""
        blocks = self.section.blocks
        assert blocks is not None
        path = self._response_files(subject)[0]
        labels = np.asarray(read_array(path, blocks.labels)).ravel().astype(int)
        volumes = self._trials_in(path)
        if len(labels) != volumes:
            self._refuse_count([path], volumes, len(labels), f"labels under {blocks.labels}", "one label a volume is needed")
        if volumes % blocks.runs:
            raise InputError(f"{path}: {volumes} volumes do not make {blocks.runs} equally long runs; see datasets.{self.dataset}.blocks.runs")
        runs = labels.reshape(blocks.runs, -1)
        shifted = np.full_like(runs, -1)
        shifted[:, blocks.delay :] = runs[:, : runs.shape[1] - blocks.delay]
        unknown = sorted(set(labels.tolist()) - set(blocks.ignore) - set(blocks.pictures))
        if unknown:
            raise InputError(f"{path}: label {unknown[0]} is neither in datasets.{self.dataset}.blocks.pictures nor in blocks.ignore")
        return shifted

    def _block_volumes(self, subject: str) -> list[tuple[int, int, int, int]]:
        """(run, first volume, volume after the last, label) of every stimulus block, in order."""
        assert self.section.blocks is not None
        found = []
        for run, labels in enumerate(self._shifted_labels(subject)):
            edges = np.flatnonzero(np.diff(np.concatenate([[-2], labels, [-2]])))
            for begin, end in zip(edges[:-1], edges[1:], strict=True):
                if labels[begin] in self.section.blocks.pictures:
                    found.append((run, run * len(labels) + int(begin), run * len(labels) + int(end), int(labels[begin])))
        return found

    def _blocks(self, subject: str, pictures: "Pictures") -> "_Table":
        blocks = self.section.blocks
        assert blocks is not None
        found = self._block_volumes(subject)
        for label, index in blocks.pictures.items():
            if not 0 <= index < len(pictures):
                raise InputError(f"datasets.{self.dataset}.blocks.pictures.{label}: picture {index} of {len(pictures)}; count from 0")
        picture = np.array([blocks.pictures[label] for *_, label in found], int)
        session = np.array([run + 1 for run, *_ in found], int)
        return self._marked(_Table(np.arange(len(found)), picture, session, np.zeros(len(found), bool)))

    # --- responses -----------------------------------------------------------------------------------------------

    def _responses(self, subject: str, table: "_Table", split: NDArray[np.integer]) -> "_Responses":
        files = self._response_files(subject)
        if files[0].suffix not in ARRAY_ENDINGS:
            return self._nifti_responses(subject, files, table)
        if self.section.mask is not None:
            raise InputError(f"datasets.{self.dataset}.mask: only for NIfTI responses; {files[0].name} given")
        if len(files) > 1:
            raise InputError(f"datasets.{self.dataset}.responses: one file a session is only read for NIfTI; join the arrays, or remove {{session}}")
        path = files[0]
        rows_first = self.section.orientation == "trials_by_voxels"

        def rows(which: NDArray[np.integer]) -> NDArray[np.float32]:
            low, high = int(which.min()), int(which.max()) + 1
            part = read_array(path, self.section.key, slice(low, high) if rows_first else (slice(None), slice(low, high)))
            return np.asarray(part if rows_first else part.T, np.float32)[which - low]

        def blocks() -> Iterator[NDArray[np.float32]]:
            for session in dict.fromkeys(table.session.tolist()):
                yield rows(table.row[table.session == session])

        return _Responses(str(path), (lambda: self._block_responses(subject, rows, split)) if self.section.blocks else blocks)

    def _block_responses(self, subject: str, rows: Callable, split: NDArray[np.integer]) -> Iterator[NDArray[np.float32]]:
        """Mean response of each block, run by run, voxels z-scored by the volumes of their run that are in no test block."""
        found = self._block_volumes(subject)
        per_run = self._shifted_labels(subject).shape[1]
        for run in dict.fromkeys(run for run, *_ in found):
            volumes = rows(np.arange(run * per_run, (run + 1) * per_run)).astype(np.float64)
            here = [(begin - run * per_run, end - run * per_run, part) for (at, begin, end, _), part in zip(found, split, strict=True) if at == run]
            fit = np.ones(per_run, bool)
            for begin, end, part in here:
                fit[begin:end] &= part != TEST
            mean, deviation = volumes[fit].mean(0), volumes[fit].std(0)
            scored = (volumes - mean) / np.where(deviation > 0, deviation, 1.0)
            yield np.stack([scored[begin:end].mean(0) for begin, end, _ in here]).astype(np.float32)

    def _nifti_responses(self, subject: str, files: list[Path], table: "_Table") -> "_Responses":
        section = self.section
        if section.mask is None:
            raise InputError(f"datasets.{self.dataset}.mask: missing; NIfTI responses need a mask or atlas on their grid")
        mask_path = self._path(section.mask, subject)
        mask = open_nifti(mask_path)
        with reading(mask_path, "a readable NIfTI file", AGAIN):
            labels = np.asarray(mask.dataobj).squeeze()
        if labels.ndim != 3:
            raise InputError(f"{mask_path}: {labels.ndim} axes; expected a mask of three")
        for path in files:
            image = open_nifti(path)
            if image.shape[:3] != labels.shape or not np.allclose(image.affine, mask.affine, atol=1e-3):
                differs = f"shape {labels.shape} against {image.shape[:3]}" if image.shape[:3] != labels.shape else "another affine"
                raise InputError(f"{mask_path}: not on the grid of {path.name} ({differs}); resample the mask to the responses")
        labels = np.round(labels).astype(int)
        chosen = labels > 0 if section.mask_labels is None else np.isin(labels, section.mask_labels)
        if not chosen.any():
            raise InputError(f"{mask_path}: no voxel is labelled {section.mask_labels or 'above 0'}; it has {np.unique(labels)[:12].tolist()}")
        places = np.argwhere(chosen)
        where = tuple(places.T)
        kept, roi = np.unique(labels[chosen], return_inverse=True)
        counts = [self._trials_in(path) for path in files]
        starts = np.cumsum([0, *counts])

        def blocks() -> Iterator[NDArray[np.float32]]:
            whole = None
            for session in dict.fromkeys(table.session.tolist()):
                wanted = table.row[table.session == session]
                if len(files) > 1:
                    at = int(np.searchsorted(starts, wanted[0], side="right")) - 1
                    yield masked_volumes(files[at], where)[wanted - starts[at]]
                else:
                    whole = masked_volumes(files[0], where) if whole is None else whole
                    yield whole[wanted]

        xyz = (places @ mask.affine[:3, :3].T + mask.affine[:3, 3]).astype(np.float32)
        return _Responses(str(files[0]), blocks, xyz, roi.ravel().astype(np.int16), [f"label {label}" for label in kept])


@dataclass(frozen=True)
class _Table:
    """Trials: row of the responses, index of the picture, session, whether the split rule marks the trial itself."""

    row: NDArray[np.integer]
    picture: NDArray[np.integer]
    session: NDArray[np.integer]
    test: NDArray[np.bool_]


@dataclass(frozen=True)
class _Responses:
    where: str
    blocks: Callable[[], Iterator[NDArray[np.float32]]]
    xyz: NDArray[np.float32] | None = None
    roi: NDArray[np.int16] | None = None
    roi_names: list[str] | None = None


@dataclass(frozen=True)
class _Again:
    """An iterable that starts anew each time."""

    start: Callable[[], Iterator[Stimulus]]

    def __iter__(self) -> Iterator[Stimulus]:
        return self.start()


def _usable(blocks: Iterator[NDArray[np.float32]], split: NDArray[np.integer]) -> tuple[NDArray, NDArray, NDArray]:
    """Units to keep, units constant over the training trials, units with a value that is missing or infinite anywhere."""
    low: NDArray | None = None
    high: NDArray | None = None
    finite: NDArray | None = None
    done = 0
    for block in blocks:
        train = block[split[done : done + len(block)] != TEST]
        done += len(block)
        complete = np.asarray(np.isfinite(block).all(0))
        finite = complete if finite is None else finite & complete
        if len(train):
            low = train.min(0) if low is None else np.minimum(low, train.min(0))
            high = train.max(0) if high is None else np.maximum(high, train.max(0))
    assert finite is not None and low is not None and high is not None
    silent = finite & ~(high > low)
    return finite & ~silent, silent, ~finite
