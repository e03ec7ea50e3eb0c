"""The stage `stimuli`: a data set's pictures in one file."""

from pathlib import Path

from unimind.data.manifest import read_manifest
from unimind.data.prepared import write_stimuli
from unimind.data.sources import open_source
from unimind.progress import say, track
from unimind.study import Study


def stimuli(study: Study, dataset: str, subject: str | None, fetched: Path, out: Path) -> None:
    """Bring pictures to the study's size: the centre square, resized with antialiasing.

    Parameters
    ----------
    study : Study
    dataset : str
    subject : str or None
        Whose pictures, where every subject has its own.
    fetched : Path
        Manifest of the pictures' files.
    out : Path
        HDF5 file to write (`prepared.Stimuli`).
    """
    root, sources = read_manifest(fetched)
    pictures = open_source(study, dataset, root).stimuli(subject, study.picture_size)
    label = f"pictures of {dataset}" + (f" {subject}" if subject else "")
    attributes = {"dataset": dataset, "sources": sources}
    write_stimuli(out, track(pictures, label, pictures.count), pictures.count, study.picture_size, attributes)
    say(f"{label}: {pictures.count} of {study.picture_size} x {study.picture_size} pixels")
