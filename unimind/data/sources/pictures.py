"""Pictures as laboratories keep them: a folder, an archive, or an array."""

import bz2
import functools
import gzip
import lzma
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unimind.data.pixels import Forms, bounds, decode_picture, to_bytes, white_of
from unimind.data.sources.arrayfile import ARRAY_ENDINGS, from_matlab, read_array
from unimind.data.sources.base import AGAIN, GROUND, as_rgb, content_of, other_kind, pixel_hash, reading
from unimind.data.sources.tables import spelled, whole
from unimind.errors import InputError
from unimind.progress import say, track

_PACKED: tuple[tuple[bytes, Callable[..., Any]], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
PICTURE_ENDINGS = frozenset(f".{name}" for name in "bmp gif jfif jpe jpeg jpg pbm pgm png ppm tga tif tiff webp".split())


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key that compares runs of digits as numbers: image2 before image10."""
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.split(r"(\d+)", name) if part]


class Pictures:
    """Pictures of a folder, an archive or an array, in number order.

    Attributes
    ----------
    names : list of str
        Path below the folder or the archive's common folder; the index, from 0, for an array.
    load : callable
        Name -> uint8 (H, W, 3).
    above : str
        Name of the folder that the names are below; a trial table may write it before them.
    numbered : bool
        Whether the pictures are those of an array, and have no names but numbers.
    forms : Forms
        What `load` has left out of the pictures so far.
    """

    def __init__(self, names: list[str], load: Callable[[str], NDArray[np.uint8]], where: str, forms: Forms, above: str = "", numbered: bool = False) -> None:
        if not names:
            raise InputError(f"{where}: holds no pictures ({', '.join(sorted(PICTURE_ENDINGS))})")
        self.names, self.load, self.where, self.forms, self.above, self.numbered = names, load, where, forms, above, numbered
        self._full: dict[str, int | None] = {}
        self._index: dict[str | int, int | None] = {}
        self._caseless: dict[str, int | None] = {}
        for index, name in enumerate(names):
            pure = PurePosixPath(spelled(name))
            digits = re.findall(r"\d+", pure.stem)
            words = {str(pure), pure.name, str(pure.with_suffix("")), pure.stem}
            aliases: set[str | int] = {*words, *([int(digits[-1])] if digits else [])}
            for alias in aliases:
                self._index[alias] = None if alias in self._index else index
            for full in {str(pure), str(pure.with_suffix(""))}:
                self._full[full] = None if full in self._full else index  # two spellings of one name are told apart by nothing
            for word in {word.casefold() for word in words}:
                self._caseless[word] = None if word in self._caseless else index
        wholes = {spelled(name) for name in names}
        self._index.update({full: index for full, index in self._full.items() if full in wholes})

    @functools.cached_property
    def first(self) -> NDArray[np.integer]:
        """Index of the first picture with the same pixels, of every picture: int (n,)."""
        seen: dict[str, int] = {}
        names = track(self.names, f"reading {self.where}")
        found = np.array([seen.setdefault(pixel_hash(self.load(name)), index) for index, name in enumerate(names)], int)
        self.forms.say(self.where)
        return found

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return spelled(name) in self._index

    def find(self, name: str, where: str, shared: str = "") -> int:
        """Index of a picture by its name, its name without ending, or its number; InputError when there is none or several.

        Folders may stand before the name: those the picture lies in, the folder that holds all pictures (`above`), or the ones that
        all names of the table begin with (`shared`). Accents may be composed or not; case counts only where names differ in nothing else.
        """
        given = spelled(name)
        key: str | int = given
        if key not in self._index:
            parts = given.split("/")
            rests = ["/".join(parts[at + 1 :]) for at, part in enumerate(parts[:-1]) if part == spelled(self.above)]
            rests += [given.removeprefix(shared)] if shared else []
            number = whole(given)
            known = next((rest for rest in rests if rest in self._full), None)
            key = known if known is not None else number if number is not None else key
        found = self._index[key] if key in self._index else self._caseless.get(given.casefold(), -1)
        if found == -1:
            raise InputError(f"{where}: no picture {name.strip()!r} in {self.where}, which holds {self.names[0]} to {self.names[-1]}")
        if found is None:
            raise InputError(f"{where}: several pictures in {self.where} are called {name.strip()!r}; give the whole name")
        return found

    @classmethod
    def open(
        cls, path: Path, key: str | None = None, shape: tuple[int, int] | None = None, transposed: bool = False, ground: int = GROUND
    ) -> "Pictures":  # fmt: skip
        """List the pictures at `path`; InputError where there are none.

        Parameters
        ----------
        path : Path
            A folder, a zip or tar archive, or a file with an array.
        key, shape, transposed
            For an array: which one of its file; height and width of its pictures; whether flat ones are stored column by column.
        ground : int
            Grey behind transparent pixels, 0 to 255.
        """
        forms = Forms()
        if path.is_dir():
            files = {file.relative_to(path).as_posix(): file for file in pictures_in(path)}
            others = [
                file.name for file in path.rglob("*") if file.is_file() and file.suffix.lower() not in PICTURE_ENDINGS and not _hidden(file.relative_to(path))
            ]
            _name_others(others, path)
            return cls(list(files), lambda name: decode_picture(content_of(files[name]), files[name], ground, forms), str(path), forms, path.name)
        if not path.exists():
            raise InputError(f"{path}: no such pictures; put them there, or correct `images:`")
        if path.suffix in ARRAY_ENDINGS:
            return _array_pictures(path, key, shape, transposed, ground, forms)
        if zipfile.is_zipfile(path):
            archive = open_zip(path)
            members, above = _members(archive.namelist(), path)
            return cls(
                list(members), lambda name: decode_picture(unzip(archive, members[name], path), f"{path}: {name}", ground, forms), str(path), forms, above
            )
        tar = _open_tar(path)
        entries = {entry.name: entry for entry in tar.getmembers() if entry.isfile()}
        members, above = _members(tar.getnames(), path)
        members = {name: member for name, member in members.items() if member in entries}
        return cls(list(members), lambda name: decode_picture(_untar(tar, entries[members[name]]), f"{path}: {name}", ground, forms), str(path), forms, above)


def _name_others(names: list[str], path: Path) -> None:
    if names:
        say(f"{path}: {len(names)} files left out whose ending is none of a picture's: {', '.join(sorted(names)[:3])}{' ...' if len(names) > 3 else ''}")


def pictures_in(folder: Path) -> list[Path]:
    """Files below a folder that end like pictures, in number order; also links that lead nowhere, as git-annex leaves them."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_ENDINGS and (file.is_file() or (file.is_symlink() and not file.exists())))
    return sorted((file for file in files if not _hidden(file.relative_to(folder))), key=lambda file: natural(file.relative_to(folder).as_posix()))


def _hidden(path: PurePath) -> bool:
    """Whether a program keeps a file, or its folder, for itself: `.ipynb_checkpoints`, macOS's `._name` and `__MACOSX`, Synology's `@eaDir`."""
    return any(part.startswith(".") or part in ("__MACOSX", "@eaDir") for part in path.parts)


def _members(names: list[str], path: Path) -> tuple[dict[str, str], str]:
    """Pictures of an archive, without the folder they all share -> their member, in number order; that folder's name. `../x` is refused."""
    for name in names:
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", name):
            raise InputError(f"{path}: holds a member named {name!r}, which points outside the archive; such an archive is not read")
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in PICTURE_ENDINGS]
    pictures = [name for name in pictures if not _hidden(PurePosixPath(name))]
    folders = [PurePosixPath(name).parts[:-1] for name in pictures]
    shared = 0
    while folders and all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    short = {PurePosixPath(*PurePosixPath(name).parts[shared:]).as_posix(): name for name in pictures}
    above = folders[0][shared - 1] if shared else path.name.partition(".")[0]
    return {name: short[name] for name in sorted(short, key=natural)}, above


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
        with open(path, "rb") as begin:
            other = other_kind(begin.read(64), "")
        raise InputError(f"{path}: neither a folder, nor a zip or tar archive, nor an array of pictures{f': {other}' if other else f'; {AGAIN}'}") from None
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


def _array_pictures(path: Path, key: str | None, shape: tuple[int, int] | None, transposed: bool, ground: int, forms: Forms) -> Pictures:
    """Pictures of an array: (n, H, W[, 1 | 3 | 4]), (n, 1 | 3 | 4, H, W), MATLAB's (H, W[, 1 | 3 | 4], n), or flat with `shape`."""
    array = read_array(path, key)
    matlab = from_matlab(path, array)
    if len(array.shape) == 2 and shape is not None:
        size = shape[0] * shape[1]
        if size not in array.shape:
            raise InputError(f"{path}: pictures of shape {tuple(array.shape)}; no axis has {shape[0]} x {shape[1]} = {size} pixels")
        if array.shape[0] == array.shape[1]:
            say(f"{path}: {size} pictures of {size} pixels; a row is taken as a picture")
        with reading(path, "a readable array of pictures", AGAIN):
            flat = np.asarray(array)
        flat = flat if flat.shape[1] == size else flat.T
        array = flat.reshape(len(flat), *shape[::-1]).swapaxes(1, 2) if transposed else flat.reshape(len(flat), *shape)
        layout = "nhw"
    else:
        layout = _layout(tuple(array.shape), shape, matlab, path)
    count = array.shape[layout.index("n")]
    rest = layout.replace("n", "")

    def at(index: int) -> NDArray:
        with reading(path, f"readable at picture {index}", AGAIN):
            picture = np.asarray(array[tuple(index if axis == "n" else slice(None) for axis in layout)])
        return picture.transpose([rest.index(axis) for axis in "hwc" if axis in rest])

    low, high, kind = 0.0, 0.0, np.dtype(array.dtype)
    for index in range(count):
        picture = at(index)
        least, most = bounds(picture, f"{path}: picture {index}")
        low, high = min(low, least), max(high, most)
        if kind == np.uint8 and high > 1:
            break
    white = white_of(kind, low, high, path)

    def load(name: str) -> NDArray[np.uint8]:
        pixels = to_bytes(at(int(name)), white)
        if pixels.ndim == 3 and pixels.shape[2] == 4 and (pixels[..., 3] < 255).any():
            forms.note(f"transparent pixels laid over grey {ground}", name)
        return as_rgb(pixels, ground)

    return Pictures([str(index) for index in range(count)], load, str(path), forms, numbered=True)


def _layout(shape: tuple[int, ...], size: tuple[int, int] | None, matlab: str | None, path: Path) -> str:
    """What the axes of an array of pictures are: a permutation of n, h, w and, with four axes, c."""
    fits = []
    for name in [["nhw"], ["nhwc", "nchw"]][len(shape) - 3] if len(shape) in (3, 4) else []:
        fits.append(name)
    if matlab and len(shape) in (3, 4):
        fits.append(["hwn", "hwcn"][len(shape) - 3])
    if matlab == "reversed":
        fits = [name[::-1] for name in fits]

    def possible(name: str) -> bool:
        axes = dict(zip(name, shape, strict=True))
        return axes.get("c", 1) in (1, 3, 4) and (size is None or (axes["h"], axes["w"]) == tuple(size))

    fits = [name for name in fits if possible(name)]
    if matlab and len(shape) == 3 and len(fits) > 1:
        square = [name for name in fits if shape[name.index("h")] == shape[name.index("w")]]
        fits = square if len(square) == 1 else fits
    if not fits:
        form = "(n, height, width[, 1 | 3 | 4]) or (n, 1 | 3 | 4, height, width), or flat ones with `images_shape:`"
        form = f"of {size[0]} x {size[1]} pixels" if size else form
        raise InputError(f"{path}: pictures of shape {shape}; expected {form}")
    if matlab and len(fits) > 1:
        raise InputError(f"{path}: pictures of shape {shape} may be {' or '.join(' x '.join(name) for name in fits)}; give `images_shape: [height, width]`")
    return fits[0]
