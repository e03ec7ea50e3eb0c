"""Picture sets as every measure sees them: float tensors (n, 3, H, W) in [0, 1], read a batch at a time."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F

from unimind.data.hdf5 import read_rows
from unimind.data.pixels import Forms, decode_picture
from unimind.data.sources.base import content_of
from unimind.errors import InputError

SIDE = 256


def resize(images: torch.Tensor, size: int, mode: str = "bilinear") -> torch.Tensor:
    """Antialiased resize of (n, 3, H, W) to (n, 3, size, size), bilinear or bicubic; values clamped to [0, 1]."""
    if images.shape[-2:] == (size, size):
        return images.clamp(0, 1)
    return F.interpolate(images, size=(size, size), mode=mode, align_corners=False, antialias=True).clamp_(0, 1)


def slices(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover range(n)."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class Joined:
    """Pictures that lie in several arrays, in memory or on disk, read as one array (m, H, W, 3) a few rows at a time."""

    def __init__(self) -> None:
        self.parts: list[tuple[Any, np.ndarray]] = []
        self.starts = [0]

    def add(self, values: Any, rows: np.ndarray | None = None) -> np.ndarray:
        """Join pictures, and give their numbers.

        Parameters
        ----------
        values : array or HDF5 data set of shape (n, H, W, 3), or (n, k, H, W, 3) for k pictures a row
        rows : int array, optional
            The rows that are wanted, in any order; by default all.

        Returns
        -------
        int array of shape (n,) or (n, k)

        Raises
        ------
        InputError
            A row that is not there, or pictures of another size than those before.
        """
        rows = np.arange(len(values)) if rows is None else np.asarray(rows, int)
        name = getattr(getattr(values, "file", None), "filename", "the pictures")
        if len(rows) and rows.max() >= len(values):
            raise InputError(f"{name}: has {len(values)} entries, but entry {rows.max()} is asked for; these files do not belong together")
        size = self.parts[0][0].shape[-3:] if self.parts else values.shape[-3:]
        if values.shape[-3:] != size:
            sizes = f"{values.shape[-3]} x {values.shape[-2]} beside {size[0]} x {size[1]}"
            raise InputError(f"{name}: pictures of different sizes ({sizes}); run the stages of one picture_size again")
        shape = (len(rows), *values.shape[1:-3])
        numbers = self.starts[-1] + np.arange(math.prod(shape)).reshape(shape)
        self.parts.append((values, rows))
        self.starts.append(self.starts[-1] + numbers.size)
        return numbers

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index)
        part = np.searchsorted(self.starts, index, side="right") - 1
        found = np.empty((len(index), *self.parts[0][0].shape[-3:]), np.uint8)
        for number in np.unique(part).tolist():
            values, rows = self.parts[number]
            here = np.flatnonzero(part == number)
            each = values.shape[1] if len(values.shape) == 5 else 1
            row, sample = np.divmod(index[here] - self.starts[number], each)
            wanted, back = np.unique(rows[row], return_inverse=True)
            read = read_rows(values, wanted) if isinstance(values, h5py.Dataset) else values[wanted]
            found[here] = read[back, sample] if len(values.shape) == 5 else read[back]
        return found


class PictureSet:
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

    def __init__(self, source: Any, numbers: np.ndarray | None = None):
        self.source = source
        self.files = isinstance(source, list)
        self.numbers = np.arange(len(source)) if numbers is None else numbers
        self.forms = Forms()

    def __len__(self) -> int:
        return len(self.numbers)

    def subset(self, index: np.ndarray) -> "PictureSet":
        """Some of them, in the order given."""
        return PictureSet(self.source, self.numbers[index])

    def batch(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Pictures as stored, float32 (m, 3, H, W) in [0, 1]; files of a list are brought to 256 x 256."""
        numbers = self.numbers[np.asarray(indices, int)]
        if self.files:
            return torch.cat([resize(read_picture(self.source[i], self.forms), SIDE) for i in numbers])
        wanted, back = np.unique(numbers, return_inverse=True)
        values = torch.from_numpy(np.ascontiguousarray(self.source[wanted][back])).permute(0, 3, 1, 2)
        return (values.float().div_(255) if values.dtype == torch.uint8 else values.float().clamp(0, 1)).contiguous()


def read_picture(path: Path, forms: Forms | None = None) -> torch.Tensor:
    """One image file as (1, 3, H, W) in [0, 1], as `decode_picture` reads it; InputError when it is not a picture."""
    return torch.from_numpy(decode_picture(content_of(path), path, forms=forms).copy()).permute(2, 0, 1)[None].float().div_(255)
