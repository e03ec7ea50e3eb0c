"""The whole study: its parts, and what must be consistent between them."""

import os
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from unimind.study.base import Name, Positive, Section
from unimind.study.data import AnyDataset, Unpaired
from unimind.study.evaluation import Evaluation, Transfer
from unimind.study.foundations import Foundations
from unimind.study.methods import Method


class Study(Section):
    """A whole study."""

    name: Name = Field(description="Results go to results/<name>/.")
    title: str = Field("", description="Heading of the report.")
    signal: str = Field("fMRI", min_length=1, description="What was recorded, as the report calls it.")
    seed: int = 0
    picture_size: Positive = Field(256, description="Side of the pictures in pixels, as stored, learned and reconstructed.")
    threads: Positive = Field(2, description="CPU threads of a training job.")
    processes: Positive = Field(1, description="Processes that share the batches of a training: one per graphics card of a node. A training whose losses compare the rows of a batch has one.")
    datasets: dict[Name, AnyDataset] = Field(min_length=1, description="Data sets by name.")
    unpaired: Unpaired | None = Field(None, description="fMRI without pictures, for pretraining.")
    foundations: Foundations = Foundations()
    methods: dict[Name, Method] = Field(min_length=1, description="Methods by name; tables have one row each.")
    transfer: Transfer | None = Field(None, description="Adaptation to new subjects over trial budgets; none where it is not wanted.")
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _names(self) -> "Study":
        for section, taken in (("datasets", "unpaired"), ("methods", "controls")):
            if taken in getattr(self, section):
                raise ValueError(f"{section}.{taken}: this name is taken by a folder of the results; choose another")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        for name, method in self.methods.items():
            if method.trained_on is not None:
                raise ValueError(f"methods.{name}.trained_on: a method of the study serves all its training subjects; move {name} to transfer.baselines")
            if method.pretrain is not None and self.unpaired is None:
                raise ValueError(f"methods.{name}.pretrain: the study has no `unpaired:` fMRI to pretrain on; add it or remove `pretrain:`")
            if method.scope != "subject":
                for key, dataset in self.datasets.items():
                    if dataset.new_subjects and method.adapt is None:
                        raise ValueError(f"methods.{name}.adapt: missing, but datasets.{key}.new_subjects names {', '.join(dataset.new_subjects)}")
                    if not dataset.training_subjects and method.scope == "dataset":
                        raise ValueError(f"datasets.{key}.training_subjects: empty, but methods.{name} shares one model per data set; name a training subject")
            if method.encoder.kind == "prior" or (method.adapt is not None and method.adapt.start == "prior"):
                self._teachers(f"methods.{name}", method)
            self._drawn(f"methods.{name}", method)
        return self

    def _drawn(self, where: str, method: Method) -> None:
        diffusion = self.foundations.diffusion
        if method.condition is not None:
            return
        if diffusion.kind == "study":
            if diffusion.drop_condition == 0 and method.sampling.guidance != 1 and method.sampling.strength > 0:
                raise ValueError(f"foundations.diffusion.drop_condition: 0 given, but {where}.sampling.guidance {method.sampling.guidance:g} needs the null condition, which is then never trained; write 0.1, or guidance: 1")
            return
        kind = diffusion.kind
        only = f"only a UNet trained in the study (foundations.diffusion.kind study) takes the image embedding itself, {kind!r} given"
        if not method.fitted:
            raise ValueError(f"{where}.condition: missing; {only}")
        if method.sampling.strength > 0:
            raise ValueError(f"{where}.sampling.strength: {method.sampling.strength:g} given; {only}; write 0, and the autoencoder alone decodes the predicted latent")

    def _teachers(self, where: str, method: Method) -> None:
        for key, dataset in self.datasets.items():
            needed = 2 if where.startswith("methods.") and method.encoder.kind == "prior" else 1
            if len(dataset.training_subjects) < needed:
                raise ValueError(f"{where}: its prior is learned from other subjects, but datasets.{key}.training_subjects names {len(dataset.training_subjects)}; at least {needed} needed")

    @model_validator(mode="after")
    def _transfers(self) -> "Study":
        for name in (self.transfer.methods or []) if self.transfer else []:
            if name not in self.methods:
                raise ValueError(f"transfer.methods: {name} is no method of this study; known are {', '.join(self.methods)}")
            if not self.methods[name].fitted and self.methods[name].adapt is None:
                raise ValueError(f"transfer.methods: {name} is neither adapted nor fitted in closed form; give it `adapt:` or leave it out")
        for name, method in self.transfer.baselines.items() if self.transfer else ():
            if name in self.methods:
                raise ValueError(f"transfer.baselines.{name}: a method of the study has this name; choose another, or list it under transfer.methods")
            if not method.fitted and (method.adapt is None or method.pretrain is not None and self.unpaired is None):
                raise ValueError(f"transfer.baselines.{name}: neither adapted nor fitted in closed form, or pretrained without `unpaired:` fMRI; give it `adapt:`")
            self._drawn(f"transfer.baselines.{name}", method)
            if method.encoder.kind == "prior" or (method.adapt is not None and method.adapt.start == "prior"):
                self._teachers(f"transfer.baselines.{name}", method)
            for key, dataset in self.datasets.items():
                wanted, there = method.trained_on.subjects if method.trained_on else 1, len(dataset.training_subjects)
                if not method.fitted and dataset.new_subjects and there < wanted:
                    raise ValueError(f"transfer.baselines.{name}.trained_on.subjects: {wanted} given, but datasets.{key}.training_subjects names {there}")
        return self

    # Where things are, and what depends on what: used by the workflow, never by the science.

    @property
    def results(self) -> str:
        return f"results/{self.name}"

    def pairs(self, role: Literal["train", "new"] | None = None) -> Iterator[tuple[str, str]]:
        """(data set, subject) of the study, training subjects first."""
        for wanted, key in (("train", "training_subjects"), ("new", "new_subjects")):
            if role in (None, wanted):
                for name, dataset in self.datasets.items():
                    yield from ((name, subject) for subject in getattr(dataset, key))

    def role(self, dataset: str, subject: str) -> Literal["train", "new"]:
        return "train" if subject in self.datasets[dataset].training_subjects else "new"

    def root(self, dataset: str) -> str:
        """Folder of a data set's files as distributed."""
        section = self.datasets[dataset]
        if section.root:
            return os.path.expandvars(section.root)
        return f"{self.results}/raw/{dataset}" if section.source == "simulated" else f"data/{dataset}"

    def unpaired_root(self) -> str:
        assert self.unpaired is not None
        if self.unpaired.root:
            return os.path.expandvars(self.unpaired.root)
        return f"{self.results}/raw/unpaired" if self.unpaired.source == "simulated" else "data/unpaired"

    def stimuli(self, dataset: str, subject: str) -> str:
        """Name of the stimulus set a subject's trials index: `stimuli`, or `<subject>.stimuli` where every subject has its own."""
        section = self.datasets[dataset]
        return f"{subject}.stimuli" if section.source == "arrays" and section.images_per_subject else "stimuli"

    def teachers(self, dataset: str, subject: str) -> list[tuple[str, str]]:
        """The data set's training subjects other than a given subject: who teaches a prior over its voxels."""
        return [(dataset, other) for other in self.datasets[dataset].training_subjects if other != subject]

    def transferred(self) -> list[str]:
        """Methods of the comparison over trial budgets."""
        if self.transfer is None:
            return []
        own = self.transfer.methods or [name for name, method in self.methods.items() if method.fitted or method.adapt is not None]
        return [*own, *self.transfer.baselines]

    def method(self, name: str) -> Method:
        """A method of the study, or of its comparison over trial budgets."""
        return self.methods[name] if name in self.methods or self.transfer is None else self.transfer.baselines[name]

    def all_methods(self) -> list[str]:
        """The study's methods, then those of its comparison over trial budgets alone."""
        return list(dict.fromkeys([*self.methods, *(self.transfer.baselines if self.transfer else ())]))

    def leads(self, method: str) -> bool:
        """Whether no method before it draws as many samples: the controls that methods of one protocol share are measured with it."""
        return method == next(name for name, other in self.methods.items() if other.sampling.samples == self.methods[method].sampling.samples)

    def share(self, method: str) -> int | None:
        """Training trials of each training subject that a method may use; None: all."""
        part = self.method(method).trained_on
        return None if part is None or part.trials is None else part.trials // part.subjects

    def training_stimuli(self, dataset: str) -> list[str]:
        """Names of the stimulus sets that the data set's training subjects use."""
        return list(dict.fromkeys(self.stimuli(dataset, subject) for subject in self.datasets[dataset].training_subjects))

    def group(self, method: str, dataset: str, subject: str) -> str:
        """Name of the model that serves a subject: `all`, `<data set>` or `<data set>-<subject>`."""
        scope = self.method(method).scope
        return {"study": "all", "dataset": dataset, "subject": f"{dataset}-{subject}"}[scope]

    def members(self, method: str, group: str) -> list[tuple[str, str]]:
        """(data set, subject) the model of a group is trained on."""
        own = self.method(method)
        pairs = [pair for pair in self.pairs(None if own.scope == "subject" else "train") if self.group(method, *pair) == group]
        if own.trained_on is None:
            return pairs
        return [pair for pair in pairs if pair[1] in self.datasets[pair[0]].training_subjects[: own.trained_on.subjects]]


def resolved(study: Study) -> dict[str, Any]:
    """The study with every default written out, as plain JSON types."""
    return study.model_dump(mode="json")
