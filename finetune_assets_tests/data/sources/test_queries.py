"""Rows of queries on a real PostgreSQL server and on SQLite files."""

import sqlite3
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources.spool import cheap_version, spool
from finetune_assets.errors import UserError
from finetune_assets_tests.data.sources.spooling import WHERE, failure
from finetune_assets_tests.stores.postgres import PASSWORD, free_port

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


def assert_no_secret(error: UserError) -> None:
    """Neither the password nor the userinfo, escaped or not, whole or in part."""
    shown = "".join(traceback.format_exception(error)).split("finetune_assets.errors.UserError")
    assert len(shown) == 2, "the driver's own error is shown too"
    for piece in (PASSWORD, "pass/w", "w@rd", "rd:", "%2Fw", "%40rd", "finetune:"):
        assert piece not in shown[1]


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


def test_version_of_a_query_is_its_count(postgres: str) -> None:
    query = "SELECT i FROM generate_series(1, 12) AS i -- twelve"
    assert cheap_version(Source(query=query, connection=postgres), WHERE) == "12 rows"


# SQLite


def sqlite(path: Path, script: str) -> str:
    with sqlite3.connect(path) as database:
        database.executescript(script)
    database.close()
    return f"sqlite:///{path}"


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
