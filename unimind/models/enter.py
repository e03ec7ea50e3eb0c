"""How a subject's voxels come to what all subjects share."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unimind.errors import InputError
from unimind.models.prior import LinearMap

#: ln of a context's number of pictures is divided by this, so that budgets and whole recordings (e^7 = 1097) enter as about 1.
CONTEXT = 7.0


def subject_key(dataset: str, subject: str) -> str:
    """Name of a subject's parameters within a model: `<data set>-<subject>`."""
    return f"{dataset}-{subject}"


def module_name(subject: str) -> str:
    """A module name for a subject: torch reserves dots and the names of a dict's methods."""
    return f"subject-{subject.replace('.', ',')}"


class FixedLength(nn.Module):
    """Voxels to one length by a rule, without parameters: `interpolate`, `wrap` or `max-pool`.

    Parameters
    ----------
    kind : str
    size : int
    dropout : float
        Share of voxels set to zero in training.
    """

    def __init__(self, kind: str, size: int, dropout: float) -> None:
        super().__init__()
        self.kind, self.size, self.dropout = kind, size, nn.Dropout(dropout)

    def forward(self, responses: Tensor, subject: str) -> Tensor:
        """(B, R, V) to (B, R, size)."""
        return bring_to(self.dropout(responses), self.size, self.kind)


class Adapters(nn.Module):
    """A linear map of each subject's voxels to one length.

    Parameters
    ----------
    size : int
    dropout : float
        Share of voxels set to zero in training.
    """

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.size, self.dropout, self.maps = size, nn.Dropout(dropout), nn.ModuleDict()
        self.register_buffer("signal_weight", torch.zeros(size, 0))
        self.register_buffer("signal_bias", torch.zeros(size))

    def add(self, subject: str, n_voxels: int) -> None:
        """Give a subject a map, which starts as linear interpolation (or averaging) to the common length."""
        self.maps[module_name(subject)] = nn.Linear(n_voxels, self.size)
        self.interpolate(subject)

    def interpolate(self, subject: str) -> None:
        """Set a subject's map to linear interpolation (or averaging) to the common length."""
        own = self.maps[module_name(subject)]
        with torch.no_grad():
            own.weight.copy_(interpolate(torch.eye(own.in_features)[:, None], self.size)[:, 0].T)
            own.bias.zero_()

    def set(self, subject: str, weight: Tensor, bias: Tensor) -> None:
        """Set a subject's map: weight (n_voxels, size), bias (size,)."""
        own = self.maps[module_name(subject)]
        with torch.no_grad():
            own.weight.copy_(weight.T)
            own.bias.copy_(bias)

    def remember(self, weight: Tensor, bias: Tensor) -> None:
        """Keep the linear model of the training subjects' signal given a picture's coordinates: weight (K, size), bias (size,)."""
        self.signal_weight, self.signal_bias = weight.T.contiguous(), bias

    def expected(self, coordinates: Tensor) -> Tensor:
        """What the training subjects' signal is for pictures of given coordinates (n, K), by a linear model: (n, size)."""
        return coordinates @ self.signal_weight.T + self.signal_bias

    def names(self, subject: str) -> list[str]:
        """Names of the parameters of one subject."""
        return [f"maps.{module_name(subject)}.{name}" for name in ("weight", "bias")]

    def forward(self, responses: Tensor, subject: str) -> Tensor:
        """(B, R, V) to (B, R, size); InputError for a subject without a map, or another number of voxels."""
        name = module_name(subject)
        if name not in self.maps:
            raise InputError(f"{subject}: this model has no adapter for that subject; adapt it first (`unimind adapt`), or list it under training_subjects")
        expect(subject, responses.shape[-1], self.maps[name].in_features)
        return self.maps[name](self.dropout(responses))


class ClosedForm(nn.Module):
    """A linear map of each subject's voxels to the picture space, found in closed form (`ridge`, `decoded`) and never trained.

    The signal is the expected coordinates (K) and, last, how many pictures the map was fitted to: ln(n) / 7, since fewer make it
    less sure.

    Parameters
    ----------
    size : int
        K + 1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def take(self, subject: str, found: LinearMap) -> None:
        """Take a subject's map."""
        for key, value in (("weight", found.weight), ("bias", found.bias), ("pictures", [float(found.pictures)])):
            self.register_buffer(f"{module_name(subject)}_{key}", torch.as_tensor(value, dtype=torch.float32))

    def forward(self, responses: Tensor, subject: str) -> Tensor:
        """(B, R, V) to (B, 1, K + 1)."""
        name = module_name(subject)
        if not hasattr(self, f"{name}_weight"):
            raise InputError(f"{subject}: this model has no decoder of that subject; run the stage `enter` for it first")
        weight, bias, pictures = (getattr(self, f"{name}_{key}") for key in ("weight", "bias", "pictures"))
        expect(subject, responses.shape[-1], len(weight))
        return with_context(responses.mean(1) @ weight + bias, pictures.expand(len(responses)))[:, None]


def with_context(coordinates: Tensor, pictures: Tensor) -> Tensor:
    """Expected coordinates (B, K) and the number of pictures (B,) behind each, as one signal (B, K + 1)."""
    return torch.cat([coordinates, pictures.float().log()[:, None] / CONTEXT], 1)


def expect(subject: str, given: int, wanted: int) -> None:
    """InputError where a response has another number of voxels than a map."""
    if given != wanted:
        raise InputError(f"{subject}: {given} voxels given, the model was trained with {wanted}; prepare it with the same ROIs and run the training again")


def build_enter(settings: Mapping[str, Any], n_voxels: Mapping[str, int], coordinates: int) -> FixedLength | Adapters | ClosedForm:
    """The way of entering that a method's `enter` section asks for.

    Parameters
    ----------
    settings : mapping
        `Method.enter` as a dict.
    n_voxels : mapping
        Voxels of each subject, by `subject_key`.
    coordinates : int
        K, of the picture space.
    """
    kind = settings["kind"]
    if kind in ("ridge", "decoded"):
        return ClosedForm(coordinates + 1)
    if kind != "adapter":
        return FixedLength(kind, settings["size"], settings["dropout"])
    adapters = Adapters(settings["size"], settings["dropout"])
    for subject, count in n_voxels.items():
        adapters.add(subject, count)
    return adapters


def bring_to(x: Tensor, size: int, kind: str) -> Tensor:
    """Bring responses (B, R, V) to (B, R, size) by `wrap`, `interpolate` or `max-pool`."""
    return {"wrap": wrap, "interpolate": interpolate, "max-pool": max_pool}[kind](x, size)


def wrap(x: Tensor, size: int) -> Tensor:
    """Pad by repeating from the start, or cut: (..., V) -> (..., size)."""
    times = -(-size // x.shape[-1])
    return x.repeat(*[1] * (x.ndim - 1), times)[..., :size]


def interpolate(x: Tensor, size: int) -> Tensor:
    """Linear interpolation of a shorter signal, averages of neighbours of a longer one: (B, R, V) -> (B, R, size)."""
    if x.shape[-1] > size:
        return nn.functional.adaptive_avg_pool1d(x, size)
    return nn.functional.interpolate(x, size, mode="linear", align_corners=True)


def max_pool(x: Tensor, size: int) -> Tensor:
    """Adaptive max pooling (MindBridge): (B, R, V) -> (B, R, size); a shorter signal is spread by repetition."""
    return nn.functional.adaptive_max_pool1d(x, size)
