"""What is random in training a diffusion model (denoising score matching: Ho et al. 2020)."""

import torch
from torch import Tensor


def draw_noise(latent: Tensor, n_timesteps: int, drop: float, generator: torch.Generator, power: float = 1.0) -> dict[str, Tensor]:
    """What is random about the rows of a diffusion model's batch.

    Parameters
    ----------
    latent : Tensor
        (n, c, h, w), of which only the shape is used.
    n_timesteps : int
    drop : float
        Share of rows without a condition.
    generator : torch.Generator
    power : float
        The timesteps' density rises as t^(power - 1): uniform with 1, mostly noisy ones above.

    Returns
    -------
    dict
        `noise` (n, c, h, w), standard normal; `timestep` int64 (n,); `kept` bool (n,), False where the condition is dropped.
    """
    n = len(latent)
    return {
        "noise": torch.randn(latent.shape, generator=generator),
        "timestep": (n_timesteps * torch.rand(n, generator=generator, dtype=torch.float64) ** (1 / power)).long().clamp_max(n_timesteps - 1),
        "kept": torch.rand(n, generator=generator) >= drop,
    }  # fmt: skip
