"""Generators in the space of the study's autoencoder: a UNet under a condition, and the autoencoder alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unimind.errors import InputError
from unimind.foundations.diffusion import Conditioning, Diffusion
from unimind.foundations.generators import check_inputs
from unimind.foundations.generators.samplers import sample
from unimind.study import Sampling

#: Pictures per pass through the autoencoder on a CPU: full-size maps then stay in its caches.
DECODED_AT_ONCE = 8


@torch.no_grad()
def decoded_latents(autoencoder, latents: Tensor) -> Tensor:
    """Latents (n, c, h, w) of the study's autoencoder as pictures (n, 3, H, W) in [0, 1]."""
    return torch.cat([autoencoder.decode(part) for part in latents.split(len(latents) if latents.is_cuda else DECODED_AT_ONCE)]).float().clamp(0, 1)


class AutoencoderGenerator:
    """No generator: the autoencoder decodes the predicted latent. It takes nothing but a start."""

    takes: dict[str, tuple[int, ...]] = {}
    raw = False

    def __init__(self, autoencoder) -> None:
        self.autoencoder, self.name = autoencoder, f"{autoencoder.name} alone"

    def draw(self, inputs: Mapping[str, Tensor] | None, keys: Sequence[tuple], sampling: Sampling, start: Tensor | None = None) -> Tensor:
        """Pictures (n, 3, H, W) of the start (n, c, h, w); noise, and so `keys`, has no part in it."""
        check_inputs(self, inputs or None, keys)
        if start is None:
            raise InputError(f"{self.name}: draws predicted latents only, and none is given; use a method that predicts the latent, or another generator")
        return decoded_latents(self.autoencoder, start)

    def protocol(self, sampling: Sampling) -> dict[str, Any]:
        """What was done."""
        return {"generator": self.name, "sampler": "none: the autoencoder alone", "steps": 0, "strength": 0.0}


class UNetGenerator:
    """A UNet of the study, of CompVis or of the hub, in the space of the study's autoencoder.

    Parameters
    ----------
    diffusion : Diffusion
    autoencoder
        On the same device.

    It takes the `embedding` that the UNet's own conditioner reads, whose length has no part in it; after `take_condition`, the
    `context` and `time` that a method's condition stage makes.
    """

    raw = False

    def __init__(self, diffusion: Diffusion, autoencoder) -> None:
        self.diffusion, self.autoencoder, self.name = diffusion, autoencoder, diffusion.name
        self._null: Conditioning | None = None

    def take_condition(self, weights: Mapping[str, Tensor], null: Conditioning) -> None:
        """Take over what a method's condition stage trained: the UNet's cross-attention weights by name, and the null condition, of one row.

        Raises
        ------
        InputError
            The weights are another UNet's.
        """
        unknown = set(weights) - set(dict(self.diffusion.unet.named_parameters()))
        if unknown:
            raise InputError(f"{self.name}: the method was conditioned on another UNet (this one has no {min(unknown)}); run the condition stage again")
        self.diffusion.unet.load_state_dict(weights, strict=False)
        self._null = null

    @property
    def takes(self) -> dict[str, tuple[int, ...]]:
        if self._null is not None:
            return {"context": tuple(self._null.context.shape[1:]), "time": tuple(self._null.time.shape[1:])}
        conditioner = self.diffusion.conditioner
        return {} if conditioner is None else {"embedding": (int(conditioner.arguments["dim"]),)}

    def null(self) -> Conditioning | None:
        """The condition of pictures drawn without inputs, of one row; None where the UNet came without one."""
        return self.diffusion.null() if self._null is None else self._null

    @torch.no_grad()
    def draw(self, inputs: Mapping[str, Tensor] | None, keys: Sequence[tuple], sampling: Sampling, start: Tensor | None = None) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1]; see `foundations.generators`."""
        check_inputs(self, inputs, keys)
        if start is not None and sampling.strength == 0:
            return decoded_latents(self.autoencoder, start)
        null = self.null()
        if inputs is None:
            if null is None:
                raise InputError(f"{self.name}: came without what it learned to draw from without a condition (a null class, the empty prompt)")
            condition = null.expand(len(keys))
            sampling = sampling.model_copy(update={"guidance": 1.0})
        elif "context" in inputs:
            condition = Conditioning(inputs["context"], inputs["time"])
        elif self.diffusion.conditioner is not None:
            condition = self.diffusion.conditioner(functional.normalize(inputs["embedding"], dim=1))
        else:
            raise InputError(f"{self.name}: takes no image embedding; give the method a `condition:`, or write sampling.strength: 0")
        return decoded_latents(self.autoencoder, sample(self.diffusion, condition, null, sampling, keys, start))

    def protocol(self, sampling: Sampling) -> dict[str, Any]:
        """What was done."""
        alone = {"sampler": "none: the autoencoder alone", "steps": 0}
        drawn = {"sampler": sampling.sampler, "steps": sampling.steps, "guidance": sampling.guidance, "precision": sampling.precision}
        return {"generator": self.name, "autoencoder": self.autoencoder.name, "strength": sampling.strength, **(drawn if sampling.strength else alone)}
