"""Samplers: conditions in, latents out. Every sample has its own noise, so batches change nothing."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unimind.device import choose_precision
from unimind.foundations.diffusion import Conditioning, Diffusion
from unimind.streams import generator
from unimind.study import Sampling


def build_scheduler(sampling: Sampling, config: dict, device: torch.device):
    """diffusers' scheduler of a name: DPM-Solver++ (Lu et al. 2022), DDIM (Song et al. 2020) or PLMS (Liu et al. 2022)."""
    if sampling.sampler == "dpm-solver++":
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
    elif sampling.sampler == "ddim":
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        scheduler = DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)
    else:
        from diffusers.schedulers.scheduling_pndm import PNDMScheduler

        scheduler = PNDMScheduler.from_config(config, skip_prk_steps=True)
    scheduler.set_timesteps(sampling.steps, device=device)
    return scheduler


def begin(scheduler, sampling: Sampling) -> Tensor:
    """What is left of the timesteps when sampling begins at the share `sampling.strength` of the schedule, which the scheduler is told."""
    timesteps = scheduler.timesteps.unique_consecutive()
    first = min(int(round((1 - sampling.strength) * len(timesteps))), len(timesteps) - 1)
    timesteps = timesteps[first:]
    if sampling.sampler == "plms":
        timesteps = torch.cat([timesteps[:2], timesteps[1:]])  # its first step is made twice, at the second timestep again
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return timesteps


def starting_noise(shape: Sequence[int], keys: Sequence[tuple]) -> Tensor:
    """Standard normal noise (len(keys), *shape), each row seeded from its own key."""
    return torch.stack([torch.randn(tuple(shape), generator=generator("noise", *key)) for key in keys])


@torch.no_grad()
def sample(
    diffusion: Diffusion, condition: Conditioning, null: Conditioning, sampling: Sampling, keys: Sequence[tuple], start: Tensor | None = None,
    step_done: Callable[[], None] | None = None,
) -> Tensor:  # fmt: skip
    """Draw one latent per row of the condition.

    Parameters
    ----------
    diffusion : Diffusion
    condition : Conditioning
        Of n rows.
    null : Conditioning
        One row; used where `sampling.guidance` is not 1: prediction = null + guidance (conditional - null) (Ho & Salimans 2022).
    sampling : Sampling
        The network computes in `sampling.precision`; the sampler's own arithmetic stays in single precision.
    keys : sequence of tuple
        What seeds each row's noise, such as (seed, stimulus, sample).
    start : Tensor, optional
        Latents (n, c, h, w) to start from: noised to the share `sampling.strength` of the schedule. With strength 0 they are returned.

    Returns
    -------
    Tensor
        (n, c, h, w).
    """
    device = condition.context.device
    if start is not None and sampling.strength == 0:
        return start.to(device)
    scheduler = build_scheduler(sampling, diffusion.scheduler, device)
    noise = starting_noise(diffusion.latent_shape, keys).to(device)
    timesteps = scheduler.timesteps
    if start is not None and sampling.strength < 1:
        timesteps = begin(scheduler, sampling)
        latent = scheduler.add_noise(start.to(device), noise, timesteps[:1].expand(len(noise)))
    else:
        latent = noise * scheduler.init_noise_sigma
    half = choose_precision(sampling.precision, device, "sampling")
    guided = sampling.guidance != 1.0
    if guided:
        both = Conditioning(
            torch.cat([condition.context, null.context.expand_as(condition.context)]), torch.cat([condition.time, null.time.expand_as(condition.time)])
        )
    for timestep in timesteps:
        with torch.autocast(device.type, half, enabled=half is not None):
            prediction = (diffusion(torch.cat([latent, latent]), timestep, both) if guided else diffusion(latent, timestep, condition)).float()
        if guided:
            with_it, without = prediction.chunk(2)
            prediction = without + sampling.guidance * (with_it - without)
        latent = scheduler.step(prediction, timestep, latent).prev_sample
        if step_done is not None:
            step_done()
    return latent
