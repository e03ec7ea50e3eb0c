"""Trials without truth on the page: what every method makes of them, the candidates they are most like, and numbers where labels name a picture."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import pandas as pd

from unimind.evaluation.decoding import AMONG_CANDIDATES, metrics_in, shown_value, title_of
from unimind.evaluation.measures import MEASURES
from unimind.report import results
from unimind.report.gallery import Tile, mosaic, tile_side
from unimind.report.parts import Entry, Line, LineGroup, PageSection, PageTable, Picture
from unimind.report.results import Figure
from unimind.study import Study

#: Rows of a figure and of the list of trials, candidates of each shown, and further samples beside a picture.
ROWS, LISTED, BEST, SMALL = 12, 50, 5, 4


def without_truth(
    study: Study, decoded: Sequence[Path], stimuli: dict[tuple[str, str], Path], candidates: Sequence[Path], folder: Path
) -> Iterator[Figure]:  # fmt: skip
    """One figure per subject and set: the first groups of trials of every condition, all methods' pictures, and the candidates the first method finds."""
    given = {(path.parent.name, path.name, path.parent.parent.name): path for path in map(Path, decoded)}
    own = {path.stem: path for path in map(Path, candidates)}
    labels, colours = results.labels(study), results.colours(study)
    for one in study.further():
        dataset, subject, further = one["dataset"], one["subject"], one["further"]
        files = {method: given[key] for method in study.decoders(further) if (key := (dataset, f"{subject}.{further}.h5", method)) in given}
        name = study.candidates(further, subject)
        pool = own.get(name) if name else stimuli.get((dataset, study.stimuli(dataset, subject)))
        if not files or pool is None:
            continue
        with contextlib.ExitStack() as stack:
            opened = {method: stack.enter_context(h5py.File(path)) for method, path in files.items()}
            pictures = stack.enter_context(h5py.File(pool))["images"]
            lead = next(iter(opened.values()))
            condition, label, imagined = lead["condition"].asstr()[:], lead["label"].asstr()[:], lead["imagined"][:]
            chosen = _spread(condition.tolist())
            called = bool((imagined[chosen] >= 0).any())
            cells = []
            for row in chosen:
                first = [Tile(pictures[imagined[row]] if imagined[row] >= 0 else None)] if called else []
                found = [Tile(pictures[index]) for index in lead["candidate"][row][:BEST].tolist()]
                cells.append([*first, *(_sampled(file, row) for file in opened.values()), *found])
        rows = [" ".join(word for word in (condition[row], label[row] or f"trial {row + 1}") if word) for row in chosen]
        best = [f"candidate {rank}" for rank in range(1, 1 + max(0, len(cells[0]) - len(files) - called))]
        columns = [*(["named by the label"] if called else []), *(labels[method] for method in files), *best]
        tints = {number: colours[method] for number, method in enumerate(files, int(called))}
        drawn = mosaic(cells, rows, columns, tile_side(next(tile.picture for tile in cells[0] if tile.picture is not None).shape[0]), column_colours=tints)
        file = f"decoded_{dataset}_{subject}_{further}.png"
        drawn.save(folder / file)
        leading = labels[next(iter(files))]
        known = "Left: the picture that the label names; decoding did not see it. " if called else "There is no truth to show beside them. "
        yield Figure(
            file,
            "decoded",
            f"No truth is known of these trials: the first {len(chosen)} of {len(label)} that were decoded, in their order, none chosen by hand. {known}"
            f"Large: {results.shown_sample(study)}; right: the candidates most like what {leading} predicts, best first.",
            f"Grid of {len(chosen)} groups of trials of {subject}, set {further}: pictures by {', '.join(labels[method] for method in files)}, and candidates",
            title=further,
            dataset=dataset,
            subject=subject,
        )


def _spread(condition: list[str]) -> list[int]:
    """The first rows of every condition, as many of each, at most `ROWS` in all, in their order."""
    words = list(dict.fromkeys(condition))
    each = max(1, ROWS // len(words))
    return sorted(row for word in words[:ROWS] for row in [at for at, one in enumerate(condition) if one == word][:each])


def _sampled(file: h5py.File, row: int) -> Tile:
    samples, chosen = file["samples"][row], int(file["shown"][row])
    others = [sample for number, sample in enumerate(samples) if number != chosen]
    return Tile(samples[chosen], others[:SMALL] if file.attrs.get("strength", 1) else ())


def decoded_sections(study: Study, tables: Path, pictures: Sequence[tuple[str, Picture]]) -> list[PageSection]:
    """A section per subject and set."""
    if not study.decode:
        return []
    scores, trials = results.read_result_table(tables, "decoding"), results.read_result_table(tables, "decoded_trials")
    labels, sections = results.labels(study), []
    for one in study.further():
        dataset, subject, further = one["dataset"], one["subject"], one["further"]
        section = PageSection(f"{further}: {subject} ({dataset})")
        section.pictures = [picture for name, picture in pictures if (name, picture.subject, picture.title) == (dataset, subject, further)]
        if scores is not None and len(rows := _of(scores, dataset, subject, further)):
            section.tables.append(_scores(rows, labels))
        else:
            section.notes.append("No label of this set names a candidate: there is nothing to compare with, and no number on this page says that it worked.")
        if trials is not None and len(rows := _of(trials, dataset, subject, further)):
            section.folded.append(_listed(rows, labels))
        sections.append(section)
    return sections


def _of(table: pd.DataFrame, dataset: str, subject: str, further: str) -> pd.DataFrame:
    return table[(table.dataset == dataset) & (table.subject.astype(str) == subject) & (table.set == further)]


def _scores(rows: pd.DataFrame, labels: dict[str, str]) -> PageTable:
    metrics = metrics_in(rows.metric)
    meaning = {name: AMONG_CANDIDATES[name][1] if name in AMONG_CANDIDATES else MEASURES[name].meaning for name in metrics}
    blocks = []
    for condition, of_condition in rows.groupby("condition", sort=False):
        lines = []
        for method, of_method in of_condition.groupby("method", sort=False):
            name = str(method).removeprefix("chance:")
            entries = {row.metric: _entry(row) for row in of_method.itertuples()}
            label = labels.get(name, name) if name == method else f"chance: {labels.get(name, name)}"
            first = next(of_method.itertuples())
            note = f"{first.pictures} pictures, {first.trials} trials" if name == method else ""
            lines.append(Line(label, [entries.get(metric) for metric in metrics], note=note))
        blocks.append(LineGroup(lines, str(condition)))
    pool = int(rows.pool.iloc[0])
    caption = (
        f"Brackets: 95 % bootstrap intervals over pictures. Among {pool} candidates; by chance: 95 % of permutations of the pictures' labels, p of the same. "
        "Chance: the picture of another group of trials."
    )
    return PageTable("Where labels name a picture", "", [(title_of(name), meaning[name]) for name in metrics], blocks, caption)


def _entry(row) -> Entry:
    interval = "" if pd.isna(row.ci_low) else f"{shown_value(row.metric, row.ci_low)}, {shown_value(row.metric, row.ci_high)}"
    text = shown_value(row.metric, row.value)
    words = f"{title_of(row.metric)}: {row.value:.6g}"
    if not pd.isna(row.p):
        text += f" (by chance {shown_value(row.metric, row.null_low)} to {shown_value(row.metric, row.null_high)}, p = {row.p:.4f})"
        words += f", p = {row.p:.4f}"
    return Entry(text, interval, f"{row.value:.6g}", words)


def _listed(rows: pd.DataFrame, labels: dict[str, str]) -> PageTable:
    """The groups of trials by the first method, with their most similar candidates and how sure the method is."""
    method = str(rows.method.iloc[0])
    here = rows[rows.method == method]
    every = here.groupby((here["rank"] == 1).cumsum(), sort=False)
    lines = []
    for number, (_, group) in enumerate(every):
        if number == LISTED:
            break
        first = next(group.itertuples())
        best = [Entry(f"{row.candidate} {row.similarity:.2f}", exact=f"{row.similarity:.6g}", words=row.candidate) for row in group.head(BEST).itertuples()]
        sure = [None if pd.isna(value) else Entry(f"{value:.2f}", exact=f"{value:.6g}") for value in (first.sample_agreement, first.trial_agreement)]
        called = " ".join(str(word) for word in (first.condition, first.label) if not pd.isna(word)) or f"trial {number + 1}"
        lines.append(Line(called, [*sure, *best], note=f"{first.trials} trials"))
    heads = [("samples agree", "mean agreement of the pictures' samples"), ("trials agree", "mean agreement of what single trials predict")]
    heads += [(f"candidate {rank}", "name and agreement with what was predicted") for rank in range(1, 1 + min(BEST, int(here["rank"].max())))]
    caption = f"By {labels[method]}. Agreement: cosine of image embeddings less the training pictures' mean; all {len(every)} stand in decoded_trials.csv."
    return PageTable(f"Candidates of {min(LISTED, len(every))} of {len(every)} groups of trials", "", heads, [LineGroup(lines)], caption)
