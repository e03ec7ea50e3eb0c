"""The device that networks run on."""

import os
import platform
import re
from pathlib import Path

import torch

from unimind.cards import take_card
from unimind.errors import InputError


def on_device(device: torch.device | str | None = None) -> torch.device:
    """A device: the one given, else the one that `UNIMIND_DEVICE` names (cpu, cuda, cuda:1), else a GPU where there is one.

    Of several GPUs that nobody has chosen from, this process takes a free one and keeps it (`cards.take_card`); where several were taken
    for as many processes, the one of its place among them (`LOCAL_RANK`).

    Raises
    ------
    InputError
        `UNIMIND_DEVICE` names no device, or one that is not there; or there are more processes than GPUs.
    """
    if device:
        return torch.device(device)
    given = os.environ.get("UNIMIND_DEVICE", "").lower()
    if not re.fullmatch(r"|cpu|cuda(:\d+)?", given):
        raise InputError(f"UNIMIND_DEVICE: {given!r} given; expected cpu, cuda or, for one of several GPUs, cuda:0, cuda:1, ...")
    rank = os.environ.get("LOCAL_RANK")
    if rank is not None and re.fullmatch(r"cuda:\d+", given):
        raise InputError(f"UNIMIND_DEVICE: {given} given, but each of several processes has a GPU of its own; set UNIMIND_DEVICE=cuda")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if given.startswith("cuda") and not count:
        raise InputError(f"UNIMIND_DEVICE: {given} given, but torch finds no GPU here; run `unimind doctor`, or set UNIMIND_DEVICE=cpu")
    if rank is not None and given != "cpu" and 0 < count <= int(rank):
        raise InputError(f"processes: more than the {count} GPUs here; lower `processes`")
    named = torch.device(given or ("cuda" if count else "cpu"))
    if named.index is None and given != "cpu":
        card = take_card()
        card = int(rank) if card is None and rank is not None else card
        if card is not None and count > 1:
            named = torch.device("cuda", card)
            torch.cuda.set_device(named)
    if named.index is not None and named.index >= count:
        raise InputError(f"UNIMIND_DEVICE: {given} given, but there {'is 1 GPU' if count == 1 else f'are {count} GPUs'} here, counted from cuda:0")
    return named


def device_name(device: torch.device) -> str:
    """The model of a GPU or of the processor, as the machine names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    known = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", known.read_text(), re.MULTILINE) if known.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def choose_precision(precision: str, device: torch.device, key: str) -> torch.dtype | None:
    """Set what float32 products on a GPU are computed in (TF32 where `precision` is tf32), and say what to cast to: None for nothing.

    Parameters
    ----------
    precision : str
        fp32, tf32, bf16 or fp16.
    device : torch.device
    key : str
        The part of the study that `precision` stands in, for messages.

    Raises
    ------
    InputError
        The device has no such precision.
    """
    if device.type == "cpu" and precision in ("tf32", "fp16"):
        raise InputError(f"{key}.precision: {precision} needs a GPU; use bf16 or fp32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
