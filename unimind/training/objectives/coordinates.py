"""Prediction of a picture's targets."""

from torch import Tensor


def coordinate_distance(predicted: Tensor, target: Tensor, spread: Tensor) -> Tensor:
    """Mean squared distance of predicted and true coordinates, as a share of the training pictures' variance.

    The thesis's CLIP projection: mean over samples of |z' - z|^2 / sum of spread^2; 1 for predicting the mean picture, 0 at best. On
    the training pictures that is 1 - R^2, R^2 the explained share of the target's variance within the picture space.

    Parameters
    ----------
    predicted, target : Tensor
        (n, k).
    spread : Tensor
        (1, k), standard deviations over the training pictures.
    """
    return (predicted.float() - target).square().sum(1).mean() / spread.square().sum()
