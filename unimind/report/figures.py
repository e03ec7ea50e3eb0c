"""The stage `figures`: everything the report shows that is not text, as PNG files, with `captions.json` beside them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from unimind.progress import say
from unimind.report import results
from unimind.report.charts import budget_curves, cost_bars, loss_curves, score_bars, style, subject_curves
from unimind.report.decoded import without_truth
from unimind.report.generalisation import bottleneck_curves, distance_curves, nearest_pairs, recovered_shapes
from unimind.report.pictures import ReportFiles, galleries, overviews
from unimind.report.similarity import similarities
from unimind.storage import read_json, whole_directory, write_json
from unimind.study import Study


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
    generalisation: Sequence[Path] = (),
    decoded: Sequence[Path] = (),
    candidates: Sequence[Path] = (),
) -> None:
    """Draw every figure that the inputs have data for.

    Parameters
    ----------
    tables : path
        Folder with `reconstruction.csv` and, where there are any, `efficiency.csv` and `adaptation.csv`.
    models : sequence of paths
        Model folders; those with a `losses.csv` get loss curves.
    reconstructions, stimuli, prepared, controls : sequences of paths
        HDF5 files as `docs/architecture.md` describes them, at the places it names (method, data set and subject are read off the path); for
        reconstructions, predictions where no picture is drawn.
    metrics : sequence of paths
        Metrics files or their folders, by which pictures are ranked; without a subject's, its pictures come in stimulus order.
    generalisation : sequence of paths
        What `generalise` wrote, a file a subject.
    out : path
        Folder written: PNG files and `captions.json`, a list of `Figure`.

    decoded, candidates : sequences of paths
        What `decode` wrote of further sets of trials, and the pictures of `candidates`.

    Raises
    ------
    InputError
        A file lacks what its place promises.
    """
    scores = results.read_scores(study, tables)
    adaptation = results.read_scores(study, tables, "adaptation")
    efficiency = results.read_result_table(tables, "efficiency")
    files = ReportFiles.at(study, reconstructions, stimuli, prepared, controls, metrics)
    checks = [read_json(path) for path in generalisation]
    with whole_directory(out) as folder, style():
        drawn = [
            *(overviews(study, files, folder) if study.draws else ()),
            *(galleries(study, files, folder) if study.draws else ()),
            *without_truth(study, decoded, files.stimuli, candidates, folder),
            *(score_bars(study, scores, folder) if scores is not None else ()),
            *(budget_curves(study, adaptation, folder) if adaptation is not None else ()),
            *(subject_curves(study, adaptation, folder) if adaptation is not None else ()),
            *nearest_pairs(study, checks, files, folder),
            *distance_curves(study, checks, folder),
            *bottleneck_curves(study, checks, folder),
            *(recovered_shapes(study, files, folder) if checks else ()),
            *similarities(study, files, folder),
            *(cost_bars(study, efficiency, folder) if efficiency is not None else ()),
            *loss_curves(study, models, folder),
        ]
        write_json(folder / "captions.json", [asdict(figure) for figure in drawn])
    say(f"{len(drawn)} figures in {out}")
