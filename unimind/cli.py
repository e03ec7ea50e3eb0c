"""One thin subcommand per stage: parse, call, report.

Stages are declared in `unimind.stages`. Their rooms are imported only when they are called, so that `--help`, `check` and
the workflow's parsing stay quick.
"""

import argparse
import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unimind import __version__
from unimind.errors import InputError, is_out_of_memory
from unimind.stages import STAGES

STUDY_HELP = "the study, YAML or JSON; further files are added to the ones before, as Snakemake's --configfile adds them"


def build_parser() -> argparse.ArgumentParser:
    """The command line, from the declarations of the stages."""
    parser = argparse.ArgumentParser(prog="unimind", description="Reconstruct seen images from fMRI: one model for many subjects.")
    parser.add_argument("--version", action="version", version=f"unimind {__version__}")
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, stage in STAGES.items():
        command = commands.add_parser(name, help=stage.help, description=stage.help)
        if stage.needs_study:
            command.add_argument("--study", required=True, nargs="+", type=Path, metavar="FILE", help=STUDY_HELP)
        for argument, kind in stage.arguments.items():
            optional, kind = kind.endswith("?"), kind.rstrip("?")
            if kind == "flag":
                command.add_argument(f"--{argument}", action="store_true")
            elif kind == "files":
                command.add_argument(f"--{argument}", nargs="*", type=Path, required=not optional, default=[], metavar="PATH")
            else:
                command.add_argument(f"--{argument}", type=Path if kind == "file" else str, required=not optional, metavar="PATH" if kind == "file" else "NAME")
    check = commands.add_parser("check", help="Check a study without running anything.", description="Check a study without running anything.")
    check.add_argument("study", nargs="+", type=Path, metavar="FILE", help=STUDY_HELP)
    check.add_argument("--data", action="store_true", help="also look into the files: shapes, voxels, first trials with their pictures")
    schema = commands.add_parser(
        "schema",
        help="Print the study's JSON schema, or its reference as Markdown.",
        description="Print the study's JSON schema, or its reference as Markdown.",
    )
    schema.add_argument("--markdown", action="store_true")
    return parser


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones, up to 256 MB each.

    By default it returns such blocks at once, and the kernel clears every page of the next one again: a third of the time
    of measuring pictures on a CPU. Other C libraries are left as they are.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(mmap_threshold, 256 << 20)
    mallopt(trim_threshold, 2**31 - 1)


_REFUSED = {errno.EACCES: "no permission", errno.EPERM: "no permission", errno.EROFS: "is on a read-only file system"}
_FULL = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "a file is larger than is allowed there; see `ulimit -f`",
}
_ELSEWHERE = {errno.ENOENT: "no such file or folder", errno.ENOTDIR: "not a folder", errno.EISDIR: "is a folder"}


def machine_failure(error: BaseException, stage: str, given: Mapping[str, Any]) -> str | None:
    """One line for what the machine refuses - space, permission, memory - or None where `error` is something else.

    Libraries wrap such errors, and closing a file on a full disk raises more of them: the errors that `error` came from
    are looked through.

    Parameters
    ----------
    error : exception
    stage : str
    given : mapping
        The arguments of the stage.
    """
    if is_out_of_memory(error):
        lower = (
            "--batch-size" if "batch_size" in given or "batch-size" in given else "evaluation.batch_size" if stage in STAGES and STAGES[stage].batched else None
        )
        return f"out of memory; {f'lower {lower}, or ' if lower else ''}give the job more memory"
    paths = [path for value in given.values() for path in (value if isinstance(value, list) else [value]) if isinstance(path, Path)]
    cause: BaseException | None = error
    while cause is not None:
        number, path = _errno(cause), getattr(cause, "filename2", None) or getattr(cause, "filename", None)
        if number in _REFUSED:
            return f"{path or given.get('out')}: {_REFUSED[number]}; change its rights, or name another place"
        if number in _FULL:
            return f"{Path(os.fsdecode(path)).parent if path else _fullest(paths)}: {_FULL[number]} and run again"
        if number == errno.ENAMETOOLONG:
            return f"{path or given.get('out')}: a name too long for the file system; choose shorter ones"
        if number in _ELSEWHERE and path is not None and any(Path(os.fsdecode(path)) in (one, *one.parents) for one in paths):
            return f"{path}: {_ELSEWHERE[number]}; correct the path, or run the stage that writes it first"
        cause = cause.__cause__ or cause.__context__
    return None


def _errno(error: BaseException) -> int | None:
    """The operating system's number of an error, also where a library only mentions it (h5py, safetensors)."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = re.search(r"\b(?:errno = |os error |Errno )(\d+)", str(error))
    return int(said[1]) if said else None


def _fullest(paths: Sequence[Path]) -> Path:
    """The folder with the least space left, of those a stage may write to."""
    folders = {next(folder for folder in (path, *path.absolute().parents) if folder.is_dir()) for path in (*paths, Path(tempfile.gettempdir()))}
    return min(sorted(folders), key=lambda folder: shutil.disk_usage(folder).free)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage. 0 when it worked; 2, and one line on stderr, when what was given cannot be used."""
    given = vars(build_parser().parse_args(arguments))
    name = given.pop("stage")
    keep_freed_memory()
    try:
        if name == "check":
            from unimind.study import read_study

            study = read_study(*given["study"])
            print(f"{', '.join(map(str, given['study']))}: a valid study, {len(list(study.pairs()))} subjects, {len(study.methods)} methods")
            if given["data"]:
                from unimind.data.inspect import show

                show(study)
            return 0
        if name == "schema":
            from unimind.study_reference import json_schema, markdown

            print(markdown() if given["markdown"] else json_schema())
            return 0
        stage = STAGES[name]
        parameters = {key.replace("-", "_"): value for key, value in given.items()}
        if stage.needs_study:
            from unimind.study import read_study

            names = {key: value for key, value in parameters.items() if isinstance(value, (str, bool))}
            parameters["study"] = stage.view(read_study(*given["study"]), **names)
        return stage.load()(**parameters) or 0
    except InputError as error:
        print(f"unimind {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"unimind {name}: interrupted; what was finished is kept, run again to continue", file=sys.stderr)
        return 130
    except Exception as error:
        line = machine_failure(error, name, given)
        if line is None:
            raise
        print(f"unimind {name}: {' '.join(line.split())}", file=sys.stderr)
        return 2
