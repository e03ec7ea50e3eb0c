"""A small convolutional classifier of drawn pictures: which objects, of which colours, in which relation."""

from pathlib import Path

from torch import Tensor, nn

from unimind.storage import load_model

NAME = "study classifier"


def picture_stages(width: int) -> nn.ModuleList:
    """Four stages of convolutions, each of half the resolution of the one before; `width` channels, then 2, 4 and 4 times as many."""
    channels = [3, width, 2 * width, 4 * width, 4 * width]
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in zip(channels, channels[1:], strict=False)
    )


def features_after(stages: nn.ModuleList, width: int, picture_size: int) -> int:
    """How many numbers the last map of `picture_stages` holds."""
    return 4 * width * (-(-picture_size // 2 ** len(stages))) ** 2


class AttributeClassifier(nn.Module):
    """Four strided convolution stages, one hidden layer, and a linear layer for every attribute.

    The attributes are those of the first object and of the second, and how they lie; telling the first object from the
    second takes their places, so that the maps are not pooled over space.

    Parameters
    ----------
    attributes : dict of str to list of str
        The values of each attribute that is told; `class` is what the object classes of metrics are.
    picture_size : int
    width : int
        Channels of the first stage.
    """

    def __init__(self, attributes: dict[str, list[str]], picture_size: int, width: int = 16) -> None:
        super().__init__()
        self.arguments = {"attributes": attributes, "picture_size": picture_size, "width": width}
        self.name, self.attributes, self.classes = NAME, attributes, attributes["class"]
        self.stages = picture_stages(width)
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(features_after(self.stages, width, picture_size), 8 * width), nn.ReLU())
        self.head = nn.Linear(8 * width, sum(map(len, attributes.values())))

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of every stage for images (n, 3, H, W) in [0, 1]."""
        maps, x = [], images * 2 - 1
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def attribute_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (n, values) of every attribute for images (n, 3, H, W) of the study's size."""
        told = self.head(self.hidden(self.features(images)[-1])).split([len(values) for values in self.attributes.values()], dim=1)
        return dict(zip(self.attributes, told, strict=True))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of the first object's class."""
        return self.attribute_logits(images)["class"]


def load_study_classifier(directory: Path) -> AttributeClassifier:
    """A trained classifier, frozen, in evaluation mode."""
    state, config = load_model(directory)
    model = AttributeClassifier(**config["arguments"])
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
