"""`unimind doctor`: is this machine ready for a study, and what to do where it is not."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unimind.cards import cards
from unimind.errors import InputError
from unimind.report.cost import costs, total_cost
from unimind.report.downloads import Download, downloads
from unimind.study import Study

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

GB = 1024**3
PACKAGES = ("torch", "torchvision", "diffusers", "open_clip_torch", "accelerate", "nibabel", "nilearn", "h5py", "scikit-learn", "snakemake")
OLDEST_CONDA = (24, 7, 1)
NETWORKS = ("embedding", "autoencoder", "diffusion")


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


def _versions(study: Study) -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    state: Literal["ok", "missing"] = "ok" if sys.version_info >= (3, 11) else "missing"
    yield Finding(state, "Python", python if state == "ok" else f"{python}; 3.11 or newer is needed")
    wanted = _requirements()
    for package in PACKAGES:
        try:
            installed = version(package)
        except PackageNotFoundError:
            yield Finding("missing", package, "not installed; run `make install`")
            continue
        if package in wanted and not wanted[package].contains(installed, prereleases=True):
            yield Finding("missing", package, f"{installed}, but {wanted[package]} is needed; run `make install`")
        else:
            yield Finding("ok", package, installed)


def _requirements() -> dict[str, "SpecifierSet"]:
    """Versions that the project asks for, by package; none where it is run without being installed."""
    try:
        from packaging.requirements import Requirement

        listed = [Requirement(line) for line in requires("unimind") or []]
    except (ImportError, PackageNotFoundError):
        return {}
    return {requirement.name: requirement.specifier for requirement in listed}


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
            need = total_cost(costs(study, Path())).card / GB
            enough = card.total_memory / GB >= need
            lacking = "" if enough else f"; the largest job of this study takes about {need:.0f} GB there (`unimind plan`), see docs/running.md"
            yield Finding("ok" if enough else "note", f"GPU {index}", f"{card.name}, {card.total_memory / GB:.0f} GB{lacking}")
        if study.processes > torch.cuda.device_count():
            yield Finding(
                "missing", "processes", f"the study asks for processes: {study.processes}, one per card; {torch.cuda.device_count()} here, set it to that"
            )
    elif cards():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        yield Finding("note", "GPU", f"a card is there but torch (built for {build}) cannot use it; update the driver, or install a torch built for it")
    else:
        slow = "" if _small(study) else ", which is too slow for a study of this size; run it on a machine with a card, or on a cluster (docs/slurm.md)"
        yield Finding("note" if slow else "ok", "GPU", f"none; the CPU is used{slow}")


def _small(study: Study) -> bool:
    return study.picture_size <= 64 or study.foundations.diffusion.kind == "study"


def _memory(study: Study) -> Iterator[Finding]:
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    need = 8 if _small(study) else total_cost(costs(study, Path())).host / GB
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding(
        "ok" if here >= need else "note", "memory", f"{here:.0f} GB" + ("" if here >= need else f"; {need:.0f} GB are advised for this study (`unimind plan`)")
    )
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
    whole = total_cost(costs(study, Path()))
    there = sum(file.stat().st_size for file in Path(study.results).rglob("*") if file.is_file()) / GB
    need = max(0.0, whole.kept / GB - there)
    about = f"{'at least' if whole.unknown else 'about'} {need:.0f}"
    lacking = f"; this study fills {about} GB{' more' if there >= 0.5 else ''} (`unimind plan`), run elsewhere with --directory"
    yield Finding("ok" if free >= need else "note", "free disk", f"{free:.0f} GB here" + ("" if free >= need else lacking))


def _existing(path: Path) -> Path:
    """The path or its nearest parent that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _caches(study: Study) -> Iterator[Finding]:
    yield _writable("results", Path(study.results), "missing", "run in a folder of yours, with --directory")
    if _uses_hub(study):
        yield _writable("Hugging Face cache", _hub_cache(), "note", "set HF_HOME to a folder of yours")


def _writable(about: str, path: Path, otherwise: Literal["note", "missing"], remedy: str) -> Finding:
    folder = _existing(path)
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return Finding("ok", about, str(path))
    return Finding(otherwise, about, f"{path} cannot be written; {remedy}")


def _data(study: Study) -> Iterator[Finding]:
    sections: dict[str, tuple[str, str, list[str]]] = {
        name: (section.source, study.root(name), list(section.subjects)) for name, section in study.datasets.items()
    }
    if study.unpaired:
        sections["unpaired"] = (study.unpaired.source, study.unpaired_root(), list(study.unpaired.subjects))
    for name, (source, root, subjects) in sections.items():
        about = f"data: {name}"
        prepared = [Path(study.results, "prepared", name, f"{subject}.h5") for subject in subjects]
        if source == "simulated":
            yield Finding("ok", about, "made by the study")
        elif all(path.exists() for path in prepared):
            yield Finding("ok", about, f"prepared in {prepared[0].parent}")
        elif unset := re.search(r"\$\{?(\w+)", root):
            yield Finding("missing", about, f"{root}: set the variable {unset[1]}, or write the folder into the study")
        else:
            try:
                yield _files_of(study, name, source, Path(root), subjects)
            except InputError as error:
                yield Finding("missing", about, str(error))
            except ImportError as error:
                yield Finding("missing", about, f"{error}; install the packages first")


def _files_of(study: Study, name: str, source: str, root: Path, subjects: list[str]) -> Finding:
    """Whether a data set's files are there, and how the others can be had."""
    from unimind.data.fetch import ACCESS
    from unimind.data.sources import open_source
    from unimind.data.sources.base import below
    from unimind.data.sources.hcp import HcpSource

    about, access = f"data: {name}", ACCESS[source]
    if name == "unpaired":
        files = [file for subject in subjects for file in HcpSource(study, root).files(subject)]
    else:
        opened, own = open_source(study, name, root), study.stimuli(name, subjects[0]) != "stimuli"
        files = [file for subject in [*([] if own else [None]), *subjects] for file in opened.files(subject)]
    addresses = {file.path: file.address for file in files}
    absent = [path for path in addresses if not below(root, path).is_file()]
    by_hand = [path for path in absent if addresses[path] is None]
    if not absent:
        return Finding("ok", about, f"all {len(addresses)} files in {root}")
    if by_hand:
        more = f" and {len(by_hand) - 1} more" if len(by_hand) > 1 else ""
        return Finding("missing", about, f"{below(root, by_hand[0])}{more}: not there, and cannot be downloaded; {access.hint}")
    if source == "hcp" and "UNIMIND_MIRROR_HCP" not in os.environ and not _has_aws_keys():
        return Finding("missing", about, f"{len(absent)} of {len(addresses)} files are not in {root}, and there are no AWS keys to fetch them; {access.hint}")
    agreement = f"; it needs {access.agreement}: {access.hint}" if access.agreement else ""
    return Finding("note", about, f"{len(absent)} of {len(addresses)} files are not in {root} yet; the study fetches them where there is a network{agreement}")


def _has_aws_keys() -> bool:
    """Whether the user has keys in the environment or in a profile; they are neither used nor shown."""
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        resolver = botocore.session.Session().get_component("credential_provider")
        for asking_the_network in ("container-role", "iam-role"):
            resolver.remove(asking_the_network)
        return resolver.load_credentials() is not None
    except BotoCoreError:
        return False


def _weights(study: Study) -> Iterator[Finding]:
    from unimind.foundations.weights import local_file

    for name in [name for name in NETWORKS if name in study.networks()]:
        about, section = f"network: {name}", getattr(study.foundations, name)
        made = Path(study.results, "foundations", name)
        published = downloads(section)
        given = None if published else getattr(section, "weights", None) or getattr(section, "checkpoint", None)
        if section.kind.startswith("study"):
            yield Finding("ok", about, "trained in the study")
        elif section.kind == "autoencoder":
            yield Finding("ok", about, "none: the autoencoder alone decodes")
        elif (made / "model.safetensors").exists():
            yield Finding("ok", about, f"in {made}")
        elif published:
            for one in published:
                yield _from_hub(study, name, one)
        elif given is None:
            yield _from_open_clip(study, name)
        else:
            files = [f"{given}/taef2_{part}.safetensors" for part in ("encoder", "decoder")] if section.kind == "taef2" else [given]
            try:
                yield Finding("ok", about, ", ".join(str(local_file(file, f"the {name}'s weights")) for file in files))
            except InputError as error:
                yield Finding("missing", about, str(error))
    if study.draws:
        yield from _measures(study)


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _uses_hub(study: Study) -> bool:
    sections = [getattr(study.foundations, name) for name in study.networks()]
    return any(downloads(section) or (section.kind == "open-clip" and _open_clip_repository(section)) for section in sections)


def _open_clip_repository(section: Any) -> str | None:
    """Repository on the hub that a CLIP of open_clip comes from."""
    if section.weights is not None:
        return None
    if ":" in section.model:
        return section.model.partition(":")[2]
    try:
        from open_clip.pretrained import get_pretrained_cfg
    except (ImportError, RuntimeError):
        return None  # said above
    return get_pretrained_cfg(section.model, section.pretrained).get("hf_hub", "").rpartition("/")[0] or None


def _from_open_clip(study: Study, name: str) -> Finding:
    section = getattr(study.foundations, name)
    if (repository := _open_clip_repository(section)) is None:
        words = f"{section.model} ({section.pretrained}) comes from no cache that is known here; fetch it where there is a network"
        return Finding("note", f"network: {name}", words)
    return _from_hub(study, name, Download(repository, "main", ""))


def _from_hub(study: Study, name: str, download: Download) -> Finding:
    """Whether weights of the hub are in the cache, in the revision asked for."""
    about, repository = f"network: {name}", download.repository
    if Path(repository).is_dir():
        folder = Path(repository)
    else:
        stored = _hub_cache() / f"models--{repository.replace('/', '--')}"
        reference = stored / "refs" / download.revision
        folder = stored / "snapshots" / (reference.read_text().strip() if reference.is_file() else download.revision)
    place = folder / download.place
    if place.is_file() or any(path.exists() for ending in ("safetensors", "bin", "pt") for path in place.glob(f"*.{ending}")):
        return Finding("ok", about, str(folder))
    target = f"{study.results}/foundations/{name}"
    what = f" ({download.words})" if download.listed else ""
    return Finding("note", about, f"{repository} is not in {_hub_cache()} yet{what}; where there is a network: snakemake --cores 1 {target} --configfile ...")


def _measures(study: Study) -> Iterator[Finding]:
    """Networks of the metrics: a metric without its network is left out of the tables."""
    try:
        from unimind.evaluation.networks import WEIGHTS_OF, find_squeezenet, find_weights
    except (ImportError, RuntimeError):
        return  # torch itself is broken, which is said above

    wanted: dict[str, list[str]] = {}
    for metric in study.evaluation.metrics:
        if metric in WEIGHTS_OF:
            wanted.setdefault(WEIGHTS_OF[metric], []).append(metric)
    for name, metrics in wanted.items():
        found = find_weights(name, study.evaluation.weights)
        left_out = f"; get it as docs/metrics.md says, else {', '.join(metrics)} will be left out of the tables"
        yield Finding("ok", f"measure: {name}", str(found[0])) if isinstance(found, tuple) else Finding("note", f"measure: {name}", found + left_out)
    found = find_squeezenet(study.evaluation.squeezenet)
    yield (
        Finding("ok", "measure: squeezenet", str(found[0]))
        if isinstance(found, tuple)
        else Finding("note", "measure: squeezenet", f"{found}; put the file there, or name another one as evaluation.squeezenet")
    )
