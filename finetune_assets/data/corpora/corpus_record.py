"""The record of `prompt_corpora`: what was found in the rows, kept, repaired and removed."""

from finetune_assets.storage.artifacts import Record, RecordPart


class Reason(RecordPart):
    """Why rows were removed, and how many."""

    step: str
    reason: str
    rows: int


class RejectedRow(RecordPart):
    """The beginning of a row that was removed."""

    source: str
    line: int
    step: str
    column: str | None = None
    reason: str
    row: str


class PersonalDataPlace(RecordPart):
    """A row that holds personal data, which itself is not named."""

    source: str
    line: int
    kinds: list[str]


class PersonalDataCounts(RecordPart):
    """Rows with personal data, in all and by kind."""

    rows: int
    kinds: dict[str, int]
    examples: list[PersonalDataPlace]


class Histogram(RecordPart):
    """Counts of values between edges, of which there is one more; both empty without values."""

    edges: list[float]
    counts: list[int]


class Outliers(RecordPart):
    """Answers that are far longer than the others."""

    share: float
    limit: float
    """Characters from which an answer counts as one."""
    rows: int


class ShownTurn(RecordPart):
    """One turn of a row of the preview."""

    role: str
    content: str
    weight: float | None
    tool_calls: str | None


class ShownRow(RecordPart):
    """A row of the preview; see CONVERSATION_SCHEMA."""

    id: str
    source: str
    line: int
    messages: list[ShownTurn] | None
    text: str | None
    chosen: list[ShownTurn] | None
    rejected: list[ShownTurn] | None
    tools: str | None


class CorpusRecord(Record):
    """What the task `prompt_corpora` found and kept."""

    rows: int
    """Rows kept."""
    total: int
    """Rows read."""
    rejected: int
    """Rows that could not become a conversation."""
    removed: int
    """Rows that were set aside, the rejected ones among them."""
    reasons: list[Reason]
    rejected_preview: list[RejectedRow]
    formats: dict[str, str]
    """Format by file."""
    repaired: dict[str, int]
    """Rows by repair."""
    exact_duplicates: int
    near_duplicates: int
    personal_data: PersonalDataCounts
    roles: dict[str, int]
    """Turns by role."""
    cut_turns: int
    """Turns after the last answer of a row, which were left out."""
    languages: dict[str, float]
    """Share of rows by language (ISO 639-1)."""
    characters: Histogram
    answer_characters: Histogram
    answer_outliers: Outliers
    preview: list[ShownRow]
