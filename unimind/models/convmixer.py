"""ConvMixer over patches of voxels (Trockman & Kolter 2022, "Patches Are All You Need?"), in one dimension."""

import torch
from torch import Tensor, nn

from unimind.models.recompute import Recomputing
from unimind.streams import placed


class Mixing(nn.Module):
    """One layer: depthwise convolution across patches with a residual, then a pointwise one across channels.

    Depthwise convolution -> GELU -> norm -> residual; pointwise convolution -> GELU -> norm. The thesis normalises by
    batch statistics; here every sample is normalised by its own (GroupNorm with one group), for three reasons: a batch mixes
    subjects, whose statistics differ; a loss then does not depend on how a batch is shared by micro-batches and processes;
    and adapting to a new subject cannot alter running statistics that the training subjects rely on.

    Parameters
    ----------
    width : int
        Channels.
    kernel : int
        Width of the depthwise convolution, in patches.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.across = nn.Conv2d(width, width, (1, kernel), groups=width, padding="same")  # five times faster than Conv1d on a CPU
        self.norm_across = nn.GroupNorm(1, width)
        self.within = nn.Conv1d(width, width, 1)
        self.norm_within = nn.GroupNorm(1, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, L) -> (B, width, L)."""
        across = self.across(x[:, :, None].contiguous(memory_format=torch.channels_last))[:, :, 0]
        x = x + self.norm_across(nn.functional.gelu(across))
        return self.norm_within(nn.functional.gelu(self.within(x)))


class ConvMixerTrunk(Recomputing):
    """Strided patch embedding, mixing layers, and, for pretraining, a mixing decoder.

    Parameters
    ----------
    channels, size : int
        Channels and length of the signal that enters; `size` is a multiple of `patch`.
    width, depth, patch, kernel, decoder_depth : int
        See `study.ConvMixer`.
    decoder : bool
        Whether to have the decoder that `reconstruct` needs.
    """

    def __init__(self, channels: int, size: int, *, width: int, depth: int, patch: int, kernel: int, decoder_depth: int, decoder: bool = False) -> None:
        super().__init__()
        self.width, self.patch, self.n_patches, self.n_tokens = width, patch, size // patch, size // patch
        self.stem = placed("stem", lambda: nn.Conv1d(channels, width, patch, stride=patch))
        self.position = placed("position", lambda: nn.Parameter(torch.randn(width, self.n_patches) * 0.02))
        self.layers = nn.ModuleList(placed(f"layer {number}", lambda: Mixing(width, kernel)) for number in range(depth))
        if decoder:
            self.hidden = nn.Parameter(torch.zeros(width))
            self.decoder = nn.ModuleDict(
                {
                    "layers": nn.ModuleList(placed(f"decoder {number}", lambda: Mixing(width, kernel)) for number in range(decoder_depth)),
                    "out": placed("out", lambda: nn.ConvTranspose1d(width, channels, patch, stride=patch)),
                }
            )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens of a signal; hidden patches are replaced by one learned vector before any mixing.

        Parameters
        ----------
        x : Tensor
            (B, channels, size).
        mask : Tensor, optional
            bool (B, n_patches), True where hidden.

        Returns
        -------
        Tensor
            (B, n_tokens, width).
        """
        x = self.stem(x)
        if mask is not None:
            x = torch.where(mask[:, None], self.hidden[:, None].to(x.dtype), x)
        x = x + self.position
        return self.through(self.layers, x).transpose(1, 2)

    def reconstruct(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The signal as decoded from its tokens: (B, channels, size)."""
        return self.decoder["out"](self.through(self.decoder["layers"], self(x, mask).transpose(1, 2)))
