"""Single-trial responses of one run's time series: least squares separate, least squares all, or the mean of a lag window.

Everything is ordinary least squares, in percent of the voxel's mean over the run. Design matrices are nilearn's.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimind.errors import InputError

_VOXELS = 8192  # solved for at once


@dataclass(frozen=True)
class Events:
    """What happened in a run.

    Attributes
    ----------
    onset, duration : float (n_trials,)
        Of the trials with a picture, in seconds from the run's begin.
    further : dict of str to (onset, duration)
        Events without a picture that are modelled, by condition.
    """

    onset: NDArray[np.float64]
    duration: NDArray[np.float64]
    further: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True)
class DesignMatrix:
    """Columns of a run's model.

    Attributes
    ----------
    trials : float64 (n_volumes, n_trials)
        The expected response to each trial.
    nuisance : float64 (n_volumes, m)
        Further conditions, drifts, confounds and the constant.
    """

    trials: NDArray[np.float64]
    nuisance: NDArray[np.float64]


def design(frame_times: NDArray[np.float64], events: Events, hrf: str | None, high_pass: float, confounds: NDArray[np.float64], where: str) -> DesignMatrix:
    """The model of a run.

    Parameters
    ----------
    frame_times : float (n_volumes,)
        When each volume was taken, in seconds.
    events : Events
    hrf : str or None
        Haemodynamic response by nilearn's name; None models no event (for a lag window).
    high_pass : float
        Hz.
    confounds : float (n_volumes, k)
    where : str
        The run, for messages.

    Raises
    ------
    InputError
        A trial lies outside the run, so that nothing of its response was measured.
    """
    import pandas as pd
    from nilearn.glm.first_level import make_first_level_design_matrix

    names = [f"trial_{index:06d}" for index in range(len(events.onset))]
    conditions = list(events.further)
    table = None
    if hrf is not None:
        parts = [(names, events.onset, events.duration)]
        parts += [([f"condition_{k:03d}"] * len(events.further[name][0]), *events.further[name]) for k, name in enumerate(conditions)]
        onset, duration = (np.concatenate([part[column] for part in parts]) for column in (1, 2))
        table = pd.DataFrame({"trial_type": [name for part in parts for name in part[0]], "onset": onset, "duration": duration})
    drifts = {"drift_model": "cosine", "high_pass": high_pass}
    extra = {"add_regs": confounds, "add_reg_names": [f"confound_{k}" for k in range(confounds.shape[1])]} if confounds.shape[1] else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following conditions contain events with null duration")  # a press is one
        matrix = make_first_level_design_matrix(frame_times, table, hrf_model=hrf or "glover", **drifts, **extra)
    trials = matrix[names].to_numpy(np.float64) if hrf is not None else np.empty((len(frame_times), 0))
    unseen = np.flatnonzero(~(abs(trials) > 1e-6).any(0))
    if len(unseen):
        at, last = events.onset[unseen[0]], frame_times[-1]
        raise InputError(f"{where}: trial {unseen[0] + 1} begins at {at:g} s, but the last volume is at {last:g} s; mend the onsets, or the repetition time")
    return DesignMatrix(trials, matrix.drop(columns=names, errors="ignore").to_numpy(np.float64))


def least_squares_all(series: NDArray, model: DesignMatrix) -> NDArray[np.float32]:
    """One model with a regressor per trial: (n_volumes, n_voxels) to float32 (n_trials, n_voxels)."""
    n = model.trials.shape[1]
    inverse = np.linalg.pinv(np.hstack([model.trials, model.nuisance]))[:n]
    return _by_voxels(series, lambda y: inverse @ y)


def least_squares_separate(series: NDArray, model: DesignMatrix) -> NDArray[np.float32]:
    """A model per trial: its own regressor, one of all other trials, and the nuisance (Mumford et al. 2012, NeuroImage 59).

    The nuisance is projected out once (Frisch and Waugh 1933); what is left per trial are two equations.

    Parameters
    ----------
    series : float (n_volumes, n_voxels)
    model : DesignMatrix

    Returns
    -------
    float32 (n_trials, n_voxels)
    """
    basis = _orthonormal(model.nuisance)
    own = model.trials - basis @ (basis.T @ model.trials)
    total = own.sum(1)
    others = total[:, None] - own
    aa, ab, bb = (own**2).sum(0), (own * others).sum(0), (others**2).sum(0)
    single = bb <= 1e-12 * aa  # a run of one trial has no others
    determinant = np.where(single, aa, aa * bb - ab**2)

    def solve(y: NDArray[np.float64]) -> NDArray[np.float64]:
        a = own.T @ y  # own is free of nuisance, so y need not be
        b = (total @ y) - a
        return np.where(single[:, None], a, bb[:, None] * a - ab[:, None] * b) / determinant[:, None]

    return _by_voxels(series, solve)


def lag_window(
    series: NDArray, model: DesignMatrix, frame_times: NDArray[np.float64], onset: NDArray[np.float64], window: Sequence[float], where: str
) -> NDArray[np.float32]:  # fmt: skip
    """Mean of the volumes taken from `window[0]` up to, not including, `window[1]` seconds after each onset, the nuisance explained away.

    Raises
    ------
    InputError
        A window holds no volume.
    """
    since = frame_times[:, None] - onset
    inside = (since >= window[0] - 1e-9) & (since < window[1] - 1e-9)
    empty = np.flatnonzero(~inside.any(0))
    if len(empty):
        span = f"{onset[empty[0]] + window[0]:g} to {onset[empty[0]] + window[1]:g} s"
        raise InputError(f"{where}: no volume was taken in the window of trial {empty[0] + 1} ({span}); widen estimate.window, or leave the trial out")
    weight = (inside / inside.sum(0)).T
    basis = _orthonormal(model.nuisance)
    weight = weight - (weight @ basis) @ basis.T
    return _by_voxels(series, lambda y: weight @ y)


def inflation(model: DesignMatrix) -> NDArray[np.float64]:
    """How often larger the variance of each trial's least-squares-all beta is than if the trial stood alone in the run: (n_trials,)."""
    basis = _orthonormal(model.nuisance)
    own = model.trials - basis @ (basis.T @ model.trials)
    gram = own.T @ own
    return np.diag(np.linalg.pinv(gram)) * np.diag(gram)


def _orthonormal(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    left, values, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, values > values.max(initial=0) * 1e-10]


def _by_voxels(series: NDArray, solve: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float32]:
    """Apply a linear estimate to some voxels at a time, in percent of each one's mean over the run; voxels whose mean is not positive are NaN."""
    parts = []
    for start in range(0, series.shape[1], _VOXELS):
        y = np.asarray(series[:, start : start + _VOXELS], np.float64)
        mean = y.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(np.where(mean > 0, 100 * solve(y) / mean, np.nan).astype(np.float32))
    return np.concatenate(parts, axis=1)
