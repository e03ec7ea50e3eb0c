"""Further sets of trials of every source that has them, from their files to the subject's voxels, and what is refused."""

import json
import re
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import yaml
from laboratories import AFFINE, Betas
from layouts import NSD_FOLDER
from PIL import Image
from scipy.io import savemat

from unimind.cli import main
from unimind.data.prepared import FurtherTrials, PreparedSubject, Stimuli, write_prepared
from unimind.data.sources import open_source
from unimind.errors import InputError
from unimind.reconstruction.decode import named
from unimind.study import parse_study

RNG = np.random.default_rng(11)
METHODS = {"m": {"enter": {"kind": "ridge"}, "scope": "subject"}}


def study_of(section, **decode):
    common = {"name": "s", "picture_size": 16, "methods": METHODS, "foundations": {"diffusion": {"kind": "study"}}}
    return common | {"datasets": {"own": section}, "decode": {"other": {"dataset": "own", **decode}}}


def z(values, by=None):
    by = values if by is None else by
    return (values - by.mean(0)) / by.std(0)


# --- own arrays ---------------------------------------------------------------------------------------------------

TRIALS, UNITS = 40, 9


@pytest.fixture
def arrays(tmp_path):
    """Own data of nine units, of which the third is silent; and 24 trials without pictures, whose unit three is not."""
    random = np.random.default_rng(2)
    responses, other = random.normal(size=(TRIALS, UNITS)).astype(np.float32), random.normal(3, 2, size=(24, UNITS)).astype(np.float32)
    responses[:, 2] = 1.5
    np.save(tmp_path / "r.npy", responses)
    np.save(tmp_path / "other.npy", other)
    (tmp_path / "pictures").mkdir()
    for k in range(TRIALS):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"pictures/p{k:02d}.png")
    labels = [f"p{k % 8:02d}" for k in range(22)] + ["n/a", ""]
    rows = [f"{label},{'vision' if k % 2 else 'imagery'},{k // 12 + 1}" for k, label in enumerate(labels)]
    (tmp_path / "other.csv").write_text("\n".join(["label,task,session", *rows]) + "\n")
    section = {"source": "arrays", "root": str(tmp_path), "training_subjects": ["s1"], "responses": "r.npy", "images": "pictures"}
    return tmp_path, section, responses, other, labels


def prepared_by_command(folder, study, dataset="own", subject="s1"):
    """fetch, stimuli, prepare, and fetch and prepare-further of the set, on the command line."""
    (folder / "study.json").write_text(json.dumps(study))
    given = ["--study", str(folder / "study.json"), "--dataset", dataset]
    one = [*given, "--subject", subject]
    at = {name: str(folder / name) for name in ("p.json", "s.json", "p.h5", "s.h5", "o.json", "o.h5")}
    for command in (
        ["fetch", *given, "--stimuli", "--out", at["p.json"]],
        ["fetch", *one, "--out", at["s.json"]],
        ["stimuli", *given, "--fetched", at["p.json"], "--out", at["p.h5"]],
        ["prepare", *one, "--fetched", at["s.json"], "--stimuli", at["p.h5"], "--training-stimuli", at["p.h5"], "--out", at["s.h5"]],
        ["fetch", *one, "--further", "other", "--out", at["o.json"]],
        ["prepare-further", *one, "--further", "other", "--fetched", at["o.json"], "--prepared", at["s.h5"], "--out", at["o.h5"]],
    ):
        if (code := main(command)) != 0:
            return code
    return folder / "s.h5", folder / "o.h5"


def test_own_trials_without_pictures_in_the_voxels_that_were_kept(arrays, tmp_path):
    folder, section, responses, other, labels = arrays
    path, further = prepared_by_command(tmp_path, study_of(section, responses="other.npy", trials="other.csv", condition="task", normalisation="training"))
    with PreparedSubject(path) as own, FurtherTrials(further) as data:
        assert own.stored.tolist() == data.stored.tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
        train = responses[own.split == 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            np.testing.assert_allclose(data.responses[:], z(other, train)[:, data.stored], atol=1e-4)
        assert data.label.tolist() == [*labels[:22], "", ""] and data.condition.tolist() == ["imagery", "vision"] * 12
        assert data.session.tolist() == [1] * 12 + [2] * 12 and "training trials" in data.attributes["normalisation"]
        group, called = data.groups(average=True)
        assert called[:2] == [("imagery", "p00"), ("vision", "p01")] and len(called) == 8 + 2
        assert np.bincount(group).tolist() == [3] * 6 + [2, 2, 1, 1]
        assert len(data.groups(average=False)[1]) == 24
        means, counts = data.averaged(np.arange(24), group)[1:]
        np.testing.assert_allclose(means[0, 0], data.responses[:][[0, 8, 16]].mean(0), atol=1e-6)
        assert counts[0] == 3


def test_trials_are_scaled_by_themselves_session_by_session_and_condition_by_condition(arrays, tmp_path, capsys):
    folder, section, _, other, _ = arrays
    study = study_of(section, responses="other.npy", trials="other.csv")
    _, further = prepared_by_command(tmp_path, study)
    with FurtherTrials(further) as data:
        for part in (slice(0, 12), slice(12, 24)):
            np.testing.assert_allclose(data.responses[part], z(other[part])[:, data.stored], atol=1e-4)
    study["decode"]["other"]["condition"] = "task"
    assert prepared_by_command(tmp_path, study) == 2
    assert "session 1, imagery has 6 trials; z-scores of its own need 10: write `normalisation: training`" in capsys.readouterr().err


def test_without_a_table_no_trial_has_a_label(arrays, tmp_path):
    _, section, _, other, _ = arrays
    _, further = prepared_by_command(tmp_path, study_of(section, responses="other.npy"))
    with FurtherTrials(further) as data:
        assert set(data.label) == {""} and len(data.groups(average=True)[1]) == len(other)


def test_check_shows_what_a_set_holds(arrays, tmp_path, capsys):
    folder, section, *_ = arrays
    (tmp_path / "study.json").write_text(json.dumps(study_of(section, responses="other.npy", trials="other.csv", condition="task")))
    assert main(["check", "--data", str(tmp_path / "study.json")]) == 0
    assert "own s1 other: 24 trials under the conditions imagery, vision, 8 labels such as p00, p01, p02" in capsys.readouterr().out
    (folder / "other.npy").unlink()
    assert main(["check", "--data", str(tmp_path / "study.json")]) == 2
    assert "other.npy: no such file; put it there, or correct decode.other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root, other: np.save(root / "other.npy", other[:, :8]), "8 voxels, but .*s.h5 holds voxel 9 of its source; give responses of the same voxels"),
        (lambda root, other: np.save(root / "other.npy", np.where(np.eye(24, UNITS) == 1, np.nan, other)), r"missing values \(NaN\) in 8 of 8 voxels"),
        (lambda root, other: (root / "other.npy").unlink(), "other.npy: no such file"),
        (lambda root, other: (root / "other.csv").write_text("word\n" + "x\n" * 24), "no column label, picture, stim_file or stimulus; it has word"),
        (lambda root, other: (root / "other.csv").write_text("label\n" + "x\n" * 7), "24 trials, but 7 rows in .*other.csv"),
    ],
    ids=["fewer voxels", "missing values", "no file", "no label", "other number of rows"],
)
def test_what_cannot_be_prepared_is_one_line(arrays, tmp_path, capsys, damage, words):
    folder, section, _, other, _ = arrays
    damage(folder, other)
    assert prepared_by_command(tmp_path, study_of(section, responses="other.npy", trials="other.csv")) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(words, last), last
    assert not (tmp_path / "o.h5").exists()


# --- BIDS ---------------------------------------------------------------------------------------------------------


def test_another_task_of_a_bids_data_set(tmp_path):
    lab = Betas(tmp_path, sessions=2, runs=2, trials=15, count=30).write()
    first = tuple(np.argwhere(lab.atlas == 1)[0])
    seen = lab.betas("01", 1)
    volume = np.asarray(nibabel.load(seen).dataobj).copy()
    volume[(*first, 4)] = np.nan  # a voxel that the subject's preparation leaves out
    nibabel.save(nibabel.Nifti1Image(volume, AFFINE), seen)
    imagined = RNG.normal(size=(*volume.shape[:3], 12)).astype(np.float32)
    path = seen.with_name(seen.name.replace("task-images", "task-imagery"))
    nibabel.save(nibabel.Nifti1Image(imagined, AFFINE), path)
    labels = [f"img_{k % 4:03d}" for k in range(12)]
    table = path.with_name("sub-01_ses-01_task-imagery_desc-SingletrialBetas_trials.tsv")
    table.write_text("\n".join(["beta_index\ttrial_type\tkind", *(f"{11 - k}\t{label}\tcued" for k, label in enumerate(labels))]) + "\n")
    section = {
        "source": "bids", "root": str(tmp_path), "training_subjects": ["01"], "derivatives": "derivatives/glmsingle", "task": "images", "space": "T1w",
        "images": "stimuli", "rois": {"visual": {"file": "derivatives/masks/sub-{subject}_dseg.nii.gz"}},
    }  # fmt: skip
    found = prepared_by_command(tmp_path, study_of(section, task="imagery", condition="kind"), subject="01")
    with PreparedSubject(found[0]) as own, FurtherTrials(found[1]) as data:
        assert own.n_voxels == data.n_voxels == (lab.atlas > 0).sum() - 1
        np.testing.assert_allclose(data.responses[:], z(imagined[lab.atlas > 0].T)[:, own.stored], atol=1e-4)
        assert data.label.tolist() == labels[::-1] and set(data.condition) == {"cued"}
    nibabel.save(nibabel.Nifti1Image(imagined, 2 * AFFINE), path)
    study = parse_study(study_of(section, task="imagery"))
    with pytest.raises(InputError, match="not on the grid of .*, which the subject was prepared from; resample it"):
        open_source(study, "own").further("01", study.decode["other"])
    table.unlink()
    with pytest.raises(InputError, match=r"no _trials.tsv for .*task-imagery"):
        open_source(study, "own").further("01", study.decode["other"])


# --- NSD ----------------------------------------------------------------------------------------------------------

GRID = (5, 4, 3)


@pytest.fixture
def nsd(tmp_path):
    """NSD-Imagery and NSD-synthetic of subj01 by the facts of their layout: ROI, betas (trials, Z, Y, X) x 300, design, pictures."""
    roi = (RNG.random(GRID) < 0.5).astype(np.int16)
    (tmp_path / f"nsddata/{NSD_FOLDER}/roi").mkdir(parents=True)
    nibabel.Nifti1Image(roi, np.eye(4)).to_filename(tmp_path / f"nsddata/{NSD_FOLDER}/roi/nsdgeneral.nii.gz")
    betas = {}
    for name, trials in (("imagery", 20), ("synthetic", 186)):
        betas[name] = RNG.integers(-900, 900, (trials, *GRID), dtype=np.int16)
        folder = tmp_path / f"nsddata_betas/{NSD_FOLDER}/nsd{name}betas_fithrf_GLMdenoise_RR"
        folder.mkdir(parents=True)
        with h5py.File(folder / f"betas_nsd{name}.hdf5", "w") as file:
            file["betas"] = betas[name].transpose(0, 3, 2, 1)
    experiment = tmp_path / "nsddata/experiments/nsdsynthetic"
    experiment.mkdir(parents=True)
    order = RNG.integers(1, 7, 186)
    savemat(experiment / "nsdsynthetic_expdesign.mat", {"masterordering": order[None].astype(float)})
    stimuli = tmp_path / "nsddata_stimuli/stimuli/nsdsynthetic"
    stimuli.mkdir(parents=True)
    grey, colour = RNG.integers(0, 256, (4, 16, 30), dtype=np.uint8), RNG.integers(0, 256, (2, 16, 30, 3), dtype=np.uint8)
    for name, pictures in (("nsdsynthetic_stimuli", grey), ("nsdsynthetic_colorstimuli_subj01", colour)):
        with h5py.File(stimuli / f"{name}.hdf5", "w") as file:
            file["imgBrick"] = pictures
    return tmp_path, roi > 0, betas, order, grey, colour


def nsd_study(root, **decode):
    return parse_study(study_of({"source": "nsd", "root": str(root), "training_subjects": ["subj01"], "roi_labels": False}, **decode))


def test_nsd_synthetic(nsd, tmp_path):
    root, roi, betas, order, grey, colour = nsd
    study = nsd_study(root, set="synthetic", candidates="shown")
    source, asked = open_source(study, "own"), study.decode["other"]
    files = source.further_files("subj01", asked) + source.shown_files("subj01")
    assert all((root / file.path).exists() and file.address == f"s3://natural-scenes-dataset/{file.path}" for file in files)
    found = source.further("subj01", asked)
    np.testing.assert_allclose(np.concatenate(list(found.responses())), betas["synthetic"][:, roi] / 300, atol=1e-5)
    assert list(found.label) == [f"synthetic{number:03d}" for number in order]
    assert list(found.condition) == ["fixation"] * 93 + ["one-back"] * 93 and found.run.tolist() == [1] * 93 + [2] * 93
    assert study.ranked() == {"subj01.other": {"further": "other", "subject": "subj01"}}
    (tmp_path / "study.json").write_text(study.model_dump_json())
    given = ["--study", str(tmp_path / "study.json"), "--further", "other", "--subject", "subj01"]
    assert main(["fetch", *given, "--stimuli", "--out", str(tmp_path / "c.json")]) == 0
    assert main(["candidates", *given, "--fetched", str(tmp_path / "c.json"), "--out", str(tmp_path / "c.h5")]) == 0
    with Stimuli(tmp_path / "c.h5") as pictures:
        assert pictures.id.tolist() == [f"synthetic{k:03d}" for k in range(1, 7)] and not pictures.test.any()
        np.testing.assert_array_equal(pictures.images[1], np.repeat(grey[1, :, 7:23, None], 3, 2))
        np.testing.assert_array_equal(pictures.images[5], colour[1, :, 7:23])
    savemat(root / "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat", {"masterordering": order[None, :100].astype(float)})
    with pytest.raises(InputError, match=r"186 trials, .*nsdsynthetic_expdesign.mat has 100"):
        source.further("subj01", asked)


def test_nsd_imagery_with_a_table_of_ones_own(nsd):
    root, roi, betas, *_ = nsd
    (root / "mine.tsv").write_text("\n".join(["run\tcue\ttask", *(f"{k // 10 + 1}\t{'ABCDE'[k % 5]}\t{'img' if k < 10 else 'vis'}" for k in range(20))]) + "\n")
    study = nsd_study(root, set="imagery", trials="mine.tsv", label="cue", condition="task")
    source, asked = open_source(study, "own"), study.decode["other"]
    assert {file.path for file in source.further_files("subj01", asked) if file.address is None} == {"mine.tsv"}
    found = source.further("subj01", asked)
    np.testing.assert_allclose(np.concatenate(list(found.responses())), betas["imagery"][:, roi] / 300, atol=1e-5)
    assert list(found.label) == list("ABCDE") * 4 and list(found.condition) == ["img"] * 10 + ["vis"] * 10 and found.run.tolist() == [1] * 10 + [2] * 10
    study = nsd_study(root, set="imagery", trials="mine.tsv", betas="betas_assumehrf")
    with pytest.raises(InputError, match="nsdimagerybetas_assumehrf/betas_nsdimagery.hdf5: no such file"):
        open_source(study, "own").further("subj01", study.decode["other"])


# --- the study ----------------------------------------------------------------------------------------------------

ARRAYS = {"source": "arrays", "training_subjects": ["s1"], "responses": "r.npy", "images": "p"}
NSD = {"source": "nsd", "training_subjects": ["subj01"]}


@pytest.mark.parametrize(
    ("section", "decode", "words"),
    [
        (ARRAYS, {"dataset": "else"}, "decode.other.dataset: else given; known are own"),
        (ARRAYS, {}, "decode.other.responses: missing; further trials of source arrays are found by it"),
        (ARRAYS, {"responses": "o.npy", "task": "x"}, "decode.other.task: 'x' given, but own is of source arrays, which has no use for it; remove it"),
        (ARRAYS, {"responses": "o.npy", "label": "x"}, "decode.other: label: there is no trial table; remove it, or give `trials:`"),
        (ARRAYS, {"responses": "o.npy", "subjects": ["s2"]}, "decode.other.subjects: s2 given; known are s1"),
        (ARRAYS, {"responses": "o.npy", "methods": ["n"]}, "decode.other.methods: n given; known are m"),
        (ARRAYS, {"responses": "o.npy", "methods": []}, r"methods: \[\] given; name each once, or leave the key out"),
        (ARRAYS | {"training_subjects": ["s1", "s1.other"], "responses": "{subject}.npy"}, {"responses": "o{subject}.npy"}, "s1.other is a subject of own"),
        (ARRAYS | {"training_subjects": ["s1", "s2"], "responses": "{subject}.npy"}, {"responses": "o.npy"}, "is the same file for several subjects"),
        (NSD, {"set": "imagery"}, "decode.other: trials: missing; give the table that says what was imagined"),
        (NSD, {"set": "synthetic", "trials": "t.csv"}, "trials: NSD-synthetic ships its own design; remove it"),
        (NSD, {"set": "imagery", "trials": "t.csv", "candidates": "shown"}, "candidates: shown given, but only `set: synthetic` ships its pictures"),
        (
            {"source": "simulated", "training_subjects": ["subj01"]},
            {},
            "decode.other.dataset: own is of source simulated, which has no further trials; known of god, nsd, arrays, bids",
        ),
    ],
)
def test_a_set_that_cannot_be_is_refused_by_its_key(section, decode, words):
    with pytest.raises(InputError, match=words):
        parse_study(study_of(section, **decode))


def test_two_sets_that_would_write_one_file_are_refused():
    section = ARRAYS | {"training_subjects": ["s", "s.a"], "responses": "{subject}.npy"}
    with pytest.raises(InputError, match="decode.b: its file s.a.b would be that of decode.a.b too; choose another name"):
        parse_study(study_of(section) | {"decode": {name: {"dataset": "own", "responses": "{subject}x.npy"} for name in ("a.b", "b")}})


def test_the_studies_of_the_documentation_are_valid():
    page = (Path(__file__).parents[2] / "docs/decoding.md").read_text()
    sections = {"god": {"source": "god", "training_subjects": ["Subject1"]}, "nsd": NSD, "mine": ARRAYS | {"responses": "{subject}.npy"}}
    sets = {}
    for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        content = yaml.safe_load(text)
        study = parse_study(study_of(NSD, set="synthetic") | {"datasets": sections} | content)
        sets |= {name: list(study.datasets[own.dataset].subjects) for name, own in study.decode.items()}
        assert len(study.further()) == len(content["decode"])
    assert set(sets) == {"imagery", "dreams", "synthetic"}


def test_imagery_of_god_is_no_key_of_the_data_set_any_more():
    with pytest.raises(InputError, match="datasets.own.imagery: unknown key"):
        parse_study(study_of({"source": "god", "training_subjects": ["Subject1"], "imagery": True}))


# --- decoding -----------------------------------------------------------------------------------------------------


def test_labels_name_candidates_by_name_with_or_without_folder_and_ending():
    names = ["a/cat.png", "b/dog.png", "b/cat.png", "bird"]
    assert named(["a/cat.png", "a/cat", "dog", "dog.png", "cat", "bird", "", "fish"], names).tolist() == [0, 0, 1, 1, -1, 3, -1, -1]


def test_a_prepared_file_of_another_subject_is_refused(tmp_path):
    from unimind.data.prepare_further import prepare_further

    study = parse_study(study_of(ARRAYS, responses="o.npy"))
    write_prepared(
        tmp_path / "s.h5", np.zeros((4, 3), np.float32), stimulus=range(4), session=[1] * 4, split=[0, 0, 2, 2], stimuli=4, dataset="own", subject="s9"
    )  # fmt: skip
    np.save(tmp_path / "o.npy", np.zeros((12, 3), np.float32))
    (tmp_path / "m.json").write_text(json.dumps({"root": str(tmp_path), "files": []}))
    with pytest.raises(InputError, match="is of own s9, expected own s1"):
        prepare_further(study, "own", "s1", "other", tmp_path / "m.json", tmp_path / "s.h5", tmp_path / "o.h5")
    assert not (tmp_path / "o.h5").exists()
