"""How a subject's voxels come to what all subjects share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unimind.errors import InputError
from unimind.models.prior import LinearMap
from unimind.models.space import PictureSpace
from unimind.streams import placed

#: ln of a context's number of pictures is divided by this, so that budgets and whole recordings (e^7 = 1097) enter as about 1.
LOG_PICTURES = 7.0
#: How many pictures the training pictures' mean and spread count for beside those of a subject's own.
PICTURES_MEAN, PICTURES_SPREAD = 10, 100


class Context(NamedTuple):
    """The pictures that a closed form was fitted to: how many, mean and spread (K,) of their coordinates, and `variety` (d,).

    A subject is not shown the training subjects' pictures but its own, and these may lie elsewhere and closer together; a shared body
    sees, and corrects, predictions about their mean and in units of their spread. Variety is the variance of every dimension of the
    image embedding over these pictures as a share of the training pictures', at most 1: along a dimension in which a subject's
    pictures hardly differ, what a body learned of pictures that do is not to be believed. Few pictures say little of all this, so it
    is drawn towards the training pictures'.
    """

    pictures: int
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    variety: NDArray[np.float32]

    @classmethod
    def of(cls, coordinates: NDArray, space: PictureSpace) -> "Context":
        """Of pictures of coordinates (n, K) in the picture space, where the training pictures' have mean 0."""
        n, spread = len(coordinates), space.spread.cpu().numpy()
        mean = n * coordinates.mean(0) / (n + PICTURES_MEAN)
        variance = (n * coordinates.var(0) + PICTURES_SPREAD * spread**2) / (n + PICTURES_SPREAD)
        count = space.components["embedding"]
        covariances = np.cov(coordinates[:, :count], rowvar=False, bias=True).reshape(count, count), np.diag(spread[:count] ** 2)
        own, usual = (space.variance(torch.as_tensor(one, dtype=torch.float32, device=space.spread.device)) for one in covariances)
        variety = ((n * own / usual + PICTURES_SPREAD) / (n + PICTURES_SPREAD)).clamp(max=1).cpu().numpy()
        return cls(n, mean.astype(np.float32), np.sqrt(variance).astype(np.float32), variety)


class Signals(NamedTuple):
    """Signals of a closed form: expected coordinates (B, K); of its context mean and spread (B, K), variety (B, d), and ln(number of pictures) / 7 (B, 1)."""

    coordinates: Tensor
    mean: Tensor
    spread: Tensor
    variety: Tensor
    size: Tensor

    def white(self) -> Tensor:
        """What a body sees: (B, 1, K + 1)."""
        return torch.cat([(self.coordinates - self.mean) / self.spread, self.size], 1)[:, None]

    def joined(self) -> Tensor:
        """As one tensor (B, 1, 3 K + d + 1), the form in which signals travel."""
        return torch.cat(self, 1)[:, None]

    @classmethod
    def of(cls, joined: Tensor, size: int) -> "Signals":
        """What `joined` put together, of K = `size` coordinates."""
        return cls(*joined[:, 0].split([size, size, size, joined.shape[-1] - 3 * size - 1, 1], 1))


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


class Bottleneck(nn.Module):
    """x + Linear(ReLU(Linear(x))) through fewer values.

    Parameters
    ----------
    size, width : int
        Of x, and between.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(size, width), nn.Linear(width, size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        return x + self.up(torch.relu(self.down(x)))


class Embedders(nn.Module):
    """Of every subject a small network from the pooled voxels to one length (MindBridge, Wang et al. 2024).

    Parameters
    ----------
    size, pooled, bottleneck, dropout
        See `study.Embedder`.
    """

    def __init__(self, size: int, pooled: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        self.size, self.pooled, self.bottleneck, self.dropout = size, pooled, bottleneck, dropout
        self.maps, self.counts = nn.ModuleDict(), dict[str, int]()

    def add(self, subject: str, n_voxels: int) -> None:
        """Give a subject an embedder, untrained."""

        def embedder() -> nn.Sequential:
            last = nn.Linear(self.pooled, self.size), nn.LayerNorm(self.size), nn.GELU(), nn.Dropout(self.dropout)
            return nn.Sequential(Bottleneck(self.pooled, self.bottleneck), *last)

        self.maps[module_name(subject)] = placed(subject, embedder)
        self.counts[subject] = n_voxels

    def names(self, subject: str) -> list[str]:
        """Names of the parameters of one subject."""
        return [f"maps.{module_name(subject)}.{name}" for name, _ in self.maps[module_name(subject)].named_parameters()]

    def builder(self) -> nn.Sequential:
        """A new way back, from a signal to the pooled voxels of a subject."""
        return nn.Sequential(nn.Linear(self.size, self.pooled), Bottleneck(self.pooled, self.bottleneck))

    def pool(self, responses: Tensor) -> Tensor:
        """(B, R, V) to (B, R, pooled)."""
        return max_pool(responses, self.pooled)

    def embed(self, pooled: Tensor, subject: str) -> Tensor:
        """(B, R, pooled) to (B, R, size); InputError for a subject without an embedder."""
        name = module_name(subject)
        if name not in self.maps:
            raise InputError(f"{subject}: this model has no embedder for that subject; adapt it first (`unimind adapt`), or list it under training_subjects")
        return self.maps[name](pooled)

    def forward(self, responses: Tensor, subject: str) -> Tensor:
        """(B, R, V) to (B, R, size); InputError for a subject without an embedder, or another number of voxels."""
        expect(subject, responses.shape[-1], self.counts.get(subject, responses.shape[-1]))
        return self.embed(self.pool(responses), subject)


class ClosedForm(nn.Module):
    """A linear map of each subject's voxels to the picture space, found in closed form (`ridge`, `decoded`) and never trained.

    Parameters
    ----------
    coordinates : int
        K.
    """

    def __init__(self, coordinates: int) -> None:
        super().__init__()
        self.size = coordinates + 1  # as a body sees it

    def take(self, subject: str, found: LinearMap, context: Context) -> None:
        """Take a subject's map and what it was fitted to."""
        values = {"weight": found.weight, "bias": found.bias} | context._asdict() | {"pictures": [context.pictures]}
        for key, value in values.items():
            self.register_buffer(f"{module_name(subject)}_{key}", torch.as_tensor(value, dtype=torch.float32))

    def taken(self, subject: str) -> tuple[LinearMap, Context]:
        """A subject's map and what it was fitted to; InputError for a subject without one."""
        weight, bias, pictures, *rest = (self._of(subject, key).numpy() for key in ("weight", "bias", *Context._fields))
        return LinearMap(weight, bias), Context(int(pictures[0]), *rest)

    def _of(self, subject: str, key: str) -> Tensor:
        found = getattr(self, f"{module_name(subject)}_{key}", None)
        if found is None:
            raise InputError(f"{subject}: this model has no decoder of that subject; run the stage `enter` for it first")
        return found

    def forward(self, responses: Tensor, subject: str) -> Tensor:
        """(B, R, V) to joined `Signals` (B, 1, 3 K + d + 1)."""
        weight, bias, *context = (self._of(subject, key) for key in ("weight", "bias", *Context._fields))
        expect(subject, responses.shape[-1], len(weight))
        return signals_of(responses.mean(1) @ weight + bias, *(values.expand(len(responses), -1) for values in context)).joined()


def signals_of(coordinates: Tensor, pictures: Tensor, mean: Tensor, spread: Tensor, variety: Tensor) -> Signals:
    """Signals of expected coordinates (B, K), given the context's number of pictures (B, 1), mean and spread (B, K) and variety (B, d)."""
    return Signals(coordinates, mean, spread, variety, pictures.float().log() / LOG_PICTURES)


def by_subject(rows: Sequence[Tensor], subjects: Sequence[str], made: Callable[[Tensor, str], Tensor]) -> Tensor:
    """What a function of (rows of one subject, the subject) makes of rows of any subjects, in their order."""
    places: dict[str, list[int]] = {}
    for row, name in enumerate(subjects):
        places.setdefault(name, []).append(row)
    found = torch.cat([made(torch.stack([rows[row] for row in own]), name) for name, own in places.items()])
    return found[torch.tensor([row for own in places.values() for row in own], device=found.device).argsort()]


def expect(subject: str, given: int, wanted: int) -> None:
    """InputError where a response has another number of voxels than a map."""
    if given != wanted:
        raise InputError(f"{subject}: {given} voxels given, the model was trained with {wanted}; prepare it with the same ROIs and run the training again")


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
