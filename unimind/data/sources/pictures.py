"""Pictures as laboratories keep them: a folder, an archive, or an array."""

import bz2
import functools
import gzip
import io
import lzma
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unimind.data.sources.arrayfile import AGAIN, ARRAY_ENDINGS, read_array
from unimind.data.sources.base import as_rgb, pixel_hash, reading
from unimind.errors import InputError
from unimind.progress import track

_PACKED: tuple[tuple[bytes, Callable[..., Any]], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
PICTURE_ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key that compares runs of digits as numbers: image2 before image10."""
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.split(r"(\d+)", name) if part]


class Pictures:
    """Pictures of a folder, an archive or an array, in number order.

    Attributes
    ----------
    names : list of str
        Path below the folder or the archive's common folder; the index for an array.
    load : callable
        Name -> uint8 (H, W, 3).
    """

    def __init__(self, names: list[str], load: Callable[[str], NDArray[np.uint8]], where: str) -> None:
        if not names:
            raise InputError(f"{where}: holds no pictures ({', '.join(sorted(PICTURE_ENDINGS))})")
        self.names, self.load, self.where = names, load, where
        self._index: dict[str | int, int | None] = {}
        for index, name in enumerate(names):
            pure = PurePosixPath(name)
            digits = re.findall(r"\d+", pure.stem)
            aliases: set[str | int] = {pure.name, str(pure.with_suffix("")), pure.stem, *([int(digits[-1])] if digits else [])}
            for alias in aliases:
                self._index[alias] = None if alias in self._index else index
        self._index.update({name: index for index, name in enumerate(names)})

    @functools.cached_property
    def first(self) -> NDArray[np.integer]:
        """Index of the first picture with the same pixels, of every picture: int (n,)."""
        seen: dict[str, int] = {}
        names = track(self.names, f"reading {self.where}")
        return np.array([seen.setdefault(pixel_hash(self.load(name)), index) for index, name in enumerate(names)], int)

    def __len__(self) -> int:
        return len(self.names)

    def find(self, name: str, where: str) -> int:
        """Index of a picture by its name, its name without ending, or its number; InputError when there is none or several."""
        name = name.strip()
        key = int(float(name)) if name not in self._index and re.fullmatch(r"\d+(\.0+)?", name) else name
        if key not in self._index:
            raise InputError(f"{where}: no picture {name!r} in {self.where}, which holds {self.names[0]} to {self.names[-1]}")
        found = self._index[key]
        if found is None:
            raise InputError(f"{where}: several pictures in {self.where} are called {name!r}; give the whole name")
        return found

    @classmethod
    def open(cls, path: Path, key: str | None = None, shape: tuple[int, int] | None = None, transposed: bool = False) -> "Pictures":
        """List the pictures at `path`; InputError where there are none.

        Parameters
        ----------
        path : Path
            A folder, a zip or tar archive, or a file with an array.
        key, shape, transposed
            For an array: which one of its file; height and width of flat pictures; whether those are stored column by column.
        """
        if path.is_dir():
            files = {file.relative_to(path).as_posix(): file for file in pictures_in(path)}
            return cls(list(files), lambda name: decode(files[name].read_bytes(), files[name]), str(path))
        if not path.exists():
            raise InputError(f"{path}: no such pictures; put them there, or correct `images:`")
        if path.suffix in ARRAY_ENDINGS:
            return _array_pictures(path, key, shape, transposed)
        if zipfile.is_zipfile(path):
            archive = open_zip(path)
            members = _members(archive.namelist(), path)
            return cls(list(members), lambda name: decode(unzip(archive, members[name], path), f"{path}: {name}"), str(path))
        tar = _open_tar(path)
        entries = {entry.name: entry for entry in tar.getmembers() if entry.isfile()}
        members = _members(tar.getnames(), path)
        members = {name: member for name, member in members.items() if member in entries}
        return cls(list(members), lambda name: decode(_untar(tar, entries[members[name]]), f"{path}: {name}"), str(path))


def pictures_in(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_ENDINGS and file.is_file() and not file.name.startswith("."))
    return sorted(files, key=lambda file: natural(file.relative_to(folder).as_posix()))


def _members(names: list[str], path: Path) -> dict[str, str]:
    """Pictures of an archive, without the folder they all share -> their member, in number order. `../x` is refused."""
    for name in names:
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", name):
            raise InputError(f"{path}: holds a member named {name!r}, which points outside the archive; such an archive is not read")
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in PICTURE_ENDINGS]
    pictures = [name for name in pictures if not PurePosixPath(name).name.startswith(".") and "__MACOSX" not in PurePosixPath(name).parts]
    folders = [PurePosixPath(name).parts[:-1] for name in pictures]
    shared = 0
    while folders and all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    short = {PurePosixPath(*PurePosixPath(name).parts[shared:]).as_posix(): name for name in pictures}
    return {name: short[name] for name in sorted(short, key=natural)}


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip archive whose directory lists as many members as its end says, and agrees with what stands before each of them."""
    with reading(path, "a readable zip archive", AGAIN):
        archive = zipfile.ZipFile(path)
        for entry in archive.infolist():
            archive.open(entry).close()
        with open(path, "rb") as stream:
            stream.seek(-22 - len(archive.comment), os.SEEK_END)  # the end record, whose eleventh and twelfth byte are the number of members
            counted = int.from_bytes(stream.read(12)[10:], "little")
        if counted not in (len(archive.infolist()), 0xFFFF):  # 0xFFFF: too many to be counted there
            raise zipfile.BadZipFile(f"{len(archive.infolist())} of {counted} members found")
    return archive


def unzip(archive: zipfile.ZipFile, member: str, path: Path) -> bytes:
    with reading(path, f"whole: member {member} is damaged", AGAIN):
        return archive.read(member)


def _untar(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(entry)
    assert stream is not None  # entries are files
    return stream.read()


def _open_tar(path: Path) -> tarfile.TarFile:
    """A tar archive, whole, that can be read in any order: a compressed one is unpacked to an unnamed temporary file first.

    `tarfile` takes a header that is cut off or damaged for the end of the archive; the end is a block of zeros.
    """
    stream = _unpacked(path)
    try:
        archive = tarfile.open(fileobj=stream, mode="r:")
    except tarfile.ReadError:
        raise InputError(f"{path}: neither a folder, nor a zip or tar archive, nor an array of pictures; {AGAIN}") from None
    with reading(path, "a whole tar archive", AGAIN):
        members = archive.getmembers()
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it breaks off after {len(members)} members")
    return archive


def _unpacked(path: Path) -> BinaryIO:
    stream = open(path, "rb")
    start = stream.read(8)
    stream.seek(0)
    for magic, opener in _PACKED:
        if start.startswith(magic):
            unpacked = tempfile.TemporaryFile()
            with stream, opener(stream, "rb") as packed:
                for piece in _pieces(packed, path):
                    unpacked.write(piece)
            unpacked.seek(0)
            return unpacked
    return stream


def _pieces(packed: BinaryIO, path: Path) -> Iterator[bytes]:
    while True:
        with reading(path, "a whole archive", AGAIN):
            piece = packed.read(1 << 20)
        if not piece:
            return
        yield piece


def decode(content: bytes, where: Any) -> NDArray[np.uint8]:
    """An encoded picture as uint8 (H, W, 3); InputError when it is none."""
    from PIL import Image

    with reading(where, "a readable picture", AGAIN), Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def _array_pictures(path: Path, key: str | None, shape: tuple[int, int] | None, transposed: bool) -> Pictures:
    """Pictures of an array: (n, H, W[, 1 | 3 | 4]), or flat with `shape`; values 0 to 255, or 0 to 1."""
    array = read_array(path, key)
    if shape is not None:
        size = shape[0] * shape[1]
        if len(array.shape) != 2 or size not in array.shape:
            raise InputError(f"{path}: pictures of shape {tuple(array.shape)}; no axis has {shape[0]} x {shape[1]} = {size} pixels")
        with reading(path, "a readable array of pictures", AGAIN):
            flat = np.asarray(array)
        flat = flat if flat.shape[1] == size else flat.T
        array = flat.reshape(len(flat), *shape[::-1]).swapaxes(1, 2) if transposed else flat.reshape(len(flat), *shape)
    elif len(array.shape) not in (3, 4) or (len(array.shape) == 4 and array.shape[3] not in (1, 3, 4)):
        raise InputError(f"{path}: pictures of shape {tuple(array.shape)}; expected (n, height, width[, 1 | 3 | 4]), or flat ones with `images_shape:`")

    def at(index: int) -> NDArray:
        with reading(path, f"readable at picture {index}", AGAIN):
            return np.asarray(array[index])

    low, high = 0.0, 0.0
    for index in range(array.shape[0]):
        picture = at(index)
        if not np.isfinite(picture).all():
            raise InputError(f"{path}: picture {index} has values that are missing or infinite")
        low, high = min(low, float(picture.min())), max(high, float(picture.max()))
        if picture.dtype == np.uint8 and high > 1:
            break
    if low < 0 or high > 255:
        raise InputError(f"{path}: picture values from {low:g} to {high:g}; expected 0 to 255, or 0 to 1")
    scale = 255.0 if high <= 1 else 1.0

    def load(name: str) -> NDArray[np.uint8]:
        return as_rgb(np.round(at(int(name)).astype(np.float64) * scale).astype(np.uint8))

    return Pictures([str(index) for index in range(array.shape[0])], load, str(path))
