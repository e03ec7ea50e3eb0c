import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel
import numpy as np
import pytest
import yaml
from data_studies import manifest, small_study, study_with
from hypothesis import given
from hypothesis import strategies as st

from unimind.cli import main
from unimind.data.prepare import assign_splits, prepare
from unimind.data.prepared import PreparedSubject, Stimuli
from unimind.data.sources import nsd
from unimind.data.sources.base import DROP, TEST, TRAIN, VALIDATION, RawSubject, Trials
from unimind.data.sources.simulated import simulate
from unimind.data.stimuli import stimuli
from unimind.errors import InputError
from unimind.study import resolved

SUBJECTS = ("subj01", "subj02", "subj03")


class Flow:
    """What the workflow does for one data set, through the command line."""

    def __init__(self, folder):
        self.folder, self.root = folder, folder / "raw"
        self.study = small_study(self.root)
        self.file = folder / "study.yaml"
        self.file.write_text(yaml.safe_dump(resolved(self.study)))
        self.manifests = {name: folder / f"{name}.json" for name in ("stimuli", *SUBJECTS)}

    def copy(self, folder):
        """The same files in another folder, as they were before `prepare`."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("subj0?.h5"))
        copied = Flow(folder)
        for path in copied.manifests.values():
            path.write_text(json.dumps({**json.loads(path.read_text()), "root": str(copied.root)}))
        return copied

    def stimuli(self):
        arguments = ["--dataset", "sim", "--fetched", self.manifests["stimuli"], "--out", self.folder / "stimuli.h5"]
        return main([str(a) for a in ("stimuli", "--study", self.file, *arguments)])

    def simulate(self, subject=None):
        manifest(self.root, simulate(self.study, "sim", subject), self.manifests[subject or "stimuli"])

    def prepare(self, subject):
        pictures = self.folder / "stimuli.h5"
        arguments = ["--dataset", "sim", "--subject", subject, "--fetched", self.manifests[subject], "--stimuli", pictures, "--training-stimuli", pictures]
        return main([str(a) for a in ("prepare", "--study", self.file, *arguments, "--out", self.folder / f"{subject}.h5")])


def session_2(flow):
    return next((flow.root / "nsddata_betas/ppdata/subj01").rglob("betas_session02.nii.gz"))


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    flow = Flow(tmp_path_factory.mktemp("flow"))
    flow.simulate()
    assert flow.stimuli() == 0
    for subject in SUBJECTS:
        flow.simulate(subject)
        assert flow.prepare(subject) == 0
    return flow


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_trial_has_the_response_and_the_picture_the_writer_put_there(flow, subject):
    betas = flow.root / f"nsddata_betas/ppdata/{subject}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    mask = np.asarray(nibabel.load(flow.root / f"nsddata/ppdata/{subject}/func1pt8mm/roi/nsdgeneral.nii.gz").dataobj) == 1
    with h5py.File(flow.root / nsd.PICTURES) as file:
        brick = file["imgBrick"][:]
    design = nsd.NsdSource(flow.study, "sim", flow.root)._design
    shown = design["subjectim"][int(subject[-1]) - 1, design["masterordering"] - 1] - 1
    with PreparedSubject(flow.folder / f"{subject}.h5") as prepared, Stimuli(flow.folder / "stimuli.h5") as stimuli:
        assert prepared.n_trials == 180 and prepared.session.tolist() == [1] * 90 + [2] * 90
        assert np.array_equal(stimuli.read(prepared.stimulus), brick[shown])
        for session in (1, 2):
            values = nibabel.load(betas / f"betas_session{session:02d}.nii.gz").get_fdata()[mask].T[:, prepared.stored] / 300
            inside = prepared.session == session
            training = values[prepared.split[inside] == TRAIN]
            np.testing.assert_allclose(prepared.read(np.flatnonzero(inside)), (values - training.mean(0)) / training.std(0), atol=1e-4)
        test = np.isin(shown + 1, design["sharedix"])
        assert np.array_equal(prepared.split == TEST, test) and prepared.repeat.max() == 2


def test_voxels_are_in_anatomical_order_and_the_stored_one_is_kept(flow):
    with PreparedSubject(flow.folder / "subj01.h5") as prepared:
        image = nibabel.load(flow.root / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz")
        stored = nibabel.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) == 1))
        np.testing.assert_allclose(prepared.xyz[np.argsort(prepared.stored)], stored, atol=1e-4)
        assert (np.diff(prepared.roi) >= 0).all() and prepared.roi_names[0] == "V1"
        assert prepared.attributes["order"] == "ROI then Hilbert curve over xyz"
        assert prepared.protocol["betas"] == "betas_fithrf_GLMdenoise_RR" and prepared.protocol["test_images"] == 10
        assert (prepared.noise_ceiling > 0).all() and (prepared.noise_ceiling < 1).all()


def test_test_trials_do_not_touch_the_normalisation(flow, tmp_path):
    """With other betas in test and validation trials, the training responses are the same to the last bit."""
    other = flow.copy(tmp_path)
    with PreparedSubject(flow.folder / "subj01.h5") as prepared:
        held_out, before = prepared.split != TRAIN, prepared.read(prepared.trials("train"))
    for session in (1, 2):
        path = tmp_path / f"raw/nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session{session:02d}.nii.gz"
        image = nibabel.load(path)
        values = np.asarray(image.dataobj).copy()
        values[..., held_out[90 * (session - 1) : 90 * session]] = 17
        nibabel.Nifti1Image(values, image.affine).to_filename(path)
    files = [tmp_path / "raw" / entry["path"] for entry in json.loads(other.manifests["subj01"].read_text())["files"]]
    manifest(tmp_path / "raw", files, other.manifests["subj01"])
    assert other.prepare("subj01") == 0
    with PreparedSubject(tmp_path / "subj01.h5") as prepared:
        assert np.array_equal(prepared.read(prepared.trials("train")), before)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda flow: session_2(flow).unlink(), "no such file, though"),
        (lambda flow: session_2(flow).write_bytes(b"short"), "5 bytes,"),
        (lambda flow: flow.manifests["subj01"].write_text("{}"), "not a manifest"),
        (lambda flow: flow.manifests["subj01"].unlink(), "run the stage that writes it first"),
        (lambda flow: (flow.folder / "stimuli.h5").write_text("x"), "not a readable HDF5 file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flow, tmp_path, capsys, damage, said):
    broken = flow.copy(tmp_path)
    damage(broken)
    capsys.readouterr()
    assert broken.prepare("subj01") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if "subj01.h5" in path.name]


def test_a_trial_of_an_unknown_picture(flow, tmp_path, capsys):
    with h5py.File(flow.folder / "stimuli.h5") as whole, h5py.File(tmp_path / "stimuli.h5", "w") as part:
        for name in ("images", "id", "sha256", "test"):
            part[name] = whole[name][:200]
    arguments = ["--dataset", "sim", "--subject", "subj01", "--fetched", flow.manifests["subj01"], "--out", tmp_path / "s.h5"]
    assert main([str(a) for a in ("prepare", "--study", flow.file, *arguments, "--stimuli", tmp_path / "stimuli.h5")]) == 2
    assert "shows picture nsd" in capsys.readouterr().err and not (tmp_path / "s.h5").exists()


def test_an_empty_test_split(flow, tmp_path, capsys):
    other = flow.copy(tmp_path)
    content = resolved(other.study)
    content["datasets"]["sim"] |= {"source": "nsd", "form": "nifti", "test_repeats": 4}
    for key in ("trials_per_session", "shared_images", "repeats", "voxels", "noise", "seed"):
        del content["datasets"]["sim"][key]
    other.file.write_text(yaml.safe_dump(content))
    assert other.prepare("subj01") == 2
    assert "sim subj01: the test split is empty" in capsys.readouterr().err and not (tmp_path / "subj01.h5").exists()


def test_a_single_test_picture(flow, tmp_path, monkeypatch):
    """However often it is shown: a picture alone cannot be told apart from others."""
    with Stimuli(flow.folder / "stimuli.h5") as pictures:
        shown = np.concatenate([pictures.id[~pictures.test][:8], pictures.id[pictures.test][[0, 0]]])
    blocks = [np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)]
    raw = RawSubject(n_voxels=5, trials=Trials(np.ones(10, int), shown, lambda: iter(blocks)))
    monkeypatch.setattr("unimind.data.prepare.open_source", lambda *_: SimpleNamespace(subject=lambda _: raw))
    with pytest.raises(InputError, match="sim subj01: the test split has one picture, and at least 2 are needed"):
        prepare(flow.study, "sim", "subj01", flow.manifests["subj01"], flow.folder / "stimuli.h5", [], tmp_path / "s.h5")
    assert not (tmp_path / "s.h5").exists()


# --- splits -----------------------------------------------------------------------------------------------------


def test_an_image_with_one_test_trial_is_a_test_image():
    splits = assign_splits(["a", "b", "a", "c"], [TRAIN, TRAIN, TEST, TRAIN], (), (), 0.0, 0)
    assert splits.split.tolist() == [TEST, TRAIN, TEST, TRAIN]


def test_test_images_of_training_subjects_are_test_images_for_all():
    splits = assign_splits(["a", "b", "c"], [TRAIN, TRAIN, TEST], {"b"}, (), 0.0, 0)
    assert splits.split.tolist() == [TRAIN, TEST, TEST] and (splits.moved, splits.joined) == (0, 1)


def test_a_new_subject_is_not_tested_on_what_was_trained_on():
    splits = assign_splits(["a", "b", "c", "d"], [TEST, TEST, TEST, TRAIN], {"b"}, {"a", "b"}, 0.0, 0)
    assert splits.split.tolist() == [TRAIN, TEST, TEST, TRAIN] and (splits.moved, splits.joined) == (1, 0)


def test_dropped_trials_are_in_no_split():
    splits = assign_splits(["a", "a", "b", "c"], [DROP, DROP, TEST, TRAIN], {"a"}, (), 0.5, 0)
    assert splits.split.tolist()[:3] == [DROP, DROP, TEST]


names = [f"{k:064x}" for k in range(40)]
subjects = st.lists(st.tuples(st.sampled_from(names), st.sampled_from([TRAIN, TEST])), min_size=5, max_size=80)


@given(subjects, subjects, subjects, st.sampled_from([0.0, 0.1, 0.5]))
def test_no_image_leaks_between_splits_of_any_subjects(first, second, new, fraction):
    """Whatever sources say: nobody's test image is a training image of a subject that shared models are trained on."""
    tests = {name for name, hint in first + second if hint == TEST}
    trained = {name for name, _ in first + second} - tests
    found = []
    for trials, mine in ((first, ()), (second, ()), (new, trained)):
        image, hint = zip(*trials, strict=True)
        split = assign_splits(image, hint, tests, mine, fraction, 3).split
        found.append({code: {name for name, value in zip(image, split, strict=True) if value == code} for code in (TRAIN, VALIDATION, TEST)})
        assert not found[-1][TRAIN] & found[-1][TEST] and not found[-1][VALIDATION] & (found[-1][TRAIN] | found[-1][TEST])
        assert set.union(*found[-1].values()) == set(image)
    fitted = found[0][TRAIN] | found[0][VALIDATION] | found[1][TRAIN] | found[1][VALIDATION]
    assert not fitted & (found[0][TEST] | found[1][TEST] | found[2][TEST])
    assert not tests & (found[2][TRAIN] | found[2][VALIDATION])


def test_validation_images_are_a_share_and_the_same_for_every_subject():
    image = np.array([f"{k:064x}" for k in range(3000)])
    one = assign_splits(image[:2000], np.full(2000, TRAIN), (), (), 0.1, 7).split
    other = assign_splits(image[1000:], np.full(2000, TRAIN), (), (), 0.1, 7).split
    assert np.array_equal(one[1000:], other[:1000]) and abs((one == VALIDATION).mean() - 0.1) < 0.02
    assert not np.array_equal(one, assign_splits(image[:2000], np.full(2000, TRAIN), (), (), 0.1, 8).split)
    assert (assign_splits(image[:3], np.full(3, TRAIN), (), (), 1e-6, 0).split == VALIDATION).sum() == 1  # never none
    assert (assign_splits(image[:3], np.full(3, TRAIN), (), (), 0.0, 0).split == TRAIN).all()


@pytest.mark.slow
@pytest.mark.skipif("UNIMIND_REAL_DATA" not in os.environ, reason="needs the real recordings: set UNIMIND_REAL_DATA")
def test_real_recordings_that_share_pictures(tmp_path):
    """Sessions 210322 and 210325 of macaque V4 share 600 pictures: none is a test picture here and a training one there."""
    dataset = {
        "source": "arrays", "training_subjects": ["210322"], "new_subjects": ["210325"], "root": "$UNIMIND_REAL_DATA/data/macaque_v4",
        "responses": "{subject}/responses.npy", "orientation": "voxels_by_trials", "images": "{subject}/images.zip", "split": {"every": 5},
    }  # fmt: skip
    study, root = study_with(dataset), Path(os.environ["UNIMIND_REAL_DATA"]) / "data/macaque_v4"
    found = {}
    for subject in ("210322", "210325"):
        fetched = manifest(root, [root / subject / name for name in ("responses.npy", "images.zip")], tmp_path / f"{subject}.json")
        stimuli(study, "sim", subject, fetched, tmp_path / f"{subject}.stimuli.h5")
        training = [tmp_path / "210322.stimuli.h5"]
        prepare(study, "sim", subject, fetched, tmp_path / f"{subject}.stimuli.h5", training, tmp_path / f"{subject}.h5")
        with PreparedSubject(tmp_path / f"{subject}.h5") as prepared, Stimuli(tmp_path / f"{subject}.stimuli.h5") as pictures:
            sha256 = pictures.sha256[prepared.stimulus]
            found[subject] = {code: set(sha256[prepared.split == code]) for code in (TRAIN, VALIDATION, TEST)}
            raw = np.load(root / subject / "responses.npy")
            kept = raw[(np.isfinite(raw).all(1)) & (raw.std(1) > 0)]
            first = prepared.trials("train")
            expected = (kept - kept[:, first].mean(1, keepdims=True)) / kept[:, first].std(1, keepdims=True)
            np.testing.assert_allclose(prepared.read(slice(None)), expected.T, atol=1e-3)
    old, new = found["210322"], found["210325"]
    everything = [set.union(*splits.values()) for splits in (old, new)]
    assert len(everything[0] & everything[1]) == 600
    assert not (old[TRAIN] | old[VALIDATION]) & new[TEST] and not old[TEST] & (new[TRAIN] | new[VALIDATION])
    assert old[VALIDATION] & everything[1] == new[VALIDATION] & old[VALIDATION] and new[TEST]
