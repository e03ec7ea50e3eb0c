"""CLIP image embeddings by open_clip: any of its models, from its hub or from a local file."""

import difflib
import pickle
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from unimind.errors import InputError
from unimind.foundations.weights import local_file
from unimind.storage import file_hash, load_model, save_model
from unimind.study import OpenClipEmbedding

_REMEDY = "run this stage where there is a network, with the same HF_HOME, or name a local file under foundations.embedding.weights"
#: Stands where open_clip's constructor wants a text tower; only the image tower is kept.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


class OpenClipImages(nn.Module):
    """The image tower of a CLIP with the preprocessing it was trained with.

    Parameters
    ----------
    model : dict
        `embed_dim`, `vision_cfg` and `quick_gelu` of open_clip's model configuration.
    preprocess : dict
        Of open_clip's `PreprocessCfg`: size, mean, std, interpolation, resize mode.
    name : str
        As shown in tables.
    """

    def __init__(self, model: dict[str, Any], preprocess: dict[str, Any], name: str) -> None:
        super().__init__()
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.name = name
        self.dim = int(model["embed_dim"])
        self.visual = open_clip.CLIP(model["embed_dim"], model["vision_cfg"], _NO_TEXT, model["quick_gelu"]).visual
        *self.spatial, _, _, self.normalise = image_transform_v2(PreprocessCfg(**preprocess), is_train=False).transforms

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1] to (n, dim), L2-normalised."""
        return functional.normalize(self.raw(images), dim=-1)

    def raw(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1] to (n, dim), of the length the network gives them.

        open_clip's own transforms, on tensors: resize, crop, (values outside [0, 1], which bicubic resizing makes, are cut off
        as an 8-bit picture does), normalise; then its `encode_image`.
        """
        for step in self.spatial:
            images = step(images)
        return self.visual(self.normalise(images.clamp(0, 1)))


def build_open_clip(settings: OpenClipEmbedding, directory: Path) -> None:
    """Get a CLIP and write its image tower into `directory` (an open `whole_directory`).

    The activation (plain or quick GELU) and the preprocessing are those the pretrained tag was trained with, whatever the
    architecture's name implies.

    Raises
    ------
    InputError
        When the model or tag is unknown, or its weights can neither be found in the cache nor be had from the hub.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    architecture = _architecture(settings.model)
    tag = get_pretrained_cfg(settings.model, settings.pretrained)
    file = _weights(settings, tag)
    quick_gelu = bool((tag or architecture).get("quick_gelu", False))
    try:
        network = open_clip.create_model(settings.model, str(file) if file else None, quick_gelu=quick_gelu, force_preprocess_cfg=tag, require_pretrained=True)
    except (RuntimeError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{file or settings.model}: open_clip cannot read these as weights of {settings.model} ({reason})") from None
    if isinstance(network, open_clip.CoCa):
        raise InputError(f"foundations.embedding.model: {settings.model} is a captioner (CoCa); name a CLIP")
    model = {"embed_dim": architecture["embed_dim"], "vision_cfg": architecture["vision_cfg"], "quick_gelu": quick_gelu}
    config = {
        "kind": settings.kind,
        "role": "embedding",
        "name": f"CLIP {settings.model.rpartition(':')[2]}" + (f" ({settings.pretrained})" if tag else f" ({file.name})" if file else ""),
        "dim": architecture["embed_dim"],
        "model": model,
        "preprocess": network.visual.preprocess_cfg,
        "sources": {file.name: file_hash(file)} if file else {"repository": settings.model},
    }
    save_model(directory, {f"visual.{key}": value for key, value in network.visual.state_dict().items()}, config)


def load_open_clip(directory: Path) -> OpenClipImages:
    """What `build_open_clip` wrote, frozen, in evaluation mode."""
    state, config = load_model(directory)
    module = OpenClipImages(config["model"], config["preprocess"], config["name"])
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def _architecture(model: str) -> dict[str, Any]:
    """open_clip's configuration of a model; a copy."""
    import open_clip

    try:
        config = open_clip.get_model_config(model)
    except (OSError, ValueError) as error:
        raise InputError(f"{model}: no open_clip_config.json to be had ({' '.join(str(error).split())[:200]}); {_REMEDY}") from None
    if config is None:
        near = difflib.get_close_matches(model, open_clip.list_models(), 3)
        raise InputError(f"foundations.embedding.model: {model} is no model of open_clip" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    return config


def _weights(settings: OpenClipEmbedding, tag: dict[str, Any]) -> Path | None:
    """The weights file: the user's, or the hub's in its cache; None where the model's name says where both architecture and weights are."""
    from open_clip.pretrained import download_pretrained, list_pretrained_tags_by_model

    if settings.weights is not None:
        return local_file(settings.weights, f"weights of {settings.model}")
    if ":" in settings.model:
        return None
    if not tag:
        known = ", ".join(list_pretrained_tags_by_model(settings.model))
        raise InputError(
            f"foundations.embedding.pretrained: {settings.pretrained} given; for {settings.model} open_clip knows {known or 'none, name a file under weights'}"
        )
    try:
        return Path(download_pretrained(tag))
    except (OSError, RuntimeError, ValueError):
        from huggingface_hub.constants import HF_HUB_CACHE

        source = tag.get("hf_hub") or tag.get("url")
        raise InputError(
            f"weights of {settings.model} ({settings.pretrained}): {source} is not in the cache {HF_HUB_CACHE} and not to be had from the hub; {_REMEDY}"
        ) from None
