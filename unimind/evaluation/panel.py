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

from unimind.blocks import Arrays, Blocks, Work
from unimind.evaluation import metrics as m
from unimind.evaluation import networks
from unimind.evaluation.measures import FEW_FOR_A_SET, MEASURES, SIMILARITY, of_kind
from unimind.evaluation.pairs import PAIRS_AT_ONCE, PICTURES_A_BLOCK, paired
from unimind.evaluation.pictures import SIDE, PictureSet, slices
from unimind.progress import say, track

COMPARED = of_kind("two-way", "distance")  # through the correlations of feature vectors
#: Of the measures of pixels the one that is taken of the shown sample alone: it costs five times the others.
OF_ONE_SAMPLE = "ssim"
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
        elif "lpips_squeeze" in wanted:
            panel.squeeze = networks.lpips("squeeze", *squeeze)
        elif "squeezenet" in wanted:
            vectors.append(networks.pooled_squeezenet(*squeeze))
        if "lpips" in wanted:
            alex = networks.find_weights("alexnet", weights)
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
        if self.squeeze is not None and "squeezenet" in self.wanted:
            result["squeezenet"] |= {"network": networks.shown_pooled(self.squeeze.sha256)}
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
        Pictures per forward pass; results do not depend on it beyond float rounding.
    stored : callable
        Gives the truths' features of a network where a file has them, in a dictionary that is used up; by default they are computed.

    Returns
    -------
    dict
        row -> measure -> array of the row's shape, or `Whole`. Rows with samples get the measures that compare feature vectors and those of
        pixels but SSIM; maps would cost as much again for every sample. Beside the measures, `similarity`: the
        correlation of each picture's features with its truth's, in the network of `Panel.similarity`.
    """
    return measured_in(Blocks(), panel, truths, pictures, rows, batch_size, stored)()


def measured_in(
    blocks: Blocks,
    panel: Panel,
    truths: PictureSet,
    pictures: PictureSet,
    rows: Mapping[R, np.ndarray],
    batch_size: int,
    stored: Callable[[networks.Network], dict[str, np.ndarray] | None],
) -> Callable[[], dict[R, dict[str, "np.ndarray | Whole"]]]:
    """As `measure`, in blocks that are kept; what it gives puts them together, and is called when all are made (`Blocks.all_made`)."""
    used = np.unique(np.concatenate([index.ravel() for index in rows.values()]))
    measurement = _Measurement(panel, truths, pictures.subset(used), {row: np.searchsorted(used, index) for row, index in rows.items()}, batch_size, blocks)
    finish = [measurement.pixels(), *(measurement.maps(names, maps) for names, maps in _map_networks(panel))]
    for network in panel.vectors:
        finish.append(measurement.vectors(network, stored))
        network.release()

    def together() -> dict[R, dict[str, np.ndarray | Whole]]:
        result: dict[R, dict[str, np.ndarray | Whole]] = {row: {} for row in rows}
        for put_into in finish:
            put_into(result)
        return result

    return together


def _map_networks(panel: Panel) -> list[tuple[list[str], networks.Maps]]:
    known = ((("lpips_squeeze", "squeezenet"), panel.squeeze), (("lpips",), panel.lpips), (("perceptual_distance",), panel.perceptual))
    return [([name for name in names if name in panel.wanted], maps) for names, maps in known if maps is not None]


class _Measurement:
    """The works of one measurement. Each is made when its method is called, which gives the function that puts its values into the result."""

    def __init__(self, panel: Panel, truths: PictureSet, pictures: PictureSet, rows: Mapping[Any, np.ndarray], batch_size: int, blocks: Blocks) -> None:
        self.panel, self.truths, self.pictures, self.rows, self.batch_size, self.blocks = panel, truths, pictures, rows, batch_size, blocks
        self.pairs, self.places = _pairs({row: index for row, index in rows.items() if index.ndim == 1})
        self.every, self.where = _pairs(rows)

    def pixels(self) -> Callable[[dict], None]:
        """Measures of the pictures' own values."""
        low = [name for name in of_kind("pixels") if name in self.panel.wanted]
        of_samples = {row: index for row, index in self.rows.items() if index.ndim > 1}
        finish = [self._pixels("pixels", low, self.pairs, self.places)] if low else []
        if of_samples and (cheap := [name for name in low if name != OF_ONE_SAMPLE]):
            finish.append(self._pixels("pixels-samples", cheap, *_pairs(of_samples)))

        def put_into(result: dict) -> None:
            for put in finish:
                put(result)

        return put_into

    def _pixels(self, work: str, names: list[str], pairs: np.ndarray, places: Mapping[Any, np.ndarray]) -> Callable[[dict], None]:
        def compare(a: m.LowLevel, b: m.LowLevel) -> torch.Tensor:
            return torch.stack([getattr(a, MEASURES[name].computed_by)(b) for name in names], 1)

        found = paired(
            self.truths, self.pictures, pairs, lambda x: (m.LowLevel.of(x.to(networks.device()), OF_ONE_SAMPLE in names), None), compare,
            min(self.batch_size, PAIRS_AT_ONCE), "low-level measures", blocks=self.blocks, name=work,
        )  # fmt: skip
        return lambda result: _spread(result, places, dict(zip(names, found()[0].T, strict=True)))

    def maps(self, names: list[str], maps: networks.Maps) -> Callable[[dict], None]:
        """Distances of a network's feature maps, and two-way identification by the last one's average."""
        distances, pooled = [name for name in names if name != "squeezenet"], "squeezenet" in names
        found = paired(
            self.truths, self.pictures, self.pairs, maps, lambda a, b: m.squared_distance(a, b)[:, None],
            min(self.batch_size, PAIRS_AT_ONCE), maps.shown_as, pooled, self.blocks, names[0],
        )  # fmt: skip

        def put_into(result: dict) -> None:
            values, vectors = found()
            for name in distances:
                _spread(result, self.places, {name: values[:, 0]})
            if vectors is not None:
                truth, others = (m.standardise(torch.from_numpy(own)) for own in vectors)
                compared = _Compared(self.every, self.panel.similarity)
                for part in slices(len(others), self.batch_size):
                    compared.add("squeezenet", part.start, (truth @ others[part].T).numpy())
                _spread(result, self.where, compared.values())

        return put_into

    def vectors(self, network: networks.Network, stored: Callable[[networks.Network], dict[str, np.ndarray] | None]) -> Callable[[dict], None]:
        """Measures of one network's feature vectors: compared batch by batch and forgotten, but for those that scores of whole sets need."""
        device = networks.device()
        sets = [name for name in network.measures if MEASURES[name].kind == "set"]
        classes = [name for name in network.measures if MEASURES[name].kind == "class"]
        of_sets = np.unique(np.concatenate([index for index in self.rows.values() if index.ndim == 1])) if sets else np.empty(0, int)
        truth: dict[str, np.ndarray] = {}
        unit: dict[str, torch.Tensor] = {}

        def read() -> None:  # wide features are taken out of `truth`: one copy of them is enough
            if not truth and not unit:
                truth.update(stored(network) or _vectors(network, self.truths, self.batch_size))
                unit.update({name: m.standardise(torch.from_numpy(truth.pop(name)).to(device)) for name in network.measures if name in COMPARED})

        def made(numbers: np.ndarray) -> Arrays:
            read()
            compared, kept = _Compared(self.every, self.panel.similarity), {"logits": [], "pooled": []}  # type: ignore[var-annotated]
            for part in slices(len(numbers), self.batch_size):
                own = numbers[part]
                values = network(self.pictures.batch(own))
                for name, truths in unit.items():
                    compared.add(name, own[0], (truths @ m.standardise(values[name].to(device)).T).cpu().numpy())
                for name in classes:
                    function, logits = getattr(m, MEASURES[name].computed_by), values["logits"].numpy()
                    compared.put(name, own[0], len(own), lambda here, of: function(truth["logits"][of], logits[here]))  # noqa: B023
                for key, parts in kept.items():
                    if sets and key in values:
                        parts.append(values[key].numpy()[np.isin(own, of_sets)])
            return compared.parts() | {f"set {key}": np.concatenate(parts) for key, parts in kept.items() if parts}

        work = Work(network.name, len(self.pictures), PICTURES_A_BLOCK, made, network.shown_as)
        self.blocks.make(work)
        unit.clear()

        def put_into(result: dict) -> None:
            compared, kept = _Compared(self.every, self.panel.similarity), {"logits": [], "pooled": []}  # type: ignore[var-annotated]
            for _, content in self.blocks.read(work):
                for key, parts in kept.items():
                    if f"set {key}" in content:
                        parts.append(content.pop(f"set {key}"))
                compared.take(content)
            _spread(result, self.where, compared.values())
            for row, index in self.rows.items():
                at = np.searchsorted(of_sets, index)
                for name in sets if index.ndim == 1 else ():
                    if MEASURES[name].computed_by == "inception_score":
                        result[row][name] = Whole(*m.inception_score(np.concatenate(kept["logits"])[at]))
                    elif len(index) > 1:
                        read()
                        result[row][name] = Whole(m.fid(truth["pooled"], np.concatenate(kept["pooled"])[at]))

        return put_into


class _Compared:
    """What is made, batch by batch, of features that every picture is compared with the truths by: measure -> value of every pair.

    Parameters
    ----------
    pairs : int array (p, 2)
        (truth, picture); batches of pictures come in ascending order.
    similarity : str or None
        The measure whose correlations of pictures with their own truths are kept as well.
    """

    def __init__(self, pairs: np.ndarray, similarity: str | None) -> None:
        self.similarity = similarity
        self.order = np.argsort(pairs[:, 1], kind="stable")
        self.truth, self.picture = pairs[self.order].T
        self.found: dict[str, list[np.ndarray]] = {}

    def put(self, name: str, first: int, count: int, function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        """Values of the pairs of `count` pictures from `first` on: of (the pictures' places among these, their truths)."""
        start, stop = np.searchsorted(self.picture, [first, first + count])
        values = function(self.picture[start:stop] - first, self.truth[start:stop])
        self.found.setdefault(name, []).append(np.asarray(values, float))

    def add(self, name: str, first: int, r: np.ndarray) -> None:
        """The correlations (n, b) of every truth with b pictures from `first` on."""
        function = getattr(m, MEASURES[name].computed_by)
        self.put(name, first, r.shape[1], lambda here, own: function(r[:, here], own))
        if name == self.similarity:
            self.put("similarity", first, r.shape[1], lambda here, own: r[own, here])

    def take(self, parts: Mapping[str, np.ndarray]) -> None:
        """Values of the pictures that come next, as `parts` gave them."""
        for name, values in parts.items():
            self.found.setdefault(name, []).append(values)

    def parts(self) -> dict[str, np.ndarray]:
        """Values so far, by pictures."""
        return {name: np.concatenate(parts) for name, parts in self.found.items()}

    def values(self) -> dict[str, np.ndarray]:
        """Values (p,) in the order of the pairs, when all pictures have come."""
        back = np.argsort(self.order)
        return {name: values[back] for name, values in self.parts().items()}


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
