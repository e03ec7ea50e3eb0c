"""Ridge regression from voxels to image embedding and autoencoder latent, a penalty for every target."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class RidgeModel:
    """Two linear maps that share their input.

    Parameters
    ----------
    mean : array
        (n_voxels,), subtracted from the responses.
    embedding, latent : (weight, bias)
        float32 (n_voxels, d) and (d,); the latent is flattened.
    """

    def __init__(self, mean: NDArray, embedding: tuple[NDArray, NDArray], latent: tuple[NDArray, NDArray]) -> None:
        self.mean, self.embedding, self.latent = mean, embedding, latent

    @classmethod
    def fit(cls, responses: NDArray, embedding: NDArray, latent: NDArray, alphas: Sequence[float], folds: int, seed: int = 0) -> "RidgeModel":
        """Fit to one row per image, so that folds never share an image.

        Parameters
        ----------
        responses : array
            (n, n_voxels), averaged over the repeats of each image.
        embedding : array
            (n, d).
        latent : array
            (n, ...), flattened here.
        alphas : sequence of float
            Penalties to choose from, for every target by itself.
        folds : int
        """
        mean = responses.mean(0)
        centred = responses - mean
        fitted = [solve(centred, targets.reshape(len(targets), -1), alphas, folds, seed) for targets in (embedding, latent)]
        return cls(mean.astype(np.float32), fitted[0], fitted[1])

    def predict(self, responses: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Responses (n, n_voxels) to embedding (n, d) and flattened latent (n, m)."""
        centred = np.asarray(responses, np.float32) - self.mean
        return centred @ self.embedding[0] + self.embedding[1], centred @ self.latent[0] + self.latent[1]

    def state(self) -> dict[str, Tensor]:
        """Tensors by name, for `storage.save_model`."""
        arrays = {"mean": self.mean}
        for name, (weight, bias) in (("embedding", self.embedding), ("latent", self.latent)):
            arrays |= {f"{name}.weight": weight, f"{name}.bias": bias}
        return {name: torch.from_numpy(np.ascontiguousarray(array, np.float32)) for name, array in arrays.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor], config: dict[str, Any] | None = None) -> "RidgeModel":
        """The model that `state` came from."""
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        pairs = [(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in ("embedding", "latent")]
        return cls(arrays["mean"], pairs[0], pairs[1])


def solve(centred: NDArray, targets: NDArray, alphas: Sequence[float], folds: int, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Weights (n_voxels, t) and bias (t,) of ridge regression, by himalaya; the penalty of each target by cross-validation.

    Parameters
    ----------
    centred : array
        (n, n_voxels), centred responses.
    targets : array
        (n, t).
    alphas, folds, seed
        Penalties, number of shuffled folds, seed of the shuffling.
    """
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import KFold

    set_backend("numpy")
    bias = targets.mean(0)
    centred, wanted = np.asarray(centred, np.float64), np.asarray(targets - bias, np.float64)
    cv = KFold(min(folds, len(centred)), shuffle=True, random_state=seed)
    if centred.shape[1] > len(centred):
        model = KernelRidgeCV(alphas=alphas, kernel="linear", cv=cv).fit(centred, wanted)
        weight = centred.T @ model.dual_coef_
    else:
        weight = RidgeCV(alphas=alphas, fit_intercept=False, cv=cv).fit(centred, wanted).coef_
    return weight.astype(np.float32), bias.astype(np.float32)
