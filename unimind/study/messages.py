"""What pydantic finds wrong with a study, in one line: the key's path, what was given, what may stand there."""

import difflib
import json
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from unimind.study.whole import Study


def explain(error: ValidationError, content: Any) -> str:
    """The first error in one line."""
    first = next((one for one in error.errors() if one["type"] == "extra_forbidden"), error.errors()[0])
    tags = {
        "nsd", "simulated", "god", "bold5000", "arrays", "bids", "laion-fmri", "mosaic", "lss", "lsa", "lag-window", "glmsingle", "study-clip", "open-clip",
        "clip-vision", "squeezenet", "ip-adapter", "unclip", "kandinsky-2.2", "autoencoder", "study", "taef2", "hub", "ldm", "interpolate", "wrap", "max-pool",
        "adapter", "ridge", "decoded", "identity", "mlp", "convmixer", "vit",
    }  # fmt: skip
    path: list[str] = []
    inner = content
    for step in first["loc"]:
        if isinstance(inner, dict) and step in tags and step not in inner:
            continue  # pydantic names the chosen member of a union; the user's file does not
        path.append(str(step))
        inner = inner.get(step) if isinstance(inner, dict) else inner[step] if isinstance(inner, list) and isinstance(step, int) and step < len(inner) else None
    key = ".".join(path)
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _keys_at(path[:-1], content)
        near = _closest(path[-1], allowed)
        hint = f"; did you mean {near}?" if near else "."
        return f"{key}: unknown key{hint} Allowed here: {', '.join(allowed)}"
    if kind == "value_error":
        return f"{key + ': ' if key else ''}{context['error']}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"{key}.{str(context.get('discriminator', '')).strip(chr(39))}: {context.get('tag', 'nothing')!s} given; expected one of {context.get('expected_tags', 'the documented kinds')}"
    given = json.dumps(first["input"], default=str)
    if kind == "missing":
        return f"{key}: missing; this key is required"
    return f"{key}: {first['msg'][0].lower() + first['msg'][1:]}; {given if len(given) < 80 else given[:77] + '...'} given"


def _keys_at(path: list[str], content: Any) -> list[str]:
    """Keys allowed at a place of the study, found by walking the types alongside the user's file."""
    here: Any = Study
    inner = content
    for step in path:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(step)
            here = field.annotation if field else None
        elif get_origin(here) is dict:
            here = get_args(here)[1]
        elif get_origin(here) is list:
            here = get_args(here)[0]
        inner = inner.get(step) if isinstance(inner, dict) else inner[int(step)] if isinstance(inner, list) else None
        here = _choose(here, inner)
    return sorted(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _choose(here: Any, inner: Any) -> Any:
    """The section class among a union's members that the user's `kind` or `source` names."""
    if get_origin(here) is Annotated:
        here = get_args(here)[0]
    if get_origin(here) in (dict, list) or (isinstance(here, type) and issubclass(here, BaseModel)):
        return here
    members = [m for m in _members(here) if isinstance(m, type) and issubclass(m, BaseModel)]
    for member in members:
        for tag in ("kind", "source"):
            field = member.model_fields.get(tag)
            if field and isinstance(inner, dict) and inner.get(tag) in get_args(field.annotation):
                return member
    return members[0] if members else here


def _members(here: Any) -> list[Any]:
    """Members of a union, those of unions in it included."""
    inner = get_args(here)[:1] if get_origin(here) is Annotated else get_args(here) if get_origin(here) in (Union, UnionType) else ()
    return [member for part in inner for member in _members(part)] or [here]


def _closest(word: str, words: list[str]) -> str | None:
    found = difflib.get_close_matches(word, words, 1)
    return found[0] if found else None
