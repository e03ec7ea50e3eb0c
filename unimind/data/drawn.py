"""Drawn pictures: one object of some class, colour, place and size on some background, with a caption that says it all.

They are the stimuli of simulated subjects and, from the other half of all possible pictures, what the foundations of a
study are trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

COLOURS = {
    "red": (214, 39, 40), "orange": (255, 140, 20), "yellow": (250, 220, 50), "green": (40, 160, 60),
    "cyan": (40, 200, 210), "blue": (40, 80, 210), "purple": (140, 60, 170), "white": (245, 245, 245),
}  # fmt: skip
BACKGROUNDS = {
    "plain dark": ((40, 40, 46), (40, 40, 46)), "plain light": ((190, 188, 180), (190, 188, 180)), "shaded": ((20, 30, 60), (150, 160, 190)),
    "striped": ((60, 90, 70), (110, 140, 115)), "checked": ((110, 85, 70), (160, 130, 110)), "brown": ((95, 65, 40), (95, 65, 40)),
}  # fmt: skip
#: Radius of an object as a share of the picture's side, and its places: evenly spread, as far out as the object fits.
SIZES = {"small": 0.24, "medium": 0.3, "large": 0.36}
ROWS = ("top", "upper", "lower", "bottom")
COLUMNS = ("far left", "left", "right", "far right")


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.95


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x), abs(y)) - 0.8


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x) * 0.866 - y * 0.5, y) - 0.55


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return abs(np.hypot(x, y) - 0.72) - 0.22


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 0.98, 0.8 - np.hypot(x - 0.5, y))


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x) - 1.0, abs(y) - 0.28)


#: Object classes: distance to the outline (negative inside) at coordinates in units of the object's radius.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": _disc, "square": _square, "triangle": _triangle, "ring": _ring, "crescent": _crescent, "bar": _bar,
}  # fmt: skip
CLASSES = tuple(SHAPES)

FORM = (len(SHAPES), len(COLOURS), len(BACKGROUNDS), len(SIZES), len(ROWS), len(COLUMNS))
#: How many different pictures there are, and how many each half of them has.
N_COMBINATIONS = int(np.prod(FORM))
HALF = N_COMBINATIONS // 2


@dataclass(frozen=True)
class Drawn:
    """Pictures and what is in them.

    Attributes
    ----------
    images : uint8 array of shape (n, size, size, 3)
    features : float32 array of shape (n, n_features)
        Object class, colour and background one-hot, place as a 4 x 4 population code, size; each block of about unit length.
    captions : list of str
    classes : int array of shape (n,)
        Index into `CLASSES`.
    """

    images: np.ndarray
    features: np.ndarray
    captions: list[str]
    classes: np.ndarray


def combinations(part: Literal["subjects", "foundations"], seed: int | tuple[int, ...]) -> np.ndarray:
    """Numbers of all pictures of one half of the possible ones, in an order that follows from the seed.

    The halves never change and share no picture: what foundations are trained on, no subject sees.
    """
    halves = np.random.default_rng(2025).permutation(N_COMBINATIONS).reshape(2, -1)
    return np.random.default_rng(seed).permutation(halves[0 if part == "subjects" else 1])


def draw(numbers: np.ndarray, size: int) -> Drawn:
    """Draw pictures of `size` x `size` pixels by their numbers (n,), each from 0 to `N_COMBINATIONS` - 1."""
    shape, colour, background, extent, row, column = np.unravel_index(np.asarray(numbers), FORM)
    count = len(shape)
    radius = np.array(list(SIZES.values()))[extent]
    centre = radius[:, None] + np.stack([column / (len(COLUMNS) - 1), row / (len(ROWS) - 1)], 1) * (1 - 2 * radius[:, None])
    images = np.empty((count, size, size, 3), np.uint8)
    for start in range(0, count, 256):
        part = slice(start, min(start + 256, count))
        images[part] = _render(size, shape[part], colour[part], background[part], radius[part], centre[part])
    places = np.linspace(0.2, 0.8, 4)
    bumps = np.exp(-((centre[:, :, None] - places) ** 2) / (2 * 0.15**2))
    place = (bumps[:, 1, :, None] * bumps[:, 0, None, :]).reshape(count, 16)
    blocks = [np.eye(len(SHAPES))[shape], np.eye(len(COLOURS))[colour], np.eye(len(BACKGROUNDS))[background], place, extent[:, None] - 1.0]
    return Drawn(images, np.concatenate(blocks, 1).astype(np.float32), _captions(shape, colour, background, extent, row, column), shape)


def _render(size, shape, colour, background, radius, centre) -> np.ndarray:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x = axis[None, None, :] - centre[:, 0, None, None].astype(np.float32)
    y = axis[None, :, None] - centre[:, 1, None, None].astype(np.float32)
    unit = radius[:, None, None].astype(np.float32)
    u, v = np.broadcast_arrays(x / unit, y / unit)
    distance = np.empty(u.shape, np.float32)
    for index, outline in enumerate(SHAPES.values()):
        chosen = shape == index
        distance[chosen] = outline(u[chosen], v[chosen])
    cover = np.clip(0.5 - distance * unit * size, 0, 1)[..., None]
    lit = np.clip(1.0 - 0.18 * v, 0.7, 1.2)[..., None]
    first, second = (np.array([pair[k] for pair in BACKGROUNDS.values()], np.float32)[background][:, None, None] for k in (0, 1))
    patterns = np.zeros((len(BACKGROUNDS), size, size), np.float32)
    names = list(BACKGROUNDS)
    patterns[names.index("shaded")] = axis[:, None]
    patterns[names.index("striped")] = (np.floor(axis * 8) % 2)[None, :]
    patterns[names.index("checked")] = (np.floor(axis * 6)[:, None] + np.floor(axis * 6)[None, :]) % 2
    mix = patterns[background][..., None]
    behind = first * (1 - mix) + second * mix
    front = np.array(list(COLOURS.values()), np.float32)[colour][:, None, None] * lit
    return np.clip(behind * (1 - cover) + front * cover, 0, 255).round().astype(np.uint8)


def _captions(shape, colour, background, extent, row, column) -> list[str]:
    words = (list(SIZES), list(COLOURS), CLASSES, ROWS, COLUMNS, list(BACKGROUNDS))
    return [
        f"a {words[0][e]} {words[1][c]} {words[2][s]} at the {words[3][r]} {words[4][k]} on a {words[5][b]} background"
        for e, c, s, r, k, b in zip(extent, colour, shape, row, column, background, strict=True)
    ]
