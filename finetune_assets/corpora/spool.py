"""Spooling: rows of sources that are no files, as a local JSONL file, in bounded memory."""

import base64
import contextlib
import datetime
import importlib
import importlib.util
import inspect
import os
import re
import sqlite3
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

import orjson
import polars as pl

from finetune_assets.catalog.sources import Source
from finetune_assets.errors import UserError
from finetune_assets.storage.fingerprint import digest, file_digest

Row = dict[str, Any]
Rows = Generator[Row, None, None]
Convert = Callable[[Any], Any]

HUB_TIMEOUT = 30.0
"""Seconds to wait for the hub's answer to what a revision is."""
SAVED_MARKS = ("state.json", "dataset_dict.json")
"""What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in a folder."""

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
_ADBC = {"postgres": "postgresql", "postgresql": "postgresql", "snowflake": "snowflake"}


def spool(source: Source, target: Path, where: str, folder: Path | None = None) -> None:
    """Write the rows of a query, hub dataset or function to `target`, one JSON object a line.

    `where` is named in errors. `folder` is the catalog file's: functions are imported from it and
    from the current directory, and an SQLite file is looked for in it.

    Raises:
        UserError: the rows cannot be had, or there are none. `target` is then left as it was.
    """
    _write(_rows(source, where, folder), target, where)


def spool_saved(folder: Path, parts: list[str], target: Path, where: str) -> None:
    """Write the rows of a folder that `save_to_disk` wrote; `parts` are splits, default all.

    Raises:
        UserError: the folder cannot be read, or has no such split.
    """
    _write(_saved_rows(folder, parts, where), target, where)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of the datasets library wrote this folder."""
    return any((folder / mark).is_file() for mark in SAVED_MARKS)


def cheap_version(source: Source, where: str, folder: Path | None = None) -> str:
    """What tells that rows changed without reading them: the row count of a query, the commit of
    a hub dataset, the hash of a function's module and arguments.

    Raises:
        UserError: as `spool` does.
    """
    if source.query is not None:
        counted = f"SELECT count(*) AS n FROM (\n{_bare(source.query)}\n) AS q"
        (row,) = _query_rows(counted, source.connection or "", where, folder)
        return f"{int(row[next(iter(row))])} rows"
    if source.hub is not None:
        return _hub_commit(source.hub, where)
    if source.function is not None:
        arguments = orjson.dumps(source.arguments, default=_plain, option=orjson.OPT_SORT_KEYS)
        with _importable(folder):
            return digest([file_digest(_module_file(source.function, where)), arguments.decode()])
    raise ValueError(f"{where}: files are no spooled source")


def _rows(source: Source, where: str, folder: Path | None) -> Rows:
    if source.query is not None:
        return _query_rows(_bare(source.query), source.connection or "", where, folder)
    if source.hub is not None:
        return _hub_rows(source, where)
    if source.function is not None:
        return _function_rows(source.function, source.arguments, where, folder)
    raise ValueError(f"{where}: files are no spooled source")


# Writing


def _write(rows: Rows, target: Path, where: str) -> None:
    part = target.with_name(f"{target.name}.part")
    number = 0
    try:
        with contextlib.closing(rows), part.open("wb") as file:
            for number, row in enumerate(rows, 1):
                file.write(_line(row, f"{where}, row {number}"))
        if number == 0:
            raise UserError(where, "it gave no rows", "mend what it selects, or remove the source")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _line(row: Row, where: str) -> bytes:
    try:
        return orjson.dumps(row, default=_plain, option=_OPTIONS)
    except orjson.JSONEncodeError as error:
        column = next((name for name, value in row.items() if not _encodes(value)), "?")
        raise UserError(
            where, f"column `{column}`: {error}", "leave the column out, or make it text or numbers"
        ) from error


def _encodes(value: Any) -> bool:
    try:
        orjson.dumps(value, default=_plain, option=_OPTIONS)
    except orjson.JSONEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """JSON for what JSON has no type for: base64 for bytes, a sorted list for a set."""
    match value:
        case Decimal():
            return _number(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case set() | frozenset():
            return sorted(value, key=str)
        case datetime.date() | datetime.time():  # subclasses, such as pandas.Timestamp
            return value.isoformat()
    if hasattr(value, "tolist"):  # NumPy, where orjson does not know the dtype
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _number(value: str | Decimal) -> orjson.Fragment | None:
    """A decimal with every digit it has; a float would round it."""
    return orjson.Fragment(str(value)) if Decimal(value).is_finite() else None


# Queries


def _query_rows(query: str, connection: str, where: str, folder: Path | None) -> Rows:
    uri = _with_environment(connection, where)
    scheme = re.match(r"[A-Za-z][\w+.-]*(?=://)", uri)
    name = scheme.group().lower() if scheme else ""
    if name == "sqlite":
        return _sqlite_rows(query, uri, where, folder)
    if name in _ADBC:
        return _adbc_rows(query, uri, _ADBC[name], where)
    raise UserError(
        where,
        f"`connection` begins with {name}://, which is not supported"
        if name
        else "`connection` is not a URI",
        "use postgresql://, sqlite:// or snowflake://",
    )


def _with_environment(connection: str, where: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] in os.environ:
            return os.environ[match[1]]
        raise UserError(
            where,
            f"`connection` names the environment variable {match[1]}, which is not set",
            f"set {match[1]} wherever the graph runs",
        )

    return re.sub(r"\$\{([^}]*)\}", value, connection)


def _bare(query: str) -> str:
    return query.strip().rstrip(";").rstrip()


def _sqlite_rows(query: str, uri: str, where: str, folder: Path | None) -> Rows:
    """SQLite gives each value a type of its own, so rows are read as they are: a table format,
    polars' or Arrow's, would guess a column's type from its first values and fail on later ones."""
    path = (folder or Path()) / unquote(re.sub(r"^sqlite:/{2,3}|\?.*$", "", uri))
    if not path.is_file():
        raise UserError(
            where,
            f"no SQLite file {path}",
            "mend `connection`: sqlite:///rows.db lies beside this file, sqlite:////data/rows.db "
            "is an absolute path",
        )
    with (
        _explained(where, "mend `query`, or the file it reads", uri),
        contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db,
    ):
        cursor = db.execute(query)
        names = _distinct([column[0] for column in cursor.description or ()], where)
        for values in cursor:
            yield dict(zip(names, values, strict=True))


def _adbc_rows(query: str, uri: str, driver: str, where: str) -> Rows:
    """Rows as the server sends them, a batch of a few MB at a time."""
    try:
        dbapi = importlib.import_module(f"adbc_driver_{driver}.dbapi")
    except ImportError as error:
        raise UserError(
            where,
            f"the driver for {driver}:// is not installed",
            f"pip install adbc-driver-{driver}",
        ) from error
    userinfo = uri.partition("://")[2].rpartition("@")[0]
    if re.search(r"[@/?#\s]|%(?![0-9A-Fa-f]{2})", userinfo):
        raise UserError(
            where,
            "user or password in `connection` holds a character that a URI gives a meaning",
            "percent-encode it: @ as %40, / as %2F, ? as %3F, # as %23, % as %25, space as %20",
        )
    address = uri.partition("://")[2] if driver == "snowflake" else uri
    with contextlib.ExitStack() as stack:
        with _explained(where, "start the server, or mend `connection`", uri):
            cursor = stack.enter_context(stack.enter_context(dbapi.connect(address)).cursor())
        with _explained(where, "mend `query`", uri):
            cursor.execute(f"{query}\n")  # a comment may end the query, and drivers add to it
            reader = cursor.fetch_record_batch()
            names = _distinct(reader.schema.names, where)
            converts = {field.name: _convert(field, where) for field in reader.schema}
            changed = [(name, f) for name in names if (f := converts[name]) is not None]
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


def _convert(field: Any, where: str) -> Convert | None:
    """How a column's values become JSON, by its Arrow field; None: as they are."""
    import numpy as np
    import pyarrow as pa

    kind, database = field.type, (field.metadata or {}).get(b"POSTGRESQL:type", b"").decode()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _convert(kind.value_field, where)
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
        return _number
    if isinstance(kind, pa.OpaqueType) or pa.types.is_interval(kind) or database == "money":
        raise UserError(
            where,
            f"column `{field.name}` is of type {database or kind}, which has no JSON form",
            f"write CAST({field.name} AS text) AS {field.name} in `query`",
        )
    return None


@contextlib.contextmanager
def _explained(where: str, remedy: str, uri: str = "") -> Iterator[None]:
    """Failures of a library as a UserError without the URI's secrets.

    The library's own error may hold them, and so is not kept as the cause.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).split("\n\nQuery was:")[0].strip() or type(error).__name__
        raise UserError(where, _redact(text, uri), remedy) from None


def _redact(text: str, uri: str) -> str:
    userinfo = uri.partition("://")[2].rpartition("@")[0]
    secrets = [userinfo.partition(":")[2]]
    for name, value in re.findall(r"[?&]([^=&]+)=([^&]*)", uri):
        if re.search("pass|token|key|secret", name, re.IGNORECASE):
            secrets.append(value)
    text = re.sub(r"//[^\s/@]*@", "//***@", text)
    for secret in sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


# Datasets of the Hugging Face library


def _hub_commit(hub: str, where: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    name, revision = hub.split("@")
    with _explained(where, "check the network and the name in `hub`"):
        try:
            info: Any = HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT)
            return info.sha
        except RevisionNotFoundError as error:
            raise UserError(
                where, f"{name} has no revision {revision}", "mend what follows @ in `hub`"
            ) from error
        except RepositoryNotFoundError as error:
            raise UserError(
                where,
                f"the hub shows no dataset {name}",
                "mend `hub`; a private or gated dataset needs HF_TOKEN",
            ) from error


def _hub_rows(source: Source, where: str) -> Rows:
    hub = source.hub or ""
    commit = _hub_commit(hub, where)
    import datasets

    with _explained(where, "check the network, `hub` and `subset`"):
        loaded: Any = datasets.load_dataset(
            hub.split("@")[0], source.subset, revision=commit, streaming=True
        )
        for part in _chosen(list(loaded), source.parts, where):
            yield from loaded[part]


def _saved_rows(folder: Path, parts: list[str], where: str) -> Rows:
    import datasets

    with _explained(where, f"write {folder} again with save_to_disk"):
        loaded: Any = datasets.load_from_disk(str(folder))
        if isinstance(loaded, datasets.Dataset):
            loaded = {str(loaded.split or "train"): loaded}
        for part in _chosen(list(loaded), parts, where):
            yield from loaded[part]


def _chosen(available: list[str], parts: list[str], where: str) -> list[str]:
    missing = [part for part in parts if part not in available]
    if missing:
        raise UserError(
            where, f"no split {missing} among {available}", "mend `parts`, or leave it out"
        )
    return parts or available


# Functions


@contextlib.contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """The current and the catalog's folder, after all others: no library is hidden by a file."""
    given = [str(path.resolve()) for path in (Path(), folder) if path is not None]
    added = [path for path in dict.fromkeys(given) if path not in sys.path]
    importlib.invalidate_caches()
    sys.path.extend(added)
    try:
        yield
    finally:
        for path in added:
            sys.path.remove(path)


def _module_file(name: str, where: str) -> Path:
    module = name.split(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    except Exception as error:
        raise _raised(name, error, None, where) from error
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise UserError(
            where,
            f"function {name}: there is no module {module}",
            "put its file beside the catalog file or in the current directory, or install it",
        )
    return Path(spec.origin)


def _function_rows(name: str, arguments: Row, where: str, folder: Path | None) -> Rows:
    with _importable(folder):
        file = _module_file(name, where)
        try:
            rows = _function(name, arguments, file, where)(**arguments)
            if isinstance(rows, dict | str) or not isinstance(rows, Iterable):
                raise _no_rows(name, f"returns {type(rows).__name__}", where)
            for number, row in enumerate(rows, 1):
                if not isinstance(row, dict):
                    raise _no_rows(name, f"yields {type(row).__name__} as row {number}", where)
                yield row
        except UserError:
            raise
        except Exception as error:
            raise _raised(name, error, file, where) from error


def _function(name: str, arguments: Row, file: Path, where: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute, None)
    if not callable(function):
        raise UserError(
            where, f"{file} has no function {attribute}", f"mend `function: {name}`, or the file"
        )
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(
            where, f"`arguments` do not fit function {name}: {error}", "mend `arguments`"
        ) from error
    return function


def _no_rows(name: str, what: str, where: str) -> UserError:
    return UserError(where, f"function {name} {what}", "let it yield dictionaries, one a row")


def _raised(name: str, error: Exception, file: Path | None, where: str) -> UserError:
    """Names where the error was raised and, if that is elsewhere, where the module called it."""
    frames = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    places = [f"raised at {path}:{line}" for path, line in frames[-1:]]
    inner = [frame for frame in frames if frame[0] == str(file)][-1:]
    if inner != frames[-1:]:
        places += [f"called at {path}:{line}" for path, line in inner]
    cause = f"function {name}: {type(error).__name__}: {error}"
    return UserError(where, ", ".join([cause, *places]), "mend the function")
