"""A small description of a picture that needs no network: where it is light, which colours, which orientations."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

LIGHT, COLOUR, EDGES, POOLED = 8, 4, (16, 32), 4  # sides of the grids
ORIENTATIONS = 4
_AT_ONCE = 256  # pictures in memory


def _areas(pixels: int, cells: int) -> NDArray[np.float32]:
    """Mean over cells of equal width: (cells, pixels), fractions of pixels included."""
    edges = np.arange(cells + 1) * pixels / cells
    at = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    weight = np.maximum(overlap, 0)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def _pooled(images: NDArray, cells: int) -> NDArray:
    """(n, H, W) to (n, cells, cells)."""
    return _areas(images.shape[1], cells) @ images @ _areas(images.shape[2], cells).T


def describe(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Luminance on an 8 x 8 grid, two opponent colours on 4 x 4, and oriented energy at two scales, pooled to 4 x 4.

    Parameters
    ----------
    images : uint8 (n, H, W, 3)

    Returns
    -------
    float32 (n, 224)
        Each of the three parts weighs the same for pictures of equal contrast.
    """
    red, green, blue = (images[..., k].astype(np.float32) / 255 for k in range(3))
    light = (red + green + blue) / 3
    parts = [_pooled(light, LIGHT), _pooled(red - green, COLOUR), _pooled(blue - (red + green) / 2, COLOUR)]
    for side in EDGES:
        down, across = np.gradient(_pooled(light, side), axis=(1, 2))
        for k in range(ORIENTATIONS):
            angle = np.pi * k / ORIENTATIONS
            parts.append(np.sqrt(_pooled((np.cos(angle) * across + np.sin(angle) * down) ** 2, POOLED)))
    flat = [part.reshape(len(images), -1) for part in parts]
    return np.concatenate([flat[0], *flat[1:3], *flat[3:]], axis=1)


def principal_features(read: Callable[[NDArray[np.integer]], NDArray[np.uint8]], pictures: NDArray[np.integer], components: int) -> NDArray[np.float32]:
    """Principal components of the descriptions of some pictures, each scaled by the square root of its deviation: (n, at most `components`)."""
    described = np.concatenate([describe(read(pictures[start : start + _AT_ONCE])) for start in range(0, len(pictures), _AT_ONCE)])
    bounds = np.cumsum([0, LIGHT**2, 2 * COLOUR**2, len(EDGES) * ORIENTATIONS * POOLED**2])
    described = described - described.mean(0)
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        described[:, low:high] /= max(float(np.linalg.norm(described[:, low:high])), 1e-6)
    left, values, _ = np.linalg.svd(described, full_matrices=False)
    kept = min(components, int((values > 1e-4 * max(float(values[0]), 1e-12)).sum()))
    return (left[:, :kept] * np.sqrt(values[:kept]) * np.sqrt(len(pictures))).astype(np.float32)
