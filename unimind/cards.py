"""Graphics cards of one machine: every process that computes on one has it to itself.

A process takes a free card by a lock on the card's device file, which the operating system releases when the process ends,
however it ends. Where several processes share a job, their launcher takes a card for each (`python -m unimind.cards`). Who sees one card
alone, as in a job to which SLURM gave one, takes none.
"""

import fcntl
import os
import random
import sys
import tempfile
import time
from glob import glob
from pathlib import Path

from unimind.errors import InputError
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
    """Number of the card that this process has to itself from now until its end.

    None where there is one at most to choose from, or a launcher took one for each of its processes. Waits while other processes
    have all of them, and says so.
    """
    if "LOCAL_RANK" in os.environ or len(cards()) < 2:
        return None
    if not _taken:
        take_cards(1)
    return next(iter(_taken))


def take_cards(count: int) -> list[int]:
    """Numbers of so many cards, which this process has to itself until its end.

    It takes all of them or, for the time being, none: two jobs that each hold what the other waits for would wait for ever.

    Raises
    ------
    InputError
        There are not so many.
    """
    files = _locks(cards())
    if len(files) < count:
        raise InputError(f"processes: {count} given, but there are {len(files)} graphics cards here; lower `processes`")
    waited = False
    while True:
        for number, file in enumerate(files):
            handle = os.open(file, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            _taken[number] = handle
            if len(_taken) == count:
                return list(_taken)
        while _taken:
            os.close(_taken.popitem()[1])
        if not waited:
            all_of = f"all {len(files)} graphics cards are" if count == 1 else f"of {len(files)} graphics cards too many are"
            say(f"{all_of} in use; waiting for {'a free one (UNIMIND_DEVICE=cuda:0 would not wait)' if count == 1 else f'{count} free ones'}")
        waited = True
        time.sleep(PAUSE * random.uniform(0.5, 1.5))  # so that two who want the same do not look at the same moment for ever


def _locks(files: list[Path]) -> list[Path]:
    """The files whose locks stand for cards: the device files, and in a SLURM job, which may not open all of these, files of the job's step."""
    if "SLURM_JOB_ID" not in os.environ:
        return files
    step = "-".join(os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    folder = Path(tempfile.gettempdir(), f"unimind-cards-{os.getuid()}-{step}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = [folder / str(number) for number in range(len(files))]
    for file in found:
        file.touch()
    return found


def main() -> None:
    """Run a program with so many cards: `python -m unimind.cards 2 program ...`. Without a card, or with one alone, it runs as it is."""
    count, program = int(sys.argv[1]), sys.argv[2:]
    if os.environ.get("UNIMIND_DEVICE", "").lower() != "cpu" and len(cards()) > 1:
        try:
            own = take_cards(count)
        except InputError as error:
            sys.exit(f"unimind: {error}")
        for handle in _taken.values():
            os.set_inheritable(handle, True)  # the program has the locks from now on
        names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[number] if names else str(number) for number in own)
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
