"""Pictures beside pictures: what was seen, what was reconstructed, and the controls, chosen by rank and never by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

INK, FAINT, PAPER = (28, 30, 34), (110, 116, 126), (255, 255, 255)
GAP = 6
#: Per-image scores that order pictures from best to worst; each decides where the ones before it tie. Sign: +1 where higher is better.
RANKING = {"similarity": 1, "lpips": -1, "lpips_squeeze": -1, "perceptual_distance": -1, "mse": -1}


@dataclass(frozen=True)
class Tile:
    """A place in a mosaic: one picture (H, W, 3) uint8, and beside it, at half the size, further ones (m, H, W, 3)."""

    picture: np.ndarray | None
    others: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class Mosaic:
    """A drawn mosaic: `pixels` (H, W, 3) uint8, and where each picture is.

    `boxes[row, column]` and `small[row, column, m]` are (top, left, side), in pixels.
    """

    pixels: np.ndarray
    boxes: dict[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)
    small: dict[tuple[int, int, int], tuple[int, int, int]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write a PNG."""
        from PIL import Image

        Image.fromarray(self.pixels).save(path)


def tile_side(side: int) -> int:
    """Side at which pictures are shown: small ones enlarged by a whole factor, so that every pixel stays a square; large ones at 128."""
    return side * max(1, round(128 / side)) if side <= 128 else 128


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 at `side` x `side`: pixels repeated where that is a whole factor, else Lanczos."""
    height, width = picture.shape[:2]
    if height == width and side % height == 0:
        return picture.repeat(side // height, 0).repeat(side // height, 1)
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def mosaic(
    cells: Sequence[Sequence[Tile]],
    rows: Sequence[str],
    columns: Sequence[str],
    tile: int,
    row_colours: Mapping[int, str] | None = None,
    column_colours: Mapping[int, str] | None = None,
    breaks: Sequence[int] = (),
) -> Mosaic:
    """Draw labelled rows and columns of pictures.

    Parameters
    ----------
    cells : sequence of rows of Tile
        An empty cell (`Tile(None)`) stays white.
    rows, columns : sequence of str
        Labels, at the left and on top; broken into lines where too long.
    tile : int
        Side of a picture in pixels; even, since further pictures are drawn at half of it.
    row_colours, column_colours : mapping of int to str
        Colour (`#RRGGBB`) of the bar beside a label.
    breaks : sequence of int
        Rows that begin a new group: a wider gap is left above them.
    """
    from PIL import Image, ImageDraw

    row_colours, column_colours = row_colours or {}, column_colours or {}
    half = tile // 2
    others = [max((len(row[column].others) for row in cells), default=0) for column in range(len(columns))]
    widths = [tile + (GAP // 2 + -(-count // 2) * half if count else 0) for count in others]
    size = max(13, tile // 8)
    font, bold = _fonts(size)
    left_labels = [_wrapped(label, font, 2 * tile) for label in rows]
    top_labels = [_wrapped(label, bold, width) for label, width in zip(columns, widths, strict=True)]
    margin = int(max((font.getlength(line) for label in left_labels for line in label), default=0)) + (3 * GAP if rows else GAP)
    line = round(1.25 * size)
    head = max((len(label) for label in top_labels if label != [""]), default=0) * line + 2 * GAP
    lefts = np.cumsum([margin, *(width + 2 * GAP for width in widths)]).tolist()
    tops, top = [], head + GAP
    for row in range(len(cells)):
        top += 4 * GAP if row in breaks and row else 0
        tops.append(top)
        top += tile + GAP
    canvas = Image.new("RGB", (lefts[-1], top + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, label in enumerate(top_labels):  # a bar under each label carries the column's colour
        base = head - GAP - len(label) * line
        for number, words in enumerate(label):
            draw.text((lefts[column], base + number * line), words, font=bold, fill=INK)
        if label != [""]:
            draw.rectangle((lefts[column], head - GAP // 2, lefts[column] + widths[column] - 1, head), fill=column_colours.get(column, "#C9CDD3"))
    for row, label in enumerate(left_labels):
        base = tops[row] + (tile - len(label) * line) // 2
        for number, words in enumerate(label):
            draw.text((margin - 2 * GAP, base + number * line), words, font=font, fill=INK if row in row_colours else FAINT, anchor="ra")
        if row in row_colours:
            draw.rectangle((margin - GAP - 2, tops[row], margin - GAP + 1, tops[row] + tile - 1), fill=row_colours[row])
    drawn = Mosaic(np.array(canvas))
    for row, line_of_cells in enumerate(cells):
        for column, cell in enumerate(line_of_cells):
            if cell.picture is None:
                continue
            top, left = tops[row], lefts[column]
            drawn.pixels[top : top + tile, left : left + tile] = resized(cell.picture, tile)
            drawn.boxes[row, column] = (top, left, tile)
            for number, picture in enumerate(cell.others):
                y, x = top + (number % 2) * half, left + tile + GAP // 2 + (number // 2) * half
                drawn.pixels[y : y + half, x : x + half] = resized(picture, half)
                drawn.small[row, column, number] = (y, x, half)
    return drawn


def best_median_worst(per_image: Mapping[str, Sequence[float] | None], n: int, each: int) -> dict[str, list[int]] | None:
    """Positions of the best, median and worst of `n` pictures, `each` of them, by their per-image scores.

    Scores are compared in the order of `RANKING`, a later one deciding where the earlier ones tie, then the stimulus order. None
    where no score of that table has a value for every picture.
    """
    given = {name: np.asarray(per_image[name], float) for name in RANKING if per_image.get(name) is not None}
    keys = [RANKING[name] * values for name, values in given.items() if len(values) == n]
    keys = [key for key in keys if np.isfinite(key).all()]
    if not keys:
        return None
    order = np.lexsort([np.arange(n), *(-key for key in reversed(keys))]).tolist()
    each = min(each, n // 3)
    middle = (n - each) // 2
    return {"best": order[:each], "median": order[middle : middle + each], "worst": order[n - each :]}


def _fonts(size: int):
    from matplotlib import font_manager
    from PIL import ImageFont

    return tuple(
        ImageFont.truetype(font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight)), size) for weight in ("normal", "bold")
    )


def _wrapped(label: str, font, width: int) -> list[str]:
    """A label in lines no wider than `width` where its spaces and hyphens allow."""
    pieces = label.replace("-", "-\0").replace(" ", " \0").split("\0")
    lines = [""]
    for piece in pieces:
        if lines[-1] and font.getlength((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.strip() for line in lines]
