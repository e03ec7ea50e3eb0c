"""What figures and page share: reading the tables, and the names and colours under which results are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from unimind.errors import InputError
from unimind.evaluation import measures
from unimind.evaluation.rows import AVERAGES
from unimind.evaluation.tabulate import COLUMNS
from unimind.study import Study

#: Okabe and Ito's colours, told apart by colour-blind readers too; methods take them in the study's order.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
CONTROL_COLOUR = "#8A9099"

#: Stages in the order in which they run.
STAGES = ("embedding", "autoencoder", "diffusion", "classifier", "pretrain", "teach", "enter", "align", "condition", "embedding-prior", "adapt", "reconstruct")
#: The control whose numbers stand in a table of their own: it has no picture.
BODY_REMOVED = "body-removed"
#: Control -> (name shown, what it is and what it tells, in one sentence), both with a place for what was recorded.
CONTROLS: dict[str, tuple[str, str]] = {
    "samples-mean": (
        "Mean of all samples",
        "The measure of every sample the method draws of a picture, averaged: what it scores when no sample is chosen.",
    ),
    BODY_REMOVED: (
        "Body removed",
        "The same model, its shared body giving its mean over the training pictures for every trial: what is lost by that is what the body adds.",
    ),
    "shuffled": ("Shuffled {signal}", "The same model given the {signal} of another test picture: whatever it still scores does not come from the brain."),
    "chance": (
        "Chance",
        "The model's reconstruction of another test picture is compared with this one: the level of a decoder that knows only what pictures look like.",
    ),
    "nearest-training-image": (
        "Nearest training image",
        "No picture is made: the training picture whose embedding is nearest to the one predicted from the {signal} is shown.",
    ),
    "mean-training-image": (
        "Mean training image",
        "One blur for every trial, the pixel average of the training pictures; what beats a method here rewards blur.",
    ),
    "unconditional": (
        "Unconditional samples",
        "The diffusion model draws without any condition: pictures that look right and have nothing to do with what was seen.",
    ),
    "embedding-ceiling": (
        "Ceiling: true embedding",
        "The diffusion model is given the seen picture's true embedding instead of a prediction, and shows the best of as many samples: the most that "
        "reading an embedding from a brain could give it.",
    ),
    "autoencoder-ceiling": (
        "Ceiling: autoencoder",
        "The seen picture goes through the autoencoder and back: nothing that decodes through it can look closer than this.",
    ),
}


def stage_order(stage: str) -> int:
    """Place of a stage, or of a model of it (`align/all`), in the order in which they run."""
    return next((place for place, known in enumerate(STAGES) if stage.startswith(known)), len(STAGES))


def labels(study: Study) -> dict[str, str]:
    """Method -> name shown."""
    return {key: method.label or key for key, method in study.methods.items()}


def shown_sample(study: Study) -> str:
    """Which of a picture's samples is shown, in words."""
    rules = {"prediction": "agrees best with the method's own prediction", "encoding": "makes the measured response likeliest"}
    found = {label: rules[study.methods[key].sampling.chosen_by] for key, label in labels(study).items() if key in study.methods}
    if len(set(found.values())) == 1:
        return f"the sample that {next(iter(found.values()))}"
    by_response = [label for label, words in found.items() if words == rules["encoding"]]
    return f"the sample that {rules['prediction']}, of {', '.join(by_response)} that which {rules['encoding']}"


def explained_controls(study: Study) -> dict[str, tuple[str, str]]:
    """Control -> (name shown, what it is and what it tells)."""
    known = CONTROLS if study.draws else CONTROLS | {"chance": ("Chance", "The level of chance itself: of a decoder that knows nothing of what was seen.")}
    return {name: (label.format(signal=study.signal), text.format(signal=study.signal)) for name, (label, text) in known.items()}


def labels_over_budgets(study: Study) -> dict[str, str]:
    """Names of the rows of `adaptation.csv`."""
    names = labels(study)
    scratch = {f"{key} {way}": f"{name} {way}" for key, name in names.items() for way in ("from scratch", "without adaptation")}
    baselines = {key: method.label or key for key, method in study.transfer.baselines.items()} if study.transfer else {}
    return names | scratch | baselines


def colours(study: Study) -> dict[str, str]:
    """Method -> colour, the same in every figure."""
    return {key: PALETTE[index % len(PALETTE)] for index, key in enumerate(study.methods)}


def read_result_table(tables: Path, name: str) -> pd.DataFrame | None:
    """`tables/<name>.csv`, or None where there is none or no row in it.

    Raises
    ------
    InputError
        The file is not a table.
    """
    path = Path(tables) / f"{name}.csv"
    if not path.exists() or not path.stat().st_size:
        return None
    try:
        table = pd.read_csv(path, dtype={"subject": str, "protocol": str}, keep_default_na=False, na_values=["", "nan", "NaN"])
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table ({error}); delete it and run tabulate again") from None
    return None if table.empty else table


@dataclass(frozen=True)
class Figure:
    """A PNG file of the report: the section it belongs to, what it shows in a sentence, and in words for those who cannot see it."""

    file: str
    section: str
    caption: str
    alt: str
    title: str = ""
    dataset: str = ""
    subject: str = ""


@dataclass(frozen=True)
class LossCurves:
    """Loss curves of one trained part: its method (`foundations` for the study's own networks), its place in it, and `losses.csv`."""

    owner: str
    name: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Kept:
    """Which weights validation kept: the step of the lowest value of the term that chooses, and that value before training and there."""

    term: str
    step: int
    last: int
    before: float | None
    value: float


def read_losses(study: Study, models: Sequence[Path]) -> list[LossCurves]:
    """The `losses.csv` of model folders, methods in the study's order and stages in the flow's.

    Raises
    ------
    InputError
        A file is not a table of losses.
    """
    found = []
    for model in map(Path, models):
        table = read_result_table(model, "losses")
        if table is None:
            continue
        missing = {"step", "split", "term", "value"} - set(table)
        if missing:
            raise InputError(f"{model}/losses.csv: no column {', '.join(sorted(missing))}; delete the model and train again")
        place = next((number for number, part in enumerate(model.parts) if part in study.methods and model.parts[number - 1] == "models"), None)
        owner, name = (model.parts[place], " · ".join(model.parts[place + 1 :])) if place is not None else ("foundations", model.name)
        found.append(LossCurves(owner, name, table))
    owners = [*study.methods, "foundations"]
    return sorted(found, key=lambda one: (owners.index(one.owner), stage_order(one.name), one.name))


def kept(rows: pd.DataFrame) -> Kept | None:
    """What validation kept of one training, or None where nothing was validated."""
    validation = rows[rows.split == "validation"]
    if validation.empty:
        return None
    term = str(validation.term.iloc[0])
    own = validation[validation.term == term].sort_values("step", kind="stable")
    best = own.loc[own.value.idxmin()]
    before = own.value[own.step == 0]
    return Kept(term, int(best.step), int(rows.step.max()), float(before.iloc[0]) if len(before) else None, float(best.value))


def read_scores(study: Study, tables: Path, name: str = "reconstruction") -> pd.DataFrame | None:
    """A table of scores with two more columns: `control` (None for a method's own row) and `of` (the method a row belongs to, or None).

    Raises
    ------
    InputError
        A column is missing.
    """
    table = read_result_table(tables, name)
    if table is None:
        return None
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise InputError(f"{tables}/{name}.csv: no column {', '.join(missing)}; delete it and run tabulate again")
    table["trials"] = pd.to_numeric(table.trials, errors="coerce")
    keys = {**{label: key for key, label in labels(study).items()}, **{key: key for key in study.methods}}
    found = {row: _control(row, keys) for row in set(zip(table.role, table.method, strict=True))}
    pairs = [found[row] for row in zip(table.role, table.method, strict=True)]
    table["control"] = pd.Series([control for control, _ in pairs], index=table.index, dtype=object)
    table["of"] = pd.Series([method for _, method in pairs], index=table.index, dtype=object)
    return table


def _control(row: tuple[str, str], keys: dict[str, str]) -> tuple[str | None, str | None]:
    """(control, method) of a row: a control of a method is written `control:method`, one of the subject alone `control`."""
    role, name = row
    if role != "control":
        return None, keys.get(name, name)
    control, _, method = name.partition(":")
    return control, keys.get(method, method) or None


def single(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of single subjects."""
    return scores[~scores.subject.isin(AVERAGES.values())]


def over_subjects(scores: pd.DataFrame, role: str) -> pd.DataFrame:
    """One row per (dataset, method, metric, protocol): the table's average over the subjects of a role, or the only subject's row.

    Where the table has neither, the plain mean of the subjects stands in, without an interval.
    """
    records = scores.to_dict("records")
    members = {(row["dataset"], row["subject"]) for row in records if row["role"] == role and row["subject"] not in AVERAGES.values()}
    groups: dict[tuple, list[dict]] = {}
    for row in records:
        if row["subject"] == AVERAGES[role] or (row["dataset"], row["subject"]) in members:
            groups.setdefault((row["dataset"], row["method"], row["metric"], str(row["protocol"])), []).append(row)
    rows = []
    for group in groups.values():
        row = next((row for row in group if row["subject"] == AVERAGES[role]), group[0])
        if row["subject"] != AVERAGES[role] and len(group) > 1:
            nothing = float("nan")
            row = row | {"value": sum(one["value"] for one in group) / len(group), "ci_low": nothing, "ci_high": nothing, "subject": AVERAGES[role]}
        rows.append(row)
    found = pd.DataFrame(rows, columns=scores.columns)
    return found.assign(**{column: found[column].astype(object).where(found[column].notna(), None) for column in ("control", "of")})


def budgets(scores: pd.DataFrame) -> list[int]:
    """Numbers of training trials that occur, smallest first."""
    return sorted({int(trials) for trials in scores.trials.dropna()})


def main_role(scores: pd.DataFrame) -> str:
    """`train`, or `new` where no training subject is in the table."""
    return "train" if (scores.role == "train").any() else "new"


def headline_of(study: Study, scores: pd.DataFrame) -> str | None:
    """The measure the page opens with (`measures.headline`)."""
    return measures.headline(scores.metric, study.foundations.embedding)


def compared(comparisons: pd.DataFrame | None, dataset: str, subject: str, name: str, a: str, b: str) -> tuple[float, float] | None:
    """(difference a - b, Holm-adjusted p) of the paired test between two methods, or None where there was none."""
    if comparisons is None:
        return None
    here = comparisons[(comparisons.dataset == dataset) & (comparisons.subject == subject) & (comparisons.metric == name)]
    for first, second, sign in ((a, b, 1), (b, a, -1)):
        row = here[(here.method_a == first) & (here.method_b == second)]
        if len(row):
            return sign * float(row.difference.iloc[0]), float(row.p_holm.iloc[0])
    return None
