import h5py
import nibabel
import numpy as np
import pytest
from nilearn.masking import apply_mask

from unimind.data import roi
from unimind.data.roi import label_mask, voxels_of_hdf5, voxels_of_nifti

SHAPE = (7, 9, 5)


@pytest.fixture
def volumes():
    return np.random.default_rng(0).integers(-30000, 30000, (*SHAPE, 11)).astype(np.int16)


@pytest.fixture
def mask():
    return np.random.default_rng(1).random(SHAPE) < 0.2


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("volumes_at_once", [1, 4, 100])
def test_nifti_as_nilearn_masks_it(tmp_path, monkeypatch, volumes, mask, ending, volumes_at_once):
    monkeypatch.setattr(roi, "_SLAB", volumes_at_once * mask.size * 2)
    image = nibabel.Nifti1Image(volumes, np.diag([1.8, 1.8, 1.8, 1]))
    image.to_filename(tmp_path / f"betas.{ending}")
    found = voxels_of_nifti(tmp_path / f"betas.{ending}", mask)
    assert np.array_equal(found, apply_mask(image, nibabel.Nifti1Image(mask.astype(np.int8), image.affine))) and found.dtype == np.int16


def test_big_endian_nifti(tmp_path, volumes, mask):
    nibabel.Nifti1Image(volumes, np.eye(4), header=nibabel.Nifti1Header(endianness=">")).to_filename(tmp_path / "betas.nii")
    assert np.array_equal(voxels_of_nifti(tmp_path / "betas.nii", mask), volumes[mask].T)


@pytest.mark.parametrize("chunks", [(11, 1, 1, 1), (1, 5, 9, 7), (4, 2, 2, 2), None])
def test_hdf5_has_its_axes_reversed(tmp_path, volumes, mask, chunks):
    with h5py.File(tmp_path / "betas.hdf5", "w") as file:
        file.create_dataset("betas", data=volumes.T, chunks=chunks)
    found = voxels_of_hdf5(tmp_path / "betas.hdf5", "betas", mask)
    assert np.array_equal(found, volumes[mask].T) and found.dtype == np.int16


def test_labels():
    volume = np.array([-1, 0, 1, 2, 7])
    assert label_mask(volume, None).tolist() == [False, False, True, True, True]
    assert label_mask(volume, [7, 0]).tolist() == [False, True, False, False, True]
