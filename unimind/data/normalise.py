"""Normalisation: every voxel z-scored within every session, by the session's training trials alone."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unimind.errors import InputError
from unimind.progress import say

#: The attribute `normalisation` of prepared files.
PER_SESSION = "z-score per voxel and session, fitted on training trials"
_CONSTANT = 1e-6  # a standard deviation below this share of the voxel's magnitude is rounding


#: Of trials that are no training trials of the subject: by themselves, or by the subject's training trials.
BY_ITSELF = "z-score per voxel, session and condition, fitted on the set's own trials"
BY_TRAINING = "z-score per voxel, fitted on the subject's training trials of all sessions"
#: Trials that a session's own z-scores need: from fewer, a standard deviation is known to no better than a quarter (1 / sqrt(2 n)).
FEWEST = 10


class Moments:
    """Mean and standard deviation (with n in the denominator) of every voxel over trials that come in blocks (Chan, Golub & LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(1), np.zeros(1)

    def add(self, block: NDArray[np.float32]) -> None:
        """Add responses (n, V)."""
        if not len(block):
            return
        values = block.astype(np.float64)
        difference = values.mean(axis=0) - self.mean
        total = self.count + len(values)
        self.squares = self.squares + values.var(axis=0) * len(values) + difference**2 * self.count * len(values) / total
        self.mean = self.mean + difference * len(values) / total
        self.count = total

    @property
    def deviation(self) -> NDArray[np.float64]:
        return np.sqrt(self.squares / self.count)


def scaled(block: NDArray[np.float32], mean: NDArray, deviation: NDArray) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Responses (n, V) z-scored by means and standard deviations (V,), and which voxels have none to divide by: those are 0."""
    constant = deviation <= _CONSTANT * np.maximum(abs(mean), np.finfo(np.float32).tiny)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = ((block - mean) / deviation).astype(np.float32)
    found[:, constant] = 0
    return found, constant


def session_zscores(
    responses: Callable[[], Iterable[NDArray[np.float32]]], session: ArrayLike, training: ArrayLike, name: str, moments: Moments | None = None
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
    moments : Moments, optional
        Gets all training trials as they pass.

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
        if moments is not None:
            moments.add(block[part])
        values, constant = scaled(block, mean, deviation)
        silent = constant if silent is None else silent & constant
        sometimes += int(constant.any())
        yield values
    if silent is not None and sometimes:
        say(f"{name}: voxels without variance set to 0 in {sometimes} sessions; {int(silent.sum())} voxels have none in any session")


def _pooled(blocks: Iterable[NDArray[np.float32]], parts: list[NDArray[np.bool_]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation over the training trials of all sessions."""
    found = Moments()
    for part, block in zip(parts, blocks, strict=True):
        found.add(block[part])
    return found.mean, found.deviation


def own_zscores(blocks: Iterable[NDArray[np.float32]], session: ArrayLike, condition: ArrayLike, where: str) -> Iterator[NDArray[np.float32]]:
    """Z-score trials by themselves, session by session and condition by condition; a voxel that does not vary there is 0.

    Parameters
    ----------
    blocks : iterable of float32 (n, V)
        One block a session, in the order of `session`.
    session, condition : (n_trials,)
    where : str
        Of the set, for messages.

    Raises
    ------
    InputError
        Fewer than `FEWEST` trials of a session and condition.
    """
    session, condition = np.asarray(session), np.asarray(condition)
    starts = np.flatnonzero(np.diff(session, prepend=session[0] - 1))
    for number, words, block in zip(session[starts], np.split(condition, starts[1:]), blocks, strict=True):
        values = np.empty(block.shape, np.float32)
        for word in dict.fromkeys(words.tolist()):
            rows = words == word
            if rows.sum() < FEWEST:
                which = f"session {number}{f', {word}' if word else ''}"
                raise InputError(f"{where}: {which} has {rows.sum()} trials; z-scores of its own need {FEWEST}: write `normalisation: training`")
            values[rows], _ = scaled(block[rows], block[rows].mean(axis=0, dtype=np.float64), block[rows].std(axis=0, dtype=np.float64))
        yield values
