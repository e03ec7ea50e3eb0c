"""The documentation is true: commands run, examples work, links lead somewhere.

Every command of the documentation is run by a test here, planned as a dry run, or stands in `ELSEWHERE` or `NOT_RUN`.
"""

import importlib
import json
import os
import pkgutil
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.workflow.workflow_clone import ROOT, Clone, tiny
from unimind.cli import build_parser, main
from unimind.stages import STAGES
from unimind.storage import file_hash

PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "config/README.md")}
TUTORIAL, EXTENDING = "docs/tutorial.md", "docs/extending.md"
FILES = {"A": "seen/", "B": "mine/", "DIR": "scores/", "FILE": "my_study.yaml"}
PROGRAMS = ("unimind", "snakemake", "python", "make", "conda", "apptainer", "pip", "git", "hf", "aws", "export", "source", "sbatch", "sacct", "cat")

#: Commands whose work other tests do, smaller, with fewer cores, or what a `make` target calls: command -> test.
ELSEWHERE = {
    "unimind check my_lab.yaml": "tests/workflow/test_own_data.py::test_betas_become_z_scored_voxels_of_the_pictures_they_were_shown_with",
    "unimind check --data my_lab.yaml": "tests/workflow/test_own_data.py::test_betas_become_z_scored_voxels_of_the_pictures_they_were_shown_with",
    "snakemake -n --configfile my_lab.yaml": "tests/workflow/test_own_data.py::test_betas_become_z_scored_voxels_of_the_pictures_they_were_shown_with",
    "snakemake --cores all results/my_lab/prepared/mine/anna.h5 --configfile my_lab.yaml": "tests/workflow/test_own_data.py::run",
    "snakemake --cores all --configfile my_lab.yaml": "tests/workflow/test_own_data.py::test_the_whole_path_ends_in_the_curve_of_the_new_person",
    "snakemake --report workflow.html --configfile ...": "tests/workflow/test_workflow.py::test_report_page_of_snakemake_can_be_made",
    "unimind export --study my_study.yaml --method unimind --out unimind-mine --licence cc-by-4.0":
        "tests/serving/test_bundle.py::test_nothing_of_a_training_subject_is_in_it",
    "unimind export --study config/config.yaml --method unimind --out unimind-embedded": "tests/serving/test_bundle.py::test_the_page_runs",
    "make reference": "tests/test_study.py::test_schema_and_reference_are_in_step_with_the_types",
    "make lint": "tests/workflow/test_workflow.py::test_style_and_types_are_clean",
    "python -m unimind fetch --study config/thesis.yaml --dataset nsd --subject subj01 --out results/thesis/fetched/nsd/subj01.json":
        "tests/workflow/test_servers_to_prepared.py::test_nsd",
    "python tests/evaluation/independent_table.py":
        "tests/evaluation/test_metrics_independent.py::test_the_whole_panel_is_what_other_software_makes_of_the_same_networks",
}  # fmt: skip
#: Commands that no test runs: command -> why. `make` targets are looked up in the Makefile, options of scripts in the script.
NOT_RUN = {
    "make install": "makes the environment that the tests run in",
    "source .venv/bin/activate": "enters the environment that the tests run in",
    "make reproduce": "the whole embedded study; run by .github/workflows/ci.yml",
    "make test": "this",
    "unimind export --study my_study.yaml --method unimind --out unimind-mine.zip --push my-lab/unimind-mine": "a hub; a test pushes to a stand-in",
    "make test-all": "this, and more",
    "conda create -n unimind -c conda-forge -c bioconda snakemake pydantic": "a network; .github/workflows/ci.yml installs the same two into an environment",
    "conda activate unimind": "needs the environment above",
    "apptainer build unimind.sif Apptainer.def": "apptainer and a network",
    'apptainer run --nv unimind.sif --cores all --directory "$PWD" --configfile my_study.yaml': "the image above",
    "aws configure --profile hcp": "asks for keys",
    "export AWS_PROFILE=hcp": "belongs to the one above",
    "hf download <repository>": "a network",
    "hf auth login": "asks for a key",
    "pip install tensorboard": "a network; tests/training/test_loop.py writes for it",
    "python benchmarks/stages.py config/thesis.yaml": "a GPU; tests/training/test_stage_benchmark.py measures small ones",
    "unimind benchmark": "minutes; tests/training/test_training_stages.py measures small ones",
    "python benchmarks/stages.py config/thesis.yaml --precision study --estimate": "minutes; tests/training/test_stage_benchmark.py counts small ones",
    "python benchmarks/equal_time.py config/macaque_v4.yaml": "recordings and minutes",
    "python benchmarks/arena.py config/macaque_v4.yaml config/additions/rivals_of_macaque.yaml": "recordings and minutes",
    "python benchmarks/arena.py config/config.yaml config/additions/rivals_of_embedded.yaml --measures identification pixcorr study_clip": "minutes",
    "python benchmarks/families.py config/macaque_v4.yaml config/additions/rivals_of_macaque.yaml --methods mindeye2 mindbridge": "recordings and minutes",
    "python benchmarks/ablations.py config/macaque_v4.yaml": "recordings and minutes",
    "python benchmarks/ablations.py": "the same",
    "python benchmarks/linear_share.py config/config.yaml": "the embedded study, finished",
    "python benchmarks/mindvis.py": "the embedded study, finished, and minutes",
    "python benchmarks/mindvis.py config/config.yaml": "the same",
    "python benchmarks/families.py config/macaque_v4.yaml --methods unimind ridge": "that study, finished, and ten minutes",
    "python benchmarks/samplers.py config/config.yaml --dataset simulated --subject subj01": "results of the embedded study",
    "python benchmarks/one_trial.py": "what it times is tested by tests/workflow/test_decoding.py",
    "python benchmarks/one_trial.py --study config/config.yaml --dataset simulated --subject subj01": "results of the embedded study",
    "python benchmarks/panel.py": "minutes",
    "python benchmarks/generators.py": "minutes",
    "python benchmarks/tokens.py": "minutes, and 3 GB of disk",
    "python benchmarks/nsd_extraction.py": "minutes",
    "python benchmarks/nsd_encoder.py": "minutes",
    "python benchmarks/rehearsal.py": "minutes",
    "python benchmarks/card.py": "minutes",
}


def blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Language, content, and the line before, of the fenced blocks of a page."""
    for found in re.finditer(r"(?:^|\n)([^\n]*)\n*\n```(\w*)\n(.*?)\n```", text, re.DOTALL):
        yield found[2], found[3], found[1]


def without_blocks(text: str) -> str:
    return re.sub(r"```.*?\n```", "", text, flags=re.DOTALL)


def commands_of(language: str, content: str) -> list[str]:
    """Commands of a shell block, one a line, without prompts and comments."""
    if language not in ("bash", "sh", "console"):
        return []
    lines = content.replace("\\\n", " ").splitlines()
    if language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [command for line in lines if (command := re.sub(r"\s+#\s.*|^#.*", "", line).strip())]


def commands(text: str) -> list[str]:
    """All commands of a page: shell blocks, indented lines, and code within sentences and tables."""
    found = [command for language, content, _ in blocks(text) for command in commands_of(language, content)]
    rest = without_blocks(text)
    programs = "|".join(PROGRAMS)
    found += re.findall(rf"^    ((?:{programs}) .*\S)$", rest, re.MULTILINE)
    found += re.findall(rf"`((?:{programs}) [^`]+)`", rest)
    return list(dict.fromkeys(found))


COMMANDS = list(dict.fromkeys(command for name, text in PAGES.items() if name != TUTORIAL for command in commands(text)))
IN_TUTORIAL = {command for language, content, _ in blocks(PAGES[TUTORIAL]) for command in commands_of(language, content)}
OTHERS = [command for command in COMMANDS if command not in ELSEWHERE | NOT_RUN and command not in IN_TUTORIAL]
STAGE_COMMANDS = [command for command in OTHERS if re.match(r"(python -m )?unimind ", command)]
#: Each once, with files for names that stand for any.
CALLS = list(dict.fromkeys(" ".join(FILES.get(word, word) for word in command.removeprefix("python -m ").split()) for command in STAGE_COMMANDS))
SNAKEMAKE_COMMANDS = [command for command in OTHERS if re.match(r"(\w+=\S+ )?snakemake ", command)]
#: What of them matters to a dry run, each once; without further options they are planned by tests/workflow/test_workflow.py and test_conda.py.
PLANS = list(dict.fromkeys(re.sub(r"^\w+=\S+ | --cores \S+| -n\b", "", command) for command in SNAKEMAKE_COMMANDS))
PLANS = [command for command in PLANS if not re.fullmatch(r"snakemake( --use-conda)?( --configfile (config/thesis|my_study).yaml)?", command)]


def bash(command: str, folder: Path, **environment: str) -> str:
    """Run a command as a reader does; what it prints."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SNAKEMAKE", "PYTHONPATH"))}
    inherited["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-6000:]}"
    return done.stdout + done.stderr


# --- every command ----------------------------------------------------------------------------------------------------


def test_every_command_is_run_or_there_is_a_reason():
    assert [command for command in OTHERS if command not in STAGE_COMMANDS + SNAKEMAKE_COMMANDS] == []
    everywhere = {command for text in PAGES.values() for command in commands(text)}
    assert (ELSEWHERE | NOT_RUN).keys() - everywhere == set(), "no longer in the documentation"
    stray = [command for command in commands(PAGES[TUTORIAL]) if command not in IN_TUTORIAL and command not in ELSEWHERE | NOT_RUN]
    assert stray == [], "commands of the tutorial stand in its blocks"


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_tests_that_run_commands_exist(test):
    file, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("command", [command for command in ELSEWHERE | NOT_RUN if command.startswith(("make", "python benchmarks"))])
def test_targets_and_options_exist(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    script = (ROOT / words[1]).read_text()
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf'add_argument\(\s*"{option}"', script)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Clone:
    """A clone whose stages do nothing, with the files that commands of the documentation name."""
    clone = Clone.make(tmp_path_factory.mktemp("place") / "unimind")
    thesis = yaml.safe_load((ROOT / "config/thesis.yaml").read_text())
    thesis["unpaired"]["subjects"] = thesis["unpaired"]["subjects"][:2]  # of a hundred, which take seconds to list
    for name, study in (("my_study.yaml", tiny()), ("config/thesis.yaml", thesis)):
        (clone.folder / name).write_text(yaml.safe_dump(study, sort_keys=False))
    for folder in ("seen", "mine"):
        (clone.folder / folder).mkdir()
        for k in range(3):
            Image.fromarray(np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(clone.folder / folder / f"{k}.png")
    return clone


def parsed(words: list[str]) -> bool:
    """Whether a command of the package is complete; its stage and options must exist in any case."""
    stage = words[0]
    if stage.startswith("--"):
        return True
    known = {f"--{name}" for name in STAGES[stage].arguments} | {"--study"} if stage in STAGES else {"check": set(), "schema": {"--markdown"}}[stage]
    assert {word for word in words if word.startswith("--")} <= known
    try:
        build_parser().parse_args(words)
    except SystemExit:
        assert not any(word.startswith("--") for word in words), "an example with options but without those it needs"
        return False
    return True


@pytest.mark.parametrize("command", CALLS)
def test_commands_of_the_package(place, command, monkeypatch):
    words = shlex.split(command)[1:]
    monkeypatch.chdir(place.folder)
    if not parsed(words):
        words = [words[0], "--help"]
    try:
        code = main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 0


def plan(command: str, place: Clone, elsewhere: Path) -> str:
    """A dry run of a command; what is wrong with it."""
    folder = elsewhere if "--directory" in command else place.folder
    command = command.replace("/path/to/unimind/Snakefile", str(place.folder / "Snakefile")).replace("/scratch/me", str(elsewhere))
    conda = f"{Path(sys.executable).parent}:{ROOT / 'tests/workflow/conda_standin'}:{os.environ['PATH']}"
    try:
        printed = bash(f"{command} {'' if '--unlock' in command else '-n'}", folder, PATH=conda)
    except AssertionError as error:
        return str(error)
    return "" if "--unlock" in command or "This was a dry-run" in printed else printed


@pytest.fixture(scope="module")
def planned(place, tmp_path_factory) -> dict[str, str]:
    """What is wrong with each command of Snakemake; two at a time, for most of their time is their start."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(place.folder / "my_study.yaml", elsewhere)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PLANS, pool.map(lambda command: plan(command, place, elsewhere), PLANS), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("command", PLANS)
def test_commands_of_snakemake_can_be_planned(planned, command):
    assert planned[command] == ""


# --- the tutorial -----------------------------------------------------------------------------------------------------


def serve(name: str) -> None:
    """Run stages in forks of this process, which has imported everything once: one for every connection, with its stdout and stderr."""
    import unimind

    for module in pkgutil.walk_packages(unimind.__path__, "unimind."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for used in ("accelerate", "diffusers", "matplotlib.pyplot", "nilearn.maskers", "open_clip", "skimage.metrics"):
        importlib.import_module(used)
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection = listener.accept()[0]
            given, streams, _, _ = socket.recv_fds(connection, 1 << 20, 2)
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for stream, own in zip(streams, (1, 2), strict=True):
                    os.dup2(stream, own)
                code = 1
                try:
                    code = main(json.loads(given))
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    connection.send(str(code).encode())
                    os._exit(0)
            connection.close()
            for stream in streams:
                os.close(stream)


#: Stands in for `unimind/__main__.py`: the real stages, without the seconds that imports take in every job.
CLIENT = """
import json, socket, sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect("server")
    socket.send_fds(connection, [json.dumps(sys.argv[1:]).encode()], [1, 2])
    sys.exit(int(connection.recv(16) or b"1"))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Path]:
    """A clone with the real stages, all run by one process."""
    clone = Clone.make(tmp_path_factory.mktemp("tutorial") / "unimind", standin=False).folder
    (clone / "unimind/__main__.py").write_text(CLIENT)
    code = "from tests.test_docs import serve; serve('server')"
    server = subprocess.Popen([sys.executable, "-c", code], cwd=clone, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    yield clone
    server.kill()
    server.communicate()


def merge(study: dict, change: dict) -> dict:
    """A study with a change written into it."""
    return study | {key: merge(study[key], value) if isinstance(value, dict) and isinstance(study.get(key), dict) else value for key, value in change.items()}


def job_table(printed: str) -> dict[str, int]:
    """Jobs by rule, from what Snakemake prints."""
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total", printed, re.MULTILINE | re.DOTALL)
    return {name: int(count) for name, count in (line.split() for line in table[1].splitlines() if line)} if table else {}


def weights(clone: Path) -> dict[str, str]:
    models = clone / "results/tutorial"
    return {str(file.relative_to(models)): file_hash(file) for file in models.rglob("model.safetensors")}


@pytest.fixture(scope="module")
def tutorial(served) -> tuple[Path, dict[str, dict[str, str]]]:
    """The tutorial, done from its first line to its last: the clone it was done in, and the weights after every section."""
    study: dict = {}
    models = {}
    for section in PAGES[TUTORIAL].split("\n## ")[1:]:
        printed = ""
        for language, content, _ in blocks(section):
            if language == "yaml":
                study = merge(study, yaml.safe_load(content))
                (served / "tutorial.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
            elif language == "text" and content.startswith("job "):
                assert job_table(content) == job_table(printed)
            elif language == "text":
                assert content in printed
            else:
                printed = "".join(bash(command, served) for command in commands_of(language, content) if command not in NOT_RUN)
        models[section.splitlines()[0]] = weights(served)
    return served, models


@pytest.mark.slow
@pytest.mark.longest
def test_the_tutorial_shows_what_is_printed(tutorial):
    clone, _ = tutorial
    assert "done" in bash("unimind status --study tutorial.yaml", clone).splitlines()[0]
    page = (clone / "results/tutorial/report.html").read_text()
    assert "tutorial" in page and "data:image/" in page


@pytest.mark.slow
@pytest.mark.longest
def test_the_tutorials_new_subject_leaves_shared_weights_alone(tutorial):
    before, after = list(tutorial[1].values())[2:4]
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {f"models/{model}/simulated-subj03/model.safetensors" for model in ("ridge/enter", "unimind/enter")}


@pytest.mark.slow
@pytest.mark.longest
def test_what_the_tutorial_says_of_its_tables(tutorial):
    clone, _ = tutorial
    table = pd.read_csv(clone / "results/tutorial/tables/reconstruction.csv")
    table = table[table.subject == "subj01"].set_index("method")
    found, pixels = (table[table.metric == metric] for metric in ("identification", "pixcorr"))
    assert found.ci_low["ridge"] > 0.6 and found.ci_low["shuffled:ridge"] < 0.5 < found.ci_high["shuffled:ridge"]
    assert pixels.value["mean-training-image"] > pixels.value["ridge"]
    curve = pd.read_csv(clone / "results/tutorial/tables/adaptation.csv")
    assert set(curve.method) == {"unimind", "ridge"} and curve.trials.nunique() == 2


# --- the examples of extending ----------------------------------------------------------------------------------------

#: What the examples' tests do not try: pretraining and aligning with the new body and the new loss.
IN_USE = """
from tiny_training import TRAINING, make_study

from unimind.training.align import align
from unimind.training.pretrain import pretrain


def test_new_body_and_loss_are_trained(files, tmp_path):
    study = make_study(body={"kind": "mixer", "width": 16, "depth": 1, "patch": 4}, align={"losses": {"cosine": 0.5}, "training": TRAINING})
    pretrain(study, "m", [files / "rest1.h5"], tmp_path / "checkpoints", tmp_path / "pretrained")
    given = [files / "subj01.h5", files / "subj02.h5"], [files / "embeddings.h5"] * 2
    align(study, "m", "sim", *given, None, tmp_path / "pretrained", tmp_path / "checkpoints", tmp_path / "aligned")
    assert ",cosine," in (tmp_path / "aligned/losses.csv").read_text()
"""


def apply(difference: str, folder: Path) -> None:
    """Apply the documentation's form of a diff: the file, then pieces of which each is found once."""
    first, _, rest = difference.partition("\n")
    file = folder / first.removeprefix("+++ ")
    text = file.read_text()
    for piece in rest.split("\n@@\n"):
        lines = piece.splitlines()
        old, new = ("".join(line[1:] + "\n" for line in lines if not line.startswith(sign)) for sign in ("+", "-"))
        assert text.count(old) == 1, f"{first}: {text.count(old)} times in the file:\n{old}"
        text = text.replace(old, new)
    file.write_text(text)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the package and its tests with all examples applied, and a study that uses them."""
    folder = Clone.make(tmp_path_factory.mktemp("extended") / "unimind", standin=False).folder
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, folder)
    study = tiny()
    for language, content, before in blocks(PAGES[EXTENDING]):
        if language == "diff":
            apply(content, folder)
        elif language == "python":
            (folder / re.findall(r"`([\w/]+\.py)`:$", before)[0]).write_text(content + "\n")
        else:
            study = merge(study, yaml.safe_load(content))
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    (folder / "tests/training/test_in_use.py").write_text(IN_USE)
    return folder


@pytest.mark.slow
def test_examples_pass_their_tests(extended):
    tests = [
        "tests/models/test_encoder.py", "tests/training/test_cosine.py", "tests/training/test_in_use.py", "tests/data/test_session_files.py",
        "tests/training/test_training_stages.py", "tests/evaluation/test_metrics_independent.py",
    ]  # fmt: skip
    names = "mixer or cosine or in_use or session_files or listed_loss or colour"
    printed = bash(f"python -m pytest -q -p no:cacheprovider -k '{names}' {' '.join(tests)}", extended, PYTHONPATH=str(extended))
    assert int(re.search(r"(\d+) passed", printed)[1]) >= 16


def test_a_study_of_the_examples_can_be_planned(extended):
    assert "a valid study" in bash("python -m unimind check study.yaml", extended, PYTHONPATH=str(extended))
    jobs = job_table(bash("snakemake -n --configfile study.yaml", extended))
    assert jobs["align_subjects"] == 2 * 4 and jobs["fetch_subject"] == 3 + 2


def test_examples_come_into_the_reference_and_are_in_style(extended):
    files = re.findall(r"`([\w/]+\.py)`:\n\n```python|^\+\+\+ (\S+)$", PAGES[EXTENDING], re.MULTILINE)
    bash(f"ruff check {' '.join({new or old for new, old in files})}", extended)
    bash("python -m unimind.study_reference", extended, PYTHONPATH=str(extended))
    reference = (extended / "config/README.md").read_text()
    assert all(f"`{name}`" in reference for name in ("mixer", "cosine", "session-files"))


# --- links and names --------------------------------------------------------------------------------------------------


def anchors(text: str) -> list[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for title in re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(PAGES[page])):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


def test_every_page_is_linked_from_the_readme():
    assert [page for page in PAGES if page != "README.md" and f"]({page}" not in PAGES["README.md"]] == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    made = re.findall(r"`([\w/]+\.py)`:\n\n```python", PAGES[EXTENDING])
    for path in re.findall(r"`((?:unimind|tests|config|docs|workflow|envs|benchmarks)/[\w/.-]+\.\w+)`", PAGES[page]):
        assert path in made or (ROOT / path).exists(), path
