"""What models cost: the table of parameters, memory and time of every trained part."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unimind.evaluation import layout
from unimind.storage import content_hash, read_json
from unimind.study import Study


@dataclass(frozen=True)
class Quantity:
    """A column: its name, its unit, and which direction is better."""

    title: str
    unit: str = "count"
    better: Literal["lower", "higher"] = "lower"

    @property
    def divisor(self) -> float:
        """By which a value is divided where it is shown."""
        return 1e9 if self.unit == "bytes" else 1

    @property
    def heading(self) -> str:
        """Title, and the unit a value is shown in."""
        shown = {"bytes": " (GB)", "count": "", "1/s": ""}.get(self.unit, f" ({self.unit})")
        return self.title + shown

    def times_better(self, value: float, reference: float) -> float:
        """How many times better a value is than a reference; above 1 where it is better."""
        return reference / value if self.better == "lower" else value / reference


QUANTITIES = {
    "model_parameters": Quantity("Whole model"), "parameters": Quantity("Parameters in training"), "trainable_parameters": Quantity("Trained parameters"),
    "flops_per_sample": Quantity("FLOPs per sample", "FLOP"), "peak_memory": Quantity("Peak memory", "bytes"),
    "samples_per_second": Quantity("Samples per second", "1/s", "higher"), "seconds": Quantity("Time", "s"),
}  # fmt: skip
WHOLE = (
    "Whole model: every number of the part as it stands on disk - maps and adapters of its subjects, body, heads, condition stage, of pretraining its "
    "decoder too; of a method in closed form the map of a subject is the stage enter - "
    "without the generator; parameters in training count the generator where it is in the loop."
)
MEMORY = "Peak memory: on a GPU the largest that torch allocated; on a CPU the largest resident size of the whole process, libraries included."


def model_parameters(model: Path) -> int | None:
    """Numbers in a model's weights; None where there are no weights.

    Those of the generator's UNet are left out, and the body's means over the training pictures, by which its worth is measured.
    """
    file = model / "model.safetensors"
    if not file.exists():
        return None
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__" and not name.startswith(("unet.", "encoder.mean_")))


def write_efficiency(study: Study, models: Sequence[Path], folder: Path, labels: dict[str, str], methods: Sequence[str]) -> None:
    """`efficiency.csv`, `.md`, `.tex` from the `efficiency.json` and the weights of every model; methods in the order given."""
    import pandas as pd

    records, protocols = [], {}
    found = sorted({p for path in models for p in ([path] if path.name == "efficiency.json" else path.rglob("efficiency.json")) if p.is_file()})
    for path in found:
        method, stage = _method_and_stage(path.parent)
        content = {"model_parameters": model_parameters(path.parent), **read_json(path)}
        conditions = content.pop("conditions", None)
        protocol = content_hash(conditions)[:8] if conditions else "-"
        if conditions:
            protocols[protocol] = _conditions(conditions)
        for quantity, value in content.items():
            if quantity in QUANTITIES and value is not None:
                own = {"study": study.name, "method": method, "stage": stage, "quantity": quantity}
                records.append(own | {"value": value, "unit": QUANTITIES[quantity].unit, "protocol": protocol})
    order = {name: k for k, name in enumerate(methods)}
    records.sort(key=lambda record: order.get(record["method"], len(order)))
    frame = pd.DataFrame(records, columns=["study", "method", "stage", "quantity", "value", "unit", "protocol"])
    frame.to_csv(folder / "efficiency.csv", index=False)
    if not records:
        (folder / "efficiency.md").write_text(f"# Efficiency: {study.title or study.name}\n\nNo trained model left an efficiency record.\n")
        (folder / "efficiency.tex").write_text("% Efficiency: no numbers\n")
        return
    reference = _reference(study)
    wide, quantities = _lines(study, records, labels, reference)
    units = {name: QUANTITIES[name].unit for name in quantities}
    heads = ["method", "stage", *(QUANTITIES[q].title + (f" [{units[q]}]" if units[q] != "count" else "") for q in quantities), "protocol"]
    ratio = "Means over the groups of a stage."
    if reference:
        ratio += (
            f" In parentheses: how many times better than {labels.get(reference, reference)}, stage by stage; above 1 means that this method is better: "
            "smaller, cheaper or, in samples per second, faster."
        )
    notes = [ratio, WHOLE, MEMORY, *(f"Protocol {key}: {words}." for key, words in sorted(protocols.items()))]
    text = [f"# Efficiency: {study.title or study.name}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    text += [f"| {' | '.join(line)} |" for line in wide] + ["", *(f"- {note}" for note in notes)]
    (folder / "efficiency.md").write_text("\n".join(text) + "\n")
    tex = [r"\begin{table}[t]", r"\centering", rf"\begin{{tabular}}{{ll{'r' * (len(heads) - 2)}}}", r"\toprule"]
    tex += [" & ".join(map(layout.latex_text, heads)) + r" \\", r"\midrule", *(" & ".join(map(layout.latex_text, line)) + r" \\" for line in wide)]
    tex += [r"\bottomrule", r"\end{tabular}", r"\caption{Efficiency.}", r"\label{tab:efficiency}"]
    tex += [*(rf"\par\footnotesize {layout.latex_text(note)}" for note in notes), r"\end{table}"]
    (folder / "efficiency.tex").write_text("\n".join(tex) + "\n")


def _reference(study: Study) -> str | None:
    """The method that others are set against: the transformer, aligned where there is one."""
    transformers = [name for name, method in study.methods.items() if method.body.kind == "vit"]
    return next((name for name in transformers if study.methods[name].align is not None), transformers[0] if transformers else None)


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


def _lines(study: Study, records: list[dict[str, Any]], labels: dict[str, str], reference: str | None) -> tuple[list[list[str]], list[str]]:
    """Cells of every method and stage, the groups of a stage averaged; and the quantities shown."""
    values: dict[tuple[str, str, str], list[float]] = {}
    protocols: dict[tuple[str, str], set[str]] = {}
    for r in records:
        stage = r["stage"].split("/")[0] if r["method"] != "foundation" else r["stage"]
        values.setdefault((r["method"], stage, r["quantity"]), []).append(float(r["value"]))
        protocols.setdefault((r["method"], stage), set()).add(r["protocol"])
    means = {key: float(np.mean(v)) for key, v in values.items()}
    quantities = [name for name in QUANTITIES if any(key[2] == name for key in means)]
    lines = []
    for method, stage in protocols:
        cells = []
        for name in quantities:
            value, base = means.get((method, stage, name)), means.get((reference or "", stage, name))
            ratio = f" ({QUANTITIES[name].times_better(value, base):.2g} ×)" if base and value and method != reference and method in study.methods else ""
            cells.append("-" if value is None else f"{value:.4g}{ratio}" if value < 1e4 and value != int(value) else f"{value:,.0f}{ratio}")
        lines.append([labels.get(method, method), stage, *cells, ", ".join(sorted(protocols[method, stage]))])
    return lines, quantities
