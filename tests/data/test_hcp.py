import nibabel
import numpy as np
import pytest
from data_studies import SMALL, manifest, study_with
from layouts import write_cifti
from nibabel.cifti2 import BrainModelAxis, SeriesAxis

from unimind.data.prepare_unpaired import prepare_unpaired, windows
from unimind.data.prepared import read_unpaired
from unimind.data.sources import hcp
from unimind.data.sources.hcp import HcpSource, area_grayordinates, glasser, read_run
from unimind.data.sources.simulated import simulate_unpaired
from unimind.errors import InputError

RUNS = ["rfMRI_REST1_LR", "rfMRI_REST1_RL"]


def study_of(root, source="simulated", **changes):
    of_source = {"simulated": {"runs": RUNS, "volumes": 25}, "hcp": {"runs": RUNS}, "arrays": {}}[source]
    unpaired = {"source": source, "subjects": ["100307"], "root": str(root), "window": 5, **of_source, **changes}
    return study_with({"source": "simulated", "training_subjects": ["subj01"], **SMALL}, unpaired=unpaired)


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    root = tmp_path_factory.mktemp("hcp")
    return root, simulate_unpaired(study_of(root), "100307")


def visual_columns():
    labels, _ = glasser()
    return [np.flatnonzero((labels == area) | (labels == area + 180)) for area in (1, 4, 5, 6)]  # V1 to V4 in the MMP1 map, left first


def test_areas_of_the_glasser_map():
    grayordinates, roi = area_grayordinates(["V1", "V2", "V3", "V4"])
    assert np.bincount(roi).tolist() == [1618, 1220, 684, 661]
    assert np.array_equal(grayordinates, np.concatenate(visual_columns()))
    assert (grayordinates < hcp.LEFT + hcp.RIGHT).all() and len(glasser()[0]) == hcp.GRAYORDINATES
    with pytest.raises(InputError, match="unpaired.areas: V9 not in the HCP MMP1 map"):
        area_grayordinates(["V1", "V9"])


def test_simulated_rest_is_in_hcps_form(rest):
    root, files = rest
    assert [file.relative_to(root).as_posix() for file in files] == [
        f"HCP_1200/100307/MNINonLinear/Results/{run}/{run}_Atlas_MSMAll_hp2000_clean.dtseries.nii" for run in RUNS
    ]  # fmt: skip
    image = nibabel.load(files[0])
    series, brain = (image.header.get_axis(k) for k in (0, 1))
    assert isinstance(image, nibabel.Cifti2Image) and image.shape == (25, 91282) and image.nifti_header["intent_code"] == 3002
    assert isinstance(series, SeriesAxis) and series.step == 0.72 and isinstance(brain, BrainModelAxis)
    sizes = {name: len(part) for name, _, part in brain.iter_structures()}
    assert sizes["CIFTI_STRUCTURE_CORTEX_LEFT"] == 29696 and sizes["CIFTI_STRUCTURE_CORTEX_RIGHT"] == 29716 and len(sizes) == 21
    assert brain.nvertices == {"CIFTI_STRUCTURE_CORTEX_LEFT": 32492, "CIFTI_STRUCTURE_CORTEX_RIGHT": 32492}
    values = image.get_fdata()
    visual = np.concatenate(visual_columns())
    assert values[:, visual].std() > 1.5 * np.delete(values, visual, axis=1).std()
    (again,) = simulate_unpaired(study_of(root / "again", runs=RUNS[:1]), "100307")
    assert again.read_bytes() == files[0].read_bytes()


def test_rest_is_smooth_over_the_surface(rest):
    """Two neighbours on the surface go together more than two grayordinates far apart do."""
    from scipy.spatial import cKDTree

    from unimind.data.sources.simulated import _sphere

    (v1, *_), places = visual_columns(), _sphere()
    volumes = read_run(rest[1][0], v1)
    correlation = np.corrcoef(volumes.T)
    _, near = cKDTree(places[v1]).query(places[v1], k=2)
    assert correlation[np.arange(len(v1)), near[:, 1]].mean() > abs(correlation).mean() + 0.2


def test_samples_are_zscored_means_of_windows(rest, tmp_path):
    root, files = rest
    prepare_unpaired(study_of(root), "100307", manifest(root, files, tmp_path / "m.json"), tmp_path / "u.h5")
    expected = []
    for file in files:
        volumes = nibabel.load(file).get_fdata()[:, np.concatenate(visual_columns())]
        means = np.stack([volumes[k : k + 5].mean(0) for k in range(0, 25, 5)])
        expected.append((means - means.mean(0)) / means.std(0))
    with read_unpaired(tmp_path / "u.h5") as unpaired:
        np.testing.assert_allclose(unpaired.read(slice(None)), np.concatenate(expected), atol=1e-3)
        assert unpaired.roi_names == ["V1", "V2", "V3", "V4"] and np.bincount(unpaired.roi).tolist() == [1618, 1220, 684, 661]
        assert unpaired.attributes["order"] == "area, then surface order" and unpaired.protocol["window"] == 5


def test_runs_of_an_independent_writer(tmp_path):
    """Every prepared value is that of the grayordinate and the windows written; the axes are nibabel's, the cortices of 32k_fs_LR."""
    root, random = tmp_path / "hcp", np.random.default_rng(6)
    files, expected = [], []
    for run in RUNS:
        volumes = random.normal(10_000, 30, (25, 91282)).astype(np.float32)
        path = root / f"HCP_1200/100307/MNINonLinear/Results/{run}/{run}_Atlas_MSMAll_hp2000_clean.dtseries.nii"
        write_cifti(path, volumes)
        files.append(path)
        means = volumes[:, np.concatenate(visual_columns())].astype(float).reshape(5, 5, -1).mean(1)
        expected.append((means - means.mean(0)) / means.std(0))
    study = study_of(root, "hcp")
    assert [root / file.path for file in HcpSource(study, root).files("100307")] == files
    prepare_unpaired(study, "100307", manifest(root, files, tmp_path / "m.json"), tmp_path / "u.h5")
    with read_unpaired(tmp_path / "u.h5") as unpaired:
        np.testing.assert_allclose(unpaired.read(slice(None)), np.concatenate(expected), atol=1e-4)
        assert np.repeat(unpaired.roi_names, np.bincount(unpaired.roi)).tolist() == ["V1"] * 1618 + ["V2"] * 1220 + ["V3"] * 684 + ["V4"] * 661


def test_cortices_the_other_way_round_are_refused(tmp_path):
    write_cifti(tmp_path / "run.dtseries.nii", np.zeros((2, 91282), np.float32), left=29716, right=29696)
    with pytest.raises(InputError, match=r"\[29716, 29696\] of them cortical; the Glasser map has 91282, \[29696, 29716\]"):
        read_run(tmp_path / "run.dtseries.nii", np.arange(3))


def test_damaged_runs_and_what_was_kept_of_them_are_refused_in_one_line(tmp_path):
    study = study_of(tmp_path, "hcp", runs=RUNS[:1], drop_original=True)
    run = tmp_path / HcpSource(study, tmp_path).files("100307")[0].path
    write_cifti(run, np.ones((4, 91282), np.float32))
    whole = run.read_bytes()

    def refused(path, content):
        path.write_bytes(content)
        with pytest.raises(InputError, match="delete it and fetch the unpaired subject again") as caught:
            HcpSource(study, tmp_path).runs("100307").read(RUNS[0])
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    for damaged in (
        whole[:-1000],
        whole[:500],
        b"",
        bytes([whole[0] ^ 0xFF]) + whole[1:],
        whole.replace(b"<CIFTI", b"<CIFTA", 1),
        whole.replace(b"<Matrix>", b"<Matri>>", 1),
    ):
        refused(run, damaged)
    run.write_bytes(whole)
    assert (HcpSource(study, tmp_path).runs("100307").read(RUNS[0]) == 1).all() and not run.exists()
    (kept,) = run.parent.glob("*.npz")
    whole = kept.read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"", whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]):
        refused(kept, damaged)


def test_windows():
    volumes = np.arange(14, dtype=np.float32).reshape(7, 2) ** 2
    volumes[:, 1] = 3
    found = windows(volumes, 3, "x")
    means = np.array([volumes[:3, 0].mean(), volumes[3:6, 0].mean()])  # the seventh volume fills no window
    np.testing.assert_allclose(found[:, 0], (means - means.mean()) / means.std(), rtol=1e-6)
    assert (found[:, 1] == 0).all()
    with pytest.raises(InputError, match="7 volumes make 1 windows of 4"):
        windows(volumes, 4, "x")


def test_slabs_make_no_difference(rest, monkeypatch):
    columns = visual_columns()[0]
    whole = read_run(rest[1][0], columns)
    monkeypatch.setattr(hcp, "_SLAB", 4 * 91282 * 4)
    assert np.array_equal(whole, read_run(rest[1][0], columns))


def test_originals_are_dropped_once_their_visual_part_is_kept(tmp_path):
    root = tmp_path / "hcp"
    study = study_of(root, drop_original=True, runs=RUNS[:1], volumes=10)
    files = simulate_unpaired(study, "100307")
    listed = manifest(root, files, tmp_path / "m.json")
    prepare_unpaired(study, "100307", listed, tmp_path / "first.h5")
    assert not any(file.exists() for file in files) and sum(f.stat().st_size for f in root.rglob("*.npz")) < 2**20
    kept = HcpSource(study, root).files("100307")
    assert all((root / file.path).exists() and file.address is None for file in kept)
    prepare_unpaired(study, "100307", listed, tmp_path / "second.h5")
    with read_unpaired(tmp_path / "first.h5") as first, read_unpaired(tmp_path / "second.h5") as second:
        assert np.array_equal(first.read(slice(None)), second.read(slice(None)))
    with pytest.raises(InputError, match="reduced to other areas"):
        prepare_unpaired(study_of(root, drop_original=True, runs=RUNS[:1], areas=["MT"]), "100307", listed, tmp_path / "third.h5")


def test_mind_vis_arrays(tmp_path):
    root = tmp_path / "npz"
    random = np.random.default_rng(0)
    arrays = {area: random.normal(size=(20, n)) for area, n in (("V1", 4), ("V2", 3), ("V3", 2), ("V4", 5))}
    (root / "100307").mkdir(parents=True)
    np.savez(root / "100307/HCP_visual_voxel.npz", **arrays)
    study = study_of(root, "arrays", areas=["V1", "V3"])
    files = [root / file.path for file in HcpSource(study, root).files("100307")]
    prepare_unpaired(study, "100307", manifest(root, files, tmp_path / "m.json"), tmp_path / "u.h5")
    chosen = np.concatenate([arrays["V1"], arrays["V3"]], axis=1).reshape(4, 5, 6).mean(1)
    with read_unpaired(tmp_path / "u.h5") as unpaired:
        np.testing.assert_allclose(unpaired.read(slice(None)), (chosen - chosen.mean(0)) / chosen.std(0), rtol=1e-4, atol=1e-5)
        assert unpaired.roi.tolist() == [0] * 4 + [1] * 2
    with pytest.raises(InputError, match="has no V9; it holds V1, V2, V3, V4"):
        HcpSource(study_of(root, "arrays", areas=["V9"]), root).runs("100307")


def test_addresses_of_hcp(tmp_path):
    files = HcpSource(study_of(tmp_path, "hcp"), tmp_path).files("100307")
    assert files[0].address == f"s3://hcp-openaccess/{files[0].path}" and len(files) == 2


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "run.dtseries.nii"
    axis = BrainModelAxis.from_surface(np.arange(100), 32492, "CortexLeft")
    nibabel.Cifti2Image(np.zeros((3, 100), np.float32), (SeriesAxis(0, 0.72, 3), axis)).to_filename(path)
    with pytest.raises(InputError, match=r"100 grayordinates, \[100, 0\] of them cortical"):
        read_run(path, np.arange(3))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a readable CIFTI file"):
        read_run(path, np.arange(3))
    with pytest.raises(InputError, match="no such file"):
        HcpSource(study_of(tmp_path, "hcp"), tmp_path).runs("100307").read(RUNS[0])
