"""Generators behind one protocol: named targets in, pictures out, one batch at a time.

A generator has

| name | what |
|---|---|
| `name` | as shown in tables |
| `takes` | by name, the shape of one picture's input: `embedding` (d,), `tokens` (n, width), or, with a trained condition stage, `context` and `time` |
| `raw` | whether it takes targets of the length the image encoder gives them (`generators.norms` brings predictions there), or their direction alone |
| `draw(inputs, keys, sampling, start)` | pictures, float (n, 3, H, W) in [0, 1], H = W = the study's picture size |
| `protocol(sampling)` | what was done, for the tables' protocol |

`inputs` are tensors (n, *shape) by name; None draws without any, from the null condition alone. `keys` seed each picture's own
noise, such as (study seed, stimulus, sample): so batches change nothing. `start` are latents of the study's autoencoder, from
which drawing begins at `sampling.strength`; with strength 0 the autoencoder alone decodes them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.errors import InputError
from unimind.storage import read_json
from unimind.study import Sampling

#: Kinds of foundation that are pipelines taken as they are.
FROZEN = ("ip-adapter", "unclip", "kandinsky-2.2")


class Generator(Protocol):
    """See the module."""

    name: str
    raw: bool

    @property
    def takes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one picture's input, by name."""
        ...

    def draw(self, inputs: Mapping[str, Tensor] | None, keys: Sequence[tuple], sampling: Sampling, start: Tensor | None = None) -> Tensor:
        """Pictures (len(keys), 3, H, W) in [0, 1]."""
        ...

    def protocol(self, sampling: Sampling) -> dict[str, Any]:
        """What was done."""
        ...


def load_generator(
    directory: Path, autoencoder, picture_size: int, device: torch.device | str = "cpu", latent_shape: tuple[int, ...] | None = None
) -> Generator:
    """The generator of a foundation's directory, on a device.

    Parameters
    ----------
    directory : Path
        Of the foundation `diffusion`.
    autoencoder
        The study's, on the device: it made the latents that drawing may start from.
    picture_size : int
        Side of the pictures that come out.
    latent_shape : tuple of int, optional
        (c, h, w) of the study's latents, which a UNet then draws; by default those of its configuration.

    Raises
    ------
    InputError
        The UNet was made for latents of another autoencoder.
    """
    kind = read_json(Path(directory) / "config.json")["kind"]
    if kind in FROZEN:
        from unimind.foundations.generators.frozen import load_frozen

        return load_frozen(directory, autoencoder, picture_size, torch.device(device))
    from unimind.foundations.generators.latent import AutoencoderGenerator, UNetGenerator

    if kind == "autoencoder":
        return AutoencoderGenerator(autoencoder)
    from unimind.foundations import load_diffusion

    diffusion = load_diffusion(directory).to(device)
    if latent_shape is not None:
        diffusion.take_latents(latent_shape, autoencoder.name)
    return UNetGenerator(diffusion, autoencoder)


def as_bytes(pictures: Tensor) -> NDArray[np.uint8]:
    """Pictures (n, 3, H, W) in [0, 1] as they are stored: uint8 (n, H, W, 3).

    Raises
    ------
    InputError
        A value is not finite.
    """
    if not pictures.isfinite().all():
        raise InputError("pictures drawn are no finite numbers: a network overflows in half precision, or lacks weights; write precision: bf16 or fp32")
    return pictures.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def check_inputs(generator: Generator, inputs: Mapping[str, Tensor] | None, keys: Sequence[tuple]) -> None:
    """InputError where inputs are not what a generator takes: other names, other shapes, another number of rows."""
    takes = generator.takes
    if inputs is not None and {name: tuple(value.shape) for name, value in inputs.items()} != {name: (len(keys), *shape) for name, shape in takes.items()}:
        wanted = ", ".join(f"{name} {(len(keys), *shape)}" for name, shape in takes.items())
        found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
        raise InputError(
            f"{generator.name} takes {wanted or 'no input'}; {found or 'nothing'} given: choose foundations.embedding and foundations.diffusion of one family"
        )
