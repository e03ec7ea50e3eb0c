"""How well image embeddings agree: which of a picture's samples agrees best with the embedding it was drawn from, and which picture is nearest."""

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


def nearest(features: Tensor, reference: Tensor, mean: Tensor) -> NDArray[np.int64]:
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
    with torch.no_grad():
        parts = [
            embedder.encode(torch.from_numpy(pictures[i : i + batch]).permute(0, 3, 1, 2).to(wanted.device).float() / 255)
            for i in range(0, len(pictures), batch)
        ]
    own = torch.cat(parts).view(len(wanted), -1, wanted.shape[1])
    return agreement(own, wanted[:, None], mean).argmax(1).cpu().numpy()
