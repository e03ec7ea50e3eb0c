"""Stage `adapt`: fit a shared model to a new subject, from all its trials or from a budget of them."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unimind.data.prepared import Order, PreparedSubject
from unimind.errors import InputError
from unimind.models.encoder import FmriEncoder, load_encoder, subject_key
from unimind.storage import load_model
from unimind.study import Adapt, Align, Study
from unimind.training.align import read_subject
from unimind.training.alignment import (
    ALPHAS,
    FOLDS,
    MIXED_SHARE,
    Aligned,
    AlignmentLosses,
    draw_rows,
    held_out,
    linear_path_rate,
    ridge,
    start_at_signal,
    trained_config,
    validation,
)
from unimind.training.data import SubjectTrials, Targets, budget_rows, joined, new_encoder, turns
from unimind.training.loop import Trained, fingerprint, n_steps, stream_seed, train, write_model
from unimind.training.prior import Taught, read_trials, teach

#: Where a subject's adapter starts: (encoder, subject, trials, targets, whole), from the training part or from all trials.
Start = Callable[..., None]


def adapt(
    study: Study,
    method: str,
    dataset: str,
    subject: str,
    prepared: Path,
    embeddings: Path,
    shared: Path,
    checkpoints: Path,
    out: Path,
    trials: str | None = None,
    seed: str | None = None,
    diffusion: Path | None = None,
    training_prepared: list[Path] | None = None,
    training_embeddings: list[Path] | None = None,
) -> None:
    """Write a complete model of the shared one's form that also serves a new subject.

    What the strategy does not train is copied unchanged, bit for bit.

    Parameters
    ----------
    dataset, subject : str
        The new subject.
    prepared, embeddings : Path
        Its prepared file and its pictures' embeddings.
    shared : Path
        Directory that `align` or `condition` wrote.
    trials : str, optional
        How many training trials may be used, or `all`. Smaller budgets are contained in larger ones of the same seed.
    seed : str, optional
        Of the drawing of trials and of the training; by default the study's.
    diffusion : Path, optional
        Not needed: the encoder is adapted by the alignment losses.
    training_prepared, training_embeddings : lists of Path, optional
        Training subjects' files, needed where `adapt.start: prior` or `adapt.mix_training` asks for them.

    Raises
    ------
    InputError
        The method does not adapt, the budget cannot be met, or training subjects are missing.
    """
    write_adapted(study, method, dataset, subject, prepared, embeddings, shared, checkpoints, out, trials, seed, training_prepared, training_embeddings)


def write_adapted(
    study: Study, method: str, dataset: str, subject: str, prepared: Path, embeddings: Path, shared: Path, checkpoints: Path, out: Path,
    trials: str | None, seed: str | None, training_prepared: list[Path] | None, training_embeddings: list[Path] | None, taught: Taught | None = None,
) -> None:  # fmt: skip
    """What `adapt` does, with the prior that the training subjects teach (`taught`) where it is known already."""
    settings = study.method(method)
    stage = settings.adapt
    if stage is None:
        raise InputError(f"methods.{method}.adapt: the method has none, so there is nothing to do in this stage")
    number = study.seed if seed is None else _whole_number("seed", seed)
    key = subject_key(dataset, subject)
    state, config = load_model(shared)
    encoder, _ = load_encoder(shared)
    own = read_budget(study, method, dataset, subject, prepared, embeddings, trials, number)
    others = _training_subjects(study, method, training_prepared or [], training_embeddings or []) if stage.mix_training > 0 else {}
    if stage.mix_training > 0 and not others:
        raise InputError(
            f"methods.{method}.adapt.mix_training: {stage.mix_training} given, but no training subjects; "
            "give their --training-prepared and --training-embeddings"
        )

    torch.manual_seed(stream_seed(number, method, key, "adapt"))
    if encoder.length == "adapter":
        encoder.add_subject(key, own[0].n_voxels)
    names = trained_parameters(encoder, key, stage.strategy, stage.rank)
    if not names:
        raise InputError(
            f"methods.{method}.adapt.strategy: {stage.strategy!r} trains nothing, because voxels.length {encoder.length!r} has no adapter; "
            "use adapter+norms, low-rank or everything"
        )
    begin: Start | None = None
    if encoder.length == "adapter" and stage.start == "prior":
        if taught is None:
            taught = teach(training_prepared or [], training_embeddings or [], True, study.seed, study.share(method), settings.voxels.order)
        begin = partial(start_at_prior, taught=taught, prepared=prepared, embeddings=embeddings, order=settings.voxels.order, seed=number)
    elif encoder.length == "adapter" and stage.start == "ridge" and encoder.signal_weight.any():
        begin = partial(start_at_signal, seed=number)
    budget = "all" if trials is None else trials
    mark = fingerprint(
        [settings.model_dump(mode="json"), number, method, key, budget],
        [prepared, embeddings, shared, *(training_prepared or []), *(training_embeddings or [])],
        __name__,
    )
    label = f"{settings.label or method}: adapt to {key} ({budget} trials)"
    trained = train_on(own, encoder, key, names, begin, stage, settings.align or Align(), number, checkpoints, mark, label, others)
    merge_low_rank(encoder)
    state |= {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    trained.efficiency["parameters"] = sum(tensor.numel() for tensor in state.values())
    config |= trained_config(
        "adapted", settings, encoder, subject=key, trials=budget, seed=number, strategy=stage.strategy, inputs=mark, held_out=trained.validation
    )
    write_model(out, state, config, trained, checkpoints)


def scratch(
    study: Study, method: str, dataset: str, subject: str, prepared: Path, embeddings: Path, checkpoints: Path, out: Path, trials: str, seed: str
) -> None:
    """Write a model of the method's form that knows nothing but a budget of one subject's trials: what adaptation must beat.

    It begins at the subject's own ridge regression and trains everything with the losses and steps of `adapt`.
    """
    settings = study.method(method)
    stage = settings.adapt
    if stage is None:
        raise InputError(f"methods.{method}.adapt: the method has none, so there is nothing to compare from scratch")
    number, key = _whole_number("seed", seed), subject_key(dataset, subject)
    own = read_budget(study, method, dataset, subject, prepared, embeddings, trials, number)
    torch.manual_seed(stream_seed(number, method, key, "scratch"))
    pictures = own[1](np.unique(np.concatenate([own[0].images(split) for split in ("train", "validation")])))
    encoder = new_encoder(study, method, {key: own[0].n_voxels}, own[0].channels, None, pictures.shape[1])
    encoder.start_linear_path(pictures)
    names = [name for name, _ in encoder.named_parameters()]
    begin = partial(start_at_own_ridge, seed=number) if encoder.length == "adapter" else None
    mark = fingerprint([settings.model_dump(mode="json"), number, method, key, trials, "scratch"], [prepared, embeddings], __name__)
    label = f"{settings.label or method}: {key} from scratch ({trials} trials)"
    trained = train_on(own, encoder, key, names, begin, stage, settings.align or Align(), number, checkpoints, mark, label)
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    config = trained_config("aligned", settings, encoder, method=method, group=key, aligned=True, subjects=[key], inputs=mark, held_out=trained.validation)
    write_model(out, state, config, trained, checkpoints)


def start_at_own_ridge(encoder: FmriEncoder, name: str, trials: SubjectTrials, targets: Targets, whole: bool, *, seed: int) -> None:
    """Let a subject's adapter start at ridge regression from its trials to the image embedding."""
    parts = [trials.all(split) for split in (("train", "validation") if whole else ("train",)) if len(trials.images(split))]
    images, responses = np.concatenate([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    standard = (targets(images) - encoder.head.mean.cpu()) / encoder.head.scale.cpu()
    encoder.interpolate_adapter(name)
    encoder.start_adapter(name, *(torch.from_numpy(array) for array in ridge(responses.mean(1), standard, seed)))


def train_on(
    own: tuple[SubjectTrials, Targets],
    encoder: FmriEncoder,
    key: str,
    names: list[str],
    begin: Start | None,
    stage: Adapt,
    align: Align,
    seed: int,
    checkpoints: Path,
    mark: str,
    label: str,
    others: Mapping[str, tuple[SubjectTrials, Targets]] | None = None,
) -> Trained:
    """Train some of an encoder's parameters on one subject's trials; validation comes out of these trials.

    Where training begins at a decoder computed from the trials (`begin`), the decoder is computed twice: without the
    held-out trials, where training starts and validation judges what it adds; and at last from all trials, to which
    what training added is added.
    """
    others = others or {}
    if begin is not None:
        begin(encoder, key, own[0], own[1], whole=False)
    model = Aligned(encoder, [key], stage.losses)
    started = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters() if name in set(names)}
    size = stage.training.batch_size
    rows = min(max(1, round(size * (1 - stage.mix_training))), size - 1) if others else size
    count = len(own[0].images("train"))
    mixed_until = MIXED_SHARE * n_steps(stage.training, count, rows) if stage.losses.softclip > 0 else 0
    everybody = {key: own, **others}

    def draw(step: int) -> dict[str, Any]:
        places = turns([key], rows, step) | (turns(list(others), size - rows, step) if others else {})
        return joined({name: draw_rows(*everybody[name], own_places, step, seed, step < mixed_until) for name, own_places in places.items()})

    unseen = held_out({key: own})
    losses = AlignmentLosses(stage.losses if others else stage.losses.model_copy(update={"siamese": 0.0}), align.margin, align.temperature, [key])
    trained = train(
        model, draw=draw, losses=losses, settings=stage.training, compares_rows=losses.compares_rows, seed=seed,
        checkpoints=checkpoints, fingerprint=mark, label=label, n_samples=count, samples_per_step=rows, trainable=[f"encoder.{name}" for name in names],
        validate=(lambda module: validation(module.encoder, unseen, 256)) if unseen else None,
        rate=linear_path_rate if begin is not None else None,
    )  # fmt: skip
    if begin is not None:
        parameters = dict(encoder.named_parameters())
        with torch.no_grad():
            added = {name: parameters[name].detach().cpu() - start.cpu() for name, start in started.items()}
            for name, start in started.items():
                parameters[name].copy_(start)
            begin(encoder, key, own[0], own[1], whole=True)
            for name, change in added.items():
                parameters[name].add_(change.to(parameters[name].device))
    return trained


def start_at_prior(
    encoder: FmriEncoder, name: str, trials: SubjectTrials, targets: Targets, whole: bool, *,
    taught: Taught, prepared: Path, embeddings: Path, order: Order, seed: int,
) -> None:  # fmt: skip
    """Let a new subject's adapter start at the decoder that a prior over voxels gives for its trials (`Taught.embedding_decoder`)."""
    own = read_trials(prepared, embeddings, {split: rows for split, rows in trials.rows.items() if whole or split == "train"}, order)
    decoder = taught.embedding_decoder(own, ALPHAS, FOLDS, seed)
    mean, scale = (value.double().cpu() for value in (encoder.head.mean, encoder.head.scale))
    weight, bias = torch.from_numpy(decoder.weight) / scale, (torch.from_numpy(decoder.bias) - mean) / scale
    encoder.interpolate_adapter(name)
    encoder.start_adapter(name, weight.float(), bias.float())


def read_budget(
    study: Study, method: str, dataset: str, subject: str, prepared: Path, embeddings: Path, trials: str | None, seed: int
) -> tuple[SubjectTrials, Targets]:
    """A new subject's trials, all of them in the file's own splits, or a budget of them.

    A budget is the first so many trials of one random order of the training and validation trials; every fifth picture of
    it, in that order, is held out.
    """
    if trials in (None, "all"):
        return read_subject(study, method, dataset, subject, prepared, embeddings)
    with PreparedSubject(prepared) as data:
        if (data.dataset, data.subject) != (dataset, subject):
            raise InputError(f"{prepared}: is of {data.dataset} {data.subject}, expected {dataset} {subject}")
        rows = budget_rows(data, _whole_number("trials", trials), seed)
        return SubjectTrials(data, study.method(method).voxels, rows), Targets(embeddings, data.stimulus[data.split != 2])


def _training_subjects(study: Study, method: str, prepared: list[Path], embeddings: list[Path]) -> dict[str, tuple[SubjectTrials, Targets]]:
    """Trials and image embeddings of training subjects, by `subject_key`."""
    if len(prepared) != len(embeddings):
        raise InputError(f"adapt: {len(prepared)} --training-prepared and {len(embeddings)} --training-embeddings files; give one of each per subject")
    subjects = {}
    for path, targets in zip(prepared, embeddings, strict=True):
        with PreparedSubject(path) as data:
            dataset, subject = data.dataset, data.subject
        subjects[subject_key(dataset, subject)] = read_subject(study, method, dataset, subject, path, targets)
    return subjects


class LowRank(nn.Module):
    """A trained low-rank update of a frozen weight: W + B A (Hu et al. 2022, LoRA); B starts at zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rank = min(rank, len(weight), weight[0].numel())
        self.down = nn.Parameter(torch.randn(rank, weight[0].numel()) / rank**0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def trained_parameters(encoder: FmriEncoder, key: str, strategy: Literal["adapter", "adapter+norms", "low-rank", "everything"], rank: int) -> list[str]:
    """Names of the encoder's parameters that a strategy trains; gives the encoder its low-rank updates where asked to."""
    if strategy == "everything":
        return [name for name, _ in encoder.named_parameters() if not name.startswith("adapters.")] + encoder.adapter_names(key)
    names = encoder.adapter_names(key)
    if strategy == "adapter+norms":
        norms = [name for name, module in encoder.named_modules() if isinstance(module, (nn.GroupNorm, nn.LayerNorm))]
        names += [f"{name}.{own}" for name in norms for own, _ in encoder.get_submodule(name).named_parameters()]
    if strategy == "low-rank":
        for name, module in list(encoder.named_modules()):
            dense = isinstance(module, (nn.Linear, nn.Conv1d)) and not name.startswith("adapters.")
            if dense:
                parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))
                names += [f"{name}.parametrizations.weight.0.{own}" for own in ("down", "up")]
    return names


def merge_low_rank(encoder: FmriEncoder) -> None:
    """Turn low-rank updates into plain weights."""
    for module in list(encoder.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")


def _whole_number(name: str, given: str) -> int:
    if not given.isdecimal() or (name == "trials" and int(given) == 0):
        raise InputError(f"--{name}: {given!r} given; expected a whole number{' or all' if name == 'trials' else ''}")
    return int(given)
