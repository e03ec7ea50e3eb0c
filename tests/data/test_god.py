import h5py
import numpy as np
import pytest
from layouts import GOD_IDS, GOD_NAMES, GOD_PIXELS, GOD_ROIS, REPEATS, TESTS, TRAINING, write_god

from unimind.data.sources import open_source
from unimind.data.sources.base import TEST
from unimind.errors import InputError
from unimind.study import Decode, parse_study

bdpy = pytest.importorskip("bdpy", reason="bdpy writes GOD's files here; it needs Python < 3.12")


def source_of(root, **section):
    given = {"source": "god", "root": str(root), "training_subjects": ["Subject1"], **section}
    method = {"enter": {"kind": "ridge"}, "scope": "subject"}
    study = parse_study({"name": "s", "datasets": {"god": given}, "methods": {"m": method}, "foundations": {"diffusion": {"kind": "study"}}})
    return open_source(study, "god")


def test_every_trial_has_its_own_response_and_picture(tmp_path):
    kinds, values, voxels, xyz = write_god(tmp_path)
    source = source_of(tmp_path)
    raw = source.subject("Subject1")
    stimuli = {stimulus.id: stimulus for stimulus in source.stimuli(None, 12)}
    assert len(stimuli) == len(GOD_NAMES)
    rows = np.flatnonzero(kinds < 3)
    chosen = list(GOD_ROIS["VC"])
    np.testing.assert_array_equal(np.concatenate(list(raw.trials.responses())), voxels[rows][:, chosen].astype(np.float32))
    for row, name, split in zip(rows, raw.trials.stimulus, raw.trials.split, strict=True):
        k = int(np.flatnonzero(GOD_IDS == values[row])[0])
        assert name == f"n{GOD_NAMES[k][0]:08d}_{GOD_NAMES[k][1]}"
        np.testing.assert_array_equal(stimuli[name].image, GOD_PIXELS[k])
        assert stimuli[name].test == (kinds[row] == 2) == (split == TEST)
    tested = [name for name, split in zip(raw.trials.stimulus, raw.trials.split, strict=True) if split == TEST]
    assert all(tested.count(name) == REPEATS for name in set(tested)) and len(set(tested)) == TESTS
    np.testing.assert_allclose(raw.xyz, xyz.T[chosen], rtol=1e-6)
    assert [raw.roi_names[label] if label >= 0 else None for label in raw.roi] == ["V1"] * 5 + ["V2"] * 4 + ["LOC"] * 3 + [None]


def test_selection_is_bdpys(tmp_path):
    write_god(tmp_path)
    raw = source_of(tmp_path, roi="ROI_LOC").subject("Subject1")
    data = bdpy.BData(str(tmp_path / "Subject1.h5"))
    selected = data.select("ROI_LOC = 1")[data.select("DataType").ravel() < 3]
    np.testing.assert_array_equal(np.concatenate(list(raw.trials.responses())), selected.astype(np.float32))


IMAGERY = Decode(dataset="god")


def test_imagery_is_no_trial_of_the_subject_but_a_set_of_its_own(tmp_path):
    kinds, values, voxels, _ = write_god(tmp_path)
    further = source_of(tmp_path).further("Subject1", IMAGERY)
    rows = np.flatnonzero(kinds == 3)
    np.testing.assert_array_equal(np.concatenate(list(further.responses())), voxels[rows][:, list(GOD_ROIS["VC"])].astype(np.float32))
    assert [float("{}.{:0>6}".format(*name[1:].split("_"))) for name in further.label] == values[rows].tolist()
    assert set(further.condition) == {"imagery"}


def test_imagery_that_names_the_category_alone(tmp_path):
    kinds, values, _, _ = write_god(tmp_path, imagery_ids=np.floor(GOD_IDS[TRAINING:]))
    further = source_of(tmp_path).further("Subject1", IMAGERY)
    assert [int(name[1:9]) for name in further.label] == values[kinds == 3].astype(int).tolist()


def test_older_files_name_things_otherwise(tmp_path):
    _, _, voxels, _ = write_god(tmp_path)
    with h5py.File(tmp_path / "Subject1.h5", "r+") as file:
        file.move("dataset", "dataSet")
        file.move("metadata", "metaData")
        keys = [b"Label" if key == b"stimulus_id" else key for key in file["metaData/key"][()].tolist()]
        del file["metaData/key"]
        file["metaData/key"] = keys
    raw = source_of(tmp_path).subject("Subject1")
    assert len(raw.trials.stimulus) == TRAINING + TESTS * REPEATS
    assert set(np.concatenate(list(raw.trials.responses())).ravel()) <= set(voxels.astype(np.float32).ravel())


def test_missing_pictures_are_reported(tmp_path, capsys):
    write_god(tmp_path)
    gone = [tmp_path / "images" / "training" / f"n{synset:08d}_{number}.JPEG" for synset, number in GOD_NAMES[:5]]
    for path in gone:
        path.unlink()
    with pytest.raises(InputError, match=r"5 of 16 pictures are missing: n\d+_\d+, .* and 2 more .*forms.gle"):
        source_of(tmp_path).stimuli(None, 12)
    reported = capsys.readouterr().err
    assert all(f"missing picture {path.stem}" in reported for path in gone)


def test_what_cannot_be_used_is_one_line(tmp_path):
    write_god(tmp_path)
    with pytest.raises(InputError, match="has no metadata ROI_V9; it has VoxelData"):
        source_of(tmp_path, roi="ROI_V9").subject("Subject1")
    with pytest.raises(InputError, match="is no subject of GOD; they are called Subject1"):
        source_of(tmp_path, new_subjects=["sub-01"]).files("sub-01")
    with pytest.raises(InputError, match="holds no pictures named like"):
        source_of(tmp_path, images=str(tmp_path / "nowhere")).stimuli(None, 12)
    content = (tmp_path / "Subject1.h5").read_bytes()
    (tmp_path / "Subject1.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable BData file"):
        source_of(tmp_path).subject("Subject1")


def test_files(tmp_path):
    write_god(tmp_path)
    source = source_of(tmp_path / "god", images=str(tmp_path / "images"))
    assert [file.address for file in source.files("Subject1")] == ["https://ndownloader.figshare.com/files/24080120"]
    pictures = [file.path for file in source.files(None)][1:]
    assert len(pictures) == len(GOD_NAMES) and all((tmp_path / "god" / path).resolve().exists() for path in pictures)
    assert all(path.startswith("../images/") for path in pictures)
