"""How much of evaluation rows stands in training rows: overlap of word n-grams.

As in GPT-3's analysis (Brown et al., 2020, appendix C): n-grams of normalised words, and n-grams
that many training rows share are phrases of the domain, not leaks.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import polars as pl

from finetune_assets.processes.pool import map_in_threads

SAMPLED_MOST, SAMPLED_LEAST, SAMPLED_IN_ALL = 64, 16, 4_000_000
"""N-grams kept of an evaluation row, those of the lowest hash: a uniform sample of a long row. As
many as bound memory, whatever the number of rows."""

COMMON = 10
"""An n-gram in more training rows than this is common, and says nothing."""

LEAST = 5
"""A row with fewer n-grams that are not common is not judged, unless it is short as a whole."""

FILTER_SLOTS = 16
"""Slots per known n-gram of the table that most n-grams of training are turned away by."""

_ODD = 0x9E3779B97F4A7C15

LazyTexts = Callable[[], pl.Series]
"""Gives texts in lower case when asked, which is in another thread: VIEWS for every row."""

SHORT_QUESTION = 100
"""Bytes; longer questions hold n-grams of their own."""

VIEWS = 2
"""A row is looked at as its question and as a whole: a question that stands in training is a leak
whatever the answer, and n-grams that straddle both would hide it."""

RESULT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "row": pl.UInt32,
    "overlap": pl.Float64,
    "training_row": pl.UInt32,
    "ngrams": pl.UInt32,
}


@dataclass
class EvaluationGrams:
    """Sampled n-grams of rows that training must not contain."""

    n: int
    expected_rows: int
    grams: list[np.ndarray] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    views: int = 0

    @property
    def count(self) -> int:
        """Rows added."""
        return self.views // VIEWS

    @property
    def sampled(self) -> int:
        """N-grams kept of a row."""
        fair = SAMPLED_IN_ALL // max(1, VIEWS * self.expected_rows)
        return max(SAMPLED_LEAST, min(SAMPLED_MOST, fair))

    def add(self, batches: Iterable[LazyTexts]) -> None:
        """Add rows; they are numbered on."""
        for grams, row, rows in map_in_threads(self._sample, batches):
            self.grams.append(grams)
            self.rows.append(row + np.uint32(self.views))
            self.views += rows

    def _sample(self, batch: LazyTexts) -> tuple[np.ndarray, np.ndarray, int]:
        texts = batch()
        grams, row = ngrams(texts, self.n)
        order = np.lexsort((grams, row))
        grams, row = grams[order], row[order]
        new = np.append(True, (grams[1:] != grams[:-1]) | (row[1:] != row[:-1]))[: len(row)]
        grams, row = grams[new], row[new]
        starts = np.flatnonzero(np.append(True, row[1:] != row[:-1])[: len(row)])
        rank = np.arange(len(row)) - np.repeat(starts, np.diff(np.append(starts, len(row))))
        return grams[rank < self.sampled], row[rank < self.sampled], texts.len()

    def overlap(self, training: Iterable[LazyTexts]) -> pl.DataFrame:
        """Return how much of each row that shares n-grams with training is found there.

        With the share goes the training row that has most of it (RESULT_SCHEMA).
        """
        if not self.grams:
            return pl.DataFrame(schema=RESULT_SCHEMA)
        grams, rows = np.concatenate(self.grams), np.concatenate(self.rows)
        known, gram = np.unique(grams, return_inverse=True)
        seen, matches = _search(known, training, self.n)
        held = pl.DataFrame({"gram": gram, "row": rows})
        telling = held.filter(pl.Series(seen <= COMMON).gather(held["gram"]))
        found = telling.join(matches, on="gram")
        whole = telling.group_by("row").agg(pl.len().alias("ngrams"))
        total = held.group_by("row").agg(pl.len().alias("all"))
        found = found.with_columns(pl.col("training_row") // VIEWS).unique()
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
                pl.col("row") // VIEWS,
                (pl.col("found") / pl.col("ngrams")).alias("overlap"),
                "training_row",
                "ngrams",
            )
            .cast(pl.Schema(RESULT_SCHEMA))
            .sort("overlap", "row", "ngrams", descending=[True, False, True])
            .unique("row", keep="first", maintain_order=True)
        )


def _search(
    known: np.ndarray, training: Iterable[LazyTexts], n: int
) -> tuple[np.ndarray, pl.DataFrame]:
    """Return in how many training rows each known n-gram is, and the first ones that have it."""
    bits = (len(known) * FILTER_SLOTS).bit_length()
    shift = np.uint64(64 - bits)
    table = np.zeros(1 << bits, dtype=bool)
    table[known >> shift] = True
    seen = np.zeros(len(known), dtype=np.int64)
    kept: list[pl.DataFrame] = []
    start = 0

    def search(batch: LazyTexts) -> tuple[np.ndarray, np.ndarray, int]:
        texts = batch()
        grams, row = ngrams(texts, n)
        possible = table[grams >> shift]
        grams, row = grams[possible], row[possible]
        place = np.minimum(np.searchsorted(known, grams), len(known) - 1)
        hit = known[place] == grams
        return place[hit], row[hit], texts.len()

    for place, row, rows in map_in_threads(search, training):
        found = pl.DataFrame({"gram": place, "training_row": row + np.uint32(start)})
        found = found.unique(maintain_order=True)
        kept.append(found.filter(pl.Series(seen < COMMON).gather(found["gram"])))
        seen += np.bincount(found["gram"].to_numpy(), minlength=len(known))
        start += rows
    schema = {"gram": pl.Int64, "training_row": pl.UInt32}
    return seen, pl.concat([pl.DataFrame(schema=schema), *kept])


def ngrams(texts: pl.Series, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes (uint64) of every n-gram of words, and the row (uint32) that each belongs to.

    A text of fewer words is one n-gram. Words are runs of letters, digits and what is not ASCII;
    how they are parted does not matter.
    """
    words, row = _words(texts)
    count = len(words)
    if not count:
        return words, row
    hashes = np.zeros(count, dtype=np.uint64)
    whole = np.full(count, count >= n)
    for j in range(min(n, count)):
        same = np.zeros(count, dtype=bool)
        same[: count - j] = row[j:] == row[: count - j]
        factor = np.uint64(pow(_ODD, 2 * j + 1, 2**64))
        hashes[same] += words[j:][same[: count - j]] * factor
        whole &= same
    first = np.append(True, row[1:] != row[:-1])
    keep = whole | (first & (np.bincount(row)[row] < n))
    return _mixed(hashes[keep]), row[keep]


def _words(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Hash of every word, and the row it is in.

    By prefix sums modulo 2**64: the hash of a range of bytes does not depend on where it stands.
    """
    joined = texts.str.replace_all("\0", " ", literal=True).str.join("\0")
    content = np.frombuffer(f"\0{joined[0] if texts.len() else ''}\0".encode(), dtype=np.uint8)
    gap = _GAP[content]
    edges = np.flatnonzero(gap[1:] != gap[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    row = (np.searchsorted(np.flatnonzero(content == 0), starts) - 1).astype(np.uint32)
    power, inverse = _powers(1 << len(content).bit_length())
    prefix = np.zeros(len(content) + 1, dtype=np.uint64)
    np.cumsum((content.astype(np.uint64) + np.uint64(1)) * power[: len(content)], out=prefix[1:])
    return _mixed((prefix[ends] - prefix[starts]) * inverse[starts]), row


_GAP = np.array([not (chr(b).isalnum() or b == 95 or b > 127) for b in range(256)])


@lru_cache(maxsize=4)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first powers of an odd number and of its inverse, modulo 2**64."""
    made = []
    for base in (_ODD, pow(_ODD, -1, 2**64)):
        power = np.full(count, base, dtype=np.uint64)
        power[0] = 1
        made.append(np.cumprod(power))
    return made[0], made[1]


def _mixed(hashes: np.ndarray) -> np.ndarray:
    hashes = (hashes ^ (hashes >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(29))


def text_of(frame: pl.DataFrame, *, training: bool = False) -> pl.Series:
    """Return what rows ask, and everything they say, in lower case: VIEWS texts for every row.

    Of training rows only short questions, as the n-grams of long ones are in what the row says.
    """
    asked = pl.col("text").fill_null(_joined("messages", "user"))
    if training:
        asked = pl.when(asked.str.len_bytes() < SHORT_QUESTION).then(asked)
    parts = (pl.col("text"), _joined("messages"), _joined("chosen"))
    said = pl.concat_str(*parts, separator=" ", ignore_nulls=True)
    views = pl.concat_list(asked.fill_null(""), said).list.eval(pl.element().str.to_lowercase())
    return frame.select(views.alias("views"))["views"].explode()


def views_of(asked: str, said: str) -> list[str]:
    """Return what `text_of` does, for one row."""
    return [asked.lower(), said.lower()]


def _joined(column: str, role: str | None = None) -> pl.Expr:
    speaker = pl.element().struct.field("role")
    spoken = pl.element().filter(speaker == role if role else speaker != "system")
    return pl.col(column).list.eval(spoken.struct.field("content")).list.join(" ")
