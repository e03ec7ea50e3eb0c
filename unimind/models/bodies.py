"""What is shared by subjects: signals in; tokens, and one pooled vector, out."""

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from unimind.models.convmixer import ConvMixerTrunk
from unimind.models.vit import ViTTrunk
from unimind.streams import placed

#: Tokens that a vector without tokens of its own is cut into for cross-attention; widths of `mlp` are multiples of it.
TOKENS = 8
#: Bodies of patches, which can be pretrained.
TRUNKS = {"convmixer": ConvMixerTrunk, "vit": ViTTrunk}


class IdentityBody(nn.Module):
    """The signal itself."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.width = channels * size

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, size) to tokens (B, 8, ceil(C size / 8)) and the signal as one vector (B, C size)."""
        flat = signal.flatten(1)
        return in_tokens(flat), flat


class MlpBody(nn.Module):
    """Linear layers, each with GELU and dropout.

    Parameters
    ----------
    channels, size : int
        Of the signal.
    width, depth, dropout
        See `study.Mlp`.
    """

    def __init__(self, channels: int, size: int, *, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        sizes = [channels * size] + [width] * depth
        linear = [placed(f"layer {number}", lambda a=a, b=b: nn.Linear(a, b)) for number, (a, b) in enumerate(itertools.pairwise(sizes))]  # type: ignore[misc]
        self.layers = nn.Sequential(*(layer for own in linear for layer in (own, nn.GELU(), nn.Dropout(dropout))))

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, size) to tokens (B, 8, width / 8) and the hidden layer (B, width)."""
        hidden = self.layers(signal.flatten(1))
        return hidden.unflatten(1, (TOKENS, -1)), hidden


def mlp_block(size: int, dropout: float) -> nn.Sequential:
    """Norm, linear, GELU, dropout, linear, over the last axis."""
    return nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size), nn.GELU(), nn.Dropout(dropout), nn.Linear(size, size))


def linear_block(size: int, dropout: float) -> nn.Sequential:
    """Linear, norm, GELU, dropout, over the last axis."""
    return nn.Sequential(nn.Linear(size, size), nn.LayerNorm(size), nn.GELU(), nn.Dropout(dropout))


class ResidualBody(nn.Module):
    """Blocks over a vector, the output of each added to its input.

    With `mixer`, MindEye2's (Scotti et al. 2024) published order: the vector is a sequence of one token, every block over its values is
    followed by one across the tokens, and each kind adds to the last output of its own kind. The norm across one token makes a constant
    of whatever the other kind has computed, so what is left is the input plus a constant, and blocks over values get no gradient.

    Parameters
    ----------
    channels, size : int
        Of the signal.
    block, depth, dropout
        See `study.Residual`.
    """

    def __init__(self, channels: int, size: int, *, block: str, depth: int, dropout: float) -> None:
        super().__init__()
        self.width = channels * size
        make = linear_block if block == "linear" else mlp_block
        self.within = nn.ModuleList(placed(f"within {number}", lambda: make(self.width, dropout)) for number in range(depth))
        self.across = nn.ModuleList(placed(f"across {number}", lambda: mlp_block(1, dropout)) for number in range(depth if block == "mixer" else 0))

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, size) to tokens (B, 8, ceil(C size / 8)) and one vector (B, C size)."""
        x = between = signal.flatten(1)
        last = x[:, :, None]
        for number, block in enumerate(self.within):
            between = block(x) + between
            x = between
            if self.across:
                last = self.across[number](x[:, :, None]) + last
                x = last[:, :, 0]
        return in_tokens(x), x


class PatchBody(nn.Module):
    """A trunk over patches: its tokens, and their mean.

    Parameters
    ----------
    kind : str
        Of `TRUNKS`.
    channels, size : int
        Of the signal; padded with zeros to whole patches.
    """

    def __init__(self, kind: str, channels: int, size: int, **settings: Any) -> None:
        super().__init__()
        self.padded = -(-size // settings["patch"]) * settings["patch"]
        self.trunk = TRUNKS[kind](channels, self.padded, **settings)
        self.width = settings["width"]

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, size) to tokens (B, L, width) and their mean (B, width)."""
        tokens = self.trunk(nn.functional.pad(signal, (0, self.padded - signal.shape[-1])))
        return tokens, tokens.mean(1)


def in_tokens(flat: Tensor) -> Tensor:
    """A vector (B, n) cut into tokens (B, 8, ceil(n / 8)), filled up with zeros."""
    return nn.functional.pad(flat, (0, -flat.shape[1] % TOKENS)).unflatten(1, (TOKENS, -1))


def build_body(settings: Mapping[str, Any], channels: int, size: int) -> IdentityBody | MlpBody | ResidualBody | PatchBody:
    """The body that a method's `body` section asks for."""
    own = {key: value for key, value in settings.items() if key != "kind"}
    if settings["kind"] == "identity":
        return IdentityBody(channels, size)
    if settings["kind"] == "mlp":
        return MlpBody(channels, size, **own)
    if settings["kind"] == "residual":
        return ResidualBody(channels, size, **own)
    return PatchBody(settings["kind"], channels, size, **own)
