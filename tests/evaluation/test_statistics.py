"""Intervals that cover, tests that keep their level, against scipy where it has the same."""

import numpy as np
import pytest
from scipy import stats

from unimind.evaluation.statistics import bootstrap, drawn_test, holm, paired_test, resampled_means


def test_bootstrap_agrees_with_scipys():
    values = np.random.default_rng(0).exponential(size=60)
    low, high = bootstrap(values, 4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert (low, high) == (pytest.approx(theirs.low, abs=0.02), pytest.approx(theirs.high, abs=0.02))


def test_bootstrap_covers_the_mean_about_95_times_in_100():
    random = np.random.default_rng(1)
    low, high = bootstrap(random.normal(size=(80, 400)), 500)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.94, abs=0.04)


def test_subjects_are_fixed():
    random = np.random.default_rng(2)
    near, far = random.normal(0, 0.1, 100), random.normal(10, 0.1, 100)
    for images in (None, [list(range(100))] * 2):
        low, high = bootstrap([near, far], 500, images=images)
        assert 4.9 < low < 5 < high < 5.1, "their difference widens nothing"


SEEN = {
    "all saw the same images": [list(range(40))] * 4,
    "in orders of their own": [np.random.default_rng(s).permutation(40).tolist() for s in range(4)],
    "some saw fewer": [list(range(n)) for n in (40, 40, 36, 30)],
    "every one saw some": [np.sort(np.random.default_rng(s).choice(60, 40, replace=False)).tolist() for s in range(4)],
    "images of their own": [list(range(40 * s, 40 * s + 40)) for s in range(4)],
    "two and two": [list(range(40))] * 2 + [list(range(40, 80))] * 2,
}


def simulated(images, trials=1000, seed=0):
    """Values of 4 subjects whose mean is 0, most of their variance the images': a list of arrays (n, trials)."""
    random = np.random.default_rng(seed)
    of_image = random.normal(size=(200, trials))
    return [of_image[own] + random.normal(0, 0.5, (len(own), trials)) for own in images]


@pytest.mark.parametrize("images", SEEN.values(), ids=SEEN.keys())
def test_intervals_of_averages_cover_whatever_images_the_subjects_share(images):
    low, high = bootstrap(simulated(images), 1000, images=images)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.94, abs=0.025)


@pytest.mark.parametrize("images", SEEN.values(), ids=SEEN.keys())
def test_paired_tests_of_averages_keep_their_level_whatever_images_the_subjects_share(images):
    p = paired_test(simulated(images, seed=1), 1999, images=images)
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.02)


def test_shared_images_taken_for_independent_ones_would_mislead():
    """The simulation can tell: without knowing what was shared, intervals are too short and the test rejects too often."""
    images = SEEN["all saw the same images"]
    low, high = bootstrap(simulated(images), 500)
    assert np.mean((low < 0) & (high > 0)) < 0.8
    assert np.mean(paired_test(simulated(images, seed=1), 999) < 0.05) > 0.2


def test_an_average_over_the_same_images_is_the_bootstrap_of_the_averaged_values():
    values = np.random.default_rng(5).normal(size=(3, 50))
    images = [list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWX")] * 3
    np.testing.assert_allclose(bootstrap(list(values), 500, images=images), bootstrap(values.mean(0), 500))
    assert paired_test([v[:, None] for v in values], images=images) == pytest.approx(paired_test([values.mean(0)[:, None]]), abs=1e-3)


def test_paired_test_agrees_with_scipys_permutation_test():
    random = np.random.default_rng(3)
    difference = random.normal(0.3, 1, 40)
    theirs = stats.permutation_test(
        (difference, np.zeros(40)), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", n_resamples=4999, rng=0
    )
    assert paired_test([difference[:, None]])[0] == pytest.approx(theirs.pvalue, abs=0.02)


def test_paired_test_keeps_its_level_and_has_power():
    random = np.random.default_rng(4)
    null = paired_test([random.normal(size=(30, 300)), random.normal(size=(20, 300))], 999)
    assert np.mean(null < 0.05) == pytest.approx(0.05, abs=0.035)
    assert paired_test([random.normal(1, 1, (30, 1))])[0] < 0.001
    assert paired_test([np.zeros((30, 1))])[0] == 1


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, np.nan, 0.9]), [1, np.nan, 1])
    assert holm([]).shape == (0,)


@pytest.mark.parametrize(("count", "cover"), [(3, 0.91), (8, 0.935)])
def test_intervals_over_budgets_count_the_drawings_as_well_as_the_images(count, cover):
    """Half of the mean's variance is the drawings', half the images'; the true mean is 0."""
    random = np.random.default_rng(6)
    values = random.normal(0, np.sqrt(count / 40), (count, 1, 1000)) + random.normal(size=(40, 1000)) + random.normal(0, 0.3, (count, 40, 1000))
    low, high = bootstrap(values, 1000, drawings=True)
    alone = bootstrap(values.mean(0), 1000)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(cover, abs=0.02)
    assert np.mean((alone[0] < 0) & (alone[1] > 0)) < 0.86, "images alone give intervals that are too short"
    assert np.median((high - low) / (alone[1] - alone[0])) == pytest.approx(np.sqrt(2), abs=0.15)


@pytest.mark.parametrize("count", [2, 3])
def test_a_test_over_budgets_counts_the_drawings_too(count):
    """As above, and nothing differs: the test over images alone rejects three times as often as it says."""
    random = np.random.default_rng(10)
    values = random.normal(0, np.sqrt(count / 40), (count, 1, 1000)) + random.normal(size=(40, 1000)) + random.normal(0, 0.3, (count, 40, 1000))
    resampled = resampled_means([values], [list(range(40))], 1000, 0, True)
    assert np.mean(drawn_test([values], resampled) < 0.05) < 0.065
    assert np.mean(paired_test([values.mean(0)], 999) < 0.05) > 0.13
    assert np.mean(drawn_test([values + 2], resampled + 2) < 0.05) > 0.9


def test_one_drawing_gives_the_interval_over_images():
    values = np.random.default_rng(7).normal(size=(1, 30))
    np.testing.assert_allclose(bootstrap(values, 500, drawings=True), bootstrap(values[0], 500))


def test_images_without_a_value_count_for_nothing():
    random = np.random.default_rng(8)
    values = random.normal(0.5, 1, (20, 2))
    holes = np.vstack([values, [[np.nan, 9.0], [np.nan, -9.0]]])
    p = paired_test([holes], 4999)
    assert p[0] == pytest.approx(paired_test([values[:, :1]], 4999)[0], abs=0.01)
    low, high = bootstrap(holes, 4000)
    assert (low[0], high[0]) == pytest.approx(tuple(end[0] for end in bootstrap(values, 4000)), abs=0.03)
    assert not np.isnan(low).any()


def test_the_smallest_p_of_a_large_family_can_still_be_sure():
    """As many sign flips as `comparisons` asks for: a difference beyond doubt among 400 tests stays one after Holm."""
    from unimind.evaluation.comparisons import FLIPS, FLIPS_PER_TEST, LEVEL

    random = np.random.default_rng(9)
    differences = random.normal(size=(40, 400))
    differences[:, 0] += 3
    p = holm(paired_test([differences], max(FLIPS, FLIPS_PER_TEST * 400)))
    assert p[0] < LEVEL and np.mean(p[1:] < LEVEL) == 0
