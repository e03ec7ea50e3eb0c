"""Which trial showed which picture: files of a subject by session and run, and the trial tables that go with them."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimind.data.sources.arrayfile import ARRAY_ENDINGS, read_array
from unimind.data.sources.pictures import Pictures
from unimind.data.sources.tables import LARGEST, Table, is_nothing, read_table, read_text, spelled, whole
from unimind.errors import InputError
from unimind.progress import say

#: Columns that name a trial's picture; the first that a table has counts.
PICTURE = ("picture", "stim_file", "stimulus", "label", "condition")
PARTS = ("session", "run")


@dataclass(frozen=True)
class SessionFile:
    """A file of one session or run, or of all: its numbers are those in its name."""

    path: Path
    session: int | None = None
    run: int | None = None

    def __str__(self) -> str:
        return str(self.path)

    def number(self, part: str) -> int | None:
        return self.session if part == "session" else self.run


def place(root: Path, pattern: str, subject: str | None) -> str:
    """The path that a pattern of the study means: below `root` unless it is absolute; `~` and `$VARIABLES` are expanded."""
    return (root / os.path.expanduser(os.path.expandvars(pattern.replace("{subject}", subject or "")))).as_posix()


def parts_of(root: Path, pattern: str, subject: str, key: str) -> list[SessionFile]:
    """The files that a pattern with `{session}` and `{run}` names, in the order of the numbers that stand there.

    Raises
    ------
    InputError
        No file; something else than a number; two files of one number.
    """
    whole_path = place(root, pattern, subject)
    if not any(f"{{{part}}}" in whole_path for part in PARTS):
        return [SessionFile(Path(whole_path))]
    steps = whole_path.split("/")
    fixed = next(index for index, step in enumerate(steps) if any(f"{{{part}}}" in step for part in PARTS))
    base, rest = Path("/".join(steps[:fixed]) or "/"), "/".join(steps[fixed:])
    expression, seen = "", set()
    for piece in re.split(r"(\{session\}|\{run\})", rest):
        name = piece.strip("{}")
        if piece not in ("{session}", "{run}"):
            expression += re.escape(piece)
        else:
            expression += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
            seen.add(name)
    found: dict[tuple[int | None, int | None], SessionFile] = {}
    for path in base.glob(re.sub(r"\{(session|run)\}", "*", "/".join(_escape(step) for step in rest.split("/")))):
        match = re.fullmatch(expression, path.relative_to(base).as_posix())
        if match is None or path.name.startswith("."):
            continue
        numbers = {name: part_number(word) for name, word in match.groupdict().items()}
        for name, number in numbers.items():
            if number is None:
                wanted = f"expected a number such as 1, 01 or {name[:3]}-01; rename or move the file"
                raise InputError(f"{path}: {{{name}}} of {key} stands for {match[name]!r} here; {wanted}")
        part = SessionFile(path, numbers.get("session"), numbers.get("run"))
        other = found.setdefault((part.session, part.run), part)
        if other is not part:
            raise InputError(f"{path} and {other.path}: both are {_words(part)}; keep one of them")
    if not found:
        raise InputError(f"{whole_path}: no file matches; see {key}")
    return [found[at] for at in sorted(found, key=lambda at: tuple(number or 0 for number in at))]


def _escape(step: str) -> str:
    """A step of a path whose placeholders alone are patterns."""
    return "".join(piece if piece in ("{session}", "{run}") else glob.escape(piece) for piece in re.split(r"(\{session\}|\{run\})", step))


def part_number(word: str) -> int | None:
    """The number of a session or run, as 1, 01, 1.0, ses-01, run_2 or S3 write it."""
    named = re.fullmatch(r"[A-Za-z]+[-_ ]?(\d+)", word.strip())
    return int(named[1]) if named else whole(word)


def _words(part: SessionFile) -> str:
    return " ".join(f"{name} {part.number(name)}" for name in PARTS if part.number(name) is not None)


@dataclass(frozen=True)
class Shown:
    """Trials with a picture, those of a session side by side.

    Attributes
    ----------
    row : int (n,)
        Place of the trial in the responses, over all files one after another.
    picture : int (n,)
        Index of the picture.
    session : int (n,)
    test : bool (n,)
        Whether the split rule marks the trial itself.
    """

    row: NDArray[np.integer]
    picture: NDArray[np.integer]
    session: NDArray[np.integer]
    test: NDArray[np.bool_]


@dataclass(frozen=True)
class TableRows:
    """Rows of a subject's trial tables, one after another."""

    where: list[str]
    picture: list[str]
    numbers: dict[str, list[int | None]]
    index: list[str] | None
    split: list[str] | None
    column: str | None

    def __len__(self) -> int:
        return len(self.where)


def read_trial_tables(
    tables: Sequence[SessionFile], files: Sequence[SessionFile], counts: Sequence[int] | None, column: str | None, naming: Sequence[str] = PICTURE
) -> TableRows:  # fmt: skip
    """Read trial tables.

    Parameters
    ----------
    tables : sequence of SessionFile
        Tables of all trials, or one a session or run.
    files : sequence of SessionFile
        Files of responses.
    counts : sequence of int, optional
        Trials of each file, which tell blank rows at the end from trials without a picture.
    column : str, optional
        Column that says something more of a trial: `train` or `test`, or its condition.
    naming : sequence of str
        Columns that name a trial's picture, or label it; the first that a table has counts.
    """
    where: list[str] = []
    picture: list[str] = []
    split: list[str] = []
    index: list[str] = []
    numbers: dict[str, list[int | None]] = {part: [] for part in PARTS}
    indexed = None
    for part in tables:
        table = _condition_numbers(part.path) if part.path.suffix in ARRAY_ENDINGS else read_table(part.path, (*naming, *PARTS, "beta_index"))
        named = table.column(*naming)
        if named is None:
            columns = " or ".join([", ".join(naming[:-1]), naming[-1]] if len(naming) > 1 else naming)
            raise InputError(f"{part.path}: no column {columns}; it has {', '.join(table.columns)}")
        at_index = table.column("beta_index")
        if indexed not in (None, at_index is not None):
            raise InputError(f"{part.path}: {'has' if at_index else 'lacks'} the column beta_index, unlike {tables[0].path}; write it in all tables or in none")
        indexed = at_index is not None
        wanted = None
        if counts is not None and not indexed:
            here = [count for file, count in zip(files, counts, strict=True) if all(part.number(name) in (None, file.number(name)) for name in PARTS)]
            wanted = sum(here)
        table = table.of_length(wanted)
        if not len(table):
            raise InputError(f"{part.path}: a header, and no trial below it; write one row a trial")
        lines = [f"{part.path} {'trial' if part.path.suffix in ARRAY_ENDINGS else 'line'} {line}" for line in table.lines]
        where += lines
        picture += table.columns[named]
        index += table.columns[at_index] if at_index else [""] * len(table)
        if column is not None:
            of = table.column(column)
            if of is None:
                raise InputError(f"{part.path}: no column {column!r}; it has {', '.join(table.columns)}")
            split += table.columns[of]
        for name in PARTS:
            numbers[name] += _numbers_of(table, name, part, lines, named)
    known = {name: values for name, values in numbers.items() if any(value is not None for value in values)}
    return TableRows(where, picture, known, index if indexed else None, split if column is not None else None, column)


def _numbers_of(table: Table, name: str, part: SessionFile, lines: list[str], named: str) -> list[int | None]:
    """Session or run of every row: of its column, which must agree with the table's file name, or of that name."""
    by_name, column = part.number(name), table.column(name)
    if column is None:
        return [by_name] * len(table)
    found: list[int | None] = []
    for cell, line, picture in zip(table.columns[column], lines, table.columns[named], strict=True):
        number = part_number(cell)
        if is_nothing(cell):
            if by_name is None and not is_nothing(picture):
                raise InputError(f"{line}: {name} is empty; write its number")
            number = by_name
        elif number is None or not 0 <= number <= LARGEST:
            raise InputError(f"{line}: {name} is {cell!r}; expected whole numbers up to {LARGEST}, such as 1 or {name[:3]}-01")
        elif by_name is not None and number != by_name:
            raise InputError(f"{line}: {name} is {cell!r}, but the table's name says {by_name}; correct one of them")
        found.append(number)
    return found


def _condition_numbers(path: Path) -> Table:
    """An array with one picture number a trial, as a table; NaN where a trial shows none."""
    values = np.asarray(read_array(path, None))
    if values.size != max(values.shape, default=0):
        raise InputError(f"{path}: an array of shape {values.shape}; expected one picture number a trial")
    if values.dtype.kind == "f" and (largest := np.nanmax(np.abs(values), initial=0)) >= (exact := 2 ** (np.finfo(values.dtype).nmant + 1)):
        raise InputError(f"{path}: picture numbers up to {largest:.0f} as {values.dtype}, which is exact up to {exact} alone; save them as whole numbers")
    cells = ["" if not np.isfinite(value) else f"{value:.17g}" if values.dtype.kind == "f" else str(int(value)) for value in values.ravel()]
    return Table(path, {"picture": cells}, list(range(1, len(cells) + 1)))


def placed(
    rows: TableRows, files: Sequence[SessionFile], counts: Sequence[int], count_from: int | None, who: str
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Which trial of the responses every row is of, over all files one after another, -1 where it says none (n,); and its session (n,).

    Rows and files meet by the session and the run that both name, else in their order. Within that, `beta_index` says which
    trial a row is of, counted from 0 or 1; without it, the rows are the trials in their order.

    Parameters
    ----------
    who : str
        Data set and subject, for messages.

    Raises
    ------
    InputError
        Rows and trials that cannot belong together, with the first place where they part.
    """
    keys = [name for name in PARTS if name in rows.numbers and files[0].number(name) is not None]
    starts = np.cumsum([0, *counts])
    trials: dict[tuple, list[int]] = {}
    for at, file in enumerate(files):
        trials.setdefault(tuple(file.number(name) for name in keys), []).extend(range(starts[at], starts[at + 1]))
    given: dict[tuple, list[int]] = {}
    lost = np.array([is_nothing(cell) for cell in rows.index], bool) if rows.index is not None else np.zeros(len(rows), bool)
    for row in range(len(rows)):
        if not lost[row]:
            given.setdefault(tuple(rows.numbers[name][row] for name in keys), []).append(row)
    for key, of in given.items():
        if None in key:
            raise InputError(f"{rows.where[of[0]]}: {keys[key.index(None)]} is empty; write its number")
        if key not in trials:
            said = " ".join(f"{name} {number}" for name, number in zip(keys, key, strict=True))
            raise InputError(f"{rows.where[of[0]]}: {said}, of which there is no file of responses; there are {', '.join(_words(file) for file in files)}")
    for key in trials:
        if key not in given:
            said = " ".join(f"{name} {number}" for name, number in zip(keys, key, strict=True)) or "the responses"
            raise InputError(f"{_file_at(files, starts, trials[key][0])}: no row of the trial table is of {said}; add its trials, or move the file away")
    order = np.full(len(rows), -1)
    if rows.index is not None:
        _by_index(rows, given, trials, count_from, order, who)
    else:
        if "run" not in keys:
            _require_order(rows)
        for key, of in given.items():
            if len(of) != len(trials[key]):
                raise _parting(rows, key, keys, of, len(trials[key]), _file_at(files, starts, trials[key][0]), total=len(trials) == 1)
            order[of] = trials[key]
    silent = int(starts[-1] - len(np.unique(order[order >= 0])))
    if silent:
        say(f"{who}: {silent} of {starts[-1]} trials of the responses have no row in the trial table and are left out")
    return order, _sessions(rows, files, starts, order)


def match(
    rows: TableRows, files: Sequence[SessionFile], counts: Sequence[int], pictures: Pictures, count_from: int | None, dataset: str, subject: str
) -> Shown:
    """Bring rows, trials (`placed`) and pictures together.

    Raises
    ------
    InputError
        Rows and trials that cannot belong together, or a picture that is not there.
    """
    missing = np.array([is_nothing(cell) and cell not in pictures for cell in rows.picture], bool)
    order, sessions = placed(rows, files, counts, count_from, f"{dataset} {subject}")
    lost = order < 0
    kept = np.flatnonzero(~missing & (order >= 0))
    for count, words in ((int((missing & ~lost).sum()), "show no picture"), (int((lost & ~missing).sum()), "have no beta_index")):
        if count:
            say(f"{dataset} {subject}: {count} of {len(rows)} trials {words} and are left out")
    if not len(kept):
        raise InputError(f"{rows.where[0] if rows.where else files[0]}: no trial shows a picture; see datasets.{dataset}.trials")
    kept = kept[np.argsort(sessions[kept], kind="stable")]
    picture = find_all(pictures, [rows.picture[row] for row in kept], [rows.where[row] for row in kept], count_from, dataset)
    return Shown(order[kept], picture, sessions[kept], marked(rows, kept))


@dataclass(frozen=True)
class Labelled:
    """Trials of which a table says no picture but, perhaps, a label, those of a session side by side.

    Attributes
    ----------
    row : int (n,)
        Place of the trial in the responses, over all files one after another.
    session : int (n,)
    label, condition : list of str (n,)
        "" where the table says nothing.
    run : int (n,), optional
    """

    row: NDArray[np.integer]
    session: NDArray[np.integer]
    label: list[str]
    condition: list[str]
    run: NDArray[np.integer] | None


#: Columns of a table that label a trial; the first that it has counts.
LABEL = ("label", "picture", "stim_file", "stimulus")


def labelled(
    tables: Sequence[SessionFile], files: Sequence[SessionFile], counts: Sequence[int], label: str | None, condition: str | None, count_from: int | None,
    who: str,
) -> Labelled:  # fmt: skip
    """What tables say of trials without known pictures; all trials, without a label, where there is no table.

    Parameters
    ----------
    label, condition : str, optional
        Columns; by default the first of `LABEL`, and none.
    who : str
        Data set and subject, for messages.
    """
    if not tables:
        total = sum(counts)
        return Labelled(np.arange(total), sessions_of(files, counts), [""] * total, [""] * total, None)
    rows = read_trial_tables(tables, files, counts, condition, (label,) if label else LABEL)
    order, session = placed(rows, files, counts, count_from, who)
    kept = np.flatnonzero(order >= 0)
    if not len(kept):
        raise InputError(f"{tables[0]}: no row is of a trial; see its column beta_index")
    kept = kept[np.argsort(session[kept], kind="stable")]
    words = [["" if is_nothing(cells[row]) else spelled(cells[row]) for row in kept] for cells in (rows.picture, rows.split or [""] * len(rows))]
    run = rows.numbers.get("run")
    runs = [None] if run is None else [run[row] for row in kept]
    return Labelled(order[kept], session[kept], words[0], words[1], None if None in runs else np.array(runs, int))


def marked(rows: TableRows, kept: Iterable[int]) -> NDArray[np.bool_]:
    """Whether the split column says `test`, of each of some rows; False where there is none."""
    found = []
    for row in kept:
        word = rows.split[row].strip().casefold() if rows.split is not None else "train"
        if word not in ("train", "test"):
            raise InputError(f"{rows.where[row]}: {rows.column} is {repr(word) if word else 'empty'}; expected train or test")
        found.append(word == "test")
    return np.array(found, bool)


def find_all(pictures: Pictures, names: Sequence[str], where: Sequence[str], count_from: int | None, dataset: str) -> NDArray[np.integer]:
    """Index of the picture of every name; numbers of pictures in an array count from 0 or 1, as the first and last of them tell."""
    if pictures.numbered:
        numbers = [whole(name) for name in names]
        for name, number, line in zip(names, numbers, where, strict=True):
            if number is None:
                raise InputError(f"{line}: no picture {name!r} in {pictures.where}; its pictures have numbers")
        known = [number for number in numbers if number is not None]
        base = count_base(known, [len(pictures)] * len(known), count_from, where, f"picture number of {pictures.where}", dataset)
        return np.array(numbers, int) - base
    folders = {spelled(name).rpartition("/")[0] for name in names}
    shared = os.path.commonpath(folders) + "/" if folders and all(folders) and not any(folder.startswith("/") for folder in folders) else ""
    if folders and all(folder.startswith("/") for folder in folders):
        shared = os.path.commonpath(folders).rstrip("/") + "/"
    return np.array([pictures.find(name, line, shared) for name, line in zip(names, where, strict=True)], int)


def listed_pictures(path: Path, pictures: Pictures, count_from: int | None, dataset: str) -> NDArray[np.integer]:
    """Index of every picture that a list names, one a line."""
    lines = [(line, f"{path} line {at}") for at, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    return find_all(pictures, [line for line, _ in lines], [place for _, place in lines], count_from, dataset) if lines else np.empty(0, int)


def count_base(numbers: Sequence[int], counts: Sequence[int], count_from: int | None, where: Sequence[str], what: str, dataset: str) -> int:
    """What numbers count from, 0 or 1: `count_from`, or as the first and the last of what they number tell.

    Parameters
    ----------
    numbers, where : sequences
        The numbers, and the line of each.
    counts : sequence of int
        How many things there are where each number belongs.
    count_from : 0 or 1, optional
    what : str
        What is numbered, for messages.
    dataset : str

    Raises
    ------
    InputError
        Neither the first nor the last occurs, or a number outside.
    """
    last = next((row for row, (number, count) in enumerate(zip(numbers, counts, strict=True)) if number == count), None)
    if count_from is None and last is None and 0 not in numbers:
        raise InputError(
            f"{where[0]}: {what} may count from 0 or from 1, for neither the first nor the last occurs (0, {counts[0]}); "
            f"write datasets.{dataset}.count_from: 0 or 1"
        )
    base = count_from if count_from is not None else int(0 not in numbers)
    for number, count, line in zip(numbers, counts, where, strict=True):
        if not base <= number < count + base:
            raise InputError(f"{line}: {what} {number} is outside {base} to {count + base - 1}, counted from {base}")
    return base


def _by_index(rows: TableRows, given: dict, trials: dict, count_from: int | None, order: NDArray, who: str) -> None:
    """Fill `order` from `beta_index`, which counts the trials of the file, or files, a row belongs to."""
    assert rows.index is not None
    rows_of = [(row, len(trials[key])) for key, of in given.items() for row in of]
    numbers: dict[int, int] = {}
    for row, _ in rows_of:
        number = whole(rows.index[row])
        if number is None:
            raise InputError(f"{rows.where[row]}: beta_index is {rows.index[row]!r}; expected a whole number")
        numbers[row] = number
    where = [rows.where[row] for row, _ in rows_of]
    base = count_base(list(numbers.values()), [count for _, count in rows_of], count_from, where, "beta_index", who.split()[0])
    say(f"{who}: beta_index counts from {base}")
    for key, of in given.items():
        taken: dict[int, int] = {}
        for row in of:
            at = numbers[row] - base
            if at in taken:
                why = "it counts the trials of a file, not of a run or session within it"
                raise InputError(f"{rows.where[row]}: beta_index {numbers[row]} stands in {rows.where[taken[at]]} too; {why}")
            taken[at] = row
            order[row] = trials[key][at]


def _require_order(rows: TableRows) -> None:
    """Refuse a table whose runs go back within a session: its rows are sorted otherwise than the trials."""
    runs = rows.numbers.get("run")
    if runs is None:
        return
    latest: dict[int | None, int] = {}
    for row, run in enumerate(runs):
        session = rows.numbers["session"][row] if "session" in rows.numbers else None
        if run is not None and run < latest.get(session, run):
            why = "the rows are not in the order of the trials; sort them, or add a column beta_index"
            raise InputError(f"{rows.where[row]}: run {run} after run {latest[session]}: {why}")
        if run is not None:
            latest[session] = run


def _parting(rows: TableRows, key: tuple, keys: list[str], of: list[int], count: int, file: Path, total: bool) -> InputError:
    """Rows and trials differ in number: where, and what is unlike the rest."""
    said = " ".join(f"{name} {number}" for name, number in zip(keys, key, strict=True))
    path = re.sub(r" (line|trial) \d+$", "", rows.where[of[0]])
    hint = "the table needs one row a trial"
    names = [name for name in PARTS if name in rows.numbers]
    group_of = {row: tuple(rows.numbers[name][row] for name in names) for row in of}
    groups = Counter(group_of.values())
    usual = Counter(groups.values()).most_common(1)[0][0]
    odd = next((group for group, size in groups.items() if size != usual), None)
    if len(groups) > 2 and odd is not None:
        first = next(row for row in of if group_of[row] == odd)
        group = " ".join(f"{name} {number}" for name, number in zip(names, odd, strict=True))
        hint = f"{group} has {groups[odd]} rows, from {rows.where[first].rpartition(' ')[2]} on, where most have {usual}"
    if total and not keys:
        return InputError(f"{file}: {count} trials, but {len(of)} rows in {path}; {hint}")
    return InputError(f"{file}: {count} trials, but {said} has {len(of)} rows ({rows.where[of[0]]} to {rows.where[of[-1]].rpartition(' ')[2]}); {hint}")


def _file_at(files: Sequence[SessionFile], starts: NDArray, trial: int) -> Path:
    return files[int(np.searchsorted(starts, trial, side="right")) - 1].path


def _sessions(rows: TableRows, files: Sequence[SessionFile], starts: NDArray, order: NDArray) -> NDArray[np.integer]:
    """Session of every row: of the table, else of the file its trial is in, else 1."""
    if "session" in rows.numbers:
        return np.array([-1 if number is None else number for number in rows.numbers["session"]], int)
    of_file = sessions_of(files, np.diff(starts))
    return np.where(order >= 0, of_file[np.maximum(order, 0)], -1)


def sessions_of(files: Sequence[SessionFile], counts: Sequence[int] | NDArray) -> NDArray[np.integer]:
    """Session of every trial by the files' names; 1 where they name none."""
    return np.repeat([1 if file.session is None else file.session for file in files], counts)
