"""The table of what each subject brings, and what stops it."""

import h5py
import numpy as np
import pandas as pd
import pytest

from unimind.data.overview import overview
from unimind.data.prepared import write_prepared, write_unpaired
from unimind.errors import InputError
from unimind.study import parse_study

STIMULUS = {"subj01": [0, 1, 2, 2, 3, 0], "subj02": [0, 0, 4, 5]}
SPLIT = {"subj01": [0, 0, 2, 2, 1, 0], "subj02": [0, 0, 0, 2]}
SESSION = {"subj01": [1, 1, 1, 2, 2, 2], "subj02": [1, 1, 2, 3]}
VOXELS = {"subj01": 3, "subj02": 5}


@pytest.fixture
def study():
    return parse_study(
        {
            "name": "s",
            "datasets": {"d": {"source": "simulated", "training_subjects": ["subj01"], "new_subjects": ["subj02"]}},
            "methods": {"m": {"enter": {"kind": "ridge"}, "scope": "subject"}},
            "foundations": {"diffusion": {"kind": "study"}},
        }
    )


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for name, stimulus in STIMULUS.items():
        write_prepared(
            tmp_path / f"{name}.h5", rng.normal(size=(len(stimulus), VOXELS[name])), stimulus=stimulus, session=SESSION[name], split=SPLIT[name],
            stimuli=6, dataset="d", subject=name, noise_ceiling=[0.1, 0.3, 0.7] if name == "subj01" else None, protocol={},
        )  # fmt: skip
    write_unpaired(tmp_path / "r.h5", [rng.normal(size=(7, 4))], n_samples=7, n_voxels=4, subject="r")
    return [tmp_path / "subj01.h5", tmp_path / "subj02.h5"], [tmp_path / "r.h5"]


def test_one_line_a_subject_counted_by_hand(study, files, tmp_path):
    overview(study, *files, tmp_path / "overview.csv")
    rows = pd.read_csv(tmp_path / "overview.csv").set_index("subject").T.to_dict()
    counts = ("sessions", "voxels", "trials_train", "trials_validation", "trials_test", "pictures_train", "pictures_validation", "pictures_test")
    assert [rows["subj01"][name] for name in counts] == [2, 3, 3, 1, 2, 2, 1, 1]
    assert [rows["subj02"][name] for name in counts] == [3, 5, 3, 0, 1, 2, 0, 1]
    assert [rows[name]["role"] for name in ("subj01", "subj02", "r")] == ["train", "new", "unpaired"]
    assert rows["subj01"]["noise_ceiling"] == 0.3 and pd.isna(rows["subj02"]["noise_ceiling"])
    assert (rows["r"]["voxels"], rows["r"]["trials_train"]) == (4, 7)


def test_a_missing_subject_and_a_broken_file_are_one_line_and_nothing_is_written(study, files, tmp_path):
    prepared, resting = files
    with pytest.raises(InputError, match="d subj02: not among the prepared files"):
        overview(study, prepared[:1], resting, tmp_path / "overview.csv")
    with h5py.File(prepared[0], "a") as file:
        kept = file["responses"][2, 1]
        file["responses"][2, 1] = np.nan
    with pytest.raises(InputError, match=r"subj01\.h5: responses\[2\] holds 1 values that are not finite"):
        overview(study, prepared, resting, tmp_path / "overview.csv")
    with h5py.File(prepared[0], "a") as file:
        file["responses"][2, 1] = kept
    prepared[1].write_bytes(prepared[1].read_bytes()[:2000])
    with pytest.raises(InputError, match=r"subj02\.h5: not a readable HDF5 file"):
        overview(study, prepared, resting, tmp_path / "overview.csv")
    assert not (tmp_path / "overview.csv").exists()
