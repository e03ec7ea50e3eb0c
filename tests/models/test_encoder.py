"""Enter, body, heads: any length in, nothing around the body, nothing shared between subjects but what is said to be."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from unimind import study
from unimind.errors import InputError
from unimind.models.bodies import TRUNKS
from unimind.models.encoder import Encoder, load_encoder
from unimind.models.enter import Context, Signals, bring_to, interpolate
from unimind.models.prior import LinearMap
from unimind.models.ridge import fit_ridge
from unimind.models.space import PictureSpace
from unimind.models.vit import sine_positions
from unimind.storage import save_model
from unimind.training.align import Aligned
from unimind.training.alignment import AlignmentLosses
from unimind.training.objectives.masked import MaskedModelling, draw_masks

BODIES = {
    "mlp": study.Mlp(kind="mlp", width=16, depth=1).model_dump(),
    "convmixer": study.ConvMixer(kind="convmixer", width=16, depth=2, patch=4, kernel=3).model_dump(),
    "vit": study.ViT(kind="vit", width=16, depth=2, heads=2, patch=4, decoder_width=8, decoder_depth=1).model_dump(),
}
PARAMETRIC, CLOSED = ("interpolate", "wrap", "max-pool", "adapter"), ("ridge", "decoded")
SUBJECTS = {"nsd-subj.01": 50, "nsd-items": 37}
TARGETS = ("embedding", "latent")


def picture_space():
    random = np.random.default_rng(0)
    return PictureSpace.fit(random.normal(size=(40, 6)).astype(np.float32) + 1, random.normal(size=(40, 2, 2, 2)).astype(np.float32))


def build(body, enter="adapter", repeats=1, head=False, **settings):
    torch.manual_seed(0)
    own = {"kind": enter} | ({} if enter in CLOSED else {"size": 32, "dropout": 0.0} | settings)
    encoder = Encoder(own, BODIES.get(body, {"kind": body}), picture_space(), TARGETS, SUBJECTS if enter == "adapter" else {}, repeats, head)
    if enter in CLOSED:
        for name, count in SUBJECTS.items():
            found = LinearMap(torch.randn(count, encoder.space.size).numpy(), torch.randn(encoder.space.size).numpy())
            encoder.take_map(name, found, Context.of(torch.randn(60, encoder.space.size).numpy() + 1, encoder.space))
    return encoder.eval()


def moved(encoder):
    """The encoder with heads that predict something."""
    for head in encoder.heads.values():
        torch.nn.init.normal_(head.weight, std=0.3)
    return encoder


def predicted(encoder, responses, subject, cut=False):
    with torch.no_grad():
        return torch.cat([encoder(responses, subject, cut).coordinates[name] for name in TARGETS], 1)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("enter", PARAMETRIC)
def test_without_a_closed_form_the_prediction_is_the_body_s_alone(body, enter):
    """The pooled embedding is the mean of the tokens, or the hidden layer; with a body of zeros every response gets one prediction."""
    encoder, responses = moved(build(body, enter)), torch.randn(5, 1, 50)
    tokens, pooled, *_ = encoder(responses, "nsd-subj.01")
    torch.testing.assert_close(pooled, tokens.flatten(1) if body == "mlp" else tokens.mean(1))
    apart = predicted(encoder, responses, "nsd-subj.01")
    assert apart.std(0).min() > 1e-4
    for parameter in encoder.body.parameters():
        torch.nn.init.zeros_(parameter)
    constant = predicted(encoder, responses, "nsd-subj.01")
    assert torch.equal(constant, constant[:1].expand(5, -1))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("enter", [*PARAMETRIC, *CLOSED])
def test_cut_leaves_the_closed_form_and_a_constant(body, enter):
    """The body's mean over the training pictures in its place: what the closed form says, plus the same for all."""
    encoder = moved(build(body, enter))
    responses = torch.randn(5, 1, 50)
    signals = encoder.enter(responses, "nsd-subj.01")
    encoder.remember_body([encoder.enter(torch.randn(n, 1, 50), "nsd-subj.01") for n in (7, 3)])
    given = Signals.of(signals, encoder.space.size).coordinates if encoder.closed else torch.zeros(5, encoder.space.size)
    rest = predicted(encoder, responses, "nsd-subj.01", cut=True) - given
    torch.testing.assert_close(rest, rest[:1].expand(5, -1), atol=1e-4, rtol=1e-4)
    assert (predicted(encoder, responses, "nsd-subj.01") - given).std(0).max() > 1e-2 and rest.abs().max() > 1e-3


def test_the_mean_of_a_body_is_that_of_its_output_over_all_pictures():
    encoder, signals = build("vit"), torch.randn(10, 1, 32)
    encoder.remember_body(signals.split(4))
    tokens, pooled = encoder.body(signals)
    torch.testing.assert_close(encoder.mean_tokens, tokens.mean(0))
    torch.testing.assert_close(encoder.mean_pooled, pooled.mean(0))


@pytest.mark.parametrize("body", ["identity", *BODIES])
def test_a_closed_form_starts_as_itself(body):
    """Heads start at zero, so the prediction is the linear map's; the number of pictures it was fitted to enters as ln(n) / 7."""
    encoder, responses = build(body, "decoded"), torch.randn(4, 3, 50)
    weight, bias = encoder.enter.get_buffer("subject-nsd-subj,01_weight"), encoder.enter.get_buffer("subject-nsd-subj,01_bias")
    expected = responses.mean(1) @ weight + bias
    assert torch.equal(predicted(encoder, responses, "nsd-subj.01"), expected)
    torch.testing.assert_close(encoder.enter(responses, "nsd-subj.01")[:, 0, -1], torch.full((4,), np.log(60) / 7))
    output = encoder(responses, "nsd-subj.01")
    torch.testing.assert_close(encoder.predict(output, "latent"), encoder.space.target("latent", encoder.space.part(expected, "latent")))
    assert encoder.predict(output, "latent").shape == (4, 2, 2, 2) and encoder.predict(output, "embedding").shape == (4, 6)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("enter", "repeats"), [("adapter", 1), ("interpolate", 3), ("decoded", 1)])
def test_each_row_enters_by_its_own_subject_s_way_whatever_the_batch(body, enter, repeats):
    encoder = moved(build(body, enter, repeats))
    subjects = [*SUBJECTS, *reversed(SUBJECTS)]
    responses = [torch.randn(repeats, SUBJECTS[name]) for name in subjects]
    together = encoder(responses, subjects)
    for row, (own, name) in enumerate(zip(responses, subjects, strict=True)):
        alone = encoder(own[None], name)
        torch.testing.assert_close(together.pooled[row : row + 1], alone.pooled)
        torch.testing.assert_close(together.coordinates["latent"][row : row + 1], alone.coordinates["latent"])
    signals = encoder.enter_rows(responses, subjects)
    torch.testing.assert_close(encoder(signals, None).pooled, together.pooled)


def test_a_body_sees_predictions_about_its_subject_s_pictures():
    """In units of their spread about their mean, both drawn towards the training pictures' where pictures are few; corrections come in these units, too."""
    encoder = build("mlp", "ridge")
    pictures, spread = torch.randn(25, encoder.space.size).double().numpy() * np.linspace(0.1, 3, encoder.space.size) + 5, encoder.space.spread.numpy()
    context = Context.of(pictures, encoder.space)
    np.testing.assert_allclose(context.mean, pictures.sum(0) / 35, rtol=1e-5)
    np.testing.assert_allclose(context.spread**2, (25 * pictures.var(0) + 100 * spread**2) / 125, rtol=1e-5)
    own, usual = (part @ encoder.space.embedding_axes.numpy().T for part in (pictures[:, :6], np.diag(spread[:6])))
    share = own.var(0) / (usual**2).sum(0)
    np.testing.assert_allclose(context.variety, np.minimum(1, (25 * share + 100) / 125), rtol=1e-4)
    assert context.variety.min() < 0.95
    seen = []
    encoder.body.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    signals = encoder.enter(torch.randn(4, 1, 50), "nsd-subj.01")
    own = encoder.enter.taken("nsd-subj.01")[1]
    before = encoder(signals, None)
    z = torch.cat([before.coordinates[name] for name in TARGETS], 1)
    torch.testing.assert_close(seen[0][:, 0, :-1], (z - torch.from_numpy(own.mean)) / torch.from_numpy(own.spread))
    torch.testing.assert_close(before.centre, torch.from_numpy(own.mean).expand_as(before.centre))
    for head in encoder.heads.values():
        torch.nn.init.ones_(head.bias)
    after = encoder(signals, None)
    added = torch.cat([after.coordinates[name] - before.coordinates[name] for name in TARGETS], 1)
    axes, count = encoder.space.embedding_axes.numpy(), encoder.space.components["embedding"]
    expected = own.spread.copy()
    expected[:count] = axes.T @ (own.variety * (axes @ own.spread[:count]))
    torch.testing.assert_close(added, torch.from_numpy(expected).expand_as(added), rtol=1e-4, atol=1e-5)
    assert np.abs(expected - own.spread).max() > 1e-3


@pytest.mark.parametrize("enter", ["adapter", "decoded"])
def test_what_is_drawn_from_and_what_pictures_are_told_apart_by_are_learned_apart(enter):
    """SoftCLIP alone reaches the retrieval head, and nothing else does; without one both are the same prediction."""
    plain, encoder = (build("mlp", enter, head=head) for head in (False, True))
    responses = torch.randn(5, 1, 50)
    output = plain(responses, "nsd-subj.01")
    assert output.retrieval is output.coordinates["embedding"]
    for weights, reached in (({"embedding": 1.0}, "heads.embedding.bias"), ({"embedding": 0.0, "softclip": 1.0}, "retrieval_head.bias")):
        losses = study.Losses(**({"siamese": 0.0, "latent": 0.0} | weights))
        seen = {"responses": list(encoder.enter(responses, "nsd-subj.01")) if enter == "decoded" else list(responses), "subject": ["nsd-subj.01"] * 5}
        pictures = torch.randn(5, encoder.space.size)
        batch = seen | {"coordinates": pictures, "partner": pictures, "weight": torch.ones(5, 1)}
        encoder.zero_grad()
        sum(AlignmentLosses(losses, 1.0, 0.1, [])(Aligned(encoder, [], losses), batch).values()).backward()
        moved_by = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None and parameter.grad.abs().max() > 0}
        assert {name for name in moved_by if "head" in name and name.endswith("bias")} == {reached}


def test_wrap_repeats_max_pool_and_interpolate_as_numpy_does():
    x = torch.randn(1, 1, 20)
    np.testing.assert_array_equal(bring_to(x, 32, "wrap")[0, 0], np.resize(x[0, 0].numpy(), 32))
    np.testing.assert_allclose(interpolate(x, 32)[0, 0], np.interp(np.linspace(0, 19, 32), np.arange(20), x[0, 0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(bring_to(x, 10, "max-pool")[0, 0], x[0, 0].view(10, 2).max(1).values)


def test_an_adapter_starts_as_interpolation():
    encoder, x = build("convmixer"), torch.randn(3, 1, 50)
    torch.testing.assert_close(encoder.enter(x, "nsd-subj.01"), interpolate(x, 32))


@pytest.mark.parametrize(
    ("enter", "subject", "count", "words"),
    [
        ("adapter", "nsd-subj05", 50, "no adapter"),
        ("adapter", "nsd-items", 40, "40 voxels given, the model was trained with 37"),
        ("decoded", "nsd-subj05", 50, "run the stage `enter`"),
        ("ridge", "nsd-items", 40, "40 voxels given, the model was trained with 37"),
    ],
)
def test_a_stranger_is_refused_in_words(enter, subject, count, words):
    with pytest.raises(InputError, match=words):
        build("convmixer", enter)(torch.randn(1, 1, count), subject)


@pytest.mark.parametrize("kind", TRUNKS)
def test_recomputed_activations_change_no_gradient_and_are_not_stored(kind):
    """The bare trunk with its decoder, as pretraining has it."""
    signal = torch.randn(4, 1, 32, generator=torch.Generator().manual_seed(0))
    mask = draw_masks(4, 8, 0.5, torch.Generator().manual_seed(0))
    losses, gradients, stored = [], [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        settings = {key: value for key, value in BODIES[kind].items() if key != "kind"}
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
    """Both forms: fewer voxels than pictures, and more; a penalty for every target."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, n_voxels)) + 3
    y = x[:, :5] @ random.normal(size=(5, 4)) + random.normal(size=(60, 4)) * [0.1, 1, 5, 20]
    alphas = [0.1, 10.0, 1000.0]
    weight, bias = fit_ridge(x.astype(np.float32), y.astype(np.float32), alphas, 5)
    centred = x - x.mean(0)
    for target in range(4):
        cv = KFold(5, shuffle=True, random_state=0)
        own = RidgeCV(alphas, cv=cv, fit_intercept=False, scoring="neg_mean_squared_error").fit(centred, y[:, target] - y[:, target].mean())
        np.testing.assert_allclose(weight[:, target], own.coef_, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(x.mean(0) @ weight + bias, y.mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("enter", ["adapter", "decoded"])
def test_an_encoder_comes_back_from_disk(enter, tmp_path):
    """With what has no length before: closed forms, the body's means, the training subjects' signal."""
    encoder = moved(build("vit", enter))
    encoder.remember_body([encoder.enter(torch.randn(4, 1, 50), "nsd-subj.01")])
    if enter == "adapter":
        encoder.enter.remember(torch.randn(encoder.space.size, 32), torch.randn(32))
    save_model(tmp_path, {f"encoder.{name}": tensor.contiguous() for name, tensor in encoder.state_dict().items()}, {"encoder": encoder.arguments})
    again, _ = load_encoder(tmp_path)
    x = torch.randn(2, 1, 37)
    for cut in (False, True):
        assert torch.equal(predicted(again, x, "nsd-items", cut), predicted(encoder, x, "nsd-items", cut))
    if enter == "adapter":
        z = torch.randn(3, encoder.space.size)
        assert torch.equal(again.enter.expected(z), encoder.enter.expected(z))


@pytest.mark.parametrize("kind", [*BODIES, "residual"])
@pytest.mark.parametrize("enter", ["adapter", "embedder", "voxel-tokens"])
def test_initial_weights_are_drawn_by_their_place(kind, enter):
    """Whatever else a network has - another way in, a retrieval head, further subjects, a deeper body - its other parts start as they do without."""
    space = picture_space()
    enters = {
        "interpolate": {"size": 32, "dropout": 0.0},
        "adapter": {"size": 32, "dropout": 0.0},
        "embedder": {"size": 32, "dropout": 0.0, "pooled": 24, "bottleneck": 4},
        "voxel-tokens": {"size": 32, "dropout": 0.0, "queries": 4, "vectors": "learned"},
    }
    body = BODIES.get(kind, study.Residual(kind="residual", block="mixer", depth=1).model_dump())

    def started(enter, subjects, body, head):
        torch.manual_seed(7)
        network = Encoder({"kind": enter} | enters[enter], body, space, TARGETS, subjects if enter != "interpolate" else {}, 1, head)
        return dict(network.named_parameters()), torch.rand(())

    one, after = started(enter, {"a": 30}, body, False)
    more, after_more = started(enter, {"b": 11, "a": 30}, body | {"depth": body["depth"] + 1}, True)
    other, after_other = started("interpolate", {}, body, False)
    assert after == after_more == after_other == torch.rand((), generator=torch.Generator().manual_seed(7))
    shared = [name for name in one if name in other]
    assert any(name.startswith("body.") for name in shared) and len(one) < len(more)
    assert all(torch.equal(one[name], more[name]) for name in one)
    assert all(torch.equal(one[name], other[name]) for name in shared)
    torch.manual_seed(8)
    again = dict(Encoder({"kind": enter} | enters[enter], body, space, TARGETS, {"a": 30}, 1, False).named_parameters())
    assert any(not torch.equal(one[name], again[name]) for name in one if name.startswith("body."))
