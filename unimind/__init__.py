"""Unimind: reconstruct seen images from fMRI with one model for many subjects."""

import importlib
from os import PathLike
from typing import Any

__version__ = "0.1.0"


def load(bundle: str | PathLike[str], seed: int = 0) -> Any:
    """The decoder of a bundle, to be fitted to a subject: see docs/python.md.

    Parameters
    ----------
    bundle : str or path
        What `unimind export` wrote: a folder, a zip file, or `name @ revision` of a repository of the hub.
    seed : int
        Of the drawing of pictures.

    Returns
    -------
    unimind.serving.decoder.SubjectDecoder

    Raises
    ------
    unimind.errors.InputError
        No bundle there; one that is cut short, changed, or of another version; a method that only a study can adapt.
    """
    return importlib.import_module("unimind.serving.decoder").load(bundle, seed)  # by name: what imports the package alone depends on none of it
