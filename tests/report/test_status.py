"""`unimind status`, beside a real Snakemake that runs, fails and is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from unimind.report.status import goes_on, last_word, log_of, refusals, status, steps
from unimind.study import parse_study

TINY = Path(__file__).parents[1] / "workflow/studies/tiny.yaml"
STUDY = parse_study(yaml.safe_load(TINY.read_text()))
# Makes subj01, refuses subj03, and is long at work on subj02.
SNAKEFILE = """
rule all:
    input: expand("results/tiny/fetched/simulated/subj0{n}.json", n=[1, 2, 3])
rule fetch:
    output: "results/tiny/fetched/simulated/subj0{n}.json"
    log: "logs/tiny/fetched/simulated/subj0{n}.log"
    shell:
        "echo at work on {wildcards.n} > {log}; touch {output}; if [ {wildcards.n} = 3 ]; then"
        " echo 'unimind fetch: no disk space' >> {log}; exit 2; elif [ {wildcards.n} = 2 ]; then sleep 600; fi"
"""


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def going(tmp_path):
    """A Snakemake that has made one result, failed at another and works on the third; with its folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "Snakefile").write_text(SNAKEFILE)
    command = [sys.executable, "-m", "snakemake", "--cores", "3", "--keep-going"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    made = [folder / f"results/tiny/fetched/simulated/subj0{n}.json" for n in (1, 2, 3)]
    logs = [folder / f"logs/tiny/fetched/simulated/subj0{n}.log" for n in (1, 2, 3)]
    try:
        wait_until(lambda: made[0].exists() and made[1].exists() and logs[2].exists() and not made[2].exists())
        wait_until(lambda: len(list((folder / ".snakemake/incomplete").iterdir())) == 1)
        yield process, folder
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def shown(folder: Path, capsys) -> tuple[str, dict[str, list[str]]]:
    """First line that `status` prints, and of every fetching of a subject: its state, and the last word of its log."""
    status(STUDY, folder)
    first, *lines = capsys.readouterr().out.splitlines()
    found = [line.split(maxsplit=4) for line in lines]
    return first, {line[3]: [line[0], *line[4:]] for line in found if line[1:3] == ["fetch", "simulated"]}


def test_every_state_while_snakemake_runs_and_after_it_was_killed(going, capsys):
    process, folder = going
    count = len(list(steps(STUDY)))
    first, fetched = shown(folder, capsys)
    assert first == f"tiny: 1 of {count} done, 1 running, 1 failed, {count - 3} waiting"
    assert fetched == {
        "stimuli": ["waiting"], "subj01": ["done", "at work on 1"], "subj02": ["running", "at work on 2"], "subj03": ["failed", "unimind fetch: no disk space"],
    }  # fmt: skip
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert any((folder / ".snakemake/locks").iterdir())
    first, fetched = shown(folder, capsys)
    assert first == f"tiny: 1 of {count} done, 1 failed, 1 interrupted, {count - 3} waiting" and fetched["subj02"] == ["interrupted", "at work on 2"]


def test_a_snakemake_elsewhere_is_none_here(going, tmp_path):
    _, folder = going
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    assert goes_on(folder) and not goes_on(tmp_path)
    (tmp_path / ".snakemake/locks/0.input.lock").touch()
    assert not goes_on(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    assert goes_on(tmp_path / "link")


def of_comparison(change) -> list[str]:
    """Paths of the tiny study's results, with a method of its comparison alone that is pretrained, and a change to it all."""
    content = yaml.safe_load(TINY.read_text())
    content["transfer"]["baselines"]["of-1"] = content["methods"]["unimind-vit"] | {"trained_on": {"subjects": 1}}
    content["methods"] = {"ridge": content["methods"]["ridge"]}
    change(content)
    return [step.path for step in steps(parse_study(content))]


def test_models_of_a_comparison_are_those_its_new_subjects_are_adapted_from():
    paths = of_comparison(lambda study: None)
    assert [path for path in paths if "of-1" in path and path.startswith("models")] == [
        "models/of-1/pretrain", "models/of-1/align/simulated", "models/of-1/condition/simulated",
    ]  # fmt: skip
    assert "prepared/unpaired/100307.h5" in paths and "models/prior/enter/simulated-subj03" not in paths


@pytest.mark.parametrize(
    "change",
    [
        lambda study: study["transfer"]["baselines"]["of-1"].update(pretrain=None, body={"kind": "mlp"}),
        lambda study: study["transfer"]["baselines"].pop("of-1"),
        lambda study: study["datasets"]["simulated"].pop("new_subjects"),
    ],
)
def test_resting_fmri_that_no_model_is_pretrained_on_is_not_waited_for(change):
    paths = of_comparison(change)
    assert not [path for path in paths if "unpaired" in path or "pretrain" in path]


# --- what a failed run says last --------------------------------------------------------------------------------------


def write_log(folder: Path, path: str, text: str, age: float = 0.0) -> None:
    log = log_of(STUDY, next(step for step in steps(STUDY) if step.path == path), folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    os.utime(log, (time.time() - age, time.time() - age))


def test_refusals_are_the_lines_of_the_jobs_that_refused(tmp_path):
    since = time.time() - 10
    assert refusals(STUDY, tmp_path, since) == []
    write_log(tmp_path, "prepared/simulated/subj01.h5", "12:00:00 reading\nunimind prepare: betas.nii: holds NaN; fetch it again\n")
    write_log(tmp_path, "tables", "unimind tabulate: of an earlier run\n", age=20)
    assert refusals(STUDY, tmp_path, since) == ["unimind prepare: betas.nii: holds NaN; fetch it again"]
    of_two_processes = "unimind align: rows\nunimind align: rows\nTraceback (most recent call last):\n=====\n"
    write_log(tmp_path, "models/unimind-vit/align/simulated", of_two_processes)
    assert refusals(STUDY, tmp_path, since) == ["unimind prepare: betas.nii: holds NaN; fetch it again", "unimind align: rows"]


@pytest.mark.parametrize("last", ["ValueError: a defect", "unimind score: interrupted; what was finished is kept, run again to continue", ""])
def test_a_job_that_failed_otherwise_leaves_no_refusals(tmp_path, last):
    write_log(tmp_path, "prepared/simulated/subj01.h5", "unimind prepare: refused\n")
    write_log(tmp_path, "metrics/simulated/subj01", f"unimind fetch: of another stage\n{last}\n" if last else "")
    assert refusals(STUDY, tmp_path, 0) is None


def test_a_refusal_of_a_comparison_s_training_is_one(tmp_path):
    content = yaml.safe_load(TINY.read_text())
    content["transfer"]["baselines"]["of-1"] = content["methods"]["unimind-vit"] | {"trained_on": {"subjects": 1}}
    log = tmp_path / "logs/tiny/models/of-1/align/simulated.log"
    log.parent.mkdir(parents=True)
    log.write_text("unimind align: refused\n")
    assert refusals(parse_study(content), tmp_path, 0) == ["unimind align: refused"]


def test_a_made_result_is_no_refusal(tmp_path):
    write_log(tmp_path, "report.html", "unimind report: refused\n")
    (tmp_path / "results/tiny").mkdir(parents=True)
    (tmp_path / "results/tiny/report.html").touch()
    assert refusals(STUDY, tmp_path, 0) == []


def test_last_word_of_no_log_is_nothing(tmp_path):
    assert last_word(tmp_path / "none.log", "align") == ""
