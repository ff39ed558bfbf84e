"""Every type of file is read with its lines; rubbish is named by file and line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_assets.data.sources import files
from finetune_assets.errors import UserError

ROWS = [{"prompt": "a", "completion": "1"}, {"prompt": "b\nc", "completion": "2"}]


def read(path: Path) -> tuple[list[int], list[dict[str, Any]]]:
    rows = [row for batch in files.read_rows(str(path)) for row in batch]
    return [line for line, _ in rows], [files.parse(text) for _, text in rows]


def test_jsonl_keeps_line_numbers_over_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]) + "\n")
    assert read(path) == ([1, 3], ROWS)


def test_json_rows_have_the_line_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=2))
    assert read(path) == ([2, 6], ROWS)


def test_json_named_files_of_lines_are_read_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert read(path) == ([1, 2], ROWS)


def test_a_json_list_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK", 7)
    rows = [{"text": "x" * n, "n": n} for n in range(40)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=1))
    assert read(path)[1] == rows
    path.write_text(json.dumps(rows)[:-40])
    with pytest.raises(UserError, match=r"a\.json:1"):
        read(path)


def test_csv_rows_have_the_line_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"x\ny",1\nb,2\n')
    assert read(path) == (
        [2, 4],
        [{"prompt": "x\ny", "completion": "1"}, {"prompt": "b", "completion": "2"}],
    )


def test_nan_and_lone_surrogates_are_survived(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": NaN, "b": "\\ud800x", "c": 123456789012345678901234567890}\n')
    ((_, text),) = (row for batch in files.read_rows(str(path)) for row in batch)
    assert text == '{"a": null, "b": "?x", "c": 123456789012345678901234567890}'


def _arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.parquet": lambda p: pl.DataFrame(ROWS).write_parquet(p),
    "a.arrow": lambda p: pl.DataFrame(ROWS).write_ipc(p, compat_level=pl.CompatLevel.oldest()),
    "stream.arrow": _arrow_stream,
    "a.tsv": lambda p: p.write_text('prompt\tcompletion\na\t1\n"b\nc"\t2\n'),
    "a.ndjson": lambda p: p.write_text("\n".join(map(json.dumps, ROWS))),
    "a.jsonl.gz": lambda p: p.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "a.json.zst": lambda p: p.write_bytes(zstandard.compress(json.dumps(ROWS).encode())),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_type_and_compression(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name)[1] == ROWS


@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("# Title\n\ncontent\n")
    assert read(tmp_path / name) == ([1], [{"text": "# Title\n\ncontent\n"}])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', ["a.jsonl:2", "broken JSON at column 7"]),
        ("a.jsonl", b'{"a": 1}\n[1]\n', ["a.jsonl:2", "not an object"]),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ["a.jsonl:2", "not UTF-8"]),
        ("a.jsonl", b"", ["a.jsonl", "no rows"]),
        ("a.jsonl", b" \n\n", ["a.jsonl", "no rows"]),
        ("a.json", b'[\n{"a": 1},\n{"a": }\n]', ["a.json:3", "broken JSON"]),
        ("a.json", b'[\n{"a": 1},\n', ["a.json", "not closed"]),
        ("a.json", b'[\n{"a": 1},\n2]', ["a.json:3", "not an object"]),
        ("a.json", b'"text"', ["not a list"]),
        ("a.json", b"[]", ["no rows"]),
        ("a.json", b'[{"a": 1}]\n[{"a": 2}]', ["a.json:1", "something follows"]),
        ("a.csv", b"a,b\n1,2\n3\n", ["a.csv:3", "header's 2 columns"]),
        ("a.csv", b"a,a\n1,2\n", ["a.csv:1", "a column twice"]),
        ("a.csv", b'a,b\n1,"2\n', ["a.csv:2", "broken CSV"]),
        ("a.csv", b"a,b\n", ["no rows"]),
        ("a.parquet", b"rubbish", ["a.parquet", "damaged"]),
        ("a.arrow", b"rubbish", ["a.arrow", "damaged"]),
        ("a.jsonl.gz", b"rubbish", ["a.jsonl.gz", "cannot be read"]),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], ["a.jsonl.gz", "damaged"]),
        ("a.jsonl.zst", b"rubbish", ["a.jsonl.zst", "damaged"]),
        ("a.txt", b"  \n", ["a.txt", "no rows"]),
        ("a.txt", b"\xff\xfe", ["a.txt", "not UTF-8"]),
    ],
)
def test_rubbish_is_named(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path)
    for part in expected:
        assert part in str(error.value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from([*files.READERS, ".jsonl.gz", ".csv.zst"]),
    content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode),
)
def test_any_bytes_are_rows_or_one_clear_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(content)
    problem, rows = "", []
    try:
        rows = read(path)[1]
    except UserError as error:
        problem = error.where
    assert bool(rows) != bool(problem)
    assert not problem or "fuzz" in problem
    assert all(isinstance(row, dict) for row in rows)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.dictionaries(
            st.text(min_size=1, max_size=5),
            st.recursive(
                st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=9),
                lambda inner: st.lists(inner, max_size=3),
                max_leaves=4,
            ),
        ),
        min_size=1,
        max_size=8,
    ),
    indent=st.sampled_from([None, 1]),
)
def test_what_was_written_is_read(tmp_path: Path, rows: list[dict[str, Any]], indent: Any) -> None:
    lines, listed = tmp_path / "fuzz.jsonl", tmp_path / "fuzz.json"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed.write_text(json.dumps(rows, indent=indent))
    assert read(lines)[1] == rows
    assert read(listed)[1] == rows
