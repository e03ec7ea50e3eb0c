"""Names, tables and volumes of BIDS files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unimind.data.sources.arrayfile import AGAIN
from unimind.data.sources.base import reading
from unimind.data.sources.pictures import natural
from unimind.errors import InputError

#: What a cell says that says nothing.
MISSING = frozenset({"", "n/a", "N/A", "nan", "NaN", "NA"})


@dataclass(frozen=True)
class BidsFile:
    """A file with its entities, such as `ses` or `run`, its suffix and its ending."""

    path: Path
    entities: dict[str, str]
    suffix: str
    ending: str

    @classmethod
    def of(cls, path: Path) -> "BidsFile":
        stem, _, ending = path.name.partition(".")
        *pairs, suffix = stem.split("_")
        entities = {key: value for key, _, value in (pair.partition("-") for pair in pairs) if value}
        return cls(path, entities, suffix, f".{ending}")

    def get(self, entity: str) -> str | None:
        return self.entities.get(entity)

    @property
    def order(self) -> list[list[tuple[int, int | str]]]:
        """Sort key: by session, then run, digits as numbers."""
        return [natural(self.entities.get(entity, "")) for entity in ("ses", "run")]


def find(folder: Path, label: str, suffix: str, ending: str, **wanted: str | None) -> list[BidsFile]:
    """Files of a subject below a folder of `sub-...`, by session and run; an entity wanted as None may be anything."""
    found = [BidsFile.of(path) for path in sorted((folder / f"sub-{label}").rglob(f"sub-{label}*_{suffix}{ending}"))]
    right = [file for file in found if all(value is None or file.get(entity) == value for entity, value in wanted.items())]
    return sorted(right, key=lambda file: file.order)


def number(label: str | None, among: list[str]) -> int:
    """Number of a session or run: what its label says, or, where labels are words, its place among them; 1 where there is none."""
    if label is None:
        return 1
    if all(each.isdigit() for each in among):
        return int(label)
    return sorted(set(among), key=natural).index(label) + 1


def read_table(path: Path, what: str) -> Any:
    """A .tsv table of text, trimmed, with empty cells and `n/a` as the empty string."""
    import pandas as pd

    try:
        frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what}; put it there, or correct the data set's keys") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error}); save it as UTF-8") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: not a {what}: {' '.join(str(error).split())}") from None
    frame.columns = frame.columns.str.strip()
    frame = frame.apply(lambda column: column.fillna("").str.strip())
    return frame.where(~frame.isin(list(MISSING)), "")


def numbers(frame: Any, column: str, path: Path, whole: bool = False) -> NDArray[np.float64]:
    """A column as numbers; InputError with the line of the first cell that is none."""
    import pandas as pd

    if column not in frame:
        raise InputError(f"{path}: no column {column!r}; it has {', '.join(frame.columns)}")
    values = pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(values) | ((values != np.round(values)) if whole else False)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{path} line {row + 2}: {column} is {frame[column].iloc[row]!r}; expected a {'whole ' if whole else ''}number")
    return values


def label_number(text: str, entity: Literal["session", "run"], where: str) -> int:
    """The number in a cell such as `3`, `03`, `3.0` or `ses-03`."""
    held = re.fullmatch(rf"(?:{entity[:3]}(?:sion)?[-_ ]?)?0*(\d+)(?:\.0+)?", text, re.IGNORECASE)
    if held is None:
        raise InputError(f"{where}: {entity} is {text!r}; expected a whole number, or {entity[:3]}-01 and the like")
    return int(held[1])


def sidecar(path: Path) -> dict[str, Any]:
    """What the JSON file beside a data file says; empty where there is none."""
    beside = path.with_name(path.name.partition(".")[0] + ".json")
    if not beside.exists():
        return {}
    with reading(beside, "a readable JSON file", AGAIN):
        return json.loads(beside.read_text(encoding="utf-8"))
