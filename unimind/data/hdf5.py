"""HDF5 files: rows read from them, and files that are being written, on disks that may fill up."""

import io
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray


def read_rows(values: h5py.Dataset, rows: ArrayLike) -> NDArray:
    """Some rows of a data set, in the order asked for, repeats allowed: (n, ...).

    Neighbouring rows are read at once, the others one by one: to h5py's own selection of many rows that takes a fifth of the time,
    of pictures a thirtieth.
    """
    rows = np.asarray(rows, np.int64).ravel()
    wanted, back = np.unique(rows, return_inverse=True)
    found = np.empty((len(wanted), *values.shape[1:]), values.dtype)
    start = 0
    for end in (np.flatnonzero(np.diff(wanted, append=-2) != 1) + 1).tolist():
        values.read_direct(found, np.s_[wanted[start] : wanted[end - 1] + 1], np.s_[start:end])
        start = end
    return found if np.array_equal(wanted, rows) else found[back]


class NewFile(h5py.File):
    """A new HDF5 file, open for writing; used as `h5py.File(path, "w")`.

    The HDF5 library crashes the process when a write fails and the file is closed afterwards. Here it never hears of the
    failure: what follows is not written, and the error is raised by `check` and at the end of the file's context.
    """

    def __init__(self, path: str | Path) -> None:
        self._disk = _Disk(path, "w+")
        super().__init__(self._disk, "w")

    def check(self) -> None:
        """Raise the OSError of the write that failed, if one did; for loops, which need not go on then."""
        if self._disk.failure is not None:
            raise self._disk.failure

    def __exit__(self, kind: Any, *rest: Any) -> None:
        super().__exit__(kind, *rest)
        self._disk.close()
        if kind is None:
            self.check()


class _Disk(io.FileIO):
    """A file that keeps the first failure to write to itself."""

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        left = memoryview(content).cast("B")
        size = len(left)
        while self.failure is None and len(left):
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.failure = OSError(error.errno, error.strerror or os.strerror(error.errno or 0), self.name)
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0
