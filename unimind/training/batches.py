"""Batches on their way to the device: parts of their rows, and the next ones drawn while the device works."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

#: Batches drawn ahead of the one at work: one waits while the next is drawn.
AHEAD = 2

Batch = TypeVar("Batch")


def rows_of(batch: Any) -> int:
    """Rows of a batch: the length of its columns."""
    return len(next(iter(batch.values())) if isinstance(batch, dict) else batch)


def part_of(batch: Any, index: int, parts: int) -> Any:
    """Part `index` of `parts` of a batch's rows; parts differ by one row at most."""
    return between(batch, *bounds_of(rows_of(batch), index, parts))


def bounds_of(rows: int, index: int, parts: int) -> tuple[int, int]:
    """First row of part `index` of `parts`, and the one after its last."""
    return index * rows // parts, (index + 1) * rows // parts


def between(batch: Any, start: int, stop: int) -> Any:
    """Rows of a batch from `start` to before `stop`."""
    return {key: between(column, start, stop) for key, column in batch.items()} if isinstance(batch, dict) else batch[start:stop]


class Packed(NamedTuple):
    """A column of rows whose lengths differ, one tensor for each length: few large copies to the device instead of one a row.

    Attributes
    ----------
    stacks : list of Tensor
        (n, ...) each.
    places : list of list of int
        Where each stack's rows stand in the column.
    """

    stacks: list[Tensor]
    places: list[list[int]]

    @classmethod
    def of(cls, rows: list[Tensor]) -> "Packed":
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(tuple(row.shape), []).append(place)
        return cls([torch.stack([rows[place] for place in own]) for own in groups.values()], list(groups.values()))

    def to(self, device: torch.device) -> list[Tensor]:
        """The rows, on a device."""
        found: dict[int, Tensor] = {}
        for stack, places in zip(self.stacks, self.places, strict=True):
            found.update(zip(places, stack.to(device, non_blocking=True).unbind(), strict=True))
        return [found[place] for place in range(len(found))]


def packed(part: Any, pinned: bool) -> Any:
    """A part as it travels best: rows of one length together, in memory that the device reads by itself where `pinned`."""
    if isinstance(part, dict):
        return {key: packed(column, pinned) for key, column in part.items()}
    if isinstance(part, list) and part and all(isinstance(row, Tensor) for row in part):
        stacks, places = Packed.of(part)
        return Packed([packed(stack, pinned) for stack in stacks], places)
    return part.pin_memory() if pinned and isinstance(part, Tensor) and part.device.type == "cpu" else part


def moved(part: Any, device: torch.device) -> Any:
    """A part on a device."""
    if isinstance(part, dict):
        return {key: moved(column, device) for key, column in part.items()}
    if isinstance(part, Tensor):
        return part.to(device, non_blocking=True)
    return part.to(device) if isinstance(part, Packed) else part


@contextmanager
def drawn_ahead(draw: Callable[[int], Batch], steps: range) -> Iterator[Callable[[int], Batch]]:
    """A function that gives `draw(step)` for ascending steps, drawn by a thread while the caller works on those before.

    `draw` must be a pure function of the step. What it raises is raised where its step is asked for.
    """
    pending: dict[int, Future[Batch]] = {}
    coming = iter(steps)
    with ThreadPoolExecutor(1, "batches") as thread:

        def batch(step: int) -> Batch:
            while len(pending) < AHEAD and (number := next(coming, None)) is not None:
                pending[number] = thread.submit(draw, number)
            found = pending.pop(step)
            if (number := next(coming, None)) is not None:
                pending[number] = thread.submit(draw, number)
            return found.result()

        try:
            yield batch
        finally:
            thread.shutdown(wait=True, cancel_futures=True)


def described(batch: Any) -> str:
    """Which samples a batch holds: its column `index`, by its column `subject` where there is one, shortened."""
    if not isinstance(batch, dict) or "index" not in batch:
        return "not named by the batch"
    found: dict[str, list[int]] = {}
    for subject, index in zip(batch.get("subject", [""] * rows_of(batch)), batch["index"].tolist(), strict=True):
        found.setdefault(subject, []).append(index)
    return "; ".join(f"{subject} {own[:16]}{'...' if len(own) > 16 else ''}".strip() for subject, own in found.items())
