"""Autoencoders and UNets of diffusers repositories on the hub, and how any diffusers network is kept on disk.

On disk a network is its diffusers configuration and its weights under diffusers' names, whichever way it came.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unimind.errors import InputError
from unimind.storage import file_hash, load_model, read_json, save_model
from unimind.study import HubAutoencoder, HubDiffusion

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_AUTOENCODERS = ("AutoencoderKL", "VQModel")


#: Where a UNet's file has the context that it draws from without a condition.
NULL_CONTEXT = "null.context"


def network_files(subfolder: str, variant: str | None = None, stem: str = "diffusion_pytorch_model") -> list[str]:
    """Patterns of one network's files in a repository: its configuration and its safetensors, of one variant alone."""
    mark = f".{variant}" if variant else ""
    names = ("config.json", f"{stem}{mark}.safetensors", f"{stem}{mark}-*-of-*.safetensors", f"{stem}.safetensors.index{mark}.json")
    return [f"{subfolder}/{name}" for name in names]


class DiffusersAutoencoder(nn.Module):
    """A diffusers `AutoencoderKL` or `VQModel` with its latent scaled as its diffusion model sees it.

    Parameters
    ----------
    network : AutoencoderKL or VQModel
    name : str
        As shown in tables.
    """

    def __init__(self, network: Any, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.scale = float(network.config.scaling_factor)
        self.shift = float(network.config.get("shift_factor") or 0.0)
        self.factor = 2 ** (len(network.config.block_out_channels) - 1)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1] to latents (n, c, h, w).

        A KL autoencoder's latent is the mode of its posterior; a VQ autoencoder's is the one before quantisation, as latent
        diffusion uses it. The latent is `(latent - shift_factor) * scaling_factor`. Sides must be multiples of the downsampling.
        """
        if images.shape[-2] % self.factor or images.shape[-1] % self.factor:
            raise InputError(
                f"picture_size: {self.name} takes pictures whose sides are multiples of {self.factor}; {images.shape[-2]} x {images.shape[-1]} given"
            )
        encoded = self.network.encode(2 * images - 1)
        latent = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()
        return (latent - self.shift) * self.scale

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (n, c, h, w), scaled as `encode` returns them, to pictures (n, 3, H, W) in [0, 1]; a VQ autoencoder quantises first."""
        return (self.network.decode(latent / self.scale + self.shift).sample / 2 + 0.5).clamp(0, 1)


def save_autoencoder(directory: Path, kind: str, name: str, network: Any, sources: dict[str, str]) -> None:
    """Write a diffusers autoencoder into `directory` (an open `whole_directory`)."""
    config = {"kind": kind, "role": "autoencoder", "name": name, "class": type(network).__name__, "network": _plain(network.config), "sources": sources}
    save_model(directory, network.state_dict(), config)


def load_diffusers_autoencoder(directory: Path) -> DiffusersAutoencoder:
    """What `save_autoencoder` wrote, frozen, in evaluation mode."""
    import diffusers

    state, config = load_model(directory)
    network = getattr(diffusers, config["class"]).from_config(config["network"])
    network.load_state_dict(state)
    return DiffusersAutoencoder(network, config["name"]).eval().requires_grad_(False)


def save_unet(
    directory: Path, kind: str, name: str, unet: Any, scheduler: dict[str, Any], sources: dict[str, str], nothing: Tensor | None = None
) -> None:  # fmt: skip
    """Write a diffusers UNet, the configuration of its noise schedule and, where it is known, the context (tokens, d) it learned to draw from
    without a condition into `directory` (an open `whole_directory`)."""
    config = {"kind": kind, "role": "diffusion", "name": name, "unet": _plain(unet.config), "scheduler": _plain(scheduler), "sources": sources}
    save_model(directory, unet.state_dict() | ({} if nothing is None else {NULL_CONTEXT: nothing}), config)


def load_unet(directory: Path) -> "UNet2DConditionModel":
    """The UNet that `save_unet` wrote, frozen, in evaluation mode; its schedule is `scheduler` in the directory's config.json."""
    from diffusers import UNet2DConditionModel

    state, config = load_model(directory)
    state.pop(NULL_CONTEXT, None)
    unet = UNet2DConditionModel.from_config(config["unet"])
    unet.load_state_dict(state)
    return unet.eval().requires_grad_(False)


def build_hub_autoencoder(settings: HubAutoencoder, directory: Path) -> None:
    """Get an autoencoder from the hub, its cache or a local folder of the same layout, and write it into `directory`.

    Raises
    ------
    InputError
        When it cannot be had, or is no autoencoder this project can use.
    """
    folder = repository_folder(settings.repository, settings.revision, network_files(settings.subfolder), f"{settings.subfolder}/config.json")
    network = _read(folder / settings.subfolder, "foundations.autoencoder", _AUTOENCODERS)
    save_autoencoder(directory, settings.kind, _name(settings), network, _sources(folder / settings.subfolder))


def build_hub_unet(settings: HubDiffusion, directory: Path) -> None:
    """Get a UNet and its noise schedule from the hub, its cache or a local folder of the same layout, and write them into `directory`.

    With what the repository's own text encoder makes of the empty prompt, where it has one: the UNet draws from that without a condition.

    Raises
    ------
    InputError
        When they cannot be had, or the network is no `UNet2DConditionModel`.
    """
    import diffusers

    patterns = [*network_files(settings.subfolder), "scheduler/scheduler_config.json", *text_encoder_files()]
    folder = repository_folder(settings.repository, settings.revision, patterns, f"{settings.subfolder}/config.json")
    unet = _read(folder / settings.subfolder, "foundations.diffusion", ("UNet2DConditionModel",))
    try:
        scheduler = diffusers.DDIMScheduler.load_config(folder / "scheduler")
    except (OSError, ValueError):
        raise InputError(
            f"{folder / 'scheduler' / 'scheduler_config.json'}: missing or broken; a UNet is of no use without its noise schedule, get the repository again"
        ) from None
    nothing = _of_empty_prompt(folder, unet.config.cross_attention_dim)
    sources = _sources(folder / settings.subfolder)
    if nothing is not None:
        sources |= {f"text_encoder/{file.name}": file_hash(file) for file in sorted((folder / "text_encoder").glob("model*.safetensors"))}
    save_unet(directory, settings.kind, _name(settings), unet, scheduler, sources, nothing)


def _of_empty_prompt(folder: Path, width: int) -> Tensor | None:
    """What a repository's text encoder makes of the empty prompt, (tokens, width); None where there is none, or it is another UNet's."""
    if not (folder / "text_encoder" / "config.json").is_file():
        return None
    encoder, tokenizer = read_text_encoder(folder)
    words = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        found = encoder(words)[0][0]
    return found if found.shape[1] == width else None


def text_encoder_files(number: str = "", variant: str | None = None) -> list[str]:
    """Patterns of a text encoder's files and its tokenizer's in a repository; `number` is _2 for the second."""
    return [*network_files(f"text_encoder{number}", variant, "model"), *(f"tokenizer{number}/{name}" for name in ("*.json", "merges.txt"))]


def read_text_encoder(repository: Path, number: str = "", projected: bool = False, variant: str | None = None) -> tuple[Any, Any]:
    """A repository's text encoder, in single precision and evaluation mode, and its tokenizer.

    Raises
    ------
    InputError
        Either is not whole, or a weight is missing, foreign or of another shape.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder = repository / f"text_encoder{number}"
    cls = CLIPTextModelWithProjection if projected else CLIPTextModel
    try:
        encoder, found = cls.from_pretrained(
            folder, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        tokenizer = CLIPTokenizer.from_pretrained(repository / f"tokenizer{number}", local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{folder}: no whole text encoder in safetensors, or no tokenizer beside it ({reason}); get the repository again") from None
    refuse_other_keys(folder, found)
    return encoder.eval(), tokenizer


def refuse_other_keys(folder: Path, found: dict[str, Any]) -> None:
    """InputError where a network's file lacked weights or had others: `found` is the libraries' `loading_info`."""
    foreign = [str(name) for name in found["unexpected_keys"] if not str(name).endswith("position_ids")]  # a table of numbers from 0, of older files
    for what, names in (("lacks", found["missing_keys"]), ("has another shape of", found["mismatched_keys"]), ("has the foreign", foreign)):
        if names:
            first = sorted(name if isinstance(name, str) else str(name[0]) for name in names)[0]
            raise InputError(f"{folder}: its weights' file {what} {first} ({len(names)} such); get the repository again, or name another")


def _name(settings: HubAutoencoder | HubDiffusion) -> str:
    local = Path(settings.repository).is_dir()
    return f"{Path(settings.repository).name if local else settings.repository} {settings.subfolder}"


def repository_folder(repository: str, revision: str, patterns: Sequence[str], needed: str) -> Path:
    """A repository as a local folder: itself when it is local, else the cache's copy of the files that `patterns` name.

    Raises
    ------
    InputError
        When `needed`, the path of one of them, is neither in the cache nor to be had from the hub.
    """
    if Path(repository).is_dir():
        return Path(repository)
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        if (folder / needed).exists():
            return folder
        reason = "the cached copy is not whole"
    raise InputError(
        f"{repository} ({needed.removesuffix('/config.json')}, revision {revision}): "
        f"not in the cache {HF_HUB_CACHE} and not to be had from the hub ({reason}); "
        "run this stage where there is a network, with the same HF_HOME, or name a local folder as repository"
    )


def _read(folder: Path, key: str, classes: tuple[str, ...]) -> Any:
    """One network from a local folder, of one of the classes that the study's key takes; safetensors only."""
    import diffusers

    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no network of a diffusers repository there (no config.json); name its folder as {key}.subfolder")
    given = read_json(folder / "config.json").get("_class_name")
    if given not in classes:
        raise InputError(f"{folder}/config.json: describes {given}; {key} takes {' or '.join(classes)}")
    try:
        return getattr(diffusers, given).from_pretrained(folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder}: no whole diffusion_pytorch_model.safetensors there ({reason}); get the repository again") from None


def _sources(folder: Path) -> dict[str, str]:
    return {file.name: file_hash(file) for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors"))}


def _plain(config: Any) -> dict[str, Any]:
    """A diffusers configuration without its private entries, which name the machine it was read on."""
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}
