"""A prior over how voxels respond to pictures, learned from training subjects, and the decoder it gives any subject.

Every voxel is a linear encoding model of picture features, y = F w + e. What the training subjects' voxels have in common - where
their weights w lie, and how noisy they are - is the prior for another subject's voxels, so that few trials say much about them
(empirical Bayes). Bayes' rule then turns the encoding models into a decoder: the expected coordinates of the picture given a
response, under the distribution of the pictures that the subject is shown.

Everything is computed from sums over trials (`Recorded`), so that neither time nor memory depends on their number beyond one pass.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix
from torch import Tensor

from unimind.models.space import PictureSpace

Array = NDArray[np.float64]

#: Components of each target that encoding models are fitted on: with more, few trials say less about each.
FEATURES = 64
#: Candidates of `_picture_share`.
SHARES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)
#: Trials beyond which residuals are known by random sums of them: a sketch of so many rows (Charikar, Chen & Farach-Colton 2002).
SKETCH = 1024


class LinearMap(NamedTuple):
    """Responses (n, V) to coordinates (n, K): `responses @ weight + bias`."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


class Features:
    """Picture features: the first components of each target side by side, white over the training pictures.

    Parameters
    ----------
    coordinates : array
        (n, K), of the training pictures.
    components : dict of str to int
        `PictureSpace.components`.
    """

    def __init__(self, mean: Array, white: Array, chosen: NDArray[np.int64]) -> None:
        self.mean, self.white, self.chosen = mean, white, chosen

    @classmethod
    def of(cls, coordinates: NDArray, space: PictureSpace) -> "Features":
        """Features that are white over some pictures' coordinates (n, K)."""
        limit, begins = max(1, len(coordinates) // 4), np.cumsum([0, *space.components.values()])
        first = [begin + np.arange(min(FEATURES, count, limit)) for begin, count in zip(begins, space.components.values(), strict=False)]
        chosen = np.concatenate(first)
        scale = np.concatenate([np.full(len(own), 1 / float(space.spread[own[0]])) for own in first])
        part = coordinates[:, chosen].astype(np.float64) * scale
        mean = part.mean(0)
        values, vectors = np.linalg.eigh(np.cov(part.T).reshape(len(chosen), -1))
        kept = values > 1e-6 * values[-1]
        return cls(mean / scale, scale[:, None] * vectors[:, kept] / np.sqrt(values[kept]), chosen)

    def __call__(self, coordinates: NDArray) -> Array:
        """Features (n, F) of pictures."""
        return (coordinates[:, self.chosen].astype(np.float64) - self.mean) @ self.white


class Recorded:
    """What the prior needs to know of a subject's trials, one row per picture.

    Parameters
    ----------
    design : array
        (n, F), features of the pictures; centred here.
    responses : array
        float32 (n, V); standardised here, voxel by voxel, without a copy of the whole.
    """

    def __init__(self, design: Array, responses: NDArray[np.float32]) -> None:
        self.n, self.centre = len(design), design.mean(0)
        self.design = design - self.centre
        self.mean = responses.mean(0, dtype=np.float64)
        self.gram = self.design.T @ self.design
        self.cross = np.zeros((design.shape[1], responses.shape[1]))
        self.square = np.zeros(responses.shape[1])
        kept = min(self.n, SKETCH)
        random = np.random.default_rng(0)
        place = np.arange(self.n) if kept == self.n else random.integers(kept, size=self.n)
        sign = np.ones(self.n) if kept == self.n else random.choice([-1.0, 1.0], self.n)
        sketch = csr_matrix((sign, (place, np.arange(self.n))), (kept, self.n))
        self.exact = kept == self.n
        self.some_design = sketch @ self.design
        self.some = np.zeros((kept, responses.shape[1]))
        for start in range(0, self.n, SKETCH):
            rows = slice(start, start + SKETCH)
            part = responses[rows] - self.mean
            self.cross += self.design[rows].T @ part
            self.square += np.einsum("nv,nv->v", part, part)
            self.some += sketch[:, rows] @ part
        deviation = np.sqrt(self.square / self.n)
        self.deviation = np.where(deviation > 1e-8, deviation, 1.0)
        self.cross /= self.deviation
        self.square /= self.deviation**2
        self.some /= self.deviation

    def residual(self, weight: Array, shrunk: Array, axes: Array, values: Array) -> tuple[Array, Array]:
        """Residuals (rows, V) with each trial left out, or sums of them, and their root mean square over trials (V,)."""
        residual = self.some - self.some_design @ weight
        if self.exact:
            leverage = (self.design @ axes) ** 2 @ (1 / shrunk)
            residual /= (1 - leverage).clip(0.02)
            return residual, np.sqrt((residual**2).mean(0))
        return residual, np.sqrt(self.squares(weight) / self.n)

    def squares(self, weight: Array) -> Array:
        """Sum over trials of the squared residuals of encoding models (F, V): (V,)."""
        return (self.square - 2 * (weight * self.cross).sum(0) + (weight * (self.gram @ weight)).sum(0)).clip(0)


class EncodingPrior:
    """Prior over encoding weights and noise.

    Weights have a Gaussian prior N(m, C) and every voxel a noise variance of its own. With `mixed`, a voxel is furthermore thought
    to be like some voxel of the training subjects: its prior is the mixture of Gaussians N(w_i, h C) around the training voxels'
    weights w_i, and of N(m, C) for voxels like none of them.

    Attributes
    ----------
    mean, covariance : array
        (F,) and (F, F).
    noise : float
        Median noise variance of the training voxels.
    components : array
        (F, M), weights of training voxels; none where there is one Gaussian.
    """

    #: h: how much narrower a component is than the whole.
    WIDTH = 0.2
    #: How many pictures the training pictures' mean counts for beside the subject's own.
    PICTURES_MEAN = 2.0
    #: How many trials the training voxels' noise counts for beside the voxel's own.
    NOISE_TRIALS = 20.0
    #: Share of the correlation of voxels' residuals that is believed where trials are many.
    CORRELATION = 0.5
    MOST_COMPONENTS = 1024

    def __init__(self, mean: Array, covariance: Array, noise: float, components: Array) -> None:
        self.mean, self.covariance, self.noise, self.components = mean, covariance, noise, components

    @classmethod
    def learned(cls, subjects: Sequence[Recorded], n_features: int, mixed: bool = True, iterations: int = 15) -> "EncodingPrior":
        """Fitted to training subjects' voxels by expectation maximisation; where nobody teaches, that it begins with: voxels of which a third is explained."""
        prior = cls(np.zeros(n_features), np.eye(n_features) * 0.3 / n_features, 0.8, np.zeros((n_features, 0)))
        if not subjects:
            return prior
        noise = [np.full(len(one.square), 0.8) for one in subjects]
        for _ in range(iterations):
            weights, spread = [], np.zeros((n_features, n_features))
            for k, one in enumerate(subjects):
                weight, uncertainty, noise[k] = prior._expect(one, noise[k])
                weights.append(weight)
                spread += uncertainty
            joined = np.concatenate(weights, axis=1)
            prior.mean = joined.mean(1)
            centred = joined - prior.mean[:, None]
            prior.covariance = (spread + centred @ centred.T) / joined.shape[1]
        prior.noise = float(np.median(np.concatenate(noise)))
        if mixed:
            chosen = np.random.default_rng(5).permutation(joined.shape[1])[: cls.MOST_COMPONENTS]
            prior.components = joined[:, np.sort(chosen)]
        return prior

    def _axes(self, gram: Array) -> tuple[Array, Array]:
        """With C = L L' and L' F'F L = Q diag(e) Q': L Q and e."""
        root = np.linalg.cholesky(self.covariance + 1e-10 * np.trace(self.covariance) * np.eye(len(self.covariance)))
        values, vectors = np.linalg.eigh(root.T @ gram @ root)
        return root @ vectors, values.clip(0)

    def _expect(self, own: Recorded, noise: Array, prior_trials: float = 0.0) -> tuple[Array, Array, Array]:
        """Posterior means (F, V) under N(m, C), the sum of posterior covariances (F, F), updated noise variances (V,).

        Every voxel's posterior covariance is L Q diag(s / (s + e)) Q' L'.
        """
        axes, values = self._axes(own.gram)
        shrunk = noise[None] + values[:, None]
        weight = self.mean[:, None] + axes @ (axes.T @ (own.cross - (own.gram @ self.mean)[:, None]) / shrunk)
        uncertainty = (axes * (noise[None] / shrunk).sum(1)) @ axes.T
        left = own.squares(weight) + (noise[None] * values[:, None] / shrunk).sum(0)
        return weight, uncertainty, ((left + prior_trials * self.noise) / (own.n + prior_trials)).clip(1e-6)

    def posterior(self, own: Recorded) -> tuple[Array, Array]:
        """Posterior means (F, V) of a subject's encoding weights under N(m, C), and its voxels' noise variances (V,)."""
        noise = np.full(len(own.square), self.noise)
        for _ in range(4):
            weight, _, noise = self._expect(own, noise, self.NOISE_TRIALS)
        return weight, noise

    def _noise(self, own: Recorded, weight: Array, noise: Array) -> tuple[Array, Array]:
        """The noise's covariance diag(d) + B'B, given `posterior`: d (V,), B (rows, V). Part of the residuals' correlation is believed."""
        axes, values = self._axes(own.gram)
        residual, size = own.residual(weight, noise[None] + values[:, None], axes, values)
        believed = self.CORRELATION * own.n / (own.n + len(noise))
        return noise * (1 - believed), np.sqrt(believed / own.n) * residual / (size + 1e-12) * np.sqrt(noise)

    def encoding_model(self, own: Recorded) -> "EncodingModel":
        """A subject's encoding model: posterior means of the weights under N(m, C), and the noise with half of its residuals' correlation."""
        weight, noise = self.posterior(own)
        back = _solve(*self._noise(own, weight, noise), weight.T)
        return EncodingModel(own.centre, own.mean, back / own.deviation[:, None], weight @ back)

    def _mixture(self, own: Recorded, noise: Array) -> Array:
        """Posterior means (F, V) under the mixture: components weighted by how well they predict a voxel's trials.

        The trials' kernel F C F' has the rank of F: all happens in the span of its eigenvectors, of which a voxel's trials have
        the coordinates `told`. What lies outside weighs all components alike.
        """
        axes, values = self._axes(own.gram)
        kept = values > 1e-9 * values[-1]
        axes, values = axes[:, kept], values[kept]
        told = axes.T @ own.cross / np.sqrt(values)[:, None]
        centres = np.concatenate([self.components, self.mean[:, None]], axis=1)
        expected = axes.T @ (own.gram @ centres) / np.sqrt(values)[:, None]
        back = axes * np.sqrt(values)
        logs = np.empty((centres.shape[1], own.cross.shape[1]))
        precision = []
        for width, part in ((self.WIDTH, slice(0, -1)), (1.0, slice(-1, None))):
            inverse = 1 / (noise[None] + width * values[:, None])
            precision.append(inverse)
            square = (inverse * told**2).sum(0) - 2 * expected[:, part].T @ (inverse * told) + (expected[:, part] ** 2).T @ inverse
            logs[part] = -0.5 * square + 0.5 * np.log(inverse * noise).sum(0)
            if width != 1.0:
                logs[part] -= np.log(self.components.shape[1])
        share = np.exp(logs - logs.max(0))
        share /= share.sum(0)
        near, none = share[:-1], share[-1]
        weight = centres[:, :-1] @ near + self.WIDTH * back @ (precision[0] * (told * near.sum(0) - expected[:, :-1] @ near))
        return weight + none * self.mean[:, None] + back @ (precision[1] * (told - expected[:, -1:]) * none)

    def decoder(self, own: Recorded, coordinates: NDArray, moments: tuple[Array, Array]) -> LinearMap:
        """A subject's decoder: the expected coordinates given a response.

        E[z | y] = m_z + C_zf W (W' C_ff W + N)^-1 (y - m_y), with the covariances C of features and coordinates over pictures: the
        training pictures', drawn towards the subject's own by as much as predicts its held-out pictures best; N has the voxels'
        noise variances and half of their residuals' correlation.

        Parameters
        ----------
        own : Recorded
        coordinates : array
            (n, K) of the subject's pictures.
        moments : (covariance, mean)
            (F, K) of features and coordinates, and (K,), over the training pictures (`picture_moments`).
        """
        weight, noise = self.posterior(own)
        alone, together = self._noise(own, weight, noise)
        if self.components.shape[1]:
            weight = self._mixture(own, noise)
        share = _picture_share(own.design)
        pictures = share * np.eye(len(own.gram)) + (1 - share) * own.gram / own.n
        factor = np.concatenate([together, np.linalg.cholesky(pictures + 1e-9 * np.eye(len(pictures))).T @ weight])
        inverse = _solve(alone, factor, weight.T)
        middle = coordinates.mean(0, dtype=np.float64)
        both = share * moments[0] + (1 - share) * own.design.T @ (coordinates - middle) / own.n
        expected = (own.n * middle + self.PICTURES_MEAN * moments[1]) / (own.n + self.PICTURES_MEAN)
        decoder = inverse @ both / own.deviation[:, None]
        return LinearMap(decoder.astype(np.float32), (expected - own.mean @ decoder).astype(np.float32))


class EncodingModel(NamedTuple):
    """How likely a response is, given a picture's features: y = mean + D (W'(f - centre) + e), e ~ N(0, N), D the voxels' deviations.

    Of the response only `told` matters, as many numbers as there are features.

    Attributes
    ----------
    centre, mean : array
        (F,) and (V,).
    back : array
        (V, F), D^-1 N^-1 W'.
    information : array
        (F, F), W N^-1 W'.
    """

    centre: Array
    mean: Array
    back: Array
    information: Array

    def told(self, responses: NDArray[np.float32]) -> Array:
        """What responses (n, V) say of the features: (n, F)."""
        return (responses - self.mean) @ self.back

    def log_likelihood(self, features: Array, told: Array) -> Array:
        """Log-likelihood (n, k) of n responses for k pictures of each, of features (n, k, F), up to a constant of each response."""
        off = features - self.centre
        return np.einsum("nkf,nf->nk", off, told) - 0.5 * np.einsum("nkf,fg,nkg->nk", off, self.information, off, optimize=True)


class TaughtPrior:
    """What training subjects teach: features, the moments of their pictures, and the prior over voxels, by all of them and without each.

    Parameters
    ----------
    features : Features
    moments : (covariance, mean)
    priors : dict of str to EncodingPrior
        `""` by all; by the name of a subject, without that one: what decodes a training subject's own trials.
    """

    def __init__(self, features: Features, moments: tuple[Array, Array], priors: dict[str, EncodingPrior]) -> None:
        self.features, self.moments, self.priors = features, moments, priors

    @classmethod
    def by(cls, space: PictureSpace, pictures: Mapping[str, NDArray], responses: Callable[[str], NDArray[np.float32]], mixed: bool) -> "TaughtPrior":
        """Learn from training subjects.

        Parameters
        ----------
        space : PictureSpace
        pictures : mapping
            Subject -> coordinates (n, K) of its pictures.
        responses : function
            Subject -> its responses (n, V) to each; asked for one subject at a time.
        mixed : bool
            See `EncodingPrior`.
        """
        coordinates = np.concatenate(list(pictures.values()))
        features = Features.of(coordinates, space)
        recorded = {name: Recorded(features(own), responses(name)) for name, own in pictures.items()}
        priors = {}
        for name in ("", *recorded):
            others = [one for other, one in recorded.items() if other != name]
            priors[name] = EncodingPrior.learned(others, features.white.shape[1], mixed)
        return cls(features, picture_moments(features(coordinates), coordinates), priors)

    def decoder(self, subject: str, coordinates: NDArray, responses: NDArray[np.float32]) -> LinearMap:
        """The decoder of a subject from responses (n, V) to pictures of the coordinates (n, K); its own voxels taught nothing of it."""
        prior = self.priors.get(subject, self.priors[""])
        return prior.decoder(Recorded(self.features(coordinates), responses), coordinates, self.moments)

    def state(self) -> dict[str, Tensor]:
        """Tensors by name."""
        arrays: dict[str, Any] = {"features.mean": self.features.mean, "features.white": self.features.white, "features.chosen": self.features.chosen}
        arrays |= {"moments.covariance": self.moments[0], "moments.mean": self.moments[1]}
        for name, prior in self.priors.items():
            for key in ("mean", "covariance", "components"):
                arrays[f"prior.{name}.{key}"] = getattr(prior, key)
            arrays[f"prior.{name}.noise"] = np.array([prior.noise])
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "TaughtPrior":
        """What `state` came from."""
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        names = {name.removeprefix("prior.").removesuffix(".noise") for name in arrays if name.endswith(".noise")}
        priors = {
            name: EncodingPrior(
                arrays[f"prior.{name}.mean"], arrays[f"prior.{name}.covariance"], float(arrays[f"prior.{name}.noise"][0]), arrays[f"prior.{name}.components"]
            )
            for name in names
        }
        features = Features(arrays["features.mean"], arrays["features.white"], arrays["features.chosen"])
        return cls(features, (arrays["moments.covariance"], arrays["moments.mean"]), priors)


def picture_moments(features: Array, coordinates: NDArray) -> tuple[Array, Array]:
    """Covariance (F, K) of features and coordinates over pictures, and the coordinates' mean (K,)."""
    mean = coordinates.mean(0, dtype=np.float64)
    return (features - features.mean(0)).T @ (coordinates - mean) / len(coordinates), mean


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


def _solve(diagonal: Array, factor: Array, right: Array) -> Array:
    """(diag(d) + B' B)^-1 right for B (r, V), by Woodbury's identity or directly, whichever is smaller."""
    if len(factor) >= len(diagonal):
        return cho_solve(cho_factor(np.diag(diagonal) + factor.T @ factor), right)
    scaled = right / diagonal[:, None]
    inner = np.eye(len(factor)) + (factor / diagonal) @ factor.T
    return scaled - (factor / diagonal).T @ cho_solve(cho_factor(inner), factor @ scaled)
