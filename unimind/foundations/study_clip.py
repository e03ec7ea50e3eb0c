"""Picture side of a small CLIP that is trained in the study."""

from pathlib import Path

from torch import Tensor, nn

from unimind.foundations.study_classifier import features_after, picture_stages
from unimind.storage import load_model

NAME = "study CLIP"


class StudyClip(nn.Module):
    """What a small CLIP (Radford et al. 2021) has for pictures: a convolutional network; `training.foundations.captioned` has the rest.

    Its last maps are not pooled: which object is where is read from them.

    Parameters
    ----------
    dim : int
        Length of the embedding.
    picture_size : int
    width : int
        Of the first layer.
    """

    def __init__(self, dim: int, picture_size: int, width: int = 16) -> None:
        super().__init__()
        self.arguments = {"dim": dim, "picture_size": picture_size, "width": width}
        self.name, self.dim = NAME, dim
        stages = picture_stages(width)
        self.pictures = nn.Sequential(*stages, nn.Flatten(), nn.Linear(features_after(stages, width, picture_size), dim))

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [0, 1] to (n, dim), L2-normalised."""
        size = self.arguments["picture_size"]
        if images.shape[-1] != size:
            images = nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        return nn.functional.normalize(self.pictures(images * 2 - 1), dim=-1)


def load_study_clip(directory: Path) -> StudyClip:
    """A trained one, frozen, in evaluation mode."""
    state, config = load_model(directory)
    model = StudyClip(**config["arguments"])
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
