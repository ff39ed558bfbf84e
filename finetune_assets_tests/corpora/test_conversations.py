"""Formats are detected, columns mapped, and every row is either accepted or explained."""

import json
from typing import Any

import polars as pl
import pytest

from finetune_assets.catalog.config import Columns, Source
from finetune_assets.corpora.conversations import check_rejected, convert
from finetune_assets.corpora.sources import RAW_SCHEMA
from finetune_assets.errors import UserError


def raw(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"source": "f.jsonl", "source_index": 0, "line": i, "row": json.dumps(row)}
            for i, row in enumerate(rows, 1)
        ],
        schema=RAW_SCHEMA,
    )


def messages(row: dict[str, Any], **source: Any) -> list[dict[str, str]]:
    accepted, rejected, _ = convert(raw([row]), [Source(path="f.jsonl", **source)])
    assert rejected.height == 0
    return accepted["messages"].to_list()[0]


USER_A = {"role": "user", "content": "a"}
ASSISTANT_B = {"role": "assistant", "content": "b"}


def test_the_three_formats_are_detected() -> None:
    assert messages({"prompt": "a", "completion": "b"}) == [USER_A, ASSISTANT_B]
    assert messages({"messages": [USER_A, ASSISTANT_B]}) == [USER_A, ASSISTANT_B]
    assert messages({"instruction": "a", "input": "", "output": "b"}) == [USER_A, ASSISTANT_B]
    with_input = messages({"instruction": "a", "input": "x", "output": "b"})
    assert with_input[0]["content"] == "a\n\nx"


def test_columns_are_mapped_and_a_system_message_added() -> None:
    columns = Columns(prompt="question", completion="answer")
    row = {"question": "a", "answer": "b"}
    assert messages(row, columns=columns, system="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        USER_A,
        ASSISTANT_B,
    ]


def test_a_trailing_user_turn_is_dropped() -> None:
    assert messages({"messages": [USER_A, ASSISTANT_B, USER_A]}) == [USER_A, ASSISTANT_B]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "completion": " "}, "empty answer (column 'completion')"),
        ({"prompt": None, "completion": "b"}, "empty prompt"),
        ({"prompt": "a", "completion": 3}, "answer is not text"),
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "no known role"),
        ({"messages": [USER_A]}, "no assistant turn"),
        ({"messages": [ASSISTANT_B, USER_A]}, "does not begin with the user"),
        ({"messages": [USER_A, USER_A, ASSISTANT_B]}, "two turns of the same role"),
        ({"messages": [USER_A, {"role": "assistant", "content": ""}]}, "empty content"),
    ],
)
def test_unusable_rows_keep_their_place_and_reason(row: dict[str, Any], reason: str) -> None:
    accepted, rejected, _ = convert(raw([row]), [Source(path="f.jsonl")])
    assert accepted.height == 0
    kept = rejected.row(0, named=True)
    assert (kept["source"], kept["line"], json.loads(kept["row"])) == ("f.jsonl", 1, row)
    assert reason in kept["reason"]


def test_too_many_unusable_rows_are_an_error_with_file_and_line() -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 8 + [{"prompt": "a", "completion": ""}] * 2
    _, rejected, _ = convert(raw(rows), [Source(path="f.jsonl")])
    check_rejected(rejected, 10, limit=0.2)
    with pytest.raises(UserError, match=r"f.jsonl:9: empty answer.*2 of 10") as error:
        check_rejected(rejected, 10, limit=0.1)
    assert "max_rejected" in str(error.value)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ({}, "no known format has the columns a, b"),
        ({"format": "alpaca"}, "missing column 'instruction', 'output'"),
        ({"columns": {"prompt": "a", "completion": "c"}}, "no known format"),
        (
            {"columns": {"prompt": "a", "completion": "b"}, "attributes": ["z"]},
            "missing column 'z'",
        ),
    ],
)
def test_missing_columns_are_named(source: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        convert(raw([{"a": "x", "b": "y"}]), [Source.model_validate({"path": "f", **source})])


def test_attributes_and_pinned_splits_are_kept() -> None:
    rows = [{"prompt": "a", "completion": "b", "kind": "k", "part": "test"}]
    accepted, _, _ = convert(raw(rows), [Source(path="f", attributes=["kind"])], "part")
    assert accepted["attributes"].to_list() == ['{"kind": "k"}']
    assert accepted["split"].to_list() == ["test"]
