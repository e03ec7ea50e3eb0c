"""Prepared files: what every stage after `prepare` reads, whatever laboratory the data came from."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from unimind.data.hdf5 import NewFile, read_rows
from unimind.data.sources.base import TEST, TRAIN, VALIDATION, Stimulus
from unimind.errors import InputError
from unimind.storage import whole_file

SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
Split = Literal["train", "validation", "test"]
Order = Literal["anatomical", "stored"]
_CHUNK = 64 * 1024  # bytes: one trial of NSD, several of a smaller data set
_BLOCK = 32 * 1024 * 1024  # bytes read at once


class _File(ABC):
    """An HDF5 file opened for reading, closed with the context it serves."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = h5py.File(self.path, "r")
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such file; run the stage that writes it first") from None
        except OSError as error:
            raise InputError(f"{self.path}: not a readable HDF5 file ({error}); delete it and run again") from None
        try:
            self._check_form()
        except BaseException:
            self._file.close()
            raise

    @abstractmethod
    def _check_form(self) -> None:
        """Raise InputError where the file has not the form it should have; its values are not read."""

    def _dataset(self, name: str) -> h5py.Dataset:
        found = self._file.get(name)
        if not isinstance(found, h5py.Dataset):
            raise InputError(f"{self.path}: has no `{name}`; it was not written by this version of Unimind: delete it and run again")
        return found

    def _optional(self, name: str) -> NDArray | None:
        return self._file[name][:] if name in self._file else None

    def close(self) -> None:
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _ResponseFile(_File):
    """What paired and unpaired files have in common: rows of responses, voxels, attributes."""

    @property
    def responses(self) -> h5py.Dataset:
        """float32 (n, n_voxels), on disk."""
        return self._dataset("responses")

    @property
    def attributes(self) -> dict[str, Any]:
        """Data set, subject, units, normalisation, order, and `protocol` and `sources` as dictionaries."""
        content = {key: value.item() if isinstance(value, np.generic) else value for key, value in self._file.attrs.items()}
        return {**content, "protocol": json.loads(content["protocol"]), "sources": json.loads(content["sources"])}

    @property
    def dataset(self) -> str:
        return str(self._file.attrs["dataset"])

    @property
    def subject(self) -> str:
        return str(self._file.attrs["subject"])

    @property
    def protocol(self) -> dict[str, Any]:
        return self.attributes["protocol"]

    @property
    def n_voxels(self) -> int:
        return self.responses.shape[1]

    @cached_property
    def xyz(self) -> NDArray[np.float32] | None:
        """Voxel centres, float32 (n_voxels, 3), mm."""
        return self._optional("voxel/xyz")

    @cached_property
    def roi(self) -> NDArray[np.int16] | None:
        """Index into `roi_names` of every voxel, -1 for none, (n_voxels,)."""
        return self._optional("voxel/roi")

    @cached_property
    def roi_names(self) -> list[str] | None:
        return None if self.roi is None else json.loads(self._file["voxel/roi"].attrs["names"])

    @property
    def roi_words(self) -> list[str]:
        """Names of the ROIs that voxels are in."""
        names = self.roi_names or []
        return [] if self.roi is None else [names[number] for number in np.unique(self.roi) if 0 <= number < len(names)]

    @cached_property
    def noise_ceiling(self) -> NDArray[np.float32] | None:
        """Explainable share of the variance of one trial, (n_voxels,), 0 to 1."""
        return self._optional("voxel/noise_ceiling")

    @cached_property
    def stored(self) -> NDArray[np.int32]:
        """Position of every voxel among all that the distributed files hold of the ROI, (n_voxels,): `argsort(stored)` restores their order."""
        found = self._optional("voxel/stored")
        return np.arange(self.n_voxels, dtype=np.int32) if found is None else found

    def read(self, indices: ArrayLike | slice, order: Order = "anatomical") -> NDArray[np.float32]:
        """Responses of some rows, in the order asked for, repeats allowed: float32 (n, n_voxels).

        Parameters
        ----------
        indices : int (n,), or slice
        order : str
            Of the voxels: `anatomical`, as in this file, or `stored`, as in the distributed files.
        """
        if order == "stored":
            return self.read(indices)[:, np.argsort(self.stored)]
        if isinstance(indices, slice):
            return self.responses[indices]
        return read_rows(self.responses, indices)

    def averaged(
        self, trials: ArrayLike, group: ArrayLike, order: Order = "anatomical", channels: int = 1
    ) -> tuple[NDArray[np.integer], NDArray[np.float32], NDArray[np.int64]]:  # fmt: skip
        """Responses averaged over the trials of each group; every trial counts.

        Trials are read a block at a time: beside the result, no more than that is in memory.

        Parameters
        ----------
        trials : int (n_trials,)
            Rows of this file, ascending.
        group : int (n_trials,)
            Which group each of them belongs to, such as its picture.
        order : str
            Of the voxels, as in `read`.
        channels : int
            A group's trials are dealt out in turn to so many means; those of a group with fewer stand several times.

        Returns
        -------
        group : int (n,)
            The groups, each once, ascending.
        responses : float32 (n, channels, n_voxels)
        repeats : int64 (n,)
            How many trials each group has.
        """
        trials = np.asarray(trials, np.int64)
        groups, position, repeats = np.unique(group, return_inverse=True, return_counts=True)
        turn = count_repeats(position)
        place = position * channels + turn % channels
        total = np.zeros((len(groups) * channels, self.n_voxels), np.float32)
        step = max(1, _BLOCK // (4 * self.n_voxels))
        for start in range(0, len(trials), step):
            values, own = self.read(trials[start : start + step], order), place[start : start + step]
            again = count_repeats(own)
            for number in range(again.max() + 1):  # no place twice in one addition
                total[own[again == number]] += values[again == number]
        total /= np.maximum(np.bincount(place, minlength=len(total)), 1).astype(np.float32)[:, None]
        means = total.reshape(len(groups), channels, self.n_voxels)
        for channel in range(1, channels):
            missing = repeats <= channel
            means[missing, channel] = means[missing, channel % repeats[missing]]
        return groups, means, repeats

    def check(self) -> None:
        """Read all of the file, once it is written: InputError where a response is not finite."""
        step = max(1, _BLOCK // (4 * self.n_voxels))
        for start in range(0, len(self.responses), step):
            bad = ~np.isfinite(self.responses[start : start + step])
            if bad.any():
                row = start + int(np.argwhere(bad)[0, 0])
                raise InputError(f"{self.path}: responses[{row}] holds {int(bad[row - start].sum())} values that are not finite; prepare the subject again")

    def _check_form(self) -> None:
        responses = self._dataset("responses")
        if responses.ndim != 2 or responses.dtype != np.float32 or 0 in responses.shape:
            raise InputError(f"{self.path}: responses are {responses.dtype} {responses.shape}, expected float32 (n, n_voxels); delete it and run again")
        for name in ("dataset", "subject", "units", "normalisation", "order", "protocol", "sources"):
            if name not in self._file.attrs:
                raise InputError(f"{self.path}: has no attribute `{name}`; delete it and run again")
        for name in ("xyz", "roi", "noise_ceiling", "stored"):
            values = self._file.get(f"voxel/{name}")
            if values is not None and values.shape[0] != responses.shape[1]:
                raise InputError(f"{self.path}: voxel/{name} has {values.shape[0]} rows for {responses.shape[1]} voxels; delete it and run again")


class PreparedSubject(_ResponseFile):
    """A prepared subject, open for reading; a context manager.

    Parameters
    ----------
    path : path
        What `prepare` wrote.

    Raises
    ------
    InputError
        The file is missing or not of this form. Its values are not looked at: `write_prepared` and the stage `overview` call `check`.
    """

    @property
    def n_trials(self) -> int:
        return self.responses.shape[0]

    @property
    def n_stimuli(self) -> int:
        """How many pictures the stimulus file has that `stimulus` indexes."""
        return int(self._file.attrs["stimuli"])

    @cached_property
    def stimulus(self) -> NDArray[np.int32]:
        """Index into the stimulus file, (n_trials,)."""
        return self._dataset("stimulus")[:]

    @cached_property
    def session(self) -> NDArray[np.int32]:
        return self._dataset("session")[:]

    @cached_property
    def repeat(self) -> NDArray[np.int32]:
        """How often the subject had seen the picture before, (n_trials,)."""
        return self._dataset("repeat")[:]

    @cached_property
    def split(self) -> NDArray[np.int8]:
        """0 train, 1 validation, 2 test, (n_trials,)."""
        return self._dataset("split")[:]

    @cached_property
    def run(self) -> NDArray[np.int32] | None:
        """Run within the session, (n_trials,), where known."""
        return self._optional("run")

    @cached_property
    def moments(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Mean and standard deviation (n_voxels,) of the training trials of all sessions, in the source's units, where known: of a trial on its own."""
        mean, deviation = self._optional("voxel/mean"), self._optional("voxel/deviation")
        return None if mean is None or deviation is None else (mean, deviation)

    @cached_property
    def onset(self) -> NDArray[np.float32] | None:
        """Seconds from the begin of the run, (n_trials,), where known."""
        return self._optional("onset")

    def trials(self, split: Split) -> NDArray[np.int64]:
        """Rows of a split, ascending."""
        return np.flatnonzero(self.split == SPLITS[split])

    def images(self, split: Split) -> NDArray[np.int32]:
        """Stimulus indices of a split, each once, ascending."""
        return np.unique(self.stimulus[self.split == SPLITS[split]])

    def by_picture(self, trials: ArrayLike, order: Order = "anatomical", channels: int = 1) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
        """Responses averaged over the repeats of each picture (`averaged`), of rows of one split or several: pictures, responses, repeats."""
        trials = np.sort(np.asarray(trials, np.int64))
        images, responses, repeats = self.averaged(trials, self.stimulus[trials], order, channels)
        return images.astype(np.int32), responses, repeats

    def by_pictures(
        self, trials: ArrayLike, size: int, order: Order = "anatomical", channels: int = 1
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]]:
        """What `by_picture` gives, `size` pictures at a time, for what need not be in memory as a whole."""
        trials = np.asarray(trials, np.int64)
        images = np.unique(self.stimulus[trials])
        for start in range(0, len(images), size):
            yield self.by_picture(trials[np.isin(self.stimulus[trials], images[start : start + size])], order, channels)

    def _check_form(self) -> None:
        super()._check_form()
        count = self._dataset("responses").shape[0]
        for name in ("stimulus", "session", "repeat", "split"):
            if self._dataset(name).shape != (count,):
                raise InputError(f"{self.path}: {name} has shape {self._dataset(name).shape} for {count} trials; prepare the subject again")
        if "stimuli" not in self._file.attrs:
            raise InputError(f"{self.path}: has no attribute `stimuli`; delete it and run again")

    def check(self) -> None:
        """Read all of the file, once it is written: InputError where a value cannot be, or one picture stands in two splits."""
        super().check()
        if self.stimulus.min() < 0 or self.stimulus.max() >= self.n_stimuli:
            reach = f"{self.stimulus.min()} to {self.stimulus.max()}"
            raise InputError(f"{self.path}: stimulus indices reach from {reach}, but there are {self.n_stimuli} pictures; prepare the subject again")
        if not np.isin(self.split, list(SPLITS.values())).all():
            raise InputError(f"{self.path}: split holds values other than 0, 1 and 2; prepare the subject again")
        pairs = np.unique(np.stack([self.stimulus, self.split]), axis=1)
        shown, times = np.unique(pairs[0], return_counts=True)
        if (times > 1).any():
            raise InputError(f"{self.path}: picture {shown[times > 1][0]} stands in more than one split; prepare the subject again")


class FurtherTrials(_ResponseFile):
    """Trials of a subject of which no picture is known, open for reading; a context manager.

    Parameters
    ----------
    path : path
        What `prepare-further` wrote: the voxels of the subject's prepared file, in their order.

    Raises
    ------
    InputError
        The file is missing or not of this form.
    """

    @cached_property
    def label(self) -> NDArray[np.str_]:
        """What every trial is called, (n_trials,); "" where nothing is said of it."""
        return self._dataset("label").asstr()[:].astype(str)

    @cached_property
    def condition(self) -> NDArray[np.str_]:
        return self._dataset("condition").asstr()[:].astype(str)

    @cached_property
    def session(self) -> NDArray[np.int32]:
        return self._dataset("session")[:]

    def groups(self, average: bool) -> tuple[NDArray[np.int64], list[tuple[str, str]]]:
        """Which trials are decoded together, (n_trials,), and (condition, label) of every group, in the order of their first trials.

        With `average`, the trials of one label and condition are; trials without a label never.
        """
        place: dict[tuple[str, str, int], int] = {}
        found = np.empty(len(self.label), np.int64)
        for trial, (condition, label) in enumerate(zip(self.condition.tolist(), self.label.tolist(), strict=True)):
            found[trial] = place.setdefault((condition, label, -1 if average and label else trial), len(place))
        return found, [(condition, label) for condition, label, _ in place]

    def _check_form(self) -> None:
        super()._check_form()
        count = self._dataset("responses").shape[0]
        for name in ("label", "condition", "session"):
            if self._dataset(name).shape != (count,):
                raise InputError(f"{self.path}: {name} has shape {self._dataset(name).shape} for {count} trials; prepare the set again")


class UnpairedSubject(_ResponseFile):
    """Prepared fMRI without pictures, open for reading; `read_unpaired` opens it."""

    @property
    def n_samples(self) -> int:
        return self.responses.shape[0]


def read_unpaired(path: str | Path) -> UnpairedSubject:
    """Open what `prepare-unpaired` wrote: a context manager with `.responses`, `.read(indices)`, `.roi`, `.n_samples`."""
    return UnpairedSubject(path)


def _write_common(file: NewFile, blocks: Iterable[NDArray], rows: int, n_voxels: int, attributes: Mapping[str, Any], voxel: Mapping[str, Any]) -> None:
    chunk = max(1, min(rows, _CHUNK // (4 * n_voxels)))
    target = file.create_dataset("responses", (rows, n_voxels), np.float32, chunks=(chunk, n_voxels))
    start = 0
    for block in blocks:
        target[start : start + len(block)] = block
        file.check()
        start += len(block)
    if start != rows:
        raise ValueError(f"{start} rows of responses written, {rows} announced")
    for name, kind in (("xyz", np.float32), ("roi", np.int16), ("noise_ceiling", np.float32), ("stored", np.int32)):
        if voxel.get(name) is not None:
            file[f"voxel/{name}"] = np.asarray(voxel[name], kind)
    if voxel.get("roi") is not None:
        file["voxel/roi"].attrs["names"] = json.dumps(list(voxel.get("roi_names") or []))
    for name, value in attributes.items():
        file.attrs[name] = json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


def write_prepared(
    path: str | Path,
    responses: NDArray[np.float32] | Iterable[NDArray[np.float32]],
    *,
    stimulus: ArrayLike,
    session: ArrayLike,
    split: ArrayLike,
    stimuli: int,
    dataset: str,
    subject: str,
    n_voxels: int | None = None,
    repeat: ArrayLike | None = None,
    run: ArrayLike | None = None,
    onset: ArrayLike | None = None,
    xyz: ArrayLike | None = None,
    roi: ArrayLike | None = None,
    roi_names: list[str] | None = None,
    noise_ceiling: ArrayLike | None = None,
    stored: ArrayLike | None = None,
    units: str = "z-score",
    normalisation: str = "none",
    order: str = "stored",
    protocol: Mapping[str, Any] | None = None,
    sources: Mapping[str, Any] | None = None,
    moments: Callable[[], tuple[ArrayLike, ArrayLike]] | None = None,
) -> None:
    """Write a prepared subject, whole or not at all, and check all of it before it gets its name.

    Parameters
    ----------
    responses : float32 (n_trials, n_voxels), or blocks of trials
        With blocks, `n_voxels` must be given.
    stimulus, session, split, repeat : int (n_trials,)
        `repeat` is counted from `stimulus` by default.
    run, onset : (n_trials,), optional
        Run within the session, and seconds from its begin.
    stimuli : int
        How many pictures the stimulus file has.
    xyz, roi, roi_names, noise_ceiling, stored : optional
        As in `PreparedSubject`.
    protocol, sources : dict
        JSON-able.
    moments : callable, optional
        Asked when all responses have passed: `PreparedSubject.moments`.
    """
    blocks: Iterable[NDArray] = [responses] if isinstance(responses, np.ndarray) else responses
    n_voxels = responses.shape[1] if isinstance(responses, np.ndarray) else n_voxels
    if n_voxels is None:
        raise ValueError("n_voxels must be given with blocks of responses")
    stimulus = np.asarray(stimulus, np.int32)
    attributes = {
        "dataset": dataset, "subject": subject, "units": units, "normalisation": normalisation, "order": order,
        "protocol": dict(protocol or {}), "sources": dict(sources or {}), "stimuli": stimuli,
    }  # fmt: skip
    voxel = {"xyz": xyz, "roi": roi, "roi_names": roi_names, "noise_ceiling": noise_ceiling, "stored": stored}
    with whole_file(path) as temporary:
        with NewFile(temporary) as file:
            file["stimulus"] = stimulus
            file["session"] = np.asarray(session, np.int32)
            file["repeat"] = np.asarray(count_repeats(stimulus) if repeat is None else repeat, np.int32)
            file["split"] = np.asarray(split, np.int8)
            for name, values, kind in (("run", run, np.int32), ("onset", onset, np.float32)):
                if values is not None:
                    file[name] = np.asarray(values, kind)
            _write_common(file, blocks, len(stimulus), n_voxels, attributes, voxel)
            for name, values in zip(("mean", "deviation"), moments() if moments else (), strict=False):
                file[f"voxel/{name}"] = np.asarray(values, np.float32)
        with PreparedSubject(temporary) as written:
            written.check()


def write_further(
    path: str | Path,
    blocks: Iterable[NDArray[np.float32]],
    *,
    label: Sequence[str],
    condition: Sequence[str],
    session: ArrayLike,
    run: ArrayLike | None,
    n_voxels: int,
    attributes: Mapping[str, Any],
    voxel: Mapping[str, Any],
) -> None:
    """Write trials of which no picture is known (`FurtherTrials`), whole or not at all, from blocks of float32 (n, n_voxels).

    Parameters
    ----------
    attributes : dict
        As those of a prepared subject.
    voxel : dict
        `xyz`, `roi`, `roi_names`, `noise_ceiling`, `stored` where known, as in `PreparedSubject`.
    """
    with whole_file(path) as temporary:
        with NewFile(temporary) as file:
            file["label"], file["condition"] = list(label), list(condition)
            file["session"] = np.asarray(session, np.int32)
            if run is not None:
                file["run"] = np.asarray(run, np.int32)
            _write_common(file, blocks, len(label), n_voxels, attributes, voxel)
        with FurtherTrials(temporary) as written:
            written.check()


def write_unpaired(
    path: str | Path,
    blocks: Iterable[NDArray[np.float32]],
    *,
    n_samples: int,
    n_voxels: int,
    subject: str,
    roi: ArrayLike | None = None,
    roi_names: list[str] | None = None,
    stored: ArrayLike | None = None,
    units: str = "z-score",
    normalisation: str = "none",
    order: str = "stored",
    protocol: Mapping[str, Any] | None = None,
    sources: Mapping[str, Any] | None = None,
) -> None:
    """Write prepared fMRI without pictures from blocks of float32 (n, n_voxels) samples, whole or not at all."""
    attributes = {
        "dataset": "unpaired", "subject": subject, "units": units, "normalisation": normalisation, "order": order,
        "protocol": dict(protocol or {}), "sources": dict(sources or {}),
    }  # fmt: skip
    with whole_file(path) as temporary:
        with NewFile(temporary) as file:
            _write_common(file, blocks, n_samples, n_voxels, attributes, {"roi": roi, "roi_names": roi_names, "stored": stored})
        with UnpairedSubject(temporary) as written:
            written.check()


def count_repeats(stimulus: ArrayLike) -> NDArray[np.int32]:
    """How often each entry occurred before, (n,): [7, 3, 7, 7] gives [0, 0, 1, 2]."""
    _, position, counts = np.unique(np.asarray(stimulus), return_inverse=True, return_counts=True)
    by_value = np.argsort(position, kind="stable")
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    repeats = np.empty(len(position), np.int32)
    repeats[by_value] = np.arange(len(position)) - starts
    return repeats


def unit_hash(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on the image and the seed alone: below `validation_fraction` for validation images."""
    return int.from_bytes(hashlib.sha256(f"validation {seed} {name}".encode()).digest()[:6]) / 2**48


class Stimuli(_File):
    """A data set's pictures, open for reading; a context manager.

    Raises
    ------
    InputError
        The file is missing or not of this form.
    """

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def images(self) -> h5py.Dataset:
        """uint8 (n, H, W, 3), on disk."""
        return self._dataset("images")

    @cached_property
    def id(self) -> NDArray[np.str_]:
        return self._dataset("id").asstr()[:].astype(str)

    @cached_property
    def sha256(self) -> NDArray[np.str_]:
        """Of the original pixels, 64 hex digits each: the same image has the same one in every data set."""
        return self._dataset("sha256").asstr()[:].astype(str)

    @cached_property
    def test(self) -> NDArray[np.bool_]:
        """A test image by the source's rule."""
        return self._dataset("test")[:]

    @cached_property
    def left_out(self) -> NDArray[np.bool_]:
        """In no split, by the study's rule (`data.split`)."""
        found = self._optional("left_out")
        return np.zeros(len(self), bool) if found is None else found

    def read(self, indices: ArrayLike | slice) -> NDArray[np.uint8]:
        """Some pictures in the order asked for, repeats allowed: uint8 (n, H, W, 3)."""
        return self.images[indices] if isinstance(indices, slice) else read_rows(self.images, indices)

    def _check_form(self) -> None:
        images = self._dataset("images")
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.shape[0]:
            raise InputError(f"{self.path}: images are {images.dtype} {images.shape}, expected uint8 (n, H, W, 3); delete it and run again")
        for name in ("id", "sha256", "test"):
            if self._dataset(name).shape != (images.shape[0],):
                raise InputError(f"{self.path}: {self._dataset(name).shape[0]} entries of `{name}` for {images.shape[0]} pictures; delete it and run again")


def write_stimuli(path: str | Path, stimuli: Iterable[Stimulus], count: int, size: int, attributes: Mapping[str, Any] | None = None) -> None:
    """Write pictures as they come, whole or not at all.

    Parameters
    ----------
    stimuli : iterable of Stimulus
    count : int
        How many there are.
    size : int
        Side of the pictures.
    attributes : dict, optional
        JSON-able; dictionaries are stored as JSON.

    Raises
    ------
    InputError
        There are fewer or more pictures than announced, or two have the same id.
    """
    if not count:
        raise InputError(f"{path}: no pictures to write; check where the data set's pictures are")
    with whole_file(path) as temporary, NewFile(temporary) as file:
        images = file.create_dataset("images", (count, size, size, 3), np.uint8, chunks=(1, size, size, 3), compression="lzf")
        ids: list[str] = []
        hashes: list[str] = []
        test: list[bool] = []
        for stimulus in stimuli:
            if len(ids) == count:
                raise InputError(f"{path}: more pictures than the {count} announced; check where the data set's pictures are")
            images[len(ids)] = stimulus.image
            file.check()
            ids.append(stimulus.id)
            hashes.append(stimulus.sha256)
            test.append(stimulus.test)
        if len(ids) < count:
            raise InputError(f"{path}: only {len(ids)} pictures for {count} ids; check where the data set's pictures are")
        if len(set(ids)) < count:
            twice = next(name for name in ids if ids.count(name) > 1)
            raise InputError(f"{path}: the picture id {twice!r} occurs twice; rename one")
        file["id"], file["sha256"] = ids, hashes
        file["test"] = np.asarray(test, bool)
        for name, value in (attributes or {}).items():
            file.attrs[name] = json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
