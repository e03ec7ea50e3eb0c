"""Names, tables and volumes of BIDS files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unimind.data.sources import tables
from unimind.data.sources.arrayfile import AGAIN
from unimind.data.sources.base import reading
from unimind.data.sources.pictures import natural
from unimind.data.sources.trials import PARTS, PICTURE, part_number
from unimind.errors import InputError

_COLUMNS = ("onset", "duration", "trial_type", "index", "name", *PICTURE, *PARTS, "beta_index")


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


def bids_files(folder: Path, label: str, suffix: str, ending: str, **wanted: str | None) -> list[BidsFile]:
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


def read_tsv(path: Path) -> Any:
    """A table of text, trimmed, without blank rows; the index is the line that each row stands in."""
    import pandas as pd

    table = tables.read_table(path, _COLUMNS).of_length(None)
    return pd.DataFrame(table.columns, index=table.lines, dtype=str)


def numbers(frame: Any, column: str, path: Path, whole: bool = False) -> NDArray[np.float64]:
    """A column as numbers; InputError with the line of the first cell that is none."""
    import pandas as pd

    if column not in frame:
        raise InputError(f"{path}: no column {column!r}; it has {', '.join(frame.columns)}")
    cells = frame[column].map(lambda cell: tables.whole(cell)) if whole else frame[column]
    values = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(values)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{path} line {frame.index[row]}: {column} is {frame[column].iloc[row]!r}; expected a {'whole ' if whole else ''}number")
    return values


def label_number(text: str, entity: Literal["session", "run"], where: str) -> int:
    """The number in a cell such as `3`, `03`, `3.0` or `ses-03`."""
    held = part_number(text)
    if held is None:
        raise InputError(f"{where}: {entity} is {text!r}; expected a whole number, or {entity[:3]}-01 and the like")
    return held


def sidecar(path: Path, names: Sequence[str]) -> dict[str, float]:
    """Some numbers that the JSON file beside a data file says; empty where there is none."""
    beside = path.with_name(path.name.partition(".")[0] + ".json")
    if not beside.exists():
        return {}
    with reading(beside, "a readable JSON file", AGAIN):
        said = json.loads(beside.read_text(encoding="utf-8"))
    if not isinstance(said, dict):
        raise InputError(f'{beside}: {type(said).__name__} given; expected names and values, such as {{"RepetitionTime": 2.0}}')
    for name in names:
        if name in said and (isinstance(said[name], bool) or not isinstance(said[name], int | float) or not 0 <= said[name] < float("inf")):
            raise InputError(f"{beside}: {name} is {said[name]!r}; expected seconds, such as 2.0")
    return {name: float(said[name]) for name in names if name in said}
