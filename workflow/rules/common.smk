# Helpers of the rules: the study, the names in it, and what each job depends on.
import json
import math
import os
import re
import shlex
import sys
from pathlib import Path

from unimind.bundle import read_bundle
from unimind.cards import cards
from unimind.errors import InputError
from unimind.report.cost import CARDS, costs, last_line
from unimind.report.downloads import needed
from unimind.report.status import refusals
from unimind.stages import STAGES
from unimind.storage import content_hash, whole_file
from unimind.study import layout, parse_study, resolved


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


def say_needs(study):
    """Before anything runs: which data sets are not here yet and must be asked for, which networks are fetched and how large they are."""
    if workflow.is_main_process:
        for line in needed(study, Path(study.results)):
            print(line, file=sys.stderr)
    try:
        from unimind.data.fetch import agreements
    except (
        ImportError
    ):  # a bare Snakemake with --use-conda; `unimind doctor` says the same
        return
    if workflow.is_main_process:
        for line in agreements(study):
            print(line, file=sys.stderr)


def say_plan(wildcards):
    """No input of anything: where jobs are looked for in a dry run, once, the last line of `unimind plan`.

    An input function, for Snakemake does not know that a run is dry before it looks for jobs, and calls no handler in one.
    """
    if workflow.is_main_process and workflow.dryrun and not SAID:
        try:
            expected = costs(STUDY, Path())
        except (
            ImportError,
            InputError,
        ):  # a bare Snakemake, or a prepared file that its job will refuse
            expected = costs(STUDY)
        SAID.append(last_line(STUDY, expected))
        print(*SAID, file=sys.stderr)
    return []


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
    groups = {
        study.group(method, *pair) for method in study.all_methods() for pair in pairs
    }
    return {
        "dataset": one_of(study.datasets),
        "subject": one_of(subject for _, subject in pairs),
        "stimuli": one_of(name for _, name in study.stimulus_sets()),
        "method": one_of(study.all_methods()),
        "group": one_of(groups),
        "further": one_of(study.decode),
        "candidates": one_of(study.ranked()),
    }


def scanned():
    """Expression for the subjects of the fMRI without pictures."""
    return one_of(STUDY.unpaired.subjects if STUDY.unpaired else [])


def foundations(way):
    """Expression for the foundations that are `trained` in the study, those that are `taken` from its bundle, or those that are `obtained`."""

    def way_of(name):
        trained, taken = STUDY.is_trained(name), STUDY.is_taken(name)
        return "trained" if trained else "taken" if taken else "obtained"

    return one_of(name for name in STUDY.networks() if way_of(name) == way)


def methods(taken):
    """Expression for the methods whose shared models are taken from the study's bundle, or for those whose models are made here."""
    return one_of(name for name in STUDY.all_methods() if STUDY.takes(name) == taken)


def bundled():
    """Parameter: hash of the bundle's manifest, so that another bundle of the same name is seen when jobs are planned."""
    return content_hash(read_bundle(STUDY.bundle).manifest) if STUDY.bundle else ""


SAID = []  # the plan's last line
PLANNED = {}  # what each job costs, by its stage and names


# --- what a job is -----------------------------------------------------------------------------------------------


def call_of(stage, **given):
    """Parameters of the jobs of a stage: its command, the part of the study it depends on, and its code.

    The command follows from the stage's declaration: inputs, outputs and wildcards have the names of its arguments.
    `given` adds to them, values or functions of the wildcards. Functions of input, output or threads are no reason to run
    a job again: the command says only where things are.
    """
    declared = STAGES[stage]

    def names(wildcards):
        further = {
            name: value(wildcards) if callable(value) else value
            for name, value in given.items()
        }
        return {**wildcards, **further}

    def command(wildcards, input, output, threads):
        files = {name: input.get(name) for name in input.keys()}
        files |= {name: output.get(name) for name in output.keys()} | {"out": output[0]}
        places = {"checkpoints": checkpoints_of(output[0])}
        words = declared.words({**names(wildcards), **places, **files})
        begin = f"{launcher(stage, wildcards, threads)} -m unimind {stage}"
        return f"{begin} --study {STUDY_FILE} {shlex.join(words)}"

    def settings(wildcards):
        part = declared.part(STUDY, **names(wildcards))
        return json.dumps(part, sort_keys=True)

    return {
        "command": command,
        "settings": settings,
        "code": lambda wildcards: declared.code(STUDY, **names(wildcards)),
    }


def content_of(what):
    """Parameter: hash of the laboratory's own files that a fetch lists, so that an edit of one is seen when jobs are planned."""

    def content(wildcards):
        try:
            from unimind.data.fetch import inputs_hash
        except ImportError:  # a bare Snakemake with --use-conda
            return ""
        if what == "unpaired":
            return inputs_hash(STUDY, None, wildcards.subject)
        if what == "further":
            return inputs_hash(
                STUDY,
                wildcards.dataset,
                wildcards.subject,
                further=wildcards.further,
            )
        if what == "candidates":
            of = STUDY.ranked()[wildcards.candidates]
            dataset = STUDY.decode[of["further"]].dataset
            return inputs_hash(
                STUDY, dataset, of.get("subject"), stimuli=True, further=of["further"]
            )
        if what == "stimuli":
            return inputs_hash(STUDY, wildcards.dataset, whose(wildcards), stimuli=True)
        return inputs_hash(STUDY, wildcards.dataset, wildcards.subject)

    return content


def launcher(stage, wildcards, threads):
    """The program that runs a stage: Python, or accelerate where several processes share it."""
    processes = processes_of(stage)(wildcards)
    if processes == 1:
        return "python"
    return (
        f"python -m unimind.cards {processes} python -m accelerate.commands.launch --multi_gpu --num_machines 1 --main_process_port 0"
        f" --num_processes {processes} --num_cpu_threads_per_process {max(1, threads // processes)}"
        " --gpu_ids all --mixed_precision no --dynamo_backend no"
    )


def threads_of(stage):
    return STUDY.threads if STAGES[stage].parallel else 1


def resources_of(stage, retried=False):
    """Memory, time and graphics cards of a stage's jobs: what `unimind plan` expects of a job, and no less than its stage declares.

    Memory grows with every attempt and with the processes that share a job; where the rule itself tries again
    (`retried`: a download, on the machine that Snakemake runs on), it stays.
    """
    declared, processes = STAGES[stage], processes_of(stage)
    if retried:
        return {"mem_mb": declared.memory, "runtime": declared.minutes}
    asked = {
        "mem_mb": lambda wildcards, attempt: planned(stage, wildcards)[0]
        * processes(wildcards)
        * attempt,
        "runtime": lambda wildcards, attempt: planned(stage, wildcards)[1] * attempt,
    }
    return asked | ({"gpu": cards_of(stage)} if declared.gpu else {})


def planned(stage, wildcards):
    """Megabytes and minutes of a job's first attempt, the minutes on the slowest card with half as many again.

    What is planned holds before anything is prepared: it must not change as files come.
    """
    declared = STAGES[stage]
    if not PLANNED:
        PLANNED.update(
            ((cost.job.stage, *sorted(cost.job.names.items())), cost)
            for cost in costs(STUDY)
        )
    cost = PLANNED.get((stage, *sorted(dict(wildcards).items())))
    if cost is None:
        return declared.memory, declared.minutes
    seconds = max(cost.seconds(card) for card in CARDS.values()) if declared.gpu else 0
    minutes = 0 if math.isnan(seconds) else math.ceil(1.5 * seconds / 60)
    return max(declared.memory, math.ceil(cost.host / 1e6)), max(
        declared.minutes, minutes
    )


def processes_of(stage):
    """How many processes share pictures to draw or to measure, or a training: one of a closed form's body, whose step takes milliseconds."""

    def number(wildcards):
        if stage in ("reconstruct", "reconstruct-controls", "decode", "score"):
            return STUDY.processes
        if stage == "foundation":
            whole = wildcards.name in ("embedding", "classifier")
            return (
                1 if whole or not STUDY.is_trained(wildcards.name) else STUDY.processes
            )
        if stage not in ("pretrain", "align", "condition", "adapt"):
            return 1
        closed = stage == "align" and STUDY.method(wildcards.method).closed
        return 1 if closed else STUDY.processes

    return number


def cards_of(stage):
    """Graphics cards of a job, found when it is planned: who runs the jobs is not known before.

    A job asks for one per process, on one machine for no more than are there; which ones it takes is settled by locks
    (unimind/cards.py), or by the cluster. UNIMIND_GPUS says how many this machine has; 0 is none.
    """

    def number(wildcards):
        told = os.environ.get("UNIMIND_GPUS")
        here = int(told) if told else len(cards())
        wanted = processes_of(stage)(wildcards)
        if workflow.non_local_exec:
            return wanted if here or not told else 0
        # A profile's limit would be lost with --resources; a cluster counts its cards itself.
        if "gpu" not in workflow.global_resources:
            workflow.register_resource("gpu", max(here, 1))
        return min(wanted, here)

    return number


# --- files --------------------------------------------------------------------------------------------------------


def made(pattern, **names):
    """Path of a result; words of the pattern without a name stay, as wildcards."""
    return f"{RESULTS}/{layout.path(pattern, **names)}"


def log_of(pattern):
    return f"logs/{STUDY.name}/{layout.without_ending(pattern)}.log"


def benchmark_of(pattern):
    return f"benchmarks/{STUDY.name}/{layout.without_ending(pattern)}.tsv"


def checkpoints_of(output):
    """Where a training keeps its checkpoints: no output, so that they outlive a failed job."""
    return f"{RESULTS}/checkpoints/{os.path.relpath(str(output), RESULTS)}"


def prepared(pairs):
    return [
        made(layout.PREPARED, dataset=dataset, subject=subject)
        for dataset, subject in pairs
    ]


def inspected():
    return [
        made(layout.INSPECTED, dataset=dataset, subject=subject)
        for dataset, subject in STUDY.pairs()
    ]


def unpaired():
    return [made(layout.UNPAIRED, subject=name) for name in STUDY.resting()]


def embeddings(pairs):
    """The embeddings of each subject's pictures, in the order of `prepared`."""
    return [stimulus_file(layout.EMBEDDINGS, *pair) for pair in pairs]


def stimulus_file(pattern, dataset, subject):
    """What is made of a subject's stimulus set."""
    return made(pattern, dataset=dataset, stimuli=STUDY.stimuli(dataset, subject))


def stimuli_of_subject(pattern):
    return lambda wildcards: stimulus_file(
        pattern, wildcards.dataset, wildcards.subject
    )


def of_drawn(pattern):
    """As `stimuli_of_subject`; nothing where the study draws no picture."""
    return stimuli_of_subject(pattern) if STUDY.draws else []


def whose(wildcards):
    """The subject whose own pictures a stimulus set is; None where all share them."""
    name = wildcards.stimuli
    return None if name == "stimuli" else name.removesuffix(".stimuli")


def of_candidates(word):
    """The set that candidates belong to (`further`), or the `subject` that was shown them."""
    return lambda wildcards: STUDY.ranked()[wildcards.candidates].get(word)


def candidates(pattern):
    """What is made of the candidates of a set; none where they are the data set's pictures."""

    def files(wildcards):
        name = STUDY.candidates(wildcards.further, wildcards.subject)
        return [made(pattern, candidates=name)] if name else []

    return files


def decoded(pattern):
    """What is made by the methods that decode a set, of a subject."""
    return lambda wildcards: [
        made(pattern, method=method, **wildcards)
        for method in STUDY.decoders(wildcards.further)
    ]


def viewers(wildcards):
    """Whose pictures a stimulus set is, if one subject's own; a shared set itself says which may be tested on, so that a new subject changes nothing."""
    return [(wildcards.dataset, subject)] if (subject := whose(wildcards)) else []


def training_stimuli(pattern, datasets):
    """What is made of the stimulus sets of some data sets that somebody is trained on."""
    return [
        made(pattern, dataset=dataset, stimuli=name)
        for dataset in datasets
        for name in STUDY.training_stimuli(dataset)
    ]


def pictures_of_diffusion(pattern):
    """The training stimulus sets of all data sets, where the study's own UNet is trained on them."""
    diffusion = STUDY.foundations.diffusion
    wanted = getattr(diffusion, "pictures", "") == "training"
    return lambda wildcards: (
        training_stimuli(pattern, STUDY.datasets)
        if wanted and wildcards.name == "diffusion"
        else []
    )


def network(name):
    """Folder of a foundation, as a list that is empty where the study has none."""
    return [made(layout.FOUNDATION, name=name)] if name in STUDY.networks() else []


def before_diffusion(name):
    """The diffusion model is made for an embedding and an autoencoder; the others stand alone."""
    return lambda wildcards: network(name) if wildcards.name == "diffusion" else []


def checked_before(wildcards):
    """A training waits until everybody's data is in order; not that of networks by which test pictures are chosen first."""
    first = ("embedding", "autoencoder") if STUDY.splits_by_embedding() else ()
    return [] if wildcards.name in first else CHECKED


def first_where_others_wait(wildcards):
    """Priority of a network's training: everything waits for them, the classifier only measures."""
    return 0 if wildcards.name == "classifier" else 1


def members(wildcards):
    return STUDY.members(wildcards.method, wildcards.group)


def pretrained(wildcards):
    wanted = STUDY.method(wildcards.method).pretrain
    return made(layout.PRETRAINED, method=wildcards.method) if wanted else []


def encoder(wildcards):
    """The encoder the diffusion model is conditioned on: aligned, else pretrained, else none."""
    if STUDY.method(wildcards.method).align:
        return made(layout.ALIGNED, **wildcards)
    return pretrained(wildcards)


def aligned(wildcards):
    """The model of a group that is trained with a body; none where it has none."""
    wanted = STUDY.method(wildcards.method).align
    return made(layout.ALIGNED, **wildcards) if wanted else []


def prior_of(wildcards):
    """The prior over embeddings that a subject's pictures are drawn by, where a method has one."""
    path = STUDY.embedding_prior(wildcards.method, wildcards.dataset, wildcards.subject)
    return made(path) if path else []


def drawn_by(wildcards):
    """As `prior_of`; none where the comparison over budgets draws no picture."""
    return prior_of(wildcards) if STUDY.transfer.pictures else []


def group_of(wildcards):
    return STUDY.group(wildcards.method, wildcards.dataset, wildcards.subject)


def entered(pairs):
    """What a closed form makes of some subjects; none where a method's voxels enter otherwise."""

    def files(wildcards):
        paths = [
            STUDY.entered(wildcards.method, *pair)
            for pair in (pairs(wildcards) if callable(pairs) else pairs)
        ]
        return [made(path) for path in paths if path]

    return files


def prepared_of_members(wildcards):
    """Voxels of a group's members; none where they have entered in closed form."""
    if STUDY.method(wildcards.method).closed:
        return []
    return prepared(members(wildcards))


def taught(wildcards):
    """What a closed form has learned of others before it enters a subject."""
    group = wildcards.get("group") or group_of(wildcards)
    path = STUDY.taught(wildcards.method, group)
    return [made(path)] if path else []


def served(wildcards):
    """What a closed form makes of a subject, where the model that serves it is a shared one."""
    path = STUDY.entered(wildcards.method, wildcards.dataset, wildcards.subject)
    return [made(path)] if path and made(path) != model(wildcards) else []


def shared(wildcards):
    """The model that serves new subjects or that they are adapted to; none where nothing is trained."""
    if not STUDY.shares(wildcards.method):
        return []
    return made(STUDY.shared_model(wildcards.method, group_of(wildcards)))


def teachers(wildcards):
    """Training subjects whose trials are mixed into adaptation."""
    adapt = STUDY.method(wildcards.method).adapt
    if adapt is None or adapt.mix_training == 0:
        return []
    return STUDY.members(wildcards.method, group_of(wildcards))


def crops(files):
    """Inputs of a condition stage that trains on crops of the pictures."""
    return lambda wildcards: (
        files(wildcards) if STUDY.method(wildcards.method).condition.crop else []
    )


def model(wildcards):
    return made(
        STUDY.serving_model(wildcards.method, wildcards.dataset, wildcards.subject)
    )


def results_of(*stages):
    """What some stages make for the study's methods, and for none of those that only the comparison over budgets has."""
    only = set(STUDY.all_methods()) - set(STUDY.methods)
    return [
        made(job.path)
        for job in STUDY.jobs()
        if job.stage in stages and (job.stage == "transfer" or job.part not in only)
    ]


def trained():
    """Everything that was trained: the study's own foundations, then every method's models."""
    own = [name for name in STUDY.networks() if STUDY.is_trained(name)]
    return [made(layout.FOUNDATION, name=name) for name in own] + results_of(
        "take",
        "pretrain",
        "teach",
        "enter",
        "align",
        "condition",
        "embedding-prior",
        "adapt",
    )
