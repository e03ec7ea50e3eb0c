"""Stage `fit`: closed-form methods (ridge, prior), one subject at a time."""

import time
from pathlib import Path

import numpy as np
import torch

from unimind.errors import InputError
from unimind.models.ridge import RidgeModel
from unimind.progress import say
from unimind.storage import content_hash
from unimind.study import Method, Ridge, Study
from unimind.training.loop import Trained, conditions, fingerprint, peak_memory, write_model
from unimind.training.prior import Taught, Trials, read_trials, teach


def fit(
    study: Study,
    method: str,
    group: str,
    prepared: list[Path],
    embeddings: list[Path],
    out: Path,
    training_prepared: list[Path] | None = None,
    training_embeddings: list[Path] | None = None,
) -> None:
    """Write the linear decoder of one subject, fitted to training and validation images, each averaged over its repeats.

    Parameters
    ----------
    prepared, embeddings : lists of Path
        One file each: the group of a closed-form method is one subject.
    training_prepared, training_embeddings : lists of Path, optional
        Files of the subjects that teach the prior (encoder.kind `prior`).

    Raises
    ------
    InputError
        The method is not fitted in closed form; not one file each; fewer than two pictures; nobody to teach a prior.
    """
    settings = study.method(method)
    if not settings.fitted:
        raise InputError(f"methods.{method}.encoder.kind: {settings.encoder.kind} is trained, not fitted; run the stages align and condition")
    if len(prepared) != 1 or len(embeddings) != 1:
        raise InputError(f"fit: {len(prepared)} prepared and {len(embeddings)} embeddings files for {group!r}; give one of each")
    begun = time.monotonic()
    taught = None
    if settings.encoder.kind == "prior":
        taught = teach(training_prepared or [], training_embeddings or [], settings.encoder.mixed, study.seed, order=settings.voxels.order)
    own = read_trials(prepared[0], embeddings[0], order=settings.voxels.order)
    say(f"{settings.label or method}: {group} on {len(own.responses)} pictures x {own.responses.shape[1]} voxels")
    model = fitted(settings, own, taught, study.seed)
    seconds = time.monotonic() - begun
    files = [*prepared, *embeddings, *(training_prepared or []), *(training_embeddings or [])]
    write_fitted(out, model, study, method, group, own, seconds, fingerprint([settings.model_dump(mode="json"), study.seed], files, __name__))


def fitted(settings: Method, own: Trials, taught: Taught | None, seed: int) -> RidgeModel:
    """A closed-form method's linear decoder of a subject's trials."""
    if isinstance(settings.encoder, Ridge):
        return RidgeModel.fit(own.responses, own.embedding, own.latent, settings.encoder.alphas, settings.encoder.folds, seed)
    assert taught is not None
    mean = own.responses.mean(0)
    maps = [(d.weight.astype(np.float32), (d.bias + mean @ d.weight).astype(np.float32)) for d in taught.decoders(own)]
    return RidgeModel(mean.astype(np.float32), maps[0], maps[1])


def write_fitted(out: Path, model: RidgeModel, study: Study, method: str, group: str, own: Trials, seconds: float, inputs: str) -> None:
    """Write a linear decoder as a model directory."""
    state = model.state()
    count = sum(tensor.numel() for tensor in state.values())
    weights = sum(tensor.numel() for name, tensor in state.items() if name.endswith("weight"))
    efficiency = {
        "parameters": count, "trainable_parameters": count, "flops_per_sample": 2 * weights, "peak_memory": peak_memory(torch.device("cpu")),
        "samples_per_second": len(own.responses) / max(seconds, 1e-9), "seconds": seconds, "conditions": conditions(torch.device("cpu"), "fp64", None),
    }  # fmt: skip
    config = {
        "kind": "ridge", "method": method, "group": group, "latent_shape": list(own.latent.shape[1:]),
        "study": content_hash(study.method(method).model_dump(mode="json")), "inputs": inputs,
    }  # fmt: skip
    write_model(out, state, config, Trained(0, efficiency=efficiency))
