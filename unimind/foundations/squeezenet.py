"""Pooled SqueezeNet 1.1 features: a semantic image embedding where no CLIP can be had."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from unimind.errors import InputError
from unimind.foundations.weights import local_file, read_safetensors
from unimind.storage import file_hash, load_model, save_model
from unimind.study import SqueezeNetEmbedding

NAME = "SqueezeNet 1.1 pooled features"
SIZE = 224
DIM = 512
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PooledSqueezeNet(nn.Module):
    """The last convolutional features of SqueezeNet 1.1 (Iandola et al. 2016, torchvision's architecture), averaged over space.

    The features follow a ReLU, so all are >= 0 and two embeddings are never at a right angle or wider: similarities
    of unrelated pictures lie well above 0. Nothing is subtracted; whoever needs centred features centres them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str = NAME) -> None:
        super().__init__()
        from torchvision.models import squeezenet1_1

        self.name = name
        self.dim = DIM
        self.features = squeezenet1_1(weights=None).features
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1] to (n, 512), L2-normalised.

        Pictures are resized to 224 x 224 (bilinear, antialiased) and normalised as ImageNet's were in training.
        """
        if images.shape[-2:] != (SIZE, SIZE):
            images = functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        pooled = self.features((images - self.mean) / self.std).mean(dim=(2, 3))
        return functional.normalize(pooled, dim=1)


def build_squeezenet(settings: SqueezeNetEmbedding, directory: Path) -> None:
    """Copy the network's features into `directory` (an open `whole_directory`) in the project's form; InputError when the file is absent."""
    file = local_file(settings.weights, "SqueezeNet 1.1's weights")
    state = {name: value for name, value in read_safetensors(file).items() if name.startswith("features.")}
    try:
        PooledSqueezeNet().load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{file}: not SqueezeNet 1.1's weights under torchvision's names ({' '.join(str(error).split())[:200]})") from None
    save_model(directory, state, {"kind": settings.kind, "role": "embedding", "name": NAME, "dim": DIM, "sources": {file.name: file_hash(file)}})


def load_squeezenet(directory: Path) -> PooledSqueezeNet:
    """What `build_squeezenet` wrote, frozen, in evaluation mode."""
    state, config = load_model(directory)
    module = PooledSqueezeNet(config["name"])
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)
