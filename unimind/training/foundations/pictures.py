"""The pictures a study trains its foundations on: drawn ones that no subject sees, with a part held out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from unimind.data.drawn import combinations, render
from unimind.study import Study

HELD_OUT = 256


class FoundationPictures(NamedTuple):
    """Training pictures uint8 (n, 3, H, W) with captions and attributes int64 (n, attributes), and `HELD_OUT` held-out ones."""

    images: Tensor
    captions: list[str]
    attributes: Tensor
    held_out: Tensor
    held_out_captions: list[str]
    held_out_attributes: Tensor


def drawn_pictures(study: Study) -> FoundationPictures:
    """Draw the study's foundation pictures."""
    settings = study.foundations.drawn
    drawn = render(combinations("foundations", settings.seed, settings.count + HELD_OUT), study.picture_size)
    images, attributes = torch.from_numpy(drawn.images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(drawn.attributes)
    n = settings.count
    return FoundationPictures(images[:n], drawn.captions[:n], attributes[:n], images[n:], drawn.captions[n:], attributes[n:])


def attribute_loss(logits: Sequence[Tensor], attributes: Tensor) -> Tensor:
    """Cross-entropy of every attribute, summed over attributes, mean over pictures.

    Parameters
    ----------
    logits : sequence of Tensor
        (n, values) for each attribute.
    attributes : Tensor
        int64 (n, attributes).
    """
    return sum((functional.cross_entropy(one, attributes[:, k]) for k, one in enumerate(logits)), torch.zeros((), device=attributes.device))


def attribute_accuracy(logits: Sequence[Tensor], attributes: Tensor) -> list[float]:
    """Share of pictures of which each attribute is told right."""
    return [(one.argmax(1) == attributes[:, k]).float().mean().item() for k, one in enumerate(logits)]


def unit(images: Tensor) -> Tensor:
    """uint8 to float in [0, 1]."""
    return images.float() / 255
