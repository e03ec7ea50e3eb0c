"""The page's first words and numbers, computed from the tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from unimind.evaluation.comparisons import LEVEL
from unimind.evaluation.measures import circular, measure_of, ordered
from unimind.report import results
from unimind.report.parts import PERCENT, listed, many, measure_words, pick, value_with_interval, whom
from unimind.study import Study


@dataclass(frozen=True)
class Number:
    """A number at the top of the page."""

    value: str
    label: str
    share: float  # of the scale, 0 to 1
    colour: str = ""
    note: str = ""


@dataclass
class Answer:
    """The page's first words: paragraphs, and the numbers in them side by side."""

    paragraphs: list[str] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    scale: str = ""
    chance: float | None = None


def _apart(a: Any, b: Any) -> bool | None:
    """Whether two intervals are disjoint; None where one has none."""
    if any(pd.isna(value) for value in (a.ci_low, a.ci_high, b.ci_low, b.ci_high)):
        return None
    return bool(a.ci_low > b.ci_high or b.ci_low > a.ci_high)


def answer_of(study: Study, scores: pd.DataFrame | None, comparisons: pd.DataFrame | None, networks: dict[str, str]) -> Answer:
    """What was reconstructed, from whom, how well, beside which controls: words computed from the table."""
    answer = Answer()
    labels = results.labels(study)
    people = listed([f"{many(len(names), noun)} ({', '.join(names)})" for noun, names in _people(study) if names])
    name = results.headline_of(study, scores) if scores is not None else None
    for dataset in study.datasets:
        if scores is None or name is None:
            break
        here = scores[(scores.dataset == dataset) & (scores.metric == name)]
        means = results.over_subjects(here, results.main_role(here))
        lead = next((key for key in study.methods if pick(means, of=key, control=None) is not None), None)
        if lead is None:
            continue
        answer.paragraphs += _paragraphs(study, dataset, here, means, name, lead, comparisons)
        if not answer.numbers:
            answer.numbers, answer.chance = _numbers(study, means, name, lead), measure_of(name).chance
            whose = whom(study, dataset, results.main_role(here))
            answer.scale = f"{measure_words(name)}{f' by {networks[name]}' if name in networks else ''}; {dataset}, {whose}"
    if name is not None and scores is not None:
        answer.paragraphs += _circularity(study, name, scores)
    methods = listed([labels[key] for key in study.methods])
    if answer.paragraphs:
        answer.paragraphs[0] = (
            f"From the {study.signal} of {people}, {many(len(study.methods), 'method')} "
            f"{'reconstruct' if study.draws else 'decode'}{'s' if len(study.methods) == 1 else ''} pictures that none was trained on. {answer.paragraphs[0]}"
        )
    else:
        answer.paragraphs.append(
            f"The pictures that {people} saw were {'reconstructed' if study.draws else 'decoded'} from {study.signal} by {methods}; this "
            f"run has no table of identification scores, so how well is not said here."
        )
    return answer


def _circularity(study: Study, name: str, scores: pd.DataFrame) -> list[str]:
    """A sentence on measures by the network that is also the target of the prediction; none where the tables have none."""
    own = circular(study.foundations.embedding)
    titles = [measure_of(other).title for other in ordered(scores.metric) if other in own]
    if not titles:
        return []
    chosen = ", and by which one of a picture's samples is chosen," if study.draws else ""
    words = (
        f"The embedding that methods predict{chosen} is that of the network behind {listed(titles)}: "
        f"{'these measures favour' if len(titles) > 1 else 'this measure favours'} what the methods were made for"
    )
    if name in own:
        return [f"{words}, and no measure by another network is in the tables."]
    return [f"{words}. {measure_of(name).title} {'is by another network' if measure_of(name).network else 'asks no network'}."]


ROLES: tuple[tuple[Literal["train", "new"], str], ...] = (("train", "training subject"), ("new", "new subject"))


def _people(study: Study) -> list[tuple[str, list[str]]]:
    several = len(study.datasets) > 1
    return [(noun, [f"{dataset} {subject}" if several else subject for dataset, subject in study.pairs(role)]) for role, noun in ROLES]


def _paragraphs(study: Study, dataset: str, here: pd.DataFrame, means: pd.DataFrame, name: str, lead: str, comparisons: pd.DataFrame | None) -> list[str]:
    """The answer of one data set: the leading method beside its shuffled control, the other methods and the ceiling; then the new subjects."""
    labels, kind, role = results.labels(study), measure_of(name), results.main_role(here)
    title, own, singles = labels[lead], pick(means, of=lead, control=None), results.single(here)
    subjects = list(dict.fromkeys(singles[(singles.role == role) & (singles.of == lead)].subject))
    where = f"On {dataset}, " if len(study.datasets) > 1 else ""
    whose = f", {whom(study, dataset, role)}" if len(subjects) > 1 else f" for {subjects[0]}" if subjects else ""
    chance = f"; chance is {100 * kind.chance:.0f} %" if kind.chance else ""
    if kind.chance == 0.5:
        words = (
            f"{where}{title} tells the seen picture from another one in {value_with_interval(name, own)} of comparisons ({measure_words(name)}{whose}{chance})"
        )
    else:
        words = f"{where}{title} reaches {value_with_interval(name, own)} ({kind.title}: {kind.meaning}{whose}{chance})"
    text = [words + "."]
    shuffled = pick(means, of=lead, control="shuffled")
    if shuffled is not None:
        text = [f"{words}; given the {study.signal} of other pictures, its shuffled control, it reaches {value_with_interval(name, shuffled)}."]
        pairs = {
            subject: (pick(singles, subject=subject, of=lead, control=None), pick(singles, subject=subject, of=lead, control="shuffled"))
            for subject in subjects
        }
        apart = {subject: _apart(*pair) for subject, pair in pairs.items() if None not in pair}
        close = [subject for subject, answer in apart.items() if answer is False]
        if apart and all(apart.values()):
            who = f"in each of the {len(apart)} subjects" if len(apart) > 1 else f"in {next(iter(apart))}"
            text.append(f"The 95\u00a0% intervals of the two are apart {who}: the picture is read from the brain.")
        elif close:
            text.append(f"The 95\u00a0% intervals of the two overlap in {listed(close)}: there this score does not show that the brain is read.")
    paragraphs = [" ".join(text)]
    others = [(key, row) for key in study.methods if key != lead and (row := pick(means, of=key, control=None)) is not None]
    ceiling = pick(means, control="embedding-ceiling")
    text = []
    if others:
        told = [(labels[key], value_with_interval(name, row), _against(comparisons, dataset, own, name, lead, key)) for key, row in others]
        text.append(f"Beside it stand {listed([f'{label} at {value}' + verdict for label, value, verdict in told])}.")
        text += ["Here p is that of the paired permutation test between the two methods, Holm-adjusted."] if any(verdict for *_, verdict in told) else []
    if ceiling is not None:
        count = next(iter(study.methods.values())).sampling.drawn
        best = f", the best of {count} samples" if count > 1 else ""
        text.append(f"The ceiling, drawn from the true embedding through the diffusion model's own conditioner{best}, is {value_with_interval(name, ceiling)}.")
    paragraphs += [" ".join(text)] if text else []
    fresh = [subject for subject in study.datasets[dataset].new_subjects if pick(singles, subject=subject, of=lead, control=None) is not None]
    if fresh and role == "train":
        paragraphs.append(_fresh(study, singles, name, lead, fresh))
    return paragraphs


def _against(comparisons: pd.DataFrame | None, dataset: str, own: Any, name: str, lead: str, other: str) -> str:
    """What the paired test says of another method beside the leading one, in parentheses."""
    test = results.compared(comparisons, dataset, own.subject, name, lead, other)
    if test is None:
        return ""
    difference, p = test
    verdict = "no sure difference" if p >= LEVEL else "lower" if difference > 0 else "higher"
    return f" ({verdict}, p {f'= {p:.2g}' if p >= 0.001 else '< 0.001'})"


def _fresh(study: Study, singles: pd.DataFrame, name: str, lead: str, subjects: list[str]) -> str:
    """The leading method on new subjects, beside its shuffled control and a closed-form method on the same trials."""
    labels, words = results.labels(study), []
    rival = next((key for key, method in study.methods.items() if method.enter.kind == "ridge" and method.body.kind == "identity" and key != lead), None)
    for subject in subjects:
        beside = [("its shuffled control", pick(singles, subject=subject, of=lead, control="shuffled"))]
        beside += [(f"{labels[rival]} on the same trials", pick(singles, subject=subject, of=rival, control=None))] if rival else []
        rest = listed([f"{label} {value_with_interval(name, row)}" for label, row in beside if row is not None])
        words.append(f"{value_with_interval(name, pick(singles, subject=subject, of=lead, control=None))} for {subject}{f' ({rest})' if rest else ''}")
    own, who = study.methods[lead], "subject" if len(subjects) == 1 else "subjects"
    whose = f"new {who}" if own.scope == "subject" else f"{who} the shared model was {'only adapted to' if own.adapt else 'not shared with'}"
    return f"For the {whose}, {labels[lead]} reaches {listed(words)}."


def _numbers(study: Study, means: pd.DataFrame, name: str, lead: str) -> list[Number]:
    """Methods, the leading method's shuffled control and the ceiling as numbers side by side."""
    labels, colours, kind = results.labels(study), results.colours(study), measure_of(name)
    rows = [(labels[key], colours[key], pick(means, of=key, control=None)) for key in study.methods]
    rows.append((f"{labels[lead]}, shuffled {study.signal}", "", pick(means, of=lead, control="shuffled")))
    rows.append((results.explained_controls(study)["embedding-ceiling"][0], "", pick(means, control="embedding-ceiling")))
    top = 1.0 if kind.percent else max([row.value for _, _, row in rows if row is not None] or [1.0])
    known = [(label, colour, row, min(1.0, max(0.0, row.value / top))) for label, colour, row in rows if row is not None]
    unit = PERCENT if kind.percent else ""
    return [Number(kind.shown(row.value) + unit, label, share, colour, value_with_interval(name, row, False)) for label, colour, row, share in known]


def untrained(study: Study, losses: Sequence[results.LossCurves]) -> list[str]:
    """A paragraph on the methods whose alignment validation found no better than where it started; none where there is no such method."""
    labels, idle = results.labels(study), []
    for key, method in study.methods.items():
        found = [results.kept(one.rows) for one in losses if one.owner == key and one.name.startswith("align")]
        if method.align and found and all(one is not None and one.step == 0 < one.last for one in found):
            idle.append(key)
    if not idle:
        return []
    return [
        f"Alignment trained {listed([labels[key] for key in idle])} and no step was better on validation pictures than the start; "
        f"so the start was kept, and this study cannot tell {'these encoders apart' if len(idle) > 1 else 'what the encoder adds to it'}."
    ]
