"""A view of a study that shows what a stage declared to read, and refuses everything else.

A declaration is a line of text:

| line | what of the study |
|---|---|
| `seed`, `unpaired.areas` | one key, or a section with all that is in it |
| `evaluation: metrics weights` | some keys of a section |
| `unpaired -root -subjects` | a section without some of its keys |
| `study -threads` | the whole study, without a key |
| `methods.{method}: label` | of the method that the stage is called for, also of one that only `transfer.baselines` has |
| `methods.{first}` | of the study's first method |
| `datasets.{dataset}` | of the data set that the stage is called for; of every one where it is called for none |
| `datasets.*` | of every one |
| `role(dataset, subject)` | what the study's plan says of what the stage is called for |
| `members()` | what the plan says of anything (only where it is no reason to run again) |
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from unimind.study.whole import Study, resolved

Place = tuple[str, ...]


class Undeclared(LookupError):
    """A stage reads what it did not declare: a mistake in the program, not in the study."""


@dataclass(frozen=True)
class _DeclaredPart:
    """One key or section of a declaration: its place, `*` standing for any name, and the keys it is without."""

    text: str  # as declared, so that it does not hold the names that the stage is called for
    place: Place
    without: frozenset[str]

    def holds(self, place: Place) -> bool:
        """Whether all that is at a place belongs to the part."""
        length = len(self.place)
        return len(place) >= length and _same(self.place, place) and not (self.without and (len(place) == length or place[length] in self.without))

    def touches(self, place: Place) -> bool:
        """Whether something at a place belongs to the part."""
        return self.holds(place) or (len(place) <= len(self.place) and _same(self.place, place))


def _same(pattern: Place, place: Place) -> bool:
    return all(a in ("*", b) for a, b in zip(pattern, place, strict=False))


class Scope:
    """What a stage reads of a study.

    Parameters
    ----------
    study : Study
    stage : str
        Its name, for messages.
    reads : iterable of str
        Declared lines: what its result depends on.
    knows : iterable of str
        Declared lines: what it may look at besides, which is shown, or reaches it through its files too.
    names : mapping
        What the stage is called for: `dataset`, `subject`, `method` ...; None where it is called for none.
    """

    def __init__(self, study: Study, stage: str, reads: Iterable[str], knows: Iterable[str], names: Mapping[str, str | None]) -> None:
        self.study, self.stage = study, stage
        self.names: Mapping[str, str | None] = {"first": next(iter(study.methods)), **names}
        self.reads, self.calls = self._parsed(reads)
        known, calls = self._parsed(knows)
        self.seen, self.may_call = [*self.reads, *known], {**self.calls, **calls}

    def _parsed(self, lines: Iterable[str]) -> tuple[list[_DeclaredPart], dict[str, list[str | None] | None]]:
        """Declared parts, and functions of the plan: name -> the arguments they may get, None for any."""
        parts: list[_DeclaredPart] = []
        calls: dict[str, list[str | None] | None] = {}
        for line in lines:
            if call := re.fullmatch(r"(\w+)\((.*)\)", line):
                calls[call[1]] = [self.names.get(word) for word in call[2].split(", ")] if call[2] else None
                continue
            head, _, keys = line.partition(": ")
            first, *without = head.split()
            place = () if first == "study" else self._place(first)
            for own in [key.split(".") for key in keys.split()] or [[]]:
                parts.append(_DeclaredPart(".".join([first, *own]), (*place, *own), frozenset(name.removeprefix("-") for name in without)))
        return parts, calls

    def _place(self, declared: str) -> Place:
        place = tuple(self.names.get(word[1:-1]) or "*" if word.startswith("{") else word for word in declared.split("."))
        if place[0] == "methods" and len(place) > 1 and place[1] != "*":
            return (*self._of_method(place[1]), *place[2:])
        return place

    def _of_method(self, name: str) -> Place:
        return ("methods", name) if name in self.study.methods or self.study.transfer is None else ("transfer", "baselines", name)

    def part(self) -> dict[str, Any]:
        """What the stage's result depends on, as plain types: by declared place, its content."""
        found = {part.text: _content(self.study, part.place, part.without) for part in self.reads}
        return found | {name: getattr(self.study, name)(*(arguments or ())) for name, arguments in self.calls.items()}

    def whole(self, place: Place) -> bool:
        """Whether everything at a place may be read."""
        return any(part.holds(place) for part in self.seen)

    def some(self, place: Place) -> bool:
        """Whether something at a place may be read."""
        return any(part.touches(place) for part in self.seen)

    def look(self, value: Any, place: Place) -> Any:
        """The value at a place of the study as the stage sees it.

        Raises
        ------
        Undeclared
        """
        if self.whole(place):
            return value
        if not self.some(place):
            raise Undeclared(f"the stage {self.stage} reads {'.'.join(place)}, which its declaration in unimind/stages.py does not name")
        if isinstance(value, BaseModel):
            return View(self, value, place)
        return _NamedSections(self, value, place) if isinstance(value, dict) else value

    def call(self, name: str) -> Callable[..., Any] | None:
        """A function of the plan, where its value is declared or its result is a view itself."""
        if name == "method":
            return lambda method: self.look(self.study.method(method), self._of_method(method))
        if name not in self.may_call:
            return None

        def function(*arguments: Any) -> Any:
            if self.may_call[name] not in (None, list(arguments)):
                raise Undeclared(f"the stage {self.stage} asks {name}{arguments}, but declares it of {self.may_call[name]}")
            return getattr(self.study, name)(*arguments)

        return function


class View:
    """A section of a study as a stage sees it: its keys where they are declared, and its own properties and functions, which see no more."""

    def __init__(self, scope: Scope, section: BaseModel, place: Place) -> None:
        self._scope, self._section, self._at = scope, section, place

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The section's, so that `isinstance` sees what the section is."""
        return type(self._section)

    def __getattr__(self, key: str) -> Any:
        kind = type(self._section)
        if key in kind.model_fields:
            return self._scope.look(getattr(self._section, key), (*self._at, key))
        if key.startswith("__") or hasattr(BaseModel, key):
            raise AttributeError(f"a view of a study has no {key}")
        if not self._at and (function := self._scope.call(key)) is not None:
            return function
        found = getattr(kind, key)
        if isinstance(found, property):
            return found.fget(self)  # type: ignore[misc]
        return MethodType(found, self) if callable(found) else found

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for key, value in self._section:
            if self._scope.some((*self._at, key)):
                yield key, self._scope.look(value, (*self._at, key))

    def model_dump(self, *, mode: str = "json", exclude: Iterable[str] = ()) -> dict[str, Any]:
        """The keys that the stage's result depends on, as plain types."""
        scope, place = self._scope, self._at
        found: dict[str, Any] = {}
        for key, value in self._section:
            if key in exclude:
                continue
            if any(part.holds((*place, key)) for part in scope.reads):
                found[key] = _plain(value)
            elif isinstance(value, BaseModel):
                found |= {key: own} if (own := View(scope, value, (*place, key)).model_dump()) else {}
        return found


class _NamedSections(Mapping[str, Any]):
    """Sections by name - data sets, methods - as a stage sees them: those it is called for."""

    def __init__(self, scope: Scope, sections: dict[str, Any], place: Place) -> None:
        self._scope, self._sections, self._at = scope, sections, place

    def __getitem__(self, name: str) -> Any:
        return self._scope.look(self._sections[name], (*self._at, name))

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._sections if self._scope.some((*self._at, name)))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _content(value: Any, place: Place, without: frozenset[str]) -> Any:
    """What is at a place below a section, as plain types; of every name where the place has a `*`."""
    if value is None:
        return None
    if not place:
        return _plain(value, without)
    if place[0] == "*":
        return {name: _content(own, place[1:], without) for name, own in value.items()}
    return _content(value.get(place[0]) if isinstance(value, dict) else getattr(value, place[0]), place[1:], without)


def _plain(value: Any, without: frozenset[str] = frozenset()) -> Any:
    if not isinstance(value, BaseModel):
        return to_jsonable_python(value)
    if unknown := without - set(type(value).model_fields):
        raise AttributeError(f"{type(value).__name__} has no {', '.join(sorted(unknown))}")
    return value.model_dump(mode="json", exclude=set(without))


def seen(study: Study, stage: str, reads: Iterable[str], knows: Iterable[str], names: Mapping[str, str | None]) -> Study:
    """A study as a stage sees it; the study itself where it may read everything."""
    scope = Scope(whole_study(study), stage, reads, knows, names)
    return scope.study if scope.whole(()) else cast(Study, View(scope, scope.study, ()))


def whole_study(study: Study) -> Study:
    """The study that a view is of."""
    return study._scope.study if type(study) is View else study


#: How often a training writes its checkpoint: what it comes to does not depend on that.
WITHOUT_EFFECT = "checkpoint_minutes"


def declared(study: Study) -> dict[str, Any]:
    """What the result of the stage that sees a study depends on; everything where it is no view."""
    return _with_effect(study._scope.part() if type(study) is View else resolved(study))


def _with_effect(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _with_effect(value) for key, value in content.items() if key != WITHOUT_EFFECT}
    return [_with_effect(value) for value in content] if isinstance(content, list) else content
