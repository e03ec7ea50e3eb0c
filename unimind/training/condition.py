"""Stage `condition`: train the diffusion model to follow a group's fMRI.

Trained are the condition stage, the UNet's cross-attention with its norms and, on request, the encoder; everything
else of the UNet stays as it was, and only what was trained is stored. The subject classifier that makes the subject
token stays as alignment left it.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from unimind.data.hdf5 import read_rows
from unimind.data.prepared import Stimuli
from unimind.errors import InputError
from unimind.foundations import load_autoencoder, load_diffusion
from unimind.foundations.diffusion import Diffusion, adaptable_names, alphas_cumprod, noised
from unimind.models.condition import ConditionStage
from unimind.models.encoder import Encoder, load_encoder
from unimind.models.space import PictureSpace
from unimind.storage import load_model
from unimind.study import Study
from unimind.training.align import Subjects, read_group, remember_body
from unimind.training.data import encoded, joined, new_encoder, turns
from unimind.training.loop import at_places, fingerprint, generator, stream_seed, train, write_model
from unimind.training.objectives.denoising import draw_noise

#: Held-out pictures at a time.
VALIDATED = 32


class ConditionedDiffusion(nn.Module):
    """Encoder, condition stage and UNet as one module."""

    def __init__(self, encoder: Encoder, condition: ConditionStage, diffusion: Diffusion, train_encoder: bool) -> None:
        super().__init__()
        self.encoder, self.condition, self.unet, self.sketch = encoder, condition, diffusion.unet, diffusion.sketch
        self.diffusion = [diffusion]  # not a submodule: its UNet and its sketch are
        self.train_encoder = train_encoder

    def train(self, mode: bool = True) -> "ConditionedDiffusion":
        """A frozen encoder and the UNet stay in evaluation mode."""
        super().train(mode)
        self.unet.eval()
        if not self.train_encoder:
            self.encoder.eval()
        return self

    def forward(self, batch: Mapping[str, Any], latent: Tensor) -> Tensor:
        """The UNet's prediction for noised latents, conditioned on a batch's fMRI where `kept`."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            output = encoded(self.encoder, batch)
            embedding = functional.normalize(self.encoder.predict(output, "embedding"), dim=1) if "embedding" in self.encoder.targets else None
        condition = self.condition(output.tokens, output.pooled, embedding).keep(batch["kept"], self.condition.null())
        return self.diffusion[0](latent, batch["timestep"], condition)


def condition(
    study: Study, method: str, group: str, prepared: list[Path] | None, embeddings: list[Path], entered: list[Path] | None, encoder: Path | None,
    diffusion: Path, autoencoder: Path | None, stimuli: list[Path] | None, checkpoints: Path, out: Path,
) -> None:  # fmt: skip
    """Write the conditioned model of a group: encoder, condition stage, and the UNet parameters that were trained.

    Parameters
    ----------
    prepared, embeddings : lists of Path
        One of each per member of the group, in the order of `study.members(method, group)`.
    entered : list of Path, optional
        Instead of `prepared` where the method enters in closed form: what `enter` wrote, one per member.
    encoder : Path, optional
        Directory of the aligned encoder, or of the pretrained one where the method does not align; without it the encoder starts untrained.
    diffusion : Path
    autoencoder : Path, optional
        With `stimuli` (one per member), where `condition.crop` asks for latents of crops.
    """
    settings = study.method(method)
    stage = settings.condition
    if stage is None:
        raise InputError(f"methods.{method}.condition: the method has none, so there is nothing to train in this stage")
    if stage.crop > 0 and (autoencoder is None or not stimuli):
        raise InputError(f"methods.{method}.condition.crop: {stage.crop:g} given, so crops are encoded while training; give --autoencoder and --stimuli")
    network = load_diffusion(diffusion)
    subjects, space = read_group(study, method, group, prepared or [], embeddings, entered or [], whole=True)
    with ExitStack() as stack:
        latents, pictures = {}, {}
        for number, (name, path) in enumerate(zip(subjects, embeddings, strict=True)):
            latents[name] = stack.enter_context(h5py.File(path))["latent"]
            network.take_latents(latents[name].shape[1:], str(path))
            if stage.crop > 0 and stimuli:
                pictures[name] = stack.enter_context(Stimuli(stimuli[number]))
        side = next((file.images.shape[1] for file in pictures.values()), 0)
        coder = load_autoencoder(autoencoder) if stage.crop > 0 and autoencoder is not None else None
        model = starting_model(study, method, network, subjects, space, encoder)
        names = trained_names(model)
        alphas = alphas_cumprod(network.scheduler)
        kind = network.scheduler.get("prediction_type", "epsilon")

        def draw(step: int) -> dict[str, Any]:
            parts = {}
            for name, places in turns(list(subjects), stage.training.batch_size, step).items():
                trials = subjects[name][0]
                chosen = at_places(len(trials.images("train")), places, study.seed, name, "condition")
                images, responses = trials.draw("train", chosen, step, study.seed)
                parts[name] = {"index": torch.as_tensor(images), "responses": responses, "latent": torch.from_numpy(read_rows(latents[name], images))}
                if coder is not None:
                    parts[name]["crop"] = cut_crops(pictures[name], images, stage.crop, generator(study.seed, name, "crop", step))
            batch = joined(parts)
            return batch | draw_noise(batch["latent"], len(alphas), stage.drop, generator(study.seed, "noise", step))

        def losses(model: ConditionedDiffusion, batch: Mapping[str, Any]) -> dict[str, Tensor]:
            latent = batch["latent"]
            if coder is not None and model.training:
                latent = with_crops(latent, batch["crop"], coder.to(latent.device), side)
            mixed, target = noised(latent, batch["noise"], batch["timestep"], alphas.to(latent.device), kind)
            return {"diffusion": functional.mse_loss(model(batch, mixed).float(), target)}

        held_out = []
        for name, (trials, _) in subjects.items():
            images, responses = trials.all("validation", limit=128)
            if len(images):
                part = {"responses": responses, "latent": torch.from_numpy(read_rows(latents[name], images))}
                noise = [draw_noise(part["latent"], len(alphas), 0.0, generator(study.seed, name, "held-out noise", again)) for again in range(2)]
                held_out += [(name, part | own) for own in noise]

        def validate(model: ConditionedDiffusion) -> dict[str, float]:
            """Mean error of every subject's held-out pictures, each with two draws of noise, the same ones every time."""
            device = next(model.parameters()).device
            values = []
            for name, part in held_out:
                count = len(part["latent"])
                for rows in torch.arange(count).split(VALIDATED):
                    own = {key: column[rows].to(device) for key, column in part.items()} | {"subject": name}
                    values.append(losses(model, own)["diffusion"] * len(rows) / count)
            return {"diffusion": torch.stack(values).sum().item() / len(held_out)}

        files = [*(prepared or []), *(path / "entered.h5" for path in entered or []), *embeddings, diffusion, *([encoder] if encoder else [])]
        mark = fingerprint(study, files, __name__)
        trained = train(model, draw=draw, losses=losses, settings=stage.training, seed=study.seed, checkpoints=checkpoints, fingerprint=mark,
                        label=f"{settings.label or method}: condition the diffusion model on {group}", trainable=names,
                        n_samples=sum(len(t.images("train")) for t, _ in subjects.values()), validate=validate if held_out else None)  # fmt: skip
        if stage.train_encoder:
            remember_body(model.encoder.eval(), subjects)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(("unet.", "sketch.")) or name in names}
    config = {
        "kind": "conditioned", "method": method, "group": group, "encoder": model.encoder.arguments, "condition": model.condition.arguments,
        "inputs": mark, "held_out": trained.validation,
    }  # fmt: skip
    write_model(out, state, config, trained, checkpoints)


def starting_model(study: Study, method: str, network: Diffusion, subjects: Subjects, space: PictureSpace, encoder: Path | None) -> ConditionedDiffusion:
    """The model that training starts from: the aligned or pretrained encoder, or one untrained, and a condition stage that fits it and the UNet."""
    settings = study.method(method)
    stage = settings.condition
    assert stage is not None
    torch.manual_seed(stream_seed(study.seed, "condition"))
    first, (trials, _) = next(iter(subjects.items()))
    head = {}
    if settings.align is not None:
        assert encoder is not None
        own, head = load_encoder(encoder)[0], read_subject_head(encoder)
    else:
        counts = {name: trials.n_voxels for name, (trials, _) in subjects.items()} if settings.per_subject else {}
        own = new_encoder(study, method, space, counts, trials.channels, encoder)
    conditioner = network.conditioner if "embedding" in own.targets else None
    with torch.no_grad():
        tokens, pooled, *_ = own.eval()(trials.example(), None if own.closed else first)
    found = ConditionStage(
        tokens.shape[2], tokens.shape[1], pooled.shape[1], network.context_dim, stage.tokens, network.time_dim, stage.cross_attention, stage.time,
        conditioner.arguments if conditioner is not None else None, len(head["out.weight"]) if head else 0,
    )  # fmt: skip
    if found.subject is not None:
        found.subject.load_state_dict(head)
    if conditioner is not None:
        found.start_from(conditioner)
    return ConditionedDiffusion(own, found, network, stage.train_encoder)


def trained_names(model: ConditionedDiffusion) -> list[str]:
    """Parameters that the stage trains: the condition stage without its subject classifier, what of the UNet adapts, and the encoder where it is trained."""
    changed = {f"unet.{name}" for name in adaptable_names(model.unet)}
    return [
        name
        for name, _ in model.named_parameters()
        if name in changed
        or (name.startswith("condition.") and not name.startswith("condition.subject."))
        or (model.train_encoder and name.startswith("encoder."))
    ]


def read_subject_head(aligned: Path) -> dict[str, Tensor]:
    """Weights of the subject classifier that an aligned encoder was trained with; empty where `align.losses.subject` was off."""
    state, _ = load_model(aligned)
    return {name.removeprefix("subject."): tensor for name, tensor in state.items() if name.startswith("subject.")}


#: Side of MinD-Vis's random crops, as a share of the picture's: 205 of 256 pixels.
CROP = 0.8


def cut_crops(stimuli: Stimuli, images: NDArray, share: float, random: torch.Generator) -> list[Tensor]:
    """A random crop of each of a share of the pictures, uint8 (3, CROP H, CROP W); an empty tensor for the others."""
    chosen = (torch.rand(len(images), generator=random) < share).numpy()
    places = torch.rand(len(images), 2, generator=random)
    found = [torch.empty(0, dtype=torch.uint8)] * len(images)
    for row, picture in zip(chosen.nonzero()[0].tolist(), torch.from_numpy(stimuli.read(images[chosen])).permute(0, 3, 1, 2), strict=True):
        side = picture.shape[-1]
        cut = max(1, round(CROP * side))
        top, left = (places[row] * (side - cut + 1)).long().clamp_max(side - cut).tolist()
        found[row] = picture[:, top : top + cut, left : left + cut].clone()
    return found


def with_crops(latents: Tensor, crops: list[Tensor], coder: nn.Module, side: int) -> Tensor:
    """Latents (n, c, h, w), and in the place of those that have a crop the crop's, which is brought to `side` pixels and encoded."""
    rows = [row for row, crop in enumerate(crops) if crop.numel()]
    if not rows:
        return latents
    pixels = torch.stack([crops[row] for row in rows]).float() / 255
    with torch.no_grad():
        encoded_crops = coder.encode(functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1))
    latents = latents.clone()
    latents[rows] = encoded_crops.to(latents.dtype)
    return latents
