"""Samplers against closed forms and against themselves."""

import pytest
import torch

from unimind.foundations.diffusion import Conditioning, Diffusion, alphas_cumprod, noised
from unimind.foundations.generators.samplers import build_scheduler, sample, starting_noise
from unimind.study import Sampling

UNET = {
    "sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": [16, 16], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2, "cross_attention_dim": 8,
    "attention_head_dim": 4, "norm_num_groups": 8,
}  # fmt: skip
SCHEDULER = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
#: cin256-v2's.
COMPVIS = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "prediction_type": "epsilon"}


class Ideal(torch.nn.Module):
    """Knows the one latent there is: its prediction is exact, so every sampler must arrive there."""

    latent_shape = (2, 4, 4)
    scheduler = SCHEDULER

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target, self.alphas = target, alphas_cumprod(SCHEDULER)

    def forward(self, latent, timestep, condition):
        a = self.alphas[timestep]
        noise = (latent - a.sqrt() * self.target) / (1 - a).sqrt()
        return a.sqrt() * noise - (1 - a).sqrt() * self.target


@pytest.mark.parametrize("sampler", ["dpm-solver++", "ddim", "plms"])
def test_arrives_where_an_exact_model_points(sampler):
    target = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    condition = Conditioning(torch.zeros(3, 1, 1), torch.zeros(3, 1))
    latent = sample(Ideal(target), condition, condition, Sampling(sampler=sampler, steps=30), [(0, k) for k in range(3)])
    assert (latent - target).abs().max() < 0.05


class Gaussian(torch.nn.Module):
    """The exact prediction where latents are drawn from independent Gaussians."""

    latent_shape = (2, 4, 4)

    def __init__(self, scheduler: dict) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.scheduler, self.alphas = scheduler, alphas_cumprod(scheduler)
        self.mean, self.std = torch.randn(2, 4, 4, generator=random), 0.4 + torch.rand(2, 4, 4, generator=random)

    def moments(self, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of a latent noised to the share `a` of signal."""
        return a.sqrt() * self.mean, (a * self.std**2 + 1 - a).sqrt()

    def forward(self, latent, timestep, condition):
        a = self.alphas[timestep]
        mean, std = self.moments(a)
        noise = (1 - a).sqrt() * (latent - mean) / std**2  # expected, given the noised latent
        if self.scheduler["prediction_type"] == "epsilon":
            return noise
        return (noise - (1 - a).sqrt() * latent) / a.sqrt()

    def end(self, start, first):
        """Where the probability-flow ODE (Song et al. 2021) leads from timestep `first` to the data: standard scores are kept."""
        mean, std = self.moments(self.alphas[first])
        return self.mean + self.std * (start - mean) / std


def distance_from_flow(scheduler, sampler, steps):
    """Root mean square distance of samples of a Gaussian from the end of the probability-flow ODE they started on."""
    model, keys, none = Gaussian(scheduler), [(0, k) for k in range(64)], Conditioning(torch.zeros(64, 1, 1), torch.zeros(64, 1))
    settings = Sampling(sampler=sampler, steps=steps)
    first = build_scheduler(settings, scheduler, torch.device("cpu")).timesteps[0]
    expected = model.end(starting_noise(model.latent_shape, keys), first)
    return (sample(model, none, none, settings, keys) - expected).square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("sampler", "scheduler", "bound"),
    [
        ("dpm-solver++", SCHEDULER, 0.003),
        ("ddim", SCHEDULER, 0.03),
        ("plms", SCHEDULER, 0.03),
        ("dpm-solver++", COMPVIS, 0.025),
        ("ddim", COMPVIS, 0.04),  # of first order, so the farthest
        ("plms", COMPVIS, 0.008),
    ],
)
def test_follows_the_probability_flow(sampler, scheduler, bound):
    near = distance_from_flow(scheduler, sampler, 50)
    assert near < bound and near < 0.5 * distance_from_flow(scheduler, sampler, 15)


@pytest.mark.parametrize("sampler", ["dpm-solver++", "ddim", "plms"])
def test_batches_change_nothing(sampler):
    torch.manual_seed(0)
    network = Diffusion("tiny", UNET, SCHEDULER, (2, 8, 8), None).eval()
    condition, null = Conditioning(torch.randn(5, 3, 8), torch.randn(5, 64)), Conditioning(torch.randn(1, 3, 8), torch.zeros(1, 64))
    settings, keys = Sampling(sampler=sampler, steps=4, guidance=2.0), [(9, k) for k in range(5)]
    whole = sample(network, condition, null, settings, keys)
    parts = [sample(network, Conditioning(*(p[rows] for p in condition)), null, settings, keys[rows]) for rows in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=1e-4)


def test_fmri_changes_the_sample():
    torch.manual_seed(0)
    network = Diffusion("tiny", UNET, SCHEDULER, (2, 8, 8), None).eval()
    null = Conditioning(torch.zeros(1, 3, 8), torch.zeros(1, 64))
    one, other = (sample(network, Conditioning(torch.randn(1, 3, 8), torch.randn(1, 64)), null, Sampling(steps=4), [(0,)]) for _ in range(2))
    assert (one - other).abs().max() > 1e-3


def test_guidance_is_the_linear_extrapolation():
    torch.manual_seed(0)
    network = Diffusion("tiny", UNET, SCHEDULER, (2, 8, 8), None).eval()
    condition, null = Conditioning(torch.randn(1, 3, 8), torch.randn(1, 64)), Conditioning(torch.randn(1, 3, 8), torch.zeros(1, 64))

    class Guided(torch.nn.Module):
        latent_shape, scheduler = network.latent_shape, network.scheduler

        def forward(self, latent, timestep, condition_):
            without = network(latent, timestep, null)
            return without + 3.0 * (network(latent, timestep, condition) - without)

    ours = sample(network, condition, null, Sampling(steps=3, guidance=3.0), [(1,)])
    torch.testing.assert_close(ours, sample(Guided(), condition, null, Sampling(steps=3), [(1,)]), atol=1e-5, rtol=1e-5)


class Exact(torch.nn.Module):
    """Knows the one latent there is, and predicts the noise on it."""

    latent_shape, scheduler = (2, 4, 4), COMPVIS

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target, self.alphas, self.asked = target, alphas_cumprod(COMPVIS), []

    def forward(self, latent, timestep, condition):
        self.asked.append(int(timestep))
        a = self.alphas[timestep]
        return (latent - a.sqrt() * self.target) / (1 - a).sqrt()


@pytest.mark.parametrize("strength", [0.1, 0.2, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("sampler", ["dpm-solver++", "ddim", "plms"])
def test_partial_strength_takes_that_share_of_the_steps_and_keeps_latent_and_noise(sampler, strength):
    """Every step of an exact model leads to its latent with the same noise, down to the noise that a sampler ends with."""
    start, keys = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)), [(0, 0), (0, 1)]
    model, condition = Exact(start), Conditioning(torch.zeros(2, 1, 1), torch.zeros(2, 1))
    latent = sample(model, condition, condition, Sampling(sampler=sampler, steps=10, strength=strength), keys, start)
    assert len(dict.fromkeys(model.asked)) == round(10 * strength)
    assert abs(model.asked[0] - 1000 * strength) <= 100 and model.asked == sorted(model.asked, reverse=True)
    a = torch.tensor(1.0) if sampler == "dpm-solver++" else model.alphas[0]
    torch.testing.assert_close(latent, a.sqrt() * start + (1 - a).sqrt() * starting_noise((2, 4, 4), keys), atol=2e-4, rtol=0)


def test_noise_depends_on_its_own_key_alone():
    a, b = starting_noise((2, 3), [(0, 5), (0, 6)]), starting_noise((2, 3), [(0, 6), (0, 7)])
    assert torch.equal(a[1], b[0]) and not torch.equal(a[0], a[1])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noising_agrees_with_diffusers(kind):
    from diffusers import DDPMScheduler

    config = {**SCHEDULER, "prediction_type": kind}
    reference = DDPMScheduler.from_config(config)
    latent, noise, timestep = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3), torch.tensor([0, 10, 500, 999])
    mixed, target = noised(latent, noise, timestep, alphas_cumprod(config), kind)
    torch.testing.assert_close(mixed, reference.add_noise(latent, noise, timestep))
    torch.testing.assert_close(target, noise if kind == "epsilon" else reference.get_velocity(latent, noise, timestep))
