"""The record of a split, which speaks of all three: sizes, sources, leaks and contamination."""

from finetune_assets.data.corpora.corpus_record import ShownRow
from finetune_assets.storage.artifacts import Record, RecordPart


class SourceRows(RecordPart):
    """How many rows of a source went to each split, before its weight is applied."""

    source: str
    weight: float
    train: int
    validation: int
    test: int
    set_aside: int


class Contaminated(RecordPart):
    """How many rows of an evaluation split or a benchmark stand in training rows."""

    of: str
    """The split or benchmark."""
    rows: int
    contaminated: int
    share: float
    mean_overlap: float
    """Share of a row's n-grams that are in training, on average."""


class ContaminatedRow(RecordPart):
    """A contaminated row beside the training row that holds most of it."""

    of: str
    evaluation_row: str
    training_row: str
    overlap: float
    ngrams: int


class Contamination(RecordPart):
    """Overlap of evaluation rows with training rows."""

    n: int
    """Words of an n-gram."""
    overlap: float
    """Share of shared n-grams from which a row is contaminated."""
    rows: list[Contaminated]
    examples: list[ContaminatedRow]


class SplitRecord(Record):
    """What the task of a split wrote."""

    rows: int
    """Rows of this split."""
    prompts: int
    """Different questions of this split."""
    sizes: dict[str, int]
    """Rows of every split, before weights are applied."""
    set_aside: int
    """Rows that would leak wherever they went."""
    largest_cluster: int
    """Rows that ask nearly the same and must stay together, at most."""
    linked_questions: int
    """Pairs of questions that are nearly the same."""
    leaked_prompts: int
    """Questions in more than one split; 0 by design."""
    sources: list[SourceRows]
    preview: list[ShownRow]
    contamination: Contamination | None = None
    """Of the test split only."""
