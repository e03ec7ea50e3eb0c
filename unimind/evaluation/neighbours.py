"""How near pictures are to those that methods were trained on: by the image embedding, and by a perceptual distance.

Distances of embeddings are one minus the correlation of standardised dimensions, as identification compares them: 0 for the
same picture, about 1 for unrelated ones. Two pictures are near-duplicates where each of both distances is at most that of the
first to its own middle (`MIDDLE`): a measure of likeness that every network and every kind of picture brings with it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from unimind.data.hdf5 import read_rows
from unimind.data.prepared import SPLITS
from unimind.errors import InputError
from unimind.evaluation import metrics as m
from unimind.evaluation import networks
from unimind.evaluation.pairs import PAIRS_AT_ONCE, paired
from unimind.evaluation.panel import Panel
from unimind.evaluation.pictures import Joined, PictureSet, resize, slices

#: Side of the middle of a picture, as a share of the picture's: cut so, it still shows the same.
MIDDLE = 0.85
#: Training pictures, nearest by their embeddings, among which the perceptually nearest is looked for.
CANDIDATES = 3
#: Training pictures of the subject of which it is asked how near others of them are.
REFERENCES = 1000
_ROWS = 2048  # embeddings read at a time
#: Variance of a dimension, relative to the largest, below which training pictures do not span it: rounding of float32.
_SPANNED = 1e-6


class TrainingPictures:
    """The pictures of the training and validation splits of some subjects, each once, in files that are read by rows.

    Parameters
    ----------
    prepared, embeddings, stimuli : sequences of paths
        A file of each kind per subject; subjects with the same pictures have the same `embeddings` and `stimuli`.

    Attributes
    ----------
    of_last : int array
        Numbers of the pictures that the last of the subjects saw.
    """

    def __init__(self, prepared: Sequence[Path], embeddings: Sequence[Path], stimuli: Sequence[Path]) -> None:
        rows: dict[tuple[Path, Path], list[NDArray]] = {}
        for subject, *files in zip(prepared, embeddings, stimuli, strict=True):
            with h5py.File(subject) as file:
                seen = file["stimulus"][:][file["split"][:] != SPLITS["test"]]
            rows.setdefault((Path(files[0]), Path(files[1])), []).append(seen)
        self.embeddings, self.stimuli = [key[0] for key in rows], [key[1] for key in rows]
        known: dict[str, int] = {}
        file_of, row_of = [], []
        for number, ((_, path), parts) in enumerate(rows.items()):
            own = np.unique(np.concatenate(parts)).astype(int)
            with h5py.File(path) as file:
                hashes = file["sha256"].asstr()[:]
            if len(own) and own[-1] >= len(hashes):
                raise InputError(f"{path}: has {len(hashes)} pictures, but stimulus {own[-1]} is asked for; these files do not belong together")
            for row in own.tolist():
                if hashes[row] not in known:
                    known[hashes[row]] = len(known)
                    file_of.append(number)
                    row_of.append(row)
        if not row_of:
            raise InputError(f"{', '.join(map(str, prepared))}: no training trials; nothing can be compared with the test pictures")
        self.file, self.row = np.array(file_of), np.array(row_of)
        with h5py.File(prepared[-1]) as file:
            own = np.unique(file["stimulus"][:][file["split"][:] != SPLITS["test"]])
        with h5py.File(stimuli[-1]) as file:
            hashes = file["sha256"].asstr()[:]
        self.of_last = np.sort([known[hashes[row]] for row in own])

    def __len__(self) -> int:
        return len(self.row)

    def read(self, index: NDArray) -> NDArray[np.float32]:
        """Embeddings (n, d) of some of them, in the order given."""
        found = None
        for number in np.unique(self.file[index]).tolist():
            here = np.flatnonzero(self.file[index] == number)
            rows, back = np.unique(self.row[index][here], return_inverse=True)
            with h5py.File(self.embeddings[number]) as file:
                values = read_rows(file["embedding"], rows)[back]
            found = np.empty((len(index), values.shape[1]), np.float32) if found is None else found
            found[here] = values
        assert found is not None
        return found

    def place(self, number: int) -> dict[str, Any]:
        """Where a picture is: its stimulus file, and its row there."""
        path = self.stimuli[self.file[number]]
        return {"dataset": path.parent.name, "stimuli": path.stem, "stimulus": int(self.row[number])}

    def blocks(self) -> Iterator[tuple[NDArray, NDArray[np.float32]]]:
        """(numbers, embeddings) of all of them, some at a time."""
        for part in slices(len(self), _ROWS):
            index = np.arange(part.start, part.stop)
            yield index, self.read(index)

    def pictures(self, opened: Callable[[Path], Any]) -> Joined:
        """All of them as one array; `opened` gives the images of a stimulus file."""
        joined = Joined()
        for number, path in enumerate(self.stimuli):
            joined.add(opened(path), self.row[self.file == number])
        return joined


@dataclass(frozen=True)
class Ruler:
    """Embeddings in units in which their products are correlations of standardised dimensions.

    Attributes
    ----------
    mean, deviation : arrays (d,)
        Over the subject's training pictures.
    """

    mean: NDArray
    deviation: NDArray

    @classmethod
    def of(cls, training: NDArray, least: float = 1e-6) -> "Ruler":
        """From the embeddings (n, d) of training pictures; a dimension that they do not vary in does not count."""
        deviation = training.std(0)
        return cls(training.mean(0), np.where(deviation > least, deviation, np.inf))

    def standard(self, embeddings: NDArray) -> NDArray[np.float64]:
        """Standardised dimensions (n, d)."""
        return (np.asarray(embeddings, np.float64) - self.mean) / self.deviation

    def __call__(self, embeddings: NDArray) -> NDArray[np.float32]:
        """Rows (n, d) of mean 0 and length 1; a constant row is 0."""
        values = self.standard(embeddings)
        values -= values.mean(1, keepdims=True)
        length = np.linalg.norm(values, axis=1, keepdims=True)
        return (values / np.where(length > 0, length, 1)).astype(np.float32)


def nearest(queries: NDArray, training: TrainingPictures, ruler: Ruler, count: int, without: NDArray | None = None) -> tuple[NDArray, NDArray]:
    """The training pictures nearest to some embeddings.

    Parameters
    ----------
    queries : array (q, d)
        As the ruler gives them.
    count : int
    without : int array (q,), optional
        A training picture that a query must not find: itself.

    Returns
    -------
    numbers : int array (q, min(count, n)), nearest first
    distances : array of the same shape
    """
    count = min(count, len(training) - (without is not None))
    numbers, likeness = np.empty((len(queries), 0), int), np.empty((len(queries), 0), np.float32)
    for index, values in training.blocks():
        found = queries @ ruler(values).T
        if without is not None:
            inside = np.flatnonzero((without >= index[0]) & (without <= index[-1]))
            found[inside, without[inside] - index[0]] = -np.inf
        numbers = np.concatenate([numbers, np.broadcast_to(index, found.shape)], 1)
        likeness = np.concatenate([likeness, found], 1)
        best = np.argsort(-likeness, axis=1, kind="stable")[:, :count]
        numbers, likeness = np.take_along_axis(numbers, best, 1), np.take_along_axis(likeness, best, 1)
    return numbers, 1 - likeness


def ranks(predicted: NDArray, truth: NDArray, training: TrainingPictures, ruler: Ruler) -> NDArray[np.int64]:
    """Place of the seen picture among all training pictures and itself, by likeness to the prediction: (n,), 1 is the first; ties count against it."""
    own = (predicted * truth).sum(1)
    place = np.ones(len(predicted), np.int64)
    for _, values in training.blocks():
        place += (predicted @ ruler(values).T >= own[:, None]).sum(1)
    return place


def outside_span(truth: NDArray, training: TrainingPictures, ruler: Ruler) -> float:
    """Share of the variance of test targets (n, d) in directions in which training targets do not vary at all, in standardised dimensions."""
    used = np.isfinite(ruler.deviation)
    total: Any = 0.0
    square: Any = 0.0
    count = 0
    for _, values in training.blocks():
        standard = ruler.standard(values)[:, used]
        total, square, count = total + standard.sum(0), square + standard.T @ standard, count + len(standard)
    centre = total / count
    values, vectors = np.linalg.eigh(square / count - np.outer(centre, centre))
    off = ruler.standard(truth)[:, used] - centre
    inside = off @ vectors[:, values > _SPANNED * values[-1]]
    return float(max(0.0, 1 - (inside**2).sum() / (off**2).sum()))


class Middles:
    """The middle of every picture, at the picture's size, cut when it is read: an array (n, H, W, 3) as `PictureSet` takes it."""

    def __init__(self, pictures: Any) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: NDArray) -> NDArray[np.uint8]:
        whole = np.asarray(self.pictures[index])
        side = whole.shape[1]
        cut = max(1, round(side * (1 - MIDDLE) / 2))
        part = torch.from_numpy(whole[:, cut : side - cut, cut : side - cut].copy()).permute(0, 3, 1, 2).float() / 255
        return (resize(part, side) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def embedded(pictures: PictureSet, embedder: Any, batch_size: int) -> NDArray[np.float32]:
    """Image embeddings (n, d) of pictures."""
    parts = []
    with torch.inference_mode():
        for part in slices(len(pictures), batch_size):
            images = pictures.batch(np.arange(part.start, part.stop)).to(networks.device())
            parts.append(embedder.encode(images).float().cpu().numpy())
    return np.concatenate(parts)


@dataclass(frozen=True)
class Perceptual:
    """A perceptual distance of pairs of pictures: LPIPS, a like distance by another network, or, where there is no network, 1 - SSIM."""

    shown_as: str
    maps: networks.Maps | None

    @classmethod
    def of(cls, panel: Panel) -> "Perceptual":
        """The best of which the panel has the weights."""
        maps = next((maps for maps in (panel.lpips, panel.squeeze, panel.perceptual) if maps is not None), None)
        return cls("1 - SSIM" if maps is None else maps.shown_as, maps)

    def __call__(self, first: PictureSet, second: PictureSet, pairs: NDArray, batch_size: int) -> NDArray[np.float64]:
        """Distances (p,) of pairs (p, 2) of a picture of the first set with one of the second."""
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        distinct, back = np.unique(pairs[order], axis=0, return_inverse=True)
        used, place = np.unique(distinct[:, 1], return_inverse=True)
        asked, row = np.unique(distinct[:, 0], return_inverse=True)
        local, size = np.stack([row.ravel(), place.ravel()], 1), min(batch_size, PAIRS_AT_ONCE)
        if (maps := self.maps) is None:
            found = paired(
                first.subset(asked), second.subset(used), local, lambda x: (m.LowLevel.of(x.to(networks.device())), None),
                lambda a, b: 1 - a.ssim(b)[:, None], size, self.shown_as,
            )  # fmt: skip
        else:
            found = paired(
                first.subset(asked), second.subset(used), local, lambda x: (maps(x)[0], None), lambda a, b: m.squared_distance(a, b)[:, None], size,
                self.shown_as,
            )  # fmt: skip
        distances = np.empty(len(pairs))
        distances[order] = found()[0][back.ravel(), 0]
        return distances
