"""What the generator alone can show: how like a picture is to what is drawn from its true targets, for test pictures and for shapes never seen.

No brain has a part in it. What a generator cannot draw of a picture whose embedding it is given, no decoder in front of it can show; and a
generator that draws shapes it has never seen as something it has seen makes scenes of whatever it is told.
"""

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from unimind.errors import InputError
from unimind.evaluation import metrics as m
from unimind.evaluation import networks
from unimind.evaluation.neighbours import Ruler, TrainingPictures, embedded, nearest
from unimind.evaluation.pairs import PAIRS_AT_ONCE
from unimind.evaluation.pictures import Joined, PictureSet, slices
from unimind.evaluation.statistics import with_interval
from unimind.reconstruction.tested import derangement

#: What is drawn from which of the true targets: name in a file of controls, and in the checks.
DRAWN = {"embedding_ceiling": "embedding", "autoencoder_ceiling": "latent"}


def recovery(
    controls: h5py.File, seen: PictureSet, stimulus: NDArray, truth: NDArray, training: TrainingPictures, ruler: Ruler, embedder: Any, batch: int,
    resamples: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The check of one subject's test pictures (n,), and of the shapes in its file of controls.

    Parameters
    ----------
    controls : HDF5 file
        As the stage `reconstruct-controls` writes it.
    seen, truth : PictureSet, array (n, d)
        The test pictures and their embeddings.

    Returns
    -------
    dict
        `samples` of which the picture drawn from an embedding is the best; `test_pictures` and `shapes`, each with their `count`, their median
        `distance` from the nearest training picture and, by the target that they are drawn from, `pixcorr` and `similarity` of picture and what
        is drawn of it, means with intervals, and the means of picture and what is drawn of another one (`..._of_another`): the level of a
        generator that draws something else. Similarity is the correlation of embeddings in the ruler's units.

    Raises
    ------
    InputError
        The file has no controls for a test picture.
    """
    place = {number: row for row, number in enumerate(controls["stimulus"][:].tolist())}
    if missing := set(stimulus.tolist()) - place.keys():
        raise InputError(f"{controls.filename}: has no controls for stimulus {min(missing)}; run the reconstruct-controls stage again")
    rows, shapes = np.array([place[number] for number in stimulus.tolist()]), controls["shapes"]
    images = PictureSet(shapes["image"][:])
    sets = (
        ("test_pictures", seen, ruler(truth), controls, rows),
        ("shapes", images, ruler(embedded(images, embedder, batch)), shapes, np.arange(len(images))),
    )  # fmt: skip
    found: dict[str, Any] = {"samples": int(controls.attrs["samples"])}
    for kind, pictures, target, group, order in sets:
        found[kind] = {"count": len(pictures), "distance": float(np.median(nearest(target, training, ruler, 1)[1][:, 0]))}
        another = derangement(len(pictures), seed)
        for name in (name for name in DRAWN if name in group):
            joined = Joined()
            numbers = joined.add(group[name], order)
            drawn = PictureSet(joined).subset(numbers)
            vectors = ruler(embedded(drawn, embedder, batch))
            found[kind][DRAWN[name]] = {
                "pixcorr": with_interval(pixel_correlations(pictures, drawn), resamples, seed),
                "pixcorr_of_another": float(pixel_correlations(pictures, drawn.subset(another)).mean()),
                "similarity": with_interval((target * vectors).sum(1), resamples, seed),
                "similarity_of_another": float((target * vectors[another]).sum(1).mean()),
            }
    return found


def pixel_correlations(first: PictureSet, second: PictureSet) -> NDArray[np.float64]:
    """Correlation of pixel values (n,) of pictures with others, one each."""
    parts = []
    for part in slices(len(first), PAIRS_AT_ONCE):
        index = np.arange(part.start, part.stop)
        parts.append(m.pixcorr(*(own.batch(index).to(networks.device()) for own in (first, second))).cpu().numpy())
    return np.concatenate(parts).astype(np.float64)
