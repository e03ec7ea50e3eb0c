"""A small autoencoder built with diffusers, for pictures drawn in the study."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from unimind.storage import load_model

NAME = "study autoencoder"


class SpaceToDepthAutoencoder(nn.Module):
    """diffusers' AutoencoderTiny between a space-to-depth stem and its inverse.

    The stem (4 x 4 pixels to channels) moves all convolutions to a quarter of the resolution. With a downsampling of 8, 2 x 2
    positions of the latent become channels in the same way: a UNet of an eighth of the resolution then draws as finely. Latents
    are normalised per channel to mean 0 and variance 1 over the training pictures, which is how the diffusion model sees them.

    Parameters
    ----------
    latent_channels : int
        With a downsampling of 8 a multiple of 4.
    downsampling : int
        Pixels per latent position along a side; 4 or 8.
    width : int
        Channels of every layer.
    """

    def __init__(self, latent_channels: int, downsampling: int, width: int) -> None:
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

        self.arguments = {"latent_channels": latent_channels, "downsampling": downsampling, "width": width}
        self.name = NAME
        self.patch = 4
        self.fold = downsampling // self.patch
        self.tiny = AutoencoderTiny(
            in_channels=3 * self.patch**2, out_channels=3 * self.patch**2, encoder_block_out_channels=(width,),
            decoder_block_out_channels=(width,), num_encoder_blocks=(2,), num_decoder_blocks=(2,),
            latent_channels=latent_channels // self.fold**2, act_fn="silu",
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(1, latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(1, latent_channels, 1, 1))

    def raw_encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [0, 1] to latents before normalisation."""
        return functional.pixel_unshuffle(self.tiny.encoder(functional.pixel_unshuffle(images * 2 - 1, self.patch)), self.fold)

    def raw_decode(self, latent: Tensor) -> Tensor:
        """The inverse of `raw_encode`, not clamped."""
        return (functional.pixel_shuffle(self.tiny.decoder(functional.pixel_shuffle(latent, self.fold)), self.patch) + 1) / 2

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [0, 1] to latents (n, c, H / downsampling, W / downsampling) of unit variance."""
        return (self.raw_encode(images) - self.mean) / self.std

    def decode(self, latent: Tensor) -> Tensor:
        """Latents to images (n, 3, H, W) in [0, 1]."""
        return self.raw_decode(latent * self.std + self.mean).clamp(0, 1)


def load_study_autoencoder(directory: Path) -> SpaceToDepthAutoencoder:
    """A trained study autoencoder, frozen, in evaluation mode."""
    state, config = load_model(directory)
    model = SpaceToDepthAutoencoder(**config["arguments"])
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
