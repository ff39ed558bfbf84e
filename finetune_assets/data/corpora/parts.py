"""The first pass over a corpus: row groups cleaned apart, by as many processes as there are cores.

Every part is written by whoever cleans it; only counts come back.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import polars as pl

from finetune_assets.catalog.config import Dataset
from finetune_assets.data.conversations.formats import Formats
from finetune_assets.data.corpora import near_duplicates
from finetune_assets.data.corpora.batch import PART_SCHEMA, REJECTED_SCHEMA, Cleaner, Findings
from finetune_assets.errors import UserError
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
    found, done = Findings(), 0
    with _cleaning(task, groups) as results:
        for part, rows in results:
            found.add(part)
            done += rows
            progress(done)
    return found


@contextmanager
def _cleaning(task: Task, groups: int) -> Iterator[Iterator[tuple[Findings, int]]]:
    """Results of the parts in order; in this process if there is only one."""
    processes = min(MOST_PROCESSES, os.cpu_count() or 1, groups)
    if processes < 2:
        yield (_clean_part(task, group) for group in range(groups))
        return
    with (
        _one_thread_each(),
        ProcessPoolExecutor(processes, get_context("spawn"), initializer=_end_with_parent) as pool,
    ):
        futures = [pool.submit(_clean_part, task, group) for group in range(groups)]
        try:
            yield (future.result() for future in futures)
        except BrokenProcessPool as error:
            raise UserError(
                task.where,
                "a process that cleaned rows ended abruptly, most likely for want of memory",
                "free memory and run again",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Started meanwhile, processes do not fight for cores with threads of their own."""
    names = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """Ask Linux for a KILL when the parent dies; leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def part_files(out: Path, kind: str) -> list[Path]:
    """Files of one kind, in order."""
    return sorted(out.glob(f"{kind}-*.parquet"))


def scan(out: Path, kind: str) -> pl.LazyFrame:
    """All parts of one kind as one table, with the position of each row as `row`."""
    return pl.scan_parquet(part_files(out, kind), row_index_name="row")
