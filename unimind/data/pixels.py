"""Pixels as every stage sees them, uint8 (H, W, 3), out of whatever a picture file or an array of pictures holds.

Depth is scaled, never clipped: white is white at 8, 16 and 32 bits. What a file holds beside the pixels of one opaque picture is
left out in a stated way and noted in `Forms`.
"""

import io
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unimind.data.sources.base import AGAIN, GROUND, as_rgb, other_kind, reading
from unimind.errors import InputError
from unimind.progress import say

#: Pixels of the largest picture that is read; Pillow warns of larger ones as attacks on memory from 89 million on.
LARGEST = 64_000_000
#: How far floats may leave 0 to 1 by rounding and interpolation; they are brought back.
ROUNDING = 1e-3
_DARK = 4096  # a picture of 16 bits with no value as large holds 8 or 12 bits in a wider type: read as 16, it would be black

_BITS, _PHOTOMETRIC = 258, 262  # tags of a TIFF: bits of each sample; 0 where small values are white
_COLOURS = ("RGB", "RGBA", "RGBX", "CMYK")
#: By orientation, Pillow's transpositions from a TIFF as shown, which it reads alone of all formats, back to its pixels as stored.
_STORED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}


class Forms:
    """What was left out of the pictures of a set, for one line each."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}

    def note(self, what: str, name: str) -> None:
        self._names.setdefault(what, {})[name] = None

    def say(self, where: str) -> None:
        """Say each kind of omission once, with the first names."""
        for what, names in self._names.items():
            some = ", ".join(list(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            say(f"{where}: {what} in {len(names)} {'picture' if len(names) == 1 else 'pictures'}: {some}")


def decode_picture(content: bytes, where: Any, ground: int = GROUND, forms: Forms | None = None) -> NDArray[np.uint8]:
    """An encoded picture as pixels.

    Pixels are those the file stores: as MATLAB and PsychoPy show them, an EXIF orientation turns nothing, and no colour profile is
    applied. Of an animation or a stack, the first frame is taken.

    Parameters
    ----------
    content : bytes
        The file.
    where : path or str
        Its name, for messages.
    ground : int
        Grey behind transparent pixels, 0 to 255.
    forms : Forms, optional
        Takes note of what was left out.

    Returns
    -------
    uint8 (H, W, 3)

    Raises
    ------
    InputError
        Not a picture, damaged, larger than `LARGEST`, or of values whose white is not known.
    """
    from PIL import Image

    forms = Forms() if forms is None else forms
    name = str(where)
    with reading(where, "a readable picture", AGAIN):
        try:
            image: Any = Image.open(io.BytesIO(content))
        except Image.DecompressionBombError as error:
            raise InputError(f"{where}: larger than the {LARGEST:,} pixels that are read ({' '.join(str(error).split()[:4])}); make it smaller") from None
        except Image.UnidentifiedImageError:
            if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                raise InputError(f"{where}: a kind of TIFF that is not read, such as colour in floats; save it as PNG") from None
            other = other_kind(content, PurePath(name).suffix)
            raise InputError(f"{where}: not a readable picture{f': {other}' if other else f' (of none of the kinds that are read); {AGAIN}'}") from None
        width, height = image.size
        if width * height > LARGEST:
            raise InputError(f"{where}: {width} x {height} pixels, more than the {LARGEST:,} that are read; make it smaller")
        if getattr(image, "n_frames", 1) > 1:
            forms.note("all frames but the first left out", name)
        deep = any(depth in str(tile.args) for tile in image.tile for depth in (";16", "65535"))
        orientation = image.getexif().get(0x0112, 1)
        if orientation not in (0, 1):
            forms.note("EXIF orientation not applied (pixels are taken as stored)", name)
        mode, kind = image.mode, image.format
        if mode in ("LAB", "HSV"):
            raise InputError(f"{where}: colours as {mode}; save it as RGB")
        tags = image.tag_v2 if kind == "TIFF" else {}
        if max(tags.get(_BITS, (8,))) > 8 and mode in _COLOURS and not deep:
            raise InputError(f"{where}: a TIFF of 16 bits whose colours stand in planes of their own; save it as PNG")
        if kind == "TIFF" and orientation in _STORED:
            image = image.transpose(_STORED[orientation])
        if mode == "I" or mode == "F" or mode.startswith("I;16"):
            values = np.asarray(image)
        elif image.has_transparency_data:
            values = np.asarray(image.convert("RGBA"))
        else:
            values = np.asarray(image.convert("RGB"))
    white_is_0 = tags.get(_PHOTOMETRIC) == 0  # which Pillow minds for 8 bits alone
    if mode == "F":
        low, high = bounds(values, where)
        pixels = to_bytes(values, white_of(values.dtype, low, high, where, whole_set=False))
        return as_rgb(255 - pixels if white_is_0 else pixels)
    if values.dtype != np.uint8:
        if mode == "I" and kind not in ("PNG", "PPM"):  # those two hold 16 bits in it
            raise InputError(f"{where}: whole numbers of 32 bits or with a sign, whose white is not known; save it with 8 or 16 bits")
        pixels = to_bytes(values, white_of(np.uint16, int(values.min()), int(values.max()), where, whole_set=False))
        return as_rgb(255 - pixels if white_is_0 else pixels)
    if deep and values[..., :3].max() < _DARK // 256:  # Pillow keeps the upper 8 bits
        raise _too_dark(f"{where}: colours below {_DARK}")
    if values.shape[2] == 4 and (values[..., 3] < 255).any():
        forms.note(f"transparent pixels laid over grey {ground}", name)
    return as_rgb(values, ground)


def _too_dark(said: str) -> InputError:
    return InputError(f"{said} in 16 bits, whose white is 65535: it would be black; save it with 8 bits")


def bounds(values: NDArray, where: Any) -> tuple[float, float]:
    """Smallest and largest value; InputError where one is missing or infinite."""
    if not np.isfinite(values).all():
        raise InputError(f"{where}: has values that are missing or infinite")
    return float(values.min()), float(values.max())


def white_of(dtype: DTypeLike, low: float, high: float, where: Any, whole_set: bool = True) -> float:
    """The value that stands for white, from the type and the range of a picture, or of a set of pictures.

    Parameters
    ----------
    dtype
        Type of the values.
    low, high : float
        Smallest and largest value.
    where
        What they belong to, for messages.
    whole_set : bool
        Whether the range is that of a set of pictures, which tells 0 to 1 from 0 to 255; that of one picture does not.

    Raises
    ------
    InputError
        Where white is not known: a range that is none of 0 to 1, 0 to 255, and 0 to 65535.
    """
    kind = np.dtype(dtype)
    said = f"{where}: picture values from {low:g} to {high:g}"
    if kind.kind not in "buif":
        raise InputError(f"{where}: pictures of type {kind}; expected numbers, 0 to 255 or 0 to 1")
    if kind.kind == "f":
        if -ROUNDING <= low and high <= 1 + ROUNDING:
            return 1.0
        if whole_set and -255 * ROUNDING <= low and 16 <= high <= 255 * (1 + ROUNDING):
            return 255.0
        raise InputError(f"{said}; expected {'0 to 255, or ' if whole_set else ''}0 to 1 for floats")
    if low < 0:
        raise InputError(f"{said}; expected 0 to 255, or 0 to 1")
    if whole_set and high <= 1:
        return 1.0
    if kind == np.uint16 and (high >= _DARK or (not whole_set and high == 0)):
        return 65535.0
    if kind == np.uint16 and not whole_set:
        raise _too_dark(said)
    if high <= 255:
        return 255.0
    raise InputError(f"{said}; expected 0 to 255, or 0 to 1{', or 0 to 65535 in 16 bits without a sign' if kind.kind in 'ui' else ''}")


def to_bytes(values: NDArray, white: float) -> NDArray[np.uint8]:
    """Values from 0 to `white` as uint8, rounded; what leaves the range by `ROUNDING` is brought back."""
    if values.dtype == np.uint8 and white == 255:
        return values
    return np.round(np.clip(values.astype(np.float64) / white, 0, 1) * 255).astype(np.uint8)
