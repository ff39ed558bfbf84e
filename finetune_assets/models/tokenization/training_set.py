"""The task `training_sets`: conversations to packed tokens, with counts of what carries loss."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.tokenization.batch import BatchTokenizer, TokenBatch, batches, row_count
from finetune_assets.models.tokenization.contexts import Writer, write_contexts
from finetune_assets.models.tokenization.pack import Packed, one_each, pack, pack_in_order
from finetune_assets.models.tokenization.render import IGNORED, Tokens, stop_token_ids
from finetune_assets.models.tokenization.rows import RowTokenizer
from finetune_assets.processes.pool import cores, map_in_processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROCESS_ROWS = 4096
"""Rows worth a process of their own; starting one takes as long as tokenising some thousands."""

PRELOADED = ["finetune_assets.models.tokenization.batch", "transformers.utils.chat_template_utils"]
"""Imported once and shared by all processes, which takes a second and 100 MB."""

SHOWN_ROWS = 3
"""Rows kept as the model sees them, for people to look at."""

NAMED_ROWS = 20
"""Dropped rows whose places are kept."""

HISTOGRAM_BINS = 40
"""Most bins of a histogram of lengths."""

PROGRESS_SECONDS = 5.0
"""Least time between two reports."""


def build(
    base: Path,
    splits: dict[str, Path],
    out: Path,
    *,
    where: str,
    training: Training,
    progress: Callable[[str], None],
    processes: int | None = None,
) -> dict[str, Any]:
    """Write the contexts of each split (see contexts.py) and return statistics.

    The files depend on the rows, the base and the recipe alone, whatever the number of processes;
    as many as there are cores tokenise, if there are enough rows.

    Args:
        base: folder with the tokenizer and, where there are, the configurations of the model.
        splits: Parquet files of conversations by split name.
        where: the dataset file, named in errors.

    Raises:
        UserError: no chat template, no stop token, a row that cannot be learned as it is, a row
            too long where `long_rows` is `error`, or a split without any token that carries loss.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    work = BatchTokenizer(make_row_tokenizer(tokenizer, base, where, training), training)
    statistics: dict[str, Any] = {"stop_token_ids": stop_token_ids(tokenizer, where)}
    for name, path in splits.items():
        started, counts = time.monotonic(), Tally()
        total = row_count(path)
        wanted = min(cores(), total // PROCESS_ROWS) if processes is None else processes
        report = SplitProgress(name, total, progress)
        made = map_in_processes(
            work, batches(path), wanted, where=where, task="tokenised rows", preload=PRELOADED
        )
        with write_contexts(out, name) as writer, closing(made):
            for batch in made:
                writer.append(batch.tokens, batch.learned, batch.lengths)
                counts.add(batch)
                report(counts.rows)
            _require_loss(writer, counts, where, training)
            ordered = bool(counts.texts) and not training.documents.shuffle
            members, starts = _packed(writer.lengths, training, ordered)
            writer.finish(members, starts)
        found = _described(writer, counts, len(starts) - 1, training)
        preview = [loss_mask_text(tokenizer, tokens) for tokens in counts.shown]
        statistics[name] = found | {"preview": preview}
        # The trainer shuffles the training split; the order of others changes nothing.
        statistics["shuffle"] = statistics.get("shuffle", True) and not ordered
        progress(
            f"{name}: {found['rows']} rows, {found['tokens']} tokens, "
            f"{found['tokens_with_loss']} with loss, {found['contexts']} contexts "
            f"in {time.monotonic() - started:.1f} s"
        )
    return statistics


def make_row_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", base: Path, where: str, training: Training
) -> RowTokenizer:
    """Make what tokenises the rows of a dataset for this base."""
    config, generation = (
        json.loads(file.read_text()) if (file := base / name).exists() else {}
        for name in ("config.json", "generation_config.json")
    )
    stop = generation.get("eos_token_id")
    return RowTokenizer.of(
        tokenizer,
        where,
        also_stop=[stop] if isinstance(stop, int) else stop or [],
        loss_mask=training.loss_mask,
        boundary=training.documents.boundary,
        vocabulary=config.get("vocab_size") or config.get("text_config", {}).get("vocab_size"),
    )


@dataclass
class Tally:
    """The rows of a split so far, by what became of them."""

    rows: int = 0
    texts: int = 0
    truncated: int = 0
    unwanted: int = 0
    dropped: int = 0
    dropped_at: list[str] = field(default_factory=list)
    row_lengths: list[np.ndarray] = field(default_factory=list)
    shown: list[Tokens] = field(default_factory=list)

    def add(self, batch: TokenBatch) -> None:
        """Count a batch, and keep its first rows if some are to be shown still."""
        self.rows += len(batch.row_lengths) + batch.unwanted
        self.texts += batch.texts
        self.truncated += batch.truncated
        self.unwanted += batch.unwanted
        self.dropped += len(batch.dropped)
        self.dropped_at += batch.dropped[: NAMED_ROWS - len(self.dropped_at)]
        self.row_lengths.append(batch.row_lengths)
        start = 0
        for length in batch.lengths[: SHOWN_ROWS - len(self.shown)].tolist():
            ids = batch.tokens[start : start + length]
            learned = batch.learned[start : start + length]
            self.shown.append(Tokens(ids, np.where(learned, ids, IGNORED)))
            start += length


class SplitProgress:
    """A report, every few seconds, of how far a split is, how fast, and how long it takes still."""

    def __init__(self, name: str, total: int, say: Callable[[str], None]) -> None:
        self._name, self._total, self._say = name, total, say
        self._started = self._said = time.monotonic()

    def __call__(self, done: int) -> None:
        """Report that `done` rows are done, unless the last report was just now."""
        now = time.monotonic()
        if now - self._said < PROGRESS_SECONDS:
            return
        self._said = now
        rate = done / (now - self._started)
        left = f"{(self._total - done) / rate:.0f} s left"
        self._say(f"{self._name}: {done} of {self._total} rows, {rate:.0f} rows/s, {left}")


def _require_loss(writer: Writer, counts: Tally, where: str, training: Training) -> None:
    if len(writer.lengths):
        return
    longest = max((int(part.max(initial=0)) for part in counts.row_lengths), default=0)
    raise UserError(
        where,
        f"no token carries loss: of {counts.rows} rows, {counts.dropped} keep no answer within "
        f"{training.max_length} tokens (first: {(counts.dropped_at or ['-'])[0]}; "
        f"longest row {longest})",
        f"raise `training.max_length` (the longest row has {longest} tokens), "
        "`training.documents.sample`, or the weight of turns that is 0",
    )


def _packed(lengths: np.ndarray, training: Training, ordered: bool) -> Packed:
    if not training.packing:
        return one_each(lengths)
    return (pack_in_order if ordered else pack)(lengths, training.max_length)


def _described(writer: Writer, counts: Tally, contexts: int, training: Training) -> dict[str, Any]:
    row_lengths = np.concatenate(counts.row_lengths)
    tokens, supervised = int(writer.lengths.sum()), int(writer.supervised.sum())
    return {
        "rows": len(writer.lengths),
        "contexts": contexts,
        "truncated_rows": counts.truncated,
        "dropped_rows": counts.dropped,
        "dropped_at": counts.dropped_at,
        "tokens": tokens,
        "tokens_with_loss": supervised,
        "tokens_without_loss": tokens - supervised,
        "longest": int(row_lengths.max()),
        "lengths": histogram(row_lengths),
        "fill": round(tokens / (contexts * training.max_length), 4),
        "unwanted_rows": counts.unwanted,
    }


def histogram(lengths: np.ndarray) -> dict[str, list[float]]:
    """Return the `edges` of at most HISTOGRAM_BINS bins of whole tokens, and their `counts`."""
    least, most = int(lengths.min()), int(lengths.max())
    width = (most - least) // HISTOGRAM_BINS + 1
    counts, edges = np.histogram(lengths, np.arange(least, most + width + 1, width))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def loss_mask_text(tokenizer: "PreTrainedTokenizerBase", tokens: Tokens) -> list[tuple[str, bool]]:
    """Return the runs of text with and without loss, for showing what the model will see."""
    carries = tokens.labels != IGNORED
    edges = [0, *(np.flatnonzero(np.diff(carries)) + 1).tolist(), len(carries)]
    return [
        (str(tokenizer.decode(tokens.input_ids[a:b])), bool(carries[a]))
        for a, b in pairwise(edges)
        if a < b
    ]
