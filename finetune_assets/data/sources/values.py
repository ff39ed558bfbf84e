"""JSON of the values that databases and libraries give, which has no types for some of them."""

import base64
import datetime
from collections.abc import Generator
from decimal import Decimal
from typing import Any

import orjson

Row = dict[str, Any]
Rows = Generator[Row, None, None]


def plain(value: object) -> object:
    """Return JSON for what JSON has no type for: base64 for bytes, a sorted list for a set."""
    match value:
        case Decimal():
            return number(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case set() | frozenset():
            return sorted(value, key=str)
        case datetime.date() | datetime.time():  # subclasses, such as pandas.Timestamp
            return value.isoformat()
    if hasattr(value, "tolist"):  # NumPy, where orjson does not know the dtype
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def number(value: str | Decimal) -> orjson.Fragment | None:
    """Return a decimal with every digit it has; a float would round it."""
    return orjson.Fragment(str(value)) if Decimal(value).is_finite() else None
