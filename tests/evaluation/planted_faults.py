"""Decoders with a fault, and without one, on drawn scenes with fake networks: the files that the stage `generalise` reads."""

import json
from pathlib import Path

import h5py
import numpy as np
import torch
from evaluation_fakes import Embedding, scenes

SIDE, TRAIN, TEST = 32, 400, 80


def embedded(images: np.ndarray) -> np.ndarray:
    return Embedding().encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).numpy()


def brighter(images: np.ndarray) -> np.ndarray:
    return np.clip(images.astype(int) + 2, 0, 255).astype(np.uint8)


class Planted:
    """Pictures of one subject, and decoders of them.

    Attributes
    ----------
    images : uint8 (TRAIN + TEST, SIDE, SIDE, 3)
        Training pictures first.
    category : int (TRAIN + TEST,)
        Eight colours of the background make a category, when `categories` is asked for.
    """

    def __init__(self, root: Path, seed: int, categories: bool = False, duplicates: int = 0) -> None:
        self.root, self.random = root, np.random.default_rng(seed)
        self.images = scenes(TRAIN + TEST, SIDE, seed)
        self.category = self.random.integers(8, size=TRAIN + TEST)
        if categories:
            grounds = scenes(8, SIDE, 1000 + seed).astype(float)
            self.images = np.clip(0.5 * grounds[self.category] + 0.5 * self.images, 0, 255).astype(np.uint8)
        if duplicates:
            self.images[TRAIN : TRAIN + duplicates] = brighter(self.images[self.random.choice(TRAIN, duplicates, replace=False)])
        self.embedding = embedded(self.images)
        self.known_embedding = self.embedding[:TRAIN]
        self.truth, self.known = self.images[TRAIN:], self.images[:TRAIN]
        root.mkdir(parents=True, exist_ok=True)
        with h5py.File(root / "stimuli.h5", "w") as file:
            file["images"], file["sha256"] = self.images, [f"{i:064d}" for i in range(len(self.images))]
            file["id"] = [f"c{category}_{i}" for i, category in enumerate(self.category)]
        with h5py.File(root / "embeddings.h5", "w") as file:
            file["embedding"] = self.embedding
        with h5py.File(root / "subj01.h5", "w") as file:
            file["stimulus"] = np.concatenate([np.arange(TRAIN), np.arange(TRAIN), np.arange(TRAIN, TRAIN + TEST)]).astype(np.int32)
            file["split"] = np.repeat([0, 2], [2 * TRAIN, TEST]).astype(np.int8)
            file["session"] = np.zeros(2 * TRAIN + TEST, np.int32)

    def noisy(self, images: np.ndarray, noise: float) -> np.ndarray:
        return np.clip(images + self.random.normal(0, noise, images.shape), 0, 255).astype(np.uint8)

    def read(self, noise: float) -> np.ndarray:
        """Embeddings of the test pictures as a brain gives them."""
        return self.embedding[TRAIN:] + noise * self.embedding.std(0) * self.random.normal(size=(TEST, self.embedding.shape[1]))

    def write(self, name: str, shown: np.ndarray, predicted: np.ndarray | None) -> Path:
        """A decoder's reconstructions; its metrics beside them."""
        path = self.root / f"{name}.h5"
        order = self.random.permutation(TEST)  # reconstructions need not come in the stimuli's order
        with h5py.File(path, "w") as file:
            file["stimulus"], file["samples"], file["shown"] = TRAIN + order, shown[order][:, None], np.zeros(TEST, int)
            if predicted is not None:
                file["predicted"] = predicted[order].astype(np.float32)
                none = np.broadcast_to(self.embedding[:TRAIN].mean(0), predicted.shape)
                file["predicted_of_dimensions"], file["dimensions"] = np.stack([none, predicted])[:, order].astype(np.float32), np.array([1, 12])
            file.attrs["method"] = name
        (self.root / "metrics").mkdir(exist_ok=True)
        scores = {"value": 0.5, "per_image": self.random.random(TEST).tolist()}
        content = {
            "method": name, "dataset": "sim", "subject": "subj01", "stimulus": list(range(TRAIN, TRAIN + TEST)),
            "protocol": {"id": "1", "samples_per_stimulus": 1, "choice_of_sample": "the only one"}, "rows": {"reconstruction": {"clip": scores}},
        }  # fmt: skip
        (self.root / "metrics" / f"{name}.json").write_text(json.dumps(content))
        return path

    def clean(self, name: str = "clean", noise: float = 0.8) -> Path:
        """Reads every picture with noise, and draws what it reads."""
        return self.write(name, self.noisy(self.truth, 30), self.read(noise))

    def blurred(self, name: str = "pictures") -> Path:
        """Predicts no embedding; its pictures are coarse."""
        small = self.truth.reshape(TEST, 8, 4, 8, 4, 3).mean((2, 4))
        return self.write(name, self.noisy(small.repeat(4, 1).repeat(4, 2), 10), None)

    def nearest(self, name: str = "nearest") -> Path:
        """Returns the training picture nearest to what it reads."""
        mean, deviation = self.embedding[:TRAIN].mean(0), self.embedding[:TRAIN].std(0)
        chosen = np.corrcoef((self.read(0.5) - mean) / deviation, (self.embedding[:TRAIN] - mean) / deviation)[:TEST, TEST:].argmax(1)
        return self.write(name, self.known[chosen], self.embedding[chosen])

    def five(self, name: str = "five") -> Path:
        """Answers every picture with one of five, the one nearest to what it reads."""
        five = scenes(5, SIDE, 77)
        chosen = ((self.read(0.5)[:, None] - embedded(five)[None]) ** 2).sum(2).argmin(1)
        return self.write(name, self.noisy(five[chosen], 2), embedded(five)[chosen])

    def categorical(self, name: str = "categorical") -> Path:
        """Knows the category of a picture, and nothing else of it."""
        group = self.category[TRAIN:]
        of = [self.category[:TRAIN] == k for k in range(8)]
        means = np.stack([self.embedding[:TRAIN][own].mean(0) for own in of])[group]
        pictures = np.stack([self.known[own].mean(0) for own in of])[group]
        return self.write(name, self.noisy(pictures, 3), means + 0.02 * self.embedding.std(0) * self.random.normal(size=means.shape))
