"""A trained method behind one function: responses in; predicted embedding, latent and condition out."""

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
from unimind.models.encoder import FmriEncoder, subject_key
from unimind.models.ridge import RidgeModel
from unimind.storage import load_model


class Prediction(NamedTuple):
    """What a method makes of n responses.

    Attributes
    ----------
    condition : Condition
    embedding : Tensor or None
        (n, d), the predicted image embedding as regressed, where the method predicts one; the condition is made from its direction.
    latent : Tensor or None
        (n, c, h, w), the predicted autoencoder latent (ridge).
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
        Model directory: of `fit` (ridge), `align`, `condition` or `adapt`.
    diffusion : Diffusion
        Its cross-attention weights are replaced by the ones the method trained, where it trained them.
    dataset, subject : str
    """

    def __init__(self, directory: Path, diffusion: Diffusion, dataset: str, subject: str) -> None:
        state, config = load_model(directory)
        self.diffusion = diffusion
        self.subject = subject_key(dataset, subject)
        self.encoder: FmriEncoder | None = None
        self.stage: ConditionStage | None = None
        self.ridge: RidgeModel | None = None
        if config.get("kind") == "ridge":
            self.ridge = RidgeModel.from_state(state, config)
        else:
            self.encoder = FmriEncoder(**config["encoder"])
            self.encoder.load_state_dict(_part(state, "encoder."))
            self.encoder.eval()
            if "condition" in config:
                self.stage = ConditionStage(**config["condition"])
                self.stage.load_state_dict(_part(state, "condition."))
                self.stage.eval()
                changed = _part(state, "unet.")
                unknown = set(changed) - set(dict(diffusion.unet.named_parameters()))
                if unknown:
                    raise InputError(f"{directory}: trained for another UNet (it has no {sorted(unknown)[0]}); run the condition stage again")
                diffusion.unet.load_state_dict(changed, strict=False)
        if self.stage is None and self.ridge is None and diffusion.conditioner is None:
            raise InputError(f"{directory}: has no condition stage, and {diffusion.name} takes no image embedding; give the method a `condition:`")
        self.aligned = self.ridge is not None or bool(config.get("aligned", True))

    def to(self, device: torch.device) -> "Decoder":
        for part in (self.encoder, self.stage, self.diffusion):
            if part is not None:
                part.to(device)
        self.device = device
        return self

    def null(self) -> Condition:
        """The condition of unconditional samples."""
        return self.diffusion.null() if self.stage is None else self.stage.null()

    @torch.no_grad()
    def predict(self, responses: NDArray[np.float32]) -> Prediction:
        """Responses (n, R, V) of the subject to a prediction."""
        conditioner = self.diffusion.conditioner
        if self.ridge is not None:
            embedding, latent = (torch.from_numpy(np.asarray(values, np.float32)).to(self.device) for values in self.ridge.predict(responses.mean(1)))
            latent = latent.view(len(embedding), *self.diffusion.latent_shape)
            condition = self.null().expand(len(embedding)) if conditioner is None else conditioner(functional.normalize(embedding, dim=1))
            return Prediction(condition, embedding, latent, embedding)
        assert self.encoder is not None
        output = self.encoder(torch.from_numpy(np.ascontiguousarray(responses)).to(self.device), self.subject)
        embedding = self.encoder.embed(output.pooled).float() if self.aligned else None
        unit = None if embedding is None else functional.normalize(embedding, dim=1)
        if self.stage is not None:
            condition = self.stage(output.tokens, output.pooled, unit)
        else:
            assert conditioner is not None
            condition = conditioner(unit)
        return Prediction(condition, embedding, None, output.pooled if embedding is None else embedding)


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
