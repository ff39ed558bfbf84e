"""The record of `raw_datasets`: what the raw table holds, and from which files."""

from finetune_assets.storage.artifacts import Record, RecordPart


class SourceFile(RecordPart):
    """A file, or the rows of another source, pinned by the hash of its bytes."""

    file: str
    bytes: int
    rows: int
    sha256: str


class RawRow(RecordPart):
    """A row as it arrived, and where it stands."""

    source: str
    line: int
    row: str
    """JSON text."""


class RawRecord(Record):
    """What the task `raw_datasets` read."""

    rows: int
    files: list[SourceFile]
    preview: list[RawRow]
