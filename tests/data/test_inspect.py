"""What `inspect` says of whole and of damaged laboratories, and how training waits for it."""

import re

import numpy as np
import pandas as pd
import pytest

from benchmarks.inspection import FAULTS, case, study_of
from unimind.data.evidence import repeated_rows
from unimind.data.inspect import identified, ridge_predictions
from unimind.data.overview import overview
from unimind.data.prepared import write_prepared
from unimind.errors import InputError
from unimind.storage import write_json


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "all tables sorted"])
def test_a_fault_is_named(fault):
    damage, pattern = FAULTS[fault]
    findings = case(0, damage)["findings"]
    assert any(re.search(pattern, line) for line in findings), findings
    assert all("\n" not in line for line in findings)


@pytest.mark.parametrize("noise", [1.3, 4.0])
def test_nothing_is_said_of_whole_files(noise):
    found = case(5, None, noise=noise)
    assert found["findings"] == [] and found["decodable"]


def test_noise_alone_is_not_decodable_and_stops_the_study(tmp_path):
    found = case(0, None, noise=1e6, count=108)
    assert not found["decodable"] and found["verdict"].startswith("nothing can be decoded")
    write_json(tmp_path / "found.json", found)
    rng = np.random.default_rng(0)
    write_prepared(
        tmp_path / "01.h5", rng.normal(size=(6, 3)), stimulus=[0, 1, 2, 2, 3, 0], session=[1] * 6, split=[0, 0, 2, 2, 1, 0],
        stimuli=6, dataset="lab", subject="01", protocol={},
    )  # fmt: skip
    study = study_of(tmp_path)
    with pytest.raises(InputError, match=r"lab 01: nothing can be decoded.*require_signal: false"):
        overview(study, [tmp_path / "01.h5"], [], tmp_path / "overview.csv", [tmp_path / "found.json"])
    section = study.datasets["lab"].model_copy(update={"require_signal": False})
    overview(study.model_copy(update={"datasets": {"lab": section}}), [tmp_path / "01.h5"], [], tmp_path / "overview.csv", [tmp_path / "found.json"])
    row = pd.read_csv(tmp_path / "overview.csv", dtype={"subject": str}).iloc[0]
    assert row.identification == found["identification"]["value"] and row.noise_ceiling == found["noise_ceiling"]


def test_identification_is_counted_pair_by_pair():
    rng = np.random.default_rng(0)
    predicted, truth = rng.normal(size=(2, 15, 6))
    predicted += truth
    corr = np.corrcoef(predicted, truth)[:15, 15:]
    expected = np.mean([corr[i, i] > corr[i, j] for i in range(15) for j in range(15) if i != j])
    assert identified(predicted, truth, 0)["value"] == pytest.approx(expected, abs=1e-4)


def test_ridge_chooses_the_penalty_of_the_least_leave_one_out_error():
    from sklearn.linear_model import Ridge, RidgeCV

    from unimind.data.inspect import PENALTIES

    rng = np.random.default_rng(0)
    x, test = rng.normal(size=(40, 12)), rng.normal(size=(5, 12))
    y = np.stack([x @ rng.normal(size=12) + rng.normal(size=40) * noise for noise in (0.1, 10)], axis=1)
    scale = ((x - x.mean(0)) ** 2).sum() / 12
    for column in (0, 1):
        alpha = RidgeCV(alphas=PENALTIES * scale).fit(x, y[:, column]).alpha_
        expected = Ridge(alpha=alpha).fit(x, y[:, column]).predict(test)
        np.testing.assert_allclose(ridge_predictions(x, y, test)[:, column], expected, rtol=1e-6)


def test_rows_that_come_again_are_found_in_every_block():
    x = np.random.default_rng(0).normal(size=(2300, 40)).astype(np.float32)
    x[2100:2107] = x[900:907]
    x[50:53] = x[60:63]  # too short
    assert repeated_rows(x, 0.95, 5) == [(900, 2100, 7)]
