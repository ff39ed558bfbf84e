"""The task `prompt_corpora`: raw rows to clean, distinct conversations, in bounded memory.

One pass converts, repairs and fingerprints rows in batches; then near duplicates are looked for
among the fingerprints; a last pass, in polars alone, adds what was found.
"""

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune_assets.catalog.config import Dataset
from finetune_assets.corpora import near_duplicates
from finetune_assets.corpora.batch import REJECTED_SCHEMA, UNUSABLE, Cleaner, Findings
from finetune_assets.corpora.conversations import CONVERSATION_SCHEMA
from finetune_assets.corpora.parquet import ROW_GROUP, batches, writing_parquet
from finetune_assets.corpora.statistics import describe
from finetune_assets.errors import UserError

BATCH_ROWS = 4096

Progress = Callable[[int], None]


def write_corpus(
    raw: Path, config: Dataset, out: Path, where: str, progress: Progress = lambda rows: None
) -> dict[str, Any]:
    """Write `rows.parquet` (CONVERSATION_SCHEMA), `rejected.parquet` (REJECTED_SCHEMA) and
    `near_duplicates.parquet` (ids `later`, `earlier`, and their `similarity`).

    Args:
        raw: Parquet of raw rows.
        where: the dataset file, named in errors.
        progress: called with the number of rows done.

    Raises:
        UserError: no format fits a file, or more than `max_rejected` of the rows are unusable.
    """
    work = out / "work"
    work.mkdir()
    cleaner = Cleaner(config, where)
    near = config.cleaning.near_duplicates
    lengths: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    total = 0
    with ExitStack() as files:
        schema = CONVERSATION_SCHEMA | {"question": pl.String}
        write_row = files.enter_context(writing_parquet(work / "rows.parquet", schema, "lz4"))
        write_rejected = files.enter_context(
            writing_parquet(out / "rejected.parquet", REJECTED_SCHEMA)
        )
        write_signatures = files.enter_context(
            writing_parquet(work / "signatures.parquet", near_duplicates.signature_schema(), "none")
        )
        for frame in batches(raw, BATCH_ROWS):
            accepted, rejected = cleaner.clean(frame)
            total += frame.height
            write_row(accepted)
            write_rejected(rejected)
            if near.action != "off" and accepted.height:
                write_signatures(near_duplicates.signatures(accepted["question"]))
                lengths.append(accepted["question"].str.len_chars().to_numpy())
            progress(total)
    findings = cleaner.findings
    _check_rejected(findings, total, config.max_rejected)
    pairs = _near_pairs(work, np.concatenate(lengths), config)
    dropped = _finish(work, out, raw, pairs)
    findings.accepted -= dropped
    findings.rejected["near_duplicate", ""] += dropped
    shutil.rmtree(work)
    return describe(out, findings, total)


def _near_pairs(work: Path, lengths: np.ndarray, config: Dataset) -> pl.DataFrame:
    """Positions (`later`, `earlier`) of rows that ask nearly the same, with their `similarity`, and
    whether the later one `repeats` the earlier, its answers being as near."""
    near = config.cleaning.near_duplicates
    if near.action == "off" or not len(lengths):
        return pl.DataFrame(schema=PAIR_SCHEMA)
    proposed = near_duplicates.candidates(work / "signatures.parquet", lengths, near.similarity)
    rows = work / "rows.parquet"
    questions = near_duplicates.TextsOf(rows, pl.col("question"))
    found = near_duplicates.verified(proposed, questions, near.similarity)
    if near.action == "group":
        return found.with_columns(pl.lit(False).alias("repeats"))
    answers = near_duplicates.TextsOf(rows, _answers())
    same = near_duplicates.verified(found, answers, near.similarity)
    ends = ["later", "earlier"]
    return found.join(
        same.select(*ends, pl.lit(True).alias("repeats")), on=ends, how="left"
    ).with_columns(pl.col("repeats").fill_null(False))


PAIR_SCHEMA = {
    "later": pl.UInt32,
    "earlier": pl.UInt32,
    "similarity": pl.Float32,
    "repeats": pl.Boolean,
}


def _answers() -> pl.Expr:
    """What the assistant says in a row."""
    spoken = pl.element().filter(pl.element().struct.field("role") == "assistant")
    parts = [
        pl.col(column).list.eval(spoken.struct.field("content")).list.join("\n")
        for column in ("messages", "chosen")
    ]
    return pl.concat_str(parts, separator="\n", ignore_nulls=True)


def _finish(work: Path, out: Path, raw: Path, pairs: pl.DataFrame) -> int:
    """Write the final rows with `duplicate_of`; return how many near duplicates were dropped."""
    ids = pl.read_parquet(work / "rows.parquet", columns=["id"], row_index_name="row")
    named = (
        pairs.join(ids.rename({"row": "later", "id": "later_id"}), on="later")
        .join(ids.rename({"row": "earlier", "id": "earlier_id"}), on="earlier")
        .sort("later", "earlier")
    )
    dropped = _origins(named.filter("repeats"))
    kept = named.join(dropped, left_on="later", right_on="row", how="anti").join(
        dropped, left_on="earlier", right_on="row", how="anti"
    )
    rows = pl.scan_parquet(work / "rows.parquet", row_index_name="row")
    if dropped.height:
        _append_rejected(rows.join(dropped.lazy(), on="row"), raw, out)
        rows = rows.join(dropped.lazy(), on="row", how="anti", maintain_order="left")
    rows.join(_origins(kept).lazy(), on="row", how="left", maintain_order="left").with_columns(
        pl.col("origin").alias("duplicate_of")
    ).select(*CONVERSATION_SCHEMA).sink_parquet(
        out / "rows.parquet", compression="zstd", compression_level=1, row_group_size=ROW_GROUP
    )
    kept.sort("later", "earlier").select(
        pl.col("later_id").alias("later"), pl.col("earlier_id").alias("earlier"), "similarity"
    ).write_parquet(out / "near_duplicates.parquet")
    return dropped.height


def _origins(pairs: pl.DataFrame) -> pl.DataFrame:
    """Per later row (`row`) the id of the first row that it is near to (`origin`)."""
    return (
        pairs.group_by("later", maintain_order=True)
        .agg(pl.col("earlier_id").first().alias("origin"))
        .rename({"later": "row"})
    )


def _append_rejected(dropped: pl.LazyFrame, raw: Path, out: Path) -> None:
    places = dropped.select("source", "line", "origin").collect(engine="streaming")
    rows = (
        pl.scan_parquet(raw)
        .join(places.lazy(), on=["source", "line"])
        .select(
            "source",
            "line",
            pl.lit("near_duplicate").alias("step"),
            pl.lit(None, dtype=pl.String).alias("column"),
            pl.format("nearly the same as the row with id {}", "origin").alias("reason"),
            "row",
        )
        .collect(engine="streaming")
    )
    known = pl.read_parquet(out / "rejected.parquet")
    pl.concat([known, rows]).write_parquet(out / "rejected.parquet")


def _check_rejected(findings: Findings, total: int, limit: float) -> None:
    """Raise if more than `limit` (a fraction) of the rows are unusable, or none is left."""
    unusable = sum(n for (step, _), n in findings.rejected.items() if step == UNUSABLE)
    if findings.accepted and unusable <= limit * total:
        return
    if findings.first_unusable is None:
        raise UserError(
            "cleaning",
            f"of {total} rows none is left: "
            + ", ".join(f"{n} x {step}" for (step, _), n in findings.rejected.items()),
            "loosen `filter`, or what stands under `cleaning:`",
        )
    source, line, reason = findings.first_unusable
    reasons = Counter({r: n for (step, r), n in findings.rejected.items() if step == UNUSABLE})
    raise UserError(
        f"{source}:{line}",
        f"{reason} (in all, {unusable} of {total} rows are unusable: "
        + ", ".join(f"{count} x {why}" for why, count in reasons.most_common())
        + ")",
        "mend the rows, or raise `max_rejected` to go on without them",
    )
