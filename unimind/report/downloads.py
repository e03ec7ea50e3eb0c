"""Which published weights a study's frozen networks come from: repository, size and licence, as `weights.tsv` lists them."""

import csv
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimind.study import Study

MANIFEST = Path(__file__).parents[1] / "evaluation/weights.tsv"
HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Download:
    """Weights in a repository of the hub.

    Attributes
    ----------
    repository, revision : str
        Or a local folder of the same layout.
    place : str
        The file, or the folder of the network, in the repository.
    whole : bool
        Whether that network is the first of a whole pipeline.
    """

    repository: str
    revision: str
    place: str
    whole: bool = False

    @property
    def listed(self) -> dict[str, str] | None:
        """The row of `weights.tsv`, where there is one."""
        rows = [row for row in _manifest() if row["source"] == HUB + self.repository]
        if self.whole:
            return next((row for row in rows if row["file"].startswith(f"{self.place},")), None)
        return next((row for row in rows if row["file"] in (self.place, f"{self.place}/model.safetensors")), None)

    @property
    def words(self) -> str:
        """What is fetched, in one line."""
        if (row := self.listed) is None:
            return f"{self.place} of {self.repository}, of unlisted size and licence"
        return f"{row['shown_as']} ({row['file']}), {row['gb']} GB, {row['licence']}"


@functools.cache
def _manifest() -> list[dict[str, str]]:
    with open(MANIFEST, newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def downloads(section: Any) -> list[Download]:
    """What a foundation takes from diffusers repositories; nothing where it comes from elsewhere."""
    if section.kind in ("hub", "clip-vision"):
        return [Download(section.repository, section.revision, section.subfolder)]
    if section.kind not in ("ip-adapter", "unclip", "kandinsky-2.2"):
        return []
    found = [Download(section.repository, section.revision, "unet", whole=True)]
    if section.kind == "ip-adapter":
        found.append(Download(section.adapter, section.adapter_revision, section.weights))
    if section.kind == "kandinsky-2.2":
        found.append(Download(section.prior, section.prior_revision, "image_encoder"))
    return found


def needed(study: Study, results: Path) -> list[str]:
    """A line for each network of the hub that a study has not got yet, and one for all of them together.

    Parameters
    ----------
    study : Study
    results : Path
        Folder of the study's results.
    """
    lines, sizes = [], []
    for name in study.networks():
        if not (results / "foundations" / name / "model.safetensors").exists():
            for one in downloads(getattr(study.foundations, name)):
                if not Path(one.repository).is_dir():
                    lines.append(f"network {name}: {one.words}")
                    sizes.append(float(one.listed["gb"]) if one.listed else None)
    known = sum(size for size in sizes if size is not None)
    return [*lines, f"networks to fetch: {known:.1f} GB{' and those of unlisted size' if None in sizes else ''}"] if lines else []
