"""Every cleaning step is counted, can be switched off, and loses nothing."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_assets.catalog.cleaning import Cleaning
from finetune_assets.data.corpora.cleaning import repair
from finetune_assets.data.corpora.near_duplicates import signatures
from finetune_assets.errors import UserError
from finetune_assets_tests.data.data import corpus

CODE = "```python\ndef f(x):\n\treturn  x   # two  spaces\n\n\n```\n"


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("mojibake", "cafÃ© â€” au lait", "café — au lait"),
        ("control_characters", "a\x00b\u200bc\ufeff\x1b", "abc"),
        ("unicode_nfc", "cafe\u0301", "café"),
    ],
)
def test_each_repair_is_counted_and_can_be_switched_off(
    tmp_path: Path, step: str, before: str, after: str
) -> None:
    rows = [{"prompt": "plain", "completion": "text"}, {"prompt": before, "completion": before}]
    made = corpus(tmp_path, rows)
    assert [m["content"] for m in made.messages(1)] == [after, after]
    assert made.record.repaired == {
        "mojibake": 0, "control_characters": 0, "unicode_nfc": 0, step: 1
    }  # fmt: skip
    kept = corpus(tmp_path, rows, cleaning={step: False})
    assert kept.messages(1)[0]["content"] == before


def test_code_and_whitespace_are_never_reflowed() -> None:
    texts = [CODE, "  indented\r\n\tline  \n\n", "👩‍👩‍👧 family, می‌خواهم"]
    assert repair(texts, Cleaning())[0] == texts


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")))
def test_repair_never_fails_and_leaves_ascii_alone(text: str) -> None:
    repaired, _ = repair([text], Cleaning())
    again, changed = repair(repaired, Cleaning(mojibake=False))
    assert again == repaired
    assert not any(changed.values())
    printable = "".join(c for c in text if c.isascii() and (c.isprintable() or c in "\t\n\r"))
    assert repair([printable], Cleaning())[0] == [printable]


def test_lengths_are_limited(tmp_path: Path) -> None:
    rows = [{"prompt": "q1", "completion": "ok"}, {"prompt": "q2", "completion": "long" * 99}]
    made = corpus(tmp_path, rows, cleaning={"min_answer_characters": 3, "max_characters": 500})
    assert made.rows["line"].to_list() == [2]
    assert made.rejected.select("line", "step", "reason").rows() == [
        (1, "length", "answers shorter than 3 characters")
    ]
    made = corpus(tmp_path, rows, cleaning={"max_characters": 100})
    assert made.rejected["reason"].to_list() == ["longer than 100 characters"]


def test_exact_duplicates_name_the_first_and_can_be_kept(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "b"}]
    rows += rows[:1]
    made = corpus(tmp_path, rows)
    assert made.rows["line"].to_list() == [1, 2]
    assert made.rejected["step"].to_list() == ["exact_duplicate"]
    assert made.rejected["reason"][0].endswith(":1")
    assert made.record.exact_duplicates == 1
    assert corpus(tmp_path, rows, cleaning={"exact_duplicates": "keep"}).rows.height == 3


LONG = "Please explain in a few words how the tides of the sea depend on the moon and the sun"


def near_rows() -> list[dict[str, str]]:
    answer = "Both pull at the water, the moon more strongly as it is so much nearer to us"
    return [
        {"prompt": LONG, "completion": answer},
        {"prompt": "What is the capital city of the republic of France?", "completion": "Paris"},
        {"prompt": LONG.replace("moon", "mon"), "completion": answer + "."},
        {"prompt": LONG.upper() + "?", "completion": "I do not know that, ask someone else"},
    ]


def test_near_duplicates_are_grouped_named_and_can_be_dropped(tmp_path: Path) -> None:
    made = corpus(tmp_path, near_rows())
    first = made.rows["id"][0]
    assert made.rows["duplicate_of"].to_list() == [None, None, first, first]
    assert made.record.near_duplicates == 2
    dropping = {"near_duplicates": {"action": "drop"}}
    made = corpus(tmp_path, near_rows(), cleaning=dropping)
    assert made.rows["line"].to_list() == [1, 2, 4]
    dropped = made.rejected.row(0, named=True)
    assert (dropped["step"], dropped["line"]) == ("near_duplicate", 3)
    assert json.loads(dropped["row"]) == near_rows()[2]
    off = corpus(tmp_path, near_rows(), cleaning={"near_duplicates": {"action": "off"}})
    assert off.rows["duplicate_of"].null_count() == 4


def test_another_number_in_a_short_question_is_another_question(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i} plus 7?", "completion": str(i + 7)} for i in range(10, 40)]
    assert corpus(tmp_path, rows).record.near_duplicates == 0


PERSONAL = [
    {"prompt": "Write to me", "completion": "I am at anna.b@example.org or 192.168.7.41."},
    {"prompt": "And you", "completion": "I have no address."},
]


def test_personal_data_is_reported_redacted_or_dropped(tmp_path: Path) -> None:
    def made(action: str) -> Any:
        return corpus(tmp_path, PERSONAL, cleaning={"personal_data": {"action": action}})

    reported = made("report")
    assert reported.record.personal_data.kinds == {"email": 1, "ip_address": 1}
    assert "anna.b@example.org" not in reported.record.personal_data.model_dump_json()
    assert reported.messages(0)[1]["content"] == PERSONAL[0]["completion"]
    assert made("redact").messages(0)[1]["content"] == "I am at [EMAIL] or [IP_ADDRESS]."
    dropped = made("drop")
    assert dropped.rows["line"].to_list() == [2]
    assert dropped.rejected["reason"].to_list() == ["holds email, ip_address"]
    assert made("off").record.personal_data.rows == 0


def test_when_nothing_is_left_the_error_says_what_took_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of 2 rows none is left: 2 x length"):
        corpus(tmp_path, PERSONAL, cleaning={"max_characters": 5})


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "wizard"]), "content": TEXT}
)
ROW = st.one_of(
    st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=4)}),
    st.fixed_dictionaries({"messages": TEXT | st.none() | st.integers()}),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(ROW, min_size=1, max_size=8))
def test_accepted_and_removed_rows_are_all_rows(tmp_path: Path, rows: list[Any]) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    made = corpus(tmp_path, [good, *rows], max_rejected=1)
    lines = pl.concat([made.rows["line"], made.rejected["line"]])
    assert sorted(lines.to_list()) == list(range(1, len(rows) + 2))
    assert made.record.rows + made.record.removed == len(rows) + 1
    for line, text in made.rejected.select("line", "row").rows():
        assert json.loads(text) == [good, *rows][line - 1]


def test_signatures_do_not_depend_on_neighbours() -> None:
    texts = ["who are you", "a", "was ist das für ein langer satz", "何ですか"]
    together = signatures(pl.Series(texts))
    for position, text in enumerate(texts):
        assert signatures(pl.Series([text])).equals(together[position])
