"""Targets of a stimulus file, by name: read by rows, so that nothing of a target's size stands in memory as a whole.

| name | what | shape of a picture | on disk |
|---|---|---|---|
| `embedding` | pooled image embedding, L2-normalised | (d,) | float32 |
| `norm` | the length it had before, where the network has one | () | float32 |
| `tokens` | tokens of the image encoder's last layer but one | (n, width) | float16, chunked by picture |
| `latent` | latent of the autoencoder | (c, h, w) | float32, chunked by picture |
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
from numpy.typing import NDArray

from unimind.data.hdf5 import read_rows
from unimind.errors import InputError

NAMES = ("embedding", "norm", "tokens", "latent")


class Targets:
    """The targets of one stimulus file, open for reading; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = Path(path), h5py.File(path)

    def __enter__(self) -> "Targets":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one picture's target, by name."""
        return {name: self._file[name].shape[1:] for name in NAMES if name in self._file}

    def __len__(self) -> int:
        """Pictures."""
        return len(self._file["embedding"])

    def read(self, name: str, rows: Sequence[int] | NDArray) -> NDArray[np.float32]:
        """A target of some pictures, in the order given; a picture may stand several times.

        Raises
        ------
        InputError
            When the file has no such target.
        """
        if name not in self._file:
            raise InputError(f"{self.path}: no target {name} there, but {', '.join(self.shapes)}; run the embed stage again with foundations that give it")
        return read_rows(self._file[name], rows).astype(np.float32)

    def raw(self, rows: Sequence[int] | NDArray) -> NDArray[np.float32]:
        """Embeddings of some pictures, of the length the network gave them: (n, d)."""
        return self.read("embedding", rows) * self.read("norm", rows)[:, None]

    def in_pieces(self, name: str, rows: Sequence[int] | NDArray, size: int) -> Iterator[NDArray[np.float32]]:
        """A target of some pictures, `size` at a time; `raw` is a name too."""
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            yield self.raw(part) if name == "raw" else self.read(name, part)
