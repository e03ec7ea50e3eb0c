"""Foundations that come from elsewhere, by kind: which module gets them and which reads them back."""

from pathlib import Path
from typing import Any

from unimind.errors import InputError
from unimind.storage import read_json
from unimind.study import (
    AutoencoderAlone,
    ClipVisionEmbedding,
    Frozen,
    HubAutoencoder,
    HubDiffusion,
    LdmAutoencoder,
    LdmDiffusion,
    OpenClipEmbedding,
    SqueezeNetEmbedding,
    Taef2Autoencoder,
)

External = (
    OpenClipEmbedding | ClipVisionEmbedding | SqueezeNetEmbedding | Taef2Autoencoder | HubAutoencoder | LdmAutoencoder | HubDiffusion | LdmDiffusion
    | Frozen | AutoencoderAlone
)  # fmt: skip


def build(settings: External, directory: Path) -> None:
    """Get a network, from a file or the hub, and write it into `directory` (an open `whole_directory`) in the project's form.

    Raises
    ------
    InputError
        One line: which file or repository is missing, unfit or of another SHA-256 than expected, and what to do.
    """
    directory = Path(directory)
    _build(settings, directory)
    expected, config = getattr(settings, "sha256", None), read_json(directory / "config.json")
    if isinstance(expected, dict):
        for path, value in expected.items():
            found = config["sources"].get(path, f"no such file among {', '.join(config['sources'])}")
            if found != value.lower():
                raise InputError(
                    f"foundations.{config['role']}.sha256.{path}: {value} expected, but found {found}; get the weights again, or correct the study"
                )
    elif expected is not None and set(config["sources"].values()) != {expected.lower()}:
        found = ", ".join(f"{name} has {value}" for name, value in config["sources"].items())
        raise InputError(f"foundations.{config['role']}.sha256: {expected} expected, but {found}; get the weights again, or correct the hash in the study")


def _build(settings: External, directory: Path) -> None:
    match settings:
        case OpenClipEmbedding():
            from unimind.foundations.open_clip_embedding import build_open_clip

            build_open_clip(settings, directory)
        case ClipVisionEmbedding():
            from unimind.foundations.clip_vision import build_clip_vision

            build_clip_vision(settings, directory)
        case SqueezeNetEmbedding():
            from unimind.foundations.squeezenet import build_squeezenet

            build_squeezenet(settings, directory)
        case Taef2Autoencoder():
            from unimind.foundations.taef2 import build_taef2

            build_taef2(settings, directory)
        case HubAutoencoder():
            from unimind.foundations.hub import build_hub_autoencoder

            build_hub_autoencoder(settings, directory)
        case LdmAutoencoder():
            from unimind.foundations.ldm import build_ldm_autoencoder

            build_ldm_autoencoder(settings, directory)
        case HubDiffusion():
            from unimind.foundations.hub import build_hub_unet

            build_hub_unet(settings, directory)
        case LdmDiffusion():
            from unimind.foundations.ldm import build_ldm_unet

            build_ldm_unet(settings, directory)
        case Frozen() | AutoencoderAlone():
            from unimind.foundations.generators.build import build_generator

            build_generator(settings, directory)


def load_external(directory: Path) -> Any:
    """The network that `build` wrote, frozen, in evaluation mode: an image embedding, an autoencoder or a diffusers UNet.

    Its weights lie channels last, which takes a third off its time on CPUs and suits half precision on GPUs.
    """
    import torch

    return _load(Path(directory)).to(memory_format=torch.channels_last)


def _load(directory: Path) -> Any:
    config = read_json(directory / "config.json")
    match config.get("role"), config.get("kind"):
        case "embedding", "open-clip":
            from unimind.foundations.open_clip_embedding import load_open_clip

            return load_open_clip(directory)
        case "embedding", "clip-vision":
            from unimind.foundations.clip_vision import load_clip_vision

            return load_clip_vision(directory)
        case "embedding", "squeezenet":
            from unimind.foundations.squeezenet import load_squeezenet

            return load_squeezenet(directory)
        case "autoencoder", "taef2":
            from unimind.foundations.taef2 import load_taef2

            return load_taef2(directory)
        case "autoencoder", "hub" | "ldm":
            from unimind.foundations.hub import load_diffusers_autoencoder

            return load_diffusers_autoencoder(directory)
        case "diffusion", "hub" | "ldm":
            from unimind.foundations.hub import load_unet

            return load_unet(directory)
        case role, kind:
            raise InputError(
                f"{directory}/config.json: no known foundation (role {role}, kind {kind}); delete the directory and run the foundation stage again"
            )
