"""What a source is: the one interface between a laboratory's files and the stages that prepare them.

A source knows which files a subject needs, and turns files as distributed into pictures and trials. It decides
neither normalisation nor validation nor voxel order; those are the same for every data set (`unimind.data.prepare`).
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unimind.errors import InputError
from unimind.study import Decode

#: What to do with a file that is damaged.
AGAIN = "if it was downloaded, delete it and get it again"
#: What is said of a link that leads nowhere.
NOT_HERE = "a link to a file that is not here, as git-annex and DataLad leave them; get it (datalad get)"
#: Splits of a trial as stored in prepared files.
TRAIN, VALIDATION, TEST = 0, 1, 2
#: What stands behind transparent pixels, 0 to 255: the mid-grey of most experiments' screens, on which neither black nor white lines vanish.
GROUND = 128
#: A trial a source wants in no split, such as a shared image shown too seldom to test on.
DROP = -1


@dataclass(frozen=True)
class RemoteFile:
    """A file a data set is distributed in.

    Attributes
    ----------
    path : str
        Where it stands below the data set's root, with forward slashes; absolute where it stands elsewhere.
    address : str, optional
        `s3://bucket/key` or `https://...`; None where it can only be put there by hand (or is simulated).
    bytes, sha256, md5 : optional
        As published, where they are.
    part : callable, optional
        Local path -> hash of what is used of the file, where that is not all of it.
    """

    path: str
    address: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    part: Callable[[Path], str] | None = None


@dataclass(frozen=True)
class Stimulus:
    """One picture.

    Attributes
    ----------
    id : str
        Its name in the data set; trials refer to it.
    sha256 : str
        Of the original pixels (`pixel_hash`): two pictures are the same image when these are equal.
    test : bool
        A test image by the source's rule.
    image : uint8 (size, size, 3)
    """

    id: str
    sha256: str
    test: bool
    image: NDArray[np.uint8]

    @classmethod
    def from_pixels(cls, id: str, pixels: NDArray[np.uint8], test: bool, size: int) -> "Stimulus":
        """Hash the original pixels, uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), and bring them to `size`."""
        pixels = as_rgb(pixels)
        return cls(id=str(id), sha256=pixel_hash(pixels), test=bool(test), image=to_square(pixels, size))


@dataclass(frozen=True)
class StimulusSet:
    """All pictures of a data set, or of one subject: `count` of them, read one by one."""

    count: int
    items: Iterable[Stimulus]

    def __iter__(self) -> Iterator[Stimulus]:
        return iter(self.items)


@dataclass(frozen=True)
class Trials:
    """The trials of a subject in the order they are stored: who saw what when is known at once, responses are streamed.

    Attributes
    ----------
    session : int (n_trials,)
        Number of the scanning session as distributed, or of whatever voxels are z-scored within; trials of a session
        are contiguous.
    stimulus : sequence of str (n_trials,)
        `Stimulus.id` of the picture of every trial.
    responses : callable
        Each call starts a fresh pass: one float32 (n_trials of the session, n_voxels) block per session, in the order
        of `session`, with one session in memory at a time.
    split : int (n_trials,), optional
        TRAIN, TEST or DROP per trial; without it the picture's `Stimulus.test` decides.
    run : int (n_trials,), optional
        Number of the run within the session.
    onset : float (n_trials,), optional
        Seconds from the begin of the run.
    """

    session: NDArray[np.integer]
    stimulus: "Sequence[str] | NDArray[np.str_]"
    responses: Callable[[], Iterator[NDArray[np.float32]]]
    split: NDArray[np.integer] | None = None
    run: NDArray[np.integer] | None = None
    onset: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class RawSubject:
    """A subject as distributed.

    Attributes
    ----------
    n_voxels : int
    trials : Trials
    units : str
        Physical unit of the responses, such as "percent signal change".
    xyz : float32 (n_voxels, 3), optional
        Millimetres.
    roi : int16 (n_voxels,), optional
        Index into `roi_names`; -1 for a voxel in none.
    roi_names : list of str, optional
    noise_ceiling : float32 (n_voxels,), optional
        Explainable share of the variance of one trial, 0 to 1.
    order : str, optional
        What the order of the voxels already follows, such as "surface"; None lets `prepare` order them by ROI and xyz.
    protocol : dict
        What distinguishes this preparation from others of the same data set: sessions, betas version, ROI and so on.
    units_kept : int (n_voxels,), optional
        Where some units of the ROI were left out: places of those kept among all that the source's files hold of the ROI, ascending.
    """

    n_voxels: int
    trials: Trials
    units: str = "arbitrary"
    xyz: NDArray[np.float32] | None = None
    roi: NDArray[np.int16] | None = None
    roi_names: list[str] | None = None
    noise_ceiling: NDArray[np.float32] | None = None
    order: str | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    units_kept: NDArray[np.integer] | None = None


@dataclass(frozen=True)
class Further:
    """Trials of a subject of which no picture is known: imagery, another experiment, a new scan.

    Attributes
    ----------
    session : int (n_trials,)
        As in `Trials`; trials of a session are contiguous.
    label : sequence of str (n_trials,)
        What the trials are called; "" where nothing is said of a trial.
    condition : sequence of str (n_trials,)
        Such as imagery or vision; "" where there is one condition.
    responses : callable
        As in `Trials`, but of all units that the source's files hold of the ROI, also of those that the subject's preparation left out.
    units : str
        Physical unit of the responses.
    run : int (n_trials,), optional
    protocol : dict
        What distinguishes the set from others: experiment, beta version, files.
    """

    session: NDArray[np.integer]
    label: Sequence[str]
    condition: Sequence[str]
    responses: Callable[[], Iterator[NDArray[np.float32]]]
    units: str = "arbitrary"
    run: NDArray[np.integer] | None = None
    protocol: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Constructed as `SomeSource(study, dataset, root)`: the study, the data set's name in it, the folder of its files."""

    def files(self, subject: str | None) -> list[RemoteFile]:
        """What must be present for a subject, or for the data set's pictures when `subject` is None."""
        ...

    def stimuli(self, subject: str | None, size: int) -> StimulusSet:
        """The pictures, brought to (size, size, 3); of one subject where every subject has its own."""
        ...

    def subject(self, subject: str) -> RawSubject:
        """The trials and voxels of a subject; InputError, in one line, for files that cannot be used."""
        ...


class FurtherSource(Source, Protocol):
    """A source whose subjects may have trials without known pictures (`decode:`)."""

    def further_files(self, subject: str, asked: Decode) -> list[RemoteFile]:
        """What must be present for a set of further trials of a subject."""
        ...

    def further(self, subject: str, asked: Decode) -> Further:
        """The trials of a set; InputError, in one line, for files that cannot be used."""
        ...


def as_rgb(pixels: NDArray[np.uint8], ground: int = GROUND) -> NDArray[np.uint8]:
    """Grey, RGB or RGBA pixels, uint8 (H, W[, 1 | 3 | 4]), as uint8 (H, W, 3), transparent ones laid over a grey."""
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8:
        raise TypeError(f"expected uint8 pixels, {pixels.dtype} given")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    if pixels.shape[-1] == 4 and (pixels[..., 3] < 255).any():
        share = pixels[..., 3:].astype(np.float64) / 255
        return np.round(pixels[..., :3] * share + ground * (1 - share)).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., :3])


def pixel_hash(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 (64 hex digits) of an RGB picture, uint8 (H, W, 3): of its shape and pixels, not of the file around them."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def to_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The centre square of a picture, uint8 (H, W, 3), resized with antialiasing to uint8 (size, size, 3)."""
    from PIL import Image

    height, width = pixels.shape[:2]
    if height == width == size:
        return pixels
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


#: What a file begins with, what it is then, the endings it may have, and what to do where it has another.
_KINDS: tuple[tuple[bytes, str, tuple[str, ...], str], ...] = (
    (b"\x93NUMPY", "numpy's .npy", (".npy",), "call it .npy"),
    (b"PK\x03\x04", "a zip archive, as numpy's .npz is one", (".npz", ".zip"), "call it .npz, or unpack it"),
    (b"\x89HDF\r\n\x1a\n", "HDF5", (".h5", ".hdf5", ".mat"), "call it .h5, or .mat where MATLAB wrote it"),
    (b"MATLAB 5.0", "a MATLAB file", (".mat",), "call it .mat"),
    (b"\x1f\x8b", "packed by gzip", (".gz", ".tgz"), "add .gz to its name, or unpack it"),
    (b"\x5c\x01\x00\x00", "NIfTI that is not packed", (".nii", ".hdr"), "call it .nii"),
    (b"\x00\x00\x01\x5c", "NIfTI that is not packed", (".nii", ".hdr"), "call it .nii"),
    *(
        (b"\x80" + bytes([version]), "a Python pickle", (), "no pickle is loaded, for it may run anything: save its array by numpy.save")
        for version in range(2, 6)
    ),
    (b"7z\xbc\xaf", "a 7z archive", (), "unpack it"),
    (b"Rar!", "a rar archive", (), "unpack it"),
    (b"\x89PNG", "a picture", (".png",), "name the folder that holds the pictures"),
    (b"\xff\xd8\xff", "a picture", (".jpg", ".jpeg", ".jpe", ".jfif"), "name the folder that holds the pictures"),
    (b"version https://git-lfs", "a pointer of Git LFS to a file that is not here", (), "get the file itself (git lfs pull)"),
    (b"/annex/objects", "a pointer of git-annex to a file that is not here", (), "get the file itself (git annex get)"),
    (b"<!doctype", "a web page", (), "get the file again; what came was a login or an error"),
    (b"<html", "a web page", (), "get the file again; what came was a login or an error"),
)


def other_kind(content: bytes, ending: str) -> str | None:
    """What a file is, by its begin, and what to do about it, where that is something else than its ending says; such a file is not damaged."""
    begin = content[:64].lstrip().lower() if content[:1] in b" \t\r\n<" else content
    for start, kind, endings, remedy in _KINDS:
        if begin.startswith(start):
            return None if ending.lower() in endings else f"by its content it is {kind}; {remedy}"
    return None


def _kind_of(path: Any) -> str | None:
    try:
        with open(path, "rb") as stream:
            return other_kind(stream.read(64), Path(path).suffix)
    except (OSError, TypeError, ValueError):  # a member of an archive, or gone
        return None


@contextlib.contextmanager
def reading(path: Any, what: str, remedy: str) -> Iterator[None]:
    """Say in one line that a file is damaged, whatever the library that reads it makes of the damage.

    Libraries raise nearly everything on flipped bits, from `OSError` to `AttributeError`: only calls that read belong in
    the block. Missing permission, memory, another program's lock, and the ending of another kind of file are no damage.

    Parameters
    ----------
    path : path or str
        The file, or its member.
    what : str
        What it is not, such as "a readable NIfTI file".
    remedy : str
        What to do.
    """
    try:
        yield
    except (InputError, MemoryError, PermissionError):
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, BlockingIOError) or "unable to lock file" in said:
            raise InputError(f"{path}: another program has it open for writing; close it there and run again") from None
        if "h5clear" in said:
            remedy = f"close it there, or run `h5clear -s {path}`"
            raise InputError(f"{path}: open for writing in another program, or left so when one was killed; {remedy}") from None
        other = _kind_of(path)
        raise InputError(f"{path}: not {what}: {other}" if other else f"{path}: not {what} ({said}); {remedy}") from None


def content_of(path: Path) -> bytes:
    """All of a file; InputError for a link to a file that is not here."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path}: {NOT_HERE}")
    return path.read_bytes()


def own_file(root: Path, path: Path, part: Callable[[Path], str] | None = None) -> RemoteFile:
    """A laboratory's own file, which may stand outside `root`."""
    return RemoteFile((path.relative_to(root) if path.is_relative_to(root) else path.absolute()).as_posix(), part=part)


def below(root: str | Path, path: str) -> Path:
    """The local path of a `RemoteFile.path`."""
    return Path(root) / path
