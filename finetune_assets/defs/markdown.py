"""Rows as Markdown that people read in the Dagster UI."""

import json
import textwrap
from typing import Any

SHOWN_CHARACTERS = 600
"""Longer turns are cut in samples."""

LINE = 110
"""Characters."""


def conversations(rows: list[dict[str, Any]]) -> str:
    """Rows readably: a heading per turn, with what is learned marked, long content cut."""
    return "\n\n".join(_conversation(row) for row in rows)


def _conversation(row: dict[str, Any]) -> str:
    parts = [f"#### {row['source'].rsplit('/', 1)[-1]}:{row['line']} `{row['id']}`"]
    if row.get("tools"):
        names = [t.get("function", t).get("name") for t in json.loads(row["tools"])]
        parts.append(f"tools: {', '.join(f'`{n}`' for n in names)}")
    if row.get("text") is not None:
        parts.append(f"**document** (learned)\n\n{_block(row['text'])}")
    for message in row["messages"] or ():
        learned = message["role"] == "assistant" and message["weight"] != 0
        parts.append(_turn(message, " (learned)" if learned else ""))
    for answer in ("chosen", "rejected"):
        for message in row.get(answer) or ():
            parts.append(_turn(message, f" ({answer})"))
    return "\n\n".join(parts)


def _turn(message: dict[str, Any], mark: str) -> str:
    calls = message["tool_calls"]
    content = f"{message['content']}\n{calls}".strip() if calls else message["content"]
    return f"**{message['role']}**{mark}\n\n{_block(content)}"


def _block(text: str) -> str:
    """A code block whose fence is longer than any in the text."""
    cut = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"
    cut = "\n".join(wrapped for line in cut.split("\n") for wrapped in _wrapped(line))
    fence = "```"
    while fence in cut:
        fence += "`"
    return f"{fence}\n{cut}\n{fence}"


def masked(rows: list[list[list[Any]]]) -> str:
    """Rows as the model sees them: runs of text, each with or without loss."""
    parts = []
    for number, runs in enumerate(rows, 1):
        parts.append(f"#### Row {number}")
        for text, learned in runs:
            mark = "**learned**" if learned else "*not learned*"
            parts.append(f"{mark}\n\n{_block(text)}")
    return "\n\n".join(parts)


def _wrapped(line: str) -> list[str]:
    """A line in pieces that fit the UI's dialog, which does not wrap code."""
    return textwrap.wrap(line, LINE, replace_whitespace=False, drop_whitespace=False) or [""]
