"""What the checks of generalisation say in words: of the test pictures, and of every method.

An alarm is raised where a number would be misread without it. Its level is far from what decoders reach that read pictures, so
that chance raises none.
"""

from collections.abc import Mapping
from typing import Any

#: Share of test pictures with a near-duplicate among the training pictures from which scores are no longer of unseen pictures.
KNOWN = 0.05
#: Share of a method's outputs that are training pictures from which it shows what it has stored.
COPIED = 0.25
#: Share of different outputs among all below which a method answers with few of them.
DIFFERENT = 0.5
#: Effective dimensions below which outputs vary in few, and the share of the targets' below which that is not the pictures': ridge regression
#: of 24 units reaches 16 of 173.
FEW, OF_TARGETS = 4.0, 1 / 3
#: Share of the score between groups, both above chance, below which the score within groups is none.
WITHIN = 0.2
#: What alarms of a method are called where they are shown, in this order.
TITLES = {"copies": "training pictures returned", "collapse": "collapse", "category": "category alone"}


def of_test_set(audit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Findings on the test pictures: `kind`, `alarm`, `text`."""
    known, count = audit["near_duplicates"], audit["test_pictures"]
    among = f"among the {audit['training_pictures']:,} training pictures"
    if not known:
        text = f"No test picture has a near-duplicate {among}"
    else:
        text = f"{known} of {count} test pictures ({100 * known / count:.0f} %) have a near-duplicate {among}"
    if alarm := known / count >= KNOWN:
        text += ": scores on them are of pictures that were as good as seen in training"
    return [{"kind": "duplicates", "alarm": alarm, "text": f"{text}."}]


def of_method(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Findings on one method from its checks; without an alarm, `clean`, `ungrouped` where no two test pictures differ in category,
    or `unread` where it reads nothing that a check could be on.

    A method that answers with one output per group of pictures is told as one that knows the group, not as a collapse; one that
    returns training pictures, few or many, as one that returns them.
    """
    findings = []
    copies, spread, groups = found["copies"], found["spread"], found["groups"]
    share = max(copies.get("pictures", 0.0), copies.get("predictions", 0.0))
    if share >= COPIED:
        findings.append((
            "copies",
            f"{100 * share:.0f} % of its outputs are training pictures: it returns what it has stored and generalises to no new picture",
        ))  # fmt: skip
    within = groups["within"]
    reads = groups["between"]["ci_low"] is not None and groups["between"]["ci_low"] > 0.5
    only_groups = (
        reads and within["value"] is not None and within["ci_low"] <= 0.5 and within["value"] - 0.5 <= WITHIN * (groups["between"]["value"] - 0.5)
    )  # fmt: skip
    if only_groups:
        findings.append((
            "category",
            f"within a category it tells the seen picture from another in {100 * within['value']:.0f} % of comparisons, which is chance: "
            f"its score of {100 * groups['score']:.0f} % is what knowing the category alone gives ({100 * groups['category_level']:.0f} %)",
        ))  # fmt: skip
    kind, different = min(spread["different"].items(), key=lambda one: one[1])
    if different < DIFFERENT * spread["count"] and not (only_groups and groups["one_output_each"]):
        what = "picture" if kind == "pictures" else "prediction"
        findings.append(("collapse", f"to {spread['count']} test pictures it gives only {different} different {what}{'' if different == 1 else 's'}"))
    elif spread["effective_rank"] < min(FEW, OF_TARGETS * spread["effective_rank_of_targets"]) and not only_groups:
        few, many = (f"{spread[name]:.1f}" for name in ("effective_rank", "effective_rank_of_targets"))
        findings.append(("collapse", f"its outputs vary in {few} effective dimensions, the test pictures' targets in {many}"))
    if findings:
        return [{"kind": kind, "alarm": True, "text": f"{text}."} for kind, text in findings]
    if groups["between"]["value"] is None:
        return [{"kind": "ungrouped", "alarm": False, "text": "no two test pictures are of different categories, so whether it knows more is not checked."}]
    if not reads:
        return [{"kind": "unread", "alarm": False, "text": "it does not tell pictures of different categories apart."}]
    return [
        {
            "kind": "clean",
            "alarm": False,
            "text": "it returns no training pictures, gives different outputs in more than a few dimensions, and knows more than the category.",
        }
    ]
