"""One batch on its way from raw rows to the corpus: converted, filtered, repaired, told apart."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from finetune_assets.catalog.cleaning import PersonalData
from finetune_assets.catalog.config import Dataset
from finetune_assets.data.conversations.conversations import (
    CONVERSATION_SCHEMA,
    MESSAGES,
    SPLIT_NAMES,
    Conversation,
    Convert,
    make_converter,
    question_of,
)
from finetune_assets.data.conversations.filters import passes
from finetune_assets.data.conversations.formats import Formats
from finetune_assets.data.conversations.messages import Message, Unusable
from finetune_assets.data.corpora import cleaning, personal_data
from finetune_assets.data.corpora.corpus_record import PersonalDataPlace
from finetune_assets.data.sources.files import parse

REJECTED_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "source": pl.String,
    "line": pl.Int64,
    "step": pl.String,
    "column": pl.String,
    "reason": pl.String,
    "row": pl.String,
}
"""Rows that were set aside: `step` is `convert`, `filter`, `length`, `personal_data`,
`exact_duplicate` or `near_duplicate`; `row` is the row as it arrived."""

PART_SCHEMA = CONVERSATION_SCHEMA | {"question": pl.String, "number": pl.UInt32}
"""Conversations before duplicates are looked for; `question` is the normalised prompt, `number`
the position among the raw rows."""

UNUSABLE = "convert"
"""The step whose rows count against `max_rejected`; the others are removed because you said so."""


@dataclass
class ConvertedRow:
    """A row on its way from the raw table to the corpus."""

    record: dict[str, Any]
    """RAW_SCHEMA, and the row's `number`."""
    conversation: Conversation
    split: str | None
    attributes: str


@dataclass
class Tally:
    """What is counted on the way; findings of batches add up."""

    accepted: int = 0
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by step and reason."""
    repaired: Counter[str] = field(default_factory=Counter)
    """Rows by repair."""
    personal: Counter[str] = field(default_factory=Counter)
    """Rows by kind of personal data left in them, or redacted."""
    personal_rows: int = 0
    personal_examples: list[PersonalDataPlace] = field(default_factory=list)
    roles: Counter[str] = field(default_factory=Counter)
    cut_turns: int = 0
    first_unusable: tuple[str, int, str] | None = None

    def add(self, later: "Tally") -> None:
        """Take in what was found in rows after these."""
        self.accepted += later.accepted
        self.personal_rows += later.personal_rows
        self.cut_turns += later.cut_turns
        for name in ("rejected", "repaired", "personal", "roles"):
            getattr(self, name).update(getattr(later, name))
        room = PERSONAL_EXAMPLES - len(self.personal_examples)
        self.personal_examples += later.personal_examples[:room]
        self.first_unusable = self.first_unusable or later.first_unusable


PERSONAL_EXAMPLES = 20
"""Places of personal data that are listed."""


class Cleaner:
    """Turns batches of raw rows into conversations and rejected rows; no batch knows another."""

    def __init__(self, config: Dataset, where: str, formats: Formats) -> None:
        """`formats` are those of every file, `where` is the dataset file, named in errors."""
        self.config, self.where = config, where
        self.tally = Tally()
        self._converters: dict[tuple[int, str], Convert] = {}
        for (index, name), found in formats.items():
            key = f"{where}: sources[{index}]"
            self._converters[index, name] = make_converter(found, config.sources[index], key)

    def clean(self, raw: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return frames of PART_SCHEMA and REJECTED_SCHEMA, which together have all rows."""
        self._rejected: list[dict[str, Any]] = []
        rows = self._lengths_kept(self._cleaned(list(self._converted(raw))))
        accepted = _frame(rows)
        self.tally.accepted += accepted.height
        self.tally.roles.update(
            turn["role"] for row in rows for turn in row.conversation.turns() if turn["role"]
        )
        return accepted, pl.DataFrame(self._rejected, schema=REJECTED_SCHEMA)

    def _reject(self, row: Mapping[str, Any], step: str, reason: str, column: str | None) -> None:
        place = {k: row[k] for k in ("source", "line", "row")}
        self._rejected.append({**place, "step": step, "column": column, "reason": reason})
        self.tally.rejected[step, reason] += 1
        if step == UNUSABLE and self.tally.first_unusable is None:
            self.tally.first_unusable = (row["source"], row["line"], reason)

    def _converted(self, raw: pl.DataFrame) -> Iterator[ConvertedRow]:
        records = raw.to_dicts()
        parsed = [parse(record["row"]) for record in records]
        kept = self._passing_filters(records, parsed)
        column = self.config.splits.column
        for record, row, keep in zip(records, parsed, kept, strict=True):
            source = self.config.sources[record["source_index"]]
            if not keep:
                self._reject(record, "filter", f"not {source.filter}", None)
                continue
            try:
                conversation = self._converters[record["source_index"], record["source"]](row)
                split = source.split or _pinned_split(row, column)
            except Unusable as problem:
                self._reject(record, UNUSABLE, problem.reason, problem.column)
                continue
            self.tally.cut_turns += conversation.cut_turns
            attributes = orjson.dumps({k: row.get(k) for k in source.attributes}).decode()
            yield ConvertedRow(record, conversation, split, attributes)

    def _passing_filters(self, records: list[dict[str, Any]], parsed: list[Any]) -> list[bool]:
        kept = [True] * len(records)
        for index, source in enumerate(self.config.sources):
            if source.filter is None:
                continue
            mine = [i for i, r in enumerate(records) if r["source_index"] == index]
            where = f"{self.where}: sources[{index}].filter"
            verdicts = passes(source.filter, [parsed[i] for i in mine], where)
            for i, verdict in zip(mine, verdicts, strict=True):
                kept[i] = verdict
        return kept

    def _cleaned(self, rows: list[ConvertedRow]) -> list[ConvertedRow]:
        """Repair and search every text of the batch at once."""
        turns = [turn for row in rows for turn in row.conversation.turns()]
        owner = [i for i, row in enumerate(rows) for _ in row.conversation.turns()]
        texts, changed = cleaning.repair([t["content"] for t in turns], self.config.cleaning)
        for step, positions in changed.items():
            self.tally.repaired[step] += len({owner[p] for p in positions})
        for turn, text in zip(turns, texts, strict=True):
            turn["content"] = text
        personal = self.config.cleaning.personal_data
        dropped: dict[int, list[str]] = {}
        if personal.action != "off":
            kinds = self._personal(rows, personal)
            self._count_personal(rows, kinds)
            if personal.action == "drop":
                dropped = {i: sorted(k) for i, k in kinds.items()}
        for i, names in dropped.items():
            self._reject(rows[i].record, "personal_data", f"holds {', '.join(names)}", None)
        return [row for i, row in enumerate(rows) if i not in dropped]

    def _personal(self, rows: list[ConvertedRow], personal: PersonalData) -> dict[int, set[str]]:
        """Return the kinds of personal data by row; redact it where that is declared."""
        places = [
            (i, holder, key)
            for i, row in enumerate(rows)
            for holder, key in _searched(row.conversation)
        ]
        texts = pl.Series([holder[key] for _, holder, key in places], dtype=pl.String)
        kinds: dict[int, set[str]] = {}
        found = personal_data.find_personal_data(texts, personal.kinds, personal.region)
        for position, findings in found.items():
            i, holder, key = places[position]
            kinds.setdefault(i, set()).update(f.kind for f in findings)
            if personal.action == "redact":
                holder[key] = personal_data.redact(holder[key] or "", findings)
        return kinds

    def _count_personal(self, rows: list[ConvertedRow], kinds: dict[int, set[str]]) -> None:
        self.tally.personal_rows += len(kinds)
        for i, names in sorted(kinds.items()):
            self.tally.personal.update(names)
            if len(self.tally.personal_examples) < PERSONAL_EXAMPLES:
                # The place only: the data itself has no business in metadata.
                place = {k: rows[i].record[k] for k in ("source", "line")}
                self.tally.personal_examples.append(PersonalDataPlace(**place, kinds=sorted(names)))

    def _lengths_kept(self, rows: list[ConvertedRow]) -> list[ConvertedRow]:
        least = self.config.cleaning.min_answer_characters
        most = self.config.cleaning.max_characters
        kept = []
        for row in rows:
            answer = sum(map(len, row.conversation.answers()))
            calls = any(m["tool_calls"] for m in row.conversation.turns())
            if answer < least and not calls:
                reason = f"answers shorter than {least} characters"
            elif most is not None and _characters(row.conversation) > most:
                reason = f"longer than {most} characters"
            else:
                kept.append(row)
                continue
            self._reject(row.record, "length", reason, None)
        return kept


def _frame(rows: list[ConvertedRow]) -> pl.DataFrame:
    """Return rows as PART_SCHEMA."""
    said = [row.conversation for row in rows]
    normal = cleaning.normalise(question_of(c) for c in said)
    keys = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        for text in normal.to_list()
    ]
    columns: dict[str, Any] = {
        "id": [_identity(c) for c in said],
        "messages": _turns([c.messages for c in said]),
        "tools": [c.tools for c in said],
        "text": [c.text for c in said],
        "chosen": _turns([c.chosen for c in said]),
        "rejected": _turns([c.rejected for c in said]),
        "label": [c.label for c in said],
        **{k: [row.record[k] for row in rows] for k in ("source", "source_index", "line")},
        "split": [row.split for row in rows],
        "attributes": [row.attributes for row in rows],
        "prompt_key": keys,
        "duplicate_of": [None] * len(rows),
        "characters": [_characters(c) for c in said],
        "answer_characters": [sum(map(len, c.answers())) for c in said],
        "question": normal,
        "number": [row.record["number"] for row in rows],
    }
    return pl.DataFrame(columns, schema=PART_SCHEMA)


def _turns(rows: list[list[Message] | None]) -> pl.Series:
    """Return every row's turns as MESSAGES, built flat, which is faster than nested."""
    turns: list[Mapping[str, object]] = [turn for row in rows for turn in row or ()]
    names = ("role", "content", "weight", "tool_calls")
    types = (pa.large_string(), pa.large_string(), pa.float32(), pa.large_string())
    fields = [
        pa.array([turn[name] for turn in turns], type=kind)
        for name, kind in zip(names, types, strict=True)
    ]
    ends = np.cumsum([0, *(len(row or ()) for row in rows)])
    mask = pa.array([row is None for row in rows], type=pa.bool_())
    made = pa.LargeListArray.from_arrays(
        pa.array(ends, type=pa.int64()), pa.StructArray.from_arrays(fields, names), mask=mask
    )
    return pl.Series(pl.from_arrow(made), dtype=MESSAGES)


def _pinned_split(row: Mapping[str, Any], column: str | None) -> str | None:
    value = row.get(column) if column else None
    if value in (None, ""):
        return None
    if value not in SPLIT_NAMES:
        raise Unusable(f"split '{value}' is none of {', '.join(SPLIT_NAMES)}", column)
    return value


def _searched(
    conversation: Conversation,
) -> Iterator[tuple[Message, Literal["content", "tool_calls"]]]:
    """Yield every text of a conversation in which there may be personal data, by what holds it."""
    for turn in conversation.turns():
        yield turn, "content"
        if turn["tool_calls"]:
            yield turn, "tool_calls"
    if conversation.described:
        yield conversation.described, "content"


def _characters(conversation: Conversation) -> int:
    return sum(len(turn["content"]) for turn in conversation.turns())


def _identity(said: Conversation) -> str:
    parts = [said.messages, said.tools, said.text, said.chosen, said.rejected, said.label]
    return hashlib.blake2b(orjson.dumps(parts), digest_size=12).hexdigest()
