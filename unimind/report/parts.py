"""What the page is made of - sections, tables, pictures - and words that several of its parts say."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from unimind.evaluation.measures import measure_of
from unimind.study import Study

PERCENT = "\u00a0%"


@dataclass(frozen=True)
class Entry:
    """A number of a table: as printed, its interval as printed, its exact value, all of it in words, and whether it is surely the best."""

    shown: str
    interval: str = ""
    exact: str = ""
    words: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a table; `colour` marks a method."""

    label: str
    cells: list[Entry | None]
    colour: str = ""
    note: str = ""


@dataclass(frozen=True)
class LineGroup:
    """Lines of a table under a heading of their own."""

    rows: list[Line]
    heading: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table of the page."""

    title: str
    corner: str
    columns: list[tuple[str, str]]  # (head, its meaning)
    blocks: list[LineGroup]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure with its bytes in the page."""

    source: str
    caption: str
    alt: str
    width: int
    height: int
    title: str = ""
    subject: str = ""


@dataclass
class PageSection:
    """What stands under one dataset or heading: notes, figures, tables."""

    title: str = ""
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[PageTable] = field(default_factory=list)
    folded: list[PageTable] = field(default_factory=list)


def listed(words: Sequence[str]) -> str:
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def value_with_interval(name: str, row: Any, unit: bool = True) -> str:
    """`96.1 % [95.0, 97.2]`, or without an interval where the table has none."""
    shown = measure_of(name).shown(row.value) + (PERCENT if unit and measure_of(name).percent else "")
    if pd.isna(row.ci_low) or pd.isna(row.ci_high):
        return shown
    return f"{shown} [{measure_of(name).shown(row.ci_low)}, {measure_of(name).shown(row.ci_high)}]"


def pick(rows: pd.DataFrame, **wanted: Any) -> Any | None:
    """The first row with these values (None: no value), or None."""
    for column, value in wanted.items():
        rows = rows[rows[column].isna()] if value is None else rows[rows[column] == value]
    return next(rows.itertuples(), None)


def whom(study: Study, dataset: str, role: str) -> str:
    """Whose value a number over subjects is."""
    own = study.datasets[dataset]
    subjects = own.training_subjects if role == "train" else own.new_subjects
    return subjects[0] if len(subjects) == 1 else f"mean over {len(subjects)} {'training' if role == 'train' else 'new'} subjects"


def measure_words(name: str) -> str:
    kind = measure_of(name)
    if name == "identification":
        return "two-way identification by the predicted embedding"
    return f"two-way identification in {kind.title} space" if kind.chance == 0.5 else kind.title
