"""Evaluation rows that stand in training rows are found; phrases of the domain are not leaks."""

import random
from pathlib import Path

import polars as pl
import pytest

from finetune_assets.data.splits.contamination import COMMON, EvaluationGrams, ngrams
from finetune_assets.errors import UserError
from finetune_assets_tests.data.data import corpus, write_jsonl

GENERATOR = random.Random()


@pytest.fixture(autouse=True)
def same_words() -> None:
    """Give each test the same words, whichever run before it."""
    GENERATOR.seed(0)


def words(count: int) -> str:
    return " ".join("".join(GENERATOR.choices("abcdefgh", k=6)) for _ in range(count))


def twice(texts: list[str]) -> pl.Series:
    """Rows that are questions as a whole."""
    return pl.Series([text for text in texts for _ in range(2)])


def overlaps(evaluation: list[str], training: list[str], n: int = 5) -> dict[int, float]:
    judged = EvaluationGrams(n, len(evaluation))
    judged.add([lambda: twice(evaluation)])
    return dict(judged.overlap([lambda: twice(training)]).select("row", "overlap").iter_rows())


def test_ngrams_do_not_depend_on_where_they_stand() -> None:
    grams, rows = ngrams(pl.Series(["a b c d", "x a b c", "", "a b"]), 3)
    assert rows.tolist() == [0, 0, 1, 1, 3]
    assert grams[0] == grams[3]
    assert len(set(grams.tolist())) == 4


def test_overlap_is_the_share_of_ngrams_found() -> None:
    leaked, half, clean = words(40), words(20), words(40)
    training = [words(30), f"{words(10)} {leaked} {words(10)}", f"{half} {words(3)}"]
    found = overlaps([leaked, f"{half} {words(20)}", clean], training)
    assert found[0] == 1
    assert found[1] == pytest.approx(16 / 36)
    assert 2 not in found


def test_short_rows_are_compared_as_a_whole() -> None:
    assert overlaps(["who are you", "who am i"], ["who are you", "who are you then"]) == {0: 1}


def test_phrases_that_many_rows_share_say_nothing() -> None:
    phrase = words(12)
    training = [f"{phrase} {words(20)}" for _ in range(COMMON + 5)]
    assert overlaps([f"{phrase} {words(20)}"], training) == {}


def test_benchmark_rows_in_training_are_counted_and_shown(tmp_path: Path) -> None:
    benchmark = [{"question": words(30), "answer": words(5)} for _ in range(20)]
    write_jsonl(tmp_path / "benchmark.jsonl", benchmark)
    rows = [{"prompt": words(30), "completion": words(9)} for _ in range(200)]
    leaks = [{"prompt": f"Q: {b['question']}", "completion": b["answer"]} for b in benchmark[:4]]
    made = corpus(
        tmp_path, leaks + rows, contamination={"benchmarks": ["benchmark.jsonl"]},
        splits={"seed": 3},
    )  # fmt: skip
    parts = made.splits()
    trained = parts["train"].filter(pl.col("line") <= 4).height
    found = made.split_records["test"].contamination
    counts = {part.of: (part.rows, part.contaminated) for part in found.rows}
    assert counts["benchmark.jsonl"] == (20, trained)
    assert counts["test"][1] == counts["validation"][1] == 0
    assert trained
    example = found.examples[0]
    assert example.of == "benchmark.jsonl"
    assert example.training_row.rsplit(":", 1)[1] in {"1", "2", "3", "4"}


def test_a_question_is_found_whatever_the_answer(tmp_path: Path) -> None:
    asked = words(30)
    exam = [{"question": asked, "answer": words(40)}, {"question": words(20), "answer": "x"}]
    write_jsonl(tmp_path / "exam.jsonl", exam)
    rows = [{"prompt": words(30), "completion": words(9), "split": ""} for _ in range(100)]
    leak = {"prompt": f"Please tell me: {asked} Thank you", "completion": words(60)}
    made = corpus(
        tmp_path,
        [leak | {"split": "train"}, *rows],
        contamination={"benchmarks": ["exam.jsonl"]},
        splits={"column": "split"},
    )
    assert 1 in made.splits()["train"]["line"]
    found = made.split_records["test"].contamination.rows
    counts = {part.of: part.contaminated for part in found}
    assert counts["exam.jsonl"] == 1


def test_a_missing_benchmark_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": words(9), "completion": words(9)} for _ in range(60)]
    made = corpus(tmp_path, rows, contamination={"benchmarks": ["none.jsonl"]})
    with pytest.raises(UserError, match=r"none.jsonl: no such file"):
        made.splits()
