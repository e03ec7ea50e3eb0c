"""Intervals that cover, tests that keep their level, against scipy where it has the same."""

import numpy as np
import pytest
from scipy import stats

from unimind.evaluation.statistics import bootstrap, holm, paired_test


def test_bootstrap_agrees_with_scipys():
    values = np.random.default_rng(0).exponential(size=60)
    low, high = bootstrap(values, 4000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert (low, high) == (pytest.approx(theirs.low, abs=0.02), pytest.approx(theirs.high, abs=0.02))


def test_bootstrap_covers_the_mean_about_95_times_in_100():
    random = np.random.default_rng(1)
    low, high = bootstrap(random.normal(size=(80, 400)), 500)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.94, abs=0.04)


def test_an_average_over_subjects_resamples_within_each():
    random = np.random.default_rng(2)
    near, far = random.normal(0, 0.1, 100), random.normal(10, 0.1, 100)
    low, high = bootstrap([near, far], 500)
    assert 4.9 < low < 5 < high < 5.1, "subjects are fixed: their difference widens nothing"


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
