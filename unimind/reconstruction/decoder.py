"""A trained method behind one function: responses in; predicted targets and condition out."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from unimind.errors import InputError
from unimind.foundations.diffusion import Condition, Diffusion
from unimind.models.condition import ConditionStage
from unimind.models.encoder import load_encoder
from unimind.models.enter import subject_key
from unimind.storage import load_model


class Prediction(NamedTuple):
    """What a method makes of n responses.

    Attributes
    ----------
    condition : Condition
    embedding : Tensor or None
        (n, d), the predicted image embedding as regressed, where the method predicts one; the condition is made from its direction.
    latent : Tensor or None
        (n, c, h, w), the predicted autoencoder latent, where the method predicts one.
    features : Tensor
        (n, k), by which trials are compared with each other where there is no embedding.
    """

    condition: Condition
    embedding: Tensor | None
    latent: Tensor | None
    features: Tensor


class Decoder:
    """A method's model of one subject, joined to the diffusion model.

    Parameters
    ----------
    directory : Path
        Model directory: of `enter`, `align`, `condition` or `adapt`.
    entered : Path or None
        What `enter` wrote for the subject, where the model is shared and voxels enter in closed form.
    diffusion : Diffusion
        Its cross-attention weights are replaced by the ones the method trained, where it trained them.
    dataset, subject : str

    Attributes
    ----------
    channels : int
        R of the responses (n, R, V) that `predict` takes.
    order : str
        Of their voxels.
    """

    def __init__(self, directory: Path, entered: Path | None, diffusion: Diffusion, dataset: str, subject: str) -> None:
        state, config = load_model(directory)
        self.diffusion, self.subject = diffusion, subject_key(dataset, subject)
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
            changed = _part(state, "unet.")
            unknown = set(changed) - set(dict(diffusion.unet.named_parameters()))
            if unknown:
                raise InputError(f"{directory}: trained for another UNet (it has no {sorted(unknown)[0]}); run the condition stage again")
            diffusion.unet.load_state_dict(changed, strict=False)
        if self.stage is None and (diffusion.conditioner is None or "embedding" not in self.encoder.targets) and "latent" not in self.encoder.targets:
            raise InputError(f"{directory}: has no condition stage, and {diffusion.name} takes no image embedding; give the method a `condition:`")

    def to(self, device: torch.device) -> "Decoder":
        for part in (self.encoder, self.stage, self.diffusion):
            if part is not None:
                part.to(device)
        self.device = device
        return self

    @property
    def body(self) -> bool:
        """Whether there is a body whose worth can be measured by cutting it out."""
        return bool(self.encoder.heads) and len(self.encoder.mean_pooled) > 0

    def null(self) -> Condition:
        """The condition of unconditional samples."""
        return self.diffusion.null() if self.stage is None else self.stage.null()

    @torch.no_grad()
    def predict(self, responses: NDArray[np.float32], cut: bool = False) -> Prediction:
        """Responses (n, R, V) of the subject to a prediction; with `cut` the body gives its mean over the training pictures for every one."""
        output = self.encoder(torch.from_numpy(np.ascontiguousarray(responses)).to(self.device), self.subject, cut)
        found = {name: self.encoder.predict(output, name) for name in self.encoder.targets}
        embedding, latent = found.get("embedding"), found.get("latent")
        unit = None if embedding is None else functional.normalize(embedding, dim=1)
        conditioner = self.diffusion.conditioner
        if self.stage is not None:
            condition = self.stage(output.tokens, output.pooled, unit)
        else:
            condition = self.null().expand(len(responses)) if conditioner is None or unit is None else conditioner(unit)
        return Prediction(condition, embedding, latent, output.pooled if embedding is None else embedding)


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
