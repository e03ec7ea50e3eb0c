"""TAEF2 gives its authors' numbers, and its latent has the scale a diffusion model expects."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unimind.errors import InputError
from unimind.foundations import external
from unimind.foundations.taef2 import LATENT_MEAN, LATENT_STD, Taef2
from unimind.storage import read_json
from unimind.study import Taef2Autoencoder

WEIGHTS = Path(os.environ.get("UNIMIND_REAL_DATA", "")) / "weights"


def random_weights(folder: Path) -> Path:
    torch.manual_seed(0)
    module = Taef2([0.0] * 32, [1.0] * 32).half()
    for part in ("encoder", "decoder"):
        save_file(getattr(module, part).state_dict(), folder / f"taef2_{part}.safetensors")
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not (WEIGHTS / "taef2_reference.safetensors").exists():
        pytest.skip("TAEF2's weights are absent (UNIMIND_REAL_DATA)")
    directory = tmp_path_factory.mktemp("autoencoder")
    external.build(Taef2Autoencoder(kind="taef2"), directory)
    return external.load_external(directory), load_file(WEIGHTS / "taef2_reference.safetensors")


def test_reproduces_the_reference(real):
    module, reference = real
    scale = torch.tensor(LATENT_STD).view(1, -1, 1, 1), torch.tensor(LATENT_MEAN).view(1, -1, 1, 1)
    latent = module.encode(reference["x"])
    torch.testing.assert_close(latent * scale[0] + scale[1], reference["z"], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(module.decoder(reference["z"]), reference["y"], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(module.decode(latent), reference["y"].clamp(0, 1), rtol=1e-4, atol=2e-5)


def test_real_pictures_survive_the_round_trip_and_latents_have_unit_scale(real):
    module, reference = real
    latent = module.encode(reference["x"])
    error = (module.decode(latent) - reference["x"]).square().mean()
    assert -10 * torch.log10(error) > 27
    assert 0.8 < latent.std() < 1.25 and abs(latent.mean()) < 0.15


def test_on_disk_half_precision_in_memory_single(tmp_path):
    weights = random_weights(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    external.build(Taef2Autoencoder(kind="taef2", weights=str(weights)), out)
    assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {torch.float16}
    config = read_json(out / "config.json")
    assert config["kind"] == "taef2" and len(config["mean"]) == len(config["std"]) == 32
    assert all(len(digest) == 64 for digest in config["sources"].values()) and len(config["sources"]) == 2
    module = external.load_external(out)
    assert not module.training and not any(value.requires_grad or value.dtype != torch.float32 for value in module.parameters())
    images = torch.rand(2, 3, 16, 24)
    latent = module.encode(images)
    assert latent.shape == (2, 32, 2, 3)
    decoded = module.decode(latent)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1


def test_refuses_sides_that_are_no_multiples_of_eight():
    with pytest.raises(InputError, match="multiples of 8; 16 x 20 given"):
        Taef2([0.0] * 32, [1.0] * 32).encode(torch.rand(1, 3, 16, 20))


def test_absent_or_foreign_weights_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="taef2_encoder.safetensors: no such file"):
        external.build(Taef2Autoencoder(kind="taef2", weights=str(tmp_path)), tmp_path)
    monkeypatch.delenv("UNIMIND_REAL_DATA", raising=False)
    with pytest.raises(InputError, match="UNIMIND_REAL_DATA is not set"):
        external.build(Taef2Autoencoder(kind="taef2"), tmp_path)
    for part in ("encoder", "decoder"):
        save_file({"weight": torch.zeros(1)}, tmp_path / f"taef2_{part}.safetensors")
    with pytest.raises(InputError, match="not TAEF2's weights"):
        external.build(Taef2Autoencoder(kind="taef2", weights=str(tmp_path)), tmp_path)
    (tmp_path / "taef2_encoder.safetensors").write_bytes(b"half a file")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        external.build(Taef2Autoencoder(kind="taef2", weights=str(tmp_path)), tmp_path)
