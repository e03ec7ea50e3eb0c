"""Which part of the study each stage depends on, and which model serves which subject.

The workflow stores these parts with every result. A result is made again when its part of the study changes and not
when any other part does: a new subject leaves every shared model alone, another sampler reruns the reconstructions
and what follows them.
"""

from collections.abc import Callable
from typing import Any

from unimind.study import Section, Study

#: Keys that say where files lie or who takes part; they reach a stage through its input files.
WHO_AND_WHERE = {"training_subjects", "new_subjects", "subjects", "root"}
#: The module that trains a foundation inside the study, and the one that obtains it ready-made.
TRAINED_FOUNDATIONS = {
    ("embedding", "study-clip"): "unimind.training.foundations.embedding",
    ("autoencoder", "study"): "unimind.training.foundations.autoencoder",
    ("diffusion", "study"): "unimind.training.foundations.diffusion",
    ("classifier", "study"): "unimind.training.foundations.classifier",
}
OBTAINED_FOUNDATIONS = {
    "open-clip": "unimind.foundations.open_clip_embedding",
    "squeezenet": "unimind.foundations.squeezenet",
    "taef2": "unimind.foundations.taef2",
    "hub": "unimind.foundations.hub",
    "ldm": "unimind.foundations.ldm",
}


def _part(section: Section | None, without: set[str] = frozenset()) -> Any:  # type: ignore[assignment]
    return None if section is None else section.model_dump(mode="json", exclude=set(without))


def _fetch(study: Study, dataset: str) -> dict[str, Any]:
    without = {"training_subjects", "new_subjects", "validation_fraction", "roi_labels"}
    parts = {"dataset": _part(study.datasets[dataset], without)}
    return parts | _of_simulation(study, study.datasets[dataset].source)


def _fetch_unpaired(study: Study) -> dict[str, Any]:
    assert study.unpaired is not None
    return {"unpaired": _part(study.unpaired, {"subjects", "window"})} | _of_simulation(study, study.unpaired.source)


def _of_simulation(study: Study, source: str) -> dict[str, Any]:
    return {"picture_size": study.picture_size, "seed": study.seed} if source == "simulated" else {}


def _stimuli(study: Study, dataset: str) -> dict[str, Any]:
    without = {*WHO_AND_WHERE, "validation_fraction", "roi_labels"}
    return {"dataset": _part(study.datasets[dataset], without), "picture_size": study.picture_size}


def _prepare(study: Study, dataset: str, subject: str) -> dict[str, Any]:
    return {"dataset": _part(study.datasets[dataset], WHO_AND_WHERE), "role": study.role(dataset, subject), "seed": study.seed}


def _prepare_unpaired(study: Study) -> dict[str, Any]:
    return {"unpaired": _part(study.unpaired, WHO_AND_WHERE)}


def _overview(study: Study) -> dict[str, Any]:
    return {"roles": [[*pair, study.role(*pair)] for pair in study.pairs()]}


def _foundation(study: Study, network: str) -> dict[str, Any]:
    parts: dict[str, Any] = {network: _part(getattr(study.foundations, network)), "picture_size": study.picture_size}
    if is_trained(study, network):
        parts |= {"drawn": _part(study.foundations.drawn), "seed": study.seed}
    return parts


def _embed(study: Study) -> dict[str, Any]:
    return {"picture_size": study.picture_size}


def _of_method(*keys: str) -> Callable[..., dict[str, Any]]:
    def parts(study: Study, method: str) -> dict[str, Any]:
        return {"seed": study.seed} | {key: _part(getattr(study.method(method), key)) for key in keys}

    return parts


def _controls(study: Study) -> dict[str, Any]:
    sampling = next(iter(study.methods.values())).sampling
    return {"sampling": _part(sampling), "seed": study.seed, "picture_size": study.picture_size}


def _features(study: Study) -> dict[str, Any]:
    return {"evaluation": _part(study.evaluation, {"bootstrap", "batch_size"}), "picture_size": study.picture_size}


def _score(study: Study, method: str, dataset: str, subject: str) -> dict[str, Any]:
    return {
        "evaluation": _part(study.evaluation, {"batch_size"}),
        "dataset": _part(study.datasets[dataset], WHO_AND_WHERE),
        "label": study.methods[method].label,
        "role": study.role(dataset, subject),
        "leading": study.leads(method),
        "picture_size": study.picture_size,
        "seed": study.seed,
    }


def _transfer(study: Study, method: str, dataset: str) -> dict[str, Any]:
    return {
        **_of_method("voxels", "encoder", "align", "adapt", "trained_on", "sampling")(study, method),
        "transfer": _part(study.transfer, {"methods", "baselines"}),
        "evaluation": _part(study.evaluation, {"batch_size"}),
        "dataset": _part(study.datasets[dataset], WHO_AND_WHERE),
        "label": study.method(method).label,
        "picture_size": study.picture_size,
    }


def _everything(study: Study) -> dict[str, Any]:
    return {key: value for key, value in study.model_dump(mode="json").items() if key not in ("threads", "processes")}


_SETTINGS: dict[str, Callable[..., dict[str, Any]]] = {
    "fetch": _fetch,
    "fetch-unpaired": _fetch_unpaired,
    "stimuli": _stimuli,
    "prepare": _prepare,
    "prepare-unpaired": _prepare_unpaired,
    "overview": _overview,
    "foundation": _foundation,
    "embed": _embed,
    "pretrain": _of_method("voxels", "encoder", "pretrain"),
    "align": _of_method("voxels", "encoder", "align", "trained_on"),
    "fit": _of_method("voxels", "encoder"),
    "condition": _of_method("voxels", "encoder", "align", "condition", "trained_on"),
    "adapt": _of_method("voxels", "encoder", "align", "condition", "adapt", "trained_on"),
    "reconstruct": _of_method("voxels", "encoder", "condition", "sampling"),
    "reconstruct-controls": _controls,
    "features": _features,
    "score": _score,
    "transfer": _transfer,
    "tabulate": _everything,
    "figures": _everything,
    "report": _everything,
}


def settings(study: Study, stage: str, **names: str) -> dict[str, Any]:
    """The part of the study that a stage depends on, as plain types.

    Parameters
    ----------
    study : Study
    stage : str
        A stage of `cli.STAGES`; `fetch-unpaired` where fetch is called for unpaired fMRI.
    **names : str
        What the stage works on: `dataset`, `subject`, `network` or `method`.
    """
    return _SETTINGS[stage](study, **names)


def is_trained(study: Study, network: str) -> bool:
    """Whether a foundation is trained inside the study (otherwise it is obtained ready-made)."""
    section = getattr(study.foundations, network)
    return section is not None and (network, section.kind) in TRAINED_FOUNDATIONS


def foundation_module(study: Study, network: str) -> str:
    """The module whose code makes a foundation."""
    kind = getattr(study.foundations, network).kind
    return TRAINED_FOUNDATIONS[network, kind] if is_trained(study, network) else OBTAINED_FOUNDATIONS[kind]


def shared_model(study: Study, method: str, group: str) -> str:
    """Folder, below `models/<method>/`, of the last model that is trained on a group's subjects."""
    recipe = study.method(method)
    stage = "fit" if recipe.fitted else "condition" if recipe.condition else "align"
    return f"{stage}/{group}"


def serving_model(study: Study, method: str, dataset: str, subject: str) -> str:
    """Folder, below `models/<method>/`, of the model that reconstructs a subject's pictures."""
    if study.method(method).scope != "subject" and study.role(dataset, subject) == "new":
        return f"adapt/{dataset}-{subject}"
    return shared_model(study, method, study.group(method, dataset, subject))


def models_of(study: Study, method: str) -> list[str]:
    """Folders, below `models/<method>/`, of all models of a method, in the order they are made.

    Of a method of the comparison over trial budgets alone, these are what its new subjects are adapted from.
    """
    recipe, baseline = study.method(method), method not in study.methods
    pairs = list(study.pairs("new" if baseline else None if recipe.scope == "subject" else "train"))
    if baseline and (recipe.fitted or not pairs):
        return []
    groups = list(dict.fromkeys(study.group(method, *pair) for pair in pairs))
    found = ["pretrain"] if recipe.pretrain else []
    if recipe.fitted:
        found += [f"fit/{group}" for group in groups]
    if recipe.align:
        found += [f"align/{group}" for group in groups]
    if recipe.condition:
        found += [f"condition/{group}" for group in groups]
    if recipe.scope != "subject" and not baseline:
        found += [f"adapt/{dataset}-{subject}" for dataset, subject in study.pairs("new")]
    return found


def resting(study: Study) -> list[str]:
    """Subjects of the fMRI without pictures, where a model is pretrained on it."""
    pretrained = any("pretrain" in models_of(study, method) for method in study.all_methods())
    return study.unpaired.subjects if study.unpaired and pretrained else []
