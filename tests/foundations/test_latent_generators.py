"""The study's own UNet, CompVis's and the hub's behind the protocol of generators: the same pictures as the sampler and autoencoder alone."""

import pytest
import torch

from unimind.errors import InputError
from unimind.foundations.diffusion import Conditioning, Diffusion
from unimind.foundations.generators import load_generator
from unimind.foundations.generators.latent import AutoencoderGenerator, UNetGenerator
from unimind.foundations.generators.samplers import sample
from unimind.foundations.hub import save_unet
from unimind.storage import save_model
from unimind.study import AutoencoderAlone, Sampling

UNET = {
    "sample_size": 4, "in_channels": 3, "out_channels": 3, "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2, "cross_attention_dim": 6, "attention_head_dim": 2,
}  # fmt: skip
SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "prediction_type": "epsilon"}
KEYS = [(1, 5, 0), (1, 5, 1), (1, 9, 0)]


class Doubling:
    """Latents at half the size."""

    name = "doubling"

    def decode(self, latents):
        return latents.repeat_interleave(2, -1).repeat_interleave(2, -2).sigmoid()


@pytest.fixture
def own():
    torch.manual_seed(0)
    conditioner = {"dim": 5, "context_dim": 6, "tokens": 2, "time_dim": 32}
    return Diffusion("own", UNET, SCHEDULE, (3, 4, 4), conditioner).eval().requires_grad_(False)


@pytest.mark.parametrize("sampling", [Sampling(steps=4, guidance=1.5), Sampling(steps=6, sampler="plms", strength=0.5), Sampling(strength=0.0)])
@pytest.mark.parametrize("staged", [False, True], ids=["embedding", "condition stage"])
def test_a_unet_draws_what_the_sampler_and_the_autoencoder_make(own, sampling, staged):
    start, embedding = torch.randn(3, 3, 4, 4), torch.randn(3, 5)
    if staged:
        condition, null = Conditioning(torch.randn(3, 4, 6), torch.randn(3, 32)), Conditioning(torch.randn(1, 4, 6), torch.randn(1, 32))
        generator, inputs = UNetGenerator(own, Doubling()), condition._asdict()
        generator.take_condition({}, null)
    else:
        condition, null = own.conditioner(torch.nn.functional.normalize(embedding, dim=1)), own.null()
        generator, inputs = UNetGenerator(own, Doubling()), {"embedding": embedding}
    assert {name: tuple(value.shape[1:]) for name, value in inputs.items()} == generator.takes and not generator.raw
    for given in (None, start) if sampling.strength else (start,):
        expected = Doubling().decode(sample(own, condition, null, sampling, KEYS, given))
        drawn = generator.draw(inputs, KEYS, sampling, given)
        assert drawn.shape == (3, 3, 8, 8)
        torch.testing.assert_close(drawn, expected)
        row = {name: value[2:] for name, value in inputs.items()}
        torch.testing.assert_close(
            generator.draw(row, KEYS[2:], sampling, None if given is None else given[2:]), drawn[2:], rtol=0, atol=1e-4
        )  # a random network multiplies rounding errors


def test_without_inputs_the_null_condition_draws_and_others_are_refused(own, tmp_path):
    generator, sampling = UNetGenerator(own, Doubling()), Sampling(steps=3, guidance=5.0)
    latents = sample(own, own.null().expand(3), own.null(), sampling.model_copy(update={"guidance": 1.0}), KEYS)
    torch.testing.assert_close(generator.draw(None, KEYS, sampling), Doubling().decode(latents))
    with pytest.raises(InputError, match=r"own takes embedding \(3, 5\); embedding \(3, 4\) given: choose foundations.embedding and foundations.diffusion"):
        generator.draw({"embedding": torch.zeros(3, 4)}, KEYS, sampling)
    save_unet(tmp_path, "hub", "hub's", own.unet, SCHEDULE, {})
    bare = load_generator(tmp_path, Doubling(), 8)
    with pytest.raises(InputError, match="hub's: takes no image embedding; give the method a `condition:`"):
        bare.draw({}, KEYS, sampling)
    assert bare.takes == {} and bare.protocol(sampling)["guidance"] == 5.0


def test_the_autoencoder_alone_decodes_the_start(tmp_path):
    save_model(tmp_path, {}, {"kind": "autoencoder", "role": "diffusion", "name": "none"})
    generator = load_generator(tmp_path, Doubling(), 8)
    assert isinstance(generator, AutoencoderGenerator) and AutoencoderAlone(kind="autoencoder").kind == "autoencoder"
    latents = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(generator.draw(None, KEYS, Sampling(strength=0.0), latents), Doubling().decode(latents))
    with pytest.raises(InputError, match="doubling alone: draws predicted latents only"):
        generator.draw(None, KEYS, Sampling(strength=0.0))
