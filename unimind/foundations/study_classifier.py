"""A small convolutional classifier of the drawn objects."""

from pathlib import Path

from torch import Tensor, nn

from unimind.storage import load_model

NAME = "study classifier"


class StudyClassifier(nn.Module):
    """Four strided convolution stages, maximum over space, one linear layer.

    Parameters
    ----------
    classes : list of str
    width : int
        Channels of the first stage.
    """

    def __init__(self, classes: list[str], width: int = 24) -> None:
        super().__init__()
        self.arguments = {"classes": list(classes), "width": width}
        self.name, self.classes = NAME, list(classes)
        channels = [3, width, 2 * width, 4 * width, 4 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(channels, channels[1:], strict=False)
        )
        self.head = nn.Linear(channels[-1], len(classes))

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of every stage for images (n, 3, H, W) in [0, 1]."""
        maps, x = [], images * 2 - 1
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes)."""
        return self.head(self.features(images)[-1].amax(dim=(2, 3)))


def load_study_classifier(directory: Path) -> StudyClassifier:
    """A trained classifier, frozen, in evaluation mode."""
    state, config = load_model(directory)
    model = StudyClassifier(**config["arguments"])
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
