"""Own data: a file of responses, pictures in a folder, an archive or an array, and a trial table where one is needed."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimind.data.sources.arrayfile import (
    ARRAY_ENDINGS,
    array_shape,
    from_matlab,
    labels_of,
    masked_array,
    masked_volumes,
    open_nifti,
    read_array,
    trial_axes,
    volume,
    volumes_shape,
)
from unimind.data.sources.base import TEST, TRAIN, Further, RawSubject, RemoteFile, Stimulus, StimulusSet, Trials, own_file
from unimind.data.sources.pictures import Pictures, pictures_in
from unimind.data.sources.tables import is_nothing, spelled
from unimind.data.sources.trials import SessionFile, Shown, labelled, listed_pictures, marked, match, parts_of, place, read_trial_tables, sessions_of
from unimind.errors import InputError
from unimind.progress import say
from unimind.storage import content_hash
from unimind.study import ArraysData, Decode, Study


class ArraysSource:
    """Reader of a laboratory's own files, as `ArraysData` describes them."""

    def __init__(self, study: Study, dataset: str, root: Path) -> None:
        section = study.datasets[dataset]
        assert isinstance(section, ArraysData)
        self.section, self.dataset, self.root = section, dataset, Path(root)
        self._pictures = functools.cache(self._read_pictures)
        self._table = functools.cache(self._read_table)
        self._counts = functools.cache(self._count)

    # --- files ---------------------------------------------------------------------------------------------------

    def files(self, subject: str | None) -> list[RemoteFile]:
        """Responses, mask, trial tables, split list and pictures of a subject; pictures and what splits them for None."""
        section = self.section
        found: list[RemoteFile] = []
        if subject is not None:
            found += [self._file(part.path) for part in self._response_files(subject)]
            found += [self._file(self._path(section.mask, subject))] if section.mask else []
            found += [self._file(part.path) for part in self._trial_files(subject)]
        elif section.trials and not section.images_per_subject and section.split_by_table:
            for name in self._splitting_subjects(None):
                found += [self._file(part.path, functools.partial(self._test_words, part)) for part in self._trial_files(name)]
        found += [self._file(self._path(section.split.images, subject))] if section.split.images else []
        if subject is not None or not section.images_per_subject:
            path = self._path(section.images, subject)
            found += [self._file(file) for file in (pictures_in(path) if path.is_dir() else []) or [path]]
        return list({file.path: file for file in found}.values())

    def _file(self, path: Path, part: Callable[[Path], str] | None = None) -> RemoteFile:
        return own_file(self.root, path, part)

    def _path(self, pattern: str, subject: str | None) -> Path:
        return Path(place(self.root, pattern, subject))

    def _response_files(self, subject: str) -> list[SessionFile]:
        """The file of responses, or one a session or run, in their order."""
        return parts_of(self.root, self.section.responses, subject, f"datasets.{self.dataset}.responses")

    def _trial_files(self, subject: str) -> list[SessionFile]:
        return parts_of(self.root, self.section.trials, subject, f"datasets.{self.dataset}.trials") if self.section.trials else []

    def _test_words(self, part: SessionFile, path: Path) -> str:
        """Hash of what a shared set of pictures takes from a trial table: which of them are test pictures."""
        rows = read_trial_tables([part], [], None, self.section.split.column)
        kept = [row for row, cell in enumerate(rows.picture) if not is_nothing(cell) and (rows.index is None or not is_nothing(rows.index[row]))]
        if self.section.split.sessions is not None:
            if "session" not in rows.numbers:
                return content_hash([rows.picture, rows.index])
            test = [rows.numbers["session"][row] in self.section.split.sessions for row in kept]
        else:
            test = marked(rows, kept).tolist()
        return content_hash(sorted({spelled(rows.picture[row]) for row, marks in zip(kept, test, strict=True) if marks}))

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
        return Pictures.open(path, self.section.images_key, self.section.images_shape, self.section.images_transposed, self.section.images_ground)

    def _splitting_subjects(self, subject: str | None) -> list[str]:
        """Whose trials say which pictures of a stimulus set are test pictures; a new subject never changes a shared set."""
        if self.section.images_per_subject and subject is not None:
            return [subject]
        return self.section.training_subjects or self.section.subjects

    def _test_pictures(self, subject: str | None, own: bool = False) -> set[int]:
        """Indices of test pictures, each the first of its pixels; with `own`, also those only this subject's trials name."""
        pictures = self._pictures(subject if self.section.images_per_subject else None)
        split = self.section.split
        if split.every is not None:
            marked = set(range(0, len(pictures), split.every))
        elif split.images is not None:
            marked = set(listed_pictures(self._path(split.images, subject), pictures, self.section.count_from, self.dataset).tolist())
        else:
            marked = set()
            for name in dict.fromkeys([*self._splitting_subjects(subject), *([subject] if own and subject else [])]):
                table = self._table(name)
                marked |= set(table.picture[table.test].tolist())
        test = {int(pictures.first[index]) for index in marked}
        where, images = f"datasets.{self.dataset}.split", self._path(self.section.images, subject)
        if not test:
            raise InputError(f"{where}: the test split is empty; no picture of {images} is a test picture")
        if len(test) == len(set(pictures.first.tolist())):
            raise InputError(f"{where}: every picture of {images} is a test picture; none is left to train on")
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
        responses = self._responses(subject, table, split, self._response_files(subject), self._counts(subject))
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
                split=split.astype(np.int8) if section.split_by_table else None,
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
            units_kept=np.flatnonzero(good) if bad else None,
        )

    # --- trials without pictures ---------------------------------------------------------------------------------

    def further_files(self, subject: str, asked: Decode) -> list[RemoteFile]:
        """Responses, mask and trial tables of a set."""
        responses, tables = self._further_parts(subject, asked)
        mask = [self._path(self.section.mask, subject)] if self.section.mask else []
        return [self._file(path) for path in (*(part.path for part in responses), *mask, *(part.path for part in tables))]

    def _further_parts(self, subject: str, asked: Decode) -> tuple[list[SessionFile], list[SessionFile]]:
        assert asked.responses is not None
        where = f"decode, responses of {self.dataset}"
        tables = parts_of(self.root, asked.trials, subject, f"decode, trials of {self.dataset}") if asked.trials else []
        return parts_of(self.root, asked.responses, subject, where), tables

    def further(self, subject: str, asked: Decode) -> Further:
        """Trials of other files of responses, read as the data set's are."""
        files, tables = self._further_parts(subject, asked)
        mask = volume(self._path(self.section.mask, subject))[0].shape if self.section.mask else None
        counts = [self._trials_in(part.path, mask) for part in files]
        found = labelled(tables, files, counts, asked.label, asked.condition, self.section.count_from, f"{self.dataset} {subject}")
        table = Shown(found.row, np.zeros(len(found.row), int), found.session, np.zeros(len(found.row), bool))
        responses = self._responses(subject, table, np.zeros(len(found.row), int), files, counts)
        return Further(found.session, found.label, found.condition, responses.blocks, self.section.units, found.run, {"responses": asked.responses})

    def _read_table(self, subject: str) -> Shown:
        """The trials of a subject that show a picture, those of a session side by side."""
        pictures = self._pictures(subject if self.section.images_per_subject else None)
        if self.section.blocks is not None:
            return self._blocks(subject, pictures)
        files, counts = self._response_files(subject), self._counts(subject)
        if self.section.trials is None:
            total = sum(counts)
            if total != len(pictures):
                raise self._count_refusal(files, total, len(pictures), f"pictures in {pictures.where}", "give a trial table (`trials:`)")
            return self._marked(Shown(np.arange(total), np.arange(total), sessions_of(files, counts), np.zeros(total, bool)))
        rows = read_trial_tables(self._trial_files(subject), files, counts, self.section.split.column)
        if len(files) == 1 and rows.index is None and len(rows) != counts[0] and self._turned(files[0].path, len(rows)):
            raise self._count_refusal(files, counts[0], len(rows), "rows in the trial table", "")
        return self._marked(match(rows, files, counts, pictures, self.section.count_from, self.dataset, subject))

    def _marked(self, table: Shown) -> Shown:
        if self.section.split.sessions is None:
            return table
        return Shown(table.row, table.picture, table.session, np.isin(table.session, self.section.split.sessions))

    def _turned(self, path: Path, count: int) -> bool:
        """Whether the responses' other axis has that many."""
        return path.suffix in ARRAY_ENDINGS and self.section.mask is None and count in array_shape(path, self.section.key)

    def _count_refusal(self, files: Sequence[SessionFile], total: int, given: int, what: str, hint: str) -> InputError:
        if self._turned(files[0].path, given):
            other = "voxels_by_trials" if self.section.orientation == "trials_by_voxels" else "trials_by_voxels"
            hint = f"its shape is {array_shape(files[0].path, self.section.key)}: set datasets.{self.dataset}.orientation: {other}"
        return InputError(f"{files[0]}: {total} trials, but {given} {what}; {hint}")

    def _count(self, subject: str) -> list[int]:
        """Trials of each file of responses."""
        mask = volume(self._path(self.section.mask, subject))[0].shape if self.section.mask else None
        return [self._trials_in(part.path, mask) for part in self._response_files(subject)]

    def _trials_in(self, path: Path, mask: tuple[int, ...] | None) -> int:
        if path.suffix not in ARRAY_ENDINGS:
            return volumes_shape(path)[3]
        if mask is not None:
            array = read_array(path, self.section.key)
            return int(array.shape[self._axes(path, array, mask).index("t")])
        return self._plane(path)[0]

    def _axes(self, path: Path, array: Any, mask: tuple[int, ...]) -> str:
        if len(array.shape) == 2:
            raise InputError(f"{path}: responses of shape {tuple(array.shape)}, already those of a mask; remove datasets.{self.dataset}.mask")
        return trial_axes(tuple(array.shape), mask, from_matlab(path, array), path.suffix in (".h5", ".hdf5", ".mat"), path)

    def _plane(self, path: Path) -> tuple[int, int]:
        """Trials and units of an array of two axes; between them GLMsingle leaves axes of length 1."""
        shape = array_shape(path, self.section.key)
        if len(shape) < 2 or any(length != 1 for length in shape[1:-1]):
            volumes = f"; for volumes give datasets.{self.dataset}.mask" if len(shape) == 4 else ""
            raise InputError(f"{path}: responses of shape {shape}; expected two axes, {self.section.orientation}{volumes}")
        return (shape[0], shape[-1]) if self.section.orientation == "trials_by_voxels" else (shape[-1], shape[0])

    # --- block designs -------------------------------------------------------------------------------------------

    def _shifted_labels(self, subject: str) -> NDArray[np.integer]:
        """Label of every volume after the haemodynamic delay, one row a run; -1 where the delay leaves none."""
        blocks = self.section.blocks
        assert blocks is not None
        path = self._response_files(subject)[0].path
        labels = np.asarray(read_array(path, blocks.labels)).ravel().astype(int)
        volumes = self._trials_in(path, None)
        if len(labels) != volumes:
            raise self._count_refusal([SessionFile(path)], volumes, len(labels), f"labels under {blocks.labels}", "one label a volume is needed")
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

    def _blocks(self, subject: str, pictures: Pictures) -> Shown:
        blocks = self.section.blocks
        assert blocks is not None
        found = self._block_volumes(subject)
        for label, index in blocks.pictures.items():
            if not 0 <= index < len(pictures):
                raise InputError(f"datasets.{self.dataset}.blocks.pictures.{label}: picture {index} of {len(pictures)}; count from 0")
        picture = np.array([blocks.pictures[label] for *_, label in found], int)
        session = np.array([run + 1 for run, *_ in found], int)
        return self._marked(Shown(np.arange(len(found)), picture, session, np.zeros(len(found), bool)))

    # --- responses -----------------------------------------------------------------------------------------------

    def _responses(
        self, subject: str, table: Shown, split: NDArray[np.integer], files: Sequence[SessionFile], counts: Sequence[int]
    ) -> "_Responses":  # fmt: skip
        """The responses of the table's trials, a session at a time, out of one file or several."""
        starts = np.cumsum([0, *counts])
        masked = self._mask(subject, files) if self.section.mask is not None else None
        if masked is None:
            units = [self._plane(part.path)[1] for part in files]
            for part, count in zip(files, units, strict=True):
                if count != units[0]:
                    raise InputError(f"{part}: {count} voxels, but {files[0]} has {units[0]}; give the same voxels of every session")

        @functools.lru_cache(maxsize=1)
        def held(at: int) -> NDArray[np.float32]:
            assert masked is not None
            return self._volumes(files[at].path, masked)

        def rows(which: NDArray[np.integer]) -> NDArray[np.float32]:
            of = np.searchsorted(starts, which, side="right") - 1
            parts = {int(at): which[of == at] - starts[at] for at in dict.fromkeys(of.tolist())}
            found = {at: held(at)[part] if masked is not None else self._rows(files[at].path, part) for at, part in parts.items()}
            if len(found) == 1:
                return next(iter(found.values()))
            block = np.empty((len(which), next(iter(found.values())).shape[1]), np.float32)
            for at, values in found.items():
                block[of == at] = values
            return block

        def blocks() -> Iterator[NDArray[np.float32]]:
            for session in dict.fromkeys(table.session.tolist()):
                yield rows(table.row[table.session == session])

        chosen = (lambda: self._block_responses(subject, rows, split)) if self.section.blocks else blocks
        return _Responses(str(files[0]), chosen, *((masked.xyz, masked.roi, masked.roi_names) if masked is not None else ()))

    def _rows(self, path: Path, which: NDArray[np.integer]) -> NDArray[np.float32]:
        """Some trials of an array of two axes, read from the first of them to the last."""
        low, high = int(which.min()), int(which.max()) + 1
        rows_first = self.section.orientation == "trials_by_voxels"
        between = (0,) * (len(array_shape(path, self.section.key)) - 2)
        part = read_array(path, self.section.key, (slice(low, high), *between) if rows_first else (slice(None), *between, slice(low, high)))
        return np.asarray(part if rows_first else part.T, np.float32)[which - low]

    def _volumes(self, path: Path, masked: "_Masked") -> NDArray[np.float32]:
        if path.suffix not in ARRAY_ENDINGS:
            return masked_volumes(path, masked.where)
        return masked_array(path, self.section.key, self._axes(path, read_array(path, self.section.key), masked.shape), masked.where)

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

    def _mask(self, subject: str, files: Sequence[SessionFile]) -> "_Masked":
        section = self.section
        assert section.mask is not None
        path = self._path(section.mask, subject)
        values, affine = volume(path)
        for part in files:
            if part.path.suffix in ARRAY_ENDINGS:
                continue
            grid, image = volumes_shape(part.path)[:3], open_nifti(part.path)
            if grid != values.shape or (affine is not None and not np.allclose(image.affine, affine, atol=1e-3)):
                differs = f"shape {values.shape} against {grid}" if grid != values.shape else "another affine"
                raise InputError(f"{path}: not on the grid of {part.path.name} ({differs}); resample the mask to the responses")
            affine = image.affine if affine is None else affine
        values = values.astype(np.float64)
        labels, graded = labels_of(values)
        if section.mask_labels is not None:
            if graded:
                odd = values.flat[np.argmax(abs(values - labels))]
                raise InputError(f"{path}: values such as {odd:g} are no labels; remove datasets.{self.dataset}.mask_labels, and see mask_threshold")
            chosen = np.isin(labels, section.mask_labels)
        else:
            chosen = values > section.mask_threshold
        if not chosen.any():
            wanted = section.mask_labels or f"above {section.mask_threshold:g}"
            raise InputError(f"{path}: no voxel is labelled {wanted}; it has {np.unique(values.round(3) if graded else labels)[:12].tolist()}")
        places = np.argwhere(chosen)
        if graded:
            say(f"{self.dataset} {subject}: {path.name} holds probabilities; the {len(places)} voxels above mask_threshold {section.mask_threshold:g} are kept")
        xyz = None if affine is None else (places @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)
        if graded:
            return _Masked(tuple(places.T), values.shape, xyz, None, None)
        kept, roi = np.unique(labels[chosen], return_inverse=True)
        return _Masked(tuple(places.T), values.shape, xyz, roi.ravel().astype(np.int16), [f"label {label}" for label in kept])


@dataclass(frozen=True)
class _Masked:
    """The voxels of a mask: indices along its axes, its shape, and where known their places in millimetres and labels."""

    where: tuple[NDArray[np.integer], ...]
    shape: tuple[int, ...]
    xyz: NDArray[np.float32] | None
    roi: NDArray[np.int16] | None
    roi_names: list[str] | None


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
