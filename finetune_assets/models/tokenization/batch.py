"""Batches of rows: read from a split's file, and tokenised by any process."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_assets.catalog.training import Training
from finetune_assets.models.tokenization.fit import fit_rows
from finetune_assets.models.tokenization.render import IGNORED
from finetune_assets.models.tokenization.rows import Row, RowTokenizer, is_learned

COLUMNS = ["messages", "chosen", "tools", "text", "label", "source", "line"]

BATCH_ROWS, BATCH_BYTES = 512, 4 << 20
"""Rows of a batch at most; fewer where those of a row group have more bytes on average."""


@dataclass(frozen=True)
class TokenBatch:
    """Documents one after another, and what became of the rows they come from."""

    tokens: np.ndarray
    """int32."""
    learned: np.ndarray
    """bool: whether the token carries loss."""
    lengths: np.ndarray
    """Tokens of each document (int32)."""
    row_lengths: np.ndarray
    """Tokens of each learned row before anything was cut (int32)."""
    texts: int
    """Rows that are plain text."""
    truncated: int
    dropped: list[str]
    """Where rows came from that are left out."""
    unwanted: int
    """Rows that feedback calls unwanted."""


@dataclass(frozen=True)
class BatchTokenizer:
    """Rows to documents of at most `max_length` tokens; a function that other processes run."""

    tokenizer: RowTokenizer
    training: Training

    def __call__(self, given: list[Row]) -> TokenBatch:
        """Tokenise rows, and cut or leave out those that are too long."""
        rows = [row for row in given if is_learned(row)]
        found = fit_rows(rows, self.tokenizer(rows), self.training)
        labels = np.concatenate([np.empty(0, np.int32), *(d.labels for d in found.documents)])
        return TokenBatch(
            np.concatenate([np.empty(0, np.int32), *(d.input_ids for d in found.documents)]),
            labels != IGNORED,
            np.array([len(d.input_ids) for d in found.documents], np.int32),
            np.array(found.row_lengths, np.int32),
            found.texts,
            found.truncated,
            found.dropped,
            len(given) - len(rows),
        )


def batches(path: Path) -> Iterator[list[Row]]:
    """Read the rows of a split in batches, which do not depend on who asks for them."""
    # Processes that only tokenise do without polars: its threads do not survive a fork.
    from finetune_assets.storage import parquet

    for group in range(parquet.row_groups(path)):
        for whole in parquet.batches(path, 1 << 30, COLUMNS, group):
            rows = BATCH_BYTES * whole.height // max(1, int(whole.estimated_size()))
            for frame in whole.iter_slices(min(BATCH_ROWS, max(1, rows))):
                yield list(frame.iter_rows(named=True))


def row_count(path: Path) -> int:
    """Return the number of rows of a Parquet file."""
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows
