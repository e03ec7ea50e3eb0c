"""TAEF2: the tiny autoencoder of FLUX.2's latent space (madebyollin, MIT), 8 x smaller, 32 channels.

diffusers' `AutoencoderTiny` lacks the pooled block of this network, so the layers are built here; weights keep the
names and the half precision they are distributed in.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from unimind.errors import InputError
from unimind.foundations.weights import local_file, read_safetensors
from unimind.storage import file_hash, load_model, save_model
from unimind.study import Taef2Autoencoder

NAME = "TAEF2"
CHANNELS = 32
FACTOR = 8
#: Per-channel mean and standard deviation of the network's latent over 600 natural colour photographs at 112 x 112: 60 training
#: pictures, drawn at random, from each of ten sessions of the macaque V4 recordings (Cowley et al. 2023); no test picture among them.
LATENT_MEAN = [
    0.031, -0.142, 0.128, 0.067, 0.209, -0.194, -0.122, 0.202, 0.012, 0.064, 0.219, 0.098, 0.134, 0.226, -0.279, 0.239,
    -0.101, 0.106, -0.171, 0.298, 0.077, 0.128, 0.184, -0.398, 0.221, -0.517, -0.096, -0.038, 0.302, 0.222, 0.02, 0.157,
]  # fmt: skip
LATENT_STD = [
    0.744, 0.988, 0.96, 1.031, 0.72, 0.93, 1.009, 0.755, 1.011, 0.622, 0.644, 1.018, 0.774, 0.658, 0.827, 1.068,
    0.729, 0.674, 0.696, 1.048, 0.69, 0.625, 0.737, 0.675, 0.91, 0.763, 0.914, 0.846, 0.755, 0.986, 0.721, 0.912,
]  # fmt: skip


class _ResidualBlock(nn.Module):
    """relu(conv3-ReLU-conv3-ReLU-conv3 (x) + x); a pooled one first adds conv1-GroupNorm-ReLU-conv1 (x) to x."""

    def __init__(self, width: int = 64, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.pool = (
            nn.Sequential(nn.Conv2d(width, 4 * width, 1, bias=False), nn.GroupNorm(4, 4 * width), nn.ReLU(), nn.Conv2d(4 * width, width, 1, bias=False))
            if pooled
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class _TanhClamp(nn.Module):
    """3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def _conv(inputs: int, outputs: int, **options: int | bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)  # type: ignore[arg-type]


def _encoder() -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, 64), _ResidualBlock()]
    for pooled in (False, False, True):
        layers += [_conv(64, 64, stride=2, bias=False), *(_ResidualBlock(pooled=pooled) for _ in range(3))]
    return nn.Sequential(*layers, _conv(64, CHANNELS))


def _decoder() -> nn.Sequential:
    layers: list[nn.Module] = [_TanhClamp(), _conv(CHANNELS, 64), nn.ReLU()]
    for pooled in (True, False, False):
        layers += [*(_ResidualBlock(pooled=pooled) for _ in range(3)), nn.Upsample(scale_factor=2), _conv(64, 64, bias=False)]
    return nn.Sequential(*layers, _ResidualBlock(), _conv(64, 3))


class Taef2(nn.Module):
    """TAEF2 with its latent standardised per channel.

    Parameters
    ----------
    mean, std : sequence of float, (32,)
        Of the network's own latent over natural pictures; `encode` returns `(latent - mean) / std`.
    name : str
        As shown in tables.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float], name: str = NAME) -> None:
        super().__init__()
        self.name = name
        self.encoder = _encoder()
        self.decoder = _decoder()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1], H and W multiples of 8, to latents (n, 32, H/8, W/8) of about zero mean and unit variance."""
        if images.shape[-2] % FACTOR or images.shape[-1] % FACTOR:
            raise InputError(f"picture_size: TAEF2 takes pictures whose sides are multiples of {FACTOR}; {images.shape[-2]} x {images.shape[-1]} given")
        return (self.encoder(images) - self.mean) / self.std

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (n, 32, h, w), scaled as `encode` returns them, to pictures (n, 3, 8h, 8w) in [0, 1]."""
        return self.decoder(latent * self.std + self.mean).clamp(0, 1)


def build_taef2(settings: Taef2Autoencoder, directory: Path) -> None:
    """Copy the two weight files into `directory` (an open `whole_directory`) in the project's form; InputError when one is absent."""
    state: dict[str, Tensor] = {}
    hashes = {}
    for part in ("encoder", "decoder"):
        file = local_file(f"{settings.weights}/taef2_{part}.safetensors", f"TAEF2's {part}")
        state |= {f"{part}.{key}": value for key, value in read_safetensors(file).items()}
        hashes[file.name] = file_hash(file)
    module = Taef2(LATENT_MEAN, LATENT_STD)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{settings.weights}: not TAEF2's weights ({' '.join(str(error).split())[:200]})") from None
    save_model(directory, state, {"kind": settings.kind, "role": "autoencoder", "name": NAME, "mean": LATENT_MEAN, "std": LATENT_STD, "sources": hashes})


def load_taef2(directory: Path) -> Taef2:
    """What `build_taef2` wrote, in single precision, frozen, in evaluation mode."""
    state, config = load_model(directory)
    module = Taef2(config["mean"], config["std"], config["name"])
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)
