"""Stage `transfer`: how far a new subject gets with few of its trials, for one method.

What the model of every budget predicts for the test pictures, and what was measured of it, stay beside the checkpoints, each under a
fingerprint of what it depends on: another measure trains nothing, and another budget, or more drawings, only what is new.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

from unimind.data.prepared import PreparedSubject
from unimind.device import on_device
from unimind.errors import InputError
from unimind.evaluation.features import stored_features
from unimind.evaluation.panel import Panel, measure
from unimind.evaluation.pictures import PictureSet
from unimind.evaluation.score import Made, Predicted, embedding_measures, protocol_of, rows_at, summarise
from unimind.foundations import load_autoencoder, parameters_of
from unimind.foundations.diffusion import Conditioning
from unimind.models.embedding_prior import load_embedding_prior
from unimind.progress import say
from unimind.provenance import code_hash
from unimind.reconstruction.decoder import Decoder, Prediction
from unimind.reconstruction.draw import draw_pictures, generator_for, norms_for
from unimind.reconstruction.predict import REPEATS, predict_pictures, trials_per_picture
from unimind.reconstruction.tested import choice_of_sample
from unimind.stages import STAGES
from unimind.storage import read_json, write_json
from unimind.study import Study
from unimind.training.adapt import adapt, scratch
from unimind.training.checkpoint import Checkpoint, fingerprint
from unimind.training.data import budget_rows
from unimind.training.enter import enter

#: Measures of pictures, where the study wants them.
OF_PICTURES = ("pixcorr", "clip", "study_clip", "squeezenet")
COSTS = ("parameters", "trainable_parameters", "seconds", "peak_memory")


class Cell(NamedTuple):
    """One training: a way to serve the subject, a budget and a drawing of it."""

    way: str  # adapted, scratch, entered or zero-shot
    trials: str
    seed: int


class Served(NamedTuple):
    """What one model predicts for the n test pictures, and what it took.

    Attributes
    ----------
    stimulus : int (n,)
    known : int (m,)
        Pictures whose embeddings may be looked at when pictures are drawn.
    prediction : Prediction
        On the CPU.
    trials : str
        How many trials a test picture has.
    costs : dict of str to float
    """

    stimulus: np.ndarray
    known: np.ndarray
    prediction: Prediction
    trials: str
    costs: dict[str, float]

    def keep(self, kept: Checkpoint) -> None:
        """Write it beside the checkpoints."""
        condition = {} if self.prediction.condition is None else self.prediction.condition._asdict()
        tensors = {f"target.{name}": values for name, values in self.prediction.targets.items()} | {"features": self.prediction.features}
        tensors |= {f"condition.{name}": values for name, values in condition.items()}
        tensors |= {name: torch.from_numpy(np.asarray(getattr(self, name), np.int64)) for name in ("stimulus", "known")}
        kept.write(tensors, {"trials": self.trials, "costs": self.costs})

    @classmethod
    def kept(cls, kept: Checkpoint) -> "Served | None":
        """What `keep` wrote; None where nothing was, or of another training."""
        if (found := kept.read()) is None:
            return None
        tensors, state = found
        parts = {kind: {name.removeprefix(f"{kind}."): own for name, own in tensors.items() if name.startswith(f"{kind}.")} for kind in ("target", "condition")}
        prediction = Prediction(parts["target"], tensors["features"], Conditioning(**parts["condition"]) if parts["condition"] else None)
        return cls(tensors["stimulus"].numpy(), tensors["known"].numpy(), prediction, state["trials"], state["costs"])


class Files(NamedTuple):
    """What serving a subject, and measuring what it was served, read: as the stage is given it."""

    prepared: Path
    embeddings: Path
    shared: Path | None
    taught: Path | None
    diffusion: Path | None
    autoencoder: Path | None
    embedding: Path
    features: Path | None
    stimuli: Path
    training_prepared: list[Path]
    training_embeddings: list[Path]
    embedding_prior: Path | None


def transfer(
    study: Study,
    method: str,
    dataset: str,
    subject: str,
    prepared: Path,
    embeddings: Path,
    shared: Path | None,
    taught: Path | None,
    diffusion: Path | None,
    autoencoder: Path | None,
    embedding: Path,
    features: Path | None,
    stimuli: Path,
    training_prepared: list[Path],
    training_embeddings: list[Path],
    checkpoints: Path,
    out: Path,
    embedding_prior: Path | None = None,
) -> None:
    """Write the measures of every way and budget: an entry each, shaped like a metrics file, averaged over drawings image by image.

    What is finished is kept in `checkpoints`: a stopped run goes on where it was, and what an edit of the study leaves as it was is not done again.

    Raises
    ------
    InputError
        The study asks for no transfer; the subject has fewer trials than the smallest budget.
    """
    if study.transfer is None:
        raise InputError("transfer: missing in the study; say there which budgets of trials are wanted")
    files = Files(
        prepared, embeddings, shared, taught, diffusion, autoencoder, embedding, features, stimuli, training_prepared, training_embeddings, embedding_prior
    )
    settings = study.method(method)
    with PreparedSubject(prepared) as data:
        available = len(data.trials("train")) + len(data.trials("validation"))
    part = STAGES["enter" if settings.closed else "adapt"].view(study, method=method, dataset=dataset, subject=subject)
    trained_from = [prepared, embeddings, *(path for path in (shared, taught) if path is not None), *training_prepared, *training_embeddings]
    trained = fingerprint(part, trained_from, (enter if settings.closed else adapt).__module__, code_hash(predict_pictures.__module__))
    drawn = settings.sampling.model_dump(mode="json") if study.transfer.pictures else None
    measured_with = [path for path in (diffusion, autoencoder, embedding, features, stimuli, embedding_prior) if path is not None]
    panel = _panel(study, files)
    measured = fingerprint(part, measured_with, __name__, trained, drawn, study.seed, study.evaluation.metrics, sorted(panel.absent), panel.protocol())
    finished: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in _cells(study, method, available):
        place = checkpoints / f"{cell.way}-{cell.trials}-{cell.seed}"
        stored = place.with_suffix(".json")
        if stored.exists() and (known := read_json(stored)).get("fingerprint") == measured:
            finished.setdefault((cell.way, cell.trials), []).append(known)
            continue
        label = f"{settings.label or method}: {dataset} {subject}, {cell.trials} trials ({cell.way})"
        kept = Checkpoint(checkpoints / f"{place.name}-predictions", trained, 0, label)
        if (served := Served.kept(kept)) is None:
            served = serve(study, method, dataset, subject, cell, files, *_model(study, method, dataset, subject, cell, files, place))
            served.keep(kept)
        shutil.rmtree(place, ignore_errors=True)
        result = {"fingerprint": measured, **measured_once(study, method, dataset, subject, cell, files, served)}
        write_json(stored, result)
        finished.setdefault((cell.way, cell.trials), []).append(result)
    entries = [_entry(study, method, dataset, subject, way, trials, available, parts, files) for (way, trials), parts in finished.items()]
    write_json(out, {"study": study.name, "method": method, "dataset": dataset, "subject": subject, "entries": entries})


def _cells(study: Study, method: str, available: int) -> Iterator[Cell]:
    assert study.transfer is not None
    settings = study.method(method)
    ways = ["entered"] if settings.closed else ["adapted", *(["scratch"] if study.transfer.scratch and settings.from_scratch else [])]
    if not settings.closed and not settings.per_subject:
        yield Cell("zero-shot", "0", study.seed)
    counts = [str(trials) for trials in study.transfer.trials if trials == "all" or int(trials) < available]
    for budget in study.transfer.trials:
        if str(budget) not in counts:
            say(f"transfer: a budget of {budget} trials is left out; the subject has {available}")
    if not counts:
        raise InputError(f"transfer.trials: every budget asks for at least as many trials as there are ({available}); give smaller ones, or `all`")
    for way in ways:
        for trials in counts:
            for number in range(1 if trials == "all" else study.transfer.seeds):
                yield Cell(way, trials, study.seed + number)


def _model(study: Study, method: str, dataset: str, subject: str, cell: Cell, files: Files, place: Path) -> tuple[Path, Path | None]:
    """One cell's model, and beside a shared one what its closed form makes of the budget; trained where it must be."""
    out, trials, seed = place / "model", cell.trials, str(cell.seed)
    given = (study, method, dataset, subject, files.prepared, files.embeddings)
    if cell.way == "zero-shot":
        assert files.shared is not None
        return files.shared, None
    if cell.way == "entered":
        enter(*given, files.taught, out, trials, seed)
        return (out, None) if files.shared is None else (files.shared, out)
    if cell.way == "adapted":
        assert files.shared is not None
        adapt(*given, files.shared, place / "checkpoint", out, trials, seed, files.training_prepared, files.training_embeddings)
    else:
        scratch(*given, place / "checkpoint", out, trials, seed)
    return out, None


def serve(study: Study, method: str, dataset: str, subject: str, cell: Cell, files: Files, model: Path, own: Path | None) -> Served:
    """What one model predicts for a subject's test pictures."""
    decoder = Decoder(model, own, dataset, subject).to(on_device())
    with PreparedSubject(files.prepared) as data:
        stimulus, prediction = predict_pictures(decoder, data, "test", study.evaluation.batch_size)
        trials, known = trials_per_picture(data), _pictures_of(cell, data)
    costs = read_json((own or model) / "efficiency.json")
    parts = [part for part in (decoder.encoder, decoder.stage) if part is not None]
    costs["parameters"] = sum(parameter.numel() for part in parts for parameter in part.parameters())
    costs["parameters"] += parameters_of(files.diffusion) if files.diffusion is not None else 0
    if study.method(method).closed:
        costs["parameters"] += sum(buffer.numel() for buffer in decoder.encoder.enter.buffers())
    return Served(stimulus, known, prediction, trials, {name: costs[name] if cell.way != "zero-shot" else 0 for name in COSTS})


def measured_once(study: Study, method: str, dataset: str, subject: str, cell: Cell, files: Files, served: Served) -> dict[str, Any]:
    """Measures per image (`measures`), costs and more of what one model predicts, and where the study's `transfer.pictures` asks for it of pictures.

    A condition stage is the shared model's, which small budgets leave as it is.
    """
    assert study.transfer is not None
    settings, batch, device = study.method(method), study.evaluation.batch_size, on_device()
    stimulus, prediction = served.stimulus, served.prediction
    found: dict[str, dict[str, Any]] = {"reconstruction": {}}
    absent: dict[str, str] = {}
    panel = _panel(study, files)
    if panel.wanted:
        assert files.diffusion is not None and files.autoencoder is not None and files.features is not None
        features = files.features
        absent |= panel.absent
        keys = [(study.seed, int(image), 0) for image in stimulus]
        coder = load_autoencoder(files.autoencoder).to(device)
        generator = generator_for(files.diffusion, coder, study.picture_size, files.embeddings, device)
        if prediction.condition is not None:
            assert files.shared is not None
            Decoder(files.shared, None, dataset, subject).to(device).prepare(generator)
        norms = norms_for(generator, settings.sampling, files.embeddings, served.known)
        prior = None if files.embedding_prior is None else load_embedding_prior(files.embedding_prior).to(device)
        label = f"{settings.label or method}, {dataset} {subject}, {cell.trials} trials ({cell.way})"
        pictures = draw_pictures(generator, prediction, norms, settings.sampling, keys, batch, device, label, prior)
        with h5py.File(files.stimuli) as file:
            truths = PictureSet(rows_at(file["images"], stimulus))
        index = {"reconstruction": np.arange(len(stimulus))}
        found = measure(panel, truths, PictureSet(pictures), index, batch, lambda network: stored_features(features, stimulus, network))
    with PreparedSubject(files.prepared) as data:
        training = data.images("train")
    with h5py.File(files.embeddings) as file:
        predicted = {} if (values := Predicted.of(prediction)) is None else {"reconstruction": values}
        absent |= embedding_measures(
            study.evaluation.metrics, found, rows_at(file["embedding"], stimulus), predicted, rows_at(file["embedding"], training), files.embedding, study.seed
        )
    return {
        "stimulus": stimulus.tolist(),
        "trials_per_picture": served.trials,
        "measures": {name: np.asarray(value).tolist() for name, value in found["reconstruction"].items()},
        "absent": absent,
        "costs": served.costs,
    }


def _panel(study: Study, files: Files) -> Panel:
    """What is measured of pictures; nothing where the study wants none."""
    assert study.transfer is not None
    wanted = [name for name in study.evaluation.metrics if name in OF_PICTURES] if study.transfer.pictures else []
    return Panel.of(wanted, study.evaluation.weights, study.evaluation.squeezenet, files.embedding, None)


def _pictures_of(cell: Cell, data: PreparedSubject) -> np.ndarray:
    """Pictures whose embeddings a cell may look at when it draws: of its budget, or, without one, all that the subject is trained with."""
    if not cell.trials.isdecimal() or cell.trials == "0":
        return data.images("train")
    return np.unique(data.stimulus[np.concatenate(list(budget_rows(data, int(cell.trials), cell.seed).values()))])


def _entry(
    study: Study, method: str, dataset: str, subject: str, way: str, trials: str, available: int, parts: list[dict[str, Any]], files: Files
) -> dict[str, Any]:
    """One way and budget; its intervals are over drawings and images."""
    measured = {"reconstruction": {name: np.array([part["measures"][name] for part in parts], float) for name in parts[0]["measures"]}}
    wanted = [name for name in study.evaluation.metrics if name in measured["reconstruction"]]
    panel = Panel.of([name for name in wanted if name in OF_PICTURES], study.evaluation.weights, study.evaluation.squeezenet, files.embedding, None)
    drawn = (1, choice_of_sample(1)) if files.diffusion is not None else (None, "")
    made = Made(np.array(parts[0]["stimulus"]), REPEATS, parts[0]["trials_per_picture"], *drawn)
    protocol, tested = protocol_of(study, dataset, subject, panel, files.embedding, files.stimuli, made)
    names = {"scratch": " from scratch", "zero-shot": " without adaptation"}
    return {
        "method": method + names.get(way, ""),
        "dataset": dataset,
        "subject": subject,
        "role": study.role(dataset, subject),
        "trials": available if trials == "all" else int(trials),
        "budget": trials,
        "drawings": len(parts),
        "stimulus": parts[0]["stimulus"],
        "protocol": protocol,
        "tested": tested,
        "rows": summarise(measured, wanted, study.evaluation.bootstrap, study.seed),
        "costs": {name: float(np.mean([part["costs"][name] for part in parts])) for name in COSTS},
        "absent": parts[0]["absent"],
    }
