"""The stage `figures`: everything the report shows that is not text, as PNG files, with `captions.json` beside them."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.progress import say, track
from unimind.report import results
from unimind.report.gallery import RANKING, Cell, mosaic, ranked, tile_side
from unimind.storage import read_json, whole_directory, write_json
from unimind.study import Study

EACH_RANK, IN_ORDER, OVERVIEW, SMALL = 2, 6, 8, 4
UNITS = {"byte": (1e9, "GB"), "bytes": (1e9, "GB"), "B": (1e9, "GB")}
QUANTITIES = {
    "parameters": "Parameters", "trainable_parameters": "Trained parameters", "flops_per_sample": "FLOPs per sample", "peak_memory": "Peak memory",
    "samples_per_second": "Samples per second", "seconds": "Time",
}  # fmt: skip


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


def figures(
    study: Study,
    tables: Path,
    models: Sequence[Path],
    reconstructions: Sequence[Path],
    stimuli: Sequence[Path],
    prepared: Sequence[Path],
    controls: Sequence[Path],
    out: Path,
    metrics: Sequence[Path] = (),
) -> None:
    """Draw every figure that the inputs have data for.

    Parameters
    ----------
    tables : path
        Folder with `reconstruction.csv` and, where there are any, `efficiency.csv` and `adaptation.csv`.
    models : sequence of paths
        Model folders; those with a `losses.csv` get loss curves.
    reconstructions, stimuli, prepared, controls : sequences of paths
        HDF5 files as `docs/architecture.md` describes them, at the places it names (method, data set and subject are read off the path).
    metrics : sequence of paths
        Metrics files, by which pictures are ranked; without a subject's, its pictures come in stimulus order.
    out : path
        Folder written: PNG files and `captions.json`, a list of `Figure`.

    Raises
    ------
    InputError
        A file lacks what its place promises.
    """
    scores = results.read_scores(study, tables)
    adaptation = results.read_scores(study, tables, "adaptation")
    efficiency = results.read_table(tables, "efficiency")
    files = _Files.at(study, reconstructions, stimuli, prepared, controls, metrics)
    with whole_directory(out) as folder, _style():
        drawn = [
            *_overviews(study, files, folder),
            *_galleries(study, files, folder),
            *(_scores(study, scores, folder) if scores is not None else ()),
            *(_adaptation(study, adaptation, folder) if adaptation is not None else ()),
            *(_training_subjects(study, adaptation, folder) if adaptation is not None else ()),
            *_similarity(study, files, folder),
            *(_efficiency(study, efficiency, folder) if efficiency is not None else ()),
            *_losses(study, models, folder),
        ]
        write_json(folder / "captions.json", [asdict(figure) for figure in drawn])
    say(f"{len(drawn)} figures in {out}")


# --- pictures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    """The HDF5 files by what they hold, in the study's order."""

    reconstructions: dict[tuple[str, str, str], Path]  # (data set, subject, method)
    stimuli: dict[tuple[str, str], Path]  # (data set, stimulus set)
    prepared: dict[tuple[str, str], Path]  # (data set, subject)
    controls: dict[tuple[str, str], Path]  # (data set, stimulus set)
    metrics: dict[tuple[str, str, str], Path]  # (data set, subject, method)

    @classmethod
    def at(cls, study: Study, reconstructions, stimuli, prepared, controls, metrics) -> "_Files":
        given, scored = ({(path.parent.name, path.stem, path.parent.parent.name): path for path in map(Path, paths)} for paths in (reconstructions, metrics))
        wanted = [(dataset, subject, method) for dataset, subject in study.pairs() for method in study.methods]
        one, two, three = ({(path.parent.name, path.stem): path for path in map(Path, paths)} for paths in (stimuli, prepared, controls))
        return cls({key: given[key] for key in wanted if key in given}, one, two, three, scored)

    def subjects(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys(key[:2] for key in self.reconstructions))

    def methods(self, dataset: str, subject: str) -> list[str]:
        return [key[2] for key in self.reconstructions if key[:2] == (dataset, subject)]


class _Pictures:
    """Pictures of one file by stimulus number, read one at a time."""

    def __init__(self, path: Path, numbers: str | None = "stimulus"):
        self.path = path
        try:
            self.file = h5py.File(path, "r")
        except OSError as error:
            raise InputError(f"{path}: cannot be read as HDF5 ({error}); run the stage that writes it again") from None
        if numbers and numbers not in self.file:
            raise InputError(f"{path}: holds no `{numbers}`; run the stage that writes it again")
        self.stimulus: list[int] = self.file[numbers][()].astype(int).tolist() if numbers else []
        self.place = {stimulus: place for place, stimulus in enumerate(self.stimulus)} if numbers else None

    def get(self, name: str, stimulus: int) -> np.ndarray | None:
        """Array of one stimulus, or None where the file has no such data set or stimulus."""
        place = stimulus if self.place is None else self.place.get(stimulus)
        if name not in self.file or place is None or place >= len(self.file[name]):
            return None
        return self.file[name][place]

    def sampled(self, stimulus: int) -> Cell:
        """The sample shown, and beside it the others of the same stimulus."""
        samples = self.get("samples", stimulus)
        if samples is None:
            return Cell(None)
        chosen = self.get("shown", stimulus)
        shown = 0 if chosen is None else int(chosen)
        others = [sample for number, sample in enumerate(samples) if number != shown]
        return Cell(samples[shown], others[:SMALL])

    def __enter__(self) -> "_Pictures":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def _overviews(study: Study, files: _Files, folder: Path) -> Iterator[Figure]:
    """One figure per stimulus set: its first test pictures, and what the leading method makes of each subject's fMRI."""
    sets: dict[tuple[str, str], list[str]] = {}
    for dataset, subject in files.subjects():
        sets.setdefault((dataset, study.stimuli(dataset, subject)), []).append(subject)
    for (dataset, name), subjects in sets.items():
        if (dataset, name) not in files.stimuli:
            continue
        method = next(method for method in study.methods if any((dataset, subject, method) in files.reconstructions for subject in subjects))
        subjects = [subject for subject in subjects if (dataset, subject, method) in files.reconstructions]
        with contextlib.ExitStack() as stack:
            truth = stack.enter_context(_Pictures(files.stimuli[dataset, name], None))
            opened = [stack.enter_context(_Pictures(files.reconstructions[dataset, subject, method])) for subject in subjects]
            shared = set(opened[0].stimulus).intersection(*(one.stimulus for one in opened))
            chosen = sorted(shared or opened[0].stimulus)[:OVERVIEW]
            cells = [[Cell(truth.get("images", stimulus)) for stimulus in chosen]]
            cells += [[Cell(one.sampled(stimulus).picture) for stimulus in chosen] for one in opened]
            cells.append([Cell(opened[0].get("shuffled", stimulus)) for stimulus in chosen])
        roles = ["seen", *(f"{subject}{' (new)' if study.role(dataset, subject) == 'new' else ''}" for subject in subjects), f"shuffled {study.signal}"]
        colours = dict.fromkeys(range(1, len(cells) - 1), results.colours(study)[method]) | {len(cells) - 1: results.CONTROL_COLOUR}
        side = tile_side(len(cells[0][0].picture))  # type: ignore[arg-type]
        drawn = mosaic(cells, roles, [""] * len(chosen), side, row_colours=colours, breaks=(1, len(cells) - 1))
        file = f"overview_{dataset}{'' if name == 'stimuli' else '_' + subjects[0]}.png"
        drawn.save(folder / file)
        label = results.labels(study)[method]
        yield Figure(
            file,
            "overview",
            f"What was seen (top) and what {label} reconstructs from each subject's {study.signal}: the first {len(chosen)} test pictures"
            f"{' that all subjects saw' if len(subjects) > 1 else ''}, in stimulus order, none chosen by hand. "
            f"Bottom: {label} given the {study.signal} of other test pictures ({subjects[0]}).",
            f"{len(chosen)} seen pictures above their reconstructions by {label} from {', '.join(subjects)}, and the control with shuffled {study.signal}",
            dataset=dataset,
        )


def _galleries(study: Study, files: _Files, folder: Path) -> Iterator[Figure]:
    """One figure per subject: chosen stimuli, every method's samples, the shuffled control and the ceiling side by side."""
    labels, colours = results.labels(study), results.colours(study)
    for dataset, subject in track(files.subjects(), "picture grids"):
        stimuli = files.stimuli.get((dataset, study.stimuli(dataset, subject)))
        if stimuli is None:
            continue
        methods = files.methods(dataset, subject)
        leading = methods[0]
        with contextlib.ExitStack() as stack:
            truth = stack.enter_context(_Pictures(stimuli, None))
            opened = {method: stack.enter_context(_Pictures(files.reconstructions[dataset, subject, method])) for method in methods}
            beside = files.controls.get((dataset, study.stimuli(dataset, subject)))
            ceiling = stack.enter_context(_Pictures(beside)) if beside else None
            order = opened[leading].stimulus
            groups, rule = _choice(order, files.metrics.get((dataset, subject, leading)), labels[leading])
            rows = [(label, stimulus) for label, numbers in groups for stimulus in numbers]
            cells = []
            for _, stimulus in rows:
                line = [
                    Cell(truth.get("images", stimulus)),
                    *(opened[method].sampled(stimulus) for method in methods),
                    Cell(opened[leading].get("shuffled", stimulus)),
                ]
                cells.append(line + ([Cell(ceiling.get("embedding_ceiling", stimulus))] if ceiling else []))
        columns = ["seen", *(labels[method] for method in methods), f"shuffled {study.signal}", *(["true embedding"] if beside else [])]
        tints = {number: colours[method] for number, method in enumerate(methods, 1)}
        starts = np.cumsum([0, *(len(numbers) for _, numbers in groups)])[1:-1].tolist()
        side = tile_side(len(cells[0][0].picture))  # type: ignore[arg-type]
        drawn = mosaic(
            cells, [label if number in {0, *starts} else "" for number, (label, _) in enumerate(rows)], columns, side, column_colours=tints, breaks=starts
        )
        file = f"pictures_{dataset}_{subject}.png"
        drawn.save(folder / file)
        samples = f" Small: the method's further samples of the same trial (up to {SMALL})." if any(cell.others for line in cells for cell in line) else ""
        yield Figure(
            file,
            "pictures",
            f"{rule} Large: the sample that agrees best with the method's own prediction; the seen picture plays no part in that choice.{samples} "
            f"Shuffled {study.signal}: {labels[leading]} given the {study.signal} of another test picture."
            + (" True embedding: the decoder given the seen picture's own embedding, the best it could do." if beside else ""),
            f"Grid of {len(rows)} seen pictures of {subject} beside the reconstructions of {', '.join(labels[method] for method in methods)} and the controls",
            title=subject,
            dataset=dataset,
            subject=subject,
        )


def _choice(order: list[int], metrics: Path | None, leading: str) -> tuple[list[tuple[str, list[int]]], str]:
    """((row label, stimuli) per group, the rule in words): best, median and worst by the leading method's scores, then the first in order."""
    first = order[:IN_ORDER]
    rows = read_json(metrics).get("rows", {}).get("reconstruction", {}) if metrics is not None else {}
    per_image = {name: rows[name].get("per_image") for name in RANKING if name in rows}
    found = ranked(per_image, len(order), EACH_RANK)
    if found is None:
        return [("in order", first)], f"The first {len(first)} of {len(order)} test pictures in stimulus order."
    by = next(name for name in per_image if per_image[name] is not None)
    score = f"similarity to the seen picture in the features of {rows[by]['network']}" if by == "similarity" else f"per-picture {results.metric(by).label}"
    each = len(found["best"])
    groups = [(rank, [order[place] for place in places]) for rank, places in found.items()]
    rule = (
        f"The {each} best, median and worst of {len(order)} test pictures by {leading}'s {score}, "
        f"then the first {len(first)} in stimulus order; no picture was chosen by hand."
    )
    return [*groups, ("in order", first)], rule


# --- charts -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """One look for all charts, drawn without a display."""
    import matplotlib

    matplotlib.use("Agg")
    ink, soft = "#1C1E22", "#3A3F46"
    look = {
        "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9AA0A8", "axes.labelcolor": soft, "xtick.color": soft, "ytick.color": soft,
        "text.color": ink, "axes.axisbelow": True, "grid.color": "#E4E6EA", "legend.frameon": False, "figure.dpi": 150, "savefig.facecolor": "white",
    }  # fmt: skip
    with matplotlib.rc_context(look):  # type: ignore[arg-type]
        yield


def _panels(count: int, columns: int, height: float, width: float = 9.6, **options: Any):
    """A figure with `count` panels in rows of `columns`; further ones are removed."""
    import matplotlib.pyplot as plt

    columns = min(columns, count)
    lines = -(-count // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(width, height * lines), squeeze=False, layout="constrained", **options)
    flat = axes.ravel().tolist()
    for axis in flat[count:]:
        axis.remove()
    return figure, flat[:count]


def _save(figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _interval(axis, value: float, low: float, high: float, y: float, **look: Any) -> None:
    """A horizontal 95 % interval; nothing where there is none."""
    if np.isfinite([value, low, high]).all():
        axis.plot([low, high], [y, y], solid_capstyle="butt", **look)


def _scores(study: Study, scores: pd.DataFrame, folder: Path) -> Iterator[Figure]:
    """Bars per metric: methods in their colours, controls in grey, subjects as points with their intervals."""
    from matplotlib.lines import Line2D

    labels, colours, controls = results.labels(study), results.colours(study), results.controls(study)
    for dataset in dict.fromkeys(scores.dataset):
        here = scores[scores.dataset == dataset]
        role = results.main_role(here)
        means = results.over_subjects(here, role)
        names = results.ordered(here.metric)
        methods = [key for key in study.methods if ((here.of == key) & here.control.isna()).any()]
        present = set(here.control.dropna())
        others = [name for name in [*controls, *sorted(present - set(controls))] if name in present and name != "shuffled"]
        lines = [*methods, *others]
        figure, axes = _panels(len(names), 3, 0.55 + 0.29 * len(lines), sharey=True)
        for axis, name in zip(axes, names, strict=True):
            kind, factor = results.metric(name), 100 if results.metric(name).percent else 1
            own = here[here.metric == name]
            for y, line in enumerate(lines):
                method = line in methods
                match = (own.of == line) & own.control.isna() if method else own.control == line
                if not method and own[match].of.notna().any():
                    match &= own.of == methods[0]
                tint = colours[line] if method else results.CONTROL_COLOUR
                mean = means[(means.metric == name) & means.method.isin(own[match].method)]
                if len(mean):
                    bar = mean.iloc[0]
                    axis.barh(y, factor * bar.value, height=0.74, color=tint, alpha=0.9 if method else 0.45, linewidth=0)
                single = results.single(own[match])
                single = single if method else single.drop_duplicates("subject")
                places = y + np.linspace(-0.24, 0.24, len(single)) if len(single) > 1 else [y] * len(single)
                for place, row in zip(places, single.itertuples(), strict=True):
                    new = study.role(dataset, row.subject) == "new" if row.subject in study.datasets[dataset].subjects else False
                    _interval(axis, factor * row.value, factor * row.ci_low, factor * row.ci_high, place, color="#1C1E22", linewidth=0.9)
                    axis.plot(factor * row.value, place, "D" if new else "o", markersize=3.4, color="white", markeredgecolor="#1C1E22", markeredgewidth=0.8)
                shuffled = means[(means.metric == name) & (means.control == "shuffled") & (means.of == line)] if method else means[:0]
                if len(shuffled):
                    axis.plot(factor * shuffled.iloc[0].value, y, "x", markersize=6, color="#1C1E22", markeredgewidth=1.6)
            if kind.chance is not None:
                axis.axvline(factor * kind.chance, color="#1C1E22", linewidth=0.8, linestyle=(0, (3, 3)))
            axis.set_title(f"{kind.label} {'↓' if results.lower_is_better(own) else '↑'}{' (%)' if kind.percent else ''}")
            axis.set_yticks(range(len(lines)), [labels.get(line) or controls.get(line, (line,))[0] for line in lines])
            axis.set_ylim(len(lines) - 0.4, -0.6)
            axis.tick_params(axis="y", length=0)
            axis.xaxis.grid(True)
            axis.locator_params(axis="x", nbins=5)
            if kind.percent:
                axis.set_xlim(0, 102)
        training = [subject for subject in study.datasets[dataset].training_subjects]
        marks = [
            Line2D([], [], marker="o", color="#1C1E22", markerfacecolor="white", markersize=4, linewidth=0.9, label="training subject, 95 % interval"),
            Line2D([], [], marker="D", color="#1C1E22", markerfacecolor="white", markersize=4, linewidth=0.9, label="new subject"),
            Line2D([], [], marker="x", color="#1C1E22", linewidth=0, markersize=6, markeredgewidth=1.6, label=f"same method, shuffled {study.signal}"),
            Line2D([], [], color="#1C1E22", linewidth=0.8, linestyle=(0, (3, 3)), label="chance by definition"),
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=9)
        file = f"scores_{dataset}.png"
        _save(figure, folder / file)
        counted = f"the mean over {len(training)} training subjects" if role == "train" and len(training) > 1 else "the subject's value"
        yield Figure(
            file,
            "results",
            f"Every metric, methods in colour, controls in grey. Bars: {counted}; points: single subjects with 95 % bootstrap intervals over test pictures; "
            f"crosses: the same method given shuffled {study.signal}. An arrow up means higher is better.",
            f"Bar charts of {', '.join(results.metric(name).label for name in names)} for {', '.join(labels[key] for key in methods)} and the controls",
            dataset=dataset,
        )


def _adaptation(study: Study, table: pd.DataFrame, folder: Path) -> Iterator[Figure]:
    """Score against the number of the new subject's trials, one line per method, averaged over new subjects."""
    labels, colours = results.labels_over_budgets(study), results.colours(study)
    for dataset in dict.fromkeys(table.dataset):
        here = _of_new_subjects(table, dataset)
        budgets = results.budgets(here)
        wanted = [*(name for name in ("identification",) if name in set(here.metric)), results.headline(here)]
        wanted += [name for name in ("retrieval_forward", "pixcorr") if name in set(here.metric)]
        names = list(dict.fromkeys(name for name in wanted if name))
        if not names or len(budgets) < 2:
            continue
        figure, axes = _panels(len(names), 2, 3.2, width=min(9.6, 4.2 * len(names) + 1))
        for axis, name in zip(axes, names, strict=True):
            factor = 100 if results.metric(name).percent else 1
            own = here[here.metric == name]
            for number, (method, rows) in enumerate(own.groupby("method", sort=False)):
                key = rows.of.iloc[0]
                look = {"color": colours.get(key, results.PALETTE[-1 - number % 4]), "marker": "o", "markersize": 4, "label": labels.get(method, method)}
                by = rows.groupby("trials")[["value", "ci_low", "ci_high"]].mean().reindex(budgets).mul(factor)
                axis.plot(range(len(budgets)), by.value, **look)
                if rows.subject.nunique() == 1:
                    axis.fill_between(range(len(budgets)), by.ci_low, by.ci_high, color=look["color"], alpha=0.15, linewidth=0)
            if (chance := results.metric(name).chance) is not None:
                axis.axhline(factor * chance, color="#1C1E22", linewidth=0.8, linestyle=(0, (3, 3)))
            axis.set_xticks(range(len(budgets)), budgets)
            _name_axes(axis, name, "trials of the new subject")
        axes[0].legend(fontsize=8)
        file = f"adaptation_{dataset}.png"
        _save(figure, folder / file)
        yield Figure(
            file, "new", "How well a new subject's pictures are reconstructed from how many of its trials, averaged over the new subjects.",
            "Lines of the score against the number of trials per method", dataset=dataset,
        )  # fmt: skip


def _of_new_subjects(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Rows averaged over a data set's new subjects, or of the only one."""
    here = table[(table.dataset == dataset) & (table.role == "new")]
    averaged = here[here.subject == results.AVERAGE["new"]]
    return averaged if len(averaged) else results.single(here)


def _name_axes(axis: Any, name: str, across: str) -> None:
    kind = results.metric(name)
    axis.set_xlabel(across)
    axis.set_title(f"{kind.label}{' (%)' if kind.percent else ''}")
    axis.yaxis.grid(True)


def _training_subjects(study: Study, table: pd.DataFrame, folder: Path) -> Iterator[Figure]:
    """Score of new subjects against the number of subjects that share the model, one line per budget."""
    baselines = study.transfer.baselines if study.transfer else {}
    numbers = {name: method.trained_on.subjects for name, method in baselines.items() if method.trained_on and method.trained_on.trials}
    totals = {method.trained_on.trials for method in baselines.values() if method.trained_on and method.trained_on.trials}
    if len(set(numbers.values())) < 2 or len(totals) != 1:
        return
    for dataset in dict.fromkeys(table.dataset):
        here = _of_new_subjects(table[table.method.isin(list(numbers))], dataset)
        name = "identification" if "identification" in set(here.metric) else results.headline(here)
        if not len(here) or name is None:
            continue
        figure, (axis,) = _panels(1, 1, 3.2, width=5.2)
        own = here[here.metric == name].assign(number=here.method.map(numbers)).sort_values("number")
        factor = 100 if results.metric(name).percent else 1
        budgets = results.budgets(own)
        for place, trials in enumerate(budgets):
            line = own[own.trials == trials]
            values, low, high = (factor * line[column].to_numpy() for column in ("value", "ci_low", "ci_high"))
            look = {"color": results.PALETTE[place % len(results.PALETTE)], "marker": "o", "markersize": 4, "capsize": 3}
            axis.errorbar(line.number, values, [values - low, high - values], label=f"{trials} trials", **look)
        axis.set_xticks(sorted(set(numbers.values())))
        _name_axes(axis, name, f"training subjects, {next(iter(totals))} trials among them")
        axis.legend(title="of the new subject", fontsize=8, title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        file = f"training_subjects_{dataset}.png"
        _save(figure, folder / file)
        yield Figure(
            file, "new", "Whether more training subjects help a new one at an equal total of trials, averaged over new subjects. Bars: 95 % intervals.",
            "Lines of the score against the number of training subjects per budget", dataset=dataset,
        )  # fmt: skip


def _efficiency(study: Study, table: pd.DataFrame, folder: Path) -> Iterator[Figure]:
    """Bars per quantity, grouped by stage, methods in their colours."""
    from matplotlib.patches import Patch

    labels, colours = results.labels(study), results.colours(study)
    keys = {**{label: key for key, label in labels.items()}, **{key: key for key in labels}}
    table = table.assign(key=table.method.map(keys), stage=table.stage.astype(str).str.split("/").str[0]).dropna(subset=["key", "value"])
    names = [name for name in QUANTITIES if name in set(table.quantity)]
    if not names:
        return
    stages = list(dict.fromkeys(table.stage))
    stages.sort(key=results.stage_order)
    lines = [(stage, key) for stage in stages for key in study.methods if ((table.stage == stage) & (table.key == key)).any()]
    figure, axes = _panels(len(names), 3, 0.6 + 0.21 * len(lines), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        own = table[table.quantity == name]
        divisor, unit = UNITS.get(str(own.unit.iloc[0]), (1, "" if pd.isna(own.unit.iloc[0]) else str(own.unit.iloc[0])))
        top, place, ticks = own.value.max() / divisor, 0.0, []
        for stage in stages:
            begun = place
            for key in [key for line, key in lines if line == stage]:
                row = own[(own.stage == stage) & (own.key == key)]
                if len(row):
                    value = row.value.mean() / divisor
                    axis.barh(place, value, height=0.86, color=colours[key], linewidth=0)
                    axis.text(value + 0.015 * top, place, _short(value), va="center", fontsize=7.5)
                place += 1
            ticks.append(((begun + place - 1) / 2, stage))
            place += 0.7
        axis.set_yticks([tick for tick, _ in ticks], [stage for _, stage in ticks])
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelbottom=False, length=0)
        axis.spines["bottom"].set_visible(False)
        axis.set_ylim(place - 1.2, -0.7)
        axis.set_xlim(0, 1.3 * top if top > 0 else 1)
        axis.set_title(f"{QUANTITIES[name]}{f' ({unit})' if unit and unit not in ('count', '1', '1/s') else ''}")
    figure.legend(
        handles=[Patch(color=colours[key], label=labels[key]) for key in study.methods if key in set(table.key)],
        loc="outside lower center",
        ncols=4,
        fontsize=9,
    )
    _save(figure, folder / "efficiency.png")
    yield Figure(
        "efficiency.png", "efficiency", "What each stage of each method costs, measured in this run on this "
"machine; where a method has one model per subject, their mean.",
        "Bar charts of parameters, memory, speed and time per stage and method",
    )  # fmt: skip


def _short(value: float) -> str:
    """A number in at most four characters and a factor's letter."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g}"


def _losses(study: Study, models: Sequence[Path], folder: Path) -> Iterator[Figure]:
    """One figure per method: a panel per trained model, training thin, validation with points, every term on its own."""
    for owner, group in itertools.groupby(results.read_losses(study, models), key=lambda one: one.owner):
        curves = list(group)
        figure, axes = _panels(len(curves), 3, 2.5)
        for axis, one in zip(axes, curves, strict=True):
            _curve(axis, one.rows)
            axis.set_title(one.name)
            axis.set_xlabel("step")
        label = results.labels(study).get(owner, "networks trained in the study")
        file = f"losses_{owner}.png"
        _save(figure, folder / file)
        yield Figure(
            file, "training", f"{label}: training (thin) and validation (points) loss of every trained part, term by term.",
            f"Loss curves of {', '.join(one.name for one in curves)}", title=label,
        )  # fmt: skip


def _curve(axis, table: pd.DataFrame) -> None:
    """Loss terms of one model against steps."""
    import matplotlib

    table = table[np.isfinite(pd.to_numeric(table.value, errors="coerce"))]
    terms = list(dict.fromkeys(table.term.astype(str)))
    tints = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.82, max(len(terms), 1)))
    for term, tint in zip(terms, tints, strict=True):
        own = table[table.term.astype(str) == term]
        train, validation = own[own.split == "train"], own[own.split != "train"]
        axis.plot(train.step, train.value, color=tint, linewidth=0.9, alpha=0.75, label=None if len(validation) else term)
        if len(validation):
            axis.plot(validation.step, validation.value, "o-", color=tint, markersize=3, linewidth=1.4, label=term)
    positive = table.value[table.value > 0]
    if len(positive) == len(table) and len(table) and positive.max() > 20 * positive.min():
        axis.set_yscale("log")
    axis.yaxis.grid(True)
    axis.legend(fontsize=8)


# --- representational similarity --------------------------------------------------------------------------------


def similarity(patterns: np.ndarray) -> np.ndarray:
    """Upper triangle of the representational similarity matrix: Pearson correlation between images' patterns (n_images, n_features)."""
    matrix = np.corrcoef(patterns.astype("float64"))
    return matrix[np.triu_indices(len(matrix), 1)]


def agreement(patterns: Sequence[np.ndarray]) -> np.ndarray:
    """Spearman correlation between subjects' similarity matrices (n_subjects, n_subjects); Kriegeskorte et al. 2008."""
    from scipy.stats import rankdata

    return np.corrcoef([rankdata(similarity(one)) for one in patterns])


def _similarity(study: Study, files: _Files, folder: Path) -> Iterator[Figure]:
    """How alike the subjects' representations of the same test pictures are, in raw responses and in predicted embeddings."""
    labels = results.labels(study)
    for dataset in study.datasets:
        subjects = [subject for name, subject in files.subjects() if name == dataset and (dataset, subject) in files.prepared]
        subjects = [subject for subject in subjects if study.stimuli(dataset, subject) == "stimuli"]
        if len(subjects) < 2:
            continue
        stimuli, predicted = {}, {}
        for (name, subject, method), path in files.reconstructions.items():
            if name == dataset and subject in subjects:
                with h5py.File(path) as file:
                    if "predicted" in file:
                        stimuli[subject] = file["stimulus"][()]
                        predicted[method, subject] = dict(zip(file["stimulus"][()].tolist(), file["predicted"][()], strict=True))
        subjects = [subject for subject in subjects if subject in stimuli]
        shared = sorted(set.intersection(*(set(stimuli[subject].tolist()) for subject in subjects))) if len(subjects) > 1 else []
        if len(shared) < 4:
            continue
        found = [("measured responses", agreement([_responses(files.prepared[dataset, subject], shared) for subject in subjects]))]
        for method in study.methods:
            if all((method, subject) in predicted and set(shared) <= set(predicted[method, subject]) for subject in subjects):
                found.append((labels[method], agreement([np.stack([predicted[method, subject][stimulus] for stimulus in shared]) for subject in subjects])))
        if len(found) < 2:
            continue
        figure, axes = _panels(len(found), 3, 0.9 + 0.5 * len(subjects) if len(subjects) < 6 else 3.6)
        upper = np.triu_indices(len(subjects), 1)
        for axis, (name, matrix) in zip(axes, found, strict=True):
            axis.imshow(np.ma.masked_array(matrix, np.eye(len(subjects), dtype=bool)), vmin=0, vmax=1, cmap="YlGnBu")
            for row, column in np.argwhere(~np.eye(len(subjects), dtype=bool)):
                value = matrix[row, column]
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "#1C1E22")
            axis.set_xticks(range(len(subjects)), subjects, rotation=30, ha="right", fontsize=8.5)
            axis.set_yticks(range(len(subjects)), subjects, fontsize=8.5)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set_title(f"{name}: mean {matrix[upper].mean():.2f}", fontsize=9.5)
        file = f"similarity_{dataset}.png"
        _save(figure, folder / file)
        yield Figure(
            file,
            "alignment",
            f"Do the subjects represent the same {len(shared)} test pictures alike? Spearman "
            f"correlation between two subjects' representational similarity matrices: "
            "of their measured responses (averaged over repeats), and of the embeddings that each method predicts from them.",
            "; ".join(f"{name}: mean agreement between subjects {matrix[upper].mean():.2f}" for name, matrix in found),
            dataset=dataset,
        )


def _responses(path: Path, stimuli: list[int]) -> np.ndarray:
    """Mean test response (n_stimuli, n_voxels) to each stimulus."""
    with PreparedSubject(path) as data:
        known, responses, _ = data.by_picture(data.trials("test")[np.isin(data.stimulus[data.trials("test")], stimuli)])
    missing = np.setdiff1d(stimuli, known)
    if len(missing):
        raise InputError(f"{path}: stimulus {missing[0]} was reconstructed but has no test trial; run reconstruct again")
    return responses[np.searchsorted(known, stimuli), 0]
