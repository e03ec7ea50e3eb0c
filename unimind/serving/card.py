"""The model card of a bundle."""

from typing import Any

from unimind.evaluation.measures import MEASURES

FOUNDATION = "the study trained it: included"


def card(content: dict[str, Any], method: str, label: str, licence: str | None, rows: list[dict[str, str]], name: str) -> str:
    """The card as Markdown, with the front matter that the hub reads.

    Parameters
    ----------
    content : dict
        `bundle.json`.
    licence : str or None
    rows : list of dict
        The method's rows of `tables/reconstruction.csv`.
    name : str
        Of the bundle.
    """
    subjects, responses = content["trained_on"], content["responses"]
    networks = [
        f"| {key} | {section['kind']} | {_origin(content['obtained'].get(key))} |"
        for key, section in content["study"]["foundations"].items()
        if isinstance(section, dict) and "kind" in section
    ]
    lines = [
        "---",
        f"license: {licence or 'other'}",
        "library_name: unimind",
        "tags: [fmri, image-reconstruction]",
        "---",
        f"# {label} ({name})",
        "",
        "Reconstructs seen pictures from responses of a new subject, of whom some trials with known pictures are needed.",
        "",
        "```python",
        "import unimind",
        f'decoder = unimind.load("{name}").fit(responses, pictures)',
        "embeddings = decoder.predict(more_responses)",
        "```",
        "",
        f"or, in a study of new subjects, `bundle: {name}`.",
        "",
        "## Trained on",
        "",
        "| data set | subject | voxels | training trials | pictures |",
        "|---|---|---|---|---|",
        *(f"| {one['dataset']} ({one['source']}) | {one['subject']} | {one['voxels']} | {one['trials']} | {one['pictures']} |" for one in subjects),
        "",
        f"Responses: {'; '.join(responses['units'])}; {'; '.join(responses['normalisation'])}; voxels in order of {'; '.join(responses['order'])}.",
        f"ROI words: {', '.join(responses['rois']) or 'none'}.",
        "",
        "No response and no picture of a training subject is in it. "
        + (
            "The prior over voxels holds encoding weights of training subjects' voxels (`voxel_weights`)."
            if content["voxel_weights"]
            else "The prior over voxels, where the method has one, is one Gaussian: no voxel's weights are in it."
        ),
        "",
        "| network | kind | where from |",
        "|---|---|---|",
        *networks,
        "",
        "## Its table",
        "",
        *_table(rows),
        "",
        "## Limits",
        "",
        "Pictures drawn look plausible whatever the responses hold: look at the controls of a study before you believe one. The numbers above hold for "
        "subjects, pictures and responses like those it was trained on.",
        "",
        "## Licence",
        "",
        f"{licence or 'Not stated: ask who exported it, and see the terms of the data it was trained on.'}",
        "",
        "Versions: " + ", ".join(f"{key} {value}" for key, value in content["versions"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def _origin(obtained: dict[str, Any] | None) -> str:
    if obtained is None:
        return FOUNDATION
    return f"{obtained['name']}, not included: " + ", ".join(f"{file} {value[:16]}" for file, value in obtained["sources"].items())


def _table(rows: list[dict[str, str]]) -> list[str]:
    if not rows:
        return ["The study had no table when this was exported."]
    lines = ["| data set | subject | role | measure | value | 95 % interval | test pictures |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        title = MEASURES[row["metric"]].title if row["metric"] in MEASURES else row["metric"]
        value, low, high = (f"{float(row[key]):.3g}" if row[key] else "" for key in ("value", "ci_low", "ci_high"))
        lines.append(f"| {row['dataset']} | {row['subject']} | {row['role']} | {title} | {value} | {low} to {high} | {row['n_test']} |")
    return lines
