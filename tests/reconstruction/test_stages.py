"""From aligned encoder to pictures: condition, reconstruct, controls, on tiny networks."""

import json
import os
import signal
import socket
import time

import h5py
import numpy as np
import pytest
import torch
from apart import killed, started

from unimind.blocks import Blocks, Work
from unimind.data.prepared import FurtherTrials, PreparedSubject, write_further, write_prepared
from unimind.data.shapes import shapes
from unimind.errors import InputError
from unimind.evaluation import transfer as transfers
from unimind.evaluation.transfer import transfer
from unimind.foundations import load_autoencoder, load_diffusion, load_embedding
from unimind.foundations.generators import as_bytes
from unimind.foundations.generators.samplers import sample
from unimind.models.encoder import load_encoder
from unimind.reconstruction.agreement import best_agreeing
from unimind.reconstruction.choice import SubjectEncoding
from unimind.reconstruction.controls import controls
from unimind.reconstruction.decode import decode
from unimind.reconstruction.decoder import Prediction
from unimind.reconstruction.draw import draw, generator_for, norms_for
from unimind.reconstruction.reconstruct import reconstruct
from unimind.reconstruction.tested import derangement, pictures_tested
from unimind.storage import load_model, save_model, whole_directory
from unimind.study import Decode, Sampling, parse_study
from unimind.training.align import align
from unimind.training.condition import condition
from unimind.training.embedding_prior import embedding_prior
from unimind.training.enter import enter
from unimind.training.foundations.build import foundation

SHORT = {"steps": 6, "batch_size": 8, "validate_every": 3}
RIDGE = {"scope": "subject", "enter": {"kind": "ridge", "alphas": [1.0, 10.0], "folds": 2}}
IMAGES, TEST, VOXELS = 40, 8, {"subj01": 30, "subj02": 25}


def make_study(batch_size=64, **sampling):
    sampling = {"steps": 3, "samples": 2, "guidance": 1.5} | sampling
    method = {
        "enter": {"kind": "adapter", "size": 32}, "body": {"kind": "convmixer", "width": 16, "depth": 1, "patch": 8, "kernel": 3},
        "align": {"losses": {"latent": 0.0}, "training": SHORT}, "condition": {"train_encoder": False, "training": SHORT}, "sampling": sampling,
    }  # fmt: skip
    return parse_study({
        "name": "stages", "picture_size": 32,
        "datasets": {"d": {"source": "simulated", "training_subjects": ["subj01", "subj02"]}},
        "methods": {
            "unimind": method,
            "mindvis": {**method, "scope": "subject", "align": None, "condition": {"tokens": 2, "train_encoder": True, "training": SHORT}},
            "ridge": RIDGE | {"sampling": {**sampling, "strength": 0.7}},
            "sampled": RIDGE | {"embedding_prior": {"width": 8, "depth": 1, "training": SHORT}, "sampling": {**sampling, "strength": 0.7}},
        },
        "foundations": {
            "drawn": {"count": 64},
            "embedding": {"kind": "study-clip", "dim": 12, "training": SHORT},
            "autoencoder": {"kind": "study", "latent_channels": 4, "downsampling": 4, "width": 16, "training": SHORT},
            "diffusion": {"kind": "study", "channels": [16, 32], "blocks": 1, "context_dim": 16, "context_tokens": 2, "training": SHORT},
        },
        "evaluation": {"batch_size": batch_size},
    })  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    study = make_study()
    for name in ("embedding", "autoencoder", "diffusion"):
        foundation(study, name, root / "embedding", root / "autoencoder", [], [], None, root / name)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((IMAGES, 12)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with h5py.File(root / "e.h5", "w") as file:
        file["embedding"], file["latent"] = vectors, random.standard_normal((IMAGES, 4, 8, 8)).astype(np.float32)
    with h5py.File(root / "stimuli.h5", "w") as file:
        file["images"] = random.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
        file["id"], file["sha256"], file["test"] = [str(i) for i in range(IMAGES)], [f"{i:064d}" for i in range(IMAGES)], np.arange(IMAGES) < TEST
    for subject, voxels in VOXELS.items():
        stimulus = np.repeat(np.arange(IMAGES), 2)
        split = np.where(stimulus < TEST, 2, np.where(stimulus < TEST + 4, 1, 0))
        responses = (vectors[stimulus] @ random.standard_normal((12, voxels)) + 0.3 * random.standard_normal((len(stimulus), voxels))).astype(np.float32)
        write_prepared(
            root / f"{subject}.h5", responses, stimulus=stimulus, session=np.zeros(len(stimulus)), split=split, stimuli=IMAGES, dataset="d", subject=subject
        )
    both = [root / "subj01.h5", root / "subj02.h5"]
    align(study, "unimind", "d", both, [root / "e.h5"] * 2, None, None, root / "c1", root / "aligned")
    condition(study, "unimind", "d", both, [root / "e.h5"] * 2, None, root / "aligned", root / "diffusion", None, None, root / "c2", root / "unimind")
    condition(study, "mindvis", "d-subj01", both[:1], [root / "e.h5"], None, None, root / "diffusion", None, None, root / "c3", root / "mindvis")
    enter(study, "ridge", "d", "subj01", both[0], root / "e.h5", None, root / "ridge")
    enter(study, "sampled", "d", "subj01", both[0], root / "e.h5", None, root / "sampled")
    embedding_prior(study, "sampled", "d-subj01", [root / "e.h5"], [root / "sampled"], None, root / "c4", root / "prior")
    return root


def pictures(root, name, study=None, model=None, prepared=None, stimuli=None, out="out.h5", diffusion="diffusion", prior=None):
    reconstruct(study or make_study(), name, "d", "subj01", prepared or root / "subj01.h5", root / "e.h5", model or root / name, None, root / diffusion,
                root / "autoencoder", root / "embedding", stimuli or root / "stimuli.h5", root / out, root / "grid.png", prior)  # fmt: skip
    with h5py.File(root / out) as file:
        return {key: value[:] for key, value in file.items()}


def centred_cosine(a, b, mean):
    a, b = a - mean, b - mean
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def agreements(root, result, mean=None):
    """(images, samples): how well each sample's embedding agrees with the predicted one."""
    drawn = torch.from_numpy(result["samples"].reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).float() / 255
    embedded = load_embedding(root / "embedding").encode(drawn).detach().numpy().reshape(*result["samples"].shape[:2], -1)
    if mean is None:
        with h5py.File(root / "e.h5") as file:
            mean = file["embedding"][TEST + 4 :].mean(0)
    return centred_cosine(embedded, result["predicted"][:, None], mean)


def test_only_what_may_be_trained_is_stored_and_changed(world, tmp_path):
    stimulus = np.repeat(np.arange(IMAGES), 2)
    for subject in VOXELS:  # without validation images the last weights are kept, whatever they are
        with h5py.File(world / f"{subject}.h5") as file:
            responses, split = file["responses"][:], np.where(stimulus < TEST, 2, 0)
        write_prepared(
            tmp_path / f"{subject}.h5", responses, stimulus=stimulus, session=np.zeros(len(stimulus)), split=split, stimuli=IMAGES, dataset="d", subject=subject
        )
    files = [tmp_path / f"{subject}.h5" for subject in VOXELS]
    condition(
        make_study(), "unimind", "d", files, [world / "e.h5"] * 2, None, world / "aligned", world / "diffusion", None, None, tmp_path / "c", tmp_path / "out"
    )
    state, _ = load_model(tmp_path / "out")
    before = load_diffusion(world / "diffusion").unet.state_dict()
    stored = {name.removeprefix("unet."): value for name, value in state.items() if name.startswith("unet.")}
    assert stored and all(".attn2." in name or ".norm2." in name for name in stored)
    assert any(not torch.equal(value, before[name]) for name, value in stored.items())
    aligned, _ = load_model(world / "aligned")
    assert all(torch.equal(value, aligned[name]) for name, value in state.items() if name.startswith("encoder."))


@pytest.mark.parametrize("name", ["unimind", "mindvis", "ridge"])
def test_every_kind_of_method_reconstructs(world, name):
    result = pictures(world, name)
    assert result["samples"].shape == (TEST, 2, 32, 32, 3) and result["shuffled"].shape == (TEST, 32, 32, 3)
    assert result["stimulus"].tolist() == list(range(TEST)) and set(result["shown"]) <= {0, 1}
    assert (result["predicted_train_nearest"] >= TEST).all()
    assert ("predicted" in result) == (name != "mindvis") and ("predicted_without_body" in result) == (name == "unimind")
    if name == "unimind":  # nothing goes around the body
        np.testing.assert_allclose(result["predicted_without_body"], result["predicted_without_body"][:1].repeat(TEST, 0), rtol=1e-5)
        assert result["predicted"].std(0).max() > 1e-4
    assert not np.array_equal(result["shuffled"], result["samples"][:, 0])
    with h5py.File(world / "out.h5") as file:
        attributes = dict(file.attrs)
    assert attributes["repeats"] == "all test trials of a picture" and attributes["trials_per_picture"] == "2" and attributes["samples"] == 2
    assert attributes["shown"] == ("first" if name == "mindvis" else "agreement with the predicted embedding")


@pytest.mark.parametrize("name", ["unimind", "ridge"])
def test_shown_is_the_sample_that_agrees_best_with_the_prediction(world, name):
    result = pictures(world, name, make_study(samples=4))
    agreement = agreements(world, result)
    assert result["shown"].tolist() == agreement.argmax(1).tolist() != agreement.argmin(1).tolist()


def test_without_a_predicted_embedding_the_first_sample_is_shown(world):
    assert not pictures(world, "mindvis")["shown"].any()


class Pooled:
    """An image embedding that sees colour and place, without training."""

    name, dim = "pooled", 12

    def __init__(self, directory=None):
        self.weight = torch.randn(3 * 16, 12, generator=torch.Generator().manual_seed(2))

    def to(self, device):
        return self

    def encode(self, images):
        return torch.nn.functional.normalize((torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) - 0.5) @ self.weight, dim=1)


@pytest.mark.parametrize("name", ["mindvis", "ridge"])
def test_by_an_encoding_model_the_sample_is_shown_that_the_response_tells(world, tmp_path, monkeypatch, name):
    """Planted: the samples of every picture are all test pictures in turn, its own first; the control has another picture's responses, and shows that one."""
    module = "unimind.reconstruction.reconstruct"
    random, count = np.random.default_rng(4), 300
    small = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    images = small.repeat(4, 1).repeat(4, 2)
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        embedding, latent = Pooled().encode(floats).numpy(), load_autoencoder(world / "autoencoder").encode(floats).numpy()
    for file, values in (("e.h5", {"embedding": embedding, "latent": latent}), ("stimuli.h5", {"images": images})):
        with h5py.File(tmp_path / file, "w") as h5:
            for key, value in values.items():
                h5[key] = value
    seen = (embedding - embedding.mean(0)) / embedding.std(0)
    responses = (seen @ random.standard_normal((12, 30)) + 2 * random.standard_normal((count, 1)) + random.standard_normal((count, 30))).astype(np.float32)
    write_prepared(tmp_path / "s.h5", responses, stimulus=np.arange(count), session=np.zeros(count), split=np.where(np.arange(count) < TEST, 2, 0),
                   stimuli=count, dataset="d", subject="subj01")  # fmt: skip
    if name == "ridge":
        enter(make_study(), "ridge", "d", "subj01", tmp_path / "s.h5", tmp_path / "e.h5", None, tmp_path / "model")
    monkeypatch.setattr(f"{module}.load_embedding", Pooled)
    monkeypatch.setattr(f"{module}.draw", lambda generator, part, norms, sampling, keys, prior: np.stack([images[(key[1] + key[2]) % TEST] for key in keys]))
    study, folders = make_study(samples=TEST, chosen_by="encoding"), [world / part for part in ("diffusion", "autoencoder", "embedding")]
    model = tmp_path / "model" if name == "ridge" else world / "mindvis"
    reconstruct(study, name, "d", "subj01", tmp_path / "s.h5", tmp_path / "e.h5", model, None, *folders, tmp_path / "stimuli.h5", tmp_path / "out.h5", None)
    with h5py.File(tmp_path / "out.h5") as file:
        assert (file["shown"][:] == 0).mean() > 0.8, "its own, among eight"
        another = images[:TEST][derangement(TEST, (study.seed, 7))]
        assert (file["shuffled"][:] == another).all((1, 2, 3)).mean() > 0.8, "what it got the responses to"
        assert file.attrs["shown"] == "likelihood of the measured response" and "encoding model" in file.attrs["choice"]


@pytest.mark.parametrize(("given", "why"), [({"samples": 1}, "of one sample"), ({"strength": 0}, "with strength 0")])
def test_a_rule_of_choice_that_chooses_nothing_is_refused(given, why):
    with pytest.raises(ValueError, match=f"chosen_by: encoding given, but {why}"):
        Sampling(chosen_by="encoding", **given)


@pytest.mark.parametrize("name", ["unimind", "ridge"])
def test_shuffled_gives_every_picture_all_responses_to_another(world, name):
    result = pictures(world, name)
    distance = np.abs(result["predicted_shuffled"][:, None] - result["predicted"][None]).max(-1)
    source = distance.argmin(1)
    assert distance[np.arange(TEST), source].max() < 1e-5, "a mixture of several pictures' responses"
    assert sorted(source) == list(range(TEST)) and not (source == np.arange(TEST)).any()
    assert np.array_equal(pictures(world, name)["shuffled"], result["shuffled"])


@pytest.mark.parametrize("name", ["unimind", "mindvis", "ridge"])
def test_the_shuffled_control_is_drawn_and_chosen_as_the_reconstruction_is(world, tmp_path, name):
    """Given the responses that the control gave to another picture, a method draws the very pictures of the control."""
    stimulus = np.repeat(np.arange(IMAGES), 2)
    another = derangement(TEST, (make_study().seed, 7))
    with h5py.File(world / "subj01.h5") as file:
        responses, split = file["responses"][:], file["split"][:]
    responses[: 2 * TEST] = responses[: 2 * TEST].reshape(TEST, 2, -1)[another].reshape(2 * TEST, -1)
    write_prepared(tmp_path / "s.h5", responses, stimulus=stimulus, session=stimulus, split=split, stimuli=IMAGES, dataset="d", subject="subj01")
    study = make_study(samples=4)
    control, drawn = pictures(world, name, study), pictures(world, name, study, prepared=tmp_path / "s.h5")
    if name != "mindvis":
        assert drawn["shown"].any()
    np.testing.assert_array_equal(control["shuffled"], drawn["samples"][np.arange(TEST), drawn["shown"]])


def test_a_prediction_that_is_shrunk_is_drawn_as_one_that_is_not(world):
    """By the study's own UNet, from embedding and latent: both are brought to how the training pictures' targets lie, whatever their contrast was."""
    with h5py.File(world / "e.h5") as file:
        embedding, latent = (torch.from_numpy(file[name][:]) for name in ("embedding", "latent"))
    sampling, rows, device = Sampling(samples=1, strength=0.5, steps=2), list(range(TEST + 4, IMAGES)), torch.device("cpu")
    generator = generator_for(world / "diffusion", load_autoencoder(world / "autoencoder"), 32, world / "e.h5", device)
    norms, found = norms_for(generator, sampling, world / "e.h5", rows), {}
    assert norms.keys() == {"embedding", "latent"}
    for contrast in (1.0, 0.3):
        targets = {name: norms[name].mean + contrast * (values[:3] - norms[name].mean) for name, values in (("embedding", embedding), ("latent", latent))}
        prediction = Prediction(targets, targets["embedding"], None)
        found[contrast] = draw(generator, prediction, norms, sampling, [(0, row, 0) for row in range(3)]).astype(int)
        found["as it is", contrast] = draw(generator, prediction, {}, sampling, [(0, row, 0) for row in range(3)]).astype(int)
    assert abs(found[1.0] - found[0.3]).max() <= 1 and abs(found["as it is", 1.0] - found["as it is", 0.3]).mean() > 0.1
    assert norms_for(generator, sampling, world / "e.h5", rows[:1]) == {}


def test_a_prior_changes_what_is_drawn_from_and_nothing_that_is_predicted(world):
    """Given, it draws other pictures of other embeddings, chosen by the regressed one; not given, nothing knows that the method has one."""
    without, ridge, drawn = pictures(world, "sampled"), pictures(world, "ridge"), pictures(world, "sampled", prior=world / "prior")
    assert all(np.array_equal(without[name], ridge[name]) for name in ridge)
    assert np.array_equal(drawn["predicted"], ridge["predicted"]) and np.array_equal(drawn["predicted_shuffled"], ridge["predicted_shuffled"])
    assert (drawn["samples"] != ridge["samples"]).any((1, 2, 3, 4)).all()
    assert drawn["shown"].tolist() == agreements(world, drawn).argmax(1).tolist()
    with h5py.File(world / "out.h5") as file:
        assert "sample of the embeddings" in file.attrs["embedding_prior"]
    batches = pictures(world, "sampled", make_study(batch_size=3), prior=world / "prior")
    assert np.abs(batches["samples"].astype(int) - drawn["samples"]).max() <= 1


def test_half_precision_draws_nearly_the_same_pictures(world):
    full, half = pictures(world, "unimind"), pictures(world, "unimind", make_study(precision="bf16"))
    difference = np.abs(full["samples"].astype(int) - half["samples"])
    assert 0 < difference.mean() < 3 and np.array_equal(full["predicted"], half["predicted"])
    with pytest.raises(InputError, match="sampling.precision: fp16 needs a GPU"):
        pictures(world, "unimind", make_study(precision="fp16"))


def test_a_start_that_is_not_predicted_is_refused(world):
    with pytest.raises(InputError, match="methods.unimind: sampling.strength: 0.5 given, but nothing predicts the latent"):
        make_study(strength=0.5)


@pytest.mark.parametrize("block", [7, 4096])
def test_the_nearest_picture_agrees_best(monkeypatch, block):
    monkeypatch.setattr("unimind.reconstruction.agreement.BLOCK", block)
    random = torch.Generator().manual_seed(0)
    features, reference = torch.randn(20, 6, generator=random) + 3, torch.randn(50, 6, generator=random) + 3
    mean = reference.mean(0)
    a, b = (features - mean).numpy(), (reference - mean).numpy()
    expected = [max(range(50), key=lambda j, row=row: row @ b[j] / np.linalg.norm(b[j])) for row in a]
    assert best_agreeing(features, reference, mean).tolist() == expected


def reconstruct_until(root, name, blocks, out, rank=0, processes=1, port=None):
    """A reconstruction, or one process's part of it, that dies of SIGKILL before its next block; one picture a block. Notes its pictures."""
    from unimind.reconstruction import reconstruct as module

    if processes > 1:
        del os.environ["UNIMIND_DEVICE"]
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    made, draw = [], module.draw

    def counted(*given):
        if len(made) == 2 * blocks:  # the picture, then its control
            os.kill(os.getpid(), signal.SIGKILL)
        made.append(int(given[4][0][1]))
        if processes > 1:
            (root / f"{out}.{rank}").write_text(json.dumps(made))
        return draw(*given)

    module.draw = counted
    reconstruct(make_study(batch_size=2), name, "d", "subj01", root / "subj01.h5", root / "e.h5", root / name, None, root / "diffusion",
                root / "autoencoder", root / "embedding", root / "stimuli.h5", root / out, None)  # fmt: skip


def test_a_killed_reconstruction_goes_on_where_it_was_with_equal_bits(world, capsys):
    expected = pictures(world, "unimind", make_study(batch_size=2))
    assert killed(started(reconstruct_until, world, "unimind", 5, "killed.h5"))
    assert not (world / "killed.h5").exists()
    found = pictures(world, "unimind", make_study(batch_size=2), out="killed.h5")
    assert "continuing after 5 of 8 blocks" in capsys.readouterr().err
    assert expected.keys() == found.keys() and all(np.array_equal(expected[key], found[key]) for key in expected)
    assert not list(world.glob(".*partial"))


def shared(world, out, blocks):
    """Two processes that reconstruct together, each until it has made so many blocks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [started(reconstruct_until, world, "unimind", blocks[rank], out, rank, 2, port) for rank in range(2)]


def test_two_processes_draw_what_one_draws_with_equal_bits(world, capsys):
    expected = pictures(world, "unimind", make_study(batch_size=2))
    for process in shared(world, "both.h5", (-1, -1)):
        process.join()
        assert process.exitcode == 0
    first, second = (json.loads((world / f"both.h5.{rank}").read_text()) for rank in range(2))
    assert first == [0, 0, 2, 2, 4, 4, 6, 6] and second == [1, 1, 3, 3, 5, 5, 7, 7]  # each picture, and its control
    first, second = shared(world, "cut.h5", (-1, 1))
    assert killed(second)
    first.join(1)
    assert first.is_alive() and not (world / "cut.h5").exists()  # it waits for what the other has not made
    while len(list(world.glob(".cut.h5.partial/*/*.npz"))) < 5:
        time.sleep(0.1)
    first.kill()  # as the launcher does
    first.join()
    cut = pictures(world, "unimind", make_study(batch_size=2), out="cut.h5")
    assert "continuing after 5 of 8 blocks" in capsys.readouterr().err
    for name in ("both.h5", "cut.h5"):
        with h5py.File(world / name) as file, h5py.File(world / "out.h5") as alone:
            assert file.keys() == alone.keys() == cut.keys() and all(np.array_equal(file[key][:], values) for key, values in expected.items())
            assert dict(file.attrs) == dict(alone.attrs)
    assert not list(world.glob(".*partial"))


def test_blocks_are_made_once_and_those_of_another_mark_not_used(tmp_path):
    made = []

    def make(rows):
        made.append(rows.tolist())
        if len(made) == 3:
            raise InterruptedError
        return {"rows": rows * 10}

    def run(mark):
        blocks, work = Blocks(tmp_path, mark), Work("rows", 10, 4, make, "")
        blocks.make(work)
        return np.concatenate([content["rows"] for _, content in blocks.read(work)]).tolist()

    with pytest.raises(InterruptedError):
        run("a")
    assert run("a") == [row * 10 for row in range(10)] and made == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [8, 9]]
    assert run("b") == run("b") == [row * 10 for row in range(10)] and len(made) == 7


def test_batches_change_nothing(world):
    one, two = pictures(world, "unimind", make_study(batch_size=64)), pictures(world, "unimind", make_study(batch_size=3))
    difference = np.abs(one["samples"].astype(int) - two["samples"])  # sums in another order, rounded to 8 bits
    assert difference.max() <= 4 and difference.mean() < 0.05
    first, second = agreements(world, one), agreements(world, two)
    apart = np.abs(first[:, 0] - first[:, 1]) > 2 * np.abs(first - second).max()  # else the roundings decide which sample is shown
    assert apart.sum() > TEST / 2 and np.array_equal(one["shown"][apart], two["shown"][apart])


def test_other_fmri_gives_other_pictures(world):
    stimulus = np.repeat(np.arange(IMAGES), 2)
    split = np.where(stimulus < TEST, 2, np.where(stimulus < TEST + 4, 1, 0))
    with h5py.File(world / "subj01.h5") as file:
        responses = file["responses"][:]
    responses[: 2 * TEST] = responses[: 2 * TEST][::-1]
    write_prepared(
        world / "swapped.h5", responses, stimulus=stimulus, session=np.zeros(len(stimulus)), split=split, stimuli=IMAGES, dataset="d", subject="subj01"
    )
    own, other = pictures(world, "unimind"), pictures(world, "unimind", prepared=world / "swapped.h5")
    assert np.abs(own["samples"].astype(int) - other["samples"]).max() > 0
    np.testing.assert_allclose(own["predicted"], other["predicted"][::-1], atol=1e-5)


def test_the_truth_decides_nothing(world):
    with h5py.File(world / "stimuli.h5") as source, h5py.File(world / "blank.h5", "w") as file:
        for key in ("id", "sha256", "test"):
            source.copy(key, file)
        file["images"] = np.zeros_like(source["images"][:])
    with h5py.File(world / "e.h5", "r+") as file:
        kept = file["embedding"][:TEST]
    own = pictures(world, "unimind")
    with h5py.File(world / "e.h5", "r+") as file:
        file["embedding"][:TEST] = kept[::-1]
    try:
        other = pictures(world, "unimind", stimuli=world / "blank.h5")
    finally:
        with h5py.File(world / "e.h5", "r+") as file:
            file["embedding"][:TEST] = kept
    for key, value in own.items():
        assert np.array_equal(value, other[key]), key


@pytest.mark.parametrize(("repeats", "groups"), [(2, [[0], [1], [0]]), (3, [[0], [1], [2]]), (7, [[0, 3, 6], [1, 4], [2, 5]])])
def test_every_trial_of_a_picture_counts(tmp_path, repeats, groups):
    stimulus = np.tile(np.arange(6), repeats)
    responses = np.random.default_rng(0).standard_normal((len(stimulus), 5)).astype(np.float32)
    write_prepared(
        tmp_path / "s.h5",
        responses,
        stimulus=stimulus,
        session=np.zeros(len(stimulus)),
        split=np.where(stimulus < 4, 2, 0),
        stimuli=6,
        dataset="d",
        subject="s",
    )
    own = responses.reshape(repeats, 6, 5)[:, :4]
    with PreparedSubject(tmp_path / "s.h5") as data:
        (images, mean, counts), (_, channels, _) = (data.by_picture(data.trials("test"), channels=given) for given in (1, 3))
    assert images.tolist() == [0, 1, 2, 3] and mean.shape == (4, 1, 5) and (counts == repeats).all()
    np.testing.assert_allclose(mean[:, 0], own.mean(0), rtol=1e-5)
    np.testing.assert_allclose(channels, np.stack([own[group].mean(0) for group in groups], 1), rtol=1e-5)


def test_a_derangement_leaves_nothing_in_place():
    for seed in range(50):
        order = derangement(9, (seed, 7))
        assert sorted(order) == list(range(9)) and not (order == np.arange(9)).any()
    assert np.array_equal(derangement(9, 3), derangement(9, 3)) and not np.array_equal(derangement(30, 3), derangement(30, 4))
    with pytest.raises(ValueError, match="no derangement"):
        derangement(1)


def test_all_pictures_that_may_be_tested_on(world, tmp_path):
    assert pictures_tested(world / "stimuli.h5").tolist() == list(range(TEST))
    with h5py.File(world / "stimuli.h5") as source, h5py.File(tmp_path / "stimuli.h5", "w") as file:
        for key in ("id", "sha256", "test", "images"):
            source.copy(key, file)
        file["sha256"][20] = file["sha256"][1]  # the same picture under another number
    assert pictures_tested(tmp_path / "stimuli.h5").tolist() == [*range(TEST), 20]
    with h5py.File(tmp_path / "own.h5", "w") as file:  # a test picture of other subjects in a set of one's own
        file["stimulus"], file["split"] = np.array([3, 30, 31]), np.array([2, 2, 0])
    assert pictures_tested(tmp_path / "stimuli.h5", [tmp_path / "own.h5"]).tolist() == [*range(TEST), 20, 30]
    with h5py.File(tmp_path / "stimuli.h5", "a") as file:
        file["test"][:] = False
    with pytest.raises(InputError, match="no test pictures"):
        pictures_tested(tmp_path / "stimuli.h5")


def draw_controls(root, diffusion="diffusion", study=None):
    folders = [root / name for name in (diffusion, "autoencoder", "embedding")]
    controls(study or make_study(), root / "stimuli.h5", [], root / "e.h5", *folders, root / "controls.h5")


@pytest.fixture(scope="module")
def unconditioned(world):
    """Name of a diffusion model that takes no image embedding."""
    state, config = load_model(world / "diffusion")
    config["arguments"]["conditioner"] = None
    with whole_directory(world / "unconditioned") as folder:
        save_model(folder, {name: value for name, value in state.items() if not name.startswith("conditioner.")}, config)
    return "unconditioned"


def test_with_strength_zero_the_autoencoder_alone_decodes_the_latent_of_ridge(world, unconditioned):
    study = make_study()
    study.methods["ridge"] = study.methods["ridge"].model_copy(update={"sampling": Sampling(strength=0)})
    result = pictures(world, "ridge", study, diffusion=unconditioned)
    encoder, _ = load_encoder(world / "ridge")
    with h5py.File(world / "subj01.h5") as file:
        responses = np.stack([file["responses"][:][file["stimulus"][:] == image].mean(0) for image in range(TEST)])
    found, _ = encoder.enter.taken("d-subj01")
    coordinates = torch.from_numpy(responses @ found.weight + found.bias)
    with h5py.File(world / "e.h5") as file:
        seen = torch.from_numpy(file["latent"][:][TEST + 4 :]).flatten(1)
    away = encoder.space.target("latent", encoder.space.part(coordinates, "latent")).flatten(1) - seen.mean(0)
    latent = seen.mean(0) + away * ((seen - seen.mean(0)).square().sum(1).mean().sqrt() / away.norm(dim=1, keepdim=True))
    latent = latent * latent.norm(dim=1, keepdim=True).clamp(seen.norm(dim=1).min(), seen.norm(dim=1).max()) / latent.norm(dim=1, keepdim=True)
    decoded = load_autoencoder(world / "autoencoder").decode(latent.view(TEST, 4, 8, 8)).clamp(0, 1).permute(0, 2, 3, 1).detach().numpy() * 255
    assert result["samples"].shape[1] == 1 and not result["shown"].any()
    assert np.abs(result["samples"] - decoded[:, None]).max() < 0.51 and result["predicted"].shape == (TEST, 12)


def test_a_unet_without_image_conditioning_has_no_embedding_ceiling(world, unconditioned):
    draw_controls(world, unconditioned)
    with h5py.File(world / "controls.h5") as file:
        reasons = json.loads(file.attrs["absent"])
        assert not {"embedding_ceiling", "unconditional"} & set(file) and "shapes/embedding_ceiling" not in file and len(file["autoencoder_ceiling"]) == TEST
    assert set(reasons) == {"embedding-ceiling", "unconditional"} and "takes no image embedding" in reasons["embedding-ceiling"]
    assert "came without what it learned to draw from without a condition" in reasons["unconditional"], "zeros are nothing that it ever saw"


def test_controls(world):
    draw_controls(world)
    with h5py.File(world / "controls.h5") as file, h5py.File(world / "stimuli.h5") as stimuli:
        assert file["stimulus"][:].tolist() == list(range(TEST)) and file.attrs["absent"] == "{}"
        coder = load_autoencoder(world / "autoencoder")
        images = torch.from_numpy(stimuli["images"][:TEST]).permute(0, 3, 1, 2).float() / 255
        expected = (coder.decode(coder.encode(images)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(file["autoencoder_ceiling"][:], expected)
        assert not np.array_equal(file["embedding_ceiling"][:], file["unconditional"][:])
        drawn = np.stack(list(shapes(32).values()))
        assert drawn.shape == (12, 32, 32, 3) == np.unique(drawn, axis=0).shape and drawn[0, 0, 0].tolist() == [128] * 3, "twelve different ones, on grey"
        np.testing.assert_array_equal(file["shapes/image"][:], drawn)
        expected = (coder.decode(coder.encode(torch.from_numpy(drawn).permute(0, 3, 1, 2) / 255)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(file["shapes/autoencoder_ceiling"][:], expected)
        assert file["shapes/name"].asstr()[:].tolist() == list(shapes(32))


def test_the_embedding_ceiling_is_the_sample_that_agrees_best_with_the_true_embedding(world):
    study = make_study(samples=4)
    draw_controls(world, study=study)
    with h5py.File(world / "controls.h5") as file, h5py.File(world / "e.h5") as targets:
        ceiling, vectors, of_shapes = file["embedding_ceiling"][:], targets["embedding"][:], file["shapes/embedding_ceiling"][:]
        images = torch.from_numpy(file["shapes/image"][:]).permute(0, 3, 1, 2).float() / 255
        assert file.attrs["samples"] == 4 and ceiling.shape == (TEST, 32, 32, 3)
    network, coder = load_diffusion(world / "diffusion"), load_autoencoder(world / "autoencoder")
    true = load_embedding(world / "embedding").encode(images).detach().numpy()
    for found, wanted, whose in ((ceiling, vectors[:TEST], list(range(TEST))), (of_shapes, true, [("shape", number) for number in range(len(true))])):
        with torch.no_grad():
            condition = network.conditioner(torch.from_numpy(wanted))
        drawn = []
        for k in range(4):
            keys = [(study.seed, *(one if isinstance(one, tuple) else (one,)), k) for one in whose]
            latents = sample(network, condition, network.null(), study.methods["unimind"].sampling, keys)
            drawn.append(as_bytes(coder.decode(latents).detach()))
        agreement = agreements(world, {"samples": np.stack(drawn, 1), "predicted": wanted}, vectors[TEST:].mean(0))
        difference = np.abs(np.stack(drawn, 1).astype(int) - found[:, None]).mean((2, 3, 4))  # sums in another order, rounded to 8 bits
        chosen = difference.argmin(1)
        assert difference.min(1).max() < 0.05 and len(set(chosen)) > 1
        short = agreement.max(1) - agreement[np.arange(len(chosen)), chosen]  # such small networks embed all shapes alike, up to rounding
        assert short.max() < (1e-6 if found is of_shapes else 1e-12)


def test_a_comparison_over_budgets_says_which_measures_of_pictures_it_has_not(world, tmp_path):
    content = make_study().model_dump(mode="json")
    content["methods"] = {"ridge": content["methods"]["ridge"]}
    content |= {"transfer": {"trials": ["all"]}, "evaluation": {"metrics": ["pixcorr", "squeezenet", "identification"], "squeezenet": None, "bootstrap": 50}}
    networks = [world / name for name in ("diffusion", "autoencoder", "embedding")]
    files = [world / "subj01.h5", world / "e.h5", None, None, *networks, world / "stimuli.h5", world / "stimuli.h5", [], [], tmp_path / "checkpoints"]
    transfer(parse_study(content), "ridge", "d", "subj01", *files, tmp_path / "curve.json")
    (entry,) = json.loads((tmp_path / "curve.json").read_text())["entries"]
    assert set(entry["rows"]["reconstruction"]) == {"pixcorr", "identification"}
    assert entry["absent"] == {"squeezenet": "the study names no SqueezeNet weights (evaluation.squeezenet)"}


def test_an_edit_of_what_is_measured_or_drawn_adapts_no_model_anew(world, tmp_path, monkeypatch):
    """Predictions of finished budgets stay: another measure, other drawing, more drawings of budgets and another budget train what is new alone."""
    content = make_study().model_dump(mode="json")
    method = content["methods"]["unimind"] | {"adapt": {"training": SHORT, "losses": {"latent": 0.0}}}
    content["datasets"] = {"d": {"source": "simulated", "training_subjects": ["subj01"], "new_subjects": ["subj02"]}}
    content["methods"] = {"unimind": method}
    content |= {"transfer": {"trials": [20], "seeds": 1, "scratch": False}, "evaluation": {"metrics": ["pixcorr", "identification"], "bootstrap": 50}}
    networks = [world / name for name in ("diffusion", "autoencoder", "embedding")]
    trained = []
    made = transfers._model
    monkeypatch.setattr(transfers, "_model", lambda *given: trained.append(given[4].trials) or made(*given))

    def measured(study, kept="kept", prepared=world / "subj02.h5"):
        trained.clear()
        files = [prepared, world / "e.h5", world / "unimind", None, *networks, world / "stimuli.h5", world / "stimuli.h5", [], []]
        transfer(parse_study(study), "unimind", "d", "subj02", *files, tmp_path / kept, tmp_path / "curve.json")
        entries = json.loads((tmp_path / "curve.json").read_text())["entries"]
        return {entry["budget"]: {name: row["per_image"] for name, row in entry["rows"]["reconstruction"].items()} for entry in entries}

    first = measured(content)
    assert trained == ["20"]
    assert measured(content) == first and not trained
    measures = content | {"evaluation": content["evaluation"] | {"metrics": ["embedding_error", "pixcorr", "identification"], "bootstrap": 60}}
    more = measured(measures)
    assert not trained and more["20"].items() >= first["20"].items() and "embedding_error" in more["20"]
    assert measured(measures, "elsewhere") == more and trained == ["20"], "what is kept is what a run from nothing would find"
    drawn = content | {"methods": {"unimind": method | {"label": "another", "sampling": method["sampling"] | {"steps": 2}}}}
    other = measured(drawn)["20"]
    assert not trained and other["pixcorr"] != first["20"]["pixcorr"] and other["identification"] == first["20"]["identification"]
    assert set(measured(content | {"transfer": content["transfer"] | {"trials": [20, 30], "seeds": 2}})) == {"20", "30"} and trained == ["20", "30", "30"]
    assert measured(content) == first and not trained
    (file,) = (tmp_path / "elsewhere").glob("*/checkpoint.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    (tmp_path / "elsewhere" / f"{file.parent.name.removesuffix('-predictions')}.json").unlink()
    assert measured(measures, "elsewhere") == more and trained == ["20"], "a broken file is made anew"
    changed = content | {"methods": {"unimind": method | {"adapt": method["adapt"] | {"training": SHORT | {"learning_rate": 0.01}}}}}
    assert measured(changed)["20"] != first["20"] and trained == ["20"]


def test_latents_of_another_family_are_refused(world, tmp_path):
    with h5py.File(tmp_path / "e.h5", "w") as file:
        random = np.random.default_rng(0)
        file["embedding"], file["latent"] = (random.standard_normal((IMAGES, *shape), np.float32) for shape in ((12,), (3, 8, 8)))
    files = [world / "subj01.h5"], [tmp_path / "e.h5"], None, None, world / "diffusion", None, None
    with pytest.raises(InputError, match="3 channels"):
        condition(make_study(), "mindvis", "d-subj01", *files, tmp_path / "c", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bottleneck_lets_the_first_dimensions_of_the_signal_through_and_no_other(world):
    found = pictures(world, "ridge", out="narrow.h5")
    numbers = found["dimensions"].tolist()
    assert numbers[:2] == [1, 3] and numbers == sorted(numbers)
    np.testing.assert_allclose(found["predicted_of_dimensions"][-1], found["predicted"], atol=1e-6)
    for number, values in zip(numbers, found["predicted_of_dimensions"], strict=True):
        singular = np.linalg.svd(values - values.mean(0), compute_uv=False)
        assert (singular > 1e-4 * singular[0]).sum() <= number, "so many directions reach the prediction"
    assert "dimensions" not in pictures(world, "mindvis", out="without.h5"), "voxels that are wrapped have no order of worth"


# --- trials without truth -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unimind", "mindvis", "ridge", "sampled"])
def test_trials_called_by_their_pictures_are_decoded_as_test_trials_are(world, tmp_path, name):
    """The test trials again, shuffled and without pictures: the same predictions; a method without any is compared by its pictures.

    With a prior over embeddings other pictures are drawn, and nothing else is otherwise.
    """
    study = make_study().model_copy(update={"decode": {"again": Decode(dataset="d")}})
    with PreparedSubject(world / "subj01.h5") as own:
        trials = np.random.default_rng(1).permutation(own.trials("test"))
        responses, labels = own.read(trials), [str(row) for row in own.stimulus[trials]]
        attributes = {key: own.attributes[key] for key in ("dataset", "subject", "units", "normalisation", "order", "protocol", "sources")}
    write_further(
        tmp_path / "f.h5", [responses], label=labels, condition=[""] * len(labels), session=np.ones(len(labels)), run=None, n_voxels=responses.shape[1],
        voxel={}, attributes=attributes,
    )  # fmt: skip
    given = [world / part for part in ("e.h5", "stimuli.h5", name)], [world / part for part in ("diffusion", "autoencoder", "embedding")]
    prior = {"embedding_prior": world / "prior"} if name == "sampled" else {}
    decode(study, name, "d", "subj01", "again", world / "subj01.h5", tmp_path / "f.h5", *given[0], None, *given[1], tmp_path / "out.h5", **prior)
    expected = pictures(world, name)
    with h5py.File(tmp_path / "out.h5") as file:
        found, attributes = {key: file[key][:] for key in file}, dict(file.attrs)
    order = [int(label) for label in dict.fromkeys(labels)]
    if prior:
        decode(study, name, "d", "subj01", "again", world / "subj01.h5", tmp_path / "f.h5", *given[0], None, *given[1], tmp_path / "mean.h5")
        with h5py.File(tmp_path / "mean.h5") as file:
            same = {key for key in file if np.array_equal(file[key][:], found[key])}
            assert set(file) - same <= {"samples", "shown", "sample_agreement"} and (file["samples"][:] != found["samples"]).any((1, 2, 3, 4)).all()
        assert "sample of the embeddings" in attributes["embedding_prior"]
    assert found["imagined"].tolist() == order and (found["trials"] == 2).all() and attributes["pool"] == TEST
    if name == "mindvis":
        embedded = load_embedding(world / "embedding").encode(torch.from_numpy(found["samples"].reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).float() / 255)
        np.testing.assert_allclose(found["embedding"], embedded.detach().numpy().reshape(TEST, 2, -1).mean(1), atol=1e-5)
        assert attributes["compared"].startswith("the mean image embedding") and not found["shown"].any() and np.isnan(found["trial_agreement"]).all()
    else:
        np.testing.assert_allclose(found["embedding"], expected["predicted"][order], atol=1e-5)
        agreement = agreements(world, {"samples": found["samples"], "predicted": found["embedding"]})
        np.testing.assert_array_equal(found["shown"], agreement.argmax(1))
        assert np.isfinite(found["trial_agreement"]).all()
    if name == "ridge":
        study = make_study(chosen_by="encoding").model_copy(update={"decode": study.decode})
        decode(study, name, "d", "subj01", "again", world / "subj01.h5", tmp_path / "f.h5", *given[0], None, *given[1], tmp_path / "by.h5")
        encoding = SubjectEncoding.fitted(world / "subj01.h5", world / "e.h5")
        with PreparedSubject(world / "subj01.h5") as own:
            told = encoding.told(own.by_picture(own.trials("test"), "stored")[1][order, 0])
        samples = found["samples"].reshape(-1, 32, 32, 3)
        vectors = load_embedding(world / "embedding").encode(torch.from_numpy(samples).permute(0, 3, 1, 2).float() / 255)
        likelihood = encoding.likelihood(vectors.detach(), samples, load_autoencoder(world / "autoencoder"), told, 64)
        with h5py.File(tmp_path / "by.h5") as file:
            assert file["shown"][:].tolist() == likelihood.argmax(1).tolist() and "encoding model" in file.attrs["choice"]
    assert np.isfinite(found["sample_agreement"]).all() and not (tmp_path / ".out.h5.partial").exists()
    with pytest.raises(InputError, match="is of d subj01, expected d subj02"):
        decode(study, name, "d", "subj02", "again", world / "subj02.h5", tmp_path / "f.h5", *given[0], None, *given[1], tmp_path / "o.h5")
    write_further(
        tmp_path / "g.h5", [responses], label=labels, condition=[""] * len(labels), session=np.ones(len(labels)), run=None, n_voxels=responses.shape[1],
        voxel={"stored": np.arange(responses.shape[1])[::-1]}, attributes=attributes_of(tmp_path / "f.h5"),
    )  # fmt: skip
    with pytest.raises(InputError, match="holds other voxels than .*subj01.h5; run prepare-further again"):
        decode(study, name, "d", "subj01", "again", world / "subj01.h5", tmp_path / "g.h5", *given[0], None, *given[1], tmp_path / "o.h5")


def attributes_of(path):
    with FurtherTrials(path) as data:
        return data.attributes
