"""Weight files of frozen networks: found by a path with `$VARIABLES`, read without ever running a pickle."""

import os
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimind.errors import InputError

if TYPE_CHECKING:
    import torch


def local_file(given: str | Path, what: str) -> Path:
    """The file a setting names, `$VARIABLES` and `~` expanded.

    Parameters
    ----------
    given : str
        The path as written in the study.
    what : str
        What should be there, for the message.

    Raises
    ------
    InputError
        When a variable is not set or the file does not exist.
    """
    expanded = os.path.expanduser(os.path.expandvars(str(given)))
    unset = re.match(r"\$\{?(\w+)", expanded)
    if unset:
        raise InputError(f"{given}: {what} looked for there, but the environment variable {unset[1]} is not set; set it, or write the path into the study")
    path = Path(expanded)
    if not path.is_file():
        raise InputError(f"{path}: no such file; {what} expected there; put it in place or name another path in the study (see docs/foundations.md)")
    return path


def read_safetensors(path: Path) -> "dict[str, torch.Tensor]":
    """All tensors of a safetensors file, on the CPU; InputError when it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); get it again") from None


class _Inert:
    """Stands for an object of another library in a checkpoint: holds what it is given and does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass


def read_checkpoint(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a training checkpoint (`.ckpt`, `.pt`, `.bin`: torch's zip format) or of a safetensors file.

    torch's restricted reader is used, which builds tensors and plain containers only. Objects of the training framework
    that stand beside the weights become inert placeholders: their code is neither imported nor run.

    Returns
    -------
    dict of str to torch.Tensor
        The `state_dict` of the checkpoint, without anything that is not a tensor.

    Raises
    ------
    InputError
        When the file cannot be read that way.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    try:
        foreign: list[Any] = [(_Inert, name) for name in get_unsafe_globals_in_checkpoint(str(path))]
        with safe_globals(foreign):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = (str(error).splitlines() or ["empty"])[0]
        raise InputError(f"{path}: cannot be read as tensors only ({reason}); convert it to .safetensors and name that file") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise InputError(f"{path}: holds no state dict of tensors; name a checkpoint with weights, or its .safetensors")
    return tensors
