"""A clone of the workflow whose stages write empty results at once, so that Snakemake itself can be tested."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).parent / "studies" / "tiny.yaml"


def unpretrained(method: dict) -> dict:
    """A method without pretraining, and its body without what only pretraining needs."""
    body = {key: value for key, value in method["body"].items() if not key.startswith("decoder_")}
    return {key: value for key, value in method.items() if key != "pretrain"} | {"body": body}


class Clone:
    """A copy of the repository in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def make(cls, folder: Path, standin: bool = True) -> "Clone":
        for name in ("workflow", "config", "envs", "unimind"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", folder)
        (folder / "profiles").symlink_to("workflow/profiles")
        if standin:
            shutil.copy(Path(__file__).parent / "standin_main.py", folder / "unimind" / "__main__.py")
        return cls(folder)

    def copy(self, folder: Path) -> "Clone":
        shutil.copytree(self.folder, folder, symlinks=True)
        return Clone(folder)

    def study(self, content: dict) -> Path:
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def snakemake(
        self, *arguments: str, configfile: Path | None = TINY, cores: int = 2, directory: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        given = ["--configfile", str(configfile)] if configfile else []
        command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--nocolor", *given, *arguments]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SNAKEMAKE", "PYTHONPATH"))}
        return subprocess.run(
            command, cwd=directory or self.folder, env=inherited | environment, capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL
        )  # fmt: skip

    def planned(self, *arguments: str, configfile: Path | None = TINY, **keywords) -> dict[str, int]:
        """Jobs by rule that a dry run lists."""
        return jobs(self.snakemake("-n", *arguments, configfile=configfile, **keywords))

    def messages(self, *arguments: str, configfile: Path | None = TINY) -> list[str]:
        """What a dry run says about each job."""
        done = self.snakemake("-n", *arguments, configfile=configfile)
        assert done.returncode == 0, done.stderr
        return re.findall(r"^Job \d+: (.*)$", done.stdout + done.stderr, re.MULTILINE)


def jobs(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The table of jobs that Snakemake prints; empty when there is nothing to do."""
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total", text, re.MULTILINE | re.DOTALL)
    if table is None:
        assert "Nothing to be done" in text, text
        return {}
    found = {name: int(count) for name, count in (line.split() for line in table[1].splitlines() if line.strip())}
    found.pop("everything", None)
    return found


def tiny() -> dict:
    """The tiny study as plain types, for tests to change."""
    return yaml.safe_load(TINY.read_text())


def read_calls(clone: Clone) -> list[dict[str, str]]:
    """What the stand-in for the stages recorded."""
    with open(clone.folder / "calls.tsv") as stream:
        return list(csv.DictReader(stream, ["stage", "out", "begun", "ended", "threads", "python"], delimiter="\t"))
