"""Ridge regression, a penalty for every target."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unimind.models.prior import LinearMap
from unimind.models.space import PictureSpace


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


def rescaled(found: LinearMap, inputs: NDArray, coordinates: NDArray, space: PictureSpace) -> LinearMap:
    """A map whose predictions vary as much as the targets, in every dimension of each target, over the trials it was fitted to.

    Brain-Diffuser (Ozcelik & VanRullen 2023) does so with the statistics of its test predictions; here nothing of a test trial is used.
    With A the picture space's axes, C and P the covariances of true and predicted coordinates, dimension j is stretched by
    sqrt((A C A')_jj / (A P A')_jj), in the picture space the map A' diag(.) A of coordinates about their mean.

    Parameters
    ----------
    found : LinearMap
    inputs, coordinates : array
        (n, V) and (n, K), what it was fitted to.
    space : PictureSpace
    """
    mean = coordinates.mean(0, dtype=np.float64)
    predicted = inputs @ found.weight
    middle, stretch = predicted.mean(0, dtype=np.float64), np.zeros((coordinates.shape[1],) * 2)
    split = space.components["embedding"]
    for name, part in (("embedding", slice(0, split)), ("latent", slice(split, None))):
        axes = getattr(space, f"{name}_axes").numpy().astype(np.float64)
        deviations = []
        for values, centre in ((coordinates[:, part], mean[part]), (predicted[:, part], middle[part])):
            covariance = np.atleast_2d((values - centre).T @ (values - centre) / len(values))
            deviations.append(np.sqrt(np.einsum("dk,kl,dl->d", axes, covariance, axes, optimize=True).clip(0)))
        factor = np.divide(deviations[0], deviations[1], out=np.zeros_like(deviations[0]), where=deviations[1] > 1e-12)
        stretch[part, part] = (axes * factor[:, None]).T @ axes
    weight = found.weight @ stretch
    return LinearMap(weight.astype(np.float32), (mean - inputs.mean(0, dtype=np.float64) @ weight).astype(np.float32))
