"""NSD's reader against files of NSD's own form: the embedded study's writer, an independent one, and hand-made corruptions of what was written."""

import json
import shutil
import subprocess
import sys

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
from data_studies import manifest, small_study, study_with
from layouts import write_nsd_design, write_nsd_volumes
from scipy.io import loadmat, savemat

from unimind.data.sources import nsd
from unimind.data.sources.base import DROP, TEST, TRAIN
from unimind.data.sources.nsd import NsdSource
from unimind.data.sources.simulated import simulate
from unimind.data.stimuli import stimuli
from unimind.errors import InputError
from unimind.study import resolved


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("bucket")
    study = small_study(root)
    simulate(study, "sim")
    simulate(study, "sim", "subj01")
    return root


@pytest.fixture
def bucket(written, tmp_path):
    shutil.copytree(written, tmp_path / "bucket")
    return tmp_path / "bucket"


def source(root, **changes):
    section = {"source": "nsd", "training_subjects": ["subj01"], "root": str(root), "sessions": 2, "form": "nifti", **changes}
    return NsdSource(study_with(section), "sim", root)


def folder(root, kind="betas"):
    return root / ("nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR" if kind == "betas" else "nsddata/ppdata/subj01/func1pt8mm/roi")


def volume(path):
    return np.asarray(nibabel.load(path).dataobj)


def rewrite(path, values):
    nibabel.Nifti1Image(values, nibabel.load(path).affine).to_filename(path)


def to_hdf5(root, chunks=True, **options):
    for number in (1, 2):
        values = volume(folder(root) / f"betas_session{number:02d}.nii.gz")
        with h5py.File(folder(root) / f"betas_session{number:02d}.hdf5", "w") as file:
            file.create_dataset("betas", data=values.T, chunks=(values.shape[3], 1, 1, 1) if chunks else None, **options)


def test_every_trial_has_the_betas_and_the_picture_of_the_files(written):
    subject = source(written).subject("subj01")
    design = loadmat(written / nsd.DESIGN)
    mask = volume(folder(written, "roi") / "nsdgeneral.nii.gz") == 1
    responses = list(subject.trials.responses())
    assert subject.n_voxels == mask.sum() and subject.trials.session.tolist() == [1] * 90 + [2] * 90 and len(responses) == 2
    for number, block in enumerate(responses, 1):
        expected = volume(folder(written) / f"betas_session{number:02d}.nii.gz")[mask].T / 300
        assert block.dtype == np.float32 and np.array_equal(block, expected.astype(np.float32))
    for trial, name in enumerate(subject.trials.stimulus):  # all indices of the design are 1-based
        picture = int(design["subjectim"][0, int(design["masterordering"][0, trial]) - 1]) - 1
        assert name == f"nsd{picture:05d}"
    shared = np.isin([int(name[3:]) + 1 for name in subject.trials.stimulus], design["sharedix"])
    assert np.array_equal(subject.trials.split == TEST, shared) and np.array_equal(subject.trials.split == TRAIN, ~shared)


def test_voxels(written):
    subject = source(written).subject("subj01")
    image = nibabel.load(folder(written, "roi") / "nsdgeneral.nii.gz")
    places = np.argwhere(np.asarray(image.dataobj) == 1)
    np.testing.assert_allclose(subject.xyz, places @ image.affine[:3, :3].T + image.affine[:3, 3], rtol=1e-5)
    ratio = volume(folder(written) / "ncsnr.nii.gz")[tuple(places.T)]
    np.testing.assert_allclose(subject.noise_ceiling, ratio**2 / (ratio**2 + 1), rtol=1e-5)
    prf, streams = (volume(folder(written, "roi") / f"{name}.nii.gz")[tuple(places.T)] for name in ("prf-visualrois", "streams"))
    for voxel in range(subject.n_voxels):
        expected = {1: "V1", 2: "V1", 3: "V2", 4: "V2", 5: "V3", 6: "V3", 7: "hV4"}.get(prf[voxel]) or {5: "ventral", 6: "lateral"}[streams[voxel]]
        assert subject.roi_names[subject.roi[voxel]] == expected


@pytest.mark.parametrize("chunks", [True, False])
def test_both_forms_of_the_betas_agree(bucket, chunks):
    to_hdf5(bucket, chunks)
    both = [np.concatenate(list(source(bucket, form=form).subject("subj01").trials.responses())) for form in ("nifti", "hdf5")]
    assert np.array_equal(*both)


def test_pictures(written):
    pictures = source(written).stimuli(None, 32)
    found = list(pictures)
    with h5py.File(written / nsd.PICTURES) as file:
        assert pictures.count == len(found) == 410 and np.array_equal(np.stack([p.image for p in found]), file["imgBrick"][:])
    shared = loadmat(written / nsd.DESIGN)["sharedix"].ravel().astype(int)
    assert [p.id for p in found if p.test] == [f"nsd{i - 1:05d}" for i in np.sort(shared)]
    assert len({p.sha256 for p in found}) == 410
    assert next(iter(source(written).stimuli(None, 16))).image.shape == (16, 16, 3)


def test_rois_of_files_and_labels_are_united(written):
    early = volume(folder(written, "roi") / "prf-visualrois.nii.gz")
    streams = volume(folder(written, "roi") / "streams.nii.gz")
    subject = source(written, rois=[{"file": "prf-visualrois", "labels": [1, 2, 7]}, {"file": "streams", "labels": [6]}]).subject("subj01")
    expected = np.isin(early, [1, 2, 7]) | (streams == 6)
    assert subject.n_voxels == expected.sum() and set(subject.roi_names) == {"V1", "hV4", "lateral"}
    assert np.array_equal(next(subject.trials.responses()), (volume(folder(written) / "betas_session01.nii.gz")[expected].T / 300).astype(np.float32))
    assert source(written, roi_labels=False).subject("subj01").roi is None


def test_fewer_sessions_leave_fewer_shared_images_to_test_on(written):
    """As with NSD's 982 images over 37 sessions: the others are shown too seldom, and belong to no split."""
    subject = source(written, sessions=1).subject("subj01")
    design = loadmat(written / nsd.DESIGN)
    order = design["masterordering"][0, :90].astype(int)
    counts = np.bincount(order, minlength=61)[1:11]  # the first ten of a subject's pictures are the shared ones
    assert 0 < (counts == 3).sum() < 10
    assert (subject.trials.split == TEST).sum() == 3 * (counts == 3).sum()
    assert (subject.trials.split == DROP).sum() == counts[counts < 3].sum()
    assert subject.protocol["sessions"] == 1 and (source(written, sessions=1, test_repeats=1).subject("subj01").trials.split != DROP).all()


@pytest.fixture(scope="module")
def forty_sessions(tmp_path_factory):
    """All 30000 trials of a subject over a volume of 24 voxels."""
    root = tmp_path_factory.mktemp("forty")
    shown, shared = write_nsd_design(root)
    betas = np.random.default_rng(1).integers(-3000, 3000, (40, 750, 2, 3, 4)).astype(np.int16)
    roi = np.random.default_rng(2).integers(-1, 2, (2, 3, 4))
    write_nsd_volumes(root, betas, roi)
    return root, shown, shared, betas, roi


@pytest.mark.parametrize(("name", "tests", "sessions"), [("982/37", 982, 37), ("1000/40", 1000, 40)])
def test_protocols_by_name(forty_sessions, name, tests, sessions):
    root, shown, shared, betas, roi = forty_sessions
    subject = source(root, sessions=name, form="hdf5").subject("subj01")
    split, shown = subject.trials.split, shown[: 750 * sessions]
    assert list(subject.trials.stimulus) == [f"nsd{picture:05d}" for picture in shown]
    assert len(np.unique(shown[split == TEST])) == tests and set(shown[split == TEST]) <= set(shared)
    assert (np.unique(shown[split == TEST], return_counts=True)[1] == 3).all()
    assert np.array_equal(split == TRAIN, ~np.isin(shown, shared)) and subject.protocol["protocol"] == name
    for found, expected in zip(subject.trials.responses(), betas[:sessions], strict=True):
        assert np.array_equal(found, expected[:, roi > 0].astype(np.float32) / np.float32(300))


def test_a_protocol_that_does_not_hold_is_refused(forty_sessions, tmp_path):
    root = forty_sessions[0]
    assert source(root, sessions=37, form="hdf5").subject("subj01").protocol["protocol"] == "982/37"
    write_nsd_design(tmp_path, late=20)
    with pytest.raises(InputError, match=r"sessions: 982/37 does not hold for subj01, who has 980 test images in 37 sessions; give `sessions: 37`"):
        source(tmp_path, sessions="982/37", form="hdf5").subject("subj01")
    with pytest.raises(InputError, match="sessions: 982/37 tests on images seen three times; leave test_repeats out"):
        source(root, sessions="982/37", test_repeats=2)


PREPARE = """
import sys
from pathlib import Path
from unimind.data.prepare import prepare
from unimind.study import read_study

for sessions in (4, 4, 4, 10):  # the first ones fill what the allocator keeps
    folder = Path(sys.argv[1])
    study, pictures = read_study(folder / f"{sessions}.json"), folder / "stimuli.h5"
    prepare(study, "sim", "subj01", folder / f"{sessions}.manifest", pictures, [pictures], folder / "out.h5")
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process's memory is read from /proc")
@pytest.mark.parametrize("form", ["nifti", "hdf5"])
def test_memory_does_not_grow_with_the_number_of_sessions(tmp_path, form):
    root, trials, shape = tmp_path / "nsd", 240, (32, 32, 32)
    write_nsd_design(root, 10, trials, shared=50, late=0, ids=900)
    session = np.random.default_rng(3).integers(0, 4, (trials, *shape)).astype(np.int16)
    session[:, ::2] = 0  # packs quickly
    roi = np.zeros(shape, np.int16)
    roi[1::2] = 1
    write_nsd_volumes(root, [session] * 10, roi)
    (root / nsd.PICTURES).parent.mkdir(parents=True)
    with h5py.File(root / nsd.PICTURES, "w") as file:
        file["imgBrick"] = np.random.default_rng(4).integers(0, 256, (900, 4, 4, 3), np.uint8)
    for sessions in (4, 10):
        reader = source(root, sessions=sessions, form=form, test_repeats=1, roi_labels=False)
        (tmp_path / f"{sessions}.json").write_text(json.dumps(resolved(reader.study)))
        manifest(root, [root / file.path for file in reader.files("subj01")], tmp_path / f"{sessions}.manifest")
    stimuli(reader.study, "sim", None, manifest(root, [root / nsd.PICTURES], tmp_path / "p.manifest"), tmp_path / "stimuli.h5")
    done = subprocess.run([sys.executable, "-c", PREPARE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, few, many = (int(line) / 1000 for line in done.stdout.split())  # MB
    further = 6 * trials * (roi > 0).sum() * 4 / 1e6  # what six more sessions hold, of the ROI alone
    assert further > 90 and many - few < further / 3 and many < 1000


def test_files_of_nsd_itself():
    files = NsdSource(study_with({"source": "nsd", "training_subjects": ["subj03"], "sessions": 37}), "sim", "data/nsd").files("subj03")
    names = [file.path for file in files]
    assert names[0] == "nsddata/ppdata/subj03/func1pt8mm/roi/nsdgeneral.nii.gz"
    assert sum("betas_session" in name for name in names) == 32  # subject 3 finished 32 sessions
    last = "nsddata_betas/ppdata/subj03/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session32.hdf5"
    assert files[-1].path == last and files[-1].address == f"s3://natural-scenes-dataset/{last}"


def off_by_one(root):
    table = pd.read_csv(root / nsd.TABLE, index_col=0)
    row = int(table.index[table["subject1_rep1"] > 0][0])
    table.loc[row, "subject1_rep1"] = 0
    table.to_csv(root / nsd.TABLE)


def shifted(root):
    design = {key: value for key, value in loadmat(root / nsd.DESIGN).items() if not key.startswith("__")}
    savemat(root / nsd.DESIGN, {**design, "subjectim": design["subjectim"] - 1})


def other_grid(root):
    values = volume(folder(root) / "betas_session02.nii.gz")
    rewrite(folder(root) / "betas_session02.nii.gz", values[1:])


def with_nan(root):
    path = folder(root) / "betas_session02.nii.gz"
    values = volume(path).astype(np.float32)
    mask = np.argwhere(volume(folder(root, "roi") / "nsdgeneral.nii.gz") == 1)
    values[tuple(mask[0])] = np.nan
    values[(*mask[5], 3)] = np.nan
    rewrite(path, values)


def truncated(root):
    path = folder(root) / "betas_session02.nii.gz"
    path.write_bytes(path.read_bytes()[:-5000])


def flipped(root):
    path = folder(root) / "betas_session02.nii.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def short(root):
    path = folder(root) / "betas_session01.nii.gz"
    rewrite(path, volume(path)[..., :80])


def roi_of_another_grid(root):
    path = folder(root, "roi") / "prf-visualrois.nii.gz"
    rewrite(path, volume(path)[:, 1:])


def empty_roi(root):
    path = folder(root, "roi") / "nsdgeneral.nii.gz"
    rewrite(path, np.minimum(volume(path), 0))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (off_by_one, "trial"),
        (shifted, "nsd_expdesign.mat shows nsdId"),
        (other_grid, "the grid of the betas is"),
        (with_nan, "session 2 has NaN betas in 2 of"),
        (truncated, "not readable betas"),
        (flipped, "not readable betas"),
        (short, "80 trials, the design has 90 in session 1"),
        (roi_of_another_grid, "its grid is"),
        (empty_roi, "no voxel has a positive label"),
        (lambda root: (folder(root) / "betas_session02.nii.gz").unlink(), "betas_session02.nii.gz: no such file"),
        (lambda root: (root / nsd.TABLE).unlink(), "no such file"),
        (lambda root: (root / nsd.DESIGN).write_text("x"), "not a readable MATLAB file"),
    ],
)
def test_damaged_files_are_refused_in_one_line(bucket, damage, said):
    damage(bucket)
    with pytest.raises(InputError) as error:
        list(source(bucket).subject("subj01").trials.responses())
    assert said in str(error.value) and "\n" not in str(error.value)


def hdf5_truncated(path):
    path.write_bytes(path.read_bytes()[:-2000])


def hdf5_of_nothing(path):
    path.write_bytes(b"")


def hdf5_without_betas(path):
    with h5py.File(path, "w") as file:
        file["other"] = np.zeros(3)


def hdf5_with_a_group(path):
    with h5py.File(path, "w") as file:
        file["betas/inner"] = np.zeros(3)


def hdf5_flipped(path):
    with h5py.File(path) as file:
        chunk = file["betas"].id.get_chunk_info(file["betas"].id.get_num_chunks() // 2)
    flip(path, chunk.byte_offset + chunk.size // 2)


def hdf5_flipped_head(path):
    flip(path, 0)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [hdf5_truncated, hdf5_of_nothing, hdf5_without_betas, hdf5_with_a_group, hdf5_flipped, hdf5_flipped_head])
def test_damaged_hdf5_betas_are_refused_in_one_line(bucket, damage):
    to_hdf5(bucket, chunks=False, compression="gzip")
    damage(folder(bucket) / "betas_session02.hdf5")
    with pytest.raises(InputError, match="betas_session02.hdf5: not readable betas .*; delete it and fetch sim again") as error:
        list(source(bucket, form="hdf5").subject("subj01").trials.responses())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [hdf5_truncated, hdf5_without_betas, hdf5_flipped])
def test_damaged_pictures_are_refused_in_one_line(bucket, damage):
    with h5py.File(bucket / nsd.PICTURES, "r+") as file:
        images = file["imgBrick"][:]
        del file["imgBrick"]
        file.create_dataset("imgBrick", data=images, chunks=(41, *images.shape[1:]), compression="gzip")
        if damage is hdf5_flipped:
            file["betas"] = h5py.SoftLink("/imgBrick")
    damage(bucket / nsd.PICTURES)
    with pytest.raises(InputError, match="nsd_stimuli.hdf5: not (a )?readable .*; delete it and fetch sim again") as error:
        list(source(bucket).stimuli(None, 32))
    assert "\n" not in str(error.value)


def test_a_disagreement_names_the_row(bucket):
    table = pd.read_csv(bucket / nsd.TABLE, index_col=0)
    rows = table.index[table["subject1_rep0"] > 0][:2]
    a, b = rows
    first, second = table.loc[a, "subject1_rep0"], table.loc[b, "subject1_rep0"]
    table.loc[a, "subject1_rep0"], table.loc[b, "subject1_rep0"] = second, first
    table.to_csv(bucket / nsd.TABLE)
    early = min(first, second)
    named = b if early == first else a
    with pytest.raises(InputError, match=rf"row {named + 2} \(nsdId {named}\) names trial {early} of subject 1.*\(2 trials disagree\)"):
        source(bucket).subject("subj01")


def test_too_few_pictures(bucket):
    with h5py.File(bucket / nsd.PICTURES, "a") as file:
        images = file["imgBrick"][:-1]
        del file["imgBrick"]
        file["imgBrick"] = images
    with pytest.raises(InputError, match="409 pictures for 410 ids"):
        source(bucket).stimuli(None, 32)


def test_unknown_subject():
    with pytest.raises(InputError, match="subj09 is not a subject of NSD"):
        source("x").files("subj09")
