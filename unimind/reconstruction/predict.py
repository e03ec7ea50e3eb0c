"""What a method predicts for the pictures of a split, a batch at a time; and the stage `predict`, which writes it where no picture is drawn."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.data.hdf5 import NewFile, read_rows
from unimind.data.prepared import PreparedSubject, Split
from unimind.device import on_device
from unimind.errors import InputError
from unimind.foundations.diffusion import Conditioning
from unimind.progress import say
from unimind.reconstruction.decoder import Decoder, Prediction
from unimind.reconstruction.tested import derangement
from unimind.storage import file_hash, whole_file
from unimind.study import Study

#: What every method gets of a test picture, in the protocol's words: `PreparedSubject.by_picture` leaves no trial out.
REPEATS = "all test trials of a picture"


class Tested(NamedTuple):
    """What a method predicts for a subject's n test pictures, on the CPU.

    Attributes
    ----------
    stimulus : int (n,)
    prediction : Prediction
    retrieval : bool
        Whether pictures are told apart by another embedding than they are drawn from.
    without : Prediction or None
        The same with the body's output replaced by its mean; None where there is no body.
    narrow : dict of int to Tensor
        (n, d), the image embedding that pictures are told apart by, of as many dimensions of the entered signal; empty where these have no order.
    another : int (n,)
        Place of the test picture whose responses each one gets in the shuffled control.
    trials : str
        How many trials a picture has, such as `3`, or `2 to 3` where they differ.
    """

    stimulus: NDArray[np.int64]
    prediction: Prediction
    retrieval: bool
    without: Prediction | None
    narrow: dict[int, Tensor]
    another: NDArray[np.int64]
    trials: str

    @classmethod
    def of(cls, decoder: Decoder, data: PreparedSubject, batch: int, seed: int) -> "Tested":
        """InputError where there are fewer than two test pictures."""
        if (count := len(data.images("test"))) < 2:
            raise InputError(f"{data.path}: {count} test pictures; at least 2 are needed to compare anything")
        stimulus, prediction = predict_pictures(decoder, data, "test", batch)
        without = predict_pictures(decoder, data, "test", batch, cut=True)[1] if decoder.body else None
        numbers = decoder.bottlenecks if prediction.embedding is not None else ()
        narrow = {number: predict_pictures(decoder, data, "test", batch, dimensions=number)[1].features for number in numbers}
        return cls(stimulus, prediction, decoder.retrieval, without, narrow, derangement(len(stimulus), (seed, 7)), trials_per_picture(data))

    def write(self, file: h5py.File) -> None:
        """The predicted embeddings, as `docs/architecture.md` has them."""
        of_another = self.prediction.each(lambda values: values[torch.from_numpy(self.another)])
        for suffix, found in {"": self.prediction, "_shuffled": of_another, "_without_body": self.without}.items():
            if found is not None and found.embedding is not None:
                file[f"predicted{suffix}"] = found.embedding.numpy()
                if self.retrieval:
                    file[f"retrieval{suffix}"] = found.features.numpy()
        if self.narrow:
            file["predicted_of_dimensions"] = np.stack([one.numpy() for one in self.narrow.values()])
            file["dimensions"] = np.array(list(self.narrow), np.int32)


def predict(study: Study, method: str, dataset: str, subject: str, prepared: Path, model: Path, entered: Path | None, out: Path) -> None:
    """Write what a method predicts for every test picture, and the same given the responses to another one: the stage `predict`.

    Raises
    ------
    InputError
        Fewer than two test pictures.
    """
    decoder = Decoder(model, entered, dataset, subject).to(on_device())
    with PreparedSubject(prepared) as data:
        tested = Tested.of(decoder, data, study.evaluation.batch_size, study.seed)
    with whole_file(out) as temporary, NewFile(temporary) as file:
        file["stimulus"] = tested.stimulus
        tested.write(file)
        file.attrs.update({
            "method": method, "dataset": dataset, "subject": subject, "repeats": REPEATS, "trials_per_picture": tested.trials,
            "model_sha256": file_hash(model / "model.safetensors"),
        })  # fmt: skip
    say(f"{study.methods[method].label or method}, {dataset} {subject}: image embeddings of {len(tested.stimulus)} test pictures predicted")


def trials_per_picture(prepared: PreparedSubject) -> str:
    """How many test trials a picture has, such as `3`, or `2 to 3` where they differ."""
    counts = np.unique(prepared.stimulus[prepared.trials("test")], return_counts=True)[1]
    return f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"


def predictions(
    decoder: Decoder, prepared: PreparedSubject, split: Split, batch: int, cut: bool = False, dimensions: int | None = None
) -> Iterator[tuple[NDArray, Prediction]]:
    """Stimulus indices and prediction of `batch` pictures of a split at a time, ascending, on the decoder's device."""
    for stimulus, responses, _ in prepared.by_pictures(prepared.trials(split), batch, decoder.order, decoder.channels):
        yield stimulus, decoder.predict(responses, cut, dimensions)


def predict_pictures(
    decoder: Decoder, prepared: PreparedSubject, split: Split, batch: int, cut: bool = False, dimensions: int | None = None
) -> tuple[NDArray, Prediction]:
    """Stimulus indices and prediction of all pictures of a split, on the CPU; `cut` and `dimensions` as for `Decoder.predict`."""
    stimulus, parts = zip(*predictions(decoder, prepared, split, batch, cut, dimensions), strict=True)
    return np.concatenate(stimulus), joined_predictions([part.each(Tensor.cpu) for part in parts])


def joined_predictions(parts: list[Prediction]) -> Prediction:
    """The rows of several predictions of one method, one after the other."""
    conditions = [part.condition for part in parts if part.condition is not None]
    condition = Conditioning(*map(torch.cat, zip(*conditions, strict=True))) if conditions else None
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
            return stimulus, torch.from_numpy(read_rows(targets["embedding"], stimulus)).float()
    found = [(images, prediction.features.cpu().float()) for images, prediction in predictions(decoder, prepared, "train", batch)]
    return np.concatenate([images for images, _ in found]), torch.cat([features for _, features in found])
