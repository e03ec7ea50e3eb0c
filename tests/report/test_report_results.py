"""Reading tables: names of controls, averages over subjects, directions of paired tests."""

import numpy as np
import pandas as pd
import pytest
from report_fakes import METHODS, SUBJECTS

from unimind.errors import InputError
from unimind.evaluation.measures import circular, headline, measure_of
from unimind.evaluation.tabulate import COLUMNS
from unimind.report import results
from unimind.study import Foundations


@pytest.fixture(scope="module")
def scores(fake):
    return results.read_scores(fake.study, fake.root / "tables")


def test_rows_are_told_apart_by_role_control_and_method(scores):
    columns = scores[["role", "method", "control", "of"]].astype(object)
    found = {tuple(row) for row in columns.where(columns.notna(), None).itertuples(index=False)}
    assert ("train", "ridge", None, "ridge") in found and ("new", "ridge", None, "ridge") in found
    assert ("control", "shuffled:unimind-vit", "shuffled", "unimind-vit") in found
    assert ("control", "embedding-ceiling", "embedding-ceiling", None) in found
    assert set(scores.control.dropna()) == set(results.CONTROLS)


def test_the_tables_own_average_is_taken_and_kept_with_its_interval(scores):
    found = results.over_subjects(scores, "train")
    written = scores[scores.subject == "average:train"]
    assert len(found) == len(written) and set(found.subject) == {"average:train"}
    merged = found.merge(written, on=["method", "metric"], suffixes=("", "_written"))
    for column in ("value", "ci_low", "ci_high"):
        assert np.array_equal(merged[column], merged[f"{column}_written"])


def test_without_an_average_the_plain_mean_has_no_interval(scores):
    single = results.single(scores)
    assert set(single.subject) == set(SUBJECTS)
    found = results.over_subjects(single, "train")
    row = found[(found.method == "mindvis") & (found.metric == "study_clip")].iloc[0]
    values = single[(single.method == "mindvis") & (single.metric == "study_clip") & (single.role == "train")].value
    assert row.value == pytest.approx(values.mean()) and len(values) == 3 and np.isnan(row.ci_low)


def test_one_subject_keeps_its_own_interval(scores):
    found = results.over_subjects(scores, "new")
    assert set(found.subject) == {"subj04"} and found.ci_low.notna().all()
    assert set(found.method[found.control.isna()]) == set(METHODS)


def test_control_of_a_method_that_has_none_is_no_method(scores):
    row = results.over_subjects(scores, "train").query("control == 'unconditional'").iloc[0]
    assert row.of is None


def test_paired_tests_are_read_in_both_directions():
    table = pd.DataFrame([("d", "s", "clip", "a", "b", 0.02, 0.01)], columns=["dataset", "subject", "metric", "method_a", "method_b", "difference", "p_holm"])
    assert results.compared(table, "d", "s", "clip", "a", "b") == (0.02, 0.01)
    assert results.compared(table, "d", "s", "clip", "b", "a") == (-0.02, 0.01)
    assert results.compared(table, "d", "s", "mse", "a", "b") is None and results.compared(None, "d", "s", "clip", "a", "b") is None


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("clip", 0.9613, "96.1"), ("mse", 0.01234, "0.0123"), ("pixcorr", 0.3224, "0.322"), ("fid", 123.456, "123.46"), ("unknown", 0.5, "0.500")],
)
def test_values_are_printed_with_their_digits(name, value, shown):
    assert measure_of(name).shown(value) == shown


@pytest.mark.parametrize(
    ("embedding", "present", "own", "first"),
    [
        ({"kind": "study-clip"}, ["study_clip", "squeezenet", "identification"], "study_clip", "squeezenet"),
        ({"kind": "study-clip"}, ["study_clip", "classifier", "identification"], "study_clip", "classifier"),
        ({"kind": "study-clip"}, ["study_clip", "classifier", "pixcorr", "identification"], "study_clip", "pixcorr"),
        ({"kind": "study-clip"}, ["identification", "study_clip"], "study_clip", "study_clip"),
        ({"kind": "squeezenet"}, ["squeezenet", "alexnet5", "lpips_squeeze"], "lpips_squeeze", "alexnet5"),
        ({"kind": "open-clip", "model": "ViT-L-14", "pretrained": "openai"}, ["clip", "inception"], "clip", "inception"),
        (
            {"kind": "clip-vision", "repository": "x/stable-diffusion-2-1-unclip-small", "subfolder": "image_encoder"},
            ["clip", "inception"],
            "clip",
            "inception",
        ),
        ({"kind": "clip-vision"}, ["clip", "inception"], "identification", "clip"),
        ({"kind": "open-clip", "model": "ViT-B-32-quickgelu", "pretrained": "openai"}, ["clip", "inception"], "identification", "clip"),
    ],
)
def test_the_page_leads_with_a_measure_by_another_network_than_the_targets(embedding, present, own, first):
    section = Foundations(embedding=embedding, diffusion={"kind": "study"}).embedding
    assert own in circular(section) and not {"inception", "classifier", "mse"} & circular(section)
    assert headline(present, section) == first


def test_a_table_without_its_columns_is_refused_in_one_line(fake, tmp_path):
    (tmp_path / "reconstruction.csv").write_text("study,dataset\na,b\n")
    with pytest.raises(InputError, match="reconstruction.csv: no column subject, role"):
        results.read_scores(fake.study, tmp_path)
    (tmp_path / "reconstruction.csv").write_text(",".join(COLUMNS) + "\n")
    assert results.read_scores(fake.study, tmp_path) is None
    assert results.read_result_table(tmp_path, "efficiency") is None
