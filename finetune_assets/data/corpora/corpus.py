"""The task `prompt_corpora`: raw rows to clean, distinct conversations, in bounded memory.

Rows are converted, repaired and fingerprinted in parts; then duplicates are looked for among the
fingerprints of all; a last pass, in polars alone, puts the corpus together.
"""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl

from finetune_assets.catalog.config import Dataset
from finetune_assets.data.conversations.conversations import CONVERSATION_SCHEMA
from finetune_assets.data.conversations.formats import Formats, formats_of
from finetune_assets.data.corpora import near_duplicates
from finetune_assets.data.corpora.batch import REJECTED_SCHEMA, UNUSABLE, Tally
from finetune_assets.data.corpora.corpus_record import CorpusRecord
from finetune_assets.data.corpora.parts import PartInputs, RowsDone, clean_parts, part_files, scan
from finetune_assets.data.corpora.statistics import describe, rows_hash
from finetune_assets.errors import UserError
from finetune_assets.storage.parquet import ROW_GROUP, batches, writing_parquet


def write_corpus(
    raw: Path, config: Dataset, out: Path, where: str, progress: RowsDone = lambda rows: None
) -> tuple[CorpusRecord, str]:
    """Write the corpus of a raw table; return what was found and the corpus's data version.

    The files are `rows.parquet` (CONVERSATION_SCHEMA), `rejected.parquet` (REJECTED_SCHEMA) and
    `near_duplicates.parquet` (ids `later`, `earlier`, and their `similarity`).

    Raises:
        UserError: no format fits a file, or more than `max_rejected` of the rows are unusable.
    """
    work = out / "work"
    work.mkdir()
    inputs = PartInputs(raw, work, config, where, formats_of(raw, config))
    tally = clean_parts(inputs, progress)
    total = tally.accepted + sum(tally.rejected.values())
    _check_rejected(tally, total, config.max_rejected)
    removed = _exact_duplicates(work, config)
    pairs = _near_pairs(work, removed, config)
    removed = pl.concat([removed, _repeats(work, pairs)]).sort("row")
    for step, rows in removed["step"].value_counts().iter_rows():
        tally.rejected[step, ""] += rows
    tally.accepted -= removed.height
    _write_rows(work, out, removed, pairs)
    _write_rejected(work, raw, out, removed)
    shutil.rmtree(work)
    formats = _named_formats(inputs.formats)
    identity = ["id", "split", "attributes", "source_index"]
    return describe(out, tally, total, formats), rows_hash(out / "rows.parquet", identity)


PINNED_FIRST = {"train": 1, "validation": 2, "test": 3}

REMOVED_SCHEMA = {"row": pl.UInt32, "step": pl.String, "reason": pl.String}


def _named_formats(formats: Formats) -> dict[str, str]:
    """Return the format by file; a file that several sources name is told apart by them."""
    names = Counter(name for _, name in formats)
    return {
        name if names[name] == 1 else f"{name} (sources[{index}])": found.name
        for (index, name), found in formats.items()
    }


def _exact_duplicates(work: Path, config: Dataset) -> pl.DataFrame:
    """Return rows (REMOVED_SCHEMA) whose conversation an earlier row has as well."""
    if config.cleaning.exact_duplicates == "keep":
        return pl.DataFrame(schema=REMOVED_SCHEMA)
    # 64 bits of the hash: two of a million conversations meet by chance once in 4e7 corpora.
    key = pl.col("id").str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64)
    # Of copies the one that is pinned to an evaluation split stays, else the first.
    rank = pl.col("split").replace_strict(PINNED_FIRST, default=0, return_dtype=pl.Int8)
    keys = (
        scan(work, "rows")
        .select("row", key.alias("key"), rank.alias("rank"))
        .collect(engine="streaming")
        .sort("rank", "row", descending=[True, False])
    )
    later = keys.filter(~pl.col("key").is_first_distinct())
    first = keys.filter(pl.col("key").is_first_distinct()).join(later, on="key", how="semi")
    origin = first.join(_places(work, first["row"]), on="row").select("key", "place")
    named = later.sort("row").join(origin, on="key", maintain_order="left")
    reason = pl.format("same as {}", "place").alias("reason")
    return named.select("row", pl.lit("exact_duplicate").alias("step"), reason)


def _places(work: Path, rows: pl.Series) -> pl.DataFrame:
    """Return the file and line (`place`) of these rows."""
    place = pl.format("{}:{}", "source", "line").alias("place")
    wanted = scan(work, "rows").filter(pl.col("row").is_in(rows.implode()))
    return wanted.select("row", place).collect(engine="streaming")


def _near_pairs(work: Path, removed: pl.DataFrame, config: Dataset) -> pl.DataFrame:
    """Return positions (`later`, `earlier`) of rows that ask nearly the same.

    With them go their `similarity`, and whether the later one `repeats` the earlier, its answers
    being as near.
    """
    near = config.cleaning.near_duplicates
    if near.action == "off":
        return pl.DataFrame(schema=PAIR_SCHEMA)
    rows, question = scan(work, "rows"), pl.col("question")
    lengths = rows.select(question.str.len_chars()).collect().to_series().to_numpy()
    among = np.ones(len(lengths), dtype=bool)
    among[removed["row"].to_numpy()] = False
    signatures = part_files(work, "signatures")
    proposed = near_duplicates.candidates(signatures, lengths, among, near.similarity)
    found = near_duplicates.verified(proposed, rows, question, near.similarity)
    if near.action == "group":
        return found.with_columns(pl.lit(False).alias("repeats"))
    same = near_duplicates.verified(found, rows, _answers(), near.similarity)
    repeats = same.select("later", "earlier", pl.lit(True).alias("repeats"))
    joined = found.join(repeats, on=["later", "earlier"], how="left")
    return joined.with_columns(pl.col("repeats").fill_null(False))


PAIR_SCHEMA = near_duplicates.PAIRS | {"similarity": pl.Float32, "repeats": pl.Boolean}


def _answers() -> pl.Expr:
    """Return the expression of what the assistant says in a row."""
    spoken = pl.element().filter(pl.element().struct.field("role") == "assistant")
    parts = [
        pl.col(column).list.eval(spoken.struct.field("content")).list.join("\n")
        for column in ("messages", "chosen")
    ]
    return pl.concat_str(parts, separator="\n", ignore_nulls=True)


def _repeats(work: Path, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return rows (REMOVED_SCHEMA) that nearly repeat an earlier one, answers included."""
    pinned = scan(work, "rows").filter(pl.col("split").is_in(["validation", "test"]))
    stay = set(pinned.select("row").collect(engine="streaming")["row"].to_list())
    origin: dict[int, int] = {}
    for later, earlier in pairs.filter("repeats").select("later", "earlier").iter_rows():
        # What is itself dropped drops no other: it may be less like those that stay.
        if later not in origin and earlier not in origin and later not in stay:
            origin[later] = earlier
    first = pl.DataFrame(list(origin.items()), schema=near_duplicates.PAIRS, orient="row")
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
    origin = near.group_by("later").agg(pl.col("earlier_id").first().alias("duplicate_of"))
    kept = np.ones(ids.height, dtype=bool)
    kept[gone["row"].to_numpy()] = False
    start = 0
    with writing_parquet(out / "rows.parquet", CONVERSATION_SCHEMA) as write:
        for part in part_files(work, "rows"):
            rows = pl.read_parquet(part).drop("question", "number", "duplicate_of")
            rows = rows.with_row_index("later", offset=start)
            mine = rows.filter(pl.Series(kept[start : start + rows.height]))
            named = mine.join(origin, on="later", how="left", maintain_order="left")
            write(named.select(*CONVERSATION_SCHEMA))
            start += rows.height
    ends = [pl.col(f"{end}_id").alias(end) for end in near_duplicates.PAIRS]
    near.select(*ends, "similarity").write_parquet(out / "near_duplicates.parquet")


def _write_rejected(work: Path, raw: Path, out: Path, removed: pl.DataFrame) -> None:
    """Write all that was set aside, duplicates with the rows that they were."""
    column = pl.lit(None, dtype=pl.String).alias("column")
    numbers = scan(work, "rows").select("row", "number")
    places = numbers.join(removed.lazy(), on="row").drop("row").collect(engine="streaming")
    start = 0
    with writing_parquet(out / "rejected.parquet", REJECTED_SCHEMA) as write:
        for part in part_files(work, "rejected"):
            write(pl.read_parquet(part))
        for rows in batches(raw, ROW_GROUP) if places.height else ():
            numbered = rows.with_row_index("number", start)
            start += rows.height
            twice = numbered.join(places, on="number", maintain_order="left")
            write(twice.with_columns(column).select(*REJECTED_SCHEMA))


def _check_rejected(tally: Tally, total: int, limit: float) -> None:
    """Raise if more than `limit` (a fraction) of the rows are unusable, or none is left."""
    unusable = sum(n for (step, _), n in tally.rejected.items() if step == UNUSABLE)
    if tally.accepted and unusable <= limit * total:
        return
    if tally.first_unusable is None:
        steps = Counter[str]()
        for (step, _), count in tally.rejected.items():
            steps[step] += count
        said = ", ".join(f"{count} x {step}" for step, count in steps.items())
        remedy = "loosen `filter`, or what stands under `cleaning:`"
        raise UserError("cleaning", f"of {total} rows none is left: {said}", remedy)
    source, line, reason = tally.first_unusable
    reasons = Counter({r: n for (step, r), n in tally.rejected.items() if step == UNUSABLE})
    said = ", ".join(f"{count} x {why}" for why, count in reasons.most_common())
    cause = f"{reason} (in all, {unusable} of {total} rows are unusable: {said})"
    remedy = "mend the rows, or raise `max_rejected` to go on without them"
    raise UserError(f"{source}:{line}", cause, remedy)
