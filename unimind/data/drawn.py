"""Drawn pictures: two objects in some relation before some background, with a caption that says it all.

They are the stimuli of simulated subjects and, from another part of all possible pictures, what the foundations of a
study are trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unimind.errors import InputError

Field = NDArray[Any]  # float32

COLOURS = {
    "red": (214, 40, 45), "yellow": (250, 220, 60), "green": (45, 165, 70), "blue": (45, 85, 215), "purple": (145, 65, 180), "white": (246, 246, 246),
}  # fmt: skip
#: How a picture is said to lie in its background, and how that is said.
BACKGROUNDS = {"meadow": "on a meadow", "sea": "by the sea", "night": "in the night", "room": "in a room"}
TEXTURES = ("plain", "halved")
RELATIONS = {"left": "left of", "above": "above", "front": "in front of", "inside": "inside"}
ROWS = ("top", "bottom")
COLUMNS = ("left", "right")

#: Radii of the first and the second object, as shares of the picture's side.
_RADII = {"left": (0.23, 0.23), "above": (0.23, 0.23), "front": (0.25, 0.28), "inside": (0.23, 0.42)}
#: Where the second object is as seen from the first, in units of the sum of their radii.
_DIRECTIONS = {"left": (1.04, 0.0), "above": (0.0, 1.04), "front": (0.5, -0.42), "inside": (0.0, 0.0)}
_MARGIN = 0.02


def _box(x: Field, y: Field) -> Field:
    return np.hypot(np.maximum(abs(x) - 0.65, 0), np.maximum(abs(y) - 0.65, 0)) + np.minimum(np.maximum(abs(x), abs(y)) - 0.65, 0) - 0.18


def _pyramid(x: Field, y: Field) -> Field:
    return np.maximum(abs(x) * 0.866 - (y - 0.15) * 0.5, y - 0.15) - 0.58


def _ring(x: Field, y: Field) -> Field:
    return abs(np.hypot(x, y) - 0.7) - 0.26


def _moon(x: Field, y: Field) -> Field:
    return np.maximum(np.hypot(x, y) - 0.98, 0.8 - np.hypot(x - 0.5, y))


#: Object classes: distance to the outline (negative inside) at coordinates in units of the object's radius, y downwards.
SHAPES: dict[str, Callable[[Field, Field], Field]] = {"box": _box, "pyramid": _pyramid, "ring": _ring, "moon": _moon}
CLASSES = tuple(SHAPES)

#: What is in a picture, each with its values; the first object is the left, upper, front or inner one.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "class": CLASSES, "colour": tuple(COLOURS), "texture": TEXTURES, "relation": tuple(RELATIONS),
    "second class": CLASSES, "second colour": tuple(COLOURS), "second texture": TEXTURES, "row": ROWS, "column": COLUMNS, "background": tuple(BACKGROUNDS),
}  # fmt: skip

# A picture's number counts two objects in a relation (the two differ in class and in colour), then all the rest.
_KINDS = (len(CLASSES), len(CLASSES) - 1, len(COLOURS), len(COLOURS) - 1, len(RELATIONS))
_REST = (len(TEXTURES), len(TEXTURES), len(ROWS), len(COLUMNS), len(BACKGROUNDS))
N_KINDS, N_REST = int(np.prod(_KINDS)), int(np.prod(_REST))
FORM = (*_KINDS, *_REST)
#: Sixteenths of all kinds: foundations are trained on one half; of the other, subjects are trained on most, and tested on what is left.
PARTS = {"foundations": 8, "training": 7, "test": 1}


@dataclass(frozen=True)
class Drawn:
    """Pictures and what is in them.

    Attributes
    ----------
    images : uint8 array of shape (n, size, size, 3)
    attributes : int array of shape (n, len(ATTRIBUTES))
        Index of each attribute's value, in the order of `ATTRIBUTES`.
    centres : float32 array of shape (n, 2, 2)
        Column and row of the first and of the second object, as shares of the picture's side.
    captions : list of str
    """

    images: NDArray[np.uint8]
    attributes: NDArray[np.int64]
    centres: NDArray[np.float32]
    captions: list[str]

    def attribute(self, name: str) -> NDArray[np.int64]:
        """Value indices (n,) of one of `ATTRIBUTES`."""
        return self.attributes[:, list(ATTRIBUTES).index(name)]


def kinds(numbers: NDArray) -> NDArray[np.int64]:
    """Which two objects (class and colour of each) are in which relation, by the numbers of pictures."""
    return np.asarray(numbers) // N_REST


def combinations(part: Literal["foundations", "training", "test"], seed: int | tuple[int, ...], count: int) -> NDArray[np.int64]:
    """Numbers of `count` different pictures of one part of all possible ones (`PARTS`), which follow from the seed.

    The parts never change, and two objects in a relation (see `kinds`) are in one of them only: what foundations are
    trained on, no subject sees, and what subjects are tested on, none is trained on, with other textures, at other places or before other
    backgrounds neither.

    Raises
    ------
    InputError
        The part has fewer pictures.
    """
    bounds = np.cumsum(list(PARTS.values())) * N_KINDS // 16
    own = np.split(np.random.default_rng(2025).permutation(N_KINDS), bounds[:-1])[list(PARTS).index(part)]
    if count > len(own) * N_REST:
        raise InputError(f"{count} drawn pictures asked for, but there are {len(own) * N_REST} of the part {part}; ask for fewer")
    chosen = np.random.default_rng(seed).choice(len(own) * N_REST, count, replace=False)
    return own[chosen // N_REST] * N_REST + chosen % N_REST


def render(numbers: NDArray, size: int) -> Drawn:
    """Draw pictures of `size` x `size` pixels by their numbers (n,), as `combinations` gives them."""
    kind, rest = np.divmod(np.asarray(numbers), N_REST)
    first, second, colour, second_colour, relation = np.unravel_index(kind, _KINDS)
    second, second_colour = second + (second >= first), second_colour + (second_colour >= colour)
    texture, second_texture, row, column, background = np.unravel_index(rest, _REST)
    attributes = np.stack([first, colour, texture, relation, second, second_colour, second_texture, row, column, background], 1)
    radii = np.array(list(_RADII.values()))[relation]
    apart = np.array(list(_DIRECTIONS.values()))[relation] * radii.sum(1, keepdims=True)
    places = np.stack([np.zeros_like(apart), apart], 1)
    low, high = ((places + sign * radii[:, :, None]) for sign in (-1, 1))
    low, high = low.min(1), high.max(1)
    free = 1 - 2 * _MARGIN - (high - low)
    centres = (places + (_MARGIN - low + free * np.stack([column, row], 1))[:, None]).astype(np.float32)

    behind = np.stack([_background(name, size) for name in BACKGROUNDS])
    images = np.empty((len(kind), size, size, 3), np.uint8)
    for start in range(0, len(kind), 128):
        part = slice(start, start + 128)
        canvas = behind[background[part]]
        _paint(canvas, second[part], second_colour[part], second_texture[part], centres[part, 1], radii[part, 1])
        _paint(canvas, first[part], colour[part], texture[part], centres[part, 0], radii[part, 0])
        images[part] = np.clip(canvas, 0, 255).round().astype(np.uint8)
    return Drawn(images, attributes, centres, _captions(attributes))


def _captions(attributes: NDArray) -> list[str]:
    words = [{"relation": tuple(RELATIONS.values()), "background": tuple(BACKGROUNDS.values())}.get(name, ATTRIBUTES[name]) for name in ATTRIBUTES]
    form = "a {1} {2} {0} {3} a {5} {6} {4} at the {7} {8} {9}"
    return [form.format(*(values[index] for values, index in zip(words, row, strict=True))) for row in attributes]


def _background(name: str, size: int) -> Field:
    """One background, (size, size, 3)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = axis[None, :, None], axis[:, None, None]

    def shade(top, bottom, start=0.0, end=1.0):
        share = np.clip((y - start) / (end - start), 0, 1)
        return np.asarray(top, np.float32) * (1 - share) + np.asarray(bottom, np.float32) * share

    def cover(distance):
        return np.clip(0.5 - distance * size, 0, 1)

    def over(below, above, share):
        return below * (1 - share) + above * share

    def spot(column, row, radius):
        return cover(np.hypot(x - column, y - row) - radius)

    if name == "meadow":
        picture = shade((120, 175, 225), (205, 228, 240), 0, 0.6)
        picture = over(picture, shade((95, 140, 105), (95, 140, 105)), cover(0.54 - 0.05 * np.sin(5 * x + 1) - y))
        picture = over(picture, shade((140, 170, 85), (85, 125, 55), 0.55, 1), cover(0.62 + 0.025 * np.sin(7 * x) - y))
    elif name == "sea":
        picture = shade((165, 195, 210), (225, 225, 215), 0, 0.5)
        picture = over(picture, shade((60, 110, 130), (30, 70, 95), 0.5, 0.85), cover(0.5 - y))
        for row, phase in ((0.58, 0.0), (0.68, 1.5), (0.78, 3.5)):
            picture = over(picture, np.float32(200), 0.35 * cover(abs(y - row - 0.012 * np.sin(18 * x + phase)) - 0.008))
        picture = over(picture, shade((215, 200, 165), (200, 180, 140), 0.8, 1), cover(0.87 + 0.03 * np.sin(4 * x) - y))
    elif name == "night":
        picture = shade((14, 18, 48), (58, 62, 108))
        for column, row in np.random.default_rng(7).uniform(0.03, 0.97, (22, 2)) * (1, 0.8):
            picture = over(picture, np.float32(225), 0.8 * spot(column, row, 0.009))
        picture = over(picture, shade((18, 26, 34), (10, 16, 22)), cover(0.84 - 0.05 * np.sin(6 * x + 2) - y))
    else:
        picture = shade((196, 186, 172), (176, 165, 152), 0, 0.7) - 9 * (np.floor(x * 8) % 2)
        picture = over(picture, shade((150, 108, 78), (112, 78, 56), 0.7, 1) - 14 * (np.floor((x - 0.5) / (0.4 + y) * 9) % 2), cover(0.72 - y))
        picture = over(picture, np.float32(225), cover(abs(y - 0.71) - 0.014))
    return np.broadcast_to(picture, (size, size, 3)).astype(np.float32)


def _paint(canvas: Field, shape: NDArray, colour: NDArray, texture: NDArray, centre: NDArray, radius: NDArray) -> None:
    """Paint one object, with its shadow, onto every picture of `canvas` (n, size, size, 3)."""
    size = canvas.shape[1]
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    unit = radius.astype(np.float32)[:, None, None]
    x = (axis[None, None, :] - centre[:, 0, None, None]) / unit
    y = (axis[None, :, None] - centre[:, 1, None, None]) / unit
    x, y = np.broadcast_arrays(x, y)
    pixels = unit * size  # of one unit
    distance, other = np.empty(x.shape, np.float32), np.empty(x.shape, np.float32)
    for index, outline in enumerate(SHAPES.values()):
        chosen = shape == index
        if chosen.any():
            distance[chosen] = outline(x[chosen], y[chosen])
    for index, name in enumerate(TEXTURES):
        chosen = texture == index
        other[chosen] = _pattern(name, x[chosen], y[chosen], pixels[chosen])
    down, right = size // 24, size // 40
    canvas[:, down:, right:] *= 1 - 0.4 * np.clip(0.5 - (distance * pixels)[:, : size - down, : size - right] / 3, 0, 1)[..., None]
    tones = np.array(list(COLOURS.values()), np.float32)
    light = tones @ np.array([0.3, 0.59, 0.11], np.float32) > 145
    others = np.where(light[:, None], tones * 0.45, tones * 0.25 + 255 * 0.75)
    lit = np.clip(1.02 - 0.14 * (x + 1.3 * y), 0.72, 1.22)[..., None]
    body = (tones[colour][:, None, None] * (1 - other[..., None]) + others[colour][:, None, None] * other[..., None]) * lit
    edge = np.clip(1.6 + distance * pixels, 0, 1)[..., None]  # the last pixel inside the outline is darker
    cover = np.clip(0.5 - distance * pixels, 0, 1)[..., None]
    canvas *= 1 - cover
    canvas += cover * body * (1 - 0.55 * edge)


def _pattern(name: str, x: Field, y: Field, pixels: Field) -> Field:
    """How much of the second tone there is, from 0 to 1."""
    if name == "halved":  # the lower half
        wave = y - 0.05
    else:
        return np.zeros_like(x)
    return np.clip(0.5 + wave * pixels, 0, 1)
