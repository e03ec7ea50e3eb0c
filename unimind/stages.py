"""The stages: each one's command, what of the study it depends on, and what its job needs, declared once.

From a declaration follow the command line (`unimind.cli`), the command of a rule (`Stage.words`), the settings and the
code by which Snakemake sees that a job must run again (`Stage.part`, `Stage.code`), the view of the study that the stage
gets, which refuses every other key (`Stage.view`), and with it the fingerprint of a training's checkpoints.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimind.provenance import code_hash

if TYPE_CHECKING:  # the command line's help does without the study's types
    from unimind.study import Study

Names = Mapping[str, Any]
Lines = tuple[str, ...]

#: Keys that say where a data set's files lie or who takes part: they reach a stage through its input files.
WHERE_AND_WHO = "datasets.{dataset}: root training_subjects new_subjects"
DATASET = "datasets.{dataset} -root -training_subjects -new_subjects -require_signal -seconds_per_trial -categories"
LABEL = "methods.{method}: label"
BATCH = "evaluation.batch_size"


@dataclass(frozen=True)
class Stage:
    """A stage: `module.function(study, **arguments)`.

    Attributes
    ----------
    module, function : str
        Imported when it is called.
    help : str
    arguments : dict
        Name on the command line -> `file`, `files`, `text` or `flag`, with `?` where it is optional.
    reads : lines, or a function of (study, names) that gives them
        What of the study its result depends on (see `unimind.study.view`). `names` are the stage's arguments.
    knows : lines
        What it may look at besides: what is only shown, and what reaches it through its files or changes no number.
    needs_study : bool
    code_of : function of (study, names), optional
        Module whose code runs, and one whose code does not though it is imported; by default all of `module`.
    memory, minutes : int
        Megabytes and minutes that the job of a first attempt gets.
    gpu : bool
        Whether a graphics card helps.
    parallel : bool
        Whether it works with the study's `threads`; else with one.
    """

    module: str
    function: str
    help: str
    arguments: dict[str, str] = field(default_factory=dict)
    reads: "Lines | Callable[[Study, Names], Iterable[str]]" = ()
    knows: Lines = ()
    needs_study: bool = True
    code_of: "Callable[[Study, Names], tuple[str, str | None]] | None" = None
    memory: int = 4000
    minutes: int = 60
    gpu: bool = False
    parallel: bool = False

    @property
    def batched(self) -> bool:
        """Whether `evaluation.batch_size` decides how much memory it takes."""
        return BATCH in self.knows

    def load(self) -> Callable[..., int | None]:
        """The function."""
        return getattr(importlib.import_module(self.module), self.function)

    def view(self, study: "Study", **names: Any) -> "Study":
        """The study as the stage sees it when it is called for these names."""
        from unimind.study.view import seen, whole_study

        study = whole_study(study)
        reads = self.reads(study, names) if callable(self.reads) else self.reads
        return seen(study, self.module, reads, ("name", *self.knows), names)

    def part(self, study: "Study", **names: Any) -> dict[str, Any]:
        """What of the study the stage's result depends on, as plain types."""
        from unimind.study.view import declared

        return declared(self.view(study, **names))

    def code(self, study: "Study", **names: Any) -> str:
        """Hash of the code that the stage runs."""
        return code_hash(*(self.code_of(study, names) if self.code_of else (self.module,)))

    def words(self, given: Mapping[str, Any]) -> list[str]:
        """The words of the command line that give the stage its arguments; what is empty is left out.

        Parameters
        ----------
        given : mapping
            Values by the names of the function's parameters; others are passed over.
        """
        words = []
        for argument, kind in self.arguments.items():
            value = given.get(argument.replace("-", "_"))
            if value:
                values = [] if kind == "flag" else [str(value)] if isinstance(value, (str, Path)) else [str(one) for one in value]
                words += [f"--{argument}", *values]
        return words


def _of_responses(study: "Study", names: Names) -> str:
    """What a declaration leaves out of a data set's section where only its pictures count."""
    dataset = names.get("dataset")
    return "".join(f" -{key}" for key in sorted(study.datasets[dataset].of_responses)) if dataset else ""


def _pictures(study: "Study", names: Names) -> Iterable[str]:
    yield f"datasets.{{dataset}} -root -training_subjects -new_subjects -test_pictures{_of_responses(study, names)}"
    yield "picture_size"


def _candidates(study: "Study", names: Names) -> Iterable[str]:
    yield "decode.{further}: dataset candidates"
    yield "picture_size"
    if study.decode[names["further"]].folder is None:  # shown by the data set's owners
        yield f"datasets.{study.decode[names['further']].dataset}: source form space betas"


def _targets(study: "Study", names: Names) -> Iterable[str]:
    """Only an adapter of tokens asks for more than every study's targets."""
    return ("foundations.diffusion.target",) if study.foundations.target == "tokens" else ()


def _fetched(study: "Study", names: Names) -> Iterable[str]:
    dataset, unpaired = names.get("dataset"), names.get("unpaired")
    if names.get("further"):
        asked = study.decode[names["further"]]
        yield "decode.{further}: dataset " + ("candidates" if names.get("stimuli") else "set betas responses task trials")
        yield f"datasets.{asked.dataset} -training_subjects -new_subjects -validation_fraction -require_signal"
        return
    if not unpaired:
        further = _of_responses(study, names) if names.get("stimuli") else " -validation_fraction -require_signal -seconds_per_trial -categories"
        yield f"datasets.{{dataset}} -training_subjects -new_subjects -test_pictures{further}"
        if any(section.source == "simulated" for name, section in study.datasets.items() if dataset in (None, name)):
            yield "picture_size"
    if unpaired or dataset is None:
        yield "unpaired -subjects -window"
        if study.unpaired is not None and study.unpaired.source == "simulated":
            yield "seed"


def _foundation(study: "Study", names: Names) -> Iterable[str]:
    yield from ("foundations.{name}", "bundle")
    if names["name"] in study.networks() and study.is_trained(names["name"]):
        yield from ("foundations.drawn", "picture_size", "seed")
        if names["name"] == "diffusion" and getattr(study.foundations.diffusion, "pictures", "") == "training":
            yield "datasets.*: validation_fraction"


#: Where a foundation that is not trained in the study comes from, by its kind.
_OBTAINED = {
    "open-clip": "unimind.foundations.open_clip_embedding",
    "squeezenet": "unimind.foundations.squeezenet",
    "taef2": "unimind.foundations.taef2",
    "hub": "unimind.foundations.hub",
    "ldm": "unimind.foundations.ldm",
    "clip-vision": "unimind.foundations.clip_vision",
    **dict.fromkeys(("ip-adapter", "unclip", "kandinsky-2.2", "autoencoder"), "unimind.foundations.generators.build"),
}


def _code_of_foundation(study: "Study", names: Names) -> tuple[str, str | None]:
    name = names["name"]
    return (f"unimind.training.foundations.{name}" if study.is_trained(name) else _OBTAINED[getattr(study.foundations, name).kind]), None


def _code_of_transfer(study: "Study", names: Names) -> tuple[str, str | None]:
    """A method fitted in closed form is compared over budgets without the code that adapts one."""
    return "unimind.evaluation.transfer", "unimind.training.adapt" if study.method(names["method"]).closed else None


_EVERYTHING = ("study -threads -processes",)
_PICTURES = {"diffusion": "file", "autoencoder": "file", "embedding": "file"}
_OF_SUBJECT = {"method": "text", "dataset": "text", "subject": "text"}
_TEACHERS = {"training-prepared": "files?", "training-embeddings": "files?"}
_TRAINED = {"checkpoints": "file", "out": "file"}

STAGES: dict[str, Stage] = {
    "fetch": Stage(
        "unimind.data.fetch", "fetch", "Get a data set's files, or simulate them, and write their manifest.",
        {"dataset": "text?", "subject": "text?", "further": "text?", "stimuli": "flag", "unpaired": "flag", "list": "flag", "out": "file?"},
        reads=_fetched, knows=("datasets.*", "unpaired: subjects", "decode", "further()", "ranked()"), minutes=1440,
    ),
    "stimuli": Stage(
        "unimind.data.stimuli", "stimuli", "Bring a data set's pictures to one HDF5 file.",
        {"dataset": "text", "subject": "text?", "fetched": "file", "out": "file"},
        reads=_pictures, knows=(WHERE_AND_WHO, "datasets.{dataset}"), memory=8000, minutes=240,
    ),
    "split": Stage(
        "unimind.data.split", "split", "Choose the pictures to test on by a rule on the pictures themselves.",
        {"dataset": "text", "pictures": "file", "training-pictures": "files?", "embeddings": "file?", "training-embeddings": "files?", "out": "file"},
        reads=("seed", "datasets.{dataset}: test_pictures categories"), memory=8000, minutes=120,
    ),
    "prepare": Stage(
        "unimind.data.prepare", "prepare", "ROI extraction, voxel order, per-session z-scoring: one prepared file per subject.",
        {"dataset": "text", "subject": "text", "fetched": "file", "stimuli": "file", "training-stimuli": "files?", "out": "file"},
        reads=(DATASET, "role(dataset, subject)", "seed", "bundle"), knows=(WHERE_AND_WHO,), memory=16000, minutes=240,
    ),
    "prepare-unpaired": Stage(
        "unimind.data.prepare_unpaired", "prepare_unpaired", "Visual-cortex samples from fMRI without pictures.",
        {"subject": "text", "fetched": "file", "out": "file"},
        reads=("unpaired -subjects -root",), memory=8000, minutes=120,
    ),
    "prepare-further": Stage(
        "unimind.data.prepare_further", "prepare_further", "A further set of trials of a subject, in the voxels of its prepared file.",
        {"dataset": "text", "subject": "text", "further": "text", "fetched": "file", "prepared": "file", "out": "file"},
        reads=(DATASET, "decode.{further} -subjects -methods -average -candidates"), knows=(WHERE_AND_WHO,), memory=16000, minutes=240,
    ),
    "candidates": Stage(
        "unimind.data.candidates", "candidates", "Pictures that trials without a truth are ranked against, in one HDF5 file.",
        {"further": "text", "subject": "text?", "fetched": "file", "out": "file"},
        reads=_candidates, knows=("datasets.*",), memory=8000, minutes=240,
    ),
    "inspect": Stage(
        "unimind.data.inspect", "inspect", "Do a subject's trials and pictures belong together? Reliability, lags, identification, and what is wrong.",
        {"dataset": "text", "subject": "text", "prepared": "file", "stimuli": "file", "fetched": "file", "out": "file"},
        reads=(DATASET, "seed"), knows=(WHERE_AND_WHO,), memory=8000, minutes=120,
    ),
    "overview": Stage(
        "unimind.data.overview", "overview", "Check every prepared file, and write what each subject brings.",
        {"prepared": "files", "inspected": "files?", "unpaired": "files?", "out": "file"},
        reads=("datasets.*: training_subjects new_subjects require_signal", "bundle"),
    ),
    "foundation": Stage(
        "unimind.training.foundations.build", "foundation", "Get or train one frozen network: embedding, autoencoder, diffusion or classifier.",
        {"name": "text", "embedding": "file?", "autoencoder": "file?", "stimuli": "files?", "embeddings": "files?", "checkpoints": "file?", "out": "file"},
        reads=_foundation, code_of=_code_of_foundation, memory=16000, minutes=1440, gpu=True, parallel=True,
    ),
    "embed": Stage(
        "unimind.foundations.embed", "embed", "Image embeddings and autoencoder latents of a stimulus file.",
        {"stimuli": "file", "embedding": "file", "autoencoder": "file?", "out": "file"},
        reads=_targets, knows=(BATCH, "foundations.diffusion"), memory=16000, minutes=240, gpu=True, parallel=True,
    ),
    "pretrain": Stage(
        "unimind.training.pretrain", "pretrain", "Self-supervised pretraining of an encoder on unpaired fMRI.",
        {"method": "text", "prepared": "files", **_TRAINED},
        reads=("seed", "methods.{method}: body pretrain", "methods.{method}.enter: kind order size"),
        knows=(LABEL,), memory=24000, minutes=1440, gpu=True, parallel=True,
    ),
    "teach": Stage(
        "unimind.training.enter", "teach", "What a closed form learns of a group's training subjects: picture space, prior over voxels.",
        {"method": "text", "group": "text", "prepared": "files", "embeddings": "files", "out": "file"},
        reads=("seed", "methods.{method}: enter trained_on"),
        knows=(LABEL, "members()", "role()", "share()"), memory=16000, minutes=240, gpu=True, parallel=True,
    ),
    "enter": Stage(
        "unimind.training.enter", "enter", "A subject's closed form: from its voxels to the picture space; and signals to train on.",
        {**_OF_SUBJECT, "trials": "text?", "seed": "text?", "prepared": "file", "embeddings": "file", "taught": "file?", "out": "file"},
        reads=("seed", "methods.{method}: enter trained_on scope", "methods.{method}.align.in_sample", "signals(method)", "role(dataset, subject)"),
        knows=(LABEL, "role()", "share()"), memory=16000, minutes=240, gpu=True, parallel=True,
    ),
    "align": Stage(
        "unimind.training.align", "align", "Train what a group's subjects share: embeddings aligned with each other and with the images'.",
        {"method": "text", "group": "text", "prepared": "files?", "embeddings": "files", "entered": "files?", "pretrained": "file?", **_TRAINED},
        reads=("seed", "methods.{method}: enter body align trained_on"),
        knows=(LABEL, "members()", "role()", "share()"), memory=32000, minutes=1440, gpu=True, parallel=True,
    ),
    "condition": Stage(
        "unimind.training.condition", "condition", "Condition the diffusion model on a group's fMRI.",
        {"method": "text", "group": "text", "prepared": "files?", "embeddings": "files", "entered": "files?", "encoder": "file?", "diffusion": "file",
         "autoencoder": "file?", "stimuli": "files?", **_TRAINED},
        reads=("seed", "methods.{method}: enter body align.losses condition trained_on"),
        knows=(LABEL, "members()", "role()", "share()"), memory=32000, minutes=2880, gpu=True, parallel=True,
    ),
    "embedding-prior": Stage(
        "unimind.training.embedding_prior", "embedding_prior", "Train the distribution of embeddings that a group's regressed ones may stand for.",
        {"method": "text", "group": "text", "embeddings": "files", "entered": "files", "aligned": "file?", **_TRAINED},
        reads=("seed", "methods.{method}: enter body align embedding_prior trained_on"),
        knows=(LABEL, "members()", "role()", "share()"), memory=32000, minutes=1440, gpu=True, parallel=True,
    ),
    "adapt": Stage(
        "unimind.training.adapt", "adapt", "Fit a shared model to a new subject by gradient steps.",
        {**_OF_SUBJECT, "trials": "text?", "seed": "text?", "prepared": "file", "embeddings": "file", "shared": "file", **_TEACHERS, **_TRAINED},
        reads=("seed", "methods.{method}: enter body align.losses align.margin align.temperature adapt trained_on"),
        knows=(LABEL, "role()", "share()"), memory=24000, minutes=720, gpu=True, parallel=True,
    ),
    "take": Stage(
        "unimind.serving.export", "take", "Take a trained part out of the study's bundle: what training subjects taught, or a foundation.",
        {"part": "text", "out": "file"}, reads=("bundle",),
    ),
    "export": Stage(
        "unimind.serving.export", "export", "Write a trained method as a bundle: all that a new subject needs, and nobody's recordings.",
        {"method": "text", "group": "text?", "directory": "file?", "licence": "text?", "push": "text?", "without-voxels": "flag", "out": "file"},
        reads=("study",),
    ),
    "reconstruct": Stage(
        "unimind.reconstruction.reconstruct", "reconstruct", "Prepared test trials in, pictures out; with the shuffled-fMRI control.",
        {**_OF_SUBJECT, "prepared": "file", "embeddings": "file", "model": "file", "entered": "file?", "embedding-prior": "file?", **_PICTURES,
         "stimuli": "file", "out": "file", "grid": "file?"},
        reads=("seed", "picture_size", "methods.{method}: sampling"),
        knows=(LABEL, BATCH), memory=16000, minutes=1440, gpu=True, parallel=True,
    ),
    "predict": Stage(
        "unimind.reconstruction.predict", "predict", "Prepared test trials in, predicted image embeddings out, with the shuffled-fMRI control; no picture.",
        {**_OF_SUBJECT, "prepared": "file", "model": "file", "entered": "file?", "out": "file"},
        reads=("seed",), knows=(LABEL, BATCH), memory=8000, minutes=240, parallel=True,
    ),
    "decode": Stage(
        "unimind.reconstruction.decode", "decode", "Trials without a truth in; predictions, pictures, ranked candidates and how sure they are out.",
        {**_OF_SUBJECT, "further": "text", "prepared": "file", "trials": "file", "embeddings": "file", "stimuli": "file", "candidates": "file?",
         "candidate-embeddings": "file?", "model": "file", "entered": "file?", "embedding-prior": "file?", **_PICTURES, "out": "file"},
        reads=("seed", "picture_size", "methods.{method}: sampling", "decode.{further}: average candidates"),
        knows=(LABEL, BATCH), memory=16000, minutes=1440, gpu=True, parallel=True,
    ),
    "reconstruct-controls": Stage(
        "unimind.reconstruction.controls", "controls", "Controls of a stimulus set: unconditional samples, and the two ceilings, of drawn shapes too.",
        {"stimuli": "file", "prepared": "files?", "embeddings": "file", **_PICTURES, "out": "file"},
        reads=("seed", "picture_size", "methods.{first}: sampling"), knows=(BATCH,), memory=16000, minutes=720, gpu=True, parallel=True,
    ),
    "features": Stage(
        "unimind.evaluation.features", "features", "The panel's features of a stimulus set's test pictures, once for all methods.",
        {"stimuli": "file", "prepared": "files?", "embedding": "file", "classifier": "file?", "out": "file"},
        reads=("evaluation: metrics weights squeezenet",), knows=(BATCH,), memory=8000, minutes=240, gpu=True,
    ),
    "score": Stage(
        "unimind.evaluation.score", "score", "Metrics of all methods' reconstructions of one subject, with their controls.",
        {"dataset": "text", "subject": "text", "reconstructions": "files", "controls": "file?", "features": "file?", "stimuli": "file", "prepared": "file",
         "embeddings": "file", "embedding": "file", "classifier": "file?", "out": "file"},
        reads=("seed", "picture_size", "evaluation -batch_size", DATASET, "role(dataset, subject)"),
        knows=(BATCH,), memory=8000, minutes=240, gpu=True,
    ),
    "generalise": Stage(
        "unimind.evaluation.generalise", "generalise", "How near a subject's test pictures are to training pictures, and what a method knows beyond these.",
        {"dataset": "text", "subject": "text", "reconstructions": "files", "metrics": "file", "stimuli": "file", "prepared": "file", "embeddings": "file",
         **_TEACHERS, "training-stimuli": "files?", "embedding": "file", "classifier": "file?", "controls": "file?", "out": "file"},
        reads=("seed", "evaluation: bootstrap weights squeezenet", "datasets.{dataset}: categories", "role(dataset, subject)"), knows=(BATCH,),
        memory=16000, minutes=240, gpu=True,
    ),
    "score-decoded": Stage(
        "unimind.evaluation.imagined", "score_decoded", "Where labels say what was imagined: identification among candidates, and measures of pictures.",
        {"dataset": "text", "subject": "text", "further": "text", "decoded": "files", "reconstructions": "files", "stimuli": "file", "prepared": "file",
         "embeddings": "file", "candidates": "file?", "candidate-embeddings": "file?", "embedding": "file", "classifier": "file?", "out": "file"},
        reads=("seed", "evaluation -batch_size", "decode.{further}: candidates", "role(dataset, subject)"),
        knows=(BATCH,), memory=8000, minutes=240, gpu=True,
    ),
    "transfer": Stage(
        "unimind.evaluation.transfer", "transfer", "How far a new subject gets with few of its trials, for one method.",
        {**_OF_SUBJECT, "prepared": "file", "embeddings": "file", "shared": "file?", "taught": "file?", "embedding": "file", "embedding-prior": "file?",
         "diffusion": "file?", "autoencoder": "file?", "features": "file?", "stimuli": "file", **_TEACHERS, **_TRAINED},
        reads=("seed", "picture_size", "methods.{method}: enter body adapt trained_on scope", "methods.{method}.sampling -samples -chosen_by",
               "signals(method)", "methods.{method}.align: losses margin temperature in_sample retrieval_head", "transfer -methods -baselines",
               "evaluation -batch_size", DATASET, "role(dataset, subject)"),
        knows=(LABEL, BATCH, "role()"), code_of=_code_of_transfer, memory=24000, minutes=1440, gpu=True, parallel=True,
    ),
    "tabulate": Stage(
        "unimind.evaluation.tabulate", "tabulate", "Tables of all metrics files: CSV, Markdown, LaTeX.",
        {"metrics": "files", "models": "files", "transfer": "files?", "generalisation": "files?", "imagined": "files?", "decoded": "files?", "out": "file"},
        reads=_EVERYTHING,
    ),
    "figures": Stage(
        "unimind.report.figures", "figures", "Figures of the report from tables, losses and reconstructions.",
        {"tables": "file", "models": "files", "reconstructions": "files", "stimuli": "files", "prepared": "files", "controls": "files?", "metrics": "files?",
         "generalisation": "files?", "decoded": "files?", "candidates": "files?", "out": "file"}, reads=_EVERYTHING, memory=8000,
    ),
    "report": Stage(
        "unimind.report.page", "report", "One self-contained HTML page: tables, pictures, controls, protocol.",
        {"overview": "file", "inspected": "files?", "tables": "file", "figures": "file", "metrics": "files", "models": "files", "generalisation": "files?",
         "out": "file"},
        reads=_EVERYTHING,
    ),
    "evaluate": Stage(
        "unimind.evaluation.evaluate", "evaluate", "Metrics and a picture grid for anybody's reconstructions: folders of pictures or arrays.",
        {"truth": "file", "reconstruction": "file", "weights": "file?", "bootstrap": "text?", "batch-size": "text?", "out": "file"}, needs_study=False,
    ),
    "benchmark": Stage(
        "unimind.training.benchmark", "benchmark", "Parameters, FLOPs, memory and speed of the encoders and training steps, in one run.",
        {"voxels": "text?", "batches": "text?", "device": "text?", "precision": "text?", "out": "file?"}, needs_study=False,
    ),
    "status": Stage(
        "unimind.report.status", "status", "Which stage of which method and subject is done, running or failed.", {"directory": "file?"}, reads=("study",),
    ),
    "plan": Stage(
        "unimind.report.cost", "plan", "What every stage costs, before anything is fetched: jobs, steps, bytes, memory, time.",
        {"directory": "file?", "calibrate": "flag"}, reads=("study",),
    ),
    "doctor": Stage("unimind.report.doctor", "doctor", "Check this machine: versions, devices, disk, data, weights.", reads=("study",)),
}  # fmt: skip
