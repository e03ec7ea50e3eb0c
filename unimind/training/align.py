"""Stage `align`: one encoder for a group's subjects, its embeddings aligned across subjects and with the images'."""

from pathlib import Path
from typing import Any

import torch

from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.models.encoder import subject_key
from unimind.progress import say
from unimind.study import Study
from unimind.training.alignment import (
    MIXED_SHARE,
    Aligned,
    AlignmentLosses,
    draw_rows,
    held_out,
    linear_path_rate,
    remember_signal,
    start_at_ridge,
    trained_config,
    validation,
)
from unimind.training.data import SubjectTrials, Targets, joined, new_encoder, training_rows, turns
from unimind.training.loop import fingerprint, n_steps, stream_seed, train, write_model


def align(study: Study, method: str, group: str, prepared: list[Path], embeddings: list[Path], pretrained: Path | None, checkpoints: Path, out: Path) -> None:
    """Write the aligned encoder of a group (weights under `encoder.`).

    Parameters
    ----------
    prepared, embeddings : lists of Path
        One of each per member of the group, in the order of `study.members(method, group)`.
    pretrained : Path, optional
        Directory that `pretrain` wrote.

    Raises
    ------
    InputError
        The method does not align; the files do not fit the group; no loss is left to train with.
    """
    settings = study.method(method)
    stage = settings.align
    if stage is None:
        raise InputError(f"methods.{method}.align: the method has none, so there is nothing to train in this stage")
    subjects = read_group(study, method, group, prepared, embeddings)
    names = list(subjects)
    if len(names) == 1 and stage.losses.siamese + stage.losses.subject + stage.losses.adversarial > 0:
        say(f"align: {group} is one subject, so the cross-subject losses (siamese, subject, adversarial) are left out")
        if stage.losses.embedding + stage.losses.softclip == 0:
            raise InputError(f"methods.{method}.align.losses: only cross-subject losses for one subject; give `embedding` or `softclip` a weight")

    torch.manual_seed(stream_seed(study.seed, method, group, "align"))
    first = subjects[names[0]]
    pictures = torch.cat([targets(trials.images("train")) for trials, targets in subjects.values()])
    encoder = new_encoder(study, method, {name: trials.n_voxels for name, (trials, _) in subjects.items()}, first[0].channels, pretrained, pictures.shape[1])
    encoder.start_linear_path(pictures)
    if stage.start == "ridge" and encoder.length == "adapter":
        start_at_ridge(encoder, subjects, study.seed)
    model = Aligned(encoder, names, stage.losses)
    size = stage.training.batch_size
    total = sum(len(trials.images("train")) for trials, _ in subjects.values())
    mixed_until = MIXED_SHARE * n_steps(stage.training, total, size) if stage.losses.softclip > 0 else 0

    def draw(step: int) -> dict[str, Any]:
        return joined({name: draw_rows(*subjects[name], places, step, study.seed, step < mixed_until) for name, places in turns(names, size, step).items()})

    unseen = held_out(subjects)
    mark = fingerprint([settings.model_dump(mode="json"), study.seed, method, group], [*prepared, *embeddings, *([pretrained] if pretrained else [])], __name__)
    losses = AlignmentLosses(stage.losses, stage.margin, stage.temperature, names, stage.shuffle_labels)
    trained = train(
        model, draw=draw, losses=losses, settings=stage.training, compares_rows=losses.compares_rows, seed=study.seed,
        checkpoints=checkpoints, fingerprint=mark, label=f"{settings.label or method}: align {', '.join(names)}", n_samples=total,
        validate=(lambda module: validation(module.encoder, unseen, 256)) if unseen else None,
        rate=linear_path_rate if stage.start == "ridge" and encoder.length == "adapter" else None,
    )  # fmt: skip
    if encoder.length == "adapter":
        remember_signal(encoder, subjects, study.seed)
    aligned = stage.losses.embedding + stage.losses.softclip > 0
    config = trained_config("aligned", settings, encoder, method=method, group=group, aligned=aligned, subjects=names, inputs=mark, held_out=trained.validation)
    write_model(out, model.state_dict(), config, trained, checkpoints)


def read_group(study: Study, method: str, group: str, prepared: list[Path], embeddings: list[Path]) -> dict[str, tuple[SubjectTrials, Targets]]:
    """Trials and image embeddings of a group's members, by `subject_key`.

    Raises
    ------
    InputError
        The numbers of files do not fit the group, or a file is of another subject.
    """
    members = study.members(method, group)
    if not len(members) == len(prepared) == len(embeddings):
        raise InputError(
            f"{len(prepared)} prepared and {len(embeddings)} embeddings files for the {len(members)} subjects of group {group!r}; "
            "give one of each per subject, in the study's order"
        )
    subjects = {}
    for (dataset, subject), path, targets in zip(members, prepared, embeddings, strict=True):
        subjects[subject_key(dataset, subject)] = read_subject(study, method, dataset, subject, path, targets)
    return subjects


def read_subject(study: Study, method: str, dataset: str, subject: str, prepared: Path, embeddings: Path) -> tuple[SubjectTrials, Targets]:
    """Trials and image embeddings of one subject; InputError where the file is of another one."""
    with PreparedSubject(prepared) as data:
        if (data.dataset, data.subject) != (dataset, subject):
            raise InputError(f"{prepared}: is of {data.dataset} {data.subject}, expected {dataset} {subject}; give the files in the study's order")
        images = data.stimulus[data.split != 2]
        trials = SubjectTrials(data, study.method(method).voxels, training_rows(study, method, data))
    return trials, Targets(embeddings, images)
