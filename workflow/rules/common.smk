# Helpers of the rules: the study, the names in it, and what each job depends on.
import json
import os
import re
import sys
from pathlib import Path

from unimind.cli import STAGES
from unimind.errors import InputError
from unimind.provenance import code_hash
from unimind.report.doctor import graphics_cards
from unimind.report.status import refusals
from unimind.storage import content_hash, whole_file
from unimind.study import parse_study, resolved
from unimind.workflow_settings import (
    foundation_module,
    is_trained,
    models_of,
    resting,
    serving_model,
    settings,
    shared_model,
)

NETWORKS = ("embedding", "autoencoder", "diffusion", "classifier")


def study_of(config):
    """The checked study; a study that cannot run ends Snakemake with one line."""
    where = (
        ", ".join(os.path.relpath(file) for file in workflow.configfiles) or "config"
    )
    try:
        return parse_study(config, where)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def say_agreements(study):
    """Before anything runs: which data sets are not here yet and must be asked for."""
    try:
        from unimind.data.fetch import agreements
    except (
        ImportError
    ):  # a bare Snakemake with --use-conda; `unimind doctor` says the same
        return
    if workflow.is_main_process:
        for line in agreements(study):
            print(line, file=sys.stderr)


def say_refusals(study, since):
    """After a failed run: where jobs refused what they were given, say so last and end as a stage does, with status 2."""
    lines = refusals(study, Path(), since)
    if lines:
        print(
            "This run stopped because of what it was given:",
            *lines,
            sep="\n",
            file=sys.stderr,
        )
        sys.exit(2)


def write_resolved(study):
    """Write the study with every default written out, named by its content; return the file's path."""
    content = resolved(study)
    path = Path(".snakemake", "unimind", f"{study.name}-{content_hash(content)}.json")
    if not path.exists():
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1))
    return str(path)


def shell_prefix():
    """What every job's shell does first: find this clone and, without conda, the Python that runs Snakemake."""
    methods = {str(method) for method in workflow.deployment_settings.deployment_method}
    own_python = (
        ""
        if "conda" in methods
        else f'export PATH="{os.path.dirname(sys.executable)}:$PATH"; '
    )
    return f'set -euo pipefail; export PYTHONPATH="{ROOT}"; {own_python}'


def one_of(names):
    """Regular expression for exactly these names."""
    return "|".join(re.escape(name) for name in sorted(set(names))) or "(?!)"


def names_of(study):
    """The wildcards of the rules: only names that stand in the study."""
    pairs = list(study.pairs())
    used = [name for name in NETWORKS if getattr(study.foundations, name)]
    return {
        "dataset": one_of(study.datasets),
        "subject": one_of(subject for _, subject in pairs),
        "stimuli": one_of(study.stimuli(*pair) for pair in pairs),
        "scanned": one_of(study.unpaired.subjects if study.unpaired else []),
        "method": one_of(study.all_methods()),
        "group": one_of(
            study.group(method, *pair)
            for method in study.all_methods()
            for pair in pairs
        ),
        "trained": one_of(name for name in used if is_trained(study, name)),
        "obtained": one_of(name for name in used if not is_trained(study, name)),
    }


# --- what a job depends on beside its input files -----------------------------------------------------------------


def settings_of(stage, **names):
    """Parameter: the stage's part of the study. `names` says which wildcard names what, such as `network="trained"`."""

    def part(wildcards):
        values = {
            name: getattr(wildcards, wildcard) for name, wildcard in names.items()
        }
        return json.dumps(settings(STUDY, stage, **values), sort_keys=True)

    return part


def code_of(stage):
    """Parameter: hash of the code that the stage runs."""
    return lambda wildcards: code_hash(STAGES[stage].module)


def code_of_comparison(wildcards):
    """A method fitted in closed form is compared over budgets without the code that adapts one."""
    unused = "unimind.training.adapt" if STUDY.method(wildcards.method).fitted else None
    return code_hash(STAGES["transfer"].module, unused)


def code_of_foundation(wildcard):
    return lambda wildcards: code_hash(
        foundation_module(STUDY, getattr(wildcards, wildcard))
    )


# Functions of `output` or `input` are no reason to run a job again: the parameters below say only where things are.


def launcher(stage):
    """The program that runs a training: Python, or accelerate where several processes share it."""

    def program(wildcards, threads):
        processes = processes_of(stage)(wildcards)
        if processes == 1:
            return "python"
        return (
            "python -m accelerate.commands.launch --multi_gpu --num_machines 1 --main_process_port 0"
            f" --num_processes {processes} --num_cpu_threads_per_process {max(1, threads // processes)}"
            " --gpu_ids all --mixed_precision no --dynamo_backend no"
        )

    return program


def study_file(wildcards, output):
    return STUDY_FILE


def checkpoints(wildcards, output):
    """Where a training keeps its checkpoints: no output, so that they outlive a failed job."""
    return os.path.join(RESULTS, "checkpoints", os.path.relpath(str(output), RESULTS))


def option(name):
    """`--name FILES` where the rule has such input, otherwise nothing."""

    def given(wildcards, input):
        files = input.get(name.replace("-", "_"))
        return f"--{name} {files}" if files else ""

    return given


def own_stimuli(wildcards, output):
    """`--subject S` for the stimulus set of one subject."""
    return (
        ""
        if wildcards.stimuli == "stimuli"
        else f"--subject {wildcards.stimuli.removesuffix('.stimuli')}"
    )


def grow(amount, times=lambda wildcards: 1):
    """A resource that grows with every attempt, and is needed so many times."""
    return lambda wildcards, attempt: amount * times(wildcards) * attempt


def processes_of(stage):
    """How many processes share a training: one where its losses compare the rows of a batch with each other."""

    def number(wildcards):
        if stage == "foundation":
            whole = wildcards.trained in ("embedding", "classifier")
        else:
            losses = getattr(
                getattr(STUDY.method(wildcards.method), stage), "losses", None
            )
            whole = losses is not None and losses.compares_rows
        return 1 if whole else STUDY.processes

    return number


def cards_of(stage=None):
    """Graphics cards of a job, found when it is planned: who runs the jobs is not known before.

    A cluster is asked for one per process. On one machine, `gpu: 1` is the right to use its cards. UNIMIND_GPUS=0 says
    that there are none, UNIMIND_GPUS=1 that there are some.
    """

    def number(wildcards):
        # A profile's limit would be lost with --resources; a cluster counts its cards itself.
        if workflow.local_exec and "gpu" not in workflow.global_resources:
            workflow.register_resource("gpu", 1)
        told = os.environ.get("UNIMIND_GPUS")
        if not (int(told) if told else workflow.non_local_exec or graphics_cards()):
            return 0
        return (
            processes_of(stage)(wildcards) if stage and workflow.non_local_exec else 1
        )

    return number


GPU = cards_of()


# --- files --------------------------------------------------------------------------------------------------------


def prepared(pairs):
    return [f"{RESULTS}/prepared/{dataset}/{subject}.h5" for dataset, subject in pairs]


def unpaired():
    return [f"{RESULTS}/prepared/unpaired/{name}.h5" for name in resting(STUDY)]


def embeddings(pairs):
    """The embeddings of each subject's pictures, in the order of `prepared`."""
    return [
        f"{RESULTS}/embeddings/{dataset}/{STUDY.stimuli(dataset, subject)}.h5"
        for dataset, subject in pairs
    ]


def members(wildcards):
    return STUDY.members(wildcards.method, wildcards.group)


def stimuli_of_subject(folder):
    """File of a subject's stimulus set in `prepared`, `embeddings`, `features` or `reconstructions/controls`."""
    return (
        lambda wildcards: f"{RESULTS}/{folder}/{wildcards.dataset}/{STUDY.stimuli(wildcards.dataset, wildcards.subject)}.h5"
    )


def training_stimuli(wildcards):
    """Stimulus sets of a data set that somebody is trained on."""
    return [
        f"{RESULTS}/prepared/{wildcards.dataset}/{name}.h5"
        for name in STUDY.training_stimuli(wildcards.dataset)
    ]


def all_training_stimuli(folder):
    """The same over all data sets, where the study's own UNet is trained on them."""

    def files(wildcards):
        diffusion = STUDY.foundations.diffusion
        if wildcards.trained != "diffusion" or diffusion.pictures != "training":
            return []
        return [
            f"{RESULTS}/{folder}/{dataset}/{name}.h5"
            for dataset in STUDY.datasets
            for name in STUDY.training_stimuli(dataset)
        ]

    return files


def network(name):
    """Folder of a foundation, as a list that is empty where the study has none."""
    return [f"{RESULTS}/foundations/{name}"] if getattr(STUDY.foundations, name) else []


def foundations_before(name, wildcard):
    """The diffusion model is made for an embedding and an autoencoder; the others stand alone."""
    return lambda wildcards: (
        network(name) if getattr(wildcards, wildcard) == "diffusion" else []
    )


def first_where_others_wait(wildcards):
    """Priority of a network's training: everything waits for them, the classifier only measures."""
    return 0 if wildcards.trained == "classifier" else 1


def viewers(wildcards):
    """Whose pictures a stimulus set is, if one subject's own; a shared set itself says which may be tested on, so that a new subject changes nothing."""
    return [
        pair
        for pair in STUDY.pairs()
        if pair[0] == wildcards.dataset
        and STUDY.stimuli(*pair) == wildcards.stimuli != "stimuli"
    ]


def pretrained(wildcards):
    return (
        [f"{RESULTS}/models/{wildcards.method}/pretrain"]
        if STUDY.method(wildcards.method).pretrain
        else []
    )


def encoder(wildcards):
    """The encoder the diffusion model is conditioned on: aligned, else pretrained, else none."""
    if STUDY.method(wildcards.method).align:
        return f"{RESULTS}/models/{wildcards.method}/align/{wildcards.group}"
    return pretrained(wildcards)


def shared(wildcards):
    group = STUDY.group(wildcards.method, wildcards.dataset, wildcards.subject)
    return f"{RESULTS}/models/{wildcards.method}/{shared_model(STUDY, wildcards.method, group)}"


def teachers(wildcards):
    """Training subjects of the shared model that a new subject is adapted to."""
    return STUDY.members(
        wildcards.method,
        STUDY.group(wildcards.method, wildcards.dataset, wildcards.subject),
    )


def priors(wildcards):
    """Who teaches the prior of a closed-form method that has one."""
    if STUDY.methods[wildcards.method].encoder.kind != "prior":
        return []
    (own,) = members(wildcards)
    return STUDY.teachers(*own)


def shared_for_transfer(wildcards):
    return [] if STUDY.method(wildcards.method).fitted else shared(wildcards)


def teachers_for_transfer(wildcards):
    """Who teaches what a new subject's few trials are added to."""
    if STUDY.method(wildcards.method).fitted:
        return STUDY.teachers(wildcards.dataset, wildcards.subject)
    return teachers(wildcards)


def curves():
    """One file per compared method and new subject."""
    return [
        f"{RESULTS}/transfer/{method}/{dataset}/{subject}.json"
        for method in STUDY.transferred()
        for dataset, subject in STUDY.pairs("new")
    ]


def model(wildcards):
    return f"{RESULTS}/models/{wildcards.method}/{serving_model(STUDY, wildcards.method, wildcards.dataset, wildcards.subject)}"


def all_models():
    """Everything that was trained: the study's own foundations, then every method's models."""
    foundations = [
        f"{RESULTS}/foundations/{name}"
        for name in NETWORKS
        if getattr(STUDY.foundations, name) and is_trained(STUDY, name)
    ]
    return foundations + [
        f"{RESULTS}/models/{method}/{folder}"
        for method in STUDY.methods
        for folder in models_of(STUDY, method)
    ]


def of_all_subjects(folder, ending):
    """One file per method and subject."""
    return [
        f"{RESULTS}/{folder}/{method}/{dataset}/{subject}{ending}"
        for method in STUDY.methods
        for dataset, subject in STUDY.pairs()
    ]


def of_all_stimuli(folder):
    """One file per stimulus set."""
    names = dict.fromkeys(
        (dataset, STUDY.stimuli(dataset, subject)) for dataset, subject in STUDY.pairs()
    )
    return [f"{RESULTS}/{folder}/{dataset}/{name}.h5" for dataset, name in names]
