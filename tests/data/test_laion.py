"""LAION-fMRI from a stand-in of its bucket: betas, ROIs, noise ceiling, pictures and splits by name."""

import io
import json

import h5py
import nibabel
import numpy as np
import pytest
from laboratories import pictures_of
from PIL import Image
from servers import s3_site

from unimind.cli import main
from unimind.data.fetch import agreements
from unimind.data.prepared import PreparedSubject, Stimuli
from unimind.data.sources import open_source
from unimind.data.sources.base import DROP, TEST, TRAIN
from unimind.errors import InputError
from unimind.study import parse_study

SHAPE, TRIALS, SESSIONS = (6, 5, 4), 36, 2
NAMES = [f"shared_12rep_LAION_cluster_{k}_i0.jpg" for k in range(20)] + [f"shared_4rep_OOD_{kind}_{k}.png" for k, kind in enumerate(["shape", "gabor"] * 2)]
AFFINE = np.diag([1.778, 1.778, 1.778, 1])


def encoded(picture, name):
    stream = io.BytesIO()
    alpha = np.full((*picture.shape[:2], 1), 64, np.uint8)
    pixels = np.concatenate([picture, alpha], 2) if "OOD" in name else picture
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def nifti(values) -> bytes:
    return nibabel.Nifti1Image(values, AFFINE).to_bytes()


def packed(values) -> bytes:
    import gzip

    return gzip.compress(nifti(values), 1)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The bucket's files, and a root with what cannot be downloaded: pictures, and the splits of the data set's package."""
    random = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("laion")
    pixels = pictures_of(random, len(NAMES))
    (root / "stimuli").mkdir()
    with h5py.File(root / "stimuli/task-images_stimuli.h5", "w") as file:
        data = file.create_dataset("images", (len(NAMES),), h5py.vlen_dtype(np.uint8))
        for row, (picture, name) in enumerate(zip(pixels, NAMES, strict=True)):
            data[row] = np.frombuffer(encoded(picture, name), np.uint8)
    (root / "stimuli/task-images_metadata.csv").write_text("image_name,dataset\n" + "".join(f"{name},x\n" for name in NAMES))
    splits = {"tau": (NAMES[6:20], NAMES[:4]), "ood": (NAMES[:20], NAMES[20:])}
    for name, (train, test) in splits.items():
        (root / "splits/sub-03").mkdir(parents=True, exist_ok=True)
        content = {"name": name, "n_train": len(train), "n_test": len(test), "variants": [{"variant_id": 0, "train_ids": train, "test_ids": test}]}
        (root / f"splits/sub-03/{name}.json").write_text(json.dumps(content))
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:4, 1:4, 1:3] = 1
    ceiling = random.uniform(0, 90, SHAPE).astype(np.float32)
    bucket, shown, volumes = {}, [], []
    for session in range(1, SESSIONS + 1):
        stem = f"derivatives/glmsingle-tedana/sub-03/ses-{session:02d}/func/sub-03_ses-{session:02d}_task-images"
        order = random.permutation(np.resize(np.arange(len(NAMES)), TRIALS))
        volume = random.normal(size=(*SHAPE, TRIALS)).astype(np.float32)
        volume[1, 1, 1, 3] = np.nan
        rows = [f"ses-{session:02d}\t{1 + k // 12}\t{k}\t{NAMES[picture]}" for k, picture in enumerate(order)]
        bucket[f"{stem}_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"] = packed(volume)
        bucket[f"{stem}_desc-SingletrialBetas_trials.tsv"] = ("session\trun\tbeta_index\tlabel\n" + "\n".join(rows) + "\n").encode()
        shown.append(order)
        volumes.append(volume)
    bucket["derivatives/glmsingle-tedana/sub-03/sub-03_task-images_space-T1w_desc-Noiseceiling4rep_statmap.nii.gz"] = packed(ceiling)
    bucket["derivatives/atlases/sub-03/rois/laion-general.nii.gz"] = packed(mask)
    return root, bucket, pixels, np.concatenate(shown), np.concatenate([volume[mask > 0].T for volume in volumes]), ceiling[mask > 0]


def study_of(root, **changes):
    section = {"source": "laion-fmri", "root": str(root), "training_subjects": ["sub-03"], "sessions": SESSIONS, "validation_fraction": 0, **changes}
    method = {"enter": {"kind": "ridge"}, "scope": "subject"}
    return {"name": "s", "picture_size": 24, "datasets": {"laion": section}, "methods": {"m": method}, "foundations": {"diffusion": {"kind": "study"}}}


def test_from_the_bucket_to_prepared_trials(site, tmp_path, monkeypatch):
    root, bucket, pixels, shown, responses, ceiling = site
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "study.json").write_text(json.dumps(study_of(root)))
    monkeypatch.chdir(tmp_path)
    given = ["--study", "study.json", "--dataset", "laion"]
    with s3_site({"laion-fmri": bucket}) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert main(["fetch", *given, "--stimuli", "--out", "p.json"]) == 0
        assert main(["fetch", *given, "--subject", "sub-03", "--out", "s.json"]) == 0
    assert main(["stimuli", *given, "--fetched", "p.json", "--out", "p.h5"]) == 0
    assert main(["prepare", *given, "--subject", "sub-03", "--fetched", "s.json", "--stimuli", "p.h5", "--training-stimuli", "p.h5", "--out", "s.h5"]) == 0
    with PreparedSubject("s.h5") as data, Stimuli("p.h5") as stimuli:
        kept = ~np.isin(shown, [4, 5, *range(20, 24)])  # pictures outside the split
        assert [stimuli.id[row] for row in data.stimulus] == [NAMES[k] for k in shown[kept]]
        np.testing.assert_array_equal(data.split == TEST, shown[kept] < 4)
        session = np.repeat([1, 2], TRIALS)
        whole = np.isfinite(responses).all(0)
        assert data.n_voxels == whole.sum() == len(ceiling) - 1
        train = kept & (shown >= 6)
        expected = np.empty_like(responses)
        for number in (1, 2):
            at = session == number
            expected[at] = (responses[at] - responses[at & train].mean(0)) / responses[at & train].std(0)
        np.testing.assert_allclose(data.responses[:], expected[kept][:, data.stored], atol=1e-4)
        ratio = ceiling / 100 / (1 - ceiling / 100) / 4
        np.testing.assert_allclose(data.noise_ceiling, (ratio / (1 + ratio))[data.stored], rtol=1e-4)
        np.testing.assert_array_equal(stimuli.images[3], pixels[3])
        over_grey = pixels[21] * (64 / 255) + 127.5 * (1 - 64 / 255)
        np.testing.assert_allclose(stimuli.images[21], over_grey, atol=0.51)


def test_splits_by_name_and_kind(site):
    root, bucket, *_ = site
    for path, content in bucket.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    shown = site[3]
    for changes, test, train in (({"split": "ood"}, {20, 21, 22, 23}, set(range(20))), ({"split": "ood", "ood_types": ["gabor"]}, {21, 23}, set(range(20)))):
        source = open_source(parse_study(study_of(root, **changes)), "laion")
        split = source.subject("sub-03").trials.split
        expected = [TEST if k in test else TRAIN if k in train else DROP for k in shown]
        np.testing.assert_array_equal(split, expected)
    with pytest.raises(InputError, match="ood_types: only for split ood; tau given"):
        parse_study(study_of(root, ood_types=["gabor"]))
    with pytest.raises(InputError, match="sub-02 is no subject of LAION-fMRI"):
        open_source(parse_study(study_of(root, training_subjects=["sub-02"])), "laion")


def test_who_lacks_the_pictures_is_told_where_to_ask(tmp_path):
    (line,) = agreements(parse_study(study_of(tmp_path)))
    assert "laion-fmri.hebartlab.com/request" in line
