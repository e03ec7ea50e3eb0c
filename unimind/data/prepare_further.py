"""The stage `prepare-further`: trials of a subject of which no picture is known, in the voxels of its prepared file."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from unimind.data.manifest import read_manifest
from unimind.data.normalise import BY_ITSELF, BY_TRAINING, own_zscores, scaled
from unimind.data.prepared import PreparedSubject, write_further
from unimind.data.sources import open_source
from unimind.data.sources.base import FurtherSource
from unimind.errors import InputError
from unimind.progress import say
from unimind.study import Study


def prepare_further(study: Study, dataset: str, subject: str, further: str, fetched: Path, prepared: Path, out: Path) -> None:
    """Keep the voxels of the subject's prepared file in its order, and z-score them by the set's rule.

    Parameters
    ----------
    study : Study
    dataset, subject, further : str
        `further` is the set's name in `decode:`.
    fetched : Path
        Manifest of the set's files.
    prepared : Path
        The subject's prepared file.
    out : Path
        HDF5 file to write (`prepared.FurtherTrials`).

    Raises
    ------
    InputError
        No trials; a voxel of the subject that the set has not, or has no value of; too few trials for z-scores of their own.
    """
    where = f"{dataset} {subject} {further}"
    asked = study.decode[further]
    root, sources = read_manifest(fetched)
    trials = cast(FurtherSource, open_source(study, dataset, root)).further(subject, asked)
    if not len(trials.label):
        raise InputError(f"{where}: has no trials; check the set's files")
    with PreparedSubject(prepared) as own:
        if (own.dataset, own.subject) != (dataset, subject):
            raise InputError(f"{prepared}: is of {own.dataset} {own.subject}, expected {dataset} {subject}")
        stored, moments, attributes = own.stored, own.moments, own.attributes
        voxel = {"xyz": own.xyz, "roi": own.roi, "roi_names": own.roi_names, "noise_ceiling": own.noise_ceiling, "stored": stored}

    def blocks() -> Iterator[NDArray[np.float32]]:
        for block in trials.responses():
            if stored.max() >= block.shape[1]:
                wanted = f"{prepared} holds voxel {stored.max() + 1} of its source"
                raise InputError(f"{where}: {block.shape[1]} voxels, but {wanted}; give responses of the same voxels")
            values = np.ascontiguousarray(block[:, stored])
            if missing := int((~np.isfinite(values)).any(0).sum()):
                raise InputError(f"{where}: missing values (NaN) in {missing} of {len(stored)} voxels; mend the responses, or narrow the data set's ROI")
            yield values

    if asked.normalisation == "training":
        if moments is None:
            raise InputError(f"{prepared}: does not say the training trials' mean and spread; prepare the subject again")
        z_scored: Iterator[NDArray[np.float32]] = (scaled(block, *moments)[0] for block in blocks())
    else:
        z_scored = own_zscores(blocks(), trials.session, trials.condition, where)
    write_further(
        out, z_scored, label=trials.label, condition=trials.condition, session=trials.session, run=trials.run, n_voxels=len(stored), voxel=voxel,
        attributes={
            "dataset": dataset, "subject": subject, "set": further, "units": "z-score", "order": attributes["order"],
            "normalisation": BY_TRAINING if asked.normalisation == "training" else BY_ITSELF,
            "protocol": {"source": study.datasets[dataset].source, "units": trials.units, **trials.protocol}, "sources": sources,
        },
    )  # fmt: skip
    labels = len(set(trials.label) - {""})
    say(f"{where}: {len(trials.label)} trials of {labels} labels, {len(stored)} voxels")
