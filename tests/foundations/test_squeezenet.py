"""Pooled SqueezeNet features: torchvision's network, and what real neurons say about them."""

import io
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from unimind.errors import InputError
from unimind.foundations import external
from unimind.storage import read_json
from unimind.study import SqueezeNetEmbedding

REAL = Path(os.environ.get("UNIMIND_REAL_DATA", ""))


@pytest.fixture
def built(tmp_path):
    torch.manual_seed(0)
    network = squeezenet1_1(weights=None).eval()
    save_file(network.state_dict(), tmp_path / "squeezenet.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    external.build(SqueezeNetEmbedding(kind="squeezenet", weights=str(tmp_path / "squeezenet.safetensors")), out)
    return network, out


def test_equals_torchvisions_own_preprocessing_and_features(built):
    from torchvision.transforms import v2

    network, directory = built
    module = external.load_external(directory)
    assert module.dim == 512 and module.name == "SqueezeNet 1.1 pooled features" and not module.training
    steps = v2.Compose([v2.Resize((224, 224), antialias=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    for side in (112, 224, 300):
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.no_grad():
            features = network.features(steps(images)).mean((2, 3))
        expected = features / features.norm(dim=1, keepdim=True)
        torch.testing.assert_close(module.encode(images), expected, rtol=1e-4, atol=1e-6)


def test_on_disk_form(built):
    _, directory = built
    config = read_json(directory / "config.json")
    assert config["kind"] == "squeezenet" and config["dim"] == 512 and len(config["sources"]["squeezenet.safetensors"]) == 64
    assert not any(value.requires_grad for value in external.load_external(directory).parameters())


def test_absent_or_foreign_weights_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nothing.safetensors: no such file"):
        external.build(SqueezeNetEmbedding(kind="squeezenet", weights=str(tmp_path / "nothing.safetensors")), tmp_path)
    monkeypatch.delenv("UNIMIND_REAL_DATA", raising=False)
    with pytest.raises(InputError, match="UNIMIND_REAL_DATA is not set"):
        external.build(SqueezeNetEmbedding(kind="squeezenet"), tmp_path)
    save_file({"features.0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not SqueezeNet 1.1's weights"):
        external.build(SqueezeNetEmbedding(kind="squeezenet", weights=str(tmp_path / "other.safetensors")), tmp_path)


@pytest.mark.slow
def test_ridge_from_v4_identifies_pictures_two_way(tmp_path):
    """Ridge from V4 units predicts the features of held-out pictures well enough to tell two apart (0.93 here, chance 0.5)."""
    from PIL import Image
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    session = REAL / "data" / "macaque_v4" / "201017"
    if not session.is_dir():
        pytest.skip("the macaque recordings are absent (UNIMIND_REAL_DATA)")
    external.build(SqueezeNetEmbedding(kind="squeezenet"), tmp_path)
    module = external.load_external(tmp_path)
    responses = np.load(session / "responses.npy").T
    responses = responses[:, np.isfinite(responses).all(0) & (responses.std(0) > 0)]
    with zipfile.ZipFile(session / "images.zip") as archive:
        numbers = {int(found[1]): name for name in archive.namelist() if (found := re.search(r"(?<!\._)image(\d+)\.jpg$", name))}
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(numbers[k + 1]))).convert("RGB")) for k in range(len(responses))]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    features = StandardScaler().fit_transform(torch.cat([module.encode(part / 255) for part in images.split(50)]).numpy())
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 7)))
    predicted = cross_val_predict(ridge, responses, features, cv=KFold(5, shuffle=True, random_state=0))
    shuffled = np.random.default_rng(0).permutation(features)
    for truth, low, high in ((features, 0.9, 1.0), (shuffled, 0.45, 0.55)):
        similarity = np.corrcoef(predicted, truth)[: len(truth), len(truth) :]
        right = np.diag(similarity)[:, None] > similarity
        assert low < right.sum() / (len(truth) * (len(truth) - 1)) < high
