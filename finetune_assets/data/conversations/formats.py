"""Which format rows have: declared, or told from their columns and values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from finetune_assets.catalog.config import Dataset
from finetune_assets.catalog.sources import Source
from finetune_assets.data.conversations.filters import filter_columns
from finetune_assets.data.sources.files import parse
from finetune_assets.errors import UserError

NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "system": ("system", "system_prompt"),
    "prompt": ("prompt", "question", "query", "instruction", "input"),
    "completion": ("completion", "response", "answer", "output"),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response"),
    "history": ("history",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "label": ("label", "kto_tag"),
    "text": ("text", "content"),
    "tools": ("tools", "functions"),
}
"""Names under which a format's columns are looked for when the source does not name them."""

REQUIRED: dict[str, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "sharegpt": ("messages",),
    "feedback": ("label",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "template": (),
}
"""Columns that a format cannot do without."""

ROWS_FOR_DETECTION = 1000
"""First rows of a file that tell its format."""

OPTIONAL = ("input", "history", "system", "tools")
"""Fields that rows may have or not."""


@dataclass(frozen=True)
class Format:
    """How rows of one source become conversations."""

    name: str
    columns: Mapping[str, str]
    """Column of the data by the format's own name for it; only those that the data has."""

    def value(self, row: Mapping[str, object], field: str) -> object:
        """Return what a row has for a field; None if it has no such column."""
        column = self.columns.get(field)
        if column is None and field in OPTIONAL:
            # A column that the first rows lack may come later.
            taken = self.columns.values()
            column = next((n for n in NAMES[field] if n in row and n not in taken), None)
        return row.get(column) if column is not None else None


def format_of(
    rows: Sequence[Mapping[str, object]], source: Source, where: str, also: Sequence[str] = ()
) -> Format:
    """Return the format of a file, from its first rows, which must have the columns `also` too."""
    columns = {name for row in rows for name in row}
    found = _columns(columns, source)
    _require(columns, [*_declared(source).values(), *source.attributes, *also], where)
    name: str = source.format
    if name == "auto":
        name = "template" if source.template else _detect(rows, found, columns, where)
    _require(columns, [NAMES[f][0] for f in REQUIRED[name] if f not in found], where)
    return Format(name, found)


Formats = dict[tuple[int, str], Format]
"""Format by source index and file."""


def formats_of(raw: Path, config: Dataset) -> Formats:
    """Return the format of every file in a Parquet file of raw rows, from the file's first rows."""
    rows = pl.scan_parquet(raw, row_index_name="number")
    first = (
        rows.group_by("source_index", "source", maintain_order=True)
        .agg(pl.col("number").first(), pl.col("line").first())
        .collect(engine="streaming")
        .sort("number")
    )
    column = config.splits.column
    found: Formats = {}
    for index, name, number, line in first.iter_rows():
        texts = rows.slice(number, ROWS_FOR_DETECTION).filter(
            (pl.col("source") == name) & (pl.col("source_index") == index)
        )
        parsed = [parse(text) for text in texts.select("row").collect()["row"]]
        source = config.sources[index]
        also = [column] if column and not source.split else []
        also += filter_columns(source, f"sources[{index}].filter")
        found[index, name] = format_of(parsed, source, f"{name}:{line}", also)
    return found


def _declared(source: Source) -> dict[str, str]:
    return {k: v for k, v in source.columns.model_dump().items() if v is not None}


def _columns(columns: set[str], source: Source) -> dict[str, str]:
    found = {
        field: next((name for name in names if name in columns), None)
        for field, names in NAMES.items()
    } | _declared(source)
    if found["prompt"] == "input" and found["completion"] is None:
        found["prompt"] = None
    return {field: name for field, name in found.items() if name is not None}


def _require(columns: set[str], wanted: Sequence[str], where: str) -> None:
    missing = sorted(set(wanted) - columns)
    if missing:
        cause = f"missing column {', '.join(map(repr, missing))}"
        there = f"the row has {', '.join(sorted(columns))}"
        remedy = (
            "name the right columns under `columns:`, `attributes:`, `filter:` or `splits.column`"
        )
        raise UserError(where, f"{cause}; {there}", remedy)


def _detect(
    rows: Sequence[Mapping[str, object]], found: Mapping[str, str], columns: set[str], where: str
) -> str:
    labels = [v for r in rows if (v := r.get(found.get("label", ""))) is not None]
    labelled = bool(labels) and all(read_label(v) is not None for v in labels)
    if {"chosen", "rejected"} <= found.keys():
        return "preference"
    if "messages" in found:
        turns = next((t for r in rows if (t := _list(r.get(found["messages"])))), [])
        if labelled:
            return "feedback"
        return "sharegpt" if turns and "from" in turns[0] else "messages"
    if labelled and {"prompt", "completion"} <= found.keys():
        return "feedback"
    for name in ("alpaca", "prompt_completion", "text"):
        if all(field in found for field in REQUIRED[name]):
            return name
    wanted = "; ".join(
        f"{name}: {', '.join(NAMES[field][0] for field in fields)}"
        for name, fields in REQUIRED.items()
        if fields
    )
    cause = f"no known format has the columns {', '.join(sorted(columns))}"
    remedy = f"name them under `columns:`, write a `template:`, or rename them ({wanted})"
    raise UserError(where, cause, remedy)


def read_label(value: object) -> bool | None:
    """Return what a label says: true, false, 1, 0, also as text; None if it says neither."""
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    return bool(value) if value in (0, 1) and isinstance(value, int) else None


def _list(value: object) -> list[dict[str, object]]:
    """Return a list of objects, as it is or as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse(value)
        except ValueError:
            return []
    return value if isinstance(value, list) and all(isinstance(v, dict) for v in value) else []
