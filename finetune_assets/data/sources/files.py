"""Reading files of rows in batches: memory is bounded by a batch, whatever the file's size."""

import csv
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from finetune_assets.data.sources.explain import explain_store_errors
from finetune_assets.errors import UserError

NumberedRows = list[tuple[int, str]]
"""Rows as (line, JSON text of one object)."""

BATCH_ROWS, BATCH_CHARACTERS = 4096, 8 << 20
"""A batch ends at as many rows or characters."""

BLOCK = 8 << 20
"""Bytes read at once from a text file."""

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def suffix_of(uri: str) -> str:
    """Return the file type, without what says how it is compressed: `.jsonl` of `rows.jsonl.gz`."""
    path = PurePosixPath(uri)
    return (PurePosixPath(path.stem) if path.suffix in COMPRESSIONS else path).suffix.lower()


def read_rows(uri: str, shown: str | None = None) -> Iterator[NumberedRows]:
    """Yield the rows of a file in batches, in order; errors name it `shown`, and the line."""
    name = shown or uri
    compression = COMPRESSIONS.get(PurePosixPath(uri).suffix)
    with (
        explain_store_errors(uri),
        _explain_damage(name),
        fsspec.open(uri, "rb", compression=compression) as stream,
    ):
        rows = READERS[suffix_of(uri)](stream, name)  # pyright: ignore
        batch: NumberedRows = []
        size, empty = 0, True
        for row in rows:
            batch.append(row)
            size += len(row[1])
            if len(batch) == BATCH_ROWS or size >= BATCH_CHARACTERS:
                yield batch
                batch, size, empty = [], 0, False
        if batch:
            yield batch
        elif empty:
            raise UserError(name, "the file has no rows", "put rows into it or remove the source")


def dumps(row: object) -> str:
    """Return the JSON text of a row; what JSON has no type for becomes text."""
    try:
        return orjson.dumps(row, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # integers of more than 64 bits
        return json.dumps(row, default=str, ensure_ascii=False)


def parse(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return a row from its JSON text: strict and fast, then as lenient as Python's own reader.

    NaN and infinities become null; lone surrogates become U+FFFD, which can be stored.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        row = json.loads(text, parse_constant=lambda _: None)
        return json.loads(_storable(json.dumps(row, ensure_ascii=False)))


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _read_jsonl(stream: IO[bytes], uri: str) -> Iterator[tuple[int, str]]:
    for line, content in _lines(stream):
        if not content or content.isspace():
            continue
        try:
            row = orjson.loads(content)
            text = content.decode()
        except orjson.JSONDecodeError:
            text, row = _lenient(content, line, uri)
        if not isinstance(row, dict):
            raise _not_an_object(f"{uri}:{line}")
        yield line, text


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    line, rest, first = 0, b"", True
    while block := stream.read(BLOCK):
        if first:
            block, first = block.removeprefix(b"\xef\xbb\xbf"), False
        pieces = (rest + block).split(b"\n")
        rest = pieces.pop()
        for piece in pieces:
            line += 1
            yield line, piece
    if rest:
        yield line + 1, rest


def _lenient(content: bytes, line: int, uri: str) -> tuple[str, Any]:
    """Read a line that the strict parser refuses; NaN and the like are usable."""
    try:
        row = parse(content.decode())
    except UnicodeDecodeError as error:
        cause = f"byte {error.start} of the line is not UTF-8"
        raise UserError(f"{uri}:{line}", cause, "save it as UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        problem = getattr(error, "msg", "nested too deeply")
        cause = f"broken JSON at column {getattr(error, 'colno', 1)}: {problem}"
        raise UserError(f"{uri}:{line}", cause, "mend or remove the line") from error
    return dumps(row), row


def _read_json(stream: IO[bytes], uri: str) -> Iterator[tuple[int, str]]:
    """Yield the elements of one JSON list; a file of one object per line is read as such."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    window, line = text.read(BLOCK), 1
    opening = window.lstrip()[:1]
    if opening == "{":
        stream.seek(0)
        yield from _read_jsonl(stream, uri)
        return
    if opening != "[":
        raise UserError(uri, "the file is not a list of rows", "write [ {...}, {...} ]")
    decoder = json.JSONDecoder(parse_constant=lambda _: None)
    position = window.index("[") + 1
    line += window.count("\n", 0, position)
    while True:
        start = _SPACE.match(window, position).end()  # type: ignore[union-attr]
        line += window.count("\n", position, start)
        position = start
        if window.startswith("]", position):
            if (window[position + 1 :] + text.read(BLOCK)).strip():
                remedy = "write one list, or one object per line into a .jsonl file"
                raise UserError(f"{uri}:{line}", "something follows the list's closing ]", remedy)
            return
        problem: Exception | None = None
        end = position
        try:
            row, end = decoder.raw_decode(window, position)
        except (json.JSONDecodeError, RecursionError) as error:
            problem = error
        # An element that touches the window's end may go on after it.
        if problem is not None or end == len(window):
            more = text.read(max(BLOCK, len(window) - position))
            if more:
                window, position = window[position:] + more, 0
                continue
            raise _broken_list(problem, window, position, line, uri) from problem
        if not isinstance(row, dict):
            raise _not_an_object(f"{uri}:{line}")
        yield line, _storable(window[position:end])
        line += window.count("\n", position, end)
        position = end


_SPACE = re.compile(r"[\s,]*")


def _broken_list(
    problem: Exception | None, window: str, position: int, line: int, uri: str
) -> UserError:
    if not window[position:].strip() or problem is None:
        cause = "the list is not closed by ]; the file may have been cut"
    elif isinstance(problem, json.JSONDecodeError):
        line += window.count("\n", position, problem.pos)
        cause = f"broken JSON at column {problem.colno}: {problem.msg}"
    else:
        cause = "the row is nested too deeply"
    remedy = "mend the line (a file of one object per line is named .jsonl)"
    return UserError(f"{uri}:{line}", cause, remedy)


def _not_an_object(where: str) -> UserError:
    return UserError(where, "the row is not an object", "write {...} with one key per column")


def _read_separated(stream: IO[bytes], uri: str, separator: str) -> Iterator[tuple[int, str]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is shorter than a document
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = csv.DictReader(text, delimiter=separator, strict=True)
    line = 1
    try:
        names = rows.fieldnames or []
        if len(set(names)) < len(names) or "" in names:
            cause = "the header names a column twice, or not at all"
            raise UserError(f"{uri}:1", cause, "give every column a name of its own")
        for row in rows:
            # Short rows have None as a value, long ones None as a key.
            if None in row or None in row.values():
                cause = f"the row does not have the header's {len(names)} columns"
                remedy = "quote cells that hold separators or line breaks"
                raise UserError(f"{uri}:{line + 1}", cause, remedy)
            yield line + 1, dumps(row)
            line = rows.line_num
    except csv.Error as error:
        raise UserError(f"{uri}:{line + 1}", f"broken CSV: {error}", "mend the row") from error


def _read_parquet(stream: IO[bytes], uri: str) -> Iterator[tuple[int, str]]:
    return _numbered(pq.ParquetFile(stream).iter_batches(batch_size=BATCH_ROWS))


def _read_arrow(stream: IO[bytes], uri: str) -> Iterator[tuple[int, str]]:
    """Yield the rows of Arrow files and streams; `datasets` writes streams."""
    magic = stream.read(6)
    stream.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(stream)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(stream))
    starts = ((batch, start) for batch in batches for start in range(0, batch.num_rows, BATCH_ROWS))
    return _numbered(batch.slice(start, BATCH_ROWS) for batch, start in starts)


def _numbered(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, str]]:
    return enumerate((dumps(row) for batch in batches for row in batch.to_pylist()), 1)


def _read_document(stream: IO[bytes], uri: str) -> Iterator[tuple[int, str]]:
    """Yield a plain text file as one row with the column `text`."""
    text = stream.read().decode("utf-8-sig")
    if text.strip():
        yield 1, dumps({"text": text})


@contextmanager
def _explain_damage(uri: str) -> Iterator[None]:
    """Turn errors of the libraries that open files into one that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        cause = f"byte {error.start} is not UTF-8"
        raise UserError(uri, cause, "save the file as UTF-8") from error
    except (pa.ArrowException, EOFError, zlib.error, ValueError) as error:
        raise UserError(uri, f"the file is damaged: {error}", "write it again") from error
    except PermissionError:
        raise
    except OSError as error:
        if error.errno is not None and not isinstance(error, FileNotFoundError):
            raise
        raise UserError(uri, f"the file cannot be read: {error}", "write it again") from error
    except Exception as error:
        if type(error).__module__ not in ("zstandard", "zstandard.backend_c"):
            raise
        raise UserError(uri, f"the file is damaged: {error}", "write it again") from error


READERS: dict[str, Callable[[IO[bytes], str], Iterator[tuple[int, str]]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": partial(_read_separated, separator=","),
    ".tsv": partial(_read_separated, separator="\t"),
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".txt": _read_document,
    ".md": _read_document,
}
DOCUMENTS = (".txt", ".md")
