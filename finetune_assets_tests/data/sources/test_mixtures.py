"""Several sources at once, and rows that are not all alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_assets.errors import UserError
from finetune_assets_tests.data.data import Corpus, corpus, write_jsonl

OFF = {"near_duplicates": {"action": "off"}}


def test_one_file_can_be_two_sources_that_read_it_differently(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "r.jsonl", [{"word": f"w{i}", "means": f"m{i}"} for i in range(9)]
    )
    ways = [
        {"prompt": "Define {{ word }}", "completion": "{{ means }}"},
        {"prompt": "Which word means {{ means }}?", "completion": "{{ word }}"},
    ]
    sources = [{"path": str(path), "template": way} for way in ways]
    made = Corpus(tmp_path, sources, cleaning=OFF)
    asked = [turns[0]["content"] for turns in made.rows["messages"].to_list()]
    assert asked[0] == "Define w0"
    assert asked[9] == "Which word means m0?"
    assert len(made.record.formats) == 2


def test_duplicates_on_one_line_are_rejected_once(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i % 20}", "completion": "a"} for i in range(30)]
    (tmp_path / "min.json").write_text(json.dumps(rows))
    made = Corpus(tmp_path, [str(tmp_path / "min.json")], cleaning=OFF)
    assert (made.rows.height, made.rejected.height) == (20, 10)
    assert [json.loads(text) for text in made.rejected["row"]] == rows[20:]


def test_optional_columns_that_come_late_are_taken(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"instruction": f"i{n}", "output": "o"} for n in range(1500)]
    rows[1400] |= {"input": "extra", "system": "Be brief."}
    made = corpus(tmp_path, rows, cleaning=OFF)
    assert [m["content"] for m in made.messages(1400)] == ["Be brief.", "i1400\n\nextra", "o"]


@pytest.mark.parametrize("values", [(1, 0), ("true", "false"), (True, False)])
def test_labels_in_every_spelling_are_feedback(tmp_path: Path, values: tuple[Any, Any]) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a", "label": v} for i, v in enumerate(values)]
    made = corpus(
        tmp_path, [*rows, {"prompt": "q", "completion": "a", "label": None}], max_rejected=1
    )
    assert made.rows["label"].to_list() == [True, False]
    assert made.rejected["reason"].to_list() == ["the label is neither true nor false"]


def test_of_copies_the_one_pinned_to_the_test_split_stays(tmp_path: Path) -> None:
    free = [{"prompt": f"question number {i}", "completion": "a"} for i in range(60)]
    paths = [
        write_jsonl(tmp_path / "free.jsonl", free),
        write_jsonl(tmp_path / "exam.jsonl", free[:20]),
    ]
    sources = [{"path": str(paths[0])}, {"path": str(paths[1]), "split": "test"}]
    made = Corpus(tmp_path, sources, cleaning=OFF)
    assert made.rejected["source"].unique().to_list() == [str(paths[0])]
    test = made.splits()["test"]
    assert (test["source"] == str(paths[1])).sum() == 20


def test_personal_data_in_calls_and_tools_is_found_and_redacted(tmp_path: Path) -> None:
    call = {"name": "mail", "arguments": {"to": "anna@example.org"}}
    row = {
        "messages": [
            {"role": "user", "content": "Send it"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": call}]},
        ],
        "tools": [{"type": "function", "function": {"name": "mail", "x": "from bob@example.org"}}],
    }
    made = corpus(tmp_path, [row], cleaning={"personal_data": {"action": "redact"}})
    assert json.loads(made.messages()[1]["tool_calls"])[0]["function"]["arguments"] == {
        "to": "[EMAIL]"
    }
    assert "bob@" not in made.rows["tools"][0]
    assert made.record.personal_data.rows == 1


def test_near_duplicates_are_dropped_only_for_rows_that_stay(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Tell me about the long river Nile" + " x" * n, "completion": "It is long."}
        for n in range(12)
    ]
    made = corpus(tmp_path, rows, cleaning={"near_duplicates": {"action": "drop"}})
    assert made.rows.height > 2


@pytest.mark.parametrize(
    ("source", "more", "problem"),
    [
        ({"weight": 1e-9}, {}, "the weights leave none"),
        ({"filter": "1 = 1"}, {}, "reads no column"),
        ({"filter": "count(prompt) > 1"}, {}, "not about single rows"),
        ({"filter": "prompt >= 3"}, {}, "CAST"),
    ],
)
def test_what_cannot_be_is_said(
    tmp_path: Path, source: dict[str, Any], more: dict[str, Any], problem: str
) -> None:
    rows = [{"prompt": f"question {i}", "completion": "a"} for i in range(80)]
    with pytest.raises(UserError, match=problem):
        corpus(tmp_path, rows, source, cleaning=OFF, **more).splits()


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a"}]
    path = write_jsonl(tmp_path / "data [final].jsonl", rows)
    assert Corpus(tmp_path, [str(path)]).rows.height == 1
