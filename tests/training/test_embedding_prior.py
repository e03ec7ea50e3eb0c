"""The prior over embeddings: samples of a distribution that is known, predictions of pictures not fitted to, and where it is refused."""

import h5py
import numpy as np
import pytest
import torch
from tiny_training import DECODED, MLP, RIDGE, TRAINING, study_of_methods

from unimind.errors import InputError
from unimind.foundations.generators.norms import TargetNorms
from unimind.models.embedding_prior import EmbeddingFlow, load_embedding_prior
from unimind.models.encoder import load_encoder
from unimind.models.space import PictureSpace
from unimind.reconstruction.decoder import Prediction
from unimind.reconstruction.draw import inputs_of
from unimind.streams import generator
from unimind.study import Training
from unimind.training import embedding_prior as stage
from unimind.training.align import align
from unimind.training.enter import enter, teach
from unimind.training.loop import drawn, train

FAR, NOISE, SAMPLES = 1.0, 0.3, 2500
PRIOR = {"width": 16, "depth": 1, "training": TRAINING}
MEMBERS = ("subj01", "subj02")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")


# --- a distribution that is known ----------------------------------------------------------------------------------------


def known(count, seed, told=None):
    """Pictures whose places in a plane are told by c, and by which of two sides they lie on, which nothing tells but their lengths.

    Places (n, 2) are c + side * (FAR, -FAR) and noise; embeddings are the unit vectors along (3, place); lengths exp(0.2 side).
    """
    random = np.random.default_rng(seed)
    c = random.normal(size=(count, 2)) if told is None else np.tile(told, (count, 1))
    side = random.choice([-1.0, 1.0], count)
    place = c + side[:, None] * np.array([FAR, -FAR]) + NOISE * random.normal(size=(count, 2))
    return c, place, embedding_of(place), np.exp(0.2 * side)


def embedding_of(place):
    vector = np.concatenate([np.full((len(place), 1), 3.0), place], 1)
    return (vector / np.linalg.norm(vector, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def taught():
    """A prior that knows the Gaussian of 6000 such pictures and their regressed means, and the same trained."""
    c, _, embedding, length = known(6000, 0)
    regressed = np.stack([embedding_of(c + side * np.array([FAR, -FAR])) for side in (-1, 1)]).mean(0)
    torch.manual_seed(0)
    prior = EmbeddingFlow(PictureSpace.fit(embedding), True, 64, 2, 0.0)
    prior.length.copy_(torch.tensor([np.log(length).mean(), np.log(length).std()]))
    vectors = prior.vectors(prior.space.coordinates(torch.from_numpy(embedding)), torch.from_numpy(length).float())
    given = prior.regressed(torch.from_numpy(regressed))
    stage._gaussian(prior, given, vectors.detach(), 0)
    gaussian = EmbeddingFlow(**{**prior.arguments, "space": PictureSpace(**prior.arguments["space"])})
    gaussian.load_state_dict(prior.state_dict())

    def draw(step):
        rows = drawn(len(vectors), 256, step, 0, "toy")
        random = generator("toy", step)
        return {
            "regressed": given[rows],
            "vector": vectors[rows],
            "noise": torch.randn(256, prior.size, generator=random),
            "t": torch.rand(256, generator=random),
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIMIND_DEVICE", "cpu")
        settings = Training(steps=700, batch_size=256, learning_rate=7e-3, ema=0.99)
        train(
            prior, draw=draw, losses=lambda module, batch: {"velocity": stage.velocity_error(module, batch)}, settings=settings, seed=0,
            checkpoints=stage.Path("/nonexistent/toy"), fingerprint="", label="toy", n_samples=len(vectors),
        )  # fmt: skip
    return gaussian.eval(), prior.eval()


def sampled(prior, told, count=SAMPLES):
    """Places, and lengths, of samples given the regressed embedding of c."""
    mean = np.mean([embedding_of(np.array([told]) + side * np.array([FAR, -FAR])) for side in (-1, 1)], 0)
    found = prior.sample(torch.from_numpy(mean).float().expand(count, -1), torch.randn(count, prior.size, generator=generator("noise"))).numpy()
    return 3 * found[:, 1:] / found[:, :1], np.linalg.norm(found, axis=1)


def across(place, told):
    """How far to the one side or the other places lie, (n,): -1 or 1 where the two sides are."""
    return (place - np.array(told)) @ np.array([0.5, -0.5]) / FAR


@pytest.mark.parametrize("told", [(0.0, 0.0), (0.7, -0.5)])
def test_samples_are_of_the_distribution_and_not_of_its_mean(taught, told):
    gaussian, prior = taught
    _, truth, _, length = known(SAMPLES, 1, told)
    for one in (gaussian, prior):
        place, _ = sampled(one, told)
        np.testing.assert_allclose(place.mean(0), truth.mean(0), atol=0.15)
        np.testing.assert_allclose(np.cov(place.T), np.cov(truth.T), atol=0.25)
    place, lengths = sampled(prior, told)
    side = across(place, told)
    assert (np.abs(across(truth, told)) < 0.4).mean() < 0.01 and (np.abs(side) < 0.4).mean() < 0.08, "the mean lies between the sides, where no picture is"
    assert (np.abs(across(sampled(gaussian, told)[0], told)) < 0.4).mean() > 0.2
    assert 0.4 < (side > 0).mean() < 0.6
    np.testing.assert_allclose((side**4).mean(), (across(truth, told) ** 4).mean(), rtol=0.25)
    np.testing.assert_allclose([lengths[side > 0].mean(), lengths[side < 0].mean()], [length.max(), length.min()], rtol=0.08)


def test_a_gaussian_comes_out_exactly():
    """Without a network the flow is the conditional normal distribution, whatever its covariance."""
    random = np.random.default_rng(3)
    space = PictureSpace.fit(random.normal(size=(50, 4)).astype(np.float32))
    prior = EmbeddingFlow(space, False, 8, 1, 0.0).eval()
    covariance = np.diag([1.0, 0.3, 0.05, 0.01])
    turn = np.linalg.qr(random.normal(size=(4, 4)))[0]
    covariance = turn @ covariance @ turn.T
    prior.take_gaussian((np.eye(4), np.arange(4.0)), covariance)
    mean = torch.tensor([[0.5, -1.0, 0.0, 2.0]])
    caught = []
    prior.embeddings = lambda vectors: caught.append(vectors) or vectors
    prior.regressed = lambda embedding: mean.expand(20000, -1)
    prior.sample(torch.zeros(20000, 4), torch.randn(20000, 4, generator=generator("g")))
    found = caught[0].numpy().astype(float)
    np.testing.assert_allclose(found.mean(0), mean[0].numpy() + np.arange(4), atol=0.03)
    np.testing.assert_allclose(np.linalg.eigvalsh(np.cov(found.T)), np.linalg.eigvalsh(covariance), rtol=0.05)


# --- what a generator gets -----------------------------------------------------------------------------------------------


class Takes:
    """What `inputs_of` asks of a generator."""

    takes = {"embedding": (3,)}


def test_every_picture_has_noise_of_its_own_whatever_the_batch(taught):
    prior, mean = taught[1], torch.from_numpy(embedding_of(np.zeros((1, 2))))
    keys = [(0, stimulus, k) for stimulus in (4, 9) for k in range(3)]
    prediction = Prediction({"embedding": mean.expand(6, -1)}, mean, None)
    found = inputs_of(Takes, prediction, {}, keys, prior)["embedding"]
    assert len({tuple(row) for row in found.tolist()}) == 6
    again = inputs_of(Takes, Prediction({"embedding": mean.expand(2, -1)}, mean, None), {}, keys[3:5], prior)["embedding"]
    torch.testing.assert_close(again, found[3:5])
    assert torch.equal(inputs_of(Takes, prediction, {}, keys, None)["embedding"], mean.expand(6, -1)), "nothing changes without a prior"


def test_lengths_are_sampled_and_held_within_those_of_pictures(taught):
    prior, mean = taught[1], torch.from_numpy(embedding_of(np.zeros((1, 2))))
    keys, norms = [(0, 0, k) for k in range(200)], TargetNorms(torch.zeros(3), 1.0, (0.9, 1.0, 1.1))
    prediction = Prediction({"embedding": mean.expand(200, -1)}, mean, None)
    free, held = (inputs_of(Takes, prediction, given, keys, prior)["embedding"] for given in ({}, {"embedding": norms}))
    assert free.norm(dim=1).min() < 0.85 and free.norm(dim=1).max() > 1.15
    torch.testing.assert_close(held.norm(dim=1), free.norm(dim=1).clamp(0.9, 1.1))
    torch.testing.assert_close(held / held.norm(dim=1, keepdim=True), free / free.norm(dim=1, keepdim=True))


# --- the stage -----------------------------------------------------------------------------------------------------------


def entered_files(study, method, files, folder, members=MEMBERS):
    decoded = study.methods[method].enter.kind == "decoded"
    if decoded:
        teach(study, method, "sim", [files / f"{name}.h5" for name in members], [files / "embeddings.h5"] * len(members), folder / "taught")
    for name in members:
        enter(study, method, "sim", name, files / f"{name}.h5", files / "embeddings.h5", folder / "taught" if decoded else None, folder / name)
    return [folder / name for name in members]


def test_a_closed_form_is_asked_for_pictures_that_it_was_not_fitted_to(files, tmp_path, monkeypatch):
    study = study_of_methods(ridge=RIDGE | {"embedding_prior": PRIOR})
    assert study.entered("ridge", "sim", "subj01") and not study.methods["ridge"].serves_budgets
    (own,) = entered_files(study, "ridge", files, tmp_path, ["subj01"])
    caught = []
    monkeypatch.setattr(stage, "_gaussian", lambda prior, *given, real=stage._gaussian: caught.append(given) or real(prior, *given))
    stage.embedding_prior(study, "ridge", "sim-subj01", [files / "embeddings.h5"], [own], None, tmp_path / "c", tmp_path / "out")
    regressed, vectors = (values.numpy() for values in caught[0][:2])
    space = load_encoder(own)[0].space
    with h5py.File(own / "entered.h5") as file, h5py.File(files / "embeddings.h5") as targets:
        largest = np.isin(file["context"][:], np.flatnonzero(file["pictures"][:] == file["pictures"][:].max())) & (file["split"][:] == 0)
        order = np.argsort(file["stimulus"][:][largest])
        images, signals = file["stimulus"][:][largest][order], file["coordinates"][:][largest][order]
        truth = targets["embedding"][:][images]
    known, spread = space.components["embedding"], space.embedding_spread.numpy()
    np.testing.assert_allclose(regressed, signals[:, :known] / spread, rtol=1e-4, atol=1e-5)
    coordinates = ((truth - space.embedding_mean.numpy()) / space.embedding_scale.numpy()) @ space.embedding_axes.numpy()
    np.testing.assert_allclose(vectors, coordinates / spread, rtol=1e-3, atol=1e-4)
    prior = load_embedding_prior(tmp_path / "out")
    assert not prior.arguments["lengths"] and not (tmp_path / "c").exists()
    with pytest.raises(InputError, match="no prior over embeddings"):
        load_embedding_prior(own)


def test_a_body_predicts_pictures_that_it_was_not_trained_on(files, tmp_path, monkeypatch):
    """Bodies of the parts are marked; every picture must bear the mark of the body that was trained without it."""
    study = study_of_methods(m=DECODED | {"embedding_prior": PRIOR})
    entered = entered_files(study, "m", files, tmp_path)
    with h5py.File(files / "embeddings.h5") as file, h5py.File(tmp_path / "e.h5", "w") as raw:
        raw["embedding"], raw["latent"] = file["embedding"][:], file["latent"][:]
        raw["norm"] = np.random.default_rng(0).uniform(8, 12, len(file["embedding"])).astype(np.float32)
    embeddings = [tmp_path / "e.h5"] * 2
    align(study, "m", "sim", None, embeddings, entered, None, tmp_path / "c1", tmp_path / "aligned")
    caught, parts = [], []

    def marked(study, method, subjects, *given, real=stage.train_aligned):
        parts.append({name: trials.images("train") for name, (trials, _) in subjects.items()})
        model, trained = real(study, method, subjects, *given)
        torch.nn.init.constant_(model.encoder.heads["embedding"].bias, 1000.0 * len(parts))
        return model, trained

    monkeypatch.setattr(stage, "train_aligned", marked)
    monkeypatch.setattr(stage, "_gaussian", lambda prior, *given, real=stage._gaussian: caught.append(given) or real(prior, *given))
    stage.embedding_prior(study, "m", "sim", embeddings, entered, tmp_path / "aligned", tmp_path / "c2", tmp_path / "out")
    assert len(parts) == stage.FOLDS and all(set(own) == {"sim-subj01", "sim-subj02"} for own in parts)
    marks = (caught[0][0][:, 0] / 1000).round().long().numpy() - 1
    images = np.concatenate([sorted(set().union(*(own[name] for own in parts))) for name in parts[0]])
    assert len(images) == len(marks) == 88 and set(marks) == set(range(stage.FOLDS))
    for name in parts[0]:
        place = slice(0, 44) if name == "sim-subj01" else slice(44, 88)
        for image, mark in zip(images[place], marks[place], strict=True):
            assert image not in parts[mark][name] and all(image in parts[other][name] for other in range(stage.FOLDS) if other != mark)
    prior = load_embedding_prior(tmp_path / "out")
    assert prior.arguments["lengths"] and prior.length[0].exp().item() == pytest.approx(10, abs=0.5)


# --- where it is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (RIDGE | {"embedding_prior": PRIOR, "sampling": {"strength": 0}}, "embedding_prior: given, but with sampling.strength 0"),
        (DECODED | {"embedding_prior": PRIOR, "condition": {}}, "embedding_prior: given, but the condition stage"),
        (DECODED | {"embedding_prior": PRIOR, "align": {"in_sample": True}}, "embedding_prior: given, but with align.in_sample"),
        ({"enter": {"kind": "adapter"}, "body": MLP, "align": {}, "adapt": {}, "embedding_prior": PRIOR}, "embedding_prior: given, but enter.kind adapter"),
    ],
)
def test_a_prior_that_does_nothing_or_cannot_be_trained_is_refused(method, words):
    with pytest.raises(InputError, match=words):
        study_of_methods(m=method)
