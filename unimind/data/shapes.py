"""Plain shapes that no set of photographs or scenes holds: what a generator is asked for to see what it can show of what it has never seen.

After the artificial shapes and letters of Shen, Horikawa, Majima & Kamitani, "Deep image reconstruction from human brain activity"
(PLOS Computational Biology 2019), with the gratings and checkerboards of vision research.
"""

import numpy as np
from numpy.typing import NDArray

#: Drawn so many times larger, then averaged: edges are smooth.
_FINER = 4
_GREY, _WHITE, _BLACK = (128, 128, 128), (240, 240, 240), (16, 16, 16)
_RED, _GREEN, _BLUE, _YELLOW = (215, 40, 40), (40, 160, 70), (45, 85, 215), (245, 215, 60)


def shapes(size: int) -> dict[str, NDArray[np.uint8]]:
    """The shapes by name, each uint8 (size, size, 3), the same on every machine."""
    from PIL import Image, ImageDraw

    side = _FINER * size

    def at(*places: float) -> list[float]:
        return [place * side for place in places]

    def canvas(ground: tuple[int, int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        picture = Image.new("RGB", (side, side), ground)
        return picture, ImageDraw.Draw(picture)

    def strokes(colour: tuple[int, int, int], ground: tuple[int, int, int], *lines: tuple[float, float, float, float]) -> Image.Image:
        picture, pen = canvas(ground)
        for line in lines:
            pen.line(at(*line), fill=colour, width=round(0.12 * side))
        return picture

    found = {}
    found["disc"], pen = canvas(_GREY)
    pen.ellipse(at(0.22, 0.22, 0.78, 0.78), fill=_RED)
    found["ring"], pen = canvas(_GREY)
    pen.ellipse(at(0.18, 0.18, 0.82, 0.82), outline=_BLUE, width=round(0.12 * side))
    found["square"], pen = canvas(_GREY)
    pen.rectangle(at(0.25, 0.25, 0.75, 0.75), fill=_GREEN)
    found["frame"], pen = canvas(_GREY)
    pen.rectangle(at(0.2, 0.2, 0.8, 0.8), outline=_YELLOW, width=round(0.12 * side))
    found["plus"] = strokes(_WHITE, _GREY, (0.5, 0.15, 0.5, 0.85), (0.15, 0.5, 0.85, 0.5))
    found["cross"] = strokes(_BLACK, _GREY, (0.2, 0.2, 0.8, 0.8), (0.2, 0.8, 0.8, 0.2))
    found["letter T"] = strokes(_BLACK, _WHITE, (0.2, 0.22, 0.8, 0.22), (0.5, 0.22, 0.5, 0.85))
    found["letter L"] = strokes(_YELLOW, _BLACK, (0.3, 0.15, 0.3, 0.84), (0.24, 0.78, 0.78, 0.78))
    axis = (np.arange(side) + 0.5) / side
    x, y = axis[None, :], axis[:, None]
    waves = {
        "upright grating": np.sin(2 * np.pi * 5 * x) + 0 * y,
        "oblique grating": np.sin(2 * np.pi * 4 * (x + y)),
        "checkerboard": np.where((np.floor(6 * x) + np.floor(6 * y)) % 2, 1.0, -1.0),
        "rings": np.sin(2 * np.pi * 7 * np.hypot(x - 0.5, y - 0.5)),
    }
    pictures = {name: _coarser(np.asarray(picture)) for name, picture in found.items()}
    pictures |= {name: _coarser((127.5 + 112 * wave)[..., None]).repeat(3, 2) for name, wave in waves.items()}
    return {name: np.rint(picture).astype(np.uint8) for name, picture in pictures.items()}


def _coarser(picture: NDArray) -> NDArray[np.float64]:
    """Means over `_FINER` x `_FINER` pixels of a picture (H, W, c)."""
    size = len(picture) // _FINER
    return picture.reshape(size, _FINER, size, _FINER, -1).mean((1, 3), dtype=np.float64)
