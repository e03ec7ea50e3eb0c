"""The panel: all wanted measures of many sets of pictures against the same truths, streamed in batches.

Each distinct picture goes through each network once, however many rows (methods, controls, samples) it stands in, and the
truths' features come from a file written once per stimulus set. Features are compared batch by batch and forgotten, but for
those that scores of whole sets need: memory does not grow with the number of samples.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from unimind.evaluation import metrics as m
from unimind.evaluation import networks
from unimind.evaluation.measures import FEW_FOR_A_SET, MEASURES, SIMILARITY, of_kind
from unimind.evaluation.pictures import SIDE, PictureSet, slices
from unimind.progress import say, track

COMPARED = of_kind("two-way", "distance")  # through the correlations of feature vectors
# Results depend on neither of these.
PAIRS_AT_ONCE = 8  # truths per step of the pair measures, whose maps are large
MAPS_AT_ONCE = 2  # pictures whose maps are made together on a CPU: more than two, and they leave its caches

R = TypeVar("R", bound=Hashable)


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
        own = [name for name in wanted if MEASURES[name].network == "classifier"]
        if classifier is None:
            absent |= dict.fromkeys(own, "the study has no classifier of its own")
        else:
            if answers := tuple(name for name in own if MEASURES[name].kind != "maps"):
                vectors.append(networks.study_classifier(classifier, answers))
            if len(answers) < len(own):
                panel.perceptual = networks.of_classifier(classifier)
        panel.absent = {name: absent[name] for name in wanted if name in absent}
        return panel

    def protocol(self) -> dict[str, Any]:
        """Networks and weight hashes per measure."""
        result = {name: network.protocol() for network in self.vectors for name in network.measures}
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


def truth_features(panel: Panel, truths: PictureSet, batch_size: int) -> dict[str, dict[str, np.ndarray]]:
    """Feature vectors of the truths for every network of the panel: network -> feature -> (n, d)."""
    result = {}
    for network in panel.vectors:
        result[network.name] = _vectors(network, truths, batch_size)
        network.release()
    return result


def _vectors(network: networks.Network, pictures: PictureSet, batch_size: int) -> dict[str, np.ndarray]:
    collected: dict[str, np.ndarray] = {}
    for part in track(list(slices(len(pictures), batch_size)), f"features of {network.shown_as}"):
        for key, value in network(pictures.batch(np.arange(part.start, part.stop))).items():
            collected.setdefault(key, np.empty((len(pictures), *value.shape[1:]), np.float32))[part] = value.numpy()
    return collected


def measure(
    panel: Panel,
    truths: PictureSet,
    pictures: PictureSet,
    rows: Mapping[R, np.ndarray],
    batch_size: int = 64,
    stored: Callable[[networks.Network], dict[str, np.ndarray] | None] = lambda network: None,
) -> dict[R, dict[str, "np.ndarray | Whole"]]:
    """All measures of the panel, for every row.

    Parameters
    ----------
    panel : Panel
    truths : PictureSet
        The n truths.
    pictures : PictureSet
        Pictures, of which those that occur in the rows are read.
    rows : mapping to int arrays (n,) or (n, k)
        Which picture stands for truth j; with k columns, k samples of it.
    batch_size : int
        PictureSet per forward pass; results do not depend on it beyond float rounding.
    stored : callable
        Gives the truths' features of a network where a file has them, in a dictionary that is used up; by default they are computed.

    Returns
    -------
    dict
        row -> measure -> array of the row's shape, or `Whole`. Rows with samples get only the measures that compare feature
        vectors: the pair measures would cost as much again for every sample. Beside the measures, `similarity`: the
        correlation of each picture's features with its truth's, in the network of `Panel.similarity`.
    """
    result: dict[R, dict[str, np.ndarray | Whole]] = {row: {} for row in rows}
    used = np.unique(np.concatenate([index.ravel() for index in rows.values()]))
    pictures, rows = pictures.subset(used), {row: np.searchsorted(used, index) for row, index in rows.items()}
    pairs, places = _pairs({row: index for row, index in rows.items() if index.ndim == 1})
    every, where = _pairs(rows)
    low = [name for name in of_kind("pixels") if name in panel.wanted]
    if low:

        def compare(a: m.LowLevel, b: m.LowLevel) -> torch.Tensor:
            return torch.stack([getattr(a, MEASURES[name].computed_by)(b) for name in low], 1)

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
            if name != "squeezenet":
                _spread(result, places, {name: values[:, 0]})
        if "squeezenet" in names:
            assert pooled is not None
            truth, others = (m.standardise(torch.from_numpy(p)) for p in pooled)
            found = _Compared(every, panel)
            for part in slices(len(others), batch_size):
                found.add("squeezenet", part, (truth @ others[part].T).numpy())
            _spread(result, where, found.values)
    for network in panel.vectors:
        known = stored(network)
        _measure_network(panel, network, known or _vectors(network, truths, batch_size), pictures, rows, every, where, batch_size, result)
        network.release()
    return result


def _map_networks(panel: Panel) -> list[tuple[list[str], networks.Maps]]:
    known = ((("lpips_squeeze", "squeezenet"), panel.squeeze), (("lpips",), panel.lpips), (("perceptual_distance",), panel.perceptual))
    return [([name for name in names if name in panel.wanted], maps) for names, maps in known if maps is not None]


class _Compared:
    """What is made, batch by batch, of features that every picture is compared with the truths by: measure -> value of every pair."""

    def __init__(self, pairs: np.ndarray, panel: Panel) -> None:
        self.similarity = panel.similarity
        self.order = np.argsort(pairs[:, 1], kind="stable")
        self.truth, self.picture = pairs[self.order].T
        self.values: dict[str, np.ndarray] = {}

    def put(self, name: str, part: slice, function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        """Values of the pairs of pictures `part`: of (the pictures' places in the batch, their truths)."""
        start, stop = np.searchsorted(self.picture, [part.start, part.stop])
        values = self.values.setdefault(name, np.empty(len(self.order)))
        values[self.order[start:stop]] = function(self.picture[start:stop] - part.start, self.truth[start:stop])

    def add(self, name: str, part: slice, r: np.ndarray) -> None:
        """The correlations (n, b) of every truth with the pictures of a batch."""
        function = getattr(m, MEASURES[name].computed_by)
        self.put(name, part, lambda here, own: function(r[:, here], own))
        if name == self.similarity:
            self.put("similarity", part, lambda here, own: r[own, here])


def _measure_network(
    panel: Panel,
    network: networks.Network,
    truth: dict[str, np.ndarray],
    pictures: PictureSet,
    rows: Mapping[R, np.ndarray],
    every: np.ndarray,
    where: dict[R, np.ndarray],
    batch_size: int,
    result: dict[R, dict[str, "np.ndarray | Whole"]],
) -> None:
    """Measures of one network's feature vectors, written into `result`; wide features are taken out of `truth`, one copy of them is enough."""
    device, found = networks.device(), _Compared(every, panel)
    unit = {name: m.standardise(torch.from_numpy(truth.pop(name)).to(device)) for name in network.measures if name in COMPARED}
    classes = [name for name in network.measures if MEASURES[name].kind == "class"]
    sets = [name for name in network.measures if MEASURES[name].kind == "set"]
    of_sets = np.unique(np.concatenate([index for index in rows.values() if index.ndim == 1])) if sets else np.empty(0, int)
    kept: dict[str, list[np.ndarray]] = {"logits": [], "pooled": []}
    for part in track(list(slices(len(pictures), batch_size)), network.shown_as):
        values = network(pictures.batch(np.arange(part.start, part.stop)))
        for name, truths in unit.items():
            found.add(name, part, (truths @ m.standardise(values[name].to(device)).T).cpu().numpy())
        for name in classes:
            function, logits = getattr(m, MEASURES[name].computed_by), values["logits"].numpy()
            found.put(name, part, lambda here, own: function(truth["logits"][own], logits[here]))  # noqa: B023
        for key, parts in kept.items():
            if sets and key in values:
                parts.append(values[key].numpy()[of_sets[(of_sets >= part.start) & (of_sets < part.stop)] - part.start])
    _spread(result, where, found.values)
    for row, index in rows.items():
        at = np.searchsorted(of_sets, index)
        for name in sets if index.ndim == 1 else ():
            if MEASURES[name].computed_by == "inception_score":
                result[row][name] = Whole(*m.inception_score(np.concatenate(kept["logits"])[at]))
            elif len(index) > 1:
                result[row][name] = Whole(m.fid(truth["pooled"], np.concatenate(kept["pooled"])[at]))


def _pairs(rows: Mapping[R, np.ndarray]) -> tuple[np.ndarray, dict[R, np.ndarray]]:
    """Distinct (truth, picture) pairs (p, 2), sorted by truth, and for every row the place of its pairs."""
    lists = {row: np.stack([np.broadcast_to(np.arange(len(i)).reshape(-1, *[1] * (i.ndim - 1)), i.shape).ravel(), i.ravel()], 1) for row, i in rows.items()}
    pairs, back = np.unique(np.concatenate(list(lists.values())), axis=0, return_inverse=True)
    ends = np.cumsum([len(part) for part in lists.values()])[:-1]
    parts = np.split(back.ravel(), ends)
    return pairs, {row: part.reshape(rows[row].shape) for row, part in zip(rows, parts, strict=True)}


def _spread(result: dict[R, dict[str, "np.ndarray | Whole"]], places: Mapping[R, np.ndarray], values: Mapping[str, np.ndarray]) -> None:
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
    truths: PictureSet,
    pictures: PictureSet,
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
        PictureSet (b, 3, H, W) -> what is compared (to be sliced), and a vector per picture or None.
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


def warnings(measured: Mapping[str, Any], n: int) -> list[str]:
    """What a reader of the numbers must know."""
    names = [name for name in of_kind("set") if name in measured and n < FEW_FOR_A_SET]
    found = [f"{MEASURES[name].title} from {n} images: unstable below {FEW_FOR_A_SET}" for name in names]
    for message in found:
        say(message)
    return found


def picture_protocol() -> dict[str, Any]:
    """How pictures enter the measures."""
    return {"side": SIDE, "resize": "bilinear, antialiased", "detail_side": m.DETAIL, "ssim": "two-dimensional, grey, Gaussian window of sigma 1.5"}
