"""What a subject gives a training, by picture: responses, or the signals that a closed form has entered; and the pictures' targets."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind import study as settings
from unimind.data.hdf5 import read_rows
from unimind.data.prepared import Order, PreparedSubject
from unimind.errors import InputError
from unimind.models.encoder import Encoder, EncoderOutput, load_trunk
from unimind.models.enter import Context, signals_of, subject_key
from unimind.models.space import COMPONENTS, PICTURES, PictureSpace
from unimind.storage import load_model
from unimind.training.loop import generator

#: Channels of `enter.repeats: channels`: NSD's three repeats, as in the thesis.
CHANNELS = 3

TrainingSplit = Literal["train", "validation"]

#: Pictures whose targets are read at a time.
READ_AT_ONCE = 1024

#: Share of a budget's pictures that watch training; the budget pays for them.
HELD_OUT = 0.2


class SubjectTrials:
    """Training and validation responses of one subject, float32 in memory; never a test trial.

    Parameters
    ----------
    data : PreparedSubject
        Open for reading; may be closed afterwards.
    order, repeats : str
        See `study.Voxels`: the order of voxels; repeats of a picture are averaged, dealt out to channels as by
        `PreparedSubject.averaged`, or one is drawn each time.
    rows : mapping, optional
        Split -> trials to use; by default the file's own splits.

    Attributes
    ----------
    key : str
        `subject_key` of the subject.
    channels : int
        R of every response (n, R, V).
    rows : dict
        Split -> trials of the file that are used.

    Raises
    ------
    InputError
        There is no training trial.
    """

    def __init__(self, data: PreparedSubject, order: Order, repeats: str, rows: Mapping[TrainingSplit, NDArray] | None = None) -> None:
        rows = rows or {"train": data.trials("train"), "validation": data.trials("validation")}
        if not len(rows["train"]):
            raise InputError(f"{data.path}: no training trials; check the data set's split and validation_fraction")
        self.key = subject_key(data.dataset, data.subject)
        self.repeats, self.n_voxels = repeats, data.n_voxels
        self.channels = CHANNELS if repeats == "channels" else 1
        self.rows = dict(rows)
        self._parts = {}
        for split, own in rows.items():
            own = np.sort(own)
            images, position, counts = np.unique(data.stimulus[own], return_inverse=True, return_counts=True)
            by_image = torch.from_numpy(np.argsort(position, kind="stable"))  # trials, those of one picture together
            starts = torch.from_numpy(np.cumsum(counts) - counts)
            self._parts[split] = (images, torch.from_numpy(data.read(own, order)), by_image, starts, torch.from_numpy(counts))

    def images(self, split: TrainingSplit) -> NDArray[np.int32]:
        """Stimulus indices of a split's pictures, each once, ascending."""
        return self._parts[split][0]

    def n_trials(self, split: TrainingSplit) -> int:
        """Trials of a split."""
        return len(self._parts[split][1])

    def draw(self, split: TrainingSplit, chosen: Tensor, step: int, seed: int) -> tuple[NDArray[np.int32], Tensor]:
        """Responses to some pictures as the encoder gets them in training.

        Parameters
        ----------
        split : str
        chosen : Tensor
            int64 (n,), positions in `images(split)`.
        step, seed : int
            Decide which repeat is drawn.

        Returns
        -------
        stimulus : int32 (n,)
        responses : Tensor
            float32 (n, R, V).
        """
        images, responses, by_image, starts, counts = self._parts[split]
        if self.repeats != "draw":
            return images[chosen.numpy()], self._whole(split, chosen)
        random = torch.rand(len(chosen), generator=generator(seed, self.key, "repeat", step), dtype=torch.float64)
        place = (random * counts[chosen]).long()
        return images[chosen.numpy()], responses[by_image[starts[chosen] + place]][:, None]

    def all(self, split: TrainingSplit, limit: int | None = None) -> tuple[NDArray[np.int32], Tensor]:
        """Responses to all pictures of a split (at most `limit`, evenly spread) as the encoder gets them outside training: averaged where one is drawn."""
        count = len(self.images(split))
        chosen = torch.arange(count) if limit is None or count <= limit else torch.linspace(0, count - 1, limit).round().long()
        return self.images(split)[chosen.numpy()], self._whole(split, chosen)

    def example(self) -> Tensor:
        """One response (1, R, V)."""
        return self._whole("train", torch.zeros(1, dtype=torch.long))

    def _whole(self, split: TrainingSplit, chosen: Tensor) -> Tensor:
        _, responses, by_image, starts, counts = self._parts[split]
        many, channel = counts[chosen][:, None], torch.arange(self.channels)
        total = torch.zeros(len(chosen), self.channels, self.n_voxels)
        for repeat in range(int(many.max()) if len(chosen) else 0):
            shown = many[:, 0] > repeat
            total[shown, repeat % self.channels] += responses[by_image[starts[chosen[shown]] + repeat]]
        total /= ((many - channel + self.channels - 1) // self.channels).clamp(min=1)[..., None]
        return total.gather(1, (channel % many)[..., None].expand_as(total))


class EnteredSignals:
    """Signals of one subject's training pictures, as a closed form predicts them that was not fitted to them (stage `enter`).

    A picture has several: from contexts of many sizes. Each time it is drawn, one of them is; outside training the one from the
    largest context stands.

    Parameters
    ----------
    directory : Path
        What `enter` wrote.
    key : str
        `subject_key` of the subject.
    whole : bool
        Only signals from the largest contexts, as a subject with all its trials has them.

    Attributes
    ----------
    channels : int
        1: signals are (n, 1, 3 K + d + 1), see `Signals`.

    Raises
    ------
    InputError
        The directory holds no signals.
    """

    channels = 1

    def __init__(self, directory: Path, key: str, whole: bool = False) -> None:
        path = directory / "entered.h5"
        try:
            file = h5py.File(path)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; run the stage `enter` for this training subject first") from None
        with file:
            stimulus, context, split, sizes = (file[name][:] for name in ("stimulus", "context", "split", "pictures"))
            self.contexts = [torch.from_numpy(file[name][:]).reshape(len(sizes), -1) for name in Context._fields]
            pictures = sizes[context]
            rows = np.flatnonzero(pictures == pictures.max()) if whole else np.arange(len(stimulus))
            self.signals = torch.from_numpy(file["coordinates"][:][rows])
            self.n_voxels = int(file.attrs["n_voxels"])
        self.key = key
        stimulus, self.context, split = stimulus[rows], torch.from_numpy(context[rows]).long(), split[rows]
        self._parts = {}
        for number, name in enumerate(("train", "validation")):
            own = np.flatnonzero(split == number)
            own = own[np.lexsort([-pictures[rows][own], stimulus[own]])]  # by picture, the largest context first
            images, starts, counts = np.unique(stimulus[own], return_index=True, return_counts=True)
            self._parts[name] = (images, torch.from_numpy(own), torch.from_numpy(starts), torch.from_numpy(counts))

    def images(self, split: TrainingSplit) -> NDArray[np.int32]:
        """Stimulus indices of a split's pictures, each once, ascending."""
        return self._parts[split][0]

    def draw(self, split: TrainingSplit, chosen: Tensor, step: int, seed: int) -> tuple[NDArray[np.int32], Tensor]:
        """One signal (n, 1, 3 K + d + 1) of each of some pictures, drawn among its contexts; parameters as of `SubjectTrials.draw`."""
        images, rows, starts, counts = self._parts[split]
        random = torch.rand(len(chosen), generator=generator(seed, self.key, "context", step), dtype=torch.float64)
        return images[chosen.numpy()], self._read(rows[starts[chosen] + (random * counts[chosen]).long()])

    def all(self, split: TrainingSplit, limit: int | None = None) -> tuple[NDArray[np.int32], Tensor]:
        """Signals of all pictures of a split (at most `limit`, evenly spread), each from its largest context."""
        images, rows, starts, _ = self._parts[split]
        chosen = torch.arange(len(images)) if limit is None or len(images) <= limit else torch.linspace(0, len(images) - 1, limit).round().long()
        return images[chosen.numpy()], self._read(rows[starts[chosen]])

    def those(self, wanted: Callable[[NDArray[np.int32]], NDArray[np.bool_]]) -> "EnteredSignals":
        """The same signals of some of the training pictures alone; `wanted` is told their stimulus indices."""
        found, (images, rows, starts, counts) = copy.copy(self), self._parts["train"]
        kept = wanted(images)
        found._parts = self._parts | {"train": (images[kept], rows, starts[kept], counts[kept])}
        return found

    def drawn_validation(self, limit: int) -> tuple[NDArray[np.int32], Tensor]:
        """Held-out pictures at all sizes of contexts: at most `limit` signals, evenly spread."""
        images, rows, _, counts = self._parts["validation"]
        every = np.repeat(images, counts.numpy())
        chosen = torch.arange(len(every)) if len(every) <= limit else torch.linspace(0, len(every) - 1, limit).round().long()
        return every[chosen.numpy()], self._read(rows[chosen])

    def example(self) -> Tensor:
        """One signal (1, 1, 3 K + d + 1)."""
        return self._read(torch.zeros(1, dtype=torch.long))

    def _read(self, rows: Tensor) -> Tensor:
        context = self.context[rows]
        return signals_of(self.signals[rows].float(), *(values[context] for values in self.contexts)).joined()


def encoded(encoder: Encoder, batch: Mapping[str, Any], noise: Tensor | None = None) -> EncoderOutput:
    """What an encoder makes of a batch of `joined` rows: responses of several subjects, or signals that have entered (`noise`: see `from_signal`)."""
    if encoder.closed:
        return encoder.from_signal(torch.stack(list(batch["responses"])), noise=noise)
    return encoder(batch["responses"], batch.get("enters", batch["subject"]))


def budget_rows(data: PreparedSubject, count: int, seed: int) -> dict[TrainingSplit, NDArray[np.int64]]:
    """Trials of a budget by split: nested over budgets of one seed, no picture in both.

    Raises
    ------
    InputError
        The subject has fewer trials, or fewer than two pictures are among them.
    """
    pool = np.sort(np.concatenate([data.trials("train"), data.trials("validation")]))
    if count > len(pool):
        raise InputError(f"{data.path}: {count} trials asked for, {len(pool)} training trials there; ask for fewer, or for `all`")
    order = torch.randperm(len(pool), generator=generator(seed, data.dataset, data.subject, "budget")).numpy()
    rows = pool[order[:count]]
    images, first = np.unique(data.stimulus[rows], return_index=True)
    if len(images) < 2:
        raise InputError(f"{data.path}: {count} trials show {len(images)} picture; give a larger budget")
    in_order = images[np.argsort(first)]
    period = round(1 / HELD_OUT)
    unseen = np.isin(data.stimulus[rows], in_order[min(period, len(images)) - 1 :: period])
    return {"train": rows[~unseen], "validation": rows[unseen]}


def training_rows(study: settings.Study, method: str, data: PreparedSubject) -> dict[TrainingSplit, NDArray[np.int64]] | None:
    """Trials of a training subject that a method may use, by split; None: all (`trained_on`)."""
    share = study.share(method)
    if share is None or study.role(data.dataset, data.subject) != "train":
        return None
    return budget_rows(data, share, study.seed)


def turns(names: Sequence[str], size: int, step: int) -> dict[str, Tensor]:
    """Who gives the rows of one step's batch, where subjects take turns row by row, on from one step to the next.

    Over many steps every subject gives as many rows, whatever the batch size; and a batch of at least two rows is of
    several subjects where there are several.

    Parameters
    ----------
    names : sequence of str
        Subjects.
    size : int
        Rows of a batch.
    step : int

    Returns
    -------
    dict
        Subject -> int64 (n,), its places in its own sequence of rows; without the subjects whose turn is not in this step.
    """
    rows = torch.arange(step * size, (step + 1) * size)
    own = {name: rows[rows % len(names) == number] // len(names) for number, name in enumerate(names)}
    return {name: places for name, places in own.items() if len(places)}


def joined(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One batch of several subjects' rows.

    Parameters
    ----------
    parts : mapping
        Subject -> columns (n, ...), the same for all subjects: tensors, and lists of rows that may differ in size.

    Returns
    -------
    dict
        `subject`, list of str; `responses`, list of (R, V), whose lengths differ between subjects; columns of lists as lists, the others as tensors.
    """
    batch: dict[str, Any] = {}
    for key, first in next(iter(parts.values())).items():
        listed = key == "responses" or isinstance(first, list)
        batch[key] = [row for part in parts.values() for row in part[key]] if listed else torch.cat([part[key] for part in parts.values()])
    batch["subject"] = [name for name, part in parts.items() for _ in part["responses"]]
    return batch


class PictureCoordinates:
    """Coordinates, in the picture space, of the pictures that some trials show.

    Parameters
    ----------
    path : Path
        What `embed` wrote.
    images : array
        Stimulus indices.
    space : PictureSpace
    """

    def __init__(self, path: Path, images: NDArray, space: PictureSpace) -> None:
        self.images = np.unique(images)
        parts = [
            space.coordinates(*(torch.from_numpy(read_targets(path, rows, name)) for name in space.components)).cpu()
            for rows in np.array_split(self.images, -(-len(self.images) // READ_AT_ONCE))
        ]
        self.values = torch.cat(parts)

    def coordinates(self, images: NDArray) -> Tensor:
        """(n, K) of the given stimulus indices."""
        return self.values[torch.from_numpy(np.searchsorted(self.images, images))]


def new_encoder(study: settings.Study, method: str, space: PictureSpace, n_voxels: Mapping[str, int], channels: int, pretrained: Path | None) -> Encoder:
    """An encoder of a method, its trunk pretrained where a pretrained model is given.

    Parameters
    ----------
    study, method
        The method's `enter`, `body` and losses decide its form.
    space : PictureSpace
    n_voxels : mapping
        Voxels by `subject_key`.
    channels : int
        Repeats given side by side.
    pretrained : Path, optional
        Directory that `pretrain` wrote.
    """
    own = study.method(method)
    targets = tuple(name for name in own.targets if name in space.components)
    retrieval_head = own.align is not None and own.align.retrieval_head
    encoder = Encoder(own.enter.model_dump(), own.body.model_dump(), space, targets, n_voxels, channels, retrieval_head)
    if pretrained is not None:
        load_trunk(encoder, *load_model(pretrained), where=str(pretrained))
    return encoder


def picture_space(embeddings: Sequence[Path], images: Sequence[NDArray]) -> PictureSpace:
    """The picture space of some stimuli of one or more embeddings files; a file given twice counts with all its stimuli once."""
    rows: dict[Path, list[NDArray]] = {}
    for path, own in zip(embeddings, images, strict=True):
        rows.setdefault(path, []).append(own)
    with _embedded(next(iter(rows))) as file:
        parts: dict[str, list[NDArray]] = {name: [] for name in COMPONENTS if name in file}
    total = sum(len(np.unique(np.concatenate(lists))) for lists in rows.values())
    for path, lists in rows.items():
        every = np.unique(np.concatenate(lists))
        some = every[np.unique(np.linspace(0, len(every) - 1, max(2, round(len(every) * min(1.0, PICTURES / total)))).round().astype(int))]
        for name, found in parts.items():
            found.append(read_targets(path, some, name))
    return PictureSpace.fit(**{name: np.concatenate(found) for name, found in parts.items()})


def _embedded(path: Path) -> h5py.File:
    """What `embed` wrote, open for reading."""
    try:
        return h5py.File(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the stage `embed` first") from None


def has_target(path: Path, name: str) -> bool:
    """Whether `embed` wrote a target; InputError where it wrote nothing."""
    with _embedded(path) as file:
        return name in file


def read_targets(path: Path, images: NDArray, name: str) -> NDArray:
    """A target of some stimuli (ascending), read by rows: (n, ...).

    Raises
    ------
    InputError
        The file is missing or holds fewer pictures.
    """
    with _embedded(path) as file:
        if len(images) and images[-1] >= len(file[name]):
            raise InputError(f"{path}: holds {len(file[name])} pictures, but a trial shows number {images[-1]}; embed the data set's pictures again")
        return read_rows(file[name], images)
