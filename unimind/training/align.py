"""Stage `align`: what a group's subjects share, trained: embeddings aligned across subjects, and the pictures' targets predicted."""

from pathlib import Path
from typing import Any

import torch

from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.models.encoder import Encoder, load_encoder
from unimind.models.enter import Adapters, subject_key
from unimind.models.space import PictureSpace
from unimind.progress import say
from unimind.study import Study
from unimind.training.alignment import Aligned, AlignmentLosses, draw_rows, held_out, remember_signal, trained_config, validation, with_others
from unimind.training.data import EnteredSignals, PictureCoordinates, SubjectTrials, joined, new_encoder, picture_space, training_rows, turns
from unimind.training.loop import Trained, fingerprint, generator, stream_seed, train, write_model
from unimind.training.voxels import teach_voxels

#: Rows at a time where a trained body is only run.
ROWS = 256

Subjects = dict[str, tuple[Any, PictureCoordinates]]


def align(
    study: Study, method: str, group: str, prepared: list[Path] | None, embeddings: list[Path], entered: list[Path] | None, pretrained: Path | None,
    checkpoints: Path, out: Path,
) -> None:  # fmt: skip
    """Write the model of a group (weights under `encoder.`).

    Parameters
    ----------
    prepared, embeddings : lists of Path
        One of each per member of the group, in the order of `study.members(method, group)`.
    entered : list of Path, optional
        Instead of `prepared` where the method enters in closed form: what `enter` wrote, one per member.
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
    subjects, space = read_group(study, method, group, prepared or [], embeddings, entered or [])
    names = list(subjects)
    if len(names) == 1 and stage.losses.siamese + stage.losses.subject + stage.losses.adversarial + stage.losses.cycle > 0:
        say(f"align: {group} is one subject, so the cross-subject losses (siamese, subject, adversarial, cycle) are left out")
        if not stage.losses.targets:
            raise InputError(f"methods.{method}.align.losses: only cross-subject losses for one subject; give `embedding` or `softclip` a weight")

    files = [*(prepared or []), *((path / "entered.h5") for path in entered or []), *embeddings, *([pretrained] if pretrained else [])]
    mark = fingerprint(study, files, __name__)
    label = f"{settings.label or method}: align {', '.join(names)}"
    model, trained = train_aligned(study, method, subjects, space, pretrained, checkpoints, mark, label)
    encoder = model.encoder.eval()
    if isinstance(encoder.enter, Adapters):
        remember_signal(encoder, subjects, study.seed)
    remember_body(encoder, subjects)
    config = trained_config("aligned", encoder, method=method, group=group, subjects=names, inputs=mark, held_out=trained.validation)
    write_model(out, model.state_dict(), config, trained, checkpoints)


def train_aligned(
    study: Study, method: str, subjects: Subjects, space: PictureSpace, pretrained: Path | None, checkpoints: Path, mark: str, label: str
) -> tuple[Aligned, Trained]:
    """A method's encoder, trained on some subjects' pictures; what is held out watches."""
    settings, names = study.method(method), list(subjects)
    stage = settings.align
    assert stage is not None
    torch.manual_seed(stream_seed(study.seed, "align"))
    counts = {name: trials.n_voxels for name, (trials, _) in subjects.items()} if settings.per_subject else {}
    encoder = new_encoder(study, method, space, counts, subjects[names[0]][0].channels, pretrained)
    contexts = teach_voxels(encoder, subjects, study.seed) if settings.encodes else {}
    model = Aligned(encoder, names, stage.losses)
    size = stage.training.batch_size
    total = sum(len(trials.images("train")) for trials, _ in subjects.values())
    mixed_until = stage.mixco * stage.training.total(total, size)

    def draw(step: int) -> dict[str, Any]:
        parts, enters = {}, []
        for name, places in turns(names, size, step).items():
            key, among = name, None
            if name in contexts:
                number = int(torch.randint(len(contexts[name]), (), generator=generator(study.seed, name, "context", step)))
                key, among = contexts[name][number]
            parts[name] = draw_rows(*subjects[name], places, step, study.seed, step < mixed_until, among)
            enters += [key] * len(places)
        batch = joined(parts) | ({"enters": enters} if contexts else {})
        return with_others(batch, names, step, study.seed) if stage.losses.cycle > 0 else batch

    unseen = held_out(subjects) if encoder.targets else {}
    losses = AlignmentLosses(stage.losses, stage.margin, stage.temperature, names, stage.shuffle_labels, stage.noise)
    trained = train(
        model, draw=draw, losses=losses, settings=stage.training, **losses.sharing, seed=study.seed,
        checkpoints=checkpoints, fingerprint=mark, label=label, n_samples=total,
        validate=(lambda module: validation(module.encoder, unseen, subjects, ROWS)) if unseen else None,
    )  # fmt: skip
    return model, trained


def remember_body(encoder: Encoder, subjects: Subjects) -> None:
    """Keep the body's mean output over the training pictures: what the row `body removed` puts in its place."""
    signals = []
    with torch.no_grad():
        for name, (trials, _) in subjects.items():
            for part in trials.all("train", limit=16 * ROWS)[1].split(ROWS):
                part = part.to(encoder.space.embedding_mean.device)
                signals.append(part if encoder.closed else encoder.enter(part, name))
    encoder.remember_body(signals)


def read_group(
    study: Study, method: str, group: str, prepared: list[Path], embeddings: list[Path], entered: list[Path], whole: bool = False
) -> tuple[Subjects, PictureSpace]:
    """What a group's members give a training, by `subject_key`, and the picture space of it.

    Parameters
    ----------
    whole : bool
        Of signals, only those that a subject with all its trials has.

    Raises
    ------
    InputError
        The numbers of files do not fit the group, or a file is of another subject.
    """
    members, closed = study.members(method, group), study.method(method).closed
    given = entered if closed else prepared
    if not len(members) == len(given) == len(embeddings):
        raise InputError(
            f"{len(given)} {'entered' if closed else 'prepared'} and {len(embeddings)} embeddings files for the {len(members)} subjects of group {group!r}; "
            "give one of each per subject, in the study's order"
        )
    trials: dict[str, SubjectTrials | EnteredSignals] = {}
    for (dataset, subject), path in zip(members, given, strict=True):
        key = subject_key(dataset, subject)
        trials[key] = EnteredSignals(path, key, whole) if closed else read_subject(study, method, dataset, subject, path)
    images = [pictures_seen(own) for own in trials.values()]
    space = load_encoder(entered[0])[0].space if closed else picture_space(embeddings, [own.images("train") for own in trials.values()])
    return {key: (own, PictureCoordinates(path, rows, space)) for (key, own), path, rows in zip(trials.items(), embeddings, images, strict=True)}, space


def pictures_seen(trials: SubjectTrials | EnteredSignals) -> Any:
    """Stimulus indices of all pictures that a subject trains or watches training with."""
    return torch.cat([torch.from_numpy(trials.images(split)) for split in ("train", "validation")]).numpy()  # type: ignore[arg-type]


def read_subject(study: Study, method: str, dataset: str, subject: str, prepared: Path, rows: Any = None) -> SubjectTrials:
    """Trials of one subject; InputError where the file is of another one."""
    with PreparedSubject(prepared) as data:
        if (data.dataset, data.subject) != (dataset, subject):
            raise InputError(f"{prepared}: is of {data.dataset} {data.subject}, expected {dataset} {subject}; give the files in the study's order")
        return SubjectTrials(data, rows=rows(data) if rows else training_rows(study, method, data), **study.method(method).responses())
