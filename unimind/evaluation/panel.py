"""The panel: all wanted measures of many sets of pictures against the same truths, streamed in batches.

Each distinct picture goes through each network once, however many rows (controls, samples) it stands in, and the
truths' features come from a file written once per stimulus set. Only correlations with the truths are kept of wide
features, so memory does not grow with the number of pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unimind.evaluation import metrics as m
from unimind.evaluation import networks
from unimind.evaluation.layout import SIMILARITY
from unimind.evaluation.pictures import SIDE, Pictures, slices
from unimind.progress import say, track

LOW_LEVEL = ("mse", "pixcorr", "ssim")
TWO_WAY = ("alexnet2", "alexnet5", "inception", "clip", "study_clip", "squeezenet")
DISTANCE = ("effnet", "swav")
FEW_FOR_INCEPTION_SCORE = 5000
# Results depend on neither of these.
PAIRS_AT_ONCE = 8  # truths per step of the pair measures, whose maps are large
MAPS_AT_ONCE = 2  # pictures whose maps are made together on a CPU: more than two, and they leave its caches


@dataclass
class Whole:
    """A measure of a whole set of pictures: one number, no value per image."""

    value: float
    standard_error: float | None = None


Measured = dict[str, dict[str, "np.ndarray | Whole"]]


@dataclass
class Panel:
    """Which measures are wanted, and with which networks they can be had.

    Attributes
    ----------
    wanted : list of str
    vectors : list of Network
        Networks compared through feature vectors.
    lpips, squeeze, perceptual : Maps or None
        Networks compared through feature maps.
    absent : dict
        Reason per measure that cannot be computed.
    """

    wanted: list[str]
    vectors: list[networks.Network] = field(default_factory=list)
    lpips: networks.Maps | None = None
    squeeze: networks.Maps | None = None
    perceptual: networks.Maps | None = None
    absent: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, wanted: Sequence[str], weights: str | Path | None, squeezenet: str | None, embedding: Path | None = None, classifier: Path | None = None
    ) -> "Panel":
        """The panel for the wanted measures with the weights that are there.

        Parameters
        ----------
        wanted : names of measures
        weights : folder with the files of `config/weights.tsv`
        squeezenet : file with SqueezeNet 1.1 weights
        embedding, classifier : directories of the study's foundations, where there is a study
        """
        wanted = list(wanted)
        vectors, absent = networks.panel(wanted, weights)
        panel = cls(wanted, vectors, absent=absent)
        if "study_clip" in wanted:
            clip = "there is no study whose CLIP it is" if embedding is None else networks.study_clip(embedding)
            if isinstance(clip, str):
                absent["study_clip"] = clip
            else:
                vectors.append(clip)
        squeeze = networks.find_squeezenet(squeezenet)
        if isinstance(squeeze, str):
            absent |= {"squeezenet": squeeze, "lpips_squeeze": squeeze}
        elif {"squeezenet", "lpips_squeeze"} & set(wanted):
            panel.squeeze = networks.lpips("squeeze", *squeeze)
        if "lpips" in wanted:
            alex = networks.find("alexnet", weights)
            if isinstance(alex, str):
                absent["lpips"] = alex
            else:
                panel.lpips = networks.lpips("alex", *alex)
        own = [name for name in ("classifier", "classifier_score", "perceptual_distance") if name in wanted]
        if classifier is None:
            absent |= dict.fromkeys(own, "the study has no classifier of its own")
        else:
            if set(own) & {"classifier", "classifier_score"}:
                vectors.append(networks.study_classifier(classifier))
            if "perceptual_distance" in own:
                panel.perceptual = networks.of_classifier(classifier)
        panel.absent = {name: absent[name] for name in wanted if name in absent}
        return panel

    def protocol(self) -> dict[str, Any]:
        """Networks and weight hashes per measure."""
        result = {}
        for network in self.vectors:
            for name in self._measures_of(network):
                result[name] = network.protocol()
        for name, maps in (("lpips", self.lpips), ("lpips_squeeze", self.squeeze), ("squeezenet", self.squeeze), ("perceptual_distance", self.perceptual)):
            if maps is not None and name in self.wanted:
                result[name] = maps.protocol()
        if "squeezenet" in result:
            pooled = f"{networks.shown('squeezenet', result['squeezenet']['sha256'])}, pooled features"
            result["squeezenet"] = {**result["squeezenet"], "network": pooled}
        return dict(sorted(result.items()))

    @property
    def similarity(self) -> str | None:
        """The measure in whose network's features a picture's similarity to its truth is taken; None where there is no such network."""
        return next((name for name in SIMILARITY if name in self.protocol()), None)

    def _measures_of(self, network: networks.Network) -> list[str]:
        names = {
            "inception-299": ("inception_score", "fid"),
            "vit_h_14": ("nway_top1",),
            "classifier": ("classifier", "classifier_score"),
            "alexnet": ("alexnet2", "alexnet5"),
        }
        return [name for name in names.get(network.name, (network.name,)) if name in self.wanted]


def truth_features(panel: Panel, truths: Pictures, batch_size: int) -> dict[str, dict[str, np.ndarray]]:
    """Feature vectors of the truths for every network of the panel: network -> feature -> (n, d)."""
    result = {}
    for network in panel.vectors:
        result[network.name] = _vectors(network, truths, batch_size)
        network.release()
    return result


def _vectors(network: networks.Network, pictures: Pictures, batch_size: int) -> dict[str, np.ndarray]:
    collected: dict[str, np.ndarray] = {}
    for part in track(list(slices(len(pictures), batch_size)), f"features of {network.shown_as}"):
        for key, value in network(pictures.batch(np.arange(part.start, part.stop))).items():
            collected.setdefault(key, np.empty((len(pictures), *value.shape[1:]), np.float32))[part] = value.numpy()
    return collected


def measure(
    panel: Panel,
    truths: Pictures,
    pictures: Pictures,
    rows: dict[str, np.ndarray],
    batch_size: int = 64,
    stored: Callable[[networks.Network], dict[str, np.ndarray] | None] = lambda network: None,
) -> Measured:
    """All measures of the panel, for every row.

    Parameters
    ----------
    panel : Panel
    truths : Pictures
        The n truths.
    pictures : Pictures
        The distinct pictures that occur in the rows.
    rows : dict of str to int array (n,) or (n, k)
        Which picture stands for truth j; with k columns, k samples of it.
    batch_size : int
        Pictures per forward pass; results do not depend on it beyond float rounding.
    stored : callable
        Gives the truths' features of a network where a file has them, in a dictionary that is used up; by default they are computed.

    Returns
    -------
    dict
        row -> measure -> array of the row's shape, or `Whole`. Rows with samples get only the measures that compare feature
        vectors: the pair measures would cost as much again for every sample. Beside the measures, `similarity`: the
        correlation of each picture's features with its truth's, in the network of `Panel.similarity`.
    """
    result: Measured = {row: {} for row in rows}
    pairs, places = _pairs({row: index for row, index in rows.items() if index.ndim == 1})
    low = [name for name in LOW_LEVEL if name in panel.wanted]
    if low:

        def compare(a: m.LowLevel, b: m.LowLevel) -> torch.Tensor:
            return torch.stack([getattr(a, name)(b) for name in low], 1)

        values, _ = paired(
            truths, pictures, pairs, lambda x: (m.LowLevel.of(x.to(networks.device())), None), compare, min(batch_size, PAIRS_AT_ONCE), "low-level measures"
        )
        _spread(result, places, dict(zip(low, values.T, strict=True)))
    for names, maps in _map_networks(panel):
        values, pooled = paired(
            truths, pictures, pairs, maps, lambda a, b: m.squared_distance(a, b)[:, None], min(batch_size, PAIRS_AT_ONCE), maps.shown_as,
            only_pictures=names == ["squeezenet"],
        )  # fmt: skip
        for name in names:
            if name == "squeezenet":
                assert pooled is not None
                _fill_correlations(panel, result, rows, name, m.correlations(*(torch.from_numpy(p) for p in pooled)))
            else:
                _spread(result, places, {name: values[:, 0]})
    for network in panel.vectors:
        known = stored(network)
        _measure_network(panel, network, known or _vectors(network, truths, batch_size), pictures, rows, batch_size, result)
        network.release()
    return result


def _map_networks(panel: Panel) -> list[tuple[list[str], networks.Maps]]:
    known = ((("lpips_squeeze", "squeezenet"), panel.squeeze), (("lpips",), panel.lpips), (("perceptual_distance",), panel.perceptual))
    return [([name for name in names if name in panel.wanted], maps) for names, maps in known if maps is not None]


def _measure_network(
    panel: Panel, network: networks.Network, truth: dict[str, np.ndarray], pictures: Pictures, rows: dict[str, np.ndarray], batch_size: int, result: Measured
) -> None:
    """Measures of one network's feature vectors, written into `result`; wide features are taken out of `truth`, one copy of them is enough."""
    wide = [key for key in truth if key in (*TWO_WAY, *DISTANCE) and key in panel.wanted]
    kept = [key for key in truth if key in ("logits", "pooled")]
    device = networks.device()
    unit = {key: m.standardise(torch.from_numpy(truth.pop(key)).to(device)) for key in wide}
    r = {key: np.empty((len(unit[key]), len(pictures)), np.float32) for key in wide}
    features: dict[str, list[np.ndarray]] = {key: [] for key in kept}
    for part in track(list(slices(len(pictures), batch_size)), network.shown_as):
        values = network(pictures.batch(np.arange(part.start, part.stop)))
        for key in wide:
            r[key][:, part] = (unit[key] @ m.standardise(values[key].to(device)).T).cpu().numpy()
        for key in kept:
            features[key].append(values[key].numpy())
    for key in wide:
        _fill_correlations(panel, result, rows, key, r[key])
    if not kept:
        return
    logits = np.concatenate(features["logits"])
    if network.name == "vit_h_14":
        _fill(result, rows, "nway_top1", lambda index, own: m.nway_top1(truth["logits"][own], logits[index]))
    if network.name == "classifier" and "classifier" in panel.wanted:
        _fill(result, rows, "classifier", lambda index, own: (logits[index].argmax(1) == truth["logits"][own].argmax(1)).astype(float))
    score = {"classifier": "classifier_score", "inception-299": "inception_score"}.get(network.name)
    for row, index in rows.items():
        if index.ndim == 1:
            if score in panel.wanted:
                result[row][score] = Whole(*m.inception_score(logits[index]))
            if network.name == "inception-299" and "fid" in panel.wanted and len(index) > 1:
                result[row]["fid"] = Whole(m.fid(truth["pooled"], np.concatenate(features["pooled"])[index]))


def _fill_correlations(panel: Panel, result: Measured, rows: dict[str, np.ndarray], name: str, r: np.ndarray) -> None:
    """What is made of the correlations (n, m) of every truth with every picture in one network's features."""
    measure = m.two_way if name in TWO_WAY else m.correlation_distance
    _fill(result, rows, name, lambda index, own: measure(r[:, index], own))
    if name == panel.similarity:
        _fill(result, rows, "similarity", lambda index, own: r[own, index])


def _fill(result: Measured, rows: dict[str, np.ndarray], name: str, function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    for row, index in rows.items():
        own = np.broadcast_to(np.arange(len(index)).reshape(-1, *[1] * (index.ndim - 1)), index.shape)
        result[row][name] = np.asarray(function(index.ravel(), own.ravel()), float).reshape(index.shape)


def _pairs(rows: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Distinct (truth, picture) pairs (p, 2), sorted by truth, and for every row the place of its pairs."""
    lists = {row: np.stack([np.broadcast_to(np.arange(len(i)).reshape(-1, *[1] * (i.ndim - 1)), i.shape).ravel(), i.ravel()], 1) for row, i in rows.items()}
    pairs, back = np.unique(np.concatenate(list(lists.values())), axis=0, return_inverse=True)
    ends = np.cumsum([len(part) for part in lists.values()])[:-1]
    parts = np.split(back.ravel(), ends)
    return pairs, {row: part.reshape(rows[row].shape) for row, part in zip(rows, parts, strict=True)}


def _spread(result: Measured, places: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> None:
    for row, place in places.items():
        for name, value in values.items():
            result[row][name] = value[place].astype(float)


def chained(pairs: np.ndarray, n: int) -> np.ndarray:
    """An order of the n truths in which those that are compared with the same picture follow each other.

    The row `chance` compares every picture with a second truth; so ordered, both fall into one batch but for its ends.
    """
    pictures, place, counts = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
    partners: list[list[int]] = [[] for _ in range(n)]
    for picture in np.flatnonzero(counts == 2):
        a, b = pairs[place == picture, 0].tolist()
        partners[a].append(b)
        partners[b].append(a)
    order: list[int] = []
    seen = np.zeros(n, bool)
    for start in range(n):
        here: int | None = start
        while here is not None and not seen[here]:
            seen[here] = True
            order.append(here)
            here = next((other for other in partners[here] if not seen[other]), None)
    return np.array(order, int)


def paired(
    truths: Pictures,
    pictures: Pictures,
    pairs: np.ndarray,
    prepare: Callable[[torch.Tensor], tuple[Any, torch.Tensor | None]],
    compare: Callable[[Any, Any], torch.Tensor],
    batch_size: int,
    label: str,
    only_pictures: bool = False,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Compare pictures with truths pair by pair, preparing each truth once and each picture once per batch of truths.

    Parameters
    ----------
    pairs : int array (p, 2)
        (truth, picture), sorted by truth.
    prepare : callable
        Pictures (b, 3, H, W) -> what is compared (to be sliced), and a vector per picture or None.
    compare : callable
        One prepared truth, one prepared picture -> (1, measures).
    only_pictures : bool
        Only the vectors are wanted.

    Returns
    -------
    values : array of shape (p, measures)
    vectors : (truths' vectors (n, d), pictures' vectors (m, d)) or None
    """
    values: np.ndarray | None = None
    vectors: list[dict[int, torch.Tensor]] = [{}, {}]
    order = chained(pairs, len(truths))
    together = batch_size if networks.device().type == "cuda" else min(batch_size, MAPS_AT_ONCE)
    for part in track(list(slices(len(truths), batch_size)), label):
        own = np.sort(order[part])
        place = np.flatnonzero(np.isin(pairs[:, 0], own))
        here = pairs[place]
        truth: dict[int, Any] = {}
        for piece in slices(len(own), together):
            numbers = own[piece]
            made, vector = prepare(truths.batch(numbers))
            truth |= {number: made[k : k + 1] for k, number in enumerate(numbers.tolist())}
            if vector is not None:
                vectors[0].update(zip(numbers.tolist(), vector, strict=True))
        needed = np.unique(here[:, 1])
        if only_pictures:
            needed = np.array([i for i in needed if i not in vectors[1]], int)
        for piece in slices(len(needed), together):
            numbers = needed[piece]
            made, vector = prepare(pictures.batch(numbers))
            if vector is not None:
                vectors[1].update(zip(numbers.tolist(), vector, strict=True))
            if only_pictures:
                continue
            for at in np.flatnonzero(np.isin(here[:, 1], numbers)).tolist():
                j = np.searchsorted(numbers, here[at, 1])
                found = compare(truth[here[at, 0]], made[j : j + 1]).cpu().numpy()
                if values is None:
                    values = np.empty((len(pairs), found.shape[1]))
                values[place[at]] = found[0]
    if values is None:
        values = np.empty((len(pairs), 1))
    if not vectors[0]:
        return values, None
    count = len(pictures)
    missing = [i for i in range(count) if i not in vectors[1]]
    for piece in slices(len(missing), together):
        made, vector = prepare(pictures.batch(missing[piece]))
        assert vector is not None
        vectors[1].update(zip(missing[piece], vector, strict=True))
    return values, (torch.stack([vectors[0][i] for i in range(len(truths))]).numpy(), torch.stack([vectors[1][i] for i in range(count)]).numpy())


def warnings(measured: dict[str, Any], n: int) -> list[str]:
    """What a reader of the numbers must know."""
    found = []
    for name, title in (("inception_score", "Inception Score"), ("classifier_score", "The classifier score")):
        if name in measured and n < FEW_FOR_INCEPTION_SCORE:
            found.append(f"{title} from {n} images: unstable below {FEW_FOR_INCEPTION_SCORE}")
    if "fid" in measured and n < FEW_FOR_INCEPTION_SCORE:
        found.append(f"FID from {n} images: a reference only")
    for message in found:
        say(message)
    return found


def picture_protocol() -> dict[str, Any]:
    """How pictures enter the measures."""
    return {"side": SIDE, "resize": "bilinear, antialiased", "detail_side": m.DETAIL, "ssim": "two-dimensional, grey, Gaussian window of sigma 1.5"}
