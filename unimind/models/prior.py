"""A prior over how voxels respond to pictures, learned from training subjects, and the decoder it gives any subject.

Every voxel is a linear encoding model of picture features, y = F w + e. What the training subjects' voxels have in common - where
their weights w lie, and how noisy they are - is the prior for another subject's voxels, so that few trials say much about them
(empirical Bayes). Bayes' rule then turns the encoding models into a decoder: the expected coordinates of the picture given a
response, under the distribution of the pictures that the subject is shown.

Everything is computed from sums over trials (`Recorded`), so that neither time nor memory depends on their number beyond one pass.
What has a voxel's index is computed on the device there is, in blocks of voxels, so that a card's memory does not depend on their number
either. In double precision: squared residuals are differences of sums a thousand times as large, and the matrix that decodes is inverted
where voxels' noise variances differ by as much; on a card, too, that takes seconds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.device import on_device
from unimind.models.space import PictureSpace

Array = NDArray[np.float64]

#: Components of each target that encoding models are fitted on: with more, few trials say less about each.
FEATURES = 64
#: Candidates of `_picture_share`.
SHARES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)
#: Trials beyond which residuals are known by random sums of them: a sketch of so many rows (Charikar, Chen & Farach-Colton 2002).
SKETCH = 1024
#: Voxels that are on the device at a time.
BLOCK = 2048


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
    residuals : bool
        Whether residuals will be asked for, which takes `SKETCH` rows of memory (V,).
    device : torch.device, optional
        Of everything that has a voxel's index, here and in `EncodingPrior`; by default that of `on_device`.
    """

    def __init__(self, design: Array, responses: NDArray[np.float32], residuals: bool = True, device: torch.device | None = None) -> None:
        self.device = on_device(device)
        (self.n, n_features), n_voxels = design.shape, responses.shape[1]
        self.centre = design.mean(0)
        self.design = design - self.centre
        self.gram = self.design.T @ self.design
        self.exact, kept, random = self.n <= SKETCH, min(self.n, SKETCH) if residuals else 0, np.random.default_rng(0)
        place = np.arange(self.n) if self.exact else random.integers(SKETCH, size=self.n)
        sign = np.ones(self.n) if self.exact else random.choice([-1.0, 1.0], self.n)
        self.mean, self.deviation, self.square, self.cross, self.some = (np.empty((*rows, n_voxels)) for rows in ((), (), (), (n_features,), (kept,)))
        own, to, signed = (torch.from_numpy(values).to(self.device) for values in (self.design, place, sign[:, None]))

        def summed(values: Tensor) -> Tensor:
            """Random sums of rows (n, ...); overwrites them."""
            return values if self.exact else values.new_zeros(SKETCH, values.shape[1]).index_add_(0, to, values.mul_(signed))

        self.some_design = summed(own.clone())
        for part in self.blocks():
            values = torch.from_numpy(responses[:, part]).to(self.device).double()
            mean = values.mean(0)
            values -= mean
            variance = torch.stack([rows.square().sum(0) for rows in values.split(SKETCH)]).sum(0) / self.n
            deviation = torch.where(variance > 1e-16, variance.sqrt(), 1.0)
            found = {"mean": mean, "deviation": deviation, "square": self.n * variance / deviation**2, "cross": own.T @ values / deviation}
            found |= {"some": summed(values) / deviation} if residuals else {}
            for name, sums in found.items():
                getattr(self, name)[..., part] = sums.cpu()

    def blocks(self) -> Iterator[slice]:
        """Voxels that are on the device together."""
        for start in range(0, len(self.mean), BLOCK):
            yield slice(start, start + BLOCK)

    def told(self, name: str, part: slice) -> Tensor:
        """`cross`, `square` or `some` of some voxels, on the device."""
        return torch.from_numpy(getattr(self, name)[..., part]).to(self.device)


class _Axes:
    """Axes in which a prior N(m, C) and a subject's trials are both diagonal.

    With C = L L' and L' F'F L = Q diag(e) Q', they are L Q. There a voxel's weights are m + L Q u, and what is expected of u is
    t / (s + e) with t = Q' L' (F'y - F'F m) and the voxel's noise variance s; its posterior covariance is diag(s / (s + e)).
    """

    def __init__(self, prior: "EncodingPrior", own: Recorded) -> None:
        root = np.linalg.cholesky(prior.covariance + 1e-10 * np.trace(prior.covariance) * np.eye(len(prior.covariance)))
        values, vectors = np.linalg.eigh(root.T @ own.gram @ root)
        axes, told = root @ vectors, own.gram @ prior.mean
        self.own, self.explained = own, float(prior.mean @ told)
        self.axes, self.values, self.mean, self.offset = (
            torch.from_numpy(one).to(own.device) for one in (axes, values.clip(0), prior.mean, (axes.T @ told)[:, None])
        )

    def told(self, part: slice) -> tuple[Tensor, Tensor]:
        """Of some voxels, t (F, b) and the squared residuals of m, |y - F m|^2 (b,)."""
        cross = self.own.told("cross", part)
        return self.axes.T @ cross - self.offset, self.own.told("square", part) - 2 * (self.mean @ cross) + self.explained

    def expect(self, told: Tensor, square: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u (F, b), 1 / (s + e) (F, b) and the squared residuals |y - F w|^2 (b,) of what is expected."""
        inverse = 1 / (noise + self.values[:, None])
        u = told * inverse
        squares = u.square()
        return u, inverse, (square - self.values @ squares - 2 * noise * squares.sum(0)).clamp_(min=0)

    def updated(self, left: Tensor, inverse: Tensor, noise: Tensor, trials: float = 0.0, prior_noise: float = 0.0) -> Tensor:
        """Noise variances (b,) of which the squared residuals and what is uncertain in the weights tell; the prior's counts for so many trials."""
        return ((left + noise * (self.values @ inverse) + trials * prior_noise) / (self.own.n + trials)).clamp_(min=1e-6)


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
        noise = [torch.full((len(one.square),), 0.8, dtype=torch.float64, device=one.device) for one in subjects]
        count = sum(map(len, noise))
        for iteration in range(iterations):
            shift, scatter, weights = np.zeros(n_features), np.zeros((n_features, n_features)), []
            for one, own in zip(subjects, noise, strict=True):
                axes = _Axes(prior, one)
                first, second = torch.zeros_like(axes.values), torch.zeros_like(axes.axes)
                for part in one.blocks():
                    u, inverse, left = axes.expect(*axes.told(part), own[part])
                    first += u.sum(1)
                    second += u @ u.T + (inverse @ own[part]).diag()
                    own[part] = axes.updated(left, inverse, own[part])
                    if mixed and iteration == iterations - 1:
                        weights.append((axes.mean[:, None] + axes.axes @ u).cpu())
                shift += (axes.axes @ first).cpu().numpy() / count
                scatter += (axes.axes @ second @ axes.axes.T).cpu().numpy() / count
            prior.mean = prior.mean + shift
            prior.covariance = scatter - np.outer(shift, shift)
        prior.noise = float(np.median(torch.cat(noise).cpu().numpy()))
        if mixed:
            chosen = np.random.default_rng(5).permutation(count)[: cls.MOST_COMPONENTS]
            prior.components = torch.cat(weights, 1)[:, np.sort(chosen)].numpy()
        return prior

    def _posterior(self, axes: _Axes, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Of some voxels, posterior means (F, b) under N(m, C), noise variances (b,) and the squared residuals (b,) of the former."""
        told, square = axes.told(part)
        noise = torch.full_like(square, self.noise)
        for _ in range(4):
            u, inverse, left = axes.expect(told, square, noise)
            noise = axes.updated(left, inverse, noise, self.NOISE_TRIALS, self.noise)
        return axes.mean[:, None] + axes.axes @ u, noise, left

    def posterior(self, own: Recorded) -> tuple[Array, Array]:
        """Posterior means (F, V) of a subject's encoding weights under N(m, C), and its voxels' noise variances (V,)."""
        axes = _Axes(self, own)
        weight, noise, _ = zip(*(self._posterior(axes, part) for part in own.blocks()), strict=True)
        return torch.cat(weight, 1).cpu().numpy(), torch.cat(noise).cpu().numpy()

    def _mixture(self, axes: _Axes) -> Callable[[slice, Tensor], Tensor]:
        """The function from some voxels and their noise variances (b,) to their posterior means (F, b) under the mixture: components
        weighted by how well they predict a voxel's trials.

        The trials' kernel F C F' has the rank of F: all happens in the span of its eigenvectors, of which a voxel's trials have
        the coordinates `told`. What lies outside weighs all components alike.
        """
        kept = axes.values > 1e-9 * axes.values[-1]
        values, scale = axes.values[kept, None], axes.values[kept, None].sqrt()
        into, back = axes.axes[:, kept].T / scale, axes.axes[:, kept] * scale.T
        expects = into @ torch.from_numpy(axes.own.gram).to(into)
        centres = torch.from_numpy(self.components).to(into)
        expected, none_expected = expects @ centres, (expects @ axes.mean)[:, None]
        compared = torch.cat([expected, expected.square()])

        def weights(part: slice, noise: Tensor) -> Tensor:
            told = into @ axes.own.told("cross", part)
            inverse, none_inverse = 1 / (noise + self.WIDTH * values), 1 / (noise + values)
            logs = torch.cat([inverse * told, -0.5 * inverse]).T @ compared  # (b, M)
            logs += 0.5 * ((inverse * noise).log() - inverse * told.square()).sum(0)[:, None] - np.log(centres.shape[1])
            none = 0.5 * ((none_inverse * noise).log() - none_inverse * (told - none_expected).square()).sum(0)
            share = torch.cat([logs, none[:, None]], 1).softmax(1)
            near, none = share[:, :-1], share[:, -1]
            centre = centres @ near.T
            moved = self.WIDTH * inverse * (told * near.sum(1) - expects @ centre) + none * none_inverse * (told - none_expected)
            return centre + none * axes.mean[:, None] + back @ moved

        return weights

    def _voxels(self, own: Recorded, mixed: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of one block of voxels after the other, posterior means (F, b) of the weights, under the mixture where there is one and it is asked for,
        and the noise's covariance diag(d) + B'B: d (b,), B (rows, b). Part of the residuals' correlation is believed.
        """
        axes = _Axes(self, own)
        mixture = self._mixture(axes) if mixed and self.components.shape[1] else None
        believed = self.CORRELATION * own.n / (own.n + len(own.mean))
        leverages = (torch.from_numpy(own.design).to(own.device) @ axes.axes).square() if own.exact else None
        for part in own.blocks():
            weight, noise, left = self._posterior(axes, part)
            residual = own.told("some", part) - own.some_design @ weight
            if leverages is None:
                size = (left / own.n).sqrt()
            else:  # each trial left out
                residual /= (1 - leverages @ (1 / (noise + axes.values[:, None]))).clamp_(min=0.02)
                size = residual.square().mean(0).sqrt()
            if mixture is not None:
                weight = mixture(part, noise)
            yield weight, noise * (1 - believed), residual * (np.sqrt(believed / own.n) * noise.sqrt() / (size + 1e-12))

    def encoding_model(self, own: Recorded) -> "EncodingModel":
        """A subject's encoding model: posterior means of the weights under N(m, C), and the noise with half of its residuals' correlation."""
        blocks = [_VoxelBlock(alone, together, weight.T).to(torch.device("cpu")) for weight, alone, together in self._voxels(own, False)]
        back = torch.cat([found.cpu() for found in _solve(blocks, own.device)]).numpy()
        weight = torch.cat([block.right for block in blocks]).numpy().T
        return EncodingModel(own.centre, own.mean, back / own.deviation[:, None], weight @ back)

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
        share = _picture_share(own.design)
        pictures = share * np.eye(len(own.gram)) + (1 - share) * own.gram / own.n
        root = torch.from_numpy(np.linalg.cholesky(pictures + 1e-9 * np.eye(len(pictures)))).to(own.device)
        blocks = [
            _VoxelBlock(alone, torch.cat([together, root.T @ weight]), weight.T).to(torch.device("cpu")) for weight, alone, together in self._voxels(own, True)
        ]
        middle = coordinates.mean(0, dtype=np.float64)
        both = share * moments[0] + (1 - share) * own.design.T @ (coordinates - middle) / own.n
        expected = (own.n * middle + self.PICTURES_MEAN * moments[1]) / (own.n + self.PICTURES_MEAN)
        to_coordinates = torch.from_numpy(both).to(own.device)
        decoder, bias = np.empty((len(own.mean), both.shape[1]), np.float32), expected.copy()
        for part, inverse in zip(own.blocks(), _solve(blocks, own.device), strict=True):
            found = (inverse @ to_coordinates).cpu().numpy() / own.deviation[part, None]
            decoder[part] = found
            bias -= own.mean[part] @ found
        return LinearMap(decoder, bias.astype(np.float32))


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
        recorded = {name: Recorded(features(own), responses(name), residuals=False) for name, own in pictures.items()}
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


class _VoxelBlock(NamedTuple):
    """Of some voxels b, parts of `_solve`'s d (b,), B (r, b) and right side (b, t)."""

    diagonal: Tensor
    factor: Tensor
    right: Tensor

    def to(self, device: torch.device) -> "_VoxelBlock":
        return _VoxelBlock(*(values.to(device) for values in self))


def _solve(blocks: Sequence[_VoxelBlock], device: torch.device) -> Iterator[Tensor]:
    """(diag(d) + B' B)^-1 right for B (r, V), by Woodbury's identity or directly, whichever is smaller: (b, t) of one block after the other."""
    rank, sizes = len(blocks[0].factor), [len(block.diagonal) for block in blocks]
    if rank >= sum(sizes):
        diagonal, factor, right = (torch.cat(parts, axis).to(device) for parts, axis in zip(zip(*blocks, strict=True), (0, 1, 0), strict=True))
        yield from torch.cholesky_solve(right, torch.linalg.cholesky(diagonal.diag() + factor.T @ factor)).split(sizes)
        return
    inner = torch.eye(rank, dtype=torch.float64, device=device)
    seen = 0
    for diagonal, factor, right in (block.to(device) for block in blocks):
        scaled = factor / diagonal
        inner += scaled @ factor.T
        seen = seen + scaled @ right
    found = torch.cholesky_solve(seen, torch.linalg.cholesky(inner))
    for diagonal, factor, right in (block.to(device) for block in blocks):
        yield (right - factor.T @ found) / diagonal[:, None]
