"""Stage `features`: the panel's features of a stimulus set's test pictures, once for all methods, subjects and controls."""

from pathlib import Path

import h5py
import numpy as np

from unimind.errors import InputError
from unimind.evaluation import networks
from unimind.evaluation.panel import Panel, truth_features
from unimind.evaluation.pictures import Pictures
from unimind.progress import say
from unimind.storage import whole_file
from unimind.study import Study


def panel_of(study: Study, embedding: Path, classifier: Path | None) -> Panel:
    """The panel a study asks for, with the weights that are there."""
    section = study.evaluation
    return Panel.of(section.metrics, section.weights, section.squeezenet, embedding, classifier)


def test_pictures(prepared: list[Path]) -> np.ndarray:
    """Stimulus indices, sorted, that are test pictures of any of the subjects."""
    found: list[np.ndarray] = []
    for path in prepared:
        with h5py.File(path) as file:
            found.append(file["stimulus"][:][file["split"][:] == 2])
    stimulus = np.unique(np.concatenate(found)) if found else np.empty(0, int)
    if not len(stimulus):
        raise InputError(f"{', '.join(str(p) for p in prepared) or 'no prepared file given'}: no test trials; nothing to evaluate")
    return stimulus


def features(study: Study, stimuli: Path, prepared: list[Path], embedding: Path, classifier: Path | None, out: Path) -> None:
    """Write `out`: `stimulus` (n,), and one group per network with its features (n, d) and attributes `shown_as`, `sha256`."""
    panel = panel_of(study, embedding, classifier)
    for name, reason in panel.absent.items():
        say(f"{name} will be absent: {reason}")
    stimulus = test_pictures(prepared)
    with h5py.File(stimuli) as file:
        truths = Pictures(file["images"][stimulus])
    found = truth_features(panel, truths, study.evaluation.batch_size)
    with whole_file(out) as temporary, h5py.File(temporary, "w") as file:
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
            raise InputError(f"{path}: lacks some of the test pictures; run the features stage again")
        wanted, back = np.unique(place, return_inverse=True)
        return {key: values[wanted][back] for key, values in file[network.name].items()}
