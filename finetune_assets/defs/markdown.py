"""Rows as Markdown that people read in the Dagster UI."""

import json
import textwrap
from collections.abc import Sequence

from finetune_assets.data.corpora.corpus_record import ShownRow, ShownTurn

SHOWN_CHARACTERS = 600
"""Longer turns are cut in samples."""

LINE = 110
"""Characters."""


def conversations(rows: Sequence[ShownRow]) -> str:
    """Return rows as Markdown: a heading per turn, what is learned marked, long content cut."""
    return "\n\n".join(_conversation(row) for row in rows)


def _conversation(row: ShownRow) -> str:
    parts = [f"#### {row.source.rsplit('/', 1)[-1]}:{row.line} `{row.id}`"]
    if row.tools:
        names = [t.get("function", t).get("name") for t in json.loads(row.tools)]
        parts.append(f"tools: {', '.join(f'`{n}`' for n in names)}")
    if row.text is not None:
        parts.append(f"**document** (learned)\n\n{_block(row.text)}")
    for turn in row.messages or ():
        learned = turn.role == "assistant" and turn.weight != 0
        parts.append(_turn(turn, " (learned)" if learned else ""))
    parts += [_turn(turn, " (chosen)") for turn in row.chosen or ()]
    parts += [_turn(turn, " (rejected)") for turn in row.rejected or ()]
    return "\n\n".join(parts)


def _turn(turn: ShownTurn, mark: str) -> str:
    calls = turn.tool_calls
    content = f"{turn.content}\n{calls}".strip() if calls else turn.content
    return f"**{turn.role}**{mark}\n\n{_block(content)}"


def _block(text: str) -> str:
    """Return a code block whose fence is longer than any in the text."""
    cut = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"
    cut = "\n".join(wrapped for line in cut.split("\n") for wrapped in _wrapped(line))
    fence = "```"
    while fence in cut:
        fence += "`"
    return f"{fence}\n{cut}\n{fence}"


def masked(rows: Sequence[Sequence[tuple[str, bool]]]) -> str:
    """Return rows as the model sees them: runs of text, each with or without loss."""
    parts = []
    for number, runs in enumerate(rows, 1):
        parts.append(f"#### Row {number}")
        for text, learned in runs:
            mark = "**learned**" if learned else "*not learned*"
            parts.append(f"{mark}\n\n{_block(text)}")
    return "\n\n".join(parts)


def _wrapped(line: str) -> list[str]:
    """Return a line in pieces that fit the UI's dialog, which does not wrap code."""
    return textwrap.wrap(line, LINE, replace_whitespace=False, drop_whitespace=False) or [""]
