"""Rows of HDF5 data sets, against numpy's indexing of the whole."""

import h5py
import numpy as np
import pytest

from unimind.data.hdf5 import read_rows


class Watched(h5py.Dataset):
    """A data set that notes what is read of it."""

    def read_direct(self, found, source, place):
        self.read = [*getattr(self, "read", []), (source.start, source.stop)]
        super().read_direct(found, source, place)


@pytest.mark.parametrize("shape", [(12,), (12, 5), (12, 2, 4, 4, 3)])
@pytest.mark.parametrize("rows", [[3], [0, 1, 2], [7, 7, 2], [11, 0, 5, 6, 4, 11], []])
def test_rows_come_as_numpy_gives_them(tmp_path, shape, rows):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        found = read_rows(file.create_dataset("x", data=values, chunks=(1, *shape[1:]), compression="lzf"), rows)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values[np.array(rows, int)])


def test_neighbours_are_read_at_once_and_nothing_twice(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        watched = Watched(file.create_dataset("x", data=np.arange(20.0)).id)
        np.testing.assert_array_equal(read_rows(watched, [9, 3, 4, 5, 9, 12, 13]), [9, 3, 4, 5, 9, 12, 13])
    assert watched.read == [(3, 6), (9, 10), (12, 14)]
