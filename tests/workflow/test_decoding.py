"""Trials without truth, from GOD's files to the page: simulated responses in its true layout, as bdpy writes it."""

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from planned import planned_commands

from unimind.cli import main
from unimind.data.prepared import FurtherTrials, PreparedSubject, Stimuli
from unimind.stages import STAGES
from unimind.study import parse_study

bdpy = pytest.importorskip("bdpy", reason="bdpy writes GOD's files here; it needs Python < 3.12")

ROOT = Path(__file__).parents[2]
TRAINING, TESTS, REPEATS, IMAGINED, VOXELS, SIZE = 150, 12, 3, 10, 60, 16
NAMES = [f"n{1443537 + 97 * k:08d}_{100 + k}" for k in range(TRAINING + TESTS)]
IDS = np.array([float(f"{int(name[1:9])}.{int(name[10:]):06d}") for name in NAMES])


def write_subject(root, pixels, number, shuffled):
    """Responses are linear in a picture's colours; those of imagery half as strong. With `shuffled`, what was imagined is not what the file says."""
    random = np.random.default_rng(number)
    colours = pixels.reshape(len(pixels), 4, SIZE // 4, 4, SIZE // 4, 3).mean((2, 4)).reshape(len(pixels), -1) / 255 - 0.5
    encoding = random.normal(size=(colours.shape[1], VOXELS))
    tests = np.arange(TRAINING, TRAINING + TESTS)
    shown = np.r_[np.arange(TRAINING), np.tile(tests, REPEATS), np.tile(tests, IMAGINED)]
    kinds = np.repeat([1, 2, 3], [TRAINING, TESTS * REPEATS, TESTS * IMAGINED])
    signal = colours[shown] @ encoding
    voxels = np.where(kinds[:, None] == 3, 0.5, 1.0) * signal + random.normal(size=signal.shape) * 0.7
    said = IDS[shown]
    if shuffled:
        other = dict(zip(tests, random.permutation(tests), strict=True))
        said[kinds == 3] = [IDS[other[picture]] for picture in shown[kinds == 3]]
    data = bdpy.BData()
    for values, name in ((voxels, "VoxelData"), (kinds.astype(float), "DataType"), (said, "stimulus_id")):
        data.add(values, name)
    data.add_metadata("ROI_VC", np.ones(VOXELS), where="VoxelData")
    data.save(str(root / f"Subject{number}.h5"))
    return voxels, kinds


def study_of(root) -> dict:
    subjects = ["Subject1", "Subject2"]
    return {
        "name": "dreams", "picture_size": SIZE, "threads": 1,
        "datasets": {"god": {"source": "god", "root": str(root), "training_subjects": subjects, "require_signal": False}},
        "foundations": {
            "drawn": {"count": 40}, "embedding": {"kind": "study-clip", "dim": 24, "training": {"steps": 4, "batch_size": 8}},
            "autoencoder": {"kind": "study", "latent_channels": 4, "downsampling": 4, "width": 16, "training": {"steps": 4, "batch_size": 8}},
            "diffusion": {
                "kind": "study", "channels": [16, 32], "blocks": 1, "context_dim": 16, "context_tokens": 2,
                "training": {"steps": 4, "batch_size": 4, "ema": 0.9},
            },
            "classifier": None,
        },
        "methods": {"ridge": {
            "label": "Ridge", "scope": "subject", "enter": {"kind": "ridge", "alphas": [1, 10, 100], "folds": 3},
            "sampling": {"steps": 2, "samples": 2, "strength": 0.8},
        }},
        "evaluation": {"metrics": ["pixcorr", "ssim", "identification"], "bootstrap": 50},
    }  # fmt: skip


DECODE = {
    "imagery": {"dataset": "god"},
    "wide": {"dataset": "god", "subjects": ["Subject1"], "normalisation": "training", "average": False, "candidates": "images"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The study run from nothing to its page, by the commands that Snakemake plans, in one process."""
    folder = tmp_path_factory.mktemp("dreams")
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, (len(NAMES), 4, 4, 3), dtype=np.uint8).repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)
    (folder / "god/images").mkdir(parents=True)
    for name, picture in zip(NAMES, pixels, strict=True):
        Image.fromarray(picture).save(folder / f"god/images/{name}.JPEG", "PNG")
    recorded = {number: write_subject(folder / "god", pixels, number, shuffled=number == 2) for number in (1, 2)}
    (folder / "study.yaml").write_text(yaml.safe_dump(study_of(folder / "god") | {"decode": DECODE}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        commands = planned_commands()
        for command in commands:
            assert main(command) == 0, command
    return folder / "results/dreams", recorded, commands


def test_every_stage_of_a_set_is_planned_once(world):
    stages = [command[0] for command in world[2]]
    wanted = {"prepare-further": 3, "candidates": 1, "decode": 3, "score-decoded": 3, "prepare": 2, "fetch": 1 + 2 + 3 + 1, "embed": 2}
    assert {stage: stages.count(stage) for stage in wanted} == wanted


def test_the_trials_are_those_of_the_file_in_the_subjects_voxels(world):
    results, recorded, _ = world
    voxels, kinds = recorded[1]
    raw = voxels[kinds == 3]
    with PreparedSubject(results / "prepared/god/Subject1.h5") as own, FurtherTrials(results / "prepared/god/Subject1.imagery.h5") as imagery:
        assert own.n_trials == (kinds < 3).sum()  # imagery is averaged with nothing
        np.testing.assert_allclose(imagery.responses[:], ((raw - raw.mean(0)) / raw.std(0))[:, own.stored], atol=1e-4)
        training = voxels[kinds < 3][own.split == 0]
        np.testing.assert_allclose(own.moments, [training.mean(0)[own.stored], training.std(0)[own.stored]], rtol=1e-4, atol=1e-6)
        with FurtherTrials(results / "prepared/god/Subject1.wide.h5") as wide:
            np.testing.assert_allclose(wide.responses[:], ((raw - training.mean(0)) / training.std(0))[:, own.stored], atol=1e-4)
            assert imagery.attributes["normalisation"] != wide.attributes["normalisation"]


def test_what_is_decoded_is_the_subjects_own_closed_form_of_the_mean_response(world):
    from unimind.models.encoder import load_encoder

    results = world[0]
    with h5py.File(results / "decoded/ridge/god/Subject1.imagery.h5") as file, FurtherTrials(results / "prepared/god/Subject1.imagery.h5") as data:
        labels = file["label"].asstr()[:].tolist()
        assert sorted(labels) == sorted(NAMES[TRAINING:]) and file["trials"][:].tolist() == [IMAGINED] * TESTS
        assert file["samples"].shape == (TESTS, 2, SIZE, SIZE, 3) and file["candidate"].shape == (TESTS, 10)
        encoder, _ = load_encoder(results / "models/ridge/enter/god-Subject1")
        found, _ = encoder.enter.taken("god-Subject1")
        responses = np.stack([data.read(np.flatnonzero(data.label == label), "stored").mean(0) for label in labels])
        coordinates = responses @ found.weight + found.bias
        space = encoder.space
        embedding = space.embedding_mean.numpy() + space.embedding_scale.numpy() * (
            coordinates[:, : space.components["embedding"]] @ space.embedding_axes.numpy().T
        )
        np.testing.assert_allclose(file["embedding"][:], embedding, atol=1e-4)
        assert np.isfinite(file["sample_agreement"][:]).all() and np.isfinite(file["trial_agreement"][:]).all()
        similarity = file["similarity"][:]
        assert (np.diff(similarity, axis=1) <= 0).all()
        with Stimuli(results / "prepared/god/stimuli.h5") as pictures, h5py.File(results / "embeddings/god/stimuli.h5") as targets:
            with PreparedSubject(results / "prepared/god/Subject1.h5") as own:
                mean = targets["embedding"][:][own.images("train")].mean(0, dtype=np.float64).astype(np.float32)
            tests = np.flatnonzero(pictures.test)
            assert np.isin(file["candidate"][:], tests).all()
            assert pictures.id[file["imagined"][:]].tolist() == labels
            embedding = file["embedding"][:]
            cosine = (embedding - mean) @ (targets["embedding"][:][tests] - mean).T
            cosine = cosine / np.linalg.norm(embedding - mean, axis=1)[:, None] / np.linalg.norm(targets["embedding"][:][tests] - mean, axis=1)
        np.testing.assert_array_equal(tests[cosine.argmax(1)], file["candidate"][:, 0])
        np.testing.assert_allclose(similarity, -np.sort(-cosine, axis=1)[:, :10], atol=1e-4)


def test_imagery_is_identified_and_with_shuffled_labels_it_is_at_chance(world):
    table = pd.read_csv(world[0] / "tables/decoding.csv")
    rows = table[(table.set == "imagery") & (table.metric == "candidate_identification")].set_index(["subject", "condition"])
    true, other = rows.loc["Subject1", "imagery"], rows.loc["Subject2", "imagery"]
    assert true.value > 0.7 and true.p < 0.01 and true.null_low < 0.5 < true.null_high < true.value
    assert other.p > 0.05 and other.null_low <= other.value <= other.null_high
    for subject in ("Subject1", "Subject2"):  # vision stands beside it, and labels of test trials were not shuffled
        seen = rows.loc[subject, "perception (test trials)"]
        assert seen.value > 0.8 and seen.p < 0.01 and seen.pictures == TESTS and seen.trials == TESTS * REPEATS
    measures = set(table[(table.condition == "imagery") & (table.method == "ridge")].metric)
    assert {"pixcorr", "ssim", "identification"} < measures
    assert "chance:ridge" in set(table.method)


def test_trials_one_by_one_among_the_pictures_of_a_folder(world):
    with h5py.File(world[0] / "decoded/ridge/god/Subject1.wide.h5") as file:
        assert len(file["label"]) == TESTS * IMAGINED and (file["trials"][:] == 1).all() and np.isnan(file["trial_agreement"][:]).all()
        assert file.attrs["pool"] == len(NAMES) and (file["imagined"][:] >= 0).all()
        assert file["candidate_id"].asstr()[0, 0].endswith(".JPEG")
    found = json.loads((world[0] / "metrics/god/Subject1.wide.json").read_text())
    row = next(row for row in found["rows"] if row["condition"] == "imagery")
    assert row["pool"] == len(NAMES) and row["metrics"]["candidate_identification"]["p"] < 0.01 and "pixcorr" not in row["metrics"]
    assert any("average: false" in note for note in found["notes"])


def test_the_page_says_that_there_is_no_truth(world):
    page = (world[0] / "report.html").read_text()
    assert "Nobody knows what was seen or imagined in these trials, but for what their labels say: there is no truth." in page
    assert "imagery: Subject2 (god)" in page
    assert page.count("No truth is known of these trials") == 3
    trials = pd.read_csv(world[0] / "tables/decoded_trials.csv")
    assert len(trials[trials.set == "imagery"]) == 2 * TESTS * 10


def changed(before: dict, after: dict) -> set[str]:
    """Stages of the jobs, of those that both studies have, whose part of the study differs."""
    old, new = parse_study(before), parse_study(after)
    known = {job.path for job in old.jobs()}
    return {job.stage for job in new.jobs() if job.path in known and STAGES[job.stage].part(old, **job.names) != STAGES[job.stage].part(new, **job.names)}


def test_adding_a_set_trains_nothing_again(tmp_path):
    without, with_sets = study_of(tmp_path), study_of(tmp_path) | {"decode": DECODE}
    told = {"tabulate", "figures", "report"}
    assert changed(without, with_sets) == told
    known = {job.path for job in parse_study(without).jobs()}
    new = {job.stage for job in parse_study(with_sets).jobs() if job.path not in known}
    assert new == {"fetch", "prepare-further", "candidates", "embed", "decode", "score-decoded"}

    def edited(**keys):
        return study_of(tmp_path) | {"decode": DECODE | {"imagery": DECODE["imagery"] | keys}}

    assert changed(with_sets, edited(candidates="stimuli")) == told | {"decode", "score-decoded"}
    assert changed(with_sets, edited(normalisation="training")) == told | {"prepare-further"}
    assert changed(with_sets, edited(average=False)) == told | {"decode"}
