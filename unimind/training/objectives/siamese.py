"""The Siamese loss of the thesis: fMRI embeddings of two subjects are as near as their pictures are alike."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import normalize


class Siamese:
    """Contrastive loss with a soft pseudo-label: mean of s d^2 + (1 - s) max(m - d, 0)^2.

    d is the Euclidean distance of the two L2-normalised fMRI embeddings, s in [0, 1] the similarity of the two pictures'
    embeddings, m the margin. For s in {0, 1} it is the loss of Hadsell, Chopra & LeCun (2006); for any other s it is
    smallest at d = (1 - s) m.

    Parameters
    ----------
    margin : float
    """

    def __init__(self, margin: float = 1.0) -> None:
        self.margin = margin

    def __call__(self, first: Tensor, second: Tensor, similarity: Tensor) -> Tensor:
        """fMRI embeddings (n, k) and (n, k) of n pairs, their pseudo-labels (n,); a scalar."""
        squared = (normalize(first.float(), dim=1) - normalize(second.float(), dim=1)).square().sum(1)
        distance = (squared + 1e-12).sqrt()
        return (similarity * squared + (1 - similarity) * (self.margin - distance).clamp_min(0).square()).mean()


def pseudo_labels(first: Tensor, second: Tensor, centre: Tensor) -> Tensor:
    """Similarity of pictures: the cosine of their embeddings (n, d) about `centre` (d,), below zero taken as zero.

    Image embeddings share a large common vector, which would make all pairs alike; hence the centre, the mean of the
    training pictures.
    """
    return (normalize(first - centre, dim=1) * normalize(second - centre, dim=1)).sum(1).clamp(0, 1)


def cross_subject_pairs(subjects: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of rows of a batch: the k-th row of every subject with the k-th row of every other.

    The rows are drawn anew in every epoch and for every subject by itself, so pairs are too; and no pair is ever of one
    subject.

    Parameters
    ----------
    subjects : sequence of str
        Each row's subject.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(subjects):
        rows.setdefault(name, []).append(row)
    return [pair for one, other in combinations(rows.values(), 2) for pair in zip(one, other, strict=False)]


def shuffled(labels: Tensor) -> Tensor:
    """Ablation: every pair gets its neighbour's pseudo-label."""
    return torch.roll(labels, 1, 0)
