"""The whole study: its parts, and what must be consistent between them."""

from collections import Counter
from typing import Any

from pydantic import Field, model_validator

from unimind.evaluation.measures import MEASURES, of_kind
from unimind.study.base import Name, Positive, Section, idle
from unimind.study.data import AnyDataset, Unpaired
from unimind.study.decode import Decode
from unimind.study.evaluation import Evaluation, Transfer
from unimind.study.foundations import Foundations, draws_nothing
from unimind.study.methods import Method, Sampling
from unimind.study.plan import Plan


class Study(Section, Plan):
    """A whole study."""

    name: Name = Field(description="Results go to results/<name>/.")
    title: str = Field("", description="Heading of the report.")
    signal: str = Field("fMRI", min_length=1, description="What was recorded, as the report calls it.")
    seed: int = 0
    picture_size: Positive = Field(256, description="Side of the pictures in pixels, as stored, learned and reconstructed.")
    threads: Positive = Field(2, description="CPU threads of a training job.")
    processes: Positive = Field(
        1,
        description="Processes that share the batches of a training, and the pictures that are drawn and measured: one per graphics card of a node.",
    )
    bundle: str | None = Field(
        None,
        description="A trained method (`unimind export`) in place of training: a folder, a zip file, or `name @ revision` of the hub. Its method, foundations and picture size are this study's.",
    )
    datasets: dict[Name, AnyDataset] = Field(min_length=1, description="Data sets by name.")
    unpaired: Unpaired | None = Field(None, description="fMRI without pictures, for pretraining.")
    foundations: Foundations = Foundations()
    methods: dict[Name, Method] = Field(min_length=1, description="Methods by name; tables have one row each.")
    transfer: Transfer | None = Field(None, description="Adaptation to new subjects over trial budgets; none where it is not wanted.")
    evaluation: Evaluation = Evaluation()
    decode: dict[Name, Decode] = Field({}, description="Further trials of subjects, by the name of the set: decoded without a truth.")

    @model_validator(mode="before")
    @classmethod
    def _of_predictions(cls, given: Any) -> Any:
        """Where no picture is drawn, none is measured by default."""
        if not isinstance(given, dict) or not draws_nothing(given.get("foundations")):
            return given
        defaults = {"evaluation": {"metrics": list(of_kind("embedding"))}, "transfer": {"pictures": False}}
        return given | {
            key: default | given.get(key, {}) for key, default in defaults.items() if isinstance(given.get(key, {} if key == "evaluation" else None), dict)
        }

    @model_validator(mode="after")
    def _names(self) -> "Study":
        for section, taken in (("datasets", "unpaired"), ("datasets", "candidates"), ("methods", "controls"), ("decode", "stimuli")):
            if taken in getattr(self, section):
                raise ValueError(f"{section}.{taken}: this name is taken by {'a file' if section == 'decode' else 'a folder'} of the results; choose another")
        return self

    @model_validator(mode="after")
    def _decodes(self) -> "Study":
        for name, own in self.decode.items():
            where = f"decode.{name}"
            if own.dataset not in self.datasets:
                raise ValueError(f"{where}.dataset: {own.dataset} given; known are {', '.join(self.datasets)}")
            dataset = self.datasets[own.dataset]
            try:
                own.fits(dataset.source)
            except ValueError as error:
                raise ValueError(f"{where}.{error}") from None
            for key, given, known in (("subjects", own.subjects, dataset.subjects), ("methods", own.methods, self.methods)):
                if unknown := [one for one in given or [] if one not in known]:
                    raise ValueError(f"{where}.{key}: {', '.join(unknown)} given; known are {', '.join(known)}")
            if taken := [subject for subject in dataset.subjects if f"{subject}.{name}" in dataset.subjects]:
                raise ValueError(f"{where}: {taken[0]}.{name} is a subject of {own.dataset}, whose files have that name; choose another")
            if dataset.source == "arrays":
                if dataset.blocks is not None:
                    raise ValueError(f"{where}.dataset: {own.dataset} is a block design (`blocks:`), which has no further trials; give responses to trials")
                if len(own.subjects or dataset.subjects) > 1 and "{subject}" not in (own.responses or ""):
                    raise ValueError(f"{where}.responses: {own.responses!r} is the same file for several subjects; write {{subject}} where the subject stands")
        files: dict[tuple[str, str], str] = {}
        for one in self.further():
            ranked = self.candidates(one["further"], one["subject"])
            for place in ((one["dataset"], f"{one['subject']}.{one['further']}"), *([("candidates", ranked)] if ranked else [])):
                if (other := files.setdefault(place, one["further"])) != one["further"]:
                    raise ValueError(f"decode.{one['further']}: its file {place[1]} would be that of decode.{other} too; choose another name")
        return self

    @model_validator(mode="after")
    def _bundled(self) -> "Study":
        if self.bundle is None:
            return self
        if self.unpaired is not None:
            raise ValueError("unpaired: given, but with a bundle nothing is pretrained; leave it out")
        for key, dataset in self.datasets.items():
            if dataset.training_subjects:
                raise ValueError(
                    f"datasets.{key}.training_subjects: {', '.join(dataset.training_subjects)} given, but the bundle has been trained; list them under new_subjects"
                )
        for section, methods in (("methods", self.methods), ("transfer.baselines", self.transfer.baselines if self.transfer else {})):
            for name, method in methods.items():
                if (section != "methods" or method.scope == "subject") and (method.scope != "subject" or not method.closed or method.signals):
                    raise ValueError(
                        f"{section}.{name}: would have to be trained, and a study from a bundle trains nothing; only closed forms of one subject stand beside its method"
                    )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        for name, method in self.methods.items():
            if method.trained_on is not None:
                raise ValueError(f"methods.{name}.trained_on: a method of the study serves all its training subjects; move {name} to transfer.baselines")
            if method.pretrain is not None and self.unpaired is None and self.bundle is None:
                raise ValueError(f"methods.{name}.pretrain: the study has no `unpaired:` fMRI to pretrain on; add it or remove `pretrain:`")
            if method.scope != "subject":
                for key, dataset in self.datasets.items():
                    if dataset.new_subjects and method.adapt is None and not method.closed:
                        raise ValueError(f"methods.{name}.adapt: missing, but datasets.{key}.new_subjects names {', '.join(dataset.new_subjects)}")
                    if not dataset.training_subjects and method.scope == "dataset" and self.bundle is None:
                        raise ValueError(f"datasets.{key}.training_subjects: empty, but methods.{name} shares one model per data set; name a training subject")
            if method.enter.kind == "decoded" and self.bundle is None:
                self._taught(f"methods.{name}", 2)
            self._across(f"methods.{name}", name, method)
            self._drawn(f"methods.{name}", method)
        return self

    def _across(self, where: str, name: str, method: Method) -> None:
        """Refuse what compares subjects where every model is of one."""
        members = Counter(self.group(name, *pair) for pair in self.pairs(None if method.scope == "subject" else "train"))
        if method.align is None or method.trained_on is not None or set(members.values()) != {1}:
            return
        why, losses = f"every model of {name} is of one subject, which has no others to be compared with", method.align.losses
        idle(losses, [key for key in ("siamese", "subject", "adversarial", "cycle") if getattr(losses, key) > 0], why, f"{where}.align.losses.")
        adapted = method.adapt is not None and method.adapt.losses.siamese > 0
        idle(method.align, ["shuffle_labels"] if adapted else ["shuffle_labels", "margin"], why, f"{where}.align.")

    def _drawn(self, where: str, method: Method) -> None:
        diffusion = self.foundations.diffusion
        if not self.draws:
            self._undrawn(where, method)
            return
        if method.embedding_prior is not None and diffusion.kind not in ("study", "ip-adapter", "unclip", "kandinsky-2.2"):
            raise ValueError(f"{where}.embedding_prior: given, but foundations.diffusion.kind {diffusion.kind} does not take the image embedding; leave it out")
        if self.foundations.frozen:
            if method.condition is not None:
                raise ValueError(
                    f"{where}.condition: given, but foundations.diffusion.kind {diffusion.kind} is taken as it is and trained no further; leave it out"
                )
            if 0 <= method.sampling.guidance < 1:
                raise ValueError(
                    f"{where}.sampling.guidance: {method.sampling.guidance:g} given, but the pipelines of foundations.diffusion.kind {diffusion.kind} guide from 1 (none) upwards"
                )
            if method.sampling.strength > 0 and self.foundations.target not in method.targets:
                raise ValueError(
                    f"{where}: foundations.diffusion.target {self.foundations.target} given, which no method predicts; take an adapter of the pooled embedding"
                )
            if method.sampling.precision != "fp32":
                raise ValueError(
                    f"{where}.sampling.precision: {method.sampling.precision} given, but a pipeline that is taken as it is draws in foundations.diffusion.precision; leave it out"
                )
            if diffusion.kind == "kandinsky-2.2" and method.sampling.sampler == "plms":
                raise ValueError(f"{where}.sampling.sampler: plms given, but Kandinsky's pipeline cannot step it; write dpm-solver++ or ddim")
            return
        if method.condition is not None:
            if diffusion.kind == "autoencoder":
                raise ValueError(
                    f"{where}.condition: given, but with foundations.diffusion.kind autoencoder there is no diffusion model to condition; leave it out"
                )
            if self.conditions_embeddings(method):
                idle(method.condition, ["tokens"], "the UNet has its own number, foundations.diffusion.context_tokens", f"{where}.condition.")
            return
        if diffusion.kind == "study":
            if diffusion.drop_condition == 0 and method.sampling.guidance != 1 and method.sampling.strength > 0:
                raise ValueError(
                    f"foundations.diffusion.drop_condition: 0 given, but {where}.sampling.guidance {method.sampling.guidance:g} needs the null condition, which is then never trained; write 0.1, or guidance: 1"
                )
            return
        kind = diffusion.kind
        if kind == "autoencoder":
            if method.sampling.strength > 0:
                raise ValueError(
                    f"{where}.sampling.strength: {method.sampling.strength:g} given, but with foundations.diffusion.kind autoencoder nothing else is drawn than the predicted latent; write 0"
                )
            return
        only = f"only a UNet trained in the study (foundations.diffusion.kind study) takes the image embedding itself, {kind!r} given"
        if "latent" not in method.targets:
            raise ValueError(f"{where}.condition: missing; {only}")
        if method.sampling.strength > 0:
            raise ValueError(
                f"{where}.sampling.strength: {method.sampling.strength:g} given; {only}; give the method a `condition:`, or write 0, and the autoencoder alone decodes the predicted latent"
            )

    def _undrawn(self, where: str, method: Method) -> None:
        """Refuse what only pictures need."""
        no_pictures = "with foundations.diffusion.kind none no picture is drawn"
        if method.condition is not None:
            raise ValueError(f"{where}.condition: given, but {no_pictures}; leave it out, and give `align.losses.embedding`")
        idle(method.sampling, Sampling.model_fields, no_pictures, f"{where}.sampling.")
        idle(method, ["embedding_prior"], no_pictures, f"{where}.")
        for key in ("align", "adapt"):
            if (part := getattr(method, key)) is not None and part.losses.latent > 0:
                raise ValueError(
                    f"{where}.{key}.losses.latent: {part.losses.latent:g} given, but with foundations.diffusion.kind none there is no autoencoder; write 0"
                )

    @model_validator(mode="after")
    def _measures_predictions(self) -> "Study":
        if self.draws:
            return self
        if drawn := [name for name in self.evaluation.metrics if MEASURES[name].kind != "embedding"]:
            raise ValueError(f"evaluation.metrics: {', '.join(drawn)} given, but with foundations.diffusion.kind none no picture is drawn; leave them out")
        idle(self.evaluation, ["weights", "squeezenet"], "with foundations.diffusion.kind none no picture is measured", "evaluation.")
        if self.transfer is not None and self.transfer.pictures:
            raise ValueError("transfer.pictures: true given, but with foundations.diffusion.kind none no picture is drawn; leave it out")
        return self

    def _taught(self, where: str, needed: int) -> None:
        for key, dataset in self.datasets.items():
            if len(dataset.training_subjects) < needed:
                raise ValueError(
                    f"{where}.enter: decoded is taught by other subjects, but datasets.{key}.training_subjects names {len(dataset.training_subjects)}; at least {needed} needed"
                )

    @model_validator(mode="after")
    def _transfers(self) -> "Study":
        if self.transfer is None:
            return self
        for name in self.transfer.methods or []:
            if name not in self.methods:
                raise ValueError(f"transfer.methods: {name} is no method of this study; known are {', '.join(self.methods)}")
            if not self.methods[name].serves_budgets:
                raise ValueError(
                    f"transfer.methods: {name} is neither adapted nor a closed form whose body and condition stage other subjects train; give it `adapt:`, widen its `scope:`, or leave it out"
                )
        for name, method in self.transfer.baselines.items():
            where = f"transfer.baselines.{name}"
            if name in self.methods:
                raise ValueError(f"{where}: a method of the study has this name; choose another, or list it under transfer.methods")
            if not method.serves_budgets or (method.pretrain is not None and self.unpaired is None):
                raise ValueError(f"{where}: neither adapted nor entered in closed form, or pretrained without `unpaired:` fMRI; give it `adapt:`")
            self._across(where, name, method)
            self._drawn(where, method)
            if not self.transfer.pictures:
                nothing = "with transfer.pictures false nothing is drawn"
                idle(method, ["embedding_prior", *(["sampling"] if method.sampling.strength > 0 else [])], nothing, f"{where}.")
                if method.condition is not None and not (method.condition.train_encoder and method.body.kind != "identity"):
                    raise ValueError(f"{where}.condition: given, but {nothing}, and it leaves the encoder as it is; leave it out")
            if method.enter.kind == "decoded":
                self._taught(where, 1)
            for key, dataset in self.datasets.items():
                wanted, there = method.trained_on.subjects if method.trained_on else 1, len(dataset.training_subjects)
                if method.scope != "subject" and dataset.new_subjects and there < wanted:
                    raise ValueError(f"{where}.trained_on.subjects: {wanted} given, but datasets.{key}.training_subjects names {there}")
        if not any(self.method(name).from_scratch for name in self.transferred()):
            idle(self.transfer, ["scratch"], "none of its methods is adapted by training", "transfer.")
        return self


def resolved(study: Study) -> dict[str, Any]:
    """The study with every default written out, as plain JSON types."""
    return study.model_dump(mode="json")
