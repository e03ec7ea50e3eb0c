"""Rows every table needs beside a method's reconstructions: what could be had without reading the brain, and the ceilings.

"Spurious reconstruction from brain activity" (Shirakawa et al., arXiv 2405.10078) shows why.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from unimind.errors import InputError
from unimind.reconstruction.tested import derangement

#: Rows of a metrics file, and what stands in each.
ROWS = {
    "reconstruction": "the method's picture",
    "shuffled": "the same model given the responses to another picture",
    "chance": "the reconstruction of another image",
    "nearest-training-image": "the training image nearest to the encoder's embedding",
    "mean-training-image": "the mean of all training images",
    "unconditional": "a sample of the diffusion model without a condition",
    "embedding-ceiling": "the diffusion model given the true image embedding",
    "autoencoder-ceiling": "the autoencoder's round trip of the truth",
}
#: Rows that do not depend on the method: they stand once per subject in a table.
OF_THE_SUBJECT = ("mean-training-image", "unconditional", "embedding-ceiling", "autoencoder-ceiling")


def of_another_image(values: np.ndarray, seed: int) -> np.ndarray:
    """What belongs to n images (n, ...), each given that of another one: the row `chance`."""
    return values[derangement(len(values), seed)]


def mean_training_image(stimuli: Path, prepared: Path, at_once: int = 256) -> np.ndarray:
    """Mean of a subject's training pictures, each counted once: uint8 (H, W, 3)."""
    with h5py.File(prepared) as file:
        wanted = np.unique(file["stimulus"][:][file["split"][:] == 0])
    if not len(wanted):
        raise InputError(f"{prepared}: no training trials; the mean training image needs some")
    with h5py.File(stimuli) as file:
        total = np.zeros(file["images"].shape[1:], np.float64)
        for start in range(0, len(wanted), at_once):
            total += file["images"][wanted[start : start + at_once]].sum(0, dtype=np.float64)
    return np.rint(total / len(wanted)).astype(np.uint8)


class Row:
    """A row of pictures that lie in a file or an array, read a few at a time.

    Parameters
    ----------
    source : HDF5 data set or array
        uint8 (m, H, W, 3) or (m, k, H, W, 3).
    place : int array (n,) or (n, k)
        Which picture stands where, counted over all but the last three axes of the source.
    """

    def __init__(self, source: Any, place: np.ndarray) -> None:
        self.source, self.place = source, place

    @property
    def size(self) -> tuple[int, ...]:
        """Of one picture."""
        return self.source.shape[-3:]

    def picture(self, number: int) -> np.ndarray:
        """One picture (H, W, 3), by its number among all of the row."""
        at = np.unravel_index(self.place.ravel()[number], self.source.shape[:-3])
        return self.source[tuple(int(one) for one in at)]


class Views:
    """Pictures (H, W, 3) of several rows, read like one array (m, H, W, 3) by an integer array; only what is asked for is read.

    Parameters
    ----------
    pictures : list of (Row, int)
        A row, and which of its pictures.
    """

    def __init__(self, pictures: list[tuple[Row, int]]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return np.stack([row.picture(number) for row, number in (self.pictures[i] for i in index)])


def distinct(rows: Mapping[str, Row | np.ndarray]) -> tuple[Views, dict[str, np.ndarray]]:
    """Distinct pictures of all rows, and every row as indices into them.

    Parameters
    ----------
    rows : mapping of str to Row, or to uint8 array (n, H, W, 3) or (n, k, H, W, 3)

    Returns
    -------
    pictures : Views
        m pictures, lying where the rows have them: at full size a second copy would be gigabytes.
    index : dict of str to int array
        Of each row's shape.
    """
    place: dict[bytes, int] = {}
    kept: list[tuple[Row, int]] = []
    index = {}
    for name, values in rows.items():
        row = values if isinstance(values, Row) else Row(values, np.arange(np.prod(values.shape[:-3], dtype=int)).reshape(values.shape[:-3]))
        numbers = np.empty(row.place.size, int)
        for i in range(len(numbers)):
            key = hashlib.blake2b(row.picture(i).tobytes(), digest_size=16).digest()
            if key not in place:
                place[key] = len(kept)
                kept.append((row, i))
            numbers[i] = place[key]
        index[name] = numbers.reshape(row.place.shape)
    return Views(kept), index
