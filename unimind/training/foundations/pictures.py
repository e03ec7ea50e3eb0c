"""The pictures a study trains its foundations on: drawn ones that no subject sees, with a part held out."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unimind.data.drawn import combinations, draw
from unimind.study import Study

HELD_OUT = 256


class Pictures(NamedTuple):
    """Training pictures uint8 (n, 3, H, W) with captions and classes, and as many held-out ones as `HELD_OUT`."""

    images: Tensor
    captions: list[str]
    classes: Tensor
    held_out: Tensor
    held_out_captions: list[str]
    held_out_classes: Tensor


def drawn_pictures(study: Study) -> Pictures:
    """Draw the study's foundation pictures."""
    settings = study.foundations.drawn
    drawn = draw(combinations("foundations", settings.seed)[: settings.count + HELD_OUT], study.picture_size)
    images = torch.from_numpy(drawn.images).permute(0, 3, 1, 2).contiguous()
    classes = torch.from_numpy(np.asarray(drawn.classes)).long()
    n = settings.count
    return Pictures(images[:n], drawn.captions[:n], classes[:n], images[n:], drawn.captions[n:], classes[n:])


def unit(images: Tensor) -> Tensor:
    """uint8 to float in [0, 1]."""
    return images.float() / 255
