"""`unimind doctor`: is this machine ready, and what to do where it is not."""

from glob import glob


def graphics_cards() -> int:
    """Number of NVIDIA cards of this machine, found without loading torch."""
    return len(glob("/dev/nvidia[0-9]*"))
