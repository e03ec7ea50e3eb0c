"""Picture sets as every measure sees them: float tensors (n, 3, H, W) in [0, 1], read a batch at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from unimind.data.pixels import Forms, decode

SIDE = 256


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear, antialiased resize of (n, 3, H, W) to (n, 3, size, size); values clamped to [0, 1]."""
    if images.shape[-2:] == (size, size):
        return images.clamp(0, 1)
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True).clamp_(0, 1)


def slices(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover range(n)."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class Pictures:
    """A set of pictures: an array in memory or on disk, or a list of image files.

    Parameters
    ----------
    source : array of shape (n, H, W, 3), uint8 or float in [0, 1]; or list of paths
        Anything indexable by an integer or a sorted integer array will do, an open HDF5 data set for one.

    Attributes
    ----------
    forms : Forms
        What was left out of the files read so far.
    """

    def __init__(self, source: Any):
        self.source = source
        self.files = isinstance(source, list)
        self.forms = Forms()

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Pictures as stored, float32 (m, 3, H, W) in [0, 1]; files of a list are brought to 256 x 256."""
        if self.files:
            return torch.cat([resize(read_picture(self.source[i], self.forms), SIDE) for i in indices])
        wanted, back = np.unique(np.asarray(indices), return_inverse=True)
        values = torch.from_numpy(np.ascontiguousarray(self.source[wanted][back])).permute(0, 3, 1, 2)
        return (values.float().div_(255) if values.dtype == torch.uint8 else values.float().clamp(0, 1)).contiguous()


def read_picture(path: Path, forms: Forms | None = None) -> torch.Tensor:
    """One image file as (1, 3, H, W) in [0, 1], as `decode` reads it; InputError when it is not a picture."""
    return torch.from_numpy(decode(path.read_bytes(), path, forms=forms).copy()).permute(2, 0, 1)[None].float().div_(255)
