"""The stage `report`: one HTML file that tells the whole study to someone who opens nothing else."""

import base64
import importlib.metadata
import io
import itertools
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from unimind import __version__
from unimind.errors import InputError
from unimind.progress import say
from unimind.report import results
from unimind.report.figures import QUANTITIES, UNITS
from unimind.storage import read_json, whole_file
from unimind.study import Study, resolved

PERCENT = "\u00a0%"
HEAVY = 400_000  # bytes; larger figures are embedded as WebP
FEW_FOR_INCEPTION_SCORE = 5000
LIBRARIES = ("torch", "torchvision", "diffusers", "open_clip_torch", "himalaya", "scikit-learn", "nilearn", "h5py", "numpy", "snakemake")
CITATIONS = (
    "Unimind, version {version}: reconstruct seen images from fMRI with one model for many subjects (software).",
    "Sohyung Kim (2025). Cross-subject fMRI Image Reconstruction using Contrastive "
    "Learning. Thesis, Seoul National University. The method this software implements.",
    "Zijiao Chen, Jiaxin Qing, Tiange Xiang, Wan Lin Yue & Juan Helen Zhou (2023). Seeing Beyond "
    "the Brain: Conditional Diffusion Model with Sparse Masked Modeling for Vision Decoding. CVPR. "
    "Masked brain modelling and the double-conditioned latent diffusion model.",
)


@dataclass(frozen=True)
class Cell:
    """A number of a table: as printed, its interval as printed, its exact value, all of it in words, and whether it is surely the best."""

    shown: str
    interval: str = ""
    exact: str = ""
    words: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A line of a table; `colour` marks a method."""

    label: str
    cells: list[Cell | None]
    colour: str = ""
    note: str = ""


@dataclass(frozen=True)
class Block:
    """Lines of a table under a heading of their own."""

    rows: list[Row]
    heading: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    title: str
    corner: str
    columns: list[tuple[str, str]]  # (head, its meaning)
    blocks: list[Block]
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
class Section:
    """What stands under one dataset or heading: notes, figures, tables."""

    title: str = ""
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)


def report(study: Study, overview: Path, tables: Path, figures: Path, metrics: Sequence[Path], models: Sequence[Path], out: Path) -> None:
    """Write the page.

    Parameters
    ----------
    overview : path
        What each subject brings, as the stage `overview` wrote it.
    tables : path
        Folder of `tabulate`; a table that is not there leaves its section out, with a sentence.
    figures : path
        Folder of `figures`: PNG files and `captions.json`.
    metrics : sequence of paths
        Metrics files, for the protocol and the metrics that could not be computed.
    models : sequence of paths
        Model folders, for the record of what was trained and of what validation kept.
    out : path
        The HTML file: pictures, style and numbers in it, no request to anywhere when it is opened.

    Raises
    ------
    InputError
        A table or JSON file is not what its name says.
    """
    import jinja2

    scores = results.read_scores(study, tables)
    adaptation = results.read_scores(study, tables, "adaptation")
    efficiency = results.read_table(tables, "efficiency")
    comparisons = results.read_table(tables, "comparisons")
    drawn = _drawn(Path(figures))
    read = {f"{path.parent.parent.name}/{path.parent.name}/{path.stem}": read_json(path) for path in map(Path, metrics)}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unimind.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    networks = _networks(read.values())
    losses = results.read_losses(study, models)
    answer = _answer(study, scores, comparisons, networks)
    answer.paragraphs += _untrained(study, losses)
    html = environment.get_template("report.html").render(
        title=study.title or study.name,
        study=study,
        facts=_facts(study, scores),
        warnings=_warnings(study),
        answer=answer,
        overview=[picture for _, picture in drawn.get("overview", [])],
        pictures=_by_dataset(study, drawn.get("pictures", [])),
        results=_results(study, scores, comparisons, drawn.get("results", [])),
        controls=_controls(study, scores),
        metrics=_metrics(scores, networks),
        new=_new_subjects(study, scores, comparisons, adaptation, drawn.get("new", [])),
        alignment=[picture for _, picture in drawn.get("alignment", [])],
        efficiency=_efficiency(study, efficiency, drawn.get("efficiency", [])),
        training=[picture for _, picture in drawn.get("training", [])],
        kept=_kept(study, losses),
        other=[picture for name, pictures in drawn.items() if name not in SECTIONS for _, picture in pictures],
        data=_data(Path(overview)),
        protocol=_protocol(study, read),
        models=_models(models),
        settings=yaml.safe_dump(resolved(study), sort_keys=False, allow_unicode=True, width=100),
        citations=[text.format(version=__version__) for text in CITATIONS],
        versions=_versions(),
    )
    with whole_file(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    say(f"report: {out}, {Path(out).stat().st_size / 1e6:.1f} MB")


# --- figures ----------------------------------------------------------------------------------------------------

SECTIONS = ("overview", "pictures", "results", "new", "alignment", "efficiency", "training")


def _drawn(folder: Path) -> dict[str, list[tuple[str, Picture]]]:
    """Section -> (data set, picture) of the figures folder, in the order of `captions.json`; PNG files it does not name come last."""
    captions = folder / "captions.json"
    entries = read_json(captions) if captions.exists() else []
    named = {entry["file"] for entry in entries}
    entries += [
        {"file": path.name, "section": "other", "caption": path.stem, "alt": path.stem} for path in sorted(folder.glob("*.png")) if path.name not in named
    ]
    found: dict[str, list[tuple[str, Picture]]] = {}
    for entry in entries:
        path = folder / entry["file"]
        if not path.exists():
            raise InputError(f"{path}: named in {captions} but not there; run figures again")
        source, width, height = _embedded(path)
        picture = Picture(source, entry["caption"], entry["alt"], width, height, entry.get("title", ""), entry.get("subject", ""))
        found.setdefault(entry["section"], []).append((entry.get("dataset", ""), picture))
    return found


def _embedded(path: Path) -> tuple[str, int, int]:
    """(data URI, width, height) of a PNG; a heavy one is embedded as WebP of high quality."""
    from PIL import Image

    content, kind = path.read_bytes(), "png"
    with Image.open(path) as picture:
        size = picture.size
        if len(content) > HEAVY and max(size) < 16383:
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "WEBP", quality=90, method=4)
            content, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}", *size


def _by_dataset(study: Study, pictures: Iterable[tuple[str, Picture]]) -> list[Section]:
    sections = []
    for dataset in study.datasets:
        here = [picture for name, picture in pictures if name == dataset]
        if here:
            sections.append(Section(dataset, pictures=here))
    return sections


# --- words ------------------------------------------------------------------------------------------------------


def _list(words: Sequence[str]) -> str:
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _facts(study: Study, scores: pd.DataFrame | None) -> list[tuple[str, str]]:
    train, new = list(study.pairs("train")), list(study.pairs("new"))
    facts = [("Subjects", f"{len(train)} trained on{f', {len(new)} new' if new else ''}"), ("Methods", str(len(study.methods)))]
    if scores is not None and scores.n_test.notna().any():
        counts = sorted({int(count) for count in results.single(scores).n_test.dropna()})
        facts.append(("Test pictures", str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} a subject"))
    return [*facts, ("Picture size", f"{study.picture_size} px"), ("Study", study.name)]


def _warnings(study: Study) -> list[str]:
    """What must be known before any number is read."""
    simulated = [name for name, dataset in study.datasets.items() if dataset.source == "simulated"]
    trained = [
        name
        for name, section in (
            ("image embedding", study.foundations.embedding),
            ("autoencoder", study.foundations.autoencoder),
            ("diffusion model", study.foundations.diffusion),
        )
        if section.kind in ("study", "study-clip")
    ]
    found = []
    if simulated:
        found.append(
            f"{'The brains' if len(simulated) == len(study.datasets) else 'The brains of ' + _list(simulated)} are simulated "
            f"and the pictures are drawn: this study shows that the pipeline works, not how well people's brains can be read."
        )
    if trained:
        found.append(
            f"The {_list(trained)} {'was' if len(trained) == 1 else 'were'} trained inside this study; "
            f"numbers measured with them must never be compared with numbers on NSD or from other networks."
        )
    elif study.foundations.embedding.kind == "squeezenet":
        found.append("SqueezeNet features stand where a CLIP usually does; numbers are not comparable with published CLIP numbers.")
    return found


@dataclass(frozen=True)
class Number:
    """A number at the top of the page."""

    value: str
    label: str
    share: float  # of the scale, 0 to 1
    colour: str = ""
    note: str = ""


@dataclass
class Answer:
    """The page's first words: paragraphs, and the numbers in them side by side."""

    paragraphs: list[str] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    scale: str = ""
    chance: float | None = None


def _interval(name: str, row: Any, unit: bool = True) -> str:
    """`96.1 % [95.0, 97.2]`, or without an interval where the table has none."""
    shown = results.text(name, row.value) + (PERCENT if unit and results.metric(name).percent else "")
    if pd.isna(row.ci_low) or pd.isna(row.ci_high):
        return shown
    return f"{shown} [{results.text(name, row.ci_low)}, {results.text(name, row.ci_high)}]"


def _apart(a: Any, b: Any) -> bool | None:
    """Whether two intervals are disjoint; None where one has none."""
    if any(pd.isna(value) for value in (a.ci_low, a.ci_high, b.ci_low, b.ci_high)):
        return None
    return bool(a.ci_low > b.ci_high or b.ci_low > a.ci_high)


def _pick(rows: pd.DataFrame, **wanted: Any) -> Any | None:
    """The first row with these values (None: no value), or None."""
    for column, value in wanted.items():
        rows = rows[rows[column].isna()] if value is None else rows[rows[column] == value]
    return next(rows.itertuples(), None)


def _answer(study: Study, scores: pd.DataFrame | None, comparisons: pd.DataFrame | None, networks: dict[str, str]) -> Answer:
    """What was reconstructed, from whom, how well, beside which controls: words computed from the table."""
    answer = Answer()
    labels = results.labels(study)
    whom = _list([f"{_many(len(names), noun)} ({', '.join(names)})" for noun, names in _people(study) if names])
    name = results.headline(scores) if scores is not None else None
    for dataset in study.datasets:
        if scores is None or name is None:
            break
        here = scores[(scores.dataset == dataset) & (scores.metric == name)]
        means = results.over_subjects(here, results.main_role(here))
        lead = next((key for key in study.methods if _pick(means, of=key, control=None) is not None), None)
        if lead is None:
            continue
        answer.paragraphs += _paragraphs(study, dataset, here, means, name, lead, comparisons)
        if not answer.numbers:
            answer.numbers, answer.chance = _numbers(study, means, name, lead), results.metric(name).chance
            answer.scale = f"{_measure(name)}{f' by {networks[name]}' if name in networks else ''}; {dataset}, {_whom(study, dataset, results.main_role(here))}"
    methods = _list([labels[key] for key in study.methods])
    if answer.paragraphs:
        answer.paragraphs[0] = (
            f"From the {study.signal} of {whom}, {_many(len(study.methods), 'method')} "
            f"reconstruct{'s' if len(study.methods) == 1 else ''} pictures that none was trained on. {answer.paragraphs[0]}"
        )
    else:
        answer.paragraphs.append(
            f"The pictures that {whom} saw were reconstructed from {study.signal} by {methods}; this "
            f"run has no table of identification scores, so how well is not said here."
        )
    return answer


ROLES: tuple[tuple[Literal["train", "new"], str], ...] = (("train", "training subject"), ("new", "new subject"))


def _people(study: Study) -> list[tuple[str, list[str]]]:
    several = len(study.datasets) > 1
    return [
        (noun, [f"{dataset} {subject}" if several else subject for dataset, subject in study.pairs(role)])
        for role, noun in ROLES
    ]


def _whom(study: Study, dataset: str, role: str) -> str:
    """Whose value a number over subjects is."""
    own = study.datasets[dataset]
    subjects = own.training_subjects if role == "train" else own.new_subjects
    return subjects[0] if len(subjects) == 1 else f"mean over {len(subjects)} {'training' if role == 'train' else 'new'} subjects"


def _measure(name: str) -> str:
    kind = results.metric(name)
    if name == "identification":
        return "two-way identification by the predicted embedding"
    return f"two-way identification in {kind.label} space" if kind.chance == 0.5 else kind.label


def _paragraphs(study: Study, dataset: str, here: pd.DataFrame, means: pd.DataFrame, name: str, lead: str, comparisons: pd.DataFrame | None) -> list[str]:
    """The answer of one data set: the leading method beside its shuffled control, the other methods and the ceiling; then the new subjects."""
    labels, kind, role = results.labels(study), results.metric(name), results.main_role(here)
    title, own, singles = labels[lead], _pick(means, of=lead, control=None), results.single(here)
    subjects = list(dict.fromkeys(singles[(singles.role == role) & (singles.of == lead)].subject))
    where = f"On {dataset}, " if len(study.datasets) > 1 else ""
    whose = f", {_whom(study, dataset, role)}" if len(subjects) > 1 else f" for {subjects[0]}" if subjects else ""
    chance = f"; chance is {100 * kind.chance:.0f} %" if kind.chance else ""
    if kind.chance == 0.5:
        words = f"{where}{title} tells the seen picture from another one in {_interval(name, own)} of comparisons ({_measure(name)}{whose}{chance})"
    else:
        words = f"{where}{title} reaches {_interval(name, own)} ({kind.label}: {kind.meaning}{whose}{chance})"
    text = [words + "."]
    shuffled = _pick(means, of=lead, control="shuffled")
    if shuffled is not None:
        text = [f"{words}; given the {study.signal} of other pictures, its shuffled control, it reaches {_interval(name, shuffled)}."]
        pairs = {
            subject: (_pick(singles, subject=subject, of=lead, control=None), _pick(singles, subject=subject, of=lead, control="shuffled"))
            for subject in subjects
        }
        apart = {subject: _apart(*pair) for subject, pair in pairs.items() if None not in pair}
        close = [subject for subject, answer in apart.items() if answer is False]
        if apart and all(apart.values()):
            who = f"in each of the {len(apart)} subjects" if len(apart) > 1 else f"in {next(iter(apart))}"
            text.append(f"The 95\u00a0% intervals of the two are apart {who}: the picture is read from the brain.")
        elif close:
            text.append(f"The 95\u00a0% intervals of the two overlap in {_list(close)}: there this score does not show that the brain is read.")
    paragraphs = [" ".join(text)]
    others = [(key, row) for key in study.methods if key != lead and (row := _pick(means, of=key, control=None)) is not None]
    ceiling = _pick(means, control="embedding-ceiling")
    text = []
    if others:
        told = [(labels[key], _interval(name, row), _against(comparisons, dataset, own, name, lead, key)) for key, row in others]
        text.append(f"Beside it stand {_list([f'{label} at {value}' + verdict for label, value, verdict in told])}.")
        text += ["Here p is that of the paired permutation test between the two methods, Holm-adjusted."] if any(verdict for *_, verdict in told) else []
    if ceiling is not None:
        count = next(iter(study.methods.values())).sampling.samples
        best = f", the best of {count} samples" if count > 1 else ""
        text.append(f"The ceiling, drawn from the true embedding through the diffusion model's own conditioner{best}, is {_interval(name, ceiling)}.")
    paragraphs += [" ".join(text)] if text else []
    fresh = [subject for subject in study.datasets[dataset].new_subjects if _pick(singles, subject=subject, of=lead, control=None) is not None]
    if fresh and role == "train":
        paragraphs.append(_fresh(study, singles, name, lead, fresh))
    return paragraphs


def _against(comparisons: pd.DataFrame | None, dataset: str, own: Any, name: str, lead: str, other: str) -> str:
    """What the paired test says of another method beside the leading one, in parentheses."""
    test = results.compared(comparisons, dataset, own.subject, name, lead, other)
    if test is None:
        return ""
    difference, p = test
    verdict = "no sure difference" if p >= results.LEVEL else "lower" if difference > 0 else "higher"
    return f" ({verdict}, p {f'= {p:.2g}' if p >= 0.001 else '< 0.001'})"


def _fresh(study: Study, singles: pd.DataFrame, name: str, lead: str, subjects: list[str]) -> str:
    """The leading method on new subjects, beside its shuffled control and a closed-form method on the same trials."""
    labels, words = results.labels(study), []
    rival = next((key for key, method in study.methods.items() if method.enter.kind == "ridge" and method.body.kind == "identity" and key != lead), None)
    for subject in subjects:
        beside = [("its shuffled control", _pick(singles, subject=subject, of=lead, control="shuffled"))]
        beside += [(f"{labels[rival]} on the same trials", _pick(singles, subject=subject, of=rival, control=None))] if rival else []
        rest = _list([f"{label} {_interval(name, row)}" for label, row in beside if row is not None])
        words.append(f"{_interval(name, _pick(singles, subject=subject, of=lead, control=None))} for {subject}{f' ({rest})' if rest else ''}")
    how = "only adapted to" if study.methods[lead].adapt else "not shared with"
    return f"For the {'subject' if len(subjects) == 1 else 'subjects'} the shared model was {how}, {labels[lead]} reaches {_list(words)}."


def _numbers(study: Study, means: pd.DataFrame, name: str, lead: str) -> list[Number]:
    """Methods, the leading method's shuffled control and the ceiling as numbers side by side."""
    labels, colours, kind = results.labels(study), results.colours(study), results.metric(name)
    rows = [(labels[key], colours[key], _pick(means, of=key, control=None)) for key in study.methods]
    rows.append((f"{labels[lead]}, shuffled {study.signal}", "", _pick(means, of=lead, control="shuffled")))
    rows.append((results.controls(study)["embedding-ceiling"][0], "", _pick(means, control="embedding-ceiling")))
    top = 1.0 if kind.percent else max([row.value for _, _, row in rows if row is not None] or [1.0])
    return [
        Number(
            results.text(name, row.value) + (PERCENT if kind.percent else ""), label, min(1.0, max(0.0, row.value / top)), colour, _interval(name, row, False)
        )
        for label, colour, row in rows
        if row is not None
    ]


# --- tables -----------------------------------------------------------------------------------------------------


def _cell(name: str, row: Any, best: bool = False) -> Cell | None:
    if row is None or pd.isna(row.value):
        return None
    interval = "" if pd.isna(row.ci_low) or pd.isna(row.ci_high) else f"{results.text(name, row.ci_low)}, {results.text(name, row.ci_high)}"
    exact = f"{row.value:.6g}"
    count = "" if pd.isna(row.n_test) else f", {int(row.n_test)} test pictures"
    return Cell(
        results.text(name, row.value),
        interval,
        exact,
        f"{results.metric(name).label}: {exact}{f', 95 % interval {row.ci_low:.6g} to {row.ci_high:.6g}' if interval else ''}{count}",
        best,
    )


def _heads(here: pd.DataFrame, names: list[str]) -> list[tuple[str, str]]:
    return [
        (
            results.metric(name).label
            + (PERCENT if results.metric(name).percent else "")
            + ("\u00a0↓" if results.lower_is_better(here[here.metric == name]) else "\u00a0↑"),
            results.metric(name).meaning,
        )
        for name in names
    ]


def _surely_best(rows: pd.DataFrame, name: str, comparisons: pd.DataFrame | None) -> str | None:
    """The method with the best value, if the paired test against the runner-up says so."""
    own = rows[(rows.metric == name) & rows.control.isna()]
    if len(own) < 2:
        return None
    first, second = own.sort_values("value", ascending=results.lower_is_better(own), kind="stable").head(2).itertuples()
    test = results.compared(comparisons, first.dataset, first.subject, name, first.of, second.of)
    return first.method if test is not None and test[1] < results.LEVEL else None


def _scores_tables(study: Study, rows: pd.DataFrame, comparisons: pd.DataFrame | None, title: str, note: str = "", brief: bool = False) -> list[Table]:
    """Methods, then controls, one column per metric; numbers of different protocols stand in tables of their own.

    A brief table has the shuffled control of every method, and the method-bound others of the first method only.
    """
    protocols = list(dict.fromkeys(rows.protocol))
    found = []
    for protocol in protocols:
        here = rows[rows.protocol == protocol] if isinstance(protocol, str) else rows[rows.protocol.isna()]
        names = results.ordered(here.metric)
        lead = next((key for key in study.methods if (here.of == key).any()), None)
        if brief:
            here = here[~here.control.isin(("chance", "nearest-training-image")) | (here.of == lead)]
        best = {name: _surely_best(here, name, comparisons) for name in names}
        bold = " Bold: best of the methods where the paired test against the next one is sure (p < 0.05, Holm)." if any(best.values()) else ""
        caption = f"Brackets: 95 % bootstrap intervals over test pictures.{bold} Protocol {protocol if isinstance(protocol, str) else 'not recorded'}.{note}"
        blocks = _blocks(study, here, names, best)
        found.append(Table(title + (f", protocol {protocol}" if len(protocols) > 1 else ""), "", _heads(here, names), blocks, caption))
    return found


def _blocks(study: Study, rows: pd.DataFrame, names: list[str], best: dict[str, str | None]) -> list[Block]:
    labels, colours, named = results.labels(study), results.colours(study), results.controls(study)
    methods, controls = list(study.methods), list(named)

    def place(line: Any) -> tuple[int, ...]:
        owner = methods.index(line.of) if line.of in methods else len(methods)
        return (0, owner) if line.control is None else (1, controls.index(line.control) if line.control in controls else len(controls), owner)

    blocks: dict[str, list[Row]] = {"": [], "Controls": []}
    entries = list(rows.itertuples())
    at = {(entry.method, entry.metric): entry for entry in entries}
    for line in sorted({entry.method: entry for entry in entries}.values(), key=place):
        cells = [_cell(name, at.get((line.method, name)), best[name] == line.method) for name in names]
        if line.control is None:
            blocks[""].append(Row(labels.get(line.of, line.of), cells, colours.get(line.of, "")))
        else:
            blocks["Controls"].append(Row(named.get(line.control, (line.control,))[0], cells, note=labels.get(line.of, line.of) if line.of else ""))
    return [Block(lines, heading) for heading, lines in blocks.items() if lines]


def _results(study: Study, scores: pd.DataFrame | None, comparisons: pd.DataFrame | None, pictures: list[tuple[str, Picture]]) -> list[Section]:
    """Per data set: the table over training subjects, folded tables per subject, and bars."""
    sections = []
    for dataset in study.datasets:
        if scores is None:
            break
        here = scores[scores.dataset == dataset]
        if here.empty:
            continue
        section = Section(dataset, notes=_cautions(here), pictures=[picture for name, picture in pictures if name == dataset])
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
        sections.append(section)
    return sections


def _cautions(here: pd.DataFrame) -> list[str]:
    """Where a number of this table misleads, in words, computed from the table."""
    notes = []
    names = set(here.metric)
    means = results.over_subjects(here, results.main_role(here))
    low = [name for name in results.ordered(names) if results.metric(name).low_level]
    beaten = []
    for name in low:
        sign = -1 if results.lower_is_better(here[here.metric == name]) else 1
        own = [sign * row.value for row in means[(means.metric == name) & means.control.isna()].itertuples()]
        blur = _pick(means, metric=name, control="mean-training-image")
        if own and blur is not None and sign * blur.value > max(own):
            beaten.append(results.metric(name).label)
    if means.protocol.nunique() > 1:
        notes.append("Not all rows were made under the same protocol; those that were not stand in tables of their own and must not be compared across them.")
    if beaten:
        notes.append(
            f"In {_list(beaten)} the mean training image, one blur for every trial, beats "
            f"every method here: low-level metrics reward blur and alone prove nothing."
        )
    elif low:
        notes.append(
            f"Low-level metrics ({_list([results.metric(name).label for name in low])}) reward "
            f"blur: read them only beside the identification metrics and the mean training image."
        )
    for name in ("inception_score", "classifier_score"):
        counts = results.single(here).n_test[here.metric == name].dropna()
        if len(counts) and counts.min() < FEW_FOR_INCEPTION_SCORE:
            notes.append(
                f"{results.metric(name).label} from {int(counts.min())} pictures: unstable "
                f"below {FEW_FOR_INCEPTION_SCORE}, and it never looks at what was seen."
            )
    if "fid" in names and here.n_test[here.metric == "fid"].dropna().lt(FEW_FOR_INCEPTION_SCORE).any():
        notes.append("FID from so few pictures is a reference only.")
    return notes


def _controls(study: Study, scores: pd.DataFrame | None) -> list[tuple[str, str]]:
    present = set(scores.control.dropna()) if scores is not None else set()
    return [text for name, text in results.controls(study).items() if name in present]


def _metrics(scores: pd.DataFrame | None, networks: dict[str, str]) -> list[tuple[str, str]]:
    """(label, meaning) of the metrics in the tables, with the network that computed each."""
    names = results.ordered(scores.metric) if scores is not None else []
    return [(results.metric(name).label, results.metric(name).meaning + (f"; network: {networks[name]}" if name in networks else "")) for name in names]


def _new_subjects(
    study: Study, scores: pd.DataFrame | None, comparisons: pd.DataFrame | None, adaptation: pd.DataFrame | None, pictures: list[tuple[str, Picture]]
) -> Section:
    """How the shared models serve subjects they were only adapted to."""
    section = Section(pictures=[picture for _, picture in pictures])
    if not list(study.pairs("new")):
        section.notes.append("This study has no new subjects.")
        return section
    labels = results.labels(study)
    adapted = [f"{labels[key]} ({method.adapt.strategy})" for key, method in study.methods.items() if method.adapt]
    alone = [labels[key] for key, method in study.methods.items() if method.scope == "subject"]
    how = ([f"Adapted from the shared model: {_list(adapted)}."] if adapted else []) + ([f"Trained on the new subject alone: {_list(alone)}."] if alone else [])
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
        section.notes.append("The tables hold no result for the new subjects.")
    return section


def _adaptation_tables(study: Study, table: pd.DataFrame) -> list[Table]:
    """The headline metric over trial budgets, one line per method and subject; none where there is only one budget."""
    labels, colours = results.labels_over_budgets(study), results.colours(study)
    found = []
    for dataset in dict.fromkeys(table.dataset):
        here = table[table.dataset == dataset]
        averaged = here[here.subject == results.AVERAGE["new"]]
        here = averaged if len(averaged) else here
        name, budgets = results.headline(here), results.budgets(here)
        if name is None or len(budgets) < 2:
            continue
        blocks = []
        for subject, members in here[here.metric == name].groupby("subject", sort=False):
            rows = []
            for method, own in members.groupby("method", sort=False):
                cells = [_cell(name, next(own[own.trials == budget].itertuples(), None)) for budget in budgets]
                rows.append(Row(labels.get(method, method), cells, colours.get(method, "")))
            blocks.append(Block(rows, "mean over new subjects" if subject == results.AVERAGE["new"] else str(subject)))
        heads = [(str(budget), f"{budget} trials of the new subject") for budget in budgets]
        found.append(
            Table(
                f"{dataset + ': ' if len(study.datasets) > 1 else ''}{_measure(name)}{' (%)' if results.metric(name).percent else ''} "
                f"by number of training trials",
                "training trials",
                heads,
                blocks,
            )
        )
    return found


def _efficiency(study: Study, table: pd.DataFrame | None, pictures: list[tuple[str, Picture]]) -> Section:
    """What each stage of each method cost."""
    section = Section(pictures=[picture for _, picture in pictures])
    if table is None:
        section.notes.append("This run has no table of parameters, memory and time.")
        return section
    labels, colours = results.labels(study), results.colours(study)
    names = [name for name in QUANTITIES if name in set(table.quantity)] + sorted(set(table.quantity.astype(str)) - set(QUANTITIES))
    heads, blocks = [], []
    for name in names:
        unit = table.unit[table.quantity == name].iloc[0]
        shown: str = UNITS.get(str(unit), (1, "" if pd.isna(unit) or unit in ("count", "1", "1/s") else str(unit)))[1]
        heads.append((f"{QUANTITIES.get(name, name)}{f' ({shown})' if shown else ''}", ""))
    keys = {label: key for key, label in labels.items()}
    for method in dict.fromkeys(table.method):
        own = {(str(row.stage), row.quantity): row for row in table[table.method == method].itertuples() if not pd.isna(row.value)}
        rows = []
        for stage in sorted(dict.fromkeys(stage for stage, _ in own), key=results.stage_order):
            found = [own.get((stage, name)) for name in names]
            cells = [
                row and Cell(_quantity(row.value / UNITS.get(str(row.unit), (1,))[0]), exact=f"{row.value:.6g}", words=f"{row.value:.6g}") for row in found
            ]
            rows.append(Row(stage, cells, colours.get(keys.get(method, method), "")))
        blocks.append(Block(rows, labels.get(method, method)))
    section.tables.append(Table("Cost of every stage", "stage", heads, blocks, "Measured in this run, on the machine that ran it."))
    return section


def _untrained(study: Study, losses: Sequence[results.Losses]) -> list[str]:
    """A paragraph on the methods whose alignment validation found no better than where it started; none where there is no such method."""
    labels, idle = results.labels(study), []
    for key, method in study.methods.items():
        found = [results.kept(one.rows) for one in losses if one.owner == key and one.name.startswith("align")]
        if method.align and found and all(one is not None and one.step == 0 < one.last for one in found):
            idle.append(key)
    if not idle:
        return []
    return [
        f"Alignment trained {_list([labels[key] for key in idle])} and no step was better on validation pictures than the start; "
        f"so the start was kept, and this study cannot tell {'these encoders apart' if len(idle) > 1 else 'what the encoder adds to it'}."
    ]


def _kept(study: Study, losses: Sequence[results.Losses]) -> Table | None:
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
            before, value = (None if number is None else Cell(f"{number:.3g}", exact=f"{number:.6g}") for number in (kept.before, kept.value))
            rows.append(Row(name, [Cell(f"{kept.step}"), Cell(f"{kept.last}"), Cell(kept.term.replace("_", " ")), before, value]))
        if rows:
            blocks.append(Block(rows, labels.get(owner, "networks trained in the study")))
    caption = "Step 0: training made validation pictures only worse, and the part is used as it started."
    return Table("Weights that validation kept", "trained part", heads, blocks, caption) if blocks else None


def _quantity(value: float) -> str:
    """Thousands in groups, three digits otherwise."""
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1000 else f"{value:.3g}"


# --- data -------------------------------------------------------------------------------------------------------

SPLIT_WORDS = {"train": "training", "validation": "validation", "test": "test"}
ROLE_WORDS = {"train": "trained on", "new": "new", "unpaired": "no pictures"}


def _data(path: Path) -> Table:
    """What each subject brings: sessions, voxels, trials and pictures of every split."""
    overview = results.read_table(path.parent, path.stem)
    if overview is None:
        raise InputError(f"{path}: no such file, or empty; run the stage overview first")
    heads = [("sessions", "sessions"), ("voxels", "voxels kept")]
    heads += [(f"{kind}_{split}", f"{word} {kind}") for kind in ("trials", "pictures") for split, word in SPLIT_WORDS.items()]
    heads += [("noise_ceiling", "noise ceiling"), ("reliability", "reliability of repeats"), ("identification", "told apart")]
    heads = [(name, words) for name, words in heads if name in overview and overview[name].notna().any()]
    blocks = []
    for dataset, members in overview.groupby("dataset", sort=False):
        rows = []
        for row in members.to_dict("records"):
            cells = [None if pd.isna(row[name]) else Cell(_quantity(row[name]), exact=f"{row[name]:g}", words=words) for name, words in heads]
            rows.append(Row(str(row["subject"]), cells, note=ROLE_WORDS[row["role"]]))
        blocks.append(Block(rows, str(dataset)))
    known = {name for name, _ in heads}
    meaning = "Noise ceiling: the share of one trial's variance that the pictures can explain, median over voxels. " if "noise_ceiling" in known else ""
    if "reliability" in known:
        meaning += "Reliability: correlation of the response patterns to the same pictures in two halves of their repeats. "
    if "identification" in known:
        meaning += "Told apart: share of pairs of test pictures told apart by a ridge regression to light, colour and edges; chance is 0.5. "
    for row in overview.to_dict("records") if "findings" in overview else ():
        if isinstance(row["findings"], str) and row["findings"]:
            meaning += f"{row['dataset']} {row['subject']}: {row['findings']}. "
    return Table(
        "What each subject brings", "subject", [(words, "") for _, words in heads], blocks,
        f"{meaning}No picture, told apart by its pixels, is on two sides of the split.",
    )  # fmt: skip


# --- protocol ---------------------------------------------------------------------------------------------------


@dataclass
class Protocol:
    """How the numbers were made: what all protocols share, what differs, their networks, and what is missing."""

    identifiers: list[tuple[str, str]] = field(default_factory=list)  # (id, who was measured under it)
    common: list[tuple[str, str]] = field(default_factory=list)
    differing: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)  # (line, (value, ids))
    networks: list[tuple[str, str, str]] = field(default_factory=list)  # (metric, network, hash)
    absent: list[tuple[str, str]] = field(default_factory=list)
    foundations: list[tuple[str, str]] = field(default_factory=list)


def _flat(content: Any, path: str = "") -> dict[str, str]:
    """Nested JSON as dotted keys and printable values."""
    if isinstance(content, dict):
        return {key: value for name, inner in content.items() for key, value in _flat(inner, f"{path}.{name}" if path else str(name)).items()}
    if isinstance(content, list):
        return {path: ", ".join(map(str, content))} if not any(isinstance(one, (dict, list)) for one in content) else _flat(dict(enumerate(content)), path)
    return {path: {True: "yes", False: "no", None: "not given"}.get(content, str(content)) if content is None or isinstance(content, bool) else str(content)}


def _protocol(study: Study, read: dict[str, Any]) -> Protocol:
    """The protocols of all metrics files, told once."""
    found = Protocol()
    users: dict[str, list[str]] = {}
    contents: dict[str, dict[str, str]] = {}
    networks: dict[tuple[str, str, str], None] = {}
    for place, content in read.items():
        protocol = content.get("protocol", {})
        name = str(protocol.get("id", place))
        users.setdefault(name, []).append(place)
        contents[name] = _flat({key: value for key, value in protocol.items() if key not in ("id", "networks")})
        for metric, network in protocol.get("networks", {}).items():
            if isinstance(network, dict):
                networks[results.metric(metric).label, str(network.get("network", network.get("name", ""))), str(network.get("sha256", ""))] = None
    found.identifiers = [(name, _list(places) if len(users) > 1 else f"all {len(places)} metrics files") for name, places in users.items()]
    found.networks = list(networks)
    for key in dict.fromkeys(key for content in contents.values() for key in content):
        values: dict[str, list[str]] = {}
        for name, content in contents.items():
            values.setdefault(content.get(key, "not given"), []).append(name)
        if len(values) == 1:
            found.common.append((_readable(key), next(iter(values))))
        else:
            found.differing.append((_readable(key), [(value, ", ".join(names)) for value, names in values.items()]))
    reasons: dict[str, dict[str, None]] = {}
    for content in read.values():
        for name, reason in content.get("absent", {}).items():
            reasons.setdefault(name, {})[str(reason)] = None
    found.absent = [(results.metric(name).label, "; ".join(reasons[name])) for name in results.ordered(reasons)]
    for name, section in study.foundations:
        if section is not None and hasattr(section, "kind"):
            given = {
                key: value
                for key, value in section.model_dump(mode="json").items()
                if not isinstance(value, (dict, list)) and value is not None and key != "kind"
            }
            found.foundations.append((name, f"{section.kind}{''.join(f', {_readable(key)} {value}' for key, value in given.items())}"))
    return found


def _readable(key: str) -> str:
    return key.replace("_", " ").replace(".", ": ")


def _networks(contents: Iterable[Any]) -> dict[str, str]:
    """Metric -> name of the network that computed it, wherever a protocol says so."""
    found: dict[str, str] = {}

    def look(content: Any) -> None:
        for key, value in content.items() if isinstance(content, dict) else ():
            if isinstance(value, dict):
                name = value.get("network") or value.get("name")
                if key in results.METRICS and isinstance(name, str):
                    found.setdefault(key, name)
                look(value)

    for content in contents:
        look(content.get("protocol", {}))
    return found


def _models(models: Sequence[Path]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the models' config.json say that fits a line."""
    found = []
    for model in map(Path, models):
        config = model / "config.json"
        if config.exists():
            parts = model.parts[model.parts.index("models") + 1 :] if "models" in model.parts else model.parts[-2:]
            lines = [(key, value) for key, value in _flat(read_json(config)).items() if len(value) <= 100]
            found.append((" / ".join(parts), lines))
    return sorted(found)


def _versions() -> list[tuple[str, str]]:
    """Unimind, Python and the libraries the numbers hang on."""
    found = [("unimind", __version__), ("python", platform.python_version())]
    for name in LIBRARIES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
