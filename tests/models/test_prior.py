"""The encoding prior against formulas written out densely, and against ridge regression where it should help."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.linear_model import Ridge

from unimind.errors import InputError
from unimind.models.prior import EncodingPrior, PictureFeatures, _picture_share, _solve, picture_moments
from unimind.training.prior import SHARES, Taught, Trials, _ridge, teach

RNG = np.random.default_rng


def world(seed=0, kinds=4, dims=12, spread=0.15, noise=1.0):
    """A maker of subjects whose voxels are of few kinds, as tuned units are."""
    rng = RNG(seed)
    centres = rng.standard_normal((dims, kinds))
    mixing = rng.standard_normal((dims, 20))

    def subject(seed, n, voxels):
        own = RNG((seed, 1))
        features = own.standard_normal((n, dims))
        weights = centres[:, own.integers(0, kinds, voxels)] + spread * own.standard_normal((dims, voxels))
        responses = features @ weights + noise * 3 * own.standard_normal((n, voxels))
        embedding = features @ mixing + 0.1 * own.standard_normal((n, 20))
        return Trials(responses.astype(np.float32), embedding.astype(np.float32), features[:, :6].reshape(n, 6, 1, 1).astype(np.float32))

    return subject


@pytest.fixture(scope="module")
def teachers():
    make = world()
    return [make(seed, 150, 40) for seed in (10, 11, 12)]


def prior_of(teachers, mixed):
    parts = [np.concatenate([getattr(one, name) for one in teachers]) for name in ("embedding", "latent")]
    features = PictureFeatures(parts, 8)
    return EncodingPrior(features, [((one.embedding, one.latent), one.responses) for one in teachers], mixed), features, parts


def test_features_are_white_over_the_training_pictures(teachers):
    _, features, parts = prior_of(teachers, False)
    found = features(parts)
    assert np.allclose(np.cov(found.T), np.eye(found.shape[1]), atol=1e-8) and np.allclose(found.mean(0), 0, atol=1e-8)


def test_posterior_is_bayes_rule(teachers):
    prior, features, _ = prior_of(teachers, False)
    own = world()(99, 30, 7)
    design = features((own.embedding, own.latent))
    design -= design.mean(0)
    responses = (own.responses - own.responses.mean(0)) / own.responses.std(0)
    noise = RNG(0).uniform(0.4, 1.2, 7)
    weight, uncertainty, _ = prior._expect(design, responses, noise)
    inverse = np.linalg.inv(prior.covariance)
    total = 0
    for voxel in range(7):
        posterior = np.linalg.inv(inverse + design.T @ design / noise[voxel])
        expected = posterior @ (inverse @ prior.mean + design.T @ responses[:, voxel] / noise[voxel])
        assert np.allclose(weight[:, voxel], expected, atol=1e-6)
        total = total + posterior
    assert np.allclose(uncertainty, total, atol=1e-6)


def test_mixture_is_bayes_rule_over_its_components(teachers):
    prior, features, _ = prior_of(teachers, True)
    prior.components = prior.components[:, :5]
    own = world()(98, 9, 3)
    design = features((own.embedding, own.latent))
    design -= design.mean(0)
    responses = (own.responses - own.responses.mean(0)) / own.responses.std(0)
    noise = np.array([0.5, 0.8, 1.1])
    found = prior._mixture(design, responses, noise)
    kernel = design @ prior.covariance @ design.T
    for voxel in range(3):
        shares, means = [], []
        for centre, width, weight in [*((c, prior.WIDTH, 1 / 5) for c in prior.components.T), (prior.mean, 1.0, 1.0)]:
            covariance = width * kernel + noise[voxel] * np.eye(9)
            shares.append(np.log(weight) + multivariate_normal(design @ centre, covariance).logpdf(responses[:, voxel]))
            means.append(centre + width * prior.covariance @ design.T @ np.linalg.solve(covariance, responses[:, voxel] - design @ centre))
        share = np.exp(np.array(shares) - max(shares))
        assert np.allclose(found[:, voxel], share @ np.array(means) / share.sum(), atol=1e-6)


def test_woodbury_equals_the_direct_solution():
    rng = RNG(1)
    for rank in (5, 60):
        diagonal, factor, right = rng.uniform(0.5, 2, 40), rng.standard_normal((rank, 40)), rng.standard_normal((40, 3))
        assert np.allclose(_solve(diagonal, factor, right), np.linalg.solve(np.diag(diagonal) + factor.T @ factor, right))


def test_decoder_is_the_conditional_mean_of_the_joint_gaussian(teachers):
    prior, features, parts = prior_of(teachers, False)
    prior.CORRELATION, prior.PICTURES_MEAN = 0.0, 0.0
    own = world()(97, 400, 6)
    moments = picture_moments(features(parts), parts[0])
    (decoder,) = prior.decoders((own.embedding, own.latent), own.responses, [moments], [own.embedding])
    design = features((own.embedding, own.latent))
    design -= design.mean(0)
    mean, deviation = own.responses.mean(0), own.responses.std(0)
    voxels = prior._posterior(design, (own.responses - mean) / deviation)
    share = _picture_share(design)
    pictures = share * np.eye(design.shape[1]) + (1 - share) * design.T @ design / 400
    both = share * moments[0] + (1 - share) * design.T @ (own.embedding - own.embedding.mean(0)) / 400
    gain = both.T @ voxels.weight @ np.linalg.inv(voxels.weight.T @ pictures @ voxels.weight + np.diag(voxels.noise))
    expected = own.embedding.mean(0) + ((own.responses - mean) / deviation) @ gain.T
    assert np.allclose(own.responses @ decoder.weight + decoder.bias, expected, atol=1e-5)


def test_few_trials_go_further_with_the_prior_and_further_still_with_the_mixture(teachers):
    make = world()
    errors = {"ridge": [], "gaussian": [], "mixture": []}
    taught = {name: Taught(teachers, mixed, 0) for name, mixed in (("gaussian", False), ("mixture", True))}
    for seed in range(6):
        both = make(200 + seed, 225, 30)
        own, test = (Trials(*(array[rows] for array in both)) for rows in (slice(0, 25), slice(25, None)))
        best = min(((Ridge(alpha).fit(own.responses, own.embedding).predict(test.responses) - test.embedding) ** 2).mean() for alpha in 10.0 ** np.arange(0, 6))
        errors["ridge"].append(best)
        for name, prior in taught.items():
            decoder = prior.decoders(own)[0]
            errors[name].append(((test.responses @ decoder.weight + decoder.bias - test.embedding) ** 2).mean())
    means = {name: np.mean(values) for name, values in errors.items()}
    assert means["mixture"] < means["gaussian"] < means["ridge"]


def test_the_decoder_lies_between_the_prior_s_and_ridge_regression(teachers):
    own = world()(55, 60, 20)
    taught = Taught(teachers, True, 0)
    first, second = taught.decoders(own)[0], _ridge(own, (10.0, 1000.0), 5, 0)
    mixed = taught.embedding_decoder(own, (10.0, 1000.0), 5, 0)
    shares = [share for share in SHARES if np.allclose(mixed.weight, (1 - share) * first.weight + share * second.weight)]
    assert len(shares) == 1 and np.allclose(mixed.bias, (1 - shares[0]) * first.bias + shares[0] * second.bias)


def test_nobody_to_learn_from_is_said():
    with pytest.raises(InputError, match="training subjects"):
        teach([], [], True, 0)
