"""Which method is better: paired tests of every two methods, and what is surely the best of a table's block."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from unimind.evaluation.measures import MEASURES, NAMES
from unimind.evaluation.rows import Row, grouped, known_images
from unimind.evaluation.statistics import drawn_test, ends, holm, paired_test, resampled_means
from unimind.study import Study

COLUMNS = ["study", "dataset", "subject", "metric", "method_a", "method_b", "difference", "ci_low", "ci_high", "p", "p_holm", "n", "protocol"]
#: A test counts below this Holm-adjusted p.
LEVEL = 0.05
#: Sign flips of a test at least, and for each test of a family: the smallest p-value then stays half of `LEVEL` after Holm.
FLIPS, FLIPS_PER_TEST = 4999, 40


def comparisons(study: Study, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Paired tests of every two methods of the same subject (or average) and protocol.

    Holm's adjustment is over all pairs of methods and all measures of the subject and protocol: over all that may be bold in
    one block of a table. Intervals of differences count drawings of trials too, and where there are several, p is the larger one of the test
    over images and of that over images and drawings.
    """
    result = []
    for (dataset, subject, protocol), members in grouped([row for row in rows if row.is_method], lambda row: (row.dataset, row.subject, row.protocol)).items():
        for images, same in grouped(members, lambda row: row.images).items():
            found = _differences(same)
            if not found:
                continue
            whose = range(len(images))
            together = [np.stack([values[k] for values in found.values()], -1) for k in whose]  # per subject (d, n, tests)
            resampled = resampled_means(together, images, study.evaluation.bootstrap, study.seed, drawings=True)
            low, high = ends(resampled)
            p = paired_test([values.mean(0) for values in together], max(FLIPS, FLIPS_PER_TEST * len(found)), study.seed, images)
            if min(len(values) for values in together) > 1:
                p = np.fmax(p, drawn_test(together, resampled, images))
            for k, ((metric, a, b), values) in enumerate(found.items()):
                result.append({
                    "study": study.name, "dataset": dataset, "subject": subject, "metric": metric, "method_a": a, "method_b": b,
                    "difference": float(np.mean([np.nanmean(v) for v in values])), "ci_low": float(low[k]), "ci_high": float(high[k]),
                    "p": float(p[k]), "n": known_images(values, images), "protocol": protocol,
                })  # fmt: skip
    for family in grouped(result, lambda test: (test["dataset"], test["subject"], test["protocol"])).values():
        for test, adjusted in zip(family, holm(np.array([test["p"] for test in family], float)), strict=True):
            test["p_holm"] = float(adjusted)
    return result


def _differences(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[np.ndarray]]:
    """(metric, method, method) -> differences (d, n), an array per subject; means over drawings where not all methods have as many."""
    every = {(metric, row.method): row.values(metric) for metric in NAMES for row in rows if metric in row.metrics}
    alike = len({len(v) for values in every.values() if values is not None for v in values}) == 1
    found = {}
    for metric in NAMES:
        for a, b in itertools.combinations([row.method for row in rows], 2):
            first, second = every.get((metric, a)), every.get((metric, b))
            if first is None or second is None:
                continue
            values = [x - y if alike else x.mean(0, keepdims=True) - y.mean(0, keepdims=True) for x, y in zip(first, second, strict=True)]
            if all(np.isfinite(v).all(0).any() for v in values):
                found[metric, a, b] = values
    return found


def surely_best(rows: Sequence[Row], tests: Sequence[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """(metric, protocol, method) that is best of its block and surely better than the runner-up."""
    certain = {
        (c["metric"], c["protocol"], frozenset((c["method_a"], c["method_b"]))) for c in tests
        if c["dataset"] == rows[0].dataset and c["subject"] == rows[0].subject and c["p_holm"] < LEVEL
    }  # fmt: skip
    result = set()
    for protocol, members in grouped([row for row in rows if row.is_method], lambda row: row.protocol).items():
        for metric in NAMES:
            values = sorted(((r.metrics[metric]["value"], r.method) for r in members if metric in r.metrics), reverse=MEASURES[metric].better == "higher")
            if len(values) > 1 and (metric, protocol, frozenset((values[0][1], values[1][1]))) in certain:
                result.add((metric, protocol, values[0][1]))
    return result
