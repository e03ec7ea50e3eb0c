"""Ridge regression, a penalty for every target."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unimind.models.prior import LinearMap


def fit_ridge(inputs: NDArray, targets: NDArray, alphas: Sequence[float], folds: int, seed: int = 0) -> LinearMap:
    """Ridge regression from inputs (n, V) to targets (n, t), by himalaya; the penalty of each target by cross-validation.

    Parameters
    ----------
    inputs, targets : array
        One row per picture, so that folds never share one.
    alphas, folds, seed
        Penalties, number of shuffled folds, seed of the shuffling.
    """
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import KFold

    set_backend("numpy")
    mean, bias = inputs.mean(0, dtype=np.float64), targets.mean(0, dtype=np.float64)
    centred, wanted = np.asarray(inputs - mean, np.float64), np.asarray(targets - bias, np.float64)
    cv = KFold(min(folds, len(centred)), shuffle=True, random_state=seed)
    if centred.shape[1] > len(centred):
        weight = centred.T @ KernelRidgeCV(alphas=alphas, kernel="linear", cv=cv).fit(centred, wanted).dual_coef_
    else:
        weight = RidgeCV(alphas=alphas, fit_intercept=False, cv=cv).fit(centred, wanted).coef_
    return LinearMap(weight.astype(np.float32), (bias - mean @ weight).astype(np.float32))
