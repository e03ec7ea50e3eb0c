"""Stage `tabulate`: the tables of a study, as CSV, Markdown and LaTeX.

`reconstruction`, `retrieval` and `comparisons` come from the metrics files, `adaptation` from the transfer files where
there are any, `efficiency` from the models' `efficiency.json`, `peers` from the literature. Rows of different protocol
never share a column, and a row or measure that is not there is named under the table with the reason.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from unimind.errors import InputError
from unimind.evaluation import layout, peers
from unimind.evaluation.controls import OF_THE_SUBJECT, ROWS
from unimind.evaluation.statistics import bootstrap, holm, paired_test
from unimind.progress import say
from unimind.storage import content_hash, read_json, whole_directory
from unimind.study import METRICS, OWN_METRICS, Study

COLUMNS = ["study", "dataset", "subject", "role", "method", "trials", "metric", "value", "ci_low", "ci_high", "n_test", "better", "protocol"]
COMPARISONS = ["study", "dataset", "subject", "metric", "method_a", "method_b", "difference", "ci_low", "ci_high", "p", "p_holm", "n", "protocol"]
ALL = (*METRICS, *OWN_METRICS)
AVERAGES = {"train": "average:train", "new": "average:new"}
LEVEL = 0.05
BRACKETS = "Brackets: 95 % bootstrap interval over test images; in an average, an image is drawn for all subjects who saw it together."
CERTAIN = f"where the paired permutation test against the runner-up gives p < {LEVEL} (Holm over the pairs of methods)."
BOLD, BOLD_OF_BUDGET = f"Bold: best of the methods {CERTAIN}", f"Bold: best of the rows with as many trials {CERTAIN}"
MEMORY = "Peak memory: on a GPU the largest that torch allocated; on a CPU the largest resident size of the whole process, libraries included."
NOT_MEASURED = "not in the metrics file"
#: What a new subject's model cost, in columns of `adaptation.csv`: parameters, how many of them were trained, seconds, bytes.
COSTS = ["parameters", "trainable_parameters", "seconds", "peak_memory"]
UNITS = {
    "parameters": "count", "trainable_parameters": "count", "flops_per_sample": "FLOP", "peak_memory": "bytes", "samples_per_second": "1/s", "seconds": "s",
}  # fmt: skip

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Row:
    """One row of one metrics file, or its average over subjects."""

    dataset: str
    subject: str
    role: str
    row: str
    method: str
    trials: int | None
    protocol: str
    images: tuple[tuple[tuple[str, int], ...], ...]  # per subject, (stimulus set, index) of every value per image
    metrics: dict[str, dict[str, Any]]
    budget: str | None = None  # of `transfer`: a number of trials, or all

    @property
    def name(self) -> str:
        """As in the table's column `method`."""
        return self.method if self.row == "reconstruction" else self.row if self.row in OF_THE_SUBJECT else f"{self.row}:{self.method}"

    @property
    def is_method(self) -> bool:
        return self.row == "reconstruction"


def tabulate(study: Study, metrics: list[Path], models: list[Path], out: Path, transfer: list[Path] | None = None) -> None:
    """Write the folder of tables.

    Parameters
    ----------
    metrics : list of path
        Metrics files (`score`).
    models : list of path
        Directories of models, or their `efficiency.json`.
    out : path
        The folder.
    transfer : list of path, optional
        What `transfer` wrote: `adaptation` is then made of it.
    """
    import pandas as pd

    read = {path: read_json(path) for path in metrics}
    for path, file in read.items():
        if file["dataset"] not in study.datasets:
            raise InputError(f"{path}: of data set {file['dataset']}, which the study {study.name} has not; give the metrics files of this study")
    labels = {name: study.method(name).label or name for name in study.all_methods()}
    files = sorted(({**file, "label": labels.get(file["method"], file["method"])} for file in read.values()), key=lambda f: _order(study, f))
    full, budgets = _rows(study, files)
    rows = full + _averages(full, study)
    comparisons = _comparisons(study, rows)
    records = [record for row in rows for record in _records(study, row)]
    curves = sorted((read_json(path) for path in transfer or []), key=lambda curve: _order(study, curve))
    entries = [{**entry, "label": _label_of_entry(curve["method"], entry["method"], labels)} for curve in curves for entry in curve["entries"]]
    labels |= {entry["method"]: entry["label"] for entry in entries}
    if entries:
        budgets = _rows(study, entries)[1]
    adapted = [row for row in budgets if row.role == "new"]
    adapted += [row for row in _averages(budgets, study) if row.role == "new"]
    costs = {(entry["method"], entry["dataset"], entry["subject"], entry["trials"]): entry["costs"] for entry in entries}
    blocks = {dataset: _blocks(study, [row for row in rows if row.dataset == dataset], comparisons, labels) for dataset in study.datasets}
    of = {dataset: [file for file in files if file["dataset"] == dataset] for dataset in study.datasets}
    notes = {dataset: [*_absent_rows(study, given), *_notes(given), BRACKETS, BOLD] for dataset, given in of.items()}
    sought = {dataset: [*_chance(given), *notes[dataset]] for dataset, given in of.items()}
    new_notes = {
        dataset: [*_notes([file for file in entries or files if (file["dataset"], file["role"]) == (dataset, "new")]), BRACKETS, BOLD_OF_BUDGET]
        for dataset in study.datasets
    }
    of_budgets = {budget: (same, _comparisons(study, same)) for budget, same in _grouped(adapted, lambda row: row.budget or row.trials).items()}
    words = {dataset: blurred_wins([row for row in rows if row.dataset == dataset], labels) for dataset in study.datasets}
    say(f"tables of {len(files)} metrics files, {len(records)} numbers")

    with whole_directory(out) as folder:
        frame = pd.DataFrame(records, columns=COLUMNS)
        frame.to_csv(folder / "reconstruction.csv", index=False)
        frame[frame.metric.isin([name for names in layout.RETRIEVAL_GROUPS.values() for name in names])].to_csv(folder / "retrieval.csv", index=False)
        curve = [{**record, **costs.get((row.method, row.dataset, row.subject, row.trials), {})} for row in adapted for record in _records(study, row)]
        pd.DataFrame(curve, columns=[*COLUMNS, *(COSTS if entries else ())]).to_csv(folder / "adaptation.csv", index=False)
        tests = [
            {**test, "trials": same[0].trials if budget != "all" else "all"}
            for budget, (same, found) in of_budgets.items() for test in found
        ]  # fmt: skip
        pd.DataFrame(tests, columns=[*COMPARISONS[:3], "trials", *COMPARISONS[3:]]).to_csv(folder / "adaptation_comparisons.csv", index=False)
        pd.DataFrame(comparisons, columns=COMPARISONS).to_csv(folder / "comparisons.csv", index=False)
        _write_pair(folder, "reconstruction", "Reconstruction", study, blocks, notes, words, layout.GROUPS)
        _write_pair(folder, "retrieval", "Retrieval and identification by the encoder's embedding", study, blocks, sought, {}, layout.RETRIEVAL_GROUPS)
        tested = {budget: found for budget, (_, found) in of_budgets.items()}
        new = {dataset: _adaptation_blocks(study, [row for row in adapted if row.dataset == dataset], tested, labels) for dataset in study.datasets}
        _write_pair(folder, "adaptation", "New subjects", study, new, new_notes, {}, layout.GROUPS)
        _efficiency(study, models, folder, labels)
        (folder / "peers.md").write_text(peers.markdown())


def _label_of_entry(method: str, name: str, labels: dict[str, str]) -> str:
    """Label of a way to serve a new subject, such as `unimind from scratch`."""
    return labels.get(method, method) + name.removeprefix(method)


def _order(study: Study, file: dict[str, Any]) -> tuple[int, int, int]:
    def place(names: Iterable[str], name: str) -> int:
        names = list(names)
        return names.index(name) if name in names else len(names)

    dataset = file["dataset"]
    return list(study.datasets).index(dataset), place(study.datasets[dataset].subjects, file["subject"]), place(_methods(study), file["method"])


def _methods(study: Study) -> list[str]:
    """Methods as their rows stand in every table: networks in the reverse of the study's order, so that they lead up to its first, then closed-form ones."""
    names = study.all_methods()
    closed = [name for name in names if not study.method(name).shares]
    return [name for name in (*reversed(study.methods), *names[len(study.methods) :]) if name not in closed] + closed


def _rows(study: Study, files: list[dict[str, Any]]) -> tuple[list[Row], list[Row]]:
    """Rows of the main tables (the largest number of trials of each subject and method), and method rows of all budgets."""
    every, seen = [], set()
    largest: dict[tuple[str, ...], int] = {}
    for file in files:
        key = (file["method"], file["dataset"], file["subject"])
        largest[key] = max(largest.get(key, -1), file.get("trials") or 0)
    main = []
    for file in files:
        stimuli = study.stimuli(file["dataset"], file["subject"])
        images = (tuple((stimuli, index) for index in file["stimulus"]),)
        for name, metrics in file["rows"].items():
            row = Row(
                file["dataset"], file["subject"], file["role"], name, file["method"], file.get("trials"), file["protocol"]["id"], images, metrics,
                file.get("budget"),
            )  # fmt: skip
            if row.is_method:
                every.append(row)
            if (row.trials or 0) != largest[file["method"], file["dataset"], file["subject"]]:
                continue
            once = (row.dataset, row.subject, row.name, row.protocol)
            if once not in seen:
                seen.add(once)
                main.append(row)
    order = {name: k for k, name in enumerate(ROWS)}
    main.sort(key=lambda row: 0 if row.is_method else 1 + order.get(row.row, len(order)))  # stable: methods stay in order
    return main, every


def _averages(rows: list[Row], study: Study) -> list[Row]:
    """Means over the training subjects and over the new subjects of a data set, where there are several."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    several = {key for key, members in _grouped(rows, lambda row: (row.dataset, row.role)).items() if len({row.subject for row in members}) > 1}
    for row in rows:
        if (row.dataset, row.role) in several:
            groups.setdefault((row.dataset, row.role, row.name, row.protocol), []).append(row)
    expected = {key: len({row.subject for row in rows if (row.dataset, row.role) == key}) for key in several}
    result = []
    for (dataset, role, _, protocol), members in groups.items():
        for trials, same in _budgets(members, expected[dataset, role]):
            metrics = {name: _average(same, name, study) for name in ALL if all(name in row.metrics for row in same)}
            images = tuple(own for row in same for own in row.images)
            result.append(Row(dataset, AVERAGES[role], role, same[0].row, same[0].method, trials, protocol, images, metrics, same[0].budget))
    return result


def _budgets(members: list[Row], expected: int) -> Iterable[tuple[int | None, list[Row]]]:
    """Rows that may be averaged: one per subject, all subjects; per number of trials where a subject has several."""
    if len({row.subject for row in members}) == len(members):
        if len(members) == expected:
            trials = {row.trials for row in members}
            yield (trials.pop() if len(trials) == 1 else None), members
        return
    for same in _grouped(members, lambda row: row.budget or row.trials).values():
        if len(same) == expected:
            known = [row.trials for row in same if row.trials is not None]
            yield (round(sum(known) / len(known)) if known else None), same


def _grouped(rows: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _per_image(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], float)


def _known(values: Sequence[np.ndarray], images: Sequence[Sequence[Any]]) -> tuple[list[np.ndarray], list[list[Any]]]:
    """The finite values, an array per subject, and the images they are of."""
    kept = [np.flatnonzero(np.isfinite(v)) for v in values]
    return [v[k] for v, k in zip(values, kept, strict=True)], [[own[i] for i in k.tolist()] for own, k in zip(images, kept, strict=True)]


def _distinct(images: Iterable[Iterable[Any]]) -> int:
    return len({image for own in images for image in own})


def _average(rows: list[Row], name: str, study: Study) -> dict[str, Any]:
    """Mean of one measure over subjects, a row each; `n` counts an image once, however many subjects saw it."""
    entries = [row.metrics[name] for row in rows]
    lists = [entry["per_image"] for entry in entries]
    result: dict[str, Any] = {"value": float(np.mean([entry["value"] for entry in entries])), "ci_low": None, "ci_high": None, "n": None, "per_image": None}
    if all(values is not None for values in lists):
        values, images = _known([_per_image(v) for v in lists], [row.images[0] for row in rows])
        low, high = bootstrap(values, study.evaluation.bootstrap, study.seed, images)
        result |= {"ci_low": float(low), "ci_high": float(high), "n": _distinct(images), "subjects": lists}
    return result


def _records(study: Study, row: Row) -> Iterable[dict[str, Any]]:
    for metric in ALL:
        entry = row.metrics.get(metric)
        if entry is not None:
            n = entry["n"] if entry["n"] is not None else _distinct(row.images)
            yield {
                "study": study.name, "dataset": row.dataset, "subject": row.subject, "role": row.role if row.is_method else "control",
                "method": row.name, "trials": row.trials, "metric": metric, "value": entry["value"], "ci_low": entry["ci_low"], "ci_high": entry["ci_high"],
                "n_test": n, "better": layout.better(metric), "protocol": row.protocol,
            }  # fmt: skip


def _comparisons(study: Study, rows: list[Row]) -> list[dict[str, Any]]:
    """Paired tests of every two methods of the same subject (or average) and protocol; Holm over the pairs of a measure."""
    result = []
    for (dataset, subject, protocol), members in _grouped([row for row in rows if row.is_method], lambda row: (row.dataset, row.subject, row.protocol)).items():
        found: dict[str, list[dict[str, Any]]] = {}
        for a, b in itertools.combinations(members, 2):
            if a.images != b.images:
                continue
            for metric, parts, images in _differences(a, b):
                low, high = bootstrap(parts, study.evaluation.bootstrap, study.seed, images)
                found.setdefault(metric, []).append({
                    "study": study.name, "dataset": dataset, "subject": subject, "metric": metric, "method_a": a.method, "method_b": b.method,
                    "difference": float(np.mean([d.mean() for d in parts])), "ci_low": float(low), "ci_high": float(high),
                    "p": float(paired_test([d[:, None] for d in parts], seed=study.seed, images=images)[0]), "n": _distinct(images), "protocol": protocol,
                })  # fmt: skip
        for tests in found.values():
            for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
                result.append({**test, "p_holm": float(p)})
    return result


def _differences(a: Row, b: Row) -> Iterable[tuple[str, list[np.ndarray], list[list[Any]]]]:
    """Per measure, the differences per image and the images, a list per subject."""
    for metric in ALL:
        if metric not in a.metrics or metric not in b.metrics:
            continue
        lists = [row.metrics[metric].get("subjects") or [row.metrics[metric]["per_image"]] for row in (a, b)]
        if any(values is None for values in (*lists[0], *lists[1])):
            continue
        parts, images = _known([_per_image(x) - _per_image(y) for x, y in zip(*lists, strict=True)], a.images)
        if all(len(part) for part in parts):
            yield metric, parts, images


def _best(rows: list[Row], comparisons: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """(metric, protocol, method) that is best of its block and surely better than the runner-up."""
    certain = {
        (c["metric"], c["protocol"], frozenset((c["method_a"], c["method_b"]))) for c in comparisons
        if c["dataset"] == rows[0].dataset and c["subject"] == rows[0].subject and c["p_holm"] < LEVEL
    }  # fmt: skip
    result = set()
    for protocol, members in _grouped([row for row in rows if row.is_method], lambda row: row.protocol).items():
        for metric in ALL:
            values = sorted(((row.metrics[metric]["value"], row.method) for row in members if metric in row.metrics), reverse=layout.better(metric) == "higher")
            if len(values) > 1 and (metric, protocol, frozenset((values[0][1], values[1][1]))) in certain:
                result.add((metric, protocol, values[0][1]))
    return result


def _label(row: Row, labels: dict[str, str]) -> str:
    name = labels.get(row.method, row.method)
    return name if row.is_method else row.row.replace("-", " ") if row.row in OF_THE_SUBJECT else f"{row.row.replace('-', ' ')}: {name}"


def _title(study: Study, row: Row) -> str:
    if row.subject in AVERAGES.values():
        return f"{row.dataset}, average over {'training' if row.role == 'train' else 'new'} subjects"
    return f"{row.dataset}, {row.subject} ({'training' if row.role == 'train' else 'new'} subject)"


def _blocks(study: Study, rows: list[Row], comparisons: list[dict[str, Any]], labels: dict[str, str]) -> list[layout.Block]:
    """A block per subject and average: methods in their order (`_methods`), then controls."""
    blocks = []
    if not rows:
        return []
    subjects = study.datasets[rows[0].dataset]
    order = [*subjects.training_subjects, AVERAGES["train"], *subjects.new_subjects, AVERAGES["new"]]
    groups = _grouped(rows, lambda row: row.subject)
    for subject in sorted(groups, key=lambda s: order.index(s) if s in order else len(order)):
        members = groups[subject]
        best = _best(members, comparisons)
        block = layout.Block(_title(study, members[0]))
        for row in members:
            cells = block.rows.setdefault(_label(row, labels), {})
            for metric, entry in row.metrics.items():
                bold = row.is_method and (metric, row.protocol, row.method) in best
                cells[metric, row.protocol] = layout.Cell(entry["value"], entry["ci_low"], entry["ci_high"], bold)
            if not row.is_method and not block.separators:
                block.separators.add(_label(row, labels))
        blocks.append(block)
    return blocks


def _adaptation_blocks(study: Study, rows: list[Row], tested: dict[str | int | None, list[dict[str, Any]]], labels: dict[str, str]) -> list[layout.Block]:
    """A block per new subject and average: methods in their order, each by budget; `tested` has the comparisons of each budget."""
    blocks = []
    for members in _grouped(rows, lambda row: row.subject).values():
        block = layout.Block(_title(study, members[0]))
        order = list(dict.fromkeys(row.method for row in members))
        best = {budget: _best(same, tested[budget]) for budget, same in _grouped(members, lambda row: row.budget or row.trials).items()}
        for row in sorted(members, key=lambda row: (order.index(row.method), row.trials or 0)):  # noqa: B023
            budget = f", {row.trials} trials" if row.trials is not None else ""
            sure = best[row.budget or row.trials]
            cells = {
                (metric, row.protocol): layout.Cell(e["value"], e["ci_low"], e["ci_high"], (metric, row.protocol, row.method) in sure)
                for metric, e in row.metrics.items()
            }
            block.rows.setdefault(labels.get(row.method, row.method) + budget, {}).update(cells)
        blocks.append(block)
    return blocks


def _notes(files: list[dict[str, Any]]) -> list[str]:
    """What stands under a table of these files: absent measures, warnings, protocols."""
    absent = [(layout.TITLES.get(name, name), reason, file["label"]) for file in files for name, reason in file.get("absent", {}).items()]
    notes = layout.absences("Absent", absent, {file["label"] for file in files})
    notes += [f"{warning}." for warning in dict.fromkeys(w for file in files for w in file.get("warnings", []))]
    protocols = {file["protocol"]["id"]: file["protocol"] for file in files}
    return notes + [f"Protocol {key}: {describe_protocol(protocol)}" for key, protocol in sorted(protocols.items())]


def _absent_rows(study: Study, files: list[dict[str, Any]]) -> list[str]:
    """Which of the rows every table needs are not there, and why (`absent_rows` of the metrics files)."""
    of_methods, of_subjects = [], []
    for (subject, _), members in _grouped(files, lambda file: (file["subject"], file["protocol"]["id"])).items():
        reasons = {row: reason for file in members for row, reason in file.get("absent_rows", {}).items()}
        for row in ROWS:
            if row in OF_THE_SUBJECT:
                if not any(row in file["rows"] for file in members):
                    of_subjects.append((row.replace("-", " "), reasons.get(row, NOT_MEASURED), subject))
                continue
            for file in (file for file in members if row not in file["rows"]):
                of_methods.append((row.replace("-", " "), file.get("absent_rows", {}).get(row, NOT_MEASURED), file["label"]))
    notes = layout.absences("Absent rows", of_methods, {file["label"] for file in files})
    notes += layout.absences("Absent rows", of_subjects, {file["subject"] for file in files})
    if files and not any(method.enter.kind == "ridge" for method in study.methods.values()):
        notes.append("Absent rows: ridge regression: the study has no method with a ridge encoder.")
    return notes


def _chance(files: list[dict[str, Any]]) -> list[str]:
    """What chance gives in the retrieval table, and which rows may give less."""
    levels: dict[str, None] = {}
    for file in files:
        found = file["rows"].get("reconstruction", {})
        if any(name in found for name in layout.RETRIEVAL_GROUPS["retrieval"]):
            pool = file["tested"]["retrieval_pool"]
            levels[f"{100 / pool:.3g} % in retrieval from a pool of {pool} test pictures"] = None
    if any("identification" in file["rows"].get("reconstruction", {}) for file in files):
        levels["50 % in two-way identification"] = None
    if not levels:
        return []
    return [
        f"Chance: {', '.join(levels)}.",
        "In the rows shuffled and chance every picture has the prediction of another one, which points away from it: they can fall below chance.",
    ]


def describe_protocol(protocol: dict[str, Any]) -> str:
    """A protocol record in one line."""
    pictures, tested = protocol.get("pictures", {}), protocol.get("tested")
    if isinstance(tested, dict):
        tested = f"{tested['pictures']} pictures [{tested['hash'][:8]}], trials of each: {tested['trials_per_picture']}"
    parts = [
        f"data set {protocol.get('dataset')}", f"split {protocol.get('split')}", f"tested on {tested}",
        f"sessions {protocol.get('sessions')}", f"repeats: {protocol.get('repeats')}",
        f"betas {protocol.get('beta_version')}", f"pictures of {protocol.get('image_size')} px, measured at {pictures.get('side')} ({pictures.get('resize')})",
        f"SSIM and PixCorr at {pictures.get('detail_side')}; SSIM {pictures.get('ssim')}",
        f"{protocol.get('samples_per_stimulus')} samples per stimulus, shown: {protocol.get('choice_of_sample')}",
    ]  # fmt: skip
    parts += [f"{layout.TITLES.get(name, name)} by {network['network']} [{network['sha256'][:8]}]" for name, network in protocol.get("networks", {}).items()]
    if "image_embedding" in protocol:
        parts.append(f"image embedding {protocol['image_embedding']['network']} [{protocol['image_embedding']['sha256'][:8]}]")
    return "; ".join(parts) + "."


def blurred_wins(rows: list[Row], labels: dict[str, str]) -> list[str]:
    """A sentence wherever the mean training image beats every method in PixCorr or SSIM, but not in a semantic measure."""
    words = []
    for (subject, _), members in _grouped(rows, lambda row: (row.subject, row.protocol)).items():
        methods = [row for row in members if row.is_method]
        mean = next((row.metrics for row in members if row.row == "mean-training-image"), {})
        both = {name for row in methods for name in row.metrics if name in mean}
        best = {name: max((row for row in methods if name in row.metrics), key=lambda row: row.metrics[name]["value"]) for name in both}  # noqa: B023
        semantic = next((name for name in layout.SEMANTIC if name in both), None)
        won = [name for name in ("pixcorr", "ssim") if name in both and mean[name]["value"] > best[name].metrics[name]["value"]]
        if semantic is None or not won or best[semantic].metrics[semantic]["value"] <= mean[semantic]["value"]:
            continue

        def against(name: str) -> str:
            ours = best[name].metrics[name]["value"]  # noqa: B023
            return f"{layout.TITLES[name]} ({layout.number(name, mean[name]['value'])} against {layout.number(name, ours)})"  # noqa: B023

        words.append(
            f"{members[0].dataset}, {subject}: the mean training image, which shows nothing, beats every method in {' and '.join(map(against, won))}, "
            f"but not {labels.get(best[semantic].method, best[semantic].method)} in {against(semantic)}: "
            "these low-level measures reward blur and prove nothing alone."
        )
    return words


def _write_pair(
    folder: Path,
    name: str,
    title: str,
    study: Study,
    blocks: dict[str, list[layout.Block]],
    notes: dict[str, list[str]],
    words: dict[str, list[str]],
    groups: dict[str, tuple[str, ...]],
) -> None:
    """`<name>.md` and `<name>.tex`."""
    text, tex = [f"# {title}: {study.title or study.name}"], []
    for dataset, members in blocks.items():
        body = layout.markdown(members, groups)
        if not body:
            continue
        text += [f"## {dataset}", body, *words.get(dataset, []), "\n".join(f"- {note}" for note in notes[dataset])]
        tex.append(layout.latex(members, f"{title}, {dataset}.", f"tab:{name}-{dataset}", notes[dataset], groups))
    if len(text) == 1:
        text.append("No numbers of this kind in this study.")
    (folder / f"{name}.md").write_text("\n\n".join(text) + "\n")
    (folder / f"{name}.tex").write_text("\n".join(tex) or f"% {title}: no numbers\n")


def _efficiency(study: Study, models: Sequence[Path], folder: Path, labels: dict[str, str]) -> None:
    """`efficiency.csv`, `.md`, `.tex` from the `efficiency.json` of every model."""
    import pandas as pd

    records, protocols = [], {}
    found = sorted({p for path in models for p in ([path] if path.name == "efficiency.json" else path.rglob("efficiency.json")) if p.is_file()})
    for path in found:
        method, stage = _method_and_stage(path.parent)
        content = read_json(path)
        conditions = content.pop("conditions", None)
        protocol = content_hash(conditions)[:8] if conditions else "-"
        if conditions:
            protocols[protocol] = _conditions(conditions)
        for quantity, given in content.items():
            unit = UNITS.get(quantity, "")
            value, unit = (given.get("value"), given.get("unit", unit)) if isinstance(given, dict) else (given, unit)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                records.append(
                    {"study": study.name, "method": method, "stage": stage, "quantity": quantity, "value": value, "unit": unit, "protocol": protocol}
                )
    order = {name: k for k, name in enumerate(_methods(study))}
    records.sort(key=lambda record: order.get(record["method"], len(order)))
    frame = pd.DataFrame(records, columns=["study", "method", "stage", "quantity", "value", "unit", "protocol"])
    frame.to_csv(folder / "efficiency.csv", index=False)
    wide, quantities = _efficiency_rows(study, records, labels)
    heads = [f"{q.replace('_', ' ')}{f' [{UNITS[q]}]' if UNITS.get(q, 'count') != 'count' else ''}" for q in quantities]
    text = [f"# Efficiency: {study.title or study.name}", ""]
    if not wide:
        text.append("No trained model left an efficiency record.")
        (folder / "efficiency.tex").write_text("% Efficiency: no numbers\n")
    else:
        heads.append("protocol")
        notes = [MEMORY, *(f"Protocol {key}: {words}." for key, words in sorted(protocols.items()))]
        text += ["| method | stage | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
        text += [f"| {method} | {stage} | " + " | ".join(cells) + " |" for method, stage, cells in wide]
        text += ["", "Means over the groups of a stage. In parentheses: the transformer's value divided by this one, stage by stage.", ""]
        text += [f"- {note}" for note in notes]
        tex = [r"\begin{table}[t]", r"\centering", rf"\begin{{tabular}}{{ll{'r' * len(heads)}}}", r"\toprule",
               " & ".join(["method", "stage", *map(layout.latex_text, heads)]) + r" \\", r"\midrule"]  # fmt: skip
        tex += [" & ".join(map(layout.latex_text, [method, stage, *cells])) + r" \\" for method, stage, cells in wide]
        tex += [r"\bottomrule", r"\end{tabular}", r"\caption{Efficiency. In parentheses: the transformer's value divided by this one.}"]
        tex += [r"\label{tab:efficiency}", *(rf"\par\footnotesize {layout.latex_text(note)}" for note in notes), r"\end{table}"]
        (folder / "efficiency.tex").write_text("\n".join(tex) + "\n")
    (folder / "efficiency.md").write_text("\n".join(text) + "\n")


def _conditions(given: dict[str, Any]) -> str:
    """What an efficiency record was measured under, in words (`training.loop.conditions`)."""
    batch = "all trials at once" if given["batch_size"] is None else f"batches of {given['batch_size']}"
    if given["accumulate"] > 1:
        batch += f" in {given['accumulate']} parts"
    processes = f"{given['processes']} processes of " if given["processes"] > 1 else ""
    return f"{given['device']}; {processes}{given['threads']} threads; {given['precision']}; {batch}; torch {given['torch']}"


def _method_and_stage(directory: Path) -> tuple[str, str]:
    """From a model's place, `.../models/M/stage[/group]` or `.../foundations/X`."""
    parts = directory.parts
    if "foundations" in parts:
        return "foundation", "/".join(parts[len(parts) - parts[::-1].index("foundations") :])
    if "models" in parts:
        after = parts[len(parts) - parts[::-1].index("models") :]
        if after:
            return after[0], "/".join(after[1:]) or "-"
    return directory.name, "-"


def _efficiency_rows(study: Study, records: list[dict[str, Any]], labels: dict[str, str]) -> tuple[list[tuple[str, str, list[str]]], list[str]]:
    """(method, stage, cells) with the groups of a stage averaged, the last cell their protocols; and the quantities shown."""
    values: dict[tuple[str, str, str], list[float]] = {}
    protocols: dict[tuple[str, str], set[str]] = {}
    for r in records:
        stage = r["stage"].split("/")[0] if r["method"] != "foundation" else r["stage"]
        values.setdefault((r["method"], stage, r["quantity"]), []).append(float(r["value"]))
        protocols.setdefault((r["method"], stage), set()).add(r["protocol"])
    means = {key: float(np.mean(v)) for key, v in values.items()}
    quantities = [q for q in UNITS if any(key[2] == q for key in means)]
    transformers = [name for name, method in study.methods.items() if method.body.kind == "vit"]
    reference = next((name for name in transformers if study.methods[name].align is not None), transformers[0] if transformers else None)
    rows = []
    for method, stage in protocols:
        cells = []
        for quantity in quantities:
            value = means.get((method, stage, quantity))
            base = means.get((reference, stage, quantity)) if reference else None
            ratio = f" ({base / value:.2g} ×)" if base and value and method != reference and method in study.methods else ""
            cells.append("-" if value is None else f"{value:.4g}{ratio}" if value < 1e4 and value != int(value) else f"{value:,.0f}{ratio}")
        rows.append((labels.get(method, method), stage, [*cells, ", ".join(sorted(protocols[method, stage]))]))
    return rows, quantities
