"""Unimind: reconstruct seen images from fMRI with one model for many subjects."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from unimind.serving.decoder import SubjectDecoder

__version__ = "0.1.0"


def load(bundle: "str | Path", seed: int = 0) -> "SubjectDecoder":
    """The decoder of a bundle, to be fitted to a subject: see docs/python.md.

    Parameters
    ----------
    bundle : str or Path
        What `unimind export` wrote: a folder, a zip file, or `name @ revision` of a repository of the hub.
    seed : int
        Of the drawing of pictures.

    Raises
    ------
    unimind.errors.InputError
        No bundle there; one that is cut short, changed, or of another version; a method that only a study can adapt.
    """
    from unimind.serving.decoder import load as load_bundle

    return load_bundle(bundle, seed)
