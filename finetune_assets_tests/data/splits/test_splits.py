"""The same question, or nearly the same, is never in two splits; and rows keep their split."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from finetune_assets.catalog.config import Splits
from finetune_assets.data.corpora.cleaning import normalise
from finetune_assets.data.splits.splits import NODE_COLUMNS, SET_ASIDE, assign, count_leaks
from finetune_assets.errors import UserError
from finetune_assets_tests.data.data import Corpus, corpus, write_jsonl


def place(
    keys: Sequence[int],
    pairs: Sequence[tuple[int, int]] = (),
    pinned: Sequence[str | None] | None = None,
    sources: Sequence[int] | None = None,
    **config: Any,
) -> tuple[list[str], int]:
    """Split of every row, given the question (a number) that each asks; and what straddles."""
    rows = pl.DataFrame(
        {
            "id": [str(i) for i in range(len(keys))],
            "prompt_key": [_key(k) for k in keys],
            "split": pinned or [None] * len(keys),
            "source_index": sources or [0] * len(keys),
        },
        schema=dict(zip(NODE_COLUMNS, (pl.String, pl.UInt64, pl.String, pl.Int32), strict=True)),
    )
    near = pl.DataFrame(
        [(str(a), str(b)) for a, b in pairs],
        schema={"later": pl.String, "earlier": pl.String},
        orient="row",
    )
    made = assign(rows, near, Splits(**config), "data.yaml")
    names = [*("train", "validation", "test"), "set_aside"]
    return [names[i] for i in made.row], count_leaks(made)


def _key(question: int) -> int:
    return int.from_bytes(hashlib.blake2b(str(question).encode(), digest_size=8).digest())


def test_a_question_with_many_answers_stays_on_one_side(tmp_path: Path) -> None:
    spelled = ["Who are you?", "who are you", "  WHO  are you ?!", "Who are you？"]
    rows = [
        {"prompt": f"{text} {n}", "completion": f"{text} {n}"}
        for n in range(60)
        for text in spelled
    ]
    parts = corpus(tmp_path, rows, cleaning={"near_duplicates": {"action": "off"}}).splits()
    assert sum(p.height for p in parts.values()) == len(rows)
    assert all(p.height % len(spelled) == 0 for p in parts.values())


def test_with_fractions_no_row_ever_moves() -> None:
    before, _ = place(range(1000), validation=0.1, test=0.2)
    after, _ = place(range(1010), validation=0.1, test=0.2)
    assert after[:1000] == before
    assert 150 < before.count("test") < 250
    assert 70 < before.count("validation") < 130


def test_added_near_questions_move_no_row_and_do_not_straddle() -> None:
    generator = random.Random(0)
    rows = 2000
    pairs = [(i, generator.randrange(i)) for i in range(1, rows) if generator.random() < 0.3]
    before, leaked = place(range(rows), pairs)
    assert leaked == 0
    new = [(i, generator.randrange(i)) for i in range(rows, rows + 20) for _ in range(3)]
    after, leaked = place(range(rows + 20), pairs + new)
    assert leaked == 0
    assert after[:rows] == before
    assert before.count("set_aside") < 0.2 * rows


def test_a_question_near_two_splits_is_set_aside() -> None:
    assigned, _ = place(range(100))
    test, train = assigned.index("test"), assigned.index("train")
    after, leaked = place(range(101), [(100, test), (100, train)])
    assert after[:100] == assigned
    assert after[100] == "set_aside"
    assert leaked == 0


def test_counts_are_met() -> None:
    assigned, _ = place(range(100), validation=7, test=11)
    assert [assigned.count(n) for n in ("train", "validation", "test")] == [82, 7, 11]


def test_pinned_rows_go_where_they_say_and_fill_the_count() -> None:
    pinned = ["test"] * 5 + [None] * 95
    assigned, _ = place(range(100), pinned=pinned, test=9, validation=5)
    assert assigned[:5] == ["test"] * 5
    assert assigned.count("test") == 9


def test_a_pinned_row_takes_its_question_along_and_test_comes_first() -> None:
    keys = [0, 0, 0, *range(1, 50)]
    pinned = [None, "train", "test"] + [None] * 49
    assigned, leaked = place(keys, pinned=pinned)
    assert assigned[:3] == ["test", "set_aside", "test"]
    assert leaked == 0


def test_the_seed_counts() -> None:
    assert place(range(200), seed=0) != place(range(200), seed=1)


def test_small_sources_are_in_every_split_when_stratified() -> None:
    sources = [0] * 960 + [1] * 40
    assigned, _ = place(range(1000), sources=sources, stratify="source", test=0.1, validation=0.1)
    assert assigned[960:].count("test") == 4
    assert assigned[960:].count("validation") == 4
    assert assigned[:960].count("test") == 96
    assigned, _ = place(range(1000), sources=sources, stratify="source", test=100, validation=50)
    assert (assigned[960:].count("test"), assigned[960:].count("validation")) == (4, 2)


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(UserError, match="split has 0 of 3 rows"):
        place(range(3), test=0.001)
    with pytest.raises(UserError, match="90 rows ask nearly the same") as error:
        place(range(100), [(i, 0) for i in range(1, 90)], test=1, validation=0.0001)
    assert "near_duplicates.similarity" in str(error.value)


def test_normalisation_keeps_what_makes_another_question() -> None:
    texts = ["What is 2+3?", "what is 2 + 3", "What is 23?", "+ + +", "- - -"]
    same = normalise(texts).to_list()
    assert same[0] == same[1] != same[2]
    assert same[3] != same[4]


def test_planted_copies_of_test_rows_are_found_grouped_and_never_straddle(tmp_path: Path) -> None:
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefghijklmnop", k=5)) for _ in range(3000)]

    def sentence(count: int) -> str:
        return " ".join(generator.choices(words, k=count))

    def edited(text: str) -> str:
        return "".join(generator.choice("xyz") if generator.random() < 0.05 else c for c in text)

    rows = [{"prompt": sentence(40), "completion": sentence(30)} for _ in range(600)]
    originals = generator.sample(range(600), 100)
    planted = []
    for number, index in enumerate(originals):
        row = rows[index]
        change = (str.upper, lambda t: t.replace(" ", "  \n"), edited, lambda t: t)[number % 4]
        planted.append({k: change(v) for k, v in row.items()})
    paths = [write_jsonl(tmp_path / "a.jsonl", rows), write_jsonl(tmp_path / "b.jsonl", planted)]
    made = Corpus(tmp_path, [{"path": str(path)} for path in paths])
    exact = made.rejected.filter(pl.col("step") == "exact_duplicate").height
    assert exact == 25
    parts = made.splits()
    where = {
        (row["source"], row["line"]): name
        for name, part in parts.items()
        for row in part.iter_rows(named=True)
    }
    origin = dict(made.rows.select("id", pl.struct("source", "line")).iter_rows())
    missed = 0
    for number, index in enumerate(originals):
        copy = where.get((str(paths[1]), number + 1))
        if copy is not None and copy != where[str(paths[0]), index + 1]:
            missed += 1
    near = made.rows.filter(pl.col("source") == str(paths[1]))["duplicate_of"]
    found = sum(
        origin[id_]["line"] == originals[line - 1] + 1
        for id_, line in zip(
            near.to_list(),
            made.rows.filter(pl.col("source") == str(paths[1]))["line"].to_list(),
            strict=True,
        )
        if id_ is not None
    )
    assert missed == 0
    assert found == 75
    assert made.split_records["test"].leaked_prompts == 0


def test_adding_one_percent_of_rows_moves_none(tmp_path: Path) -> None:
    generator = random.Random(2)
    rows = [
        {
            "prompt": f"question {i} " + " ".join(generator.choices("abcdefgh", k=9)),
            "completion": "a",
        }
        for i in range(1000)
    ]
    new = [{**rows[i], "prompt": rows[i]["prompt"] + "!"} for i in range(5)]
    new += [{"prompt": f"something else {i}", "completion": "b"} for i in range(5)]
    before = corpus(tmp_path, rows).splits()
    after = corpus(tmp_path, rows + new).splits()
    placed = {row: name for name, part in after.items() for row in part["id"]}
    assert all(placed[row] == name for name, part in before.items() for row in part["id"])


def test_a_source_can_be_one_split_and_weigh_more(tmp_path: Path) -> None:
    files = [
        write_jsonl(
            tmp_path / f"{name}.jsonl",
            [{"prompt": f"{name} {i}", "completion": "c"} for i in range(40)],
        )
        for name in ("web", "exam", "gold")
    ]
    off = {"near_duplicates": {"action": "off"}}
    sources = [
        {"path": str(files[0]), "weight": 0.5},
        {"path": str(files[1]), "split": "test"},
        {"path": str(files[2]), "weight": 2.5, "split": "train"},
    ]
    parts = Corpus(tmp_path, sources, cleaning=off).splits()
    rows = {n: np.array(part["source"].to_list()) for n, part in parts.items()}
    assert (rows["test"] == str(files[1])).sum() == 40
    assert (rows["train"] == str(files[1])).sum() == 0
    assert 80 <= (rows["train"] == str(files[2])).sum() <= 120
    assert len(set(parts["train"].filter(pl.col("source") == str(files[2]))["line"])) == 40
    assert 5 <= (rows["train"] == str(files[0])).sum() <= 28


def test_nothing_set_aside_is_lost(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "completion": "c", "part": ""} for i in range(30)]
    rows += [{"prompt": "q 1", "completion": "d", "part": "test"}]
    rows += [{"prompt": "q 1", "completion": "e", "part": "train"}]
    made = corpus(
        tmp_path, rows, splits={"column": "part"}, cleaning={"near_duplicates": {"action": "off"}}
    )
    parts = made.splits()
    aside = pl.read_parquet(made.folder / "train" / "set_aside.parquet")
    assert aside["line"].to_list() == [32]
    assert sum(p.height for p in parts.values()) + aside.height == len(rows)
    assert made.split_records["train"].set_aside == 1
    assert SET_ASIDE == 3
