"""A tiny study on disk, and fakes of the study's own networks, for the tests of the evaluation."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from unimind.study import parse_study


class Embedding:
    """A linear image embedding: fast, deterministic, and sees colour and place."""

    name, dim = "tiny CLIP", 12

    def __init__(self, directory=None):
        self.weight = torch.from_numpy(np.random.default_rng(3).normal(size=(self.dim, 3 * 64)).astype(np.float32))

    def encode(self, images):
        small = torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1) - 0.5
        return torch.nn.functional.normalize(small @ self.weight.T, dim=1)


class Classifier:
    """Two layers of convolution; logits from their average."""

    name, classes = "tiny classifier", ["a", "b", "c", "d", "e"]

    def __init__(self, directory=None):
        random = torch.Generator().manual_seed(4)
        self.first = torch.randn(6, 3, 3, 3, generator=random)
        self.second = torch.randn(5, 6, 3, 3, generator=random)

    def features(self, images):
        one = torch.relu(torch.nn.functional.conv2d(images - 0.5, self.first, stride=2))
        return [one, torch.relu(torch.nn.functional.conv2d(one, self.second, stride=2))]

    def __call__(self, images):
        return 3 * self.features(images)[-1].mean((2, 3))


@pytest.fixture(scope="module")
def fakes():
    """`unimind.foundations` answered by the fakes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unimind.foundations.load_embedding", Embedding)
        patch.setattr("unimind.foundations.load_classifier", Classifier)
        yield


def write_foundations(root: Path) -> Path:
    """Directories of an embedding and a classifier."""
    for name, kind in (("embedding", "study-clip"), ("classifier", "study")):
        folder = root / "foundations" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"kind": kind, "name": f"tiny {name}"}))
        (folder / "model.safetensors").write_bytes(name.encode())
    return root / "foundations"


def scenes(n: int, side: int, seed: int = 0) -> np.ndarray:
    """Coloured squares on coloured backgrounds, lightly textured: uint8 (n, side, side, 3)."""
    random = np.random.default_rng(seed)
    images = np.empty((n, side, side, 3), np.uint8)
    for image in images:
        image[:] = random.integers(0, 255, 3)
        size = random.integers(side // 4, side // 2)
        top, left = random.integers(0, side - size, 2)
        image[top : top + size, left : left + size] = random.integers(0, 255, 3)
    return np.clip(images + random.normal(0, 12, images.shape), 0, 255).astype(np.uint8)


class TinyStudy:
    """Files of every stage before `features`, for two training subjects and a new one, and two methods."""

    subjects = ("subj01", "subj02", "subj03")

    def __init__(self, root: Path, foundations: Path, n_test: int = 8, n_train: int = 10, side: int = 32, samples: int = 2):
        self.root, self.foundations, self.n_test, self.n_train, self.side, self.samples = root, foundations, n_test, n_train, side, samples
        ridge = {"enter": {"kind": "ridge"}, "scope": "subject"}
        self.study = parse_study(
            {
                "name": "tiny",
                "picture_size": side,
                "datasets": {"sim": {"source": "simulated", "training_subjects": ["subj01", "subj02"], "new_subjects": ["subj03"]}},
                "foundations": {"diffusion": {"kind": "study"}, "embedding": {"kind": "study-clip"}, "classifier": {"kind": "study"}},
                "methods": {"good": {**ridge, "label": "Good"}, "poor": {**ridge, "label": "Poor"}},
                "evaluation": {"bootstrap": 300, "weights": str(root / "weights"), "squeezenet": None, "batch_size": 5},
            }
        )
        self.images = scenes(n_test + n_train, side)
        self.test = np.sort(np.random.default_rng(1).choice(n_test + n_train, n_test, replace=False))
        train = np.setdiff1d(np.arange(n_test + n_train), self.test)
        embedding = Embedding().encode(torch.from_numpy(self.images).permute(0, 3, 1, 2).float() / 255).numpy()
        with h5py.File(root / "stimuli.h5", "w") as file:
            file["images"] = self.images
            file["test"] = np.isin(np.arange(len(self.images)), self.test)
            file["id"], file["sha256"] = [str(i) for i in range(len(self.images))], [f"{i:064d}" for i in range(len(self.images))]
        with h5py.File(root / "embeddings.h5", "w") as file:
            file["embedding"] = embedding
        for subject in self.subjects:
            with h5py.File(root / f"{subject}.h5", "w") as file:
                file["stimulus"] = np.concatenate([train, train, self.test]).astype(np.int32)
                file["split"] = np.array([0] * (2 * len(train)) + [2] * len(self.test), np.int8)
        with h5py.File(root / "controls.h5", "w") as file:
            file["stimulus"] = self.test
            file["unconditional"] = scenes(n_test, side, 8)
            file["embedding_ceiling"] = self.noisy(15, 9)
            file["autoencoder_ceiling"] = self.noisy(5, 10)
            file.attrs.update(absent="{}", samples=samples)
        for method, noise in (("good", 40), ("poor", 160)):
            for k, subject in enumerate(self.subjects):
                order = np.random.default_rng(k).permutation(n_test)  # reconstructions need not come in the stimuli's order
                samples_ = np.stack([self.noisy(noise, 20 + 10 * k + s)[order] for s in range(samples)], 1)
                with h5py.File(root / f"{method}-{subject}.h5", "w") as file:
                    file["stimulus"] = self.test[order]
                    file["samples"] = samples_
                    file["shown"] = np.arange(n_test) % samples
                    file["shuffled"] = np.roll(samples_[:, 0], 1, 0)
                    predicted = embedding[self.test[order]] + np.random.default_rng(k).normal(0, noise / 200, (n_test, 12))
                    file["predicted"] = predicted.astype(np.float32)
                    file["predicted_shuffled"] = np.roll(predicted, 1, 0).astype(np.float32)
                    cut = predicted + np.random.default_rng(10 + k).normal(0, noise / 100, (n_test, 12))
                    file["predicted_without_body"] = cut.astype(np.float32)
                    file["predicted_train_nearest"] = np.random.default_rng(k).choice(train, n_test)
                    file.attrs.update(method=method, repeats="all test trials of a picture", trials_per_picture="1", choice="agrees best")

    def noisy(self, noise: float, seed: int) -> np.ndarray:
        return np.clip(self.images[self.test] + np.random.default_rng(seed).normal(0, noise, (self.n_test, self.side, self.side, 3)), 0, 255).astype(np.uint8)

    def path(self, name: str) -> Path:
        return self.root / name

    def features(self) -> Path:
        from unimind.evaluation.features import features

        features(self.study, self.path("stimuli.h5"), [], self.foundations / "embedding", self.foundations / "classifier", self.path("features.h5"))
        return self.path("features.h5")

    def score(self, subject: str, features: Path, *methods: str) -> dict[str, Path]:
        """Metrics files by method; of a study of some methods alone where they are named."""
        from unimind.evaluation.score import score

        study = self.study.model_copy(update={"methods": {name: self.study.methods[name] for name in methods or self.study.methods}})
        out = self.root / "metrics" / "sim" / subject
        reconstructions = [self.path(f"{method}-{subject}.h5") for method in study.methods]
        files = [self.path("controls.h5"), features, *(self.path(name) for name in ("stimuli.h5", f"{subject}.h5", "embeddings.h5"))]
        score(study, "sim", subject, reconstructions, *files, self.foundations / "embedding", self.foundations / "classifier", out)
        return {method: out / f"{method}.json" for method in study.methods}

    def content(self, method: str, subject: str, features: Path) -> dict:
        """The metrics file of one method, scored alone."""
        return json.loads(self.score(subject, features, method)[method].read_text())


@pytest.fixture
def tiny(tmp_path, fakes):
    return TinyStudy(tmp_path, write_foundations(tmp_path))


@pytest.fixture(scope="module")
def scored_once(tmp_path_factory, fakes):
    """The tiny study with the metrics files of two methods and three subjects."""
    root = tmp_path_factory.mktemp("scored")
    tiny = TinyStudy(root, write_foundations(root))
    features = tiny.features()
    return tiny, {(method, subject): file for subject in tiny.subjects for method, file in tiny.score(subject, features).items()}


def only(rows: dict, *names: str) -> dict:
    """Rows of a metrics file with some measures: of 8 images no test is sure after Holm's correction over many."""
    return {row: {name: entry for name, entry in entries.items() if name in names} for row, entries in rows.items()}


@pytest.fixture
def scored(scored_once, tmp_path):
    """A copy of those files, to be changed at will."""
    tiny, files = scored_once
    copies = {key: tmp_path / f"{key[0]}-{key[1]}.json" for key in files}
    for key, file in files.items():
        copies[key].write_text(file.read_text())
    return tiny, copies
