"""ROI extraction: the voxels of a mask out of files too large to load.

Voxels come in C order of (X, Y, Z), as `volume[mask]` gives them.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SLAB = 64 * 1024 * 1024  # bytes in memory at once


def label_mask(volume: NDArray, labels: list[int] | None) -> NDArray[np.bool_]:
    """Voxels of a ROI volume that carry one of `labels`; by default any value above 0."""
    return np.asarray(volume) > 0 if labels is None else np.isin(volume, labels)


def voxels_of_nifti(path: str | Path, mask: NDArray[np.bool_]) -> NDArray:
    """Voxels of a NIfTI file of shape (X, Y, Z, n).

    Volumes pass through memory a slab at a time, and a compressed file is read front to back once.

    Returns
    -------
    (n, n_voxels), in the file's type where it is not scaled
    """
    import nibabel

    image: Any = nibabel.load(path, keep_file_open=True)
    proxy = image.dataobj
    places = np.ravel_multi_index(np.nonzero(mask)[::-1], mask.shape[::-1])  # where the voxels are in one volume as stored
    step = max(1, _SLAB // (mask.size * proxy.dtype.itemsize))
    parts = []
    for start in range(0, proxy.shape[3], step):
        slab = np.asanyarray(proxy[..., start : start + step])
        parts.append(slab.T.reshape(slab.shape[3], -1)[:, places])
    return np.concatenate(parts)


def voxels_of_hdf5(path: str | Path, key: str, mask: NDArray[np.bool_]) -> NDArray:
    """Voxels of an HDF5 array of shape (n, Z, Y, X).

    NSD keeps all trials of one voxel in a chunk: then only rows of voxels that meet the mask are read, otherwise planes.

    Returns
    -------
    (n, n_voxels), in the file's type
    """
    import h5py

    column = np.full(mask.shape, -1, np.int64)
    column[mask] = np.arange(mask.sum())
    with h5py.File(path, "r") as file:
        source = file[key]
        values = np.empty((source.shape[0], int(mask.sum())), source.dtype)
        by_voxel = source.chunks is not None and source.chunks[1:] == (1, 1, 1)
        for z in np.flatnonzero(mask.any(axis=(0, 1))):
            if by_voxel:
                for y in np.flatnonzero(mask[:, :, z].any(axis=0)):
                    (x,) = np.nonzero(mask[:, y, z])
                    values[:, column[x, y, z]] = source[:, z, y, x[0] : x[-1] + 1][:, x - x[0]]
            else:
                xs, ys = np.nonzero(mask[:, :, z])
                values[:, column[xs, ys, z]] = source[:, z][:, ys, xs]
    return values
