import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from unimind.data.normalise import session_zscores
from unimind.errors import InputError

SESSION = np.repeat([1, 2, 5], [20, 30, 25])


@pytest.fixture
def responses():
    random = np.random.default_rng(0)
    return (random.normal(size=(75, 8)) * random.uniform(1, 9, 8) + 100 * SESSION[:, None]).astype(np.float32)


@pytest.fixture
def training():
    return np.random.default_rng(1).random(75) < 0.6


def scale(responses, training):
    passes = []

    def blocks():
        passes.append(1)
        for session in np.unique(SESSION):
            yield responses[SESSION == session]

    return np.concatenate(list(session_zscores(blocks, SESSION, training, "d s"))), len(passes)


def test_as_sklearn_fitted_on_training_trials_of_each_session(responses, training):
    scaled, passes = scale(responses, training)
    for session in np.unique(SESSION):
        inside = SESSION == session
        expected = StandardScaler().fit(responses[inside & training].astype(np.float64)).transform(responses[inside])
        np.testing.assert_allclose(scaled[inside], expected, atol=2e-5)
    assert passes == 1 and scaled.dtype == np.float32


def test_trials_outside_training_change_nothing_in_training(responses, training):
    before, _ = scale(responses, training)
    changed = responses.copy()
    changed[~training] = 1e4 * np.random.default_rng(2).normal(size=changed[~training].shape)
    after, _ = scale(changed, training)
    assert np.array_equal(before[training], after[training]) and not np.array_equal(before, after)


def test_a_session_without_training_trials_takes_the_statistics_of_all_training_trials(responses, training):
    training[SESSION == 2] = False
    scaled, passes = scale(responses, training)
    expected = StandardScaler().fit(responses[training].astype(np.float64)).transform(responses[SESSION == 2])
    np.testing.assert_allclose(scaled[SESSION == 2], expected, atol=2e-5)
    assert passes == 2


def test_a_silent_voxel_is_zero_in_that_session_only(responses, training, capsys):
    responses[SESSION == 2, 3] = 7.25
    responses[(SESSION == 2) & ~training, 3] = 9  # what it does in test trials must not bring it back
    scaled, _ = scale(responses, training)
    assert (scaled[SESSION == 2, 3] == 0).all() and (scaled[SESSION != 2, 3] != 0).all()
    assert "voxels without variance set to 0 in 1 sessions; 0 voxels have none in any session" in capsys.readouterr().err


def test_missing_values_name_session_and_voxels(responses, training):
    responses[25, [1, 4]] = np.nan
    with pytest.raises(InputError, match=r"d s: session 2 has missing values \(NaN\) in 2 of 8 voxels"):
        scale(responses, training)


def test_nothing_to_fit_on(responses):
    with pytest.raises(InputError, match="1 training trials"):
        scale(responses, np.arange(75) == 3)
