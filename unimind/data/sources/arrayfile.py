"""Arrays and volumes in the files people keep them in: .npy, .npz, .h5, .mat, NIfTI."""

import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unimind.data.sources.base import AGAIN, reading
from unimind.data.sources.pickled import Unfamiliar, pickled_arrays
from unimind.errors import InputError

ARRAY_ENDINGS = frozenset({".npy", ".npz", ".h5", ".hdf5", ".mat"})
_WHOLE = 1e-3  # how far a label may be from a whole number, as scaling in NIfTI's header leaves it
_SLAB = 64 * 1024 * 1024  # bytes of volumes in memory at once


def missing(path: Path) -> InputError:
    return InputError(f"{path}: no such file; put it there, or correct the study's `root:` and file names")


def array_shape(path: Path, key: str | None) -> tuple[int, ...]:
    return tuple(int(length) for length in read_array(path, key, ()).shape)


def read_array(path: Path, key: str | None, part: Any = ()) -> Any:
    """An array of real numbers of a .npy, .npz, .h5 or .mat file: lazily where `part` is empty and the format allows it, else that part of it.

    Raises
    ------
    InputError
        No such file or array, a damaged file, an array of something else than real numbers, one that lies in another file.
    """
    import h5py

    if not path.exists():
        raise missing(path)
    with reading(path, f"a readable {path.suffix} file", AGAIN):
        if path.suffix == ".npy":
            array = _npy(path, key, path.stat().st_mtime_ns)
        elif path.suffix == ".npz":
            array = _npz(path, key, path.stat().st_mtime_ns)
        elif path.suffix == ".mat" and not h5py.is_hdf5(path):
            array = _matlab(path, key)
        else:
            return _hdf5(path, key, part)
        _require_real(array.dtype, path, key)
        _require_values(array.shape, path, key)
    return array[part] if part != () else array


def from_matlab(path: Path, array: Any) -> Literal["as written", "reversed"] | None:
    """Whether MATLAB wrote an array, and whether its axes come in MATLAB's order or, from HDF5, in the reverse; None where it did not."""
    import h5py

    if isinstance(array, h5py.Dataset):
        return "reversed" if "MATLAB_class" in array.attrs else None
    return "as written" if path.suffix == ".mat" else None


def _require_real(dtype: DTypeLike, path: Path, key: str | None, text: bool = False) -> None:
    """Refuse what is no array of real numbers, by its cause."""
    kind = np.dtype(dtype)
    where = f"{path}: {key or 'its array'}"
    fields = tuple(kind.names or ())
    if kind.kind == "c" or fields in (("real", "imag"), ("r", "i")):
        raise InputError(f"{where} holds complex numbers; save the real part or the magnitude")
    if fields:
        raise InputError(f"{where} is a structured array with the fields {', '.join(fields)}; save one of them as a plain array")
    if kind.kind not in "biuf" or text:
        what = {"O": "objects (a cell array, a list or a dictionary)", "S": "text", "U": "text", "M": "dates", "m": "times"}.get(kind.kind, f"type {kind}")
        what = "text" if text else what
        raise InputError(f"{where} holds {what}, no numbers; save trials and voxels as one plain array of numbers")


def _require_values(shape: tuple[int, ...], path: Path, key: str | None) -> None:
    if 0 in shape:
        raise InputError(f"{path}: {key or 'its array'} is empty: its shape is {tuple(shape)}")


@functools.lru_cache(maxsize=2)
def _npy(path: Path, key: str | None, stamp: int) -> NDArray:
    with open(path, "rb") as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        *_, dtype = header(stream)
    if dtype.hasobject:
        try:
            arrays = pickled_arrays(path)
        except Unfamiliar as error:
            raise InputError(
                f"{path}: a pickle, which may run anything and is not loaded ({error}); where you trust it, convert it in Python: "
                f"d = numpy.load({path.name!r}, allow_pickle=True).item(); numpy.savez({path.with_suffix('.npz').name!r}, betasmd=d['betasmd'])"
            ) from None
        if arrays is None:
            _require_real(dtype, path, key)
        else:
            return arrays[_choose(key, list(arrays), path)]
    if key is not None:
        raise InputError(f"{path}: holds one array without a name, but {key!r} is asked for; remove the key")
    return np.load(path, mmap_mode="r", allow_pickle=False)


@functools.lru_cache(maxsize=2)
def _npz(path: Path, key: str | None, stamp: int) -> NDArray:
    with np.load(path, allow_pickle=False) as held:
        name = _choose(key, list(held), path)
        try:
            return held[name]
        except ValueError as error:
            if "allow_pickle" in str(error):
                _require_real(object, path, name)
            raise


@functools.lru_cache(maxsize=2)
def _matlab_file(path: Path, stamp: int) -> dict[str, Any]:
    from scipy.io import loadmat

    return {name: value for name, value in loadmat(path, simplify_cells=True).items() if not name.startswith("__")}


def _matlab(path: Path, key: str | None) -> Any:
    """A variable, or a field such as `D/data`, of a MATLAB file up to version 7."""
    from scipy.sparse import issparse

    inner: Any = _matlab_file(path, path.stat().st_mtime_ns)
    steps = key.split("/") if key is not None else [_choose(None, list(inner) if len(inner) == 1 else _arrays_of(inner), path)]
    for at, step in enumerate(steps):
        if isinstance(inner, list):
            _require_real(object, path, "/".join(steps[:at]))
        if not isinstance(inner, dict) or step not in inner:
            raise InputError(f"{path}: no array {key!r}; there is {', '.join(inner) if isinstance(inner, dict) else 'nothing below it'}")
        inner = inner[step]
    if isinstance(inner, dict):
        name = key or next(iter(_matlab_file(path, path.stat().st_mtime_ns)))
        raise InputError(f"{path}: {name} is a structure with the fields {', '.join(inner)}; name one, such as `key: {name}/{next(iter(inner), '')}`")
    if issparse(inner):
        raise InputError(f"{path}: {key or 'its variable'} is a sparse matrix; save full(...) of it")
    if isinstance(inner, list):
        _require_real(object, path, key)
    return np.atleast_1d(np.asarray(inner))


def _arrays_of(content: dict[str, Any]) -> list[str]:
    return [name for name, value in content.items() if isinstance(value, np.ndarray)]


def _hdf5(path: Path, key: str | None, part: Any) -> Any:
    """A data set of an HDF5 (or MATLAB 7.3) file; axes as they are stored."""
    import h5py

    file = h5py.File(path, "r")
    wanted = key.strip("/") if key is not None else None
    names, elsewhere = datasets(file)
    steps = wanted.split("/") if wanted else []
    above = {"/".join(steps[:count]) for count in range(1, len(steps) + 1)}
    for name, other in elsewhere.items():
        if name in above or (wanted is None and not names):
            raise InputError(f"{path}: {name} is a link to another file, {other}; name that file, or copy the data into this one")
    try:
        held = file[wanted] if wanted else None
    except KeyError:  # no such object, or a link that leads nowhere
        held = None
    if isinstance(held, h5py.Group) and "MATLAB_sparse" in held.attrs:
        raise InputError(f"{path}: {wanted} is a sparse matrix; save full(...) of it")
    data = held if isinstance(held, h5py.Dataset) else file[_choose(key, names, path)]
    name = wanted or data.name.strip("/")
    if Path(data.file.filename) != Path(file.filename):
        raise InputError(f"{path}: {name} leads to another file, {data.file.filename}; name that file, or copy the data into this one")
    sources = {source.file_name for source in data.virtual_sources()} - {"."} if data.is_virtual else {name for name, *_ in data.external or ()}
    if sources:
        raise InputError(f"{path}: the values of {name} lie in another file, {min(sources)}; name that file, or copy the data into this one")
    if data.shape is None or "MATLAB_empty" in data.attrs:
        raise InputError(f"{path}: {name} is empty")
    text = data.attrs.get("MATLAB_class") in (b"char", "char") or h5py.check_string_dtype(data.dtype) is not None
    _require_real(data.dtype, path, name, text)
    _require_values(data.shape, path, name)
    if part == ():
        return data
    try:
        return data[part]
    finally:
        file.close()


def datasets(group: Any, above: str = "", seen: frozenset = frozenset()) -> tuple[list[str], dict[str, str]]:
    """Paths of the data sets of an HDF5 file, those that links lead to left out; and links to other files: path -> file."""
    import h5py

    names: list[str] = []
    elsewhere: dict[str, str] = {}
    for name in group:
        link, path = group.get(name, getlink=True), f"{above}{name}"
        if isinstance(link, h5py.ExternalLink):
            elsewhere[path] = link.filename
        elif isinstance(link, h5py.HardLink) and not path.startswith("#"):
            item = group[name]
            if isinstance(item, h5py.Dataset):
                names.append(path)
            elif isinstance(item, h5py.Group) and item.id not in seen:
                inner = datasets(item, f"{path}/", seen | {item.id})
                names += inner[0]
                elsewhere |= inner[1]
    return names, elsewhere


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


def volume(path: Path, key: str | None = None) -> tuple[NDArray, NDArray | None]:
    """A mask or atlas of three axes, real numbers, and its affine (4, 4) where the file has one; a single slice keeps its third axis, what is missing is 0."""
    if path.suffix in ARRAY_ENDINGS:
        values, affine = np.asarray(read_array(path, key)), None
        if from_matlab(path, read_array(path, key)) == "reversed":
            values = values.T
    else:
        image = open_nifti(path)
        _require_real(image.get_data_dtype(), path, "the image")
        with reading(path, "a readable NIfTI file", AGAIN):
            values, affine = np.asarray(image.dataobj), np.asarray(image.affine)
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3:
        raise InputError(f"{path}: {values.ndim} axes; expected a mask of three")
    return (np.nan_to_num(values, nan=0.0) if values.dtype.kind == "f" else values), affine


def labels_of(values: NDArray) -> tuple[NDArray[np.int64], bool]:
    """Labels of an atlas or mask, and whether its values are graded, as probabilities are, so that labels are only what they round to."""
    labels = np.round(values).astype(np.int64)
    return labels, bool((abs(values - labels) > _WHOLE).any())


def volumes_shape(path: Path) -> tuple[int, int, int, int]:
    """(X, Y, Z, n) of a NIfTI file of real numbers; a single volume is one of n = 1."""
    image = open_nifti(path)
    _require_real(image.get_data_dtype(), path, "the image")
    shape = tuple(int(length) for length in image.shape)
    if len(shape) == 5 and shape[3] == 1:  # statistics: one value a voxel along the fifth axis
        shape = (*shape[:3], shape[4])
    if len(shape) == 3:
        shape = (*shape, 1)
    if len(shape) != 4:
        raise InputError(f"{path}: volumes of shape {shape}; expected four axes, the last one trials")
    return shape  # type: ignore[return-value]


def masked_volumes(path: Path, where: tuple[NDArray[np.integer], ...]) -> NDArray[np.float32]:
    """Voxels at the indices `where` of every volume of a NIfTI file, read front to back: float32 (n_volumes, n_voxels)."""
    import nibabel

    *grid, count = volumes_shape(path)
    with reading(path, "a whole NIfTI file", AGAIN):
        image: Any = nibabel.load(path, keep_file_open=True)
        proxy = image.dataobj
        volumes = np.empty((count, len(where[0])), np.float32)
        step = max(1, _SLAB // (8 * int(np.prod(grid))))
        for start in range(0, count, step):
            slab = np.asanyarray(proxy[..., start : start + step] if len(proxy.shape) > 3 else proxy)
            volumes[start : start + step] = slab.reshape(*grid, -1)[where].T
    return volumes


def trial_axes(shape: tuple[int, ...], mask: tuple[int, ...], matlab: str | None, hdf5: bool, path: Path) -> str:
    """Which axes of an array of volumes are x, y, z and t (trials), from the mask's shape: `xyzt`, `txyz`, or MATLAB's reverse `tzyx`.

    Raises
    ------
    InputError
        None of them has the mask's shape, or several have.
    """
    possible = {"reversed": ["tzyx"], "as written": ["xyzt"]}.get(matlab or "", ["xyzt", "txyz", *(["tzyx"] if hdf5 else [])])
    fits = [name for name in possible if len(shape) == 4 and tuple(shape[name.index(axis)] for axis in "xyz") == tuple(mask)]
    if not fits:
        raise InputError(f"{path}: volumes of shape {shape}; no three of its axes are the mask's {tuple(mask)}")
    if len(fits) > 1:
        raise InputError(f"{path}: volumes of shape {shape} fit the mask's {tuple(mask)} as {' and as '.join(fits)}; save them as (x, y, z, trials)")
    return fits[0]


def masked_array(path: Path, key: str | None, axes: str, where: tuple[NDArray[np.integer], ...]) -> NDArray[np.float32]:
    """Voxels at the indices `where` of every volume of an array of four axes: float32 (n_trials, n_voxels).

    The file is read once, a few volumes at a time where volumes are stored one after another, else a few rows of voxels.
    """
    array = read_array(path, key)
    at = axes.index("t")
    values = np.empty((array.shape[at], len(where[0])), np.float32)
    one_by_one = at == 0 or (isinstance(array, np.ndarray) and array.strides[at] == max(array.strides))
    with reading(path, f"a readable {path.suffix} file", AGAIN):
        if one_by_one:
            rest = axes.replace("t", "")
            order = [1 + rest.index(axis) for axis in "xyz"]
            step = max(1, _SLAB // (8 * (int(np.prod(array.shape)) // len(values))))
            for start in range(0, len(values), step):
                part = np.moveaxis(np.asarray(array[start : start + step] if at == 0 else array[..., start : start + step]), at, 0)
                x, y, z = where
                values[start : start + step] = part.transpose(0, *order)[:, x, y, z]
        else:
            x, y, z = where
            step = max(1, _SLAB // (8 * array.shape[2] * len(values)))
            for plane in np.unique(x):
                for start in range(0, array.shape[1], step):
                    here = np.flatnonzero((x == plane) & (y >= start) & (y < start + step))
                    if len(here):
                        values[:, here] = np.asarray(array[int(plane), start : start + step])[y[here] - start, z[here]].T
    return values
