"""Charts: scores, budgets, costs and losses."""

import contextlib
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unimind.evaluation.efficiency import QUANTITIES
from unimind.evaluation.measures import measure_of, ordered
from unimind.evaluation.rows import AVERAGES
from unimind.report import results
from unimind.report.results import Figure
from unimind.study import Study

#: Letters of a title above one of three panels beside each other, before it meets the next one's.
TITLE_WIDTH = 26


@contextlib.contextmanager
def style() -> Iterator[None]:
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


def panels(count: int, columns: int, height: float, width: float = 9.6, **options: Any):
    """A figure with `count` panels in rows of `columns`; further ones are removed."""
    import matplotlib.pyplot as plt

    columns = min(columns, count)
    lines = -(-count // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(width, height * lines), squeeze=False, layout="constrained", **options)
    flat = axes.ravel().tolist()
    for axis in flat[count:]:
        axis.remove()
    return figure, flat[:count]


def save(figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def draw_interval(axis, value: float, low: float, high: float, y: float, **look: Any) -> None:
    """A horizontal 95 % interval; nothing where there is none."""
    if np.isfinite([value, low, high]).all():
        axis.plot([low, high], [y, y], solid_capstyle="butt", **look)


def score_bars(study: Study, scores: pd.DataFrame, folder: Path) -> Iterator[Figure]:
    """Bars per metric: methods in their colours, controls in grey, subjects as points with their intervals."""
    from matplotlib.lines import Line2D

    labels, colours, controls = results.labels(study), results.colours(study), results.explained_controls(study)
    for dataset in dict.fromkeys(scores.dataset):
        here = scores[scores.dataset == dataset]
        role = results.main_role(here)
        means = results.over_subjects(here, role)
        names = ordered(here.metric)
        methods = [key for key in study.methods if ((here.of == key) & here.control.isna()).any()]
        present = set(here.control.dropna())
        others = [name for name in [*controls, *sorted(present - set(controls))] if name in present and name not in ("shuffled", results.BODY_REMOVED)]
        lines = [*methods, *others]
        figure, axes = panels(len(names), 3, 0.55 + 0.29 * len(lines), sharey=True)
        for axis, name in zip(axes, names, strict=True):
            kind, factor = measure_of(name), 100 if measure_of(name).percent else 1
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
                    draw_interval(axis, factor * row.value, factor * row.ci_low, factor * row.ci_high, place, color="#1C1E22", linewidth=0.9)
                    axis.plot(factor * row.value, place, "D" if new else "o", markersize=3.4, color="white", markeredgecolor="#1C1E22", markeredgewidth=0.8)
                shuffled = means[(means.metric == name) & (means.control == "shuffled") & (means.of == line)] if method else means[:0]
                if len(shuffled):
                    axis.plot(factor * shuffled.iloc[0].value, y, "x", markersize=6, color="#1C1E22", markeredgewidth=1.6)
            if kind.chance is not None:
                axis.axvline(factor * kind.chance, color="#1C1E22", linewidth=0.8, linestyle=(0, (3, 3)))
            title = f"{kind.title} {'↓' if kind.better == 'lower' else '↑'}{' (%)' if kind.percent else ''}"
            axis.set_title(textwrap.fill(title, TITLE_WIDTH))
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
        save(figure, folder / file)
        counted = f"the mean over {len(training)} training subjects" if role == "train" and len(training) > 1 else "the subject's value"
        yield Figure(
            file,
            "results",
            f"Every metric, methods in colour, controls in grey. Bars: {counted}; points: single subjects with 95 % bootstrap intervals over test pictures; "
            f"crosses: the same method given shuffled {study.signal}. An arrow up means higher is better.",
            f"Bar charts of {', '.join(measure_of(name).title for name in names)} for {', '.join(labels[key] for key in methods)} and the controls",
            dataset=dataset,
        )


def budget_curves(study: Study, table: pd.DataFrame, folder: Path) -> Iterator[Figure]:
    """Score against the number of the new subject's trials, one line per method, averaged over new subjects."""
    labels, colours = results.labels_over_budgets(study), results.colours(study)
    for dataset in dict.fromkeys(table.dataset):
        here = _of_new_subjects(table, dataset)
        budgets = results.budgets(here)
        wanted = [*(name for name in ("identification",) if name in set(here.metric)), results.headline_of(study, here)]
        wanted += [name for name in ("retrieval_forward", "pixcorr") if name in set(here.metric)]
        names = list(dict.fromkeys(name for name in wanted if name))
        if not names or len(budgets) < 2:
            continue
        figure, axes = panels(len(names), 2, 3.2, width=min(9.6, 4.2 * len(names) + 1))
        for axis, name in zip(axes, names, strict=True):
            factor = 100 if measure_of(name).percent else 1
            own = here[here.metric == name]
            for number, (method, rows) in enumerate(own.groupby("method", sort=False)):
                key = rows.of.iloc[0]
                look = {"color": colours.get(key, results.PALETTE[-1 - number % 4]), "marker": "o", "markersize": 4, "label": labels.get(method, method)}
                by = rows.groupby("trials")[["value", "ci_low", "ci_high"]].mean().reindex(budgets).mul(factor)
                axis.plot(range(len(budgets)), by.value, **look)
                if rows.subject.nunique() == 1:
                    axis.fill_between(range(len(budgets)), by.ci_low, by.ci_high, color=look["color"], alpha=0.15, linewidth=0)
            if (chance := measure_of(name).chance) is not None:
                axis.axhline(factor * chance, color="#1C1E22", linewidth=0.8, linestyle=(0, (3, 3)))
            axis.set_xticks(range(len(budgets)), budgets)
            _name_axes(axis, name, "trials of the new subject")
        axes[0].legend(fontsize=8)
        file = f"adaptation_{dataset}.png"
        save(figure, folder / file)
        yield Figure(
            file, "new", f"How well a new subject's pictures are {'reconstructed' if study.draws else 'told apart'} from how many of its trials{_over(here)}.",
            "Lines of the score against the number of trials per method", dataset=dataset,
        )  # fmt: skip


def _of_new_subjects(table: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Rows averaged over a data set's new subjects, or of the only one."""
    here = table[(table.dataset == dataset) & (table.role == "new")]
    averaged = here[here.subject == AVERAGES["new"]]
    return averaged if len(averaged) else results.single(here)


def _over(here: pd.DataFrame) -> str:
    """Whose values a figure of new subjects shows."""
    names = list(dict.fromkeys(here.subject))
    return ", averaged over the new subjects" if names[0] == AVERAGES["new"] or len(names) > 1 else f" ({names[0]})"


def _name_axes(axis: Any, name: str, across: str) -> None:
    kind = measure_of(name)
    axis.set_xlabel(across)
    axis.set_title(f"{kind.title}{' (%)' if kind.percent else ''}")
    axis.yaxis.grid(True)


def subject_curves(study: Study, table: pd.DataFrame, folder: Path) -> Iterator[Figure]:
    """Score of new subjects against the number of subjects that share the model, one line per budget."""
    baselines = study.transfer.baselines if study.transfer else {}
    numbers = {name: method.trained_on.subjects for name, method in baselines.items() if method.trained_on and method.trained_on.trials}
    totals = {method.trained_on.trials for method in baselines.values() if method.trained_on and method.trained_on.trials}
    if len(set(numbers.values())) < 2 or len(totals) != 1:
        return
    for dataset in dict.fromkeys(table.dataset):
        here = _of_new_subjects(table[table.method.isin(list(numbers))], dataset)
        name = "identification" if "identification" in set(here.metric) else results.headline_of(study, here)
        if not len(here) or name is None:
            continue
        figure, (axis,) = panels(1, 1, 3.2, width=5.2)
        own = here[here.metric == name].assign(number=here.method.map(numbers)).sort_values("number")
        factor = 100 if measure_of(name).percent else 1
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
        save(figure, folder / file)
        yield Figure(
            file, "new", f"Whether more training subjects help a new one at an equal total of trials{_over(here)}. Bars: 95 % intervals.",
            "Lines of the score against the number of training subjects per budget", dataset=dataset,
        )  # fmt: skip


def cost_bars(study: Study, table: pd.DataFrame, folder: Path) -> Iterator[Figure]:
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
    figure, axes = panels(len(names), 3, 0.6 + 0.21 * len(lines), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        own = table[table.quantity == name]
        divisor = QUANTITIES[name].divisor
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
        axis.set_title(QUANTITIES[name].heading)
    figure.legend(
        handles=[Patch(color=colours[key], label=labels[key]) for key in study.methods if key in set(table.key)],
        loc="outside lower center",
        ncols=4,
        fontsize=9,
    )
    save(figure, folder / "efficiency.png")
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


def loss_curves(study: Study, models: Sequence[Path], folder: Path) -> Iterator[Figure]:
    """One figure per method: a panel per trained model, training thin, validation with points, every term on its own."""
    for owner, group in itertools.groupby(results.read_losses(study, models), key=lambda one: one.owner):
        curves = list(group)
        figure, axes = panels(len(curves), 3, 2.5)
        for axis, one in zip(axes, curves, strict=True):
            _curve(axis, one.rows)
            axis.set_title(one.name)
            axis.set_xlabel("step")
        label = results.labels(study).get(owner, "networks trained in the study")
        file = f"losses_{owner}.png"
        save(figure, folder / file)
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
