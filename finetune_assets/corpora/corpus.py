"""The task `prompt_corpora`: raw rows to clean, distinct conversations, in bounded memory.

Rows are converted, repaired and fingerprinted in parts; then duplicates are looked for among the
fingerprints of all; a last pass, in polars alone, puts the corpus together.
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune_assets.catalog.config import Dataset
from finetune_assets.corpora import near_duplicates
from finetune_assets.corpora.batch import UNUSABLE, Findings
from finetune_assets.corpora.conversations import CONVERSATION_SCHEMA
from finetune_assets.corpora.formats import formats_of
from finetune_assets.corpora.parquet import sink
from finetune_assets.corpora.parts import Progress, Task, clean_parts, part_files, scan
from finetune_assets.corpora.statistics import describe
from finetune_assets.errors import UserError


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
    task = Task(raw, work, config, where, formats_of(raw, config))
    findings = clean_parts(task, progress)
    total = findings.accepted + sum(findings.rejected.values())
    _check_rejected(findings, total, config.max_rejected)
    removed = _exact_duplicates(work, config)
    pairs = _near_pairs(work, removed, config)
    removed = pl.concat([removed, _repeats(work, pairs)]).sort("row")
    for step, rows in removed["step"].value_counts().iter_rows():
        findings.rejected[step, ""] += rows
    findings.accepted -= removed.height
    _write_rows(work, out, removed, pairs)
    _write_rejected(work, raw, out, removed)
    shutil.rmtree(work)
    formats = {file: found.name for file, found in task.formats.items()}
    return describe(out, findings, total, formats)


REMOVED_SCHEMA = {"row": pl.UInt32, "step": pl.String, "reason": pl.String}


def _exact_duplicates(work: Path, config: Dataset) -> pl.DataFrame:
    """Rows (REMOVED_SCHEMA) whose conversation an earlier row has, character by character."""
    if config.cleaning.exact_duplicates == "keep":
        return pl.DataFrame(schema=REMOVED_SCHEMA)
    # 64 bits of the hash: two of a million conversations meet by chance once in 4e7 corpora.
    key = pl.col("id").str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64)
    keys = scan(work, "rows").select("row", key.alias("key")).collect(engine="streaming")
    later = keys.filter(~pl.col("key").is_first_distinct())
    first = keys.filter(pl.col("key").is_first_distinct()).join(later, on="key", how="semi")
    origin = first.join(_places(work, first["row"]), on="row").select("key", "place")
    return later.join(origin, on="key", maintain_order="left").select(
        "row",
        pl.lit("exact_duplicate").alias("step"),
        pl.format("same as {}", "place").alias("reason"),
    )


def _places(work: Path, rows: pl.Series) -> pl.DataFrame:
    """File and line (`place`) of these rows."""
    place = pl.format("{}:{}", "source", "line").alias("place")
    wanted = scan(work, "rows").filter(pl.col("row").is_in(rows.implode()))
    return wanted.select("row", place).collect(engine="streaming")


def _near_pairs(work: Path, removed: pl.DataFrame, config: Dataset) -> pl.DataFrame:
    """Positions (`later`, `earlier`) of rows that ask nearly the same, with their `similarity`, and
    whether the later one `repeats` the earlier, its answers being as near."""
    near = config.cleaning.near_duplicates
    if near.action == "off":
        return pl.DataFrame(schema=PAIR_SCHEMA)
    lengths = scan(work, "rows").select(pl.col("question").str.len_chars()).collect().to_series()
    among = np.ones(lengths.len(), dtype=bool)
    among[removed["row"].to_numpy()] = False
    proposed = near_duplicates.candidates(
        part_files(work, "signatures"), lengths.to_numpy(), among, near.similarity
    )
    questions = near_duplicates.TextsOf(scan(work, "rows"), pl.col("question"))
    found = near_duplicates.verified(proposed, questions, near.similarity)
    if near.action == "group":
        return found.with_columns(pl.lit(False).alias("repeats"))
    answers = near_duplicates.TextsOf(scan(work, "rows"), _answers())
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


def _repeats(work: Path, pairs: pl.DataFrame) -> pl.DataFrame:
    """Rows (REMOVED_SCHEMA) that nearly repeat an earlier one, answers included."""
    first = pairs.filter("repeats").group_by("later").agg(pl.col("earlier").min())
    places = _places(work, first["earlier"].unique())
    return first.join(places, left_on="earlier", right_on="row").select(
        pl.col("later").alias("row"),
        pl.lit("near_duplicate").alias("step"),
        pl.format("nearly the same as {}", "place").alias("reason"),
    )


def _write_rows(work: Path, out: Path, removed: pl.DataFrame, pairs: pl.DataFrame) -> None:
    """Write what is left, with `duplicate_of`, and the pairs among it."""
    gone = removed.select("row")
    ids = scan(work, "rows").select("row", "id").collect(engine="streaming")
    near = pairs.select("later", "earlier", "similarity")
    for end in ("later", "earlier"):
        near = near.join(gone, left_on=end, right_on="row", how="anti")
        near = near.join(ids.rename({"row": end, "id": f"{end}_id"}), on=end)
    near = near.sort("later", "earlier")
    origin = near.group_by("later").agg(pl.col("earlier_id").first())
    rows = (
        scan(work, "rows")
        .join(gone.lazy(), on="row", how="anti", maintain_order="left")
        .join(origin.lazy(), left_on="row", right_on="later", how="left", maintain_order="left")
        .with_columns(pl.col("earlier_id").alias("duplicate_of"))
        .select(*CONVERSATION_SCHEMA)
    )
    mean = scan(work, "rows").select(pl.col("characters").mean()).collect().item()
    sink(rows, out / "rows.parquet", row_bytes=mean or 1)
    near.select(
        pl.col("later_id").alias("later"), pl.col("earlier_id").alias("earlier"), "similarity"
    ).write_parquet(out / "near_duplicates.parquet")


def _write_rejected(work: Path, raw: Path, out: Path, removed: pl.DataFrame) -> None:
    """Write all that was set aside, duplicates with the rows that they were."""
    rejected = [pl.scan_parquet(part_files(work, "rejected"))]
    if removed.height:
        place = scan(work, "rows").select("row", "source", "line")
        named = place.join(removed.lazy(), on="row").select("source", "line", "step", "reason")
        twice = pl.scan_parquet(raw).join(named, on=["source", "line"], maintain_order="left")
        order = ["source", "line", "step", "column", "reason", "row"]
        column = pl.lit(None, dtype=pl.String).alias("column")
        rejected.append(twice.with_columns(column).select(order))
    sink(pl.concat(rejected), out / "rejected.parquet", row_bytes=4096)


def _check_rejected(findings: Findings, total: int, limit: float) -> None:
    """Raise if more than `limit` (a fraction) of the rows are unusable, or none is left."""
    unusable = sum(n for (step, _), n in findings.rejected.items() if step == UNUSABLE)
    if findings.accepted and unusable <= limit * total:
        return
    if findings.first_unusable is None:
        steps = Counter[str]()
        for (step, _), count in findings.rejected.items():
            steps[step] += count
        raise UserError(
            "cleaning",
            f"of {total} rows none is left: " + ", ".join(f"{n} x {s}" for s, n in steps.items()),
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
