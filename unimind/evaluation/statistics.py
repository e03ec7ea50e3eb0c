"""How sure a number is: bootstrap intervals over test images and paired tests between methods.

The unit is the test image: several samples of one stimulus are averaged first, and what several subjects saw is one unit,
drawn or flipped for all of them together, because an image that is easy to decode is so in every brain. Subjects are fixed.
Where a budget of trials was drawn several times, an interval counts the drawings as well as the images.
"""

from collections.abc import Hashable, Sequence

import numpy as np

CONFIDENCE = 0.95
FLIPPED_AT_ONCE = 5000  # sign flips in memory together
Images = Sequence[Sequence[Hashable]]


def resampled_means(values: Sequence[np.ndarray], images: Images, resamples: int = 2000, seed: int = 0, drawings: bool = False) -> np.ndarray:
    """Means over subjects of their means over images, the images drawn with replacement: (resamples,) or (resamples, m).

    Subjects that share images, directly or through others, get the same draws from all the images they saw; other
    subjects get draws of their own. Arguments as for `bootstrap`.
    """
    random = np.random.default_rng(seed)
    total: np.ndarray | float = 0.0
    for seen, subjects in _sharing(images):
        counts = random.multinomial(len(seen), np.full(len(seen), 1 / len(seen)), size=resamples).astype(float)
        for subject in subjects:
            own = counts[:, [seen[image] for image in images[subject]]]
            of_drawing = _spread(np.asarray(values[subject], float)) if drawings else np.asarray(values[subject], float)[None]
            number = len(of_drawing)
            weights = random.multinomial(number, np.full(number, 1 / number), size=resamples) / number if number > 1 else np.ones((resamples, 1))
            for value, weight in zip(of_drawing, weights.T, strict=True):
                known = np.isfinite(value)
                with np.errstate(invalid="ignore"):
                    mean = (own @ np.where(known, value, 0)) / (own @ known)
                total = total + weight.reshape(-1, *[1] * (value.ndim - 1)) * mean / len(values)
    return np.asarray(total)


def _spread(values: np.ndarray) -> np.ndarray:
    """Values (d, n, ...) of d drawings whose means are spread by sqrt(d / (d - 1)).

    d drawings taken with replacement vary by (d - 1) / d of their variance about the mean of all; so spread, by all of it.
    """
    count = len(values)
    if count < 2:
        return values
    means = np.nanmean(values, axis=1, keepdims=True)
    return values + (np.sqrt(count / (count - 1)) - 1) * (means - means.mean(0))


def _sharing(images: Images) -> list[tuple[dict[Hashable, int], list[int]]]:
    """Groups of subjects that share images: the numbered images of the group, and its subjects."""
    groups: list[list[int]] = []
    for subject, own in enumerate(images):
        joined = [group for group in groups if not set(own).isdisjoint(image for s in group for image in images[s])]
        groups = [*(group for group in groups if group not in joined), [*(s for group in joined for s in group), subject]]
    return [(_numbered([images[s] for s in group]), group) for group in groups]


def _numbered(images: Images) -> dict[Hashable, int]:
    """Every image with a number of its own."""
    return {image: k for k, image in enumerate(dict.fromkeys(image for own in images for image in own))}


def bootstrap(
    values: np.ndarray | Sequence[np.ndarray], resamples: int = 2000, seed: int = 0, images: Images | None = None, drawings: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap interval of a mean over test images, or of the mean of several subjects' means.

    Parameters
    ----------
    values : array of shape (n,) or (n, m), or a list of such arrays, one per subject
        One value per image; NaN where there is none.
    images : list of lists of length n, optional
        Which image each value is of, for every subject. By default no two subjects share an image.
    drawings : bool
        Values have shape (d, n) or (d, n, m): of d drawings of the trials a method got. Drawings and images are then both
        drawn with replacement, apart (the pigeonhole bootstrap of Owen 2007), each subject's drawings for itself.

    Returns
    -------
    low, high : arrays of shape () or (m,)
    """
    subjects = [np.asarray(v, float) for v in values] if isinstance(values, (list, tuple)) else [np.asarray(values, float)]
    return ends(resampled_means(subjects, images or _own(subjects, int(drawings)), resamples, seed, drawings))


def ends(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % interval that resampled means (resamples, ...) span."""
    low, high = np.nanquantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)  # NaN: a draw without an image of some subject
    return low, high


def with_interval(values: np.ndarray, resamples: int, seed: int) -> dict[str, float | None]:
    """Mean of values (n,), one per image, as `value`, with the ends `ci_low` and `ci_high` of its interval; NaN is left out, and None where nothing is left."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {"value": None, "ci_low": None, "ci_high": None}
    low, high = bootstrap(known, resamples, seed)
    return {"value": float(known.mean()), "ci_low": float(low), "ci_high": float(high)}


def _own(values: Sequence[np.ndarray], axis: int = 0) -> Images:
    """Images that no two subjects share."""
    return [[(subject, k) for k in range(v.shape[axis])] for subject, v in enumerate(values)]


def paired_test(differences: Sequence[np.ndarray], permutations: int = 4999, seed: int = 0, images: Images | None = None) -> np.ndarray:
    """Two-sided paired permutation test: under the null hypothesis the sign of each image's differences is random.

    Parameters
    ----------
    differences : list of arrays of shape (n_subject, m)
        One array per subject; per image, the difference of two methods in m measures, NaN where there is none. The
        statistic is the mean over subjects of the mean over images.
    images : list of lists of length n_subject, optional
        Which image each difference is of, as for `bootstrap`: an image has one sign for all who saw it.

    Returns
    -------
    p : array of shape (m,)
        (1 + number of sign flips at least as extreme) / (1 + permutations).
    """
    images = images or _own(differences)
    place = _numbered(images)
    parts = np.zeros((len(place), differences[0].shape[1]))  # every image's part of the statistic
    for own, d in zip(images, differences, strict=True):
        known = np.isfinite(d)
        np.add.at(parts, [place[image] for image in own], np.where(known, d, 0) / known.sum(0).clip(1) / len(differences))
    random = np.random.default_rng(seed)
    observed, extreme = np.abs(parts.sum(0)) * (1 - 1e-5), np.zeros(parts.shape[1], int)
    for start in range(0, permutations, FLIPPED_AT_ONCE):
        signs = random.integers(0, 2, (min(FLIPPED_AT_ONCE, permutations - start), len(parts)), dtype=np.int8).astype(np.float32) * 2 - 1
        extreme += (np.abs(signs @ parts.astype(np.float32)) >= observed).sum(0)
    return (1 + extreme) / (1 + permutations)


def drawn_test(differences: Sequence[np.ndarray], resampled: np.ndarray, images: Images | None = None) -> np.ndarray:
    """Two-sided test of a mean difference over images and over drawings of the trials that methods got.

    Student's t of the mean over its standard error by the pigeonhole bootstrap (`bootstrap`), with the degrees of freedom of Satterthwaite
    (1946): the variance between drawings has one less than there are drawings, the rest one less than there are images.

    Parameters
    ----------
    differences : list of arrays of shape (d, n_subject, m)
        One per subject, of d > 1 drawings; NaN where there is none.
    resampled : array of shape (resamples, m)
        Their `resampled_means`, drawings counted.
    images : list of lists of length n_subject, optional
        As for `bootstrap`.

    Returns
    -------
    p : array of shape (m,)
        NaN where nothing varies.
    """
    from scipy.stats import t

    images = images or _own(differences, 1)
    whole = np.nanvar(resampled, axis=0)
    means = [np.nanmean(values, 1) for values in differences]
    drawn = sum(own.var(0, ddof=1) / len(own) for own in means) / len(means) ** 2
    rest = np.maximum(whole - drawn, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = whole**2 / (drawn**2 / sum(len(own) - 1 for own in means) + rest**2 / (len(_numbered(images)) - 1))
        return 2 * t.sf(np.abs(np.mean([own.mean(0) for own in means], axis=0)) / np.sqrt(whole), freedom)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment of p-values (m,) for their number; NaN stays NaN and does not count."""
    p = np.asarray(p, float)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = (len(order) - np.arange(len(order))) * p[order]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps)) if len(order) else steps
    return adjusted
