import numpy as np
import pytest

from unimind.data.order import anatomical_order, hilbert_index


@pytest.mark.parametrize(("dimensions", "bits"), [(2, 1), (2, 4), (3, 1), (3, 3)])
def test_a_hilbert_curve_visits_every_cell_by_steps_of_one(dimensions, bits):
    cells = np.stack(np.meshgrid(*[np.arange(2**bits)] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)
    index = hilbert_index(cells, bits)
    assert np.array_equal(np.sort(index), np.arange(len(cells)))
    path = cells[np.argsort(index)]
    assert (abs(np.diff(path, axis=0)).sum(axis=1) == 1).all() and (path[0] == 0).all()


def test_a_quarter_of_the_curve_fills_a_quarter_of_the_square():
    cells = np.stack(np.meshgrid(*[np.arange(8)] * 2, indexing="ij"), -1).reshape(-1, 2)
    first = cells[np.argsort(hilbert_index(cells, 3))][:16]
    assert np.ptp(first, axis=0).tolist() == [3, 3]


def test_out_of_the_grid():
    with pytest.raises(ValueError, match="below 2"):
        hilbert_index([[8, 0]], 3)
    with pytest.raises(ValueError, match="do not fit"):
        hilbert_index([[0, 0, 0]], 22)


def test_voxels_go_by_roi_then_stay_near_each_other():
    random = np.random.default_rng(0)
    grid = np.argwhere(np.linalg.norm(np.indices((15, 15, 15)) - 7, axis=0) < 7.0)
    grid = grid[random.permutation(len(grid))]
    roi = np.where(grid[:, 0] < 6, 1, np.where(grid[:, 1] < 7, 0, -1))
    affine = np.array([[1.7, 0.3, 0], [-0.3, 1.7, 0.2], [0, -0.2, 1.8]])  # oblique, as real scans are
    order, name = anatomical_order(roi, grid @ affine.T)
    assert np.array_equal(np.sort(order), np.arange(len(grid))) and name == "ROI then Hilbert curve over xyz"
    sorted_roi = roi[order]
    assert sorted_roi.tolist() == sorted(sorted_roi.tolist(), key=lambda r: (r < 0, r))

    def step(places):
        return np.linalg.norm(np.diff(places, axis=0), axis=1).mean()

    flattened = np.lexsort(grid.T[::-1])
    inside = [order[sorted_roi == label] for label in (0, 1, -1)]
    assert all(step(grid[part]) < 1.6 for part in inside)
    assert step(grid[np.concatenate(inside)]) < step(grid[flattened])
    # The voxels of a patch of 16 are a small lump: far smaller than 16 voxels of a flattened volume.
    extents = [np.linalg.norm(np.ptp(grid[which][k : k + 16], axis=0)) for which in (inside[1], flattened[roi[flattened] == 1]) for k in range(0, 400, 16)]
    assert np.mean(extents[:25]) < 0.75 * np.mean(extents[25:])


def test_without_coordinates_the_order_within_a_roi_is_kept():
    order, name = anatomical_order([1, 0, -1, 0], None)
    assert order.tolist() == [1, 3, 0, 2] and name == "ROI"
