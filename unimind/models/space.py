"""The picture space: principal components of what is predicted of a picture, the same for all subjects and no one's voxels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

#: Principal components kept, at most: of the image embedding so many that CLIP's pooled vectors lose next to nothing, of the
#: autoencoder's latent those coarse ones that responses can tell.
COMPONENTS = {"embedding": 512, "latent": 128}
#: Pictures that principal axes are computed from, at most: 16 for every component of the longest target.
PICTURES = 8192
#: Share of the first component's variance below which a component is rounding of single precision.
NOTHING = 1e-6


class PictureSpace(nn.Module):
    """Coordinates of pictures: principal components of image embedding and, where a study has one, autoencoder latent, side by side.

    z = ((t - mean) / scale) A for each target t, with A orthonormal: of the embedding scaled by every dimension's standard
    deviation, of the latent by one number. Components are ordered by variance. K is the number of all coordinates.

    Parameters
    ----------
    dim : int
        Length of the image embedding.
    latent_shape : sequence of int or None
        (c, h, w); None where there is no latent.
    components : mapping
        Kept of `embedding` and of `latent`, in this order.
    """

    def __init__(self, dim: int, latent_shape: Sequence[int] | None, components: Mapping[str, int]) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {"dim": dim, "latent_shape": None if latent_shape is None else list(latent_shape), "components": dict(components)}
        self.latent_shape = None if latent_shape is None else tuple(latent_shape)
        self.sizes = {"embedding": dim} | ({} if latent_shape is None else {"latent": int(np.prod(latent_shape))})
        self.components = {name: components[name] for name in self.sizes}
        for name, size in self.sizes.items():
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
            self.register_buffer(f"{name}_axes", torch.zeros(size, self.components[name]))
            self.register_buffer(f"{name}_spread", torch.ones(self.components[name]))

    @classmethod
    def fit(cls, embedding: NDArray, latent: NDArray | None = None) -> "PictureSpace":
        """The space of some pictures.

        Parameters
        ----------
        embedding, latent : array
            (n, d) and (n, c, h, w), by rows (an HDF5 data set will do); of more than `PICTURES`, as many are read, evenly spread.
        """
        rows = np.unique(np.linspace(0, len(embedding) - 1, min(len(embedding), PICTURES)).round().astype(int))
        found = {}
        for name, target in {"embedding": embedding, "latent": latent}.items():
            if target is None:
                continue
            values = np.asarray(target[rows], np.float32).reshape(len(rows), -1)
            mean = values.mean(0, dtype=np.float64)
            deviation = values.std(0, dtype=np.float64).clip(1e-6)
            if name == "latent":
                deviation[:] = np.sqrt((deviation**2).mean())
            axes, spread = principal_axes(((values - mean) / deviation).astype(np.float32), COMPONENTS[name])
            found[name] = (mean, deviation, axes, spread)
        space = cls(embedding.shape[1], None if latent is None else latent.shape[1:], {name: len(part[3]) for name, part in found.items()})
        for name, part in found.items():
            for key, value in zip(("mean", "scale", "axes", "spread"), part, strict=True):
                getattr(space, f"{name}_{key}").copy_(torch.from_numpy(np.ascontiguousarray(value)))
        return space

    @property
    def size(self) -> int:
        """K."""
        return sum(self.components.values())

    def part(self, coordinates: Tensor, name: str) -> Tensor:
        """The coordinates (n, K) that belong to one target."""
        split = self.components["embedding"]
        return coordinates[:, :split] if name == "embedding" else coordinates[:, split:]

    @property
    def spread(self) -> Tensor:
        """Standard deviation of every coordinate over the pictures: (K,)."""
        return torch.cat([self._get(name, "spread") for name in self.components])

    def coordinates(self, *targets: Tensor) -> Tensor:
        """Coordinates (n, K) of pictures given by embedding (n, d) and, where the space has it, latent (n, c, h, w)."""
        return torch.cat([self.of(name, target) for name, target in zip(self.components, targets, strict=True)], 1)

    def of(self, name: str, target: Tensor) -> Tensor:
        """Coordinates of one target."""
        return ((target.float().flatten(1) - self._get(name, "mean")) / self._get(name, "scale")) @ self._get(name, "axes")

    def target(self, name: str, coordinates: Tensor) -> Tensor:
        """A target, (n, d) or (n, c, h, w), from its coordinates (n, k): the picture space's closest."""
        flat = self._get(name, "mean") + self._get(name, "scale") * (coordinates.float() @ self._get(name, "axes").T)
        return flat.view(len(flat), *(self.latent_shape or ())) if name == "latent" else flat

    def scaled(self, coordinates: Tensor, factors: Tensor) -> Tensor:
        """Coordinates (n, k) of the embedding after each of its dimensions, about the mean, is multiplied by a factor: (n, d) of them."""
        return ((coordinates @ self.embedding_axes.T) * factors) @ self.embedding_axes

    def variance(self, covariance: Tensor) -> Tensor:
        """Variance of every dimension of the embedding, in units of its own over the pictures, given the covariance (k, k) of its coordinates: (d,)."""
        return ((self.embedding_axes @ covariance) * self.embedding_axes).sum(1)

    def _get(self, name: str, key: str) -> Tensor:
        return getattr(self, f"{name}_{key}")


def principal_axes(values: NDArray[np.float32], count: int) -> tuple[NDArray, NDArray]:
    """Principal axes (dims, k) of centred values (n, dims) and the standard deviation along each (k,): at most `count`, and none along which nothing varies."""
    n, dims = values.shape
    fewer = dims > n
    products = values @ values.T if fewer else values.T.astype(np.float64) @ values
    variances, vectors = np.linalg.eigh(products.astype(np.float64) / n)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    count = max(1, min(count, int((variances > NOTHING * variances[0]).sum())))
    axes, variances = vectors[:, :count], variances[:count]
    if fewer:
        axes = np.linalg.qr(values.T @ axes)[0]
    return axes, np.sqrt(variances.clip(1e-12))
