"""Voxels as tokens, against loops in numpy; and a new subject that needs no step."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import MLP, TRAINING, study_of_methods

from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.models import voxels
from unimind.models.encoder import load_encoder
from unimind.models.prior import EncodingPrior, Features
from unimind.models.space import PictureSpace
from unimind.models.voxels import VoxelAttention, encoding_vectors
from unimind.training.adapt import adapt
from unimind.training.align import align, read_group
from unimind.training.alignment import told_apart
from unimind.training.data import new_encoder
from unimind.training.voxels import pictures_of, teach_voxels

SPACE = PictureSpace(3, (1, 1, 2), {"embedding": 3, "latent": 2})


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")


def tokens(vectors="learned"):
    torch.manual_seed(0)
    enter = VoxelAttention(12, 3, vectors, 0.0, SPACE)
    enter.add("a.1", 17)
    torch.nn.init.normal_(enter.norm.weight)
    return enter


@pytest.mark.parametrize("vectors", ["learned", "encoding"])
def test_queries_read_voxels_as_loops_do(vectors):
    enter, responses = tokens(vectors), torch.randn(2, 2, 17)
    if vectors == "encoding":
        enter.take("a.1", torch.randn(17, 7))
    u = enter.vectors_of("a.1").detach().double().numpy()
    query, key, driven, value, gain = (
        part.detach().double().numpy() for part in (enter.queries, enter.keys.weight, enter.driven.weight, enter.values.weight, enter.norm.weight)
    )
    found = enter(responses, "a.1").detach().numpy()
    for row, response in np.ndindex(2, 2):
        y = responses[row, response].double().numpy()
        for number in range(3):
            logits = [np.log(17) * (query[number] @ key @ u[v] + query[number] @ driven @ (y[v] * u[v])) / 2 for v in range(17)]
            weights = np.exp(logits - np.max(logits))
            read = sum(w * y[v] * (value @ u[v]) for v, w in enumerate(weights / weights.sum()))
            expected = (read - read.mean()) / np.sqrt(read.var() + 1e-5) * gain
            np.testing.assert_allclose(found[row, response, 4 * number : 4 * number + 4], expected, rtol=1e-3, atol=1e-4)


def test_rows_read_in_parts_give_the_same_and_the_same_gradients(monkeypatch):
    responses, found = torch.randn(5, 1, 17), []
    for limit in (2**24, 2 * 3 * 17):
        monkeypatch.setattr(voxels, "WEIGHTS", limit)
        enter = tokens()
        signal = enter(responses, "a.1")
        signal.square().sum().backward()
        found.append([signal.detach(), *(parameter.grad for parameter in enter.parameters())])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts)
    with pytest.raises(InputError, match="a.1: 16 voxels given, the model was trained with 17"):
        enter(responses[..., :16], "a.1")
    with pytest.raises(InputError, match="b: this model has no vectors of that subject's voxels"):
        enter(responses, "b")


def test_a_voxel_s_vector_is_its_posterior_by_bayes_rule():
    random = np.random.default_rng(0)
    coordinates, responses = random.normal(size=(30, 3)), random.normal(size=(30, 4)).astype(np.float32)
    half = random.normal(size=(3, 3))
    prior = EncodingPrior(random.normal(size=3) * 0.1, half @ half.T, 0.7, np.zeros((3, 0)))
    features = Features(np.zeros(3), np.eye(3), np.arange(3))
    found = encoding_vectors(features, prior, coordinates, responses, 6).numpy()
    x, standard = coordinates - coordinates.mean(0), (responses - responses.mean(0)) / responses.std(0)
    for v in range(4):
        noise = 0.7
        for _ in range(4):
            gain = prior.covariance @ x.T @ np.linalg.inv(x @ prior.covariance @ x.T + noise * np.eye(30))
            weight = prior.mean + gain @ (standard[:, v] - x @ prior.mean)
            uncertain = np.trace(x @ (prior.covariance - gain @ x @ prior.covariance) @ x.T)
            noise = (((standard[:, v] - x @ weight) ** 2).sum() + uncertain + 20 * 0.7) / 50
        np.testing.assert_allclose(found[v], [*weight, 0, np.log(noise), np.log(30) / 7], rtol=1e-3, atol=1e-4)


def study(vectors="encoding", **adapt):
    method = {"enter": {"kind": "voxel-tokens", "size": 32, "queries": 4, "vectors": vectors, "repeats": "mean"}, "body": MLP, "adapt": adapt}
    return study_of_methods(m=method | {"align": {"losses": {"siamese": 0.0, "softclip": 0.5}, "training": TRAINING | {"steps": 150, "validate_every": 50}}})


def test_pictures_enter_in_training_by_vectors_that_were_not_fitted_to_them(files):
    tiny = study(strategy="none")
    prepared, embeddings = [files / f"{name}.h5" for name in ("subj01", "subj02")], [files / "embeddings.h5"] * 2
    subjects, space = read_group(tiny, "m", "sim", prepared, embeddings, [])
    encoder = new_encoder(tiny, "m", space, {name: trials.n_voxels for name, (trials, _) in subjects.items()}, 1, None)
    contexts = teach_voxels(encoder, subjects, 0)
    features, prior = encoder.enter.taught()
    asked_of = np.zeros(44, int)
    for key, asked in contexts["sim-subj01"]:
        coordinates, responses = pictures_of(*subjects["sim-subj01"], ("train",))
        fitted = round(float(np.exp(7 * encoder.enter.contexts[key][0, -1])))
        assert fitted + len(asked) <= 44 and (asked_of[asked.numpy()].max() >= 0)
        asked_of[asked.numpy()] += 1
        if fitted == 44 - len(asked):  # a fold: what it was fitted to is the rest
            rest = np.setdiff1d(np.arange(44), asked)
            expected = encoding_vectors(features, prior, coordinates[rest], responses[rest], encoder.enter.n_features + 2)
            torch.testing.assert_close(encoder.enter.contexts[key], expected)
    assert asked_of.min() >= 1


def test_a_new_subject_needs_no_step(files, tmp_path):
    """Its vectors come from its trials in closed form, all that is shared stays; the pictures are told apart far better than by chance."""
    tiny = study(strategy="none")
    prepared, embeddings = [files / f"{name}.h5" for name in ("subj01", "subj02")], [files / "embeddings.h5"] * 2
    align(tiny, "m", "sim", prepared, embeddings, None, None, tmp_path / "c", tmp_path / "shared")
    adapt(tiny, "m", "sim", "subj03", files / "subj03.h5", files / "embeddings.h5", tmp_path / "shared", tmp_path / "c", tmp_path / "own")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("shared", "own"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if "mean_" not in name)
    assert [name for name in after if name not in before] == ["encoder.enter.subject-sim-subj03_vectors"]
    assert json.loads((tmp_path / "own/efficiency.json").read_text())["trainable_parameters"] == after["encoder.enter.subject-sim-subj03_vectors"].numel()
    encoder, _ = load_encoder(tmp_path / "own")
    with PreparedSubject(files / "subj03.h5") as data:
        shown, responses, _ = data.by_picture(np.concatenate([data.trials("test")]), "anatomical")
    import h5py

    with h5py.File(files / "embeddings.h5") as file:
        truth = torch.from_numpy(file["embedding"][:][shown])
    with torch.no_grad():
        predicted = encoder.predict(encoder(torch.from_numpy(responses), "sim-subj03"), "embedding")
    assert told_apart(predicted - predicted.mean(0), truth - truth.mean(0)) > 0.7


def test_what_cannot_serve_without_training_or_does_nothing_is_refused():
    with pytest.raises(InputError, match=r"adapt\.strategy: none given, but without training only"):
        study("learned", strategy="none")
    with pytest.raises(InputError, match=r"adapt\.strategy: adapter given, but enter.kind voxel-tokens has none"):
        study("encoding", strategy="adapter")
    with pytest.raises(InputError, match=r"adapt: training: given, but strategy none trains nothing"):
        study(strategy="none", training={"steps": 3})
    with pytest.raises(InputError, match=r"size: 32 is not a multiple of queries = 5"):
        study_of_methods(m={"enter": {"kind": "voxel-tokens", "size": 32, "queries": 5}, "body": MLP, "align": {}, "adapt": {"strategy": "none"}})
    with pytest.raises(InputError, match=r"order: stored given, but queries read voxels in any order"):
        study_of_methods(m={"enter": {"kind": "voxel-tokens", "order": "stored"}, "body": MLP, "align": {}, "adapt": {"strategy": "none"}})
