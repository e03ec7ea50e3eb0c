"""Frozen networks behind three small interfaces: image embedding, autoencoder, diffusion; and a classifier.

Each is a directory with `model.safetensors` and `config.json`; `kind` in the configuration says which module reads it.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimind.storage import read_json

if TYPE_CHECKING:
    from unimind.foundations.diffusion import Diffusion
    from unimind.foundations.study_classifier import AttributeClassifier


def load_embedding(directory: Path) -> Any:
    """The image embedding of a directory: `.name`, `.dim`, `.encode(images (n, 3, H, W) in [0, 1])` -> (n, dim), L2-normalised."""
    if read_json(Path(directory) / "config.json")["kind"] == "study-clip":
        from unimind.foundations.study_clip import load_study_clip

        return load_study_clip(directory)
    from unimind.foundations.external import load_external

    return load_external(directory)


def load_autoencoder(directory: Path) -> Any:
    """The autoencoder of a directory: `.name`, `.encode(images)` -> latent (n, c, h, w), `.decode(latent)` -> images in [0, 1]."""
    if read_json(Path(directory) / "config.json")["kind"] == "study":
        from unimind.foundations.study_autoencoder import load_study_autoencoder

        return load_study_autoencoder(directory)
    from unimind.foundations.external import load_external

    return load_external(directory)


def load_diffusion(directory: Path) -> "Diffusion":
    """The diffusion model of a directory, with its own conditioner where it was trained in the study."""
    from unimind.foundations.diffusion import load_diffusion_model

    return load_diffusion_model(directory)


def parameters_of(directory: Path) -> int:
    """How many numbers a foundation's weights are, by the header of its file; what a pipeline makes of no input is not among them."""
    from safetensors import safe_open

    with safe_open(Path(directory) / "model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys() if not name.startswith("null."))  # noqa: SIM118


def load_classifier(directory: Path) -> "AttributeClassifier":
    """The study's classifier of drawn objects: images -> logits; `.classes`, `.features(images)`."""
    from unimind.foundations.study_classifier import load_study_classifier

    return load_study_classifier(directory)
