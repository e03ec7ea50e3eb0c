"""Training steps of every stage at a study's own size: time and memory, before there is data or a checkpoint.

    python benchmarks/stages.py                                        # config/thesis.yaml; on a GPU where there is one
    python benchmarks/stages.py config/thesis-24gb.yaml --device cuda --precision bf16
    python benchmarks/stages.py config/thesis.yaml --estimate          # memory on a GPU, counted without one
    python benchmarks/stages.py config/thesis.yaml --device cpu --shrink 16 --batch 6

The stages themselves run, with their modules, losses and loop, on random files: voxels of NSD's counts, embeddings and
latents of the foundations' sizes, a UNet of cin256-v2's size. They end after a few steps and write no model. Every row is
measured in a process of its own; a step is waiting for its batch, forward and backward of every micro-batch, clipping and AdamW. A
thread draws the batches of coming steps meanwhile. Every second step draws its batch itself, before it begins, as the others would without
that thread: what both kinds take stands beside each other, with the time that drawing takes and the share of a step that was waiting for it.

Memory is the most that tensors take on a GPU, or the growth of the process on a CPU: in a step, and in the validation and
count of operations before the first one. With `--estimate` nothing is computed: one step runs on tensors without contents, and
those alive at once are added up. Not in it are CUDA's context, the libraries' workspaces and fragmentation, about 1 GB. A CPU's
process also keeps memory that it has freed; with `MALLOC_MMAP_THRESHOLD_=65536` in the environment it does not, and is slower.
"""

import argparse
import gc
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from unimind.data.prepared import write_prepared, write_unpaired
from unimind.device import on_device
from unimind.errors import InputError
from unimind.foundations.hub import save_autoencoder, save_unet
from unimind.foundations.ldm import SCHEDULER
from unimind.models.encoder import Encoder
from unimind.models.enter import Adapters, Context, subject_key
from unimind.models.prior import LinearMap
from unimind.models.space import PictureSpace
from unimind.progress import say
from unimind.storage import save_model, whole_directory
from unimind.study import Method, Study, Training, parse_study, read_study, resolved
from unimind.training import loop
from unimind.training.alignment import Aligned
from unimind.training.batches import drawn_ahead
from unimind.training.data import CHANNELS, new_encoder, picture_space

STAGES = ("pretrain", "align", "condition", "adapt")
#: Voxels of nsdgeneral. Other data sets' subjects get about as many as GOD's visual cortex has.
NSD = {"subj01": 15724, "subj02": 14278, "subj03": 15226, "subj04": 13153, "subj05": 13039, "subj06": 17907, "subj07": 12682, "subj08": 14386}
OTHER = 4500
#: cin256-v2's UNet as `convert_unet` describes it.
UNET: dict[str, Any] = {
    "sample_size": 64, "in_channels": 3, "out_channels": 3, "block_out_channels": [192, 384, 576, 960], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3], "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
    "transformer_layers_per_block": 1, "cross_attention_dim": 512, "attention_head_dim": 1, "use_linear_projection": False,
}  # fmt: skip
#: cin256-v2's first stage, which encodes MinD-Vis's crops: widths, and how much smaller latents are than pictures.
VQ_WIDTHS, VQ_FACTOR = (128, 256, 512), 4
#: Pictures a subject trains on. Held out are enough for the largest batch of a validation where there is room, two where a CPU must compute them.
TRAINED, HELD_OUT, FEW = 64, 256, 2
#: Steps of each kind timed after the first one, which allocates.
STEPS = 3


class Enough(Exception):
    """The steps to be measured are done."""


# --- the study at another size, and its files ---------------------------------------------------------------------


def shrunk(size: int, factor: float, multiple: int = 1) -> int:
    """`size / factor` as a multiple of something, at least that."""
    return multiple * max(1, round(size / factor / multiple))


def resized(study: Study, factor: float, batch: int | None, precision: str | None) -> Study:
    """The study with its lengths and widths divided by `factor`, and each training a few steps long."""
    content = resolved(study)
    content["picture_size"] = VQ_FACTOR * unet_config(factor)["sample_size"]
    for method in content["methods"].values():
        enter, body = method["enter"], method["body"]
        if "size" in enter:
            enter["size"] = body.get("patch", 1) * math.ceil(enter["size"] / factor / body.get("patch", 1))
        if "width" in body:
            body["width"] = shrunk(body["width"], factor, body.get("heads", 8))
        if "decoder_width" in body and method["pretrain"]:
            body["decoder_width"] = shrunk(body["decoder_width"], factor, 4)
        for stage in STAGES:
            if method.get(stage):
                training = method[stage]["training"]
                training |= {"steps": 100, "epochs": None, "validate_every": 100}
                training |= {"precision": precision} if precision else {}
                training |= {"batch_size": batch, "accumulate": math.gcd(training["accumulate"], batch)} if batch else {}
    return parse_study(content)


def unet_config(factor: float) -> dict[str, Any]:
    """`UNET` with its widths and its side divided by `factor`."""
    base = shrunk(UNET["block_out_channels"][0], factor, 4)
    return UNET | {
        "sample_size": shrunk(UNET["sample_size"], factor, 8), "block_out_channels": [base * times for times in (1, 2, 3, 5)],
        "cross_attention_dim": shrunk(UNET["cross_attention_dim"], factor, 4), "norm_num_groups": math.gcd(32, base),
    }  # fmt: skip


def embedding_dim(study: Study) -> int:
    """Length of the image embedding of a study with a CLIP of open_clip's."""
    import open_clip

    return open_clip.get_model_config(study.foundations.embedding.model)["embed_dim"]  # type: ignore[union-attr]


def voxels(study: Study, dataset: str, subject: str, factor: float) -> int:
    """Voxels of a subject, divided by `factor`."""
    return shrunk(NSD[subject] if study.datasets[dataset].source == "nsd" else OTHER, factor)


def write_files(folder: Path, study: Study, dataset: str, factor: float, held_out: int, stages: list[str], methods: list[str]) -> None:
    """Random files of everything the stages read, for one data set's subjects."""
    from diffusers.models.autoencoders.vq_model import VQModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    random = np.random.default_rng(0)
    dim, unet, n = embedding_dim(study), unet_config(factor), TRAINED + held_out
    with h5py.File(folder / "embeddings.h5", "w") as file:
        embedding = random.standard_normal((n, dim), np.float32)
        file["embedding"] = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        file["latent"] = random.standard_normal((n, unet["in_channels"], unet["sample_size"], unet["sample_size"]), np.float32)
    stimulus = np.repeat(np.arange(n), CHANNELS)
    for _, subject in subjects(study, dataset):
        responses = random.standard_normal((len(stimulus), voxels(study, dataset, subject, factor)), np.float32)
        write_prepared(
            folder / f"{subject}.h5", responses, stimulus=stimulus, session=np.zeros(len(stimulus)), split=stimulus >= TRAINED,
            stimuli=n, dataset=dataset, subject=subject,
        )  # fmt: skip
    rest = random.standard_normal((TRAINED + 10 * held_out, shrunk(NSD["subj01"], factor)), np.float32)
    write_unpaired(folder / "rest.h5", [rest], n_samples=len(rest), n_voxels=rest.shape[1], subject="rest")
    if "condition" in stages:
        with whole_directory(folder / "diffusion") as temporary:
            save_unet(temporary, "ldm", "random", UNet2DConditionModel.from_config(unet), SCHEDULER, {})
        widths = [shrunk(width, factor, 4) for width in VQ_WIDTHS]
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3, "layers_per_block": 2}
        coder = VQModel(**blocks, block_out_channels=widths, latent_channels=3, num_vq_embeddings=64, norm_num_groups=math.gcd(32, widths[0]))
        with whole_directory(folder / "autoencoder") as temporary:
            save_autoencoder(temporary, "ldm", "random", coder, {})
        with h5py.File(folder / "stimuli.h5", "w") as file:
            file["images"] = random.integers(0, 256, (n, study.picture_size, study.picture_size, 3), np.uint8)
            file["id"], file["sha256"], file["test"] = [str(i) for i in range(n)], [f"{i:064d}" for i in range(n)], np.zeros(n, bool)
    space = picture_space([folder / "embeddings.h5"], [np.arange(TRAINED)])
    for name in methods:
        method = study.methods[name]
        members = {subject_key(*pair): voxels(study, *pair, factor) for pair in study.members(name, group(study, name, dataset)) if pair[0] == dataset}
        if method.closed:
            for key, count in members.items():
                write_entered(folder / f"{name}-{key}", method, space, key, count, n)
        if method.align is not None and {"condition", "adapt"} & set(stages):
            channels = CHANNELS if method.responses()["repeats"] == "channels" else 1
            encoder = new_encoder(study, name, space, members if method.per_subject else {}, channels, None)
            if isinstance(encoder.enter, Adapters):
                encoder.enter.remember(torch.zeros(space.size, encoder.enter.size), torch.zeros(encoder.enter.size))
            aligned = Aligned(encoder, list(members), method.align.losses)
            with whole_directory(folder / name) as temporary:
                save_model(temporary, aligned.state_dict(), {"encoder": encoder.arguments})


def write_entered(folder: Path, method: Method, space: PictureSpace, key: str, count: int, pictures: int) -> None:
    """A closed form of so many voxels and its signals for so many pictures, at random."""
    random, size = np.random.default_rng(0), space.size
    encoder = Encoder(method.enter.model_dump(), {"kind": "identity"}, space, ("embedding", "latent"), {})
    context = Context(TRAINED, np.zeros(size, np.float32), np.ones(size, np.float32), np.ones(space.sizes["embedding"], np.float32))
    encoder.take_map(key, LinearMap(np.zeros((count, size), np.float32), np.zeros(size, np.float32)), context)
    with whole_directory(folder) as temporary:
        save_model(temporary, {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}, {"encoder": encoder.arguments})
        with h5py.File(temporary / "entered.h5", "w") as file:
            file["stimulus"], file["split"] = np.arange(pictures, dtype=np.int32), (np.arange(pictures) >= TRAINED).astype(np.int8)
            file["coordinates"], file["context"] = random.standard_normal((pictures, size), np.float32), np.zeros(pictures, np.int32)
            for name, values in context._asdict().items():
                file[name] = np.asarray(values)[None]
            file.attrs["n_voxels"] = count


def subjects(study: Study, dataset: str) -> list[tuple[str, str]]:
    return [pair for pair in study.pairs() if pair[0] == dataset]


def group(study: Study, method: str, dataset: str) -> str:
    """The group of the data set's first training subject."""
    return study.group(method, dataset, study.datasets[dataset].training_subjects[0])


def call(study: Study, method: str, stage: str, dataset: str, folder: Path) -> Callable[[], None]:
    """The stage, with the files that `write_files` wrote."""
    name = group(study, method, dataset)
    members = study.members(method, name)
    prepared, embeddings = [folder / f"{subject}.h5" for _, subject in members], [folder / "embeddings.h5"] * len(members)
    entered = [folder / f"{method}-{subject_key(*pair)}" for pair in members] if study.methods[method].closed else None
    files = {"prepared": None if entered else prepared, "embeddings": embeddings, "entered": entered}
    places = {"checkpoints": folder / "checkpoints", "out": folder / "out"}
    run = getattr(importlib.import_module(f"unimind.training.{stage}"), stage)
    if stage == "pretrain":
        return partial(run, study, method, [folder / "rest.h5"], **places)
    if stage == "align":
        return partial(run, study, method, name, **files, pretrained=None, **places)
    if stage == "condition":
        encoder = folder / method if study.methods[method].align is not None else None
        crops = {"autoencoder": folder / "autoencoder", "stimuli": [folder / "stimuli.h5"] * len(members)}
        return partial(run, study, method, name, **files, encoder=encoder, diffusion=folder / "diffusion", **crops, **places)
    subject = [*study.datasets[dataset].new_subjects, *study.datasets[dataset].training_subjects][0]
    training = {"training_prepared": prepared, "training_embeddings": embeddings}
    return partial(
        run, study, method, dataset, subject, folder / f"{subject}.h5", folder / "embeddings.h5", folder / method, trials=None, **training, **places
    )  # fmt: skip


# --- one row ------------------------------------------------------------------------------------------------------


def row(study: Study, method: str, stage: str, dataset: str, folder: Path, estimate: bool) -> dict[str, Any]:
    """One line of the table.

    Parameters
    ----------
    study : Study
        As `resized` returns it.
    method, stage, dataset : str
    folder : Path
        Where `write_files` wrote.
    estimate : bool
        Count memory instead of computing.

    Returns
    -------
    dict
        `method`, `stage`, `precision`, `batch` (rows of a step), `micro_batches`, `recomputed` (activations), `parameters`,
        `trained`, `seconds` (of a step), `in_turn` (of one that draws its own batch), `drawing` (seconds of that), `waiting` (share of a step
        that waits for its batch),
        `samples_per_second`, `busy` (share of a step in which a GPU computes), `memory` (bytes, of a step), `memory_before` (bytes, of
        what comes before the first step), `failed` (why, or nothing).
    """
    settings = getattr(study.methods[method], stage).training
    found = {
        "method": study.methods[method].label or method, "stage": stage, "precision": settings.precision, "batch": settings.batch_size,
        "micro_batches": settings.accumulate, "recomputed": settings.gradient_checkpointing, "parameters": None, "trained": None, "seconds": None,
        "in_turn": None, "drawing": None, "waiting": None, "samples_per_second": None, "busy": None, "memory": None, "memory_before": None, "failed": "",
    }  # fmt: skip
    warm_up(stage)
    watch = Watch(estimate)
    try:
        with patch(f"unimind.training.{stage}.train", watch.train):
            call(study, method, stage, dataset, folder)()
    except Enough:
        pass
    except (InputError, torch.OutOfMemoryError, MemoryError) as error:
        memory = not isinstance(error, InputError) or "out of memory" in str(error)
        watch.found["failed"] = "out of memory" if memory else str(error)
    return found | watch.found


@contextmanager
def in_turn(draw: Callable[[int], Any], steps: range) -> Iterator[Callable[[int], Any]]:
    """Batches drawn when they are asked for: tensors without contents do not bear another thread's work beside them."""
    yield draw


def timed(function: Callable[[int], Any], seconds: list[float], step: int) -> Any:
    """What a function gives for a step; how long it took is noted."""
    begun = time.perf_counter()
    found = function(step)
    seconds.append(time.perf_counter() - begun)
    return found


class Busy:
    """The share of a stretch of time in which a GPU computes: its kernels' time, by torch's profiler, over the time that passed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) if device.type == "cuda" else None

    def start(self) -> None:
        if self.profiler is not None:
            self.profiler.start()
            torch.cuda.synchronize(self.device)
        self.begun = time.perf_counter()

    def stop(self) -> float | None:
        """The share since `start`; None without a GPU."""
        if self.profiler is None:
            return None
        torch.cuda.synchronize(self.device)
        passed = time.perf_counter() - self.begun
        self.profiler.stop()
        return min(1.0, sum(event.self_device_time_total for event in self.profiler.key_averages()) / 1e6 / passed)


class Watch:
    """The loop of a stage, watched for a few steps and then stopped."""

    def __init__(self, estimate: bool) -> None:
        self.estimate = estimate
        self.found: dict[str, Any] = {}
        self.alive: Alive | None = None
        self.device = on_device()
        self.resident = resident()
        self.drawing: list[float] = []
        self.waiting: list[float] = []

    def train(self, module: nn.Module, *, draw: Callable, validate: Callable | None = None, trainable: Any = None, **more: Any) -> None:
        """As `loop.train`; raises `Enough`."""
        wanted = None if trainable is None else set(trainable)
        own = [(parameter.numel(), wanted is None or name in wanted) for name, parameter in module.named_parameters()]
        self.found |= {"parameters": sum(count for count, _ in own), "trained": sum(count for count, here in own if here)}
        batch_size, busy = more["settings"].batch_size, Busy(self.device)

        def on_step(step: int) -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            ends.append(time.perf_counter())
            if step == (2 if self.estimate else 1 + 2 * STEPS):
                if not self.estimate:
                    took = np.diff(ends)
                    in_turn, seconds = took[::2].mean(), took[1::2].mean()
                    self.found |= {"seconds": seconds, "in_turn": in_turn, "samples_per_second": batch_size / seconds}
                    self.found |= {"drawing": np.mean(self.drawing), "waiting": np.mean(self.waiting[1:]) / seconds}
                self.found["memory"] = self.peak()
                if self.device.type != "cuda":
                    raise Enough
            if step == 2 + 2 * STEPS:
                busy.start()
            if step == 3 + 2 * STEPS:
                self.found["busy"] = busy.stop()
                raise Enough

        def watched(step: int) -> Any:
            if step == 0 and asked:  # asked for the first time to count operations, for the second to train
                self.found["memory_before"] = self.peak()
                self.reset()
            asked.append(step)
            return draw(step) if self.alive is None else self.alive.batch

        asked: list[int] = []
        ends: list[float] = []
        with ExitStack() as stack:
            if self.estimate:
                self.alive = stack.enter_context(without_contents(module, draw(0)))
                stack.enter_context(patch.object(loop, "drawn_ahead", in_turn))
            else:
                stack.enter_context(patch.object(loop, "drawn_ahead", self.alternating))
            self.reset()
            loop.train(module, draw=watched, validate=validate, trainable=trainable, on_step=on_step, **more)

    @contextmanager
    def alternating(self, draw: Callable[[int], Any], steps: range) -> Iterator[Callable[[int], Any]]:
        """Batches of the first step and every second after it drawn ahead as the loop does, the others in turn; with the seconds of drawings and waits."""
        with drawn_ahead(draw, steps[::2]) as batch:
            yield lambda step: timed(batch, self.waiting, step) if step in steps[::2] else timed(draw, self.drawing, step)

    def peak(self) -> int:
        """Bytes taken at most since `reset`."""
        if self.alive is not None:
            return self.alive.peak
        return loop.peak_memory(self.device) - (0 if self.device.type == "cuda" else self.resident)

    def reset(self) -> None:
        gc.collect()
        if self.alive is not None:
            self.alive.peak = self.alive.now
        elif self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif (switch := Path("/proc/self/clear_refs")).exists():  # Linux; elsewhere the peak is that of the whole process
            switch.write_text("5")


def warm_up(stage: str) -> None:
    """Load what a training loads when it first needs it, so that memory is not taken for it later."""
    import diffusers.models.unets.unet_2d_condition  # noqa: F401
    import timm.models.vision_transformer  # noqa: F401

    importlib.import_module(f"unimind.training.{stage}")
    with tempfile.TemporaryDirectory() as place:
        loop.train(
            nn.Linear(1, 1), draw=lambda step: torch.zeros(1, 1), losses=lambda module, batch: {"x": module(batch).sum()}, settings=Training(steps=1),
            seed=0, checkpoints=Path(place), fingerprint="", label="warm up", n_samples=1,
        )  # fmt: skip


def resident() -> int:
    """Bytes of the process."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return loop.peak_memory(torch.device("cpu"))


# --- memory without computing -------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Adds up the storages that are alive, under a mode whose tensors have no contents."""

    def __init__(self, batch: Any) -> None:
        super().__init__()
        self.batch, self.now, self.peak = batch, 0, 0
        self.known: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.now += size
            self.peak = max(self.peak, self.now)
            self.known[key] = weakref.ref(storage, partial(self._remove, key, size))

    def _remove(self, key: int, size: int, reference: Any) -> None:
        del self.known[key]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return result


@contextmanager
def answers(shown: int) -> Iterator[None]:
    """What depends on contents, answered without them; and norms in fp32 under autocast, as on a GPU but not on a CPU.

    Parameters
    ----------
    shown : int
        Patches that a mask leaves of a sample.
    """
    item, group_norm, layer_norm = Tensor.__getitem__, functional.group_norm, functional.layer_norm

    def chosen(x: Tensor, place: Any) -> Tensor:
        masked = isinstance(place, Tensor) and place.dtype == torch.bool
        return item(x.flatten(0, 1), torch.arange(len(x) * shown)) if masked else item(x, place)

    def in_fp32(norm: Callable) -> Callable:
        return lambda x, *more, **named: norm(x.float() if torch.is_autocast_enabled("cpu") else x, *more, **named)

    with ExitStack() as stack:
        for place, name, answer in (
            (Tensor, "tolist", lambda x: [1.0] * x.numel()), (Tensor, "item", lambda x: 1.0), (Tensor, "__float__", lambda x: 1.0),
            (Tensor, "__getitem__", chosen), (functional, "group_norm", in_fp32(group_norm)), (functional, "layer_norm", in_fp32(layer_norm)),
        ):  # fmt: skip
            stack.enter_context(patch.object(place, name, answer))
        yield


@contextmanager
def without_contents(module: nn.Module, batch: Any) -> Iterator[Alive]:
    """Turn a module into one of tensors without contents, and count what is alive while it is trained."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    shown = int((~batch["mask"][0]).sum()) if "mask" in batch else 0
    alive = Alive(tree_map_only(Tensor, fake.from_tensor, batch))
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(fake.from_tensor(parameter.detach()), requires_grad=parameter.requires_grad)
                alive.add(part._parameters[name])
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fake.from_tensor(buffer)
                alive.add(part._buffers[name])
    stays = patch.object(module, "to", lambda device: module)
    with stays, fake, alive, answers(shown):
        yield alive


# --- the table ----------------------------------------------------------------------------------------------------


def in_own_process(order: dict[str, Any], device: str, limit: float | None = None) -> dict[str, Any]:
    """One line, measured in a process of its own; subprocess.TimeoutExpired where that takes more than `limit` seconds."""
    call = [sys.executable, __file__, "--row", json.dumps(order)]
    done = subprocess.run(call, env=os.environ | {"UNIMIND_DEVICE": device}, capture_output=True, text=True, timeout=limit)
    if done.returncode == -9:  # the operating system's own answer to too little memory
        return {"failed": "out of memory"}
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measured(
    study: Study, dataset: str, *, device: str, precisions: list[str | None], factor: float, stages: list[str], methods: list[str], batch: int | None,
    estimate: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """All lines of the table, each in a process of its own; see `row`."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        own = resized(study, factor, batch, None)
        write_files(Path(place), own, dataset, factor, FEW if device == "cpu" and not estimate else HELD_OUT, stages, methods)
        for method in methods:
            for stage in stages:
                for precision in precisions if getattr(own.methods[method], stage) else []:
                    changed = resized(study, factor, batch, precision)
                    say(f"stages: {method}, {stage}, {getattr(changed.methods[method], stage).training.precision} on {device}")
                    order = {"study": resolved(changed), "method": method, "stage": stage, "dataset": dataset, "folder": place, "estimate": estimate}
                    settings = getattr(changed.methods[method], stage).training
                    named = {"method": changed.methods[method].label or method, "stage": stage, "precision": settings.precision, "batch": settings.batch_size}
                    rows.append(named | in_own_process(order, device))
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The lines as a Markdown table."""
    millions, gigabytes = (lambda n: f"{n / 1e6:.1f} M"), (lambda n: f"{n / 1e9:.2f} GB")
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "method": ("method", str), "stage": ("stage", str), "precision": ("precision", str), "batch": ("samples a step", str),
        "micro_batches": ("micro-batches", str), "recomputed": ("recomputed", lambda yes: "yes" if yes else "no"), "parameters": ("parameters", millions),
        "trained": ("trained", millions), "seconds": ("seconds a step", "{:.3g}".format), "in_turn": ("drawing in turn", "{:.3g}".format),
        "samples_per_second": ("samples a second", "{:.3g}".format),
        "drawing": ("seconds of drawing a batch", "{:.2g}".format), "waiting": ("waiting for it", "{:.1%}".format), "busy": ("card busy", "{:.0%}".format),
        "memory": ("memory of a step", gigabytes), "memory_before": ("before the first step", gigabytes), "failed": ("", str),
    }  # fmt: skip
    table = pd.DataFrame([{title: "-" if line.get(key) is None else show(line[key]) for key, (title, show) in columns.items()} for line in rows])
    return table.to_markdown(index=False, disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?", default=Path("config/thesis.yaml"))
    parser.add_argument("--dataset", help="whose training subjects a step serves; by default the study's first data set")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="by default a GPU where there is one")
    parser.add_argument(
        "--precision", nargs="+", choices=["fp32", "tf32", "bf16", "fp16", "study"], default=["fp32", "bf16"], help="study: what each stage asks for"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--methods", nargs="+", help="by default all that are trained")
    parser.add_argument("--batch", type=int, help="samples of a step, instead of the study's")
    parser.add_argument("--shrink", type=float, default=1.0, help="divides voxels, widths and the latent's side, for a CPU; depths stay")
    parser.add_argument("--estimate", action="store_true", help="count memory on a GPU without computing; no times")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        order = json.loads(given.row)
        torch.manual_seed(0)
        print(json.dumps(row(**order | {"study": parse_study(order["study"]), "folder": Path(order["folder"])})))
        return
    try:
        study = read_study(given.study)
        if study.foundations.embedding.kind != "open-clip" or study.foundations.diffusion.kind != "ldm":
            raise InputError(f"{given.study}: only studies with foundations.embedding.kind open-clip and foundations.diffusion.kind ldm are measured")
        methods = given.methods or [name for name, method in study.methods.items() if method.shares]
        dataset = given.dataset or next(iter(study.datasets))
        if set(methods) - set(study.methods) or dataset not in study.datasets:
            raise InputError(f"{given.study}: has methods {', '.join(study.methods)} and data sets {', '.join(study.datasets)}; name some of these")
        if given.device:
            os.environ["UNIMIND_DEVICE"] = given.device
        device = "cpu" if given.estimate else str(on_device())
        precisions = [None if name == "study" else name for name in given.precision]
        rows = measured(
            study, dataset, device=device, precisions=precisions, factor=given.shrink, stages=given.stages, methods=methods, batch=given.batch,
            estimate=given.estimate,
        )  # fmt: skip
    except InputError as error:
        sys.exit(f"stages: {error}")
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    size = "at full size" if given.shrink == 1 else f"shrunk: voxels, widths and the latent's side divided by {given.shrink:g}, depths as they are"
    print(f"{given.study}, {dataset}, {size}; {'memory on a GPU, estimated' if given.estimate else where}\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
