"""Prediction of the image embedding."""

from torch import Tensor


class EmbeddingDistance:
    """Mean squared distance of predicted and true image embedding in units of every dimension's standard deviation.

    The thesis's CLIP projection. mean over samples and dimensions of ((e' - e) / sigma)^2, with sigma over the training
    pictures: 1 for predicting their mean, 0 at best. On the training pictures that is 1 - R^2, R^2 the coefficient of
    determination averaged over dimensions.
    """

    def __call__(self, predicted: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """Predicted and target (n, d), standard deviations (d,); a scalar."""
        return ((predicted.float() - target) / scale).square().mean()
