"""The latent diffusion model: diffusers' UNet, conditioned twice.

The condition enters as cross-attention context and as a vector added to the time embedding (`class_embed_type:
identity` in diffusers' words), so that any diffusers UNet - trained in the study, converted from CompVis's checkpoint or
taken from the hub - is conditioned in the same way, without a parameter of its own for it.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from unimind.errors import InputError
from unimind.foundations.hub import NULL_CONTEXT
from unimind.storage import load_model
from unimind.streams import placed


class Conditioning(NamedTuple):
    """What conditions a batch: `context` (n, tokens, context_dim) and `time` (n, time_dim)."""

    context: Tensor
    time: Tensor

    def keep(self, kept: Tensor, null: "Conditioning") -> "Conditioning":
        """The condition where `kept` (n,) is true, the null condition elsewhere."""
        context = torch.where(kept[:, None, None], self.context, null.context.expand_as(self.context))
        return Conditioning(context, torch.where(kept[:, None], self.time, null.time.expand_as(self.time)))

    def repeat(self, n: int) -> "Conditioning":
        """Every row n times, one after the other."""
        return Conditioning(*(part.repeat_interleave(n, 0) for part in self))

    def expand(self, n: int) -> "Conditioning":
        """A condition of one row, n times, without copies."""
        return Conditioning(self.context.expand(n, -1, -1), self.time.expand(n, -1))


class EmbeddingConditioner(nn.Module):
    """Image embedding -> condition, trained together with a UNet of the study.

    Parameters
    ----------
    dim : int
        Length of the embedding.
    context_dim, tokens : int
        Width and number of context tokens.
    time_dim : int
        Length of the time embedding.
    """

    def __init__(self, dim: int, context_dim: int, tokens: int, time_dim: int) -> None:
        super().__init__()
        self.arguments = {"dim": dim, "context_dim": context_dim, "tokens": tokens, "time_dim": time_dim}
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.context = nn.Linear(dim, tokens * context_dim)
        self.time = nn.Sequential(nn.Linear(dim, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.null_context = nn.Parameter(torch.randn(1, tokens, context_dim) * 0.02)

    def forward(self, embedding: Tensor) -> Conditioning:
        """Embeddings (n, dim), standardised by the training pictures' mean and deviation."""
        x = (embedding - self.mean) / self.std
        return Conditioning(self.context(x).unflatten(1, self.null_context.shape[1:]), self.time(x))

    def null(self) -> Conditioning:
        """The condition of unconditional samples; one row, to be expanded."""
        return Conditioning(self.null_context, self.null_context.new_zeros(1, self.arguments["time_dim"]))


def build_unet(config: dict[str, Any]) -> nn.Module:
    """A diffusers UNet2DConditionModel that also accepts a vector for its time embedding."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel.from_config({**config, "class_embed_type": "identity", "num_class_embeds": None})


def adaptable_names(unet: nn.Module) -> list[str]:
    """Parameters trained when a UNet is conditioned on fMRI: cross-attention and its norms. All others stay frozen."""
    return [name for name, _ in unet.named_parameters() if ".attn2." in name or ".norm2." in name and "resnets" not in name]


def coordinate_channels(latent: Tensor) -> Tensor:
    """Two channels (n, 2, h, w) with each position's column and row, from -1 to 1."""
    n, _, height, width = latent.shape
    rows = torch.linspace(-1, 1, height, device=latent.device, dtype=latent.dtype)
    columns = torch.linspace(-1, 1, width, device=latent.device, dtype=latent.dtype)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy")).expand(n, -1, -1, -1)


class Modulated(nn.Module):
    """A residual block whose maps are scaled and shifted, channel by channel, by a vector (FiLM; Perez et al. 2018)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.scale_shift = nn.Linear(dim, 2 * width)

    def forward(self, maps: Tensor, vector: Tensor) -> Tensor:
        """Maps (n, width, h, w) under vectors (n, dim)."""
        scale, shift = self.scale_shift(vector)[:, :, None, None].chunk(2, 1)
        return maps + self.second(silu(self.first(silu(self.norm(maps))) * (1 + scale) + shift))


class Sketch(nn.Module):
    """The condition's time vector -> the latent to be expected for it, which the UNet sees beside the noised one.

    A regression learns which object is where in a small part of the steps a small UNet takes; the UNet then has to draw what the
    regression leaves blurred.

    Parameters
    ----------
    time_dim : int
        Length of the time vector.
    latent_shape : tuple of int
        (c, h, w).
    width, hidden : int
        Channels of the maps, and width of the layers before them.
    """

    def __init__(self, time_dim: int, latent_shape: tuple[int, int, int], width: int, hidden: int) -> None:
        super().__init__()
        channels, *self.size = latent_shape
        self.start = (width, *(-(-side // 2) for side in self.size))
        self.hidden = nn.Sequential(nn.Linear(time_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.maps = nn.Linear(hidden, math.prod(self.start))
        self.blocks = nn.ModuleList(Modulated(width, hidden) for _ in range(2))
        self.out = nn.Conv2d(width, channels, 3, 1, 1)

    def forward(self, time: Tensor) -> Tensor:
        """Time vectors (n, time_dim) to latents (n, c, h, w); zero for the zero vector, the null condition's."""
        vector = self.hidden(time)
        maps = interpolate(silu(self.maps(vector)).unflatten(1, self.start), size=self.size)
        for block in self.blocks:
            maps = block(maps, vector)
        return self.out(maps) * time.any(1)[:, None, None, None]


class Diffusion(nn.Module):
    """A UNet, its noise schedule, and its own conditioner where it was trained in the study.

    Attributes
    ----------
    name : str
        As shown in tables.
    unet : UNet2DConditionModel
    scheduler : dict
        diffusers' configuration of the noise schedule.
    conditioner : EmbeddingConditioner or None
    latent_shape : tuple of int
        (c, h, w) of one latent.
    coordinates : bool
        Whether the UNet also sees where it is (CoordConv; Liu et al. 2018): a small network then learns places sooner.
    sketch : Sketch or None
        What the UNet sees of the picture to be expected under the condition.
    nothing : Tensor or None
        Context (1, tokens, context_dim) that a UNet not trained here learned to draw from without a condition, where it is known.
    """

    def __init__(
        self, name: str, unet: dict[str, Any], scheduler: dict[str, Any], latent_shape: tuple[int, int, int],
        conditioner: dict[str, Any] | None, coordinates: bool = False, sketch: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.arguments = {
            "name": name, "unet": unet, "scheduler": scheduler, "latent_shape": list(latent_shape), "conditioner": conditioner,
            "coordinates": coordinates, "sketch": sketch,
        }  # fmt: skip
        self.coordinates = coordinates
        self.name, self.scheduler, self.latent_shape = name, dict(scheduler), tuple(latent_shape)
        self.unet = placed("unet", lambda: build_unet(unet))
        self.conditioner = placed("conditioner", lambda: EmbeddingConditioner(**conditioner)) if conditioner else None
        self.sketch = placed("sketch", lambda: Sketch(self.time_dim, latent_shape, **sketch)) if sketch else None
        self.register_buffer("nothing", None, persistent=False)

    @property
    def context_dim(self) -> int:
        return self.unet.config["cross_attention_dim"]

    @property
    def time_dim(self) -> int:
        return self.unet.time_embedding.linear_2.out_features

    def take_latents(self, shape: tuple[int, ...], where: str) -> None:
        """Draw latents of the shape (c, h, w) the autoencoder makes; InputError where the UNet has other channels."""
        if shape[0] != self.latent_shape[0]:
            raise InputError(
                f"{where}: latents have {shape[0]} channels, {self.name} was made for {self.latent_shape[0]}; "
                "choose an autoencoder and a diffusion model of one family"
            )
        self.latent_shape = tuple(shape)

    def null(self) -> Conditioning | None:
        """The condition of unconditional samples, one row: the conditioner's own, or that of the null class or the empty prompt; None where it is not known."""
        if self.conditioner is not None:
            return self.conditioner.null()
        return None if self.nothing is None else Conditioning(self.nothing, self.nothing.new_zeros(1, self.time_dim))

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the UNet's activations in the backward pass."""
        self.unet.enable_gradient_checkpointing()

    def forward(self, latent: Tensor, timestep: Tensor, condition: Conditioning, sketch: Tensor | None = None) -> Tensor:
        """Prediction (noise or velocity, as the schedule says) for latents (n, c, h, w) at timesteps (n,); `sketch` where it is known already."""
        seen = [latent]
        if self.coordinates:
            seen.append(coordinate_channels(latent))
        if self.sketch is not None:
            seen.append(self.sketch(condition.time) if sketch is None else sketch)
        return self.unet(torch.cat(seen, dim=1), timestep, condition.context, class_labels=condition.time).sample


def noised(latent: Tensor, noise: Tensor, timestep: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
    """Noised latents, and what the UNet should predict for them.

    z_t = sqrt(a) z + sqrt(1 - a) noise, a = alphas_cumprod[t]; the target is `noise` (epsilon; Ho et al. 2020) or
    sqrt(a) noise - sqrt(1 - a) z (v_prediction; Salimans & Ho 2022).
    """
    a = alphas_cumprod[timestep][:, None, None, None]
    mixed = a.sqrt() * latent + (1 - a).sqrt() * noise
    return mixed, noise if prediction_type == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * latent


def alphas_cumprod(scheduler: dict[str, Any]) -> Tensor:
    """Cumulative product of the schedule's alphas, (T,)."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler.from_config(scheduler).alphas_cumprod


def load_diffusion_model(directory: Path) -> Diffusion:
    """A diffusion foundation, frozen, in evaluation mode."""
    state, config = load_model(directory)
    if config["kind"] == "study":
        model = Diffusion(**config["arguments"])
    else:
        unet = config["unet"]
        shape = config.get("latent_shape") or (unet["in_channels"], unet["sample_size"], unet["sample_size"])
        model = Diffusion(config["name"], unet, config["scheduler"], tuple(shape), None)
        if (nothing := state.pop(NULL_CONTEXT, None)) is not None:
            model.nothing = nothing[None]
        state = {f"unet.{name}": tensor for name, tensor in state.items()}
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
