"""Rows of public test sets, which must not stand in training data."""

from collections.abc import Iterator

import polars as pl

from finetune_assets.catalog.load import Entry
from finetune_assets.catalog.sources import Source
from finetune_assets.corpora import files
from finetune_assets.corpora.contamination import Batch
from finetune_assets.corpora.conversations import converter
from finetune_assets.corpora.formats import format_of
from finetune_assets.corpora.messages import Unusable
from finetune_assets.corpora.sources import content, find


def pinned_benchmarks(entry: Entry) -> list[list[str]]:
    """Content hashes of every declared benchmark's files."""
    key = "contamination.benchmarks"
    return [
        [content(uri)[1] for uri in find(entry.locate(benchmark), key)]
        for benchmark in entry.config.contamination.benchmarks
    ]


def benchmark_texts(uri: str, where: str) -> Iterator[Batch]:
    """Texts of a benchmark's rows, in lower case, in batches.

    A row that is no conversation is compared by all of its text.
    """
    for file in find(uri, "contamination.benchmarks"):
        convert = None
        for batch in files.read(file):
            rows = [files.parse(text) for _, text in batch]
            if convert is None:
                source = Source(path=file)
                convert = converter(format_of(rows[:20], source, file), source, where)
            texts = []
            for row in rows:
                try:
                    said = [turn["content"] for turn in convert(row).turns()]
                except Unusable:
                    said = [value for value in row.values() if isinstance(value, str)]
                texts.append(" ".join(said))
            yield pl.Series(texts, dtype=pl.String).str.to_lowercase
