"""The text-to-SQL sample is what its generator makes, and its queries say something."""

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "text_to_sql"
SCHEMA_TABLE = re.compile(r"^(\w+)\(", re.MULTILINE)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    with (FOLDER / "questions.jsonl").open() as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.executescript((FOLDER / "database.sql").read_text())
    yield connection
    connection.close()


def tables_of(rows: list[dict[str, Any]], kind: str) -> set[str]:
    """Names in the schemas of the rows of a kind, seen or unseen."""
    return {name for r in rows if r["tables"] == kind for name in SCHEMA_TABLE.findall(r["input"])}


def test_the_seed_gives_the_committed_bytes(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "generate.py"), "--seed", "7", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("questions.jsonl", "database.sql"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


def test_every_query_has_a_result_that_its_filter_changes(
    rows: list[dict[str, Any]], database: sqlite3.Connection
) -> None:
    for row in rows:
        query = row["output"]
        result = database.execute(query).fetchall()
        assert result, query
        assert all(cell is not None for line in result for cell in line), query
        if " WHERE " in query:
            unfiltered = query[: query.index(" WHERE ")]
            assert result != database.execute(unfiltered).fetchall(), query
            assert result != [(0,)], query


def test_an_ordering_has_no_ties(rows: list[dict[str, Any]], database: sqlite3.Connection) -> None:
    orderings = {
        match.groups()
        for row in rows
        if (match := re.search(r"FROM (\w+) ORDER BY (\w+)", row["output"]))
    }
    assert orderings
    for table, column in orderings:
        query = f"SELECT COUNT(*) - COUNT(DISTINCT {column}) FROM {table}"
        assert database.execute(query).fetchone() == (0,), (table, column)


def test_foreign_keys_hold(database: sqlite3.Connection) -> None:
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []


def test_no_question_repeats(rows: list[dict[str, Any]]) -> None:
    questions = [" ".join(row["instruction"].casefold().split()) for row in rows]
    assert len(set(questions)) == len(questions)


def test_unseen_tables_occur_in_no_seen_row(rows: list[dict[str, Any]]) -> None:
    seen, unseen = tables_of(rows, "seen"), tables_of(rows, "unseen")
    assert len(seen) >= 24
    assert len(unseen) >= 6
    assert not seen & unseen
    for row in rows:
        if row["tables"] == "seen":
            words = set(re.findall(r"\w+", f"{row['instruction']} {row['input']} {row['output']}"))
            assert not words & unseen, row


def test_unseen_rows_alone_are_pinned_to_the_test_split(rows: list[dict[str, Any]]) -> None:
    pins = {(row["tables"], row["split"]) for row in rows}
    assert pins == {("seen", None), ("unseen", "test")}


def test_seen_and_unseen_rows_have_the_same_shapes(rows: list[dict[str, Any]]) -> None:
    seen = {row["shape"] for row in rows if row["tables"] == "seen"}
    unseen = {row["shape"] for row in rows if row["tables"] == "unseen"}
    assert seen == unseen
    assert len(seen) >= 8
