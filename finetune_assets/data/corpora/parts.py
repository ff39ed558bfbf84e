"""The first pass over a corpus: row groups cleaned apart, by as many processes as there are cores.

Every part is written by whoever cleans it; only counts come back.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from finetune_assets.catalog.config import Dataset
from finetune_assets.data.conversations.formats import Formats
from finetune_assets.data.corpora import near_duplicates
from finetune_assets.data.corpora.batch import PART_SCHEMA, REJECTED_SCHEMA, Cleaner, Tally
from finetune_assets.processes.pool import cores, map_in_processes
from finetune_assets.storage.parquet import batches, first_row, row_groups, writing_parquet

BATCH_ROWS = 4096

MOST_PROCESSES = 16
"""More do not help: parts are then read and written faster than any disk."""

RowsDone = Callable[[int], None]
"""Called with the number of rows done."""


@dataclass(frozen=True)
class PartInputs:
    """What cleaning a part needs to know."""

    raw: Path
    out: Path
    config: Dataset
    where: str
    formats: Formats

    def path(self, kind: str, group: int) -> Path:
        """Return the file of one kind that a row group is written to."""
        return self.out / f"{kind}-{group:06}.parquet"


def clean_parts(inputs: PartInputs, progress: RowsDone) -> Tally:
    """Clean every row group of the raw table and return what was found in all.

    For each, `rows-*.parquet` (PART_SCHEMA), `rejected-*.parquet` and `signatures-*.parquet` are
    written.
    """
    groups = row_groups(inputs.raw)
    processes = min(MOST_PROCESSES, cores(), groups)
    found, done = Tally(), 0
    clean, task = partial(_clean_part, inputs), "cleaned rows"
    results = map_in_processes(clean, range(groups), processes, where=inputs.where, task=task)
    with closing(results):
        for part, rows in results:
            found.add(part)
            done += rows
            progress(done)
    return found


def _clean_part(inputs: PartInputs, group: int) -> tuple[Tally, int]:
    """Clean one row group; return what was found and how many rows there were."""
    cleaner = Cleaner(inputs.config, inputs.where, inputs.formats)
    near = inputs.config.cleaning.near_duplicates.action != "off"
    rows = 0
    hashes, columns = inputs.path("signatures", group), near_duplicates.signature_schema()
    with (
        writing_parquet(inputs.path("rows", group), PART_SCHEMA, "lz4") as write_rows,
        writing_parquet(inputs.path("rejected", group), REJECTED_SCHEMA, "lz4") as write_rejected,
        writing_parquet(hashes, columns, "none") as write_signatures,
    ):
        first = first_row(inputs.raw, group)
        for frame in batches(inputs.raw, BATCH_ROWS, group=group):
            accepted, rejected = cleaner.clean(frame.with_row_index("number", first + rows))
            rows += frame.height
            write_rows(accepted)
            write_rejected(rejected)
            if near and accepted.height:
                write_signatures(near_duplicates.signatures(accepted["question"]))
    return cleaner.tally, rows


def part_files(out: Path, kind: str) -> list[Path]:
    """Return the files of one kind, in order."""
    return sorted(out.glob(f"{kind}-*.parquet"))


def scan(out: Path, kind: str) -> pl.LazyFrame:
    """Return all parts of one kind as one table, with the position of each row as `row`."""
    return pl.scan_parquet(part_files(out, kind), row_index_name="row")
