"""Arrays and volumes in the files people keep them in: .npy, .npz, .h5, .mat, NIfTI."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimind.data.sources.base import reading
from unimind.errors import InputError

AGAIN = "if it was downloaded, delete it and get it again"
ARRAY_ENDINGS = frozenset({".npy", ".npz", ".h5", ".hdf5", ".mat"})
_SLAB = 64 * 1024 * 1024  # bytes of volumes in memory at once


def missing(path: Path) -> InputError:
    return InputError(f"{path}: no such file; put it there, or correct the study's `root:` and file names")


def array_shape(path: Path, key: str | None) -> tuple[int, ...]:
    return tuple(int(length) for length in read_array(path, key, ()).shape)


def read_array(path: Path, key: str | None, part: Any = ()) -> Any:
    """An array of a .npy, .npz, .h5 or .mat file: lazily where `part` is empty and the format allows it, else that part of it."""
    import h5py

    if not path.exists():
        raise missing(path)
    with reading(path, f"a readable {path.suffix} file", AGAIN):
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".npz":
            array = _npz(path, key, path.stat().st_mtime_ns)
        elif path.suffix == ".mat" and not h5py.is_hdf5(path):
            array = _matlab(path, key)
        else:
            return _hdf5(path, key, part)
    return array[part] if part != () else array


@functools.lru_cache(maxsize=2)
def _npz(path: Path, key: str | None, stamp: int) -> NDArray:
    with np.load(path, allow_pickle=False) as held:
        return held[_choose(key, list(held), path)]


@functools.lru_cache(maxsize=2)
def _matlab_file(path: Path, stamp: int) -> dict[str, Any]:
    from scipy.io import loadmat

    return {name: value for name, value in loadmat(path, simplify_cells=True).items() if not name.startswith("__")}


def _matlab(path: Path, key: str | None) -> Any:
    """A variable, or a field such as `D/data`, of a MATLAB file up to version 7."""
    inner: Any = _matlab_file(path, path.stat().st_mtime_ns)
    if key is None:
        return np.asarray(inner[_choose(None, [name for name, value in inner.items() if isinstance(value, np.ndarray)], path)])
    for step in key.split("/"):
        if not isinstance(inner, dict) or step not in inner:
            raise InputError(f"{path}: no array {key!r}; there is {', '.join(inner) if isinstance(inner, dict) else 'nothing below it'}")
        inner = inner[step]
    return np.atleast_1d(np.asarray(inner))


def _hdf5(path: Path, key: str | None, part: Any) -> Any:
    """A data set of an HDF5 (or MATLAB 7.3) file; axes as they are stored."""
    import h5py

    file = h5py.File(path, "r")
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) and not name.startswith("#") else None)
    data = file[_choose(key, names, path)]
    if part == ():
        return data
    try:
        return data[part]
    finally:
        file.close()


def _choose(key: str | None, names: list[str], path: Path) -> str:
    if key is not None and key.strip("/") in names:
        return key.strip("/")
    if key is None and len(names) == 1:
        return names[0]
    listed = ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")
    raise InputError(f"{path}: {'no array ' + repr(key) if key else 'several arrays, name one with `key:`'}; there is {listed or 'none'}")


def open_nifti(path: Path) -> Any:
    import nibabel

    if not path.exists():
        raise missing(path)
    with reading(path, "a readable NIfTI file", AGAIN):
        return nibabel.load(path)


def masked_volumes(path: Path, where: tuple[NDArray[np.integer], ...]) -> NDArray[np.float32]:
    """Voxels at the indices `where` of every volume of a 4-D NIfTI file, read front to back: float32 (n_volumes, n_voxels)."""
    import nibabel

    with reading(path, "a whole NIfTI file", AGAIN):
        image: Any = nibabel.load(path, keep_file_open=True)
        proxy = image.dataobj
        volumes = np.empty((proxy.shape[3], len(where[0])), np.float32)
        step = max(1, _SLAB // (8 * int(np.prod(proxy.shape[:3]))))
        for start in range(0, len(volumes), step):
            volumes[start : start + step] = np.asanyarray(proxy[..., start : start + step])[where].T
    return volumes


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise missing(path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error}); save it as UTF-8") from None
