"""The task `training_sets`: conversations to packed tokens, with counts of what carries loss."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune_assets.errors import UserError
from finetune_assets.tokenization.contexts import writing
from finetune_assets.tokenization.pack import one_each, pack
from finetune_assets.tokenization.render import (
    IGNORED,
    Tokens,
    require_template,
    stop_token_ids,
)
from finetune_assets.tokenization.rows import is_document, is_learned, tokenize_row

SHOWN_ROWS = 3
"""Rows kept as the model sees them, for people to look at."""

HISTOGRAM_BINS = 40


def build(
    base: Path,
    splits: dict[str, Path],
    out: Path,
    *,
    where: str,
    max_length: int,
    long_rows: str,
    packing: bool,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Write the contexts of each split (see contexts.py) and return statistics.

    Args:
        base: folder with the tokenizer.
        splits: Parquet files of conversations by split name.
        where: the dataset file, named in errors.

    Raises:
        UserError: no chat template, no stop token, a row too long where `long_rows` is `error`,
            or a split without any token that carries loss.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    require_template(tokenizer, where)
    statistics: dict[str, Any] = {"stop_token_ids": stop_token_ids(tokenizer, where)}
    for name, path in splits.items():
        started = time.monotonic()
        rows = pl.read_parquet(path)
        documents, counts = _documents(tokenizer, rows, where, max_length, long_rows)
        with writing(out, name) as writer:
            for d in documents:
                learned = np.asarray(d.labels) != IGNORED
                writer.append(np.asarray(d.input_ids), learned, np.array([len(learned)]))
            lengths = writer.lengths
            members, starts = pack(lengths, max_length) if packing else one_each(lengths)
            writer.finish(members, starts)
        contexts = len(starts) - 1
        counts |= {"contexts": contexts}
        counts |= {"fill": round(counts["tokens"] / (contexts * max_length), 4)}
        statistics[name] = counts
        progress(
            f"{name}: {counts['rows']} rows, {counts['tokens']} tokens, "
            f"{counts['tokens_with_loss']} with loss, {contexts} contexts "
            f"in {time.monotonic() - started:.1f} s"
        )
    return statistics


def fit(tokens: Tokens, max_length: int) -> Tokens:
    """Cut at `max_length`; the cut answer loses its stop token and so is not taught as complete."""
    return Tokens(tokens.input_ids[:max_length], tokens.labels[:max_length])


def _documents(
    tokenizer: Any, rows: pl.DataFrame, where: str, max_length: int, long_rows: str
) -> tuple[list[Tokens], dict[str, Any]]:
    documents: list[Tokens] = []
    lengths: list[int] = []
    truncated, dropped = 0, []
    shown: list[list[tuple[str, bool]]] = []
    for row in rows.iter_rows(named=True):
        if not is_learned(row):
            continue
        tokens = tokenize_row(tokenizer, row)
        lengths.append(len(tokens.input_ids))
        if len(shown) < SHOWN_ROWS:
            shown.append(loss_mask_text(tokenizer, tokens))
        if is_document(row):
            documents += cut_document(tokens, max_length)
            continue
        place = f"{row['source']}:{row['line']}"
        if len(tokens.input_ids) > max_length:
            if long_rows == "error":
                raise UserError(
                    place,
                    f"the row has {lengths[-1]} tokens, more than max_length {max_length}",
                    "raise `training.max_length`, or set `training.long_rows` to truncate or drop",
                )
            tokens = fit(tokens, max_length)
            truncated += long_rows == "truncate"
            if long_rows == "drop" or not tokens.supervised:
                dropped.append(place)
                continue
        if not tokens.supervised:
            dropped.append(place)
            continue
        documents.append(tokens)
    supervised = sum(d.supervised for d in documents)
    if not supervised:
        longest = max(lengths, default=0)
        raise UserError(
            where,
            f"no token carries loss: of {rows.height} rows, {len(dropped)} keep no answer within "
            f"{max_length} tokens (first: {dropped[0] if dropped else '-'}; longest row {longest})",
            f"raise `training.max_length` (the longest row has {longest} tokens)",
        )
    total = sum(len(d.input_ids) for d in documents)
    return documents, {
        "rows": len(documents),
        "truncated_rows": truncated - sum(1 for _ in dropped if long_rows == "truncate"),
        "dropped_rows": len(dropped),
        "dropped_at": dropped[:20],
        "tokens": total,
        "tokens_with_loss": supervised,
        "tokens_without_loss": total - supervised,
        "longest": max(lengths),
        "lengths": histogram(np.array(lengths)),
        "unwanted_rows": rows.height - len(lengths),
        "preview": shown,
    }


def histogram(lengths: np.ndarray) -> dict[str, list[float]]:
    """`edges` of at most HISTOGRAM_BINS bins of whole tokens, and `counts`."""
    least, most = int(lengths.min()), int(lengths.max())
    width = (most - least) // HISTOGRAM_BINS + 1
    counts, edges = np.histogram(lengths, np.arange(least, most + width + 1, width))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def cut_document(tokens: Tokens, max_length: int) -> list[Tokens]:
    """A document in pieces of at most `max_length` tokens; nothing of it is lost."""
    starts = range(0, len(tokens.input_ids), max_length)
    return [
        Tokens(tokens.input_ids[s : s + max_length], tokens.labels[s : s + max_length])
        for s in starts
    ]


def loss_mask_text(tokenizer: Any, tokens: Tokens) -> list[tuple[str, bool]]:
    """Runs of text with and without loss, for showing what the model will see."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(tokens.input_ids, tokens.labels, strict=True):
        carries = label != IGNORED
        if not runs or runs[-1][1] != carries:
            runs.append(([], carries))
        runs[-1][0].append(token)
    return [(tokenizer.decode(ids), carries) for ids, carries in runs]
