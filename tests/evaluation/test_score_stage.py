"""The stages features, score and tabulate on a tiny study."""

import json

import numpy as np
import pandas as pd
import pytest

from unimind.errors import InputError
from unimind.evaluation.controls import ROWS
from unimind.evaluation.tabulate import COLUMNS, tabulate

MEASURED = (
    "mse",
    "pixcorr",
    "ssim",
    "clip",
    "identification",
    "retrieval_forward",
    "retrieval_backward",
    "classifier",
    "classifier_score",
    "perceptual_distance",
)
ABSENT = {"lpips", "inception_score", "fid", "alexnet2", "alexnet5", "inception", "effnet", "swav", "nway_top1", "squeezenet"}
CONTROLS = {"shuffled:good", "chance:poor", "nearest-training-image:good", "mean-training-image", "unconditional", "embedding-ceiling", "autoencoder-ceiling"}


def test_a_metrics_file_has_every_row_and_says_what_is_absent(scored):
    tiny, files = scored
    content = json.loads(files["good", "subj01"].read_text())
    assert list(content["rows"]) == list(ROWS)
    row = content["rows"]["reconstruction"]
    for name in MEASURED:
        assert np.isfinite(row[name]["value"]), name
    assert set(content["absent"]) == ABSENT
    assert content["trials"] == 20
    assert content["protocol"]["id"] and content["protocol"]["samples_per_stimulus"] == 2
    assert content["protocol"]["networks"]["clip"]["network"] == "tiny embedding"


def test_values_lie_in_their_intervals_and_samples_are_averaged_within_a_stimulus(scored):
    _, files = scored
    row = json.loads(files["good", "subj01"].read_text())["rows"]["reconstruction"]
    for name, entry in row.items():
        if entry["per_image"] is not None:
            assert entry["ci_low"] <= entry["value"] <= entry["ci_high"], name
            assert len(entry["per_image"]) == 8 == entry["n"]
            assert np.mean(entry["per_image"]) == pytest.approx(entry["value"], abs=1e-6)
    assert row["clip"]["samples_mean"] == pytest.approx(row["clip"]["value"], abs=0.3)
    assert "samples_mean" not in row["mse"], "pair measures are taken of the shown sample alone"


def test_rows_that_are_the_same_for_all_methods_are_measured_once(scored):
    _, files = scored
    first, second = (set(json.loads(files[method, "subj01"].read_text())["rows"]) for method in ("good", "poor"))
    assert first - second == {"mean-training-image", "unconditional", "embedding-ceiling", "autoencoder-ceiling"} and not second - first


def test_controls_are_where_they_belong(scored):
    _, files = scored
    rows = json.loads(files["good", "subj01"].read_text())["rows"]
    errors = [rows[row]["mse"]["value"] for row in ("autoencoder-ceiling", "embedding-ceiling", "reconstruction", "chance")]
    assert errors == sorted(errors)
    assert rows["mean-training-image"]["clip"]["value"] == pytest.approx(0.5)
    assert rows["reconstruction"]["identification"]["value"] > rows["shuffled"]["identification"]["value"]


def test_stored_and_fresh_truth_features_give_the_same(tiny):
    features = tiny.features()
    first = json.loads(tiny.score("good", "subj01", features).read_text())
    import h5py

    with h5py.File(features, "a") as file:
        del file["clip"]
    assert json.loads(tiny.score("good", "subj01", features).read_text()) == first


def test_results_do_not_depend_on_the_batch_size(tiny):
    features = tiny.features()
    first = json.loads(tiny.score("good", "subj01", features).read_text())["rows"]
    section = tiny.study.evaluation.model_copy(update={"batch_size": 64})
    tiny.study = tiny.study.model_copy(update={"evaluation": section})
    second = json.loads(tiny.score("good", "subj01", tiny.features()).read_text())["rows"]
    for row, measures in first.items():
        for name, entry in measures.items():
            assert second[row][name]["value"] == pytest.approx(entry["value"], rel=1e-5, abs=1e-6), (row, name)


def test_files_that_do_not_belong_together_are_refused(tiny):
    import h5py

    features = tiny.features()
    with h5py.File(tiny.root / "controls.h5", "a") as file:
        kept = file["stimulus"][1:]
        del file["stimulus"]
        file["stimulus"] = kept
    with pytest.raises(InputError, match="no controls for stimulus"):
        tiny.score("good", "subj01", features)


def test_tables(scored, tmp_path):
    tiny, files = scored
    models = tmp_path / "models" / "good" / "fit" / "sim-subj01"
    models.mkdir(parents=True)
    (models / "efficiency.json").write_text(json.dumps({"parameters": 1000, "seconds": 1.5}))
    tabulate(tiny.study, list(files.values()), [tmp_path / "models"], tmp_path / "tables")
    folder = tmp_path / "tables"
    frame = pd.read_csv(folder / "reconstruction.csv")
    assert list(frame.columns) == COLUMNS
    assert set(frame.role) == {"train", "new", "control"}
    assert set(frame.method) >= CONTROLS
    once = frame[(frame.method == "unconditional") & (frame.subject == "subj01") & (frame.metric == "mse")]
    assert len(once) == 1
    train = frame[(frame.method == "good") & (frame.metric == "mse") & frame.subject.isin(["subj01", "subj02"])].value
    average = frame[(frame.method == "good") & (frame.metric == "mse") & (frame.subject == "average:train")]
    assert average.value.item() == pytest.approx(train.mean())
    assert average.ci_low.item() < average.value.item() < average.ci_high.item()
    assert set(pd.read_csv(folder / "adaptation.csv").subject) == {"subj03"}
    efficiency = pd.read_csv(folder / "efficiency.csv")
    assert efficiency[efficiency.quantity == "parameters"].value.item() == 1000
    assert efficiency.stage.unique().tolist() == ["fit/sim-subj01"]
    comparisons = pd.read_csv(folder / "comparisons.csv")
    assert (comparisons.p_holm >= comparisons.p).all()
    text = (folder / "reconstruction.md").read_text()
    assert "| Good |" in text and text.index("| Good |") < text.index("| shuffled: Good |")
    assert "Absent: " in text and "Protocol " in text and "unstable below 5000" in text
    for name in ("reconstruction", "retrieval", "adaptation", "efficiency"):
        assert (folder / f"{name}.md").stat().st_size and (folder / f"{name}.tex").stat().st_size
    assert "MindEye2" in (folder / "peers.md").read_text() and "MindEye2" not in text


def test_bold_only_where_the_paired_test_says_so(scored, tmp_path):
    tiny, files = scored
    tabulate(tiny.study, list(files.values()), [], tmp_path / "sure")
    rows = [line for line in (tmp_path / "sure" / "reconstruction.md").read_text().splitlines() if line.startswith("| Good |")]
    assert any("**" in line for line in rows)
    for subject in tiny.subjects:  # the same pictures twice: no difference, nothing bold
        content = json.loads(files["good", subject].read_text())
        files["poor", subject].write_text(json.dumps(content | {"method": "poor", "label": "Poor"}))
    tabulate(tiny.study, list(files.values()), [], tmp_path / "same")
    assert "**" not in (tmp_path / "same" / "reconstruction.md").read_text()


def test_other_protocols_have_columns_of_their_own(scored, tmp_path):
    tiny, files = scored
    for subject in tiny.subjects:
        content = json.loads(files["poor", subject].read_text())
        content["protocol"]["id"] = "other"
        files["poor", subject].write_text(json.dumps(content))
    tabulate(tiny.study, list(files.values()), [], tmp_path / "tables")
    text = (tmp_path / "tables" / "reconstruction.md").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| | SSIM"))
    assert head.count("SSIM ↑") == 2 and "(other)" in head
    good = next(line for line in text.splitlines() if line.startswith("| Good |")).split("|")[2:4]
    assert sum(cell.strip() == "-" for cell in good) == 1
    assert pd.read_csv(tmp_path / "tables" / "comparisons.csv").empty


def test_tables_survive_missing_measures_and_subjects(scored, tmp_path):
    tiny, files = scored
    content = json.loads(files["poor", "subj02"].read_text())
    content["rows"] = {"reconstruction": {"mse": content["rows"]["reconstruction"]["mse"]}}
    files["poor", "subj02"].write_text(json.dumps(content))
    del files["good", "subj01"]
    tabulate(tiny.study, list(files.values()), [], tmp_path / "tables")
    tabulate(tiny.study, [], [], tmp_path / "empty")
    assert "No numbers" in (tmp_path / "empty" / "reconstruction.md").read_text()


def test_the_mean_image_that_wins_low_level_is_named(scored, tmp_path):
    tiny, files = scored
    for path in files.values():
        content = json.loads(path.read_text())
        if "mean-training-image" in content["rows"]:
            content["rows"]["mean-training-image"]["ssim"]["value"] = 0.99
            path.write_text(json.dumps(content))
    tabulate(tiny.study, list(files.values()), [], tmp_path / "tables")
    assert "the mean training image, which shows nothing, beats every method in SSIM" in (tmp_path / "tables" / "reconstruction.md").read_text()
