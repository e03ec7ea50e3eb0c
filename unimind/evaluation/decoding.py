"""Tables of trials without truth: `decoding`, where labels say what was imagined, and `decoded_trials`, what candidates each trial is most like."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimind.evaluation.measures import MEASURES, NAMES
from unimind.storage import read_json
from unimind.study import Study

#: What is measured among the candidates of a set: title, and what it says.
AMONG_CANDIDATES = {
    "candidate_identification": ("among candidates", "share of the other candidates that agree less with the prediction than the picture that was named"),
    "candidate_first": ("first of candidates", "share of trials whose picture is the first of all candidates"),
}
COLUMNS = [
    "study", "dataset", "subject", "role", "set", "condition", "method", "pictures", "trials", "pool", "metric", "value", "ci_low", "ci_high",
    "null", "null_low", "null_high", "p", "better",
]  # fmt: skip
OF_TRIALS = [
    "study",
    "dataset",
    "subject",
    "set",
    "method",
    "condition",
    "label",
    "trials",
    "sample_agreement",
    "trial_agreement",
    "rank",
    "candidate",
    "similarity",
]
PLAIN = (
    "Trials of a further set have no truth. Labels say which picture a person was asked to imagine, or was shown; numbers say how much of that picture is in "
    "the prediction, not that the prediction is what the person had in mind."
)


def title_of(metric: str) -> str:
    """A measure's column, with its unit."""
    if metric in AMONG_CANDIDATES:
        return f"{AMONG_CANDIDATES[metric][0]} %"
    return MEASURES[metric].title + (" %" if MEASURES[metric].percent else "")


def shown_value(metric: str, value: float) -> str:
    return f"{100 * value:.1f}" if metric in AMONG_CANDIDATES else MEASURES[metric].shown(value)


def metrics_in(present: Iterable[str]) -> list[str]:
    """Measures in the order of the tables: those among candidates first."""
    known = set(present)
    return [name for name in (*AMONG_CANDIDATES, *NAMES) if name in known]


def write_decoding(study: Study, imagined: Sequence[Path], decoded: Sequence[Path], labels: dict[str, str], folder: Path) -> None:
    """Write `decoding.csv`, `decoding.md` and `decoded_trials.csv` into the folder of tables.

    Parameters
    ----------
    imagined : sequence of Path
        What `score-decoded` wrote, a file a subject and set.
    decoded : sequence of Path
        What `decode` wrote.
    labels : dict
        Method -> as tables call it.
    """
    import pandas as pd

    files = [read_json(path) for path in imagined]
    records = [record for file in files for record in _records(file)]
    pd.DataFrame(records, columns=COLUMNS).to_csv(folder / "decoding.csv", index=False)
    trials = [record for path in decoded for record in _trials(study, path)]
    pd.DataFrame(trials, columns=OF_TRIALS).to_csv(folder / "decoded_trials.csv", index=False)
    text = [f"# Trials without truth: {study.title or study.name}", PLAIN]
    for file in files:
        text.append(f"## {file['dataset']} {file['subject']}, {file['set']}")
        if file["rows"]:
            text.append(_markdown(file, labels))
        notes = [*file["notes"], *(f"{MEASURES[name].title}: {reason}" for name, reason in file["absent"].items())]
        text.append("\n".join(f"- {note}." for note in notes))
    (folder / "decoding.md").write_text("\n\n".join(part for part in text if part) + "\n")


def _records(file: dict[str, Any]) -> Iterable[dict[str, Any]]:
    of_file = {key: file[key] for key in ("study", "dataset", "subject", "role", "set")}
    for row in file["rows"]:
        of_row = {key: row[key] for key in ("condition", "method", "pictures", "trials", "pool")}
        for metric in metrics_in(row["metrics"]):
            better = MEASURES[metric].better if metric in MEASURES else "higher"
            yield {**of_file, **of_row, "metric": metric, **{k: v for k, v in row["metrics"][metric].items() if k in COLUMNS}, "better": better}


def _trials(study: Study, path: Path) -> Iterable[dict[str, Any]]:
    import h5py

    with h5py.File(path) as file:
        of_file = {"study": study.name, **{key: str(file.attrs[key]) for key in ("dataset", "subject", "set", "method")}}
        columns = {name: file[name].asstr()[:] for name in ("condition", "label")}
        columns |= {name: file[name][:] for name in ("trials", "sample_agreement", "trial_agreement")}
        names, values = file["candidate_id"].asstr()[:], file["similarity"][:]
    for row in range(len(names)):
        of_row = {name: None if isinstance(cells[row], np.floating) and np.isnan(cells[row]) else cells[row] for name, cells in columns.items()}
        for rank, (name, value) in enumerate(zip(names[row], values[row], strict=True), 1):
            yield {**of_file, **of_row, "rank": rank, "candidate": name, "similarity": value}


def _markdown(file: dict[str, Any], labels: dict[str, str]) -> str:
    metrics = metrics_in(name for row in file["rows"] for name in row["metrics"])
    lines = ["| condition | method | pictures | trials | " + " | ".join(map(title_of, metrics)) + " | p |", "|---|---|---|---|" + "---|" * (len(metrics) + 1)]
    for row in file["rows"]:
        cells = []
        for metric in metrics:
            entry = row["metrics"].get(metric)
            if entry is None:
                cells.append("-")
                continue
            chance = f", by chance {shown_value(metric, entry['null_low'])} to {shown_value(metric, entry['null_high'])}" if "null" in entry else ""
            ends = "" if entry["ci_low"] is None else f" [{shown_value(metric, entry['ci_low'])}, {shown_value(metric, entry['ci_high'])}]"
            cells.append(f"{shown_value(metric, entry['value'])}{ends}{chance}")
        p = row["metrics"].get("candidate_identification", {}).get("p")
        name = row["method"].removeprefix("chance:")
        label = f"chance: {labels.get(name, name)}" if name != row["method"] else labels.get(name, name)
        sizes = f"{row['pictures']} | {row['trials']}"
        lines.append(f"| {row['condition']} | {label} | {sizes} | " + " | ".join(cells) + f" | {'-' if p is None else f'{p:.4f}'} |")
    pool, count = file["candidates"], file["permutations"]
    lines += ["", f"{pool} candidates. By chance: 95 % of {count} permutations of the pictures' labels; p is of identification among the candidates."]
    return "\n".join(lines)
