"""The tasks of the three splits: one corpus, divided once, written three times."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

from finetune_assets.catalog.config import Dataset
from finetune_assets.data.conversations.conversations import CONVERSATION_SCHEMA, SPLIT_NAMES
from finetune_assets.data.corpora.statistics import preview, rows_hash
from finetune_assets.data.splits import splits
from finetune_assets.data.splits.benchmarks import benchmark_texts
from finetune_assets.data.splits.contamination import EvaluationGrams, LazyTexts, text_of
from finetune_assets.data.splits.split_record import (
    Contaminated,
    ContaminatedRow,
    Contamination,
    SourceRows,
    SplitRecord,
)
from finetune_assets.data.splits.splits import SET_ASIDE, Assignment
from finetune_assets.errors import UserError
from finetune_assets.storage.parquet import ROW_GROUP, batches, writing_parquet

BATCH_ROWS = 1024
"""About a megabyte of text: what n-grams are counted in stays within a core's cache."""

EXAMPLES = 20
"""Contaminated rows shown side by side with the training row that holds them."""

COLUMNS = [name for name in CONVERSATION_SCHEMA if name != "split"]


@dataclass
class Division:
    """A corpus folder and where its rows go."""

    corpus: Path
    config: Dataset
    where: str
    locate: Callable[[str], str]
    """Resolves paths of the dataset file."""

    @property
    def rows(self) -> Path:
        """The corpus's rows."""
        return self.corpus / "rows.parquet"

    @cached_property
    def assignment(self) -> Assignment:
        """Where every row goes."""
        rows = pl.read_parquet(self.rows, columns=splits.NODE_COLUMNS)
        pairs = pl.read_parquet(self.corpus / "near_duplicates.parquet")
        return splits.assign(rows, pairs, self.config.splits, self.where)

    def write(self, name: str, out: Path) -> tuple[SplitRecord, str]:
        """Write one split's `rows.parquet`; return its record and its data version.

        With the training split go the rows set aside, as `set_aside.parquet`; with the test split
        the rows that overlap with training, as `contamination.parquet`.
        """
        path = out / "rows.parquet"
        code = SPLIT_NAMES.index(name)
        mine = (self.assignment.row == code).astype(np.int64)
        self._write_rows(mine * self._copies() if name == "train" else mine, path)
        # Only the test split is sliced by attributes; a change of them must not retrain.
        identity = ["id", "attributes"] if name == "test" else ["id"]
        rows = pl.scan_parquet(path).select(pl.len()).collect().item()
        if name == "train" and not rows:
            cause = f"the weights leave none of {int(mine.sum())} rows to train on"
            raise UserError(self.where, cause, "raise `weight` of a source")
        record = SplitRecord(
            rows=rows,
            prompts=np.unique(self.assignment.node[self.assignment.row == code]).size,
            sizes=self.assignment.sizes(),
            set_aside=self.assignment.set_aside,
            largest_cluster=self.assignment.largest_cluster(),
            linked_questions=len(self.assignment.links),
            leaked_prompts=splits.count_leaks(self.assignment),
            sources=self._by_source(),
            preview=preview(path),
        )
        if name == "train":
            aside = (self.assignment.row == SET_ASIDE).astype(np.int64)
            self._write_rows(aside, out / "set_aside.parquet")
        if name == "test":
            found = self._contamination(out / "contamination.parquet")
            record = record.model_copy(update={"contamination": found})
        return record, rows_hash(path, identity)

    def _write_rows(self, copies: np.ndarray, path: Path) -> None:
        """Write every row as often as `copies` says, in rounds."""
        schema = {name: CONVERSATION_SCHEMA[name] for name in COLUMNS}
        with writing_parquet(path, schema) as write:
            for times in range(1, int(copies.max(initial=0)) + 1):
                start = 0
                for frame in batches(self.rows, ROW_GROUP, COLUMNS):
                    wanted = copies[start : start + frame.height] >= times
                    write(frame.filter(pl.Series(wanted)))
                    start += frame.height

    def _copies(self) -> np.ndarray:
        """Return how often each row stands in training, by its source's weight."""
        weights = {i: s.weight for i, s in enumerate(self.config.sources)}
        light = pl.read_parquet(self.rows, columns=["id", "source_index"])
        if set(weights.values()) == {1.0}:
            return np.ones(light.height, dtype=np.int64)
        return splits.copies(light["id"], light["source_index"], weights)

    def _by_source(self) -> list[SourceRows]:
        index = pl.read_parquet(self.rows, columns=["source_index"])["source_index"].to_numpy()
        names = [*SPLIT_NAMES, "set_aside"]
        found = []
        for i, source in enumerate(self.config.sources):
            codes = self.assignment.row[index == i]
            counts = {name: int((codes == code).sum()) for code, name in enumerate(names)}
            found.append(SourceRows(source=source.label, weight=source.weight, **counts))
        return found

    def _contamination(self, path: Path) -> Contamination:
        """Return the overlap of validation, test and benchmark rows with training rows."""
        config = self.config.contamination
        codes = {name: SPLIT_NAMES.index(name) for name in ("validation", "test")}
        sizes = self.assignment.sizes()
        evaluation = EvaluationGrams(config.n, sum(sizes[name] for name in codes))
        kinds: list[pl.Series] = []
        own = ((name, self._texts(code)) for name, code in codes.items())
        benchmarks = ((b, benchmark_texts(self.locate(b), self.where)) for b in config.benchmarks)
        for name, texts in chain(own, benchmarks):
            before = evaluation.count
            evaluation.add(texts)
            kinds.append(pl.Series([name]).new_from_index(0, evaluation.count - before))
        kind = pl.concat(kinds)
        training = SPLIT_NAMES.index("train")
        found = evaluation.overlap(self._texts(training))
        found = found.with_columns(kind.gather(found["row"]).alias("of"))
        contaminated = found.filter(pl.col("overlap") >= config.overlap)
        shown = self._named(contaminated, codes, training)
        shown.write_parquet(path)
        counts = dict(kind.value_counts().iter_rows())
        rows = []
        for name in kind.unique(maintain_order=True):
            count = counts[name]
            overlaps = found.filter(pl.col("of") == name)["overlap"]
            mean = round(float(overlaps.sum()) / count, 5)
            n = int((overlaps >= config.overlap).sum())
            share = round(n / count, 5)
            rows.append(
                Contaminated(of=name, rows=count, contaminated=n, share=share, mean_overlap=mean)
            )
        examples = [ContaminatedRow(**row) for row in shown.head(EXAMPLES).to_dicts()]
        return Contamination(n=config.n, overlap=config.overlap, rows=rows, examples=examples)

    def _named(self, found: pl.DataFrame, codes: dict[str, int], training: int) -> pl.DataFrame:
        """Give evaluation and training rows their files and lines."""
        light = pl.read_parquet(self.rows, columns=["source", "line"])
        places = light.select(pl.format("{}:{}", "source", "line")).to_series()
        row = self.assignment.row
        mine = np.concatenate([np.flatnonzero(row == code) for code in codes.values()])
        train = np.flatnonzero(row == training)
        numbers = found["row"].to_numpy()
        inside = numbers < len(mine)
        corpus_row = mine[np.where(inside, numbers, 0)] if len(mine) else numbers
        outside = pl.Series(numbers - len(mine)).cast(pl.String)
        of = places.gather(corpus_row).zip_with(pl.Series(inside), outside).alias("evaluation_row")
        by = places.gather(train[found["training_row"].to_numpy()]).alias("training_row")
        return found.select("of", of, by, pl.col("overlap").round(3), "ngrams")

    def _texts(self, code: int) -> Iterator[LazyTexts]:
        start = 0
        chosen = self.assignment.row == code
        for frame in batches(self.rows, BATCH_ROWS, ["text", "messages", "chosen"]):
            mask = pl.Series(chosen[start : start + frame.height])
            start += frame.height
            if mask.any():
                yield partial(_text_of_some, frame, mask, training=code == 0)


def _text_of_some(frame: pl.DataFrame, mask: pl.Series, *, training: bool) -> pl.Series:
    return text_of(frame.filter(mask), training=training)
