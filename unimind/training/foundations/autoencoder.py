"""Train the study's autoencoder."""

from pathlib import Path

import torch
from torch.nn import functional

from unimind.foundations.study_autoencoder import NAME, SpaceToDepthAutoencoder
from unimind.study import Study, StudyAutoencoder
from unimind.training.foundations.pictures import drawn_pictures, unit
from unimind.training.loop import drawn, fingerprint, generator, train, write_model

LATENT_NOISE = 0.2


def train_autoencoder(study: Study, checkpoints: Path, out: Path) -> None:
    """Squared and absolute error of the round trip, with noise on the latents so that near latents decode to near pictures.

    Held-out peak signal-to-noise ratio in dB goes to the losses as `psnr` (negated where it is minimised).
    """
    settings = study.foundations.autoencoder
    assert isinstance(settings, StudyAutoencoder)
    pictures = drawn_pictures(study)
    torch.manual_seed(study.seed)
    model = SpaceToDepthAutoencoder(settings.latent_channels, settings.downsampling, settings.width).to(memory_format=torch.channels_last)

    side = study.picture_size // settings.downsampling

    def draw(step: int) -> dict:
        index = drawn(len(pictures.images), settings.training.batch_size, step, study.seed, "autoencoder")
        noise = torch.randn(len(index), settings.latent_channels, side, side, generator=generator(study.seed, "autoencoder noise", step))
        return {"index": index, "images": pictures.images[index], "noise": noise}

    def losses(model: SpaceToDepthAutoencoder, batch: dict) -> dict:
        images = unit(batch["images"])
        latent = model.raw_encode(images)
        output = model.raw_decode(latent + LATENT_NOISE * batch["noise"])
        return {"squared": 10 * functional.mse_loss(output, images), "absolute": functional.l1_loss(output, images), "size": 1e-3 * latent.square().mean()}

    def validate(model: SpaceToDepthAutoencoder) -> dict:
        device = model.mean.device
        error = 0.0
        for part in pictures.held_out.split(64):
            images = unit(part.to(device))
            error += (model.raw_decode(model.raw_encode(images)).clamp(0, 1) - images).square().mean((1, 2, 3)).log10().mul(10).sum().item()
        return {"negative_psnr": error / len(pictures.held_out)}

    mark = fingerprint(study, [], __name__)
    trained = train(model, draw=draw, losses=losses, settings=settings.training, seed=study.seed, checkpoints=checkpoints, fingerprint=mark,
                    label="autoencoder", n_samples=len(pictures.images), validate=validate)  # fmt: skip
    model.cpu()
    with torch.no_grad():
        latents = torch.cat([model.raw_encode(unit(part)) for part in pictures.images[:1024].split(64)])
    model.mean.copy_(latents.mean((0, 2, 3), keepdim=True))
    model.std.copy_(latents.std((0, 2, 3), keepdim=True))
    write_model(out, model.state_dict(), {"kind": "study", "name": NAME, "arguments": model.arguments, "held_out": trained.validation}, trained, checkpoints)
