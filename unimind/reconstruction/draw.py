"""Pictures from conditions, a batch at a time, and kept as they are drawn."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.foundations.diffusion import Condition, Diffusion
from unimind.foundations.generators.samplers import sample
from unimind.progress import say, track
from unimind.storage import whole_file
from unimind.study import Sampling

#: Pictures per pass through the autoencoder on a CPU: full-size maps then stay in its caches.
DECODED_AT_ONCE = 8


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Pictures (n, 3, H, W) in [0, 1] as uint8 (n, H, W, 3)."""
    return images.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def draw(
    diffusion: Diffusion, autoencoder, condition: Condition, null: Condition, sampling: Sampling, keys: Sequence[tuple], start: Tensor | None = None
) -> NDArray[np.uint8]:
    """One picture per row of the condition, all in one batch: uint8 (n, H, W, 3). The arguments are those of `sample`."""
    latents = sample(diffusion, condition, null, sampling, keys, start)
    with torch.no_grad():
        return np.concatenate([to_bytes(autoencoder.decode(part)) for part in latents.split(len(latents) if latents.is_cuda else DECODED_AT_ONCE)])


def draw_pictures(
    diffusion: Diffusion, autoencoder, condition: Condition, null: Condition, sampling: Sampling, keys: list[tuple], batch: int, label: str,
    start: Tensor | None = None,
) -> NDArray[np.uint8]:  # fmt: skip
    """One picture per row of the condition, in batches: uint8 (n, H, W, 3)."""
    found = []
    for rows in track(torch.arange(len(keys)).split(batch), label):
        part = Condition(*(column[rows] for column in condition))
        found.append(draw(diffusion, autoencoder, part, null, sampling, [keys[row] for row in rows], None if start is None else start[rows]))
    return np.concatenate(found)


def kept_blocks(
    folder: Path, mark: str, count: int, size: int, make: Callable[[NDArray[np.int64]], dict[str, NDArray[Any]]], label: str
) -> Iterator[tuple[slice, dict[str, NDArray[Any]]]]:
    """Make `count` rows of something in blocks of `size`, each written when it is made; then give the blocks back in their order.

    What an earlier run wrote and did not live to finish is not made again; as blocks are always the same, so is the result.

    Parameters
    ----------
    folder : Path
        Where blocks are kept. The caller removes it when it has what it wanted.
    mark : str
        Blocks of another mark are thrown away.
    make : function
        Rows, ascending -> arrays of as many rows.
    label : str
        What is made, for progress.
    """
    for other in folder.glob("*"):
        if other.name != mark:
            shutil.rmtree(other)
    blocks = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    files = {block.start: folder / mark / f"{block.start}.npz" for block in blocks}
    missing = [block for block in blocks if not files[block.start].exists()]
    if len(missing) < len(blocks):
        say(f"{label}: continuing after {len(blocks) - len(missing)} of {len(blocks)} blocks of {size}")
    for block in track(missing, label, total=len(blocks), start=len(blocks) - len(missing)):
        made = make(np.arange(block.start, block.stop))
        with whole_file(files[block.start]) as temporary:
            np.savez(temporary, **made)  # type: ignore[arg-type]
    for block in blocks:
        with np.load(files[block.start]) as stored:
            yield block, dict(stored)
