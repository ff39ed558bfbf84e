"""Rows of public test sets, which must not stand in training data."""

from collections.abc import Iterator, Mapping
from functools import partial

import polars as pl

from finetune_assets.catalog.load import Entry
from finetune_assets.catalog.sources import Source
from finetune_assets.data.conversations.conversations import Conversation, Convert, make_converter
from finetune_assets.data.conversations.formats import format_of
from finetune_assets.data.conversations.messages import Unusable
from finetune_assets.data.sources import files
from finetune_assets.data.sources.sources import find_files, size_and_hash
from finetune_assets.data.splits.contamination import LazyTexts, views_of
from finetune_assets.errors import UserError


def pinned_benchmarks(entry: Entry) -> list[list[str]]:
    """Return the content hashes of every declared benchmark's files."""
    key = "contamination.benchmarks"
    return [
        [size_and_hash(uri)[1] for uri in find_files(entry.locate(benchmark), key)]
        for benchmark in entry.config.contamination.benchmarks
    ]


def benchmark_texts(uri: str, where: str) -> Iterator[LazyTexts]:
    """Yield the texts of a benchmark's rows, in lower case, in batches.

    A row that is no conversation is compared by all of its text.
    """
    for file in find_files(uri, "contamination.benchmarks"):
        convert = None
        for batch in files.read_rows(file):
            rows = [files.parse(text) for _, text in batch]
            if convert is None:
                convert = _converter(rows, file, where)
            texts = []
            for row in rows:
                try:
                    made = convert(row)
                    asked = " ".join(m["content"] for m in made.messages if m["role"] == "user")
                    said = " ".join(turn["content"] for turn in made.turns())
                except Unusable:
                    said = " ".join(v for v in row.values() if isinstance(v, str))
                    asked = said
                texts += views_of(asked or said, said)
            yield partial(pl.Series, texts, dtype=pl.String)


def _converter(rows: list[dict[str, object]], file: str, where: str) -> Convert:
    """Return the converter of the rows' format; one that raises for bare questions."""
    source = Source(path=file)
    try:
        return make_converter(format_of(rows[:20], source, file), source, where)
    except UserError:
        return _no_conversation


def _no_conversation(row: Mapping[str, object]) -> Conversation:
    raise Unusable("no known format")
