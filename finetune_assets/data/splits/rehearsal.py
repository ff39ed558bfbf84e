"""A dataset as a run would read, clean and divide it, without a run."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_assets.catalog.load import Entry
from finetune_assets.data.corpora.corpus import write_corpus
from finetune_assets.data.corpora.corpus_record import CorpusRecord
from finetune_assets.data.sources import sources
from finetune_assets.data.sources.raw import write_raw
from finetune_assets.data.splits.division import Division


@contextmanager
def rehearse(entry: Entry) -> Iterator[tuple[CorpusRecord, Division]]:
    """Read, clean and divide a dataset's rows as a run would; give the record and the division.

    They are in scratch folders that last as long as the block.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("spool", "raw", "corpus")}
        for folder in folders.values():
            folder.mkdir()
        pinned = sources.pin(entry, folders["spool"])
        write_raw(pinned, entry.config.sources, folders["raw"])
        raw_rows = folders["raw"] / "rows.parquet"
        record, _ = write_corpus(raw_rows, entry.config, folders["corpus"], entry.uri)
        yield record, Division(folders["corpus"], entry.config, entry.uri, entry.locate)
