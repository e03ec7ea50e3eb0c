"""The stage `prepare-unpaired`: visual-cortex samples from fMRI without pictures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimind.data.manifest import read_manifest
from unimind.data.prepared import write_unpaired
from unimind.data.sources.hcp import HcpSource, Runs
from unimind.errors import InputError
from unimind.progress import say, track
from unimind.study import Study


def prepare_unpaired(study: Study, subject: str, fetched: Path, out: Path) -> None:
    """Keep the visual areas of every run, average windows of volumes, z-score every voxel within the run.

    Parameters
    ----------
    study : Study
    subject : str
    fetched : Path
        Manifest of the subject's runs.
    out : Path
        HDF5 file to write (`prepared.read_unpaired`).
    """
    section = study.unpaired
    if section is None:
        raise InputError("unpaired: the study has no fMRI without pictures; add `unpaired:` to it")
    root, sources = read_manifest(fetched, check=not section.drop_original)
    runs = HcpSource(study, root).runs(subject)
    samples = [*track(_samples(runs, section.window, f"unpaired {subject}"), f"runs of unpaired {subject}", len(runs.names))]
    protocol = {"source": section.source, "areas": runs.areas, "runs": runs.names, "window": section.window}
    write_unpaired(
        out, samples, n_samples=sum(map(len, samples)), n_voxels=len(runs.roi), subject=subject, roi=runs.roi, roi_names=runs.areas,
        normalisation="z-score per voxel and run", order="area, then surface order", protocol=protocol, sources=sources,
    )  # fmt: skip
    say(f"unpaired {subject}: {sum(map(len, samples))} samples of {len(runs.roi)} grayordinates")


def _samples(runs: Runs, window: int, where: str) -> Iterator[NDArray[np.float32]]:
    for name in runs.names:
        volumes = runs.read(name)
        missing = int((~np.isfinite(volumes)).any(axis=0).sum())
        if missing:
            raise InputError(f"{where}: run {name} has missing values (NaN) in {missing} of {volumes.shape[1]} grayordinates; fetch it again")
        yield windows(volumes, window, f"{where}: run {name}")


def windows(volumes: NDArray[np.float32], window: int, where: str) -> NDArray[np.float32]:
    """Average consecutive windows of volumes, then z-score every voxel over the windows.

    Parameters
    ----------
    volumes : float32 (n_volumes, n_voxels)
    window : int
        Volumes per sample; a last, shorter window is left out.
    where : str
        Of the data, for messages.

    Returns
    -------
    float32 (n_volumes // window, n_voxels)
        A voxel that does not vary is 0.
    """
    count = len(volumes) // window
    if count < 2:
        raise InputError(f"{where}: {len(volumes)} volumes make {count} windows of {window}; at least two are needed: lower unpaired.window")
    means = volumes[: count * window].reshape(count, window, -1).mean(axis=1, dtype=np.float64)
    deviation = means.std(axis=0)
    means -= means.mean(axis=0)
    return np.divide(means, deviation, out=np.zeros_like(means), where=deviation > 1e-6 * abs(volumes).max(axis=0)).astype(np.float32)
