"""What is measured of a training: its losses, and what it costs."""

import importlib.util
import math
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unimind.device import device_name
from unimind.errors import InputError

#: Losses are stored as means over windows of steps, so that a long training keeps at most about so many rows a term.
CURVE_POINTS = 2000


@dataclass
class Trained:
    """What a training leaves behind, beside the weights in the module.

    Attributes
    ----------
    steps : int
        Optimiser steps made.
    best_step : int or None
        Step of the weights kept, where validation chose them.
    validation : dict
        Validation values of the weights kept.
    losses : list of (step, split, term, value)
        Rows of `losses.csv`.
    efficiency : dict
        Rows of `efficiency.json`: parameters, trainable_parameters, flops_per_sample (forward pass), peak_memory
        (bytes), samples_per_second, seconds; and `conditions`, under which they were measured.
    """

    steps: int
    best_step: int | None = None
    validation: dict[str, float] = field(default_factory=dict)
    losses: list[tuple[int, str, str, float]] = field(default_factory=list)
    efficiency: dict[str, Any] = field(default_factory=dict)


class Curves:
    """Losses of a training as rows (step, split, term, value): training losses as means over windows of steps.

    Parameters
    ----------
    record : dict
        Where they are kept, in a form that JSON knows: a checkpoint's.
    total : int
        Steps of the training.
    board : SummaryWriter or None
        Gets the same values.
    """

    def __init__(self, record: dict[str, Any], total: int, board: Any) -> None:
        self.record, self.total, self.board = record, total, board
        self.window = max(1, math.ceil(total / CURVE_POINTS))

    def note(self, step: int, values: dict[str, float]) -> None:
        """Losses of the step that ended with number `step`, their sum beside them where they are several."""
        record = self.record
        values = {**values, "total": sum(values.values())} if len(values) > 1 else values
        for term, value in values.items():
            record["pending"][term] = record["pending"].get(term, 0.0) + value
        record["pending_count"] += 1
        if record["pending_count"] == self.window or step == self.total:
            self._add(step, "train", {term: value / record["pending_count"] for term, value in record["pending"].items()})
            record["pending"], record["pending_count"] = {}, 0

    def note_validation(self, step: int, values: dict[str, float]) -> None:
        """Values of a validation after `step` steps."""
        self._add(step, "validation", values)

    def _add(self, step: int, split: str, values: dict[str, float]) -> None:
        for term, value in values.items():
            self.record["losses"].append([step, split, term, value])
            if self.board is not None:
                self.board.add_scalar(f"{split}/{term}", value, step)


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's allocated maximum since training began, or the process's largest resident size on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def conditions(device: torch.device, precision: str, batch_size: int | None, accumulate: int = 1, processes: int = 1) -> dict[str, Any]:
    """What speed and memory depend on beside the network; `batch_size` None: all at once."""
    return {
        "device": device_name(device), "processes": processes, "threads": torch.get_num_threads(), "precision": precision, "batch_size": batch_size,
        "accumulate": accumulate, "torch": torch.__version__,
    }  # fmt: skip


@contextmanager
def counted_flops() -> Iterator[Any]:
    """Count what is computed within, by torch's counter; `.get_total_flops()` afterwards."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        yield counter


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of a call without gradients, by torch's counter (matrix products, convolutions, attention)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with counted_flops() as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused CPU attention is not in every torch's list
        function()
    return counter.get_total_flops()


@contextmanager
def tensorboard(label: str, step: int, main: bool) -> Iterator[Any]:
    """A SummaryWriter of a training in a folder of its own below `UNIMIND_TENSORBOARD`, where that is set; else None."""
    folder = os.environ.get("UNIMIND_TENSORBOARD")
    if not folder or not main:
        yield None
        return
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("UNIMIND_TENSORBOARD: set, but TensorBoard is not installed here; pip install tensorboard, or unset it")
    from torch.utils.tensorboard import SummaryWriter

    place = Path(folder) / re.sub(r"[^\w.-]+", "-", label)
    with SummaryWriter(place, purge_step=step + 1) as board:  # what a killed run wrote beyond its checkpoint is not shown
        yield board
