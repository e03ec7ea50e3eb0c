"""Stage `score`: every measure of one method's reconstructions of one subject, with its controls and its protocol."""

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from unimind.errors import InputError
from unimind.evaluation import metrics as m
from unimind.evaluation import networks
from unimind.evaluation.controls import OF_THE_SUBJECT, Row, Views, distinct, mean_training_image, of_another_image
from unimind.evaluation.features import panel_of, stored_features
from unimind.evaluation.panel import Measured, Panel, Whole, measure, picture_protocol, warnings
from unimind.evaluation.pictures import Pictures
from unimind.evaluation.statistics import bootstrap
from unimind.storage import content_hash, write_json
from unimind.study import Study

RETRIEVAL = ("retrieval_forward", "retrieval_backward")
POOL, REPEATS = 300, 30
SAMPLES = "samples"  # row of all samples, folded into `reconstruction` before writing


class Made(NamedTuple):
    """How the pictures that are measured were made, as far as it stands in the protocol.

    Attributes
    ----------
    stimulus : int array (n,)
        The test pictures.
    repeats, trials_per_picture : str
        What a method got of each test picture.
    samples : int
        Pictures drawn per test picture.
    choice_of_sample : str
        How the one shown was chosen.
    """

    stimulus: np.ndarray
    repeats: str
    trials_per_picture: str
    samples: int
    choice_of_sample: str


def score(
    study: Study,
    method: str,
    dataset: str,
    subject: str,
    reconstruction: Path,
    controls: Path,
    features: Path,
    stimuli: Path,
    prepared: Path,
    embeddings: Path,
    embedding: Path,
    classifier: Path | None,
    out: Path,
) -> None:
    """Write the metrics file of one subject and method.

    Raises
    ------
    InputError
        When the files do not belong together (other pictures, other sizes).
    """
    section = study.evaluation
    panel = panel_of(study, embedding, classifier)
    with ExitStack() as files:
        made, rows, predicted, attributes, absent_rows = _rows(files, reconstruction, controls, stimuli, prepared, study.seed)
        stimulus = made.stimulus
        if not study.leads(method):  # rows that are the same for all methods of a protocol are measured once
            rows = {name: row for name, row in rows.items() if name not in OF_THE_SUBJECT}
        pictures, index = distinct(rows)
        seen = files.enter_context(h5py.File(stimuli))["images"]
        row = Row(seen, _known(seen, stimulus))
        truths = Views([(row, number) for number in range(len(stimulus))])
        known = partial(stored_features, features, stimulus)
        measured = measure(panel, Pictures(truths), Pictures(pictures), index, section.batch_size, known)
    with h5py.File(embeddings) as file:
        true_embeddings = rows_at(file["embedding"], stimulus)
        with h5py.File(prepared) as trials_file:
            split, shown = trials_file["split"][:], trials_file["stimulus"][:]
        training = rows_at(file["embedding"], np.unique(shown[split == 0]))
    absent = dict(panel.absent)
    absent |= embedding_measures(section.metrics, measured, true_embeddings, predicted, training, embedding, study.seed)
    trials = int(attributes.get("trials", (split == 0).sum()))
    protocol, tested = protocol_of(study, dataset, subject, panel, embedding, stimuli, made)
    averaged = measured.pop(SAMPLES, {})
    table = summarise(measured, section.metrics, section.bootstrap, study.seed, averaged)
    for name, entry in summarise(measured, ["similarity"], section.bootstrap, study.seed)["reconstruction"].items():
        table["reconstruction"][name] = {**entry, "network": protocol["networks"][panel.similarity]["network"]}
    notes = warnings(measured["reconstruction"], len(stimulus))
    if made.samples > 1 and not predicted:
        notes.append(f"{method} predicts no image embedding: the first of its {made.samples} samples is shown")
    content = {
        "study": study.name,
        "method": method,
        "dataset": dataset,
        "subject": subject,
        "role": study.role(dataset, subject),
        "trials": trials,
        "stimulus": stimulus.tolist(),
        "sampling": {key: value if isinstance(value, str) else float(value) for key, value in attributes.items() if np.ndim(value) == 0},
        "protocol": protocol,
        "tested": tested,
        "rows": table,
        "absent": absent,
        "absent_rows": absent_rows,
        "warnings": notes,
    }
    write_json(out, content)


def rows_at(values: Any, index: np.ndarray) -> np.ndarray:
    """Rows of an HDF5 data set in any order."""
    wanted, back = np.unique(_known(values, index), return_inverse=True)
    return values[wanted][back]


def _known(values: Any, index: np.ndarray) -> np.ndarray:
    """The index; InputError where it reaches beyond an HDF5 data set."""
    if len(index) and index.max() >= len(values):
        raise InputError(f"{values.file.filename}: has {len(values)} entries, but stimulus {index.max()} is asked for; these files do not belong together")
    return index


def _rows(
    files: ExitStack, reconstruction: Path, controls: Path, stimuli: Path, prepared: Path, seed: int
) -> tuple[Made, dict[str, Row], dict[str, np.ndarray], dict[str, Any], dict[str, str]]:
    """How the pictures were made, pictures of every row, predicted embeddings, the reconstruction file's attributes, reasons for absent rows.

    The pictures stay in their files, which `files` holds open.
    """
    file, images, drawn = (files.enter_context(h5py.File(path)) for path in (reconstruction, stimuli, controls))
    stimulus = file["stimulus"][:].astype(int)
    if not len(stimulus):
        raise InputError(f"{reconstruction}: holds no reconstruction; run the reconstruct stage again")
    n, samples = file["samples"].shape[:2]
    every = np.arange(n * samples).reshape(n, samples)
    shown = every[np.arange(n), file["shown"][:].astype(int)]
    rows = {"reconstruction": Row(file["samples"], shown), "shuffled": Row(file["shuffled"], np.arange(n))}
    predicted = {row: file[key][:] for row, key in (("reconstruction", "predicted"), ("shuffled", "predicted_shuffled")) if key in file}
    attributes = dict(file.attrs)
    made = Made(stimulus, attributes["repeats"], attributes["trials_per_picture"], samples, attributes["choice"])
    if n > 1:
        rows["chance"] = Row(file["samples"], of_another_image(shown, seed))
        if "reconstruction" in predicted:
            predicted["chance"] = of_another_image(predicted["reconstruction"], seed)
    if "predicted_train_nearest" in file:
        rows["nearest-training-image"] = Row(images["images"], _known(images["images"], file["predicted_train_nearest"][:]))
    rows["mean-training-image"] = Row(mean_training_image(stimuli, prepared)[None], np.zeros(n, int))
    known = {int(s): i for i, s in enumerate(drawn["stimulus"][:])}
    missing = [s for s in stimulus.tolist() if s not in known]
    if missing:
        raise InputError(f"{controls}: has no controls for stimulus {missing[0]}; run the reconstruct-controls stage again with {stimuli}")
    place = np.array([known[s] for s in stimulus.tolist()])
    for row in OF_THE_SUBJECT[1:]:
        if row.replace("-", "_") in drawn:
            rows[row] = Row(drawn[row.replace("-", "_")], place)
    absent = json.loads(drawn.attrs["absent"])
    if "embedding-ceiling" in rows and (count := int(drawn.attrs["samples"])) != samples:
        del rows["embedding-ceiling"]
        absent["embedding-ceiling"] = f"the picture is the best of {count} samples, with which methods that have {samples} do not compare"
    if samples > 1:
        rows[SAMPLES] = Row(file["samples"], every)
    if len({row.size for row in rows.values()}) > 1:
        shown_sizes = ", ".join(f"{name} {row.size[0]} x {row.size[1]}" for name, row in rows.items())
        raise InputError(f"{reconstruction}: pictures of different sizes ({shown_sizes}); run the stages of one picture_size again")
    return made, rows, predicted, attributes, absent


def embedding_measures(
    wanted: list[str], measured: Measured, truth: np.ndarray, predicted: dict[str, np.ndarray], training: np.ndarray, embedding: Path, seed: int
) -> dict[str, str]:
    """Identification and retrieval by the encoder's own embedding, written into `measured`; reasons for what is absent.

    For identification every dimension is standardised by the subject's training images (n, d), never by test images:
    embeddings of all images share most of their direction, and raw correlations say little.
    """
    import torch

    absent = {}
    names = [name for name in ("identification", *RETRIEVAL) if name in wanted]
    if not predicted:
        return dict.fromkeys(names, "the method predicts no image embedding")
    if next(iter(predicted.values())).shape[1:] != truth.shape[1:]:
        return dict.fromkeys(names, "the method's embedding is not the image embedding's space")
    clip = networks.embedding_kind(embedding) in networks.CONTRASTIVE
    if not clip:
        absent = {
            name: f"retrieval is defined in CLIP's space; the study's image embedding is {networks.foundation_name(embedding)}"
            for name in names
            if name in RETRIEVAL
        }
    mean, deviation = training.mean(0), training.std(0).clip(1e-6)
    standard = torch.from_numpy((truth - mean) / deviation)
    for row, values in predicted.items():
        if "identification" in names:
            measured[row]["identification"] = m.two_way(m.correlations(standard, torch.from_numpy((values - mean) / deviation)))
        if clip:
            both = dict(zip(RETRIEVAL, m.retrieval(truth, values, POOL, REPEATS, seed), strict=True))
            measured[row].update({name: both[name] for name in names if name in both})
    return absent


def summarise(measured: Measured, wanted: list[str], resamples: int, seed: int, samples: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Value and 95 % interval of every measure in every row, in the order of `wanted`, as plain JSON types.

    A measure per image has a percentile bootstrap over images; Inception Score its mean +- 1.96 standard errors over its
    parts; FID no interval. `samples` are measures of all samples (n, k): averaged within each stimulus, they
    give `samples_mean` of the row `reconstruction`.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row, values in measured.items():
        rows[row] = {}
        for name in (name for name in wanted if name in values):
            value = values[name]
            if isinstance(value, Whole):
                error = value.standard_error
                ends = (None, None) if error is None else (value.value - 1.96 * error, value.value + 1.96 * error)
                rows[row][name] = {"value": value.value, "ci_low": ends[0], "ci_high": ends[1], "n": None, "per_image": None}
                if error is not None:
                    rows[row][name]["standard_error"] = error
                continue
            known = np.isfinite(value)
            if not known.any():
                continue
            low, high = bootstrap(value[known], resamples, seed)
            rows[row][name] = {
                "value": float(value[known].mean()), "ci_low": float(low), "ci_high": float(high), "n": int(known.sum()),
                "per_image": [round(float(v), 7) if np.isfinite(v) else None for v in value],
            }  # fmt: skip
            if row == "reconstruction" and samples and name in samples:
                rows[row][name]["samples_mean"] = float(np.nanmean(samples[name].mean(1)))
    return rows


def protocol_of(study: Study, dataset: str, subject: str, panel: Panel, embedding: Path, stimuli: Path, made: Made) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was computed, on what, with what.

    Returns
    -------
    protocol : dict
        `id` is the hash of all the rest.
    tested : dict
        Number and hash of the test pictures, trials of each, and how many pictures retrieval chooses from. They are part of
        the protocol, too, unless every subject has pictures of its own: then no two subjects could share one.
    """
    pictures = np.unique(made.stimulus)
    with h5py.File(stimuli) as file:
        pixels = sorted(value.decode() for value in rows_at(file["sha256"], pictures))
    tested = {
        "pictures": len(pictures), "hash": content_hash(pixels), "trials_per_picture": made.trials_per_picture, "retrieval_pool": min(POOL, len(pictures)),
    }  # fmt: skip
    section = study.datasets[dataset]
    data = section.model_dump(mode="json", exclude={"training_subjects", "new_subjects", "root"})
    if section.source == "simulated":
        data |= {"study_seed": study.seed}
    content = {
        "dataset": dataset,
        "data": data,
        "split": "test: pictures never trained on",
        "tested": tested if study.stimuli(dataset, subject) == "stimuli" else "every subject's own pictures",
        "sessions": data.get("sessions", "all"),
        "repeats": made.repeats,
        "beta_version": data.get("betas", "-"),
        "image_size": study.picture_size,
        "pictures": picture_protocol(),
        "networks": panel.protocol(),
        "image_embedding": {"network": networks.foundation_name(embedding), "sha256": networks.model_hash(embedding)},
        "identification": "embedding dimensions standardised by the subject's training images",
        "retrieval": {"pool": f"at most {POOL}", "repeats": REPEATS, "top": 1},
        "samples_per_stimulus": made.samples,
        "choice_of_sample": made.choice_of_sample,
    }
    return {"id": content_hash(content)[:8], **content}, tested
