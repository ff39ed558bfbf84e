"""What people want to know of a corpus, without tokens: counts, lengths, languages, samples."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import py3langid

from finetune_assets.data.corpora.batch import UNUSABLE, Tally
from finetune_assets.data.corpora.corpus_record import (
    CorpusRecord,
    Histogram,
    Outliers,
    PersonalDataCounts,
    Reason,
    RejectedRow,
    ShownRow,
)
from finetune_assets.storage.fingerprint import LENGTH
from finetune_assets.storage.parquet import ROW_GROUP, batches, take

PREVIEW_ROWS = 6
REJECTED_SHOWN = 10
"""Rows shown of each step that removes rows."""

STRETCHES, ROWS_FOR_LANGUAGE = 4, 300
"""Rows, the first by hash, whose language is told."""

OUTLIER_RANGES = 3
"""Interquartile ranges above the third quartile from which an answer is far longer than others."""


def describe(folder: Path, tally: Tally, total: int, formats: dict[str, str]) -> CorpusRecord:
    """Return what is to be known of a corpus folder; `tally` has its duplicates counted in."""
    rows = folder / "rows.parquet"
    removed = tally.rejected
    lengths = pl.read_parquet(rows, columns=["characters", "answer_characters"])
    near = pl.scan_parquet(rows).select(pl.col("duplicate_of").is_not_null().sum()).collect().item()
    return CorpusRecord(
        rows=tally.accepted,
        total=total,
        rejected=_of_step(tally, UNUSABLE),
        removed=sum(removed.values()),
        reasons=[Reason(step=s, reason=r, rows=n) for (s, r), n in removed.most_common() if n],
        rejected_preview=_rejected_preview(folder / "rejected.parquet"),
        formats=formats,
        repaired=dict(tally.repaired),
        exact_duplicates=_of_step(tally, "exact_duplicate"),
        near_duplicates=near + _of_step(tally, "near_duplicate"),
        personal_data=PersonalDataCounts(
            rows=tally.personal_rows, kinds=dict(tally.personal), examples=tally.personal_examples
        ),
        roles=dict(tally.roles),
        cut_turns=tally.cut_turns,
        languages=languages(rows),
        characters=histogram(lengths["characters"]),
        answer_characters=histogram(lengths["answer_characters"]),
        answer_outliers=outliers(lengths["answer_characters"]),
        preview=preview(rows),
    )


def _of_step(tally: Tally, wanted: str) -> int:
    return sum(n for (step, _), n in tally.rejected.items() if step == wanted)


def _rejected_preview(path: Path) -> list[RejectedRow]:
    """Return a few rows of every step, with the beginning of what was removed."""
    beginning = pl.col("row").str.slice(0, 100)
    rows = pl.scan_parquet(path).select("source", "line", "step", "reason", beginning)
    return [
        RejectedRow(**row)
        for step in rows.select("step").unique().sort("step").collect()["step"]
        for row in rows.filter(pl.col("step") == step).head(REJECTED_SHOWN).collect().to_dicts()
    ]


def preview(rows: Path) -> list[ShownRow]:
    """Return the first rows of every source, as far as PREVIEW_ROWS go."""
    light = pl.read_parquet(rows, columns=["source_index"], row_index_name="row")
    each = max(1, PREVIEW_ROWS // max(1, light["source_index"].n_unique()))
    first = light.group_by("source_index", maintain_order=True).head(each)["row"]
    shown = take(rows, first.head(PREVIEW_ROWS).to_list(), list(ShownRow.model_fields))
    return [ShownRow(**row) for row in shown.to_dicts()]


def rows_hash(path: Path, columns: list[str]) -> str:
    """Hash of these columns of a Parquet file, in order, whatever its size."""
    content = hashlib.sha256()
    for frame in batches(path, 65_536, columns):
        values = (pl.col(c).cast(pl.String).fill_null("\0") for c in columns)
        text = frame.select(pl.concat_str(list(values), separator="\1")).to_series().str.join("\n")
        content.update(text[0].encode() + b"\n")
    return content.hexdigest()[:LENGTH]


def histogram(values: pl.Series, bins: int = 40) -> Histogram:
    """Return a histogram whose last bin has the values above the 99.5th percentile."""
    if not values.len():
        return Histogram(edges=[], counts=[])
    top = float(np.percentile(values.to_numpy(), 99.5))
    clipped = np.minimum(values.to_numpy(), max(top, 1.0))
    counts, edges = np.histogram(clipped, bins=bins)
    return Histogram(edges=edges.round(2).tolist(), counts=counts.tolist())


def outliers(values: pl.Series) -> Outliers:
    """Return how many values are above Q3 + OUTLIER_RANGES * IQR, and that limit."""
    if not values.len():
        return Outliers(share=0.0, limit=0.0, rows=0)
    low, high = float(values.quantile(0.25) or 0), float(values.quantile(0.75) or 0)
    limit = high + OUTLIER_RANGES * (high - low)
    rows = int((values > limit).sum())
    return Outliers(share=rows / values.len(), limit=limit, rows=rows)


def languages(rows: Path) -> dict[str, float]:
    """Return the share of each language (ISO 639-1) among a few rows, most frequent first."""
    contents = pl.col("messages").list.eval(pl.element().struct.field("content"))
    text = pl.coalesce(pl.col("text"), contents.list.join("\n"))
    # By hash, out of a few stretches of the file: reading all of it for so few rows is waste.
    light = pl.read_parquet(rows, columns=["id"], row_index_name="row")
    stretches = {i * light.height // STRETCHES // ROW_GROUP for i in range(STRETCHES)}
    near = light.filter((pl.col("row") // ROW_GROUP).is_in(list(stretches)))
    chosen = near.bottom_k(ROWS_FOR_LANGUAGE, by="id")["row"].to_list()
    read = take(rows, chosen, ["text", "messages"])
    sample = read.select(text.str.slice(0, 1000).alias("text"))["text"]
    return shares(py3langid.classify(text)[0] for text in sample)


def shares(values: Iterable[str]) -> dict[str, float]:
    """Return the share of each value, most frequent first."""
    counts = pl.Series(list(values), dtype=pl.String).value_counts(sort=True)
    total = max(1, int(counts["count"].sum()))
    return {name: round(count / total, 4) for name, count in counts.iter_rows()}
