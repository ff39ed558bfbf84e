"""The raw table: every row as it arrived, with its source and line, sampled as declared."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from finetune_assets.catalog.sources import Source
from finetune_assets.data.sources.files import NumberedRows, read_rows
from finetune_assets.data.sources.raw_record import RawRecord, RawRow, SourceFile
from finetune_assets.data.sources.sources import Pin
from finetune_assets.storage.parquet import writing_parquet

RAW_SCHEMA = {"source": pl.String, "source_index": pl.Int32, "line": pl.Int64, "row": pl.String}
"""`row` is the row as JSON text, so that sources of different shapes share one table."""

PREVIEW_ROWS = 5


def write_raw(pinned: list[Pin], declared: list[Source], out: Path) -> RawRecord:
    """Read everything, sample each source, write `rows.parquet` (RAW_SCHEMA)."""
    counts = [0] * len(pinned)
    preview: list[RawRow] = []
    with writing_parquet(out / "rows.parquet", RAW_SCHEMA) as write:
        for index, frame in raw_rows(pinned, declared):
            counts[index] += frame.height
            if len(preview) < PREVIEW_ROWS:
                first = frame.head(PREVIEW_ROWS - len(preview)).drop("source_index")
                preview += [RawRow(**row) for row in first.iter_rows(named=True)]
            write(frame)
    files = [
        SourceFile(file=p.name, bytes=p.size, rows=rows, sha256=p.sha256)
        for p, rows in zip(pinned, counts, strict=True)
    ]
    return RawRecord(rows=sum(counts), files=files, preview=preview)


def raw_rows(pinned: list[Pin], declared: list[Source]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield batches of RAW_SCHEMA, each with the index of its pin."""
    for source_index, source in enumerate(declared):
        mine = [i for i, p in enumerate(pinned) if p.source_index == source_index]
        bound = _bound(source.sample, [pinned[i] for i in mine])
        for index in mine:
            for batch in read_rows(pinned[index].uri, pinned[index].name):
                chosen = [b for b in batch if unit_hash(b[1]) < bound] if bound < 1 else batch
                if chosen:
                    yield index, _frame(pinned[index], chosen)


def _frame(pinned: Pin, batch: NumberedRows) -> pl.DataFrame:
    lines, rows = zip(*batch, strict=True)
    frame = pl.DataFrame({"line": lines, "row": rows}, schema_overrides=RAW_SCHEMA)
    index = pl.lit(pinned.source_index, dtype=pl.Int32).alias("source_index")
    return frame.select(pl.lit(pinned.name).alias("source"), index, "line", "row")


def _bound(size: int | float | None, pinned: list[Pin]) -> float:
    """Return the position by hash below which rows are taken."""
    if size is None:
        return 1.0
    if isinstance(size, float):
        return size
    rows = (row for p in pinned for batch in read_rows(p.uri, p.name) for _, row in batch)
    positions = pl.Series([unit_hash(row) for row in rows], dtype=pl.Float64)
    return 1.0 if size >= positions.len() else float(positions.sort()[size])


def unit_hash(text: str, salt: str = "") -> float:
    """Return a text's deterministic, uniform position in [0, 1)."""
    content = f"{salt}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") / 2**64
