"""What other systems are made of, each against a computation of its own."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional

from unimind.errors import InputError
from unimind.models.bodies import build_body
from unimind.models.encoder import build_enter
from unimind.models.enter import module_name
from unimind.models.ridge import fit_ridge, rescaled
from unimind.models.space import PictureSpace
from unimind.training.objectives.cycle import Cycle, Reconstruction


def residual(block, channels=1, size=12, depth=3):
    torch.manual_seed(0)
    body = build_body({"kind": "residual", "block": block, "depth": depth, "dropout": 0.5}, channels, size).eval()
    for parameter in body.parameters():
        torch.nn.init.normal_(parameter)
    return body


@pytest.mark.parametrize("block", ["mlp", "linear"])
def test_residual_blocks_are_what_numpy_makes_of_their_weights(block):
    body, signal = residual(block, 2, 6), torch.randn(5, 2, 6)
    tokens, pooled = body(signal)
    x = signal.flatten(1).double().numpy()

    def norm(values, layer):
        gain, shift = (part.detach().double().numpy() for part in (layer.weight, layer.bias))
        return (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-5) * gain + shift

    def linear(values, layer):
        return values @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()

    def gelu(values):
        return functional.gelu(torch.from_numpy(values)).numpy()

    for own in body.within:
        if block == "mlp":
            x = x + linear(gelu(linear(norm(x, own[0]), own[1])), own[4])
        else:
            x = x + gelu(norm(linear(x, own[0]), own[1]))
    np.testing.assert_allclose(pooled.detach(), x, rtol=1e-4, atol=1e-4)
    assert torch.equal(tokens.flatten(1)[:, :12], pooled) and tokens.shape == (5, 8, 2)


def test_mindeye2_s_shared_blocks_as_published_are_the_identity_plus_a_constant():
    """With one token nothing of what the blocks over its values compute arrives, and none of their parameters gets a gradient; as described they do."""
    signal = (torch.randn(20, 1, 12) * torch.logspace(-1, 1, 20)[:, None, None]).double()
    for block, linear in (("mixer", True), ("mlp", False)):
        body = residual(block).double()
        _, pooled = body(signal)
        added = pooled - signal[:, 0]
        assert (added.std(0).max() < 1e-12) == linear and added.abs().max() > 0.1
        (pooled * torch.randn(20, 12).double()).sum().backward()
        largest = max(float(parameter.grad.abs().max()) for parameter in body.within.parameters())
        assert largest < 1e-9 if linear else largest > 1e-2


def embedders(counts, dropout=0.0):
    torch.manual_seed(1)
    return build_enter(
        {"kind": "embedder", "size": 6, "pooled": 8, "bottleneck": 3, "dropout": dropout}, counts, PictureSpace(2, (1, 1, 1), {"embedding": 1, "latent": 1})
    )


def by_hand(enter, name, pooled):
    bottleneck, last, norm, *_ = enter.maps[module_name(name)]
    hidden = (pooled @ bottleneck.down.weight.T + bottleneck.down.bias).clamp_min(0)
    x = (pooled + hidden @ bottleneck.up.weight.T + bottleneck.up.bias) @ last.weight.T + last.bias
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    return functional.gelu(x * norm.weight + norm.bias)


def test_an_embedder_pools_and_each_subject_has_its_own():
    enter, responses = embedders({"a.1": 24, "b": 16}), torch.randn(4, 1, 24)
    torch.testing.assert_close(enter.pool(responses), responses.view(4, 1, 8, 3).amax(-1))
    torch.testing.assert_close(enter(responses, "a.1"), by_hand(enter, "a.1", responses.view(4, 1, 8, 3).amax(-1)))
    own = {name for name, _ in enter.named_parameters()}
    assert {*enter.names("a.1"), *enter.names("b")} == own and not set(enter.names("a.1")) & set(enter.names("b"))
    with pytest.raises(InputError, match="b: 24 voxels given, the model was trained with 16"):
        enter(responses, "b")
    with pytest.raises(InputError, match="c: this model has no embedder for that subject"):
        enter(responses, "c")


def test_what_is_built_back_is_compared_row_by_row():
    counts = {"a": 24, "b": 16}
    enter = embedders(counts)
    builders = {name: enter.builder() for name in counts}
    subjects, others = ["a", "b", "a"], ["b", "a", "b"]
    responses = [torch.randn(1, counts[name]) for name in subjects]
    signal = torch.stack([enter(row[None], name)[0] for row, name in zip(responses, subjects, strict=True)])

    def built(row, name):
        first, bottleneck = builders[name]
        x = row @ first.weight.T + first.bias
        return x + (x @ bottleneck.down.weight.T + bottleneck.down.bias).clamp_min(0) @ bottleneck.up.weight.T + bottleneck.up.bias

    pooled = [functional.adaptive_max_pool1d(row, 8) for row in responses]
    expected = torch.stack([(built(own, name) - want).square().mean() for own, name, want in zip(signal, subjects, pooled, strict=True)]).mean()
    torch.testing.assert_close(Reconstruction()(enter, builders, signal, responses, subjects), expected)
    round_trip = [by_hand(enter, name, built(own, name)) for own, name in zip(signal, others, strict=True)]
    expected = torch.stack([(found - own).square().mean() for found, own in zip(round_trip, signal, strict=True)]).mean()
    torch.testing.assert_close(Cycle()(enter, builders, signal, others), expected)


def test_rescaled_predictions_vary_as_the_targets_do_in_every_dimension():
    """Ridge of one penalty by scikit-learn, every dimension stretched to its target's deviation: the same, where the space holds all of a target."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(60, 9)).astype(np.float32)
    mixed = inputs @ random.normal(size=(9, 12)) + random.normal(size=(60, 12))
    embedding, latent = mixed[:, :4].astype(np.float32) + 2, mixed[:, 4:].astype(np.float32).reshape(60, 2, 2, 2)
    space = PictureSpace.fit(embedding, latent)
    coordinates = space.coordinates(torch.from_numpy(embedding), torch.from_numpy(latent)).numpy()
    found = rescaled(fit_ridge(inputs, coordinates, [1e3], 2), inputs, coordinates, space)
    predicted = torch.from_numpy(inputs @ found.weight + found.bias)
    for name, target in (("embedding", embedding), ("latent", latent.reshape(60, -1))):
        ours = space.target(name, space.part(predicted, name)).flatten(1).numpy()
        plain = Ridge(alpha=1e3).fit(inputs, target).predict(inputs)
        expected = (plain - plain.mean(0)) / plain.std(0) * target.std(0) + target.mean(0)
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)
    alone = PictureSpace.fit(embedding)  # a study without pictures has no latent
    own = space.part(torch.from_numpy(coordinates), "embedding").numpy()
    without = rescaled(fit_ridge(inputs, own, [1e3], 2), inputs, own, alone)
    np.testing.assert_allclose(without.weight, found.weight[:, : own.shape[1]], rtol=1e-3, atol=1e-5)
