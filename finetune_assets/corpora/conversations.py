"""From rows as they arrived to conversations; what is unusable is kept with its reason."""

import hashlib
import json
from itertools import pairwise
from typing import Any

import polars as pl

from finetune_assets.catalog.config import Columns, Source
from finetune_assets.errors import UserError

CONVERSATION_SCHEMA: dict[str, Any] = {
    "id": pl.String,
    "messages": pl.List(pl.Struct({"role": pl.String, "content": pl.String})),
    "source": pl.String,
    "line": pl.Int64,
    "split": pl.String,
    "attributes": pl.String,
}
"""`split` is the split that the row's own column pins it to; `attributes` is JSON text."""

REJECTED_SCHEMA = {
    "source": pl.String,
    "line": pl.Int64,
    "reason": pl.String,
    "row": pl.String,
}

ROLES = ("system", "user", "assistant", "tool")
FORMATS = ("messages", "alpaca", "prompt_completion")
SPLIT_NAMES = ("train", "validation", "test")


class Unusable(Exception):
    """Why one row cannot become a conversation."""


def detect(columns: set[str], names: Columns, where: str) -> str:
    """The format whose required columns are there.

    Raises:
        UserError: none is.
    """
    for name in FORMATS:
        if required(name, names) <= columns:
            return name
    wanted = "; ".join(f"{name}: {', '.join(sorted(required(name, names)))}" for name in FORMATS)
    raise UserError(
        where,
        f"no known format has the columns {', '.join(sorted(columns))}",
        f"name them under `columns:` or rename them ({wanted})",
    )


def required(name: str, names: Columns) -> set[str]:
    """Columns that a format cannot do without."""
    return {
        "messages": {names.messages},
        "alpaca": {names.instruction, names.output},
        "prompt_completion": {names.prompt, names.completion},
    }[name]


def convert(
    raw: pl.DataFrame, sources: list[Source], split_column: str | None = None
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, str]]:
    """Turn a table of RAW_SCHEMA into conversations and rejected rows.

    Returns:
        accepted (CONVERSATION_SCHEMA), rejected (REJECTED_SCHEMA), and the format of each file.
        Accepted and rejected rows together are all rows.

    Raises:
        UserError: a file has none of the known formats, or lacks a declared column.
    """
    accepted: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    formats: dict[str, str] = {}
    for record in raw.iter_rows(named=True):
        source = sources[record["source_index"]]
        row = json.loads(record["row"])
        where = f"{record['source']}:{record['line']}"
        if record["source"] not in formats:
            formats[record["source"]] = _format_of(row, source, split_column, where)
        try:
            messages = _messages(row, formats[record["source"]], source)
            split = _pinned_split(row, split_column)
        except Unusable as reason:
            rejected.append(
                {k: record[k] for k in ("source", "line", "row")} | {"reason": str(reason)}
            )
            continue
        accepted.append(
            {
                "id": _identity(messages),
                "messages": messages,
                "source": record["source"],
                "line": record["line"],
                "split": split,
                "attributes": json.dumps({k: row.get(k) for k in source.attributes}),
            }
        )
    return (
        pl.DataFrame(accepted, schema=CONVERSATION_SCHEMA),
        pl.DataFrame(rejected, schema=REJECTED_SCHEMA),
        formats,
    )


def check_rejected(rejected: pl.DataFrame, total: int, limit: float) -> None:
    """Raise if more than `limit` (a fraction) of the rows are unusable."""
    if total and rejected.height <= limit * total and rejected.height < total:
        return
    first = rejected.row(0, named=True)
    reasons = rejected["reason"].value_counts(sort=True).iter_rows()
    raise UserError(
        f"{first['source']}:{first['line']}",
        f"{first['reason']} (in all, {rejected.height} of {total} rows are unusable: "
        + ", ".join(f"{count} x {reason}" for reason, count in reasons)
        + ")",
        "mend the rows, or raise `max_rejected` to go on without them",
    )


def _format_of(row: dict[str, Any], source: Source, split_column: str | None, where: str) -> str:
    columns = set(row)
    name: str = source.format
    if name == "auto":
        name = detect(columns, source.columns, where)
    missing = required(name, source.columns) - columns | set(source.attributes) - columns
    if split_column:
        missing |= {split_column} - columns
    if missing:
        raise UserError(
            where,
            f"missing column {', '.join(repr(c) for c in sorted(missing))}; "
            f"the row has {', '.join(sorted(columns))}",
            "name the right columns under `columns:`, `attributes:` or `splits.column`",
        )
    return name


def _messages(row: dict[str, Any], name: str, source: Source) -> list[dict[str, str]]:
    names = source.columns
    if name == "messages":
        messages = _given_messages(row.get(names.messages))
    elif name == "alpaca":
        instruction = _text(row, names.instruction, "instruction")
        extra = row.get(names.input)
        prompt = f"{instruction}\n\n{extra}" if extra and str(extra).strip() else instruction
        messages = _exchange(prompt, _text(row, names.output, "answer"))
    else:
        prompt = _text(row, names.prompt, "prompt")
        messages = _exchange(prompt, _text(row, names.completion, "answer"))
    if messages[0]["role"] != "system":
        system = (row.get(names.system) if name != "messages" else None) or source.system
        if system:
            messages.insert(0, {"role": "system", "content": str(system)})
    return messages


def _exchange(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _text(row: dict[str, Any], column: str, what: str) -> str:
    value = row.get(column)
    if value is None or not str(value).strip():
        raise Unusable(f"empty {what} (column '{column}')")
    if not isinstance(value, str):
        raise Unusable(f"{what} is not text (column '{column}')")
    return value


def _given_messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise Unusable("no messages")
    messages = []
    for index, message in enumerate(value):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise Unusable(f"message {index} has no known role ({', '.join(ROLES)})")
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise Unusable(f"empty content in message {index} ({message['role']})")
        messages.append({"role": message["role"], "content": content})
    turns = [m["role"] for m in messages if m["role"] != "system"]
    if not turns or turns[0] != "user":
        raise Unusable("the conversation does not begin with the user")
    if "assistant" not in turns:
        raise Unusable("no assistant turn to learn from")
    if any(m["role"] == "system" for m in messages[1:]):
        raise Unusable("a system message after the first message")
    if any(a == b and a != "tool" for a, b in pairwise(turns)):
        raise Unusable("two turns of the same role in a row")
    while messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


def _pinned_split(row: dict[str, Any], column: str | None) -> str | None:
    value = row.get(column) if column else None
    if value in (None, ""):
        return None
    if value not in SPLIT_NAMES:
        raise Unusable(f"split '{value}' is none of {', '.join(SPLIT_NAMES)} (column '{column}')")
    return value


def _identity(messages: list[dict[str, str]]) -> str:
    text = json.dumps(messages, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
