"""What tables say of averages, protocols and of what is not in them, on a tiny study."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_fakes import only
from safetensors.torch import save_file

from unimind.errors import InputError
from unimind.evaluation import peers
from unimind.evaluation.controls import ROWS
from unimind.evaluation.score import summarise
from unimind.evaluation.statistics import bootstrap
from unimind.evaluation.tabulate import tabulate
from unimind.study import parse_study


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def tables(tiny, files, folder, **more):
    tabulate(tiny.study, list(files.values()), [], folder, **more)
    return folder


def width(frame, subject, metric="ssim"):
    row = frame[(frame.method == "good") & (frame.subject == subject) & (frame.metric == metric)]
    return row.ci_high.item() - row.ci_low.item()


def p_of_ssim(folder):
    return pd.read_csv(folder / "comparisons.csv").query("metric == 'ssim'").set_index("subject").p


@pytest.fixture
def same_in_every_brain(scored):
    """Metrics files in which a value depends on the image alone, so that a second subject tells nothing new."""
    tiny, files = scored
    of_image = np.random.default_rng(0).normal(0.7, 1, tiny.n_test + tiny.n_train)

    def change(content):
        for k, entry in enumerate(e for row in content["rows"].values() for e in row.values() if e["per_image"] is not None):
            values = of_image[content["stimulus"]] * (1 + 0.1 * (content["method"] == "poor"))
            low, high = np.quantile(np.random.default_rng(k).choice(values, (2000, len(values))).mean(1), [0.025, 0.975])
            entry |= {"per_image": values.tolist(), "value": values.mean(), "ci_low": low, "ci_high": high, "n": len(values)}

    for path in files.values():
        changed(path, change)
    return tiny, files


def test_an_average_over_subjects_who_saw_the_same_images_is_no_surer_than_one_subject(same_in_every_brain, tmp_path, monkeypatch):
    tiny, files = same_in_every_brain
    frame = pd.read_csv(tables(tiny, files, tmp_path / "shared") / "reconstruction.csv")
    assert width(frame, "average:train") == pytest.approx(width(frame, "subj01"), rel=0.1)
    average = frame[(frame.subject == "average:train") & (frame.method == "good")]
    assert set(average.n_test) == {tiny.n_test}, "an image counts once, however many saw it"
    p = p_of_ssim(tmp_path / "shared")
    assert p["average:train"] == pytest.approx(p["subj01"], rel=0.2)

    monkeypatch.setattr(type(tiny.study), "stimuli", lambda study, dataset, subject: f"{subject}.stimuli")
    frame = pd.read_csv(tables(tiny, files, tmp_path / "own") / "reconstruction.csv")
    assert width(frame, "average:train") == pytest.approx(width(frame, "subj01") / np.sqrt(2), rel=0.1)
    assert set(frame[(frame.subject == "average:train") & (frame.method == "good")].n_test) == {2 * tiny.n_test}
    p = p_of_ssim(tmp_path / "own")
    assert p["average:train"] < 0.6 * p["subj01"]


def test_images_without_a_value_leave_the_others_in_their_places(scored, tmp_path):
    tiny, files = scored

    def change(content):
        entry = content["rows"]["reconstruction"]["ssim"]
        entry["per_image"][0] = None
        entry["value"] = float(np.mean(entry["per_image"][1:]))

    for subject in tiny.subjects:
        changed(files["good", subject], change)
    folder = tables(tiny, files, tmp_path / "tables")
    row = pd.read_csv(folder / "reconstruction.csv").query("method == 'good' and subject == 'average:train' and metric == 'ssim'")
    assert row.ci_low.item() < row.value.item() < row.ci_high.item()
    test = pd.read_csv(folder / "comparisons.csv").query("subject == 'subj01' and metric == 'ssim'")
    assert test.n.item() == tiny.n_test - 1


@pytest.fixture
def curve(scored, tmp_path):
    """A transfer file whose entries have a protocol of their own."""
    tiny, files = scored
    content = json.loads(files["good", "subj03"].read_text())
    entries = []
    for trials in ("5", "all"):
        entry = json.loads(json.dumps(content)) | {"trials": 20 if trials == "all" else 5, "budget": trials, "absent": {"lpips": "not measured in curves"}}
        entry["rows"] = {"reconstruction": entry["rows"]["reconstruction"]}
        entry["protocol"] |= {"id": "c0ffee00", "samples_per_stimulus": 1}
        entry["costs"] = dict.fromkeys(("parameters", "trainable_parameters", "seconds", "peak_memory"), 1.0)
        entries.append(entry)
    path = tmp_path / "curve.json"
    path.write_text(json.dumps({key: content[key] for key in ("study", "method", "dataset", "subject")} | {"entries": entries}))
    return path


@pytest.mark.parametrize("with_curve", [True, False])
def test_every_protocol_of_a_table_is_described_under_it_and_no_other(scored, curve, tmp_path, with_curve):
    tiny, files = scored
    folder = tables(tiny, files, tmp_path / "tables", transfer=[curve] if with_curve else None)
    for name in ("reconstruction", "retrieval", "adaptation"):
        ids = set(pd.read_csv(folder / f"{name}.csv", dtype={"protocol": str}).protocol)
        for suffix in (".md", ".tex"):
            text = (folder / (name + suffix)).read_text()
            described = {words.split(":")[0] for words in text.split("Protocol ")[1:]}
            assert described == ids, name + suffix
    text = (folder / "adaptation.md").read_text()
    assert ("1 samples per stimulus" in text) == with_curve and ("2 samples per stimulus" in text) != with_curve
    assert ("Absent: LPIPS: not measured in curves." in text) == with_curve
    assert "Absent rows" not in text and "Bold: best of the rows with as many trials" in text


def test_bold_in_the_table_of_new_subjects_is_what_the_tests_of_a_budget_say(scored, tmp_path):
    tiny, files = scored
    curves = []
    for method in ("good", "poor"):
        entry = json.loads(files[method, "subj03"].read_text()) | {"costs": {}}
        entry["rows"] = only(entry["rows"], "mse", "ssim")
        same = only(json.loads(files["good", "subj03"].read_text())["rows"], "mse", "ssim")  # with all trials the two are equal
        ways = [{"budget": "5", "trials": 5}, {"budget": "all", "trials": 20, "rows": same}]
        curves.append(tmp_path / f"{method}.json")
        curves[-1].write_text(json.dumps({"dataset": "sim", "subject": "subj03", "method": method, "entries": [entry | way for way in ways]}))
    folder = tables(tiny, files, tmp_path / "tables", transfer=curves)
    tests = pd.read_csv(folder / "adaptation_comparisons.csv", dtype={"trials": str}).query("subject == 'subj03' and metric == 'mse'").set_index("trials")
    assert tests.p_holm["5"] < 0.05 <= tests.p_holm["all"]
    rows = {line.split("|")[1].strip(): line for line in (folder / "adaptation.md").read_text().splitlines() if "trials |" in line}
    assert {name for name, line in rows.items() if "**" in line} == {"Good, 5 trials"} and len(rows) == 4
    assert r"\textbf" in (folder / "adaptation.tex").read_text()


def test_intervals_over_budgets_count_the_drawings(scored, tmp_path):
    """Three drawings that differ widely: the interval of a curve's point, and of the difference of two methods, is the hierarchical bootstrap's."""
    tiny, files = scored
    curves, drawn = [], {}
    for method in ("good", "poor"):
        entry = json.loads(files[method, "subj03"].read_text()) | {"costs": {}, "trials": 5, "budget": "5"}
        values = np.array(entry["rows"]["reconstruction"]["ssim"]["per_image"]) + np.array([[-0.2], [0.0], [0.2]]) * (1 if method == "good" else -1)
        drawn[method] = values
        entry["rows"] = summarise({"reconstruction": {"ssim": values}}, ["ssim"], 300, 0)
        found = entry["rows"]["reconstruction"]["ssim"]
        assert found["value"] == pytest.approx(values.mean()) and found["n"] == tiny.n_test
        np.testing.assert_allclose(found["per_image"], values.mean(0), atol=1e-6)
        assert (found["ci_low"], found["ci_high"]) == pytest.approx(bootstrap(values, 300, drawings=True))
        low, high = bootstrap(values.mean(0), 300)
        assert found["ci_high"] - found["ci_low"] > 1.3 * (high - low)
        curves.append(tmp_path / f"{method}.json")
        curves[-1].write_text(json.dumps({"dataset": "sim", "subject": "subj03", "method": method, "entries": [entry]}))
    folder = tables(tiny, files, tmp_path / "tables", transfer=curves)
    test = pd.read_csv(folder / "adaptation_comparisons.csv").query("subject == 'subj03'")
    low, high = bootstrap(drawn["good"] - drawn["poor"], 300, drawings=True)
    assert (test.ci_low.item(), test.ci_high.item()) == pytest.approx((float(low), float(high)), abs=1e-6)
    assert "Where a budget was drawn several times, drawings are drawn too." in (folder / "adaptation.md").read_text()


def test_bold_is_corrected_over_all_measures_of_a_block(scored, tmp_path):
    tiny, files = scored
    found = pd.read_csv(tables(tiny, files, tmp_path / "tables") / "comparisons.csv").query("subject == 'subj01'")
    assert found.metric.nunique() == len(found) > 5
    order = found.p.sort_values(kind="stable")
    expected = np.minimum(1, np.maximum.accumulate((len(order) - np.arange(len(order))) * order.to_numpy()))
    np.testing.assert_allclose(found.p_holm.loc[order.index], expected)


def test_a_ratio_above_one_means_better(scored, tmp_path):
    tiny, _ = scored
    content = tiny.study.model_dump(mode="json")
    network = {"enter": {"kind": "adapter"}, "align": {}, "adapt": {}}
    content["methods"] = {
        "light": {**network, "label": "Light", "body": {"kind": "convmixer"}}, "large": {**network, "label": "Large", "body": {"kind": "vit"}},
    }  # fmt: skip
    for method, (size, speed) in {"light": (2, 30.0), "large": (8, 10.0)}.items():
        folder = tmp_path / "models" / method / "align" / "all"
        folder.mkdir(parents=True)
        (folder / "efficiency.json").write_text(json.dumps({"parameters": 999, "samples_per_second": speed}))
        save_file({"encoder.a": torch.zeros(size), "encoder.mean_tokens": torch.zeros(7)}, folder / "model.safetensors")
    tabulate(parse_study(content), [], [tmp_path / "models"], tmp_path / "tables")
    for suffix in (".md", ".tex"):
        text = (tmp_path / "tables" / f"efficiency{suffix}").read_text().replace(r"$\times$", "×")
        assert "2 (4 ×)" in text and "30 (3 ×)" in text and "999 (1 ×)" in text
        assert "how many times better than Large, stage by stage; above 1 means that this method is better" in text


def test_published_numbers_stand_where_data_and_definition_are_the_same(scored):
    tiny, _ = scored
    content = tiny.study.model_dump(mode="json")
    content["datasets"] = {"nsd": {"source": "nsd", "training_subjects": ["subj01", "subj02"]}, "god": {"source": "god", "training_subjects": ["s1"]}}
    text = peers.markdown(parse_study(content), ["pixcorr", "ssim", "clip", "fid_torchvision"])
    assert "| MindEye2, 40 h | 93.0 | 0.322 |" in text and "SSIM" not in text and "Inception" not in text
    assert "## GOD" not in text, "nothing of GOD was measured as it was published"
    assert "| MinD-Vis, subject 3, best samples | 27.4 |" in peers.markdown(parse_study(content), ["nway_top1"])
    assert "There are none" in peers.markdown(tiny.study, ["clip"])


def test_subjects_of_different_protocol_are_told_apart(scored, tmp_path):
    tiny, files = scored
    for method in ("good", "poor"):
        changed(files[method, "subj02"], lambda content: content["protocol"].update(id="other"))
    text = (tables(tiny, files, tmp_path / "tables") / "reconstruction.md").read_text()
    blocks = text.split("\n### ")[1:]
    first, second = (next(block for block in blocks if block.startswith(f"sim, {subject}")) for subject in ("subj01", "subj02"))
    assert "SSIM ↑ (other)" in second and "(other)" not in first and "SSIM ↑ (" in first
    assert not any("average over training" in block.splitlines()[0] for block in blocks), "subjects of different protocol have no average"


def test_a_row_that_is_not_there_is_named_with_its_reason(scored, tmp_path):
    tiny, files = scored
    text = (tables(tiny, files, tmp_path / "whole") / "reconstruction.md").read_text()
    assert "Absent rows" not in text

    def change(content):
        for row in ("embedding-ceiling", "unconditional"):
            content["rows"].pop(row, None)
        content["absent_rows"] = {"embedding-ceiling": "the diffusion model takes no image embedding"}
        if content["method"] == "poor":
            del content["rows"]["nearest-training-image"]
            content["absent_rows"]["nearest-training-image"] = "the method predicts no image embedding"

    for path in files.values():
        changed(path, change)
    changed(files["good", "subj02"], lambda content: content["rows"].pop("shuffled"))
    folder = tables(tiny, files, tmp_path / "less")
    for text in ((folder / "reconstruction.md").read_text(), (folder / "reconstruction.tex").read_text()):
        assert "Absent rows (Poor): nearest training image: the method predicts no image embedding." in text
        assert "Absent rows: embedding ceiling: the diffusion model takes no image embedding." in text
        assert "Absent rows: unconditional: not in the metrics file." in text
        assert "Absent rows (Good): shuffled: not in the metrics file." in text
        assert not any(f"Absent rows: {row.replace('-', ' ')}" in text for row in set(ROWS) - {"embedding-ceiling", "unconditional"})


def test_a_study_without_ridge_says_why(scored, tmp_path):
    tiny, files = scored
    study = tiny.study
    method = next(iter(study.methods.values()))
    other = method.model_copy(update={"enter": method.enter.model_copy(update={"kind": "decoded"})})
    tiny.study = study.model_copy(update={"methods": dict.fromkeys(study.methods, other)})
    try:
        text = (tables(tiny, files, tmp_path / "tables") / "reconstruction.md").read_text()
        assert "Absent rows: ridge regression: the study has no method that enters by ridge." in text
    finally:
        tiny.study = study


def test_the_retrieval_table_says_what_chance_gives_and_which_rows_may_give_less(scored, tmp_path):
    tiny, files = scored
    folder = tables(tiny, files, tmp_path / "tables")
    for suffix in (".md", ".tex"):
        words = (folder / f"retrieval{suffix}").read_text().replace("\\%", "%")
        assert "Chance: 12.5 % in retrieval from a pool of 8 test pictures, 50 % in two-way identification." in words
        assert "The row chance is that level" in words and "it can fall below" in words
        assert "pool of" not in (folder / f"reconstruction{suffix}").read_text()
    for path in files.values():
        changed(path, lambda content: [content["rows"]["reconstruction"].pop(f"retrieval_{way}") for way in ("forward", "backward")])
    text = (tables(tiny, files, tmp_path / "without") / "retrieval.md").read_text()
    assert "Chance: 50 % in two-way identification." in text


def test_the_efficiency_table_says_what_it_was_measured_on(scored, tmp_path):
    tiny, _ = scored
    given = {"device": "Some CPU_1", "processes": 1, "threads": 3, "precision": "bf16", "batch_size": 16, "accumulate": 2, "torch": "2.9.0"}
    for group, more in (("a", {}), ("b", {}), ("c", {"threads": 4, "batch_size": None, "accumulate": 1})):
        folder = tmp_path / "models" / "good" / ("align" if group != "c" else "fit") / group
        folder.mkdir(parents=True)
        (folder / "efficiency.json").write_text(json.dumps({"parameters": 5, "seconds": 1.5, "conditions": given | more}))
    tabulate(tiny.study, [], [tmp_path / "models"], tmp_path / "tables")
    frame = pd.read_csv(tmp_path / "tables" / "efficiency.csv", dtype={"protocol": str})
    assert set(frame.quantity) == {"parameters", "seconds"}
    (first,), (second,) = (set(frame[frame.stage.str.startswith(stage)].protocol) for stage in ("align", "fit"))
    for suffix in (".md", ".tex"):
        text = (tmp_path / "tables" / f"efficiency{suffix}").read_text().replace("\\_", "_")
        assert f"Protocol {first}: Some CPU_1; 3 threads; bf16; batches of 16 in 2 parts; torch 2.9.0." in text
        assert f"Protocol {second}: Some CPU_1; 4 threads; bf16; all trials at once; torch 2.9.0." in text
        assert "resident size of the whole process, libraries included" in text
        assert "above 1 means" not in text, "a study without a transformer has nothing to set others against"
    row = next(line for line in (tmp_path / "tables" / "efficiency.md").read_text().splitlines() if "| align |" in line)
    assert row.endswith(f"| {first} |")


def test_networks_lead_up_to_the_first_method_and_closed_form_ones_and_controls_follow(scored, tmp_path):
    tiny, files = scored
    content = tiny.study.model_dump(mode="json")
    network = {"enter": {"kind": "adapter"}, "body": {"kind": "convmixer", "width": 16, "depth": 1, "patch": 8, "kernel": 3}, "align": {}, "adapt": {}}
    content["methods"] = {"first": {**network, "label": "First"}, "second": {**network, "label": "Second"}} | content["methods"]
    content["transfer"] = {"baselines": {"prior": {"label": "Prior", "enter": {"kind": "decoded"}}}}
    study = parse_study(content)
    metrics, transfer, models = [*files.values()], [], tmp_path / "models"
    for method in study.all_methods():
        for subject in tiny.subjects if method in ("first", "second") else ():
            metrics.append(tmp_path / f"{method}-{subject}.json")
            metrics[-1].write_text(files["poor", subject].read_text())
            changed(metrics[-1], lambda content: content.update(method=method))  # noqa: B023
        entry = json.loads(files["poor", "subj03"].read_text()) | {"costs": {}}
        ways = [{"method": name, "budget": budget} for name in (method, f"{method} from scratch") for budget in ("5", "all")]
        transfer.append(tmp_path / f"curve-{method}.json")
        transfer[-1].write_text(json.dumps({"dataset": "sim", "subject": "subj03", "method": method, "entries": [entry | way for way in ways]}))
        (models / method / "fit" / "g").mkdir(parents=True)
        (models / method / "fit" / "g" / "efficiency.json").write_text('{"parameters": 5}')
    tabulate(study, metrics, [models], tmp_path / "tables", transfer)
    names = ["second", "first", "good", "poor"]

    def found(table, subject=("subj01",)):
        frame = pd.read_csv(tmp_path / "tables" / f"{table}.csv")
        return list(dict.fromkeys(frame[frame.subject.isin(subject)].method if "subject" in frame else frame.method))

    methods = found("reconstruction")
    assert methods[:4] == names and [name for name in methods if name.startswith("shuffled:")] == [f"shuffled:{name}" for name in names]
    assert found("reconstruction", ["average:train"])[:4] == found("retrieval")[:4] == names
    assert found("adaptation", ["subj03"]) == [name + way for name in (*names, "prior") for way in ("", " from scratch")]
    assert found("efficiency") == [*names, "prior"]
    for suffix in (".md", ".tex"):
        text = (tmp_path / "tables" / f"reconstruction{suffix}").read_text()
        places = [text.index(f"{name} ") for name in ("Second", "First", "Good", "Poor", "mean training image")]
        assert places == sorted(places)
        text = (tmp_path / "tables" / f"efficiency{suffix}").read_text()
        places = [text.index(f"{name} ") for name in ("Second", "First", "Good", "Poor", "Prior")]
        assert places == sorted(places)


def test_metrics_of_another_study_are_refused(scored, tmp_path):
    tiny, files = scored
    changed(files["good", "subj01"], lambda content: content.update(dataset="elsewhere"))
    with pytest.raises(InputError, match=r"good-subj01.json: of data set elsewhere, which the study tiny has not"):
        tables(tiny, files, tmp_path / "tables")
