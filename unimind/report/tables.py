"""The page's tables: scores of methods and controls, budgets, costs, kept weights, what each subject brings."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from unimind.errors import InputError
from unimind.evaluation.comparisons import LEVEL
from unimind.evaluation.efficiency import QUANTITIES, WHOLE
from unimind.evaluation.measures import FEW_FOR_A_SET, circular, measure_of, of_kind, ordered
from unimind.evaluation.rows import AVERAGES
from unimind.report import results
from unimind.report.parts import PERCENT, Entry, Line, LineGroup, PageSection, PageTable, Picture, listed, measure_words, pick, whom
from unimind.storage import read_json
from unimind.study import Study


def _cell(name: str, row: Any, best: bool = False) -> Entry | None:
    if row is None or pd.isna(row.value):
        return None
    interval = "" if pd.isna(row.ci_low) or pd.isna(row.ci_high) else f"{measure_of(name).shown(row.ci_low)}, {measure_of(name).shown(row.ci_high)}"
    exact = f"{row.value:.6g}"
    count = "" if pd.isna(row.n_test) else f", {int(row.n_test)} test pictures"
    return Entry(
        measure_of(name).shown(row.value),
        interval,
        exact,
        f"{measure_of(name).title}: {exact}{f', 95 % interval {row.ci_low:.6g} to {row.ci_high:.6g}' if interval else ''}{count}",
        best,
    )


def _heads(here: pd.DataFrame, names: list[str]) -> list[tuple[str, str]]:
    return [
        (
            measure_of(name).title + (PERCENT if measure_of(name).percent else "") + ("\u00a0↓" if measure_of(name).better == "lower" else "\u00a0↑"),
            measure_of(name).meaning,
        )
        for name in names
    ]


def _surely_best(rows: pd.DataFrame, name: str, comparisons: pd.DataFrame | None) -> str | None:
    """The method with the best value, if the paired test against the runner-up says so."""
    own = rows[(rows.metric == name) & rows.control.isna()]
    if len(own) < 2:
        return None
    first, second = own.sort_values("value", ascending=measure_of(name).better == "lower", kind="stable").head(2).itertuples()
    test = results.compared(comparisons, first.dataset, first.subject, name, first.of, second.of)
    return first.method if test is not None and test[1] < LEVEL else None


def _scores_tables(study: Study, rows: pd.DataFrame, comparisons: pd.DataFrame | None, title: str, note: str = "", brief: bool = False) -> list[PageTable]:
    """Methods, then controls, one column per metric; numbers of different protocols stand in tables of their own, in the order of the study's methods.

    A brief table has the shuffled control of every method, and the method-bound others of the first method only.
    """
    rows = rows[rows.control != results.BODY_REMOVED]
    place = {name: number for number, name in enumerate(study.methods)}
    protocols = list(dict.fromkeys(rows.assign(place=rows.of.map(place)).sort_values("place", kind="stable").protocol))
    found = []
    for protocol in protocols:
        here = rows[rows.protocol == protocol] if isinstance(protocol, str) else rows[rows.protocol.isna()]
        names = ordered(here.metric)
        lead = next((key for key in study.methods if (here.of == key).any()), None)
        if brief:
            here = here[~here.control.isin(("samples-mean", "chance", "nearest-training-image")) | (here.of == lead)]
        best = {name: _surely_best(here, name, comparisons) for name in names}
        sure = f" Bold: best of the methods where the paired test against the next one is sure (p < {LEVEL}, Holm over all measures)."
        bold = sure if any(best.values()) else ""
        caption = f"Brackets: 95 % bootstrap intervals over test pictures.{bold} Protocol {protocol if isinstance(protocol, str) else 'not recorded'}.{note}"
        blocks = _blocks(study, here, names, best)
        found.append(PageTable(title + (f", protocol {protocol}" if len(protocols) > 1 else ""), "", _heads(here, names), blocks, caption))
    return found


def _blocks(study: Study, rows: pd.DataFrame, names: list[str], best: dict[str, str | None]) -> list[LineGroup]:
    labels, colours, named = results.labels(study), results.colours(study), results.explained_controls(study)
    methods, controls = list(study.methods), list(named)

    def place(line: Any) -> tuple[int, ...]:
        owner = methods.index(line.of) if line.of in methods else len(methods)
        return (0, owner) if line.control is None else (1, controls.index(line.control) if line.control in controls else len(controls), owner)

    blocks: dict[str, list[Line]] = {"": [], "Controls": []}
    entries = list(rows.itertuples())
    at = {(entry.method, entry.metric): entry for entry in entries}
    for line in sorted({entry.method: entry for entry in entries}.values(), key=place):
        cells = [_cell(name, at.get((line.method, name)), best[name] == line.method) for name in names]
        if line.control is None:
            blocks[""].append(Line(labels.get(line.of, line.of), cells, colours.get(line.of, "")))
        else:
            blocks["Controls"].append(Line(named.get(line.control, (line.control,))[0], cells, note=labels.get(line.of, line.of) if line.of else ""))
    return [LineGroup(lines, heading) for heading, lines in blocks.items() if lines]


def results_of(study: Study, scores: pd.DataFrame | None, comparisons: pd.DataFrame | None, pictures: list[tuple[str, Picture]]) -> list[PageSection]:
    """Per data set: the table over training subjects, folded tables per subject, and bars."""
    sections = []
    for dataset in study.datasets:
        if scores is None:
            break
        here = scores[scores.dataset == dataset]
        if here.empty:
            continue
        section = PageSection(dataset, notes=_cautions(here), pictures=[picture for name, picture in pictures if name == dataset])
        subjects = [subject for subject in study.datasets[dataset].subjects if (here.subject == subject).any()]
        for role, noun in (("train", "training"), ("new", "new")):
            several = [subject for subject in subjects if study.role(dataset, subject) == role]
            if len(several) > 1:
                means = results.over_subjects(here, role)
                note = "" if means.ci_low.notna().any() else " Plain means over subjects, without an interval."
                section.tables += _scores_tables(study, means, comparisons, f"Mean over {len(several)} {noun} subjects", note, brief=True)
        for subject in subjects:
            tables = _scores_tables(
                study, here[here.subject == subject], comparisons, f"{subject}, {'new' if study.role(dataset, subject) == 'new' else 'training'} subject"
            )
            if section.tables:
                section.folded += tables
            else:
                section.tables += tables
        section.tables += _bodies(study, here)
        sections.append(section)
    return sections


def _bodies(study: Study, here: pd.DataFrame) -> list[PageTable]:
    """What a method's embedding loses with its body cut out; none where no method has a body."""
    labels, colours = results.labels(study), results.colours(study)
    dataset, names = here.dataset.iloc[0], [name for name in ("embedding_error", "identification") if name in set(here.metric)]
    groups = []
    for role in ("train", "new"):
        means = results.over_subjects(here, role)
        methods = [key for key in study.methods if pick(means, of=key, control=results.BODY_REMOVED) is not None]
        columns = [(name, control) for name in names for control in (None, results.BODY_REMOVED)]
        cells = {key: [_cell(name, pick(means, of=key, control=control, metric=name)) for name, control in columns] for key in methods}
        rows = [Line(labels[key], own, colours[key]) for key, own in cells.items()]
        groups += [LineGroup(rows, whom(study, dataset, role))] if rows else []
    heads = [(f"{head}, {state}", meaning) for head, meaning in _heads(here, names) for state in ("whole", "body cut")]
    caption = (
        "Body cut: its output replaced by its mean over the training pictures. A method whose numbers stay the same reads nothing through its body. "
        "Brackets: 95 % bootstrap intervals over test pictures."
    )
    return [PageTable("What the body is worth", "method", heads, groups, caption)] if groups else []


def _cautions(here: pd.DataFrame) -> list[str]:
    """Where a number of this table misleads, in words, computed from the table."""
    notes = []
    names = set(here.metric)
    means = results.over_subjects(here, results.main_role(here))
    low = [name for name in ordered(names) if measure_of(name).kind == "pixels"]
    beaten = []
    for name in low:
        sign = -1 if measure_of(name).better == "lower" else 1
        own = [sign * row.value for row in means[(means.metric == name) & means.control.isna()].itertuples()]
        blur = pick(means, metric=name, control="mean-training-image")
        if own and blur is not None and sign * blur.value > max(own):
            beaten.append(measure_of(name).title)
    if means.protocol.nunique() > 1:
        notes.append("Not all rows were made under the same protocol; those that were not stand in tables of their own and must not be compared across them.")
    if beaten:
        notes.append(
            f"In {listed(beaten)} the mean training image, one blur for every trial, beats "
            f"every method here: low-level metrics reward blur and alone prove nothing."
        )
    elif low:
        notes.append(
            f"Low-level metrics ({listed([measure_of(name).title for name in low])}) reward "
            f"blur: read them only beside the identification metrics and the mean training image."
        )
    for name in of_kind("set"):
        counts = results.single(here).n_test[here.metric == name].dropna()
        if len(counts) and counts.min() < FEW_FOR_A_SET:
            blind = ", and it never looks at what was seen" if measure_of(name).computed_by == "inception_score" else ""
            notes.append(f"{measure_of(name).title} from {int(counts.min())} pictures: unstable below {FEW_FOR_A_SET}{blind}.")
    return notes


def controls_of(study: Study, scores: pd.DataFrame | None) -> list[tuple[str, str]]:
    present = set(scores.control.dropna()) if scores is not None else set()
    return [text for name, text in results.explained_controls(study).items() if name in present]


def meanings(study: Study, scores: pd.DataFrame | None, networks: dict[str, str]) -> list[tuple[str, str]]:
    """(title, meaning) of the measures in the tables, with the network that computed each."""
    target, found = circular(study.foundations.embedding), []
    for name in ordered(scores.metric) if scores is not None else []:
        network = f"; network: {networks[name]}" if name in networks else ""
        parts = [measure_of(name).meaning + network, *(["by the network that is the target itself"] if name in target else []), measure_of(name).agreement]
        found.append((measure_of(name).title, "; ".join(part for part in parts if part)))
    return found


def new_subjects(
    study: Study, scores: pd.DataFrame | None, comparisons: pd.DataFrame | None, adaptation: pd.DataFrame | None, pictures: list[tuple[str, Picture]]
) -> PageSection:
    """How the shared models serve subjects they were only adapted to."""
    section = PageSection(pictures=[picture for _, picture in pictures])
    if not list(study.pairs("new")):
        section.notes.append("This study has no new subjects.")
        return section
    labels = results.labels(study)
    adapted = [f"{labels[key]} ({method.adapt.strategy})" for key, method in study.methods.items() if method.adapt]
    alone = [labels[key] for key, method in study.methods.items() if method.scope == "subject"]
    how = [f"Adapted from the shared model: {listed(adapted)}."] if adapted else []
    how += [f"Trained on the new subject alone: {listed(alone)}."] if alone else []
    section.notes.append(" ".join(how))
    for dataset, subject in study.pairs("new"):
        if scores is None:
            break
        rows = scores[(scores.dataset == dataset) & (scores.subject == subject)]
        if len(rows):
            trials = results.budgets(rows)
            named = f"{subject}{f', {trials[-1]} training trials' if trials else ''}"
            section.tables += _scores_tables(
                study, rows[rows.control.isna() | (rows.control == "shuffled")], comparisons, f"{dataset}, {named}" if len(study.datasets) > 1 else named
            )
    section.tables += _adaptation_tables(study, adaptation) if adaptation is not None else []
    if not section.tables:
        several = len(list(study.pairs("new"))) > 1
        section.notes.append(f"The tables hold no result for the new subject{'s' if several else ''}.")
    return section


def _adaptation_tables(study: Study, table: pd.DataFrame) -> list[PageTable]:
    """The headline metric over trial budgets, one line per method and subject; none where there is only one budget."""
    labels, colours = results.labels_over_budgets(study), results.colours(study)
    found = []
    for dataset in dict.fromkeys(table.dataset):
        here = table[table.dataset == dataset]
        averaged = here[here.subject == AVERAGES["new"]]
        here = averaged if len(averaged) else here
        name, budgets = results.headline_of(study, here), results.budgets(here)
        if name is None or len(budgets) < 2:
            continue
        blocks = []
        for subject, members in here[here.metric == name].groupby("subject", sort=False):
            rows = []
            for method, own in members.groupby("method", sort=False):
                cells = [_cell(name, next(own[own.trials == budget].itertuples(), None)) for budget in budgets]
                rows.append(Line(labels.get(method, method), cells, colours.get(method, "")))
            blocks.append(LineGroup(rows, "mean over new subjects" if subject == AVERAGES["new"] else str(subject)))
        heads = [(str(budget), f"{budget} trials of the new subject") for budget in budgets]
        found.append(
            PageTable(
                f"{dataset + ': ' if len(study.datasets) > 1 else ''}{measure_words(name)}{' (%)' if measure_of(name).percent else ''} "
                f"by number of training trials",
                "training trials",
                heads,
                blocks,
            )
        )
    return found


def costs_of(study: Study, table: pd.DataFrame | None, pictures: list[tuple[str, Picture]]) -> PageSection:
    """What each stage of each method cost."""
    section = PageSection(pictures=[picture for _, picture in pictures])
    if table is None:
        section.notes.append("This run has no table of parameters, memory and time.")
        return section
    labels, colours = results.labels(study), results.colours(study)
    names = [name for name in QUANTITIES if name in set(table.quantity)]
    heads, blocks = [(QUANTITIES[name].heading, "") for name in names], []
    keys = {label: key for key, label in labels.items()}
    for method in dict.fromkeys(table.method):
        own = {(str(row.stage), row.quantity): row for row in table[table.method == method].itertuples() if not pd.isna(row.value)}
        rows = []
        for stage in sorted(dict.fromkeys(stage for stage, _ in own), key=results.stage_order):
            found = [(QUANTITIES[name], own.get((stage, name))) for name in names]
            cells = [row and Entry(_quantity(row.value / kind.divisor), exact=f"{row.value:.6g}", words=f"{row.value:.6g}") for kind, row in found]
            rows.append(Line(stage, cells, colours.get(keys.get(method, method), "")))
        blocks.append(LineGroup(rows, labels.get(method, method)))
    section.tables.append(PageTable("Cost of every stage", "stage", heads, blocks, f"Measured in this run, on the machine that ran it. {WHOLE}"))
    return section


def kept_weights(study: Study, losses: Sequence[results.LossCurves]) -> PageTable | None:
    """Which step's weights validation kept in every training, beside the value that chose them; None where nothing was validated."""
    heads = [
        ("kept: step", "weights of this step are used; 0 is the start"),
        ("of", "steps trained"),
        ("validated by", "the term whose lowest value on validation pictures decides"),
        ("before training", "its value before any step"),
        ("kept: value", "its value with the weights that are used"),
    ]
    labels, blocks = results.labels(study), []
    for owner, group in itertools.groupby(losses, key=lambda one: one.owner):
        rows = []
        for name, kept in [(one.name, results.kept(one.rows)) for one in group]:
            if kept is None:
                continue
            before, value = (None if number is None else Entry(f"{number:.3g}", exact=f"{number:.6g}") for number in (kept.before, kept.value))
            rows.append(Line(name, [Entry(f"{kept.step}"), Entry(f"{kept.last}"), Entry(kept.term.replace("_", " ")), before, value]))
        if rows:
            blocks.append(LineGroup(rows, labels.get(owner, "networks trained in the study")))
    caption = "Step 0: training made validation pictures only worse, and the part is used as it started."
    return PageTable("Weights that validation kept", "trained part", heads, blocks, caption) if blocks else None


def _quantity(value: float) -> str:
    """Thousands in groups, three digits otherwise."""
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1000 else f"{value:.3g}"


SPLIT_WORDS = {"train": "training", "validation": "validation", "test": "test"}
ROLE_WORDS = {"train": "trained on", "new": "new", "unpaired": "no pictures"}


def data_table(path: Path) -> PageTable:
    """What each subject brings: sessions, voxels, trials and pictures of every split."""
    overview = results.read_result_table(path.parent, path.stem)
    if overview is None:
        raise InputError(f"{path}: no such file, or empty; run the stage overview first")
    heads = [("sessions", "sessions"), ("voxels", "voxels kept")]
    heads += [(f"{kind}_{split}", f"{word} {kind}") for kind in ("trials", "pictures") for split, word in SPLIT_WORDS.items()]
    heads += [("noise_ceiling", "noise ceiling"), ("reliability", "reliability of repeats"), ("identification", "told apart")]
    heads = [(name, words) for name, words in heads if name in overview and overview[name].notna().any()]
    blocks = []
    for dataset, members in overview.groupby("dataset", sort=False):
        rows = [Line(str(row["subject"]), _counted(row, heads), note=ROLE_WORDS[row["role"]]) for row in members.to_dict("records")]
        blocks.append(LineGroup(rows, str(dataset)))
    known = {name for name, _ in heads}
    ceiling = "Noise ceiling: the share of one trial's variance that the pictures can explain, median over voxels; as the data set brings it, else by repeats. "
    meaning = ceiling if "noise_ceiling" in known else ""
    if "reliability" in known:
        meaning += "Reliability: correlation of the response patterns to the same pictures in two halves of their repeats. "
    if "identification" in known:
        meaning += "Told apart: share of pairs of test pictures told apart by a ridge regression to light, colour and edges; chance is 0.5. "
    for row in overview.to_dict("records") if "findings" in overview else ():
        if isinstance(row["findings"], str) and row["findings"]:
            meaning += f"{row['dataset']} {row['subject']}: {row['findings']}. "
    return PageTable(
        "What each subject brings", "subject", [(words, "") for _, words in heads], blocks,
        f"{meaning}No picture, told apart by its pixels, is on two sides of the split.",
    )  # fmt: skip


ROI_HEADS = [("voxels", "voxels kept"), ("dropped", "dropped"), ("reliability", "reliability of repeats"), ("noise_ceiling", "noise ceiling")]
SESSION_HEADS = [
    ("trials", "trials"), *SPLIT_WORDS.items(), ("pictures", "pictures"), ("repeated", "of them repeated"), ("runs", "runs"), ("z", "fit to its pictures (z)"),
]  # fmt: skip


def inspected_tables(files: Sequence[Path]) -> list[PageTable]:
    """Voxels by ROI, and trials by session, of every subject that `inspect` looked at."""
    found = [read_json(file) for file in files]

    def blocks(part: str, heads: list[tuple[str, str]], label: str) -> list[LineGroup]:
        return [LineGroup([Line(f"{label}{row[part[:-1]]}", _counted(row, heads)) for row in one[part]], f"{one['dataset']} {one['subject']}") for one in found]

    return [
        PageTable(
            "Voxels by ROI", "ROI", [(words, "") for _, words in ROI_HEADS], blocks("rois", ROI_HEADS, ""),
            "Dropped: voxels of the mask without data in some trial, or that never vary. Reliability: correlation of a voxel's mean responses to the "
            "same pictures in two halves of their repeats; noise ceiling: the share of one trial's variance that the picture explains, "
            "by repeats; medians over voxels.",
        ),
        PageTable(
            "Trials by session", "session", [(words, "") for _, words in SESSION_HEADS], blocks("sessions", SESSION_HEADS, "session "),
            "Fit: how far the responses follow the pictures of their own trials, in standard deviations of what chance gives; below 3 is none.",
        ),
    ] if found else []  # fmt: skip


def _counted(row: Mapping[str, Any], heads: Iterable[tuple[str, str]]) -> list[Entry | None]:
    """Cells of some numbers of a row; None where it has none."""
    values = [(row.get(name), words) for name, words in heads]
    return [None if value is None or pd.isna(value) else Entry(_quantity(value), exact=f"{value:g}", words=words) for value, words in values]
