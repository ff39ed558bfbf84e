"""Rows that a Python function yields."""

import datetime
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources.spool import cheap_version
from finetune_assets_tests.data.sources.spooling import WHERE, failure


def module(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def test_function_beside_the_catalog_file(tmp_path: Path, rows_of: Any) -> None:
    text = """
import decimal, numpy as np
def rows(count, word="a"):
    for i in range(count):
        yield {"i": np.int64(i), "word": word, "set": {"b", "a"}, "price": decimal.Decimal("1.10"),
               "list": np.array([[1.0, np.nan]])[:, ::-1], "none": float("nan"), 5: b"x"}
"""
    module(tmp_path, "beside", text)
    before = list(sys.path)
    source = {"function": "beside:rows", "arguments": {"count": 2}}
    expected = {"word": "a", "set": ["a", "b"], "price": 1.1, "list": [[None, 1.0]]}
    rows = rows_of(tmp_path, **source)
    assert rows == [{"i": i, **expected, "none": None, "5": "eA=="} for i in range(2)]
    assert sys.path == before


def test_function_in_the_current_directory(
    tmp_path: Path, rows_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rows").mkdir()
    module(tmp_path / "my_rows", "made", "def rows():\n    return [{'a': 1}]\n")
    monkeypatch.chdir(tmp_path)
    assert rows_of(function="my_rows.made:rows") == [{"a": 1}]


FAULTS = """
import json
def fails():
    yield {"a": 1}
    raise KeyError("prompt")
def deep():
    yield json.loads("{")
def text():
    yield "a row"
def nothing():
    pass
def one():
    return {"a": 1}
def none():
    yield from ()
def odd():
    yield {"good": 1, "bad": object()}
number = 1
"""


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("faults:fails", {}, "function faults:fails: KeyError: 'prompt', raised at FILE:5"),
        ("faults:deep", {}, "decoder.py:"),
        ("faults:deep", {}, "called at FILE:7"),
        ("faults:text", {}, "yields str as row 1"),
        ("faults:nothing", {}, "returns NoneType"),
        ("faults:one", {}, "returns dict"),
        ("faults:none", {}, "no rows"),
        ("faults:odd", {}, "column `bad`"),
        ("faults:number", {}, "FILE has no function number"),
        ("faults:absent", {}, "FILE has no function absent"),
        ("faults:none", {"size": 1}, "unexpected keyword argument 'size'"),
        ("no_such_module:rows", {}, "there is no module no_such_module"),
        ("no_such.module:rows", {}, "there is no module no_such.module"),
        ("unfinished:rows", {}, "No module named 'no_such_library', raised at"),
        ("misspelt:rows", {}, "SyntaxError"),
    ],
)
def test_faulty_function(tmp_path: Path, name: str, arguments: dict[str, Any], said: str) -> None:
    file = module(tmp_path, "faults", FAULTS)
    module(tmp_path, "unfinished", "import no_such_library\n")
    module(tmp_path, "misspelt", "def rows(:\n")
    try:
        error = failure(tmp_path, function=name, arguments=arguments)
    finally:
        for imported in ("faults", "unfinished", "misspelt"):
            sys.modules.pop(imported, None)
    assert said.replace("FILE", str(file)) in error.cause


def test_version_of_a_function_follows_its_module_and_arguments(tmp_path: Path) -> None:
    def version(**arguments: Any) -> str:
        source = Source(function="versioned:rows", arguments=arguments)
        return cheap_version(source, WHERE, tmp_path)

    module(tmp_path, "versioned", "def rows():\n    yield {}\n")
    first = version(since=datetime.date(2024, 1, 1))
    assert version(since=datetime.date(2024, 1, 1)) == first
    assert version(since=datetime.date(2024, 1, 2)) != first
    module(tmp_path, "versioned", "def rows():\n    yield {'a': 1}\n")
    assert version(since=datetime.date(2024, 1, 1)) != first
