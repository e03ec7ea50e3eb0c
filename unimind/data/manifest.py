"""What `fetch` left behind: which files there are, where, and with which content."""

from pathlib import Path
from typing import Any

from unimind.errors import InputError
from unimind.storage import content_hash, read_json


def read_manifest(path: str | Path, check: bool = True) -> tuple[Path, dict[str, Any]]:
    """Read a manifest and look whether its files are still there, in their size.

    Returns
    -------
    root : Path
        Folder the files stand below.
    sources : dict
        `files` (how many), `bytes` (in all), `hash` of their paths and checksums: for the record.
    """
    content = read_json(path)
    try:
        root, files = Path(content["root"]), content["files"]
        known = [(entry["path"], entry["bytes"], entry["sha256"]) for entry in files]
    except (KeyError, TypeError):
        raise InputError(f"{path}: not a manifest; delete it and fetch again") from None
    for name, size, _ in known if check else ():
        file = root / name
        if not file.exists():
            raise InputError(f"{file}: no such file, though {path} lists it; delete the manifest and fetch again")
        if size is not None and file.stat().st_size != size:
            raise InputError(f"{file}: {file.stat().st_size} bytes, {size} when it was fetched; delete the manifest and fetch again")
    return root, {"files": len(known), "bytes": sum(size or 0 for _, size, _ in known), "hash": content_hash(sorted([name, sha] for name, _, sha in known))}
