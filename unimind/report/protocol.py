"""How the numbers were made: protocols, networks, models and versions, told once."""

import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unimind import __version__
from unimind.evaluation.measures import MEASURES, measure_of, ordered
from unimind.report.downloads import downloads
from unimind.report.parts import listed
from unimind.storage import read_json
from unimind.study import Study

LIBRARIES = ("torch", "torchvision", "diffusers", "open_clip_torch", "scikit-learn", "nilearn", "h5py", "numpy", "snakemake")


@dataclass
class Protocol:
    """How the numbers were made: what all protocols share, what differs, their networks, and what is missing."""

    identifiers: list[tuple[str, str]] = field(default_factory=list)  # (id, who was measured under it)
    common: list[tuple[str, str]] = field(default_factory=list)
    differing: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)  # (line, (value, ids))
    networks: list[tuple[str, str, str]] = field(default_factory=list)  # (metric, network, hash)
    absent: list[tuple[str, str]] = field(default_factory=list)
    foundations: list[tuple[str, str]] = field(default_factory=list)


def _flat(content: Any, path: str = "") -> dict[str, str]:
    """Nested JSON as dotted keys and printable values."""
    if isinstance(content, dict):
        return {key: value for name, inner in content.items() for key, value in _flat(inner, f"{path}.{name}" if path else str(name)).items()}
    if isinstance(content, list):
        return {path: ", ".join(map(str, content))} if not any(isinstance(one, (dict, list)) for one in content) else _flat(dict(enumerate(content)), path)
    return {path: {True: "yes", False: "no", None: "not given"}.get(content, str(content)) if content is None or isinstance(content, bool) else str(content)}


def protocols_told(study: Study, read: dict[str, Any]) -> Protocol:
    """The protocols of all metrics files, told once."""
    found = Protocol()
    users: dict[str, list[str]] = {}
    contents: dict[str, dict[str, str]] = {}
    networks: dict[tuple[str, str, str], None] = {}
    for place, content in read.items():
        protocol = content.get("protocol", {})
        name = str(protocol.get("id", place))
        users.setdefault(name, []).append(place)
        contents[name] = _flat({key: value for key, value in protocol.items() if key not in ("id", "networks")})
        for metric, network in protocol.get("networks", {}).items():
            if isinstance(network, dict):
                networks[measure_of(metric).title, str(network.get("network", network.get("name", ""))), str(network.get("sha256", ""))] = None
    found.identifiers = [(name, listed(places) if len(users) > 1 else f"all {len(places)} metrics files") for name, places in users.items()]
    found.networks = list(networks)
    for key in dict.fromkeys(key for content in contents.values() for key in content):
        values: dict[str, list[str]] = {}
        for name, content in contents.items():
            values.setdefault(content.get(key, "not given"), []).append(name)
        if len(values) == 1:
            found.common.append((_readable(key), next(iter(values))))
        else:
            found.differing.append((_readable(key), [(value, ", ".join(names)) for value, names in values.items()]))
    reasons: dict[str, dict[str, None]] = {}
    for content in read.values():
        for name, reason in content.get("absent", {}).items():
            reasons.setdefault(name, {})[str(reason)] = None
    found.absent = [(measure_of(name).title, "; ".join(reasons[name])) for name in ordered(reasons)]
    for name, section in study.foundations:
        if section is not None and hasattr(section, "kind"):
            given = {
                key: value
                for key, value in section.model_dump(mode="json").items()
                if not isinstance(value, (dict, list)) and value is not None and key != "kind"
            }
            found.foundations.append((name, f"{section.kind}{''.join(f', {_readable(key)} {value}' for key, value in given.items())}"))
            found.foundations += [(f"weights of {name}", one.words) for one in downloads(section) if not Path(one.repository).is_dir()]
    return found


def _readable(key: str) -> str:
    return key.replace("_", " ").replace(".", ": ")


def networks_used(contents: Iterable[Any]) -> dict[str, str]:
    """Metric -> name of the network that computed it, wherever a protocol says so."""
    found: dict[str, str] = {}

    def look(content: Any) -> None:
        for key, value in content.items() if isinstance(content, dict) else ():
            if isinstance(value, dict):
                name = value.get("network") or value.get("name")
                if key in MEASURES and isinstance(name, str):
                    found.setdefault(key, name)
                look(value)

    for content in contents:
        look(content.get("protocol", {}))
    return found


def model_lines(models: Sequence[Path]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the models' config.json say that fits a line."""
    found = []
    for model in map(Path, models):
        config = model / "config.json"
        if config.exists():
            parts = model.parts[model.parts.index("models") + 1 :] if "models" in model.parts else model.parts[-2:]
            lines = [(key, value) for key, value in _flat(read_json(config)).items() if len(value) <= 100]
            found.append((" / ".join(parts), lines))
    return sorted(found)


def versions() -> list[tuple[str, str]]:
    """Unimind, Python and the libraries the numbers hang on."""
    found = [("unimind", __version__), ("python", platform.python_version())]
    for name in LIBRARIES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
