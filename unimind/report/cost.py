"""`unimind plan`: what a study will cost, before anything is fetched or trained.

Jobs and steps are those of the study; bytes and operations follow from its data sets' counts (`study.extent`; the prepared
files' own where they are there) and from its networks' shapes (`report.work`). What is not known beforehand is nan, left out of the
totals and named. Time is operations over a machine's rate, or the launches of its kernels where those take longer: of cards by what is
published, of the machine at hand by what is measured (`report.calibration`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from unimind.errors import InputError
from unimind.evaluation.measures import MEASURES
from unimind.report import work
from unimind.report.work import NOTHING, ForwardPass, UNet
from unimind.stages import STAGES
from unimind.study import Method, Ridge, Study, Training, layout
from unimind.study.extent import Extent, extent, samples, stimulus_count
from unimind.study.plan import Job

UNKNOWN = math.nan
GB = 1e9
DAY = 86400.0

# --- what is assumed ----------------------------------------------------------------------------------------------

#: Dense operations a second by precision, as NVIDIA publishes them (H100 SXM; RTX 4090, half precision with fp32 sums, fp64 a 64th of fp32).
PUBLISHED: dict[str, dict[str, float]] = {
    "H100": {"fp64": 67e12, "fp32": 67e12, "tf32": 495e12, "bf16": 989e12, "fp16": 989e12},
    "RTX 4090": {"fp64": 1.29e12, "fp32": 82.6e12, "tf32": 82.6e12, "bf16": 165e12, "fp16": 165e12},
}
#: Share of these that a network reaches.
UTILISATION = 0.35
#: Seconds that PyTorch needs to launch a kernel, and kernels of a layer with weights (its product, norm, activation, sum).
LAUNCH, KERNELS = 10e-6, 4


@dataclass(frozen=True)
class Machine:
    """What decides how long work takes.

    Attributes
    ----------
    rates : dict
        Operations a second that networks reach, by precision; a precision that it cannot compute in is missing.
    launch : float
        Seconds of a kernel, whatever it does.
    name : str
    """

    rates: dict[str, float]
    launch: float = LAUNCH
    name: str = ""


#: As estimated.
CARDS = {card: Machine({precision: UTILISATION * rate for precision, rate in rates.items()}) for card, rates in PUBLISHED.items()}
#: Name of the machine at hand, where it is measured.
HERE = "here"
#: Forward, backward and optimiser, in launches of a forward pass.
TRAINED_LAUNCHES = 3
#: Bytes kept for the backward pass by output of a layer (norms and activations beside the outputs), in fp32: what
#: `benchmarks/stages.py --estimate` counts for ViT and UNet, to a tenth.
KEPT = 1.75 * 4
#: Share of it where activations are recomputed, and what half precision leaves.
RECOMPUTED, HALF = 0.25, 0.5
#: Tensors of the largest output's size alive at once in a forward pass.
ALIVE = 4
#: Share of a training that validations take at most.
VALIDATION = 1.1
#: Bytes of a training's process before it reads anything: the libraries.
LIBRARIES = 3e9
#: Bytes a session of NSD's betas has (func1pt8mm), about, its pictures, GOD's file and pictures (ImageNet's, 110 kB each), an HCP run, and
#: what is kept of that run.
NSD_SESSION, NSD_PICTURES, GOD_FILE, GOD_PICTURES, HCP_RUN, HCP_KEPT = 1.05e9, 39.6e9, 114e6, 1250 * 110e3, 1e9, 20e6
#: Grayordinates of the HCP's V1 to V4, about.
HCP_VOXELS = 4100

#: Image towers: width, depth, patch, ratio of the hidden layer, length of the embedding.
CLIPS = {
    "ViT-B-32": (768, 12, 32, 4.0, 512), "ViT-B-16": (768, 12, 16, 4.0, 512), "ViT-L-14": (1024, 24, 14, 4.0, 768), "ViT-H-14": (1280, 32, 14, 4.0, 1024),
    "ViT-bigG-14": (1664, 48, 14, 4.9231, 1280),
}  # fmt: skip
CIN256 = UNet((192, 384, 576, 960), (0, 1, 1, 1), 512, 2, 3, 3)
SD15 = UNet((320, 640, 1280, 1280), (1, 1, 1, 0), 768)
SDXL = UNet((320, 640, 1280), (0, 2, 10), 2048)
SD21 = UNet((320, 640, 1280, 1280), (1, 1, 1, 0), 1024)
SD_CODER, LDM_CODER = (128, 256, 512, 512), (128, 256, 512)
SQUEEZENET_DIM = 512
#: Multiplications and additions of a picture through the panel's networks, as torchvision and timm publish them.
PANEL = {
    "alexnet": 0.71e9, "inception": 5.71e9, "inception_2015": 5.71e9, "clip": 81e9, "effnet": 0.69e9, "swav": 4.09e9, "vit_h_14": 167e9, "squeezenet": 0.35e9,
}  # fmt: skip
#: Context tokens of a text encoder, which the frozen pipelines' UNets see.
TEXT = 77
#: Components of embedding and latent that the picture space has at most.
COMPONENTS = (512, 128)
#: Of closed forms, features of each target that encoding models are fitted on, rows of sketched residuals, components of the mixture, iterations
#: of the prior's learning (`models.prior`), voxels on a card at a time.
FEATURES, SKETCH, MIXED, ITERATIONS, BLOCK = 64, 1024, 1024, 15, 2048
#: Contexts that a training subject's signals come from (`training.enter`): smallest, how many of each size, folds.
SMALLEST, CONTEXTS, FOLDS = 25, 4, 5
#: Rows of a validation of `align` and `adapt`.
VALIDATED = 256
CHANNELS = 3


# --- one job ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one job costs; nan: not known beforehand.

    Attributes
    ----------
    job : Job
    steps : float
        Optimiser steps.
    flops : float
        Operations, on a card where there is one.
    launches : float
        Kernels launched.
    precision : str
        Of the operations.
    read, written, kept : float
        Bytes; kept is what lies there at the end. Of a training `written` is without its checkpoints.
    checkpoint : float
        Bytes of one.
    minutes_apart : float
        Minutes between two.
    host, card : float
        Bytes of memory: asked of the host, and taken on a card.
    """

    job: Job
    steps: float = 0
    flops: float = 0
    launches: float = 0
    precision: str = "fp32"
    read: float = 0
    written: float = 0
    kept: float | None = None
    checkpoint: float = 0
    minutes_apart: float = 10
    host: float = 0
    card: float = 0

    @property
    def lies(self) -> float:
        """Bytes that lie on the disk when the job is done."""
        return self.written if self.kept is None else self.kept

    def seconds(self, machine: Machine) -> float:
        """On a machine; nan where that has no such precision."""
        return max(self.flops / machine.rates.get(self.precision, UNKNOWN), self.launches * machine.launch) if self.flops else 0.0

    def writes(self, seconds: float) -> float:
        """Bytes written when the job takes so long."""
        return self.written + (self.checkpoint * (1 + seconds // (60 * max(self.minutes_apart, 0.1))) if self.checkpoint else 0)


def costs(study: Study, directory: Path | None = None) -> list[Cost]:
    """The cost of every job of a study, in the order of `Study.jobs`.

    Parameters
    ----------
    study : Study
    directory : Path, optional
        Where `results/` lies, for the counts of what is already prepared; by default only what is known beforehand counts.
    """
    known = _Known(study, directory)
    return [known.cost(job) for job in study.jobs()]


class _Known:
    """A study with what is known of its data and networks."""

    def __init__(self, study: Study, directory: Path | None) -> None:
        self.study, self.directory = study, directory
        self._extents: dict[tuple[str, str], Extent] = {}

    def cost(self, job: Job) -> Cost:
        """What a job costs."""
        known = not {"further", "candidates"} & set(job.names)  # how many trials or pictures such a set has is nowhere said
        own = (getattr(self, f"_{job.stage.replace('-', '_')}", self._unknown) if known else self._unknown)(job)
        return replace(own, host=max(own.host, STAGES[job.stage].memory * 1e6))

    def _unknown(self, job: Job) -> Cost:
        """A stage without arithmetic of its own, or of a set of unknown size."""
        return Cost(job, flops=UNKNOWN, read=UNKNOWN, written=UNKNOWN, card=UNKNOWN)

    # --- data ---

    def extent(self, dataset: str, subject: str) -> Extent:
        """Of a subject: its prepared file's, else what is known beforehand."""
        if (dataset, subject) not in self._extents:
            path = layout.path(layout.PREPARED, dataset=dataset, subject=subject)
            self._extents[dataset, subject] = self._prepared_extent(path) or extent(self.study, dataset, subject)
        return self._extents[dataset, subject]

    def _prepared_extent(self, path: str) -> Extent | None:
        file = None if self.directory is None else self.directory / self.study.results / path
        if file is None or not file.is_file():
            return None
        from unimind.data.prepared import PreparedSubject

        with PreparedSubject(file) as data:
            return Extent(data.n_trials, data.n_voxels, *(len(data.images(split)) for split in ("train", "validation", "test")))

    def pictures(self, dataset: str, name: str) -> float:
        """Of a stimulus file."""
        file = None if self.directory is None else self.directory / self.study.results / layout.path(layout.STIMULI, dataset=dataset, stimuli=name)
        if file is not None and file.is_file():
            from unimind.data.prepared import Stimuli

            with Stimuli(file) as found:
                return len(found)
        return _number(stimulus_count(self.study, dataset))

    def tested(self, dataset: str, name: str) -> float:
        """Test pictures of a stimulus set."""
        own = [self.extent(*pair).test for pair in self.study.pairs() if pair[0] == dataset and self.study.stimuli(*pair) == name]
        return max(map(_number, own))

    def responses(self, dataset: str, subject: str) -> float:
        """Bytes of a subject's responses."""
        own = self.extent(dataset, subject)
        return 4 * _number(own.trials) * _number(own.voxels)

    def trained_pictures(self, pairs: Sequence[tuple[str, str]], method: str) -> float:
        """Pictures that some subjects train on: fewer where the method has a share of their trials."""
        share, count = self.study.share(method), 0.0
        for pair in pairs:
            own = self.extent(*pair)
            whole = _number(own.train)
            repeats = _number(own.trials) / (whole + _number(own.validation) + _number(own.test))
            count += whole if share is None else min(whole, share / repeats)
        return count

    # --- networks ---

    @cached_property
    def embedder(self) -> tuple[ForwardPass | None, float]:
        """The image embedding: its work, and its length."""
        section = self.study.foundations.embedding
        if section.kind == "study-clip":
            return None, section.dim
        if section.kind == "squeezenet":
            return ForwardPass(2 * PANEL["squeezenet"], 1_235_496, 3e6, 26, 64 * 111**2), SQUEEZENET_DIM
        if section.kind == "open-clip":
            name = next((name for name in CLIPS if section.model.startswith(name)), None)
        else:
            large = "sdxl_models" in section.subfolder or "kandinsky" in section.repository
            name = "ViT-bigG-14" if large else "ViT-H-14"
        return (work.clip(*CLIPS[name][:4]), CLIPS[name][4]) if name else (None, UNKNOWN)

    @cached_property
    def latent(self) -> tuple[int, int]:
        """Channels and side of the latent."""
        section, size = self.study.foundations.autoencoder, self.study.picture_size
        if section is None:
            return 0, 0
        if section.kind == "study":
            return section.latent_channels, size // section.downsampling
        return {"ldm": (3, size // 4), "hub": (4, size // 8), "taef2": (32, size // 8)}[section.kind]

    def coder(self, decodes: bool) -> ForwardPass | None:
        """Half of the autoencoder; None where its shape is not known beforehand."""
        if self.study.foundations.autoencoder is None:
            return NOTHING
        kind = self.study.foundations.autoencoder.kind
        if kind not in ("ldm", "hub"):
            return None
        channels, _ = self.latent
        return work.coder(
            LDM_CODER if kind == "ldm" else SD_CODER, self.study.picture_size, channels if decodes else channels * (2 - (kind == "ldm")), 2, decodes
        )

    @cached_property
    def diffusion(self) -> tuple[UNet, int, int] | None:
        """The UNet, the side of what it draws, and its context tokens; None where its shape is not known beforehand."""
        section, (channels, side) = self.study.foundations.diffusion, self.latent
        match section.kind:
            case "ldm":
                return CIN256, side, 1
            case "study":
                levels = tuple(section.channels)
                attended = tuple(int(level > 0 or len(levels) == 1) for level in range(len(levels)))
                return UNet(levels, attended, section.context_dim, section.blocks, 2 * channels + 2, channels, True), side, section.context_tokens
            case "hub" if "stable-diffusion-v1-5" in section.repository:
                return SD15, side, TEXT
            case "ip-adapter":
                return (SDXL if "xl" in section.repository else SD15), section.size // 8, TEXT + (4 if section.target == "embedding" else 16)
            case "unclip":
                return SD21, section.size // 8, TEXT
        return None

    def tokens(self, method: Method) -> int:
        """Context tokens that the UNet sees."""
        assert self.diffusion is not None
        return method.condition.tokens if method.condition and not self.study.conditions_embeddings(method) else self.diffusion[2]

    def drawn(self, method: Method) -> ForwardPass | None:
        """One picture drawn: the UNet's evaluations, and the decoder."""
        sampling, decoder = method.sampling, self._drawing_decoder()
        if sampling.strength == 0:
            return decoder
        if self.diffusion is None:
            return None
        unet, side, _ = self.diffusion
        once = unet.work(side, self.tokens(method))
        evaluations = max(1, round(sampling.steps * sampling.strength)) * (2 if sampling.guidance != 1 else 1)
        whole = once * evaluations
        return replace(whole, parameters=once.parameters) + (decoder or NOTHING)

    def _drawing_decoder(self) -> ForwardPass | None:
        if not self.study.foundations.frozen:
            return self.coder(True)
        return work.coder(SD_CODER, self.study.foundations.diffusion.size, 4, 2, True)  # type: ignore[union-attr]

    @property
    def components(self) -> int:
        """Coordinates of the image embedding."""
        return int(_known(min(COMPONENTS[0], self.embedder[1])))

    @property
    def coordinates(self) -> float:
        """Length of the picture space."""
        channels, side = self.latent
        return min(COMPONENTS[0], self.embedder[1]) + min(COMPONENTS[1], channels * side**2)

    def encoder(self, method: Method, voxels: float = 0) -> ForwardPass:
        """Enter (of one subject with an adapter), body and heads."""
        body = method.body
        if method.closed:
            own = work.mlp(int(self.coordinates), body) if body.kind == "mlp" else NOTHING
            # What a head adds to the embedding is brought to its dimensions and back, without parameters (`PictureSpace.scaled`).
            heads = 0 if body.kind == "identity" else 2 if self._retrieves(method) else 1
            there = replace(work.linear(self.components, int(_known(self.embedder[1]))) * (2 * heads), parameters=0)
            return own + self._heads(method, int(self.coordinates)) + there
        channels = CHANNELS if method.responses()["repeats"] == "channels" else 1
        size = method.enter.size  # type: ignore[union-attr]
        match body.kind:
            case "vit":
                own = work.vit(channels, size, body)
            case "convmixer":
                own = work.convmixer(channels, size, body)
            case "mlp":
                own = work.mlp(channels * size, body)
            case "residual":
                own = work.linear(channels * size, channels * size) * (body.depth * (1 if body.block == "linear" else 2))
            case _:
                own = NOTHING
        return self.entering(method, int(_known(voxels))) + own + self._heads(method, size)

    def _heads(self, method: Method, size: int) -> ForwardPass:
        """From a body, or what enters it, to the coordinates, and once more to the embedding's where a head is for retrieval."""
        width = getattr(method.body, "width", size)
        heads = work.linear(width, int(self.coordinates))
        return heads + work.linear(width, self.components) if self._retrieves(method) else heads

    @staticmethod
    def _retrieves(method: Method) -> bool:
        return method.align is not None and method.align.retrieval_head

    def entering(self, method: Method, voxels: int) -> ForwardPass:
        """What a subject has for itself, where voxels enter by something trained."""
        enter = method.enter
        match enter.kind:
            case "adapter":
                return work.linear(voxels, enter.size)
            case "embedder":
                narrow = work.linear(enter.pooled, enter.bottleneck) + work.linear(enter.bottleneck, enter.pooled)
                return narrow + work.linear(enter.pooled, enter.size)
            case "voxel-tokens":
                width = enter.size // enter.queries
                return work.attention(enter.queries, voxels, width) + ForwardPass(
                    parameters=voxels * width, outputs=voxels * width, layers=1, largest=voxels * width
                )
        return NOTHING

    # --- stages: data ---

    def _fetch(self, job: Job) -> Cost:
        if "unpaired" in job.names:
            section = self.study.unpaired
            assert section is not None
            runs = len(section.runs) if section.source == "hcp" else UNKNOWN
            return Cost(job, written=runs * HCP_RUN, kept=runs * (HCP_KEPT if section.drop_original else HCP_RUN))
        return Cost(job, written=self._fetched(job.names["dataset"], job.names.get("subject")))

    def _fetched(self, dataset: str, subject: str | None) -> float:
        """Bytes of a subject's files, or of the pictures'."""
        source = self.study.datasets[dataset].source
        if source == "nsd":
            return NSD_PICTURES if subject is None else NSD_SESSION * _number(self.extent(dataset, subject).trials) / 750
        return (GOD_PICTURES if subject is None else GOD_FILE) if source == "god" else UNKNOWN

    def _stimuli(self, job: Job) -> Cost:
        bytes_ = self.pictures(job.names["dataset"], job.names["stimuli"]) * 3 * self.study.picture_size**2
        return Cost(job, read=self._fetched(job.names["dataset"], None), written=bytes_)

    def _split(self, job: Job) -> Cost:
        bytes_ = self.pictures(job.names["dataset"], job.names["stimuli"]) * 3 * self.study.picture_size**2
        return Cost(job, read=bytes_, written=bytes_)

    def _prepare(self, job: Job) -> Cost:
        pair = job.names["dataset"], job.names["subject"]
        return Cost(job, read=self._fetched(*pair), written=self.responses(*pair))

    def _prepare_unpaired(self, job: Job) -> Cost:
        section = self.study.unpaired
        assert section is not None
        voxels = HCP_VOXELS if section.source == "hcp" and section.areas == ["V1", "V2", "V3", "V4"] else UNKNOWN
        return Cost(job, read=len(section.runs) * HCP_RUN if section.source == "hcp" else UNKNOWN, written=4 * voxels * _number(samples(section)))

    def _inspect(self, job: Job) -> Cost:
        return Cost(job, read=self.responses(job.names["dataset"], job.names["subject"]))

    def _overview(self, job: Job) -> Cost:
        return Cost(job, read=sum(self.responses(*pair) for pair in self.study.pairs()))

    # --- stages: networks ---

    def _foundation(self, job: Job) -> Cost:
        name = job.names["name"]
        if self.study.is_trained(name):
            training = getattr(self.study.foundations, name).training
            steps = training.total(self.study.foundations.drawn.count, training.batch_size)
            if name != "diffusion" or self.diffusion is None:
                return Cost(job, steps=steps, flops=UNKNOWN, read=UNKNOWN, written=UNKNOWN, card=UNKNOWN)
            if training.epochs and self.study.foundations.diffusion.pictures == "training":  # type: ignore[union-attr]
                steps = UNKNOWN
            unet, side, context = self.diffusion
            pictures = sum(self.pictures(dataset, self.study.stimuli(dataset, subject)) for dataset, subject in self.study.pairs("train"))
            drawn = self.study.foundations.diffusion.pictures != "training"  # type: ignore[union-attr]
            read = self.targets(self.study.foundations.drawn.count if drawn else pictures)
            return self._training(job, training, steps, unet.work(side, context), 3.0, read)
        own = {"embedding": self.embedder[0], "autoencoder": self._both_halves(), "diffusion": self.diffusion and self.diffusion[0].work(*self.diffusion[1:])}[
            name
        ]
        size = 4 * own.parameters if own else UNKNOWN
        return Cost(job, read=size, written=size)

    def _both_halves(self) -> ForwardPass | None:
        encoder, decoder = self.coder(False), self.coder(True)
        return encoder + decoder if encoder and decoder else None

    def _embed(self, job: Job) -> Cost:
        count, size, (channels, side) = self.pictures(job.names["dataset"], job.names["stimuli"]), self.study.picture_size, self.latent
        coder = self.coder(False)
        tokens = 2 * 257 * 1280 if self.study.foundations.target == "tokens" else 0
        return self._passes(
            job, count, _sum(self.embedder[0], coder), read=3 * size**2 * count, written=count * (4 * (self.embedder[1] + channels * side**2) + tokens)
        )

    def _passes(self, job: Job, count: float, own: ForwardPass | None, read: float, written: float, precision: str = "fp32", parameters: int = 0) -> Cost:
        """So many samples through a network, without gradients, in batches of the study's size."""
        batch = self.study.evaluation.batch_size
        if own is None:
            return Cost(job, flops=UNKNOWN, read=read, written=written, card=UNKNOWN)
        card = 4 * (own.parameters + parameters) + ALIVE * 4 * own.largest * batch
        launches = own.layers * KERNELS * (count / batch)
        return Cost(job, flops=own.flops * count, launches=launches, precision=precision, read=read, written=written, card=card)

    def _training(
        self, job: Job, training: Training, steps: float, own: ForwardPass, passes: float, read: float, trained: float | None = None, validated: int = 0
    ) -> Cost:
        """A training.

        Parameters
        ----------
        own : ForwardPass
            One sample forward.
        passes : float
            Forward passes that forward and backward are worth.
        read : float
            Bytes, of all steps.
        trained : int, optional
            Parameters that learn; by default all.
        validated : int
            Samples of a validation's batch.
        """
        trained = own.parameters if trained is None else trained
        rows = training.batch_size / training.accumulate
        half = HALF if training.precision in ("bf16", "fp16") else 1.0
        kept = KEPT * half * own.outputs * rows * (RECOMPUTED if training.gradient_checkpointing else 1.0)
        forward = ALIVE * 4 * half * own.largest * validated
        parameters = 4 * own.parameters
        passes += training.gradient_checkpointing
        launches = own.layers * KERNELS * (TRAINED_LAUNCHES + training.gradient_checkpointing) * training.accumulate
        moments = 12 + 4 + (4 if training.ema else 0)  # gradient, AdamW's two, the best weights
        return Cost(
            job, steps=steps, flops=steps * training.batch_size * own.flops * passes * VALIDATION, launches=steps * launches * VALIDATION,
            precision=training.precision, read=read, written=parameters, checkpoint=4 * trained * (5 if training.ema else 4),
            minutes_apart=training.checkpoint_minutes, card=parameters + moments * trained + max(kept, forward), host=LIBRARIES + 2 * parameters,
        )  # fmt: skip

    def targets(self, pictures: float) -> float:
        """Bytes of some pictures' embeddings and latents."""
        channels, side = self.latent
        return 4 * pictures * (self.embedder[1] + channels * side**2)

    def entered(self, method: str, pairs: Sequence[tuple[str, str]]) -> float:
        """Bytes that a training reads of subjects before its first step: their signals where the method enters in closed form, else their responses."""
        read = self.signals if self.study.method(method).closed else lambda method, pair: self.responses(*pair)
        return sum(read(method, pair) for pair in pairs)

    def signals(self, method: str, pair: tuple[str, str]) -> float:
        """Bytes of a training subject's signals: a quarter of the pictures from each context, and all of them from the folds (`training.enter`)."""
        if not self.contexts(method, pair):
            return 0.0
        train, unseen = self.trained_pictures([pair], method), _number(self.extent(*pair).validation)
        asked = max(train // 4, min(350, train)) + unseen
        return 4 * self.coordinates * (len(self.contexts(method, pair)) * asked + train + unseen)

    def contexts(self, method: str, pair: tuple[str, str]) -> list[float]:
        """Sizes of the contexts, but the folds, that a closed form is fitted to for signals to train on."""
        train = self.trained_pictures([pair], method)
        asked_for = self.study.method(method).scope == "subject" or self.study.role(*pair) == "train"
        if not self.study.signals(method) or math.isnan(train) or not asked_for:
            return []
        return CONTEXTS * [SMALLEST * 2**k for k in range(20) if SMALLEST * 2**k <= 0.75 * train * (FOLDS - 1) / FOLDS]

    # --- stages: methods ---

    def _pretrain(self, job: Job) -> Cost:
        method, section = self.study.method(job.names["method"]), self.study.unpaired
        assert section is not None and method.pretrain is not None
        size, training = method.enter.size, method.pretrain.training  # type: ignore[union-attr]
        own = _number(samples(section))
        count = UNKNOWN if math.isnan(own) else len(section.subjects) * (own - max(1, int(0.1 * own)))
        masked = method.pretrain.objective == "masked"
        if method.body.kind == "vit":
            forward = work.vit(1, size, method.body, 1 - method.pretrain.mask if masked else 1.0, True)
        else:
            forward = work.convmixer(1, size, method.body, True)
        steps = _steps(training, count, training.batch_size)
        cost = self._training(job, training, steps, forward, 3.0, 4 * size * len(section.subjects) * own, validated=training.batch_size)
        return replace(cost, host=cost.host + 2 * 4 * size * (0 if math.isnan(count) else count))

    @property
    def features(self) -> float:
        """Features that encoding models are fitted on."""
        channels, side = self.latent
        return min(FEATURES, self.embedder[1]) + min(FEATURES, channels * side**2)

    def fitted_to(self, pair: tuple[str, str], method: str) -> float:
        """Pictures that a subject's closed form is fitted to."""
        return self.trained_pictures([pair], method) + _number(self.extent(*pair).validation)

    def _teach(self, job: Job) -> Cost:
        name = job.names["method"]
        members = self.study.members(name, job.names["group"])
        voxels = [_number(self.extent(*pair).voxels) for pair in members]
        cost = Cost(job, precision="fp64", read=sum(self.responses(*pair) for pair in members), written=4 * sum(voxels) * self.coordinates)
        if self.study.method(name).enter.kind != "decoded":
            return cost
        pictures = [self.fitted_to(pair, name) for pair in members]
        sums = sum(2 * n * count * self.features for n, count in zip(pictures, voxels, strict=True))
        flops = sums + len(members) * work.learned(sum(voxels), self.features, ITERATIONS)  # a subject teaches all priors but the one without it
        return replace(cost, flops=flops, card=8 * BLOCK * (2 * max(pictures) + 4 * self.features))

    def _enter(self, job: Job) -> Cost:
        pair, name = (job.names["dataset"], job.names["subject"]), job.names["method"]
        enter, n, voxels = self.study.method(name).enter, self.fitted_to(pair, name), _number(self.extent(*pair).voxels)
        features, components = self.features, MIXED if getattr(enter, "mixed", False) else 0
        ridge = enter if isinstance(enter, Ridge) else Ridge(kind="ridge") if getattr(enter, "ridge", False) else None

        def once(pictures: float) -> float:
            alone = work.ridge(pictures, voxels, self.coordinates, len(ridge.alphas), ridge.folds) if ridge else 0.0
            return alone if ridge is enter else alone + work.decoded(pictures, voxels, self.coordinates, features, components, SKETCH)

        fits = [n]
        if sizes := self.contexts(name, pair):
            fits += sizes + FOLDS * [self.trained_pictures([pair], name) * (FOLDS - 1) / FOLDS]
        rank = 0 if ridge is enter else min(n, SKETCH) + features
        size = max(rank, min(n, voxels) if ridge else 0)
        card = 8 * (3 * size**2 + BLOCK * (2 * n + 3 * (components + rank if rank else 0)))
        return Cost(
            job, flops=sum(map(once, fits)), precision="fp64", read=self.responses(*pair) + self.targets(n),
            written=4 * voxels * self.coordinates + self.signals(name, pair), card=card,
        )  # fmt: skip

    def _group(self, job: Job) -> tuple[Method, list[tuple[str, str]], float, float, float]:
        """Method, members, their training pictures, mean voxels, and bytes of their responses where voxels are read."""
        method = self.study.method(job.names["method"])
        members = self.study.members(job.names["method"], job.names["group"])
        voxels = sum(_number(self.extent(*pair).voxels) for pair in members) / max(1, len(members))
        held = 0.0 if method.closed else _known(sum(self.responses(*pair) for pair in members))
        return method, members, self.trained_pictures(members, job.names["method"]), voxels, held

    def _align(self, job: Job) -> Cost:
        method, members, count, voxels, held = self._group(job)
        assert method.align is not None
        training, own = method.align.training, self.encoder(method, voxels)
        read = self.entered(job.names["method"], members) + self.targets(count)
        cost = self._training(job, training, _steps(training, count, training.batch_size), own, 3.0, read, validated=VALIDATED)
        return replace(cost, host=cost.host + held)

    def _condition(self, job: Job) -> Cost:
        method, members, count, voxels, held = self._group(job)
        stage = method.condition
        assert stage is not None
        if self.diffusion is None:
            return Cost(job, steps=_steps(stage.training, count, stage.training.batch_size), flops=UNKNOWN, written=UNKNOWN, card=UNKNOWN)
        unet, side, _ = self.diffusion
        encoder, drawn = self.encoder(method, voxels), unet.work(side, self.tokens(method))
        coder = self.coder(False) if stage.crop else None
        flops = drawn.flops * 2 + encoder.flops * (3 if stage.train_encoder else 1) + (stage.crop * coder.flops if coder else 0)
        kept = drawn if not stage.train_encoder else drawn + encoder
        own = replace(drawn + encoder, flops=flops, outputs=kept.outputs)
        trained = work.adapted(unet) + (encoder.parameters if stage.train_encoder else 0)
        channels, latent = self.latent
        steps, batch = _steps(stage.training, count, stage.training.batch_size), stage.training.batch_size
        read = self.entered(job.names["method"], members) + steps * batch * (4 * channels * latent**2 + stage.crop * 3 * self.study.picture_size**2)
        cost = self._training(job, stage.training, steps, own, 1.0, read, trained)
        crops = (steps * coder.layers * KERNELS, 4 * coder.parameters) if coder else (0, 0)
        written = 4 * (encoder.parameters + work.adapted(unet))
        return replace(cost, written=written, host=cost.host + held, launches=cost.launches + crops[0], card=cost.card + crops[1])

    def _adapt(self, job: Job) -> Cost:
        pair = job.names["dataset"], job.names["subject"]
        method = self.study.method(job.names["method"])
        stage = method.adapt
        assert stage is not None
        size = stage.training.batch_size
        rows = min(max(1, round(size * (1 - stage.mix_training))), size - 1) if stage.mix_training else size
        voxels, count = _number(self.extent(*pair).voxels), _number(self.extent(*pair).train)
        own = self.encoder(method, voxels)
        if stage.strategy == "none":
            return Cost(job, read=self.responses(*pair), written=4 * own.parameters)
        trained = 0.1 * own.parameters if stage.strategy == "low-rank" else own.parameters  # at most: ranks are small
        read = self.responses(*pair) + self.targets(count)
        cost = self._training(job, stage.training, _steps(stage.training, count, rows), own, 3.0, read, trained, VALIDATED)
        return replace(cost, host=cost.host + _known(self.responses(*pair)))

    def _embedding_prior(self, job: Job) -> Cost:
        method, members, count, _, _ = self._group(job)
        assert method.embedding_prior is not None
        training, dim = method.embedding_prior.training, int(_known(self.embedder[1]))
        width = method.embedding_prior.width
        own = work.linear(2 * dim, width) + work.linear(width, width) * method.embedding_prior.depth + work.linear(width, dim)
        return self._training(job, training, _steps(training, count, training.batch_size), own, 3.0, 4 * dim * count)

    # --- stages: pictures ---

    def _predict(self, job: Job) -> Cost:
        pair, method = (job.names["dataset"], job.names["subject"]), self.study.methods[job.names["method"]]
        tested = _number(self.extent(*pair).test)
        own = self.encoder(method, _number(self.extent(*pair).voxels))
        return self._passes(job, tested, own, read=self.responses(*pair), written=2 * 4 * tested * self.embedder[1])

    def _reconstruct(self, job: Job) -> Cost:
        method = self.study.methods[job.names["method"]]
        pair = job.names["dataset"], job.names["subject"]
        tested, drawn = _number(self.extent(*pair).test), method.sampling.drawn
        own = _sum(self.drawn(method), self.embedder[0] if drawn > 1 else NOTHING)
        pictures = tested * (drawn + 1) * 3 * self.study.picture_size**2
        cost = self._passes(job, 2 * tested * drawn, own, read=self.responses(*pair), written=2 * pictures, precision=self._drawing(method))
        if method.sampling.chosen_by == "encoding":  # responses to training pictures, averaged, and residuals of as many
            responses = self.trained_pictures([pair], job.names["method"]) * _number(self.extent(*pair).voxels)
            cost = replace(cost, host=cost.host + 2 * 4 * _known(responses))
        return replace(cost, kept=pictures)  # blocks are kept until the file that they are put together in is whole

    def _drawing(self, method: Method) -> str:
        return self.study.foundations.diffusion.precision if self.study.foundations.frozen else method.sampling.precision  # type: ignore[union-attr]

    def _reconstruct_controls(self, job: Job) -> Cost:
        method = next(iter(self.study.methods.values()))
        tested = self.tested(job.names["dataset"], job.names["stimuli"])
        given = 1 if self.study.foundations.frozen or self.study.foundations.diffusion.kind == "study" else 0
        drawn = self.drawn(method.model_copy(update={"sampling": method.sampling.model_copy(update={"strength": 1.0})}))
        count = tested * (1 + given * method.sampling.drawn)
        return self._passes(job, count, drawn, read=0, written=tested * (2 + given) * 3 * self.study.picture_size**2, precision=self._drawing(method))

    @cached_property
    def panel(self) -> ForwardPass:
        """A picture through the networks of the study's metrics."""
        networks = {MEASURES[name].network for name in self.study.evaluation.metrics} & set(PANEL)
        return ForwardPass(sum(2 * PANEL[name] for name in sorted(map(str, networks))), 0, 0, 60 * len(networks), 64 * 147**2 if networks else 0)

    def _features(self, job: Job) -> Cost:
        tested = self.tested(job.names["dataset"], job.names["stimuli"])
        return self._passes(job, tested, self.panel, read=tested * 3 * self.study.picture_size**2, written=0)

    def _score(self, job: Job) -> Cost:
        tested = _number(self.extent(job.names["dataset"], job.names["subject"]).test)
        pictures = tested * sum(method.sampling.drawn + 1 for method in self.study.methods.values())
        return self._passes(job, pictures, self.panel, read=pictures * 3 * self.study.picture_size**2, written=0)

    def _generalise(self, job: Job) -> Cost:
        tested = _number(self.extent(job.names["dataset"], job.names["subject"]).test)
        pictures = tested * sum(method.sampling.drawn + 1 for method in self.study.methods.values())
        return self._passes(job, pictures, self.embedder[0], read=pictures * 3 * self.study.picture_size**2, written=0)

    def _transfer(self, job: Job) -> Cost:
        study, pair, method = self.study, (job.names["dataset"], job.names["subject"]), self.study.method(job.names["method"])
        assert study.transfer is not None
        cells = sum(1 if budget == "all" else study.transfer.seeds for budget in study.transfer.trials)
        tested = _number(self.extent(*pair).test)
        cost = Cost(job, read=cells * self.responses(*pair))
        if method.adapt is not None:
            once = self._adapt(job)
            ways = 2 if study.transfer.scratch and method.from_scratch else 1
            cost = replace(once, steps=once.steps * cells * ways, flops=once.flops * cells * ways, launches=once.launches * cells * ways, written=0)
        if study.transfer.pictures:
            drawn = self._passes(job, tested * cells, self.drawn(method), read=0, written=0, precision=self._drawing(method))
            cost = replace(cost, flops=cost.flops + drawn.flops, launches=cost.launches + drawn.launches, card=max(cost.card, drawn.card))
        return cost

    # --- stages: tables ---

    def _tabulate(self, job: Job) -> Cost:
        return Cost(job)

    _figures = _report = _tabulate


def _number(count: int | None) -> float:
    return UNKNOWN if count is None else count


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _sum(*parts: ForwardPass | None) -> ForwardPass | None:
    return None if any(part is None for part in parts) else work.total(part for part in parts if part is not None)


def _steps(training: Training, count: float, rows: int) -> float:
    if training.steps is None and math.isnan(count):
        return UNKNOWN
    return training.total(0 if math.isnan(count) else round(count), rows)


# --- all of them --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Total:
    """Of some jobs; what is unknown is left out.

    Attributes
    ----------
    seconds : dict
        By machine.
    """

    jobs: int
    steps: float
    read: float
    written: float
    kept: float
    host: float
    card: float
    seconds: dict[str, float]
    unknown: bool


def total_cost(parts: Sequence[Cost], machines: Mapping[str, Machine] = CARDS) -> Total:
    """The sum of some jobs, and the largest memory of one."""
    seconds = {name: [_known(cost.seconds(machine)) if STAGES[cost.job.stage].gpu else 0.0 for cost in parts] for name, machine in machines.items()}
    written = [_known(cost.writes(own)) for cost, own in zip(parts, seconds[next(iter(CARDS))], strict=True)]
    values = [[cost.steps, cost.flops, cost.read, cost.written, cost.card] for cost in parts]
    return Total(
        len(parts), sum(_known(cost.steps) for cost in parts), sum(_known(cost.read) for cost in parts), sum(written), sum(_known(cost.lies) for cost in parts),
        max((_known(cost.host) for cost in parts), default=0.0), max((_known(cost.card) for cost in parts), default=0.0),
        {name: sum(own) for name, own in seconds.items()}, any(math.isnan(value) for row in values for value in row),
    )  # fmt: skip


def last_line(study: Study, parts: Sequence[Cost], machines: Mapping[str, Machine] = CARDS) -> str:
    """What all of a study costs, in one line."""
    whole = total_cost(parts, machines)
    times = " or ".join(f"{_time(whole.seconds[name])} of one {name}" for name in CARDS) + " (estimated)"
    if HERE in machines:
        lacking = any(STAGES[cost.job.stage].gpu and cost.flops > 0 and cost.precision not in machines[HERE].rates for cost in parts)
        times += f", {_time(whole.seconds[HERE])} here (measured by calibration{'; without what needs a card' if lacking else ''})"
    more = "; without what is not known beforehand" if whole.unknown else ""
    return (
        f"{study.name}: {whole.jobs} jobs, {times}; {_bytes(whole.written)} written, {_bytes(whole.kept)} kept; "
        f"at most {whole.host / GB:.0f} GB of memory and {whole.card / GB:.0f} GB on a card{more}"
    )


def _time(seconds: float) -> str:
    return f"{seconds / DAY:.1f} days" if seconds >= DAY else f"{seconds / 3600:.2g} hours"


def _bytes(count: float) -> str:
    return f"{count / 1e12:.1f} TB" if count >= 1e12 else f"{count / GB:.3g} GB"


def plan(study: Study, directory: Path | None = None, calibrate: bool = False) -> None:
    """Print what every stage of a study costs, and the total in the last line.

    Parameters
    ----------
    directory : Path, optional
        Where `results/` lies; by default here.
    calibrate : bool
        Measure this machine first, for hours on it.
    """
    if directory is not None and not directory.is_dir():
        raise InputError(f"{directory}: no such folder; give the one that holds results/")
    parts, machines, further = costs(study, directory or Path()), dict(CARDS), []
    if calibrate:
        from unimind.report.calibration import calibrate as measured

        wanted = {cost.precision for cost in parts if cost.flops}
        machines[HERE] = own = measured(wanted, study.threads)
        reached = ", ".join(f"{precision} {rate / 1e9:.3g}" for precision, rate in own.rates.items())
        further.append(f"Here: {own.name}. Measured by calibration, 1e9 operations a second: {reached}; {own.launch * 1e6:.2g} us a kernel.")
        further += [f"{precision} needs a card: what asks for it does not run here." for precision in sorted(wanted - set(own.rates))]
    print("\n".join(table(parts, machines)))
    print(f"\nTime is estimated: {UTILISATION:.0%} of the cards' published dense operations a second, or {LAUNCH * 1e6:.0f} us a kernel where that is longer;")
    print("only of stages that use a card. - is nothing, ? is not known before the data set's files are there.")
    print("\n".join([*further, "", last_line(study, parts, machines)]))


def table(parts: Sequence[Cost], machines: Mapping[str, Machine] = CARDS) -> Iterator[str]:
    """Lines of the plan: one per stage and method."""
    head = ["part", "stage", "jobs", "steps", "read GB", "written GB", "memory GB", "card GB", *(f"{name} h" for name in machines)]
    groups: dict[tuple[str, str], list[Cost]] = {}
    for cost in parts:
        groups.setdefault((cost.job.part, cost.job.stage), []).append(cost)
    rows = [head]
    for (part, stage), own in groups.items():
        whole, card = total_cost(own, machines), STAGES[stage].gpu
        unknown = {key: any(math.isnan(getattr(cost, key)) for cost in own) for key in ("steps", "flops", "read", "written", "card")}
        hours = [
            _shown(whole.seconds[name] / 3600, any(math.isnan(cost.seconds(machine)) for cost in own)) if card else "-" for name, machine in machines.items()
        ]
        rows.append([
            part, stage, str(whole.jobs), _shown(whole.steps, unknown["steps"], ".0f"), _shown(whole.read / GB, unknown["read"]),
            _shown(whole.written / GB, unknown["written"]), f"{whole.host / GB:.0f}", _shown(whole.card / GB, unknown["card"]) if card else "-", *hours,
        ])  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        yield "  ".join(word.ljust(width) if column < 2 else word.rjust(width) for column, (word, width) in enumerate(zip(row, widths, strict=True))).rstrip()


def _shown(value: float, unknown: bool, form: str = ".3g") -> str:
    """A number; `?` where it, or a part of it, is unknown."""
    return (format(value, form) + " + ?" if value else "?") if unknown else format(value, form) if value else "-"
