"""A trained method behind one function: responses in; predicted targets, and the condition where it makes one, out."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from unimind.errors import InputError
from unimind.foundations.diffusion import Conditioning
from unimind.foundations.generators import Generator
from unimind.models.condition import ConditionStage
from unimind.models.encoder import Encoder, load_encoder
from unimind.models.enter import subject_key
from unimind.storage import load_model

#: Dimensions of the entered signal that a prediction is made of in turn, about three times as many each time.
BOTTLENECKS = (1, 3, 10, 30, 100, 300)


class Prediction(NamedTuple):
    """What a method makes of n responses.

    Attributes
    ----------
    targets : dict of str to Tensor
        What it predicts of the pictures, as regressed: `embedding` (n, d), of a unit vector, and `latent` (n, c, h, w).
    features : Tensor
        (n, k), by which pictures are told apart: where an embedding is predicted, that of the retrieval head, or else the same one.
    condition : Conditioning or None
        What its condition stage makes for the UNet, where it has one.
    """

    targets: dict[str, Tensor]
    features: Tensor
    condition: Conditioning | None

    @property
    def embedding(self) -> Tensor | None:
        return self.targets.get("embedding")

    @property
    def latent(self) -> Tensor | None:
        return self.targets.get("latent")

    def each(self, change: Callable[[Tensor], Tensor]) -> "Prediction":
        """The prediction with a function applied to every tensor."""
        condition = None if self.condition is None else Conditioning(*map(change, self.condition))
        return Prediction({name: change(values) for name, values in self.targets.items()}, change(self.features), condition)


class Decoder:
    """A method's model of one subject.

    Parameters
    ----------
    directory : Path
        Model directory: of `enter`, `align`, `condition` or `adapt`.
    entered : Path or None
        What `enter` wrote for the subject, where the model is shared and voxels enter in closed form.
    dataset, subject : str

    Attributes
    ----------
    channels : int
        R of the responses (n, R, V) that `predict` takes.
    order : str
        Of their voxels.
    stage : ConditionStage or None
    """

    def __init__(self, directory: Path, entered: Path | None, dataset: str, subject: str) -> None:
        state, config = load_model(directory)
        self.directory, self.subject = directory, subject_key(dataset, subject)
        self.encoder, _ = load_encoder(directory)
        self.channels, self.order = self.encoder.channels, self.encoder.arguments["enter"].get("order", "stored")
        if entered is not None:
            own, _ = load_encoder(entered)
            self.encoder.take_map(self.subject, *own.enter.taken(self.subject))
        self.stage: ConditionStage | None = None
        if "condition" in config:
            self.stage = ConditionStage(**config["condition"])
            self.stage.load_state_dict(_part(state, "condition."))
            self.stage.eval()
        self._unet = _part(state, "unet.")

    @classmethod
    def of(cls, encoder: Encoder, subject: str) -> "Decoder":
        """The decoder of a subject by an encoder alone, `subject` being the name of the subject's parameters in it."""
        made = cls.__new__(cls)
        made.directory, made.subject, made.encoder, made.stage, made._unet = Path(), subject, encoder, None, {}
        made.channels, made.order = encoder.channels, encoder.arguments["enter"].get("order", "stored")
        return made

    def to(self, device: torch.device) -> "Decoder":
        for part in (self.encoder, self.stage):
            if part is not None:
                part.to(device)
        self.device = device
        return self

    @property
    def body(self) -> bool:
        """Whether there is a body whose worth can be measured by cutting it out."""
        return bool(self.encoder.heads) and len(self.encoder.mean_pooled) > 0

    @property
    def retrieval(self) -> bool:
        """Whether pictures are told apart by a head of its own."""
        return self.encoder.retrieval_head is not None

    @property
    def bottlenecks(self) -> tuple[int, ...]:
        """Numbers of dimensions of the entered signal by which its worth is measured, the last of them all; none where it has no ordered dimensions."""
        whole = self.encoder.space.components["embedding"]
        return (*(number for number in BOTTLENECKS if number < whole), whole) if self.encoder.closed else ()

    def prepare(self, generator: Generator) -> None:
        """Give a generator what the method's condition stage trained of it, where it has one; both on one device.

        Raises
        ------
        InputError
            The generator cannot be conditioned, or is another one than the stage's.
        """
        from unimind.foundations.generators.latent import UNetGenerator

        if self.stage is None:
            return
        if not isinstance(generator, UNetGenerator):
            raise InputError(f"{self.directory}: has a condition stage, which {generator.name} has no place for; run the stages of one study again")
        generator.take_condition(self._unet, self.stage.null())

    @torch.no_grad()
    def predict(self, responses: NDArray[np.float32], cut: bool = False, dimensions: int | None = None) -> Prediction:
        """Responses (n, R, V) of the subject to a prediction.

        With `cut` the body gives its mean over the training pictures for every one; with `dimensions` no more of the entered signal is
        seen (`Encoder.narrowed`), where voxels enter in closed form.
        """
        signal = self.encoder.enter(torch.from_numpy(np.ascontiguousarray(responses)).to(self.device), self.subject)
        output = self.encoder.from_signal(signal if dimensions is None else self.encoder.narrowed(signal, dimensions), cut)
        targets = {name: self.encoder.predict(output, name) for name in self.encoder.targets}
        embedding, condition = targets.get("embedding"), None
        if self.stage is not None:
            condition = self.stage(output.tokens, output.pooled, None if embedding is None else functional.normalize(embedding, dim=1))
        retrieval = self.encoder.retrieval(output)
        return Prediction(targets, output.pooled if retrieval is None else retrieval, condition)


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
