"""Samplers against closed forms and against themselves."""

import pytest
import torch

from unimind.foundations.diffusion import Condition, Diffusion, alphas_cumprod, noised
from unimind.reconstruction.samplers import sample, starting_noise
from unimind.study import Sampling

UNET = {
    "sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": [16, 16], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2, "cross_attention_dim": 8,
    "attention_head_dim": 4, "norm_num_groups": 8,
}  # fmt: skip
SCHEDULER = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


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
    condition = Condition(torch.zeros(3, 1, 1), torch.zeros(3, 1))
    latent = sample(Ideal(target), condition, condition, Sampling(sampler=sampler, steps=30), [(0, k) for k in range(3)])
    assert (latent - target).abs().max() < 0.05


@pytest.mark.parametrize("sampler", ["dpm-solver++", "ddim", "plms"])
def test_batches_change_nothing(sampler):
    torch.manual_seed(0)
    network = Diffusion("tiny", UNET, SCHEDULER, (2, 8, 8), None).eval()
    condition, null = Condition(torch.randn(5, 3, 8), torch.randn(5, 64)), Condition(torch.randn(1, 3, 8), torch.zeros(1, 64))
    settings, keys = Sampling(sampler=sampler, steps=4, guidance=2.0), [(9, k) for k in range(5)]
    whole = sample(network, condition, null, settings, keys)
    parts = [sample(network, Condition(*(p[rows] for p in condition)), null, settings, keys[rows]) for rows in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=1e-4)


def test_fmri_changes_the_sample():
    torch.manual_seed(0)
    network = Diffusion("tiny", UNET, SCHEDULER, (2, 8, 8), None).eval()
    null = Condition(torch.zeros(1, 3, 8), torch.zeros(1, 64))
    one, other = (sample(network, Condition(torch.randn(1, 3, 8), torch.randn(1, 64)), null, Sampling(steps=4), [(0,)]) for _ in range(2))
    assert (one - other).abs().max() > 1e-3


def test_guidance_is_the_linear_extrapolation():
    torch.manual_seed(0)
    network = Diffusion("tiny", UNET, SCHEDULER, (2, 8, 8), None).eval()
    condition, null = Condition(torch.randn(1, 3, 8), torch.randn(1, 64)), Condition(torch.randn(1, 3, 8), torch.zeros(1, 64))

    class Guided(torch.nn.Module):
        latent_shape, scheduler = network.latent_shape, network.scheduler

        def forward(self, latent, timestep, condition_):
            without = network(latent, timestep, null)
            return without + 3.0 * (network(latent, timestep, condition) - without)

    ours = sample(network, condition, null, Sampling(steps=3, guidance=3.0), [(1,)])
    torch.testing.assert_close(ours, sample(Guided(), condition, null, Sampling(steps=3), [(1,)]), atol=1e-5, rtol=1e-5)


def test_partial_strength_stays_near_its_start():
    target, start = torch.zeros(1, 2, 4, 4), torch.full((1, 2, 4, 4), 2.0)

    class Nothing(Ideal):
        def forward(self, latent, timestep, condition):
            """Velocity of a model that believes in the noised start."""
            a = self.alphas[timestep]
            noise = (latent - a.sqrt() * start) / (1 - a).sqrt()
            return a.sqrt() * noise - (1 - a).sqrt() * start

    condition = Condition(torch.zeros(1, 1, 1), torch.zeros(1, 1))
    latent = sample(Nothing(target), condition, condition, Sampling(steps=20, strength=0.5), [(0,)], start)
    assert (latent - start).abs().max() < 0.05


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
