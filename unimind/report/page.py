"""The stage `report`: one HTML file that tells the whole study to someone who opens nothing else."""

import base64
import importlib.metadata
import io
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from unimind import __version__
from unimind.errors import InputError
from unimind.progress import say
from unimind.report import results
from unimind.report.figures import QUANTITIES, STAGES, UNITS
from unimind.report.results import AVERAGES, CONTROLS
from unimind.storage import read_json, whole_file
from unimind.study import Study, resolved

HEAVY = 400_000  # bytes; larger figures are embedded as WebP
FEW_FOR_INCEPTION_SCORE = 5000
LIBRARIES = ("torch", "torchvision", "diffusers", "open_clip_torch", "himalaya", "scikit-learn", "nilearn", "h5py", "numpy", "snakemake")
CITATIONS = (
    "Unimind, version {version}: reconstruct seen images from fMRI with one model for many subjects (software).",
    "Sohyung Kim (2025). Cross-subject fMRI Image Reconstruction using Contrastive Learning. Thesis, Seoul National University. The method this software implements.",
    "Zijiao Chen, Jiaxin Qing, Tiange Xiang, Wan Lin Yue & Juan Helen Zhou (2023). Seeing Beyond the Brain: Conditional Diffusion Model with Sparse Masked Modeling for Vision Decoding. CVPR. "
    "Masked brain modelling and the double-conditioned latent diffusion model.",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A number of a table: as printed, its interval as printed, its exact value, and all of it in words."""

    shown: str
    interval: str = ""
    exact: str = ""
    words: str = ""


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


def report(study: Study, tables: Path, figures: Path, metrics: Sequence[Path], models: Sequence[Path], out: Path) -> None:
    """Write the page.

    Parameters
    ----------
    tables : path
        Folder of `tabulate`; a table that is not there leaves its section out, with a sentence.
    figures : path
        Folder of `figures`: PNG files and `captions.json`.
    metrics : sequence of paths
        Metrics files, for the protocol and the metrics that could not be computed.
    models : sequence of paths
        Model folders, for the record of what was trained.
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
    drawn = _drawn(Path(figures))
    read = {f"{path.parent.parent.name}/{path.parent.name}/{path.stem}": read_json(path) for path in map(Path, metrics)}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("unimind.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    networks = _networks(read.values())
    answer = _answer(study, scores)
    html = environment.get_template("report.html").render(
        title=study.title or study.name,
        study=study,
        facts=_facts(study, scores),
        warnings=_warnings(study),
        answer=answer,
        overview=[picture for _, picture in drawn.get("overview", [])],
        pictures=_by_dataset(study, drawn.get("pictures", [])),
        results=_results(study, scores, drawn.get("results", []), networks),
        controls=_controls(scores),
        metrics=_metrics(scores, networks),
        new=_new_subjects(study, scores, adaptation, drawn.get("new", [])),
        alignment=[picture for _, picture in drawn.get("alignment", [])],
        efficiency=_efficiency(study, efficiency, drawn.get("efficiency", [])),
        training=[picture for _, picture in drawn.get("training", [])],
        other=[picture for name, pictures in drawn.items() if name not in SECTIONS for _, picture in pictures],
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
    entries += [{"file": path.name, "section": "other", "caption": path.stem, "alt": path.stem} for path in sorted(folder.glob("*.png")) if path.name not in named]
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
        counts = sorted({int(count) for count in scores.n_test.dropna()})
        facts.append(("Test pictures", str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} a subject"))
    return [*facts, ("Picture size", f"{study.picture_size} px"), ("Study", study.name)]


def _warnings(study: Study) -> list[str]:
    """What must be known before any number is read."""
    simulated = [name for name, dataset in study.datasets.items() if dataset.source == "simulated"]
    trained = [
        name
        for name, section in (("image embedding", study.foundations.embedding), ("autoencoder", study.foundations.autoencoder), ("diffusion model", study.foundations.diffusion))
        if section.kind in ("study", "study-clip")
    ]
    found = []
    if simulated:
        found.append(f"{'The brains' if len(simulated) == len(study.datasets) else 'The brains of ' + _list(simulated)} are simulated and the pictures are drawn: this study shows that the pipeline works, not how well people's brains can be read.")
    if trained:
        found.append(f"The {_list(trained)} {'was' if len(trained) == 1 else 'were'} trained inside this study; numbers measured with them must never be compared with numbers on NSD or from other networks.")
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
    shown = results.text(name, row.value) + (" %" if unit and results.metric(name).percent else "")
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


def _answer(study: Study, scores: pd.DataFrame | None) -> Answer:
    """What was reconstructed, from whom, how well, beside which controls: words computed from the table."""
    answer = Answer()
    labels = results.labels(study)
    train, new = [subject for _, subject in study.pairs("train")], [subject for _, subject in study.pairs("new")]
    whom = f"{_many(len(train), 'training subject')} ({', '.join(train)})" if train else ""
    whom += (" and " if train and new else "") + (f"{_many(len(new), 'new subject')} ({', '.join(new)})" if new else "")
    if scores is None or (name := results.headline(scores)) is None:
        answer.paragraphs.append(f"The pictures that {whom} saw were reconstructed from fMRI by {_many(len(study.methods), 'method')}; this run has no table of identification scores, so how well is not said here.")
        return answer
    for dataset in study.datasets:
        here = scores[(scores.dataset == dataset) & (scores.metric == name)]
        if here.empty:
            continue
        role = "train" if (here.role == "train").any() else "new"
        means = results.average(here, role)
        lead = next((key for key in study.methods if _pick(means, of=key, control=None) is not None), None)
        if lead is None:
            continue
        answer.paragraphs += _paragraphs(study, dataset, here, means, name, lead, role)
        if not answer.numbers:
            answer.numbers, answer.chance = _numbers(study, means, name), results.metric(name).chance
            subjects = study.datasets[dataset].training_subjects if role == "train" else study.datasets[dataset].new_subjects
            answer.scale = f"{_headline_words(name)[0]}, {dataset}, {'mean over ' + _many(len(subjects), 'training subject' if role == 'train' else 'new subject') if len(subjects) > 1 else subjects[0]}"
    if not answer.paragraphs:
        answer.paragraphs.append(f"The pictures that {whom} saw were reconstructed, but no method of the study is in the table; run tabulate again.")
        return answer
    opening = f"From the fMRI of {whom}, {_list([labels[key] for key in study.methods])} reconstructed test pictures that none of them was trained on."
    answer.paragraphs[0] = f"{opening} {answer.paragraphs[0]}"
    return answer


def _headline_words(name: str) -> tuple[str, str]:
    """(name of the measure, what it asks)."""
    kind = results.metric(name)
    if kind.chance == 0.5:
        return f"two-way identification, {kind.label}", "which of two test pictures is this the reconstruction of?"
    return kind.label, kind.meaning


def _paragraphs(study: Study, dataset: str, here: pd.DataFrame, means: pd.DataFrame, name: str, lead: str, role: str) -> list[str]:
    labels, kind = results.labels(study), results.metric(name)
    unit = " %" if kind.percent else ""
    own, title = _pick(means, of=lead, control=None), labels[lead]
    measure, question = _headline_words(name)
    singles = here[~here.subject.isin(AVERAGES)]
    subjects = list(dict.fromkeys(singles[(singles.role == role) & (singles.of == lead)].subject))
    where = f"On {dataset}, in" if len(study.datasets) > 1 else "In"
    asks = f" ({question}{f' chance {100 * kind.chance:.0f} %' if kind.chance else ''})"
    first = f"{where} {measure}{asks}, {title} is right in {_interval(name, own)} of the comparisons" if kind.chance == 0.5 else f"{where} {measure}{asks}, {title} reaches {_interval(name, own)}"
    if len(subjects) > 1:
        values = [_pick(singles, subject=subject, of=lead, control=None, role=role) for subject in subjects]
        low, high = [row.ci_low for row in values], [row.ci_high for row in values]
        spread = f"from {results.text(name, min(row.value for row in values))} to {results.text(name, max(row.value for row in values))}{unit}"
        bounds = f", 95 % intervals within [{results.text(name, min(low))}, {results.text(name, max(high))}]" if not any(map(pd.isna, [*low, *high])) else ""
        first += f" on average over {_many(len(subjects), 'training subject' if role == 'train' else 'new subject')} ({spread}{bounds})"
    elif subjects:
        first += f" for {subjects[0]}"
    text = [first + "."]
    shuffled = _pick(means, of=lead, control="shuffled")
    if shuffled is not None:
        pairs = [(subject, _pick(singles, subject=subject, of=lead, control=None), _pick(singles, subject=subject, of=lead, control="shuffled")) for subject in subjects]
        apart = {subject: _apart(a, b) for subject, a, b in pairs if a is not None and b is not None}
        close = [subject for subject, answer in apart.items() if answer is False]
        verdict = ""
        if apart and all(apart.values()):
            who = "every subject" if len(apart) > 1 else next(iter(apart))
            verdict = f"; the 95 % intervals do not overlap for {who}, so what it draws comes from the brain"
        elif close:
            verdict = f"; the 95 % intervals overlap for {_list(close)}, so there this score does not show that it reads the brain"
        text.append(f"Given another picture's fMRI (the shuffled control), the same model reaches {_interval(name, shuffled)}{verdict}.")
    others = [(labels[key], row) for key in study.methods if key != lead and (row := _pick(means, of=key, control=None)) is not None]
    ceiling = _pick(means, control="embedding-ceiling")
    if others:
        best = max(others, key=lambda item: item[1].value)
        place = f"; {best[0]} is ahead of {title}" if best[1].value > own.value else f"; {title} has the highest value"
        text.append(f"Beside it stand {_list([f'{label} at {_interval(name, row)}' for label, row in others])}{place}.")
    if ceiling is not None:
        text.append(f"The same decoder given the true embedding, the ceiling, reaches {_interval(name, ceiling)}.")
    paragraphs = [" ".join(text)]
    fresh = [subject for subject in study.datasets[dataset].new_subjects if _pick(singles, subject=subject, of=lead, control=None) is not None]
    if fresh and role == "train":
        words = []
        for subject in fresh:
            row = _pick(singles, subject=subject, of=lead, control=None)
            shuffled = _pick(singles, subject=subject, of=lead, control="shuffled")
            rival = next((key for key in study.methods if study.methods[key].fitted and _pick(singles, subject=subject, of=key, control=None) is not None), None)
            beside = [f"shuffled control {_interval(name, shuffled)}"] if shuffled is not None else []
            beside += [f"{labels[rival]} on the same trials {_interval(name, _pick(singles, subject=subject, of=rival, control=None))}"] if rival and rival != lead else []
            words.append(f"{_interval(name, row)} for {subject}{f' ({_list(beside)})' if beside else ''}")
        paragraphs.append(f"New subjects, whom the shared model met only when it was adapted to them: {title} reaches {_list(words)}.")
    return paragraphs


def _numbers(study: Study, means: pd.DataFrame, name: str) -> list[Number]:
    """Methods, the leading method's shuffled control and the ceiling as numbers side by side."""
    labels, colours, kind = results.labels(study), results.colours(study), results.metric(name)
    rows = [(labels[key], colours[key], _pick(means, of=key, control=None)) for key in study.methods]
    lead = next(key for key, (_, _, row) in zip(study.methods, rows, strict=True) if row is not None)
    rows.append((f"{labels[lead]}, shuffled fMRI", "", _pick(means, of=lead, control="shuffled")))
    rows.append((CONTROLS["embedding-ceiling"][0], "", _pick(means, control="embedding-ceiling")))
    top = 1.0 if kind.percent else max([row.value for _, _, row in rows if row is not None] or [1.0])
    return [
        Number(results.text(name, row.value) + (" %" if kind.percent else ""), label, min(1.0, max(0.0, row.value / top)), colour, _interval(name, row, False))
        for label, colour, row in rows
        if row is not None
    ]  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------


def _cell(name: str, row: Any) -> Cell | None:
    if row is None or pd.isna(row.value):
        return None
    interval = "" if pd.isna(row.ci_low) or pd.isna(row.ci_high) else f"{results.text(name, row.ci_low)}, {results.text(name, row.ci_high)}"
    exact = f"{row.value:.6g}"
    count = "" if pd.isna(row.n_test) else f", {int(row.n_test)} test pictures"
    return Cell(results.text(name, row.value), interval, exact, f"{results.metric(name).label}: {exact}{f', 95 % interval {row.ci_low:.6g} to {row.ci_high:.6g}' if interval else ''}{count}")


def _heads(here: pd.DataFrame, names: list[str]) -> list[tuple[str, str]]:
    heads = []
    for name in names:
        better = str(here.better[here.metric == name].iloc[0]).lower()
        arrow = "↓" if better in ("lower", "down", "min", "↓") else "↑"
        heads.append((f"{results.metric(name).label}{' %' if results.metric(name).percent else ''} {arrow}", results.metric(name).meaning))
    return heads


def _scores_table(study: Study, rows: pd.DataFrame, names: list[str], title: str, caption: str) -> Table:
    """Methods, then controls, one column per metric."""
    labels, colours = results.labels(study), results.colours(study)
    lines = rows[["method", "control", "of"]].drop_duplicates("method")
    blocks: list[tuple[str, list[Row]]] = [("", []), ("Controls", [])]
    order = list(CONTROLS)
    methods = list(study.methods)

    def place(line: Any) -> tuple:
        owner = methods.index(line.of) if line.of in methods else len(methods)
        return (0, owner) if line.control is None else (1, order.index(line.control) if line.control in order else len(order), owner)

    for line in sorted(lines.itertuples(), key=place):
        own = rows[rows.method == line.method]
        cells = [_cell(name, next(own[own.metric == name].itertuples(), None)) for name in names]
        if line.control is None:
            blocks[0][1].append(Row(labels.get(line.of, line.of), cells, colours.get(line.of, "")))
        else:
            shown = CONTROLS.get(line.control, (line.control,))[0]
            blocks[1][1].append(Row(shown, cells, note=labels.get(line.of, "") if isinstance(line.of, str) else ""))
    return Table(title, "", _heads(rows, names), [Block(lines, heading) for heading, lines in blocks if lines], caption)


def _results(study: Study, scores: pd.DataFrame | None, pictures: list[tuple[str, Picture]], networks: dict[str, str]) -> list[Section]:
    """Per data set: bars, the table averaged over training subjects, and folded tables per subject."""
    sections = []
    for dataset in study.datasets if scores is not None else ():
        here = scores[scores.dataset == dataset]
        if here.empty:
            continue
        names = results.ordered(here.metric)
        section = Section(dataset, notes=_cautions(study, here), pictures=[picture for name, picture in pictures if name == dataset])
        protocols = _list([str(one) for one in dict.fromkeys(here.protocol.dropna())])
        caption = f"95 % bootstrap intervals over test pictures in brackets. Protocol {protocols or 'not recorded'}."
        subjects = [subject for subject in study.datasets[dataset].subjects if (here.subject == subject).any()]
        training = [subject for subject in subjects if study.role(dataset, subject) == "train"]
        means = results.average(here, "train") if training else here.iloc[:0]
        if len(training) > 1 and len(means):
            note = "" if means.ci_low.notna().any() else " Means over subjects carry no interval; the tables of single subjects do."
            section.tables.append(_scores_table(study, means, names, f"Mean over {_many(len(training), 'training subject')}", caption + note))
        for subject in subjects:
            role = "new subject" if study.role(dataset, subject) == "new" else "training subject"
            table = _scores_table(study, here[here.subject == subject], names, f"{subject} ({role})", caption)
            (section.folded if section.tables else section.tables).append(table)
        sections.append(section)
    return sections


def _cautions(study: Study, here: pd.DataFrame) -> list[str]:
    """Where a number of this table misleads, in words, computed from the table."""
    notes = []
    names = set(here.metric)
    means = results.average(here, "train" if (here.role == "train").any() else "new")
    low = [name for name in results.ordered(names) if results.metric(name).low_level]
    beaten = []
    for name in low:
        better = str(here.better[here.metric == name].iloc[0]).lower()
        sign = -1 if better in ("lower", "down", "min", "↓") else 1
        own = [sign * row.value for row in means[(means.metric == name) & means.control.isna()].itertuples()]
        blur = _pick(means, metric=name, control="mean-training-image")
        if own and blur is not None and sign * blur.value > max(own):
            beaten.append(results.metric(name).label)
    if beaten:
        notes.append(f"In {_list(beaten)} the mean training image, one grey blur for every trial, beats every method here: low-level metrics reward blur and alone prove nothing.")
    elif low:
        notes.append(f"Low-level metrics ({_list([results.metric(name).label for name in low])}) reward blur: read them only beside the identification metrics and the mean training image.")
    for name in ("inception_score", "classifier_score"):
        counts = here.n_test[here.metric == name].dropna()
        if len(counts) and counts.min() < FEW_FOR_INCEPTION_SCORE:
            notes.append(f"{results.metric(name).label} from {int(counts.min())} pictures: unstable below {FEW_FOR_INCEPTION_SCORE}, and it never looks at what was seen.")
    if "fid" in names and here.n_test[here.metric == "fid"].dropna().lt(FEW_FOR_INCEPTION_SCORE).any():
        notes.append("FID from so few pictures is a reference only.")
    return notes


def _controls(scores: pd.DataFrame | None) -> list[tuple[str, str]]:
    present = set(scores.control.dropna()) if scores is not None else set()
    return [text for name, text in CONTROLS.items() if name in present]


def _metrics(scores: pd.DataFrame | None, networks: dict[str, str]) -> list[tuple[str, str]]:
    """(label, meaning) of the metrics in the tables, with the network that computed each."""
    names = results.ordered(scores.metric) if scores is not None else []
    return [(results.metric(name).label, results.metric(name).meaning + (f"; network: {networks[name]}" if name in networks else "")) for name in names]


def _new_subjects(study: Study, scores: pd.DataFrame | None, adaptation: pd.DataFrame | None, pictures: list[tuple[str, Picture]]) -> Section:
    """How the shared models serve subjects they were only adapted to."""
    section = Section(pictures=[picture for _, picture in pictures])
    if not list(study.pairs("new")):
        section.notes.append("This study has no new subjects.")
        return section
    for dataset, own in study.datasets.items():
        here = scores[scores.dataset == dataset] if scores is not None else None
        for subject in own.new_subjects if here is not None else ():
            rows = here[here.subject == subject]
            if len(rows):
                names = results.ordered(rows.metric)
                adapted = _list([f"{results.labels(study)[key]} ({method.adapt.strategy})" for key, method in study.methods.items() if method.adapt])
                alone = _list([results.labels(study)[key] for key, method in study.methods.items() if method.scope == "subject"])
                caption = (f"Adapted from the shared model: {adapted}. " if adapted else "") + (f"Trained on this subject alone: {alone}." if alone else "")
                section.tables.append(_scores_table(study, rows[rows.control.isna() | (rows.control == "shuffled")], names, f"{dataset}, {subject}", caption))
    if adaptation is not None:
        section.tables += _adaptation_tables(study, adaptation)
    elif section.tables:
        section.notes.append("Adapted with all of the subject's training trials; this run has no table over smaller trial budgets.")
    else:
        section.notes.append("The tables hold no result for the new subjects.")
    return section


def _adaptation_tables(study: Study, table: pd.DataFrame) -> list[Table]:
    """The headline metric over trial budgets, one line per method and subject."""
    labels, colours = results.labels(study), results.colours(study)
    name = results.headline(table)
    if name is None:
        return []
    found = []
    for dataset in dict.fromkeys(table.dataset):
        here = table[(table.dataset == dataset) & (table.metric == name)]
        budgets = sorted({str(one) for one in here.trials.dropna()}, key=lambda one: (not one.isdigit(), int(one) if one.isdigit() else 0))
        blocks = []
        for subject in dict.fromkeys(here.subject):
            rows = []
            for method in dict.fromkeys(here.method[here.subject == subject]):
                own = here[(here.subject == subject) & (here.method == method)]
                key = own.of.iloc[0]
                cells = [_cell(name, next(own[own.trials == budget].itertuples(), None)) for budget in budgets]
                rows.append(Row(labels.get(method, method), cells, colours.get(key, "") if own.control.isna().all() else ""))
            blocks.append(Block(rows, str(subject)))
        heads = [(budget, f"trials of the new subject: {budget}") for budget in budgets]
        found.append(Table(f"{dataset}: {_headline_words(name)[0]}{' (%)' if results.metric(name).percent else ''} by number of trials", "trials", heads, blocks))
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
        shown = UNITS.get(str(unit), (1, "" if pd.isna(unit) or unit in ("count", "1", "1/s") else str(unit)))[1]
        heads.append((QUANTITIES.get(name, name) + (f" ({shown})" if shown else ""), ""))
    keys = {label: key for key, label in labels.items()}
    for method in dict.fromkeys(table.method):
        own = table[table.method == method]
        key = keys.get(method, method)
        stages = sorted(dict.fromkeys(own.stage.astype(str)), key=lambda stage: next((place for place, known in enumerate(STAGES) if stage.startswith(known)), len(STAGES)))
        rows = []
        for stage in stages:
            cells = []
            for name in names:
                row = next(own[(own.stage.astype(str) == stage) & (own.quantity == name)].itertuples(), None)
                cells.append(None if row is None or pd.isna(row.value) else Cell(_quantity(row.value / UNITS.get(str(row.unit), (1,))[0]), exact=f"{row.value:.6g}", words=f"{row.value:.6g}"))
            rows.append(Row(stage, cells, colours.get(key, "")))
        blocks.append(Block(rows, labels.get(method, method)))
    section.tables.append(Table("Cost of every stage", "stage", heads, blocks, "Measured in this run, on the machine that ran it."))
    return section


def _quantity(value: float) -> str:
    """Thousands in groups, three digits otherwise."""
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1000 else f"{value:.3g}"


# --- protocol ---------------------------------------------------------------------------------------------------


@dataclass
class Protocol:
    """How the numbers were made."""

    common: list[tuple[str, str]] = field(default_factory=list)
    differing: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
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
    """What is the same in all metrics files once, and what differs with the files it differs in."""
    found = Protocol()
    flat = {place: _flat(content.get("protocol", {})) for place, content in read.items()}
    for key in dict.fromkeys(key for one in flat.values() for key in one):
        values: dict[str, list[str]] = {}
        for place, one in flat.items():
            values.setdefault(one.get(key, "not given"), []).append(place)
        if len(values) == 1:
            found.common.append((key, next(iter(values))))
        else:
            found.differing.append((key, [(value, _list(places) if len(places) < len(flat) - 4 else f"all {len(places)} others") for value, places in values.items()]))
    reasons: dict[str, dict[str, None]] = {}
    for content in read.values():
        for name, reason in content.get("absent", {}).items():
            reasons.setdefault(name, {})[str(reason)] = None
    found.absent = [(results.metric(name).label, "; ".join(reasons[name])) for name in results.ordered(reasons)]
    for name, section in study.foundations:
        if section is not None and hasattr(section, "kind"):
            given = {key: value for key, value in section.model_dump(mode="json").items() if not isinstance(value, (dict, list)) and value is not None and key != "kind"}
            found.foundations.append((name, f"{section.kind}{''.join(f', {key} {value}' for key, value in given.items())}"))
    return found


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
