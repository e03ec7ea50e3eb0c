"""Stage `score`: every measure of all methods' reconstructions of one subject, with their controls and protocols."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from unimind.blocks import Blocks
from unimind.data.hdf5 import read_rows
from unimind.errors import InputError
from unimind.evaluation import metrics as m
from unimind.evaluation import networks
from unimind.evaluation.controls import OF_THE_SUBJECT, ROWS, mean_training_image, of_another_image
from unimind.evaluation.features import panel_of, stored_features
from unimind.evaluation.measures import MEASURES, of_kind
from unimind.evaluation.panel import Measured, Panel, Whole, measured_in, picture_protocol, warnings
from unimind.evaluation.pictures import Joined, PictureSet
from unimind.evaluation.statistics import bootstrap
from unimind.reconstruction.decoder import Prediction
from unimind.reconstruction.tested import FIRST
from unimind.storage import content_hash, whole_directory, write_json
from unimind.study import Study
from unimind.training.checkpoint import fingerprint

POOL, REPEATS = 300, 30
#: Standard deviation of a dimension of the (normalised) image embedding that training pictures do not tell from a constant.
LEAST = 1e-6
#: Rows of which a method predicts an image embedding, and how the names end that it has in a reconstruction file.
PREDICTED = {"reconstruction": "", "body-removed": "_without_body", "shuffled": "_shuffled"}
#: Keys of a data set that say who takes part, where files lie and in which form: no part of what was measured.
WHO_WHERE_AND_FORM = frozenset({
    "training_subjects", "new_subjects", "require_signal", "root", "derivatives", "form", "roi_labels", "responses", "key", "orientation",
    "images", "images_key", "images_shape", "images_transposed", "picture", "trials", "count_from", "units", "seconds_per_trial",
    "categories",
})  # fmt: skip


class Predicted(NamedTuple):
    """What a method predicts of n pictures.

    Attributes
    ----------
    embedding : array (n, d)
        The image embedding as regressed, which pictures are drawn from.
    retrieval : array (n, d)
        The one that pictures are told apart by: another one where the method has a head for it.
    """

    embedding: np.ndarray
    retrieval: np.ndarray

    @classmethod
    def of(cls, prediction: Prediction) -> "Predicted | None":
        """None where no embedding is predicted."""
        return None if prediction.embedding is None else cls(prediction.embedding.cpu().numpy(), prediction.features.cpu().numpy())

    @classmethod
    def read(cls, file: h5py.File, order: np.ndarray, suffix: str = "") -> "Predicted | None":
        """Some rows of what `reconstruct` or `predict` wrote; None where no embedding is predicted."""
        if (name := f"predicted{suffix}") not in file:
            return None
        return cls(file[name][:][order], file[f"retrieval{suffix}" if f"retrieval{suffix}" in file else name][:][order])


class Made(NamedTuple):
    """How the pictures that are measured were made, as far as it stands in the protocol.

    Attributes
    ----------
    stimulus : int array (n,)
        The test pictures.
    repeats, trials_per_picture : str
        What a method got of each test picture.
    samples : int or None
        Pictures drawn per test picture; None where no picture is drawn at all.
    choice_of_sample : str
        How this method chose the one shown.
    """

    stimulus: np.ndarray
    repeats: str
    trials_per_picture: str
    samples: int | None = None
    choice_of_sample: str = ""


@dataclass
class Reconstructions:
    """What one method made of a subject: pictures as numbers of a joint set, everything in the order of the test pictures."""

    made: Made
    attributes: dict[str, Any]
    rows: dict[str, np.ndarray]
    predicted: dict[str, Predicted]
    absent_rows: dict[str, str]
    notes: list[str] = field(default_factory=list)


def score(
    study: Study,
    dataset: str,
    subject: str,
    reconstructions: Sequence[Path],
    controls: Path | None,
    features: Path | None,
    stimuli: Path,
    prepared: Path,
    embeddings: Path,
    embedding: Path,
    classifier: Path | None,
    out: Path,
) -> None:
    """Write the folder of a subject's metrics files, `<method>.json` for every method of the study.

    Truths, controls and their features are read once for all methods; pictures stay on disk and are read a batch at a time. What is
    measured is kept beside `out`, so that a run that was killed goes on where it was, and shared by several processes.

    Parameters
    ----------
    reconstructions : sequence of Path
        One of each method: what `reconstruct` wrote, or `predict` where no picture is drawn.
    controls, features : Path or None
        None where no picture is drawn.

    Raises
    ------
    InputError
        When the files do not belong together (other methods, pictures, sizes).
    """
    section = study.evaluation
    panel = panel_of(study, embedding, classifier)
    given = [*reconstructions, *(path for path in (controls, features, classifier) if path), stimuli, prepared, embeddings, embedding]
    mark = fingerprint(study, given, __name__, section.batch_size, dataset, subject, panel.protocol())
    blocks = Blocks(out.with_name(f".{out.name}.partial"), mark)
    with contextlib.ExitStack() as stack:
        files = _opened(reconstructions, stack)
        if {"samples" in file for file in files.values()} != {controls is not None and features is not None}:
            raise InputError("score: pictures are measured beside their controls and features, predictions without; give files of one kind")
        images = stack.enter_context(h5py.File(stimuli))["images"]
        stimulus = np.sort(next(iter(files.values()))["stimulus"][:].astype(int))
        truths, pictures = Joined(), Joined()
        truths.add(images, stimulus)
        found = {method: _reconstructions(method, file, stimulus, images, pictures, study.seed) for method, file in files.items()}
        shared: dict[str, np.ndarray] = {}
        absent_shared: dict[str, str] = {}
        drawn, measured = 0, {}
        if controls is not None and features is not None:
            shared, absent_shared, drawn = _controls(stack.enter_context(h5py.File(controls)), stimulus, mean_training_image(stimuli, prepared), pictures)
            rows = {(method, row): index for method, one in found.items() for row, index in one.rows.items()}
            rows |= {("", row): index for row, index in shared.items()}
            sets = PictureSet(truths), PictureSet(pictures)
            finish = measured_in(blocks, panel, *sets, rows, section.batch_size, lambda network: stored_features(features, stimulus, network))
        if not blocks.all_made():
            return
        if controls is not None:
            measured = finish()
    with h5py.File(embeddings) as file, h5py.File(prepared) as trials:
        true_embeddings = rows_at(file["embedding"], stimulus)
        training = rows_at(file["embedding"], np.unique(trials["stimulus"][:][trials["split"][:] == 0]))
        available = int(np.isin(trials["split"][:], (0, 1)).sum())  # as over budgets: closed forms use both, gradient steps the latter to watch
    led: set[str] = set()
    with whole_directory(out) as folder:
        for method, one in found.items():
            own: Measured = {row: measured[method, row] for row in one.rows} | {row: {} for row in one.predicted if row not in one.rows}
            if one.made.samples is None:
                own["chance"] = {}
            if "samples" in own:
                own["samples-mean"] = {name: values.mean(1) for name, values in own.pop("samples").items() if isinstance(values, np.ndarray)}
            absent = panel.absent | embedding_measures(section.metrics, own, true_embeddings, one.predicted, training, embedding, study.seed)
            protocol, tested = protocol_of(study, dataset, subject, panel, embedding, stimuli, one.made)
            absent_rows = one.absent_rows
            if own.get("body-removed") == {}:
                del own["body-removed"]
                absent_rows = absent_rows | {"body-removed": "no measure of the predicted embedding is computed"}
            if protocol["id"] not in led:  # rows that do not depend on the method stand once per protocol
                led.add(protocol["id"])
                own |= {row: measured["", row] for row in shared}
                absent_rows = absent_rows | absent_shared
                if "embedding-ceiling" in own and (drawn != one.made.samples or one.made.choice_of_sample == FIRST):
                    del own["embedding-ceiling"]
                    absent_rows["embedding-ceiling"] = _other_choice(drawn, one.made)
            own = {row: own[row] for row in ROWS if row in own}
            table = summarise(own, section.metrics, section.bootstrap, study.seed)
            for name, entry in summarise(own, ["similarity"], section.bootstrap, study.seed)["reconstruction"].items():
                table["reconstruction"][name] = {**entry, "network": protocol["networks"][panel.similarity]["network"]}
            write_json(folder / f"{method}.json", {
                "study": study.name, "method": method, "dataset": dataset, "subject": subject,
                "role": study.role(dataset, subject), "trials": int(one.attributes.get("trials", available)), "stimulus": stimulus.tolist(),
                "sampling": {key: value if isinstance(value, str) else float(value) for key, value in one.attributes.items() if np.ndim(value) == 0},
                "protocol": protocol, "tested": tested, "rows": table, "absent": absent, "absent_rows": absent_rows,
                "warnings": [*warnings(own["reconstruction"], len(stimulus)), *one.notes],
            })  # fmt: skip
    blocks.remove()


def _other_choice(drawn: int, made: Made) -> str:
    if drawn == made.samples:
        return f"the picture is the best of {drawn} samples, with which a method that shows {made.choice_of_sample} does not compare"
    return f"the picture is the best of {drawn} samples, with which methods that have {made.samples} do not compare"


def _opened(reconstructions: Sequence[Path], stack: contextlib.ExitStack) -> dict[str, h5py.File]:
    """The reconstruction files by method, in the order given."""
    files: dict[str, h5py.File] = {}
    for path in reconstructions:
        file = stack.enter_context(h5py.File(path))
        if not len(file["stimulus"]):
            raise InputError(f"{path}: holds no reconstruction; run the reconstruct stage again")
        method = str(file.attrs["method"])
        if method in files:
            raise InputError(f"--reconstructions: {files[method].filename} and {path} are both of the method {method}; give one file of each")
        files[method] = file
    return files


def rows_at(values: Any, index: np.ndarray) -> np.ndarray:
    """Rows of an HDF5 data set in any order."""
    if len(index) and (last := int(index.max())) >= len(values):
        raise InputError(f"{values.file.filename}: has {len(values)} entries, but stimulus {last} is asked for; these files do not belong together")
    return read_rows(values, index)


def _reconstructions(method: str, file: h5py.File, stimulus: np.ndarray, images: h5py.Dataset, pictures: Joined, seed: int) -> Reconstructions:
    """One method's rows, its pictures joined to the others'; of a file without pictures what it predicts alone."""
    order = np.argsort(file["stimulus"][:])
    if not np.array_equal(file["stimulus"][:][order], stimulus):
        raise InputError(f"{file.filename}: reconstructs other test pictures than the other methods do; run the reconstruct stage of all methods again")
    attributes, absent_rows, notes = dict(file.attrs), {}, []
    repeats, trials = str(attributes["repeats"]), str(attributes["trials_per_picture"])
    predicted = {row: values for row, suffix in PREDICTED.items() if (values := Predicted.read(file, order, suffix)) is not None}
    if "body-removed" not in predicted:
        absent_rows["body-removed"] = "the method has no body" if predicted else "the method predicts no image embedding"
    if "retrieval" in file:
        notes.append(f"{method} tells pictures apart (identification, retrieval) by a head of its own, and draws them from what another one regresses")
    if "samples" not in file:
        return Reconstructions(Made(stimulus, repeats, trials), attributes, {}, predicted, absent_rows, notes)
    each = file["samples"].shape[1]
    choice = str(attributes["choice"])
    samples = pictures.add(file["samples"], order)
    shown = samples[np.arange(len(order)), file["shown"][:].astype(int)[order]]
    rows = {"reconstruction": shown, "shuffled": pictures.add(file["shuffled"], order)}
    if len(order) > 1:
        rows["chance"] = of_another_image(shown, seed)
    if "predicted_train_nearest" in file:
        nearest, back = np.unique(file["predicted_train_nearest"][:][order], return_inverse=True)
        rows["nearest-training-image"] = pictures.add(images, nearest)[back]
    if each > 1:
        rows["samples"] = samples
    else:
        absent_rows["samples-mean"] = "one sample is drawn of each picture"
    if choice == FIRST:
        notes.append(f"{method} predicts no image embedding: the first of its {each} samples is shown")
    elif each > 1 and (control := int(attributes.get("shuffled_samples", 1))) != each:
        notes.append(f"{method}: the control shuffled is chosen of {control} sample{'' if control == 1 else 's'}, the picture shown of {each}")
    return Reconstructions(Made(stimulus, repeats, trials, each, choice), attributes, rows, predicted, absent_rows, notes)


def _controls(file: h5py.File, stimulus: np.ndarray, mean: np.ndarray, pictures: Joined) -> tuple[dict[str, np.ndarray], dict[str, str], int]:
    """Rows that do not depend on the method, reasons for those that are absent, and of how many samples the ceiling is the best."""
    known = file["stimulus"][:].astype(int)
    missing = np.setdiff1d(stimulus, known)
    if len(missing):
        raise InputError(f"{file.filename}: has no controls for stimulus {missing[0]}; run the reconstruct-controls stage again with this subject's stimuli")
    order = np.argsort(known)
    place = order[np.searchsorted(known, stimulus, sorter=order)]
    rows = {"mean-training-image": np.repeat(pictures.add(mean[None]), len(stimulus))}
    for row in OF_THE_SUBJECT[1:]:
        if row.replace("-", "_") in file:
            rows[row] = pictures.add(file[row.replace("-", "_")], place)
    return rows, json.loads(file.attrs["absent"]), int(file.attrs["samples"])


def embedding_measures(
    wanted: list[str], measured: Measured, truth: np.ndarray, predicted: dict[str, Predicted], training: np.ndarray, embedding: Path, seed: int
) -> dict[str, str]:
    """Identification, error and retrieval by the encoder's own embedding, written into `measured`; reasons for what is absent.

    For identification and error every dimension is standardised by the subject's training images (n, d), never by test images:
    embeddings of all images share most of their direction, and raw correlations say little. No picture is involved: in the row
    `chance` stands the level of chance itself.
    """
    import torch

    absent = {}
    names = [name for name in of_kind("embedding") if name in wanted]
    if not predicted:
        return dict.fromkeys(names, "the method predicts no image embedding")
    if next(iter(predicted.values())).embedding.shape[1:] != truth.shape[1:]:
        return dict.fromkeys(names, "the method's embedding is not the image embedding's space")
    if networks.embedding_kind(embedding) not in networks.CONTRASTIVE:
        space = f"retrieval is defined in CLIP's space; the study's image embedding is {networks.foundation_name(embedding)}"
        absent = {name: space for name in names if MEASURES[name].group == "retrieval"}
        names = [name for name in names if name not in absent]
    mean, deviation = training.mean(0), training.std(0).clip(LEAST)
    varies = torch.from_numpy(deviation > LEAST)
    standard = torch.from_numpy((truth - mean) / deviation)
    for row, values in predicted.items():
        own, told = (torch.from_numpy((one - mean) / deviation) for one in values)
        found = {"identification": m.two_way(m.correlations(standard, told)), "embedding_error": m.embedding_error(standard[:, varies], own[:, varies])}
        if any(MEASURES[name].group == "retrieval" for name in names):
            found |= dict(zip(("retrieval_forward", "retrieval_backward"), m.retrieval(truth, values.retrieval, POOL, REPEATS, seed), strict=True))
        measured[row].update({name: found[name] for name in names if name in found})
    if "chance" in measured:
        measured["chance"] |= {name: np.full(len(truth), MEASURES[name].level_of_chance(min(POOL, len(truth)))) for name in names}
    return absent


def summarise(measured: Mapping[str, Mapping[str, Any]], wanted: Sequence[str], resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Value and 95 % interval of every measure in every row, in the order of `wanted`, as plain JSON types.

    A measure per image (n,) has a percentile bootstrap over images; one of several drawings of the trials (d, n) over drawings
    and images, and its values per image are means over drawings. Inception Score has its mean +- 1.96 standard errors over its
    parts; FID no interval.
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
            of_drawing = np.atleast_2d(value)
            known = np.isfinite(of_drawing).all(0)
            if not known.any():
                continue
            low, high = bootstrap(of_drawing[:, known], resamples, seed, drawings=True)
            entry = {
                "value": float(of_drawing[:, known].mean()), "ci_low": float(low), "ci_high": float(high), "n": int(known.sum()),
                "per_image": _plain(np.where(known, of_drawing.mean(0), np.nan)),
            }  # fmt: skip
            rows[row][name] = entry | ({"per_drawing": [_plain(one) for one in of_drawing]} if len(of_drawing) > 1 else {})
    return rows


def _plain(values: np.ndarray) -> list[float | None]:
    return [round(float(v), 7) if np.isfinite(v) else None for v in values]


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
    data = section.model_dump(mode="json", exclude=set(WHO_WHERE_AND_FORM))
    for key, file in (("split", "images"), ("blocks", "labels")):
        if isinstance(data.get(key), dict):
            data[key].pop(file, None)
    if data.get("mask"):
        data["mask"] = _stem(data["mask"])
    for roi in data["rois"].values() if isinstance(data.get("rois"), dict) else ():
        roi |= {"file": _stem(roi["file"])} if roi.get("file") else {}
    if section.source == "simulated":
        data |= {"study_seed": study.seed}
    content = {
        "dataset": dataset,
        "data": data,
        "split": "test: pictures never trained on",
        "tested": tested if study.stimuli(dataset, subject) == "stimuli" and section.test_pictures is None else "every subject's own pictures",
        "sessions": data.get("sessions", "all"),
        "repeats": made.repeats,
        "beta_version": data.get("betas", "-"),
        "image_size": study.picture_size,
        **({} if made.samples is None else {"pictures": picture_protocol()}),
        "networks": panel.protocol(),
        "image_embedding": {"network": networks.foundation_name(embedding), "sha256": networks.model_hash(embedding)},
        "identification": "embedding dimensions standardised by the subject's training images",
        "retrieval": {"pool": f"at most {POOL}", "repeats": REPEATS, "top": 1},
        **({} if made.samples is None else {"samples_per_stimulus": made.samples, "choice_of_sample": made.choice_of_sample}),
    }
    return {"id": content_hash(content)[:8], **content}, tested


def _stem(path: str) -> str:
    """Which voxels a file has, not where it lies and in what form."""
    return Path(path).name.partition(".")[0]
