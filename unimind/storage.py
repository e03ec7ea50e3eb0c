"""Files that appear whole or not at all, and models on disk without pickles.

Every artefact is written under a temporary name in its final directory and renamed when complete, so that a killed
stage never leaves something that looks finished.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unimind.errors import InputError


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _give_rights(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; it replaces `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        _give_rights(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _give_rights(path: Path) -> None:
    """Give a file, or a folder and all in it, the rights of what `open` and `mkdir` make: `tempfile` and safetensors keep theirs to the owner.

    What a folder hands on to its content, such as its group, stays.
    """
    mask = os.umask(0)
    os.umask(mask)
    for each in [path, *(path.rglob("*") if path.is_dir() else ())]:
        if not each.is_symlink():
            os.chmod(each, (each.stat().st_mode & 0o7000) | ((0o777 if each.is_dir() else 0o666) & ~mask))


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all. NaN is refused: it is not JSON."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; InputError when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the stage that writes it first") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not a JSON file ({error}); delete it and run again") from None


def content_hash(content: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-able object, independent of key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: str | Path) -> str:
    """SHA-256 (64 hex digits) of a file, read in pieces of 1 MiB."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_model(directory: str | Path, state: dict, config: dict[str, Any]) -> None:
    """Write `model.safetensors` and `config.json` into `directory` (an open `whole_directory`).

    Parameters
    ----------
    directory : path
        An existing directory.
    state : dict of str to torch.Tensor
        The weights; made contiguous, copied to the CPU.
    config : dict
        Constructor arguments of the model plus study hash, data hashes and code version.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, Path(directory) / "model.safetensors")
    write_json(Path(directory) / "config.json", config)


def load_model(directory: str | Path) -> tuple[dict, dict[str, Any]]:
    """Read what `save_model` wrote: (state dict on the CPU, config). InputError when either file is missing or broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    config = read_json(directory / "config.json")
    weights = directory / "model.safetensors"
    if not weights.exists():
        raise InputError(f"{weights}: no such file; run the stage that trains this model first")
    try:
        return load_file(weights), config
    except SafetensorError as error:
        raise InputError(f"{weights}: not a safetensors file ({error}); delete it and train again") from None
