"""The image encoder of a repository, by transformers: the network whose output a frozen generator was trained on.

Its outputs are targets: the pooled, projected embedding, and the tokens of its last layer but one, which Plus adapters take.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unimind.errors import InputError
from unimind.foundations.hub import network_files, refuse_other_keys, repository_folder
from unimind.storage import file_hash, load_model, read_json, save_model
from unimind.study import ClipVisionEmbedding

#: Colours that CLIP's pictures were normalised by in training (Radford et al. 2021).
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
#: Pillow's number of bicubic resampling, which every CLIP processor states.
_BICUBIC = 3


class ClipVision(nn.Module):
    """transformers' `CLIPVisionModelWithProjection` with the preprocessing it was trained with.

    Parameters
    ----------
    network : CLIPVisionModelWithProjection
    preprocess : dict
        `size` (shortest side), `crop` (side), `mean`, `std`.
    name : str
        As shown in tables.
    """

    def __init__(self, network: nn.Module, preprocess: dict[str, Any], name: str) -> None:
        super().__init__()
        from torchvision.transforms import CenterCrop, InterpolationMode, Normalize, Resize

        self.network, self.name = network, name
        self.dim = int(network.config.projection_dim)
        patches = (network.config.image_size // network.config.patch_size) ** 2
        #: Tokens of a picture, the class token first, and their width.
        self.tokens_shape = (patches + 1, int(network.config.hidden_size))
        self.spatial = [Resize(preprocess["size"], InterpolationMode.BICUBIC, antialias=True), CenterCrop(preprocess["crop"])]
        self.normalise = Normalize(preprocess["mean"], preprocess["std"])

    def _pixels(self, images: Tensor) -> Tensor:
        for step in self.spatial:
            images = step(images)
        return self.normalise(images.clamp(0, 1))

    def raw(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1] to (n, dim), of the length the network gives them."""
        return self.network(self._pixels(images)).image_embeds

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1] to (n, dim), L2-normalised."""
        return functional.normalize(self.raw(images), dim=-1)

    def raw_and_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (n, 3, H, W) in [0, 1] to their embeddings (n, dim) and the tokens of the last layer but one (n, *tokens_shape)."""
        output = self.network(self._pixels(images), output_hidden_states=True)
        return output.image_embeds, output.hidden_states[-2]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and advice that the libraries print while they load; what is wrong is still raised."""
    import transformers
    from diffusers.utils import logging

    kinds: tuple[Any, ...] = (logging, transformers.logging)
    before, bars = [kind.get_verbosity() for kind in kinds], transformers.logging.is_progress_bar_enabled()
    try:
        for kind in kinds:
            kind.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        yield
    finally:
        for kind, level in zip(kinds, before, strict=True):
            kind.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


@torch.no_grad()
def of_zero_picture(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Embedding (dim,) and tokens (n, width) of the picture that is zero after normalisation: what adapters and Kandinsky call no picture."""
    side = network.config.image_size
    output = network(torch.zeros(1, 3, side, side), output_hidden_states=True)
    return output.image_embeds[0], output.hidden_states[-2][0]


def read_encoder(folder: Path, variant: str | None, key: str) -> nn.Module:
    """An image encoder from a local folder, in single precision: safetensors only, every weight there and none left over.

    Raises
    ------
    InputError
        One line: what is missing, foreign or unreadable.
    """
    from transformers import CLIPVisionModelWithProjection

    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no image encoder there (no config.json); name its folder as {key}")
    try:
        with quiet():
            network, found = CLIPVisionModelWithProjection.from_pretrained(
                folder, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder}: no whole CLIP image encoder in safetensors there ({reason}); get the repository again") from None
    refuse_other_keys(folder, found)
    return network.eval()


def build_clip_vision(settings: ClipVisionEmbedding, directory: Path) -> None:
    """Get an image encoder from the hub, its cache or a local folder, and write it into `directory` (an open `whole_directory`).

    Raises
    ------
    InputError
        When it cannot be had, lacks a weight or has a foreign one, or its preprocessing is not CLIP's.
    """
    needed = network_files(settings.subfolder, settings.variant, "model")
    processor = f"{settings.processor}/preprocessor_config.json" if settings.processor else None
    folder = repository_folder(settings.repository, settings.revision, [*needed, *([processor] if processor else [])], f"{settings.subfolder}/config.json")
    network = read_encoder(folder / settings.subfolder, settings.variant, "foundations.embedding.subfolder")
    side = network.config.image_size
    preprocess = {"size": side, "crop": side, "mean": CLIP_MEAN, "std": CLIP_STD}
    if processor:
        preprocess = _preprocess(read_json(folder / processor), folder / processor)
    if preprocess["crop"] != side:
        raise InputError(f"{folder / str(processor)}: crops to {preprocess['crop']} pixels, but the encoder takes {side}; name the encoder's own processor")
    local = Path(settings.repository).is_dir()
    config = {
        "kind": settings.kind,
        "role": "embedding",
        "name": f"CLIP image encoder of {Path(settings.repository).name if local else settings.repository} ({settings.subfolder})",
        "dim": network.config.projection_dim,
        "vision": {key: value for key, value in network.config.to_dict().items() if not key.startswith("_") and key not in ("dtype", "torch_dtype")},
        "preprocess": preprocess,
        "sources": {file.name: file_hash(file) for file in safetensors_of(folder / settings.subfolder, "model", settings.variant)},
    }
    save_model(directory, network.state_dict(), config)


def safetensors_of(folder: Path, stem: str, variant: str | None) -> list[Path]:
    """The files of a network's weights, of one variant alone."""
    mark = f".{variant}" if variant else ""
    return sorted({*folder.glob(f"{stem}{mark}.safetensors"), *folder.glob(f"{stem}{mark}-*-of-*.safetensors")})


def _preprocess(given: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a preprocessor_config.json says, in our words; InputError where it does another thing than CLIP's processors do."""
    if given.get("resample", _BICUBIC) != _BICUBIC or not all(given.get(f"do_{step}", True) for step in ("resize", "center_crop", "normalize")):
        raise InputError(
            f"{path}: no CLIP preprocessing (bicubic resizing, centre crop, normalisation); name another folder as foundations.embedding.processor"
        )
    size, crop = given.get("size", 224), given.get("crop_size", 224)
    size = size if isinstance(size, int) else size.get("shortest_edge")
    crop = crop if isinstance(crop, int) else crop["height"]
    if size is None:
        raise InputError(f"{path}: resizes to {given['size']}, not by the shortest edge as CLIP does; name another folder as foundations.embedding.processor")
    return {"size": size, "crop": crop, "mean": given.get("image_mean", CLIP_MEAN), "std": given.get("image_std", CLIP_STD)}


def load_clip_vision(directory: Path) -> ClipVision:
    """What `build_clip_vision` wrote, frozen, in evaluation mode."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    state, config = load_model(directory)
    network = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(config["vision"]))
    network.load_state_dict(state)
    return ClipVision(network, config["preprocess"], config["name"]).eval().requires_grad_(False)
