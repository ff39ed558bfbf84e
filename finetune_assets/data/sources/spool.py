"""Spooling: rows of sources that are no files, as a local JSONL file, in bounded memory."""

import contextlib
from pathlib import Path

import orjson

from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources.functions import function_rows, function_version
from finetune_assets.data.sources.hub import hub_commit, hub_rows, saved_rows
from finetune_assets.data.sources.queries import query_rows, query_version
from finetune_assets.data.sources.values import Row, Rows, plain
from finetune_assets.errors import UserError
from finetune_assets.storage.atomic import replacing

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def spool(source: Source, target: Path, where: str, folder: Path | None = None) -> None:
    """Write the rows of a query, hub dataset or function to `target`, one JSON object a line.

    `where` is named in errors, which leave `target` as it was. `folder` is the catalog file's:
    functions are imported from it, and an SQLite file is looked for in it.
    """
    write_rows(rows_of(source, where, folder), target, where)


def spool_saved(folder: Path, parts: list[str], target: Path, where: str) -> None:
    """Write the rows of a folder that `save_to_disk` wrote; `parts` are splits, default all."""
    write_rows(saved_rows(folder, parts, where), target, where)


def cheap_version(source: Source, where: str, folder: Path | None = None) -> str:
    """Return what tells that rows changed: a row count, the hub's commit or a module's hash."""
    if source.query is not None:
        return query_version(source, where, folder)
    if source.hub is not None:
        return hub_commit(source.hub, where)
    if source.function is not None:
        return function_version(source, where, folder)
    raise ValueError(f"{where}: files are no spooled source")


def rows_of(source: Source, where: str, folder: Path | None) -> Rows:
    """Return the rows of a query, hub dataset or function, as they come."""
    if source.query is not None:
        return query_rows(source, where, folder)
    if source.hub is not None:
        return hub_rows(source, where)
    if source.function is not None:
        return function_rows(source, where, folder)
    raise ValueError(f"{where}: files are no spooled source")


def write_rows(rows: Rows, target: Path, where: str) -> None:
    """Write rows as JSON lines, whole or not at all."""
    number = 0
    with replacing(target) as scratch:
        with contextlib.closing(rows), scratch.open("wb") as file:
            for number, row in enumerate(rows, 1):
                file.write(_line(row, f"{where}, row {number}"))
        if number == 0:
            raise UserError(where, "it gave no rows", "mend what it selects, or remove the source")


def _line(row: Row, where: str) -> bytes:
    try:
        return orjson.dumps(row, default=plain, option=_OPTIONS)
    except orjson.JSONEncodeError as error:
        column = next((name for name, value in row.items() if not _encodes(value)), "?")
        remedy = "leave the column out, or make it text or numbers"
        raise UserError(where, f"column `{column}`: {error}", remedy) from error


def _encodes(value: object) -> bool:
    try:
        orjson.dumps(value, default=plain, option=_OPTIONS)
    except orjson.JSONEncodeError:
        return False
    return True
