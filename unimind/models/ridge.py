"""Ridge regression, penalties by cross-validation, in closed form on the device there is."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.device import on_device
from unimind.errors import InputError
from unimind.models.prior import LinearMap
from unimind.models.space import PictureSpace

#: Inputs that are on the device at a time.
BLOCK = 2048
#: Neighbouring components of a target that have their penalty in common. One component's error over some dozen pictures is mostly noise, and components
#: of a target differ too much for one penalty for all. Of 1, 8, 16, 32 and all, on validation pictures of training subjects (macaque; embedded): the
#: embedding's error is 1.06, .98, .97, .97, .99; 1.06, 1.05, 1.04, 1.04, 1.04 with 25 pictures and .840, .838, .838, .840, .849; .836, .837, .837,
#: .837, .838 with all, the latent's correlation .21, .26, .26, .26, .24; .29, .34, .33, .31, .29 and .428, .428, .428, .428, .421; .576, .579, .576,
#: .563, .542; identification gains 2 points with 25 macaque pictures by 16 and loses 3 of 62 in the embedded study.
TOGETHER = 16


def components_together(space: PictureSpace) -> list[slice]:
    """The runs of a picture space's coordinates that have their penalty in common."""
    begins = np.cumsum([0, *space.components.values()])
    return [slice(at, min(at + TOGETHER, end)) for begin, end in zip(begins, begins[1:], strict=False) for at in range(begin, end, TOGETHER)]


def fit_ridge(
    inputs: NDArray, targets: NDArray, alphas: Sequence[float], folds: int, seed: int = 0, device: torch.device | None = None, together: Sequence[slice] = ()
) -> LinearMap:
    """Ridge regression from inputs (n, V) to targets (n, t), the penalty of each target, or of several together, by cross-validation.

    The squared error of held-out rows, averaged over folds and targets with a penalty in common, decides. Solved by Cholesky decompositions of
    the smaller of both Gram matrices, of rows or of inputs, in double precision: penalties of 0.1 stand beside eigenvalues of 1e8. Inputs travel
    in blocks of columns; beside them, memory is that of three such matrices.

    Parameters
    ----------
    inputs, targets : array
        One row per picture, so that folds never share one.
    alphas, folds, seed
        Penalties, number of shuffled folds, seed of the shuffling.
    device : torch.device, optional
        By default that of `on_device`.
    together : sequence of slice
        Targets that have a penalty in common; by default none.
    """
    from sklearn.model_selection import KFold

    device = on_device(device)
    mean, bias = inputs.mean(0, dtype=np.float64), targets.mean(0, dtype=np.float64)
    wanted = torch.from_numpy(targets - bias).to(device)
    by_row = inputs.shape[1] > len(inputs)
    folded = [
        (torch.from_numpy(train), torch.from_numpy(test)) for train, test in KFold(min(folds, len(inputs)), shuffle=True, random_state=seed).split(inputs)
    ]

    def blocks() -> Iterator[Tensor]:
        for start in range(0, inputs.shape[1], BLOCK):
            part = slice(start, start + BLOCK)
            yield torch.from_numpy(inputs[:, part]).to(device).double().sub_(torch.from_numpy(mean[part]).to(device))

    if by_row:
        gram = torch.zeros(len(inputs), len(inputs), dtype=torch.float64, device=device)
        for block in blocks():
            gram.addmm_(block, block.T)
        error = sum(_errors_by_row(gram, wanted, train.to(device), test.to(device), alphas) for train, test in folded)
    else:
        centred = torch.cat(list(blocks()), 1)
        gram = centred.T @ centred
        error = sum(_errors_by_input(centred, gram, wanted, train.to(device), test.to(device), alphas) for train, test in folded)
    wrong = np.nan_to_num(_to_numpy(error), nan=np.inf)
    for part in together:
        wrong[:, part] = wrong[:, part].sum(1, keepdims=True)
    chosen = wrong.argmin(0)
    right = wanted if by_row else centred.T @ wanted
    found = torch.zeros_like(right)
    for index in np.unique(chosen):
        own = torch.from_numpy(np.flatnonzero(chosen == index)).to(device)
        found[:, own] = _solve(gram, alphas[index], right[:, own])
    weight = np.concatenate([_to_numpy(block.T @ found) for block in blocks()]) if by_row else _to_numpy(found)
    if not np.isfinite(weight).all():
        raise InputError(
            f"ridge regression: none of the penalties {', '.join(f'{alpha:g}' for alpha in alphas)} is large enough for these inputs; give larger ones"
        )
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
    for name, part in zip(space.components, (slice(0, split), slice(split, None)), strict=False):
        axes = getattr(space, f"{name}_axes").numpy().astype(np.float64)
        deviations = []
        for values, centre in ((coordinates[:, part], mean[part]), (predicted[:, part], middle[part])):
            covariance = np.atleast_2d((values - centre).T @ (values - centre) / len(values))
            deviations.append(np.sqrt(np.einsum("dk,kl,dl->d", axes, covariance, axes, optimize=True).clip(0)))
        factor = np.divide(deviations[0], deviations[1], out=np.zeros_like(deviations[0]), where=deviations[1] > 1e-12)
        stretch[part, part] = (axes * factor[:, None]).T @ axes
    weight = found.weight @ stretch
    return LinearMap(weight.astype(np.float32), (mean - inputs.mean(0, dtype=np.float64) @ weight).astype(np.float32))


def _to_numpy(values: Tensor) -> NDArray[np.float64]:
    return values.cpu().numpy()


def _errors_by_row(gram: Tensor, wanted: Tensor, train: Tensor, test: Tensor, alphas: Sequence[float]) -> Tensor:
    """Mean squared error of held-out rows under every penalty, from the products of rows (n, n): (penalties, t)."""
    own, across = gram[train][:, train], gram[test][:, train]
    return torch.stack([(across @ _solve(own, alpha, wanted[train]) - wanted[test]).square().mean(0) for alpha in alphas])


def _errors_by_input(centred: Tensor, gram: Tensor, wanted: Tensor, train: Tensor, test: Tensor, alphas: Sequence[float]) -> Tensor:
    """As `_errors_by_row`, from the products of inputs (V, V)."""
    unseen, right = centred[test], centred[train].T @ wanted[train]
    own = gram - unseen.T @ unseen
    return torch.stack([(unseen @ _solve(own, alpha, right) - wanted[test]).square().mean(0) for alpha in alphas])


def _solve(gram: Tensor, alpha: float, right: Tensor) -> Tensor:
    """(gram + alpha I)^-1 right; no number where rounding leaves the matrix without a root: such a penalty is not chosen."""
    shifted = gram.clone()
    shifted.diagonal().add_(alpha)
    root, failed = torch.linalg.cholesky_ex(shifted)
    del shifted
    return torch.where(failed == 0, torch.cholesky_solve(right, root), torch.nan)
