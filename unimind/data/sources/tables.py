"""Tables as spreadsheets, R, MATLAB, pandas and PsychoPy write them, and what stands in their cells."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path

from unimind.data.sources.arrayfile import missing
from unimind.errors import InputError

#: What programs write where there is nothing: BIDS, R, pandas, MATLAB, Python, JavaScript.
NOTHING = frozenset({"", "n/a", "na", "nan", "none", "null", "undefined", "<undefined>", "<missing>", "#n/a"})
#: Largest session or run number: they are kept as 32-bit integers.
LARGEST = 2**31 - 1
_EXACT = 15  # decimal digits that a float of 64 bits keeps
_END = "\x03"  # a row of its own after the last, unless a quote is open there
_ENCODINGS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 as spreadsheets save it, without its byte-order mark."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise missing(path) from None
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise InputError(f"{path}: a spreadsheet's own file, no text; save it there as a .csv or .tsv file in UTF-8")
    encoding = next((name for mark, name in _ENCODINGS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error}); save it as UTF-8") from None


def spelled(name: str) -> str:
    """A name as it is compared: no spaces around it, accents composed, `/` between folders, no `./` before it."""
    name = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    while name.startswith("./"):
        name = name[2:]
    return name


def whole(text: str) -> int | None:
    """The whole number that a cell holds, such as 7, 007, 1.0, `1,0` or R's 1e+05, exact at any size; None for anything else.

    A number that a program has shortened, such as 1.23457E+11, or 1E+18, is none: its last digits are lost. Programs that count
    in floats write all digits of up to `_EXACT`.
    """
    text = re.sub(r",(0{1,2})$", r".\1", text.strip())
    if not re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,3})?", text):
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    mantissa, _, exponent = text.lower().partition("e")
    digits = len(mantissa.partition(".")[2])
    if exponent and ((digits >= 4 and int(exponent) > digits) or int(exponent) > _EXACT):
        return None
    return int(number) if number == number.to_integral_value() else None


def is_nothing(cell: str) -> bool:
    return cell.strip().casefold() in NOTHING


@dataclass(frozen=True)
class Table:
    """Rows of a table: cells by column, and the line of the file each row stands in."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]
    blank: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, *names: str) -> str | None:
        """The first of `names` that is a column, as it is written in the table; case and spaces aside."""
        known = {name.strip().casefold(): name for name in self.columns}
        return next((known[name.casefold()] for name in names if name.casefold() in known), None)

    def rows(self, keep: Iterable[int]) -> "Table":
        keep = list(keep)
        return Table(self.path, {name: [cells[row] for row in keep] for name, cells in self.columns.items()}, [self.lines[row] for row in keep])

    def of_length(self, wanted: int | None) -> "Table":
        """Without blank rows. Where `wanted` rows come out only with some of them, those are trials without a picture, the others left out at the end."""
        filled = [row for row in range(len(self)) if row not in set(self.blank)]
        inner = [row for row in range(len(self)) if filled and row <= filled[-1]]
        if wanted is not None and len(filled) < wanted <= len(self):
            if len(inner) <= wanted:
                return self.rows(range(wanted))
        return self.rows(filled)


def read_table(path: Path, known: Iterable[str]) -> Table:
    """Read a table with a header.

    Columns are set apart by commas, semicolons, tabs or spaces, whichever the header uses. A first column of row names without
    a header (R), delimiters at the end of every line, a `sep=` line (Excel) and quotes are understood. A single column
    without a header is one of pictures.

    Parameters
    ----------
    path : Path
    known : iterable of str
        Names of columns by which a header is known.

    Raises
    ------
    InputError
        No text, no header, a line with more cells than the header.
    """
    text = read_text(path)
    if "\0" in text:
        raise InputError(f"{path}: not a text file (it holds bytes 0); save it as a .csv or .tsv file in UTF-8")
    skipped = 0
    mark = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)
    if mark:
        text, skipped = text[mark.end() :], 1
    head = [line for line in text.splitlines() if line.strip()][:2]
    if not head:
        raise InputError(f"{path}: not a table: it is empty")
    delimiter = mark[1] if mark else _delimiter(head, known)
    rows, lines = [], []
    closed = text if text.endswith(("\n", "\r")) else f"{text}\n"
    reader = csv.reader(io.StringIO(closed + _END, newline=""), delimiter=delimiter, skipinitialspace=True)
    begun = skipped
    try:
        for row in reader:
            lines.append(begun + 1)
            rows.append([cell.strip() for cell in row])
            begun = skipped + reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}: not a table: {error} (line {skipped + reader.line_num})") from None
    if row != [_END]:
        raise InputError(f"{path} line {lines[-1]}: a quote opens and never closes; correct the line")
    rows, lines = rows[:-1], lines[:-1]
    at = next(index for index, row in enumerate(rows) if any(row))
    header, rows, lines, top = rows[at], rows[at + 1 :], lines[at + 1 :], lines[at]
    while len(header) > 1 and not header[-1]:
        header.pop()
    width = max((len(row) - next((k for k, cell in enumerate(reversed(row)) if cell), len(row)) for row in rows), default=0)
    if width == len(header) + 1 and all(len(row) >= width for row in rows if any(row)):
        rows = [row[1:] for row in rows]  # R's row names have no header
    for row, line in zip(rows, lines, strict=True):
        if any(row[len(header) :]):
            raise InputError(f"{path} line {line}: {len(row)} cells, but the header has {len(header)}; put names that hold a delimiter into quotes")
    names = [name.lstrip("\ufeff") for name in header]
    words = {word.casefold() for word in known}
    if len(names) == 1 and names[0].casefold() not in words and (whole(names[0]) is not None or re.search(r"\.\w{2,5}$", names[0])):
        names, rows, lines = ["picture"], [header, *rows], [top, *lines]
    twice = sorted({name for name in names if name and [other.casefold() for other in names].count(name.casefold()) > 1})
    if twice:
        raise InputError(f"{path}: two columns are called {twice[0]!r}; rename one")
    columns = {name or f"column {index + 1}": [row[index] if index < len(row) else "" for row in rows] for index, name in enumerate(names)}
    return Table(path, columns, lines, [index for index, row in enumerate(rows) if not any(row)])


def _delimiter(head: list[str], known: Iterable[str]) -> str:
    """What sets cells apart in the header; where it is a single cell, in the line below, which R begins with a row's name."""
    for line, marks in zip(head, ("\t;,", "\t;"), strict=False):
        bare = re.sub(r'"[^"]*"', "x", line)
        counts = {mark: bare.count(mark) for mark in marks}
        best = max(counts, key=lambda mark: counts[mark])
        if counts[best]:
            return best
    words = {word.strip('"').casefold() for word in head[0].split()}
    spaced = len(words) > 1 and words & {word.casefold() for word in known}
    return " " if spaced or (len(head) > 1 and re.match(r'"[^"]*" \S', head[1])) else ","
