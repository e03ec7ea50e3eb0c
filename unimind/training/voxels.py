"""What training subjects teach of voxels as tokens, and what a subject's own trials say of its voxels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unimind.models.encoder import Encoder
from unimind.models.prior import EncodingPrior, Features, Recorded
from unimind.models.voxels import VoxelAttention, encoding_vectors
from unimind.training.data import PictureCoordinates, SubjectTrials
from unimind.training.enter import contexts

#: A subject's contexts: the name it enters by in each, and which of its training pictures are asked for there.
Contexts = dict[str, list[tuple[str, Tensor]]]


def teach_voxels(encoder: Encoder, subjects: Mapping[str, tuple[SubjectTrials, PictureCoordinates]], seed: int) -> Contexts:
    """Give an encoder the prior over voxels, and the vectors of its training subjects: from all training pictures, and from contexts of them.

    In training a picture enters by vectors that were not fitted to it, as at test.
    """
    enter = encoder.enter
    assert isinstance(enter, VoxelAttention)
    rows = {name: pictures_of(trials, targets, ("train",)) for name, (trials, targets) in subjects.items()}
    together = np.concatenate([coordinates for coordinates, _ in rows.values()])
    features = Features.of(together, encoder.space)
    prior = EncodingPrior.learned([Recorded(features(own), responses) for own, responses in rows.values()], features.white.shape[1], mixed=False)
    enter.remember(features, prior)
    length = enter.n_features + 2
    found: Contexts = {}
    for name, (coordinates, responses) in rows.items():
        enter.take(name, encoding_vectors(features, prior, coordinates, responses, length))
        found[name] = []
        for number, (fitted, asked) in enumerate(contexts(np.zeros(len(coordinates), np.int8), seed, name)):
            key = f"{name} in context {number}"
            enter.contexts[key] = encoding_vectors(features, prior, coordinates[fitted], responses[fitted], length)
            found[name].append((key, torch.from_numpy(asked)))
    return found


def start_at_encoding(encoder: Encoder, name: str, trials: SubjectTrials, targets: PictureCoordinates, whole: bool) -> None:
    """Give a new subject the vectors that its own trials say, in closed form.

    Parameters
    ----------
    whole : bool
        From training and validation trials, or from the training trials alone.
    """
    enter = encoder.enter
    assert isinstance(enter, VoxelAttention)
    features, prior = enter.taught()
    coordinates, responses = pictures_of(trials, targets, ("train", "validation") if whole else ("train",))
    enter.take(name, encoding_vectors(features, prior, coordinates, responses, enter.n_features + 2))


def pictures_of(trials: SubjectTrials, targets: PictureCoordinates, splits: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (n, K) and responses (n, V), averaged over repeats, of a subject's pictures of some splits."""
    parts = [trials.all(split) for split in splits if len(trials.images(split))]
    return targets.coordinates(np.concatenate([part[0] for part in parts])).numpy(), torch.cat([part[1] for part in parts]).mean(1).numpy()
