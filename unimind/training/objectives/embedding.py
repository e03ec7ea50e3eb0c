"""Prediction of the image embedding."""

from torch import Tensor


class EmbeddingDistance:
    """Mean squared distance of predicted and true image embedding in units of every dimension's standard deviation.

    mean over samples and dimensions of ((e' - e) / sigma)^2: 1 for predicting the mean of the training pictures, 0 at best;
    that is one minus the share of variance explained.
    """

    def __call__(self, predicted: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        """Predicted and target (n, d), standard deviations (d,); a scalar."""
        return ((predicted.float() - target) / scale).square().mean()
