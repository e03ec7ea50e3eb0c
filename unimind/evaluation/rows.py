"""Rows of the tables: what the metrics files hold, and its averages over subjects."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from unimind.errors import InputError
from unimind.evaluation.controls import OF_THE_SUBJECT, ROWS
from unimind.evaluation.measures import NAMES
from unimind.evaluation.statistics import bootstrap
from unimind.storage import read_json
from unimind.study import Study

AVERAGES = {"train": "average:train", "new": "average:new"}

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Row:
    """One row of one metrics file, or its average over subjects."""

    dataset: str
    subject: str
    role: str
    row: str
    method: str
    trials: int | None
    protocol: str
    images: tuple[tuple[tuple[str, int], ...], ...]  # per subject, (stimulus set, index) of every value per image
    metrics: dict[str, dict[str, Any]]
    budget: str | None = None  # of `transfer`: a number of trials, or all
    members: tuple["Row", ...] = ()  # of an average, a row per subject

    @property
    def name(self) -> str:
        """As in the table's column `method`."""
        return self.method if self.row == "reconstruction" else self.row if self.row in OF_THE_SUBJECT else f"{self.row}:{self.method}"

    @property
    def is_method(self) -> bool:
        return self.row == "reconstruction"

    def values(self, metric: str) -> list[np.ndarray] | None:
        """Values (d, n) of d drawings of the trials and n images, an array per subject, NaN where there is none; None for a measure of whole sets."""
        found = []
        for row in self.members or (self,):
            entry = row.metrics.get(metric, {})
            drawn = entry.get("per_drawing") or [entry.get("per_image")]
            if drawn[0] is None:
                return None
            found.append(np.array(drawn, float))
        return found


def read_metrics(paths: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """Contents of metrics files, given themselves or by their folders.

    Raises
    ------
    InputError
        A folder without a metrics file.
    """
    found: dict[Path, dict[str, Any]] = {}
    for path in map(Path, paths):
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path}: holds no metrics file; run the score stage again")
        found |= {file: read_json(file) for file in files}
    return found


def table_rows(study: Study, files: list[dict[str, Any]]) -> tuple[list[Row], list[Row]]:
    """Rows of the main tables (the largest number of trials of each subject and method), and method rows of all budgets."""
    every, seen = [], set()
    largest: dict[tuple[str, ...], int] = {}
    for file in files:
        key = (file["method"], file["dataset"], file["subject"])
        largest[key] = max(largest.get(key, -1), file.get("trials") or 0)
    main = []
    for file in files:
        stimuli = study.stimuli(file["dataset"], file["subject"])
        images = (tuple((stimuli, index) for index in file["stimulus"]),)
        for name, metrics in file["rows"].items():
            row = Row(
                file["dataset"], file["subject"], file["role"], name, file["method"], file.get("trials"), file["protocol"]["id"], images, metrics,
                file.get("budget"),
            )  # fmt: skip
            if row.is_method:
                every.append(row)
            if (row.trials or 0) != largest[file["method"], file["dataset"], file["subject"]]:
                continue
            once = (row.dataset, row.subject, row.name, row.protocol)
            if once not in seen:
                seen.add(once)
                main.append(row)
    order = {name: k for k, name in enumerate(ROWS)}
    main.sort(key=lambda row: 0 if row.is_method else 1 + order.get(row.row, len(order)))  # stable: methods stay in order
    return main, every


def averages(rows: list[Row], study: Study) -> list[Row]:
    """Means over the training subjects and over the new subjects of a data set, where there are several."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    several = {key for key, members in grouped(rows, lambda row: (row.dataset, row.role)).items() if len({row.subject for row in members}) > 1}
    for row in rows:
        if (row.dataset, row.role) in several:
            groups.setdefault((row.dataset, row.role, row.name, row.protocol), []).append(row)
    expected = {key: len({row.subject for row in rows if (row.dataset, row.role) == key}) for key in several}
    result = []
    for (dataset, role, _, protocol), members in groups.items():
        for trials, same in _of_budgets(members, expected[dataset, role]):
            metrics = {name: _average(same, name, study) for name in NAMES if all(name in row.metrics for row in same)}
            images = tuple(own for row in same for own in row.images)
            result.append(Row(dataset, AVERAGES[role], role, same[0].row, same[0].method, trials, protocol, images, metrics, same[0].budget, tuple(same)))
    return result


def _of_budgets(members: list[Row], expected: int) -> Iterable[tuple[int | None, list[Row]]]:
    """Rows that may be averaged: one per subject, all subjects; per number of trials where a subject has several."""
    if len({row.subject for row in members}) == len(members):
        if len(members) == expected:
            trials = {row.trials for row in members}
            yield (trials.pop() if len(trials) == 1 else None), members
        return
    for same in grouped(members, lambda row: row.budget or row.trials).values():
        if len(same) == expected:
            known = [row.trials for row in same if row.trials is not None]
            yield (round(sum(known) / len(known)) if known else None), same


def grouped(rows: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def distinct(images: Iterable[Iterable[Any]]) -> int:
    """Number of different images; one that several subjects saw counts once."""
    return len({image for own in images for image in own})


def known_images(values: Sequence[np.ndarray], images: Sequence[Sequence[Any]]) -> int:
    """Number of different images that have a value: arrays (d, n), and the images (n,), one per subject."""
    return distinct([own[i] for i in np.flatnonzero(np.isfinite(v).all(0)).tolist()] for v, own in zip(values, images, strict=True))


def _average(rows: list[Row], name: str, study: Study) -> dict[str, Any]:
    """Mean of one measure over subjects, a row each; `n` counts an image once, however many subjects saw it."""
    result: dict[str, Any] = {"value": float(np.mean([row.metrics[name]["value"] for row in rows])), "ci_low": None, "ci_high": None, "n": None}
    lists, images = [row.values(name) for row in rows], [row.images[0] for row in rows]
    if all(values is not None for values in lists):
        values = [values[0] for values in lists if values is not None]
        low, high = bootstrap(values, study.evaluation.bootstrap, study.seed, images, drawings=True)
        result |= {"ci_low": float(low), "ci_high": float(high), "n": known_images(values, images)}
    return result
