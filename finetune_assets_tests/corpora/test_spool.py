"""Spooling from real stores: PostgreSQL, SQLite, saved datasets, functions."""

import datetime
import json
import os
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_assets.catalog.sources import Source
from finetune_assets.corpora.spool import cheap_version, is_saved_dataset, spool, spool_saved
from finetune_assets.errors import UserError
from finetune_assets_tests.stores.postgres import PASSWORD, free_port

WHERE = "/catalog/tiny.yaml: sources[0]"
TYPES = """
SELECT 9007199254740993::bigint AS big, 12345678901234567890.123456789::numeric AS exact,
  1.10::numeric(10, 2) AS price, 'NaN'::numeric AS no_number, ARRAY[1.5, 2]::numeric[] AS prices,
  TIMESTAMP '2024-01-02 03:04:05.123456' AS at, TIMESTAMPTZ '2024-01-02 03:04:05+02' AS at_zone,
  DATE '2024-01-02' AS day, '{"b": [1, null], "ä": "x"}'::jsonb AS tags,
  E'{"a":\\n 1}'::json AS text_tags, ARRAY['{"x": 1}'::jsonb] AS tag_list,
  ARRAY[1, NULL, 3] AS numbers, ARRAY['a', 'b,c'] AS words, NULL::text AS nothing,
  '\\xdeadbeef'::bytea AS raw, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS id,
  true AS yes, 'NaN'::float8 AS nan, 1.1::real AS short, E'two\\nlines' AS lines
-- a comment ends it"""
EXPECTED = {
    "big": 9007199254740993,
    "price": 1.10,
    "no_number": None,
    "prices": [1.5, 2],
    "at": "2024-01-02T03:04:05.123456",
    "at_zone": "2024-01-02T01:04:05+00:00",
    "day": "2024-01-02",
    "tags": {"b": [1, None], "ä": "x"},
    "text_tags": {"a": 1},
    "tag_list": [{"x": 1}],
    "numbers": [1, None, 3],
    "words": ["a", "b,c"],
    "nothing": None,
    "raw": "3q2+7w==",
    "id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "yes": True,
    "nan": None,
    "short": 1.1,
    "lines": "two\nlines",
}
MEASURE = """
import sys, adbc_driver_postgresql.dbapi, pyarrow, polars
from pathlib import Path
from finetune_assets.catalog.sources import Source
from finetune_assets.corpora.spool import spool

def peak() -> int:  # of this process alone, unlike ru_maxrss
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

before = peak()
spool(Source(query=sys.argv[1], connection=sys.argv[2]), Path(sys.argv[3]), "here")
print(peak() - before)
"""


@pytest.fixture
def rows_of(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Spool a source and read the file back."""

    def rows(folder: Path | None = None, **settings: Any) -> list[dict[str, Any]]:
        target = tmp_path / "spooled.jsonl"
        spool(Source.model_validate(settings), target, WHERE, folder)
        return [json.loads(line) for line in target.read_bytes().splitlines()]

    return rows


def failure(folder: Path | None = None, **settings: Any) -> UserError:
    """The error that spooling ends with; nothing may be left behind."""
    target, path = Path(folder or ".") / "never.jsonl", list(sys.path)
    with pytest.raises(UserError) as caught:
        spool(Source.model_validate(settings), target, WHERE, folder)
    assert sys.path == path
    assert caught.value.where.startswith(WHERE)
    assert not list(target.parent.glob("never*"))
    return caught.value


def sqlite(path: Path, script: str) -> str:
    with sqlite3.connect(path) as database:
        database.executescript(script)
    database.close()
    return f"sqlite:///{path}"


def module(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


# PostgreSQL


def test_types_come_out_as_json_that_people_expect(postgres: str, rows_of: Any) -> None:
    (row,) = rows_of(query=TYPES, connection=postgres)
    exact = row.pop("exact")
    assert exact == pytest.approx(12345678901234567890.123456789)
    assert row == EXPECTED


def test_decimals_keep_every_digit(postgres: str, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    spool(Source(query=TYPES, connection=postgres), target, WHERE)
    assert b'"exact":12345678901234567890.123456789,' in target.read_bytes()
    assert target.read_bytes().count(b"\n") == 1


def test_rows_keep_their_order_and_all_batches_arrive(postgres: str, rows_of: Any) -> None:
    query = "SELECT i, repeat('x', 2000) AS text FROM generate_series(1, 30000) AS i;"
    rows = rows_of(query=query, connection=postgres)
    assert [row["i"] for row in rows] == list(range(1, 30001))


def test_environment_is_replaced_in_the_connection_alone(
    postgres: str, rows_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS_URI", postgres)
    assert rows_of(query="SELECT '${ROWS_URI}' AS a", connection="${ROWS_URI}") == [
        {"a": "${ROWS_URI}"}
    ]


def test_missing_environment_variable_is_named() -> None:
    error = failure(query="SELECT 1", connection="postgresql://me:${NO_SUCH_NAME}@db/rows")
    assert "NO_SUCH_NAME" in error.cause


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT * FROM no_such_table", 'relation "no_such_table" does not exist'),
        ("SELECT 1 / (i - 5) AS a FROM generate_series(1, 9) AS i", "division by zero"),
        ("CREATE TABLE never (i int)", "no columns"),
        ("SELECT 1 AS a, 2 AS a", "columns of one name: ['a']"),
        ("SELECT INTERVAL '1 day' AS span", "column `span` is of type interval"),
        ("SELECT '127.0.0.1'::inet AS address", "column `address` is of type inet"),
        ("SELECT '12.34'::money AS price", "column `price` is of type money"),
        ("SELECT 1 AS a WHERE false", "no rows"),
    ],
)
def test_wrong_query(postgres: str, tmp_path: Path, query: str, said: str) -> None:
    error = failure(tmp_path, query=query, connection=postgres)
    assert said in error.cause
    assert_no_secret(error)


def test_a_query_changes_nothing(postgres: str, rows_of: Any) -> None:
    rows_of(query="SELECT set_config('a.b', 'c', false) AS a", connection=postgres)
    failure(query="CREATE TABLE left_behind AS SELECT 1 AS i", connection=postgres)
    error = failure(query="SELECT * FROM left_behind", connection=postgres)
    assert "does not exist" in error.cause


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("%3A1@", "%3A2@", "password authentication failed"),
        ("pass%2Fw%40rd%3A1", PASSWORD, "a character that a URI gives a meaning"),
        ("pass%2Fw", "pass%2Gw", "a character that a URI gives a meaning"),
        ("/postgres", "/no_such_database", 'database "no_such_database" does not exist'),
        ("127.0.0.1:", "127.0.0.1:x", "invalid integer value"),
        ("postgresql:", "oracle:", "oracle://, which is not supported"),
        ("postgresql://", "", "not a URI"),
    ],
)
def test_wrong_connection(postgres: str, tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in postgres
    error = failure(tmp_path, query="SELECT 1 AS a", connection=postgres.replace(old, new))
    assert said in error.cause
    assert_no_secret(error)


def test_missing_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adbc_driver_snowflake", None)
    error = failure(tmp_path, query="SELECT 1", connection="snowflake://me:s3cret@account/db")
    assert "the driver for snowflake:// is not installed" in error.cause
    assert error.remedy == "pip install adbc-driver-snowflake"
    assert "s3cret" not in "".join(traceback.format_exception(error))


def test_password_in_a_parameter_is_hidden(tmp_path: Path) -> None:
    address = f"postgresql://127.0.0.1:{free_port()}/secret-1?user=me&password=secret-1"
    error = failure(tmp_path, query="SELECT 1 AS a", connection=address)
    assert "Connection refused" in error.cause
    assert "secret" not in "".join(traceback.format_exception(error))


def test_password_that_a_server_repeats_is_hidden(postgres: str, tmp_path: Path) -> None:
    error = failure(tmp_path, query=f"SELECT '{PASSWORD}'::int AS a", connection=postgres)
    assert "***" in error.cause
    assert_no_secret(error)


def test_server_down(postgres: str, tmp_path: Path) -> None:
    down = postgres.replace(postgres.rpartition(":")[2], f"{free_port()}/postgres")
    error = failure(tmp_path, query="SELECT 1 AS a", connection=down)
    assert "Connection refused" in error.cause
    assert "start the server" in error.remedy
    assert_no_secret(error)


def test_memory_stays_bounded(postgres: str, tmp_path: Path) -> None:
    query = "SELECT i, repeat(md5(i::text), 64) AS text FROM generate_series(1, 200000) AS i"
    target = tmp_path / "big.jsonl"
    command = [sys.executable, "-c", MEASURE, query, postgres, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert target.stat().st_size > 400e6
    assert int(done.stdout) < 300


def test_version_of_a_query_is_its_count(postgres: str) -> None:
    query = "SELECT i FROM generate_series(1, 12) AS i -- twelve"
    assert cheap_version(Source(query=query, connection=postgres), WHERE) == "12 rows"


def assert_no_secret(error: UserError) -> None:
    """Neither the password nor the userinfo, escaped or not, whole or in part."""
    shown = "".join(traceback.format_exception(error)).split("finetune_assets.errors.UserError")
    assert len(shown) == 2, "the driver's own error is shown too"
    for piece in (PASSWORD, "pass/w", "w@rd", "rd:", "%2Fw", "%40rd", "finetune:"):
        assert piece not in shown[1]


# SQLite


def test_sqlite_types_are_those_of_each_value(tmp_path: Path, rows_of: Any) -> None:
    nulls = ",".join(["(NULL, NULL)"] * 3000)
    uri = sqlite(
        tmp_path / "rows.db",
        f"CREATE TABLE t (a, b); INSERT INTO t VALUES {nulls}, (1, 'x'), (1.5, x'dead');",
    )
    rows = rows_of(query="SELECT * FROM t", connection=uri)
    assert rows[-2:] == [{"a": 1, "b": "x"}, {"a": 1.5, "b": "3q0="}]
    assert rows[0] == {"a": None, "b": None}
    assert cheap_version(Source(query="SELECT * FROM t;", connection=uri), WHERE) == "3002 rows"


def test_sqlite_file_beside_the_catalog_file(tmp_path: Path, rows_of: Any) -> None:
    sqlite(tmp_path / "my rows.db", "CREATE TABLE t (a); INSERT INTO t VALUES (1);")
    rows = rows_of(tmp_path, query="SELECT a FROM t", connection="sqlite:///my%20rows.db")
    assert rows == [{"a": 1}]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELEC 1", 'near "SELEC": syntax error'),
        ("SELECT * FROM no_such", "no such table: no_such"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("DELETE FROM t", "readonly"),
        ("SELECT 1 AS a, 2 AS a", "columns of one name"),
    ],
)
def test_wrong_sqlite_query(tmp_path: Path, query: str, said: str) -> None:
    uri = sqlite(tmp_path / "rows.db", "CREATE TABLE t (a); INSERT INTO t VALUES (1);")
    assert said in failure(tmp_path, query=query, connection=uri).cause


def test_missing_sqlite_file_is_not_made(tmp_path: Path) -> None:
    error = failure(tmp_path, query="SELECT 1", connection="sqlite:///no.db")
    assert str(tmp_path / "no.db") in error.cause
    assert not (tmp_path / "no.db").exists()


# Datasets of the Hugging Face library


def saved(folder: Path) -> Path:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict(
        {
            "text": ["a", "b"],
            "more": [{"x": [1.5]}, {"x": []}],
            "at": [datetime.date(2024, 1, 2)] * 2,
        }
    )
    DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(folder / "both")
    rows.save_to_disk(folder / "one")
    return folder


def test_saved_datasets(tmp_path: Path) -> None:
    folder, target = saved(tmp_path), tmp_path / "out.jsonl"
    first, second = (
        {"text": "a", "more": {"x": [1.5]}, "at": "2024-01-02"},
        {"text": "b", "more": {"x": []}, "at": "2024-01-02"},
    )
    for name, parts, expected in (
        ("one", [], [first, second]),
        ("both", [], [first, second, second]),
        ("both", ["test"], [second]),
    ):
        assert is_saved_dataset(folder / name)
        spool_saved(folder / name, parts, target, WHERE)
        assert [json.loads(line) for line in target.read_text().splitlines()] == expected
    assert not is_saved_dataset(tmp_path)


def test_wrong_saved_dataset(tmp_path: Path) -> None:
    folder, target = saved(tmp_path), tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"no split \['dev'\] among \['train', 'test'\]"):
        spool_saved(folder / "both", ["dev"], target, WHERE)
    next((folder / "one").glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(UserError, match="again with save_to_disk"):
        spool_saved(folder / "one", [], target, WHERE)
    assert not target.exists()


HUB_FILES = {
    "README.md": b"---\nconfigs:\n- config_name: all\n  default: true\n  data_files:\n"
    b"  - {split: train, path: a.jsonl}\n  - {split: test, path: b.jsonl}\n"
    b"- config_name: small\n  data_files: b.jsonl\n---\n",
    "a.jsonl": b'{"text": "a"}\n{"text": "b"}\n',
    "b.jsonl": b'{"text": "c"}\n',
}
COMMIT = "c" * 40
HUB_CALL = """
import json, sys
from pathlib import Path
from finetune_assets.catalog.sources import Source
from finetune_assets.corpora.spool import cheap_version, spool
source, target = Source(**json.loads(sys.argv[1])), Path(sys.argv[2])
spool(source, target, sys.argv[3])
print(cheap_version(source, sys.argv[3]), *target.read_text().split())
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a dataset of files at one tag, org/rows@v1, needs."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0].removeprefix("/api")
        name = path.rpartition("/")[2]
        if not path.startswith("/datasets/org/rows"):
            self.answer(404, code="RepoNotFound")
        elif "/resolve/" in path and name in HUB_FILES:
            self.answer(200, HUB_FILES[name])
        elif "/resolve/" in path:
            self.answer(404, code="EntryNotFound")
        elif "/tree/" in path:
            files = [{"path": p, "size": len(body)} for p, body in HUB_FILES.items()]
            self.json([{"type": "file", "oid": "1", **file} for file in files])
        elif name in ("v1", COMMIT):
            self.json({"id": "org/rows", "sha": COMMIT, "siblings": [], "private": False})
        else:
            self.answer(404, code="RevisionNotFound")

    do_HEAD = do_GET

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode())

    def answer(self, status: int, body: bytes = b"", code: str = "") -> None:
        self.send_response(status)
        headers = {"X-Error-Code": code, "X-Repo-Commit": COMMIT, "ETag": '"1"'}
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def spool_hub(endpoint: str, tmp_path: Path, **settings: Any) -> tuple[str, str]:
    """Output and errors of a process of its own: the hub's address is read at import."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
    arguments = [json.dumps(settings), str(tmp_path / "out.jsonl"), WHERE]
    command = [sys.executable, "-c", HUB_CALL, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("settings", "rows"),
    [({}, "abc"), ({"parts": ["test"]}, "c"), ({"subset": "small"}, "c")],
)
def test_hub(hub: str, tmp_path: Path, settings: dict[str, Any], rows: str) -> None:
    output, errors = spool_hub(hub, tmp_path, hub="org/rows@v1", **settings)
    assert output.split() == [COMMIT, *(f'{{"text":"{row}"}}' for row in rows)], errors


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hub": "org/rows@v9"}, "org/rows has no revision v9"),
        ({"hub": "org/none@v1"}, "the hub shows no dataset org/none"),
        ({"hub": "org/rows@v1", "parts": ["dev"]}, "no split ['dev'] among ['train', 'test']"),
        ({"hub": "org/rows@v1", "subset": "large"}, "'large' not found. Available: ['all', 's"),
    ],
)
def test_wrong_hub_dataset(hub: str, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    output, errors = spool_hub(hub, tmp_path, **settings)
    assert f"UserError: {WHERE}: " in errors
    assert said in errors
    assert output == ""


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [("http://127.0.0.1:{port}", "Connection refused"), ("http://hub.invalid", "not known")],
)
def test_hub_out_of_reach(tmp_path: Path, endpoint: str, said: str) -> None:
    _, errors = spool_hub(endpoint.format(port=free_port()), tmp_path, hub="org/rows@main")
    assert f"UserError: {WHERE}: " in errors
    assert said in errors
    assert "remedy: check the network" in errors


# Functions


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
