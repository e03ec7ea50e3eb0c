"""The double conditioning: rank, both paths, what is frozen."""

import pytest
import torch

from unimind.foundations.diffusion import Conditioning, Diffusion, EmbeddingConditioner, adaptable_names
from unimind.models.condition import ConditionStage

UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 32], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2, "cross_attention_dim": 16,
    "attention_head_dim": 4, "norm_num_groups": 8,
}  # fmt: skip


@pytest.fixture
def diffusion() -> Diffusion:
    torch.manual_seed(0)
    return Diffusion("tiny", UNET, {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}, (4, 8, 8), None).eval()


def stage(**given) -> ConditionStage:
    torch.manual_seed(1)
    return ConditionStage(width=24, length=6, pooled=20, context_dim=16, tokens=5, time_dim=128, **given)


def fmri(n: int, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, 24, generator=generator), torch.randn(n, 20, generator=generator)


def test_condition_is_no_function_of_a_few_scalars():
    context, time = stage()(*fmri(64))
    for part in (context.flatten(1), time):
        centred = part - part.mean(0)
        values = torch.linalg.svdvals(centred)
        assert (values > 1e-3 * values[0]).sum() > 16


def test_both_paths_reach_the_unet_and_can_be_switched_off(diffusion):
    latent, timestep = torch.randn(3, 4, 8, 8), torch.tensor([10, 500, 900])
    here, there = fmri(3, seed=3), fmri(3, seed=4)

    def changes(**switches) -> float:
        condition = stage(**switches)
        with torch.no_grad():
            return (diffusion(latent, timestep, condition(*here)) - diffusion(latent, timestep, condition(*there))).abs().max().item()

    assert changes(cross_attention=True, time=False) > 1e-5
    assert changes(cross_attention=False, time=True) > 1e-5
    assert changes(cross_attention=False, time=False) == 0


def test_time_condition_is_added_to_the_time_embedding(diffusion):
    """The UNet's output must equal that of a plain UNet whose time embedding is shifted by the vector."""
    from diffusers import UNet2DConditionModel

    plain = UNet2DConditionModel.from_config(UNET).eval()
    plain.load_state_dict(diffusion.unet.state_dict())
    latent, timestep, context, vector = torch.randn(2, 4, 8, 8), torch.tensor([5, 700]), torch.randn(2, 5, 16), torch.randn(2, 128)
    plain.time_embedding.register_forward_hook(lambda module, given, output: output + vector)
    with torch.no_grad():
        expected = plain(latent, timestep, context).sample
        torch.testing.assert_close(diffusion(latent, timestep, Conditioning(context, vector)), expected)


def test_only_cross_attention_and_its_norms_are_adaptable(diffusion):
    names = adaptable_names(diffusion.unet)
    assert names and all(".attn2." in name or ".norm2." in name for name in names)
    assert not any("resnets" in name for name in names)
    assert sum(".attn2.to_k.weight" in name for name in names) == sum(type(m).__name__ == "BasicTransformerBlock" for m in diffusion.unet.modules())


def test_starts_as_the_foundation_where_it_takes_embeddings():
    torch.manual_seed(5)
    conditioner = EmbeddingConditioner(dim=7, context_dim=16, tokens=3, time_dim=128)
    condition = stage(conditioner=conditioner.arguments)
    condition.start_from(conditioner)
    embedding = torch.randn(4, 7)
    with torch.no_grad():
        for own, foundation in zip(condition(*fmri(4), embedding), conditioner(embedding), strict=True):
            torch.testing.assert_close(own, foundation)
    loss = sum(part.square().sum() for part in condition(*fmri(4), embedding))
    loss.backward()
    assert condition.mix.weight.grad.abs().sum() > 0 and condition.to_time[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("embedding", [False, True])
def test_the_subject_token_is_one_token_more(embedding):
    """It differs where the pooled embedding does and starts at zero beside a foundation's own condition, whose null condition stays."""
    conditioner = EmbeddingConditioner(dim=7, context_dim=16, tokens=3, time_dim=128)
    without, condition = (stage(conditioner=conditioner.arguments if embedding else None, subjects=count) for count in (0, 4))
    given = (*fmri(6), *([torch.randn(6, 7)] if embedding else []))
    if embedding:
        condition.start_from(conditioner)
        assert torch.equal(condition.null_context[:, :3], conditioner.null_context)
    context = condition(*given).context
    assert context.shape[1] == without(*given).context.shape[1] + 1 == condition.null().context.shape[1]
    token = context[:, -1]
    assert (token == 0).all() if embedding else torch.linalg.matrix_rank(token - token.mean(0)) > 3
    token.sum().backward()
    assert condition.to_subject.weight.grad.abs().sum() > 0


def test_null_condition_replaces_dropped_rows():
    condition = stage()
    full = condition(*fmri(4))
    kept = torch.tensor([True, False, True, False])
    mixed = full.keep(kept, condition.null())
    torch.testing.assert_close(mixed.context[kept], full.context[kept])
    torch.testing.assert_close(mixed.context[~kept], condition.null_context.expand(2, -1, -1))
    assert mixed.time[~kept].abs().max() == 0
