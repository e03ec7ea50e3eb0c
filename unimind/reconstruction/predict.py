"""What a method predicts for the pictures of a split, a batch at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.data.prepared import PreparedSubject
from unimind.foundations.diffusion import Condition
from unimind.reconstruction.decoder import Decoder, Prediction

Split = Literal["train", "validation", "test"]


def predictions(decoder: Decoder, prepared: PreparedSubject, split: Split, batch: int, cut: bool = False) -> Iterator[tuple[NDArray, Prediction]]:
    """Stimulus indices and prediction of `batch` pictures of a split at a time, ascending, on the decoder's device."""
    for stimulus, responses, _ in prepared.by_pictures(prepared.trials(split), batch, decoder.order, decoder.channels):
        yield stimulus, decoder.predict(responses, cut)


def predict_pictures(decoder: Decoder, prepared: PreparedSubject, split: Split, batch: int, cut: bool = False) -> tuple[NDArray, Prediction]:
    """Stimulus indices and prediction of all pictures of a split, on the CPU; with `cut` the body gives its mean for every one."""
    stimulus, parts = zip(*predictions(decoder, prepared, split, batch, cut), strict=True)
    return np.concatenate(stimulus), joined([part.each(Tensor.cpu) for part in parts])


def joined(parts: list[Prediction]) -> Prediction:
    """The rows of several predictions of one method, one after the other."""
    conditions = [part.condition for part in parts if part.condition is not None]
    condition = Condition(*map(torch.cat, zip(*conditions, strict=True))) if conditions else None
    targets = {name: torch.cat([part.targets[name] for part in parts]) for name in parts[0].targets}
    return Prediction(targets, torch.cat([part.features for part in parts]), condition)


def taken(prediction: Prediction, rows: NDArray, times: int, device: torch.device) -> Prediction:
    """Some rows of a prediction, each of them several times, one after the other, on a device."""
    index = torch.from_numpy(rows).repeat_interleave(times)
    return prediction.each(lambda values: values[index].to(device))


def training_features(decoder: Decoder, prepared: PreparedSubject, embeddings: Path, predicts_embedding: bool, batch: int) -> tuple[NDArray, Tensor]:
    """Training pictures in the space in which predictions are compared: their image embeddings, or what the method makes of their responses.

    Returns
    -------
    stimulus : int (n,)
    features : Tensor
        (n, k), on the CPU.
    """
    if predicts_embedding:
        stimulus = prepared.images("train")
        with h5py.File(embeddings) as targets:
            return stimulus, torch.from_numpy(targets["embedding"][stimulus]).float()
    found = [(images, prediction.features.cpu().float()) for images, prediction in predictions(decoder, prepared, "train", batch)]
    return np.concatenate([images for images, _ in found]), torch.cat([features for _, features in found])
