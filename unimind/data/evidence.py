"""How well responses fit pictures: session by session, at other lags, and with another session's pictures.

Every measure compares similarities of pairs that belong together, by a hypothesis, with those of pairs that do not; it is
a z value, about standard normal where the hypothesis is wrong. Four are put together (Stouffer): pictures decoded within
the session, repeats within it, and both with all other sessions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

_BLOCKS = 6  # contiguous blocks of a session that are decoded from the others: neighbours in time are mostly not trained on
_PERMUTATIONS = 40  # enough for mean and deviation of a null distribution
_ROWS = 2000  # trials of a session that its inner measures look at; their cost grows with the square
_PAIRS = 5  # of repeats, at the least
_FEW_SESSIONS = 8  # up to here, a session whose pictures are tried is no part of what the test was learned from


@dataclass
class Session:
    """Trials of a session in order of presentation.

    Attributes
    ----------
    number : int
    x : float32 (n, n_voxels)
        Responses, every voxel with mean 0.
    stimulus : int (n,)
        Row of the features.
    """

    number: int
    x: NDArray[np.float32]
    stimulus: NDArray[np.integer]
    map: NDArray[np.float32] = field(init=False)
    similar: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.x = self.x - self.x.mean(0)
        inner = self.x[:_ROWS]
        self.map = _held_out_map(inner)
        rows = _unit(inner)
        similar = rows @ rows.T
        for distance in range(1, len(inner)):  # trials near in time are similar whatever they show
            across = np.arange(len(inner) - distance)
            mean = similar[across, across + distance].mean()
            similar[across, across + distance] -= mean
            similar[across + distance, across] -= mean
        self.similar = similar

    def __len__(self) -> int:
        return len(self.x)


def _unit(rows: NDArray) -> NDArray:
    """Rows centred and of length 1; rows of zeros stay."""
    centred = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(length > 0, length, 1)


def _held_out_map(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Ridge predictions for every trial from the blocks it is not in, as a map of any targets: (n, n)."""
    n = len(x)
    kernel = x @ x.T
    out = np.zeros((n, n), np.float32)
    for test in np.array_split(np.arange(n), min(_BLOCKS, n)):
        train = np.setdiff1d(np.arange(n), test)
        if not len(train):
            continue
        inner = kernel[np.ix_(train, train)]
        penalty = np.trace(inner) / max(1, min(inner.shape[0], x.shape[1]))
        regular = inner + max(float(penalty), 1e-6) * np.eye(len(train), dtype=np.float32)
        out[np.ix_(test, train)] = np.linalg.solve(regular, kernel[np.ix_(train, test)]).T
    return out


def _paired(lag: int, trials: int, rows: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """(trial, row of the response) where the response to a trial stands `lag` rows after it."""
    trial = np.arange(max(0, -lag), min(trials, rows - lag))
    return trial, trial + lag


def _contrast(similarity: NDArray) -> float:
    """z of the diagonal of a matrix of similarities against all of it."""
    if len(similarity) < 2 or not (deviation := float(similarity.std())):
        return 0.0
    return float((np.diag(similarity).mean() - similarity.mean()) / deviation * np.sqrt(len(similarity)))


class Evidence:
    """Sessions of a subject and the features of their pictures.

    Parameters
    ----------
    sessions : sequence of Session
    features : float (n_pictures, k)
    seed : int
    """

    def __init__(self, sessions: Sequence[Session], features: NDArray, seed: int = 0) -> None:
        self.sessions, self.features = list(sessions), (features - features.mean(0)).astype(np.float32)
        self._random = np.random.default_rng(seed)
        self._gram = [session.x.T @ session.x for session in self.sessions]
        self._factors: dict[frozenset[int], tuple] = {}
        self._learned: dict[tuple[frozenset[int], int], NDArray | None] = {}
        self._means: dict[tuple[frozenset[int], int], tuple[NDArray, NDArray] | None] = {}

    def z(self, responses: int, pictures: int, lag: int = 0, base: int = 0) -> float:
        """How well the responses of one session fit the pictures of a session, `lag` rows later; other sessions are taken at lag `base`."""
        trial, row = _paired(lag, len(self.sessions[pictures]), len(self.sessions[responses]))
        if len(trial) < 10:
            return 0.0
        found = [self._decoded_within(responses, pictures, lag), self._repeated_within(responses, pictures, lag)]
        left_out = frozenset({responses, pictures} if len(self.sessions) <= _FEW_SESSIONS else {responses})
        if len(left_out) < len(self.sessions):
            across = (responses, pictures, trial, row, left_out, base)
            found += [self._decoded_across(*across), self._repeated_across(*across)]
        known = [value for value in found if value is not None]
        return float(sum(known) / np.sqrt(len(known))) if known else 0.0

    def _decoded_within(self, responses: int, pictures: int, lag: int) -> float | None:
        session, shown = self.sessions[responses], self.sessions[pictures].stimulus
        trial, row = _paired(lag, min(len(shown), _ROWS), len(session.map))
        if len(trial) < 2 * _BLOCKS:
            return None
        truth = self.features[shown[trial]]
        truth = truth - truth.mean(0)
        target = np.zeros((len(session.map), truth.shape[1]), np.float32)

        def score(values: NDArray) -> float:
            target[row] = values
            return float((_unit((session.map @ target)[row]) * _unit(values)).sum(1).mean())

        null = [score(truth[self._random.permutation(len(truth))]) for _ in range(_PERMUTATIONS)]
        deviation = float(np.std(null, ddof=1))
        return (score(truth) - float(np.mean(null))) / deviation if deviation else None

    def _repeated_within(self, responses: int, pictures: int, lag: int) -> float | None:
        similar, shown = self.sessions[responses].similar, self.sessions[pictures].stimulus
        trial, row = _paired(lag, min(len(shown), _ROWS), len(similar))
        same = np.triu(shown[trial][:, None] == shown[trial][None], 1)
        if (count := int(same.sum())) < _PAIRS:
            return None
        part = similar[np.ix_(row, row)]
        deviation = float(part[np.triu_indices(len(row), 1)].std())
        return float(part[same].mean() / deviation * np.sqrt(count)) if deviation else None

    def _decoded_across(
        self, responses: int, pictures: int, trial: NDArray, row: NDArray, left_out: frozenset[int], base: int
    ) -> float | None:  # fmt: skip
        weights = self._weights(left_out, base)
        truth = self.features[self.sessions[pictures].stimulus[trial]]
        if weights is None:
            return None
        return _contrast(_unit(self.sessions[responses].x[row] @ weights) @ _unit(truth - truth.mean(0)).T)

    def _repeated_across(
        self, responses: int, pictures: int, trial: NDArray, row: NDArray, left_out: frozenset[int], base: int
    ) -> float | None:  # fmt: skip
        shown, means = self._picture_means(left_out, base)
        place = np.searchsorted(shown, self.sessions[pictures].stimulus[trial])
        known = (place < len(shown)) & (shown[np.minimum(place, len(shown) - 1)] == self.sessions[pictures].stimulus[trial])
        if known.sum() < 2 * _PAIRS:
            return None
        return _contrast(_unit(self.sessions[responses].x[row[known]]) @ _unit(means[place[known]]).T)

    def _weights(self, left_out: frozenset[int], base: int) -> NDArray | None:
        """Ridge weights from responses to features, of the other sessions."""
        if (left_out, base) not in self._learned:
            others = [k for k in range(len(self.sessions)) if k not in left_out]
            if left_out not in self._factors:
                gram = np.sum([self._gram[k] for k in others], axis=0)
                rows = sum(len(self.sessions[k]) for k in others)
                penalty = max(float(np.trace(gram)) / max(1, min(rows, len(gram))), 1e-6)
                self._factors[left_out] = cho_factor(gram + penalty * np.eye(len(gram), dtype=gram.dtype))
            cross = np.zeros((self._gram[0].shape[0], self.features.shape[1]), np.float32)
            for k in others:
                trial, row = _paired(base, len(self.sessions[k]), len(self.sessions[k]))
                cross += self.sessions[k].x[row].T @ self.features[self.sessions[k].stimulus[trial]]
            self._learned[left_out, base] = cho_solve(self._factors[left_out], cross)
        return self._learned[left_out, base]

    def _picture_means(self, left_out: frozenset[int], base: int) -> tuple[NDArray, NDArray]:
        """Pictures of the other sessions, and the mean response to each."""
        if (left_out, base) not in self._means:
            shown, x = [], []
            for k, session in enumerate(self.sessions):
                if k not in left_out:
                    trial, row = _paired(base, len(session), len(session))
                    shown.append(session.stimulus[trial])
                    x.append(session.x[row])
            pictures, place, counts = np.unique(np.concatenate(shown), return_inverse=True, return_counts=True)
            means = np.zeros((len(pictures), x[0].shape[1]), np.float32)
            np.add.at(means, place, np.concatenate(x))
            self._means = {(left_out, base): (pictures, means / counts[:, None])}  # one at a time: each is as large as the responses
        found = self._means[left_out, base]
        assert found is not None
        return found


def repeated_rows(x: NDArray[np.float32], similarity: float, length: int) -> list[tuple[int, int, int]]:
    """Stretches of rows that come again: (first row, its copy, how many), of at least `length` rows each more similar than `similarity`.

    Responses are compared in blocks, so that no matrix of all trials is held.
    """
    rows, found, step = _unit(x), [], 1000
    pairs: dict[int, list[int]] = {}  # by distance: rows whose copy is that far away
    for start in range(0, len(rows), step):
        similar = rows[start : start + step] @ rows[start:].T
        for i, j in zip(*np.nonzero(similar > similarity), strict=True):
            if j > i:
                pairs.setdefault(int(j - i), []).append(start + int(i))
    for distance, where in pairs.items():
        at = np.sort(np.array(where))
        for stretch in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1):
            if len(stretch) >= length:
                found.append((int(stretch[0]), int(stretch[0]) + distance, len(stretch)))
    return sorted(found)
