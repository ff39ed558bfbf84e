"""Questions that differ by a few characters: MinHash LSH proposes pairs, edit distance decides.

What is compared is the normalised prompt (or document). Which pairs are compared depends only on a
row and the rows before it, so rows that are added at the end change nothing about earlier ones.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist
from rensa import RMinHash

from finetune_assets.processes.pool import map_in_threads

SHINGLE = 6
"""Bytes of a shingle: shorter ones make all English look alike, longer ones miss short prompts."""

BANDS, BAND_ROWS = 64, 3
"""Two prompts whose shingles have a Jaccard similarity of 0.5 (5 % of characters edited at random
gives 0.45 to 0.6) meet in a band with probability 0.9998, unrelated ones (0.02) with 5e-4."""

SKETCH, SKETCH_EQUAL = 32, 9
"""MinHashes of which a byte each is kept in memory, and how many of them a pair must share: weeds
out those who met by chance before any text is read (0.5: 0.995 stay; 0.08: 0.001 stay)."""

PREDECESSORS = 3
"""Rows of a band's bucket, next before a row, that the row is compared with; and the first. Fuller
buckets are divided by one and by two more MinHashes, and each part is treated alike."""

COMPARED_CHARACTERS = 10_000
"""The beginning of very long texts decides: edit distance is quadratic."""

SHORT_CHARACTERS = 64
"""In shorter texts another number makes another question: what is 12 + 7, what is 13 + 7."""

SEED = 1
PAIRS_AT_ONCE = 100_000
PAIRS = {"later": pl.UInt32, "earlier": pl.UInt32}
"""Schema of pairs of rows, by their positions."""


def signature_schema() -> dict[str, type[pl.DataType]]:
    """Return the schema of `signatures`' frames."""
    return {f"band_{i}": pl.UInt32 for i in range(BANDS)} | {
        f"sketch_{i}": pl.UInt64 for i in range(SKETCH // 8)
    }


def signatures(texts: pl.Series) -> pl.DataFrame:
    """Return the MinHash signatures of normalised texts (`signature_schema`), by rensa.

    A hash per band: texts that share one are candidates. And a sketch: a byte of each of the first
    MinHashes.
    """
    shingles, offsets = _shingles(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        shingles, offsets, BANDS * BAND_ROWS, SEED
    )
    hashes = np.array(matrix.to_rows(), dtype=np.uint32)
    grouped = hashes.reshape(-1, BANDS, BAND_ROWS).astype(np.uint64)
    mixed = np.zeros(grouped.shape[:2], dtype=np.uint64)
    for row in range(BAND_ROWS):
        mixed = (mixed ^ grouped[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    bands = (mixed >> np.uint64(32)).astype(np.uint32)
    sketch = hashes[:, :SKETCH].astype(np.uint8).view(np.uint64)
    columns = [*bands.T, *sketch.T]
    return pl.DataFrame(dict(zip(signature_schema(), columns, strict=True)))


def _shingles(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes of every text's shingles, one after another, and where each text's begin.

    Texts are parted by SHINGLE - 1 spaces, which the last shingles of a text reach into; those that
    begin there are left out, so that no text's shingles depend on its neighbours.
    """
    gap = SHINGLE - 1
    content = np.frombuffer((texts + " " * gap).str.join("")[0].encode(), dtype=np.uint8)
    lengths = texts.str.len_bytes().to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    count = len(content) - gap
    codes = content[:count].astype(np.uint64)
    for i in range(1, SHINGLE):
        codes <<= np.uint64(8)
        codes |= content[i : count + i]
    codes *= np.uint64(0x9E3779B97F4A7C15)
    codes ^= codes >> np.uint64(32)
    inside = np.ones(count, dtype=bool)
    ends = offsets[1:-1] + gap * np.arange(len(lengths) - 1)
    inside[(ends[:, None] + np.arange(gap)).ravel()] = False
    return codes[inside], offsets.astype(np.uint64)


def candidates(
    signature_files: list[Path], lengths: np.ndarray, among: np.ndarray, similarity: float
) -> pl.DataFrame:
    """Return PAIRS that share a band and may be as similar, with a band a thread in memory.

    `lengths` are the characters of every normalised text, `among` says which rows take part.
    """
    names = list(signature_schema())
    rows = np.flatnonzero(among).astype(np.uint32)
    lengths = lengths[among]
    kept_rows = pl.Series(among)
    sketch = pl.read_parquet(signature_files, columns=names[BANDS:]).filter(kept_rows).to_numpy()
    sketch = np.ascontiguousarray(sketch).view(np.uint8)

    empty = pl.DataFrame(schema=PAIRS)

    def meet(number: int) -> pl.DataFrame:
        """Return candidates of one band."""
        band = pl.read_parquet(signature_files, columns=[names[number]]).to_series()
        bucket, kept = band.filter(kept_rows).to_numpy(), [empty]
        for later, earlier in _meetings(bucket, sketch, number % (SKETCH - 1)):
            # In slices, as sketches of all pairs at once are larger than all else.
            for start in range(0, len(later), PAIRS_AT_ONCE):
                a, b = (end[start : start + PAIRS_AT_ONCE] for end in (later, earlier))
                near = _lengths_allow(lengths[a], lengths[b], similarity)
                a, b = a[near], b[near]
                near = (sketch[a] == sketch[b]).sum(axis=1) >= SKETCH_EQUAL
                kept.append(pl.DataFrame({"later": a[near], "earlier": b[near]}))
        return pl.concat(kept).unique()

    found = empty
    for met in map_in_threads(meet, range(BANDS)):
        found = pl.concat([found, met]).unique()
    ends = [pl.Series(end, rows[found[end].to_numpy()]) for end in PAIRS]
    return found.select(ends).sort("later", "earlier")


def _meetings(
    bucket: np.ndarray, sketch: np.ndarray, divider: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows, and rows before them in the same bucket or part of a bucket."""
    key = bucket.astype(np.uint64)
    row = np.arange(len(key), dtype=np.uint32)
    for level in range(3):
        if level:
            key = (key << np.uint64(8)) | sketch[row, divider + level - 1]
        order = pl.DataFrame({"key": key, "row": row}).sort("key", maintain_order=True)
        key, row = order["key"].to_numpy(), order["row"].to_numpy()
        starts = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
        sizes = np.diff(np.append(starts, len(row)))
        first = np.repeat(row[starts], sizes)
        follows = row != first
        yield row[follows], first[follows]
        for distance in range(1, min(PREDECESSORS, len(row) - 1) + 1):
            same = key[distance:] == key[:-distance]
            yield row[distance:][same], row[:-distance][same]
        full = np.repeat(sizes > PREDECESSORS + 1, sizes)
        if not full.any():
            return
        # Kept in order of row, so that the next sort, which is stable, keeps it within parts.
        again = np.argsort(row[full], kind="stable")
        key, row = key[full][again], row[full][again]


def _lengths_allow(a: np.ndarray, b: np.ndarray, similarity: float) -> np.ndarray:
    a, b = np.minimum(a, COMPARED_CHARACTERS), np.minimum(b, COMPARED_CHARACTERS)
    return np.minimum(a, b) >= similarity * np.maximum(a, b)


def verified(
    proposed: pl.DataFrame, rows: pl.LazyFrame, text: pl.Expr, similarity: float
) -> pl.DataFrame:
    """Return the proposed PAIRS whose texts are at least as similar, with their `similarity`.

    It is the share of equal characters, by Levenshtein distance. `rows` has the position of each
    row as `row`.
    """
    beginning = text.str.slice(0, COMPARED_CHARACTERS).alias("text")
    scores = [np.empty(0, dtype=np.float32)]
    for part in proposed.select("later", "earlier").iter_slices(PAIRS_AT_ONCE):
        needed = pl.concat([part["later"], part["earlier"]]).unique().sort()
        wanted = rows.filter(pl.col("row").is_in(needed.implode())).select("row", beginning)
        known = dict(wanted.collect(engine="streaming").iter_rows())
        later, earlier = ([known[row] for row in part[end]] for end in PAIRS)
        scorer = Levenshtein.normalized_similarity
        score = cpdist(later, earlier, scorer=scorer, score_cutoff=similarity, workers=-1)
        other = [_another_number(a, b) for a, b in zip(later, earlier, strict=True)]
        scores.append(np.where(other, 0, score).astype(np.float32))
    scored = proposed.select("later", "earlier", pl.Series("similarity", np.concatenate(scores)))
    return scored.filter(pl.col("similarity") >= similarity)


def _another_number(a: str, b: str) -> bool:
    return len(a) < SHORT_CHARACTERS and re.findall(r"\d+", a) != re.findall(r"\d+", b)
