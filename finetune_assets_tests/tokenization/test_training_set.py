"""Counts of what carries loss; rows that do not fit are cut, dropped or an error, never silent."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from finetune_assets.corpora.conversations import CONVERSATION_SCHEMA
from finetune_assets.errors import UserError
from finetune_assets.tokenization.contexts import Contexts
from finetune_assets.tokenization.training_set import build


def write(path: Path, answers: list[str], prompt: str = "hi") -> Path:
    rows = [
        {
            "id": str(i),
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ],
            "source": "rows.jsonl",
            "line": i + 1,
            "attributes": "{}",
        }
        for i, answer in enumerate(answers)
    ]
    schema = {k: v for k, v in CONVERSATION_SCHEMA.items() if k != "split"}
    pl.DataFrame(rows, schema=schema).write_parquet(path)
    return path


def run(base: Path, path: Path, out: Path, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"max_length": 64, "long_rows": "truncate", "packing": True}
    out.mkdir(exist_ok=True)
    return build(
        base,
        {"train": path},
        out,
        where="d.yaml",
        progress=lambda _: None,
        **{**options, **changes},
    )["train"]


def test_counts_add_up(tiny_base: Path, tmp_path: Path) -> None:
    counts = run(tiny_base, write(tmp_path / "r.parquet", ["abc", "defgh"]), tmp_path / "o")
    assert counts["rows"] == 2
    assert counts["tokens"] == counts["tokens_with_loss"] + counts["tokens_without_loss"]
    assert counts["tokens_with_loss"] == len("abc") + len("defgh") + 2
    assert counts["truncated_rows"] == counts["dropped_rows"] == 0


def test_a_cut_answer_keeps_no_stop_token(tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    counts = run(tiny_base, write(tmp_path / "r.parquet", ["x" * 200, "y"]), out)
    assert counts["truncated_rows"] == 1
    longest = max(Contexts.open(out, "train"), key=lambda c: len(c.input_ids))
    assert len(longest.input_ids) == 64
    assert longest.labels[-1] != 2


def test_long_rows_can_be_dropped(tiny_base: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", ["x" * 200, "y"])
    counts = run(tiny_base, path, tmp_path / "o", long_rows="drop")
    assert (counts["rows"], counts["dropped_rows"]) == (1, 1)
    assert counts["dropped_at"] == ["rows.jsonl:1"]


def test_long_rows_can_be_an_error_with_file_and_line(tiny_base: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", ["y", "x" * 200])
    with pytest.raises(UserError, match=r"rows.jsonl:2: the row has \d+ tokens, more than"):
        run(tiny_base, path, tmp_path / "o", long_rows="error")


def test_no_token_with_loss_is_an_error(tiny_base: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", ["a", "b"], prompt="p" * 200)
    with pytest.raises(UserError, match=r"no token carries loss(.|\n)*raise `training.max_length`"):
        run(tiny_base, path, tmp_path / "o")
