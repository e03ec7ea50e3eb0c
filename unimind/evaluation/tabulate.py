"""Stage `tabulate`: the tables of a study, as CSV, Markdown and LaTeX.

`reconstruction`, `retrieval` and `comparisons` come from the metrics files, `adaptation` from the transfer files where
there are any, `decoding` and `decoded_trials` from further sets of trials, `efficiency` from the models' `efficiency.json`,
`peers` from the literature. Rows of different protocol never share a column, and a row or measure that is not there is named
under the table with the reason.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unimind.errors import InputError
from unimind.evaluation import checks, declaration, layout, peers
from unimind.evaluation import comparisons as tests
from unimind.evaluation.controls import OF_PREDICTIONS, OF_THE_SUBJECT, ROWS
from unimind.evaluation.decoding import write_decoding
from unimind.evaluation.efficiency import write_efficiency
from unimind.evaluation.measures import GROUPS, MEASURES, NAMES, RETRIEVAL_GROUPS, SEMANTIC, circular, measure_of
from unimind.evaluation.rows import AVERAGES, Row, averages, distinct, grouped, read_metrics, table_rows
from unimind.progress import say
from unimind.storage import read_json, whole_directory, write_json
from unimind.study import Study

COLUMNS = ["study", "dataset", "subject", "role", "method", "trials", "metric", "value", "ci_low", "ci_high", "n_test", "better", "protocol"]
BRACKETS = "Brackets: 95 % bootstrap interval over test images; in an average, an image is drawn for all subjects who saw it together."
OVER_DRAWINGS = f"{BRACKETS} Where a budget was drawn several times, drawings are drawn too."
CERTAIN = f"where the paired permutation test against the runner-up gives p < {tests.LEVEL} (Holm over all pairs of methods and all measures of the block)."
BOLD, BOLD_OF_BUDGET = f"Bold: best of the methods {CERTAIN}", f"Bold: best of the rows with as many trials {CERTAIN}"
NOT_MEASURED = "not in the metrics file"
#: What a new subject's model cost, in columns of `adaptation.csv`: parameters, how many of them were trained, seconds, bytes.
COSTS = ["parameters", "trainable_parameters", "seconds", "peak_memory"]


def tabulate(
    study: Study, metrics: list[Path], models: list[Path], out: Path, transfer: list[Path] | None = None, generalisation: list[Path] | None = None,
    imagined: list[Path] | None = None, decoded: list[Path] | None = None,
) -> None:  # fmt: skip
    """Write the folder of tables.

    Parameters
    ----------
    metrics : list of path
        Metrics files, or folders of them (`score`).
    models : list of path
        Directories of models, or their `efficiency.json`.
    out : path
        The folder.
    transfer : list of path, optional
        What `transfer` wrote: `adaptation` is then made of it.
    generalisation : list of path, optional
        What `generalise` wrote: `generalisation.csv` and `declaration.json` are made of it.
    imagined, decoded : list of path, optional
        What `score-decoded` and `decode` wrote: `decoding` and `decoded_trials` are made of them.
    """
    import pandas as pd

    read = read_metrics(metrics)
    for path, file in read.items():
        if file["dataset"] not in study.datasets:
            raise InputError(f"{path}: of data set {file['dataset']}, which the study {study.name} has not; give the metrics files of this study")
    labels = {name: study.method(name).label or name for name in study.all_methods()}
    files = sorted(({**file, "label": labels.get(file["method"], file["method"])} for file in read.values()), key=lambda f: _order(study, f))
    full, budgets = table_rows(study, files)
    rows = full + averages(full, study)
    compared = tests.comparisons(study, rows)
    records = [record for row in rows for record in _records(study, row)]
    curves = sorted((read_json(path) for path in transfer or []), key=lambda curve: _order(study, curve))
    entries = [{**entry, "label": _label_of_entry(curve["method"], entry["method"], labels)} for curve in curves for entry in curve["entries"]]
    labels |= {entry["method"]: entry["label"] for entry in entries}
    if entries:
        budgets = table_rows(study, entries)[1]
    adapted = [row for row in budgets if row.role == "new"]
    adapted += [row for row in averages(budgets, study) if row.role == "new"]
    costs = {(entry["method"], entry["dataset"], entry["subject"], entry["trials"]): entry["costs"] for entry in entries}
    blocks = {dataset: _blocks(study, [row for row in rows if row.dataset == dataset], compared, labels) for dataset in study.datasets}
    of = {dataset: [file for file in files if file["dataset"] == dataset] for dataset in study.datasets}
    notes = {dataset: [*_circular(study, given), *_absent_rows(study, given), *_notes(given), BRACKETS, BOLD] for dataset, given in of.items()}
    sought = {dataset: [*_chance(given), *notes[dataset]] for dataset, given in of.items()}
    new_notes = {
        dataset: [*_notes([file for file in entries or files if (file["dataset"], file["role"]) == (dataset, "new")]), OVER_DRAWINGS, BOLD_OF_BUDGET]
        for dataset in study.datasets
    }
    of_budgets = {budget: (same, tests.comparisons(study, same)) for budget, same in grouped(adapted, lambda row: row.budget or row.trials).items()}
    words = {dataset: blurred_wins([row for row in rows if row.dataset == dataset], labels) for dataset in study.datasets}
    say(f"tables of {len(files)} metrics files, {len(records)} numbers")

    with whole_directory(out) as folder:
        frame = pd.DataFrame(records, columns=COLUMNS)
        frame.to_csv(folder / "reconstruction.csv", index=False)
        frame[frame.metric.isin([name for names in RETRIEVAL_GROUPS.values() for name in names])].to_csv(folder / "retrieval.csv", index=False)
        curve = [{**record, **costs.get((row.method, row.dataset, row.subject, row.trials), {})} for row in adapted for record in _records(study, row)]
        pd.DataFrame(curve, columns=[*COLUMNS, *(COSTS if entries else ())]).to_csv(folder / "adaptation.csv", index=False)
        of_curves = [
            {**test, "trials": same[0].trials if budget != "all" else "all"}
            for budget, (same, found) in of_budgets.items() for test in found
        ]  # fmt: skip
        pd.DataFrame(of_curves, columns=[*tests.COLUMNS[:3], "trials", *tests.COLUMNS[3:]]).to_csv(folder / "adaptation_comparisons.csv", index=False)
        pd.DataFrame(compared, columns=tests.COLUMNS).to_csv(folder / "comparisons.csv", index=False)
        _write_pair(folder, "reconstruction", "Reconstruction" if study.draws else "Predicted embeddings", study, blocks, notes, words, GROUPS)
        _write_pair(folder, "retrieval", "Retrieval and identification by the encoder's embedding", study, blocks, sought, {}, RETRIEVAL_GROUPS)
        tested = {budget: found for budget, (_, found) in of_budgets.items()}
        new = {dataset: _adaptation_blocks(study, [row for row in adapted if row.dataset == dataset], tested, labels) for dataset in study.datasets}
        _write_pair(folder, "adaptation", "New subjects", study, new, new_notes, {}, GROUPS)
        write_efficiency(study, models, folder, labels, _methods(study))
        if generalisation:
            found = [read_json(path) for path in generalisation]
            pd.DataFrame(checks.records(study, found), columns=checks.COLUMNS).to_csv(folder / "generalisation.csv", index=False)
            write_json(folder / "declaration.json", declaration.declaration_of(study, found, files).model_dump(mode="json"))
        if study.decode:
            write_decoding(study, imagined or [], decoded or [], labels, folder)
        (folder / "peers.md").write_text(peers.markdown(study, set(frame.metric)))


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


def _records(study: Study, row: Row) -> Iterable[dict[str, Any]]:
    for metric in NAMES:
        entry = row.metrics.get(metric)
        if entry is not None:
            n = entry["n"] if entry["n"] is not None else distinct(row.images)
            yield {
                "study": study.name, "dataset": row.dataset, "subject": row.subject, "role": row.role if row.is_method else "control",
                "method": row.name, "trials": row.trials, "metric": metric, "value": entry["value"], "ci_low": entry["ci_low"], "ci_high": entry["ci_high"],
                "n_test": n, "better": MEASURES[metric].better, "protocol": row.protocol,
            }  # fmt: skip


def _label(row: Row, labels: dict[str, str]) -> str:
    name = labels.get(row.method, row.method)
    return name if row.is_method else row.row.replace("-", " ") if row.row in OF_THE_SUBJECT else f"{row.row.replace('-', ' ')}: {name}"


def _title(study: Study, row: Row) -> str:
    if row.subject in AVERAGES.values():
        return f"{row.dataset}, average over {'training' if row.role == 'train' else 'new'} subjects"
    return f"{row.dataset}, {row.subject} ({'training' if row.role == 'train' else 'new'} subject)"


def _blocks(study: Study, rows: list[Row], compared: list[dict[str, Any]], labels: dict[str, str]) -> list[layout.SubjectRows]:
    """A block per subject and average: methods in their order (`_methods`), then controls."""
    blocks = []
    if not rows:
        return []
    subjects = study.datasets[rows[0].dataset]
    order = [*subjects.training_subjects, AVERAGES["train"], *subjects.new_subjects, AVERAGES["new"]]
    groups = grouped(rows, lambda row: row.subject)
    for subject in sorted(groups, key=lambda s: order.index(s) if s in order else len(order)):
        members = groups[subject]
        best = tests.surely_best(members, compared)
        block = layout.SubjectRows(_title(study, members[0]))
        for row in members:
            cells = block.rows.setdefault(_label(row, labels), {})
            for metric, entry in row.metrics.items():
                bold = row.is_method and (metric, row.protocol, row.method) in best
                cells[metric, row.protocol] = layout.Score(entry["value"], entry["ci_low"], entry["ci_high"], bold)
            if not row.is_method and not block.separators:
                block.separators.add(_label(row, labels))
        blocks.append(block)
    return blocks


def _adaptation_blocks(study: Study, rows: list[Row], tested: dict[str | int | None, list[dict[str, Any]]], labels: dict[str, str]) -> list[layout.SubjectRows]:
    """A block per new subject and average: methods in their order, each by budget; `tested` has the comparisons of each budget."""
    blocks = []
    for members in grouped(rows, lambda row: row.subject).values():
        block = layout.SubjectRows(_title(study, members[0]))
        order = list(dict.fromkeys(row.method for row in members))
        best = {budget: tests.surely_best(same, tested[budget]) for budget, same in grouped(members, lambda row: row.budget or row.trials).items()}
        for row in sorted(members, key=lambda row: (order.index(row.method), row.trials or 0)):  # noqa: B023
            budget = f", {row.trials} trials" if row.trials is not None else ""
            sure = best[row.budget or row.trials]
            cells = {
                (metric, row.protocol): layout.Score(e["value"], e["ci_low"], e["ci_high"], (metric, row.protocol, row.method) in sure)
                for metric, e in row.metrics.items()
            }
            block.rows.setdefault(labels.get(row.method, row.method) + budget, {}).update(cells)
        blocks.append(block)
    return blocks


def _notes(files: list[dict[str, Any]]) -> list[str]:
    """What stands under a table of these files: absent measures, warnings, protocols."""
    absent = [(measure_of(name).title, reason, file["label"]) for file in files for name, reason in file.get("absent", {}).items()]
    notes = layout.absences("Absent", absent, {file["label"] for file in files})
    notes += [f"{warning}." for warning in dict.fromkeys(w for file in files for w in file.get("warnings", []))]
    protocols = {file["protocol"]["id"]: file["protocol"] for file in files}
    return notes + [f"Protocol {key}: {describe_protocol(protocol)}" for key, protocol in sorted(protocols.items())]


def _circular(study: Study, files: list[dict[str, Any]]) -> list[str]:
    """Which measures are by the network whose embedding is predicted, and by which samples are chosen."""
    own = circular(study.foundations.embedding)
    found = [MEASURES[name].title for name in NAMES if name in own and any(name in file["rows"].get("reconstruction", {}) for file in files)]
    chosen = " and by which samples are chosen" if study.draws else ""
    return [f"By the network whose embedding is predicted{chosen}: {', '.join(found)}; they favour what they measure."] if found else []


def _absent_rows(study: Study, files: list[dict[str, Any]]) -> list[str]:
    """Which of the rows every table needs are not there, and why (`absent_rows` of the metrics files)."""
    of_methods, of_subjects = [], []
    for (subject, _), members in grouped(files, lambda file: (file["subject"], file["protocol"]["id"])).items():
        reasons = {row: reason for file in members for row, reason in file.get("absent_rows", {}).items()}
        for row in ROWS if study.draws else OF_PREDICTIONS:
            if row in OF_THE_SUBJECT:
                if not any(row in file["rows"] for file in members):
                    of_subjects.append((row.replace("-", " "), reasons.get(row, NOT_MEASURED), subject))
                continue
            for file in (file for file in members if row not in file["rows"]):
                of_methods.append((row.replace("-", " "), file.get("absent_rows", {}).get(row, NOT_MEASURED), file["label"]))
    notes = layout.absences("Absent rows", of_methods, {file["label"] for file in files})
    notes += layout.absences("Absent rows", of_subjects, {file["subject"] for file in files})
    if files and not any(method.enter.kind == "ridge" for method in study.methods.values()):
        notes.append("Absent rows: ridge regression: the study has no method that enters by ridge.")
    return notes


def _chance(files: list[dict[str, Any]]) -> list[str]:
    """What chance gives in the retrieval table, and which rows may give less."""
    levels: dict[str, None] = {}
    for file in files:
        found = file["rows"].get("reconstruction", {})
        if any(name in found for name in RETRIEVAL_GROUPS["retrieval"]):
            pool = file["tested"]["retrieval_pool"]
            levels[f"{100 / pool:.3g} % in retrieval from a pool of {pool} test pictures"] = None
    if any("identification" in file["rows"].get("reconstruction", {}) for file in files):
        levels["50 % in two-way identification"] = None
    if not levels:
        return []
    return [
        f"Chance: {', '.join(levels)}.",
        "The row chance is that level. In the row shuffled every picture has the prediction of another one, which points away from it: it can fall below.",
    ]


def describe_protocol(protocol: dict[str, Any]) -> str:
    """A protocol record in one line."""
    pictures, tested = protocol.get("pictures", {}), protocol.get("tested")
    if isinstance(tested, dict):
        tested = f"{tested['pictures']} pictures [{tested['hash'][:8]}], trials of each: {tested['trials_per_picture']}"
    parts = [
        f"data set {protocol.get('dataset')}", f"split {protocol.get('split')}", f"tested on {tested}",
        f"sessions {protocol.get('sessions')}", f"repeats: {protocol.get('repeats')}", f"betas {protocol.get('beta_version')}",
    ]  # fmt: skip
    if pictures:
        parts += [
            f"pictures of {protocol.get('image_size')} px, measured at {pictures.get('side')} ({pictures.get('resize')})",
            f"SSIM and PixCorr at {pictures.get('detail_side')}; SSIM {pictures.get('ssim')}",
            f"{protocol.get('samples_per_stimulus')} samples per stimulus, shown: {protocol.get('choice_of_sample')}",
        ]
    else:
        parts.append(f"pictures of {protocol.get('image_size')} px, none drawn")
    parts += [f"{measure_of(name).title} by {network['network']} [{network['sha256'][:8]}]" for name, network in protocol.get("networks", {}).items()]
    if "image_embedding" in protocol:
        parts.append(f"image embedding {protocol['image_embedding']['network']} [{protocol['image_embedding']['sha256'][:8]}]")
    return "; ".join(parts) + "."


def blurred_wins(rows: list[Row], labels: dict[str, str]) -> list[str]:
    """A sentence wherever the mean training image beats every method in PixCorr or SSIM, but not in a semantic measure."""
    words = []
    for (subject, _), members in grouped(rows, lambda row: (row.subject, row.protocol)).items():
        methods = [row for row in members if row.is_method]
        mean = next((row.metrics for row in members if row.row == "mean-training-image"), {})
        both = {name for row in methods for name in row.metrics if name in mean}
        best = {name: max((row for row in methods if name in row.metrics), key=lambda row: row.metrics[name]["value"]) for name in both}  # noqa: B023
        semantic = next((name for name in SEMANTIC if name in both), None)
        won = [name for name in ("pixcorr", "ssim") if name in both and mean[name]["value"] > best[name].metrics[name]["value"]]
        if semantic is None or not won or best[semantic].metrics[semantic]["value"] <= mean[semantic]["value"]:
            continue

        def against(name: str) -> str:
            ours = best[name].metrics[name]["value"]  # noqa: B023
            return f"{MEASURES[name].title} ({MEASURES[name].shown(mean[name]['value'])} against {MEASURES[name].shown(ours)})"  # noqa: B023

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
    blocks: dict[str, list[layout.SubjectRows]],
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
