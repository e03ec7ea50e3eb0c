"""Self-supervised objectives: rebuild a signal from its tokens."""

import torch
from torch import Tensor, nn


def draw_masks(count: int, n_patches: int, share: float, generator: torch.Generator) -> Tensor:
    """Masks, True where hidden: bool (count, n_patches), the same number of hidden patches in every row, never all or none."""
    hidden = min(max(round(share * n_patches), 1), n_patches - 1)
    places = torch.rand(count, n_patches, generator=generator).argsort(1)[:, :hidden]
    return torch.zeros(count, n_patches, dtype=torch.bool).scatter_(1, places, True)


class MaskedModelling:
    """Mean squared error on the hidden patches only: mean over hidden voxels of (x - x')^2.

    Masked autoencoders (He et al. 2022), for fMRI sparse-coded masked brain modelling (MinD-Vis, Chen et al. 2023).
    """

    def __call__(self, trunk: nn.Module, signal: Tensor, mask: Tensor) -> Tensor:
        """Signal (B, R, size), mask (B, n_patches); a scalar."""
        hidden = over_voxels(mask, signal)
        error = (trunk.reconstruct(signal, mask).float() - signal).square()
        return (error * hidden).sum() / hidden.sum()


class Autoencoding:
    """Mean squared error over all voxels, nothing hidden: the thesis's figure B.

    A bottleneck only where the encoder's width is below the values of a patch; else copying is a perfect answer, and what
    was learned shows in the held-out correlation on hidden patches.
    """

    def __call__(self, trunk: nn.Module, signal: Tensor, mask: Tensor | None = None) -> Tensor:
        """Signal (B, R, size); a scalar."""
        return (trunk.reconstruct(signal).float() - signal).square().mean()


def over_voxels(mask: Tensor, signal: Tensor) -> Tensor:
    """A mask of patches (B, n_patches) spread over a signal's voxels: bool (B, R, size)."""
    return mask.repeat_interleave(signal.shape[-1] // mask.shape[1], 1)[:, None].expand_as(signal)


def masked_correlation(truth: Tensor, guess: Tensor, hidden: Tensor) -> Tensor:
    """Pearson correlation of guess and truth over each sample's hidden voxels.

    Parameters
    ----------
    truth, guess, hidden : Tensor
        (B, R, size); `hidden` is bool.

    Returns
    -------
    Tensor
        (B,); 0 where either is constant.
    """
    weight = hidden.flatten(1).double()
    truth, guess = truth.flatten(1).double(), guess.flatten(1).double()
    count = weight.sum(1, keepdim=True)
    truth, guess = ((x - (x * weight).sum(1, keepdim=True) / count) * weight for x in (truth, guess))
    norm = truth.norm(dim=1) * guess.norm(dim=1)
    return torch.where(norm > 0, (truth * guess).sum(1) / norm.clamp_min(1e-30), 0.0)
