"""Stage `adapt`: fit a shared model to a new subject by gradient steps, from all its trials or from a budget of them."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unimind.data.prepared import PreparedSubject
from unimind.device import on_device
from unimind.errors import InputError
from unimind.models.encoder import Encoder, load_encoder
from unimind.models.enter import Adapters, module_name, subject_key
from unimind.stages import STAGES
from unimind.storage import load_model
from unimind.streams import placed
from unimind.study import Adapt, Align, Study
from unimind.training.align import ROWS, pictures_seen, read_subject, remember_body
from unimind.training.alignment import Aligned, AlignmentLosses, draw_rows, held_out, start_at_signal, trained_config, validation
from unimind.training.data import PictureCoordinates, SubjectTrials, budget_rows, joined, new_encoder, picture_space, turns
from unimind.training.enter import closed_form, whole_number
from unimind.training.loop import Trained, fingerprint, stream_seed, train, write_model
from unimind.training.voxels import start_at_encoding, teach_voxels

#: Where a subject's adapter starts: (encoder, subject, trials, targets, whole), from the training part or from all trials.
Start = Callable[..., None]
Subject = tuple[SubjectTrials, PictureCoordinates]


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
    training_prepared, training_embeddings : lists of Path, optional
        Training subjects' files, needed where `adapt.mix_training` asks for them.

    Raises
    ------
    InputError
        The method does not adapt, the budget cannot be met, or training subjects are missing.
    """
    settings = study.method(method)
    stage = settings.adapt
    if stage is None:
        raise InputError(f"methods.{method}.adapt: the method has none, so there is nothing to do in this stage")
    number = study.seed if seed is None else whole_number("seed", seed)
    key = subject_key(dataset, subject)
    state, config = load_model(shared)
    encoder, _ = load_encoder(shared)
    own = read_budget(study, method, dataset, subject, prepared, embeddings, trials, number, encoder)
    others = _training_subjects(study, method, training_prepared or [], training_embeddings or [], encoder) if stage.mix_training > 0 else {}
    if stage.mix_training > 0 and not others:
        raise InputError(
            f"methods.{method}.adapt.mix_training: {stage.mix_training} given, but no training subjects; "
            "give their --training-prepared and --training-embeddings"
        )

    torch.manual_seed(stream_seed(number, "adapt"))
    begin: Start | None = None
    if encoder.per_subject:
        encoder.add_subject(key, own[0].n_voxels)
        if isinstance(encoder.enter, Adapters) and stage.start == "ridge":
            begin = partial(start_at_signal, seed=number)
        if settings.encodes:
            begin = start_at_encoding
    names = trained_parameters(encoder, key, stage.strategy, stage.rank)
    budget = "all" if trials is None else trials
    files = [prepared, embeddings, shared, *(training_prepared or []), *(training_embeddings or [])]
    mark = fingerprint(STAGES["adapt"].view(study, method=method), files, __name__, number, budget)
    label = f"{settings.label or method}: adapt to {key} ({budget} trials)"
    trained = train_on(own, encoder, key, names, begin, stage, settings.align or Align(), number, checkpoints, mark, label, others)
    merge_low_rank(encoder)
    encoder.eval()
    remember_body(encoder, {key: own})
    state = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}
    state |= {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    trained.efficiency["parameters"] = sum(tensor.numel() for tensor in state.values())
    config |= trained_config("adapted", encoder, subject=key, trials=budget, seed=number, strategy=stage.strategy, inputs=mark, held_out=trained.validation)
    write_model(out, state, config, trained, checkpoints)


def scratch(
    study: Study, method: str, dataset: str, subject: str, prepared: Path, embeddings: Path, checkpoints: Path, out: Path, trials: str, seed: str
) -> None:
    """Write a model of the method's form that knows nothing but a budget of one subject's trials: what adaptation must beat.

    It trains everything with the losses and steps of `adapt`.
    """
    settings = study.method(method)
    stage = settings.adapt
    if stage is None:
        raise InputError(f"methods.{method}.adapt: the method has none, so there is nothing to compare from scratch")
    number, key = whole_number("seed", seed), subject_key(dataset, subject)
    part = read_subject(study, method, dataset, subject, prepared, _rows(trials, number))
    space = picture_space([embeddings], [pictures_seen(part)])
    torch.manual_seed(stream_seed(number, "scratch"))
    encoder = new_encoder(study, method, space, {key: part.n_voxels} if settings.per_subject else {}, part.channels, None)
    names = [name for name, _ in encoder.named_parameters()]
    mark = fingerprint(STAGES["adapt"].view(study, method=method), [prepared, embeddings], __name__, number, trials, "scratch")
    label = f"{settings.label or method}: {key} from scratch ({trials} trials)"
    own = (part, PictureCoordinates(embeddings, pictures_seen(part), space))
    if settings.encodes:
        teach_voxels(encoder, {key: own}, number)
    trained = train_on(own, encoder, key, names, None, stage, settings.align or Align(), number, checkpoints, mark, label)
    encoder.eval()
    remember_body(encoder, {key: own})
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    config = trained_config("aligned", encoder, method=method, group=key, subjects=[key], inputs=mark, held_out=trained.validation)
    write_model(out, state, config, trained, checkpoints)


def train_on(
    own: Subject,
    encoder: Encoder,
    key: str,
    names: list[str],
    begin: Start | None,
    stage: Adapt,
    align: Align,
    seed: int,
    checkpoints: Path,
    mark: str,
    label: str,
    others: Mapping[str, Subject] | None = None,
) -> Trained:
    """Train some of an encoder's parameters on one subject's trials; validation comes out of these trials.

    Where training begins at a decoder computed from the trials (`begin`), the decoder is computed twice: without the
    held-out trials, where training starts and validation judges what it adds; and at last from all trials, to which
    what training added is added.
    """
    others = others or {}
    if stage.strategy == "none":
        assert begin is not None
        begun = time.monotonic()
        begin(encoder, key, own[0], own[1], whole=True)
        mine = {name: tensor for name, tensor in encoder.state_dict().items() if module_name(key) in name}
        return closed_form(len(own[0].images("train")), mine, time.monotonic() - begun, on_device())
    if begin is not None:
        begin(encoder, key, own[0], own[1], whole=False)
    model = Aligned(encoder, [key], stage.losses)
    trainable = [*(f"encoder.{name}" for name in names), *(f"builders.{name}" for name, _ in model.builders.named_parameters())]
    started = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters() if name in set(names)}
    size = stage.training.batch_size
    rows = min(max(1, round(size * (1 - stage.mix_training))), size - 1) if others else size
    count = len(own[0].images("train"))
    everybody = {key: own, **others}

    def draw(step: int) -> dict[str, Any]:
        places = turns([key], rows, step) | (turns(list(others), size - rows, step) if others else {})
        return joined({name: draw_rows(*everybody[name], own_places, step, seed, False) for name, own_places in places.items()})

    unseen = held_out({key: own})
    losses = AlignmentLosses(stage.losses if others else stage.losses.model_copy(update={"siamese": 0.0}), align.margin, align.temperature, [key])
    trained = train(
        model, draw=draw, losses=losses, settings=stage.training, **losses.sharing, seed=seed,
        checkpoints=checkpoints, fingerprint=mark, label=label, n_samples=count, samples_per_step=rows, trainable=trainable,
        validate=(lambda module: validation(module.encoder, unseen, everybody, ROWS)) if unseen else None,
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


def read_budget(
    study: Study, method: str, dataset: str, subject: str, prepared: Path, embeddings: Path, trials: str | None, seed: int, encoder: Encoder
) -> Subject:
    """A new subject's trials, all of them in the file's own splits, or a budget of them.

    A budget is the first so many trials of one random order of the training and validation trials; every fifth picture of
    it, in that order, is held out.
    """
    own = read_subject(study, method, dataset, subject, prepared, _rows(trials, seed))
    return own, PictureCoordinates(embeddings, pictures_seen(own), encoder.space)


def _rows(trials: str | None, seed: int) -> Any:
    return None if trials in (None, "all") else lambda data: budget_rows(data, whole_number("trials", str(trials)), seed)


def _training_subjects(study: Study, method: str, prepared: list[Path], embeddings: list[Path], encoder: Encoder) -> dict[str, Subject]:
    """Trials and targets of training subjects, by `subject_key`."""
    if len(prepared) != len(embeddings):
        raise InputError(f"adapt: {len(prepared)} --training-prepared and {len(embeddings)} --training-embeddings files; give one of each per subject")
    subjects = {}
    for path, targets in zip(prepared, embeddings, strict=True):
        with PreparedSubject(path) as data:
            dataset, subject = data.dataset, data.subject
        own = read_subject(study, method, dataset, subject, path)
        subjects[subject_key(dataset, subject)] = (own, PictureCoordinates(targets, pictures_seen(own), encoder.space))
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


def trained_parameters(encoder: Encoder, key: str, strategy: Literal["adapter", "adapter+norms", "low-rank", "everything", "none"], rank: int) -> list[str]:
    """Names of the encoder's parameters that a strategy trains; gives the encoder its low-rank updates where asked to."""
    names = encoder.own_parameters(key)
    if strategy == "none":
        return []
    if strategy == "everything":
        return [name for name, _ in encoder.named_parameters() if not name.startswith("enter.")] + names
    if strategy == "adapter+norms":
        norms = [name for name, module in encoder.named_modules() if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and not name.startswith("enter.")]
        names += [f"{name}.{own}" for name in norms for own, _ in encoder.get_submodule(name).named_parameters()]
    if strategy == "low-rank":
        for name, module in list(encoder.named_modules()):
            dense = isinstance(module, (nn.Linear, nn.Conv1d)) and not name.startswith("enter.")
            if dense:
                update = placed(f"low rank of {name}", lambda weight=module.weight: LowRank(weight, rank))  # type: ignore[misc]
                parametrize.register_parametrization(module, "weight", update)
                names += [f"{name}.parametrizations.weight.0.{own}" for own in ("down", "up")]
    return names


def merge_low_rank(encoder: Encoder) -> None:
    """Turn low-rank updates into plain weights."""
    for module in list(encoder.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
