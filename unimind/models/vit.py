"""The transformer of masked brain modelling (MinD-Vis: Chen et al. 2023; masked autoencoders: He et al. 2022)."""

import torch
from torch import Tensor, nn

from unimind.models.recompute import Recomputing
from unimind.streams import placed


def sine_positions(length: int, width: int) -> Tensor:
    """Fixed positions (length, width): sines in the first half of the channels, cosines in the second (Vaswani et al. 2017)."""
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width % 2)).float()


class ViTTrunk(Recomputing):
    """Patch embedding, class token, fixed positions, pre-norm blocks, and, for pretraining, a masked-autoencoder decoder.

    Only the visible patches pass the encoder; the decoder sees them and one learned vector for every hidden patch.

    Parameters
    ----------
    channels, size : int
        Channels and length of the signal that enters; `size` is a multiple of `patch`.
    width, depth, heads, mlp_ratio, patch, decoder_width, decoder_depth
        See `study.ViT`.
    decoder : bool
        Whether to have the decoder that `reconstruct` needs.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        patch: int,
        decoder_width: int,
        decoder_depth: int,
        decoder: bool = False,
    ) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.width, self.patch, self.channels = width, patch, channels
        self.n_patches = size // patch
        self.n_tokens = self.n_patches + 1
        self.stem = placed("stem", lambda: nn.Conv1d(channels, width, patch, stride=patch))
        self.cls = placed("class token", lambda: nn.Parameter(torch.randn(1, 1, width) * 0.02))
        self.register_buffer("position", sine_positions(self.n_tokens, width), persistent=False)
        self.blocks = nn.ModuleList(placed(f"block {number}", lambda: Block(width, heads, mlp_ratio, qkv_bias=True)) for number in range(depth))
        self.norm = nn.LayerNorm(width)
        if decoder:
            decoder_heads = next(count for count in range(min(heads, decoder_width), 0, -1) if decoder_width % count == 0)

            def block() -> nn.Module:
                return Block(decoder_width, decoder_heads, mlp_ratio, qkv_bias=True)

            self.decoder = nn.ModuleDict(
                {
                    "enter": placed("decoder enter", lambda: nn.Linear(width, decoder_width)),
                    "blocks": nn.ModuleList(placed(f"decoder {number}", block) for number in range(decoder_depth)),
                    "norm": nn.LayerNorm(decoder_width),
                    "out": placed("out", lambda: nn.Linear(decoder_width, patch * channels)),
                }
            )
            self.hidden = placed("hidden", lambda: nn.Parameter(torch.randn(1, 1, decoder_width) * 0.02))
            self.register_buffer("decoder_position", sine_positions(self.n_tokens, decoder_width), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens of the visible patches, the class token first.

        Parameters
        ----------
        x : Tensor
            (B, channels, size).
        mask : Tensor, optional
            bool (B, n_patches), True where hidden, equally many in every row.

        Returns
        -------
        Tensor
            (B, 1 + visible patches, width).
        """
        x = self.stem(x).transpose(1, 2) + self.position[1:]
        if mask is not None:
            x = x[~mask].view(len(x), -1, self.width)
        x = torch.cat([(self.cls + self.position[:1]).expand(len(x), -1, -1).to(x.dtype), x], 1)
        return self.norm(self.through(self.blocks, x))

    def reconstruct(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The signal as decoded from its visible patches: (B, channels, size)."""
        tokens = self.decoder["enter"](self(x, mask))
        if mask is not None:
            patches = self.hidden.to(tokens.dtype).expand(len(x), self.n_patches, -1).masked_scatter(~mask[..., None], tokens[:, 1:])
            tokens = torch.cat([tokens[:, :1], patches], 1)
        tokens = self.through(self.decoder["blocks"], tokens + self.decoder_position)
        out = self.decoder["out"](self.decoder["norm"](tokens))[:, 1:]
        return out.view(len(x), self.n_patches, self.channels, self.patch).permute(0, 2, 1, 3).flatten(2)
