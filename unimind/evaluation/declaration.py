"""What a result must say of itself before it can be set beside another: as JSON with a schema, and in words.

`config/declaration.schema.json` is made of these types.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from unimind.data.prepared import SPLITS
from unimind.study import Study
from unimind.study.data import AnyDataset


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MethodDeclaration(_Strict):
    """How one method was served."""

    method: str
    trained_on_this_subject: Literal["only", "among others", "adapted", "closed form", "nothing"] = Field(
        description="How it used the subject's training trials: trained on them alone or among others', adapted to them, fitted in closed form, or not at all."
    )
    training_subjects: int = Field(ge=0, description="Subjects that the shared model was trained on.")
    trials_of_this_subject: int = Field(ge=0, description="Training trials of the subject that the method got.")
    samples: int = Field(ge=0, description="Pictures drawn per test picture; 0 where none is, and the predicted embedding is scored.")
    choice_of_sample: str = Field(description="How the one shown and scored is chosen.")


class SubjectDeclaration(_Strict):
    """What was measured on one subject."""

    dataset: str
    subject: str
    subject_seen_in_training: bool | None = Field(description="Whether shared models were trained on the subject; null where no method shares one.")
    sessions: int = Field(ge=1)
    training_trials: int = Field(ge=1, description="Validation trials among them.")
    training_pictures: int = Field(ge=1)
    training_minutes: float | None = Field(description="Trials times the time from one to the next; null where that is not known.")
    repeats_in_training: str = Field(description="Trials per training picture, such as `1 to 3`.")
    test_pictures: int = Field(ge=2)
    trials_per_test_picture: str
    rule_of_test_pictures: str = Field(description="How test pictures were chosen.")
    near_duplicates_in_training: int = Field(ge=0, description="Test pictures with a near-duplicate among the training pictures.")
    methods: list[MethodDeclaration]


class Declaration(_Strict):
    """What a study's results must say of themselves."""

    study: str
    subjects: list[SubjectDeclaration]


def schema() -> str:
    """JSON schema (draft 2020-12) of `tables/declaration.json`."""
    content = Declaration.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **content, "title": "Unimind declaration"}, indent=1)


def recorded(prepared: Path) -> dict[str, Any]:
    """What a prepared file says of how much was recorded: fields of `SubjectDeclaration`."""
    with h5py.File(prepared) as file:
        split, stimulus, sessions = file["split"][:], file["stimulus"][:], len(np.unique(file["session"][:]))
    training, test = stimulus[split != SPLITS["test"]], stimulus[split == SPLITS["test"]]
    return {
        "sessions": sessions, "training_trials": len(training), "training_pictures": len(np.unique(training)), "repeats_in_training": _times(training),
        "test_pictures": len(np.unique(test)), "trials_per_test_picture": _times(test),
    }  # fmt: skip


def declaration_of(study: Study, checks: Iterable[Mapping[str, Any]], scored: Sequence[Mapping[str, Any]]) -> Declaration:
    """The declaration of a study.

    Parameters
    ----------
    checks : iterable of dict
        Contents of the files that the stage `generalise` wrote.
    scored : sequence of dict
        Contents of the metrics files.
    """
    subjects, shared = [], any(method.scope != "subject" for method in study.methods.values())
    for one in checks:
        dataset, subject, own = one["dataset"], one["subject"], one["recorded"]
        section, trials = study.datasets[dataset], own["training_trials"]
        minutes = None if section.seconds_per_trial is None else round(trials * section.seconds_per_trial / 60, 1)
        subjects.append(SubjectDeclaration(
            dataset=dataset, subject=subject, subject_seen_in_training=study.role(dataset, subject) == "train" if shared else None, training_minutes=minutes,
            rule_of_test_pictures=rule_of(section), near_duplicates_in_training=one["audit"]["near_duplicates"], **own,
            methods=[_of_method(study, dataset, subject, file, trials) for file in scored if (file["dataset"], file["subject"]) == (dataset, subject)],
        ))  # fmt: skip
    return Declaration(study=study.name, subjects=subjects)


def _times(stimulus: np.ndarray) -> str:
    counts = np.unique(stimulus, return_counts=True)[1]
    return f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"


def _of_method(study: Study, dataset: str, subject: str, scored: Mapping[str, Any], trials: int) -> MethodDeclaration:
    name = scored["method"]
    own = study.methods[name]
    members = [] if own.scope == "subject" else study.members(name, study.group(name, dataset, subject))
    used: Literal["only", "among others", "adapted", "closed form", "nothing"]
    if own.scope == "subject":
        used = "closed form" if own.closed and not own.shares else "only"
    elif (dataset, subject) in members and own.shares:
        used = "among others"
    else:
        trained = own.adapt is not None and own.adapt.strategy != "none"
        used = "adapted" if trained else "closed form" if own.closed or own.adapt is not None else "nothing"
    return MethodDeclaration(
        method=name, trained_on_this_subject=used, training_subjects=len(members), trials_of_this_subject=0 if used == "nothing" else trials,
        samples=scored["protocol"].get("samples_per_stimulus", 0), choice_of_sample=scored["protocol"].get("choice_of_sample", "none is drawn"),
    )  # fmt: skip


def rule_of(section: AnyDataset) -> str:
    """How a data set's test pictures were chosen, in words."""
    split = getattr(section, "split", None)
    if (rule := section.test_pictures) is not None:
        match rule.rule:
            case "random":
                return f"{100 * rule.share:g} % of the pictures at random"
            case "far":
                return f"{100 * rule.share:g} % of the pictures at random, the {100 * rule.leave_out:g} % of the others that are nearest to them left out"
            case "clusters":
                return f"cluster {rule.test} of {rule.count} clusters of the image embedding"
            case "categories":
                return f"{100 * rule.share:g} % of the categories, all their pictures"
    match section.source:
        case "nsd" | "simulated":
            return f"pictures shown to every subject, seen {section.test_repeats} times"
        case "god":
            return "the pictures of the test runs, as distributed"
        case "bold5000":
            return "the 113 pictures shown repeatedly"
        case "laion-fmri":
            return f"the shipped split {split}, of {'the pictures that all saw' if section.pool == 'shared' else 'all pictures of the subject'}"
        case "mosaic":
            return "as each trial is marked" if split == "phase" else f"the lists of {Path(str(split)).name}"
    assert split is not None
    if split.every is not None:
        return f"every {split.every}{_ordinal(split.every)} picture in number order"
    if split.column is not None:
        return f"the trial table's column {split.column}"
    if split.images is not None:
        return f"the pictures listed in {Path(split.images).name}"
    return f"the pictures of session{'s' if len(split.sessions) > 1 else ''} {', '.join(map(str, split.sessions))}"


def _ordinal(number: int) -> str:
    return "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def words(one: Mapping[str, Any]) -> str:
    """The declaration of one subject in a sentence or two."""
    seen = {True: "seen in the training of shared models", False: "not seen in the training of shared models", None: "decoded by models of its own"}
    minutes = f", {one['training_minutes']:g} minutes" if one["training_minutes"] is not None else ", of unknown length"
    duplicates = one["near_duplicates_in_training"]
    return (
        f"{one['subject']}: {seen[one['subject_seen_in_training']]}; "
        f"{one['training_trials']:,} training trials in {one['sessions']} session{'s' if one['sessions'] > 1 else ''}{minutes}, "
        f"{one['training_pictures']:,} pictures shown {one['repeats_in_training']} times. Tested on {one['test_pictures']} pictures of "
        f"{one['trials_per_test_picture']} trials each: {one['rule_of_test_pictures']}; {duplicates or 'none'} of them with a near-duplicate in training."
    )
