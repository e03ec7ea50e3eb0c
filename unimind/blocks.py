"""Work in blocks that are kept as they are made: what a killed run had finished stays, and several processes share the rest."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimind.progress import say, track
from unimind.storage import whole_file

#: How long a process may wait for the others, at most: as long as the longest job of a cluster.
WAIT = timedelta(days=14)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Work:
    """`count` rows of something, to be made in blocks of `size`.

    Attributes
    ----------
    name : str
        Among the works of one `Blocks`; a file name.
    count, size : int
    make : function
        Rows, ascending -> arrays of any length.
    label : str
        What is made, for progress.
    """

    name: str
    count: int
    size: int
    make: Callable[[NDArray[np.int64]], Arrays]
    label: str

    @property
    def blocks(self) -> list[slice]:
        """The blocks, whoever makes them: so the result does not depend on who does."""
        return [slice(first, min(first + self.size, self.count)) for first in range(0, self.count, self.size)]


class Blocks:
    """Blocks of one or several works, in a folder, or in memory where there is none.

    What an earlier run wrote and did not live to finish is not made again; as blocks are always the same, so is the result. Several
    processes (`RANK` and `WORLD_SIZE`, as torch's launchers set them) deal the blocks out among themselves.

    Parameters
    ----------
    folder : Path or None
        Where blocks are kept. The caller removes it when it has what it wanted (`remove`).
    mark : str
        Blocks of another mark are thrown away.
    """

    def __init__(self, folder: Path | None = None, mark: str = "") -> None:
        self.folder, self.mark = folder, mark
        self.rank, self.processes = (int(os.environ.get(name, default)) if folder else default for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
        self.held: dict[tuple[str, int], Arrays] = {}
        if folder and self.rank == 0:
            for other in folder.glob("*"):
                if other.name != mark:
                    shutil.rmtree(other)

    def _file(self, work: Work, block: slice) -> Path | None:
        return self.folder / self.mark / f"{work.name}-{block.start}.npz" if self.folder else None

    def make(self, work: Work) -> None:
        """Make the blocks of a work that are this process's and are not there."""
        own = work.blocks[self.rank :: self.processes]
        missing = [block for block in own if not ((file := self._file(work, block)) and file.exists())]
        if self.rank == 0 and self.folder and (kept := sum(self._file(work, block).exists() for block in work.blocks)):  # type: ignore[union-attr]
            say(f"{work.label}: continuing after {kept} of {len(work.blocks)} blocks of {work.size}")
        shared = f", process {self.rank + 1} of {self.processes}" if self.processes > 1 else ""
        for block in track(missing, work.label + shared, total=len(own), start=len(own) - len(missing)):
            made = work.make(np.arange(block.start, block.stop))
            if file := self._file(work, block):
                with whole_file(file) as temporary:
                    np.savez(temporary, **made)  # type: ignore[arg-type]
            else:
                self.held[work.name, block.start] = made

    def all_made(self) -> bool:
        """Wait until all processes have made what is theirs. Then the first goes on (True), and the others have nothing more to do."""
        if self.processes > 1:
            import torch  # over gloo, which needs no card

            torch.distributed.init_process_group("gloo", timeout=WAIT)
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        return self.rank == 0

    def read(self, work: Work) -> Iterator[tuple[slice, Arrays]]:
        """The blocks of a work, in their order; in memory each can be had once."""
        for block in work.blocks:
            file = self._file(work, block)
            if file is None:
                yield block, self.held.pop((work.name, block.start))
            else:
                with np.load(file) as stored:
                    yield block, dict(stored)

    def remove(self) -> None:
        """Throw all blocks away."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
