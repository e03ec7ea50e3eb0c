"""`unimind status`: how far a study's run has come."""

import base64
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unimind.study import Study, layout

State = Literal["done", "stale", "running", "failed", "interrupted", "waiting"]


@dataclass(frozen=True)
class Step:
    """One result that the study makes: a file or folder, relative to `results/<study>/`."""

    part: str
    stage: str
    what: str
    path: str
    names: Mapping[str, str] = field(default_factory=dict)


def steps(study: Study) -> Iterator[Step]:
    """Everything the study makes, in the order it is made."""
    for job in study.jobs():
        names = [job.names["candidates"]] if "candidates" in job.names else [name for key, name in job.names.items() if key != "method"]
        yield Step(job.part, job.stage, " ".join(names) or ("" if job.part == "report" else "all subjects"), job.path, job.names)


def log_of(study: Study, step: Step, directory: Path) -> Path:
    """Where the job that makes a step writes its log."""
    return directory / "logs" / study.name / f"{layout.without_ending(step.path)}.log"


def goes_on(directory: Path) -> bool:
    """Whether a Snakemake works in a directory.

    Its lock outlives a Snakemake that was killed, so the processes of this machine are looked through, where they can be
    (`/proc`); one of another user whose folder is hidden counts. On other systems the lock is believed. A run on a cluster
    is seen where Snakemake was started.
    """
    if not any((directory / ".snakemake" / "locks").glob("*")):
        return False
    processes = list(Path("/proc").glob("[0-9]*"))
    return not processes or any(_is_snakemake_in(process, directory.resolve()) for process in processes)


def _is_snakemake_in(process: Path, directory: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        if not any(Path(os.fsdecode(word)).name == "snakemake" for word in words):
            return False
        return (process / "cwd").readlink() == directory
    except PermissionError:
        return True
    except OSError:  # ended meanwhile
        return False


def last_word(log: Path, stage: str) -> str:
    """What a job said last: the line by which its stage ended, where it has one, else the last line that is not empty."""
    lines = [line.strip() for line in log.read_text(errors="replace").split("\n") if line.strip()] if log.exists() else []
    return next((line for line in reversed(lines) if line.startswith(f"unimind {stage}: ")), lines[-1] if lines else "")


def state_of(study: Study, step: Step, directory: Path, going: bool) -> tuple[State, str]:
    """State of one step, and what its job said last.

    A result that Snakemake has begun and not ended carries a mark in `.snakemake/incomplete`: it is running where Snakemake
    goes on (`going`). A log without a result and without a mark belongs to a job that failed.
    """
    result = f"{study.results}/{step.path}"
    log = log_of(study, step, directory)
    mark = directory / ".snakemake" / "incomplete" / base64.urlsafe_b64encode(result.encode()).decode()
    last = last_word(log, step.stage)
    if mark.exists():
        return ("running" if going else "interrupted"), last
    if (directory / result).exists():
        return ("stale" if _is_stale(study, step, directory) else "done"), last
    return ("failed" if log.exists() else "waiting"), last


def _is_stale(study: Study, step: Step, directory: Path) -> bool:
    """Whether files of the laboratory that a step of the data is made of were edited since they were fetched."""
    if step.stage not in ("fetch", "stimuli", "prepare", "prepare-further", "candidates"):
        return False
    from unimind.data.fetch import is_stale

    if "candidates" in step.names:
        of, manifest = study.ranked()[step.names["candidates"]], directory / study.results / layout.path(layout.FETCHED_CANDIDATES, **step.names)
        return manifest.exists() and is_stale(study, study.decode[of["further"]].dataset, of.get("subject"), True, manifest, directory, of["further"])
    if "further" in step.names:
        manifest = directory / study.results / layout.path(layout.FETCHED_FURTHER, **step.names)
        return manifest.exists() and is_stale(study, step.names["dataset"], step.names["subject"], False, manifest, directory, step.names["further"])
    dataset, _, name = step.what.partition(" ")
    manifest = directory / study.results / "fetched" / dataset / f"{name}.json"
    whose = None if name == "stimuli" else name.removesuffix(".stimuli")
    return manifest.exists() and is_stale(study, None if dataset == "unpaired" else dataset, whose, name.endswith("stimuli"), manifest, directory)


def refusals(study: Study, directory: Path, since: float) -> list[str] | None:
    """The lines by which failed jobs refused what they were given; None where a job failed for another reason.

    Parameters
    ----------
    study : Study
    directory : path
        Where Snakemake was started.
    since : float
        Seconds of the epoch; jobs whose log is older are passed over.
    """
    lines = []
    for step in steps(study):
        state, last = state_of(study, step, directory, going=True)
        if state != "failed" or log_of(study, step, directory).stat().st_mtime < since:
            continue
        if not last.startswith(f"unimind {step.stage}: ") or ": interrupted;" in last:
            return None
        lines.append(last)
    return lines


def status(study: Study, directory: Path | None = None) -> None:
    """Print which stage of which method and subject is done, running or failed, with what its job said last.

    Parameters
    ----------
    study : Study
    directory : path, optional
        Where Snakemake was started; by default here.
    """
    directory = Path(directory or ".")
    going = goes_on(directory)
    rows = [(step, *state_of(study, step, directory, going)) for step in steps(study)]
    count = Counter(state for _, state, _ in rows)
    print(
        f"{study.name}: {count['done']} of {len(rows)} done"
        + "".join(f", {count[state]} {state}" for state in ("stale", "running", "failed", "interrupted", "waiting") if count[state])
        + ("; files below root were edited, and what is made of them is made again by the next run" if count["stale"] else "")
    )
    stages = max(len(step.stage) for step, _, _ in rows)
    whats = max(len(step.what) for step, _, _ in rows)
    part = None
    for step, state, last in rows:
        if step.part != part:
            part = step.part
            print(f"\n{part}")
        print(f"  {state:<11} {step.stage:<{stages}}  {step.what:<{whats}}  {last}".rstrip())
