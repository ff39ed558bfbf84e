"""Parquet files larger than memory: written and read batch by batch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

ROW_GROUP = 32_768
"""Rows of a row group: what a reader holds in memory at least."""


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
            if sum(f.height for f in held) >= ROW_GROUP:
                flush()

        yield append
        flush()


def batches(path: Path, rows: int, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    """Rows of a Parquet file in frames of at most `rows`, in order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=rows, columns=columns):
            yield pl.DataFrame(pl.from_arrow(batch))
