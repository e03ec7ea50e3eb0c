"""How well image embeddings agree, and which of a picture's samples agrees best with the embedding it was drawn from."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def agreement(first: Tensor, second: Tensor, mean: Tensor) -> Tensor:
    """Cosine over the last axis after the training images' mean is taken off: all embeddings share most of it."""
    return torch.nn.functional.cosine_similarity(first - mean, second - mean, dim=-1)


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
