"""Data sets as laboratories distribute them: `open_source` finds the reader that the study asks for."""

import importlib
from pathlib import Path

from unimind.data.sources.base import Source
from unimind.study import Study

_SOURCES = {
    "nsd": ("unimind.data.sources.nsd", "NsdSource"),
    "simulated": ("unimind.data.sources.simulated", "SimulatedSource"),
    "god": ("unimind.data.sources.god", "GodSource"),
    "bold5000": ("unimind.data.sources.bold5000", "Bold5000Source"),
    "arrays": ("unimind.data.sources.arrays", "ArraysSource"),
}


def open_source(study: Study, dataset: str, root: str | Path | None = None) -> Source:
    """The reader of a data set's files.

    Parameters
    ----------
    study : Study
    dataset : str
        Its name in the study.
    root : path, optional
        Folder of the files as distributed; by default the study's.
    """
    module, name = _SOURCES[study.datasets[dataset].source]
    return getattr(importlib.import_module(module), name)(study, dataset, Path(root or study.root(dataset)))
