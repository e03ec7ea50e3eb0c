"""The functions behind `measures.MEASURES`, of float tensors of pictures (n, 3, H, W) in [0, 1] or of network features (n, d).

A measure of pairs gives one value per image, so that intervals and paired tests can be made of it; a measure of a
whole set (Inception Score, FID) gives one number. Definitions are written out in `docs/metrics.md`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from unimind.evaluation.pictures import SIDE, resize
from unimind.identification import two_way as two_way  # the registry finds it here by its name

DETAIL = 425  # side at which PixCorr and SSIM are computed: that of NSD's stimuli

_GREY = (0.2125, 0.7154, 0.0721)  # scikit-image's rgb2gray (ITU-R BT.709)
_SIGMA, _RADIUS = 1.5, 5  # scikit-image's Gaussian window: truncated at 3.5 sigma


# --- pairs of pictures ------------------------------------------------------------------------------------------


def _window() -> list[float]:
    weights = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2)
    return (weights / weights.sum()).tolist()


def _smooth(maps: torch.Tensor) -> torch.Tensor:
    """Gaussian window over the last two axes, where it lies wholly inside: (..., H, W) -> (..., H - 10, W - 10)."""
    weights = _window()
    height, width = maps.shape[-2] - 2 * _RADIUS, maps.shape[-1] - 2 * _RADIUS
    rows = weights[0] * maps[..., :height, :]
    for shift in range(1, len(weights)):
        rows.add_(maps[..., shift : shift + height, :], alpha=weights[shift])
    result = weights[0] * rows[..., :width]
    for shift in range(1, len(weights)):
        result.add_(rows[..., shift : shift + width], alpha=weights[shift])
    return result


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Sum of (n, k DETAIL) over the last axis, in double precision (n,): half a million terms are too many for single, those of one line are not."""
    return values.view(len(values), -1, DETAIL).sum(2).sum(1, dtype=torch.float64)


@dataclass(frozen=True)
class LowLevel:
    """What MSE, PixCorr and SSIM need of each picture, computed once however many pictures it is compared with."""

    plain: torch.Tensor  # (n, 3, 256, 256)
    centred: torch.Tensor  # (n, 3 * 425 * 425), zero mean, unit length (zero where the picture is constant)
    # of SSIM alone, and (n, 0) without it
    grey: torch.Tensor  # (n, 425, 425)
    mean: torch.Tensor  # (n, 415, 415) local mean of grey
    variance: torch.Tensor  # (n, 415, 415) local variance of grey

    @classmethod
    def of(cls, images: torch.Tensor, ssim: bool = True) -> "LowLevel":
        """From pictures (n, 3, H, W) in [0, 1]."""
        plain = resize(images, SIDE)
        large = resize(plain, DETAIL)
        grey = mean = variance = large.new_empty(len(large), 0)
        if ssim:
            grey = large[:, 0] * _GREY[0] + large[:, 1] * _GREY[1] + large[:, 2] * _GREY[2]
            mean = _smooth(grey)
            variance = _smooth(grey * grey).sub_(mean * mean)
        centred = large.flatten(1)
        centred.sub_((_sum(centred) / centred.shape[1]).float()[:, None])
        length = _sum(centred * centred).sqrt()
        centred.mul_(torch.where(length > 1e-3, 1 / length, 0.0).float()[:, None])
        return cls(plain, centred, grey, mean, variance)

    def __getitem__(self, index: slice) -> "LowLevel":
        return LowLevel(self.plain[index], self.centred[index], self.grey[index], self.mean[index], self.variance[index])

    def __len__(self) -> int:
        return len(self.plain)

    def mse(self, other: "LowLevel") -> torch.Tensor:
        return (self.plain - other.plain).square_().flatten(1).mean(1)

    def pixcorr(self, other: "LowLevel") -> torch.Tensor:
        return _sum(self.centred * other.centred).float()

    def ssim(self, other: "LowLevel") -> torch.Tensor:
        c1, c2 = 0.01**2, 0.03**2
        product = self.mean * other.mean
        covariance = _smooth(self.grey * other.grey).sub_(product)
        above = product.mul_(2).add_(c1) * covariance.mul_(2).add_(c2)
        below = (self.mean.square() + other.mean.square()).add_(c1) * (self.variance + other.variance).add_(c2)
        return (above / below).flatten(1).mean(1)


def mse(truth: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Mean squared error at 256 x 256, per image.

    Parameters
    ----------
    truth, pictures : tensors of shape (n, 3, H, W) in [0, 1]

    Returns
    -------
    tensor of shape (n,)
    """
    return LowLevel.of(truth, ssim=False).mse(LowLevel.of(pictures, ssim=False))


def pixcorr(truth: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Pearson correlation of the flattened RGB values at 425 x 425, per image (n,); 0 where a picture is constant."""
    return LowLevel.of(truth, ssim=False).pixcorr(LowLevel.of(pictures, ssim=False))


def ssim(truth: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Structural similarity of the grey pictures at 425 x 425, per image (n,).

    The two-dimensional SSIM of Wang, Bovik, Sheikh & Simoncelli (2004) as `skimage.metrics.structural_similarity`
    computes it with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1`.
    """
    return LowLevel.of(truth).ssim(LowLevel.of(pictures))


# --- pairs of feature maps --------------------------------------------------------------------------------------


def perceptual_vectors(maps: list[torch.Tensor], heads: list[torch.Tensor] | None = None) -> torch.Tensor:
    """Feature maps as one vector per picture, whose squared Euclidean distances are a perceptual distance.

    The distance is LPIPS' (Zhang, Isola, Efros, Shechtman & Wang 2018): at every place, channels are scaled to unit length;
    squared differences are weighted over the channels, averaged over places and summed over layers. Here each layer is
    multiplied by the square root of its weights over its number of places, and all are laid end to end.

    Parameters
    ----------
    maps : list of tensors (n, c_l, h_l, w_l)
    heads : list of tensors (c_l,), optional
        LPIPS' learned weights, none negative; without them every channel counts 1.

    Returns
    -------
    tensor of shape (n, sum of c_l h_l w_l)
    """
    sizes = [m[0].numel() for m in maps]
    vectors = maps[0].new_empty(len(maps[0]), sum(sizes))
    for layer, (m, part) in enumerate(zip(maps, vectors.split(sizes, 1), strict=True)):
        values = m.permute(0, 2, 3, 1)
        weight = torch.ones(m.shape[1]) if heads is None else heads[layer]
        scaled = torch.mul(values, (weight / (m.shape[2] * m.shape[3])).sqrt().to(m), out=part.view(values.shape))
        scaled.mul_(values.norm(dim=-1, keepdim=True).add_(1e-10).reciprocal_())
    return vectors


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distance of rows: (n, d), (n, d) -> (n,)."""
    return (a - b).square_().sum(1)


# --- features against features ----------------------------------------------------------------------------------


def standardise(features: torch.Tensor) -> torch.Tensor:
    """Rows (n, d) centred and scaled to unit length, so that products are Pearson correlations; NaN for a constant row."""
    centred = features.float() - features.float().mean(1, keepdim=True)
    return centred.div_(centred.norm(dim=1, keepdim=True))


def correlations(truth: torch.Tensor, pictures: torch.Tensor) -> np.ndarray:
    """Pearson correlations of every truth with every picture: features (n, d), (m, d) -> (n, m)."""
    return (standardise(truth) @ standardise(pictures).T).cpu().numpy()


def correlation_distance(r: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """1 - correlation of each reconstruction with its own truth; arguments as for `two_way`."""
    own = np.arange(r.shape[1]) if own is None else own
    return 1 - r[own, np.arange(r.shape[1])]


def embedding_error(truth: torch.Tensor, predicted: torch.Tensor) -> np.ndarray:
    """1 - R² of predicted embeddings (n, d), one value per image (n,).

    Both are in units of each dimension's standard deviation, from its mean, over the training pictures: their mean, predicted
    for every picture, has about 1. Dimensions are averaged.
    """
    return ((predicted - truth) ** 2).mean(1).numpy()


def nway_top1(truth_logits: np.ndarray, logits: np.ndarray, ways: int = 50) -> np.ndarray:
    """n-way top-1: the chance that the truth's class wins against `ways - 1` random other classes in the picture's logits.

    MinD-Vis draws the other classes 1000 times; this is the exact expectation of such draws, C(w, n-1) / C(K-1, n-1)
    with w of the K-1 other classes below the truth's own.

    Parameters
    ----------
    truth_logits, logits : arrays of shape (n, K)

    Returns
    -------
    array of shape (n,), chance 1 / ways
    """
    own = truth_logits.argmax(1)
    below = (logits < logits[np.arange(len(logits)), own][:, None]).sum(1)
    others, drawn = logits.shape[1] - 1, ways - 1
    value = np.ones(len(logits))
    for k in range(drawn):
        value *= np.clip(below - k, 0, None) / (others - k)
    return value


def same_class(truth_logits: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Whether a classifier sees in each picture what it sees in its truth: logits (n, K), (n, K) -> (n,)."""
    return (truth_logits.argmax(1) == logits.argmax(1)).astype(float)


def retrieval(truth: np.ndarray, predicted: np.ndarray, pool: int = 300, repeats: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Top-1 retrieval by cosine among `pool` random test items, averaged over `repeats` draws.

    Parameters
    ----------
    truth, predicted : arrays of shape (n, d)
        Image embeddings and the encoder's predictions of them.

    Returns
    -------
    forward : array of shape (n,)
        Image to brain: how often an image's own prediction is the nearest of the pool.
    backward : array of shape (n,)
        Brain to image: how often a prediction's own image is the nearest. With `n <= pool` the pool is all items.
        Ties are failures; NaN for an item never drawn.
    """
    a = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    b = predicted / np.linalg.norm(predicted, axis=1, keepdims=True)
    cosine = a @ b.T
    n = len(cosine)
    random = np.random.default_rng(seed)
    draws = [np.arange(n)] if n <= pool else [random.choice(n, pool, replace=False) for _ in range(repeats)]
    hits, drawn = np.zeros((2, n)), np.zeros(n)
    for items in draws:
        inside = cosine[np.ix_(items, items)]
        own = inside.diagonal()
        hits[0, items] += (inside >= own[:, None]).sum(1) == 1
        hits[1, items] += (inside >= own[None]).sum(0) == 1
        drawn[items] += 1
    with np.errstate(invalid="ignore"):
        return hits[0] / drawn, hits[1] / drawn


# --- whole sets -------------------------------------------------------------------------------------------------


def inception_score(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Inception Score and its standard error (Salimans et al. 2016): exp of the mean KL(p(y|x) || p(y)), over `splits` parts.

    Parameters
    ----------
    logits : array of shape (n, classes)
        In the order of the pictures; parts are consecutive and as equal as can be.

    Returns
    -------
    mean, standard error over the parts (0 with one part)
    """
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    scores = []
    for part in np.array_split(log_p, min(splits, len(log_p))):
        p = np.exp(part)
        scores.append(math.exp((p * (part - np.log(np.maximum(p.mean(0), 1e-300)))).sum(1).mean()))
    error = float(np.std(scores, ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else 0.0
    return float(np.mean(scores)), error


def fid(truth: np.ndarray, pictures: np.ndarray) -> float:
    """Fréchet distance of two feature sets (n, d), (m, d) taken as Gaussians (Heusel et al. 2017).

    The trace of the square root of the covariances' product is the sum of the singular values of the n x m matrix of
    products of centred features: the same number as from the d x d covariances, without their square root.
    """
    a, b = truth.astype(np.float64), pictures.astype(np.float64)
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = (a - mean_a) / math.sqrt(len(a) - 1), (b - mean_b) / math.sqrt(len(b) - 1)
    cross = np.linalg.svd(a @ b.T if len(a) + len(b) < 2 * a.shape[1] else _cross(a, b), compute_uv=False).sum()
    return float(((mean_a - mean_b) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A d x d matrix with the singular values of a @ b.T, for more pictures than features."""
    first, second = (np.asarray(np.linalg.qr(x, mode="r")) for x in (a, b))
    return first @ second.T
