"""The thesis's study from stand-ins of the four servers to prepared files, by Snakemake: small data in the true layouts."""

import io
import secrets
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import yaml
from scipy.io import loadmat
from workflow_clone import ROOT, Clone

sys.path.insert(0, str(ROOT / "tests" / "data"))
from data_studies import small_study, study_with
from layouts import BOLD_ROIS, GOD_IDS, GOD_NAMES, GOD_PIXELS, GOD_ROIS, make_bold5000, write_god
from servers import http_site, s3_site

from unimind.data.prepared import PreparedSubject, Stimuli, read_unpaired
from unimind.data.sources import nsd
from unimind.data.sources.hcp import glasser
from unimind.data.sources.simulated import simulate, simulate_unpaired

pytestmark = pytest.mark.slow

SIZE, RUN = 12, "rfMRI_REST1_LR"
NSD_SUBJECTS, SCANNED = ("subj01", "subj07"), "100307"
SECRET = secrets.token_hex(20)  # bdpy writes the source of its caller into its files, so it must not stand there


def small_thesis(images: Path) -> dict:
    """config/thesis.yaml with fewer people and sessions, and BOLD5000 beside it."""
    study = yaml.safe_load((ROOT / "config" / "thesis.yaml").read_text()) | {"picture_size": SIZE}
    study["datasets"]["nsd"] |= {"training_subjects": ["subj01"], "new_subjects": ["subj07"], "sessions": 2}
    study["datasets"]["god"] |= {"training_subjects": ["Subject1"], "images": str(images)}
    study["datasets"]["bold5000"] = {"source": "bold5000", "training_subjects": ["CSI1"]}
    study["unpaired"] |= {"subjects": [SCANNED], "runs": [RUN]}
    del study["methods"]["unimind"]  # whose closed form one subject alone cannot teach
    for name in ("thesis-convmixer", "thesis-vit"):
        study["methods"][name]["align"] = {"losses": {"latent": 0.0}}  # which tells no subjects apart
    return study


def nsd_bucket(root: Path, training: Sequence[str] = NSD_SUBJECTS[:1], new: Sequence[str] = NSD_SUBJECTS[1:]) -> dict[str, bytes]:
    """NSD's files with betas as HDF5, written from what the simulated subjects measured."""
    study = small_study(root, training_subjects=list(training), new_subjects=list(new))
    study = study.model_copy(update={"picture_size": SIZE})
    simulate(study, "sim")
    for subject in (*training, *new):
        for file in simulate(study, "sim", subject):
            if file.name.startswith("betas_session"):
                with h5py.File(file.with_name(file.name.replace(".nii.gz", ".hdf5")), "w") as out:
                    out["betas"] = np.asarray(nibabel.load(file).dataobj).T
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def packed(name: str, files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path, content in files.items():
            archive.writestr(f"{name}/{path}", content)
    return stream.getvalue()


def scaled(raw: np.ndarray, session: np.ndarray, training: np.ndarray) -> np.ndarray:
    out = np.empty_like(raw)
    for number in np.unique(session):
        at = session == number
        out[at] = (raw[at] - raw[at & training].mean(0)) / raw[at & training].std(0).clip(1e-12)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run of Snakemake against all servers; what the writers put there."""
    pytest.importorskip("bdpy", reason="bdpy writes GOD's files here; it needs Python < 3.12")
    clone = Clone.make(tmp_path_factory.mktemp("thesis") / "unimind", standin=False)
    site = tmp_path_factory.mktemp("servers")
    (site / "god").mkdir()
    god, bold = write_god(site / "god"), make_bold5000()
    bucket = nsd_bucket(site / "nsd")
    rest = study_with(
        {"source": "simulated", "training_subjects": ["subj01"], "sessions": 2, "trials_per_session": 90, "shared_images": 10, "voxels": 100},
        unpaired={"source": "simulated", "subjects": [SCANNED], "root": str(site / "hcp"), "runs": [RUN], "volumes": 40},
    )
    (scan,) = simulate_unpaired(rest, SCANNED)
    content = (site / "god" / "Subject1.h5").read_bytes()
    served = {"/Subject1.h5": content, "/BOLD5000_Stimuli.zip": packed("BOLD5000_Stimuli", bold[0])}
    served["/BOLD5000_GLMsingle_ROI_betas.zip"] = packed("BOLD5000_GLMsingle_ROI_betas", bold[1])
    configfile = clone.study(small_thesis(site / "god" / "images"))
    wanted = ["god/stimuli", "god/Subject1", "bold5000/stimuli", "bold5000/CSI1", "nsd/stimuli", "nsd/subj01", "nsd/subj07", f"unpaired/{SCANNED}"]
    buckets = {"natural-scenes-dataset": bucket, "hcp-openaccess": {scan.relative_to(site / "hcp").as_posix(): scan.read_bytes()}}
    with http_site(files=served, cut_after=[len(content) // 3, 5000]) as http, s3_site(buckets, public=["natural-scenes-dataset"]) as s3:
        environment = {"no_proxy": "127.0.0.1", "AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "KEYOFTHEUSER", "AWS_SECRET_ACCESS_KEY": SECRET}
        environment |= {f"UNIMIND_MIRROR_{name}": http.address for name in ("GOD", "BOLD5000")}
        done = clone.snakemake(*(f"results/thesis/prepared/{name}.h5" for name in wanted), "--configfile", str(configfile), configfile=None, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return clone.folder, site, god, bold


def opened(run, dataset: str, subject: str):
    folder = run[0] / "results" / "thesis" / "prepared" / dataset
    return Stimuli(folder / "stimuli.h5"), PreparedSubject(folder / f"{subject}.h5")


@pytest.mark.parametrize("subject", NSD_SUBJECTS)
def test_nsd(run, subject):
    root = run[1] / "nsd"
    design = loadmat(root / nsd.DESIGN)
    order = design["masterordering"].ravel().astype(int) - 1
    shown = design["subjectim"][int(subject[-1]) - 1][order].astype(int) - 1
    shared = set(design["sharedix"].ravel().astype(int) - 1)
    with h5py.File(next(root.rglob("nsd_stimuli.hdf5"))) as file:
        brick = file["imgBrick"][:]
    functional = f"ppdata/{subject}/func1pt8mm"
    mask = np.asarray(nibabel.load(root / f"nsddata/{functional}/roi/nsdgeneral.nii.gz").dataobj) == 1
    betas = [
        np.asarray(nibabel.load(root / f"nsddata_betas/{functional}/betas_fithrf_GLMdenoise_RR/betas_session{number:02d}.nii.gz").dataobj)[mask].T / 300
        for number in (1, 2)
    ]
    pictures, prepared = opened(run, "nsd", subject)
    with pictures, prepared:
        assert [pictures.id[row] for row in prepared.stimulus] == [f"nsd{picture:05d}" for picture in shown]
        for row, picture in zip(prepared.stimulus, shown, strict=True):
            np.testing.assert_array_equal(pictures.images[int(row)], brick[picture])
        assert set(shown[prepared.split == 2]) <= shared and not set(shown[prepared.split != 2]) & shared
        raw = np.concatenate(betas)[:, prepared.stored]
        np.testing.assert_allclose(prepared.responses[:], scaled(raw, prepared.session, prepared.split == 0), atol=1e-3)


def test_god(run):
    kinds, values, voxels, _ = run[2]
    rows = np.flatnonzero(kinds < 3)
    shown = [int(np.flatnonzero(GOD_IDS == value)[0]) for value in values[rows]]
    pictures, prepared = opened(run, "god", "Subject1")
    with pictures, prepared:
        assert [pictures.id[row] for row in prepared.stimulus] == [f"n{GOD_NAMES[k][0]:08d}_{GOD_NAMES[k][1]}" for k in shown]
        for row, k in zip(prepared.stimulus, shown, strict=True):
            np.testing.assert_array_equal(pictures.images[int(row)], GOD_PIXELS[k])
        np.testing.assert_array_equal(prepared.split == 2, kinds[rows] == 2)
        raw = voxels[rows][:, list(GOD_ROIS["VC"])][:, prepared.stored]
        np.testing.assert_allclose(prepared.responses[:], scaled(raw, prepared.session, prepared.split == 0), atol=1e-4)


def test_bold5000(run):
    _, _, arrays, shown, session, pixels, again = run[3]
    pictures, prepared = opened(run, "bold5000", "CSI1")
    with pictures, prepared:
        assert [pictures.id[row] for row in prepared.stimulus] == shown
        for row, name in zip(prepared.stimulus, shown, strict=True):
            np.testing.assert_array_equal(pictures.images[int(row)], pixels[name][:, 2:14])
        np.testing.assert_array_equal(prepared.split == 2, np.isin(shown, again))
        np.testing.assert_array_equal(prepared.session, session)
        raw = np.concatenate([arrays[hemisphere + roi] for roi in BOLD_ROIS for hemisphere in ("LH", "RH")], axis=1)[:, prepared.stored]
        np.testing.assert_allclose(prepared.responses[:], scaled(raw, session, prepared.split == 0), atol=1e-4)


def test_hcp(run):
    labels, _ = glasser()
    visual = np.concatenate([np.flatnonzero((labels == area) | (labels == area + 180)) for area in (1, 4, 5, 6)])  # V1 to V4
    (scan,) = (run[1] / "hcp").rglob("*.dtseries.nii")
    volumes = nibabel.load(scan).get_fdata()[:, visual]
    means = volumes.reshape(4, 10, -1).mean(1)
    with read_unpaired(run[0] / f"results/thesis/prepared/unpaired/{SCANNED}.h5") as unpaired:
        np.testing.assert_allclose(unpaired.read(slice(None)), (means - means.mean(0)) / means.std(0), atol=1e-3)
    assert not list((run[0] / "data").rglob("*.dtseries.nii"))  # dropped after reduction


def test_keys_are_written_nowhere(run):
    for file in run[0].rglob("*"):
        if file.is_file() and not file.is_symlink():
            assert SECRET.encode() not in file.read_bytes(), file
