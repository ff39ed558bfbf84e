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
from finetune_assets.data.corpora.batch import PART_SCHEMA, REJECTED_SCHEMA, Cleaner, Findings
from finetune_assets.processes.pool import cores, map_in_processes
from finetune_assets.storage.parquet import batches, first_row, row_groups, writing_parquet

BATCH_ROWS = 4096

MOST_PROCESSES = 16
"""More do not help: parts are then read and written faster than any disk."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Task:
    """What cleaning a part needs to know."""

    raw: Path
    out: Path
    config: Dataset
    where: str
    formats: Formats

    def path(self, kind: str, group: int) -> Path:
        return self.out / f"{kind}-{group:06}.parquet"


def clean_parts(task: Task, progress: Progress) -> Findings:
    """Write `rows-*.parquet` (PART_SCHEMA), `rejected-*.parquet` and `signatures-*.parquet` for
    every row group of the raw table; return what was found in all.

    Args:
        progress: called with the number of rows done.
    """
    groups = row_groups(task.raw)
    processes = min(MOST_PROCESSES, cores(), groups)
    found, done = Findings(), 0
    clean = partial(_clean_part, task)
    results = map_in_processes(
        clean, range(groups), processes, where=task.where, task="cleaned rows"
    )
    with closing(results):
        for part, rows in results:
            found.add(part)
            done += rows
            progress(done)
    return found


def _clean_part(task: Task, group: int) -> tuple[Findings, int]:
    """Clean one row group; return what was found and how many rows there were."""
    cleaner = Cleaner(task.config, task.where, task.formats)
    near = task.config.cleaning.near_duplicates.action != "off"
    schemas = {"rows": PART_SCHEMA, "rejected": REJECTED_SCHEMA}
    schemas |= {"signatures": near_duplicates.signature_schema()} if near else {}
    rows = 0
    with (
        writing_parquet(task.path("rows", group), PART_SCHEMA, "lz4") as write_rows,
        writing_parquet(task.path("rejected", group), REJECTED_SCHEMA, "lz4") as write_rejected,
        writing_parquet(
            task.path("signatures", group), near_duplicates.signature_schema(), "none"
        ) as write_signatures,
    ):
        first = first_row(task.raw, group)
        for frame in batches(task.raw, BATCH_ROWS, group=group):
            accepted, rejected = cleaner.clean(frame.with_row_index("number", first + rows))
            rows += frame.height
            write_rows(accepted)
            write_rejected(rejected)
            if near and accepted.height:
                write_signatures(near_duplicates.signatures(accepted["question"]))
    return cleaner.findings, rows


def part_files(out: Path, kind: str) -> list[Path]:
    """Files of one kind, in order."""
    return sorted(out.glob(f"{kind}-*.parquet"))


def scan(out: Path, kind: str) -> pl.LazyFrame:
    """All parts of one kind as one table, with the position of each row as `row`."""
    return pl.scan_parquet(part_files(out, kind), row_index_name="row")
