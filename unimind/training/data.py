"""A subject's trials in memory, by picture, and the encoder they are given to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind import study as settings
from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.models.encoder import FmriEncoder, load_trunk, subject_key
from unimind.storage import load_model
from unimind.training.loop import generator

#: Channels of `voxels.repeats: channels`: NSD's three repeats, as in the thesis.
CHANNELS = 3

Split = Literal["train", "validation"]

#: Share of a budget's pictures that watch training; the budget pays for them.
HELD_OUT = 0.2


class SubjectTrials:
    """Training and validation responses of one subject, float32 in memory; never a test trial.

    Parameters
    ----------
    data : PreparedSubject
        Open for reading; may be closed afterwards.
    voxels : study.Voxels
        Repeats of a picture are averaged, stacked as channels (a picture with fewer shows some again), or one is drawn each time;
        and the order of voxels.
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

    def __init__(self, data: PreparedSubject, voxels: settings.Voxels, rows: Mapping[Split, NDArray] | None = None) -> None:
        rows = rows or {"train": data.trials("train"), "validation": data.trials("validation")}
        if not len(rows["train"]):
            raise InputError(f"{data.path}: no training trials; check the data set's split and validation_fraction")
        self.key = subject_key(data.dataset, data.subject)
        self.repeats, self.n_voxels = voxels.repeats, data.n_voxels
        self.channels = CHANNELS if voxels.repeats == "channels" else 1
        self.rows = dict(rows)
        self._parts = {}
        for split, own in rows.items():
            own = np.sort(own)
            images, position, counts = np.unique(data.stimulus[own], return_inverse=True, return_counts=True)
            by_image = torch.from_numpy(np.argsort(position, kind="stable"))  # trials, those of one picture together
            starts = torch.from_numpy(np.cumsum(counts) - counts)
            self._parts[split] = (images, torch.from_numpy(data.read(own, voxels.order)), by_image, starts, torch.from_numpy(counts))

    def images(self, split: Split) -> NDArray[np.int32]:
        """Stimulus indices of a split's pictures, each once, ascending."""
        return self._parts[split][0]

    def n_trials(self, split: Split) -> int:
        """Trials of a split."""
        return len(self._parts[split][1])

    def draw(self, split: Split, chosen: Tensor, step: int, seed: int) -> tuple[NDArray[np.int32], Tensor]:
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

    def all(self, split: Split, limit: int | None = None) -> tuple[NDArray[np.int32], Tensor]:
        """Responses to all pictures of a split (at most `limit`, evenly spread) as the encoder gets them outside training: averaged where one is drawn."""
        count = len(self.images(split))
        chosen = torch.arange(count) if limit is None or count <= limit else torch.linspace(0, count - 1, limit).round().long()
        return self.images(split)[chosen.numpy()], self._whole(split, chosen)

    def example(self) -> Tensor:
        """One response (1, R, V)."""
        return self._whole("train", torch.zeros(1, dtype=torch.long))

    def _whole(self, split: Split, chosen: Tensor) -> Tensor:
        _, responses, by_image, starts, counts = self._parts[split]
        if self.repeats == "channels":
            places = torch.arange(self.channels) % counts[chosen][:, None]
            return responses[by_image[starts[chosen][:, None] + places]]
        total = torch.zeros(len(chosen), self.n_voxels)
        for repeat in range(int(counts[chosen].max()) if len(chosen) else 0):
            shown = counts[chosen] > repeat
            total[shown] += responses[by_image[starts[chosen[shown]] + repeat]]
        return (total / counts[chosen][:, None])[:, None]


def budget_rows(data: PreparedSubject, count: int, seed: int) -> dict[Split, NDArray[np.int64]]:
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


def training_rows(study: settings.Study, method: str, data: PreparedSubject) -> dict[Split, NDArray[np.int64]] | None:
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


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """One batch of several subjects' rows.

    Parameters
    ----------
    parts : mapping
        Subject -> columns (n, ...), the same for all subjects.

    Returns
    -------
    dict
        `subject`, list of str; `responses`, list of (R, V), whose lengths differ between subjects; the other columns as tensors.
    """
    columns = {key: [part[key] for part in parts.values()] for key in next(iter(parts.values()))}
    batch: dict[str, Any] = {key: torch.cat(own) for key, own in columns.items() if key != "responses"}
    batch["responses"] = [row for own in columns["responses"] for row in own]
    batch["subject"] = [name for name, part in parts.items() for _ in part["responses"]]
    return batch


class Targets:
    """Embeddings of the pictures that some trials show.

    Parameters
    ----------
    path : Path
        What `embed` wrote.
    images : array
        Stimulus indices.
    name : str
        `embedding` or `latent`.

    Raises
    ------
    InputError
        The file is missing or holds fewer pictures than the trials show.
    """

    def __init__(self, path: Path, images: NDArray, name: str = "embedding") -> None:
        self.images = np.unique(images)
        try:
            file = h5py.File(path)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; run the stage `embed` first") from None
        with file:
            if self.images[-1] >= len(file[name]):
                raise InputError(f"{path}: holds {len(file[name])} pictures, but a trial shows number {self.images[-1]}; embed the data set's pictures again")
            self.values = torch.from_numpy(file[name][self.images])

    def __call__(self, images: NDArray) -> Tensor:
        """(n, ...) of the given stimulus indices."""
        return self.values[torch.from_numpy(np.searchsorted(self.images, images))]


def new_encoder(
    study: settings.Study, method: str, n_voxels: Mapping[str, int], channels: int = 1, pretrained: Path | None = None, embedding_dim: int = 1
) -> FmriEncoder:
    """An encoder of a method, its trunk pretrained where a pretrained model is given.

    Parameters
    ----------
    study, method
        The method's `voxels` and `encoder` decide its form.
    n_voxels : mapping
        Voxels by `subject_key`.
    channels : int
        Repeats given side by side.
    pretrained : Path, optional
        Directory that `pretrain` wrote.
    embedding_dim : int
        Length of the image embedding; of no importance where none is predicted.
    """
    method_settings = study.method(method)
    encoder = FmriEncoder(n_voxels, method_settings.voxels.model_dump(), method_settings.encoder.model_dump(), embedding_dim, channels)
    if pretrained is not None:
        load_trunk(encoder, *load_model(pretrained), where=str(pretrained))
    return encoder
