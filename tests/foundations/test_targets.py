"""Targets on disk by name and rows, and predictions brought to where the training pictures' targets lie."""

import h5py
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch

from unimind.errors import InputError
from unimind.foundations import external
from unimind.foundations.embed import embed
from unimind.foundations.generators.norms import TargetNorms
from unimind.foundations.targets import Targets
from unimind.study import ClipVisionEmbedding, HubAutoencoder, IpAdapterGenerator, parse_study


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Seven pictures embedded for a generator that takes tokens, and what the networks give."""
    place = tmp_path_factory.mktemp("embedded")
    torch.manual_seed(0)
    tiny.stable_diffusion(place / "sd", xl=False)
    foundations = {
        "embedding": {"kind": "clip-vision", "repository": str(place / "sd/adapters")},
        "autoencoder": {"kind": "hub", "repository": str(place / "sd/base")},
        "diffusion": {"kind": "ip-adapter"},
    }
    tokens = IpAdapterGenerator(kind="ip-adapter", target="tokens", weights="models/plus.safetensors")
    data = {"source": "arrays", "training_subjects": ["a"], "responses": "a.npy", "images": "pictures"}
    ridge = {"enter": {"kind": "ridge"}, "scope": "subject"}
    study = parse_study({"name": "x", "datasets": {"own": data}, "methods": {"ridge": ridge}, "foundations": foundations, "evaluation": {"batch_size": 3}})
    study = study.model_copy(update={"foundations": study.foundations.model_copy(update={"diffusion": tokens})})
    for name, section in (("embedding", ClipVisionEmbedding(**foundations["embedding"])), ("autoencoder", HubAutoencoder(**foundations["autoencoder"]))):
        (place / name).mkdir()
        external.build(section, place / name)
    pictures = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    with h5py.File(place / "stimuli.h5", "w") as file:
        file["images"] = pictures
    embed(study, place / "stimuli.h5", place / "embedding", place / "autoencoder", place / "targets.h5")
    with torch.no_grad():
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
        raw, tokens = external.load_external(place / "embedding").raw_and_tokens(images)
        latent = external.load_external(place / "autoencoder").encode(images)
    return place / "targets.h5", {"raw": raw.numpy(), "tokens": tokens.numpy(), "latent": latent.numpy()}


def test_every_target_is_stored_by_name_and_read_by_rows(embedded):
    path, expected = embedded
    rows = [5, 0, 5, 3]
    with Targets(path) as targets:
        assert len(targets) == 7 and targets.shapes == {"embedding": (tiny.DIM,), "norm": (), "tokens": (5, tiny.WIDTH), "latent": (4, 8, 8)}
        np.testing.assert_allclose(targets.raw(rows), expected["raw"][rows], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(targets.read("embedding", rows), axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(targets.read("latent", rows), expected["latent"][rows], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(targets.read("tokens", rows), expected["tokens"][rows], rtol=2**-10, atol=1e-4)
        np.testing.assert_array_equal(np.concatenate(list(targets.in_pieces("tokens", rows, 3))), targets.read("tokens", rows))
        with pytest.raises(InputError, match="no target depth there, but embedding, norm, tokens, latent; run the embed stage again"):
            targets.read("depth", rows)
    with h5py.File(path) as file:
        assert file["tokens"].dtype == np.float16 and file["tokens"].chunks == (1, 5, tiny.WIDTH)


def test_predictions_come_to_lie_as_the_training_pictures_targets_do():
    """Shrunk towards the mean, as unit vectors: brought back, their lengths and deviations are distributed as the targets' are."""
    random = np.random.default_rng(0)
    centre = random.normal(size=64)
    raw = (centre + random.normal(size=(400, 64)) * 0.8).astype(np.float32)
    norms = TargetNorms.of(np.array_split(raw, 7))
    np.testing.assert_allclose(norms.mean, raw.mean(0), atol=1e-5)
    deviation = np.sqrt((np.linalg.norm(raw - raw.mean(0), axis=1) ** 2).mean())
    assert norms.deviation == pytest.approx(deviation, rel=1e-4)
    lengths = np.linalg.norm(raw, axis=1)
    assert norms.length == pytest.approx((lengths.min(), lengths.mean(), lengths.max()), rel=1e-5)
    unit = raw / lengths[:, None]
    shrunk = torch.from_numpy(unit.mean(0) + 0.2 * (unit - unit.mean(0)))
    brought = norms.apply(shrunk, unit=True)
    assert brought.norm(dim=1).mean().item() == pytest.approx(lengths.mean(), rel=0.02) and shrunk.norm(dim=1).mean() < 1
    away = torch.nn.functional.cosine_similarity(brought - norms.mean, torch.from_numpy(raw) - norms.mean)
    assert away.mean() > 0.95
    torch.testing.assert_close(norms.apply(shrunk[3:5], unit=True), brought[3:5])
    assert (brought.norm(dim=1) <= norms.length[2] * 1.0001).all() and (brought.norm(dim=1) >= norms.length[0] * 0.9999).all()
    said = norms.protocol()
    assert said["mean_length"] == norms.length[1] and "root mean square deviation" in said["rule"]


def test_norms_of_tokens_keep_their_shape():
    random = np.random.default_rng(0)
    tokens = random.normal(size=(50, 3, 8)).astype(np.float32)
    norms = TargetNorms.of([tokens[:20], tokens[20:]])
    brought = norms.apply(torch.from_numpy(0.1 * tokens[:4]), unit=False)
    assert brought.shape == (4, 3, 8) and norms.mean.shape == (3, 8)
    np.testing.assert_allclose((brought - norms.mean).flatten(1).norm(dim=1), norms.deviation, rtol=0.05)
    with pytest.raises(ValueError, match="no distribution"):
        TargetNorms.of([tokens[:1]])
