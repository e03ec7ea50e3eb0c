"""Pictures compared with truths pair by pair, as measures do that need maps or pixels: in blocks of truths, each picture prepared as seldom as can be."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from unimind.blocks import Arrays, Blocks, Work
from unimind.evaluation import networks
from unimind.evaluation.pictures import PictureSet, slices

# Results depend on none of these.
PAIRS_AT_ONCE = 8  # truths per step, whose maps are large
MAPS_AT_ONCE = 2  # pictures whose maps are made together on a CPU: more than two, and they leave its caches
#: Truths, and pictures that stand for none of them alone, of a block: seconds to minutes of work.
TRUTHS_A_BLOCK, PICTURES_A_BLOCK = 32, 256

Prepare = Callable[[torch.Tensor], tuple[Any, torch.Tensor | None]]
VectorPair = tuple[np.ndarray, np.ndarray]


def chained(pairs: np.ndarray, n: int) -> np.ndarray:
    """An order of the n truths in which those that are compared with the same picture follow each other.

    The row `chance` compares every picture with a second truth; so ordered, both fall into one batch but for its ends.
    """
    pictures, place, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
    partners: list[list[int]] = [[] for _ in range(n)]
    for picture in np.flatnonzero(counts == 2):
        a, b = pairs[place == picture, 0].tolist()
        partners[a].append(b)
        partners[b].append(a)
    order: list[int] = []
    seen = np.zeros(n, bool)
    for start in range(n):
        here: int | None = start
        while here is not None and not seen[here]:
            seen[here] = True
            order.append(here)
            here = next((other for other in partners[here] if not seen[other]), None)
    return np.array(order, int)


def paired(
    truths: PictureSet,
    pictures: PictureSet,
    pairs: np.ndarray,
    prepare: Prepare,
    compare: Callable[[Any, Any], torch.Tensor],
    batch_size: int,
    label: str,
    vectors: bool = False,
    blocks: Blocks | None = None,
    name: str = "",
) -> Callable[[], tuple[np.ndarray, VectorPair | None]]:
    """Compare pictures with truths pair by pair, preparing each truth once and each picture once per batch of truths.

    Parameters
    ----------
    pairs : int array (p, 2)
        (truth, picture), sorted by truth.
    prepare : callable
        Pictures (b, 3, H, W) -> what is compared (to be sliced), and a vector per picture or None.
    compare : callable
        One prepared truth, one prepared picture -> (1, measures).
    vectors : bool
        Whether vectors are wanted, of all truths and all pictures.
    blocks : Blocks, optional
        Where the work is kept; by default in memory.
    name : str
        Of the work, among those of `blocks`.

    Returns
    -------
    function
        Called when all blocks are made (`Blocks.all_made`), it gives the values, (p, measures), and (truths' vectors (n, d), pictures' (m, d)) or None.
    """
    blocks = blocks or Blocks()
    order = chained(pairs, len(truths))
    position = np.argsort(order)
    together = batch_size if networks.device().type == "cuda" else min(batch_size, MAPS_AT_ONCE)
    alone = -(-len(truths) // TRUTHS_A_BLOCK)  # the block of pictures that stand for no truth: none
    block_of = np.full(len(pictures), alone)  # the first in which a picture is prepared, which has its vector
    np.minimum.at(block_of, pairs[:, 1], position[pairs[:, 0]] // TRUTHS_A_BLOCK)
    rest = np.flatnonzero(block_of == alone) if vectors else np.empty(0, int)

    def of_truths(places: np.ndarray) -> Arrays:
        rows = _pairs_of(pairs, order[places])
        own_vectors: list[dict[int, np.ndarray]] = [{}, {}]
        values: np.ndarray | None = None
        for part in slices(len(places), batch_size):
            own = np.sort(order[places[part]])
            place = _pairs_of(pairs, own)
            here = pairs[place]
            truth: dict[int, Any] = {}
            for numbers, made in _prepared(prepare, truths, own, together, own_vectors[0] if vectors else None):
                truth |= {number: made[k : k + 1] for k, number in enumerate(numbers.tolist())}
            for numbers, made in _prepared(prepare, pictures, np.unique(here[:, 1]), together, own_vectors[1] if vectors else None):
                for at in np.flatnonzero(np.isin(here[:, 1], numbers)).tolist():
                    j = np.searchsorted(numbers, here[at, 1])
                    found = compare(truth[here[at, 0]], made[j : j + 1]).cpu().numpy()
                    if values is None:
                        values = np.empty((len(rows), found.shape[1]))
                    values[np.searchsorted(rows, place[at])] = found[0]
        kept = {} if values is None else {"values": values}
        if vectors:
            kept["truths"] = _stacked(own_vectors[0], np.sort(order[places]))
            kept["pictures"] = _stacked(own_vectors[1], np.flatnonzero(block_of == places[0] // TRUTHS_A_BLOCK))
        return kept

    def of_pictures(places: np.ndarray) -> Arrays:
        found: dict[int, np.ndarray] = {}
        for _ in _prepared(prepare, pictures, rest[places], together, found):
            pass
        return {"pictures": _stacked(found, rest[places])}

    by_truth = Work(name, len(truths), TRUTHS_A_BLOCK, of_truths, label)
    by_picture = Work(f"{name}-samples", len(rest), PICTURES_A_BLOCK, of_pictures, f"{label}, other samples")
    for work in (by_truth, by_picture):
        blocks.make(work)

    def result() -> tuple[np.ndarray, VectorPair | None]:
        values = np.empty((len(pairs), 1))
        found: dict[str, np.ndarray] = {}

        def put(kind: str, rows: np.ndarray, of_rows: np.ndarray, count: int) -> None:
            if len(rows):
                found.setdefault(kind, np.empty((count, of_rows.shape[1]), np.float32))[rows] = of_rows

        for block, content in blocks.read(by_truth):
            own = order[block]
            if "values" in content:
                if values.shape[1] != content["values"].shape[1]:
                    values = np.empty((len(pairs), content["values"].shape[1]))
                values[_pairs_of(pairs, own)] = content["values"]
            if vectors:
                put("truths", np.sort(own), content["truths"], len(truths))
                put("pictures", np.flatnonzero(block_of == block.start // TRUTHS_A_BLOCK), content["pictures"], len(pictures))
        for block, content in blocks.read(by_picture):
            put("pictures", rest[block], content["pictures"], len(pictures))
        return values, (found["truths"], found["pictures"]) if vectors else None

    return result


def _pairs_of(pairs: np.ndarray, truths: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.isin(pairs[:, 0], truths))


def _prepared(prepare: Prepare, pictures: PictureSet, numbers: np.ndarray, together: int, vectors: dict[int, np.ndarray] | None):
    """Some pictures prepared, a few at a time; their vectors are put where they are wanted and not there."""
    for piece in slices(len(numbers), together):
        made, vector = prepare(pictures.batch(numbers[piece]))
        if vectors is not None:
            assert vector is not None
            for number, own in zip(numbers[piece].tolist(), vector.cpu().numpy(), strict=True):
                vectors.setdefault(number, own)
        yield numbers[piece], made


def _stacked(vectors: dict[int, np.ndarray], numbers: np.ndarray) -> np.ndarray:
    return np.stack([vectors[number] for number in numbers.tolist()]) if len(numbers) else np.empty((0, 0), np.float32)
