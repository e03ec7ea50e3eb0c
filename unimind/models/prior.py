"""A prior over how voxels respond to pictures, learned from the training subjects, and the decoder it gives a new subject.

Every voxel is a linear encoding model of picture features, y = F w + noise. What the training subjects' voxels have in
common - where their weights w lie, and how noisy they are - is the prior for a new subject's voxels, so that few trials
say much about them (empirical Bayes). Bayes' rule then turns the encoding models into a decoder: the expected image
embedding given a response, under the distribution of the pictures that the subject is shown.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]

#: Candidates of `_picture_share`.
SHARES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)


class LinearDecoder(NamedTuple):
    """Responses (n, n_voxels) to targets (n, t): `responses @ weight + bias`."""

    weight: Array
    bias: Array


class _Voxels(NamedTuple):
    """Posterior of n encoding models: weights (K, n), noise variance (n,), residuals (trials, n) with each trial left out."""

    weight: Array
    noise: Array
    residual: Array


class PictureFeatures:
    """Picture features: principal components of several representations side by side, white over the training pictures.

    Parameters
    ----------
    parts : sequence of array
        Each (n, ...): representations of the training subjects' training pictures, such as image embedding and latent.
    components : int
        At most so many of each representation, and no more than a quarter as many as there are pictures.
    """

    def __init__(self, parts: Sequence[NDArray], components: int) -> None:
        flat = [np.asarray(part, np.float64).reshape(len(part), -1) for part in parts]
        self._maps = []
        for part in flat:
            mean, deviation = part.mean(0), part.std(0) + 1e-8
            self._maps.append((mean, deviation, _components((part - mean) / deviation, components)))
        self._mean, self._white = np.zeros(0), np.eye(0)
        joint = self._joint(flat)
        self._mean = joint.mean(0)
        values, vectors = np.linalg.eigh(np.cov(joint.T))
        kept = values > 1e-6 * values[-1]
        self._white = vectors[:, kept] / np.sqrt(values[kept])

    def _joint(self, parts: Sequence[NDArray]) -> Array:
        flat = [np.asarray(part, np.float64).reshape(len(part), -1) for part in parts]
        return np.concatenate([(part - mean) / deviation @ axes for part, (mean, deviation, axes) in zip(flat, self._maps, strict=True)], axis=1)

    def __call__(self, parts: Sequence[NDArray]) -> Array:
        """Features (n, K) of pictures given in the same representations."""
        return (self._joint(parts) - self._mean) @ self._white


def _components(standard: Array, count: int) -> Array:
    """Principal axes (dims, count), scaled so that the first projection has unit variance."""
    count = max(1, min(count, standard.shape[1], len(standard) // 4))
    if standard.shape[1] <= len(standard):
        values, vectors = np.linalg.eigh(standard.T @ standard / len(standard))
        return vectors[:, ::-1][:, :count] / np.sqrt(max(values[-1], 1e-12))
    values, vectors = np.linalg.eigh(standard @ standard.T / len(standard))
    axes = standard.T @ vectors[:, ::-1][:, :count]
    return axes / (np.linalg.norm(axes, axis=0) + 1e-12) / np.sqrt(max(values[-1], 1e-12))


class EncodingPrior:
    """Prior over encoding weights and noise, fitted to the training subjects' voxels by expectation maximisation.

    Weights have a Gaussian prior N(m, C) and every voxel a noise variance of its own. With `mixed`, a new voxel is
    furthermore thought to be like some voxel of the training subjects: its prior is the mixture of Gaussians N(w_i, h C)
    around the training voxels' weights w_i, and of N(m, C) for voxels like none of them.

    Parameters
    ----------
    features : PictureFeatures
    subjects : sequence of (representations, responses)
        Of each training subject: its training pictures' representations, and its responses (n, n_voxels) to them,
        averaged over repeats.
    mixed : bool
        Whether the prior is the mixture, or the single Gaussian.
    seed : int
        Draws the training voxels that the mixture is made of, where there are more than 1024.
    iterations : int
        Of expectation maximisation.
    """

    #: Width h of the mixture's components, as a share of the voxels' covariance.
    WIDTH = 0.2
    #: How many pictures the training pictures' mean counts for beside the subject's own.
    PICTURES_MEAN = 2.0
    #: How many trials the training voxels' noise counts for beside the voxel's own.
    NOISE_TRIALS = 20.0
    #: Share of the correlation of voxels' residuals that is believed where trials are many.
    CORRELATION = 0.5
    MOST_COMPONENTS = 1024

    def __init__(
        self, features: PictureFeatures, subjects: Sequence[tuple[Sequence[NDArray], NDArray]], mixed: bool = True, seed: int = 0, iterations: int = 15
    ) -> None:
        self.features, self.mixed = features, mixed
        data = []
        for parts, responses in subjects:
            design = features(parts)
            data.append((design - design.mean(0), _standard(np.asarray(responses, np.float64))[0]))
        n_features = data[0][0].shape[1]
        self.mean, self.covariance = np.zeros(n_features), np.eye(n_features) * 0.3 / n_features
        noise = [np.full(responses.shape[1], 0.8) for _, responses in data]
        for _ in range(iterations):
            weights, spread = [], np.zeros((n_features, n_features))
            for k, (design, responses) in enumerate(data):
                weight, uncertainty, noise[k] = self._expect(design, responses, noise[k])
                weights.append(weight)
                spread += uncertainty
            joined = np.concatenate(weights, axis=1)
            self.mean = joined.mean(1)
            centred = joined - self.mean[:, None]
            self.covariance = (spread + centred @ centred.T) / joined.shape[1]
        self.noise = float(np.median(np.concatenate(noise)))
        chosen = np.random.default_rng((seed, 5)).permutation(joined.shape[1])[: self.MOST_COMPONENTS]
        self.components = joined[:, np.sort(chosen)]

    def _expect(self, design: Array, responses: Array, noise: Array, prior_trials: float = 0.0, prior_noise: float = 0.0) -> tuple[Array, Array, Array]:
        """Posterior means (K, V) under N(m, C), the sum of posterior covariances (K, K), updated noise variances (V,).

        With C = L L' and L' F'F L = Q diag(e) Q', every voxel's posterior covariance is L Q diag(s / (s + e)) Q' L'.
        """
        axes, values = self._axes(design)
        shrunk = noise[None] + values[:, None]
        gain = axes.T @ (design.T @ (responses - (design @ self.mean)[:, None])) / shrunk
        weight = self.mean[:, None] + axes @ gain
        uncertainty = (axes * (noise[None] / shrunk).sum(1)) @ axes.T
        left = ((responses - design @ weight) ** 2).sum(0) + (noise[None] * values[:, None] / shrunk).sum(0)
        return weight, uncertainty, (left + prior_trials * prior_noise) / (len(design) + prior_trials)

    def _axes(self, design: Array) -> tuple[Array, Array]:
        root = np.linalg.cholesky(self.covariance + 1e-10 * np.trace(self.covariance) * np.eye(len(self.covariance)))
        values, vectors = np.linalg.eigh(root.T @ (design.T @ design) @ root)
        return root @ vectors, values.clip(0)

    def _posterior(self, design: Array, responses: Array) -> _Voxels:
        """Encoding models of a new subject's voxels from few trials: design (n, K), responses (n, V), both centred."""
        noise = np.full(responses.shape[1], self.noise)
        for _ in range(4):
            weight, _, noise = self._expect(design, responses, noise, self.NOISE_TRIALS, self.noise)
        axes, values = self._axes(design)
        leverage = (design @ axes) ** 2 @ (1 / (noise[None] + values[:, None]))
        residual = (responses - design @ weight) / (1 - leverage).clip(0.02)
        return _Voxels(self._mixture(design, responses, noise) if self.mixed else weight, noise, residual)

    def _mixture(self, design: Array, responses: Array, noise: Array) -> Array:
        """Posterior means (K, V) under the mixture: components weighted by how well they predict a voxel's trials."""
        kernel = design @ self.covariance @ design.T
        values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
        values = values.clip(0)
        told = vectors.T @ responses
        centres = np.concatenate([self.components, self.mean[:, None]], axis=1)
        expected = vectors.T @ (design @ centres)
        widths = np.array([self.WIDTH, 1.0])
        logs = np.empty((centres.shape[1], responses.shape[1]))
        precision = []
        for width, part in zip(widths, (slice(0, -1), slice(-1, None)), strict=True):
            own = 1 / (noise[None] + width * values[:, None])
            precision.append(own)
            square = (own * told**2).sum(0) - 2 * expected[:, part].T @ (own * told) + (expected[:, part] ** 2).T @ own
            logs[part] = -0.5 * square + 0.5 * np.log(own).sum(0)
        logs[:-1] -= np.log(max(1, len(logs) - 1))
        share = np.exp(logs - logs.max(0))
        share /= share.sum(0)
        near, none = share[:-1], share[-1]
        start = centres[:, :-1] @ near
        back = self.covariance @ design.T @ vectors
        weight = start + self.WIDTH * back @ (precision[0] * (told * near.sum(0) - expected[:, :-1] @ near))
        return weight + none * self.mean[:, None] + back @ (precision[1] * (told - expected[:, -1:]) * none)

    def decoders(
        self, parts: Sequence[NDArray], responses: NDArray, training: Sequence[tuple[NDArray, NDArray]], targets: Sequence[NDArray]
    ) -> list[LinearDecoder]:
        """Linear decoders of a new subject: the expected targets given a response.

        E[t | y] = m_t + C_tf W (W' C_ff W + N)^-1 (y - m_y), with the covariances C of features and targets over pictures:
        the training pictures', drawn towards the subject's own as these grow in number.

        Parameters
        ----------
        parts : sequence of array
            Representations of the new subject's pictures.
        responses : array
            (n, n_voxels), one row per picture.
        training : sequence of (covariance, mean)
            Per target: covariance (K, t) of features and target, and mean (t,), over the training pictures (`picture_moments`).
        targets : sequence of array
            (n, t) each: the targets of the subject's pictures.
        """
        design = self.features(parts)
        centre = design.mean(0)
        design = design - centre
        n = len(design)
        standard, mean, deviation = _standard(np.asarray(responses, np.float64))
        voxels = self._posterior(design, standard)
        share = _picture_share(design)
        pictures = share * np.eye(design.shape[1]) + (1 - share) * design.T @ design / n
        believed = self.CORRELATION * n / (n + standard.shape[1])
        scale = np.sqrt(voxels.noise)
        unit = voxels.residual / (np.sqrt((voxels.residual**2).mean(0)) + 1e-12)
        factor = np.concatenate([np.sqrt(believed / n) * (unit * scale), np.linalg.cholesky(pictures + 1e-9 * np.eye(len(pictures))).T @ voxels.weight])
        inverse = _solve(voxels.noise * (1 - believed), factor, voxels.weight.T)
        found = []
        for (covariance, average), own in zip(training, targets, strict=True):
            flat = np.asarray(own, np.float64).reshape(n, -1)
            middle = flat.mean(0)
            both = share * covariance + (1 - share) * design.T @ (flat - middle) / n
            expected = (n * middle + self.PICTURES_MEAN * average) / (n + self.PICTURES_MEAN)
            weight = inverse @ both / deviation[:, None]
            found.append(LinearDecoder(weight, expected - mean @ weight))
        return found


def picture_moments(features: Array, target: NDArray) -> tuple[Array, Array]:
    """Covariance (K, t) of features and target over pictures, and the target's mean (t,)."""
    flat = np.asarray(target, np.float64).reshape(len(target), -1)
    mean = flat.mean(0)
    return (features - features.mean(0)).T @ (flat - mean) / len(flat), mean


def _picture_share(design: Array) -> float:
    """How much of a subject's picture covariance is the training pictures' (the identity): what predicts its held-out pictures best.

    Gaussian log-likelihood by cross-validation over five folds.
    """
    folds = np.arange(len(design)) % 5
    total = np.zeros(len(SHARES))
    for fold in np.unique(folds):
        seen, unseen = design[folds != fold], design[folds == fold]
        values, vectors = np.linalg.eigh(seen.T @ seen / len(seen))
        square = (unseen @ vectors) ** 2
        for k, share in enumerate(SHARES):
            variance = share + (1 - share) * values.clip(0)
            total[k] -= 0.5 * (square / variance).sum() + 0.5 * len(unseen) * np.log(variance).sum()
    return float(SHARES[total.argmax()])


def _standard(responses: Array) -> tuple[Array, Array, Array]:
    mean, deviation = responses.mean(0), responses.std(0)
    deviation = np.where(deviation > 1e-8, deviation, 1.0)
    return (responses - mean) / deviation, mean, deviation


def _solve(diagonal: Array, factor: Array, right: Array) -> Array:
    """(diag(d) + B' B)^-1 right for B (r, V), by Woodbury's identity or directly, whichever is smaller."""
    if len(factor) >= len(diagonal):
        return cho_solve(cho_factor(np.diag(diagonal) + factor.T @ factor), right)
    scaled = right / diagonal[:, None]
    inner = np.eye(len(factor)) + (factor / diagonal) @ factor.T
    return scaled - (factor / diagonal).T @ cho_solve(cho_factor(inner), factor @ scaled)
