import h5py
import numpy as np
import pytest
from tiny_training import DIM, IMAGES, VOXELS

from unimind.data.prepared import write_prepared, write_unpaired


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Three subjects whose responses are linear in the pictures' embeddings plus noise; two unpaired ones with smooth signals."""
    folder = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(0)
    features = random.normal(size=(IMAGES, DIM)) * np.linspace(2, 0.5, DIM)
    embedding = features + 3
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    with h5py.File(folder / "embeddings.h5", "w") as file:
        file["embedding"] = embedding.astype(np.float32)
        file["latent"] = (features @ random.normal(size=(DIM, 8))).reshape(IMAGES, 2, 2, 2).astype(np.float32)
    split = np.repeat([0, 1, 2], [44, 8, 8])
    for name, count in zip(("subj01", "subj02", "subj03"), VOXELS.values(), strict=True):
        stimulus = np.repeat(random.permutation(IMAGES), 3)
        responses = features[stimulus] @ random.normal(size=(DIM, count)) / DIM**0.5 + random.normal(size=(len(stimulus), count))
        write_prepared(
            folder / f"{name}.h5", responses.astype(np.float32), stimulus=stimulus, session=np.zeros(len(stimulus)), split=split[stimulus],
            stimuli=IMAGES, dataset="sim", subject=name,
        )  # fmt: skip
    for name, count in (("1", 50), ("2", 37)):
        smooth = np.cumsum(random.normal(size=(80, count)), 1)
        smooth = (smooth - smooth.mean(0)) / smooth.std(0)
        write_unpaired(folder / f"rest{name}.h5", [smooth.astype(np.float32)], n_samples=80, n_voxels=count, subject=name)
    return folder
