"""Figures of pictures: what was seen, beside what every method and control shows."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from unimind.errors import InputError
from unimind.evaluation.measures import measure_of
from unimind.evaluation.rows import read_metrics
from unimind.progress import track
from unimind.report import results
from unimind.report.gallery import RANKING, Tile, best_median_worst, mosaic, tile_side
from unimind.report.results import Figure
from unimind.study import Study

EACH_RANK, IN_ORDER, OVERVIEW, SMALL = 2, 6, 8, 4


@dataclass(frozen=True)
class ReportFiles:
    """The HDF5 files by what they hold, in the study's order."""

    reconstructions: dict[tuple[str, str, str], Path]  # (data set, subject, method); predictions where no picture is drawn
    stimuli: dict[tuple[str, str], Path]  # (data set, stimulus set)
    prepared: dict[tuple[str, str], Path]  # (data set, subject)
    controls: dict[tuple[str, str], Path]  # (data set, stimulus set)
    metrics: dict[tuple[str, str, str], dict]  # (data set, subject, method): contents

    @classmethod
    def at(cls, study: Study, reconstructions, stimuli, prepared, controls, metrics) -> "ReportFiles":
        given = {(path.parent.name, path.stem, path.parent.parent.name): path for path in map(Path, reconstructions)}
        scored = {(one["dataset"], one["subject"], one["method"]): one for one in read_metrics(metrics).values()}
        wanted = [(dataset, subject, method) for dataset, subject in study.pairs() for method in study.methods]
        one, two, three = ({(path.parent.name, path.stem): path for path in map(Path, paths)} for paths in (stimuli, prepared, controls))
        return cls({key: given[key] for key in wanted if key in given}, one, two, three, scored)

    def subjects(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys(key[:2] for key in self.reconstructions))

    def methods(self, dataset: str, subject: str) -> list[str]:
        return [key[2] for key in self.reconstructions if key[:2] == (dataset, subject)]


class PictureFile:
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

    def sampled(self, stimulus: int) -> Tile:
        """The sample shown, and beside it the others of the same stimulus."""
        samples = self.get("samples", stimulus)
        if samples is None:
            return Tile(None)
        chosen = self.get("shown", stimulus)
        shown = 0 if chosen is None else int(chosen)
        others = [sample for number, sample in enumerate(samples) if number != shown]
        return Tile(samples[shown], others[:SMALL])

    def __enter__(self) -> "PictureFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def overviews(study: Study, files: ReportFiles, folder: Path) -> Iterator[Figure]:
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
            truth = stack.enter_context(PictureFile(files.stimuli[dataset, name], None))
            opened = [stack.enter_context(PictureFile(files.reconstructions[dataset, subject, method])) for subject in subjects]
            shared = set(opened[0].stimulus).intersection(*(one.stimulus for one in opened))
            chosen = sorted(shared or opened[0].stimulus)[:OVERVIEW]
            cells = [[Tile(truth.get("images", stimulus)) for stimulus in chosen]]
            cells += [[Tile(one.sampled(stimulus).picture) for stimulus in chosen] for one in opened]
            cells.append([Tile(opened[0].get("shuffled", stimulus)) for stimulus in chosen])
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


def galleries(study: Study, files: ReportFiles, folder: Path) -> Iterator[Figure]:
    """One figure per subject: chosen stimuli, every method's samples, the shuffled control and the ceiling side by side."""
    labels, colours = results.labels(study), results.colours(study)
    for dataset, subject in track(files.subjects(), "picture grids"):
        stimuli = files.stimuli.get((dataset, study.stimuli(dataset, subject)))
        if stimuli is None:
            continue
        methods = files.methods(dataset, subject)
        leading = methods[0]
        with contextlib.ExitStack() as stack:
            truth = stack.enter_context(PictureFile(stimuli, None))
            opened = {method: stack.enter_context(PictureFile(files.reconstructions[dataset, subject, method])) for method in methods}
            beside = files.controls.get((dataset, study.stimuli(dataset, subject)))
            ceiling = stack.enter_context(PictureFile(beside)) if beside else None
            order = opened[leading].stimulus
            groups, rule = _choice(order, files.metrics.get((dataset, subject, leading)), labels[leading])
            rows = [(label, stimulus) for label, numbers in groups for stimulus in numbers]
            cells = []
            for _, stimulus in rows:
                line = [
                    Tile(truth.get("images", stimulus)),
                    *(opened[method].sampled(stimulus) for method in methods),
                    Tile(opened[leading].get("shuffled", stimulus)),
                ]
                cells.append(line + ([Tile(ceiling.get("embedding_ceiling", stimulus))] if ceiling else []))
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
            f"{rule} Large: {results.shown_sample(study)}; the seen picture plays no part in that choice.{samples} "
            f"Shuffled {study.signal}: {labels[leading]} given the {study.signal} of another test picture."
            + (" True embedding: the decoder given the seen picture's own embedding, the best it could do." if beside else ""),
            f"Grid of {len(rows)} seen pictures of {subject} beside the reconstructions of {', '.join(labels[method] for method in methods)} and the controls",
            title=subject,
            dataset=dataset,
            subject=subject,
        )


def _choice(order: list[int], metrics: dict | None, leading: str) -> tuple[list[tuple[str, list[int]]], str]:
    """((row label, stimuli) per group, the rule in words): best, median and worst by the leading method's scores, then the first in order."""
    first = order[:IN_ORDER]
    rows = metrics["rows"].get("reconstruction", {}) if metrics is not None else {}
    per_image = {name: rows[name].get("per_image") for name in RANKING if name in rows}
    found = best_median_worst(per_image, len(order), EACH_RANK)
    if found is None:
        return [("in order", first)], f"The first {len(first)} of {len(order)} test pictures in stimulus order."
    by = next(name for name in per_image if per_image[name] is not None)
    score = f"similarity to the seen picture in the features of {rows[by]['network']}" if by == "similarity" else f"per-picture {measure_of(by).title}"
    each = len(found["best"])
    groups = [(rank, [order[place] for place in places]) for rank, places in found.items()]
    rule = (
        f"The {each} best, median and worst of {len(order)} test pictures by {leading}'s {score}, "
        f"then the first {len(first)} in stimulus order; no picture was chosen by hand."
    )
    return [*groups, ("in order", first)], rule
