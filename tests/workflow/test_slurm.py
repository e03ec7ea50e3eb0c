"""The SLURM profile on a real SLURM of one node: a study to its tables, cards, memory, Ctrl-C."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from slurm_node import SlurmNode, Unavailable, install, wait_until
from workflow_clone import ROOT, Clone, tiny, unpretrained

from unimind.stages import STAGES

PROFILE = ROOT / "workflow/profiles/slurm"

# Snakemake, asking for the state of its jobs every second, where SLURM's plugin waits longer each time.
WATCHFUL = """
import asyncio
from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor
Executor.sleep = lambda self: asyncio.sleep(1)
main()
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A SLURM of one node, running."""
    try:
        install()
    except Unavailable as reason:
        pytest.skip(f"no SLURM: {reason}")
    node = SlurmNode(tmp_path_factory.mktemp("slurm"))
    try:
        node.start()
        yield node
    finally:
        node.stop()


@pytest.fixture(scope="module")
def fetched(tmp_path_factory) -> Clone:
    """A clone with stand-ins for the stages, in which everything has been fetched; not to be changed."""
    clone = Clone.make(tmp_path_factory.mktemp("fetched") / "unimind")
    done = clone.snakemake("--until", "fetch_stimuli", "fetch_subject", "fetch_unpaired", cores=4)
    assert done.returncode == 0, done.stdout + done.stderr
    return clone


def hears_interrupts() -> None:
    """In a new process: Ctrl-C is not ignored, as it is in what a shell started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def snakemake(folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "snakemake"), **environment: str) -> subprocess.Popen[str]:
    """Snakemake, started in a folder; what it says goes to `said` there."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SNAKEMAKE", "PYTHONPATH"))}
    with open(folder / "said", "w") as said:
        return subprocess.Popen(
            [sys.executable, *program, "--nocolor", *arguments],
            cwd=folder, env=inherited | environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, text=True, preexec_fn=hears_interrupts,
        )  # fmt: skip


def by_slurm(folder: Path, node: SlurmNode, *arguments: str, program: tuple[str, ...] = ("-c", WATCHFUL), **environment: str) -> subprocess.Popen[str]:
    """The same with the project's profile, submitting to the node."""
    return snakemake(folder, *arguments, "--workflow-profile", str(PROFILE), program=program, **node.environment, **environment)


def real_stages(content: dict, folder: Path, *targets: str) -> tuple[str, ...]:
    """Arguments that run a study, written to a folder, with this checkout's stages; one thread a job, so that sums do not depend on the machine."""
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(content | {"threads": 1}, sort_keys=False))
    return ("--snakefile", str(ROOT / "Snakefile"), *targets, "--configfile", str(study))


def ended(going: subprocess.Popen[str], folder: Path, minutes: float) -> None:
    """Wait for a run to end well."""
    try:
        going.wait(timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        going.send_signal(signal.SIGINT)
        raise
    assert going.returncode == 0, (folder / "said").read_text()[-8000:]


def submitted(node: SlurmNode, folder: Path) -> dict[str, list[dict[str, str]]]:
    """Jobs that were submitted from a folder, by rule, in their order."""
    found: dict[str, list[dict[str, str]]] = {}
    for job in node.jobs():
        if job["WorkDir"] == str(folder):
            found.setdefault(re.sub(r"^rule_|_wildcards_.*", "", job["Comment"]), []).append(job)
    return found


def rules_with_card() -> set[str]:
    """Rules that ask for a card, as their stages are declared."""
    text = "".join(file.read_text() for file in sorted((ROOT / "workflow/rules").glob("*.smk")))
    rules = re.findall(r"^rule (\w+):(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    asked = {name: re.search(r'resources_of\("([\w-]+)"\)', body) for name, body in rules}
    return {name for name, stage in asked.items() if stage and STAGES[stage[1]].gpu}


def test_profile_names_every_rule_with_a_card():
    text = (PROFILE / "profile.yaml").read_text()
    as_if = yaml.safe_load(re.sub(r"^# (?=set-resources|  )", "", text, flags=re.MULTILINE))
    assert set(as_if["set-resources"]) == rules_with_card()


def went_right(node: SlurmNode, slurm: Path, local: Path) -> None:
    """A study ended on the node as it did without, and its jobs were what the profile and the rules say."""
    for table in ("reconstruction.csv", "retrieval.csv", "comparisons.csv"):
        assert (slurm / "results/tiny/tables" / table).read_bytes() == (local / "results/tiny/tables" / table).read_bytes()
    jobs = submitted(node, slurm)
    assert {job["JobState"] for each in jobs.values() for job in each} == {"COMPLETED"}
    with_card = [job for each in jobs.values() for job in each if re.fullmatch("gres[:/]gpu[:=]1", job.get("TresPerJob", ""))]
    assert {rule for rule, each in jobs.items() if each[0] in with_card} == rules_with_card() & set(jobs)
    times = sorted((job["StartTime"], job["EndTime"]) for job in with_card)
    assert len(times) > 3 and all(end <= begin for (_, end), (begin, _) in zip(times, times[1:], strict=False))
    # SLURM's logs of jobs that went well are gone; what the stages said is where it always is.
    assert not list(slurm.glob("logs/slurm/**/*.log"))
    assert (slurm / "logs/tiny/tables.log").exists()


@pytest.mark.slow
@pytest.mark.longest
def test_study_that_goes_on_by_slurm_has_the_same_tables(node, tmp_path):
    content = tiny()
    content["datasets"]["simulated"] |= {"training_subjects": ["subj01"], "new_subjects": []}
    method = content["methods"]["unimind-convmixer"]
    content["methods"] = {"unimind-convmixer": unpretrained(method)}
    del content["unpaired"], content["transfer"], content["foundations"]["classifier"]
    local, slurm = tmp_path / "local", tmp_path / "slurm"
    local.mkdir()
    arguments = real_stages(content, tmp_path, "results/tiny/tables")
    ended(snakemake(local, "--cores", "2", *arguments), local, minutes=15)

    shutil.copytree(local, slurm, symlinks=True)
    for folder in ("models", "reconstructions", "metrics", "tables"):
        shutil.rmtree(slurm / "results/tiny" / folder)
    ended(by_slurm(slurm, node, *arguments), slurm, minutes=20)
    went_right(node, slurm, local)
    trained = {"align_subjects", "condition_diffusion"}
    assert set(submitted(node, slurm)) == trained | {
        "reconstruct_pictures", "sample_controls", "score_reconstructions", "check_generalisation", "make_tables",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.longest
def test_study_by_slurm_has_the_tables_of_a_local_run(node, tmp_path):
    content = tiny()
    content["methods"] = {name: content["methods"][name] for name in ("unimind-convmixer", "ridge")}
    local, slurm = tmp_path / "local", tmp_path / "slurm"
    arguments = real_stages(content, tmp_path)
    for folder in (local, slurm):
        folder.mkdir()
    going = {slurm: by_slurm(slurm, node, *arguments), local: snakemake(local, "--cores", "1", *arguments)}
    try:
        for folder, run in going.items():
            ended(run, folder, minutes=90)
    finally:
        for run in going.values():
            run.send_signal(signal.SIGINT)
    went_right(node, slurm, local)
    assert (slurm / "results/tiny/report.html").stat().st_size > 0
    # What needs the network ran where Snakemake runs.
    rules = set(submitted(node, slurm))
    assert {"enter_subject", "align_subjects", "adapt_subject", "compare_budgets"} < rules and not {"fetch_stimuli", "fetch_subject", "fetch_unpaired"} & rules


@pytest.mark.slow
def test_job_out_of_memory_is_submitted_again_with_more(node, tmp_path):
    clone = Clone.make(tmp_path / "unimind")
    target = "results/tiny/prepared/unpaired/100307.h5"
    going = by_slurm(clone.folder, node, target, "--configfile", str(clone.study(tiny())), STANDIN_MEMORY="prepare-unpaired:9000")
    ended(going, clone.folder, minutes=10)
    assert (clone.folder / target).exists()
    # The fetching before it is no job of SLURM.
    (rule, (first, second)), *others = submitted(node, clone.folder).items()
    assert rule == "prepare_unpaired" and not others
    assert first["JobState"] in ("FAILED", "OUT_OF_MEMORY") and second["JobState"] == "COMPLETED"
    assert (first["MinMemoryNode"], second["MinMemoryNode"]) == ("8000M", "16000M")
    assert (first["TimeLimit"], second["TimeLimit"]) == ("02:00:00", "04:00:00")
    # SLURM's own log of the failed job stays.
    (log,) = (clone.folder / "logs/slurm/rule_prepare_unpaired").rglob("*.log")
    assert log.stem == first["JobId"] and "exceeded memory limit" in log.read_text()


@pytest.mark.slow
def test_interrupt_leaves_no_job_behind(node, fetched, tmp_path):
    clone = fetched.copy(tmp_path / "unimind")
    # Not watchful: a Ctrl-C in the moment in which the plugin asks for states cancels nothing.
    arguments = ("--until", "prepare_stimuli", "prepare_unpaired", "--slurm-init-seconds-before-status-checks", "20", "--configfile", str(clone.study(tiny())))
    going = by_slurm(clone.folder, node, *arguments, program=("-m", "snakemake"), STANDIN_SECONDS="600")

    def states() -> list[str]:
        return sorted(job["JobState"] for each in submitted(node, clone.folder).values() for job in each)

    def at_work() -> list[Path]:
        return list((clone.folder / "logs/tiny/prepared").rglob("*.log"))

    try:
        # Three jobs for two processors: one waits.
        assert wait_until(lambda: states() == ["PENDING", "RUNNING", "RUNNING"] and len(at_work()) == 2, seconds=120), (clone.folder / "said").read_text()
    finally:
        going.send_signal(signal.SIGINT)
        going.wait(timeout=240)
    assert going.returncode != 0
    assert wait_until(lambda: not node.queue(), seconds=30)
    assert set(states()) == {"CANCELLED"}
    assert not list((clone.folder / "results/tiny/prepared").rglob("*.h5"))
