"""The commands that Snakemake plans for a study, to be run one after the other in one process."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def planned_commands(study: str = "study.yaml") -> list[list[str]]:
    """Words after `python -m unimind` of every job of a study in the working directory, in an order in which they can run."""
    planned = subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "-n", "-p", "--cores", "1", "--nocolor", "--configfile", study],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert planned.returncode == 0, planned.stdout + planned.stderr
    return [shlex.split(line) for line in re.findall(r"python -m unimind (.*) 2> ", planned.stdout + planned.stderr)]
