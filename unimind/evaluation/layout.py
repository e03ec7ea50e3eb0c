"""How tables look: columns in the thesis's order, arrows for better, bold where a paired test says so; Markdown and LaTeX."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from unimind.evaluation.measures import GROUPS, MEASURES

_LATEX = {character: "\\" + character for character in "&%_#${}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$",
}  # fmt: skip


@dataclass
class Score:
    """One number of a table."""

    value: float
    low: float | None = None
    high: float | None = None
    bold: bool = False


@dataclass
class SubjectRows:
    """The rows of one subject, or of an average over subjects."""

    title: str
    rows: dict[str, dict[tuple[str, str], Score]] = field(default_factory=dict)  # row label -> (metric, protocol id) -> number
    separators: set[str] = field(default_factory=set)  # labels before which a line is drawn


def columns(blocks: Sequence[SubjectRows], groups: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """(metric, protocol id) that occur, in the groups' order; every protocol has columns of its own."""
    present = {key for block in blocks for row in block.rows.values() for key in row}
    protocols = sorted({protocol for _, protocol in present})
    return [(metric, protocol) for names in groups.values() for metric in names for protocol in protocols if (metric, protocol) in present]


def _heading(name: str, protocol: str, several: bool) -> str:
    measure = MEASURES[name]
    return f"{measure.title}{' %' if measure.percent else ''} {'↓' if measure.better == 'lower' else '↑'}{f' ({protocol})' if several else ''}"


def interval(metric: str, number: Score) -> str:
    """`[low, high]`, or nothing where there is no interval."""
    return "" if number.low is None or number.high is None else f"[{MEASURES[metric].shown(number.low)}, {MEASURES[metric].shown(number.high)}]"


def markdown(blocks: Sequence[SubjectRows], groups: dict[str, tuple[str, ...]] = GROUPS, level: str = "###") -> str:
    """One Markdown table per block; a number with its 95 % interval."""
    text = []
    several = len({protocol for _, protocol in columns(blocks, groups)}) > 1
    for block in blocks:
        wanted = columns([block], groups)
        if not wanted:
            continue
        lines = [f"{level} {block.title}", "", "| | " + " | ".join(_heading(*key, several) for key in wanted) + " |", "|---|" + "---|" * len(wanted)]
        for label, row in block.rows.items():
            cells = []
            for metric, protocol in wanted:
                cell = row.get((metric, protocol))
                if cell is None:
                    cells.append("-")
                    continue
                shown = MEASURES[metric].shown(cell.value)
                shown = f"**{shown}**" if cell.bold else shown
                cells.append(f"{shown} {interval(metric, cell)}".rstrip())
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        text.append("\n".join(lines))
    return "\n\n".join(text) + "\n" if text else ""


def absences(head: str, found: Iterable[tuple[str, str, str]], everyone: Collection[str]) -> list[str]:
    """What a table has not, a line per reason.

    Parameters
    ----------
    head : str
        The line's first words.
    found : tuples (what, reason, whose)
    everyone : all of whom something could be absent; where it is absent of all, nobody is named
    """
    whose: dict[tuple[str, str], dict[str, None]] = {}
    for what, reason, one in found:
        whose.setdefault((what, reason), {})[one] = None
    lines: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (what, reason), some in whose.items():
        lines.setdefault((reason, () if set(everyone) <= set(some) else tuple(some)), []).append(what)
    heads = [f"{head} ({', '.join(some)})" if some else head for _, some in lines]
    return [f"{start}: {', '.join(names)}: {reason}." for start, ((reason, _), names) in zip(heads, lines.items(), strict=True)]


def latex_text(text: str) -> str:
    """Plain text with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex(blocks: Sequence[SubjectRows], caption: str, label: str, notes: Sequence[str] = (), groups: dict[str, tuple[str, ...]] = GROUPS) -> str:
    """One LaTeX table (booktabs, graphicx) with a block of rows per subject."""
    wanted = columns(blocks, groups)
    if not wanted:
        return f"% {caption}: no numbers\n"
    several = len({protocol for _, protocol in wanted}) > 1
    spans, rules, start = [], [], 2
    for title, names in groups.items():
        width = sum(metric in names for metric, _ in wanted)
        if width:
            spans.append(rf"\multicolumn{{{width}}}{{c}}{{{title}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
            start += width
    heads = [latex_text(_heading(*key, several)) for key in wanted]
    lines = [r"\begin{table}[t]", r"\centering", r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{l{'c' * len(wanted)}}}", r"\toprule"]
    lines += [" & ".join(["", *spans]) + r" \\", " ".join(rules), " & ".join(["", *heads]) + r" \\"]
    for block in blocks:
        lines += [r"\midrule", rf"\multicolumn{{{len(wanted) + 1}}}{{l}}{{\textit{{{latex_text(block.title)}}}}} \\"]
        for name, row in block.rows.items():
            if name in block.separators:
                lines.append(rf"\cmidrule(lr){{1-{len(wanted) + 1}}}")
            cells = []
            for metric, protocol in wanted:
                cell = row.get((metric, protocol))
                if cell is None:
                    cells.append("--")
                    continue
                shown = MEASURES[metric].shown(cell.value)
                shown = rf"\textbf{{{shown}}}" if cell.bold else shown
                within = interval(metric, cell)
                cells.append(rf"{shown} {{\scriptsize {within}}}" if within else shown)
            lines.append(f"{latex_text(name)} & " + " & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", rf"\caption{{{latex_text(caption)}}}", rf"\label{{{label}}}"]
    lines += [rf"\par\footnotesize {latex_text(note)}" for note in notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"
