"""Normalisation: every voxel z-scored within every session, by the session's training trials alone."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unimind.errors import InputError
from unimind.progress import say

#: The attribute `normalisation` of prepared files.
PER_SESSION = "z-score per voxel and session, fitted on training trials"
_CONSTANT = 1e-6  # a standard deviation below this share of the voxel's magnitude is rounding


def session_zscores(
    responses: Callable[[], Iterable[NDArray[np.float32]]], session: ArrayLike, training: ArrayLike, name: str
) -> Iterator[NDArray[np.float32]]:  # fmt: skip
    """Z-score session by session.

    Mean and standard deviation (with n in the denominator) of each voxel are those of the session's training trials, so
    no test or validation trial takes part. A session with fewer than two training trials is z-scored by all training trials of
    the subject together, which costs a second pass. A voxel that does not vary over the training trials of a session
    is set to 0 in that session: it says nothing there.

    Parameters
    ----------
    responses : callable
        Each call starts a pass: one float32 (n, n_voxels) block per session.
    session : int (n_trials,)
        Sessions contiguous, in the order of the blocks.
    training : bool (n_trials,)
    name : str
        Of the data, for messages.

    Yields
    ------
    float32 (n, n_voxels)
        One block per session, in order.

    Raises
    ------
    InputError
        A response is not finite, or there are fewer than two training trials.
    """
    session, training = np.asarray(session), np.asarray(training, bool)
    starts = np.flatnonzero(np.diff(session, prepend=session[0] - 1)) if len(session) else np.array([], int)
    if len(np.unique(session)) != len(starts):
        raise ValueError("the trials of a session must be contiguous")
    if training.sum() < 2:
        raise InputError(f"{name}: {int(training.sum())} training trials; at least two are needed to normalise by")
    parts = np.split(training, starts[1:])
    pooled = _pooled(responses(), parts) if any(part.sum() < 2 for part in parts) else None
    silent: NDArray[np.bool_] | None = None
    sometimes = 0
    for number, part, block in zip(session[starts], parts, responses(), strict=True):
        if len(block) != len(part):
            raise ValueError(f"session {number} has {len(part)} trials, but {len(block)} responses")
        bad = ~np.isfinite(block).all(axis=0)
        if bad.any():
            share = f"{int(bad.sum())} of {block.shape[1]} voxels"
            raise InputError(f"{name}: session {number} has missing values (NaN) in {share}; narrow the ROI or mend the responses")
        if part.sum() < 2:
            assert pooled is not None
            mean, deviation = pooled
        else:
            mean, deviation = block[part].mean(axis=0, dtype=np.float64), block[part].std(axis=0, dtype=np.float64)
        constant = deviation <= _CONSTANT * np.maximum(abs(mean), np.finfo(np.float32).tiny)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = ((block - mean) / deviation).astype(np.float32)
        scaled[:, constant] = 0
        silent = constant if silent is None else silent & constant
        sometimes += int(constant.any())
        yield scaled
    if silent is not None and sometimes:
        say(f"{name}: voxels without variance set to 0 in {sometimes} sessions; {int(silent.sum())} voxels have none in any session")


def _pooled(blocks: Iterable[NDArray[np.float32]], parts: list[NDArray[np.bool_]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation over the training trials of all sessions (Chan, Golub & LeVeque 1979)."""
    count, mean, squares = 0, np.float64(0), np.float64(0)
    for part, block in zip(parts, blocks, strict=True):
        if part.any():
            values = block[part].astype(np.float64)
            difference = values.mean(axis=0) - mean
            total = count + len(values)
            squares = squares + values.var(axis=0) * len(values) + difference**2 * count * len(values) / total
            mean = mean + difference * len(values) / total
            count = total
    return np.asarray(mean), np.sqrt(squares / count)
