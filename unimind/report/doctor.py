"""`unimind doctor`: is this machine ready for a study, and what to do where it is not."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import glob
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from unimind.errors import InputError
from unimind.study import Study

GB = 1024**3
PACKAGES = ("torch", "torchvision", "diffusers", "open_clip_torch", "accelerate", "nibabel", "nilearn", "h5py", "himalaya", "snakemake")
OLDEST_CONDA = (24, 7, 1)


@dataclass(frozen=True)
class Finding:
    """One line: `ok`, worth a `note`, or `missing` what the study cannot run without."""

    state: Literal["ok", "note", "missing"]
    about: str
    words: str


def doctor(study: Study) -> int:
    """Print one line per check of this machine, each ok or with what to do; 1 when something the study needs is missing."""
    checks: tuple[Callable[[Study], Iterator[Finding]], ...] = (_versions, _pair, _devices, _memory, _conda, _disk, _caches, _data, _weights)
    worst = 0
    for check in checks:
        for finding in check(study):
            print(f"{finding.state:<8} {finding.about:<20} {finding.words}")
            worst = max(worst, int(finding.state == "missing"))
    return worst


def graphics_cards() -> int:
    """Number of NVIDIA cards of this machine, found without loading torch."""
    return len(glob("/dev/nvidia[0-9]*"))


def _versions(study: Study) -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    state: Literal["ok", "missing"] = "ok" if sys.version_info >= (3, 11) else "missing"
    yield Finding(state, "Python", python if state == "ok" else f"{python}; 3.11 or newer is needed")
    for package in PACKAGES:
        try:
            yield Finding("ok", package, version(package))
        except PackageNotFoundError:
            yield Finding("missing", package, "not installed; run `make install`")


def _pair(study: Study) -> Iterator[Finding]:
    """torch and torchvision must come from the same build; a pair that does not fit fails only when it is imported."""
    remedy = "reinstall both in one command: pip install --force-reinstall torch torchvision"
    try:
        wanted = next((part for part in requires("torchvision") or [] if re.match(r"torch\b", part)), "")
        exact = re.search(r"==\s*([\d.]+)", wanted)
        torch = version("torch")
    except PackageNotFoundError:
        return
    if exact and torch.partition("+")[0] != exact[1]:
        yield Finding("missing", "torch + torchvision", f"torchvision {version('torchvision')} wants torch {exact[1]}, torch {torch} is installed; {remedy}")
        return
    done = subprocess.run([sys.executable, "-c", "import torchvision.ops"], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        yield Finding("missing", "torch + torchvision", f"do not import together ({why}); {remedy}")
    else:
        yield Finding("ok", "torch + torchvision", "of one release, import together")


def _devices(study: Study) -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, RuntimeError) as error:
        yield Finding("missing", "torch", f"does not import ({error}); run `make install`")
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            yield Finding("ok", f"GPU {index}", f"{card.name}, {card.total_memory / GB:.0f} GB")
    elif graphics_cards():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        yield Finding("note", "GPU", f"a card is there but torch (built for {build}) cannot use it; update the driver, or install a torch built for it")
    else:
        yield Finding(
            "ok" if _small(study) else "note", "GPU", "none; the CPU is used" + ("" if _small(study) else ", which a study of this size is too slow for")
        )


def _small(study: Study) -> bool:
    return study.picture_size <= 64 or study.foundations.diffusion.kind == "study"


def _memory(study: Study) -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    need = 8 if _small(study) else 32
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("ok" if total >= need else "note", "memory", f"{total:.0f} GB" + ("" if total >= need else f"; {need} GB are advised for this study"))
    enough = cores >= study.threads
    yield Finding("ok" if enough else "note", "cores", f"{cores}" + ("" if enough else f"; the study asks for threads: {study.threads}, set it to {cores}"))


def _conda(study: Study) -> Iterator[Finding]:
    conda = shutil.which("conda")
    if conda is None:
        yield Finding("ok", "conda", "none; not needed unless you run with --use-conda")
        return
    said = subprocess.run([conda, "--version"], capture_output=True, text=True).stdout
    numbers = tuple(int(part) for part in re.findall(r"\d+", said)[:3])
    if numbers >= OLDEST_CONDA:
        yield Finding("ok", "conda", said.strip())
    else:
        yield Finding("note", "conda", f"{said.strip() or 'says no version'}; --use-conda needs {'.'.join(map(str, OLDEST_CONDA))}: conda update -n base conda")


def _disk(study: Study) -> Iterator[Finding]:
    free = shutil.disk_usage(_existing(Path(study.results))).free / GB
    need = 5 if all(dataset.source in ("simulated", "arrays") for dataset in study.datasets.values()) else 200
    yield Finding(
        "ok" if free >= need else "note",
        "free disk",
        f"{free:.0f} GB here" + ("" if free >= need else f"; about {need} GB are advised, run elsewhere with --directory"),
    )


def _existing(path: Path) -> Path:
    """The path or its nearest parent that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _caches(study: Study) -> Iterator[Finding]:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    places = {
        "results": Path(study.results),
        "Hugging Face cache": Path(os.environ.get("HF_HOME", cache / "huggingface")),
        "torch cache": Path(os.environ.get("TORCH_HOME", cache / "torch")),
    }
    variables = {"Hugging Face cache": "HF_HOME", "torch cache": "TORCH_HOME"}
    for name, path in places.items():
        if os.access(_existing(path), os.W_OK):
            yield Finding("ok", name, str(path))
        else:
            remedy = f"set {variables[name]} to a folder of yours" if name in variables else "run in a folder of yours, with --directory"
            yield Finding("missing" if name == "results" else "note", name, f"{path} cannot be written; {remedy}")


def _data(study: Study) -> Iterator[Finding]:
    roots: dict[str, tuple[str, str]] = {name: (section.source, study.root(name)) for name, section in study.datasets.items()}
    if study.unpaired:
        roots["unpaired"] = (study.unpaired.source, study.unpaired_root())
    for name, (source, root) in roots.items():
        about = f"data: {name}"
        if source == "simulated":
            yield Finding("ok", about, "made by the study")
        elif unset := re.search(r"\$\{?(\w+)", root):
            yield Finding("missing", about, f"{root}: set the variable {unset[1]}, or write the folder into the study")
        elif Path(root).is_dir():
            yield Finding("ok", about, root)
        elif source == "arrays":
            yield Finding("missing", about, f"{root}: no such folder; put the data there or name another one as root")
        else:
            yield Finding("note", about, f"{root}: not there yet; see docs/data.md for access, or fetch with `snakemake --until fetch_subject`")


def _weights(study: Study) -> Iterator[Finding]:
    from unimind.foundations.weights import local_file

    for name in ("embedding", "autoencoder", "diffusion"):
        section = getattr(study.foundations, name)
        given = getattr(section, "weights", None) or getattr(section, "checkpoint", None)
        if given is None:
            yield Finding("ok", f"network: {name}", "trained in the study" if section.kind.startswith("study") else "from the hub, fetched by the study")
            continue
        files = [f"{given}/taef2_{part}.safetensors" for part in ("encoder", "decoder")] if section.kind == "taef2" else [given]
        try:
            yield Finding("ok", f"network: {name}", ", ".join(str(local_file(file, f"the {name}'s weights")) for file in files))
        except InputError as error:
            yield Finding("missing", f"network: {name}", str(error))
    yield from _measures(study)


def _measures(study: Study) -> Iterator[Finding]:
    """Networks of the metrics: a metric without its network is left out of the tables."""
    try:
        from unimind.evaluation.networks import WEIGHTS_OF, find, find_squeezenet
    except (ImportError, RuntimeError):
        return  # torch itself is broken, which is said above

    wanted: dict[str, list[str]] = {}
    for metric in study.evaluation.metrics:
        if metric in WEIGHTS_OF:
            wanted.setdefault(WEIGHTS_OF[metric], []).append(metric)
    for name, metrics in wanted.items():
        found = find(name, study.evaluation.weights)
        left_out = f"; {', '.join(metrics)} will be left out of the tables"
        yield Finding("ok", f"measure: {name}", str(found[0])) if isinstance(found, tuple) else Finding("note", f"measure: {name}", found + left_out)
    found = find_squeezenet(study.evaluation.squeezenet)
    yield Finding("ok", "measure: squeezenet", str(found[0])) if isinstance(found, tuple) else Finding("note", "measure: squeezenet", found)
