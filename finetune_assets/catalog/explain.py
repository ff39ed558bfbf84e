"""What pydantic found wrong in a dataset file, told to people: file, line, key and remedy."""

import difflib
import re
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from finetune_assets.catalog.arguments import Arguments
from finetune_assets.catalog.config import Dataset
from finetune_assets.catalog.document import place_of
from finetune_assets.catalog.trainer_keys import about, nearest
from finetune_assets.errors import UserError

Location = tuple[Any, ...]

SHOULD = "Input should be "


def explain(error: ValidationError, data: Any, node: yaml.Node, uri: str) -> UserError:
    """One error for all that is wrong, at the place of the first.

    Args:
        data: the values that were validated; `node` is their tree.
    """
    found: dict[Location, list[ErrorDetails]] = {}
    for item in error.errors():
        found.setdefault(_location(item, data), []).append(item)
    # The form of a value that the user chose says more than those that were not chosen.
    innermost = {k: v for k, v in found.items() if not any(_within(other, k) for other in found)}
    where, causes, remedies = None, [], []
    for location, items in innermost.items():
        cause, remedy = said(location, items)
        place = _place(location, items[0], node)
        where = where or place or uri
        causes.append(cause if place in (None, where) else f"{cause} ({place})")
        remedies.append(remedy)
    return UserError(where or uri, _joined(causes), _joined(remedies))


def _joined(parts: list[str]) -> str:
    return "; ".join(dict.fromkeys(parts))


def _location(item: ErrorDetails, data: Any) -> Location:
    """Where an error is, without pydantic's names for the forms that a value may have."""
    kept: list[Any] = []
    for part in item["loc"]:
        here = list(range(len(data))) if isinstance(data, list) else data
        if isinstance(here, list | dict) and part in here:
            data = data[part]
            kept.append(part)
    return (*kept, item["loc"][-1]) if item["type"] == "missing" else tuple(kept)


def _within(location: Location, outer: Location) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer


def _place(location: Location, item: ErrorDetails, node: yaml.Node) -> str | None:
    """FILE:LINE of the key that is wrong, or of the first written one of those that do not fit."""
    around = place_of(location, node)
    for key in item.get("ctx", {}).get("keys", ()):
        place = place_of((*location, *key.split(".")), node, whole=True)
        if place:
            return place
    return around


def said(location: Location, items: list[ErrorDetails]) -> tuple[str, str]:
    """Cause and remedy."""
    item, key = items[0], ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        return _unknown(key, location)
    if item["type"] == "missing":
        return f"missing key '{key}'", f"add '{key}'"
    messages = [i["msg"].removeprefix("Value error, ") for i in items]
    message = " or ".join(dict.fromkeys(messages))
    if item["type"] == "misfit":
        return message, f"mend {' or '.join(_full(location, item['ctx']['keys']))}"
    if not location:
        return message, "mend 'file'"
    if item["type"] == "model_type":
        cause = f"'{key}' is {item['input']!r}, where a block of keys is expected"
        return cause, f"write below '{key}' what you mean: {', '.join(valid_keys(location))}"
    cause = f"'{key}' is {item['input']!r}: {message}"
    words = [w for i in items for w in re.findall("'(.*?)'", i.get("ctx", {}).get("expected", ""))]
    near = difflib.get_close_matches(str(item["input"]), words, n=1)
    return cause, f"did you mean '{near[0]}'?" if near else _wanted(key, messages)


def _wanted(key: str, messages: list[str]) -> str:
    """What to write instead, where pydantic says what a value should be."""
    if not all(message.startswith(SHOULD) for message in messages):
        return f"mend '{key}'"
    told: dict[str, None] = {}
    for message in messages:
        value = re.split(", (?:unable|got)", message.removeprefix(SHOULD))[0]
        if value.startswith(("greater", "less")):
            value = f"a value {value}"
        elif value.startswith("'"):
            value = f"one of {value}"
        told[value] = None
    return f"write {' or '.join(told)} for '{key}'"


def _full(location: Location, keys: tuple[str, ...]) -> list[str]:
    return [f"'{'.'.join([*(str(part) for part in location), key])}'" for key in keys]


def _unknown(key: str, location: Location) -> tuple[str, str]:
    cause, name, around = f"unknown key '{key}'", str(location[-1]), location[:-1]
    training = location[0] == "training"
    if training and (known := about(name)):
        return f"{cause}: {known.cause}", known.remedy
    elsewhere = [".".join(path) for path in _paths(Dataset) if path[-1] == name]
    if elsewhere:
        return cause, f"did you mean '{elsewhere[0]}'?"
    if around != ("training", "arguments"):
        valid = valid_keys(around)
        near = difflib.get_close_matches(name, valid, n=1)
        if near or not training:
            return cause, f"did you mean '{near[0]}'?" if near else _listed(valid)
    other = nearest(name) if training else None
    meant = about(other) if other else None
    if meant is None:
        return cause, _listed(valid_keys(around))
    return cause, f"did you mean '{other}'? {meant.remedy}"


def _listed(valid: list[str]) -> str:
    return f"valid here: {', '.join(valid)}"


def valid_keys(location: Location) -> list[str]:
    """Keys that may stand at a location."""
    kinds: list[Any] = [Dataset]
    for part in location:
        if not isinstance(part, int):
            fields = [_fields(kind).get(part) for kind in kinds]
            kinds = [section for annotation in fields for section in _sections(annotation)]
    return [key for kind in kinds for key in _fields(kind)]


def _fields(kind: Any) -> dict[str, Any]:
    if kind is Arguments:
        return dict(Arguments.__annotations__)
    return {name: field.annotation for name, field in kind.model_fields.items()}


def _sections(annotation: Any) -> Iterator[Any]:
    """Sections in an annotation such as `list[Source]` or `Template | None`."""
    if annotation is Arguments or (
        isinstance(annotation, type) and issubclass(annotation, BaseModel)
    ):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def _paths(kind: Any) -> Iterator[tuple[str, ...]]:
    """Every key of the file that stands in no list, with the sections around it."""
    for name, annotation in _fields(kind).items():
        yield (name,)
        if not str(annotation).startswith("list"):
            for section in _sections(annotation):
                yield from ((name, *path) for path in _paths(section))
