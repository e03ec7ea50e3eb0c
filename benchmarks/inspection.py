"""What the stage `inspect` finds of five faults of a laboratory's files, and what it says of files without any.

    python benchmarks/inspection.py --seeds 20

Every case is written as BIDS derivatives with planted signals and goes through the stages fetch, stimuli, prepare and
inspect. A fault counts as found where its cause is named in the right place; everything else that is said is a false alarm.
"""

import argparse
import contextlib
import io
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "data"))
from laboratories import LABELS, Betas

from unimind.data.fetch import fetch
from unimind.data.inspect import inspect
from unimind.data.prepare import prepare
from unimind.data.stimuli import stimuli
from unimind.storage import read_json
from unimind.study import Study, parse_study

#: What goes wrong, and a pattern of the line that names it.
FAULTS: dict[str, tuple[Callable[[Betas], Any], str]] = {
    "beta_index off by one in session 2": (lambda lab: lab.off_by_one("01", [2]), r"pictures one trial (earlier|later) in session 2:"),
    "beta_index off by one in all sessions": (lambda lab: lab.off_by_one("01", [1, 2, 3]), r"pictures one trial (earlier|later) in all sessions"),
    "sessions 2 and 3 swapped": (lambda lab: lab.swapped("01", 2, 3), r"sessions 2 and 3 look swapped"),
    "run 3 again as run 4": (lambda lab: lab.run_again("01", 2, 4), r"run 4 of session 2 repeats run 3:"),
    "table of session 3 sorted": (lambda lab: lab.sorted_table("01", [3]), r"sorted by picture in session 3"),
    "all tables sorted": (lambda lab: lab.sorted_table("01", [1, 2, 3]), r"sorted by picture in session 1"),
    "mask flipped left to right": (lambda lab: lab.flipped("01"), r"mask looks flipped left to right"),
}


def study_of(root: Path) -> Study:
    """A study of one laboratory."""
    section = {
        "source": "bids", "root": str(root), "training_subjects": ["01"], "derivatives": "derivatives/glmsingle", "task": "images", "space": "T1w",
        "rois": {"visual": {"file": "derivatives/masks/sub-{subject}_dseg.nii.gz", "labels": LABELS}}, "images": "stimuli", "split": {"every": 3},
    }  # fmt: skip
    method = {"enter": {"kind": "ridge"}, "scope": "subject"}
    common = {"name": "s", "picture_size": 24, "methods": {"m": method}, "foundations": {"diffusion": {"kind": "study"}}}
    return parse_study({**common, "datasets": {"lab": section}})


def inspected(root: Path) -> dict[str, Any]:
    """A laboratory's files through the four stages: what `inspect` wrote."""
    study, out = study_of(root), root / "out"
    fetch(study, "lab", stimuli=True, out=out / "stimuli.json")
    fetch(study, "lab", "01", out=out / "01.json")
    stimuli(study, "lab", None, out / "stimuli.json", out / "stimuli.h5")
    prepare(study, "lab", "01", out / "01.json", out / "stimuli.h5", [out / "stimuli.h5"], out / "01.h5")
    inspect(study, "lab", "01", out / "01.h5", out / "stimuli.h5", out / "01.json", out / "found.json")
    return read_json(out / "found.json")


def case(seed: int, damage: Callable[[Betas], Any] | None, **changes: Any) -> dict[str, Any]:
    """What is found of one laboratory, whole or damaged."""
    root = Path(tempfile.mkdtemp())
    try:
        lab = Betas(root, seed, **changes).write()
        if damage is not None:
            damage(lab)
        with contextlib.redirect_stderr(io.StringIO()):
            return inspected(root)
    finally:
        shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--noise", type=float, default=1.3, help="Trial noise as a multiple of the signal's deviation.")
    given = parser.parse_args()
    cases: dict[str, tuple[Callable[[Betas], Any] | None, str]] = {"nothing wrong": (None, "$^"), **FAULTS}
    found, alarms = dict.fromkeys(cases, 0), {name: [] for name in cases}  # type: ignore[var-annotated]
    begun, done = time.perf_counter(), 0
    with contextlib.suppress(KeyboardInterrupt):  # the seeds that are done are counted
        for seed in range(given.seeds):
            lines = {name: case(seed, damage, noise=given.noise)["findings"] for name, (damage, _) in cases.items()}
            done += 1
            for name, (_, pattern) in cases.items():
                right = pattern if name != "all tables sorted" else "sorted by picture"
                found[name] += any(re.search(pattern, line) for line in lines[name])
                alarms[name] += [f"    seed {seed}: {line}" for line in lines[name] if not re.search(right, line)]
    print(f"{done} seeds, noise {given.noise:g} times the signal, {(time.perf_counter() - begun) / max(1, done * len(cases)):.2f} s a case")
    print(f"{'case':42} found  missed  false alarms")
    for name in cases:
        counts = ("-", "-") if name == "nothing wrong" else (found[name], done - found[name])
        print(f"{name:42} {counts[0]:>5}  {counts[1]:>6}  {len(alarms[name]):>12}", *alarms[name], sep="\n")


if __name__ == "__main__":
    main()
