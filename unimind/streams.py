"""Random numbers that depend on what they are for, and on nothing that came before: every step can be drawn by itself."""

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Built = TypeVar("Built")


def stream_seed(*keys: Any) -> int:
    """A 63-bit seed that depends on all of `keys` and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:8], "big") >> 1


def generator(*keys: Any) -> torch.Generator:
    """A CPU random generator seeded from `keys`."""
    return torch.Generator().manual_seed(stream_seed(*keys))


def placed(place: str, build: Callable[[], Built]) -> Built:
    """Build a part of a network, its initial weights drawn by its place: by the seed in force and `place`, whatever was or is built beside it.

    Parts may have parts that are placed in them. What is drawn afterwards is what would have been drawn without.
    """
    state, seed = torch.get_rng_state(), torch.initial_seed()
    torch.default_generator.manual_seed(stream_seed(seed, place))
    try:
        return build()
    finally:
        torch.set_rng_state(state)


def drawn(n: int, size: int, step: int, *keys: Any) -> Tensor:
    """Indices of the batch of one step, drawn without replacement epoch by epoch.

    Parameters
    ----------
    n : int
        Number of samples.
    size : int
        Samples per step; may exceed `n`.
    step : int
        Step number, from 0.

    Returns
    -------
    Tensor
        int64 (size,), values in [0, n).
    """
    return at_places(n, torch.arange(step * size, (step + 1) * size), *keys)


def at_places(n: int, places: Tensor, *keys: Any) -> Tensor:
    """Indices at some places of an endless sequence of epochs, each of all `n` samples in an order of its own.

    The order of epoch e is a permutation seeded from (`keys`, e), so that any place is known without the ones before it.

    Parameters
    ----------
    n : int
        Number of samples.
    places : Tensor
        int64 (size,), ascending.

    Returns
    -------
    Tensor
        int64 (size,), values in [0, n).
    """
    epochs = places // n
    pieces = [torch.empty(0, dtype=torch.int64)]
    for epoch in epochs.unique().tolist():
        order = torch.randperm(n, generator=generator(*keys, "epoch", epoch))
        pieces.append(order[places[epochs == epoch] % n])
    return torch.cat(pieces)
