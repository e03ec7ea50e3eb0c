"""Rows every table needs beside a method's reconstructions: what could be had without reading the brain, and the ceilings.

"Spurious reconstruction from brain activity" (Shirakawa et al., arXiv 2405.10078) shows why.
"""

from pathlib import Path

import h5py
import numpy as np

from unimind.data.hdf5 import read_rows
from unimind.errors import InputError
from unimind.reconstruction.tested import derangement

#: Rows of a metrics file, and what stands in each.
ROWS = {
    "reconstruction": "the method's picture",
    "samples-mean": "the mean of the measure over all samples of a picture, none chosen",
    "body-removed": "the embedding predicted with the body's output replaced by its mean over the training pictures; no picture is drawn of it",
    "shuffled": "the same model given the responses to another picture",
    "chance": "the reconstruction of another image",
    "nearest-training-image": "the training image nearest to the encoder's embedding",
    "mean-training-image": "the mean of all training images",
    "unconditional": "a sample of the diffusion model without a condition",
    "embedding-ceiling": "the diffusion model given the true image embedding",
    "autoencoder-ceiling": "the autoencoder's round trip of the truth",
}
#: Rows of which the predicted embedding is measured: all there are where no picture is drawn.
OF_PREDICTIONS = ("reconstruction", "body-removed", "shuffled", "chance")
#: Rows that do not depend on the method: they stand once per subject in a table.
OF_THE_SUBJECT = ("mean-training-image", "unconditional", "embedding-ceiling", "autoencoder-ceiling")


def of_another_image(values: np.ndarray, seed: int) -> np.ndarray:
    """What belongs to n images (n, ...), each given that of another one: pictures of the row `chance`."""
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
            total += read_rows(file["images"], wanted[start : start + at_once]).sum(0, dtype=np.float64)
    return np.rint(total / len(wanted)).astype(np.uint8)
