"""Graphics cards of one machine: every process that computes on one has it to itself.

A process takes a free card by a lock on the card's device file, which the operating system releases when the process ends,
however it ends. Under a scheduler that hands out cards itself, as SLURM does, there is nothing to take.
"""

import fcntl
import os
import time
from glob import glob
from pathlib import Path

from unimind.progress import say

#: A folder of files that stand in for the device files of cards, for trying out without any.
STAND_INS = "UNIMIND_CARDS"
#: Seconds between two looks for a free card.
PAUSE = 1.0

_taken: dict[int, int] = {}  # card -> the open file that holds its lock


def cards() -> list[Path]:
    """Device files of the cards that this process may use, in the order in which torch counts them; found without loading torch.

    Of several cards, `CUDA_VISIBLE_DEVICES` names those that may be used.
    """
    if folder := os.environ.get(STAND_INS):
        return sorted(Path(folder).iterdir())
    files = {int(name.removeprefix("/dev/nvidia")): Path(name) for name in glob("/dev/nvidia[0-9]*")}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [files[number] for number in sorted(files)]
    named = [name.strip() for name in visible.split(",") if name.strip()]
    if all(name.isdecimal() and int(name) in files for name in named):
        return [files[int(name)] for name in named]
    return [files[number] for number in sorted(files)][: len(named)]


def take_card() -> int | None:
    """Number of the card that this process has to itself from now until its end; None where there is one at most to choose from, or a scheduler has chosen.

    Waits, and says so, while other processes have all of them.
    """
    if "SLURM_JOB_ID" in os.environ or len(files := cards()) < 2:
        return None
    if _taken:
        return next(iter(_taken))
    waited = False
    while True:
        for number, file in enumerate(files):
            handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            _taken[number] = handle
            return number
        if not waited:
            say(f"all {len(files)} graphics cards are in use; waiting for a free one (UNIMIND_DEVICE=cuda:0 would not wait)")
        waited = True
        time.sleep(PAUSE)
