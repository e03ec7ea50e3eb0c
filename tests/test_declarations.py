"""Stages are declared once: what they may read of a study, what makes them run again, and what discards a training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from planned import planned_commands

from unimind.cli import main
from unimind.provenance import modules_of
from unimind.stages import STAGES
from unimind.study import parse_study
from unimind.study.view import Undeclared, declared
from unimind.training.loop import fingerprint

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/workflow/studies/tiny.yaml"
CONVMIXER = {"method": "unimind-convmixer"}
TRAININGS = ("foundation", "pretrain", "align", "condition", "adapt")


def content() -> dict:
    """The tiny study as plain types, without YAML's shared parts."""
    return json.loads(json.dumps(yaml.safe_load(TINY.read_text())))


STUDY = parse_study(content())


# --- what a stage sees ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "names", "read"),
    [
        ("align", CONVMIXER, lambda study: study.title),
        ("align", CONVMIXER, lambda study: study.method("unimind-convmixer").sampling),
        ("align", CONVMIXER, lambda study: study.methods["unimind-vit"]),
        ("align", CONVMIXER, lambda study: study.method("ridge").enter),
        ("align", CONVMIXER, lambda study: study.datasets),
        ("adapt", CONVMIXER, lambda study: study.method("unimind-convmixer").align.training),
        ("score", {"dataset": "simulated", "subject": "subj01"}, lambda study: study.role("simulated", "subj02")),
        ("score", {"dataset": "simulated", "subject": "subj01"}, lambda study: study.methods["ridge"].label),
        ("prepare-unpaired", {"subject": "100307"}, lambda study: study.unpaired_root()),
        ("embed", {}, lambda study: study.evaluation.metrics),
        ("foundation", {"name": "embedding"}, lambda study: study.foundations.autoencoder),
        ("tabulate", {}, lambda study: study.threads),
    ],
)
def test_an_undeclared_key_is_refused(stage, names, read):
    with pytest.raises(Undeclared, match=r"reads [\w.-]+, which its declaration|asks role"):
        read(STAGES[stage].view(STUDY, **names))
    read(STUDY)


def test_a_stage_sees_what_it_declared():
    seen = STAGES["align"].view(STUDY, **CONVMIXER, group="simulated")
    method, own = seen.method("unimind-convmixer"), STUDY.methods["unimind-convmixer"]
    assert (seen.seed, method.align, method.label, method.closed) == (STUDY.seed, own.align, own.label, False)
    assert isinstance(method, type(own)) and isinstance(seen, type(STUDY))
    assert seen.members("unimind-convmixer", "simulated") == [("simulated", "subj01"), ("simulated", "subj02")]
    assert list(seen.methods) == ["unimind-convmixer"]
    assert method.model_dump(mode="json") == own.model_dump(mode="json", include={"enter", "body", "align", "trained_on"})


def test_a_baseline_of_the_comparison_is_a_method_too():
    seen = STAGES["transfer"].view(STUDY, method="prior", dataset="simulated", subject="subj03")
    assert seen.method("prior").enter == STUDY.transfer.baselines["prior"].enter and seen.role("simulated", "subj03") == "new"
    with pytest.raises(Undeclared):
        seen.method("prior").sampling.samples  # noqa: B018
    assert list(seen.transfer.baselines) == ["prior"] and seen.transfer.trials == [20, "all"]


@pytest.mark.parametrize("stage", dict.fromkeys(job.stage for job in STUDY.jobs()))
def test_what_a_stage_depends_on_is_of_the_study_and_json(stage):
    """A misspelt key of a declaration is an error here."""
    names = {**CONVMIXER, "dataset": "simulated", "subject": "subj01", "name": "embedding"}
    part = STAGES[stage].part(STUDY, **names)
    assert json.loads(json.dumps(part)) == part == declared(STAGES[stage].view(STUDY, **names))


# --- what an edit of the study does -----------------------------------------------------------------------------------


def edited(path: str, value) -> dict:
    """The tiny study with one key changed, or one name added to a list."""
    study = content()
    *sections, last = path.split(".")
    part = study
    for section in sections:
        part = part.setdefault(section, {})
    part[last] = [*part[last], value] if isinstance(part.get(last), list) and not isinstance(value, list) else value
    return study


def whose_part_changes(before, after) -> set[str]:
    """`stage`, or `method stage`, of the jobs whose part of the study an edit changes; jobs that are new are left out."""
    known = {job.path for job in before.jobs()}
    methods = after.all_methods()
    return {
        f"{job.part} {job.stage}" if job.part in methods else job.stage
        for job in after.jobs()
        if job.path in known and STAGES[job.stage].part(before, **job.names) != STAGES[job.stage].part(after, **job.names)
    }


def of_all(*stages: str) -> set[str]:
    """A stage of every method that has it."""
    return {f"{job.part} {job.stage}" for job in STUDY.jobs() if job.stage in stages}


#: Key of the tiny study, its other value, and whose part of the study that changes beside the tables, figures and report.
#: What comes after those runs again because its files are newer.
EDITS = {
    "label": ("methods.unimind-vit.label", "Another", set()),
    "title": ("title", "Another", set()),
    "signal": ("signal", "spikes", set()),
    "samples": ("methods.unimind-vit.sampling.samples", 3, {"unimind-vit reconstruct"}),
    "metric": ("evaluation.metrics", ["mse", "ssim"], {"features", "score"} | of_all("transfer")),
    "bootstrap": ("evaluation.bootstrap", 60, {"score", "generalise"} | of_all("transfer")),
    "categories": ("datasets.simulated.categories", "(.)", {"generalise"}),
    "minutes": ("datasets.simulated.seconds_per_trial", 4, set()),
    "another method": ("methods.ridge.enter.folds", 3, {"ridge enter", "ridge transfer"}),
    "adapt.rank": ("methods.unimind-vit.adapt.rank", 4, {"unimind-vit adapt", "unimind-vit transfer"}),
    "align's learning rate": ("methods.unimind-vit.align.training.learning_rate", 1e-4, {"unimind-vit align"}),
    "condition's steps": ("methods.unimind-vit.condition.training.steps", 6, {"unimind-vit condition"}),
    "dropout of voxels": (
        "methods.unimind-vit.enter.dropout",
        0.1,
        {f"unimind-vit {stage}" for stage in ("align", "condition", "adapt", "transfer")},
    ),  # fmt: skip
    "new subject": ("datasets.simulated.new_subjects", "subj04", {"overview"}),
    "threads": ("threads", 1, None),
    "how often a checkpoint is written": ("methods.unimind-vit.align.training.checkpoint_minutes", 3, None),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_runs_again_what_depends_on_it_and_discards_no_other_training(edit):
    path, value, expected = EDITS[edit]
    after = parse_study(edited(path, value))
    found = whose_part_changes(STUDY, after)
    assert found == (set() if expected is None else expected | {"tabulate", "figures", "report"})
    for job in STUDY.jobs():
        if job.stage in TRAININGS and job.part in ("foundations", *after.all_methods()):
            marks = {fingerprint(STAGES[job.stage].view(study, **job.names), [], STAGES[job.stage].module) for study in (STUDY, after)}
            assert len(marks) == 1 + (f"{job.part} {job.stage}" in found), job


def test_colours_reach_the_figures_and_the_report_alone():
    using = {name for name, stage in STAGES.items() if "unimind.report.results" in modules_of(stage.module)}
    assert using == {"figures", "report"}


# --- every stage, in one process --------------------------------------------------------------------------------------


def test_every_stage_runs_on_what_it_declared(tmp_path, monkeypatch):
    """The commands that Snakemake plans for a study, one after the other: a read of an undeclared key is an error here."""
    study = content() | {"threads": 1}
    study["datasets"]["simulated"] |= {"training_subjects": ["subj01"], "test_pictures": {"rule": "random", "share": 0.2}}
    study["methods"] = {name: study["methods"][name] for name in ("unimind-vit", "ridge")}
    other = study["methods"]["unimind-vit"] | {"trained_on": {"subjects": 1, "trials": 40}}
    study["transfer"] = {"trials": [20], "seeds": 1, "baselines": {"prior": study["transfer"]["baselines"]["prior"], "other": other}}
    study["transfer"]["baselines"]["prior"]["embedding_prior"] = {"width": 8, "depth": 1, "training": {"steps": 4, "batch_size": 8}}
    study["methods"]["unimind-vit"]["adapt"]["mix_training"] = 0.2
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.chdir(tmp_path)
    commands = planned_commands()
    elsewhere = {"predict", "export", "take", "prepare-further", "candidates", "decode", "score-decoded"}  # in other tests
    others = {"status", "plan", "doctor"} | elsewhere
    assert {command[0] for command in commands} == {name for name, stage in STAGES.items() if stage.needs_study} - others
    for command in commands:
        if command[:1] != ["figures"]:  # what it draws is seven CPU-seconds' work, and it may read everything
            assert main(command) == 0, command
        else:
            Path(command[-1]).mkdir(parents=True)
            (Path(command[-1]) / "figures.json").write_text("[]")


# --- imports ----------------------------------------------------------------------------------------------------------


def test_stages_without_networks_do_not_import_torch():
    """It costs three CPU-seconds a job."""
    stages = [
        "fetch", "stimuli", "prepare", "prepare-further", "candidates", "prepare-unpaired", "overview", "tabulate", "figures", "report", "status", "plan",
    ]  # fmt: skip
    code = f"import sys; from unimind.stages import STAGES; print([name for name in {stages} if STAGES[name].load() and 'torch' in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
