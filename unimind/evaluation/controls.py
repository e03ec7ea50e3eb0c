"""Rows every table needs beside a method's reconstructions: what could be had without reading the brain, and the ceilings.

"Spurious reconstruction from brain activity" (Shirakawa et al., arXiv 2405.10078) shows why.
"""

import hashlib
from pathlib import Path

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


class Views:
    """Pictures (H, W, 3) that lie in several arrays, read like one array (m, H, W, 3) by an integer array; only what is read is copied."""

    def __init__(self, pictures: list[np.ndarray]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return np.stack([self.pictures[i] for i in index])


def distinct(rows: dict[str, np.ndarray]) -> tuple[Views, dict[str, np.ndarray]]:
    """Distinct pictures of all rows, and every row as indices into them.

    Parameters
    ----------
    rows : dict of str to uint8 array (n, H, W, 3) or (n, k, H, W, 3)

    Returns
    -------
    pictures : Views
        m pictures, lying where the rows have them: at full size a second copy would be gigabytes.
    index : dict of str to int array (n,) or (n, k)
    """
    place: dict[bytes, int] = {}
    kept: list[np.ndarray] = []
    index = {}
    for name, values in rows.items():
        flat = values.reshape(-1, *values.shape[-3:])
        numbers = np.empty(len(flat), int)
        for i, picture in enumerate(flat):
            key = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
            if key not in place:
                place[key] = len(kept)
                kept.append(picture)
            numbers[i] = place[key]
        index[name] = numbers.reshape(values.shape[:-3])
    return Views(kept), index
