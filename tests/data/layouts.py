"""Small data sets in true layouts, by independent writers: GOD by bdpy, BOLD5000 by numpy and zipfile."""

import io
import zipfile

import numpy as np
from PIL import Image

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
    xyz = RNG.normal(size=(3, GOD_VOXELS)) * 30
    import bdpy

    data = bdpy.BData()
    data.add(voxels, "VoxelData")
    data.add(kinds.astype(float), "DataType")
    data.add(values, "stimulus_id")
    for axis, row in zip("xyz", xyz, strict=True):
        data.add_metadata(f"voxel_{axis}", row, where="VoxelData")
    for name, members in GOD_ROIS.items():
        data.add_metadata(f"ROI_{name}", np.isin(np.arange(GOD_VOXELS), members).astype(float), where="VoxelData")
    data.save(str(root / "Subject1.h5"))
    for k, ((synset, number), pixels) in enumerate(zip(GOD_NAMES, GOD_PIXELS, strict=True)):
        folder = root / "images" / ("training" if k < TRAINING else "test")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"n{synset:08d}_{number}.JPEG", "PNG")
    return kinds, values, voxels, xyz


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
