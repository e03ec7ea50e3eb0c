"""MindBridge's losses of signals built back into voxels (Wang et al. 2024)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from unimind.models.enter import Embedders, by_subject


class Reconstruction:
    """Mean squared distance of a subject's pooled voxels and those that its builder makes of its signal."""

    def __call__(self, enter: Embedders, builders: Mapping[str, nn.Module], signal: Tensor, responses: Sequence[Tensor], subjects: Sequence[str]) -> Tensor:
        """Embedders, a builder for each subject, signals (B, R, size), the responses (R, V) they came from, and their subjects; a scalar."""
        built = by_subject(signal, subjects, lambda rows, name: builders[name](rows))
        return mse_loss(built.float(), torch.stack([enter.pool(row[None])[0] for row in responses]))


class Cycle:
    """Mean squared distance of a signal and what another subject's embedder makes of the voxels that this subject's builder makes of it."""

    def __call__(self, enter: Embedders, builders: Mapping[str, nn.Module], signal: Tensor, others: Sequence[str]) -> Tensor:
        """Embedders, a builder for each subject, signals (B, R, size), and of each the other subject; a scalar."""
        return mse_loss(by_subject(signal, others, lambda rows, name: enter.embed(builders[name](rows), name)), signal)
