"""Parquet files larger than memory: written and read batch by batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

ROW_GROUP, ROW_GROUP_BYTES = 32_768, 64 << 20
"""A row group ends at as many rows or bytes: what a reader holds in memory at least."""


@contextmanager
def writing_parquet(
    path: Path, schema: Mapping[str, pl.DataType | type[pl.DataType]], compression: str = "zstd"
) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Give a function that appends frames of this schema to a Parquet file."""
    empty = pl.DataFrame(schema=dict(schema)).to_arrow(compat_level=pl.CompatLevel.oldest())
    held: list[pl.DataFrame] = []
    level = 1 if compression == "zstd" else None
    with pq.ParquetWriter(
        path, empty.schema, compression=compression, compression_level=level
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
    """Return how many row groups a Parquet file has."""
    return pq.read_metadata(path).num_row_groups


def first_row(path: Path, group: int) -> int:
    """Return the position of a row group's first row."""
    metadata = pq.read_metadata(path)
    return sum(metadata.row_group(each).num_rows for each in range(group))


def batches(
    path: Path, rows: int, columns: list[str] | None = None, group: int | None = None
) -> Iterator[pl.DataFrame]:
    """Yield the rows of a Parquet file or row group, in order, in frames of at most `rows`."""
    with pq.ParquetFile(path) as file:
        for each in range(file.num_row_groups) if group is None else [group]:
            table = pl.from_arrow(file.read_row_group(each, columns=columns))
            yield from pl.DataFrame(table).iter_slices(rows)


def take(path: Path, positions: Sequence[int], columns: list[str]) -> pl.DataFrame:
    """Return the rows at these positions, in the file's order; read no other row groups."""
    found, start = [], 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            mine = sorted(p - start for p in set(positions) if start <= p < end)
            if mine:
                found.append(pl.DataFrame(pl.from_arrow(file.read_row_group(group, columns)))[mine])
            start = end
    return pl.concat(found) if found else pl.read_parquet(path, columns=columns, n_rows=0)
