"""What pydantic found wrong in a dataset file, told to people: file, line, key and remedy."""

import difflib
import re
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from finetune_assets.catalog.arguments import Arguments
from finetune_assets.catalog.config import Dataset
from finetune_assets.catalog.document import Location, Written, place_of
from finetune_assets.catalog.trainer_keys import about, nearest
from finetune_assets.errors import UserError

WANTED = {
    "literal_error": "one of {expected}",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "a block of keys",
    "model_type": "a block of keys",
    "greater_than": "a value greater than {gt:.15g}",
    "greater_than_equal": "a value greater than or equal to {ge:.15g}",
    "less_than": "a value less than {lt:.15g}",
    "less_than_equal": "a value less than or equal to {le:.15g}",
}
"""What to write instead, by the type of pydantic's error; in braces, what its context says."""

MOST = 20
"""Errors of one file that are told."""

LONGEST_VALUE = 200
"""Characters of a wrong value that are shown."""


def explain(error: ValidationError, file: Written) -> UserError:
    """Return one error for all that is wrong in a file, at the place of the first."""
    found: dict[Location, list[ErrorDetails]] = {}
    for item in error.errors():
        found.setdefault(_location(item, file), []).append(item)
    # The form of a value that the user chose says more than those that were not chosen.
    outer = {location[:length] for location in found for length in range(len(location))}
    innermost = [(location, items) for location, items in found.items() if location not in outer]
    where, causes, remedies = None, [], []
    for location, items in innermost[:MOST]:
        cause, remedy = said(location, items)
        place = _place(location, items[0], file)
        where = where or place or file.place
        causes.append(cause if place in (None, where) else f"{cause} ({place})")
        remedies.append(remedy)
    if len(innermost) > MOST:
        causes.append(f"and {len(innermost) - MOST} more")
    cause, remedy = ("; ".join(dict.fromkeys(parts)) for parts in (causes, remedies))
    return UserError(where or file.place, cause, remedy)


def _location(item: ErrorDetails, file: Written) -> Location:
    """Return where an error is, without pydantic's names for the forms that a value may have."""
    kept: Location = ()
    for part in item["loc"]:
        if place_of((*kept, part), file, whole=True):
            kept += (part,)
    return (*kept, item["loc"][-1]) if item["type"] == "missing" else kept


def _place(location: Location, item: ErrorDetails, file: Written) -> str | None:
    """Return FILE:LINE of the wrong key, or of the first written one of those that do not fit."""
    misfits = [(*location, *key.split(".")) for key in item.get("ctx", {}).get("keys", ())]
    written = (place for keys in misfits if (place := place_of(keys, file, whole=True)))
    return next(written, place_of(location, file))


def said(location: Location, items: list[ErrorDetails]) -> tuple[str, str]:
    """Return cause and remedy of what is wrong at a location, one item for each form of value."""
    item, key = items[0], ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        return _unknown(key, location)
    if item["type"] == "missing":
        return f"missing key '{key}'", f"add '{key}'"
    message = " or ".join(dict.fromkeys(_message(i) for i in items))
    if item["type"] == "misfit":
        keys = [f"'{'.'.join([*map(str, location), inner])}'" for inner in item["ctx"]["keys"]]
        return message, f"mend {' or '.join(keys)}"
    if not location:
        return message, "mend 'file'"
    shown = repr(item["input"])
    if len(shown) > LONGEST_VALUE:
        shown = f"{shown[:LONGEST_VALUE]}…"
    if item["type"] == "model_type":
        cause = f"'{key}' is {shown}, where a block of keys is expected"
        return cause, f"write below '{key}' what you mean: {', '.join(valid_keys(location))}"
    cause = f"'{key}' is {shown}: {message}"
    expected = "".join(i.get("ctx", {}).get("expected", "") for i in items)
    words = re.findall("'(.*?)'", expected)  # the words that the value may be
    # Other readers of YAML take a bare `off` for false.
    meant = "off" if item["input"] is False else shown.strip("'")
    near = difflib.get_close_matches(meant, words, n=1)
    return cause, f"did you mean '{near[0]}'?" if near else _remedy(key, items)


def _message(item: ErrorDetails) -> str:
    return str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]


def _remedy(key: str, items: list[ErrorDetails]) -> str:
    """Say what to write instead, where every form of the value has an answer to that."""
    if not all(item["type"] in WANTED for item in items):
        return f"mend '{key}'"
    wanted = [WANTED[item["type"]].format(**item.get("ctx", {})) for item in items]
    return f"write {' or '.join(dict.fromkeys(wanted))} for '{key}'"


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
    """Return the keys that may stand at a location."""
    kinds: list[object] = [Dataset]
    for part in location:
        if not isinstance(part, int):
            fields = [_fields(kind).get(part) for kind in kinds]
            kinds = [section for annotation in fields for section in _sections(annotation)]
    return [key for kind in kinds for key in _fields(kind)]


def _fields(kind: object) -> dict[str, object]:
    if kind is Arguments:
        return dict(Arguments.__annotations__)
    model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else BaseModel
    return {name: field.annotation for name, field in model.model_fields.items()}


def _sections(annotation: object) -> Iterator[object]:
    """Yield the sections in an annotation such as `list[Source]` or `Template | None`."""
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    if annotation is Arguments or is_model:
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def _paths(kind: object) -> Iterator[tuple[str, ...]]:
    """Yield every key of the file that stands in no list, with the sections around it."""
    for name, annotation in _fields(kind).items():
        yield (name,)
        if not str(annotation).startswith("list"):
            for section in _sections(annotation):
                yield from ((name, *path) for path in _paths(section))
