"""The task `training_sets`: conversations to packed tokens, with counts of what carries loss."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from finetune_assets.errors import UserError
from finetune_assets.tokenization.pack import Context, join, pack
from finetune_assets.tokenization.render import (
    IGNORED,
    Tokens,
    require_template,
    stop_token_ids,
)
from finetune_assets.tokenization.rows import is_document, is_learned, tokenize_row

SHOWN_ROWS = 3
"""Rows kept as the model sees them, for people to look at."""

CONTEXT_SCHEMA = {
    "input_ids": pl.List(pl.Int32),
    "labels": pl.List(pl.Int32),
    "position_ids": pl.List(pl.Int32),
}


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
    """Write `train.parquet` and `validation.parquet` (CONTEXT_SCHEMA) and return statistics.

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
        contexts = pack(documents, max_length) if packing else [join([d]) for d in documents]
        _write(contexts, out / f"{name}.parquet")
        counts |= {"contexts": len(contexts)}
        counts |= {"fill": round(counts["tokens"] / (len(contexts) * max_length), 4)}
        statistics[name] = counts
        progress(
            f"{name}: {counts['rows']} rows, {counts['tokens']} tokens, "
            f"{counts['tokens_with_loss']} with loss, {len(contexts)} contexts "
            f"in {time.monotonic() - started:.1f} s"
        )
    return statistics


def read_contexts(path: Path) -> list[Context]:
    """Contexts of a split, in their order."""
    return [Context(**row) for row in pl.read_parquet(path).iter_rows(named=True)]


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
        "lengths": lengths,
        "unwanted_rows": rows.height - len(lengths),
        "preview": shown,
    }


def cut_document(tokens: Tokens, max_length: int) -> list[Tokens]:
    """A document in pieces of at most `max_length` tokens; nothing of it is lost."""
    starts = range(0, len(tokens.input_ids), max_length)
    return [
        Tokens(tokens.input_ids[s : s + max_length], tokens.labels[s : s + max_length])
        for s in starts
    ]


def _write(contexts: list[Context], path: Path) -> None:
    pl.DataFrame([vars(c) for c in contexts], schema=CONTEXT_SCHEMA).write_parquet(path)


def loss_mask_text(tokenizer: Any, tokens: Tokens) -> list[tuple[str, bool]]:
    """Runs of text with and without loss, for showing what the model will see."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(tokens.input_ids, tokens.labels, strict=True):
        carries = label != IGNORED
        if not runs or runs[-1][1] != carries:
            runs.append(([], carries))
        runs[-1][0].append(token)
    return [(tokenizer.decode(ids), carries) for ids, carries in runs]
