"""A dataset's rows through the whole data path, in a folder of their own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from finetune_assets.catalog.config import Dataset
from finetune_assets.catalog.load import Entry
from finetune_assets.data.corpora.corpus import write_corpus
from finetune_assets.data.sources.raw import write_raw
from finetune_assets.data.sources.sources import pin
from finetune_assets.data.splits.division import Division

Rows = Sequence[dict[str, Any]]


def entry(folder: Path, sources: Sequence[Any], **config: Any) -> Entry:
    """A dataset declared in `folder`."""
    written = [{"path": source} if isinstance(source, str) else source for source in sources]
    values = {"sources": written, "base": {"model": "none"}, **config}
    declared = Dataset.model_validate(values)
    return Entry("data", str(folder / "data.yaml"), declared)


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


class Corpus:
    """The corpus of a dataset: its folder, its record, its rows."""

    def __init__(self, folder: Path, sources: Sequence[Any], **config: Any) -> None:
        self.entry = entry(folder, sources, **config)
        number = sum(1 for _ in folder.glob("run-*"))
        self.folder = folder / f"run-{number}"
        for name in ("spool", "raw", "corpus"):
            (self.folder / name).mkdir(parents=True)
        pinned = pin(self.entry, self.folder / "spool")
        declared = self.entry.config.sources
        self.raw = write_raw(pinned, declared, self.folder / "raw")
        self.record, self.rows_hash = write_corpus(
            self.folder / "raw" / "rows.parquet",
            self.entry.config,
            self.folder / "corpus",
            self.entry.uri,
        )
        self.rows = pl.read_parquet(self.folder / "corpus" / "rows.parquet")
        self.rejected = pl.read_parquet(self.folder / "corpus" / "rejected.parquet")

    def splits(self) -> dict[str, pl.DataFrame]:
        """Rows of each split, and their records in `self.split_records`."""
        division = Division(
            self.folder / "corpus", self.entry.config, self.entry.uri, self.entry.locate
        )
        parts, self.split_records = {}, {}
        for name in ("train", "validation", "test"):
            out = self.folder / name
            out.mkdir()
            self.split_records[name], _ = division.write(name, out)
            parts[name] = pl.read_parquet(out / "rows.parquet")
        return parts

    def messages(self, row: int = 0) -> list[dict[str, Any]]:
        """Turns of one row, without what is not set."""
        return [{k: v for k, v in m.items() if v is not None} for m in self.rows["messages"][row]]


def corpus(folder: Path, rows: Rows, source: dict[str, Any] | None = None, **config: Any) -> Corpus:
    """The corpus of a dataset with one JSONL file."""
    number = sum(1 for _ in folder.glob("*.jsonl"))
    path = write_jsonl(folder / f"rows{number}.jsonl", rows)
    return Corpus(folder, [{"path": str(path), **(source or {})}], **config)
