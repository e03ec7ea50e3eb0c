"""The stage `report`: one HTML file that tells the whole study to someone who opens nothing else."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import yaml

from unimind import __version__
from unimind.errors import InputError
from unimind.evaluation.rows import read_metrics
from unimind.progress import say
from unimind.report import results
from unimind.report.answer import answer_of, untrained
from unimind.report.decoded import decoded_sections
from unimind.report.generalisation import generalisation_of
from unimind.report.parts import PageSection, Picture, listed
from unimind.report.protocol import model_lines, networks_used, protocols_told, versions
from unimind.report.tables import controls_of, costs_of, data_table, inspected_tables, kept_weights, meanings, new_subjects, results_of
from unimind.storage import read_json, whole_file
from unimind.study import Study, resolved

HEAVY = 400_000  # bytes; larger figures are embedded as WebP
CITATIONS = (
    "Unimind, version {version}: reconstruct seen images from fMRI with one model for many subjects (software).",
    "Sohyung Kim (2025). Cross-subject fMRI Image Reconstruction using Contrastive "
    "Learning. Thesis, Seoul National University. The method this software implements.",
    "Zijiao Chen, Jiaxin Qing, Tiange Xiang, Wan Lin Yue & Juan Helen Zhou (2023). Seeing Beyond "
    "the Brain: Conditional Diffusion Model with Sparse Masked Modeling for Vision Decoding. CVPR. "
    "Masked brain modelling and the double-conditioned latent diffusion model.",
)


def report(
    study: Study, overview: Path, tables: Path, figures: Path, metrics: Sequence[Path], models: Sequence[Path], out: Path, inspected: Sequence[Path] = (),
    generalisation: Sequence[Path] = (),
) -> None:  # fmt: skip
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
        Metrics files or their folders, for the protocol and the metrics that could not be computed.
    models : sequence of paths
        Model folders, for the record of what was trained and of what validation kept.
    generalisation : sequence of paths
        What `generalise` wrote, a file a subject.
    out : path
        The HTML file: pictures, style and numbers in it, no request to anywhere when it is opened.
    inspected : sequence of paths
        What `inspect` found of each subject, for voxels by ROI and trials by session.

    Raises
    ------
    InputError
        A table or JSON file is not what its name says.
    """
    import jinja2

    scores = results.read_scores(study, tables)
    adaptation = results.read_scores(study, tables, "adaptation")
    efficiency = results.read_result_table(tables, "efficiency")
    comparisons = results.read_result_table(tables, "comparisons")
    declared = read_json(tables / "declaration.json") if generalisation else None
    drawn = _drawn(Path(figures))
    read = {f"{one['method']}/{one['dataset']}/{one['subject']}": one for one in read_metrics(metrics).values()}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unimind.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    networks = networks_used(read.values())
    losses = results.read_losses(study, models)
    answer = answer_of(study, scores, comparisons, networks)
    answer.paragraphs += untrained(study, losses)
    html = environment.get_template("report.html").render(
        title=study.title or study.name,
        study=study,
        facts=_facts(study, scores),
        warnings=_warnings(study),
        answer=answer,
        overview=[picture for _, picture in drawn.get("overview", [])],
        pictures=_by_dataset(study, drawn.get("pictures", [])),
        results=results_of(study, scores, comparisons, drawn.get("results", [])),
        controls=controls_of(study, scores),
        metrics=meanings(study, scores, networks),
        generalise=generalisation_of(study, [read_json(path) for path in generalisation], declared, drawn.get("generalise", [])),
        new=new_subjects(study, scores, comparisons, adaptation, drawn.get("new", [])),
        decoded=decoded_sections(study, tables, drawn.get("decoded", [])),
        alignment=[picture for _, picture in drawn.get("alignment", [])],
        efficiency=costs_of(study, efficiency, drawn.get("efficiency", [])),
        training=[picture for _, picture in drawn.get("training", [])],
        kept=kept_weights(study, losses),
        other=[picture for name, pictures in drawn.items() if name not in SECTIONS for _, picture in pictures],
        data=data_table(Path(overview)),
        inspected=inspected_tables(inspected),
        protocol=protocols_told(study, read),
        models=model_lines(models),
        settings=yaml.safe_dump(resolved(study), sort_keys=False, allow_unicode=True, width=100),
        citations=[text.format(version=__version__) for text in CITATIONS],
        versions=versions(),
    )
    with whole_file(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    say(f"report: {out}, {Path(out).stat().st_size / 1e6:.1f} MB")


SECTIONS = ("overview", "pictures", "results", "generalise", "new", "decoded", "alignment", "efficiency", "training")


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


def _by_dataset(study: Study, pictures: Iterable[tuple[str, Picture]]) -> list[PageSection]:
    sections = []
    for dataset in study.datasets:
        here = [picture for name, picture in pictures if name == dataset]
        if here:
            sections.append(PageSection(dataset, pictures=here))
    return sections


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
        if section is not None and section.kind in ("study", "study-clip")
    ]
    found = []
    if simulated:
        found.append(
            f"{'The brains' if len(simulated) == len(study.datasets) else 'The brains of ' + listed(simulated)} are simulated "
            f"and the pictures are drawn: this study shows that the pipeline works, not how well people's brains can be read."
        )
    if trained:
        found.append(
            f"The {listed(trained)} {'was' if len(trained) == 1 else 'were'} trained inside this study; "
            f"numbers measured with {'it' if len(trained) == 1 else 'them'} must never be compared with numbers on NSD or from other networks."
        )
    elif study.foundations.embedding.kind == "squeezenet":
        found.append("SqueezeNet features stand where a CLIP usually does; numbers are not comparable with published CLIP numbers.")
    return found
