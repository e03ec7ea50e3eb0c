"""Stage `embedding-prior`: the distribution of pictures' embeddings given what a method predicts of pictures that it was not fitted to."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unimind.errors import InputError
from unimind.models.embedding_prior import EmbeddingFlow
from unimind.models.encoder import Encoder, load_encoder
from unimind.models.ridge import fit_ridge
from unimind.models.space import PictureSpace
from unimind.progress import say
from unimind.study import Study
from unimind.training.align import ROWS, Subjects, read_group, train_aligned
from unimind.training.alignment import ALPHAS
from unimind.training.alignment import FOLDS as RIDGE_FOLDS
from unimind.training.data import EnteredSignals, PictureCoordinates, has_target, read_targets, turns
from unimind.training.loop import at_places, fingerprint, generator, stream_seed, train, write_model

#: Parts of the training pictures: what a body predicts of each is by a body that was trained, as the method's own, on the others. Each
#: costs a training of the body.
FOLDS = 3
#: Held-out signals that watch the training, and noises that each is seen with.
WATCHED, NOISES = 512, 4


def embedding_prior(
    study: Study, method: str, group: str, embeddings: list[Path], entered: list[Path], aligned: Path | None, checkpoints: Path, out: Path
) -> None:
    """Write the prior over embeddings of a group's method.

    Parameters
    ----------
    embeddings, entered : lists of Path
        One of each per member of the group, in the order of `study.members(method, group)`.
    aligned : Path, optional
        The method's model, where it has a body: it predicts the held-out pictures.

    Raises
    ------
    InputError
        The method has no such prior; the files do not fit the group.
    """
    settings = study.method(method)
    if settings.embedding_prior is None:
        raise InputError(f"methods.{method}.embedding_prior: the method has none, so there is nothing to train in this stage")
    subjects, space = read_group(study, method, group, [], embeddings, entered)
    names, label = list(subjects), f"{settings.label or method}: prior over embeddings of {group}"
    mark = fingerprint(study, [*(path / "entered.h5" for path in entered), *embeddings, *([aligned] if aligned else [])], __name__)
    if aligned is None:
        whole, _ = load_encoder(entered[0])
        folds = [whole]
    else:
        whole, _ = load_encoder(aligned)
        folds = [
            _without(study, method, subjects, space, fold, checkpoints / f"fold-{fold}", mark, f"{label}, body without part {fold + 1}")
            for fold in range(FOLDS)
        ]
    lengths = {name: _lengths(path, trials) for (name, (trials, _)), path in zip(subjects.items(), embeddings, strict=True)}
    torch.manual_seed(stream_seed(study.seed, "embedding prior"))
    given = settings.embedding_prior
    prior = EmbeddingFlow(copy.deepcopy(space), all(own is not None for own in lengths.values()), given.width, given.depth, given.dropout)
    if prior.arguments["lengths"]:
        logs = np.log(np.concatenate([own[1][np.isin(own[0], subjects[name][0].images("train"))] for name, own in lengths.items()]))  # type: ignore[index]
        prior.length.copy_(torch.tensor([logs.mean(), max(logs.std(), 1e-6)]))
    still = copy.deepcopy(prior)  # rows are made on the CPU, beside the training

    def rows(name: str, seen: tuple[NDArray, Tensor], encoders: list[Encoder]) -> dict[str, Tensor]:
        """Regressed coordinates and vectors of some of a subject's pictures, of their signals, by the encoder that was not fitted to each."""
        images, signals = seen
        regressed = torch.empty(len(images), space.components["embedding"])
        of = fold_of(images) if len(encoders) > 1 else np.zeros(len(images), int)
        for number, encoder in enumerate(encoders):
            if len(place := torch.from_numpy(np.flatnonzero(of == number))):
                with torch.no_grad():
                    regressed[place] = encoder.from_signal(signals[place]).coordinates["embedding"] / space.embedding_spread
        return {"regressed": regressed, "vector": _vectors(still, subjects[name][1], images, lengths[name]), "index": torch.from_numpy(images.astype(np.int64))}

    size = given.training.batch_size
    every = _together(rows(name, piece, folds) for name, (trials, _) in subjects.items() for piece in _in_pieces(*trials.all("train")))
    _gaussian(prior, every["regressed"], every["vector"], study.seed)

    def draw(step: int) -> dict[str, Any]:
        parts = []
        for name, places in turns(names, size, step).items():
            trials = subjects[name][0]
            chosen = at_places(len(trials.images("train")), places, study.seed, trials.key, "embedding prior")
            parts.append(rows(name, trials.draw("train", chosen, step, study.seed), folds))
        return _together(parts) | _noise(size, prior.size, study.seed, "step", step)

    def losses(module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"velocity": velocity_error(module, batch)}

    limit = max(1, WATCHED // len(names))
    unseen = [rows(name, trials.drawn_validation(limit), [whole]) for name, (trials, _) in subjects.items() if len(trials.images("validation"))]
    watched = _together(part for part in unseen for _ in range(NOISES)) if unseen else {}
    if watched:
        watched |= _noise(len(watched["vector"]), prior.size, study.seed, "held out")

    def validate(module: nn.Module) -> dict[str, float]:
        device = next(module.parameters()).device
        return {"velocity": float(velocity_error(module, {name: values.to(device) for name, values in watched.items()}))}

    trained = train(
        prior, draw=draw, losses=losses, settings=given.training, seed=study.seed, checkpoints=checkpoints / "prior", fingerprint=mark, label=label,
        n_samples=len(every["vector"]), validate=validate if watched else None,
    )  # fmt: skip
    config = {"kind": "embedding-prior", "arguments": prior.arguments, "method": method, "group": group, "inputs": mark, "held_out": trained.validation}
    write_model(out, prior.state_dict(), config, trained, checkpoints)
    say(f"{label}: {len(every['vector'])} pictures")


def fold_of(images: NDArray) -> NDArray[np.int64]:
    """Which part of the training pictures a picture belongs to: the same for all subjects who saw it."""
    return np.asarray(images, np.int64) % FOLDS


def velocity_error(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean squared error of the velocity at (1 - t) e + t x."""
    t = batch["t"][:, None]
    found = module((1 - t) * batch["noise"] + t * batch["vector"], batch["t"], module.expected(batch["regressed"]))  # type: ignore[operator]
    return nn.functional.mse_loss(found, batch["vector"] - batch["noise"])


def _without(study: Study, method: str, subjects: Subjects, space: PictureSpace, fold: int, checkpoints: Path, mark: str, label: str) -> Encoder:
    """A method's encoder trained on all training pictures but those of one part."""
    others = {name: (trials.those(lambda images: fold_of(images) != fold), targets) for name, (trials, targets) in subjects.items()}
    return train_aligned(study, method, others, space, None, checkpoints, mark, label)[0].encoder.eval().cpu()


def _gaussian(prior: EmbeddingFlow, regressed: Tensor, vectors: Tensor, seed: int) -> None:
    """The joint Gaussian of regressed and true vectors: ridge regression, and what it leaves."""
    found = fit_ridge(regressed.numpy(), vectors.numpy(), ALPHAS, RIDGE_FOLDS, seed)
    left = vectors.numpy().astype(np.float64) - (regressed.numpy() @ found.weight + found.bias)
    free = max(len(left) - regressed.shape[1] - 1, len(left) / 2)  # as many as the regression leaves, at least half
    prior.take_gaussian(found, left.T @ left / free)


def _lengths(path: Path, trials: EnteredSignals) -> tuple[NDArray, NDArray] | None:
    """Stimulus indices and lengths of a subject's pictures; None where the image embedding has no length of its own."""
    images = np.unique(np.concatenate([trials.images("train"), trials.images("validation")]))
    return (images, read_targets(path, images, "norm")) if has_target(path, "norm") else None


def _vectors(prior: EmbeddingFlow, targets: PictureCoordinates, images: NDArray, lengths: tuple[NDArray, NDArray] | None) -> Tensor:
    own = None if lengths is None else torch.from_numpy(lengths[1][np.searchsorted(lengths[0], images)])
    return prior.vectors(prior.space.part(targets.coordinates(images), "embedding"), own)


def _in_pieces(images: NDArray, signals: Tensor) -> Iterable[tuple[NDArray, Tensor]]:
    for place in range(0, len(images), ROWS):
        yield images[place : place + ROWS], signals[place : place + ROWS]


def _noise(rows: int, size: int, seed: int, *keys: Any) -> dict[str, Tensor]:
    random = generator(seed, "embedding prior", "noise", *keys)
    return {"noise": torch.randn(rows, size, generator=random), "t": torch.rand(rows, generator=random)}


def _together(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    found = list(parts)
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}
