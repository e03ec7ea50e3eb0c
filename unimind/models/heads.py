"""Small heads on the pooled fMRI embedding."""

import torch
from torch import Tensor, nn


class TargetHead(nn.Linear):
    """Pooled fMRI embedding (B, width) -> a target's coordinates in the picture space (B, components), in their standard deviations.

    It starts at zero, which predicts the mean picture, or, beside a closed form, adds nothing to it.

    Parameters
    ----------
    width : int
        Of the pooled embedding.
    components : int
        Coordinates of the target.
    """

    def __init__(self, width: int, components: int) -> None:
        super().__init__(width, components)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class SubjectHead(nn.Module):
    """Which training subject a pooled embedding comes from; its hidden layer is the subject token of the thesis.

    Parameters
    ----------
    width : int
        Of the pooled embedding.
    n_subjects : int
    """

    def __init__(self, width: int, n_subjects: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.out = nn.Linear(width, n_subjects)

    def token(self, pooled: Tensor) -> Tensor:
        """Subject token (B, width)."""
        return self.hidden(pooled)

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits (B, n_subjects)."""
        return self.out(self.hidden(pooled))


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return -gradient


def reverse_gradient(x: Tensor) -> Tensor:
    """Identity whose gradient is negated (Ganin & Lempitsky 2015)."""
    return _Reverse.apply(x)
