"""Small data sets in true layouts, by independent writers: GOD by bdpy, BOLD5000 by numpy and zipfile, NSD by scipy, pandas and h5py, HCP by nibabel's axes."""

import io
import zipfile

import h5py
import nibabel
import numpy as np
import pandas as pd
from nibabel.cifti2 import BrainModelAxis, SeriesAxis
from PIL import Image
from scipy.io import savemat

RNG = np.random.default_rng(5)

TRAINING, TESTS, REPEATS = 12, 4, 35  # pictures, and how often a test picture is shown
#: Picture numbers with trailing zeros, which a float forgets.
GOD_NAMES = [(1443537 + 97 * k, [22563, 100, 2500, 30, 9, 120000][k % 6] + k // 6) for k in range(TRAINING + TESTS)]
GOD_IDS = np.array([float(f"{synset}.{number:06d}") for synset, number in GOD_NAMES])
GOD_PIXELS = RNG.integers(0, 256, (len(GOD_NAMES), 12, 12, 3), dtype=np.uint8)
GOD_ROIS = {"V1": range(0, 5), "V2": range(5, 9), "LOC": range(7, 12), "VC": range(0, 13)}
GOD_VOXELS = 16


def write_god(root, imagery_ids=None):
    """Subject1.h5 as bdpy writes it: training, test and imagery runs shuffled together."""
    imagery = GOD_IDS[TRAINING:] if imagery_ids is None else imagery_ids
    kinds = np.r_[np.full(TRAINING, 1), np.full(TESTS * REPEATS, 2), np.full(len(imagery) * 2, 3)]
    values = np.r_[GOD_IDS[:TRAINING], np.tile(GOD_IDS[TRAINING:], REPEATS), np.tile(imagery, 2)]
    order = RNG.permutation(len(kinds))
    kinds, values = kinds[order], values[order]
    voxels = RNG.normal(size=(len(kinds), GOD_VOXELS))
    xyz = write_god_subject(root / "Subject1.h5", kinds, values, voxels, GOD_ROIS)
    write_god_pictures(root / "images", GOD_NAMES, GOD_PIXELS, TRAINING)
    return kinds, values, voxels, xyz


def write_god_subject(path, kinds, values, voxels, rois):
    """A subject's trials - kind, picture's number, responses - by bdpy; the voxels' coordinates."""
    import bdpy

    data, xyz = bdpy.BData(), RNG.normal(size=(3, voxels.shape[1])) * 30
    data.add(voxels, "VoxelData")
    data.add(kinds.astype(float), "DataType")
    data.add(values, "stimulus_id")
    for axis, row in zip("xyz", xyz, strict=True):
        data.add_metadata(f"voxel_{axis}", row, where="VoxelData")
    for name, members in rois.items():
        data.add_metadata(f"ROI_{name}", np.isin(np.arange(voxels.shape[1]), members).astype(float), where="VoxelData")
    data.save(str(path))
    return xyz


def write_god_pictures(root, names, pictures, training):
    """Pictures by the names (synset, number) of ImageNet, the first `training` of them shown in training."""
    for k, ((synset, number), pixels) in enumerate(zip(names, pictures, strict=True)):
        folder = root / ("training" if k < training else "test")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"n{synset:08d}_{number}.JPEG", "PNG")


RUN, RUNS, SESSIONS, REPEATED = 6, (11, 2, 3), 3, 4  # trials a run, runs of every session, pictures shown again
KINDS = {"COCO": "COCO_train2014_{:012d}.jpg", "ImageNet": "n01440764_{}.JPEG", "Scene": "airplanecabin{}.jpg"}
BOLD_ROIS = {"EarlyVis": 5, "LOC": 4, "OPA": 3, "PPA": 2, "RSC": 1}


def lossless(pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")  # no loss, so that pixels can be compared
    return stream.getvalue()


def make_bold5000(spelling=lambda hemisphere, roi: f"{hemisphere}{roi}"):
    """Files of a small release: trials, betas, pictures."""
    trials = RUN * sum(RUNS)
    once = trials - 4 * REPEATED + REPEATED
    names = [list(KINDS.values())[k % 3].format(k) for k in range(once)]
    pixels = {name: RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8) for name in names}
    again = names[:REPEATED]
    shown = [*names, *again, *again, *again]
    shown = [shown[k] for k in RNG.permutation(trials)]
    session = np.repeat(np.arange(1, SESSIONS + 1), np.array(RUNS) * RUN)
    files = {"Scene_Stimuli/repeated_stimuli_113_list.txt": "\n".join(again).encode()}
    kind_of = {name: kind for kind, pattern in KINDS.items() for name in names if name[:3] == pattern[:3]}
    for name in names:
        files[f"Scene_Stimuli/Presented_Stimuli/{kind_of[name]}/{name}"] = lossless(pixels[name])
    at, seen = 0, set()
    for number, runs in enumerate(RUNS, 1):
        for run in range(1, runs + 1):
            lines = []
            for name in shown[at : at + RUN]:
                lines.append(f"rep_{name}" if name in again and name in seen else name)
                seen.add(name)
            at += RUN
            folder = f"Stimuli_Presentation_Lists/CSI1/CSI1_sess{number:02d}"
            files[f"{folder}/CSI_sess{number:02d}_run{run:02d}.txt"] = ("\n".join(lines) + "\n").encode()
            files[f"{folder}/CSI_sess{number:02d}_run{run:02d}.mat"] = b"not read"
    betas, arrays = {}, {}
    for roi, size in BOLD_ROIS.items():
        for hemisphere in ("LH", "RH"):
            array = RNG.normal(size=(trials, size)).astype(np.float64)
            stream = io.BytesIO()
            np.save(stream, array)
            betas[f"py/CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{spelling(hemisphere, roi)}.npy"] = stream.getvalue()
            arrays[hemisphere + roi] = array
    return files, betas, arrays, shown, session, pixels, again


def save_bold5000(root, name, files, packed):
    if packed:
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for path in RNG.permutation(list(files)):
                archive.writestr(f"{name}/{path}", files[path])
            archive.writestr(f"__MACOSX/{name}/._x", b"")
    else:
        for path, content in files.items():
            (root / name / path).parent.mkdir(parents=True, exist_ok=True)
            (root / name / path).write_bytes(content)


NSD_FOLDER = "ppdata/subj01/func1pt8mm"
NSD_BETAS = f"nsddata_betas/{NSD_FOLDER}/betas_fithrf_GLMdenoise_RR"


def write_nsd_design(root, sessions=40, trials=750, shared=1000, late=18, ids=73000):
    """Design, table and pictures of subj01: every picture three times, `late` of the shared ones also in the last three sessions.

    Returns the 0-based nsdId of every trial and those of the shared pictures.
    """
    pictures = sessions * trials // 3
    sharedix = np.sort(RNG.permutation(ids)[:shared]) + 1
    subjectim = np.stack([np.r_[sharedix, np.setdiff1d(RNG.permutation(ids) + 1, sharedix, assume_unique=True)[: pictures - shared]] for _ in range(8)])
    rest = RNG.permutation(np.repeat(np.arange(shared + 1, pictures + 1), 3))
    last = RNG.permutation(np.r_[1 : late + 1, rest[: 3 * trials - late]])
    first = np.r_[np.repeat(np.arange(1, shared + 1), np.where(np.arange(shared) < late, 2, 3)), rest[3 * trials - late :]]
    order = np.r_[RNG.permutation(first), last]
    pattern = np.zeros((sessions, 12, 75), np.uint8)
    pattern.reshape(sessions, -1)[:, :trials] = 1
    experiment = root / "nsddata/experiments/nsd"
    experiment.mkdir(parents=True)
    savemat(
        experiment / "nsd_expdesign.mat",
        {"masterordering": order[None].astype(float), "sharedix": sharedix[None].astype(float), "subjectim": subjectim.astype(float), "stimpattern": pattern},
    )
    shown = subjectim[0, order - 1] - 1
    table = pd.DataFrame({"nsdId": np.arange(ids), "shared1000": np.isin(np.arange(ids) + 1, sharedix)})
    times = np.zeros((ids, 3), int)
    seen = np.zeros(ids, int)
    for trial, picture in enumerate(shown.tolist(), 1):
        times[picture, seen[picture]] = trial
        seen[picture] += 1
    for repeat in range(3):
        table[f"subject1_rep{repeat}"] = times[:, repeat]
    table.to_csv(experiment / "nsd_stim_info_merged.csv")
    return shown, sharedix - 1


def write_nsd_volumes(root, betas, roi):
    """ROI, noise ceiling and, in both forms, sessions of betas: int16 (sessions, trials, X, Y, Z), or one session that all of a list share."""
    affine = np.diag([1.8, 1.8, 1.8, 1])
    for folder in (f"nsddata/{NSD_FOLDER}/roi", NSD_BETAS):
        (root / folder).mkdir(parents=True)
    nibabel.Nifti1Image(roi.astype(np.int16), affine).to_filename(root / f"nsddata/{NSD_FOLDER}/roi/nsdgeneral.nii.gz")
    nibabel.Nifti1Image(RNG.random(roi.shape).astype(np.float32), affine).to_filename(root / f"{NSD_BETAS}/ncsnr.nii.gz")
    for number, session in enumerate(betas, 1):
        path = root / f"{NSD_BETAS}/betas_session{number:02d}"
        if number > 1 and session is betas[0]:
            for ending in (".nii.gz", ".hdf5"):
                path.with_name(path.name + ending).hardlink_to(root / f"{NSD_BETAS}/betas_session01{ending}")
            continue
        nibabel.Nifti1Image(np.moveaxis(session, 0, -1), affine).to_filename(f"{path}.nii.gz")
        with h5py.File(f"{path}.hdf5", "w") as file:
            file.create_dataset("betas", data=session.transpose(0, 3, 2, 1), chunks=(len(session), 1, 1, 1))


def write_cifti(path, volumes, left=29696, right=29716):
    """A dense time series, float32 (n, grayordinates), on two cortices of 32492 vertices each and the voxels below them."""

    def cortex(count, name):
        return BrainModelAxis.from_surface(np.sort(np.random.default_rng(count).permutation(32492)[:count]), 32492, name)

    below = np.zeros((40, 40, 40), bool)
    below.ravel()[: volumes.shape[1] - left - right] = True
    brain = cortex(left, "CortexLeft") + cortex(right, "CortexRight")
    if below.any():
        brain += BrainModelAxis.from_mask(below, "BrainStem", np.eye(4))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Cifti2Image(volumes, (SeriesAxis(0, 0.72, len(volumes)), brain)).to_filename(path)
