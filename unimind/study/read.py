"""A study from files or plain types, or one line that says what is wrong with it."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from unimind.bundle import read_bundle, study_of
from unimind.errors import InputError
from unimind.study.messages import explain
from unimind.study.whole import Study


def parse_study(content: Any, where: str = "study") -> Study:
    """Check a study given as plain types.

    Raises
    ------
    InputError
        One line for the first thing wrong: the key's path, what was given, what may stand there.
    """
    content = _keyed(content, where)
    if isinstance(source := content.get("bundle"), str):
        content = study_of(read_bundle(source), content)
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, content)}") from None


def read_study(*paths: str | Path) -> Study:
    """Read a study from YAML or JSON files, each added to the ones before it; InputError with the key's path when it cannot be."""
    content: dict[str, Any] = {}
    for path in paths:
        content = _merged(content, _keyed(_read(path), str(path)))
    return parse_study(content, ", ".join(map(str, paths)))


def _read(path: str | Path) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such study file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def _keyed(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected keys such as `name:` and `datasets:`; {type(content).__name__} given")
    return content


def _merged(before: Any, content: Any) -> Any:
    """Content added to what was before it, as Snakemake adds one `--configfile` to another: key by key, the later one counts."""
    if not isinstance(content, dict):
        return content
    before = before if isinstance(before, dict) else {}
    return before | {key: _merged(before.get(key), value) for key, value in content.items()}
