"""Stages `teach` and `enter`: what closed forms learn of training subjects, and what they make of one subject's voxels.

No stage after these reads a voxel of a method that enters in closed form: bodies and condition stages are trained on signals.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from unimind.data.hdf5 import NewFile
from unimind.data.prepared import PreparedSubject
from unimind.device import on_device
from unimind.errors import InputError
from unimind.models.encoder import Encoder
from unimind.models.enter import Context, subject_key
from unimind.models.prior import LinearMap, TaughtPrior
from unimind.models.ridge import components_together, fit_ridge, rescaled
from unimind.models.space import PictureSpace
from unimind.progress import say
from unimind.storage import load_model
from unimind.study import Decoded, Method, Ridge, Study
from unimind.training.data import PictureCoordinates, TrainingSplit, budget_rows, picture_space, training_rows
from unimind.training.loop import Trained, conditions, fingerprint, generator, peak_memory, write_model

#: Contexts of each size that training signals come from, beside the folds of the largest.
CONTEXTS = 4
#: Smallest context; sizes double from it. A session of 25 trials is a few minutes, the least that anybody has.
SMALLEST = 25
#: Folds of the largest contexts: each picture's signal then comes from four fifths of the others.
FOLDS = 5


class PictureResponses(NamedTuple):
    """One row per picture: stimulus indices (n,), responses (n, V) averaged over repeats, split (n,), 0 train and 1 validation."""

    images: NDArray[np.int32]
    responses: NDArray[np.float32]
    split: NDArray[np.int8]


def read_trials(path: Path, rows: Mapping[TrainingSplit, NDArray] | None = None) -> PictureResponses:
    """Training and validation trials of one subject, or some rows of its file, averaged per picture; never a test trial.

    Raises
    ------
    InputError
        Fewer than two pictures.
    """
    with PreparedSubject(path) as data:
        own = by_split(data, rows)
        images = [np.unique(data.stimulus[trials]) for trials in own.values()]
        split = np.concatenate([np.full(len(part), number, np.int8) for number, part in enumerate(images)])
        responses = np.empty((len(split), data.n_voxels), np.float32)
        for number, trials in enumerate(own.values()):
            responses[split == number] = data.by_picture(trials, "stored")[1][:, 0]
    return PictureResponses(np.concatenate(images), responses, split)


def by_split(data: PreparedSubject, rows: Mapping[TrainingSplit, NDArray] | None) -> Mapping[TrainingSplit, NDArray]:
    """Some rows by split, by default all training and validation trials; InputError where they show fewer than two pictures."""
    own = rows or {"train": data.trials("train"), "validation": data.trials("validation")}
    if (pictures := sum(len(np.unique(data.stimulus[trials])) for trials in own.values())) < 2:
        raise InputError(f"{data.path}: {pictures} training pictures; at least two are needed")
    return own


def teach(study: Study, method: str, group: str, prepared: list[Path], embeddings: list[Path], out: Path) -> None:
    """Write what a closed form learns of a group's training subjects: the picture space and, for `decoded`, the prior over voxels.

    The prior stands there as taught by all, and as taught by all but each one: that one decodes the subject's own trials.

    Parameters
    ----------
    prepared, embeddings : lists of Path
        One of each per member of the group, in the order of `study.members(method, group)`.
    """
    settings, begun = study.method(method), time.monotonic()
    members = study.members(method, group)
    if not len(members) == len(prepared) == len(embeddings):
        raise InputError(
            f"teach: {len(prepared)} prepared and {len(embeddings)} embeddings files for the {len(members)} subjects of {group}; give one of each per subject"
        )
    rows, images = {}, {}
    for (dataset, subject), path in zip(members, prepared, strict=True):
        with PreparedSubject(path) as data:
            key = subject_key(dataset, subject)
            rows[key] = by_split(data, training_rows(study, method, data))
            images[key] = np.concatenate([np.unique(data.stimulus[trials]) for trials in rows[key].values()])
    space = picture_space(embeddings, list(images.values()))
    state, config = {f"space.{name}": tensor for name, tensor in space.state_dict().items()}, {"kind": "taught", "space": space.arguments}
    if isinstance(settings.enter, Decoded):
        files = dict(zip(rows, prepared, strict=True))
        pictures = {key: PictureCoordinates(path, own, space).coordinates(own).numpy() for (key, own), path in zip(images.items(), embeddings, strict=True)}
        prior = TaughtPrior.by(space, pictures, lambda key: read_trials(files[key], rows[key]).responses, settings.enter.mixed)
        state |= {f"prior.{name}": tensor for name, tensor in prior.state().items()}
    device = on_device() if isinstance(settings.enter, Decoded) else torch.device("cpu")
    mark = fingerprint(study, [*prepared, *embeddings], __name__)
    config |= {"subjects": list(rows), "inputs": mark}
    write_model(out, state, config, closed_form(sum(map(len, images.values())), state, time.monotonic() - begun, device))


def enter(
    study: Study, method: str, dataset: str, subject: str, prepared: Path, embeddings: Path, taught: Path | None, out: Path,
    trials: str | None = None, seed: str | None = None,
) -> None:  # fmt: skip
    """Write a subject's closed form: the map from its voxels to the picture space, as a model that predicts with nothing behind it.

    Where something is trained on a training subject's signals, `entered.h5` beside it holds them: coordinates (rows, K) of its
    training pictures, each from a context of other pictures of the subject (see `cross_fitted`).

    Parameters
    ----------
    taught : Path, optional
        What `teach` wrote; without it ridge regression makes a picture space of the subject's own pictures.
    trials : str, optional
        How many training trials may be used, or `all`. Smaller budgets are contained in larger ones of the same seed.
    seed : str, optional
        Of the drawing of trials; by default the study's.
    """
    settings = study.method(method)
    if not settings.closed:
        raise InputError(f"methods.{method}.enter: {settings.enter.kind} is trained; run the stage align")
    with PreparedSubject(prepared) as data:
        if (data.dataset, data.subject) != (dataset, subject):
            raise InputError(f"{prepared}: is of {data.dataset} {data.subject}, expected {dataset} {subject}")
        if trials in (None, "all"):
            rows = training_rows(study, method, data)
        else:
            rows = budget_rows(data, whole_number("trials", trials), study.seed if seed is None else whole_number("seed", seed))
    own = read_trials(prepared, rows)
    begun, key = time.monotonic(), subject_key(dataset, subject)
    space, prior = load_taught(taught) if taught is not None else (picture_space([embeddings], [own.images]), None)
    if settings.enter.kind == "decoded" and prior is None:
        raise InputError(f"methods.{method}.enter: decoded is taught by training subjects; give --taught, what the stage `teach` wrote")
    coordinates = PictureCoordinates(embeddings, own.images, space).coordinates(own.images).numpy()

    def decoder(rows: NDArray) -> LinearMap:
        return closed_form_of(settings, key, space, prior, coordinates[rows], own.responses[rows], study.seed)

    say(f"{key}: {settings.enter.kind} on {len(own.images)} pictures x {own.responses.shape[1]} voxels")
    encoder = Encoder(settings.enter.model_dump(), {"kind": "identity"}, space, tuple(space.components), {})
    encoder.take_map(key, decoder(np.arange(len(own.images))), Context.of(coordinates, space))
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    mark = fingerprint(study, [prepared, embeddings, *([taught] if taught else [])], __name__)
    found = {"kind": "entered", "encoder": encoder.arguments, "subject": key, "inputs": mark}
    entered = None
    if study.signals(method) and trials in (None, "all") and (settings.scope == "subject" or study.role(dataset, subject) == "train"):
        if (pictures := int((own.split == 0).sum())) < FOLDS:
            raise InputError(
                f"{prepared}: {pictures} training pictures; a training subject's signals come from {FOLDS} folds of them: give more trials, "
                f"or leave {subject} out of the training subjects"
            )
        entered = cross_fitted(own, coordinates, space, decoder, study.seed, key, settings.align is not None and settings.align.in_sample)
    trained = closed_form(len(own.images), weights, time.monotonic() - begun, on_device())

    def write_entered(folder: Path) -> None:
        if entered is not None:
            with NewFile(folder / "entered.h5") as file:
                for name, values in entered.items():
                    file.create_dataset(name, data=values, chunks=(min(256, len(values)), *values.shape[1:]))
                file.attrs["n_voxels"] = own.responses.shape[1]

    write_model(out, weights, found, trained, beside=write_entered)


def load_taught(directory: Path) -> tuple[PictureSpace, TaughtPrior | None]:
    """What `teach` wrote: the picture space, and the prior where one was learned."""
    state, config = load_model(directory)
    if config.get("kind") != "taught":
        raise InputError(f"{directory}: not what the stage `teach` writes (its config.json says {config.get('kind')}); give that stage's folder")
    space = PictureSpace(**config["space"])
    space.load_state_dict({name.removeprefix("space."): tensor for name, tensor in state.items() if name.startswith("space.")})
    own = {name.removeprefix("prior."): tensor for name, tensor in state.items() if name.startswith("prior.")}
    return space, TaughtPrior.from_state(own) if own else None


def closed_form_of(
    settings: Method, key: str, space: PictureSpace, prior: TaughtPrior | None, coordinates: NDArray, responses: NDArray[np.float32], seed: int
) -> LinearMap:
    """A closed form's map from responses (n, V) to coordinates (n, K).

    Of `decoded` it is the mean of two maps that err differently: the prior's decoder, whose few picture features are known from few trials,
    and the subject's own ridge regression, which reads every component from many.
    """
    together = components_together(space)
    if isinstance(settings.enter, Ridge):
        found = fit_ridge(responses, coordinates, settings.enter.alphas, settings.enter.folds, seed, together=together)
        return rescaled(found, responses, coordinates, space) if settings.enter.rescale else found
    assert prior is not None and isinstance(settings.enter, Decoded)
    found = prior.decoder(key, coordinates, responses)
    if not settings.enter.ridge:
        return found
    usual, share = Ridge(kind="ridge"), ridge_share(len(responses))
    own = fit_ridge(responses, coordinates, usual.alphas, usual.folds, seed, together=together)
    return LinearMap(*((1 - share) * taught + share * alone for taught, alone in zip(found, own, strict=True)))


def ridge_share(pictures: int) -> float:
    """How much the subject's own ridge regression counts beside the prior's decoder, with so many pictures of the subject: n / (2 (n + 100)).

    Chosen by validation pictures of the macaque and the embedded study's training subjects, among limits of .3, .5 and .7 and half-way points
    of 0, 30, 100 and 300 pictures: the error of the embedding is smaller at every budget, and identification nowhere worse by more than .0025.
    """
    return pictures / (2 * (pictures + 100))


def contexts(split: NDArray[np.int8], seed: int, key: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(rows a closed form is fitted to, rows it is asked for), of a subject's pictures by their split.

    Contexts of 25, 50, 100, ... training pictures, each asked for a quarter of the others; then folds, which ask for every training
    picture once. Held-out pictures are asked for in all, and in none fitted to.
    """
    train, unseen = np.flatnonzero(split == 0), np.flatnonzero(split == 1)
    largest = len(train) * (FOLDS - 1) // FOLDS
    sizes = [SMALLEST * 2**k for k in range(20) if SMALLEST * 2**k <= largest * 3 // 4]
    for size in sizes:
        for number in range(CONTEXTS):
            order = train[torch.randperm(len(train), generator=generator(seed, key, "context", size, number)).numpy()]
            yield order[:size], np.concatenate([order[size:][: max(len(train) // 4, min(350, len(train)))], unseen])
    order = train[torch.randperm(len(train), generator=generator(seed, key, "folds")).numpy()]
    for fold in range(FOLDS):
        asked = order[fold::FOLDS]
        yield np.setdiff1d(train, asked)[:largest], np.concatenate([asked, unseen if fold == 0 else unseen[:0]])


def cross_fitted(own: PictureResponses, coordinates: NDArray, space: PictureSpace, decoder: Any, seed: int, key: str, in_sample: bool) -> dict[str, NDArray]:
    """Signals of a training subject's pictures at many sizes of contexts: what `entered.h5` holds.

    Of every row `stimulus`, `split`, `context` and `coordinates` (rows, K); of every context the fields of `Context`.

    Parameters
    ----------
    decoder : function
        Rows -> LinearMap fitted to them.
    in_sample : bool
        Ablation: training pictures are asked of the contexts they are in.
    """
    columns: dict[str, list[NDArray]] = {"stimulus": [], "split": [], "context": [], "coordinates": []}
    fitted_to = []
    for number, (fitted, asked) in enumerate(contexts(own.split, seed, key)):
        found = decoder(fitted)
        fitted_to.append(Context.of(coordinates[fitted], space))
        if in_sample:
            asked = np.concatenate([fitted[: max(1, (own.split[asked] == 0).sum())], asked[own.split[asked] == 1]])
        columns["stimulus"].append(own.images[asked])
        columns["split"].append(own.split[asked])
        columns["context"].append(np.full(len(asked), number, np.int32))
        columns["coordinates"].append(own.responses[asked] @ found.weight + found.bias)
    of_contexts = {name: np.stack([np.asarray(getattr(one, name)) for one in fitted_to]) for name in Context._fields}
    return {name: np.concatenate(parts) for name, parts in columns.items()} | of_contexts


def closed_form(pictures: int, state: Mapping[str, torch.Tensor], seconds: float, device: torch.device) -> Trained:
    """The efficiency record of a closed form that was computed on a device."""
    count = sum(tensor.numel() for tensor in state.values())
    weights = sum(tensor.numel() for name, tensor in state.items() if name.endswith("weight"))
    return Trained(0, efficiency={
        "parameters": count, "trainable_parameters": count, "flops_per_sample": 2 * weights, "peak_memory": peak_memory(device),
        "samples_per_second": pictures / max(seconds, 1e-9), "seconds": seconds, "conditions": conditions(device, "fp64", None),
    })  # fmt: skip


def whole_number(name: str, given: str) -> int:
    """A number given on the command line; InputError where it is none."""
    if not given.isdecimal() or (name == "trials" and int(given) == 0):
        raise InputError(f"--{name}: {given!r} given; expected a whole number{' or all' if name == 'trials' else ''}")
    return int(given)
