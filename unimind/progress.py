"""What a person sees while a stage works: a bar on a terminal, a line now and then in a log. All on stderr."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def say(message: str) -> None:
    """One line to stderr, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def track(items: Iterable[Item], label: str, total: int | None = None, start: int = 0, every: float = 15.0) -> Iterator[Item]:
    """Iterate with progress: a bar with the time left on a terminal, otherwise a line at most every `every` seconds.

    Parameters
    ----------
    items : iterable
    label : str
        What is going on, in words a researcher knows.
    total : int, optional
        Number of items in the whole work; by default `len(items)` where it is known.
    start : int
        How many were done before (a resumed training).
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items) + start  # type: ignore[arg-type]
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=label, total=total, initial=start, leave=False)
        return
    begun = last = time.monotonic()
    done = start
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= every:
            left = f", about {(now - begun) / (done - start) * (total - done):.0f} s left" if total else ""
            say(f"{label}: {done}{f' of {total}' if total else ''}{left}")
            last = now
