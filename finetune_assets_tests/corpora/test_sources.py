"""Every type of file is read with its lines; rubbish is named by file and line."""

import json
from pathlib import Path

import polars as pl
import pytest

from finetune_assets.corpora.sources import SourceFile, pin, read, sample
from finetune_assets.errors import UserError

ROWS = [{"prompt": "a", "completion": "1"}, {"prompt": "b\nc", "completion": "2"}]


def read_path(path: Path) -> pl.DataFrame:
    return read(pin([str(path)])[0])


def parsed(frame: pl.DataFrame) -> list[dict[str, str]]:
    return [json.loads(text) for text in frame["row"]]


def test_jsonl_keeps_line_numbers_over_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]) + "\n")
    frame = read_path(path)
    assert parsed(frame) == ROWS
    assert frame["line"].to_list() == [1, 3]


def test_json_rows_have_the_line_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=2))
    frame = read_path(path)
    assert parsed(frame) == ROWS
    assert frame["line"].to_list() == [2, 6]


def test_csv_rows_have_the_line_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"x\ny",1\nb,2\n')
    frame = read_path(path)
    assert parsed(frame) == [
        {"prompt": "x\ny", "completion": "1"},
        {"prompt": "b", "completion": "2"},
    ]
    assert frame["line"].to_list() == [2, 4]


def test_parquet(tmp_path: Path) -> None:
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    assert parsed(read_path(tmp_path / "a.parquet")) == ROWS


def test_globs_are_sorted_and_each_row_knows_its_file(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "p"}\n')
    files = pin([str(tmp_path / "*.jsonl")])
    assert [Path(f.uri).name for f in files] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', ["a.jsonl:2", "broken JSON at column 7"]),
        ("a.jsonl", b'{"a": 1}\n[1]\n', ["a.jsonl:2", "not an object"]),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ["a.jsonl:2", "not UTF-8"]),
        ("a.jsonl", b"", ["a.jsonl", "empty"]),
        ("a.jsonl", b" \n\n", ["a.jsonl", "empty"]),
        ("a.json", b'[\n{"a": 1},\n{"a": }\n]', ["a.json:3", "broken JSON"]),
        ("a.json", b'{"a": 1}', ["not a list"]),
        ("a.json", b"[]", ["no rows"]),
        ("a.csv", b"a,b\n1,2\n3\n", ["a.csv:3", "header's 2 columns"]),
        ("a.csv", b"a,b\n", ["no rows"]),
        ("a.parquet", b"rubbish", ["a.parquet", "not a readable Parquet"]),
    ],
)
def test_rubbish_is_named(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(SourceFile(str(path), 0, len(content), ""))
    for part in expected:
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["none.jsonl", "*.jsonl", "folder"])
def test_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no such file"):
        pin([str(tmp_path / name)])


def test_a_sample_is_stable_and_nested(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"prompt": "{i}"}}\n' for i in range(500)))
    rows = read_path(path)
    fifty, hundred = (set(sample(rows, n)["line"]) for n in (50, 100))
    assert len(fifty) == 50
    assert fifty < hundred
    assert 60 < sample(rows, 0.2).height < 140
    assert sample(rows, 1000).height == 500
