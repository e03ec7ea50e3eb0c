"""The stage `overview`: every prepared file opened and checked, and what each subject brings in one table.

Nothing is trained in a study before this table is there: whatever is wrong with anybody's data is said first.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimind.bundle import read_bundle
from unimind.data.inspect import require_signal, rows
from unimind.data.prepared import SPLITS, PreparedSubject, read_unpaired
from unimind.errors import InputError
from unimind.progress import say
from unimind.storage import whole_file
from unimind.study import Study

UNPAIRED = "unpaired"


def overview(study: Study, prepared: Sequence[Path], unpaired: Sequence[Path] | None, out: Path, inspected: Sequence[Path] = ()) -> None:
    """Check all prepared files and write one line a subject.

    Parameters
    ----------
    study : Study
    prepared : sequence of Path
        What `prepare` wrote, of every subject of the study.
    unpaired : sequence of Path, optional
        What `prepare-unpaired` wrote.
    out : Path
        CSV file: `dataset, subject, role, sessions, voxels`; `trials_*` and `pictures_*` of train, validation and test;
        `noise_ceiling`, the median over voxels of the explainable share of one trial's variance, as the source has it or as
        repeats tell; and `reliability`, `identification`, `identification_chance_95`, `identification_p` and `findings` of
        `inspect`. For fMRI without pictures `dataset` and `role` are `unpaired`, and its samples are training trials.
    inspected : sequence of Path, optional
        What `inspect` wrote.

    Raises
    ------
    InputError
        A file is not what `prepared` says it must be, voxels carry other ROI words than the study's bundle, a subject of the study is missing
        among them, or nothing can be decoded from a subject's responses and its data set does not say to train all the same.
    """
    subjects = [*_paired(study, prepared), *_resting(unpaired or [])]
    known = {(row["dataset"], row["subject"]) for row in subjects}
    for dataset, subject in study.pairs():
        if (dataset, subject) not in known:
            raise InputError(f"{dataset} {subject}: not among the prepared files given; name its file under --prepared")
    require_signal(study, inspected)
    looked_at = {(row["dataset"], row["subject"]): row for row in rows(inspected)}
    for row in subjects:
        more = looked_at.get((row["dataset"], row["subject"]), {})
        row |= {name: value for name, value in more.items() if row.get(name) is None}
    with whole_file(out) as temporary, open(temporary, "w", newline="") as stream:
        table = csv.DictWriter(stream, list(dict.fromkeys(key for row in subjects for key in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(subjects)
    say(f"overview: {len(subjects)} prepared files are in order")


def _paired(study: Study, files: Iterable[Path]) -> Iterable[dict[str, Any]]:
    bundle = None if study.bundle is None else read_bundle(study.bundle)
    for file in files:
        with PreparedSubject(file) as data:
            data.check()
            if bundle is not None:
                bundle.require_words(data.roi_words, f"{data.dataset} {data.subject}")
            ceiling = data.noise_ceiling
            yield {
                "dataset": data.dataset, "subject": data.subject, "role": study.role(data.dataset, data.subject),
                "sessions": len(np.unique(data.session)), "voxels": data.n_voxels,
                **{f"trials_{split}": len(data.trials(split)) for split in SPLITS},  # type: ignore[arg-type]
                **{f"pictures_{split}": len(data.images(split)) for split in SPLITS},  # type: ignore[arg-type]
                "noise_ceiling": None if ceiling is None else round(float(np.nanmedian(ceiling)), 4),
            }  # fmt: skip


def _resting(files: Iterable[Path]) -> Iterable[dict[str, Any]]:
    for file in files:
        with read_unpaired(file) as data:
            data.check()
            yield {"dataset": UNPAIRED, "subject": data.subject, "role": UNPAIRED, "voxels": data.n_voxels, "trials_train": len(data.responses)}
