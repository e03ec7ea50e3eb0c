"""Train the study's latent diffusion UNet, conditioned on the image embedding."""

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unimind.data.prepared import unit_hash
from unimind.device import on_device
from unimind.foundations import load_autoencoder, load_embedding
from unimind.foundations.diffusion import Conditioning, Diffusion, alphas_cumprod, noised
from unimind.study import Study, StudyDiffusion
from unimind.training.foundations.pictures import drawn_pictures, unit
from unimind.training.loop import drawn, fingerprint, generator, train, write_model
from unimind.training.objectives.denoising import draw_noise

NAME = "study latent diffusion"
SCHEDULER = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
#: Where little of the picture is left, the condition says most of it: there a small UNet has most to learn.
TIMESTEP_POWER = 3.0
#: Pictures sketched for each one the UNet draws: a sketch costs an eighth of the UNet's pass.
SKETCHED = 4
SKETCH = {"width": 64, "hidden": 512}


def _drawn_targets(study: Study, autoencoder: Path, embedding: Path) -> tuple[Tensor, Tensor]:
    device = on_device()
    coder, embedder = load_autoencoder(autoencoder).to(device), load_embedding(embedding).to(device)
    latents, embeddings = [], []
    with torch.no_grad():
        for part in drawn_pictures(study).images.split(128):
            images = unit(part.to(device))
            latents.append(coder.encode(images).cpu())
            embeddings.append(embedder.encode(images).cpu())
    return torch.cat(latents), torch.cat(embeddings)


def _training_targets(stimuli: list[Path], embeddings: list[Path], fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Latents and embeddings of pictures that are no test picture in any of the files, left out in none, and not among the validation pictures."""
    with_test: set[str] = set()
    rows = []
    for stimulus, embedding in zip(stimuli, embeddings, strict=True):
        with h5py.File(stimulus) as file, h5py.File(embedding) as targets:
            names, test = file["sha256"].asstr()[:], file["test"][:].astype(bool)
            with_test |= set(names[test | file["left_out"][:]] if "left_out" in file else names[test])
            rows.append((names, targets["latent"][:], targets["embedding"][:]))
    seen: set[str] = set(with_test)
    latents, vectors = [], []
    for names, latent, vector in rows:
        for index, name in enumerate(names):
            if name not in seen and unit_hash(name, seed) >= fraction:
                seen.add(name)
                latents.append(latent[index])
                vectors.append(vector[index])
    return torch.from_numpy(np.stack(latents)).float(), torch.from_numpy(np.stack(vectors)).float()


def train_diffusion(study: Study, autoencoder: Path, embedding: Path, stimuli: list[Path], embeddings: list[Path], checkpoints: Path, out: Path) -> None:
    """Velocity prediction on latents, with condition dropout; noisy timesteps more often.

    Of drawn pictures, or of those that the study's subjects may be trained on: no test picture and no validation picture of any subject.

    The sketch learns beside it, by its squared error.
    """
    settings = study.foundations.diffusion
    assert isinstance(settings, StudyDiffusion)
    if settings.pictures == "drawn":
        latents, vectors = _drawn_targets(study, autoencoder, embedding)
    else:
        fraction = max(section.validation_fraction for section in study.datasets.values())
        latents, vectors = _training_targets(stimuli, embeddings, fraction, study.seed)
    held_out = len(latents) // 32
    torch.manual_seed(study.seed)
    order = torch.randperm(len(latents))
    latents, vectors = latents[order], vectors[order]
    channels = [int(c) for c in settings.channels]
    attended = [level > 0 or len(channels) == 1 for level in range(len(channels))]
    unet = {
        "sample_size": latents.shape[-1], "in_channels": 2 * latents.shape[1] + 2, "out_channels": latents.shape[1], "block_out_channels": channels,
        "layers_per_block": settings.blocks, "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attended],
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attended)],
        "cross_attention_dim": settings.context_dim, "attention_head_dim": 4, "norm_num_groups": 16, "resnet_time_scale_shift": "scale_shift",
    }  # fmt: skip
    conditioner = {"dim": vectors.shape[1], "context_dim": settings.context_dim, "tokens": settings.context_tokens, "time_dim": 4 * channels[0]}
    model = Diffusion(NAME, unet, SCHEDULER, tuple(latents.shape[1:]), conditioner, coordinates=True, sketch=SKETCH)
    assert model.conditioner is not None and model.sketch is not None
    model.conditioner.mean.copy_(vectors.mean(0))
    model.conditioner.std.copy_(vectors.std(0).clamp_min(1e-6))
    alphas = alphas_cumprod(SCHEDULER)

    def draw(step: int) -> dict:
        count = settings.training.batch_size
        index = held_out + drawn(len(latents) - held_out, SKETCHED * count, step, study.seed, "diffusion").view(count, SKETCHED)
        random = draw_noise(latents[index[:, 0]], len(alphas), settings.drop_condition, generator(study.seed, "diffusion noise", step), TIMESTEP_POWER)
        return {"index": index, "latent": latents[index], "vector": vectors[index], **random}

    def losses(model: Diffusion, batch: dict) -> dict:
        """Of the velocity for the first picture of each row, of the sketch for all."""
        assert model.conditioner is not None and model.sketch is not None
        pictures = batch["latent"].shape[1]
        latent, condition = batch["latent"][:, 0], model.conditioner(batch["vector"].flatten(0, 1))
        sketch = model.sketch(condition.time).unflatten(0, (-1, pictures))
        seen = sketch[:, 0].detach() * batch["kept"][:, None, None, None]
        first = Conditioning(condition.context[::pictures], condition.time[::pictures]).keep(batch["kept"], model.conditioner.null())
        mixed, target = noised(latent, batch["noise"], batch["timestep"], alphas.to(latent.device), str(SCHEDULER["prediction_type"]))
        velocity = model(mixed, batch["timestep"], first, seen).float()
        return {"velocity": functional.mse_loss(velocity, target), "sketch": functional.mse_loss(sketch.float(), batch["latent"])}

    unseen = {"latent": latents[:held_out, None], "vector": vectors[:held_out, None]}
    unseen |= draw_noise(latents[:held_out], len(alphas), 0.0, generator(study.seed, "held-out noise"))

    def validate(model: Diffusion) -> dict:
        device = next(model.parameters()).device
        parts = [losses(model, {key: column[rows].to(device) for key, column in unseen.items()}) for rows in torch.arange(held_out).split(64)]
        return {name: torch.stack([part[name] for part in parts]).mean().item() for name in parts[0]}

    files = [autoencoder, embedding, *stimuli, *embeddings]
    mark = fingerprint(study, files, __name__)
    trained = train(model, draw=draw, losses=losses, settings=settings.training, seed=study.seed, checkpoints=checkpoints, fingerprint=mark,
                    label="latent diffusion", n_samples=len(latents) - held_out, validate=validate if held_out else None)  # fmt: skip
    write_model(out, model.state_dict(), {"kind": "study", "name": NAME, "arguments": model.arguments, "held_out": trained.validation}, trained, checkpoints)
