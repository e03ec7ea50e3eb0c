"""MindBridge's parts through the stages: signals built back and across subjects in `align`, reset-tuning in `adapt`."""

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import TRAINING, study_of_methods

from unimind.training.adapt import adapt
from unimind.training.align import align
from unimind.training.alignment import with_others


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")


def test_signals_are_built_back_and_a_new_subject_changes_nothing_shared(files, tmp_path):
    training = TRAINING | {"steps": 60, "validate_every": 60}
    losses = {"siamese": 0.0, "reconstruction": 1.0, "cycle": 1.0}
    method = {
        "enter": {"kind": "embedder", "pooled": 24, "bottleneck": 8, "size": 16, "repeats": "mean", "dropout": 0.1},
        "body": {"kind": "residual", "block": "linear", "depth": 2},
        "align": {"losses": losses, "training": training},
        "adapt": {"strategy": "adapter", "losses": {"reconstruction": 1.0}, "training": training},
    }
    tiny = study_of_methods(m=method)
    prepared, embeddings = [files / f"{name}.h5" for name in ("subj01", "subj02")], [files / "embeddings.h5"] * 2
    align(tiny, "m", "sim", prepared, embeddings, None, None, tmp_path / "c", tmp_path / "shared")
    adapt(tiny, "m", "sim", "subj03", files / "subj03.h5", files / "embeddings.h5", tmp_path / "shared", tmp_path / "c", tmp_path / "own")
    for name, terms in (("shared", ("reconstruction", "cycle")), ("own", ("reconstruction",))):
        table = pd.read_csv(tmp_path / name / "losses.csv").query("split == 'train'")
        assert ("cycle" in set(table.term)) == (name == "shared")
        for term in terms:
            values = table[table.term == term].sort_values("step").value
            assert values.iloc[-1] < 0.9 * values.iloc[0], (name, term)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("shared", "own"))
    assert {name.split(".")[0] for name in before} == {"encoder", "builders"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if "mean_" not in name)
    assert all(name.startswith("encoder.enter.maps.subject-sim-subj03.") for name in after.keys() - before.keys())


def test_a_signal_goes_to_each_other_subject_in_turn_and_never_to_its_own():
    names, seen = ["a", "b", "c"], set()
    for step in range(40):
        batch = with_others({"subject": ["a", "b", "c", "a"]}, names, step, 0)
        assert all(own != other for own, other in zip(batch["subject"], batch["other"], strict=True))
        seen |= set(zip(batch["subject"], batch["other"], strict=True))
    assert len(seen) == 6
