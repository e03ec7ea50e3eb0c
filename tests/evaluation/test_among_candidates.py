"""Candidates ranked by agreement, how sure a prediction is, and identification against permuted labels, each against a plain computation."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unimind.evaluation.imagined import Standing, _standings, identification
from unimind.reconstruction.agreement import directions, mutual, ranked

RANDOM = np.random.default_rng(0)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("size", [3, 4, 100])
def test_candidates_are_ranked_as_by_sorting_them_all(size):
    mean, own, pool = RANDOM.normal(size=5), RANDOM.normal(size=(4, 5)), RANDOM.normal(size=(11, 5))
    by_hand = np.array([[cosine(a - mean, b - mean) for b in pool] for a in own])
    unit = directions(torch.from_numpy(pool), torch.from_numpy(mean))
    places, values = ranked(directions(torch.from_numpy(own), torch.from_numpy(mean)), unit.split(size), 4)
    np.testing.assert_array_equal(places, np.argsort(-by_hand, 1)[:, :4])
    np.testing.assert_allclose(values, -np.sort(-by_hand, 1)[:, :4], atol=1e-12)
    assert ranked(unit, unit.split(size), 99)[0].shape == (11, 11)


def test_samples_agree_by_the_mean_of_all_their_pairs():
    samples, mean = RANDOM.normal(size=(3, 4, 6)), RANDOM.normal(size=6)
    pairs = [np.mean([cosine(a - mean, b - mean) for a, b in itertools.combinations(own, 2)]) for own in samples]
    np.testing.assert_allclose(mutual(torch.from_numpy(samples), torch.from_numpy(mean)).numpy(), pairs, atol=1e-12)
    assert mutual(torch.from_numpy(samples[:, :1]), torch.from_numpy(mean)).isnan().all()


@pytest.mark.parametrize("size", [2, 50])
def test_a_picture_stands_among_all_candidates_and_equal_ones_count_half(size):
    pool = RANDOM.normal(size=(9, 4)).astype(np.float32)
    pool[7] = pool[2]
    own = RANDOM.normal(size=(5, 4)).astype(np.float32)
    ranking = SimpleNamespace(rows=np.arange(9), directions=lambda mean: directions(torch.from_numpy(pool), mean).split(size))
    pictures, mean = np.array([2, 4, 8]), torch.zeros(4)
    found = _standings({"m": own}, pictures, ranking, mean)["m"]
    for row, values in enumerate(own):
        agreement = [cosine(values, one) for one in pool]
        for column, picture in enumerate(pictures):
            twin = {2: 7}.get(picture)
            others = [agreement[k] for k in range(9) if k not in (picture, twin)]
            below = sum(value < agreement[picture] for value in others) + (0.5 if twin else 0)
            assert found.identified[row, column] == pytest.approx(below / 8)
            assert found.first[row, column] == (below == 8)


def test_labels_change_places_as_pictures_do():
    """Two trials a picture; every one of the 3! ways to give the labels is as likely as another."""
    identified, truth, pictures = RANDOM.random((6, 3)), np.array([5, 5, 7, 7, 9, 9]), np.array([5, 7, 9])
    identified[[0, 1], 0] = identified[[2, 3], 1] = identified[[4, 5], 2] = 1.0
    found = identification(Standing(identified, identified == 1), pictures, truth, 50, 0)["candidate_identification"]
    means = [np.mean([identified[trial, order[trial // 2]] for trial in range(6)]) for order in itertools.permutations(range(3))]
    assert found["value"] == 1 == max(means) and found["n"] == 3
    assert found["p"] == pytest.approx(1 / 6, abs=0.02)
    assert found["null_low"] == pytest.approx(min(means)) and found["null_high"] == 1
