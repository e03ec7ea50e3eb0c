"""Small studies of simulated brains, and what stands for `fetch` in tests."""

import json
from pathlib import Path

from unimind.storage import file_hash
from unimind.study import Study, parse_study

SMALL = {"sessions": 2, "trials_per_session": 90, "shared_images": 10, "voxels": 100}


def small_study(root: Path, **changes) -> Study:
    """Two training subjects and a new one, 60 pictures each; `changes` go into the data set."""
    dataset = {"source": "simulated", "training_subjects": ["subj01", "subj02"], "new_subjects": ["subj03"], "root": str(root), **SMALL, **changes}
    return study_with(dataset)


def study_with(dataset: dict, **more) -> Study:
    method = {"enter": {"kind": "ridge"}, "scope": "subject"}
    common = {"name": "small", "picture_size": 32, "methods": {"ridge": method}, "foundations": {"diffusion": {"kind": "study"}}}
    return parse_study({**common, "datasets": {"sim": dataset}, **more})


def manifest(root: Path, files: list[Path], out: Path) -> Path:
    """A manifest as `fetch` writes it."""
    entries = [{"path": file.relative_to(root).as_posix(), "bytes": file.stat().st_size, "sha256": file_hash(file)} for file in files]
    out.write_text(json.dumps({"root": str(root), "files": entries}))
    return out
