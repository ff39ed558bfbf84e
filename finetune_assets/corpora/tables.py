"""Writing the data assets: raw rows, the corpus with its rejected rows, and the splits."""

from pathlib import Path
from typing import Any

import polars as pl

from finetune_assets.catalog.config import Dataset, Source, Splits
from finetune_assets.corpora import conversations
from finetune_assets.corpora.sources import SourceFile, read_all
from finetune_assets.corpora.splits import leaked_prompts, prompt_of, split
from finetune_assets.storage.fingerprint import digest

PREVIEW_ROWS = 5


def write_raw(pinned: list[SourceFile], declared: list[Source], out: Path) -> dict[str, Any]:
    """Read every file, sample each source, write `rows.parquet` (RAW_SCHEMA)."""
    rows = read_all(pinned, declared)
    rows.write_parquet(out / "rows.parquet")
    return {
        "rows": rows.height,
        "files": [
            {
                "file": f.uri,
                "bytes": f.size,
                "rows": rows.filter(pl.col("source") == f.uri).height,
                "sha256": f.sha256,
            }
            for f in pinned
        ],
        "preview": rows.head(PREVIEW_ROWS).select("source", "line", "row").to_dicts(),
    }


def write_corpus(raw: Path, config: Dataset, out: Path) -> dict[str, Any]:
    """Convert raw rows; write `rows.parquet` and `rejected.parquet`."""
    table = pl.read_parquet(raw)
    accepted, rejected, formats = conversations.convert(table, config.sources, config.splits.column)
    conversations.check_rejected(rejected, table.height, config.max_rejected)
    accepted.write_parquet(out / "rows.parquet")
    rejected.write_parquet(out / "rejected.parquet")
    return {
        "rows": accepted.height,
        "rejected": rejected.height,
        "reasons": rejected["reason"].value_counts(sort=True).to_dicts(),
        "rejected_preview": rejected.head(20).to_dicts(),
        "formats": formats,
        "turns": accepted["messages"].list.len().value_counts(sort=True).to_dicts(),
        "preview": accepted.head(PREVIEW_ROWS).select("id", "messages").to_dicts(),
        "rows_hash": digest(accepted.select("id", "split", "attributes").rows()),
    }


def write_split(corpus: Path, config: Splits, name: str, out: Path, where: str) -> dict[str, Any]:
    """Write one split's `rows.parquet`; statistics speak of all three."""
    parts = split(pl.read_parquet(corpus), config, where)
    rows = parts[name]
    rows.write_parquet(out / "rows.parquet")
    # Only the test split is sliced by attributes; a change of them must not retrain.
    identity = ["id", "attributes"] if name == "test" else ["id"]
    return {
        "rows": rows.height,
        "prompts": rows["group"].n_unique(),
        "sizes": {kind: part.height for kind, part in parts.items()},
        "leaked_prompts": leaked_prompts(parts),
        "preview": [
            {"id": row["id"], "prompt": prompt_of(row["messages"])[:300]}
            for row in rows.head(PREVIEW_ROWS).iter_rows(named=True)
        ],
        "rows_hash": digest(rows.select(identity).rows()),
    }
