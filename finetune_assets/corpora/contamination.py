"""How much of evaluation rows stands in training rows: overlap of word n-grams.

As in GPT-3's analysis (Brown et al., 2020, appendix C): n-grams of normalised words, and n-grams
that many training rows share are phrases of the domain, not leaks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from finetune_assets.corpora.cleaning import normalise

SAMPLED = 64
"""N-grams kept of an evaluation row, those of the lowest hash: a uniform sample of a long row, and
what bounds memory."""

COMMON = 10
"""An n-gram in more training rows than this is common, and says nothing."""

LEAST = 5
"""A row with fewer n-grams that are not common is not judged, unless it is short as a whole."""

FILTER_BITS = 24
_ODD = 0x9E3779B97F4A7C15
_INVERSE = pow(_ODD, -1, 2**64)

RESULT_SCHEMA: dict[str, Any] = {
    "row": pl.UInt32,
    "overlap": pl.Float64,
    "training_row": pl.UInt32,
    "ngrams": pl.UInt32,
}


@dataclass
class Evaluation:
    """Sampled n-grams of rows that training must not contain."""

    n: int
    grams: list[np.ndarray] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    count: int = 0

    def add(self, texts: pl.Series) -> None:
        """Add normalised texts; their rows are numbered on."""
        grams, row = ngrams(texts, self.n)
        frame = (
            pl.DataFrame({"row": row, "gram": grams})
            .unique()
            .group_by("row", maintain_order=False)
            .agg(pl.col("gram").bottom_k(SAMPLED))
            .explode("gram")
        )
        self.grams.append(frame["gram"].to_numpy())
        self.rows.append(frame["row"].to_numpy() + np.uint32(self.count))
        self.count += texts.len()

    def overlap(self, training: Iterable[pl.Series]) -> pl.DataFrame:
        """For every row that shares n-grams with training (RESULT_SCHEMA): the share found, and the
        training row that has most of them.

        Args:
            training: normalised texts of training rows, in batches.
        """
        if not self.grams:
            return pl.DataFrame(schema=RESULT_SCHEMA)
        grams, rows = np.concatenate(self.grams), np.concatenate(self.rows)
        known = np.unique(grams)
        seen, matches = _search(known, training, self.n)
        held = pl.DataFrame({"gram": np.searchsorted(known, grams), "row": rows})
        telling = held.filter(pl.Series(seen <= COMMON).gather(held["gram"]))
        found = telling.join(matches, on="gram")
        whole = telling.group_by("row").agg(pl.len().alias("ngrams"))
        total = held.group_by("row").agg(pl.len().alias("all"))
        best = (
            found.group_by("row", "training_row")
            .len()
            .sort("len", "training_row", descending=[True, False])
            .group_by("row", maintain_order=True)
            .first()
            .select("row", "training_row")
        )
        return (
            found.select("row", "gram")
            .unique()
            .group_by("row")
            .agg(pl.len().alias("found"))
            .join(whole, on="row")
            .join(total, on="row")
            .join(best, on="row")
            .filter((pl.col("ngrams") >= LEAST) | (pl.col("ngrams") == pl.col("all")))
            .select(
                "row",
                (pl.col("found") / pl.col("ngrams")).alias("overlap"),
                "training_row",
                "ngrams",
            )
            .cast(pl.Schema(RESULT_SCHEMA))
            .sort("overlap", "row", descending=[True, False])
        )


def _search(
    known: np.ndarray, training: Iterable[pl.Series], n: int
) -> tuple[np.ndarray, pl.DataFrame]:
    """In how many training rows each known n-gram is, and (gram, training_row) of the first."""
    table = np.zeros(1 << FILTER_BITS, dtype=bool)
    table[known >> np.uint64(64 - FILTER_BITS)] = True
    seen = np.zeros(len(known), dtype=np.int64)
    kept: list[pl.DataFrame] = []
    start = 0
    for texts in training:
        grams, row = ngrams(texts, n)
        possible = table[grams >> np.uint64(64 - FILTER_BITS)]
        grams, row = grams[possible], row[possible]
        place = np.minimum(np.searchsorted(known, grams), len(known) - 1)
        hit = known[place] == grams
        found = pl.DataFrame(
            {"gram": place[hit], "training_row": row[hit] + np.uint32(start)}
        ).unique(maintain_order=True)
        kept.append(found.filter(pl.Series(seen < COMMON).gather(found["gram"])))
        seen += np.bincount(found["gram"].to_numpy(), minlength=len(known))
        start += texts.len()
    schema = {"gram": pl.Int64, "training_row": pl.UInt32}
    return seen, pl.concat([pl.DataFrame(schema=schema), *kept])


def ngrams(texts: pl.Series, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint64) of every n-gram of words, and the row (uint32) that each belongs to.

    A text of fewer words is one n-gram. Rolling hash by prefix sums modulo 2**64: the hash of a
    range of bytes does not depend on where the range stands.
    """
    lines = texts.str.replace_all("\n", " ", literal=True)
    joined = lines.str.join("\n")[0] if texts.len() else ""
    content = np.frombuffer(("\n" + joined + "\n").encode(), dtype=np.uint8)
    gap = content <= 32
    starts = np.flatnonzero(gap[:-1] & ~gap[1:]) + 1
    ends = np.flatnonzero(~gap[:-1] & gap[1:]) + 1
    if not len(starts):
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint32)
    breaks = np.flatnonzero(content == 10)
    row = (np.searchsorted(breaks, starts) - 1).astype(np.uint32)
    words = np.bincount(row)[row]
    index = np.arange(len(starts))
    first = np.append(True, row[1:] != row[:-1])
    last = index + np.minimum(n, words) - 1
    inside = last < len(row)
    inside[inside] = row[last[inside]] == row[index[inside]]
    keep = np.flatnonzero(inside & ((words >= n) | first))
    power = np.full(len(content) + 1, np.uint64(_ODD))
    power[0] = 1
    power = np.cumprod(power)
    prefix = np.append(np.uint64(0), np.cumsum((content.astype(np.uint64) + 1) * power[:-1]))
    inverse = np.full(len(content) + 1, np.uint64(_INVERSE))
    inverse[0] = 1
    inverse = np.cumprod(inverse)
    begin, end = starts[keep], ends[last[keep]]
    hashes = (prefix[end] - prefix[begin]) * inverse[begin]
    hashes = (hashes ^ (hashes >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(29)), row[keep]


def texts_of(frames: Iterable[pl.DataFrame]) -> Iterator[pl.Series]:
    """Normalised text of everything that rows say, turns joined."""
    said = pl.concat_str(
        pl.col("text"),
        _joined("messages"),
        _joined("chosen"),
        separator=" ",
        ignore_nulls=True,
    )
    for frame in frames:
        yield normalise(frame.select(said.alias("text"))["text"])


def _joined(column: str) -> pl.Expr:
    spoken = pl.element().filter(pl.element().struct.field("role") != "system")
    return pl.col(column).list.eval(spoken.struct.field("content")).list.join(" ")
