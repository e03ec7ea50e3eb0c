"""Rows of `tables/generalisation.csv`: the checks of the stage `generalise`, one number a row."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from unimind.study import Study

COLUMNS = ["study", "dataset", "subject", "role", "method", "check", "group", "value", "ci_low", "ci_high"]
_OF_TEST_SET = ("test_pictures", "training_pictures", "near_duplicates", "median_distance", "median_distance_within_training", "outside_training_span")
_OF_METHOD = {
    "training_identification": ("candidates", "top1", "top10", "top50", "median_place"),
    "copies": ("of", "pictures", "predictions"),
    "spread": ("count", "effective_rank", "effective_rank_of_targets", "variance"),
    "groups": ("score", "same_group", "within", "between", "category_level"),
}


def records(study: Study, checks: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of the table: checks of the test pictures and of the generator alone, without a method, then every method's.

    `group` numbers scores by distance, nearest first, and is the number of dimensions of a bottleneck.
    """
    for one in checks:
        whose = {"study": study.name, "dataset": one["dataset"], "subject": one["subject"], "role": one["role"], "method": ""}
        yield from (_row(whose, name, one["audit"][name]) for name in _OF_TEST_SET)
        for kind in ("test_pictures", "shapes") if "recovery" in one else ():
            own = one["recovery"][kind]
            yield _row(whose, f"recovery:{kind}:distance", own["distance"])
            yield from (
                _row(whose, f"recovery:{kind}:{target}:{name}", value) for target in ("embedding", "latent") for name, value in own.get(target, {}).items()
            )
        for method, found in one["methods"].items():
            own = whose | {"method": method}
            yield from (_row(own, f"spread:different_{kind}", number) for kind, number in found["spread"]["different"].items())
            for part, names in _OF_METHOD.items():
                yield from (_row(own, f"{part}:{name}", found[part][name]) for name in names if name in found[part])
            yield from (_row(own, "bottleneck:identification", one["identification"], one["dimensions"]) for one in found.get("bottleneck", []))
            for measure, by in found["by_distance"].items():
                yield from (_row(own, f"by_distance:{measure}", group["value"], number) for number, group in enumerate(by["groups"], 1))
                yield _row(own, f"without_near_duplicates:{measure}", by["without_near_duplicates"])
            yield from (_row(own, f"alarm:{finding['kind']}", 1.0) for finding in found["findings"] if finding["alarm"])


def _row(whose: Mapping[str, Any], check: str, value: Any, group: int | None = None) -> dict[str, Any]:
    whole = value if isinstance(value, dict) else {"value": value, "ci_low": None, "ci_high": None}
    return {**whose, "check": check, "group": group, **whole}
