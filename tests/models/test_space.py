"""The picture space against scikit-learn's principal components."""

import h5py
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from unimind.models import space as module
from unimind.models.space import PictureSpace

RNG = np.random.default_rng


def pictures(n, dim=12, shape=(2, 3, 3), rank=None, seed=0):
    rng = RNG(seed)
    rank = rank or dim
    embedding = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, dim)) * np.linspace(3, 0.3, dim) + 2
    latent = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, int(np.prod(shape)))) - 1
    return embedding.astype(np.float32), latent.reshape(n, *shape).astype(np.float32)


@pytest.mark.parametrize("n", [80, 14], ids=["more pictures than dimensions", "fewer"])
def test_coordinates_are_principal_components(n):
    """Of the embedding in standard deviations of its dimensions; of the latent as it is, but for one scale. None along which nothing varies."""
    embedding, latent = pictures(n)
    space = PictureSpace.fit(embedding, latent)
    found = space.coordinates(torch.from_numpy(embedding), torch.from_numpy(latent)).numpy()
    flat = latent.reshape(n, -1)
    expected = {"embedding": (embedding - embedding.mean(0)) / embedding.std(0), "latent": (flat - flat.mean(0)) / np.sqrt(flat.var(0).mean())}
    for name, values in expected.items():
        count = space.components[name]
        reference = PCA(count).fit(values)
        axes = getattr(space, f"{name}_axes").double().numpy()
        np.testing.assert_allclose(axes.T @ axes, np.eye(count), atol=1e-5)
        own = space.part(torch.from_numpy(found), name).numpy()
        signs = np.sign((axes * reference.components_.T).sum(0))
        np.testing.assert_allclose(own * signs, reference.transform(values), atol=2e-3)
        np.testing.assert_allclose(getattr(space, f"{name}_spread").numpy(), own.std(0), rtol=1e-3)
    assert space.size == found.shape[1] == sum(space.components.values()) <= 12 + 12 and space.spread.shape == (space.size,)


def test_a_target_comes_back_where_components_suffice():
    """From nine dimensions, of all pictures; of others, the closest of the space."""
    embedding, latent = pictures(60, rank=5)
    space = PictureSpace.fit(embedding, latent)
    for name, values in (("embedding", embedding), ("latent", latent)):
        target = torch.from_numpy(values)
        torch.testing.assert_close(space.target(name, space.of(name, target)), target, rtol=1e-3, atol=1e-3)
        other = torch.randn_like(target)
        back = space.target(name, space.of(name, other))
        torch.testing.assert_close(space.of(name, back), space.of(name, other), rtol=1e-3, atol=1e-3)


def test_components_and_pictures_are_limited_and_files_are_read_by_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "COMPONENTS", {"embedding": 4, "latent": 3})
    monkeypatch.setattr(module, "PICTURES", 20)
    embedding, latent = pictures(100)
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["embedding"], file["latent"] = embedding, latent
        space = PictureSpace.fit(file["embedding"], file["latent"])
    rows = np.linspace(0, 99, 20).round().astype(int)
    assert space.components == {"embedding": 4, "latent": 3} and space.latent_shape == (2, 3, 3)
    np.testing.assert_allclose(space.embedding_mean.numpy(), embedding[rows].mean(0), rtol=1e-5)
