"""Voxel order: neighbours in the vector are neighbours in the brain."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BITS = 10  # the curve's grid has 1024 steps along the longest side of the brain: finer than voxels


def hilbert_index(points: ArrayLike, bits: int) -> NDArray[np.uint64]:
    """Place of grid points along a Hilbert curve.

    Parameters
    ----------
    points : int (n, d)
        Coordinates from 0 to 2**bits - 1.
    bits : int
        bits * d is at most 64.

    Returns
    -------
    uint64 (n,)
        Consecutive values are neighbours on the grid.

    Notes
    -----
    J. Skilling, "Programming the Hilbert curve", AIP Conf. Proc. 707 (2004): the coordinates are turned in place into
    the transposed index, here for all points at once.
    """
    x = np.array(points, np.uint64).T
    d = len(x)
    if bits * d > 64:
        raise ValueError(f"{bits} bits in {d} dimensions do not fit into 64")
    if x.size and int(x.max()) >> bits:
        raise ValueError(f"coordinates must be below 2**{bits}")
    one = np.uint64(1)
    for level in range(bits - 1, 0, -1):
        high, low = np.uint64(1 << level), np.uint64((1 << level) - 1)
        for axis in range(d):
            inverted = (x[axis] & high) != 0
            swapped = np.where(inverted, 0, (x[0] ^ x[axis]) & low).astype(np.uint64)
            x[0] = np.where(inverted, x[0] ^ low, x[0] ^ swapped)
            x[axis] ^= swapped
    for axis in range(1, d):
        x[axis] ^= x[axis - 1]
    flips = np.zeros_like(x[0])
    for level in range(bits - 1, 0, -1):
        flips ^= np.where(x[d - 1] & np.uint64(1 << level), np.uint64((1 << level) - 1), np.uint64(0))
    x ^= flips
    index = np.zeros_like(x[0])
    for level in range(bits - 1, -1, -1):
        for axis in range(d):
            index = (index << one) | ((x[axis] >> np.uint64(level)) & one)
    return index


def anatomical_order(roi: ArrayLike | None, xyz: ArrayLike | None) -> tuple[NDArray[np.int64], str]:
    """Order voxels by ROI, then along a Hilbert curve through their coordinates.

    Parameters
    ----------
    roi : int (n_voxels,), optional
        ROI numbers in anatomical order; -1, in none, comes last.
    xyz : float (n_voxels, 3), optional
        Voxel centres in one unit.

    Returns
    -------
    order : int (n_voxels,)
        `values[order]` are the values in the new order.
    name : str
        What the order follows, for the record.
    """
    if roi is None and xyz is None:
        raise ValueError("needs ROI labels or coordinates")
    keys: list[NDArray] = []
    if xyz is not None:
        xyz = np.asarray(xyz, np.float64)
        low = xyz.min(axis=0)
        extent = max(float((xyz - low).max()), np.finfo(np.float32).tiny)
        keys.append(hilbert_index(np.floor((xyz - low) / extent * (2**_BITS - 1)), _BITS))
    if roi is not None:
        roi = np.asarray(roi, np.int64)
        keys.append(np.where(roi < 0, np.iinfo(np.int64).max, roi))
    name = " then ".join(what for what, given in (("ROI", roi is not None), ("Hilbert curve over xyz", xyz is not None)) if given)
    return np.lexsort(keys), name
