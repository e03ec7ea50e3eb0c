"""The tiny study from nothing to its report, with every real stage; and runs that are killed and started again."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from workflow_clone import ROOT, TINY, jobs, tiny

from unimind.report.status import status, steps
from unimind.storage import file_hash
from unimind.study import parse_study

pytestmark = pytest.mark.slow

RESULTS = Path("results/tiny")


def snakemake(folder: Path, *arguments: str, study: Path = TINY) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments, study=study), cwd=folder, env=environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done


def command(*arguments: str, study: Path = TINY) -> list[str]:
    # One thread a job: two jobs at a time, and sums that do not depend on the machine.
    return [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(ROOT / "Snakefile"),
        *arguments,  # before the options that take several values
        "--cores",
        "2",
        "--nocolor",
        "--configfile",
        str(study),
        "--config",
        "threads=1",
    ]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("SNAKEMAKE", "PYTHONPATH"))}


def weights(folder: Path) -> dict[str, str]:
    """Hash of every model of a run."""
    results = folder / RESULTS
    return {str(file.relative_to(results)): file_hash(file) for file in sorted(results.rglob("model.safetensors"))}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder in which the tiny study has run; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    snakemake(folder)
    return folder


@pytest.fixture
def copy(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_everything_is_there(run, capsys):
    study = parse_study(tiny())
    missing = [step.path for step in steps(study) if not (run / RESULTS / step.path).exists()]
    assert not missing
    status(study, run)
    shown = capsys.readouterr().out
    count = len(list(steps(study)))
    assert shown.startswith(f"tiny: {count} of {count} done\n") and shown.count("  done  ") == count


def test_table_has_every_method_and_subject_with_its_role(run):
    with open(run / RESULTS / "tables/reconstruction.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert set(rows[0]) == set("study dataset subject role method trials metric value ci_low ci_high n_test better protocol".split())
    seen = {(row["method"], row["subject"], row["role"]) for row in rows}
    for method in tiny()["methods"]:
        assert {(method, "subj01", "train"), (method, "subj02", "train"), (method, "subj03", "new")} <= seen
    assert {"mse", "pixcorr", "ssim"} <= {row["metric"] for row in rows}
    assert any(row["role"] == "control" for row in rows)


def test_adaptation_table_compares_every_way_over_the_budgets(run):
    with open(run / RESULTS / "tables/adaptation.csv") as stream:
        rows = list(csv.DictReader(stream))
    ways = {"unimind", "unimind-convmixer", "unimind-convmixer from scratch", "unimind-vit", "unimind-vit from scratch", "ridge", "prior"}
    assert {row["method"] for row in rows} == ways | {"unimind-convmixer without adaptation"} and {row["subject"] for row in rows} == {"subj03"}
    for way in ways:
        own = [row for row in rows if row["method"] == way and row["metric"] == "identification"]
        assert len({row["trials"] for row in own}) == len(own) == 2 and "20" in {row["trials"] for row in own}
        assert all(float(row["trainable_parameters"]) <= float(row["parameters"]) and float(row["seconds"]) >= 0 for row in own)
    with open(run / RESULTS / "tables/adaptation_comparisons.csv") as stream:
        assert {row["trials"] for row in csv.DictReader(stream)} == {"20", "all"}


def test_report_is_one_page_without_addresses_to_load(run):
    page = (run / RESULTS / "report.html").read_text()
    assert "A tiny study" in page and "data:image/" in page
    assert 'src="http' not in page and 'href="http' not in page.split("<body")[0]


def test_second_run_does_nothing(run):
    assert jobs(snakemake(run, "-n")) == {}


def test_new_subject_leaves_shared_weights_alone(copy, tmp_path):
    before = weights(copy)
    content = tiny()
    content["datasets"]["simulated"]["new_subjects"].append("subj04")
    content["methods"] = {name: content["methods"][name] for name in ("unimind", "unimind-convmixer", "ridge")}
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(content, sort_keys=False))
    planned = jobs(snakemake(copy, "-n", study=study))
    assert planned == {
        "fetch_subject": 1, "prepare_subject": 1, "inspect_subject": 1, "check_subjects": 1, "adapt_subject": 1, "enter_subject": 2, "reconstruct_pictures": 3,
        "score_reconstructions": 1, "check_generalisation": 1, "compare_budgets": 4, "make_tables": 1, "draw_figures": 1, "write_report": 1,
    }  # fmt: skip
    own = {"models/unimind-convmixer/adapt/simulated-subj04", *(f"models/{name}/enter/simulated-subj04" for name in ("unimind", "ridge"))}
    snakemake(copy, *[str(RESULTS / model) for model in own], study=study)
    after = weights(copy)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"{model}/model.safetensors" for model in own}


def longer(tmp_path: Path, path: str) -> Path:
    """The tiny study with a longer training at one place, and checkpoints as often as 3 % of its time allow."""
    content = json.loads(json.dumps(tiny()))  # without YAML's shared parts
    *parts, last = path.split(".")
    section = content
    for part in parts:
        section = section[part]
    section[last] = section[last] | {"steps": 40, "checkpoint_minutes": 0}
    study = tmp_path / "longer.yaml"
    study.write_text(yaml.safe_dump(content, sort_keys=False))
    return study


@pytest.mark.longest
@pytest.mark.parametrize(
    ("training", "model"),
    [
        ("foundations.autoencoder.training", "foundations/autoencoder"),
        ("methods.unimind-convmixer.pretrain.training", "models/unimind-convmixer/pretrain"),
        ("methods.unimind-convmixer.align.training", "models/unimind-convmixer/align/simulated"),
        ("methods.unimind-convmixer.condition.training", "models/unimind-convmixer/condition/simulated"),
        ("methods.unimind-convmixer.adapt.training", "models/unimind-convmixer/adapt/simulated-subj03"),
    ],
)
def test_killed_run_continues_to_the_same_weights(run, tmp_path, training, model):
    study = longer(tmp_path, training)
    target = str(RESULTS / model)
    for name in ("undisturbed", "killed"):
        shutil.copytree(run, tmp_path / name, symlinks=True)
    snakemake(tmp_path / "undisturbed", target, study=study)

    checkpoint = tmp_path / "killed" / RESULTS / "checkpoints" / model / "checkpoint.safetensors"
    going = subprocess.Popen(
        command(target, study=study), cwd=tmp_path / "killed", env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not checkpoint.exists():
        assert going.poll() is None and time.monotonic() < deadline, "ended before its first checkpoint"
        time.sleep(0.01)
    os.killpg(going.pid, signal.SIGKILL)
    going.wait()
    assert not (tmp_path / "killed" / target / "model.safetensors").exists()

    snakemake(tmp_path / "killed", "--unlock", study=study)
    snakemake(tmp_path / "killed", target, study=study)
    log = (tmp_path / "killed/logs/tiny" / f"{model}.log").read_text()
    assert "continuing from step" in log
    file = f"{model}/model.safetensors"
    assert file_hash(tmp_path / "killed" / RESULTS / file) == file_hash(tmp_path / "undisturbed" / RESULTS / file) != weights(run)[file]
    assert not checkpoint.exists()
