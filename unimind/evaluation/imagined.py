"""Stage `score-decoded`: where labels say which picture was imagined or seen, what the decoding of further trials is worth.

Identification is among the candidates of the set, against its distribution when labels change places; measures of pictures are
those of the study, against the imagined pictures. What the subject's test trials give for the same pictures stands beside it.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

from unimind.data.prepared import PreparedSubject, Stimuli
from unimind.errors import InputError
from unimind.evaluation.controls import of_another_image
from unimind.evaluation.features import panel_of
from unimind.evaluation.measures import NAMES
from unimind.evaluation.panel import Measured, Panel, measure
from unimind.evaluation.pictures import Joined, PictureSet
from unimind.evaluation.score import Predicted, embedding_measures, rows_at, summarise
from unimind.evaluation.statistics import bootstrap
from unimind.reconstruction.agreement import directions
from unimind.reconstruction.decode import PREDICTED, Candidates, training_mean
from unimind.storage import write_json
from unimind.study import Study

#: Permutations of the labels behind a p-value: 1 / 5000 is the least it can be.
PERMUTATIONS = 4999
#: Condition of a subject's own test trials.
PERCEPTION = "perception (test trials)"


class DecodedTrials(NamedTuple):
    """What one method made of the trials of one condition.

    Attributes
    ----------
    truth : int array (n,)
        Place among the candidates of the picture that every group of trials was called by.
    compared : float32 (n, d)
        Embeddings that candidates are ranked by.
    predicted : Predicted or None
    pictures : int array (n,)
        The pictures shown, as numbers of a joint set.
    trials : int
    """

    truth: np.ndarray
    compared: np.ndarray
    predicted: Predicted | None
    pictures: np.ndarray
    trials: int


def score_decoded(
    study: Study, dataset: str, subject: str, further: str, decoded: Sequence[Path], reconstructions: Sequence[Path], stimuli: Path, prepared: Path,
    embeddings: Path, embedding: Path, classifier: Path | None, out: Path, candidates: Path | None = None, candidate_embeddings: Path | None = None,
) -> None:  # fmt: skip
    """Write the JSON file of a subject's set: a row per condition and method.

    Parameters
    ----------
    decoded, reconstructions : sequences of Path
        What `decode` and `reconstruct` wrote of the subject, a file a method.

    Raises
    ------
    InputError
        Files that do not belong together.
    """
    section = study.evaluation
    ranking = Candidates.of(study.decode[further], stimuli, prepared, embeddings, candidates, candidate_embeddings)
    with PreparedSubject(prepared) as own:
        training = own.images("train")
    mean = training_mean(embeddings, training)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    absent: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        joined = Joined()
        files = [stack.enter_context(h5py.File(path)) for path in decoded]
        methods = _conditions(files, ranking, joined)
        seen = _perceived([stack.enter_context(h5py.File(path)) for path in reconstructions], methods, ranking, stimuli, prepared, joined)
        panel = panel_of(study, embedding, classifier)
        with h5py.File(embeddings) as targets:
            trained = rows_at(targets["embedding"], training)
        everything = {method: conditions | seen.get(method, {}) for method, conditions in methods.items()}
        for condition in dict.fromkeys(condition for conditions in everything.values() for condition in conditions):
            own_rows = {method: conditions[condition] for method, conditions in everything.items() if condition in conditions}
            truth = next(iter(own_rows.values())).truth
            pictures = np.unique(truth)
            if len(pictures) < 2:
                notes.append(f"{condition}: one picture alone was named; there is nothing to tell it from")
                continue
            values: Measured = {}
            if len(pictures) == len(truth):
                values, missing = _of_pictures(study, panel, ranking, joined, own_rows, trained, embedding)
                absent |= missing
            else:
                notes.append(f"{condition}: several trials are called by one picture and decoded apart (`average: false`), so that pictures are not measured")
            table = summarise(values, section.metrics, section.bootstrap, study.seed)
            places = _standings({method: one.compared for method, one in own_rows.items()}, pictures, ranking, mean)
            for method, one in own_rows.items():
                among = identification(places[method], pictures, one.truth, section.bootstrap, study.seed)
                rows.append(_row(condition, method, one, table.get(method, {}), among, len(ranking.rows)))
            for method in own_rows:
                if f"chance:{method}" in table:
                    rows.append(_row(condition, f"chance:{method}", own_rows[method], table[f"chance:{method}"], {}, len(ranking.rows)))
    if not methods:
        notes.append("no label of the set is the name of a candidate: nothing says what was seen or imagined, and nothing is measured")
    write_json(out, {
        "study": study.name, "dataset": dataset, "subject": subject, "role": study.role(dataset, subject), "set": further,
        "candidates": len(ranking.rows), "permutations": PERMUTATIONS, "rows": rows, "notes": notes,
        "absent": {name: absent[name] for name in NAMES if name in absent},
    })  # fmt: skip


def _of_pictures(
    study: Study, panel: Panel, ranking: Candidates, joined: Joined, own_rows: dict[str, DecodedTrials], trained: np.ndarray, embedding: Path
) -> tuple[Measured, dict[str, str]]:  # fmt: skip
    """Measures of the pictures and embeddings of one condition, by method and in the row `chance:<method>`; reasons for what is absent."""
    truth = next(iter(own_rows.values())).truth
    index = {method: one.pictures for method, one in own_rows.items()}
    index |= {f"chance:{method}": of_another_image(one.pictures, study.seed) for method, one in own_rows.items()}
    with h5py.File(ranking.pictures) as file, h5py.File(ranking.embeddings) as targets:
        truths = Joined()
        truths.add(file["images"], ranking.rows[truth])
        values = measure(panel, PictureSet(truths), PictureSet(joined), index, study.evaluation.batch_size)
        true = rows_at(targets["embedding"], ranking.rows[truth])
    absent = dict(panel.absent)
    for method, one in own_rows.items():
        by_row: Measured = {"reconstruction": {}}
        predicted = {} if one.predicted is None else {"reconstruction": one.predicted}
        missing = embedding_measures(study.evaluation.metrics, by_row, true, predicted, trained, embedding, study.seed)
        values[method] |= by_row["reconstruction"]
        absent |= {name: reason for name, reason in missing.items() if all(other.predicted is None for other in own_rows.values())}
    return values, absent


def _row(condition: str, method: str, one: DecodedTrials, metrics: dict[str, dict[str, Any]], among: dict[str, dict[str, Any]], pool: int) -> dict[str, Any]:
    kept = {name: {key: value for key, value in entry.items() if key not in ("per_image", "per_drawing")} for name, entry in metrics.items()}
    return {"condition": condition, "method": method, "pictures": len(np.unique(one.truth)), "trials": one.trials, "pool": pool, "metrics": among | kept}


def _shown(file: h5py.File, joined: Joined, rows: np.ndarray) -> np.ndarray:
    samples = joined.add(file["samples"], rows)
    return samples[np.arange(len(rows)), file["shown"][:].astype(int)[rows]]


def _places(wanted: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Place of every wanted row among some ascending rows; -1 for one that is not there."""
    at = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
    return np.where(rows[at] == wanted, at, -1)


def _conditions(files: Sequence[h5py.File], ranking: Candidates, joined: Joined) -> dict[str, dict[str, DecodedTrials]]:
    """method -> condition -> what it made of the trials that are called by a candidate; empty where none is."""
    found: dict[str, dict[str, DecodedTrials]] = {}
    for file in files:
        condition, imagined, trials = file["condition"].asstr()[:].astype(str), file["imagined"][:], file["trials"][:]
        if (imagined >= 0).any() and (_places(imagined[imagined >= 0], ranking.rows) < 0).any():
            raise InputError(f"{file.filename}: was decoded with other candidates; run the stage decode again")
        embedding, method = file["embedding"][:], str(file.attrs["method"])
        compared = file["retrieval"][:] if "retrieval" in file else embedding
        regressed = str(file.attrs["compared"]) == PREDICTED
        for word in dict.fromkeys(condition.tolist()):
            rows = np.flatnonzero((condition == word) & (imagined >= 0))
            if len(rows):
                truth = _places(imagined[rows], ranking.rows)
                pictures = _shown(file, joined, rows)
                one = DecodedTrials(truth, compared[rows], Predicted(embedding[rows], compared[rows]) if regressed else None, pictures, int(trials[rows].sum()))
                found.setdefault(method, {})[word or "trials"] = one
    return found


def _perceived(
    files: Sequence[h5py.File], methods: dict[str, dict[str, DecodedTrials]], ranking: Candidates, stimuli: Path, prepared: Path, joined: Joined
) -> dict[str, dict[str, DecodedTrials]]:  # fmt: skip
    """What the same methods make of the subject's test trials of the pictures that the set's labels name: same pixels, same picture."""
    if not methods:
        return {}
    called = np.unique(np.concatenate([one.truth for conditions in methods.values() for one in conditions.values()]))
    with Stimuli(ranking.pictures) as pictures:
        pixels = {pictures.sha256[ranking.rows[place]]: place for place in called.tolist()}
    with Stimuli(stimuli) as pictures, PreparedSubject(prepared) as own:
        place_of = {row: pixels[pictures.sha256[row]] for row in own.images("test").tolist() if pictures.sha256[row] in pixels}
        shown = own.stimulus[own.trials("test")]
    found: dict[str, dict[str, DecodedTrials]] = {}
    for file in files:
        method, stimulus = str(file.attrs["method"]), file["stimulus"][:].astype(int)
        rows = np.flatnonzero([row in place_of for row in stimulus.tolist()])
        if method not in methods or not len(rows) or (predicted := Predicted.read(file, rows)) is None:
            continue
        truth = np.array([place_of[row] for row in stimulus[rows].tolist()])
        pictures_of = _shown(file, joined, rows)
        found[method] = {PERCEPTION: DecodedTrials(truth, predicted.retrieval, predicted, pictures_of, int(np.isin(shown, stimulus[rows]).sum()))}
    return found


class Standing(NamedTuple):
    """How each of L pictures stands among all candidates, for each of n embeddings: (n, L).

    Attributes
    ----------
    identified : float64
        Share of the other candidates that agree less with the embedding than the picture does; one that agrees as much counts half.
    first : bool
        Whether no other agrees as much.
    """

    identified: np.ndarray
    first: np.ndarray


def _standings(compared: dict[str, np.ndarray], pictures: np.ndarray, ranking: Candidates, mean: torch.Tensor) -> dict[str, Standing]:
    """Of every method; candidates are read in blocks, twice: agreements are compared as they come, so that equal ones are equal."""
    own = {method: directions(torch.from_numpy(values), mean) for method, values in compared.items()}

    def blocks(method: str):
        start = 0
        for block in ranking.directions(mean):
            yield start, (own[method] @ block.T).numpy()
            start += len(block)

    found = {}
    for method, values in own.items():
        wanted = np.empty((len(values), len(pictures)), np.float32)
        for start, agreements in blocks(method):
            here = (pictures >= start) & (pictures < start + agreements.shape[1])
            wanted[:, here] = agreements[:, pictures[here] - start]
        less, equal = (np.zeros(wanted.shape, np.int64) for _ in range(2))
        for _, agreements in blocks(method):
            for row, line in enumerate(np.sort(agreements, axis=1)):
                below, upto = np.searchsorted(line, wanted[row]), np.searchsorted(line, wanted[row], side="right")
                less[row] += below
                equal[row] += upto - below
        others = max(1, len(ranking.rows) - 1)
        found[method] = Standing((less + 0.5 * (equal - 1)) / others, less == len(ranking.rows) - 1)
    return found


def identification(standing: Standing, pictures: np.ndarray, truth: np.ndarray, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Identification among the candidates: value, interval over pictures, and where it lies when the pictures' labels change places.

    The pictures, not the trials, change places: trials that are called by one picture keep being called by one.

    Parameters
    ----------
    standing : Standing
        Of n embeddings and the L pictures.
    pictures : int array (L,)
        Ascending.
    truth : int array (n,)
        The picture of each embedding.
    """
    label = np.searchsorted(pictures, truth)
    random = np.random.default_rng((seed, 23))
    orders = np.stack([random.permutation(len(pictures)) for _ in range(PERMUTATIONS)])
    found = {}
    for name, values in (("candidate_identification", standing.identified), ("candidate_first", standing.first.astype(float))):
        of_label = np.stack([values[label == one].mean(0) for one in range(len(pictures))])  # (L, L): of the embeddings called one, by picture
        weight = np.bincount(label) / len(label)
        value = float((weight * np.diag(of_label)).sum())
        null = (weight * of_label[np.arange(len(pictures)), orders]).sum(1)
        low, high = bootstrap(np.diag(of_label), resamples, seed)
        ends = np.quantile(null, [0.025, 0.5, 0.975])
        found[name] = {
            "value": value, "ci_low": float(low), "ci_high": float(high), "n": len(pictures),
            "null": float(ends[1]), "null_low": float(ends[0]), "null_high": float(ends[2]),
            "p": float((1 + (null >= value - 1e-12).sum()) / (1 + PERMUTATIONS)),
        }  # fmt: skip
    return found
