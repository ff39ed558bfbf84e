"""Parquet files larger than memory: written and read batch by batch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

ROW_GROUP, ROW_GROUP_BYTES = 32_768, 64 << 20
"""A row group ends at as many rows or bytes: what a reader holds in memory at least."""


@contextmanager
def writing_parquet(
    path: Path, schema: Mapping[str, Any], compression: str = "zstd"
) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Give a function that appends frames of this schema to a Parquet file."""
    import pyarrow.parquet as pq

    empty = pl.DataFrame(schema=dict(schema)).to_arrow(compat_level=pl.CompatLevel.oldest())
    held: list[pl.DataFrame] = []

    with pq.ParquetWriter(
        path,
        empty.schema,
        compression=compression,
        compression_level=1 if compression == "zstd" else None,
    ) as writer:

        def flush() -> None:
            if held:
                table = pl.concat(held).to_arrow(compat_level=pl.CompatLevel.oldest())
                writer.write_table(table, row_group_size=ROW_GROUP)
                held.clear()

        def append(frame: pl.DataFrame) -> None:
            held.append(frame)
            size = sum(f.estimated_size() for f in held)
            if size >= ROW_GROUP_BYTES or sum(f.height for f in held) >= ROW_GROUP:
                flush()

        yield append
        flush()


def row_groups(path: Path) -> int:
    """Row groups of a Parquet file."""
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_row_groups


def batches(
    path: Path, rows: int, columns: list[str] | None = None, group: int | None = None
) -> Iterator[pl.DataFrame]:
    """Rows of a Parquet file, or of one row group, in frames of at most `rows`, in order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for each in range(file.num_row_groups) if group is None else [group]:
            table = pl.from_arrow(file.read_row_group(each, columns=columns))
            yield from pl.DataFrame(table).iter_slices(rows)


def sink(rows: pl.LazyFrame, path: Path, row_bytes: float) -> None:
    """Write rows in a stream; `row_bytes` is about what one takes in memory."""
    size = max(1, min(ROW_GROUP, int(ROW_GROUP_BYTES / max(1.0, row_bytes))))
    rows.sink_parquet(path, compression="zstd", compression_level=1, row_group_size=size)
