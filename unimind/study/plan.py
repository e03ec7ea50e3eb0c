"""The plan of a study: who is trained on whom, which model serves which subject, and what is made in which order.

Its functions are those of `Study`; the workflow, `unimind status` and the stages ask them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unimind.study import layout
from unimind.study.data import AnyDataset, Unpaired
from unimind.study.decode import SHOWN, Decode
from unimind.study.evaluation import Transfer
from unimind.study.foundations import Foundations
from unimind.study.methods import Method

Role = Literal["train", "new"]
NETWORKS = ("embedding", "autoencoder", "diffusion", "classifier")


@dataclass(frozen=True)
class Job:
    """One result of a study: the stage that makes it, what the stage works on, and its path below `results/<study>/`."""

    part: str  # data, foundations, controls, metrics, report, or a method's name
    stage: str
    names: dict[str, str]
    path: str


class Plan:
    """What follows from a study's data sets and methods."""

    if TYPE_CHECKING:
        name: str
        datasets: dict[str, AnyDataset]
        bundle: str | None
        unpaired: Unpaired | None
        foundations: Foundations
        methods: dict[str, Method]
        transfer: Transfer | None
        decode: dict[str, Decode]

    # --- subjects and their files ---

    @property
    def results(self) -> str:
        return f"results/{self.name}"

    def pairs(self, role: Role | None = None) -> Iterator[tuple[str, str]]:
        """(data set, subject) of the study, training subjects first."""
        for wanted, key in (("train", "training_subjects"), ("new", "new_subjects")):
            if role in (None, wanted):
                for name, dataset in self.datasets.items():
                    yield from ((name, subject) for subject in getattr(dataset, key))

    def role(self, dataset: str, subject: str) -> Role:
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

    def is_split(self, dataset: str) -> bool:
        """Whether a rule on the pictures says which of them are test pictures."""
        return self.datasets[dataset].test_pictures is not None

    def pictures(self, dataset: str) -> str:
        """Pattern of the path at which a data set's pictures are brought together: where a rule splits them, before it does."""
        return layout.PICTURES if self.is_split(dataset) else layout.STIMULI

    def splits_by_embedding(self) -> bool:
        """Whether some data set's test pictures are chosen by the image embedding, which is then made before anything is prepared."""
        return any(getattr(section.test_pictures, "rule", "") in ("far", "clusters") for section in self.datasets.values())

    def stimulus_sets(self) -> list[tuple[str, str]]:
        """(data set, name) of every stimulus set."""
        return list(dict.fromkeys((dataset, self.stimuli(dataset, subject)) for dataset, subject in self.pairs()))

    def training_stimuli(self, dataset: str) -> list[str]:
        """Names of the stimulus sets that the data set's training subjects use."""
        return list(dict.fromkeys(self.stimuli(dataset, subject) for subject in self.datasets[dataset].training_subjects))

    def resting(self) -> list[str]:
        """Subjects of the fMRI without pictures, where a model is pretrained on it."""
        pretrained = self.bundle is None and any("pretrain" in self.models(method) for method in self.all_methods())
        return self.unpaired.subjects if self.unpaired and pretrained else []

    # --- trials without truth ---

    def further(self) -> list[dict[str, str]]:
        """`dataset`, `subject` and set (`further`) of all trials that are decoded without a truth."""
        return [
            {"dataset": own.dataset, "subject": subject, "further": name}
            for name, own in self.decode.items()
            for subject in own.subjects or self.datasets[own.dataset].subjects
        ]

    def candidates(self, further: str, subject: str) -> str | None:
        """Name of the candidates of a set: its own, or `<subject>.<set>` where every subject was shown its own; None where they are the data set's pictures."""
        own = self.decode[further]
        return f"{subject}.{further}" if own.candidates == SHOWN else further if own.folder else None

    def ranked(self) -> dict[str, dict[str, str]]:
        """The sets of candidates that are no data set's pictures: name -> set (`further`), and the `subject` where every subject has its own."""
        found = {}
        for own in self.further():
            name = self.candidates(own["further"], own["subject"])
            if name is not None:
                found[name] = {"further": own["further"]} | ({"subject": own["subject"]} if name != own["further"] else {})
        return found

    def decoders(self, further: str) -> list[str]:
        """Methods that decode a set."""
        return self.decode[further].methods or list(self.methods)

    # --- networks and methods ---

    @property
    def draws(self) -> bool:
        """Whether pictures are drawn; otherwise predicted embeddings alone are measured."""
        return self.foundations.draws

    @property
    def measured(self) -> str:
        """Pattern of the files that are measured: pictures drawn, or what is predicted where there are none."""
        return layout.RECONSTRUCTION if self.draws else layout.PREDICTION

    def conditions_embeddings(self, method: Method) -> bool:
        """Whether the study's UNet has a condition of its own for what a method predicts: an image embedding."""
        return self.foundations.diffusion.kind == "study" and "embedding" in method.targets

    def networks(self) -> list[str]:
        """The foundations that the study has."""
        return [name for name in NETWORKS if getattr(self.foundations, name) and (self.draws or name != "diffusion")]

    def is_trained(self, network: str) -> bool:
        """Whether a foundation is trained inside the study (otherwise it is obtained ready-made, or lies in the study's bundle)."""
        return self.bundle is None and self._of_study(network)

    def is_taken(self, network: str) -> bool:
        """Whether a foundation lies in the study's bundle."""
        return self.bundle is not None and self._of_study(network)

    def _of_study(self, network: str) -> bool:
        return getattr(self.foundations, network).kind in ("study", "study-clip")

    def transferred(self) -> list[str]:
        """Methods of the comparison over trial budgets."""
        if self.transfer is None:
            return []
        own = self.transfer.methods or [name for name, method in self.methods.items() if method.serves_budgets]
        return [*own, *self.transfer.baselines]

    def method(self, name: str) -> Method:
        """A method of the study, or of its comparison over trial budgets."""
        return self.methods[name] if name in self.methods or self.transfer is None else self.transfer.baselines[name]

    def all_methods(self) -> list[str]:
        """The study's methods, then those of its comparison over trial budgets alone."""
        return list(dict.fromkeys([*self.methods, *(self.transfer.baselines if self.transfer else ())]))

    def takes(self, method: str) -> bool:
        """Whether what a method's training subjects taught is taken from the study's bundle."""
        return self.bundle is not None and self.method(method).scope != "subject"

    # --- who is trained on whom, and served by what ---

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

    def share(self, method: str) -> int | None:
        """Training trials of each training subject that a method may use; None: all."""
        part = self.method(method).trained_on
        return None if part is None or part.trials is None else part.trials // part.subjects

    def shares(self, method: str) -> bool:
        """Whether anything is trained of a method beyond a closed form."""
        return self.method(method).shares

    def signals(self, method: str) -> bool:
        """Whether anything is trained on the signals that a method's closed form makes of the training subjects."""
        return self.method(method).signals

    def embedding_prior(self, method: str, dataset: str, subject: str) -> str | None:
        """Path of the prior over embeddings that a subject's pictures are drawn by; None where the method has none."""
        if self.method(method).embedding_prior is None:
            return None
        return layout.path(layout.EMBEDDING_PRIOR, method=method, group=self.group(method, dataset, subject))

    def shared_model(self, method: str, group: str) -> str:
        """Path of the last model that is trained on a group's subjects."""
        return layout.path(layout.CONDITIONED if self.method(method).condition else layout.ALIGNED, method=method, group=group)

    def entered(self, method: str, dataset: str, subject: str) -> str | None:
        """Path of what a closed form makes of a subject; None where voxels enter otherwise."""
        return layout.path(layout.ENTERED, method=method, dataset=dataset, subject=subject) if self.method(method).closed else None

    def taught(self, method: str, group: str) -> str | None:
        """Path of what a closed form learns of a group's training subjects; None where it learns nothing of others."""
        own = self.method(method)
        return layout.path(layout.TAUGHT, method=method, group=group) if own.closed and own.scope != "subject" else None

    def serving_model(self, method: str, dataset: str, subject: str) -> str:
        """Path of the model that reconstructs a subject's pictures."""
        own = self.method(method)
        if own.closed and not own.shares:
            return layout.path(layout.ENTERED, method=method, dataset=dataset, subject=subject)
        if own.adapt is not None and self.role(dataset, subject) == "new":
            return layout.path(layout.ADAPTED, method=method, dataset=dataset, subject=subject)
        return self.shared_model(method, self.group(method, dataset, subject))

    def models(self, method: str) -> dict[str, list[dict[str, str]]]:
        """What models a method has: by stage, in the order they are made, the names that each is of.

        Of a method of the comparison over trial budgets alone, these are what its new subjects' models are made from.
        """
        own, baseline = self.method(method), method not in self.methods
        if baseline and (own.scope == "subject" or not list(self.pairs("new"))):
            return {}
        taken = self.takes(method)
        pairs = list(self.pairs("new" if baseline or taken else None if own.scope == "subject" else "train"))
        groups = [{"method": method, "group": group} for group in dict.fromkeys(self.group(method, *pair) for pair in pairs)]
        found = {"pretrain": [{"method": method}]} if own.pretrain and not taken else {}
        if own.closed:
            if own.scope != "subject":
                found["teach"] = groups
            served = [pair for one in groups for pair in self.members(method, one["group"])] if baseline else list(self.pairs())
            if not baseline or own.signals:
                found["enter"] = [{"method": method, "dataset": dataset, "subject": subject} for dataset, subject in served]
        trained = [stage for stage in ("align", "condition") if getattr(own, stage)]
        found |= {stage: groups for stage in (trained[-1:] if taken else trained)}
        if own.embedding_prior:
            found["embedding-prior"] = groups
        if own.adapt and not baseline:
            found["adapt"] = [{"method": method, "dataset": dataset, "subject": subject} for dataset, subject in self.pairs("new")]
        return found

    # --- everything ---

    def jobs(self) -> Iterator[Job]:
        """Everything that is made, in the order it is made."""
        pairs = [{"dataset": dataset, "subject": subject} for dataset, subject in self.pairs()]
        sets = [{"dataset": dataset, "stimuli": name} for dataset, name in self.stimulus_sets()]
        scanned = [{"unpaired": "unpaired", "subject": name} for name in self.resting()]
        yield from _jobs("data", "fetch", layout.FETCHED_STIMULI, sets)
        for names in sets:
            yield from _jobs("data", "stimuli", self.pictures(names["dataset"]), [names])
            yield from _jobs("data", "split", layout.STIMULI, [names] if self.is_split(names["dataset"]) else [])
        yield from _jobs("data", "fetch", layout.FETCHED, pairs)
        yield from _jobs("data", "prepare", layout.PREPARED, pairs)
        yield from _jobs("data", "fetch", layout.FETCHED_UNPAIRED, scanned)
        yield from _jobs("data", "prepare-unpaired", layout.UNPAIRED, scanned)
        yield from _jobs("data", "inspect", layout.INSPECTED, pairs)
        yield from _jobs("data", "overview", layout.OVERVIEW)
        further = self.further()
        ranked = [{"candidates": name, **of} for name, of in self.ranked().items()]
        yield from _jobs("data", "fetch", layout.FETCHED_FURTHER, further)
        yield from _jobs("data", "prepare-further", layout.FURTHER, further)
        yield from _jobs("data", "fetch", layout.FETCHED_CANDIDATES, [{**one, "stimuli": one["candidates"]} for one in ranked])
        yield from _jobs("data", "candidates", layout.CANDIDATES, ranked)
        for name in self.networks():
            yield from _jobs("foundations", "take" if self.is_taken(name) else "foundation", layout.FOUNDATION, [{"name": name}])
        yield from _jobs("foundations", "embed", layout.EMBEDDINGS, sets)
        yield from _jobs("foundations", "embed", layout.EMBEDDED_CANDIDATES, ranked)
        for method in self.all_methods():
            for stage, served in self.models(method).items():
                taken = self.takes(method) and stage in ("teach", "align", "condition", "embedding-prior")
                yield from _jobs(method, "take" if taken else stage, _MODELS[stage], served)
            own = [{"method": method, **pair} for pair in pairs] if method in self.methods else []
            yield from _jobs(method, "reconstruct" if self.draws else "predict", self.measured, own)
            without = [{"method": method, **one} for one in further if method in self.decoders(one["further"])]
            yield from _jobs(method, "decode", layout.DECODED, without)
            new = [{"method": method, "dataset": dataset, "subject": subject} for dataset, subject in self.pairs("new")]
            yield from _jobs(method, "transfer", layout.TRANSFER, new if method in self.transferred() else [])
        if self.draws:
            yield from _jobs("controls", "reconstruct-controls", layout.CONTROLS, sets)
            yield from _jobs("controls", "features", layout.FEATURES, sets)
        yield from _jobs("metrics", "score", layout.METRICS, pairs)
        yield from _jobs("metrics", "generalise", layout.GENERALISATION, pairs)
        yield from _jobs("metrics", "score-decoded", layout.IMAGINED, further)
        yield from _jobs("report", "tabulate", layout.TABLES)
        yield from _jobs("report", "figures", layout.FIGURES)
        yield from _jobs("report", "report", layout.REPORT)


_MODELS = {
    "pretrain": layout.PRETRAINED,
    "align": layout.ALIGNED,
    "teach": layout.TAUGHT,
    "enter": layout.ENTERED,
    "condition": layout.CONDITIONED,
    "embedding-prior": layout.EMBEDDING_PRIOR,
    "adapt": layout.ADAPTED,
}


def _jobs(part: str, stage: str, pattern: str, names: "list[dict[str, str]] | None" = None) -> Iterator[Job]:
    for own in [{}] if names is None else names:
        yield Job(part, stage, own, layout.path(pattern, **own))
