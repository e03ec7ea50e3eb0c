"""Small heads on the pooled fMRI embedding."""

import torch
from torch import Tensor, nn


class EmbeddingHead(nn.Module):
    """Pooled fMRI embedding -> image embedding: a linear map plus a two-layer network.

    The output is `mean + scale * (linear + mlp)`, with mean and standard deviation of the training images'
    embeddings, so that the head learns what distinguishes images, and starts near predicting the mean.

    Parameters
    ----------
    width : int
        Of the pooled embedding.
    dim : int
        Of the image embedding.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.2), nn.Linear(2 * width, dim))
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def set_targets(self, embeddings: Tensor) -> None:
        """Take mean and standard deviation of every dimension from the training images' embeddings (n, dim)."""
        self.mean.copy_(embeddings.mean(0))
        self.scale.copy_(embeddings.std(0, correction=0).clamp_min(1e-6))

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, width) -> (B, dim)."""
        return self.mean + self.scale * (self.linear(pooled) + self.mlp(pooled))


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
