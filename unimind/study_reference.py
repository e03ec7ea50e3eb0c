"""The study's reference, generated from its types: a JSON schema for editors and Markdown for people.

`python -m unimind.study_reference` brings `config/study.schema.json`, `config/declaration.schema.json`, the generated part of `config/README.md` and the table
of measures in `docs/metrics.md` up to date.
"""

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

from unimind.evaluation import declaration
from unimind.evaluation.measures import MEASURES
from unimind.storage import whole_file
from unimind.study import Study

BEGIN = "<!-- Generated from unimind/study/ by `make reference`; edits below are lost. -->"

MEASURES_BEGIN, MEASURES_END = "<!-- Generated from unimind/evaluation/measures.py by `make reference`; edits to this table are lost. -->", "<!-- end -->"


def json_schema() -> str:
    """JSON schema (draft 2020-12) of a study file, for editors and validators."""
    schema = Study.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Unimind study"}, indent=1)


def markdown() -> str:
    """Every key of the study in tables: one section per part, each key with its type, default and meaning."""
    schema = Study.model_json_schema()
    sections = schema["$defs"]
    places = _places(schema, sections)
    headings = {name: _heading(sections[name], paths) for name, paths in places.items()}
    links = {
        name: f"[`{_key(paths[0])}`](#{_anchor(headings[name])})" if not _tag(sections[name]) else f"[{_tag(sections[name])}](#{_anchor(headings[name])})"
        for name, paths in places.items()
    }
    blocks = ["## The study\n", _table(schema, links, sections)]
    for name in places:
        lead = _plain(sections[name].get("description", ""))
        blocks += [f"## {headings[name]}\n", f"{lead}\n", _table(sections[name], links, sections)]
    return "\n".join(blocks).rstrip() + "\n"


def update(folder: str | Path) -> None:
    """Write the schemas and the generated part of the reference into a `config` folder."""
    folder = Path(folder)
    readme = folder / "README.md"
    written = readme.read_text().partition(BEGIN)[0]
    schemas = ((folder / "study.schema.json", json_schema() + "\n"), (folder / "declaration.schema.json", declaration.schema() + "\n"))
    for path, text in (*schemas, (readme, f"{written}{BEGIN}\n\n{markdown()}")):
        with whole_file(path) as temporary:
            temporary.write_text(text)


def measures_table() -> str:
    """Every measure of the registry in a table."""
    rows = ["| metric | shown as | better | chance | network | raters | what it says |", "|---|---|---|---|---|---|---|"]
    for name, measure in MEASURES.items():
        title = measure.title + (", %" if measure.percent else "")
        chance = "1 / pool" if measure.group == "retrieval" else "-" if measure.chance is None else measure.shown(measure.chance)
        rows.append(f"| `{name}` | {title} | {measure.better} | {chance} | {measure.network or '-'} | {_raters(measure.raters)} | {measure.meaning} |")
    return "\n".join(rows) + "\n"


def _raters(agreement: float | None) -> str:
    return "-" if agreement is None else f"{agreement:.2f}"


def update_measures(page: str | Path) -> None:
    """Write the table of measures between its marks in a page of the documentation."""
    before, begin, rest = Path(page).read_text().partition(MEASURES_BEGIN)
    with whole_file(page) as temporary:
        temporary.write_text(f"{before}{begin}\n\n{measures_table()}\n{MEASURES_END}{rest.partition(MEASURES_END)[2]}")


def _references(schema: dict[str, Any], path: str) -> list[tuple[str, str]]:
    """(name, path) of the sections that a key's schema points to."""
    if "$ref" in schema:
        return [(schema["$ref"].rpartition("/")[2], path)]
    found = []
    for key in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(key, []):
            found += _references(part, path)
    if isinstance(schema.get("items"), dict):
        found += _references(schema["items"], f"{path}[]")
    if schema.get("type") == "object":
        found += _references(_values(schema), f"{path}.<name>")
    return found


def _values(schema: dict[str, Any]) -> dict[str, Any]:
    """Schema of the values of a mapping, whose keys may have a pattern."""
    patterns = schema.get("patternProperties")
    return next(iter(patterns.values())) if patterns else schema["additionalProperties"]


def _places(schema: dict[str, Any], sections: dict[str, Any]) -> dict[str, list[str]]:
    """Where each section stands in a study, in the order in which a reader meets them."""
    places: dict[str, list[str]] = {}

    def walk(part: dict[str, Any], path: str) -> None:
        for key, value in part["properties"].items():
            for name, place in _references(value, f"{path}.{key}" if path else key):
                known = places.setdefault(name, [])
                if place not in known:
                    known.append(place)
                    walk(sections[name], place)

    walk(schema, "")
    return places


def _tag(section: dict[str, Any]) -> str:
    """`kind: vit` or `source: nsd` of a section that is one of several."""
    for key in ("source", "kind"):
        value = section["properties"].get(key, {})
        if "const" in value:
            return f"`{key}: {value['const']}`"
    return ""


def _key(path: str) -> str:
    return path.removesuffix("[]").removesuffix(".<name>").rpartition(".")[2]


def _shared_end(paths: list[str]) -> str:
    """What all places end with, below the names that users give: `align.losses`, or `training` where it stands in many sections."""
    ends = zip(*(reversed(path.removesuffix("[]").removesuffix(".<name>").split(".")) for path in paths), strict=False)
    shared = [own[0] for own in takewhile(lambda own: len(set(own)) == 1 and own[0] != "<name>", ends)]
    return ".".join(reversed(shared)) or _key(paths[0])


def _heading(section: dict[str, Any], paths: list[str]) -> str:
    place = f"`{paths[0]}`" if len(paths) == 1 else f"`{_shared_end(paths)}`, in several places"
    tag = _tag(section)
    return f"{place} with {tag}" if tag else place


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _table(section: dict[str, Any], links: dict[str, str], sections: dict[str, Any]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, value in section["properties"].items():
        default = "required" if key in section.get("required", []) else _default(value, sections)
        cells = (f"`{key}`", _type(value, links), default, _plain(value.get("description", "")))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _plain(text: str) -> str:
    """One line, with `<` outside code spans written so that Markdown shows it."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))


def _default(schema: dict[str, Any], sections: dict[str, Any]) -> str:
    value = schema.get("default")
    if value is None:
        return "none"
    if value in ([], {}):
        return "empty"
    if isinstance(value, dict):
        own = [sections[name]["properties"] for name, _ in _references(schema, "")]
        usual: dict[str, Any] = next(
            (part for part in own if all(part[key].get("const", value[key]) == value[key] for key in ("kind", "source") if key in value)), {}
        )
        other = {key: given for key, given in value.items() if given != usual.get(key, {}).get("default") and key not in ("kind", "source")}
        shown = ", ".join(f"{key}: {json.dumps(given)}" for key, given in other.items())
        return f"`{shown}`" if shown else next((f"`{key}: {value[key]}`" for key in ("kind", "source") if key in value), "its own defaults")
    return f"`{json.dumps(value)}`"


def _type(schema: dict[str, Any], links: dict[str, str]) -> str:
    if "$ref" in schema:
        return links[schema["$ref"].rpartition("/")[2]]
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(part, links) for part in schema[key] if part.get("type") != "null")
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} × {_type(schema['prefixItems'][0], links)}"
        return f"list of {_type(schema['items'], links)}"
    if kind == "object":
        return f"by name: {_type(_values(schema), links)}"
    limits = [
        f"{sign} {schema[key]:g}" for key, sign in (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤")) if key in schema
    ]
    word = {"integer": "integer", "number": "number", "string": "text", "boolean": "yes or no"}[kind or "string"]
    if "pattern" in schema:
        word = "name"
    return " ".join([word, ", ".join(limits)]).strip()


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    update(root / "config")
    if (root / "docs").exists():
        update_measures(root / "docs/metrics.md")
