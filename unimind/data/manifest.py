"""What `fetch` left behind: which files there are, where, and with which content."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unimind.data.sources.base import RemoteFile, below
from unimind.errors import InputError
from unimind.progress import track
from unimind.storage import content_hash, file_hash, read_json, write_json

NOTE = ".hashes.json"


def file_entries(root: Path, files: Sequence[RemoteFile], folder: Path) -> list[dict[str, Any]]:
    """`{"path", "bytes", "sha256"}` of files below `root`, or of what is used of them (`RemoteFile.part`, whose `bytes` are null).

    Checksums are kept in a note in `folder`, with what the file system changes whenever it writes a file: size, time of change
    of the content and of the entry, and number. The time of the entry cannot be set back, so that no edit passes.
    """
    note = folder / NOTE
    known = _known(note)
    found: list[dict[str, Any]] = []
    fresh: dict[str, list] = {}
    for file in track(files, "checksums"):
        local = below(root, file.path)
        if file.part is not None:
            found.append({"path": file.path, "bytes": None, "sha256": file.part(local)})
            continue
        stamp = _stamp(local)
        entry = known.get(file.path)
        if entry is None or entry[:-1] != stamp:
            entry = fresh[file.path] = [*stamp, file_hash(local)]
        found.append({"path": file.path, "bytes": stamp[0], "sha256": entry[-1]})
    if fresh:
        with contextlib.suppress(OSError):  # who may not write here hashes again
            write_json(note, _known(note) | fresh)
    return found


def read_manifest(path: str | Path, check: bool = True) -> tuple[Path, dict[str, Any]]:
    """Read a manifest and look whether its files are still there, with the content they had.

    Returns
    -------
    root : Path
        Folder the files stand below.
    sources : dict
        `files` (how many), `bytes` (in all), `hash` of their paths and checksums: for the record.
    """
    root, files = read_files(path)
    known = _known(Path(path).parent / NOTE)
    for entry in files if check else ():
        name, size, file = entry["path"], entry["bytes"], root / entry["path"]
        if not file.exists():
            raise InputError(f"{file}: no such file, though {path} lists it; delete the manifest and fetch again")
        if size is None:
            continue
        if file.stat().st_size != size:
            raise InputError(f"{file}: {file.stat().st_size} bytes, {size} when it was fetched; delete the manifest and fetch again")
        if known.get(name) != [*_stamp(file), entry["sha256"]] and file_hash(file) != entry["sha256"]:
            raise InputError(f"{file}: another content than when it was fetched; delete the manifest {path} and fetch again")
    return root, {
        "files": len(files),
        "bytes": sum(entry["bytes"] or 0 for entry in files),
        "hash": content_hash(sorted([entry["path"], entry["sha256"]] for entry in files)),
    }


def read_files(path: str | Path) -> tuple[Path, list[dict[str, Any]]]:
    """Root and entries of a manifest; InputError where it is none."""
    content = read_json(path)
    try:
        return Path(content["root"]), [{key: entry[key] for key in ("path", "bytes", "sha256")} for entry in content["files"]]
    except (KeyError, TypeError):
        raise InputError(f"{path}: not a manifest; delete it and fetch again") from None


def _stamp(file: Path) -> list[int]:
    state = os.stat(file)
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _known(note: Path) -> dict[str, list]:
    try:
        content = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
