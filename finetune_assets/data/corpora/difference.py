"""What changed between two materializations of a corpus."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

EXAMPLES = 20


def difference(before: Path, after: Path) -> dict[str, Any]:
    """Return how many rows were added, removed and changed, with examples of each.

    A changed row asks what it asked before, and is answered differently. `before` and `after` are
    the `rows.parquet` of two corpora.
    """
    columns = ["id", "prompt_key", "source", "line"]
    old, new = (pl.read_parquet(path, columns=columns).unique("id") for path in (before, after))
    gone = old.join(new, on="id", how="anti")
    come = new.join(old, on="id", how="anti")
    changed = come.join(gone, on="prompt_key", how="semi")
    parts = {
        "added": come.join(changed, on="id", how="anti"),
        "removed": gone.join(come, on="prompt_key", how="anti"),
        "changed": changed,
    }
    examples = [
        {"change": name, "source": row["source"], "line": row["line"], "id": row["id"]}
        for name, part in parts.items()
        for row in part.sort("source", "line").head(EXAMPLES).iter_rows(named=True)
    ]
    return {
        **{name: part.height for name, part in parts.items()},
        "unchanged": new.height - come.height,
        "examples": examples,
    }


def variation(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Return the total variation of two mixes of counts or shares: 0 the same, 1 nothing shared."""
    sums = sum(before.values()) or 1.0, sum(after.values()) or 1.0
    names = before.keys() | after.keys()
    moved = (abs(before.get(name, 0) / sums[0] - after.get(name, 0) / sums[1]) for name in names)
    return sum(moved) / 2
