"""From aligned encoder to pictures: condition, reconstruct, controls, on tiny networks."""

import h5py
import numpy as np
import pytest
import torch

from unimind.data.prepared import write_prepared
from unimind.errors import InputError
from unimind.foundations import load_diffusion
from unimind.reconstruction.controls import controls
from unimind.reconstruction.reconstruct import reconstruct, responses_by_image
from unimind.storage import load_model
from unimind.study import parse_study
from unimind.training.align import align
from unimind.training.condition import condition
from unimind.training.fit import fit
from unimind.training.foundations.build import foundation

SHORT = {"steps": 6, "batch_size": 8, "validate_every": 3}
IMAGES, TEST, VOXELS = 40, 8, {"subj01": 30, "subj02": 25}


def make_study(batch_size=64, **sampling):
    sampling = {"steps": 3, "samples": 2, "guidance": 1.5} | sampling
    method = {
        "voxels": {"size": 32}, "encoder": {"kind": "convmixer", "width": 16, "depth": 1, "patch": 8, "kernel": 3},
        "align": {"training": SHORT}, "condition": {"tokens": 2, "train_encoder": False, "training": SHORT}, "sampling": sampling,
    }  # fmt: skip
    return parse_study({
        "name": "stages", "picture_size": 32,
        "datasets": {"d": {"source": "simulated", "training_subjects": ["subj01", "subj02"]}},
        "methods": {
            "unimind": method,
            "mindvis": {**method, "scope": "subject", "align": None, "condition": {"tokens": 2, "train_encoder": True, "training": SHORT}},
            "ridge": {"scope": "subject", "encoder": {"kind": "ridge", "alphas": [1.0, 10.0], "folds": 2}, "sampling": {**sampling, "strength": 0.7}},
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
    align(study, "unimind", "d", both, [root / "e.h5"] * 2, None, root / "c1", root / "aligned")
    condition(study, "unimind", "d", both, [root / "e.h5"] * 2, root / "aligned", root / "diffusion", root / "c2", root / "unimind")
    condition(study, "mindvis", "d-subj01", both[:1], [root / "e.h5"], None, root / "diffusion", root / "c3", root / "mindvis")
    fit(study, "ridge", "d-subj01", both[:1], [root / "e.h5"], root / "ridge")
    return root


def pictures(root, name, study=None, model=None, prepared=None, stimuli=None, out="out.h5"):
    reconstruct(study or make_study(), name, "d", "subj01", prepared or root / "subj01.h5", root / "e.h5", model or root / name, root / "diffusion",
                root / "autoencoder", root / "embedding", stimuli or root / "stimuli.h5", root / out, root / "grid.png")  # fmt: skip
    with h5py.File(root / out) as file:
        return {key: value[:] for key, value in file.items()}


def test_only_what_may_be_trained_is_stored_and_changed(world, tmp_path):
    stimulus = np.repeat(np.arange(IMAGES), 2)
    for subject in VOXELS:  # without validation images the last weights are kept, whatever they are
        with h5py.File(world / f"{subject}.h5") as file:
            responses, split = file["responses"][:], np.where(stimulus < TEST, 2, 0)
        write_prepared(
            tmp_path / f"{subject}.h5", responses, stimulus=stimulus, session=np.zeros(len(stimulus)), split=split, stimuli=IMAGES, dataset="d", subject=subject
        )
    files = [tmp_path / f"{subject}.h5" for subject in VOXELS]
    condition(make_study(), "unimind", "d", files, [world / "e.h5"] * 2, world / "aligned", world / "diffusion", tmp_path / "c", tmp_path / "out")
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
    assert ("predicted" in result) == (name != "mindvis")
    assert not np.array_equal(result["shuffled"], result["samples"][:, 0])


def test_batches_change_nothing(world):
    one, two = pictures(world, "unimind", make_study(batch_size=64)), pictures(world, "unimind", make_study(batch_size=3))
    difference = np.abs(one["samples"].astype(int) - two["samples"])  # sums in another order, rounded to 8 bits
    assert difference.max() <= 4 and difference.mean() < 0.05
    assert np.array_equal(one["shown"], two["shown"])


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


def test_shuffling_moves_trials_between_pictures(world):
    from unimind.data.prepared import PreparedSubject

    with PreparedSubject(world / "subj01.h5") as data:
        images, plain = responses_by_image(data, "test", "mean", 1)
        _, shuffled = responses_by_image(data, "test", "mean", 1, np.random.default_rng(0))
        _, channels = responses_by_image(data, "test", "channels", 3)
        trials = data.read(data.trials("test"))
    assert images.tolist() == list(range(TEST))
    np.testing.assert_allclose(plain[:, 0], trials.reshape(TEST, 2, -1).mean(1), rtol=1e-5)
    np.testing.assert_allclose(plain.mean(0), shuffled.mean(0), atol=1e-5)
    assert not np.allclose(plain, shuffled)
    np.testing.assert_array_equal(channels, trials.reshape(TEST, 2, -1)[:, [0, 1, 0]])


def test_controls(world):
    study = make_study()
    controls(
        study,
        world / "stimuli.h5",
        [world / "subj01.h5"],
        world / "e.h5",
        world / "diffusion",
        world / "autoencoder",
        world / "embedding",
        world / "controls.h5",
    )
    with h5py.File(world / "controls.h5") as file, h5py.File(world / "stimuli.h5") as stimuli:
        assert file["stimulus"][:].tolist() == list(range(TEST))
        from unimind.foundations import load_autoencoder

        coder = load_autoencoder(world / "autoencoder")
        images = torch.from_numpy(stimuli["images"][:TEST]).permute(0, 3, 1, 2).float() / 255
        expected = (coder.decode(coder.encode(images)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(file["autoencoder_ceiling"][:], expected)
        assert not np.array_equal(file["embedding_ceiling"][:], file["unconditional"][:])


def test_latents_of_another_family_are_refused(world, tmp_path):
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["embedding"], file["latent"] = np.zeros((IMAGES, 12), np.float32), np.zeros((IMAGES, 3, 8, 8), np.float32)
    with pytest.raises(InputError, match="3 channels"):
        condition(make_study(), "mindvis", "d-subj01", [world / "subj01.h5"], [tmp_path / "e.h5"], None, world / "diffusion", tmp_path / "c", tmp_path / "out")
    assert not (tmp_path / "out").exists()
