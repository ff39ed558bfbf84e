"""Splits of conversations, as tokenization reads them."""

from pathlib import Path
from typing import Any

import polars as pl

from finetune_assets.data.conversations.conversations import CONVERSATION_SCHEMA

SCHEMA = {k: v for k, v in CONVERSATION_SCHEMA.items() if k != "split"}


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    """A row whose turns are the user's and the assistant's alternately."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)], **more}


def write_rows(path: Path, rows: list[dict[str, Any]], group: int = 1000) -> Path:
    rows = [{"id": str(i), "source": "rows.jsonl", "line": i + 1, **r} for i, r in enumerate(rows)]
    pl.DataFrame(rows, schema=SCHEMA).write_parquet(path, row_group_size=group)
    return path


def write(path: Path, answers: list[str], prompt: str = "hi") -> Path:
    return write_rows(path, [chat(prompt, answer) for answer in answers])
