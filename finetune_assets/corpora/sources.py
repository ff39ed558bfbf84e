"""Reading source files: rows as they arrived, each with its file and line."""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import polars as pl

from finetune_assets.catalog.config import Source
from finetune_assets.errors import UserError
from finetune_assets.storage.fingerprint import digest

RAW_SCHEMA = {
    "source": pl.String,
    "source_index": pl.Int32,
    "line": pl.Int64,
    "row": pl.String,
}
"""`row` is the row as JSON text, so that sources of different shapes share one table."""

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class SourceFile:
    uri: str
    source_index: int
    size: int
    """Bytes."""
    sha256: str


def resolve(uris: list[str]) -> list[tuple[str, int]]:
    """Files that paths and globs stand for, sorted within each, with the index of their source.

    Raises:
        UserError: nothing matches, or a file's type cannot be read.
    """
    files: list[tuple[str, int]] = []
    for index, uri in enumerate(uris):
        fs, path = fsspec.core.url_to_fs(uri)
        prefix = uri.split("://")[0] + "://" if "://" in uri else ""
        found = sorted(fs.glob(path)) if any(c in path for c in "*?[") else [path]
        found = [p for p in found if fs.isfile(p)]
        if not found:
            raise UserError(
                uri, "no such file", f"mend `sources[{index}].path` or put the file there"
            )
        for p in found:
            if not p.endswith(SUFFIXES):
                raise UserError(
                    p, "not a type of file that can be read", f"use {', '.join(SUFFIXES)}"
                )
            files.append((f"{prefix}{p}", index))
    return files


def pin(uris: list[str]) -> list[SourceFile]:
    """Hash every source file's content."""
    pinned = []
    for uri, index in resolve(uris):
        with fsspec.open(uri, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore
        fs, path = fsspec.core.url_to_fs(uri)
        pinned.append(SourceFile(uri, index, fs.size(path), digest))
    return pinned


def content_version(pinned: list[SourceFile], declared: list[Source]) -> str:
    """Data version of the rows: the files' content and how it is sampled, not where it lies."""
    return digest([[f.sha256, declared[f.source_index].sample] for f in pinned])


def read(file: SourceFile) -> pl.DataFrame:
    """Rows of one file as a table of RAW_SCHEMA.

    Raises:
        UserError: the file is empty, or a line of it is broken.
    """
    with fsspec.open(file.uri, "rb") as stream:
        data: bytes = stream.read()  # pyright: ignore
    if not data.strip():
        raise UserError(file.uri, "the file is empty", "put rows into it or remove the source")
    suffix = file.uri.rsplit(".", 1)[-1]
    rows = list(_READERS[suffix](data, file.uri))
    if not rows:
        raise UserError(file.uri, "the file has no rows", "put rows into it or remove the source")
    return pl.DataFrame(
        {
            "source": [file.uri] * len(rows),
            "source_index": [file.source_index] * len(rows),
            "line": [line for line, _ in rows],
            "row": [json.dumps(row, ensure_ascii=False, default=str) for _, row in rows],
        },
        schema=RAW_SCHEMA,
    )


def read_all(pinned: list[SourceFile], declared: list[Source]) -> pl.DataFrame:
    """Rows of every source, each source sampled as it declares."""
    by_source: dict[int, list[pl.DataFrame]] = {}
    for file in pinned:
        by_source.setdefault(file.source_index, []).append(read(file))
    return pl.concat(
        [sample(pl.concat(tables), declared[index].sample) for index, tables in by_source.items()]
    )


def sample(rows: pl.DataFrame, size: int | float | None) -> pl.DataFrame:
    """A count or fraction of the rows, chosen by hash of their content, in their order."""
    if size is None:
        return rows
    position = rows["row"].map_elements(unit_hash, return_dtype=pl.Float64)
    if isinstance(size, float):
        return rows.filter(position < size)
    if size >= rows.height:
        return rows
    chosen = position.arg_sort()[:size].sort()
    return rows[chosen]


def unit_hash(text: str, salt: str = "") -> float:
    """Deterministic, uniform position of a text in [0, 1)."""
    digest = hashlib.blake2b(f"{salt}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _read_jsonl(data: bytes, uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(_decode(data, uri).split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{uri}:{line}",
                f"broken JSON at column {error.colno}: {error.msg}",
                "mend or remove the line",
            ) from error
        yield line, _object(row, f"{uri}:{line}")


def _read_json(data: bytes, uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _decode(data, uri)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{uri}:{error.lineno}",
            f"broken JSON at column {error.colno}: {error.msg}",
            "mend the line (a file of one object per line is named .jsonl)",
        ) from error
    if not isinstance(rows, list):
        raise UserError(uri, "the file is not a list of rows", "write [ {...}, {...} ]")
    lines = _element_lines(text)
    for line, row in zip(lines, rows, strict=True):
        yield line, _object(row, f"{uri}:{line}")


def _element_lines(text: str) -> Iterator[int]:
    """Line on which each element of a valid JSON list begins, from 1."""
    decoder, position, line, seen = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        while text[position] in " \t\r\n,":
            position += 1
        if text[position] == "]":
            return
        line += text.count("\n", seen, position)
        seen = position
        yield line
        _, position = decoder.raw_decode(text, position)


def _read_csv(data: bytes, uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import csv

    reader = csv.DictReader(io.StringIO(_decode(data, uri), newline=""), strict=True)
    line = 2
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{uri}:{line}",
                    f"the row does not have the header's {len(reader.fieldnames or [])} columns",
                    "quote cells that hold commas or line breaks",
                )
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{uri}:{line}", f"broken CSV: {error}", "mend the line") from error


def _read_parquet(data: bytes, uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(uri, f"not a readable Parquet file: {error}", "write it again") from error
    yield from enumerate(frame.iter_rows(named=True), 1)


_READERS = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
}


def _decode(data: bytes, uri: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{uri}:{line}", f"byte {error.start} is not UTF-8", "save the file as UTF-8"
        ) from error


def _object(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise UserError(where, "the row is not an object", "write {...} with one key per column")
