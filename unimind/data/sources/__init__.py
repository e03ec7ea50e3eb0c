"""Data sets as laboratories distribute them: `open_source` finds the reader that the study asks for."""

from pathlib import Path

from unimind.data.sources.base import Source
from unimind.study import Study


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
    root = Path(root or study.root(dataset))
    match study.datasets[dataset].source:
        case "nsd":
            from unimind.data.sources.nsd import NsdSource

            return NsdSource(study, dataset, root)
        case "simulated":
            from unimind.data.sources.simulated import SimulatedSource

            return SimulatedSource(study, dataset, root)
        case "god":
            from unimind.data.sources.god import GodSource

            return GodSource(study, dataset, root)
        case "bold5000":
            from unimind.data.sources.bold5000 import Bold5000Source

            return Bold5000Source(study, dataset, root)
        case "arrays":
            from unimind.data.sources.arrays import ArraysSource

            return ArraysSource(study, dataset, root)
        case "bids":
            from unimind.data.sources.bids import BidsSource

            return BidsSource(study, dataset, root)
        case "laion-fmri":
            from unimind.data.sources.laion import LaionSource

            return LaionSource(study, dataset, root)
        case "mosaic":
            from unimind.data.sources.mosaic import MosaicSource

            return MosaicSource(study, dataset, root)
