"""The stage `candidates`: pictures that predictions of trials without truth are ranked against, in one file."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from unimind.data.manifest import read_manifest
from unimind.data.prepared import write_stimuli
from unimind.data.sources import open_source
from unimind.data.sources.base import Stimulus, StimulusSet
from unimind.data.sources.nsd import NsdSource
from unimind.data.sources.pictures import Pictures
from unimind.data.sources.trials import place
from unimind.progress import say, track
from unimind.study import Study


def candidates(study: Study, further: str, subject: str | None, fetched: Path, out: Path) -> None:
    """Bring a set's candidates to the study's size, as the pictures of a data set are.

    Parameters
    ----------
    study : Study
    further : str
        The set's name in `decode:`.
    subject : str or None
        Whose pictures, where every subject was shown its own.
    fetched : Path
        Manifest of the pictures' files.
    out : Path
        HDF5 file to write (`prepared.Stimuli`); none is a test picture.
    """
    asked = study.decode[further]
    root, sources = read_manifest(fetched)
    if asked.folder is None:
        assert subject is not None
        pictures = cast(NsdSource, open_source(study, asked.dataset, root)).shown(subject, study.picture_size)
    else:
        pictures = _of_folder(Pictures.open(Path(place(root, asked.folder, None))), study.picture_size)
    label = f"candidates of {further}" + (f" {subject}" if subject else "")
    write_stimuli(out, track(pictures, label, pictures.count), pictures.count, study.picture_size, {"dataset": asked.dataset, "sources": sources})
    say(f"{label}: {pictures.count} of {study.picture_size} x {study.picture_size} pixels")


def _of_folder(pictures: Pictures, size: int) -> StimulusSet:
    def items() -> Iterator[Stimulus]:
        for name in pictures.names:
            yield Stimulus.from_pixels(name, pictures.load(name), False, size)

    return StimulusSet(len(pictures), items())
