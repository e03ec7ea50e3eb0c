"""The encoding prior against Bayes' rule written out densely, and against ridge regression where it should help."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.linear_model import Ridge

from unimind.models import prior as module
from unimind.models.prior import EncodingPrior, Recorded, TaughtPrior, _picture_share, _solve, _VoxelBlock
from unimind.models.space import PictureSpace

RNG = np.random.default_rng
DIMS = 8


def world(kinds=4, spread=0.15, noise=3.0):
    """A maker of subjects whose voxels are of few kinds, as tuned units are: embedding (n, 10) and latent (n, 4, 1, 1) of pictures, responses."""
    rng = RNG(0)
    centres, mixing = rng.standard_normal((DIMS, kinds)), rng.standard_normal((DIMS, 10))

    def subject(seed, n, voxels):
        own = RNG((seed, 1))
        features = own.standard_normal((n, DIMS))
        weights = centres[:, own.integers(0, kinds, voxels)] + spread * own.standard_normal((DIMS, voxels))
        responses = features @ weights + noise * own.standard_normal((n, voxels))
        embedding = features @ mixing + 0.1 * own.standard_normal((n, 10))
        return embedding.astype(np.float32), features[:, :4].reshape(n, 4, 1, 1).astype(np.float32), responses.astype(np.float32)

    return subject


@pytest.fixture(scope="module")
def teachers():
    """The picture space, and coordinates and responses of three training subjects."""
    parts = {f"t{seed}": world()(seed, 120, 30) for seed in (10, 11, 12)}
    space = PictureSpace.fit(*(np.concatenate([part[k] for part in parts.values()]) for k in range(2)))
    return space, {name: seen(space, part) for name, part in parts.items()}


def by(space, subjects, mixed):
    """What subjects teach: name -> coordinates and responses."""
    return TaughtPrior.by(space, {name: pictures for name, (pictures, _) in subjects.items()}, lambda name: subjects[name][1], mixed)


def seen(space, part):
    """Coordinates of the pictures, and responses to each."""
    return space.coordinates(torch.from_numpy(part[0]), torch.from_numpy(part[1])).numpy(), part[2]


@pytest.fixture(scope="module", params=[False, True], ids=["one Gaussian", "mixture"])
def taught(teachers, request):
    space, subjects = teachers
    found = by(space, subjects, request.param)
    prior = found.priors[""]
    prior.components = prior.components[:, :6]  # few enough to write out
    return space, found


def by_hand(prior, features, moments, coordinates, responses):
    """The decoder, float64, voxel by voxel with n x n kernels: encoding models by Bayes' rule, then the joint Gaussian's conditional mean."""
    z, n = coordinates.astype(float), len(coordinates)
    design = features(z) - features(z).mean(0)
    mean, deviation = responses.mean(0, dtype=float), responses.std(0, dtype=float)
    y = (responses - mean) / deviation
    kernel = design @ prior.covariance @ design.T
    noise = np.full(y.shape[1], prior.noise)
    for _ in range(4):  # expectation maximisation of each voxel's noise, the training voxels' counting for so many trials
        for v, s in enumerate(noise):
            gain = kernel @ np.linalg.inv(kernel + s * np.eye(n))
            left = y[:, v] - design @ prior.mean - gain @ (y[:, v] - design @ prior.mean)
            uncertainty = np.trace(kernel - gain @ kernel)
            noise[v] = (left @ left + uncertainty + prior.NOISE_TRIALS * prior.noise) / (n + prior.NOISE_TRIALS)
        if _ == 2:
            before = noise.copy()
    weights, residuals = np.zeros((design.shape[1], y.shape[1])), np.zeros_like(y)
    for v in range(y.shape[1]):
        inner = np.linalg.inv(kernel + before[v] * np.eye(n))  # residuals are of the last expectation, before its noise was updated
        fitted = design @ prior.mean + kernel @ inner @ (y[:, v] - design @ prior.mean)
        leverage = np.diag(kernel @ np.linalg.inv(kernel + noise[v] * np.eye(n)))
        residuals[:, v] = (y[:, v] - fitted) / (1 - leverage)
        parts = [(c, prior.WIDTH, 1 / prior.components.shape[1]) for c in prior.components.T] + [(prior.mean, 1.0, 1.0)]
        logs, means = [], []
        for centre, width, share in parts:
            covariance = width * kernel + noise[v] * np.eye(n)
            logs.append(np.log(share) + multivariate_normal(design @ centre, covariance).logpdf(y[:, v]))
            means.append(centre + width * prior.covariance @ design.T @ np.linalg.solve(covariance, y[:, v] - design @ centre))
        share = np.exp(np.array(logs) - max(logs))
        weights[:, v] = share @ np.array(means) / share.sum()
        if not prior.components.shape[1]:
            weights[:, v] = prior.mean + prior.covariance @ design.T @ np.linalg.inv(kernel + before[v] * np.eye(n)) @ (y[:, v] - design @ prior.mean)
    own = _picture_share(design)
    pictures = own * np.eye(design.shape[1]) + (1 - own) * design.T @ design / n
    both = own * moments[0] + (1 - own) * design.T @ (z - z.mean(0)) / n
    unit = residuals / np.sqrt((residuals**2).mean(0))
    believed = prior.CORRELATION * n / (n + y.shape[1])
    correlation = believed * unit.T @ unit / n + (1 - believed) * np.eye(y.shape[1])
    total = weights.T @ pictures @ weights + np.sqrt(noise[:, None] * noise[None]) * correlation
    gain = both.T @ weights @ np.linalg.inv(total)
    centre = (n * z.mean(0) + prior.PICTURES_MEAN * moments[1]) / (n + prior.PICTURES_MEAN)
    return lambda given: centre + ((given - mean) / deviation) @ gain.T


@pytest.mark.parametrize(("n", "voxels", "block"), [(20, 9, 4), (60, 5, 2048), (12, 40, 16)])
def test_the_decoder_is_bayes_rule_written_out(taught, monkeypatch, n, voxels, block):
    """Whatever voxels are computed together, and whether they are fewer or more than what their covariance is made of."""
    space, found = taught
    monkeypatch.setattr(module, "BLOCK", block)
    coordinates, responses = seen(space, world()(99, n, voxels))
    decoder = found.decoder("somebody", coordinates, responses)
    assert decoder.weight.dtype == np.float32
    expected = by_hand(found.priors[""], found.features, found.moments, coordinates, responses)(responses)
    np.testing.assert_allclose(responses @ decoder.weight + decoder.bias, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_the_encoding_model_is_a_gaussian_likelihood_written_out(taught):
    """Against scipy's density under the covariance written out; and the picture that was seen is found more often, where voxels' noise is shared."""
    space, found = taught
    coordinates, responses = seen(space, world()(5, 260, 40))
    shared = RNG(6).standard_normal((260, 1)) * RNG(7).standard_normal(40)
    responses = (responses + 6 * shared).astype(np.float32)
    features, prior = found.features(coordinates), found.priors[""]
    own = Recorded(features[:200], responses[:200])
    model = prior.encoding_model(own)
    weight, noise = prior.posterior(own)
    alone, together = (torch.cat(parts, -1).numpy() for parts in list(zip(*prior._voxels(own, False), strict=True))[1:])
    covariance = np.diag(alone) + together.T @ together
    correlation = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert np.abs(correlation - np.eye(40)).max() > 0.1, "what voxels share is believed in part"
    asked, told = features[200:][None].repeat(60, 0), model.told(responses[200:])
    likelihood = model.log_likelihood(asked, told)
    standard = (responses[200:] - responses[:200].mean(0)) / responses[:200].std(0)
    expected = [multivariate_normal((f - features[:200].mean(0)) @ weight, covariance).logpdf(standard) for f in features[200:]]
    difference = likelihood - np.stack(expected, 1)
    np.testing.assert_allclose(difference - difference[:, :1], 0, atol=2e-3 * np.abs(likelihood).max())
    right = (likelihood.argmax(1) == np.arange(60)).mean()
    predicted = (features[200:] - own.centre) @ weight
    by_correlation = (np.corrcoef(standard, predicted)[:60, 60:].argmax(1) == np.arange(60)).mean()
    assert right > 0.3 and right > by_correlation


def test_features_are_white_over_the_training_pictures(teachers):
    space, subjects = teachers
    coordinates = np.concatenate([pictures for pictures, _ in subjects.values()])
    features = module.Features.of(coordinates, space)(coordinates)
    np.testing.assert_allclose(np.cov(features.T), np.eye(features.shape[1]), atol=1e-8)
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-8)


def test_of_many_trials_sums_of_residuals_are_as_good(taught, monkeypatch):
    """With more trials than `SKETCH`, residuals are known by random sums; the decoder stays close to the exact one."""
    space, found = taught
    coordinates, responses = seen(space, world()(55, 900, 25))
    exact = found.decoder("", coordinates, responses)
    monkeypatch.setattr(module, "SKETCH", 300)
    sketched = Recorded(found.features(coordinates), responses)
    assert not sketched.exact and len(sketched.some) == 300
    close = found.decoder("", coordinates, responses)
    one, other = (responses @ own.weight + own.bias for own in (exact, close))
    assert 0 < np.abs(one - other).max() and np.abs(one - other).std() < 0.08 * one.std()


def test_what_was_taught_comes_back_from_its_state(taught):
    space, found = taught
    again = TaughtPrior.from_state(found.state())
    assert set(again.priors) == {"", "t10", "t11", "t12"}
    given = seen(space, world()(7, 30, 6))
    for name in ("t11", "stranger"):
        for one, other in zip(found.decoder(name, *given), again.decoder(name, *given), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_subject_is_decoded_by_what_the_others_taught(teachers):
    """Other responses of one subject change the prior by all and by all but each other one; never the one without it."""
    space, subjects = teachers
    changed = subjects | {"t10": (subjects["t10"][0], RNG(3).standard_normal(subjects["t10"][1].shape).astype(np.float32))}
    one, other = (by(space, own, True).priors for own in (subjects, changed))
    assert {name for name in one if np.array_equal(one[name].covariance, other[name].covariance)} == {"t10"}
    assert np.array_equal(one["t10"].components, other["t10"].components) and one["t10"].noise == other["t10"].noise
    alone = [by(space, {"t10": own["t10"]}, True).priors["t10"] for own in (subjects, changed)]  # nobody else teaches it
    assert np.array_equal(alone[0].covariance, alone[1].covariance) and not alone[0].components.size


def test_woodbury_equals_the_direct_solution():
    rng = RNG(1)
    for rank in (5, 60):
        diagonal, factor, right = rng.uniform(0.5, 2, 40), rng.standard_normal((rank, 40)), rng.standard_normal((40, 3))
        expected = np.linalg.solve(np.diag(diagonal) + factor.T @ factor, right)
        for parts in ([slice(0, 40)], [slice(0, 16), slice(16, 32), slice(32, 40)]):
            blocks = [_VoxelBlock(*map(torch.from_numpy, (diagonal[part], factor[:, part], right[part]))) for part in parts]
            found = list(_solve(blocks, torch.device("cpu")))
            assert [len(part) for part in found] == [len(block.right) for block in blocks]
            np.testing.assert_allclose(torch.cat(found), expected)


def test_few_trials_go_further_with_the_prior_and_further_still_with_the_mixture(teachers):
    space, subjects = teachers
    errors = {"ridge": [], "gaussian": [], "mixture": []}
    taught = {name: by(space, subjects, mixed) for name, mixed in (("gaussian", False), ("mixture", True))}
    for seed in range(6):
        coordinates, responses = seen(space, world()(200 + seed, 225, 30))
        own, test = (coordinates[:25], responses[:25]), (coordinates[25:], responses[25:])
        errors["ridge"].append(min(((Ridge(alpha).fit(*own[::-1]).predict(test[1]) - test[0]) ** 2).mean() for alpha in 10.0 ** np.arange(0, 6)))
        for name, prior in taught.items():
            decoder = prior.decoder("", *own)
            errors[name].append(((test[1] @ decoder.weight + decoder.bias - test[0]) ** 2).mean())
    means = {name: np.mean(values) for name, values in errors.items()}
    assert means["mixture"] < means["gaussian"] < means["ridge"]


@pytest.mark.parametrize("block", [2048, 300])
def test_learning_finds_the_distribution_of_the_voxels(monkeypatch, block):
    """Weights drawn from one Gaussian: expectation maximisation finds its mean and covariance, and the noise."""
    monkeypatch.setattr(module, "BLOCK", block)
    rng = RNG(4)
    mean, root = rng.standard_normal(3), np.tril(rng.standard_normal((3, 3))) * 0.5
    parts = []
    for _ in range(2):
        design = rng.standard_normal((150, 3))
        design -= design.mean(0)
        weights = mean[:, None] + root @ rng.standard_normal((3, 800))
        y = design @ weights + rng.standard_normal((150, 800)) * np.sqrt(2)
        one = Recorded(design, y.astype(np.float32))
        one.cross, one.square = one.cross * one.deviation, one.square * one.deviation**2  # in the units of the weights
        one.cross = design.T @ (y - y.mean(0))
        parts.append(one)
    found = EncodingPrior.learned(parts, 3, mixed=False, iterations=30)
    np.testing.assert_allclose(found.mean, mean, atol=0.06)
    np.testing.assert_allclose(found.covariance, root @ root.T, atol=0.06)
    assert found.noise == pytest.approx(2, abs=0.1)
