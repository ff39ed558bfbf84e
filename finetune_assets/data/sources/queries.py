"""Rows of SQL queries: PostgreSQL and Snowflake through ADBC, SQLite as it is."""

import contextlib
import importlib
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources.explain import explain_library_errors
from finetune_assets.data.sources.values import Rows, number
from finetune_assets.errors import UserError

_ADBC = {"postgres": "postgresql", "postgresql": "postgresql", "snowflake": "snowflake"}


def query_rows(source: Source, where: str, folder: Path | None) -> Rows:
    """Return the rows of a query as the database sends them; UserError where it sends none."""
    return _rows(_bare(source), source.connection or "", where, folder)


def query_version(source: Source, where: str, folder: Path | None) -> str:
    """Return how many rows a query has, counted by the database."""
    counted = f"SELECT count(*) AS n FROM (\n{_bare(source)}\n) AS q"
    (row,) = _rows(counted, source.connection or "", where, folder)
    return f"{int(row[next(iter(row))])} rows"


def _bare(source: Source) -> str:
    return (source.query or "").strip().rstrip(";").rstrip()


def _rows(query: str, connection: str, where: str, folder: Path | None) -> Rows:
    uri = _with_environment(connection, where)
    scheme = re.match(r"[A-Za-z][\w+.-]*(?=://)", uri)
    name = scheme.group().lower() if scheme else ""
    if name == "sqlite":
        return _sqlite_rows(query, uri, where, folder)
    if name in _ADBC:
        return _adbc_rows(query, uri, _ADBC[name], where)
    problem = f"begins with {name}://, which is not supported" if name else "is not a URI"
    remedy = "use postgresql://, sqlite:// or snowflake://"
    raise UserError(where, f"`connection` {problem}", remedy)


def _with_environment(connection: str, where: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] in os.environ:
            return os.environ[match[1]]
        cause = f"`connection` names the environment variable {match[1]}, which is not set"
        raise UserError(where, cause, f"set {match[1]} wherever the graph runs")

    return re.sub(r"\$\{([^}]*)\}", value, connection)


def _sqlite_rows(query: str, uri: str, where: str, folder: Path | None) -> Rows:
    """Yield rows as they are, because SQLite gives each value a type of its own.

    A table format would guess a column's type from its first values and fail on later ones.
    """
    path = (folder or Path()) / unquote(re.sub(r"^sqlite:/{2,3}|\?.*$", "", uri))
    if not path.is_file():
        raise UserError(
            where,
            f"no SQLite file {path}",
            "mend `connection`: sqlite:///rows.db lies beside this file, sqlite:////data/rows.db "
            "is an absolute path",
        )
    with (
        explain_library_errors(where, "mend `query`, or the file it reads", uri),
        contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db,
    ):
        cursor = db.execute(query)
        names = _distinct([column[0] for column in cursor.description or ()], where)
        for values in cursor:
            yield dict(zip(names, values, strict=True))


def _adbc_rows(query: str, uri: str, driver: str, where: str) -> Rows:
    """Yield rows as the server sends them, a batch of a few MB at a time."""
    try:
        dbapi = importlib.import_module(f"adbc_driver_{driver}.dbapi")
    except ImportError as error:
        cause = f"the driver for {driver}:// is not installed"
        raise UserError(where, cause, f"pip install adbc-driver-{driver}") from error
    userinfo = uri.partition("://")[2].rpartition("@")[0]
    if re.search(r"[@/?#\s]|%(?![0-9A-Fa-f]{2})", userinfo):
        cause = "user or password in `connection` holds a character that a URI gives a meaning"
        remedy = "percent-encode it: @ as %40, / as %2F, ? as %3F, # as %23, % as %25, space as %20"
        raise UserError(where, cause, remedy)
    address = uri.partition("://")[2] if driver == "snowflake" else uri
    with contextlib.ExitStack() as stack:
        with explain_library_errors(where, "start the server, or mend `connection`", uri):
            cursor = stack.enter_context(stack.enter_context(dbapi.connect(address)).cursor())
        with explain_library_errors(where, "mend `query`", uri):
            cursor.execute(f"{query}\n")  # a comment may end the query, and drivers add to it
            reader = cursor.fetch_record_batch()
            _distinct(reader.schema.names, where)
            changed = [(field.name, f) for field in reader.schema if (f := _to_json(field, where))]
            for batch in reader:
                for row in pl.DataFrame(batch).iter_rows(named=True):
                    for name, convert in changed:
                        if row[name] is not None:
                            row[name] = convert(row[name])
                    yield row


def _distinct(names: list[str], where: str) -> list[str]:
    if not names:
        raise UserError(where, "the query returns no columns", "write a SELECT")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(where, f"the query has columns of one name: {twice}", "rename one with AS")
    return names


def _to_json(field: pa.Field, where: str) -> Callable[[Any], object] | None:
    """Return what makes JSON of a column's values; None where they are JSON as they are."""
    kind, database = field.type, (field.metadata or {}).get(b"POSTGRESQL:type", b"").decode()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _to_json(kind.value_field, where)
        if inner is None:
            return None
        return lambda values: [None if value is None else inner(value) for value in values]
    if isinstance(kind, pa.JsonType):
        # Between tokens only: within a JSON string a line break is always escaped.
        return lambda text: orjson.Fragment(re.sub(r"[\r\n]", " ", text))
    if isinstance(kind, pa.UuidType):
        return lambda value: str(UUID(bytes=value))
    if pa.types.is_float32(kind):
        return np.float32  # 1.1, where a float of 64 bits shows 1.100000023841858
    if isinstance(kind, pa.OpaqueType) and kind.type_name == "numeric":
        return number
    if isinstance(kind, pa.OpaqueType) or pa.types.is_interval(kind) or database == "money":
        cause = f"column `{field.name}` is of type {database or kind}, which has no JSON form"
        remedy = f"write CAST({field.name} AS text) AS {field.name} in `query`"
        raise UserError(where, cause, remedy)
    return None
