"""Single-trial betas of a session by GLMsingle (Prince et al. 2022), where its package is installed."""

import importlib.util
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unimind.data.single_trial import Events
from unimind.errors import InputError

#: A run: series (n_volumes, n_voxels), its first two frame times, its events, picture of every trial, and its name for messages.
RunSeries = tuple[NDArray[np.float32], NDArray[np.float64], Events | None, NDArray[np.integer], str]


def session_betas(runs: Sequence[RunSeries]) -> NDArray[np.float32]:
    """Betas of all trials of a session in order of presentation, float32 (n_trials, n_voxels): what GLMsingle calls type D.

    Raises
    ------
    InputError
        The package is missing, runs differ in repetition time, or two trials begin in one volume.
    """
    if importlib.util.find_spec("glmsingle") is None:
        raise InputError("estimate.kind glmsingle: the package glmsingle is not installed; install it (pip install glmsingle), or write kind: lss")
    from glmsingle.glmsingle import GLM_single

    steps = {round(float(times[1] - times[0]), 4) for _, times, *_ in runs}
    if len(steps) > 1:
        raise InputError(f"{runs[0][4]}: the runs of its session have repetition times of {' and '.join(map(str, sorted(steps)))} s; GLMsingle takes one")
    step = steps.pop()
    conditions = np.unique(np.concatenate([pictures for *_, pictures, _ in runs]))
    designs, durations = [], []
    for series, times, events, pictures, where in runs:
        assert events is not None
        volume = np.round((events.onset - times[0]) / step).astype(int)
        if len(np.unique(volume)) < len(volume) or volume.min() < 0 or volume.max() >= len(series):
            raise InputError(
                f"{where}: two trials begin in one volume, or outside the run; "
                "GLMsingle needs a volume for every onset: resample the series, or write kind: lss"
            )
        matrix = np.zeros((len(series), len(conditions)))
        matrix[volume, np.searchsorted(conditions, pictures)] = 1
        designs.append(matrix)
        durations.append(events.duration)
    stimulus = float(np.median(np.concatenate(durations)))
    fit = GLM_single({"wantlibrary": 1, "wantglmdenoise": 1, "wantfracridge": 1, "wantfileoutputs": [0, 0, 0, 0], "wantmemoryoutputs": [0, 0, 0, 1]})
    found = fit.fit(designs, [np.ascontiguousarray(series.T) for series, *_ in runs], stimulus or step, step)
    betas = np.asarray(found["typed"]["betasmd"], np.float32)
    return betas.reshape(-1, betas.shape[-1]).T
