"""Formats are detected, columns mapped, and every row is either accepted or explained."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_assets.errors import UserError
from finetune_assets_tests.data.data import corpus

USER_A = {"role": "user", "content": "a"}
ASSISTANT_B = {"role": "assistant", "content": "b"}
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
CALLED = [{"type": "function", "function": CALL}]


@pytest.mark.parametrize(
    ("name", "row", "messages"),
    [
        ("prompt_completion", {"prompt": "a", "completion": "b"}, [USER_A, ASSISTANT_B]),
        ("prompt_completion", {"question": "a", "answer": "b"}, [USER_A, ASSISTANT_B]),
        ("messages", {"messages": [USER_A, ASSISTANT_B]}, [USER_A, ASSISTANT_B]),
        ("messages", {"messages": json.dumps([USER_A, ASSISTANT_B])}, [USER_A, ASSISTANT_B]),
        ("alpaca", {"instruction": "a", "input": "", "output": "b"}, [USER_A, ASSISTANT_B]),
        (
            "alpaca",
            {"instruction": "a", "input": "x", "output": "b"},
            [{"role": "user", "content": "a\n\nx"}, ASSISTANT_B],
        ),
        (
            "alpaca",
            {"instruction": "a", "output": "b", "history": [["a", "b"]], "system": "s"},
            [{"role": "system", "content": "s"}, USER_A, ASSISTANT_B, USER_A, ASSISTANT_B],
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            [USER_A, ASSISTANT_B],
        ),
        (
            "text",
            {"text": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"},
            [USER_A, ASSISTANT_B],
        ),
        ("text", {"text": "<s>[INST] a [/INST] b </s>"}, [USER_A, ASSISTANT_B]),
        (
            "prompt_completion",
            {"prompt": "<s>[INST] a [/INST]", "completion": " b </s>"},
            [USER_A, ASSISTANT_B],
        ),
    ],
)
def test_formats_are_detected(
    tmp_path: Path, name: str, row: dict[str, Any], messages: list[dict[str, str]]
) -> None:
    made = corpus(tmp_path, [row])
    assert list(made.record.formats.values()) == [name]
    assert made.messages() == messages


def test_tool_calls_of_sharegpt_and_openai_mean_the_same(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Oslo?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "It rains."},
        ],
        "tools": json.dumps(tools),
    }
    arguments = {"name": "weather", "arguments": json.dumps(CALL["arguments"])}
    openai = {
        "messages": [
            {"role": "user", "content": "Oslo?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": arguments}],
            },
            {"role": "tool", "content": "rain"},
            {"role": "assistant", "content": "It rains."},
        ],
        "tools": tools,
    }
    for row in (sharegpt, openai):
        made = corpus(tmp_path, [row])
        turns = made.messages()
        assert [t["role"] for t in turns] == ["user", "assistant", "tool", "assistant"]
        assert json.loads(turns[1]["tool_calls"]) == CALLED
        assert json.loads(made.rows["tools"][0]) == tools


def test_weights_of_messages_are_kept(tmp_path: Path) -> None:
    made = corpus(tmp_path, [{"messages": [USER_A, ASSISTANT_B | {"weight": 0}]}])
    assert made.messages()[1]["weight"] == 0


def test_feedback_keeps_its_label(tmp_path: Path) -> None:
    rows = [
        {"prompt": "good?", "completion": "b", "label": True},
        {"prompt": "bad?", "completion": "b", "label": False},
    ]
    made = corpus(tmp_path, rows)
    assert list(made.record.formats.values()) == ["feedback"]
    assert made.rows["label"].to_list() == [True, False]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [USER_A], "chosen": [ASSISTANT_B], "rejected": [ASSISTANT_B | {"content": "c"}]},
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        {
            "chosen": [USER_A, ASSISTANT_B],
            "rejected": [USER_A, ASSISTANT_B | {"content": "c"}],
        },
    ],
)
def test_every_shape_of_preferences(tmp_path: Path, row: dict[str, Any]) -> None:
    made = corpus(tmp_path, [row])
    assert list(made.record.formats.values()) == ["preference"]
    assert made.messages() == [USER_A]
    assert [m["content"] for m in made.rows["chosen"][0]] == ["b"]
    assert [m["content"] for m in made.rows["rejected"][0]] == ["c"]


def test_documents_stay_documents(tmp_path: Path) -> None:
    made = corpus(tmp_path, [{"text": "Once upon a time."}])
    assert made.rows["text"].to_list() == ["Once upon a time."]
    assert made.messages() == []


def test_any_columns_through_a_template(tmp_path: Path) -> None:
    template = {
        "prompt": "<TABLE>: {{ table }} <QUESTION>: {{ asked }} <SQL>: ",
        "completion": "{{ sql }}",
    }
    rows = [{"table": "t(a)", "asked": "How many?", "sql": "SELECT 1"}]
    made = corpus(tmp_path, rows, {"template": template})
    assert made.messages()[0]["content"] == "<TABLE>: t(a) <QUESTION>: How many? <SQL>: "
    assert made.messages()[1]["content"] == "SELECT 1"


def test_columns_are_mapped_and_a_system_message_added(tmp_path: Path) -> None:
    source = {"columns": {"prompt": "q", "completion": "a"}, "system": "Be brief."}
    made = corpus(tmp_path, [{"q": "a", "a": "b"}], source)
    assert made.messages() == [{"role": "system", "content": "Be brief."}, USER_A, ASSISTANT_B]


def test_a_trailing_user_turn_is_removed_and_counted(tmp_path: Path) -> None:
    made = corpus(tmp_path, [{"messages": [USER_A, ASSISTANT_B, USER_A]}])
    assert made.messages() == [USER_A, ASSISTANT_B]
    assert made.record.cut_turns == 1


def test_a_filter_sets_rows_aside(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": "b", "score": i} for i in range(6)]
    made = corpus(tmp_path, rows, {"filter": "score >= 4 OR prompt = 'q0'"})
    assert made.rows["line"].to_list() == [1, 5, 6]
    assert set(made.rejected["step"]) == {"filter"}
    with pytest.raises(UserError, match="missing column 'scor'"):
        corpus(tmp_path, rows, {"filter": "scor > 1"})


UNUSABLE = [
    ({"prompt": "a", "completion": " "}, "empty answer (column 'completion')"),
    ({"prompt": None, "completion": "b"}, "empty prompt"),
    ({"prompt": "a", "completion": 3}, "answer is not text"),
    ({"prompt": "<s>[INST] a [/INST] b", "completion": " [INST] </s>"}, "broken llama2 template"),
]
UNUSABLE_MESSAGES = [
    ({"messages": []}, "no messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "no known role"),
    ({"messages": [USER_A]}, "no assistant turn"),
    ({"messages": [ASSISTANT_B, USER_A]}, "does not begin with the user"),
    ({"messages": [USER_A, USER_A, ASSISTANT_B]}, "two turns of the same role"),
    ({"messages": [USER_A, {"role": "assistant", "content": ""}]}, "empty content"),
    ({"messages": [USER_A, {"role": "tool", "content": "x"}, ASSISTANT_B]}, "nobody called"),
    ({"messages": [USER_A, {"from": "function_call", "value": "x("}]}, "not JSON"),
    ({"messages": [USER_A, {"role": "assistant", "content": [{"image": 1}]}]}, "more than text"),
    ({"messages": "no list"}, "no messages"),
    ({"messages": [USER_A, ASSISTANT_B], "tools": "{"}, "tools are not JSON"),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE + UNUSABLE_MESSAGES)
def test_unusable_rows_keep_their_place_and_reason(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    good: dict[str, Any] = {"prompt": "x", "completion": "y"}
    if "messages" in row:
        good = {"messages": [USER_A, ASSISTANT_B]}
    made = corpus(tmp_path, [good, row], max_rejected=0.5)
    kept = made.rejected.row(0, named=True)
    assert made.rows.height == 1
    assert (kept["line"], kept["step"], json.loads(kept["row"])) == (2, "convert", row)
    assert reason in kept["reason"]


def test_too_many_unusable_rows_are_an_error_with_file_and_line(tmp_path: Path) -> None:
    rows = [{"prompt": f"a{i}", "completion": "b"} for i in range(8)]
    rows += [{"prompt": "a", "completion": ""}] * 2
    corpus(tmp_path, rows, max_rejected=0.2)
    with pytest.raises(UserError, match=r"jsonl:9: empty answer.*2 of 10") as error:
        corpus(tmp_path, rows, max_rejected=0.1)
    assert "max_rejected" in str(error.value)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ({}, "no known format has the columns a, b"),
        ({"format": "alpaca"}, "missing column 'instruction', 'output'"),
        ({"columns": {"prompt": "a", "completion": "c"}}, "missing column 'c'"),
        (
            {"columns": {"prompt": "a", "completion": "b"}, "attributes": ["z"]},
            "missing column 'z'",
        ),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, source: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        corpus(tmp_path, [{"a": "x", "b": "y"}], source)


def test_attributes_and_pinned_splits_are_kept(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "kind": "k", "part": "test"}]
    made = corpus(tmp_path, rows, {"attributes": ["kind"]}, splits={"column": "part"})
    assert json.loads(made.rows["attributes"][0]) == {"kind": "k"}
    assert made.rows["split"].to_list() == ["test"]
