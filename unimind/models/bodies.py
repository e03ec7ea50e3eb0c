"""What is shared by subjects: signals in; tokens, and one pooled vector, out."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from unimind.models.convmixer import ConvMixerTrunk
from unimind.models.vit import ViTTrunk

#: Tokens that a vector without tokens of its own is cut into for cross-attention; widths of `mlp` are multiples of it.
TOKENS = 8
#: Bodies of patches, which can be pretrained.
TRUNKS = {"convmixer": ConvMixerTrunk, "vit": ViTTrunk}


class Identity(nn.Module):
    """The signal itself."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.width = channels * size

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, size) to tokens (B, 8, ceil(C size / 8)) and the signal as one vector (B, C size)."""
        flat = signal.flatten(1)
        return nn.functional.pad(flat, (0, -flat.shape[1] % TOKENS)).unflatten(1, (TOKENS, -1)), flat


class Mlp(nn.Module):
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
        self.layers = nn.Sequential(*(layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.GELU(), nn.Dropout(dropout))))

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, size) to tokens (B, 8, width / 8) and the hidden layer (B, width)."""
        hidden = self.layers(signal.flatten(1))
        return hidden.unflatten(1, (TOKENS, -1)), hidden


class Patches(nn.Module):
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


def build_body(settings: Mapping[str, Any], channels: int, size: int) -> Identity | Mlp | Patches:
    """The body that a method's `body` section asks for."""
    own = {key: value for key, value in settings.items() if key != "kind"}
    if settings["kind"] == "identity":
        return Identity(channels, size)
    if settings["kind"] == "mlp":
        return Mlp(channels, size, **own)
    return Patches(settings["kind"], channels, size, **own)
