"""`processes:` of a study: the workflow's own command spreads a training over several processes, whose model is that of one."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import TRAINING, make_study

from unimind.study import resolved

ROOT = Path(__file__).parents[2]
MODEL = "results/tiny/models/m/pretrain"


def snakemake(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), *arguments, "--cores", "2", "--nocolor", "--configfile", "study.json"]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SNAKEMAKE", "PYTHONPATH"))}
    done = subprocess.run(command, cwd=folder, env=inherited | {"UNIMIND_DEVICE": "cpu"}, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def place(files: Path, folder: Path, losses: dict[str, float], **keys) -> None:
    """A study and the files from which its pretraining starts."""
    folder.mkdir()
    losses = {"siamese": 0.0, "embedding": 1.0, "softclip": 0.0} | losses
    study = resolved(make_study(align={"losses": losses, "training": TRAINING}, adapt={"losses": losses, "mix_training": 0.25, "training": TRAINING}))
    (folder / "study.json").write_text(json.dumps(study | {"methods": {"m": study["methods"]["m"]}} | keys))
    (folder / "results/tiny/prepared/unpaired").mkdir(parents=True)
    for name in ("1", "2"):
        shutil.copy(files / f"rest{name}.h5", folder / f"results/tiny/prepared/unpaired/{name}.h5")
    (folder / "results/tiny/prepared/overview.csv").touch()


def curve(folder: Path) -> dict[tuple[int, str, str], float]:
    with open(folder / MODEL / "losses.csv") as stream:
        rows = list(csv.DictReader(stream))
    values = {(int(row["step"]), row["split"], row["term"]): float(row["value"]) for row in rows}
    assert len(values) == len(rows)
    return values


@pytest.mark.slow
def test_two_processes_write_the_one_model_that_one_process_writes(files, tmp_path):
    for processes in (1, 2):
        place(files, tmp_path / str(processes), {}, processes=processes, threads=processes)
        snakemake(tmp_path / str(processes), MODEL, "--allowed-rules", "pretrain_encoder")
    one, two = tmp_path / "1", tmp_path / "2"
    assert sorted(path.name for path in (two / MODEL).parent.iterdir()) == ["pretrain"]
    assert sorted(path.name for path in (two / MODEL).glob("[!.]*")) == ["config.json", "efficiency.json", "losses.csv", "model.safetensors"]
    assert not any((two / "results/tiny/checkpoints").rglob("*.safetensors"))
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)
    first, second = (load_file(folder / MODEL / "model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    assert any(not torch.equal(second[name], tensor) for name, tensor in first.items())  # sums of two shares, not the same sums
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    shutil.copy(two / "study.json", one)
    assert "Nothing to be done" in snakemake(one, MODEL, "--dry-run", "--allowed-rules", "pretrain_encoder")  # another number trains nothing again


SHARED = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from tiny_training import CONVMIXER, LOSSES, TRAINING, study_of_methods
from unimind.training.adapt import adapt
from unimind.training.align import align

files, out = Path(sys.argv[2]), Path(sys.argv[3])
training = TRAINING | {"batch_size": 25}
built = {"siamese": 0.0, "softclip": 0.5, "reconstruction": 1.0}
method = {
    "enter": {"kind": "embedder", "pooled": 16, "bottleneck": 8, "size": 32, "dropout": 0.0}, "body": CONVMIXER,
    "align": {"losses": LOSSES | {"reconstruction": 1.0, "cycle": 1.0}, "mixco": 0.5, "training": training},
    "adapt": {"losses": built | {"siamese": 1.0}, "mix_training": 0.25, "training": training},
}
study = study_of_methods(m=method)
prepared, embeddings = [files / "subj01.h5", files / "subj02.h5"], [files / "embeddings.h5"] * 2
align(study, "m", "sim", prepared, embeddings, None, None, out / "1", out / "aligned")
new = files / "subj03.h5", files / "embeddings.h5"
adapt(study, "m", "sim", "subj03", *new, out / "aligned", out / "2", out / "adapted", training_prepared=prepared, training_embeddings=embeddings)
"""


@pytest.mark.slow
def test_rows_of_three_processes_are_compared_with_each_other(files, tmp_path):
    """All losses, those of pairs of rows and of rows that have builders among them: the models are those of one process."""
    (tmp_path / "shared.py").write_text(SHARED)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "UNIMIND_DEVICE": "cpu"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    for processes in (1, 3):
        given = [tmp_path / "shared.py", Path(__file__).parent, files, tmp_path / str(processes)]
        done = subprocess.run([*launch, f"--nproc-per-node={processes}", *map(str, given)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("aligned", "adapted"):
        first, second = (load_file(tmp_path / processes / name / "model.safetensors") for processes in ("1", "3"))
        assert first.keys() == second.keys()
        assert any(not torch.equal(second[name], tensor) for name, tensor in first.items())  # sums of three shares, not the same sums
        for key, tensor in first.items():
            torch.testing.assert_close(second[key], tensor, rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")


def commands(folder: Path, *arguments: str) -> dict[str, str]:
    """The beginning of each stage's command that a dry run prints."""
    lines = snakemake(folder, "--dry-run", "--printshellcmds", *arguments).splitlines()
    found = [re.search(r"python -m .*?\bunimind ([\w-]+) --study \S+( --name \w+)?", line) for line in lines]
    return {one[1] + (one[2] or ""): one[0] for one in found if one}


def test_only_what_can_be_shared_out_is_spread(files, tmp_path):
    place(files, tmp_path / "run", {"siamese": 1.0}, processes=3)
    found = commands(tmp_path / "run")
    for stage in ("pretrain", "align", "adapt", "foundation --name diffusion", "reconstruct", "score"):
        assert " accelerate.commands.launch --multi_gpu " in found[stage] and " --num_processes 3 " in found[stage]
    for stage in ("embed", "foundation --name embedding"):
        assert found[stage].startswith("python -m unimind")


def test_a_cluster_is_asked_for_one_card_per_process_on_one_node(files, tmp_path):
    """What is submitted to a stand-in for SLURM that takes nothing."""
    place(files, tmp_path / "run", {}, processes=3)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in (("sinfo", "echo main"), ("sbatch", f'echo "$@" >> {tmp_path}/asked; exit 1'), ("squeue", ":"), ("scancel", ":")):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), MODEL, "--configfile", "study.json", "--allowed-rules", "pretrain_encoder"]
    profile = ["--workflow-profile", str(ROOT / "workflow/profiles/slurm"), "--retries", "0", "--slurm-init-seconds-before-status-checks", "1"]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SNAKEMAKE", "PYTHONPATH"))}
    subprocess.run(
        [*command, *profile], cwd=tmp_path / "run", env=inherited | {"PATH": f"{tools}:{os.environ['PATH']}"}, capture_output=True, stdin=subprocess.DEVNULL
    )
    asked = (tmp_path / "asked").read_text()
    assert {"--gpus=3", "--nodes=1"} <= set(asked.split()) and "--mem 72000 " in asked
