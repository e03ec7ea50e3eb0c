"""The stage `inspect`: do the trials and the pictures of a subject belong together?

It runs after `prepare` and before anything is trained. Pictures are described without any network
(`unimind.data.descriptor`), so nothing waits for a foundation. What it finds is one line a cause.
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from unimind.data.descriptor import principal_features
from unimind.data.evidence import Evidence, Session, repeated_rows
from unimind.data.manifest import read_manifest
from unimind.data.prepared import PreparedSubject, Stimuli
from unimind.data.sources import open_source
from unimind.data.sources.base import FurtherSource, RawSubject
from unimind.errors import InputError
from unimind.progress import say
from unimind.storage import read_json, write_json
from unimind.study import Study

VOXELS, VOXELS_OF_ROI = 1024, 20  # looked at: evenly over their order, so many at the least of every ROI
COMPONENTS = 32  # of the pictures' description
LAGS = range(-2, 3)
#: z values: one that is evidence, how much better another explanation must be, and below which one's own is none.
CLEAR, BETTER, NONE = 5.0, 4.0, 3.0
PERMUTATIONS = 1000
#: Fewer pictures than these cannot tell that nothing can be decoded.
ENOUGH_TEST, ENOUGH_TRAINING = 20, 50
PENALTIES = np.logspace(-3, 3, 13)  # times the mean variance of a component of the responses
_COPY, _SIMILAR_COPY, _STRETCH = 0.99, 0.95, 5  # correlation of copied responses within a session and between two; trials in a row
_COPY_VOXELS = 256
_DROPPED = 0.1  # share of a ROI's voxels from which on dropping them is a finding
_LSA, _LSS = 5.0, 20.0  # times the variance of a trial alone: more than twice the noise; regressors that hardly differ
_SIDE_SESSIONS = 2


def inspect(study: Study, dataset: str, subject: str, prepared: Path, stimuli: Path, fetched: Path, out: Path) -> None:
    """Look whether responses and pictures fit, and write what was found.

    Parameters
    ----------
    study : Study
    dataset, subject : str
    prepared, stimuli : Path
        What `prepare` and `stimuli` wrote.
    fetched : Path
        Manifest of the subject's files, for what only the files tell: the mirror image of a mask.
    out : Path
        JSON: `decodable` (bool), `verdict` and `findings` (lines), `sessions` and `rois` (rows of small tables), `identification`, `reliability`,
        `noise_ceiling`, `lags`, `dropped`, `intervals`.
    """
    where = f"{dataset} {subject}"
    with PreparedSubject(prepared) as data, Stimuli(stimuli) as pictures:
        found = _inspected(data, pictures, study.seed)
    root, _ = read_manifest(fetched, check=False)
    source = open_source(study, dataset, root)
    if hasattr(source, "sides") and found["decoded_pictures"]:
        sides = source.sides(subject)
        if sides is not None:
            with Stimuli(stimuli) as pictures:
                found["findings"] += _mirrored(sides, pictures, study.seed)
    found.pop("decoded_pictures")
    for line in found["findings"]:
        say(f"{where}: {line}")
    say(f"{where}: {found['verdict']}")
    write_json(out, {"dataset": dataset, "subject": subject, **found})


def require_signal(study: Study, inspected: Sequence[Path]) -> None:
    """InputError, in one line, for the first subject of whom nothing can be decoded, unless its data set says to train all the same."""
    for path in inspected:
        found = read_json(path)
        if not found["decodable"] and study.datasets[found["dataset"]].require_signal:
            cause = f"; {found['findings'][0]}" if found["findings"] else ""
            raise InputError(
                f"{found['dataset']} {found['subject']}: {found['verdict']}{cause}; see {path}, or set datasets.{found['dataset']}.require_signal: false"
            )


def rows(inspected: Iterable[Path]) -> list[dict[str, Any]]:
    """One row a subject, for tables: reliability, noise ceiling, identification with its chance distribution, findings."""
    table = []
    for path in inspected:
        found = read_json(path)
        identified = found["identification"]
        table.append({
            "dataset": found["dataset"], "subject": found["subject"], "reliability": found["reliability"], "noise_ceiling": found["noise_ceiling"],
            "identification": identified["value"], "identification_chance_95": identified["chance_95"], "identification_p": identified["p"],
            "findings": " | ".join(found["findings"]),
        })  # fmt: skip
    return table


# --- one subject ------------------------------------------------------------------------------------------------------


def _inspected(data: PreparedSubject, pictures: Stimuli, seed: int) -> dict[str, Any]:
    chosen = _some_voxels(data)
    x = _columns(data, chosen)
    shown, place = np.unique(data.stimulus, return_inverse=True)
    described = principal_features(pictures.read, shown, COMPONENTS)
    findings: list[str] = []
    ordered = bool(data.protocol.get("presentation_order", True))
    names = {int(number): f"session {number}" for number in np.unique(data.session)}
    rois = _rois(data, chosen, x, place, findings)
    sessions = [_session(data, number, x) for number in names]
    copies = _copies(data, x) if ordered else []
    findings += copies
    reliability, ceiling, reliable_z = _repeats(x, place)
    identified = _identification(data, x, described, place, seed)
    evidence = Evidence([Session(number, x[data.session == number], place[data.session == number]) for number in names], described, seed)
    before = len(findings)
    z = _fits(evidence, data, pictures, sessions, findings) if ordered else None
    if len(findings) == before:
        _drift(x, place, data.session, findings)
    intervals = _intervals(data, findings)
    enough = identified["test_pictures"] >= ENOUGH_TEST and identified["training_pictures"] >= ENOUGH_TRAINING
    signal = identified["p"] <= 0.05 or reliable_z >= CLEAR
    value, chance, shuffled = (100 * identified[name] for name in ("value", "chance", "chance_95"))
    number = f"{value:.1f} % of the test pictures are told from another (chance {chance:.1f}, 95 % of shuffles below {shuffled:.1f})"
    if signal:
        verdict = f"decodable: {number}"
    elif enough:
        verdict = f"nothing can be decoded: {number}" + ("" if reliability is None else f", and repeats agree by {reliability:.2f}")
    else:
        verdict = f"too few pictures to tell ({identified['test_pictures']} to test on, {identified['training_pictures']} to train on): {number}"
    return {
        "decodable": signal or not enough, "verdict": verdict, "findings": findings, "trials": data.n_trials, "pictures": len(shown), "voxels": data.n_voxels,
        "dropped": int(data.protocol.get("dropped_units", 0)), "reliability": reliability, "noise_ceiling": ceiling, "identification": identified,
        "lags": None if z is None else {str(lag): round(value, 2) for lag, value in z["all"].items()}, "sessions": sessions, "rois": rois,
        "intervals": intervals, "decoded_pictures": ordered,
    }  # fmt: skip


def _some_voxels(data: PreparedSubject) -> NDArray[np.integer]:
    """At most about `VOXELS` of them, evenly over their order, and some of every ROI."""
    groups = [np.arange(data.n_voxels)] if data.roi is None else [np.flatnonzero(data.roi == roi) for roi in np.unique(data.roi)]
    chosen = []
    for group in groups:
        count = min(len(group), max(VOXELS_OF_ROI, round(VOXELS * len(group) / data.n_voxels)))
        chosen.append(group[np.unique(np.linspace(0, len(group) - 1, count).astype(int))])
    return np.sort(np.concatenate(chosen))


def _columns(data: PreparedSubject, chosen: NDArray[np.integer]) -> NDArray[np.float32]:
    """Responses of some voxels, read some rows at a time."""
    x = np.empty((data.n_trials, len(chosen)), np.float32)
    step = max(1, 64 * 2**20 // (4 * data.n_voxels))
    for start in range(0, data.n_trials, step):
        x[start : start + step] = data.read(slice(start, start + step))[:, chosen]
    return x


def _session(data: PreparedSubject, number: int, x: NDArray[np.float32]) -> dict[str, Any]:
    inside = data.session == number
    _, counts = np.unique(data.stimulus[inside], return_counts=True)
    return {
        "session": int(number), "trials": int(inside.sum()), "pictures": len(counts), "repeated": int((counts > 1).sum()),
        **{name: int((data.split[inside] == code).sum()) for name, code in (("train", 0), ("validation", 1), ("test", 2))},
        "runs": None if data.run is None else len(np.unique(data.run[inside])), "constant_voxels": round(float((x[inside].std(0) == 0).mean()), 4),
    }  # fmt: skip


# --- repeats --------------------------------------------------------------------------------------------------------


def _ceilings(x: NDArray[np.float32], place: NDArray[np.integer]) -> NDArray[np.float64] | None:
    """Share of one trial's variance that the picture explains, per voxel, from repeats (one-way analysis of variance); None without any."""
    _, group, counts = np.unique(place, return_inverse=True, return_counts=True)
    often = counts[group] > 1
    if often.sum() < 4:
        return None
    _, group, counts = np.unique(place[often], return_inverse=True, return_counts=True)
    y = x[often].astype(np.float64)
    means = np.zeros((len(counts), x.shape[1]))
    np.add.at(means, group, y)
    means /= counts[:, None]
    within = ((y - means[group]) ** 2).sum(0) / max(1, len(y) - len(counts))
    between = (counts[:, None] * (means - y.mean(0)) ** 2).sum(0) / max(1, len(counts) - 1)
    size = (len(y) - (counts**2).sum() / len(y)) / max(1, len(counts) - 1)
    signal = np.maximum(0, (between - within) / size)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(signal / (signal + within))


def _halves(x: NDArray[np.float32], place: NDArray[np.integer]) -> tuple[NDArray, NDArray] | None:
    """Mean responses to each repeated picture in its odd and in its even repeats: two (n_pictures, n_voxels)."""
    from unimind.data.prepared import count_repeats

    odd = count_repeats(place) % 2 == 1
    pictures = np.intersect1d(place[odd], place[~odd])
    if len(pictures) < 5:
        return None
    halves = []
    for half in (odd, ~odd):
        at = np.searchsorted(pictures, place[half])
        known = (at < len(pictures)) & (pictures[np.minimum(at, len(pictures) - 1)] == place[half])
        mean = np.zeros((len(pictures), x.shape[1]), np.float32)
        np.add.at(mean, at[known], x[half][known])
        halves.append(mean / np.bincount(at[known], minlength=len(pictures))[:, None])
    return halves[0], halves[1]


def _correlation(a: NDArray, b: NDArray) -> NDArray:
    """Correlation of the columns of two arrays."""
    a, b = a - a.mean(0), b - b.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0)))


def _repeats(x: NDArray[np.float32], place: NDArray[np.integer]) -> tuple[float | None, float | None, float]:
    """Correlation of the patterns of two halves of the repeats, median noise ceiling, and the z value of the first."""
    halves, ceilings = _halves(x, place), _ceilings(x, place)
    if halves is None or ceilings is None:
        return None, None, 0.0
    a, b = (half - half.mean(0) for half in halves)
    similar = np.corrcoef(a, b)[: len(a), len(a) :]
    similar = np.nan_to_num(similar)
    z = (np.diag(similar).mean() - similar.mean()) / max(float(similar.std()), 1e-12) * np.sqrt(len(a))
    return round(float(np.diag(similar).mean()), 4), round(float(np.median(ceilings)), 4), float(z)


def _rois(data: PreparedSubject, chosen: NDArray[np.integer], x: NDArray[np.float32], place: NDArray[np.integer], findings: list[str]) -> list[dict[str, Any]]:
    """A row per ROI: voxels kept and dropped, reliability and noise ceiling over repeats."""
    roi = np.zeros(data.n_voxels, int) if data.roi is None else data.roi.astype(int)
    names = ["all"] if data.roi is None else data.roi_names or []
    gone = data.protocol.get("dropped_by_roi", {} if data.roi is not None else {"all": data.protocol.get("dropped_units", 0)})
    halves, ceilings, table = _halves(x, place), _ceilings(x, place), []
    for code in range(-1 if (roi < 0).any() else 0, len(names)):
        name, inside = names[code] if code >= 0 else "none", roi[chosen] == code
        kept, lost = int((roi == code).sum()), int(gone.get(names[code], 0)) if code >= 0 else 0
        if not kept and not lost:
            continue
        reliable = None if halves is None or not kept else round(float(np.median(_correlation(halves[0][:, inside], halves[1][:, inside]))), 4)
        ceiling = None if ceilings is None or not kept else round(float(np.median(ceilings[inside])), 4)
        table.append({"roi": name, "voxels": kept, "dropped": lost, "reliability": reliable, "noise_ceiling": ceiling})
        if lost > _DROPPED * (kept + lost):
            findings.append(f"{lost} of {kept + lost} voxels of {name} hold no data in some trial or never vary: the mask reaches beyond what was measured")
    return table


def _drift(x: NDArray[np.float32], place: NDArray[np.integer], session: NDArray[np.integer], findings: list[str]) -> None:
    """Repeats that agree within sessions but hardly between them."""
    rows = x - x.mean(0)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    near: list[float] = []
    far: list[float] = []
    order = np.argsort(place, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(place[order])) + 1)[:2000]:
        for i, j in itertools.combinations(group[:6].tolist(), 2):
            (near if session[i] == session[j] else far).append(float(rows[i] @ rows[j]))
    if min(len(near), len(far)) < 30:
        return
    error = float(np.hypot(np.std(near) / np.sqrt(len(near)), np.std(far) / np.sqrt(len(far))))
    if np.mean(near) > CLEAR * error and np.mean(far) < np.mean(near) / 3 and np.mean(near) - np.mean(far) > CLEAR * error:
        findings.append(
            f"repeats agree within sessions ({np.mean(near):.2f}) and hardly between them ({np.mean(far):.2f}): "
            "sessions are not aligned with each other, or drift"
        )


# --- pictures -------------------------------------------------------------------------------------------------------


def _means(x: NDArray[np.float32], place: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    pictures, at, counts = np.unique(place, return_inverse=True, return_counts=True)
    total = np.zeros((len(pictures), x.shape[1]))
    np.add.at(total, at, x)
    return pictures, total / counts[:, None]


def ridge_predictions(x: NDArray, y: NDArray, test: NDArray) -> NDArray[np.float64]:
    """Ridge regression with the penalty of each target chosen by its leave-one-out error: predictions (n_test, n_targets).

    The leave-one-out error follows from one decomposition (Golub, Heath & Wahba 1979).
    """
    mean_x, mean_y = x.mean(0), y.mean(0)
    left, values, right = np.linalg.svd(x - mean_x, full_matrices=False)
    projected = left.T @ (y - mean_y)
    best = np.full(y.shape[1], np.inf)
    weights = np.zeros((len(values), y.shape[1]))
    scale = float((values**2).sum()) / max(1, len(values))
    for penalty in PENALTIES * max(scale, 1e-12):
        shrink = values**2 / (values**2 + penalty)
        residual = (y - mean_y) - left @ (shrink[:, None] * projected)
        leverage = np.minimum((left**2 @ shrink) + 1 / len(x), 1 - 1e-6)
        error = ((residual / (1 - leverage)[:, None]) ** 2).mean(0)
        better = error < best
        best = np.where(better, error, best)
        weights[:, better] = ((values / (values**2 + penalty))[:, None] * projected)[:, better]
    return (test - mean_x) @ (right.T @ weights) + mean_y


def identified(predicted: NDArray, truth: NDArray, seed: int) -> dict[str, float]:
    """Two-way identification, and the same for shuffled pictures: `value`, `chance`, `chance_95`, `p`."""
    a, b = (rows - rows.mean(1, keepdims=True) for rows in (predicted, truth))
    a, b = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (a, b))
    similar = a @ b.T
    rank = np.empty(similar.shape)
    places = np.arange(len(similar))
    for row, values in zip(rank, similar, strict=True):
        ordered = np.sort(values)
        row[:] = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - 1) / 2 / (len(values) - 1)
    random = np.random.default_rng(seed)
    null = np.array([rank[places, random.permutation(len(rank))].mean() for _ in range(PERMUTATIONS)])
    value = float(np.diag(rank).mean())
    p = (1 + int((null >= value).sum())) / (1 + PERMUTATIONS)
    return {"value": round(value, 4), "chance": round(float(null.mean()), 4), "chance_95": round(float(np.quantile(null, 0.95)), 4), "p": round(p, 4)}


def _identification(data: PreparedSubject, x: NDArray[np.float32], described: NDArray, place: NDArray[np.integer], seed: int) -> dict[str, Any]:
    """Ridge from mean responses to the pictures' description, fitted without test pictures, tested on theirs."""
    test = data.split == 2
    shown, mean = _means(x[~test], place[~test])
    asked, held_out = _means(x[test], place[test])
    predicted = ridge_predictions(mean, described[shown], held_out)
    centre = described[shown].mean(0)
    return {**identified(predicted - centre, described[asked] - centre, seed), "test_pictures": len(asked), "training_pictures": len(shown)}


# --- trials against pictures ----------------------------------------------------------------------------------------


def _fits(evidence: Evidence, data: PreparedSubject, pictures: Stimuli, sessions: list[dict[str, Any]], findings: list[str]) -> dict[str, Any]:
    """Whether each session's responses follow its pictures, and if not, what they follow."""
    count = len(evidence.sessions)
    every = range(count)
    together = {lag: float(sum(evidence.z(k, k, lag, base=lag) for k in every) / np.sqrt(count)) for lag in LAGS}
    base = max(together, key=lambda lag: together[lag])
    if together[base] < CLEAR or together[base] - together[0] < BETTER:
        base = 0
    own = {}
    for k in every:
        row = {lag: evidence.z(k, k, lag, base=base) for lag in sorted({*LAGS, *(base + lag for lag in (-1, 0, 1))})}
        own[k] = row
        sessions[k] |= {"z": round(row[0], 2), "lags": {str(lag): round(value, 2) for lag, value in row.items()}}
    late = {k: max(row, key=lambda lag: row[lag]) for k, row in own.items()}
    late = {k: lag for k, lag in late.items() if lag and own[k][lag] >= CLEAR and own[k][lag] - own[k][0] >= BETTER}
    numbers = [session.number for session in evidence.sessions]
    if count > 1 and len(late) == count and len(set(late.values())) == 1:
        findings.append(_shift(late[0], "in all sessions"))
    else:
        if base and len(late) < count:  # sessions too short to tell for themselves follow the others
            late |= {k: base for k in every if k not in late and own[k][0] < NONE}
        findings += [_shift(lag, f"in session {numbers[k]}") for k, lag in sorted(late.items())]
    weak = [k for k in every if k not in late and own[k][0] < CLEAR]
    lost = [k for k in weak if own[k][0] < NONE]
    told: set[int] = set()
    for a, b in itertools.combinations(weak, 2):
        if a in told or b in told:
            continue
        crossed = (evidence.z(a, b, base=base) - own[a][0], evidence.z(b, a, base=base) - own[b][0])
        if min(crossed) >= BETTER and crossed[0] + own[a][0] >= CLEAR and crossed[1] + own[b][0] >= CLEAR:
            findings.append(f"sessions {numbers[a]} and {numbers[b]} look swapped: the responses of each fit the pictures of the other")
            told |= {a, b}
    for k in [k for k in lost if k not in told]:
        others = [other for other in every if other != k and evidence.z(k, other, base=base) >= CLEAR]
        if others:
            of = " and ".join(str(numbers[other]) for other in others)
            findings.append(f"responses of session {numbers[k]} fit the pictures of session {of}")
            told.add(k)
    ids = pictures.id
    for k in [k for k in lost if k not in told]:
        how = _sorted(data.stimulus[data.session == numbers[k]], ids)
        if how:
            findings.append(f"trial table sorted by picture in session {numbers[k]}: {how}, and the responses do not follow them")
            told.add(k)
    strong = [k for k in every if own[k][0] >= CLEAR]
    for k in [k for k in lost if k not in told]:
        expected = float(np.median([own[other][0] for other in strong])) if strong else 0.0
        if expected >= 2 * CLEAR and own[k][0] < NONE:
            findings.append(
                f"responses of session {numbers[k]} do not follow its pictures, at no lag and for no other session's pictures: check its files and its trials"
            )
    return {"all": together}


def _shift(lag: int, where: str) -> str:
    count = "one trial" if abs(lag) == 1 else f"{abs(lag)} trials"
    return f"responses fit the pictures {count} {'earlier' if lag > 0 else 'later'} {where}: the trial table, or beta_index, is off by {abs(lag)}"


def _sorted(stimulus: NDArray[np.integer], ids: NDArray[np.str_]) -> str | None:
    """How a session's pictures are ordered, where that is no order of an experiment."""
    if len(np.unique(stimulus)) < 10:
        return None
    names = ids[stimulus]
    if (np.diff(stimulus) >= 0).all() or (names[1:] >= names[:-1]).all():
        return "its pictures come in ascending order"
    if (np.diff(stimulus) <= 0).all() or (names[1:] <= names[:-1]).all():
        return "its pictures come in descending order"
    changes = int((np.diff(stimulus) != 0).sum()) + 1
    return "all repeats of a picture stand side by side" if changes == len(np.unique(stimulus)) < 0.7 * len(stimulus) else None


def _copies(data: PreparedSubject, x: NDArray[np.float32]) -> list[str]:
    """Stretches of responses that are there twice."""
    part = x[:, np.unique(np.linspace(0, x.shape[1] - 1, _COPY_VOXELS).astype(int))]
    part = part[:, part.std(0) > 0]
    if part.shape[1] < 10:
        return []
    session = data.session
    within = np.array([(session == number).sum() for number in np.unique(session)])
    starts = dict(zip(np.unique(session).tolist(), np.cumsum([0, *within[:-1]]).tolist(), strict=True))
    lines: dict[str, None] = {}
    for first, copy, length in repeated_rows(part, _SIMILAR_COPY, _STRETCH):
        same = session[first] == session[copy]
        if same:
            rows = np.arange(length)
            a, b = part[first + rows], part[copy + rows]
            if np.median(_correlation(a.T, b.T)) < _COPY:
                continue
        lines[f"{_place(data, copy, length, starts)} repeat{'s' if data.run is not None else ''} {_place(data, first, length, starts, not same)}"] = None
    return [f"{line}: the same responses stand there twice" for line in lines]


def _place(data: PreparedSubject, row: int, length: int, starts: dict[int, int], with_session: bool = True) -> str:
    number = int(data.session[row])
    of = f" of session {number}" if with_session and len(starts) > 1 else ""
    if data.run is not None:
        return f"run {data.run[row + length // 2]}{of}"
    begin = row - starts[number] + 1
    return f"trials {begin} to {begin + length - 1}{of}"


def _intervals(data: PreparedSubject, findings: list[str]) -> dict[str, Any] | None:
    """Seconds between onsets, and how far a single-trial model's variance is inflated by them, where onsets are known."""
    if data.onset is None or data.run is None:
        return None
    from unimind.data.single_trial import Events, design, inflation

    estimate = data.protocol.get("estimate")
    kind = estimate.get("kind") if isinstance(estimate, dict) else None
    between, inflated = [], []
    for session, run in np.unique(np.stack([data.session, data.run]), axis=1).T[:5]:  # runs are alike
        onset = np.sort(data.onset[(data.session == session) & (data.run == run)].astype(np.float64))
        if len(onset) > 1:
            between.append(np.diff(onset))
            events = Events(onset - onset[0], np.ones(len(onset)), {})
            times = np.arange(0, onset[-1] - onset[0] + 20)
            inflated.append(inflation(design(times, events, "glover", 0.01, np.empty((len(times), 0)), f"session {session} run {run}")))
    if not between:
        return None
    steps, times_larger = np.concatenate(between), float(np.median(np.concatenate(inflated)))
    said = f"stimuli are {np.median(steps):.1f} s apart: a beta for each trial has {times_larger:.0f} times the variance of a trial alone"
    if kind == "lsa" and times_larger > _LSA:
        findings.append(f"{said}; write estimate.kind: lss, or lag-window")
    elif kind == "lss" and times_larger > _LSS:
        findings.append(f"{said}, so no single-trial model tells them apart; write estimate.kind: lag-window")
    return {"median": round(float(np.median(steps)), 3), "least": round(float(steps.min()), 3), "variance_inflation": round(times_larger, 2)}


def _mirrored(sides: RawSubject, pictures: Stimuli, seed: int) -> list[str]:
    """Whether the mirror image of the mask holds the signal that the mask should hold, in the first sessions."""
    rows = {name: row for row, name in enumerate(pictures.id)}
    shown, place = np.unique([rows[str(name)] for name in sides.trials.stimulus], return_inverse=True)
    described = principal_features(pictures.read, shown, COMPONENTS)
    session = np.asarray(sides.trials.session)
    numbers = list(dict.fromkeys(session.tolist()))[:_SIDE_SESSIONS]
    blocks = list(itertools.islice(sides.trials.responses(), len(numbers)))
    found = []
    for side in (0, 1):
        parts = []
        for number, block in zip(numbers, blocks, strict=True):
            x = block[:, sides.roi == side]
            deviation = x.std(0)
            with np.errstate(divide="ignore", invalid="ignore"):
                x = np.where(np.isfinite(x).all(0) & (deviation > 0), (x - x.mean(0)) / deviation, 0).astype(np.float32)
            parts.append(Session(int(number), np.nan_to_num(x), place[session == number]))
        evidence = Evidence(parts, described, seed)
        found.append(sum(evidence.z(k, k) for k in range(len(parts))) / np.sqrt(len(parts)))
    if found[1] >= CLEAR and found[1] - found[0] >= BETTER and found[0] < found[1] / 2:
        return [f"the mask looks flipped left to right: its mirror image holds the signal (z {found[1]:.1f}) that the mask does not (z {found[0]:.1f})"]
    return []


# --- before any job -------------------------------------------------------------------------------------------------


def show(study: Study) -> int:
    """Print what the files of every data set look like: shapes, voxels, first trials with their pictures. Returns how many subjects have no files yet.

    Raises
    ------
    InputError
        Something about the files cannot be used; the same line a stage would say.
    """
    absent = 0
    for dataset, subject in study.pairs():
        section = study.datasets[dataset]
        if section.source == "simulated":
            print(f"{dataset} {subject}: simulated when the study runs")
            continue
        source = open_source(study, dataset)
        root = Path(study.root(dataset))
        gone = [file for file in source.files(subject) if not (root / file.path).exists()]
        if gone and gone[0].address:
            absent += 1
            print(f"{dataset} {subject}: {len(gone)} files are not here yet, such as {gone[0].path}; they are fetched when the study runs")
            continue
        if gone:
            raise InputError(f"{root / gone[0].path}: no such file; put it there, or correct datasets.{dataset}")
        for line in source.preview(subject) if hasattr(source, "preview") else _preview(source.subject(subject)):
            print(f"{dataset} {subject}: {line}")
    for one in study.further():
        dataset, subject, further = one["dataset"], one["subject"], one["further"]
        source, root = cast(FurtherSource, open_source(study, dataset)), Path(study.root(dataset))
        gone = [file for file in source.further_files(subject, study.decode[further]) if not (root / file.path).exists()]
        if gone and not gone[0].address:
            raise InputError(f"{root / gone[0].path}: no such file; put it there, or correct decode.{further}")
        if gone:
            print(f"{dataset} {subject} {further}: {len(gone)} files are not here yet, such as {gone[0].path}; they are fetched when the study runs")
            continue
        trials = source.further(subject, study.decode[further])
        conditions = dict.fromkeys(word for word in trials.condition if word)
        under = f" under the conditions {', '.join(conditions)}" if conditions else ""
        labels = dict.fromkeys(word for word in trials.label if word)
        named = f"{len(labels)} labels such as {', '.join(list(labels)[:3])}" if labels else "no labels"
        print(f"{dataset} {subject} {further}: {len(trials.label)} trials{under}, {named}")
    return absent


def _preview(raw: RawSubject) -> list[str]:
    numbers, counts = np.unique(raw.trials.session, return_counts=True)
    several = f" in {len(numbers)} sessions" if len(numbers) > 1 else ""
    lines = [f"{len(raw.trials.session)} trials{several} ({', '.join(map(str, counts[:10]))}{', ...' if len(counts) > 10 else ''}), {raw.n_voxels} voxels"]
    if raw.roi is not None and raw.roi_names:
        lines.append(", ".join(f"{name} {(raw.roi == code).sum()}" for code, name in enumerate(raw.roi_names)))
    return lines + [f"session {raw.trials.session[k]} trial {k + 1}: {raw.trials.stimulus[k]}" for k in range(min(3, len(raw.trials.session)))]
