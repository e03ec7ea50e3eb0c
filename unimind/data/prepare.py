"""The stage `prepare`: whatever a laboratory has, to one prepared file per subject."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unimind.bundle import read_bundle
from unimind.data.manifest import read_manifest
from unimind.data.normalise import PER_SESSION, Moments, session_zscores
from unimind.data.order import anatomical_order
from unimind.data.prepared import SPLITS, Stimuli, unit_hash, write_prepared
from unimind.data.sources import open_source
from unimind.data.sources.base import DROP, TEST, TRAIN, VALIDATION, RawSubject, Trials
from unimind.errors import InputError
from unimind.progress import say, track
from unimind.study import AnyDataset, Study


def prepare(study: Study, dataset: str, subject: str, fetched: Path, stimuli: Path, training_stimuli: list[Path], out: Path) -> None:
    """Keep the voxels of the ROI, order and z-score them, split the trials, and write the prepared file.

    Parameters
    ----------
    study : Study
    dataset, subject : str
    fetched : Path
        Manifest of the subject's files.
    stimuli : Path
        Stimulus file the subject's trials refer to.
    training_stimuli : list of Path
        Stimulus files of the data set's training subjects: their test images are nobody's training images, and their
        training images nobody's test images.
    out : Path
        HDF5 file to write (`prepared.PreparedSubject`).

    Raises
    ------
    InputError
        One line, before anything is written: files missing or of another grid, a trial of an unknown picture, missing
        values, an empty split, a single test picture.
    """
    where = f"{dataset} {subject}"
    root, sources = read_manifest(fetched)
    raw = open_source(study, dataset, root).subject(subject)
    section = study.datasets[dataset]
    with Stimuli(stimuli) as pictures:
        rows = {name: row for row, name in enumerate(pictures.id)}
        stimulus = _stimulus_rows(raw.trials, rows, where, stimuli)
        sha256 = pictures.sha256
        flagged = np.where(pictures.left_out, DROP, np.where(pictures.test, TEST, TRAIN))
    tests, trained = _training_images(training_stimuli)
    if study.bundle is not None:
        bundled = read_bundle(study.bundle).pictures()
        tests, trained = tests | bundled["tests"], trained | bundled["trained"]
    hints = flagged[stimulus] if raw.trials.split is None else np.asarray(raw.trials.split)
    if section.test_pictures is not None:
        hints = np.where(hints == DROP, DROP, flagged[stimulus])
    splits = assign_splits(
        sha256[stimulus], hints, tests, trained if study.role(dataset, subject) == "new" else (), section.validation_fraction, study.seed
    )  # fmt: skip
    counts = {name: len(np.unique(sha256[stimulus[splits.split == code]])) for name, code in SPLITS.items()}
    _require_splits(counts, where, section.validation_fraction, splits.moved)
    if splits.moved:
        say(f"{where}: {splits.moved} test pictures are training pictures of the training subjects; they are training pictures here too")
    if splits.joined:
        say(f"{where}: {splits.joined} training pictures are test pictures of the data set; they are test pictures here too")
    if (splits.split == DROP).any():
        say(f"{where}: {(splits.split == DROP).sum()} trials left out: {_why_left_out(section)}")

    order, order_name = _order(raw)
    stored = order if raw.units_kept is None else np.asarray(raw.units_kept)[order]
    moments = Moments()
    roi = raw.roi if section.roi_labels else None
    common: dict[str, Any] = {
        "stimuli": len(sha256), "dataset": dataset, "subject": subject, "n_voxels": raw.n_voxels, "stored": stored, "order": order_name,
        "xyz": None if raw.xyz is None else raw.xyz[order], "roi": None if roi is None else roi[order], "roi_names": raw.roi_names,
        "noise_ceiling": None if raw.noise_ceiling is None else raw.noise_ceiling[order], "normalisation": PER_SESSION, "sources": sources,
    }  # fmt: skip
    protocol = {"source": section.source, "units": raw.units, "validation_fraction": section.validation_fraction, "seed": study.seed, **raw.protocol}
    session = np.asarray(raw.trials.session)
    kept = splits.split != DROP
    scaled = session_zscores(raw.trials.responses, session, splits.split == TRAIN, where, moments)
    write_prepared(
        out, _kept(track(scaled, f"sessions of {where}", len(np.unique(session))), session, kept, order),
        stimulus=stimulus[kept], session=session[kept], split=splits.split[kept],
        run=None if raw.trials.run is None else np.asarray(raw.trials.run)[kept],
        onset=None if raw.trials.onset is None else np.asarray(raw.trials.onset)[kept],
        protocol={**protocol, **{f"{name}_images": count for name, count in counts.items()}},
        moments=lambda: (moments.mean[order], moments.deviation[order]), **common,
    )  # fmt: skip
    say(f"{where}: {kept.sum()} trials, {raw.n_voxels} voxels; pictures: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


@dataclass(frozen=True)
class Splits:
    """The split of every trial (DROP for none), and how many pictures changed sides.

    Attributes
    ----------
    split : int8 (n_trials,)
    moved : int
        Test pictures by the source's rule that training subjects train on: training pictures.
    joined : int
        Training pictures by the source's rule that are test pictures of a training subject: test pictures.
    """

    split: NDArray[np.int8]
    moved: int
    joined: int


def assign_splits(
    image: ArrayLike, hints: ArrayLike, tests: Collection[str], trained: Collection[str], validation_fraction: float, seed: int
) -> Splits:  # fmt: skip
    """Split trials so that every image is on one side, within the subject and across the data set.

    An image is a test image when any of its trials is one, or when it is one for a training subject (`tests`). A new
    subject's test image that a training subject trains on (`trained`) is a training image. Of the training
    images, those whose hash with `seed` falls below `validation_fraction` are validation images: the same for all subjects.

    Parameters
    ----------
    image : str (n_trials,)
        What makes two pictures the same image: the SHA-256 of the pixels.
    hints : int (n_trials,)
        TRAIN, TEST or DROP by the source's rule.
    tests, trained : collection of str
        Test and training images of the training subjects; `trained` is empty for a training subject.
    validation_fraction : float
    seed : int
    """
    names, position = np.unique(np.asarray(image), return_inverse=True)
    hints = np.asarray(hints)
    own = np.zeros(len(names), bool)
    own[position[hints == TEST]] = True
    by_all = np.isin(names, list(tests))
    moved = own & ~by_all & np.isin(names, list(trained))
    test = (own & ~moved) | by_all
    place = np.array([unit_hash(name, seed) for name in names])
    candidates = np.zeros(len(names), bool)
    candidates[position[hints != DROP]] = True
    candidates &= ~test
    validation = candidates & (place < validation_fraction)
    if validation_fraction and candidates.sum() > 1 and not validation.any():
        validation = candidates & (place == place[candidates].min())
    split = np.where(test, TEST, np.where(validation, VALIDATION, TRAIN))[position]
    split[hints == DROP] = DROP
    shown = np.zeros(len(names), bool)
    shown[position[hints == TRAIN]] = True
    return Splits(split.astype(np.int8), int(moved.sum()), int((by_all & ~own & shown).sum()))


def _why_left_out(section: AnyDataset) -> str:
    return "test pictures shown too seldom" if section.test_pictures is None else "of pictures that the rule of test_pictures, or the source, leaves out"


def _require_splits(pictures: dict[str, int], where: str, fraction: float, moved: int) -> None:
    """Something to train on, and test pictures to tell apart."""
    if pictures["test"] < 2:
        found = "has one picture, and at least 2 are needed to compare anything" if pictures["test"] else "is empty"
        if moved:
            raise InputError(
                f"{where}: the test split {found}: {moved} pictures that the data set's test rule asks for are training pictures of the training subjects; "
                "test on others"
            )
        raise InputError(f"{where}: the test split {found}; check the data set's test rule (`split`, `test_repeats` or `sessions`)")
    if not pictures["train"]:
        raise InputError(f"{where}: the training split is empty; check the data set's test rule and validation_fraction = {fraction}")


def _training_images(files: list[Path]) -> tuple[set[str], set[str]]:
    """Images that are test images of some training subject, and those that are not but may be trained on."""
    tests: set[str] = set()
    others: set[str] = set()
    for file in files:
        with Stimuli(file) as pictures:
            tests |= set(pictures.sha256[pictures.test].tolist())
            others |= set(pictures.sha256[~pictures.test & ~pictures.left_out].tolist())
    return tests, others - tests


def _stimulus_rows(trials: Trials, rows: dict[str, int], where: str, stimuli: Path) -> NDArray[np.int32]:
    """Row in the stimulus file of every trial's picture."""
    found = np.array([rows.get(str(name), -1) for name in trials.stimulus], np.int32)
    unknown = np.flatnonzero(found < 0)
    if len(unknown):
        picture = trials.stimulus[unknown[0]]
        raise InputError(
            f"{where}: trial {unknown[0] + 1} shows picture {picture!s}, which {stimuli} does not have ({len(unknown)} such trials); "
            "add the pictures or mend the trial table"
        )
    if not len(found):
        raise InputError(f"{where}: has no trials; check the data set's files")
    return found


def _order(raw: RawSubject) -> tuple[NDArray[np.int64], str]:
    if raw.order is not None or (raw.roi is None and raw.xyz is None):
        return np.arange(raw.n_voxels), raw.order or "stored"
    return anatomical_order(raw.roi, raw.xyz)


def _kept(blocks: Iterator[NDArray[np.float32]], session: NDArray, kept: NDArray[np.bool_], order: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    start = 0
    for block in blocks:
        yield block[np.ix_(kept[start : start + len(block)], order)]
        start += len(block)
