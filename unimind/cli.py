"""One thin subcommand per stage: parse, call, report.

Stages import their room only when they are called, so that `--help`, `check` and the workflow's parsing stay quick.
"""

import argparse
import ctypes
import errno
import importlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unimind import __version__
from unimind.errors import InputError, is_out_of_memory


@dataclass(frozen=True)
class Stage:
    """A subcommand: `module.function(study, **arguments)`."""

    module: str
    function: str
    help: str
    arguments: dict[str, str] = field(default_factory=dict)  # name -> "file", "files", "text", "flag", each with "?" when optional
    study: bool = True


STAGES: dict[str, Stage] = {
    "fetch": Stage("unimind.data.fetch", "fetch", "Get a data set's files, or simulate them, and write their manifest.",
                   {"dataset": "text?", "subject": "text?", "stimuli": "flag", "unpaired": "flag", "list": "flag", "out": "file?"}),
    "stimuli": Stage("unimind.data.stimuli", "stimuli", "Bring a data set's pictures to one HDF5 file.",
                     {"dataset": "text", "subject": "text?", "fetched": "file", "out": "file"}),
    "prepare": Stage("unimind.data.prepare", "prepare", "ROI extraction, voxel order, per-session z-scoring: one prepared file per subject.",
                     {"dataset": "text", "subject": "text", "fetched": "file", "stimuli": "file", "training-stimuli": "files?", "out": "file"}),
    "prepare-unpaired": Stage("unimind.data.prepare_unpaired", "prepare_unpaired", "Visual-cortex samples from fMRI without pictures.",
                              {"subject": "text", "fetched": "file", "out": "file"}),
    "overview": Stage("unimind.data.overview", "overview", "Check every prepared file, and write what each subject brings.",
                      {"prepared": "files", "unpaired": "files?", "out": "file"}),
    "foundation": Stage("unimind.training.foundations.build", "foundation", "Get or train one frozen network: embedding, autoencoder, diffusion or classifier.",
                        {"name": "text", "embedding": "file?", "autoencoder": "file?", "stimuli": "files?", "embeddings": "files?", "checkpoints": "file?", "out": "file"}),
    "embed": Stage("unimind.foundations.embed", "embed", "Image embeddings and autoencoder latents of a stimulus file.",
                   {"stimuli": "file", "embedding": "file", "autoencoder": "file", "out": "file"}),
    "pretrain": Stage("unimind.training.pretrain", "pretrain", "Self-supervised pretraining of an encoder on unpaired fMRI.",
                      {"method": "text", "prepared": "files", "checkpoints": "file", "out": "file"}),
    "align": Stage("unimind.training.align", "align", "Align the embeddings of a group's subjects with each other and with the images'.",
                   {"method": "text", "group": "text", "prepared": "files", "embeddings": "files", "pretrained": "file?", "checkpoints": "file", "out": "file"}),
    "fit": Stage("unimind.training.fit", "fit", "Fit a closed-form method (ridge, prior) to one subject.",
                 {"method": "text", "group": "text", "prepared": "files", "embeddings": "files", "training-prepared": "files?", "training-embeddings": "files?", "out": "file"}),
    "condition": Stage("unimind.training.condition", "condition", "Condition the diffusion model on a group's fMRI.",
                       {"method": "text", "group": "text", "prepared": "files", "embeddings": "files", "encoder": "file?", "diffusion": "file", "checkpoints": "file", "out": "file"}),
    "adapt": Stage("unimind.training.adapt", "adapt", "Fit a shared model to a new subject.",
                   {"method": "text", "dataset": "text", "subject": "text", "trials": "text?", "seed": "text?", "prepared": "file", "embeddings": "file", "shared": "file", "diffusion": "file",
                    "training-prepared": "files?", "training-embeddings": "files?", "checkpoints": "file", "out": "file"}),
    "reconstruct": Stage("unimind.reconstruction.reconstruct", "reconstruct", "Prepared test trials in, pictures out; with the shuffled-fMRI control.",
                         {"method": "text", "dataset": "text", "subject": "text", "prepared": "file", "embeddings": "file", "model": "file", "diffusion": "file", "autoencoder": "file",
                          "embedding": "file", "stimuli": "file", "out": "file", "grid": "file?"}),
    "reconstruct-controls": Stage("unimind.reconstruction.controls", "controls", "Controls of a stimulus set: unconditional samples and the two ceilings.",
                                  {"stimuli": "file", "prepared": "files", "embeddings": "file", "diffusion": "file", "autoencoder": "file", "embedding": "file", "out": "file"}),
    "features": Stage("unimind.evaluation.features", "features", "The panel's features of a stimulus set's test pictures, once for all methods.",
                      {"stimuli": "file", "prepared": "files", "embedding": "file", "classifier": "file?", "out": "file"}),
    "score": Stage("unimind.evaluation.score", "score", "Metrics of one method's reconstructions of one subject, with its controls.",
                   {"method": "text", "dataset": "text", "subject": "text", "reconstruction": "file", "controls": "file", "features": "file", "stimuli": "file", "prepared": "file",
                    "embeddings": "file", "embedding": "file", "classifier": "file?", "out": "file"}),
    "transfer": Stage("unimind.evaluation.transfer", "transfer", "How far a new subject gets with few of its trials, for one method.",
                      {"method": "text", "dataset": "text", "subject": "text", "prepared": "file", "embeddings": "file", "shared": "file?", "diffusion": "file", "autoencoder": "file",
                       "embedding": "file", "features": "file", "stimuli": "file", "training-prepared": "files?", "training-embeddings": "files?", "checkpoints": "file", "out": "file"}),
    "tabulate": Stage("unimind.evaluation.tabulate", "tabulate", "Tables of all metrics files: CSV, Markdown, LaTeX.",
                      {"metrics": "files", "models": "files", "transfer": "files?", "out": "file"}),
    "figures": Stage("unimind.report.figures", "figures", "Figures of the report from tables, losses and reconstructions.",
                     {"tables": "file", "models": "files", "reconstructions": "files", "stimuli": "files", "prepared": "files", "controls": "files", "metrics": "files?", "out": "file"}),
    "report": Stage("unimind.report.page", "report", "One self-contained HTML page: tables, pictures, controls, protocol.",
                    {"overview": "file", "tables": "file", "figures": "file", "metrics": "files", "models": "files", "out": "file"}),
    "evaluate": Stage("unimind.evaluation.evaluate", "evaluate", "Metrics and a picture grid for anybody's reconstructions: folders of pictures or arrays.",
                      {"truth": "file", "reconstruction": "file", "weights": "file?", "bootstrap": "text?", "batch-size": "text?", "out": "file"}, study=False),
    "benchmark": Stage("unimind.training.benchmark", "benchmark", "Parameters, FLOPs, memory and speed of the encoders and training steps, in one run.",
                       {"voxels": "text?", "batches": "text?", "device": "text?", "precision": "text?", "out": "file?"}, study=False),
    "status": Stage("unimind.report.status", "status", "Which stage of which method and subject is done, running or failed.", {"directory": "file?"}),
    "doctor": Stage("unimind.report.doctor", "doctor", "Check this machine: versions, devices, disk, data, weights.", {}),
}  # fmt: skip


STUDY_HELP = "the study, YAML or JSON; further files are added to the ones before, as Snakemake's --configfile adds them"


def build_parser() -> argparse.ArgumentParser:
    """The command line, from the table of stages."""
    parser = argparse.ArgumentParser(prog="unimind", description="Reconstruct seen images from fMRI: one model for many subjects.")
    parser.add_argument("--version", action="version", version=f"unimind {__version__}")
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, stage in STAGES.items():
        command = commands.add_parser(name, help=stage.help, description=stage.help)
        if stage.study:
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
    schema = commands.add_parser("schema", help="Print the study's JSON schema, or its reference as Markdown.", description="Print the study's JSON schema, or its reference as Markdown.")
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


#: Stages whose memory `evaluation.batch_size` decides.
BATCHED = frozenset({"embed", "reconstruct", "reconstruct-controls", "features", "score", "transfer"})
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
        lower = "--batch-size" if "batch_size" in given or "batch-size" in given else "evaluation.batch_size" if stage in BATCHED else None
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
            return 0
        if name == "schema":
            from unimind.study_reference import json_schema, markdown

            print(markdown() if given["markdown"] else json_schema())
            return 0
        stage = STAGES[name]
        if stage.study:
            from unimind.study import read_study

            given["study"] = read_study(*given["study"])
        function = getattr(importlib.import_module(stage.module), stage.function)
        return function(**{key.replace("-", "_"): value for key, value in given.items()}) or 0
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
