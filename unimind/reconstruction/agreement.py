"""How well image embeddings agree: which of a picture's samples agrees best with the embedding it was drawn from, and which picture is nearest."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

#: Rows of each side that are compared at once.
BLOCK = 4096


def agreement(first: Tensor, second: Tensor, mean: Tensor) -> Tensor:
    """Cosine over the last axis after the training images' mean is taken off: all embeddings share most of it."""
    return cosine_similarity(first - mean, second - mean, dim=-1)


def best_agreeing(features: Tensor, reference: Tensor, mean: Tensor) -> NDArray[np.int64]:
    """Which row of `reference` (m, d) agrees best with each row of `features` (n, d): (n,).

    As `agreement`, by products of unit vectors in blocks.
    """
    found = []
    for part in features.split(BLOCK):
        own = normalize(part - mean, dim=1)
        best, place = torch.full((len(own),), -torch.inf), torch.zeros(len(own), dtype=torch.int64)
        for number, other in enumerate(reference.split(BLOCK)):
            value, index = (own @ normalize(other - mean, dim=1).T).cpu().max(1)
            better = value > best
            best[better], place[better] = value[better], index[better] + number * BLOCK
        found.append(place)
    return torch.cat(found).numpy()


def directions(values: Tensor, mean: Tensor) -> Tensor:
    """Embeddings (..., d) less the training images' mean, of unit length: the products of two such vectors are their agreement."""
    return normalize(values - mean, dim=-1)


def ranked(own: Tensor, blocks: Iterable[Tensor], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Places of the candidates that agree best with each of some embeddings, best first, and their agreement: (n, count) each.

    Parameters
    ----------
    own : Tensor (n, d)
        `directions` of the embeddings.
    blocks : iterable of Tensor (m, d)
        `directions` of the candidates, a block at a time; fewer than `count` in all give as many as there are.
    """
    values, places, start = own.new_empty(len(own), 0), torch.empty(len(own), 0, dtype=torch.int64, device=own.device), 0
    for block in blocks:
        here = own @ block.to(own.device).T
        index = torch.arange(start, start + len(block), device=own.device).expand(len(own), -1)
        values, best = torch.cat([values, here], 1).topk(min(count, values.shape[1] + len(block)), dim=1)
        places, start = torch.cat([places, index], 1).gather(1, best), start + len(block)
    return places.cpu().numpy(), values.cpu().numpy()


def as_images(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pictures uint8 (n, H, W, 3) as networks take them: float (n, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device).float() / 255


def embeddings_of(embedder, pictures: NDArray[np.uint8], device: torch.device, batch: int) -> Tensor:
    """Image embeddings (n, d) of pictures uint8 (n, H, W, 3), `batch` per pass."""
    with torch.no_grad():
        return torch.cat([embedder.encode(as_images(pictures[i : i + batch], device)) for i in range(0, len(pictures), batch)])


def mutual(samples: Tensor, mean: Tensor) -> Tensor:
    """Mean agreement of all pairs of a picture's k samples, given by their embeddings (n, k, d): (n,), NaN for a single one."""
    unit, count = directions(samples, mean), samples.shape[1]
    return mean_of_pairs(unit.sum(1), torch.full((len(unit),), count, device=unit.device))


def mean_of_pairs(total: Tensor, count: Tensor) -> Tensor:
    """Mean cosine of all pairs of unit vectors, given their sum (n, d) and number (n,): (|sum|^2 - m) / (m (m - 1)), NaN where m is 1."""
    return ((total**2).sum(-1) - count) / (count * (count - 1)).where(count > 1, torch.nan)


def best_sample(embedder, pictures: NDArray[np.uint8], wanted: Tensor, mean: Tensor, batch: int) -> NDArray[np.int64]:
    """Which sample of every stimulus has the image embedding that agrees best with the one wanted: (n,).

    Parameters
    ----------
    embedder
        On the device of `wanted`.
    pictures : uint8 (n k, H, W, 3)
        The k samples of each stimulus follow each other.
    wanted : Tensor (n, d)
    mean : Tensor (d,)
        Of the training images' embeddings.
    batch : int
        Pictures per pass through the embedder.
    """
    own = embeddings_of(embedder, pictures, wanted.device, batch).view(len(wanted), -1, wanted.shape[1])
    return agreement(own, wanted[:, None], mean).argmax(1).cpu().numpy()
