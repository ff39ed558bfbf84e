"""The same question is never in two splits, and rows keep their split when others are added."""

import polars as pl
import pytest

from finetune_assets.catalog.config import Splits
from finetune_assets.corpora.conversations import CONVERSATION_SCHEMA
from finetune_assets.corpora.splits import leaked_prompts, normalise, split
from finetune_assets.errors import UserError


def corpus(prompts: list[str], pinned: list[str | None] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "id": f"{i}",
                "messages": [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": f"answer {i}"},
                ],
                "source": "f",
                "line": i,
                "split": pinned[i] if pinned else None,
                "attributes": "{}",
            }
            for i, prompt in enumerate(prompts)
        ],
        schema=CONVERSATION_SCHEMA,
    )


def where(parts: dict[str, pl.DataFrame]) -> dict[str, str]:
    return {row: name for name, part in parts.items() for row in part["id"]}


def test_a_question_with_many_answers_stays_on_one_side() -> None:
    spelled = ["Who are you?", "who are you", "  WHO  are you ?!", "Who are you？"]
    prompts = [f"{text} {n}" for n in range(60) for text in spelled]
    parts = split(corpus(prompts), Splits(), "x")
    assert leaked_prompts(parts) == 0
    assert sum(p.height for p in parts.values()) == len(prompts)
    assert all(p.height % len(spelled) == 0 for p in parts.values())


def test_with_fractions_no_row_ever_moves() -> None:
    prompts = [f"question {i}" for i in range(1000)]
    before = where(split(corpus(prompts), Splits(validation=0.1, test=0.2), "x"))
    after = where(
        split(
            corpus(prompts + [f"new {i}" for i in range(10)]), Splits(validation=0.1, test=0.2), "x"
        )
    )
    assert all(after[row] == part for row, part in before.items())
    counts = pl.Series(list(before.values())).value_counts()
    sizes = dict(counts.iter_rows())
    assert 150 < sizes["test"] < 250
    assert 70 < sizes["validation"] < 130


def test_counts_are_met() -> None:
    parts = split(corpus([f"q {i}" for i in range(100)]), Splits(validation=7, test=11), "x")
    assert {k: v.height for k, v in parts.items()} == {"train": 82, "validation": 7, "test": 11}


def test_pinned_rows_go_where_they_say_and_fill_the_count() -> None:
    pinned: list[str | None] = ["test"] * 5 + [None] * 95
    parts = split(corpus([f"q {i}" for i in range(100)], pinned), Splits(test=9, validation=5), "x")
    placed = where(parts)
    assert {placed[str(i)] for i in range(5)} == {"test"}
    assert parts["test"].height == 9


def test_the_seed_counts() -> None:
    rows = corpus([f"q {i}" for i in range(200)])
    assert where(split(rows, Splits(seed=0), "x")) != where(split(rows, Splits(seed=1), "x"))


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(UserError, match="the test split has 0 of 3 rows"):
        split(corpus(["a", "b", "c"]), Splits(test=0.001), "d.yaml")


def test_normalisation_keeps_what_makes_another_question() -> None:
    assert normalise("What is 2+3?") == normalise("what is 2 + 3")
    assert normalise("What is 23?") != normalise("What is 2+3?")
    assert normalise("+ + +") != normalise("- - -")
