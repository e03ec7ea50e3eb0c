"""Stage `generalise`: does what was measured hold for pictures unlike those of training? One file of checks per subject.

Which checks there are and what they mean says `docs/metrics.md`. After Shirakawa et al., "Spurious reconstruction from brain
activity" (arXiv 2405.10078).
"""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from unimind.device import on_device
from unimind.errors import InputError
from unimind.evaluation import declaration, findings
from unimind.evaluation.metrics import two_way
from unimind.evaluation.neighbours import CANDIDATES, MIDDLE, REFERENCES, Middles, Perceptual, Ruler, TrainingPictures, embedded, nearest, outside_span, ranks
from unimind.evaluation.panel import Panel
from unimind.evaluation.pictures import Joined, PictureSet
from unimind.evaluation.recovery import recovery
from unimind.evaluation.rows import read_metrics
from unimind.evaluation.score import Predicted, rows_at
from unimind.evaluation.statistics import with_interval
from unimind.storage import write_json
from unimind.study import Study

#: Perceptual distances by networks, best first.
PERCEPTUAL = ("lpips", "lpips_squeeze", "perceptual_distance")
#: How many of the training pictures and the seen one may be ahead: places of identification against the training set.
TOPS = (1, 10, 50)
#: Groups of test pictures by distance, and the fewest pictures of one.
TENTHS, FEWEST = 10, 5
#: Groups of like pictures that stand for categories, at most, and test pictures that each needs on average.
CATEGORIES, EACH = 10, 6
#: Training pictures by which the groups are found.
GROUPED = 5000
#: Squared distance of two predictions, relative to the mean over all, below which they are one.
SAME = 0.01
#: Distance of a prediction from a training picture, relative to that of training pictures from their nearest, up to which it is that picture's.
STORED = 0.05


def generalise(
    study: Study,
    dataset: str,
    subject: str,
    reconstructions: Sequence[Path],
    metrics: Path,
    stimuli: Path,
    prepared: Path,
    embeddings: Path,
    training_prepared: Sequence[Path],
    training_embeddings: Sequence[Path],
    training_stimuli: Sequence[Path],
    embedding: Path,
    classifier: Path | None,
    out: Path,
    controls: Path | None = None,
) -> None:
    """Write the checks of one subject's test pictures, and of every method's reconstructions of them.

    Parameters
    ----------
    reconstructions : sequence of paths
        One file per method.
    metrics : path
        Folder of the subject's metrics files.
    training_prepared, training_embeddings, training_stimuli : sequences of paths
        Of the study's training subjects, in one order; the subject's own come in addition.
    controls : path, optional
        What `reconstruct-controls` wrote of the subject's stimulus set; without it nothing is said of the generator alone.

    Raises
    ------
    InputError
        When the files do not belong together.
    """
    from unimind.foundations import load_embedding

    section, batch = study.evaluation, study.evaluation.batch_size
    scored = {content["method"]: content for content in read_metrics([metrics]).values()}
    training = TrainingPictures([*training_prepared, prepared], [*training_embeddings, embeddings], [*training_stimuli, stimuli])
    embedder, perceptual = load_embedding(embedding), Perceptual.of(Panel.of(PERCEPTUAL, section.weights, section.squeezenet, embedding, classifier))
    if hasattr(embedder, "to"):
        embedder = embedder.to(on_device())
    with contextlib.ExitStack() as stack:
        opened: dict[Path, Any] = {}

        def images(path: Path) -> Any:
            if path not in opened:
                opened[path] = stack.enter_context(h5py.File(path))["images"]
            return opened[path]

        files = [stack.enter_context(h5py.File(path)) for path in reconstructions]
        stimulus = np.sort(files[0]["stimulus"][:].astype(int))
        with h5py.File(embeddings) as file, h5py.File(prepared) as trials:
            truth = rows_at(file["embedding"], stimulus)
            ruler = Ruler.of(rows_at(file["embedding"], np.unique(trials["stimulus"][:][trials["split"][:] == 0])))
        seen, known = Joined(), PictureSet(training.pictures(images))
        seen.add(images(Path(stimuli)), stimulus)
        likeness = _Likeness(ruler, embedder, perceptual, batch)
        audit = _audit(training, PictureSet(seen), known, truth, likeness, study.seed)
        alone = {}
        if controls is not None:
            alone["recovery"] = recovery(
                stack.enter_context(h5py.File(controls)), PictureSet(seen), stimulus, truth, training, ruler, embedder, batch, section.bootstrap, study.seed
            )
        group, kind = categorised(study.datasets[dataset].categories, Path(stimuli), stimulus), "categories by the pictures' names"
        if group is None:
            group, kind = clustered(training, ruler, ruler(truth), study.seed), "clusters of the embeddings of the subject's training pictures"
        methods = {}
        for file in files:
            name = str(file.attrs["method"])
            if name not in scored or scored[name]["stimulus"] != stimulus.tolist():
                raise InputError(f"{metrics}: has no scores of {name} for these test pictures; run the score stage again")
            order = np.argsort(file["stimulus"][:])
            pictures = None
            if "samples" in file:
                shown = Joined()
                samples = shown.add(file["samples"], order)
                pictures = PictureSet(shown).subset(samples[np.arange(len(order)), file["shown"][:].astype(int)[order]])
            predicted = Predicted.read(file, order)
            if predicted is not None and predicted.embedding.shape[1:] != truth.shape[1:]:
                predicted = None
            if pictures is None and predicted is None:
                raise InputError(f"{file.filename}: holds neither pictures nor predicted embeddings of the study's network; run the stage that writes it again")
            methods[name] = _of_method(training, pictures, known, predicted, truth, likeness, group, audit, section.bootstrap, study.seed)
            if "predicted_of_dimensions" in file and predicted is not None:
                narrow = file["predicted_of_dimensions"][:][:, order]
                methods[name]["bottleneck"] = [
                    {"dimensions": int(number), "identification": with_interval(two_way(ruler(truth) @ ruler(values).T), section.bootstrap, study.seed)}
                    for number, values in zip(file["dimensions"][:], narrow, strict=True)
                ]
            methods[name]["by_distance"] = by_distance(scored[name]["rows"]["reconstruction"], np.array(audit["distance"]), np.array(audit["near_duplicate"]))
            methods[name]["findings"] = findings.of_method(methods[name])
        rules = {
            "embedding": embedder.name, "distance": "1 - correlation of embeddings standardised by the subject's training pictures",
            "perceptual_distance": perceptual.shown_as, "candidates": CANDIDATES,
            "near_duplicate": f"both distances at most that of the picture to its own middle ({100 * MIDDLE:.0f} % of its side)",
        }  # fmt: skip
        write_json(out, {
            "study": study.name, "dataset": dataset, "subject": subject, "role": study.role(dataset, subject), "rules": rules, "stimulus": stimulus.tolist(),
            "audit": audit, "groups": {"count": len(np.unique(group[group >= 0])), "kind": kind},
            "findings": findings.of_test_set(audit), "methods": methods,
            "recorded": declaration.recorded(prepared), **alone,
        })  # fmt: skip


class _Likeness:
    """Whether pictures are near-duplicates of others (`neighbours`): the networks and the ruler that say so."""

    def __init__(self, ruler: Ruler, embedder: Any, perceptual: Perceptual, batch: int) -> None:
        self.ruler, self.embedder, self.perceptual, self.batch = ruler, embedder, perceptual, batch

    def embedded(self, pictures: PictureSet) -> NDArray[np.float32]:
        return self.ruler(embedded(pictures, self.embedder, self.batch))

    def own(self, pictures: PictureSet, vectors: NDArray) -> tuple[PictureSet, NDArray]:
        """The middles of pictures, and how far each picture's embedding is from that of its own."""
        middles = PictureSet(Middles(_Subset(pictures)))
        return middles, 1 - (vectors * self.embedded(middles)).sum(1)

    def near(self, pictures: PictureSet, vectors: NDArray, others: PictureSet, number: NDArray, distance: NDArray) -> NDArray[np.bool_]:
        """Whether each picture (n,) is a near-duplicate of the other picture `number` (n,), at this distance by their embeddings; -1 for none."""
        middles, own = self.own(pictures, vectors)
        near = (distance <= own) & (number >= 0)
        asked = np.flatnonzero(near)
        if len(asked):
            between = self.perceptual(pictures, others, np.stack([asked, number[asked]], 1), self.batch)
            near[asked] = between <= self.perceptual(pictures, middles, np.stack([asked, asked], 1), self.batch)
        return near


class _Subset:
    """The pictures of a set as an array that is read by rows."""

    def __init__(self, pictures: PictureSet) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: NDArray) -> NDArray:
        return self.pictures.source[self.pictures.numbers[index]]


def _audit(training: TrainingPictures, seen: PictureSet, known: PictureSet, truth: NDArray, likeness: _Likeness, seed: int) -> dict[str, Any]:
    """Every test picture's nearest training picture, and how near training pictures are to each other; `truth` (n, d) are embeddings as stored."""
    vectors, ruler = likeness.ruler(truth), likeness.ruler
    numbers, distances = nearest(vectors, training, ruler, CANDIDATES)
    rows = np.arange(len(truth))
    pairs = np.stack([np.repeat(rows, numbers.shape[1]), numbers.ravel()], 1)
    perceived = likeness.perceptual(seen, known, pairs, likeness.batch).reshape(numbers.shape)
    best = perceived.argmin(1)
    near = likeness.near(seen, vectors, known, numbers[:, 0], distances[:, 0])
    again = np.where(best > 0, numbers[rows, best], -1)
    near |= likeness.near(seen, vectors, known, again, distances[rows, best])
    sample = np.sort(np.random.default_rng(seed).permutation(training.of_last)[:REFERENCES])
    among = nearest(ruler(training.read(sample)), training, ruler, 1, without=sample)[1][:, 0] if len(training) > 1 else np.empty(0)
    found = {"nearest": numbers[:, 0], "perceptually_nearest": numbers[rows, best]}
    return {
        "test_pictures": len(truth), "training_pictures": len(training), "near_duplicates": int(near.sum()),
        "median_distance": float(np.median(distances[:, 0])), "median_distance_within_training": float(np.median(among)) if len(among) else None,
        "outside_training_span": outside_span(truth, training, ruler),
        "near_duplicate": near.tolist(), "distance": _plain(distances[:, 0]), "perceptual_distance": _plain(perceived[rows, best]),
        **{name: [{**training.place(k), "embedding_distance": round(float(distances[i][numbers[i] == k][0]), 6)} for i, k in enumerate(which)]
           for name, which in found.items()},
    }  # fmt: skip


def _plain(values: NDArray) -> list[float]:
    return [round(float(value), 6) for value in values]


def categorised(rule: str | None, stimuli: Path, stimulus: NDArray) -> NDArray[np.int64] | None:
    """Category (n,) of every test picture by its name, -1 where the rule finds none; None without a rule, or where no category has two of the pictures."""
    if rule is None:
        return None
    with h5py.File(stimuli) as file:
        names = file["id"].asstr()[:][stimulus]
    found = [re.search(rule, name) for name in names]
    known: dict[str, int] = {}
    group = np.array([known.setdefault(match[1] or "", len(known)) if match else -1 for match in found])
    return group if np.bincount(group[group >= 0], minlength=1).max() > 1 and len(known) > 1 else None


def clustered(training: TrainingPictures, ruler: Ruler, truth: NDArray, seed: int) -> NDArray[np.int64]:
    """Group (n,) of every test picture, of `CATEGORIES` at most: k-means of the embeddings of the subject's training pictures, in the ruler's units."""
    from sklearn.cluster import KMeans

    sample = np.sort(np.random.default_rng(seed).permutation(training.of_last)[:GROUPED])
    number = max(1, min(CATEGORIES, len(truth) // EACH, len(sample)))
    found = KMeans(number, n_init=4, random_state=seed).fit(ruler(training.read(sample)))
    return found.predict(truth).astype(np.int64)


def by_distance(scores: dict[str, Any], distance: NDArray, duplicate: NDArray) -> dict[str, Any]:
    """Scores of test pictures in order of their distance from the training pictures.

    Returns
    -------
    dict
        Measure -> `groups`, of each its mean `distance`, mean `value` and number `n`, nearest first, ten where there are pictures
        enough; `correlation`, Spearman's, of score and distance, and its `p`; `without_near_duplicates`, the mean of the others.
    """
    from scipy.stats import spearmanr

    parts = np.array_split(np.argsort(distance, kind="stable"), max(1, min(TENTHS, len(distance) // FEWEST)))
    result = {}
    for name, entry in scores.items():
        if entry.get("per_image") is None:
            continue
        values = np.array(entry["per_image"], float)
        known = np.isfinite(values)
        rho, p = spearmanr(distance[known], values[known]) if known.sum() > 2 and np.ptp(values[known]) and np.ptp(distance[known]) else (np.nan, np.nan)
        others = values[known & ~duplicate]
        result[name] = {
            "groups": [
                {"distance": float(distance[part].mean()), "value": float(values[part][known[part]].mean()), "n": int(known[part].sum())}
                for part in parts if known[part].any()
            ],
            "correlation": None if np.isnan(rho) else float(rho), "p": None if np.isnan(p) else float(p),
            "without_near_duplicates": float(others.mean()) if len(others) else None,
        }  # fmt: skip
    return result


def _of_method(
    training: TrainingPictures, shown: PictureSet | None, known: PictureSet, predicted: Predicted | None, truth: NDArray, likeness: _Likeness, group: NDArray,
    audit: dict[str, Any], resamples: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Identification against the training set, copies, collapse and category level of one method.

    Parameters
    ----------
    shown : PictureSet, optional
        Its picture of each of the n test pictures, where it draws any.
    predicted : Predicted, optional
        The embeddings that it predicts; where it predicts none, its pictures' embedding stands for both.
    audit : dict
        Of the test pictures: those with a near-duplicate in training say nothing of copies.
    """
    ruler = likeness.ruler
    target, unlike = ruler(truth), ~np.array(audit["near_duplicate"])
    copies: dict[str, float] = {"of": int(unlike.sum())}
    labels = {}
    if shown is not None:
        raw = embedded(shown, likeness.embedder, likeness.batch)
        drawn = ruler(raw)
        number, distance = nearest(drawn, training, ruler, 1)
        copies["pictures"] = _share(likeness.near(shown, drawn, known, number[:, 0], distance[:, 0])[unlike])
        labels["pictures"] = _labels(likeness, shown, drawn)
    output, told = (raw, raw) if predicted is None else predicted
    vectors = ruler(told)
    place = ranks(vectors, target, training, ruler)
    if predicted is not None:
        limit = STORED * (audit["median_distance_within_training"] or 0)
        copies["predictions"] = _share(nearest(ruler(output), training, ruler, 1)[1][unlike, 0] <= limit)
    standard, targets = ruler.standard(output), ruler.standard(truth)
    if predicted is not None:
        labels["predictions"] = _same(standard)
    label = min(labels.values(), key=lambda one: one.max())
    spread = {
        "count": len(label), "different": {kind: int(one.max()) + 1 for kind, one in labels.items()},
        "effective_rank": effective_rank(standard), "effective_rank_of_targets": effective_rank(targets),
        "variance": float(standard.var(0).sum() / targets.var(0).sum()),
    }  # fmt: skip
    entry = {f"top{top}": with_interval((place <= top).astype(float), resamples, seed) for top in TOPS}
    return {
        "by": "its pictures' embedding" if predicted is None else "the predicted embedding",
        "training_identification": {
            "candidates": len(training) + 1, **entry, "chance": {f"top{top}": min(1.0, top / (len(training) + 1)) for top in TOPS},
            "median_place": float(np.median(place)),
        },
        "copies": copies, "spread": spread, "groups": category_level(target @ vectors.T, group, label, resamples, seed),
    }  # fmt: skip


def _share(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else 0.0


def effective_rank(values: NDArray) -> float:
    """Effective rank of rows (n, d) about their mean: exp of the entropy of the singular values as shares (Roy & Vetterli 2007); 0 where all rows are equal."""
    singular = np.linalg.svd(values - values.mean(0), compute_uv=False)
    if singular[0] <= 1e-9 * (1 + np.abs(values).max()):
        return 0.0
    share = singular / singular.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def _same(values: NDArray) -> NDArray[np.int64]:
    """Which of the predictions (n, d) are one: a number (n,) for each; the distance that tells is relative to the mean over all pairs."""
    norm = (values**2).sum(1)
    square = np.maximum(norm[:, None] + norm[None] - 2 * values @ values.T, 0)
    limit = SAME * square.sum() / max(1, len(values) * (len(values) - 1))
    np.fill_diagonal(square, np.inf)
    return _numbered(square.shape[0], *_earlier(square), limit)


def _earlier(square: NDArray) -> tuple[NDArray, NDArray]:
    """The nearest among the rows before each: number (n,), -1 for the first, and distance (n,)."""
    before = np.where(np.tri(len(square), k=-1, dtype=bool), square, np.inf)
    number = before.argmin(1)
    distance = before[np.arange(len(square)), number]
    return np.where(np.isfinite(distance), number, -1), distance


def _numbered(count: int, number: NDArray, distance: NDArray, limit: float | NDArray) -> NDArray[np.int64]:
    """Numbers (n,) of which a row has that of the row before it that it is the same as, or a new one."""
    found = np.empty(count, np.int64)
    new = 0
    for row, same in enumerate((number >= 0) & (distance <= limit)):
        found[row] = found[number[row]] if same else new
        new += not same
    return found


def _labels(likeness: _Likeness, shown: PictureSet, vectors: NDArray) -> NDArray[np.int64]:
    """Which of the pictures shown are near-duplicates: a number (n,) for each."""
    number, distance = _earlier(1 - vectors @ vectors.T)
    near = likeness.near(shown, vectors, shown, number, distance)
    return _numbered(len(vectors), number, np.where(near, 0.0, 1.0), 0.5)


def category_level(likeness: NDArray, group: NDArray, output: NDArray, resamples: int, seed: int) -> dict[str, Any]:
    """Two-way identification within and between groups of pictures, and what knowing the group alone would score.

    A decoder that tells groups apart in a share q of comparisons, and knows nothing else, scores p / 2 + (1 - p) q where p is the
    chance that two test pictures are of one group: (1/k) .5 + (1 - 1/k) q with k groups of equal size.

    Parameters
    ----------
    likeness : array (n, n)
        Of truth i with prediction j.
    group, output : int arrays (n,)
        Group of each test picture, -1 for one that is left out; which outputs are one.
    """
    kept = np.flatnonzero(group >= 0)
    likeness, group, output = likeness[np.ix_(kept, kept)], group[kept], output[kept]
    count = len(group)
    won = likeness < likeness[np.arange(count), np.arange(count)]
    alike = group[:, None] == group[None]
    other = ~np.eye(count, dtype=bool)
    with np.errstate(invalid="ignore"):
        within = (won & alike & other).sum(0) / (alike & other).sum(0)
        between = (won & ~alike).sum(0) / (~alike).sum(0)
    same = float((alike & other).sum() / other.sum())
    told = with_interval(between, resamples, seed)
    together = output[:, None] == output[None]
    one_each = bool(
        (alike & other).any() and (~alike).any()
        and (together & alike & other).sum() >= 0.9 * (alike & other).sum() and (together & ~alike).sum() <= 0.1 * (~alike).sum()
    )  # fmt: skip
    return {
        "score": float(won[other].mean()), "same_group": same, "within": with_interval(within, resamples, seed), "between": told,
        "category_level": None if told["value"] is None else same * 0.5 + (1 - same) * told["value"], "one_output_each": one_each,
    }  # fmt: skip
