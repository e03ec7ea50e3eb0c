"""Drawn pictures: one object of some class, colour, place and size on some background, with a caption.

They are the stimuli of simulated subjects and, with other seeds, the training pictures of the foundations that are
trained inside a study. Everything follows from the seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (214, 39, 40), "orange": (255, 140, 20), "yellow": (250, 220, 50), "green": (40, 160, 60),
    "cyan": (40, 200, 210), "blue": (40, 80, 210), "purple": (140, 60, 170), "white": (245, 245, 245),
}  # fmt: skip
BACKGROUNDS = {
    "plain dark": ((40, 40, 46), (40, 40, 46)), "plain light": ((190, 188, 180), (190, 188, 180)), "shaded": ((20, 30, 60), (150, 160, 190)),
    "striped": ((60, 90, 70), (110, 140, 115)), "checked": ((110, 85, 70), (160, 130, 110)), "brown": ((95, 65, 40), (95, 65, 40)),
}  # fmt: skip
#: Radius of an object as a share of the picture's side.
SMALLEST, LARGEST = 0.22, 0.36


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.95


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x), abs(y)) - 0.8


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x) * 0.866 - y * 0.5, y) - 0.55


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    arm = np.maximum(abs(x) - 0.95, abs(y) - 0.3)
    return np.minimum(arm, np.maximum(abs(y) - 0.95, abs(x) - 0.3))


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return abs(np.hypot(x, y) - 0.72) - 0.22


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = np.mod(np.arctan2(x, -y) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5
    radius = np.hypot(x, y)
    u, v = radius * np.cos(angle), abs(radius * np.sin(angle))
    # The edge from the tip (1.05, 0) to the notch at 36 degrees, radius 0.42.
    tip, notch = np.array([1.05, 0.0]), 0.42 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = notch - tip
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (u - tip[0]) * normal[0] + (v - tip[1]) * normal[1]


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 0.98, 0.8 - np.hypot(x - 0.5, y))


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x) - 1.0, abs(y) - 0.28)


#: Object classes: distance to the outline (negative inside) at coordinates in units of the object's radius.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": _disc, "square": _square, "triangle": _triangle, "cross": _cross, "ring": _ring, "star": _star, "crescent": _crescent, "bar": _bar,
}  # fmt: skip
CLASSES = tuple(SHAPES)


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


def draw(count: int, size: int, seed: int | tuple[int, ...]) -> Drawn:
    """Draw `count` pictures of `size` x `size` pixels."""
    random = np.random.default_rng(seed)
    shape = random.integers(len(SHAPES), size=count)
    colour = random.integers(len(COLOURS), size=count)
    background = random.integers(len(BACKGROUNDS), size=count)
    radius = random.uniform(SMALLEST, LARGEST, size=count)
    centre = radius[:, None] + random.uniform(size=(count, 2)) * (1 - 2 * radius[:, None])
    tilt = random.uniform(-0.2, 0.2, size=count)
    images = np.empty((count, size, size, 3), np.uint8)
    for start in range(0, count, 256):
        part = slice(start, min(start + 256, count))
        images[part] = _render(size, shape[part], colour[part], background[part], radius[part], centre[part], tilt[part])
    places = np.linspace(0.2, 0.8, 4)
    bumps = np.exp(-((centre[:, :, None] - places) ** 2) / (2 * 0.15**2))
    place = (bumps[:, 1, :, None] * bumps[:, 0, None, :]).reshape(count, 16)
    extent = (radius[:, None] - (SMALLEST + LARGEST) / 2) / ((LARGEST - SMALLEST) / 2)
    blocks = [np.eye(len(SHAPES))[shape], np.eye(len(COLOURS))[colour], np.eye(len(BACKGROUNDS))[background], place, extent]
    return Drawn(images, np.concatenate(blocks, 1).astype(np.float32), _captions(shape, colour, background, radius, centre), shape)


def _render(size, shape, colour, background, radius, centre, tilt) -> np.ndarray:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x = axis[None, None, :] - centre[:, 0, None, None].astype(np.float32)
    y = axis[None, :, None] - centre[:, 1, None, None].astype(np.float32)
    cos, sin = np.cos(tilt)[:, None, None], np.sin(tilt)[:, None, None]
    unit = radius[:, None, None]
    u, v = (cos * x + sin * y) / unit, (-sin * x + cos * y) / unit
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


def _captions(shape, colour, background, radius, centre) -> list[str]:
    columns, rows, sizes = ("left", "middle", "right"), ("top", "centre", "bottom"), ("small", "medium", "large")
    result = []
    for s, c, b, r, (x, y) in zip(shape, colour, background, radius, centre, strict=True):
        size = sizes[min(2, int((r - SMALLEST) / (LARGEST - SMALLEST) * 3))]
        place = f"{rows[min(2, int(y * 3))]} {columns[min(2, int(x * 3))]}"
        result.append(f"a {size} {list(COLOURS)[c]} {CLASSES[s]} at the {place} on a {list(BACKGROUNDS)[b]} background")
    return result
