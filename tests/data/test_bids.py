"""Four laboratories' files, by the blocks of docs/data.md, to prepared subjects and the study's ridge regression; and betas against independent computation."""

import json
import re
import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from himalaya.ridge import RidgeCV
from laboratories import AFFINE, GRID, LABELS, TR, Betas, Runs, write_glmsingle, write_mosaic
from nibabel.cifti2 import BrainModelAxis, SeriesAxis
from nilearn.glm.first_level import make_first_level_design_matrix, run_glm
from sklearn.model_selection import KFold

from unimind.cli import main
from unimind.data.descriptor import describe
from unimind.data.inspect import identified, show
from unimind.data.prepared import PreparedSubject, Stimuli
from unimind.data.sources import open_source
from unimind.data.sources.base import TEST
from unimind.errors import InputError
from unimind.models.ridge import TOGETHER
from unimind.reconstruction.decoder import Decoder
from unimind.reconstruction.predict import predict_pictures
from unimind.storage import read_json
from unimind.study import parse_study
from unimind.training.enter import enter, read_trials

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
MOTION = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]


def block(name: str, root: Path) -> dict:
    """The data sets of a block of the documentation, at most 15 lines long, with its root in the test's folder."""
    text = re.search(rf"<!-- {name} -->\n```yaml\n(.*?)```", DOCS, re.DOTALL)[1]
    assert len(text.splitlines()) <= 15
    ((dataset, section),) = yaml.safe_load(text)["datasets"].items()
    return {dataset: section | {"root": str(root)}}


def study_of(datasets: dict, **changes):
    ((dataset, section),) = datasets.items()
    method = {"enter": {"kind": "ridge"}, "scope": "subject"}
    content = {"name": "s", "picture_size": 24, "methods": {"m": method}, "foundations": {"diffusion": {"kind": "study"}}}
    return content | {"datasets": {dataset: section | changes}}


def through_the_stages(folder: Path, datasets: dict, subject: str, **changes) -> Path:
    """fetch, stimuli, prepare and inspect on the command line; the folder of what they wrote."""
    ((dataset, section),) = datasets.items()
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study_of(datasets, **changes)))
    given = ["--study", str(folder / "study.json"), "--dataset", dataset]
    files = {name: str(folder / name) for name in ("pictures.json", "s.json", "stimuli.h5", "s.h5", "found.json")}
    pictures = ["--stimuli", files["stimuli.h5"]]
    for command in (
        ["fetch", *given, "--stimuli", "--out", files["pictures.json"]],
        ["fetch", *given, "--subject", subject, "--out", files["s.json"]],
        ["stimuli", *given, "--fetched", files["pictures.json"], "--out", files["stimuli.h5"]],
        ["prepare", *given, "--subject", subject, "--fetched", files["s.json"], *pictures, "--training-stimuli", files["stimuli.h5"], "--out", files["s.h5"]],
        ["inspect", *given, "--subject", subject, "--prepared", files["s.h5"], *pictures, "--fetched", files["s.json"], "--out", files["found.json"]],
    ):
        assert main(command) == 0, command
    return folder


def identifications(folder: Path, datasets: dict, subject: str, tmp: Path) -> dict[str, float]:
    """Two-way identification of the test pictures, from their predicted embedding: by the study's ridge regression, by himalaya's on the same
    betas, and the mean of the study's for shuffled training pictures."""
    ((dataset, _),) = datasets.items()
    study = parse_study(study_of(datasets))
    with Stimuli(folder / "stimuli.h5") as pictures:
        described = describe(pictures.read(np.arange(len(pictures))))
    described = described @ np.random.default_rng(0).normal(size=(described.shape[1], 64)).astype(np.float32)  # as of a network: all in every dimension
    described /= np.linalg.norm(described, axis=1, keepdims=True)
    with h5py.File(tmp / "embeddings.h5", "w") as file:
        file["embedding"], file["latent"] = described, described.reshape(-1, 1, 8, 8)

    def ridge(prepared: Path) -> float:
        enter(study, "m", dataset, subject, prepared, tmp / "embeddings.h5", None, tmp / "model")
        decoder = Decoder(tmp / "model", None, dataset, subject).to(torch.device("cpu"))
        with PreparedSubject(folder / "s.h5") as data:
            shown, predicted = predict_pictures(decoder, data, "test", 32)
        return value(predicted.embedding.numpy(), shown)

    def value(predicted, shown) -> float:
        return identified(predicted - centre, described[shown] - centre, 0)["value"]

    trials = read_trials(folder / "s.h5")
    centre = described[trials.images].mean(0)
    with PreparedSubject(folder / "s.h5") as data:
        test, responses, _ = data.by_picture(data.trials("test"), "stored")
    scale = described[trials.images].std(0)
    axes = np.linalg.svd((described[trials.images] - centre) / scale, full_matrices=False)[2]
    components = ((described[trials.images] - centre) / scale) @ axes.T
    by_himalaya = RidgeCV(alphas=np.logspace(-1, 6, 8), cv=KFold(5, shuffle=True, random_state=study.seed), solver_params={"warn": False, "local_alpha": False})
    train, asked = trials.responses - trials.responses.mean(0), responses[:, 0] - trials.responses.mean(0)
    together = [components[:, first : first + TOGETHER] for first in range(0, components.shape[1], TOGETHER)]  # with one penalty each, as the study's
    predicted = centre + scale * (np.concatenate([np.asarray(by_himalaya.fit(train, part).predict(asked)) for part in together], 1) @ axes)
    shuffled = []
    for seed in range(5):
        shutil.copy(folder / "s.h5", tmp / "shuffled.h5")
        with h5py.File(tmp / "shuffled.h5", "r+") as file:
            stimulus, train = file["stimulus"][:], file["split"][:] < 2
            images = np.unique(stimulus[train])
            stimulus[train] = np.random.default_rng(seed).permutation(images)[np.searchsorted(images, stimulus[train])]
            file["stimulus"][:] = stimulus
        shuffled.append(ridge(tmp / "shuffled.h5"))
    return {"ridge": ridge(folder / "s.h5"), "himalaya": value(predicted, test), "shuffled": float(np.mean(shuffled))}


def scored(x, session, train):
    out = np.empty_like(x)
    for number in np.unique(session):
        at = session == number
        out[at] = (x[at] - x[at & train].mean(0)) / x[at & train].std(0)
    return out


def hold(found: dict[str, float], least: float) -> None:
    """Ridge finds the planted signal as well as himalaya does, and none where pictures are shuffled."""
    assert abs(found["ridge"] - found["himalaya"]) <= 0.02 and found["ridge"] >= least and abs(found["shuffled"] - 0.5) < 0.1, found


# --- four laboratories --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def betas(tmp_path_factory):
    return Betas(tmp_path_factory.mktemp("betas"), subjects=("01", "02")).write()


def test_betas_with_trial_tables(betas, tmp_path):
    folder = through_the_stages(tmp_path, block("bids betas", betas.root), "02")
    with PreparedSubject(folder / "s.h5") as data, Stimuli(folder / "stimuli.h5") as pictures:
        shown = np.concatenate(betas.shown["02"])
        assert [pictures.id[row] for row in data.stimulus] == [betas.names[k] for k in shown]
        assert ((data.split == TEST) == (shown % 5 == 0)).all() and data.roi_names == ["V1", "V2"]
        inside = betas.atlas[betas.atlas > 0]
        labelled = np.where(inside == 3, 1, 0)[data.stored]
        np.testing.assert_array_equal(data.roi, labelled)
        expected = scored(betas.measured["02"], data.session, data.split == 0)
        np.testing.assert_allclose(data.responses[:], expected[:, data.stored], atol=2e-4)
        assert data.run.max() == betas.runs and (data.run[:18] == 1).all()
    found = read_json(folder / "found.json")
    hold(identifications(folder, block("bids betas", betas.root), "02", tmp_path), 0.7)
    assert found["findings"] == [] and found["decodable"] and found["identification"]["p"] < 0.01
    assert {row["roi"] for row in found["rois"]} == {"V1", "V2"} and all(0.2 < row["noise_ceiling"] < 0.6 for row in found["rois"])


@pytest.mark.parametrize("form", ["volume", "gifti"])
def test_time_series_with_events(tmp_path, form):
    lab = Runs(tmp_path / "lab", form=form).write()
    surface = {"form": "gifti", "space": "fsaverage6", "rois": {"visual": {"file": "derivatives/masks/sub-{subject}_hemi-{hemi}_visual.label.gii"}}}
    folder = through_the_stages(tmp_path / "out", block("bids runs", lab.root), "01", **(surface if form == "gifti" else {}))
    with PreparedSubject(folder / "s.h5") as data, Stimuli(folder / "stimuli.h5") as pictures:
        assert [pictures.id[row] for row in data.stimulus] == [lab.names[k] for k in np.concatenate(lab.shown)]
        np.testing.assert_allclose(data.onset, np.concatenate(lab.onsets), atol=1e-3)
        assert data.run.tolist() == np.repeat([1, 2, 1, 2], lab.trials).tolist()
    found = read_json(folder / "found.json")
    hold(identifications(folder, block("bids runs", lab.root), "01", tmp_path), 0.75)
    assert found["findings"] == [] and found["decodable"]
    assert 8.5 < found["intervals"]["median"] < 9.5 and 1 <= found["intervals"]["variance_inflation"] < 3


@pytest.mark.parametrize("ending", [".npy", ".hdf5"])
def test_glmsingle(tmp_path, ending):
    written = write_glmsingle(tmp_path / "lab", ending)
    ((dataset, section),) = block("GLMsingle", tmp_path / "lab").items()
    datasets = {dataset: section | {"training_subjects": ["s1"], "responses": section["responses"].replace(".npy", ending)}}
    folder = through_the_stages(tmp_path / "out", datasets, "s1")
    with PreparedSubject(folder / "s.h5") as data, Stimuli(folder / "stimuli.h5") as pictures:
        assert [pictures.id[row] for row in data.stimulus] == [written["names"][k] for k in written["shown"]]
        expected = scored(written["responses"], written["session"], data.split == 0)
        np.testing.assert_allclose(data.responses[:], expected[:, data.stored], atol=2e-4)
    found = read_json(folder / "found.json")
    assert found["findings"] == [] and found["decodable"] and 0.2 < found["noise_ceiling"] < 0.6
    hold(identifications(folder, datasets, "s1", tmp_path), 0.7)


def test_mosaic(tmp_path):
    written = write_mosaic(tmp_path / "mosaic", ("sub-01_NSD", "sub-02_NSD"))
    folder = through_the_stages(tmp_path / "out", block("mosaic", tmp_path / "mosaic"), "sub-01_NSD", areas=["V1"])
    with PreparedSubject(folder / "s.h5") as data, Stimuli(folder / "stimuli.h5") as pictures:
        assert (~np.isfinite(written["responses"]["sub-01_NSD", 20, 0])).sum() == data.attributes["protocol"]["dropped_units"] == 1
        assert ((data.split == TEST) == (data.stimulus < 20)).all() and data.roi_names == ["V1"]
        np.testing.assert_allclose(data.noise_ceiling, 0.3)
        names = [pictures.id[row] for row in data.stimulus]
        keys = sorted((f"sub-01_NSD_stimulus-{name[:-4]}_phase-{'test' if k < 20 else 'train'}_rep-{repeat}", k, repeat)
                      for k, name in enumerate(written["names"]) for repeat in range(3))  # fmt: skip
        assert names == [written["names"][k] for _, k, _ in keys]
        raw = np.stack([written["responses"]["sub-01_NSD", k, repeat] for _, k, repeat in keys])
        from unimind.data.sources.hcp import glasser

        where = np.flatnonzero(np.isin(glasser()[0], glasser()[1]["V1"]))
        where = where[where != written["where"][3]]
        np.testing.assert_allclose(data.responses[:], scored(raw[:, where], data.session, data.split == 0), atol=1e-4)
    hold(identifications(folder, block("mosaic", tmp_path / "mosaic"), "sub-01_NSD", tmp_path), 0.7)
    assert read_json(folder / "found.json")["lags"] is None
    by_name = study_of(block("mosaic", tmp_path / "mosaic"), areas=["V1"], split="splits.json")
    raw = open_source(parse_study(by_name), "mosaic").subject("sub-01_NSD")
    shown = [int(name[5:8]) for name in raw.trials.stimulus]
    assert raw.trials.split.tolist() == [TEST if k < 20 else -1 if k < 25 else 0 for k in shown]


# --- betas against independent computation ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"), sessions=1, runs=2, trials=15, volumes=120, count=30).write()


def series_of(lab, run):
    stem = lab.root / f"derivatives/fmriprep/sub-01/ses-01/func/sub-01_ses-01_task-images_run-{run}"
    volume = nibabel.load(f"{stem}_space-T1w_desc-preproc_bold.nii.gz").get_fdata()[lab.mask > 0].T
    confounds = pd.read_csv(f"{stem}_desc-confounds_timeseries.tsv", sep="\t")[[*MOTION, "trans_x_derivative1"]].fillna(0)
    return 100 * volume / volume.mean(0), confounds.to_numpy(), TR / 2 + TR * np.arange(len(volume))


def estimated(lab, **estimate):
    names = [*MOTION, "trans_x_derivative1"]
    source = open_source(parse_study(study_of(block("bids runs", lab.root), estimate={"confounds": names, "high_pass": 0.02, **estimate})), "lab")
    raw = source.subject("01")
    return np.concatenate(list(raw.trials.responses()))


def by_nilearn(series, confounds, times, events):
    matrix = make_first_level_design_matrix(times, events, hrf_model="spm", high_pass=0.02, add_regs=confounds)
    labels, results = run_glm(series, matrix.to_numpy(), noise_model="ols")
    return dict(zip(matrix.columns, np.concatenate([results[label].theta for label in np.unique(labels)], axis=1), strict=True))


def test_least_squares_separate_and_all_are_nilearns(runs):
    for kind in ("lss", "lsa"):
        expected = []
        for run in (1, 2):
            series, confounds, times = series_of(runs, run)
            onset = runs.onsets[run - 1]
            presses = pd.DataFrame({"onset": np.round(onset[::3] + 2, 3), "duration": 0.0, "trial_type": "press"})
            for k in range(len(onset)):
                names = [f"t{j:02d}" for j in range(len(onset))] if kind == "lsa" else ["own" if j == k else "other" for j in range(len(onset))]
                events = pd.concat([pd.DataFrame({"onset": onset, "duration": 1.0, "trial_type": names}), presses])
                found = by_nilearn(series, confounds, times, events)
                if kind == "lsa":
                    expected += [found[name] for name in names]
                    break
                expected.append(found["own"])
        expected = np.stack(expected)
        np.testing.assert_allclose(estimated(runs, kind=kind, hrf="spm", conditions=["press"]), expected, atol=1e-5 * abs(expected).max())


def test_the_lag_window_is_the_mean_of_what_is_left_of_its_volumes(runs):
    expected = []
    for run in (1, 2):
        series, confounds, times = series_of(runs, run)
        drifts = make_first_level_design_matrix(times, high_pass=0.02, add_regs=confounds).to_numpy()
        left = series - drifts @ np.linalg.lstsq(drifts, series, rcond=None)[0]
        expected += [left[(times >= onset + 4) & (times < onset + 8)].mean(0) for onset in runs.onsets[run - 1]]
    expected = np.stack(expected)
    np.testing.assert_allclose(estimated(runs, kind="lag-window", window=[4, 8]), expected, atol=1e-5 * abs(expected).max())


def test_cifti_series_are_read_by_area(tmp_path):
    lab = Runs(tmp_path, sessions=1, runs=1, trials=10, volumes=90, count=20).write()
    func = tmp_path / "derivatives/fmriprep/sub-01/ses-01/func"
    from unimind.data.sources.hcp import LEFT, RIGHT, glasser

    values = 100 + np.random.default_rng(0).normal(size=(90, LEFT + RIGHT)).astype(np.float32)
    axes = [BrainModelAxis.from_surface(np.arange(count), 32492, f"CORTEX_{side}") for count, side in ((LEFT, "LEFT"), (RIGHT, "RIGHT"))]
    rest = np.full((90, 91282 - LEFT - RIGHT), 100, np.float32)
    third = BrainModelAxis.from_mask(np.ones((rest.shape[1], 1, 1), bool), affine=np.eye(4), name="CEREBELLUM")
    image = nibabel.Cifti2Image(np.hstack([values, rest]), header=(SeriesAxis(0, TR, 90), axes[0] + axes[1] + third))
    nibabel.save(image, func / "sub-01_ses-01_task-images_run-1_space-fsLR_den-91k_bold.dtseries.nii")
    areas = {"form": "cifti", "space": "fsLR", "rois": {"early": {"areas": ["V1", "V2"]}}}
    areas["estimate"] = {"kind": "lag-window", "window": [4, 8], "confounds": []}
    raw = open_source(parse_study(study_of(block("bids runs", lab.root), **areas)), "lab").subject("01")
    labels, known = glasser()
    where = np.flatnonzero(np.isin(labels, known["V1"] + known["V2"]))
    times = TR * np.arange(90)
    drifts = make_first_level_design_matrix(times, high_pass=0.01).to_numpy()
    series = 100 * values[:, where] / values[:, where].mean(0, dtype=float)
    left = series - drifts @ np.linalg.lstsq(drifts, series, rcond=None)[0]
    expected = np.stack([left[(times >= onset + 4) & (times < onset + 8)].mean(0) for onset in lab.onsets[0]])
    assert raw.roi_names == ["V1", "V2"]
    np.testing.assert_allclose(np.concatenate(list(raw.trials.responses())), expected, atol=1e-4)


# --- tables and masks ---------------------------------------------------------------------------------------------


def source_of(lab, **changes):
    return open_source(parse_study(study_of(block("bids betas", lab.root), **changes)), "lab")


@pytest.fixture
def lab(tmp_path):
    return Betas(tmp_path, sessions=2, runs=2, trials=15, count=30, subjects=("01", "02")).write()


def table_of(lab, session=1):
    return lab.betas("01", session).with_name(f"sub-01_ses-{session:02d}_task-images_desc-SingletrialBetas_trials.tsv")


def test_beta_index_counts_from_0_or_1_and_says_the_order(lab, capsys):
    shown = [lab.names[k] for k in lab.shown["01"][0]]
    mixed = np.random.default_rng(0).permutation(30)
    lab.table("01", 1, [shown[k] for k in mixed], mixed + 1)
    lab.table("01", 2, [lab.names[k] for k in lab.shown["01"][1]], np.arange(30) + 1)
    text = table_of(lab).read_text().replace("\n", "\r\n").replace(shown[3], "n/a").replace("img_", "folder/img_")
    table_of(lab).write_text("\ufeff" + text)
    table_of(lab, 2).write_text(table_of(lab, 2).read_text().replace("img_", "folder/img_").replace("\t", ";"))
    raw = source_of(lab).subject("01")
    kept = [k for k in range(30) if shown[k] != shown[3]]
    assert list(raw.trials.stimulus)[: len(kept)] == [shown[k] for k in kept]
    np.testing.assert_array_equal(next(raw.trials.responses()), lab.measured["01"][:30][kept])
    said = capsys.readouterr().err
    assert "beta_index counts from 1" in said and f"{30 - len(kept)} of 30 trials show no picture" in said


def test_sessions_are_numbers_whatever_their_order_in_the_folder(lab):
    """ses-2 comes before ses-10."""
    for old, new in ((1, "2"), (2, "10")):
        folder = lab.betas("01", old).parents[1]
        for file in folder.rglob("*.*"):
            text = file.read_text().replace(f"ses-{old:02d}", f"ses-{new}") if file.suffix == ".tsv" else None
            if text:
                file.write_text(text)
            file.rename(file.with_name(file.name.replace(f"ses-{old:02d}", f"ses-{new}")))
        folder.rename(folder.with_name(f"ses-{new}"))
    raw = source_of(lab, training_subjects=["01"]).subject("01")
    assert list(dict.fromkeys(raw.trials.session.tolist())) == [2, 10]
    np.testing.assert_array_equal(np.concatenate(list(raw.trials.responses())), lab.measured["01"])


def test_tables_and_pictures_of_a_laboratory_s_own_making(lab, tmp_path_factory):
    """A blank row, semicolons, rows out of order, a trial without a beta; pictures in an array, counted from 1; files outside the root."""
    other = tmp_path_factory.mktemp("elsewhere")
    np.save(other / "pictures.npy", lab.pixels)
    (lab.root / "derivatives/masks").rename(other / "masks")
    for session in (1, 2):
        rows = table_of(lab, session).read_text().splitlines()
        head, rows = rows[0], [re.sub(r"img_(\d+).png", lambda found: str(int(found[1]) + 1), row) for row in rows[1:]]
        table_of(lab, session).write_text("\n".join([head, "", *rows[::-1], f"ses-{session:02d}\t1\tn/a\t1"]).replace("\t", ";") + "\n\n")
    rois = {"all": {"file": f"{other}/masks/sub-{{subject}}_dseg.nii.gz"}}
    source = source_of(lab, images=f"{other}/pictures.npy", rois=rois)
    raw = source.subject("01")
    assert [int(name) for name in raw.trials.stimulus] == np.concatenate(lab.shown["01"]).tolist()
    np.testing.assert_array_equal(np.concatenate(list(raw.trials.responses())), lab.measured["01"])
    assert {str(other / "pictures.npy"), str(other / "masks/sub-01_dseg.nii.gz")} < {file.path for file in source.files("01")}
    table_of(lab, 2).write_text(table_of(lab, 2).read_text().replace(";29;", ";x;"))
    with pytest.raises(InputError, match="line 3: beta_index is 'x'"):
        source_of(lab, images=f"{other}/pictures.npy", rois=rois).subject("01")


def test_sessions_may_be_words(lab):
    """One table of all sessions, whose labels are no numbers."""
    rows = [row for session in (1, 2) for row in table_of(lab, session).read_text().splitlines()[session > 1 :]]
    for session, word in ((1, "before"), (2, "later")):
        table_of(lab, session).unlink()
        file = lab.betas("01", session)
        file.rename(file.with_name(file.name.replace(f"ses-{session:02d}", f"ses-{word}")))
        rows = [row.replace(f"ses-{session:02d}", word if session == 1 else f"ses-{word}") for row in rows]
    (lab.root / "derivatives/glmsingle/sub-01/sub-01_task-images_desc-SingletrialBetas_trials.tsv").write_text("\n".join(rows) + "\n")
    raw = source_of(lab).subject("01")
    assert raw.trials.session.tolist() == [1] * 30 + [2] * 30
    assert list(raw.trials.stimulus) == [lab.names[k] for k in np.concatenate(lab.shown["01"])]


def replaced(old, new, count=1):
    return lambda lab: table_of(lab).write_text(table_of(lab).read_text().replace(old, new, count))


def dropped_row(lab):
    table_of(lab).write_text("\n".join(table_of(lab).read_text().splitlines()[:-1]).replace("beta_index", "other") + "\n")


def moved_mask(lab):
    affine = AFFINE.copy()
    affine[0, 3] += 2
    nibabel.save(nibabel.Nifti1Image(lab.atlas, affine), lab.root / "derivatives/masks/sub-01_dseg.nii.gz")


def probabilities(lab):
    nibabel.save(nibabel.Nifti1Image(lab.atlas.astype(np.float32) / 7, AFFINE), lab.root / "derivatives/masks/sub-01_dseg.nii.gz")


def complex_mask(lab):
    nibabel.save(nibabel.Nifti1Image(lab.atlas.astype(np.complex64), AFFINE), lab.root / "derivatives/masks/sub-01_dseg.nii.gz")


def one_volume(lab):
    image = nibabel.load(lab.betas("01", 1))
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[..., 0], AFFINE), lab.betas("01", 1))


def twice(lab):
    file = lab.betas("01", 1)
    file.with_name(file.name.replace("T1w", "T1w_res-2")).write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (replaced("ses-01\t1\t3\t", "ses-01\t1\t2\t"), r"trials.tsv line 5: beta_index 2 stands in line 4 too"),
        (replaced("ses-01\t1\t3\t", "ses-01\t1\t33\t"), r"line 5: beta_index 33 is outside 0 to 29, counted from 0"),
        (replaced("ses-01\t1\t3\t", "ses-02\t1\t3\t"), r"line 5: session is ses-02, but the file is of session 01"),
        (replaced("ses-01\t1\t3\timg_", "ses-01\t1\t3\tpic_"), r"line 5: no picture 'pic_"),
        (replaced("ses-01\t1\t3\t", "ses-01\t1\tx\t"), r"line 5: beta_index is 'x'; expected a whole number"),
        (replaced("label", "shown"), r"no column 'label' that names the picture; it has session, run, beta_index, shown"),
        (dropped_row, r"29 rows, but sub-01_ses-01.* holds 30 trials, and no column beta_index"),
        (moved_mask, r"sub-01_dseg.nii.gz: not on the grid of sub-01_ses-01.*another affine"),
        (complex_mask, r"sub-01_dseg.nii.gz: the image holds complex numbers"),
        (one_volume, r"3 axes; expected four, the last one trials"),
        (replaced("ses-01\t1\t3\t", "n/a\t1\t3\t"), r"line 5: session is 'n/a'"),
        (probabilities, r"holds values such as 0.4.*rois.visual.above"),
        (lambda lab: table_of(lab).unlink(), r"no _trials.tsv for sub-01_ses-01"),
        (twice, r"several files for one run; name one by task, space or desc"),
    ],
)
def test_what_does_not_fit_is_one_line(lab, damage, words):
    damage(lab)
    with pytest.raises(InputError, match=words) as caught:
        source_of(lab).subject("01")
    assert "\n" not in str(caught.value)


def events_of(lab):
    return lab.root / "sub-01/ses-01/func/sub-01_ses-01_task-images_run-1_events.tsv"


def onset_twice(lab):
    lines = events_of(lab).read_text().splitlines()
    events_of(lab).write_text("\n".join([*lines[:2], "", *lines[1:]]) + "\n")


def sidecar_of(content):
    return lambda lab: next(lab.root.rglob("*run-1*bold.json")).write_text(content)


@pytest.mark.parametrize(
    ("damage", "estimate", "words"),
    [
        (onset_twice, {}, r"run-1_events.tsv line 4: two pictures at .* s, this one and that of line 2; their responses cannot be told apart"),
        (sidecar_of('{"RepetitionTime": "1.5"}'), {}, r"bold.json: RepetitionTime is '1.5'; expected seconds"),
        (sidecar_of("[1.5]"), {}, r"bold.json: list given; expected names and values"),
        (sidecar_of('{"RepetitionTime": 2}'), {}, r"its header says 1.5 s between volumes, its .json RepetitionTime 2; mend one"),
        (lambda lab: None, {"conditions": ["pres"]}, r"no event without a picture has the trial_type 'pres'; there are press; correct"),
    ],
)
def test_runs_that_do_not_fit_are_one_line(tmp_path, damage, estimate, words):
    lab = Runs(tmp_path, sessions=1, runs=1, trials=10, volumes=90, count=10).write()
    damage(lab)
    with pytest.raises(InputError, match=words):
        list(open_source(parse_study(study_of(block("bids runs", lab.root), estimate={"kind": "lss", **estimate})), "lab").subject("01").trials.responses())


def test_masks_may_be_scaled_and_lack_values_outside(lab):
    plain = source_of(lab).voxels("01")
    values = lab.atlas.astype(np.float32)
    values[0] = np.nan
    values[lab.atlas > 0] *= 1 - 1e-5
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), lab.root / "derivatives/masks/sub-01_dseg.nii.gz")
    found = source_of(lab).voxels("01")
    np.testing.assert_array_equal(found.roi, plain.roi)
    np.testing.assert_array_equal(found.where, plain.where)


def test_masks_by_bids_name_by_atlas_and_by_names_of_labels(lab):
    func = lab.root / "derivatives/glmsingle/sub-01"
    for run, shift in ((1, 0), (2, 1)):
        mask = np.roll(lab.atlas == 1, shift, 1).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, AFFINE), func / f"sub-01_task-images_run-{run}_space-T1w_desc-brain_mask.nii.gz")
    nibabel.save(nibabel.Nifti1Image(lab.atlas, AFFINE), func / "sub-01_space-T1w_atlas-Mine_dseg.nii.gz")
    (func / "sub-01_space-T1w_atlas-Mine_dseg.tsv").write_text("index\tname\n0\tnone\n1\tV1v\n2\tV1d\n3\thV4\n")

    def rois(**entry):
        found = source_of(lab, rois={"mine": entry}).voxels("01")
        return {name: int((found.roi == code).sum()) for code, name in enumerate(found.names)}

    assert rois(desc="brain") == {"mine": int(((lab.atlas == 1) & np.roll(lab.atlas == 1, 1, 1)).sum())}
    assert rois(atlas="Mine") == {"V1v": (lab.atlas == 1).sum(), "V1d": (lab.atlas == 2).sum(), "hV4": (lab.atlas == 3).sum()}
    assert rois(atlas="Mine", labels=["hV4", 1]) == {"hV4": (lab.atlas == 3).sum(), "mine": (lab.atlas == 1).sum()}
    assert rois(file="derivatives/masks/sub-{subject}_dseg.nii.gz", above=1.5) == {"mine": (lab.atlas > 1.5).sum()}
    with pytest.raises(InputError, match=r"no voxel is labelled \[9\] \(x\); it has \[0, 1, 2, 3\]"):
        rois(atlas="Mine", labels={"x": [9]})


def test_bad_voxels_are_dropped_by_roi(lab, capsys):
    path = lab.betas("01", 1)
    volume = np.asarray(nibabel.load(path).dataobj).copy()
    first = tuple(np.argwhere(lab.atlas == 1)[0])
    volume[(*first, 4)] = np.nan
    nibabel.save(nibabel.Nifti1Image(volume, AFFINE), path)
    raw = source_of(lab).subject("01")
    assert raw.protocol["dropped_by_roi"] == {"V1": 1} and raw.n_voxels == (lab.atlas > 0).sum() - 1
    assert "dropped 1 of" in capsys.readouterr().err
    with pytest.raises(InputError, match="drop_bad_voxels"):
        source_of(lab, drop_bad_voxels=False).subject("01")


def test_glmsingle_is_asked_for_where_it_is_missing(runs):
    source = open_source(parse_study(study_of(block("bids runs", runs.root), estimate={"kind": "glmsingle"})), "lab")
    raw = source.subject("01")
    import importlib.util

    if importlib.util.find_spec("glmsingle") is None:
        with pytest.raises(InputError, match="pip install glmsingle"):
            next(raw.trials.responses())
    else:
        assert next(raw.trials.responses()).shape == (30, (runs.mask > 0).sum())


def test_check_shows_shapes_overlap_and_first_trials(lab, capsys):
    assert show(parse_study(study_of(block("bids betas", lab.root)))) == 0
    said = capsys.readouterr().out
    assert f"{GRID[0]} x {GRID[1]} x {GRID[2]} x 30" in said and f"V1 {np.isin(lab.atlas, LABELS['V1']).sum()}" in said
    assert "100.0 % of them hold a value" in said and f"lab 01: session 1 run 1 trial 1, beta 0: {lab.names[lab.shown['01'][0][0]]}" in said
