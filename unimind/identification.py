"""Two-way identification: one rule for what training validates by and what the tables report."""

import numpy as np


def two_way(r: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """Two-way identification: the share of other truths that each reconstruction correlates with less than with its own.

    Parameters
    ----------
    r : array of shape (n_truths, m)
        Correlation of truth i with reconstruction j.
    own : array of shape (m,), optional
        Which truth reconstruction j is of; by default j.

    Returns
    -------
    array of shape (m,)
        Ties are failures; chance is 0.5; NaN with fewer than two truths.
    """
    own = np.arange(r.shape[1]) if own is None else own
    if len(r) < 2:
        return np.full(r.shape[1], np.nan)
    return (r < r[own, np.arange(r.shape[1])]).sum(0) / (len(r) - 1)
