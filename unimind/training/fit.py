"""Stage `fit`: closed-form methods (ridge), one subject at a time."""

import time
from pathlib import Path

import numpy as np
import torch

from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.models.ridge import RidgeModel
from unimind.progress import say
from unimind.storage import content_hash
from unimind.study import Study
from unimind.training.data import Targets
from unimind.training.loop import Trained, fingerprint, peak_memory, write_model


def fit(study: Study, method: str, group: str, prepared: list[Path], embeddings: list[Path], out: Path) -> None:
    """Write the ridge regression of one subject, fitted to training and validation images, each averaged over its repeats.

    Parameters
    ----------
    prepared, embeddings : lists of Path
        One file each: the group of a closed-form method is one subject.

    Raises
    ------
    InputError
        The method is not fitted in closed form; not one file each; fewer than two pictures.
    """
    settings = study.methods[method]
    if settings.encoder.kind != "ridge":
        raise InputError(f"methods.{method}.encoder.kind: {settings.encoder.kind} is trained, not fitted; run the stages align and condition")
    if len(prepared) != 1 or len(embeddings) != 1:
        raise InputError(f"fit: {len(prepared)} prepared and {len(embeddings)} embeddings files for {group!r}; give one of each")
    begun = time.monotonic()
    with PreparedSubject(prepared[0]) as data:
        parts = [data.image_responses(split)[:2] for split in ("train", "validation")]
    images, responses = (np.concatenate(part) for part in zip(*parts, strict=True))
    if len(images) < 2:
        raise InputError(f"{prepared[0]}: {len(images)} training pictures; at least two are needed to fit ridge regression")
    embedding, latent = (Targets(embeddings[0], images, name)(images).numpy() for name in ("embedding", "latent"))
    say(f"{settings.label or method}: ridge of {group} on {len(images)} pictures x {responses.shape[1]} voxels")
    model = RidgeModel.fit(responses, embedding, latent, settings.encoder.alphas, settings.encoder.folds, study.seed)
    seconds = time.monotonic() - begun
    state = model.state()
    count = sum(tensor.numel() for tensor in state.values())
    weights = sum(tensor.numel() for name, tensor in state.items() if name.endswith("weight"))
    efficiency = {
        "parameters": count, "trainable_parameters": count, "flops_per_sample": 2 * weights, "peak_memory": peak_memory(torch.device("cpu")),
        "samples_per_second": len(images) / max(seconds, 1e-9), "seconds": seconds,
    }  # fmt: skip
    config = {
        "kind": "ridge", "method": method, "group": group, "latent_shape": list(latent.shape[1:]), "study": content_hash(settings.model_dump(mode="json")),
        "inputs": fingerprint([settings.model_dump(mode="json"), study.seed], [*prepared, *embeddings], __name__),
    }  # fmt: skip
    write_model(out, state, config, Trained(0, efficiency=efficiency))
