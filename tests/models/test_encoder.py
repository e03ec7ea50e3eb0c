"""Encoders: one interface, any length in, nothing shared between subjects but what is said to be."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from unimind import study
from unimind.errors import InputError
from unimind.models.encoder import TRUNKS, FmriEncoder, bring_to, interpolate, load_encoder
from unimind.models.ridge import RidgeModel, solve
from unimind.models.vit import sine_positions
from unimind.storage import save_model
from unimind.training.objectives.masked import MaskedModelling, draw_masks

ENCODERS = {
    "convmixer": study.ConvMixer(kind="convmixer", width=16, depth=2, patch=4, kernel=3).model_dump(),
    "vit": study.ViT(kind="vit", width=16, depth=2, heads=2, patch=4, decoder_width=8, decoder_depth=1).model_dump(),
}
SUBJECTS = {"nsd-subj.01": 50, "nsd-items": 37}


def build(kind, length="adapter", repeats=1, dim=6):
    torch.manual_seed(0)
    return FmriEncoder(SUBJECTS, study.Voxels(length=length, size=32).model_dump(), ENCODERS[kind], dim, repeats).eval()


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("length", ["adapter", "wrap", "interpolate", "max_pool"])
@pytest.mark.parametrize("repeats", [1, 3])
def test_any_length_gives_tokens_and_a_pooled_embedding(kind, length, repeats):
    encoder = build(kind, length, repeats)
    subjects = [*SUBJECTS, *reversed(SUBJECTS)]
    responses = [torch.randn(repeats, SUBJECTS[name]) for name in subjects]
    tokens, pooled = encoder(responses, subjects)
    assert tokens.shape == (4, encoder.trunk.n_tokens, 16) and pooled.shape == (4, 16)
    for row, (own, name) in enumerate(zip(responses, subjects, strict=True)):  # each row by its own subject's way in
        torch.testing.assert_close(pooled[row : row + 1], encoder(own[None], name).pooled)
    assert encoder.embed(pooled, normalise=True).norm(dim=1).tolist() == pytest.approx([1] * 4, rel=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_sample_does_not_depend_on_its_batch(kind):
    encoder = build(kind).train()
    encoder.dropout.p = 0.0
    responses = torch.randn(5, 1, 50)
    together, alone = encoder(responses, "nsd-subj.01"), encoder(responses[2:3], "nsd-subj.01")
    torch.testing.assert_close(together.pooled[2:3], alone.pooled)


def test_wrap_repeats_max_pool_and_interpolate_as_numpy_does():
    x = torch.randn(1, 1, 20)
    np.testing.assert_array_equal(bring_to(x, 32, "wrap")[0, 0], np.resize(x[0, 0].numpy(), 32))
    np.testing.assert_allclose(interpolate(x, 32)[0, 0], np.interp(np.linspace(0, 19, 32), np.arange(20), x[0, 0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(bring_to(x, 10, "max_pool")[0, 0], x[0, 0].view(10, 2).max(1).values)


def test_an_adapter_starts_as_interpolation():
    encoder, x = build("convmixer"), torch.randn(3, 1, 50)
    torch.testing.assert_close(encoder.enter(x, "nsd-subj.01"), interpolate(x, 32))


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_linear_path_can_start_at_any_decoder(repeats):
    encoder = build("vit", repeats=repeats)
    encoder.start_linear_path(torch.randn(40, 6) * 2 + 1)
    weight, bias, x = torch.randn(50, 6), torch.randn(6), torch.randn(4, 1, 50)
    encoder.start_adapter("nsd-subj.01", weight, bias)
    predicted = encoder.embed(encoder(x.expand(-1, repeats, -1), "nsd-subj.01").pooled)
    torch.testing.assert_close(predicted, encoder.head.mean + encoder.head.scale * (x[:, 0] @ weight + bias), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("subject", "count", "words"), [("nsd-subj05", 50, "no adapter"), ("nsd-items", 40, "40 voxels given, the model was trained with 37")])
def test_a_stranger_is_refused_in_words(subject, count, words):
    with pytest.raises(InputError, match=words):
        build("convmixer")(torch.randn(1, 1, count), subject)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_comes_back_from_disk(kind, tmp_path):
    encoder = build(kind)
    save_model(tmp_path, {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}, {"encoder": encoder.arguments})
    again, _ = load_encoder(tmp_path)
    x = torch.randn(2, 1, 37)
    assert torch.equal(again(x, "nsd-items").pooled, encoder(x, "nsd-items").pooled)


@pytest.mark.parametrize("kind", ENCODERS)
def test_recomputed_activations_change_no_gradient_and_are_not_stored(kind):
    """The bare trunk with its decoder, as pretraining has it."""
    signal = torch.randn(4, 1, 32, generator=torch.Generator().manual_seed(0))
    mask = draw_masks(4, 8, 0.5, torch.Generator().manual_seed(0))
    losses, gradients, stored = [], [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        settings = {key: value for key, value in ENCODERS[kind].items() if key != "kind"}
        trunk = TRUNKS[kind](1, 32, decoder=True, **settings).train()
        if recompute:
            trunk.enable_gradient_checkpointing()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, kept=kept: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
            loss = MaskedModelling()(trunk, signal, mask)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: parameter.grad for name, parameter in trunk.named_parameters()})
        stored.append(sum(kept))
    assert losses[0] == losses[1]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert stored[1] < stored[0] / 2


def test_positions_are_sines_and_cosines():
    positions = sine_positions(5, 4)
    np.testing.assert_allclose(positions[3], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)], rtol=1e-5)


@pytest.mark.parametrize("n_voxels", [12, 90])
def test_ridge_is_sklearns(n_voxels):
    """Both forms: fewer voxels than pictures, and more."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, n_voxels))
    x -= x.mean(0)
    y = x[:, :5] @ random.normal(size=(5, 4)) + random.normal(size=(60, 4)) * [0.1, 1, 5, 20]
    alphas = [0.1, 10.0, 1000.0]
    weight, bias = solve(x, y, alphas, 5)
    for target in range(4):
        cv = KFold(5, shuffle=True, random_state=0)
        own = RidgeCV(alphas, cv=cv, fit_intercept=False, scoring="neg_mean_squared_error").fit(x, y[:, target] - y[:, target].mean())
        np.testing.assert_allclose(weight[:, target], own.coef_, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(bias, y.mean(0), rtol=1e-5)


def test_ridge_model_comes_back_from_its_state():
    random = np.random.default_rng(0)
    x = random.normal(size=(30, 8)).astype(np.float32) + 2
    model = RidgeModel.fit(x, random.normal(size=(30, 5)), random.normal(size=(30, 2, 2)), [1.0, 10.0], 3)
    again = RidgeModel.from_state(model.state())
    for one, other in zip(model.predict(x), again.predict(x), strict=True):
        np.testing.assert_array_equal(one, other)
    assert model.predict(x)[1].shape == (30, 4)
