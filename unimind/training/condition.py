"""Stage `condition`: train the diffusion model to follow a group's fMRI.

Trained are the condition stage, the UNet's cross-attention with its norms and, on request, the encoder; everything
else of the UNet stays as it was, and only what was trained is stored. The subject classifier that makes the subject
token stays as alignment left it.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.foundations import load_diffusion
from unimind.foundations.diffusion import Diffusion, adaptable_names, alphas_cumprod, noised
from unimind.models.condition import ConditionStage
from unimind.models.encoder import FmriEncoder, load_encoder, subject_key
from unimind.storage import content_hash, load_model
from unimind.study import Study
from unimind.training.data import SubjectTrials, joined, new_encoder, training_rows, turns
from unimind.training.loop import at_places, fingerprint, generator, stream_seed, train, write_model
from unimind.training.objectives.denoising import draw_noise

#: Held-out pictures at a time.
VALIDATED = 32


class ConditionedDiffusion(nn.Module):
    """Encoder, condition stage and UNet as one module; `aligned` says whether the encoder predicts an image embedding."""

    def __init__(self, encoder: FmriEncoder, condition: ConditionStage, diffusion: Diffusion, aligned: bool, train_encoder: bool) -> None:
        super().__init__()
        self.encoder, self.condition, self.unet = encoder, condition, diffusion.unet
        self.diffusion = [diffusion]  # not a submodule: its UNet is
        self.aligned, self.train_encoder = aligned, train_encoder

    def train(self, mode: bool = True) -> "ConditionedDiffusion":
        """A frozen encoder and the UNet stay in evaluation mode."""
        super().train(mode)
        self.unet.eval()
        if not self.train_encoder:
            self.encoder.eval()
        return self

    def forward(self, responses: Tensor | Sequence[Tensor], subject: str | Sequence[str], latent: Tensor, timestep: Tensor, kept: Tensor) -> Tensor:
        """The UNet's prediction for latents noised to `timestep`, conditioned on fMRI where `kept`."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            output = self.encoder(responses, subject)
            embedding = self.encoder.embed(output.pooled, normalise=True) if self.aligned else None
        condition = self.condition(output.tokens, output.pooled, embedding).keep(kept, self.condition.null())
        return self.diffusion[0](latent, timestep, condition)


def condition(
    study: Study, method: str, group: str, prepared: list[Path], embeddings: list[Path], encoder: Path | None, diffusion: Path, checkpoints: Path, out: Path
) -> None:
    """Write the conditioned model of a group: encoder, condition stage, and the UNet parameters that were trained.

    Parameters
    ----------
    prepared, embeddings : lists of Path
        One of each per member of the group, in the order of `study.members(method, group)`.
    encoder : Path, optional
        Directory of the aligned encoder, or of the pretrained one where the method does not align; without it the encoder starts untrained.
    diffusion : Path
    """
    settings = study.method(method)
    stage = settings.condition
    if stage is None:
        raise InputError(f"methods.{method}.condition: the method has none, so there is nothing to train in this stage")
    members = study.members(method, group)
    if not len(members) == len(prepared) == len(embeddings):
        raise InputError(
            f"condition: {len(prepared)} prepared and {len(embeddings)} embeddings files for {len(members)} subjects of {group}; give one of each per subject"
        )
    network = load_diffusion(diffusion)
    aligned = settings.align is not None
    with ExitStack() as stack:
        subjects = {}
        for (dataset, subject), path, targets in zip(members, prepared, embeddings, strict=True):
            with PreparedSubject(path) as data:
                trials = SubjectTrials(data, settings.voxels, training_rows(study, method, data))
            latents = stack.enter_context(h5py.File(targets))["latent"]
            network.take_latents(latents.shape[1:], str(targets))
            subjects[subject_key(dataset, subject)] = (trials, latents)
        torch.manual_seed(stream_seed(study.seed, method, group, "condition"))
        if aligned:
            assert encoder is not None
            model_encoder, _ = load_encoder(encoder)
        else:
            model_encoder = new_encoder(
                study, method, {name: trials.n_voxels for name, (trials, _) in subjects.items()}, next(iter(subjects.values()))[0].channels, encoder
            )
        conditioner = network.conditioner.arguments if aligned and network.conditioner is not None else None
        first = next(iter(subjects))
        with torch.no_grad():
            tokens = model_encoder.eval()(subjects[first][0].example(), first).tokens
        head = read_subject_head(encoder) if aligned and encoder is not None else {}
        condition_stage = ConditionStage(
            tokens.shape[2], tokens.shape[1], network.context_dim, stage.tokens, network.time_dim, stage.cross_attention, stage.time, conditioner,
            len(head["out.weight"]) if head else 0,
        )  # fmt: skip
        if condition_stage.subject is not None:
            condition_stage.subject.load_state_dict(head)
        if conditioner and network.conditioner is not None:
            condition_stage.start_from(network.conditioner)
        model = ConditionedDiffusion(model_encoder, condition_stage, network, aligned, stage.train_encoder)
        changed = [f"unet.{name}" for name in adaptable_names(network.unet)]
        names = [
            name
            for name, _ in model.named_parameters()
            if name in changed
            or (name.startswith("condition.") and not name.startswith("condition.subject."))
            or (stage.train_encoder and name.startswith("encoder."))
        ]
        alphas = alphas_cumprod(network.scheduler)
        kind = network.scheduler.get("prediction_type", "epsilon")

        def draw(step: int) -> dict[str, Any]:
            parts = {}
            for name, places in turns(list(subjects), stage.training.batch_size, step).items():
                trials, latents = subjects[name]
                chosen = at_places(len(trials.images("train")), places, study.seed, name, "condition")
                images, responses = trials.draw("train", chosen, step, study.seed)
                parts[name] = {"index": torch.as_tensor(images), "responses": responses, "latent": read_rows(latents, images)}
            batch = joined(parts)
            return batch | draw_noise(batch["latent"], len(alphas), stage.drop, generator(study.seed, "noise", step))

        def losses(model: ConditionedDiffusion, batch: Mapping[str, Any]) -> dict[str, Tensor]:
            mixed, target = noised(batch["latent"], batch["noise"], batch["timestep"], alphas.to(batch["latent"].device), kind)
            predicted = model(batch["responses"], batch["subject"], mixed, batch["timestep"], batch["kept"])
            return {"diffusion": functional.mse_loss(predicted.float(), target)}

        held_out = []
        for name, (trials, latents) in subjects.items():
            images, responses = trials.all("validation", limit=128)
            if len(images):
                part = {"responses": responses, "latent": read_rows(latents, images)}
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

        files = [*prepared, *embeddings, diffusion, *([encoder] if encoder else [])]
        mark = fingerprint([settings.model_dump(mode="json"), study.seed, method, group], files, __name__)
        trained = train(model, draw=draw, losses=losses, settings=stage.training, seed=study.seed, checkpoints=checkpoints, fingerprint=mark,
                        label=f"{settings.label or method}: condition the diffusion model on {group}", trainable=names,
                        n_samples=sum(len(t.images("train")) for t, _ in subjects.values()), validate=validate if held_out else None)  # fmt: skip
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("unet.") or name in changed}
    config = {
        "kind": "conditioned", "method": method, "group": group, "encoder": model_encoder.arguments, "condition": condition_stage.arguments, "aligned": aligned,
        "study": content_hash(settings.model_dump(mode="json")), "inputs": mark, "held_out": trained.validation,
    }  # fmt: skip
    write_model(out, state, config, trained, checkpoints)


def read_subject_head(aligned: Path) -> dict[str, Tensor]:
    """Weights of the subject classifier that an aligned encoder was trained with; empty where `align.losses.subject` was off."""
    state, _ = load_model(aligned)
    return {name.removeprefix("subject."): tensor for name, tensor in state.items() if name.startswith("subject.")}


def read_rows(latents: h5py.Dataset, images: NDArray) -> Tensor:
    """Latents (n, c, h, w) of some pictures."""
    return torch.stack([torch.from_numpy(latents[int(image)]) for image in images])
