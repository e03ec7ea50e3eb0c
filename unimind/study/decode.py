"""Trials of which nobody knows what was seen, and what their decoding is compared with."""

from typing import Literal

from pydantic import Field, model_validator

from unimind.study.base import Name, Section

#: Keys of a set of trials that only some sources of data sets have a use for.
OF_SOURCE = {
    "god": frozenset[str](),
    "nsd": frozenset({"set", "betas", "trials", "label", "condition"}),
    "arrays": frozenset({"responses", "trials", "label", "condition"}),
    "bids": frozenset({"task", "label", "condition"}),
}
#: Values of `candidates` that are words, no folder.
STIMULUS_SETS = ("test", "stimuli")
SHOWN = "shown"


class Decode(Section):
    """A further set of trials of subjects of the study: decoded, never trained on, never among the test pictures."""

    dataset: Name = Field(description="Data set whose subjects the trials are of; its voxels and their order are those of the set.")
    subjects: list[Name] | None = Field(None, description="Whose trials; by default those of all subjects of the data set.")
    methods: list[Name] | None = Field(None, description="Which methods decode them; by default all of the study.")
    set: Literal["imagery", "synthetic"] | None = Field(None, description="Source `nsd`: which of its further experiments, NSD-Imagery or NSD-synthetic.")
    betas: Name | None = Field(None, description="Source `nsd`: beta version of the experiment; by default that of the data set.")
    responses: str | None = Field(
        None, description="Source `arrays`: files of responses, as the data set's `responses`; `key`, `orientation` and `mask` are the data set's."
    )
    task: Name | None = Field(None, description="Source `bids`: `task-` of the files; everything else is as for the data set.")
    trials: str | None = Field(
        None,
        description="Sources `arrays` and `nsd`: trial table below root or elsewhere, as the data set's `trials`: one row a trial, in the order of the responses or with `beta_index`, with labels and, where known, `session` and `run`.",
    )
    label: Name | None = Field(
        None,
        description="Column of the table with a trial's label; a label that is the name of a candidate says which picture was imagined or seen. By default the first of label, picture, stim_file, stimulus and, with `task`, trial_type.",
    )
    condition: Name | None = Field(None, description="Column with the condition of a trial, such as imagery or vision; conditions are scored apart.")
    normalisation: Literal["own", "training"] = Field(
        "own",
        description="Every voxel is z-scored by the trials of the set itself, session by session and condition by condition (`own`), or by the subject's training trials (`training`: also where trials come one at a time).",
    )
    average: bool = Field(True, description="Trials of one label and condition are averaged before they are decoded; trials without a label never are.")
    candidates: str = Field(
        "test",
        min_length=1,
        description="Pictures that predictions are ranked against: the data set's test pictures (`test`), all its pictures (`stimuli`), those that the set ships (`shown`, NSD-synthetic), or a folder or archive of pictures below root or elsewhere.",
    )

    @model_validator(mode="after")
    def _given(self) -> "Decode":
        for key in ("subjects", "methods"):
            names = getattr(self, key)
            if names is not None and (not names or len(set(names)) < len(names)):
                raise ValueError(f"{key}: {names} given; name each once, or leave the key out for all")
        if self.set == "imagery" and self.trials is None:
            raise ValueError("trials: missing; give the table that says what was imagined, one row a trial in the order of the betas")
        if self.set == "synthetic":
            for key in ("trials", "label", "condition"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: NSD-synthetic ships its own design; remove it")
        if self.candidates == SHOWN and self.set != "synthetic":
            raise ValueError("candidates: shown given, but only `set: synthetic` ships its pictures; name a folder of pictures, or test or stimuli")
        if self.responses is not None and self.trials is None:
            for key in ("label", "condition"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: there is no trial table; remove it, or give `trials:`")
        return self

    @property
    def folder(self) -> str | None:
        """Where the candidates lie; None where they are a data set's pictures or the set's own."""
        return None if self.candidates in (*STIMULUS_SETS, SHOWN) else self.candidates

    def fits(self, source: str) -> None:
        """Refuse what the data set's source has no use for, and what it needs."""
        if source not in OF_SOURCE:
            raise ValueError(f"dataset: {self.dataset} is of source {source}, which has no further trials; known of {', '.join(OF_SOURCE)}")
        for key in sorted(set().union(*OF_SOURCE.values()) - OF_SOURCE[source]):
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: {getattr(self, key)!r} given, but {self.dataset} is of source {source}, which has no use for it; remove it")
        needed = {"nsd": "set", "arrays": "responses", "bids": "task"}.get(source)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"{needed}: missing; further trials of source {source} are found by it")
