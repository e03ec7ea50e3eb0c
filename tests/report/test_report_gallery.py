"""Mosaics hold the right pixels at the right places; ranks are what sorting says."""

import numpy as np
import pytest

from unimind.report.gallery import Tile, best_median_worst, mosaic, resized, tile_side


def pictures(count, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype("uint8")


def test_pixels_of_every_cell_are_where_the_boxes_say():
    large, small = pictures(6), pictures(12, seed=1).reshape(6, 2, 16, 16, 3)
    cells = [[Tile(large[3 * row + column], small[3 * row + column] if column else ()) for column in range(3)] for row in range(2)]
    drawn = mosaic(cells, ["first", "second"], ["seen", "a-method", "another"], 32, column_colours={1: "#0072B2"}, breaks=[1])
    assert set(drawn.boxes) == {(row, column) for row in range(2) for column in range(3)}
    for (row, column), (top, left, side) in drawn.boxes.items():
        assert np.array_equal(drawn.pixels[top : top + side, left : left + side][::2, ::2], large[3 * row + column])
    for (row, column, number), (top, left, side) in drawn.small.items():
        assert np.array_equal(drawn.pixels[top : top + side, left : left + side], small[3 * row + column, number])
    areas = [*drawn.boxes.values(), *drawn.small.values()]
    covered = np.zeros(drawn.pixels.shape[:2], int)
    for top, left, side in areas:
        covered[top : top + side, left : left + side] += 1
    assert covered.max() == 1, "no picture covers another"
    lefts = [drawn.boxes[0, column][1] for column in range(3)]
    assert lefts == sorted(lefts) and drawn.boxes[1, 0][0] > drawn.boxes[0, 0][0]


def test_an_empty_cell_stays_white():
    drawn = mosaic([[Tile(None), Tile(pictures(1)[0])]], ["row"], ["", "b"], 32)
    assert set(drawn.boxes) == {(0, 1)}
    left = drawn.boxes[0, 1][1]
    assert (drawn.pixels[drawn.boxes[0, 1][0] :, left - 40 : left - 8] == 255).all()


@pytest.mark.parametrize(("side", "expected"), [(16, 128), (64, 128), (100, 100), (128, 128), (256, 128), (425, 128)])
def test_small_pictures_grow_by_whole_factors_and_large_ones_shrink(side, expected):
    assert tile_side(side) == expected
    assert resized(pictures(1, side)[0], expected).shape == (expected, expected, 3)


def test_ranks_are_those_of_sorting():
    scores = np.random.default_rng(3).permutation(30) / 30
    found = best_median_worst({"similarity": scores.tolist()}, 30, 2)
    order = sorted(range(30), key=lambda place: -scores[place])
    assert found == {"best": order[:2], "median": order[14:16], "worst": order[28:]}


def test_lower_is_better_where_it_is_and_ties_go_to_the_next_score():
    assert best_median_worst({"mse": [0.3, 0.1, 0.2]}, 3, 1) == {"best": [1], "median": [2], "worst": [0]}
    assert best_median_worst({"mse": [0.3, 0.1, 0.2], "similarity": [1.0, 1.0, 0.5]}, 3, 1) == {"best": [1], "median": [0], "worst": [2]}


def test_two_way_scores_which_tie_do_not_rank():
    similarity = [0.2, 0.9, 0.5, 0.7, 0.1, 0.3]
    found = best_median_worst({"clip": [1.0] * 5 + [0.9], "mse": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "similarity": similarity}, 6, 1)
    assert found == {"best": [1], "median": [2], "worst": [4]}


def test_without_usable_scores_there_is_no_rank():
    assert best_median_worst({}, 5, 1) is None
    assert best_median_worst({"similarity": None, "mse": [0.1, 0.2]}, 5, 1) is None
    assert best_median_worst({"similarity": [0.1, None, 0.3, 0.4, 0.5]}, 5, 1) is None
