"""How sure a number is: bootstrap intervals over test images and paired tests between methods.

The unit is the test image: several samples of one stimulus are averaged first. Subjects are fixed: an average over
subjects resamples the images within each.
"""

from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95


def _interval(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high


def resampled_means(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Means of `values` (n,) or (n, m) over images drawn with replacement: (resamples,) or (resamples, m)."""
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return counts @ values / n


def bootstrap(values: np.ndarray | Sequence[np.ndarray], resamples: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap interval of a mean over test images.

    Parameters
    ----------
    values : array of shape (n,) or (n, m), or a list of such arrays
        One value per image; of several arrays, one per subject, the mean of their means is taken and images are
        drawn within each.

    Returns
    -------
    low, high : arrays of shape () or (m,)
    """
    subjects = list(values) if isinstance(values, (list, tuple)) else [values]
    return _interval(np.mean([resampled_means(np.asarray(v), resamples, seed + k) for k, v in enumerate(subjects)], axis=0))


def paired_test(differences: Sequence[np.ndarray], permutations: int = 4999, seed: int = 0) -> np.ndarray:
    """Two-sided paired permutation test: under the null hypothesis the sign of each image's difference is random.

    Parameters
    ----------
    differences : list of arrays of shape (n_subject, m)
        One array per subject; per image, the difference of two methods in m measures. The statistic is the mean over
        subjects of the mean over images.

    Returns
    -------
    p : array of shape (m,)
        (1 + number of sign flips at least as extreme) / (1 + permutations).
    """
    observed = np.mean([d.mean(0) for d in differences], axis=0)
    random = np.random.default_rng(seed)
    null = np.zeros((permutations, observed.shape[0]))
    for d in differences:
        signs = random.integers(0, 2, (permutations, len(d)), dtype=np.int8).astype(np.float32) * 2 - 1
        null += signs @ d.astype(np.float32) / len(d) / len(differences)
    extreme = (np.abs(null) >= np.abs(observed) * (1 - 1e-5)).sum(0)
    return (1 + extreme) / (1 + permutations)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment of p-values (m,) for their number; NaN stays NaN and does not count."""
    p = np.asarray(p, float)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = (len(order) - np.arange(len(order))) * p[order]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps)) if len(order) else steps
    return adjusted
