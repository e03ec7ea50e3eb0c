"""A grid of pictures as PNG."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimind.storage import whole_file


def write_grid(path: Path, rows: list[tuple[str, NDArray[np.uint8]]], side: int = 64) -> None:
    """Write named rows of pictures (n, H, W, 3) below each other, n to a row, each `side` pixels wide."""
    from PIL import Image, ImageDraw

    margin, count = 96, max(len(pictures) for _, pictures in rows)
    sheet = Image.new("RGB", (margin + count * (side + 2), len(rows) * (side + 2)), "white")
    text = ImageDraw.Draw(sheet)
    for line, (name, pictures) in enumerate(rows):
        text.text((4, line * (side + 2) + side // 2 - 6), name, fill="black")
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR), (margin + column * (side + 2), line * (side + 2)))
    with whole_file(path) as temporary:
        sheet.save(temporary, format="PNG")
