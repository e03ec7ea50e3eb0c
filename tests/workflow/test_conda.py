"""`--use-conda`, with the stand-in for conda of `conda_standin/`: every job runs in the environment of its rule."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from workflow_clone import ROOT, read_calls, tiny

STANDIN = ROOT / "tests/workflow/conda_standin"


def environment() -> dict[str, str]:
    return {"PATH": f"{STANDIN}:{os.environ['PATH']}", "CONDA_STANDIN_PYTHON": sys.executable}


def small() -> dict:
    """The tiny study with ridge and one subject: still every environment."""
    content = tiny()
    content["datasets"]["simulated"] |= {"training_subjects": ["subj01"], "new_subjects": []}
    content["methods"] = {"ridge": content["methods"]["ridge"]}
    return content | {"threads": 1}


def test_jobs_run_in_their_rules_environments(bare, tmp_path):
    clone = bare.copy(tmp_path / "unimind")
    done = clone.snakemake("--use-conda", configfile=clone.study(small()), **environment())
    assert done.returncode == 0, done.stdout + done.stderr
    python = {call["stage"]: Path(call["python"]) for call in read_calls(clone)}
    made = {path.parent: path.read_text() for path in (clone.folder / ".snakemake/conda").glob("*/made_by_standin")}
    assert len(made) == 3
    packages = {stage: made[place.parents[1]] for stage, place in python.items()}
    assert "nibabel" in packages["fetch"] and "torch" not in packages["fetch"]
    assert "torch==" in packages["enter"] and "matplotlib" in packages["report"]


def run(folder: Path, *arguments: str, **more: str) -> Path:
    """The small study, run with its real stages; the folder of its tables."""
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml.safe_dump(small(), sort_keys=False))
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SNAKEMAKE", "PYTHONPATH"))}
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--cores", "2", "--nocolor", *arguments, "--configfile", "study.yaml"],
        cwd=folder, env=inherited | more, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    assert (folder / "results/tiny/report.html").stat().st_size > 0
    return folder / "results/tiny/tables"


@pytest.mark.slow
@pytest.mark.longest
def test_real_stages_find_all_they_import_and_make_the_tables_of_a_run_without_conda(tmp_path):
    within, without = run(tmp_path / "conda", "--use-conda", **environment()), run(tmp_path / "local")
    assert (tmp_path / "conda/.snakemake/conda").is_dir() and not any((tmp_path / "local/.snakemake/conda").glob("*"))
    for name in ("reconstruction.csv", "reconstruction.md", "reconstruction.tex"):
        assert (within / name).read_bytes() == (without / name).read_bytes()
    assert "ridge" in (within / "reconstruction.csv").read_text()


def test_standin_refuses_a_version_that_is_not_installed(tmp_path):
    (tmp_path / "other.yaml").write_text("dependencies: [python, pip, {pip: [numpy==1.0.0]}]\n")
    done = subprocess.run(
        [str(STANDIN / "conda"), "env", "create", "--file", str(tmp_path / "other.yaml"), "--prefix", str(tmp_path / "env")],
        env=os.environ | environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0 and "numpy==1.0.0" in done.stderr
