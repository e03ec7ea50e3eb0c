"""The workflow as Snakemake sees it: which jobs, in which order, when again, and how it speaks."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from workflow_clone import ROOT, Clone, read_calls, tiny, unpretrained

from unimind import provenance
from unimind.report.cost import costs, last_line
from unimind.report.status import steps
from unimind.stages import STAGES
from unimind.study import parse_study

METHODS = list(tiny()["methods"])
CONFIGS = sorted((ROOT / "config").glob("*.yaml"))
AFTER_METRICS = {"make_tables": 1, "draw_figures": 1, "write_report": 1}


# --- the graph --------------------------------------------------------------------------------------------------------


def test_tiny_study_lists_exactly_its_jobs(bare):
    assert bare.planned() == {
        "fetch_stimuli": 1, "fetch_subject": 3, "fetch_unpaired": 2, "prepare_stimuli": 1, "prepare_subject": 3, "prepare_unpaired": 2, "inspect_subject": 3,
        "check_subjects": 1, "train_foundation": 4, "embed_stimuli": 1, "pretrain_encoder": 3, "teach_closed_form": 2, "enter_subject": 6, "align_subjects": 3,
        "condition_diffusion": 3 + 3, "adapt_subject": 2, "reconstruct_pictures": 15, "sample_controls": 1, "extract_features": 1,
        "score_reconstructions": 3, "check_generalisation": 3, "compare_budgets": 5, **AFTER_METRICS,
    }  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_study_in_config_can_be_planned(bare, config):
    planned = bare.planned(configfile=config)
    methods = yaml.safe_load(config.read_text())["methods"]
    assert planned["write_report"] == 1 and planned["reconstruct_pictures"] == planned["score_reconstructions"] * len(methods)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_alone(bare, tmp_path, method):
    content = tiny()
    content["methods"] = {method: content["methods"][method]}
    planned = bare.planned(configfile=written(tmp_path, content))
    assert planned["reconstruct_pictures"] == 3
    assert ("align_subjects" in planned) == method.startswith("unimind")
    assert planned.get("enter_subject", 0) == (3 if method in ("ridge", "unimind") else 0)
    assert planned.get("condition_diffusion", 0) == {"mindvis": 3, "ridge": 0}.get(method, 1)
    assert ("pretrain_encoder" in planned) == ("prepare_unpaired" in planned) == (method not in ("ridge", "unimind"))


def test_one_subject(bare, tmp_path):
    content = tiny()
    del content["methods"]["unimind"]  # others teach its closed form
    content["datasets"]["simulated"] |= {"training_subjects": ["subj01"], "new_subjects": []}
    planned = bare.planned(configfile=written(tmp_path, content))
    assert planned["prepare_subject"] == 1 and "adapt_subject" not in planned


def test_two_data_sets_with_one_model_for_all(bare, tmp_path):
    content = tiny()
    content["datasets"]["second"] = content["datasets"]["simulated"] | {"training_subjects": ["subj04"], "new_subjects": [], "seed": 1}
    content["methods"] = {"together": content["methods"]["unimind-vit"] | {"scope": "study"}}
    planned = bare.planned(configfile=written(tmp_path, content))
    assert planned["align_subjects"] == planned["condition_diffusion"] == 1 and planned["prepare_subject"] == 4


def test_aligned_method_without_condition_uses_the_aligned_encoder(bare, tmp_path):
    content = tiny()
    content["methods"] = {"plain": {key: value for key, value in content["methods"]["unimind-vit"].items() if key != "condition"}}
    planned = bare.planned(configfile=written(tmp_path, content))
    assert "condition_diffusion" not in planned and planned["reconstruct_pictures"] == 3


def test_conditioning_without_any_encoder_before_it(bare, tmp_path):
    content = tiny()
    content["methods"] = {"scratch": unpretrained(content["methods"]["mindvis"])}
    planned = bare.planned("--printshellcmds", configfile=written(tmp_path, content))
    assert planned["condition_diffusion"] == 3 and "pretrain_encoder" not in planned


def test_ready_made_foundations_are_fetched_where_the_network_is(bare, tmp_path):
    content = tiny()
    content["foundations"] |= {"embedding": {"kind": "squeezenet"}, "autoencoder": {"kind": "taef2"}}
    planned = bare.planned(configfile=written(tmp_path, content))
    assert planned["get_foundation"] == 2 and planned["train_foundation"] == 2
    rules = (ROOT / "workflow/rules/foundations.smk").read_text() + (ROOT / "workflow/rules/data.smk").read_text()
    local = re.findall(r"^localrules:\n((?:    \w+,\n)+)", rules, re.MULTILINE)
    assert set(re.findall(r"\w+", " ".join(local))) == {
        "get_foundation", "fetch_stimuli", "fetch_subject", "fetch_further", "fetch_candidates", "fetch_unpaired",
    }  # fmt: skip


def test_diffusion_model_trained_on_training_pictures_waits_for_them(bare, tmp_path):
    content = tiny()
    content["foundations"]["diffusion"]["pictures"] = "training"
    done = bare.snakemake("-n", "--printshellcmds", configfile=written(tmp_path, content))
    command = next(line for line in (done.stdout + done.stderr).splitlines() if "--name diffusion" in line)
    assert "--stimuli results/tiny/prepared/simulated/stimuli.h5 --embeddings results/tiny/embeddings/simulated/stimuli.h5" in command


def test_a_dry_run_says_what_the_study_will_cost(bare, tmp_path):
    content = tiny()
    done = bare.snakemake("-n", configfile=written(tmp_path, content))
    study = parse_study(content)
    assert (done.stdout + done.stderr).splitlines().count(last_line(study, costs(study))) == 1


def test_every_stage_call_fits_the_command_line(finished):
    """The stand-in parses with the real command line and refuses input files that do not exist yet."""
    calls = read_calls(finished)
    elsewhere = {"split", "embedding-prior", "predict", "export", "take", "prepare-further", "candidates", "decode", "score-decoded"}  # in tests of their own
    others = {"status", "plan", "doctor"} | elsewhere
    assert {call["stage"] for call in calls} == {name for name, stage in STAGES.items() if stage.needs_study} - others


def test_training_jobs_get_the_study_s_threads_and_small_jobs_one(finished):
    threads = {call["stage"]: call["threads"] for call in read_calls(finished)}
    for stage in ("foundation", "pretrain", "align", "condition", "adapt", "reconstruct"):
        assert threads[stage] == "2"
    for stage in ("fetch", "prepare", "score", "tabulate", "report"):
        assert threads[stage] == "1"


def test_status_knows_every_result_of_the_workflow(finished):
    study = parse_study(tiny())
    made = {call["out"].removeprefix("results/tiny/") for call in read_calls(finished)}
    assert {step.path for step in steps(study)} == made


@pytest.mark.parametrize("pretrained", [True, False])
def test_status_knows_the_models_of_a_comparison_and_the_resting_fmri_they_need(bare, tmp_path, pretrained):
    content = tiny()
    method = content["methods"]["unimind-vit"] | {"trained_on": {"subjects": 1}}
    content["methods"] = {"ridge": content["methods"]["ridge"]}
    content["transfer"]["baselines"]["of-1"] = method if pretrained else unpretrained(method)
    done = bare.snakemake("-n", "--printshellcmds", configfile=written(tmp_path, content))
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    made = {path.removeprefix("results/tiny/") for path in re.findall(r" --out (\S+)", said)}
    assert {step.path for step in steps(parse_study(content))} == made
    assert {"models/of-1/align/simulated", "models/of-1/condition/simulated"} <= made
    resting = "results/tiny/prepared/unpaired/100307.h5 results/tiny/prepared/unpaired/100408.h5"
    assert bool(re.search(rf"unimind pretrain .* --prepared {resting} ", said)) == pretrained


def test_nothing_is_trained_before_everybodys_data_is_in_order(finished):
    calls = read_calls(finished)
    checked = next(float(call["ended"]) for call in calls if call["stage"] == "overview")
    trained = [float(call["begun"]) for call in calls if call["stage"] in ("foundation", "pretrain", "teach", "enter", "align", "condition", "adapt")]
    assert len(trained) == 4 + 3 + 2 + 6 + 3 + 6 + 2 and min(trained) >= checked


# --- when jobs run again ----------------------------------------------------------------------------------------------


def test_finished_jobs_add_no_periodic_looks_at_all_jobs(bare, tmp_path):
    done = bare.copy(tmp_path / "unimind").snakemake("--verbose")
    assert done.returncode == 0, done.stdout + done.stderr
    looks, jobs = ((done.stdout + done.stderr).count(words) for words in ("Resources before job selection", "Finished jobid"))
    assert jobs > 20 and looks <= jobs + 1


def test_second_run_does_nothing(clone):
    assert clone.planned() == {}


def test_moved_clone_does_nothing(clone, tmp_path):
    shutil.move(clone.folder, tmp_path / "elsewhere")
    assert Clone(tmp_path / "elsewhere").planned() == {}


def test_new_subject_runs_only_its_own_jobs(clone):
    content = tiny()
    content["datasets"]["simulated"]["new_subjects"].append("subj04")
    path = clone.study(content)
    assert clone.planned(configfile=path) == {
        "fetch_subject": 1, "prepare_subject": 1, "inspect_subject": 1, "check_subjects": 1, "adapt_subject": 2, "condition_diffusion": 1, "enter_subject": 2,
        "reconstruct_pictures": 5, "score_reconstructions": 1, "check_generalisation": 1, "compare_budgets": 5, **AFTER_METRICS,
    }  # fmt: skip
    before = {file: file.stat().st_mtime_ns for file in (clone.folder / "results/tiny/models").rglob("*") if file.is_file()}
    assert clone.snakemake(configfile=path, cores=4).returncode == 0
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert clone.planned(configfile=path) == {}


def test_new_training_subject_retrains_the_shared_models(clone):
    content = tiny()
    content["datasets"]["simulated"]["training_subjects"].append("subj04")
    planned = clone.planned(configfile=clone.study(content))
    assert planned["align_subjects"] == 3 and "pretrain_encoder" not in planned and "train_foundation" not in planned


def test_other_sampling_reruns_reconstructions_and_what_follows(clone):
    content = tiny()
    content["methods"]["unimind-vit"]["sampling"] = {"steps": 3, "samples": 2}
    assert clone.planned(configfile=clone.study(content)) == {
        "reconstruct_pictures": 3, "score_reconstructions": 3, "check_generalisation": 3, "compare_budgets": 1, **AFTER_METRICS,
    }  # fmt: skip


def test_another_set_of_methods_is_measured_anew(clone):
    content = tiny()
    del content["methods"]["mindvis"]
    assert clone.planned(configfile=clone.study(content)) == {"score_reconstructions": 3, "check_generalisation": 3, **AFTER_METRICS}


def test_other_threads_or_batch_of_evaluation_measure_nothing_again(clone):
    content = tiny()
    content["threads"] = 1
    assert clone.planned(configfile=clone.study(content)) == {}
    content["evaluation"]["batch_size"] = 7
    content["methods"]["unimind-vit"]["label"] = "Another"
    assert clone.planned(configfile=clone.study(content)) == AFTER_METRICS


def test_other_loss_weight_reruns_one_method_from_its_alignment(clone):
    content = tiny()
    content["methods"]["unimind-vit"]["align"] = {"losses": {"siamese": 0.5}, "training": {"steps": 4, "batch_size": 8}}
    assert clone.planned(configfile=clone.study(content)) == {
        "align_subjects": 1, "condition_diffusion": 1, "adapt_subject": 1, "reconstruct_pictures": 3, "score_reconstructions": 3, "check_generalisation": 3,
        "compare_budgets": 1, **AFTER_METRICS,
    }  # fmt: skip


def test_edited_loss_reruns_the_stages_that_use_it_and_what_follows(clone):
    module = next(
        name
        for name in provenance.modules_of("unimind.training.align")
        if name.startswith("unimind.training.objectives.") and name not in provenance.modules_of("unimind.training.pretrain")
    )
    file = clone.folder / Path(*module.split(".")).with_suffix(".py")
    text = file.read_text()
    file.write_text(text + "\n# A remark changes nothing.\n")
    assert clone.planned() == {}
    file.write_text(text + "\nCHANGED = True\n")
    planned = clone.planned()
    assert planned["align_subjects"] == 3 and planned["write_report"] == 1
    assert planned["compare_budgets"] == 3  # of those with a body, not of the two closed forms alone
    untouched = {"fetch_stimuli", "fetch_subject", "fetch_unpaired", "prepare_stimuli", "prepare_subject", "prepare_unpaired", "check_subjects",
                 "train_foundation", "embed_stimuli", "pretrain_encoder", "teach_closed_form", "enter_subject",
                 "sample_controls", "extract_features"}  # fmt: skip
    assert not untouched & set(planned)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_failed_job_says_why_keeps_its_checkpoint_and_goes_on(bare, tmp_path):
    clone = bare.copy(tmp_path / "unimind")
    failed = clone.snakemake(cores=4, STANDIN_FAIL="align")
    text = failed.stdout + failed.stderr
    assert failed.returncode != 0 and "something went wrong: this is the last line of the log" in text
    checkpoint = next((clone.folder / "results/tiny/checkpoints/models").glob("*/align/simulated/attempts"))
    assert checkpoint.read_text() == "x"
    assert clone.snakemake(cores=4).returncode == 0
    assert checkpoint.read_text() == "xx"


def test_refused_data_end_the_run_with_the_line_and_status_2(bare, tmp_path):
    clone = bare.copy(tmp_path / "unimind")
    refused = clone.snakemake(cores=4, STANDIN_REFUSE="prepare")
    assert refused.returncode == 2
    first, *lines = refused.stderr.splitlines()[-4:]
    assert first == "This run stopped because of what it was given:" and set(lines) == {"unimind prepare: not this"}
    assert {call["stage"] for call in read_calls(clone)} <= {"fetch", "stimuli", "prepare-unpaired"}
    assert clone.snakemake(cores=4, STANDIN_FAIL="align").returncode == 1
    assert clone.snakemake(cores=4).returncode == 0


BAD = {
    "misspelt key": (lambda study: study.update(datsets=study.pop("datasets")), "datsets"),
    "unknown subject": (lambda study: study["datasets"]["simulated"].update(new_subjects=["subj09"]), "subj09"),
    "subject twice": (lambda study: study["datasets"]["simulated"].update(new_subjects=["subj01"]), "subj01"),
    "no adaptation": (lambda study: study["methods"]["unimind-vit"].pop("adapt"), "methods.unimind-vit.adapt"),
    "no resting fMRI": (lambda study: study.pop("unpaired"), "unpaired"),
    "wrong type": (lambda study: study.update(picture_size="large"), "picture_size"),
    "unknown body": (lambda study: study["methods"]["mindvis"].update(body={"kind": "cnn"}), "cnn"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_study_is_one_line_and_leaves_nothing(bare, tmp_path, case):
    change, named = BAD[case]
    content = tiny()
    change(content)
    folder = tmp_path / "empty"
    folder.mkdir()
    done = bare.snakemake("--quiet", "all", "--directory", str(folder), configfile=written(tmp_path, content))
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Using workflow specific profile")]
    assert done.returncode == 2 and len(lines) == 1 and named in lines[0], done.stderr
    assert not done.stdout.strip()
    assert {path.name for path in folder.iterdir()} <= {".snakemake"} and not (folder / ".snakemake/unimind").exists()


def test_a_given_study_has_no_leftovers_of_the_embedded_one(bare, tmp_path):
    content = tiny()
    content.pop("methods")
    done = bare.snakemake("-n", configfile=written(tmp_path, content))
    assert done.returncode == 2 and "methods" in done.stderr


# --- one machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cards", "resources"), [(1, ()), (1, ("--resources", "mem_mb=1000000")), (2, ())], ids=["without", "with", "two cards"])
def test_as_many_jobs_run_as_there_are_graphics_cards(bare, tmp_path, cards, resources):
    clone = bare.copy(tmp_path / "unimind")
    content = tiny()
    content["threads"] = 1
    content["methods"] = {"mindvis": content["methods"]["mindvis"]}
    arguments = ("--until", "condition_diffusion", *resources)
    done = clone.snakemake(*arguments, configfile=clone.study(content), cores=8, UNIMIND_GPUS=str(cards), STANDIN_SECONDS="0.4")
    assert done.returncode == 0, done.stderr
    spans = [(float(call["begun"]), float(call["ended"])) for call in read_calls(clone) if call["stage"] in ("foundation", "pretrain", "condition")]
    assert len(spans) >= 7
    assert max(sum(begun <= moment < ended for begun, ended in spans) for moment, _ in spans) == cards


def test_jobs_run_with_the_python_of_snakemake(finished):
    assert {call["python"] for call in read_calls(finished)} == {sys.executable}


def test_runs_from_another_folder(bare, tmp_path):
    done = bare.snakemake("-s", str(bare.folder / "Snakefile"), "--until", "fetch_subject", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results/tiny/fetched/simulated/subj01.json").exists()


# --- form -------------------------------------------------------------------------------------------------------------


def test_snakemake_lint_is_clean(bare):
    done = bare.snakemake("--lint")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("tool", [("ruff", "check", "."), ("mypy",)])
def test_style_and_types_are_clean(tool):
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_snakefmt_is_clean():
    done = subprocess.run([sys.executable, "-m", "snakefmt", "--check", "Snakefile", "workflow"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_rule_is_complete():
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", file.read_text(), re.MULTILINE):
            keys = set(re.findall(r"^    (\w+):", body, re.MULTILINE))
            assert {"log", "benchmark", "conda", "message", "threads", "resources", "params", "shell"} <= keys, name
            assert re.fullmatch(r"[a-z]+_[a-z_]+", name)
            stages = set(re.findall(r'\*\*(?:call_of|resources_of)\("([\w-]+)"', body))
            assert len(stages) == 1 and "**call_of(" in body and "**resources_of(" in body, name


def test_report_page_of_snakemake_can_be_made(finished, tmp_path):
    clone = finished.copy(tmp_path / "unimind")
    done = clone.snakemake("--report", "workflow.html")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reconstruction.csv" in (clone.folder / "workflow.html").read_text()


def written(folder: Path, content: dict) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
