"""Stage `features`: the panel's features of a stimulus set's test pictures, once for all methods, subjects and controls."""

from pathlib import Path

import h5py
import numpy as np

from unimind.data.hdf5 import NewFile, read_rows
from unimind.errors import InputError
from unimind.evaluation import networks
from unimind.evaluation.measures import MEASURES
from unimind.evaluation.panel import Panel, truth_features
from unimind.evaluation.pictures import Joined, PictureSet
from unimind.progress import say
from unimind.reconstruction.tested import pictures_tested
from unimind.storage import whole_file
from unimind.study import Study


def panel_of(study: Study, embedding: Path, classifier: Path | None) -> Panel:
    """The panel a study asks for, with the weights that are there."""
    section = study.evaluation
    return Panel.of(section.metrics, section.weights, section.squeezenet, embedding, classifier)


def features(study: Study, stimuli: Path, prepared: list[Path], embedding: Path, classifier: Path | None, out: Path) -> None:
    """Write `out`: `stimulus` (n,), and one group per network with its features (n, d) and attributes `shown_as`, `sha256`.

    Of all pictures that may be tested on (`pictures_tested`), so that a new subject finds its own among them. SqueezeNet's are among
    them, though `score` makes them anew where it makes its maps: `transfer` compares with them the pictures of every budget.
    """
    section = study.evaluation
    compared = [name for name in section.metrics if MEASURES[name].kind != "maps"]
    panel = Panel.of(compared, section.weights, section.squeezenet, embedding, classifier)
    for name, reason in panel_of(study, embedding, classifier).absent.items():
        say(f"{name} will be absent: {reason}")
    stimulus = pictures_tested(stimuli, prepared)
    with h5py.File(stimuli) as file:
        truths = Joined()
        truths.add(file["images"], stimulus)
        found = truth_features(panel, PictureSet(truths), study.evaluation.batch_size)
    with whole_file(out) as temporary, NewFile(temporary) as file:
        file["stimulus"] = stimulus.astype(np.int32)
        for network in panel.vectors:
            group = file.create_group(network.name)
            group.attrs.update(shown_as=network.shown_as, sha256=network.sha256)
            for key, values in found[network.name].items():
                group[key] = values


def stored_features(path: Path, stimulus: np.ndarray, network: networks.Network) -> dict[str, np.ndarray] | None:
    """Features of the given stimuli as the features file has them, or None where it has none of this network."""
    with h5py.File(path) as file:
        if network.name not in file or file[network.name].attrs["sha256"] != network.sha256:
            return None
        known = file["stimulus"][:]
        place = np.searchsorted(known, stimulus)
        if not np.array_equal(known[np.minimum(place, len(known) - 1)], stimulus):
            missing = np.setdiff1d(stimulus, known)[0]
            raise InputError(f"{path}: has no features of stimulus {missing}; run the features stage again with the stimulus file this subject refers to")
        return {key: read_rows(values, place) for key, values in file[network.name].items()}
