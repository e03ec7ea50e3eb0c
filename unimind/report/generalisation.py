"""Does it generalise: the checks of the stage `generalise` as figures, tables and words."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimind.evaluation import declaration
from unimind.evaluation.findings import DIFFERENT, KNOWN, TITLES
from unimind.evaluation.measures import headline, measure_of
from unimind.report import results
from unimind.report.charts import panels, save
from unimind.report.gallery import Tile, mosaic, tile_side
from unimind.report.parts import Entry, Line, LineGroup, PageSection, PageTable, Picture, listed, many
from unimind.report.pictures import PictureFile, ReportFiles
from unimind.report.results import Figure
from unimind.study import Study

#: Test pictures of the figure of nearest pairs.
PAIRS = 8
#: Places of identification against the training set, as the stage has them.
TOPS = (1, 10, 50)

Checks = Sequence[Mapping[str, Any]]


def nearest_pairs(study: Study, checks: Checks, files: ReportFiles, folder: Path) -> Iterator[Figure]:
    """Per data set, the test pictures that are nearest to a training picture, above it."""
    for dataset in study.datasets:
        chosen: dict[tuple[str, int], tuple[float, Mapping[str, Any], int]] = {}
        for one in checks:
            if one["dataset"] == dataset:
                for place, (stimulus, distance) in enumerate(zip(one["stimulus"], one["audit"]["distance"], strict=True)):
                    key = (study.stimuli(dataset, one["subject"]), stimulus)
                    if key not in chosen or distance < chosen[key][0]:
                        chosen[key] = (distance, one, place)
        pairs = sorted(chosen.items(), key=lambda pair: pair[1][0])[:PAIRS]
        if not pairs:
            continue
        cells: list[list[Tile]] = [[], [], []]
        heads, duplicates = [], 0
        for (name, stimulus), (distance, one, place) in pairs:
            audit = one["audit"]
            cells[0].append(_tile(files, dataset, name, stimulus))
            for row, which in enumerate(("nearest", "perceptually_nearest"), 1):
                found = audit[which][place]
                cells[row].append(_tile(files, found["dataset"], found["stimuli"], found["stimulus"]))
            heads.append(f"{distance:.2f}{' duplicate' if audit['near_duplicate'][place] else ''}")
            duplicates += audit["near_duplicate"][place]
        sides = [len(tile.picture) for line in cells for tile in line if tile.picture is not None]
        if not sides:
            continue
        drawn = mosaic(cells, ["test picture", "nearest in training", "perceptually nearest of these"], heads, tile_side(sides[0]))
        file = f"nearest_{dataset}.png"
        drawn.save(folder / file)
        yield Figure(
            file,
            "generalise",
            f"The {len(pairs)} test pictures of {dataset} that are nearest to a picture anybody was trained on, above it: by the image embedding, and, of "
            f"the {checks[0]['rules']['candidates']} nearest by that, the perceptually nearest. Numbers: distance by the embedding, 0 for the same picture, "
            f"about 1 for unrelated ones. A near-duplicate: {checks[0]['rules']['near_duplicate']}.",
            f"{len(pairs)} test pictures above their nearest training pictures, {duplicates} of them near-duplicates",
            dataset=dataset,
        )


def recovered_shapes(study: Study, files: ReportFiles, folder: Path) -> Iterator[Figure]:
    """Per stimulus set, drawn shapes and as many test pictures above what the generator and the autoencoder make of their true targets."""
    several = len({dataset for dataset, _ in files.controls}) < len(files.controls)
    for (dataset, name), path in files.controls.items():
        if (dataset, name) not in files.stimuli:
            continue
        with PictureFile(path) as controls, PictureFile(files.stimuli[dataset, name], None) as pictures:
            if "shapes" not in controls.file:
                continue
            shapes = controls.file["shapes"]
            names, tested = shapes["name"].asstr()[:].tolist(), np.sort(controls.stimulus)
            chosen = np.unique(tested[np.linspace(0, len(tested) - 1, min(len(names), len(tested))).round().astype(int)]).tolist()
            rows = {"from the true embedding": "embedding_ceiling", "through the autoencoder": "autoencoder_ceiling"}
            rows = {label: key for label, key in rows.items() if key in shapes}
            cells = [[Tile(picture) for picture in shapes["image"][:]], *([Tile(picture) for picture in shapes[key][:]] for key in rows.values())]
            blank = [Tile(None)] * (len(names) - len(chosen))
            cells.append([Tile(pictures.get("images", stimulus)) for stimulus in chosen] + blank)
            cells += [[Tile(controls.get(key, stimulus)) for stimulus in chosen] + blank for key in rows.values()]
        drawn = mosaic(cells, ["drawn shape", *rows, "test picture", *rows], names, tile_side(len(cells[0][0].picture)), breaks=(1 + len(rows),))  # type: ignore[arg-type]
        file = f"recovery_{dataset}{f'_{name}' if several else ''}.png"
        drawn.save(folder / file)
        below = "what the generator draws from its true embedding, and the autoencoder of its true latent"
        below = below if len(rows) > 1 else "the autoencoder's round trip"
        yield Figure(
            file,
            "generalise",
            f"What can be shown at all, without a brain: {len(names)} drawn shapes that nobody was trained on, and {len(chosen)} test pictures of "
            f"{dataset}, evenly spread in stimulus order; below each, {below}. Names are the shapes'.",
            f"{len(names)} drawn shapes and {len(chosen)} test pictures above what is drawn from their true targets",
            dataset=dataset,
        )


def _tile(files: ReportFiles, dataset: str, stimuli: str, stimulus: int) -> Tile:
    path = files.stimuli.get((dataset, stimuli))
    if path is None:
        return Tile(None)
    with PictureFile(path, None) as pictures:
        return Tile(pictures.get("images", stimulus))


def _measure(study: Study, here: Checks) -> str | None:
    """The measure whose values by distance are shown: the page's headline, where it has a value per picture."""
    names = [set(own["by_distance"]) for one in here for own in one["methods"].values()]
    return headline(set.intersection(*names), study.foundations.embedding) if names else None


def _main(study: Study, checks: Checks, dataset: str) -> Checks:
    """Checks of the subjects whose numbers stand first: training subjects, or new ones where there are none."""
    here = [one for one in checks if one["dataset"] == dataset]
    return [one for one in here if one["role"] == "train"] or here


def distance_curves(study: Study, checks: Checks, folder: Path) -> Iterator[Figure]:
    """Score by distance of the test pictures from the training pictures, a line per method, averaged over subjects."""
    labels, colours = results.labels(study), results.colours(study)
    for dataset in study.datasets:
        here = _main(study, checks, dataset)
        name = _measure(study, here)
        if name is None:
            continue
        kind, factor = measure_of(name), 100 if measure_of(name).percent else 1
        figure, (axis,) = panels(1, 1, 3.2, width=6.4)
        for method in study.methods:
            curves = [one["methods"][method]["by_distance"][name]["groups"] for one in here if method in one["methods"]]
            fewest = min((len(curve) for curve in curves), default=0)
            curves = [curve for curve in curves if len(curve) == fewest]
            if fewest < 2:
                continue
            x, y = (np.mean([[group[key] for group in curve] for curve in curves], 0) for key in ("distance", "value"))
            axis.plot(x, factor * y, "o-", markersize=4, color=colours[method], label=labels[method])
        if not axis.lines:
            continue
        if kind.chance is not None:
            axis.axhline(factor * kind.chance, color="#1C1E22", linewidth=0.8, linestyle=(0, (3, 3)))
        axis.set_xlabel("distance of the test picture from the nearest training picture")
        axis.set_title(f"{kind.title}{' (%)' if kind.percent else ''}")
        axis.yaxis.grid(True)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        file = f"distance_{dataset}.png"
        save(figure, folder / file)
        yield Figure(
            file,
            "generalise",
            f"Test pictures of {dataset} in groups of equal size by their distance from the nearest training picture, and how well each group is decoded "
            f"({many(len(here), 'subject')}, averaged). A line that falls to the right says that the method lives of pictures like those it was trained on.",
            "Lines of the score against the distance from the nearest training picture, one per method",
            dataset=dataset,
        )


def bottleneck_curves(study: Study, checks: Checks, folder: Path) -> Iterator[Figure]:
    """Identification by the number of dimensions of the entered signal that a method sees, a line for each whose signal has a given order."""
    labels, colours = results.labels(study), results.colours(study)
    for dataset in study.datasets:
        here = _main(study, checks, dataset)
        found = {
            method: curves
            for method in study.methods
            if (curves := [one["methods"][method]["bottleneck"] for one in here if "bottleneck" in one["methods"].get(method, {})])
        }
        if not found:
            continue
        figure, (axis,) = panels(1, 1, 3.2, width=6.4)
        for method, curves in found.items():
            points: dict[int, list[float]] = {}
            for curve in curves:
                for point in curve:
                    points.setdefault(point["dimensions"], []).append(point["identification"]["value"])
            shown = {number: values for number, values in sorted(points.items()) if len(values) == len(curves)}
            axis.plot(list(shown), [100 * np.mean(values) for values in shown.values()], "o-", markersize=4, color=colours[method], label=labels[method])
        axis.axhline(50, color="#1C1E22", linewidth=0.8, linestyle=(0, (3, 3)))
        axis.set_xscale("log")
        axis.set_xlabel("dimensions of the entered signal")
        axis.set_title("Identification (%)")
        axis.yaxis.grid(True)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        file = f"bottleneck_{dataset}.png"
        save(figure, folder / file)
        yield Figure(
            file,
            "generalise",
            f"How much of the {study.signal} of {dataset} a method uses: identification when it sees no more than the first dimensions of the entered signal, "
            f"the others those of the mean picture ({many(len(here), 'subject')}, averaged). Where the line is flat, further dimensions say nothing. "
            "A signal that is learned has no first dimension, and no line.",
            f"Lines of identification against the number of dimensions of the entered signal, of {', '.join(labels[method] for method in found)}",
            dataset=dataset,
        )


# --- the page ---------------------------------------------------------------------------------------------------------


def generalisation_of(study: Study, checks: Checks, declared: Mapping[str, Any] | None, pictures: list[tuple[str, Picture]]) -> list[PageSection]:
    """Per data set: the findings in words, tables of the checks, figures, and the declaration."""
    sections = []
    for dataset in study.datasets:
        here = [one for one in checks if one["dataset"] == dataset]
        if not here:
            continue
        main = _main(study, checks, dataset)
        section = PageSection(dataset, notes=[*_test_set(here), *_methods(study, here)], pictures=[picture for name, picture in pictures if name == dataset])
        section.tables += [_audit_table(here), _method_table(study, main)]
        if (alone := next((one for one in main if "recovery" in one), None)) is not None:
            section.notes += of_generator(alone["recovery"])
            section.tables.append(_recovery_table(alone))
        section.notes += [declaration.words(one) for one in (declared or {}).get("subjects", []) if one["dataset"] == dataset]
        sections.append(section)
    return sections


def _test_set(here: Checks) -> list[str]:
    """Of whom what is found on the test pictures."""
    known = [one for one in here if one["audit"]["near_duplicates"]]
    if not known:
        return ["No test picture of any subject has a near-duplicate among the training pictures."]
    found = [f"{one['subject']}: {finding['text']}" for one in known for finding in one["findings"] if finding["alarm"]]
    fewer = [one["subject"] for one in known if not any(finding["alarm"] for finding in one["findings"])]
    if fewer:
        found.append(f"Fewer than {100 * KNOWN:.0f} % of the test pictures of {listed(fewer)} have a near-duplicate among the training pictures.")
    return found


def _methods(study: Study, here: Checks) -> list[str]:
    """One sentence per method and kind of alarm, with the subjects it is of; and one on all that raise none."""
    labels, found, quiet = results.labels(study), [], []
    for method in study.methods:
        own = [(one["subject"], finding) for one in here if method in one["methods"] for finding in one["methods"][method]["findings"]]
        for kind in TITLES:
            alarms = [(subject, finding["text"]) for subject, finding in own if finding["kind"] == kind and finding["alarm"]]
            if alarms:
                found.append(f"{labels[method]}, {TITLES[kind]}, in {many(len(alarms), 'subject')} of {len(here)}; {alarms[0][0]}: {alarms[0][1]}")
        unread = [subject for subject, finding in own if finding["kind"] == "unread"]
        if unread:
            found.append(f"{labels[method]} does not tell pictures of different categories apart in {listed(unread)}: nothing is left to check there.")
        ungrouped = [subject for subject, finding in own if finding["kind"] == "ungrouped"]
        if ungrouped:
            found.append(
                f"{labels[method]} raises no alarm in {listed(ungrouped)}, but no two test pictures there are of different categories: "
                "whether it knows more than the category is not checked."
            )
        if own and all(finding["kind"] == "clean" for _, finding in own):
            quiet.append(labels[method])
    if quiet:
        found.append(f"No alarm for {listed(quiet)}: neither training pictures returned, nor few outputs for all pictures, nor the category alone.")
    return found


def of_generator(found: Mapping[str, Any]) -> list[str]:
    """What the generator makes of the true embeddings of shapes that nobody was trained on, in words; nothing where it takes none."""
    shapes, tested = found["shapes"].get("embedding"), found["test_pictures"].get("embedding")
    if shapes is None or tested is None:
        return []

    def shown(of: Mapping[str, Any]) -> str:
        return f"{of['pixcorr']['value']:.2f} [{of['pixcorr']['ci_low']:.2f}, {of['pixcorr']['ci_high']:.2f}]"

    own, test = shapes["pixcorr"], tested["pixcorr"]
    if max(own["ci_low"] - shapes["pixcorr_of_another"], test["ci_low"] - tested["pixcorr_of_another"]) <= 0:
        verdict = "It shows neither: no pixel tells which picture's embedding it was given, whatever is read from the brain"
    elif own["ci_low"] <= shapes["pixcorr_of_another"]:
        verdict = "It cannot show them: what is unlike the pictures of training does not come through it, whatever is read from the brain"
    elif own["ci_high"] < test["ci_low"]:
        verdict = "It shows them less well than test pictures, and that bounds what any method shows of pictures unlike those of training"
    else:
        verdict = "It shows them no less well than test pictures"
    return [
        f"The generator alone, given the true embedding of {found['shapes']['count']} drawn shapes that nobody was trained on: what it draws correlates in "
        f"pixels by {shown(shapes)} with the shape, by {shapes['pixcorr_of_another']:.2f} with another one; of test pictures {shown(tested)}. {verdict}."
    ]


def _recovery_table(one: Mapping[str, Any]) -> PageTable:
    heads = [
        ("PixCorr", "correlation of pixel values of the picture and what is drawn of it"),
        ("of another", "the same with what is drawn of another picture of the set"),
        ("similarity", "correlation of their image embeddings, standardised by the subject's training pictures"),
        ("of another", "the same with what is drawn of another picture of the set"),
        ("distance", "median distance of the pictures from the nearest training picture, by the image embedding"),
    ]  # fmt: skip
    found, lines = one["recovery"], []
    for target, label in (("embedding", "the generator, from the true embedding"), ("latent", "the autoencoder, from the true latent")):
        for kind, words in (("shapes", "shapes"), ("test_pictures", "test pictures")):
            if (own := found[kind].get(target)) is None:
                continue
            cells = []
            for name in ("pixcorr", "similarity"):
                cells += [_entry(own[name]["value"], False, (own[name]["ci_low"], own[name]["ci_high"]), 2), _entry(own[f"{name}_of_another"], False, digits=2)]
            lines.append(Line(f"{found[kind]['count']} {words}: {label}", [*cells, _entry(found[kind]["distance"], False, digits=3)]))
    caption = (
        f"No brain has a part in it. Of {many(found['samples'], 'sample')} drawn from an embedding the one that agrees best with it; test pictures and units "
        f"of the embedding are {one['subject']}'s."
    )
    return PageTable("What the generator alone can show", "drawn", heads, [LineGroup(lines)], caption)


def _entry(value: float | None, percent: bool = True, ends: tuple[float | None, float | None] = (None, None), digits: int = 1) -> Entry | None:
    if value is None:
        return None

    def shown(number: float) -> str:
        return f"{100 * number:.1f}" if percent else f"{number:.{digits}f}"

    interval = "" if None in ends else ", ".join(shown(end) for end in ends)  # type: ignore[arg-type]
    return Entry(shown(value), interval, f"{value:.6g}")


def _audit_table(here: Checks) -> PageTable:
    heads = [
        ("test pictures", ""), ("training pictures", "of all training subjects and this one, validation pictures among them"),
        ("near-duplicates %", "test pictures with a near-duplicate among the training pictures"),
        ("distance", "median distance of a test picture from its nearest training picture, by the image embedding"),
        ("distance in training", "the same of the subject's training pictures from each other"),
        ("outside the span %", "share of the variance of test targets in directions in which no training target varies"),
    ]  # fmt: skip
    lines = []
    for one in here:
        audit = one["audit"]
        counts = [Entry(f"{audit[key]:,}", exact=str(audit[key])) for key in ("test_pictures", "training_pictures")]
        share = audit["near_duplicates"] / audit["test_pictures"]
        distances = [_entry(audit[key], False, digits=3) for key in ("median_distance", "median_distance_within_training")]
        lines.append(Line(one["subject"], [*counts, _entry(share), *distances, _entry(audit["outside_training_span"])]))
    rules = here[0]["rules"]
    caption = (
        f"Distance: {rules['distance']}, by {rules['embedding']}. Perceptual distance: {rules['perceptual_distance']}. "
        f"Near-duplicate: {rules['near_duplicate']}. Where test pictures lie nearer than training pictures to each other, the split is easier than a "
        "random one."
    )
    return PageTable("How near test pictures are to training pictures", "subject", heads, [LineGroup(lines)], caption)


def _method_table(study: Study, here: Checks) -> PageTable:
    """Means over subjects; intervals where there is one subject."""
    heads = [
        *((f"top {top} %", f"how often the seen picture is among the {top} nearest to the prediction, of all training pictures and it") for top in TOPS),
        ("copies %", "pictures that are near-duplicates of a training picture, or predictions that are its embedding, where the seen picture has none"),
        ("different %", f"different outputs among all, of pictures and predictions the fewer; below {100 * DIFFERENT:.0f} is a collapse"),
        ("effective rank", "of the outputs: how many directions they fill"), ("of targets", "effective rank of what was to be predicted"),
        ("variance", "of the outputs, relative to the targets'"),
        ("two-way %", "identification by the prediction among test pictures"),
        ("category level %", "what two-way score knowing only the group of like pictures would give"),
        ("within category %", "two-way identification among pictures of one group; chance is 50"),
    ]  # fmt: skip
    labels, colours, lines = results.labels(study), results.colours(study), []
    for method in study.methods:
        own = [one["methods"][method] for one in here if method in one["methods"]]
        if not own:
            continue

        def mean(*keys: str, own: list[Any] = own, **options: Any) -> Entry | None:
            values = []
            for value in own:
                for key in keys:
                    value = value[key]
                values.append(value)
            ends = (values[0]["ci_low"], values[0]["ci_high"]) if len(values) == 1 and isinstance(values[0], dict) else (None, None)
            plain = [value["value"] if isinstance(value, dict) else value for value in values]
            plain = [value for value in plain if value is not None]
            return _entry(float(np.mean(plain)), ends=ends, **options) if plain else None

        copies = max(float(np.mean([one["copies"].get(kind, 0.0) for one in own])) for kind in ("pictures", "predictions"))
        different = float(np.mean([min(one["spread"]["different"].values()) / one["spread"]["count"] for one in own]))
        cells = [
            *(mean("training_identification", f"top{top}") for top in TOPS), _entry(copies), _entry(different),
            mean("spread", "effective_rank", percent=False), mean("spread", "effective_rank_of_targets", percent=False),
            mean("spread", "variance", percent=False, digits=2), mean("groups", "score"), mean("groups", "category_level"), mean("groups", "within"),
        ]  # fmt: skip
        lines.append(Line(labels[method], cells, colours[method], "" if own[0]["by"].startswith("the") else "by its pictures' embedding"))
    ranks = [own["training_identification"] for one in here for own in one["methods"].values()]
    candidates = sorted({rank["candidates"] for rank in ranks})
    number = f"{candidates[0]:,}" if len(candidates) == 1 else f"{candidates[0]:,} to {candidates[-1]:,}"
    whose = f"Means over {many(len(here), 'subject')}" if len(here) > 1 else here[0]["subject"]
    counts = listed(sorted({str(one["groups"]["count"]) for one in here}))
    chance = chance_of(candidates[-1])
    caption = f"{whose}. Top {', '.join(map(str, TOPS))}: among {number} candidates, chance {chance} %. Categories: {counts} {here[0]['groups']['kind']}."
    return PageTable("What methods know beyond the training pictures", "method", heads, [LineGroup(lines)], caption)


def chance_of(candidates: int) -> str:
    """Per cent of candidates that are among the first ones by chance, in words."""
    levels = [100 * min(top, candidates) / candidates for top in TOPS]
    return ", ".join(f"{level:.0f}" if level >= 10 else f"{level:.2g}" for level in levels)
