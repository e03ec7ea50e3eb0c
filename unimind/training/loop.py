"""The one training loop: devices and precision by accelerate, exact resume, losses and efficiency on disk.

The loop keeps no hidden state. The batch of step k is a pure function of (seed, k), torch's global random state is set
from (seed, k) before every step, and which steps are validated is known before the first; so weights, optimiser state and a
step number are all a checkpoint needs, and a training killed at any moment ends with the same weights as one left alone
(bit for bit on a CPU with the same number of threads).
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, broadcast_object_list, patch_environment
from torch import Tensor, nn

from unimind import study
from unimind.device import choose_precision, on_device
from unimind.errors import InputError, is_out_of_memory
from unimind.progress import say, track
from unimind.streams import at_places, drawn, generator, stream_seed
from unimind.training.batches import between, described, drawn_ahead, moved, packed, part_of, rows_of
from unimind.training.checkpoint import Checkpoint, fingerprint, write_model
from unimind.training.measuring import Curves, Trained, conditions, count_flops, counted_flops, peak_memory, tensorboard

__all__ = [
    "Trained", "at_places", "conditions", "count_flops", "drawn", "fingerprint", "generator", "peak_memory", "stream_seed", "train", "write_model",
]  # fmt: skip

#: Share of a training's time that validations may take, the first and the last apart: rather than more, they are made less often.
VALIDATION_SHARE = 0.1


def train(
    module: nn.Module,
    *,
    draw: Callable[[int], Any],
    losses: Callable[[nn.Module, Any], dict[str, Tensor]],
    settings: study.Training,
    seed: int,
    checkpoints: Path,
    fingerprint: str,
    label: str,
    n_samples: int,
    samples_per_step: int | None = None,
    trainable: Iterable[str] | None = None,
    rate: Callable[[str], float] | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    on_step: Callable[[int], None] | None = None,
    compares_rows: bool = False,
    gathers: Sequence[str] = (),
) -> Trained:
    """Train a module; afterwards it holds the weights to keep (the best validated ones, else the last; EMA where kept).

    AdamW (Loshchilov & Hutter 2019) with a linear warm-up and a half cosine to zero, gradient clipping, no weight decay on
    vectors (biases, norms). Where validation is given, its first value is minimised: the weights of the best validation
    are kept (the first one is before any step), and `settings.patience` validations without a better one end the training.
    Between the first and the last, validations take no more than `VALIDATION_SHARE` of the training's time: their FLOPs and a
    step's decide how far apart they are, not the clock, so that a training that was killed makes the same ones.

    Parameters
    ----------
    module : nn.Module
    draw : function
        Step -> batch, a pure function of the step, called in a thread beside the one that trains: a dict of columns of
        `settings.batch_size` rows each, which are tensors (rows along the first axis) or lists. Rows are what processes and
        micro-batches share out, so all that is random about a row is drawn here.
    losses : function
        (module, batch) -> weighted terms; their sum is minimised. Each term is a mean over rows.
    settings : Training
    seed : int
    checkpoints : Path
        Directory for `checkpoint.safetensors`, written every `settings.checkpoint_minutes`, at a signal and at the end.
    fingerprint : str
        A checkpoint with another one is not used.
    label : str
        What is trained, for progress and messages.
    n_samples : int
        Training samples, to turn epochs into steps.
    samples_per_step : int, optional
        Rows of a batch that are among these samples; by default all.
    trainable : iterable of str, optional
        Names of the parameters to train; all others are frozen. By default all that require a gradient.
    rate : function, optional
        Parameter name -> factor on the learning rate.
    validate : function, optional
        Module (in evaluation mode, without gradients) -> values; the first is minimised.
    on_step : function, optional
        Called with the number of steps done after each one.
    compares_rows : bool
        Whether a loss compares the rows of a batch with each other: they are not shared out to micro-batches, and to processes only with `gathers`.
    gathers : sequence of str
        Columns that losses know of rows that are not theirs: where a batch is shared out, each part has these columns of the whole batch too,
        as a dict `whole`. What a process computes of its rows is brought together with the others' by `gathering.gathered`.

    Raises
    ------
    InputError
        A loss is not finite (step, term and samples are named), or a validation's value; memory does not suffice; a precision or device that
        this machine lacks; a batch that cannot be shared out as asked; activations that cannot be recomputed.
    """
    if trainable is not None:
        wanted = set(trainable)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in wanted)
    accelerator = _accelerator(settings.precision)
    processes = accelerator.num_processes
    if compares_rows and (settings.accumulate > 1 or (processes > 1 and not gathers)):
        raise InputError(
            f"{label}: its losses compare the rows of a batch with each other, so a batch cannot be shared by {processes} processes x "
            f"training.accumulate {settings.accumulate}; use {'' if gathers else 'one process and '}training.accumulate: 1"
        )
    run = None
    try:
        run = _Run(
            module, accelerator, settings, seed, checkpoints, fingerprint, label, n_samples, samples_per_step or settings.batch_size,
            rate or (lambda name: 1.0), gathers,
        )  # fmt: skip
        return run.train(draw, losses, validate, on_step, compares_rows)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        shared_out = "" if compares_rows else f" or raise training.accumulate (now {settings.accumulate})"
        raise InputError(
            f"{label}: out of memory on {accelerator.device} {'before the first step' if run is None else f'in step {run.step}'}; "
            f"lower training.batch_size (now {settings.batch_size}){shared_out}, set training.gradient_checkpointing: true or training.precision: bf16"
        ) from error


class _Run:
    """State of one training."""

    def __init__(
        self,
        module: nn.Module,
        accelerator: Accelerator,
        settings: study.Training,
        seed: int,
        checkpoints: Path,
        fingerprint: str,
        label: str,
        n_samples: int,
        samples: int,
        rate: Callable[[str], float],
        gathers: Sequence[str],
    ) -> None:
        self.settings, self.seed, self.label, self.gathers = settings, seed, label, gathers
        self.checkpoint = Checkpoint(checkpoints, fingerprint, settings.checkpoint_minutes, label)
        self.samples = samples
        self.total = settings.total(n_samples, samples)
        self.accelerator, self.device = accelerator, accelerator.device
        self.module = module.to(self.device)
        if settings.gradient_checkpointing:
            able = [enable for part in module.modules() if callable(enable := getattr(part, "enable_gradient_checkpointing", None))]
            if not able:
                raise InputError(f"{label}: training.gradient_checkpointing: true given, but this network cannot recompute its activations; set it to false")
            for enable in able:
                enable()
        self.parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        if not self.parameters:
            raise ValueError(f"{label}: no parameter to train")
        self.buffers = dict(module.named_buffers())
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault((rate(name), settings.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": members, "factor": factor, "weight_decay": decay} for (factor, decay), members in groups.items()],
            lr=settings.learning_rate,
            betas=settings.betas,
            fused=True,
        )
        self.stepper = self.accelerator.prepare_optimizer(self.optimizer)
        self.ema = {name: parameter.detach().clone() for name, parameter in self.parameters.items()} if settings.ema else {}
        self.best: dict[str, Tensor] = {}
        self.step = 0
        # everything below is JSON in the checkpoint
        self.record: dict[str, Any] = {"losses": [], "pending": {}, "pending_count": 0, "seconds": 0.0, "flops": None, "apart": settings.validate_every}
        self.record |= {"best_step": None, "best": {}, "waited": 0, "stopped": False}

    def train(self, draw: Callable, losses: Callable, validate: Callable | None, on_step: Callable | None, compares_rows: bool) -> Trained:
        self._resume()
        self.accelerator.wait_for_everyone()
        if self.record["flops"] is None:
            self.record["flops"] = self._flops(draw(0), losses, compares_rows)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        interrupted = _Signal()
        begun = time.monotonic() - self.record["seconds"]
        steps = range(self.step, self.total)
        with (
            interrupted,
            tensorboard(self.label, self.step, self.accelerator.is_main_process) as board,
            drawn_ahead(lambda step: self._shared_out(draw(step)), steps) as batch,
        ):
            self.curves = Curves(self.record, self.total, board)
            if validate is not None and not self.step:
                self._validate_first(validate)
            for step in track(steps, self.label, start=self.step) if self.accelerator.is_main_process else steps:
                if self.record["stopped"]:
                    break
                torch.manual_seed(stream_seed(self.seed, "step", step, self.accelerator.process_index))
                self.module.train()
                values = self._one_step(*batch(step), losses)
                self.step = step + 1
                self.curves.note(self.step, values)
                if validate is not None and (self.step % self.record["apart"] == 0 or self.step == self.total):
                    self._validate(validate)
                self.record["seconds"] = time.monotonic() - begun
                if on_step is not None:
                    on_step(self.step)
                stop = self._any(interrupted.received)
                if stop or self.step == self.total or self.record["stopped"] or self.checkpoint.due:
                    self._save()
                if stop:
                    say(f"{self.label}: stopped in step {self.step} of {self.total}; the checkpoint is written")
                    raise KeyboardInterrupt
        self._keep()
        return self._trained()

    def _shared_out(self, batch: Any) -> tuple[Any, list[Any]]:
        """A batch, and this process's micro-batches of it, ready to travel."""
        rows, processes, accumulate = rows_of(batch), self.accelerator.num_processes, self.settings.accumulate
        if rows < processes * accumulate:
            raise InputError(
                f"{self.label}: {rows} rows a step cannot be shared by {processes} processes x training.accumulate {accumulate}; raise training.batch_size"
            )
        own = range(self.accelerator.process_index * accumulate, (self.accelerator.process_index + 1) * accumulate)
        parts = [part_of(batch, index, processes * accumulate) for index in own]
        if self.gathers and len(parts) * processes > 1:
            parts = [part | {"whole": {column: batch[column] for column in self.gathers}} for part in parts]
        return batch, [packed(part, pinned=True) for part in parts] if self.device.type == "cuda" else parts

    def _one_step(self, batch: Any, parts: list[Any], losses: Callable) -> dict[str, float]:
        rows, accelerator = rows_of(batch), self.accelerator
        self.stepper.zero_grad()
        totals: Tensor | None = None
        for waiting in parts:
            part = moved(waiting, self.device)
            share = rows_of(part) / rows
            with accelerator.autocast():
                terms = losses(self.module, part)
            values = torch.stack([value.float() for value in terms.values()])
            accelerator.backward(values.sum() * share)
            totals = values.detach() * share if totals is None else totals + values.detach() * share
        assert totals is not None
        totals = accelerator.reduce(totals, "sum")
        named = dict(zip(terms, totals.tolist(), strict=True))
        for term, value in named.items():
            if not math.isfinite(value):
                raise InputError(
                    f"{self.label}: the loss {term!r} is {value} in step {self.step}, samples {described(batch)}; look for extreme values there, "
                    f"or lower training.learning_rate (now {self.settings.learning_rate}) or use training.precision: fp32"
                )
        self._reduce_gradients()
        scale = _schedule(self.step, self.total, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * scale * group["factor"]
        accelerator.clip_grad_norm_(list(self.parameters.values()), self.settings.clip)
        self.stepper.step()
        if accelerator.num_processes > 1:
            for buffer in self.buffers.values():
                buffer.copy_(broadcast(buffer, from_process=0))
        if self.ema:
            decay = min(self.settings.ema or 0.0, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for name, average in self.ema.items():
                    average.lerp_(self.parameters[name].detach(), 1 - decay)
        return named

    def _reduce_gradients(self) -> None:
        """Sum over processes; shares were weighted when the loss was taken."""
        if self.accelerator.num_processes == 1:
            return
        parameters = list(self.parameters.values())
        used = self.accelerator.reduce(torch.tensor([float(p.grad is not None) for p in parameters], device=self.device), "sum")
        parameters = [parameter for parameter, count in zip(parameters, used.tolist(), strict=True) if count]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        flat = self.accelerator.reduce(flat, "sum")
        for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum").item())

    def _validate_first(self, validate: Callable) -> None:
        """Validate before any step, and see from what it costs how far apart validations must be."""
        with counted_flops() as counter:
            self._validate(validate)
        step = 2 * self.record["flops"] * self.samples  # backwards costs at least as much again
        if step > 0:
            self.record["apart"] = max(self.settings.validate_every, math.ceil(counter.get_total_flops() / (VALIDATION_SHARE * step)))

    def _validate(self, validate: Callable) -> None:
        torch.manual_seed(stream_seed(self.seed, "validate"))
        self.module.eval()
        with self._averaged(), torch.no_grad(), self.accelerator.autocast():
            values = {term: float(value) for term, value in validate(self.module).items()}
            if self.accelerator.num_processes > 1:
                values = broadcast_object_list([values])[0]
            for term, value in values.items():
                if not math.isfinite(value):
                    raise InputError(
                        f"{self.label}: the validation's {term!r} is {value} in step {self.step}; look for extreme values in the held-out samples, "
                        f"or lower training.learning_rate (now {self.settings.learning_rate}) or use training.precision: fp32"
                    )
            record, first = self.record, next(iter(values))
            self.curves.note_validation(self.step, values)
            if not record["best"] or values[first] < record["best"][first]:
                record.update(best=values, best_step=self.step, waited=0)
                self.best = {name: tensor.detach().clone() for name, tensor in (*self.parameters.items(), *self.buffers.items())}
            else:
                record["waited"] += 1
                record["stopped"] = self.settings.patience is not None and record["waited"] >= self.settings.patience

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The module with its averaged weights."""
        if not self.ema:
            yield
            return
        with torch.no_grad():
            kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
            for name, parameter in self.parameters.items():
                parameter.copy_(self.ema[name])
            yield
            for name, parameter in self.parameters.items():
                parameter.copy_(kept[name])

    def _keep(self) -> None:
        """Leave the weights to keep in the module."""
        kept = self.best or self.ema
        with torch.no_grad():
            for name, tensor in (*self.parameters.items(), *self.buffers.items()):
                if name in kept:
                    tensor.copy_(kept[name])
        self.module.eval()

    def _trained(self) -> Trained:
        record = self.record
        efficiency = {
            "parameters": sum(parameter.numel() for parameter in self.module.parameters()),
            "trainable_parameters": sum(parameter.numel() for parameter in self.parameters.values()),
            "flops_per_sample": record["flops"],
            "peak_memory": peak_memory(self.device),
            "samples_per_second": self.samples * self.step / max(record["seconds"], 1e-9),
            "seconds": record["seconds"],
            "conditions": conditions(self.device, self.settings.precision, self.settings.batch_size, self.settings.accumulate, self.accelerator.num_processes),
        }
        return Trained(self.step, record["best_step"], record["best"], [tuple(row) for row in record["losses"]], efficiency)

    def _flops(self, batch: Any, losses: Callable, compares_rows: bool) -> float:
        """Floating-point operations of the forward pass (losses included) per sample of a micro-batch.

        Rows that are not compared cost a subject's share each and, together, what any batch costs: few rows tell both.
        """
        self.module.eval()

        def count(start: int, stop: int) -> int:
            with self.accelerator.autocast():
                part = moved(between(batch, start, stop), self.device)
                return count_flops(lambda: losses(self.module, part))

        rows = rows_of(batch)
        if compares_rows:
            return count(0, rows) / rows
        subjects = batch.get("subject", [""] * rows) if isinstance(batch, dict) else [""] * rows
        one = {name: count(row := subjects.index(name), row + 1) for name in dict.fromkeys(subjects)}
        fixed = sum(one[name] for name in subjects[:2]) - count(0, 2) if rows > 1 else 0
        parts = min(rows, self.accelerator.num_processes * self.settings.accumulate)
        return sum(one[name] - fixed for name in subjects) / rows + fixed * parts / rows

    # --- checkpoints ---

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        tensors = {f"model.{name}": tensor for name, tensor in (*self.parameters.items(), *self.buffers.items())}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"optimizer.{key}.{name}": torch.as_tensor(value) for key, value in self.optimizer.state.get(parameter, {}).items()}
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
        self.checkpoint.write(tensors, {"step": self.step, "record": self.record, "scaler": scaler})

    def _resume(self) -> None:
        found = self.checkpoint.read()
        if found is None:
            return
        tensors, state = found
        with torch.no_grad():
            for name, tensor in (*self.parameters.items(), *self.buffers.items()):
                tensor.copy_(tensors[f"model.{name}"])
        for name, parameter in self.parameters.items():
            own = {key: tensors[place] for key in ("step", "exp_avg", "exp_avg_sq") if (place := f"optimizer.{key}.{name}") in tensors}
            if own:  # AdamW keeps its step count on the CPU, its moments as the parameter lies in memory
                self.optimizer.state[parameter] = {key: value if key == "step" else torch.empty_like(parameter).copy_(value) for key, value in own.items()}
        self.ema = {name: tensors[f"ema.{name}"].to(self.device) for name in self.ema}
        self.best = {name[5:]: tensor.to(self.device) for name, tensor in tensors.items() if name.startswith("best.")}
        self.step, self.record = state["step"], state["record"]
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        say(f"{self.label}: continuing from step {self.step} of {self.total}")


class _Signal:
    """Notes SIGTERM and SIGINT instead of dying, so that a step can end and be written."""

    def __init__(self) -> None:
        self.received = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "_Signal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.received:  # asked twice: at once
            raise KeyboardInterrupt
        self.received = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _schedule(step: int, total: int, warmup: float) -> float:
    """Factor on the learning rate: linear warm-up over a share of the steps, then a half cosine to zero."""
    rising = int(round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def _accelerator(precision: str) -> Accelerator:
    """A fresh Accelerator on the device of `UNIMIND_DEVICE`, or on a free GPU; each of several processes takes one of its own."""
    alone = "LOCAL_RANK" not in os.environ
    device = on_device()
    AcceleratorState._reset_state(reset_partial_state=alone)  # accelerate keeps one state per process; every training sets its own
    choose_precision(precision, device, "training")
    if device.index is not None:
        torch.cuda.set_device(device)
    with patch_environment(**({} if device.index is None else {"ACCELERATE_TORCH_DEVICE": str(device)})):
        return Accelerator(mixed_precision=precision if precision in ("bf16", "fp16") else "no", cpu=device.type == "cpu")
