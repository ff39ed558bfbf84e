"""`finetune init`: looks at data and proposes a dataset file that runs as it is."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import polars as pl

from finetune_assets.catalog.cleaning import Splits
from finetune_assets.catalog.config import Base, Dataset
from finetune_assets.catalog.load import Entry, json_schema, parse
from finetune_assets.catalog.sources import Source
from finetune_assets.commands.proposal.file import render
from finetune_assets.commands.proposal.sample import (
    Sample,
    base_of,
    dataset_uri,
    detect_formats,
    read_sample,
    source_of,
    template_over,
)
from finetune_assets.commands.proposal.training import Keys, number, token_keys
from finetune_assets.data.conversations.conversations import SPLIT_NAMES
from finetune_assets.data.conversations.formats import NAMES, Format
from finetune_assets.data.corpora.batch import UNUSABLE
from finetune_assets.data.corpora.corpus import write_corpus
from finetune_assets.data.corpora.corpus_record import CorpusRecord
from finetune_assets.data.sources.values import Row
from finetune_assets.data.splits.division import Division

EVALUATION_ROWS = 2000
"""Rows that are enough to tell models apart; validation and test need not grow beyond."""

FEW_QUESTIONS = 200
"""Below, a fraction drawn by hash could leave a split empty, so counts are proposed."""

SPLIT_COLUMN = "split"
FEW_VALUES = 12
"""Values up to which a column is worth comparing by."""

FIELDS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "system", "tools"),
    "sharegpt": ("messages", "system", "tools"),
    "preference": ("messages", "prompt", "chosen", "rejected", "system", "tools"),
    "feedback": ("messages", "prompt", "completion", "label", "system", "tools"),
    "alpaca": ("instruction", "input", "output", "history", "system", "tools"),
    "prompt_completion": ("prompt", "completion", "system", "tools"),
    "text": ("text",),
}
"""What each format takes from a row."""


@dataclass(frozen=True)
class Proposal:
    """A dataset file before it is written, and what it was made from."""

    entry: Entry
    text: str
    beside: dict[str, str]
    """Further files of the catalog folder: content by name."""
    read: str
    """How many rows were read, in words."""
    seen: list[str]
    """What was found in them, a line each."""
    rows: pl.DataFrame
    """The clean rows that were read, CONVERSATION_SCHEMA."""


def propose(name: str, origin: str, query: str | None = None, base: str | None = None) -> Proposal:
    """Look at data and decide on the keys of its dataset file; nothing is written.

    `origin` is a path, folder, glob or URI of files; `hub:ORG/NAME@REVISION`;
    `package.module:function`; or, with `query`, the URI of a database.
    """
    uri, source, model = dataset_uri(name), source_of(origin, query), base_of(base)
    declared = Dataset(sources=[source], base=Base(model=model), max_rejected=1.0)
    entry = Entry(name, uri, declared)
    with tempfile.TemporaryDirectory() as scratch:
        sample = read_sample(entry, Path(scratch))
        raw = sample.rows()
        declared = _with_splits(declared, {"column": _pins(sample, raw)[0]})
        keys = _source_keys(sample, raw, detect_formats(sample, source, uri), source)
        corpus, table = Path(scratch) / "corpus", Path(scratch) / "raw.parquet"
        corpus.mkdir()
        sample.frame.write_parquet(table)
        record, _ = write_corpus(table, declared, corpus, uri)
        rows = pl.read_parquet(corpus / "rows.parquet")
        keys |= _corpus_keys(record) | _split_keys(sample, raw, rows)
        if sample.complete:
            divided = _with_splits(declared, keys["splits"])
            sizes = Division(corpus, divided, uri, entry.locate).assignment.sizes()
            said = ", ".join(f"{split} {size}" for split, size in sizes.items())
            keys["split_reasons"].append(f"Rows of each: {said}.")
            train_rows = sizes["train"]
        else:
            share = _training_share(keys["splits"], raw, rows)
            train_rows = max(1, round(_usable_rows(sample, rows) * share))
    keys |= token_keys(entry, rows, train_rows, sample.complete)
    seen = [*keys["format_lines"], *_answer_lines(rows), *keys["corpus_lines"]]
    text = render(source=source, base=model, read=_read(sample), seen=seen, **keys)
    beside = {"schema.json": json.dumps(json_schema(), indent=2) + "\n"}
    if keys["chat_template"]:
        beside[keys["chat_template"]] = keys["chat_template_text"]
    return Proposal(Entry(name, uri, parse(text, uri)), text, beside, _read(sample), seen, rows)


def _with_splits(config: Dataset, splits: Keys) -> Dataset:
    return config.model_copy(update={"splits": Splits.model_validate(splits)})


def _read(sample: Sample) -> str:
    read = sample.frame.height
    if sample.complete:
        return f"all {read} rows"
    if sample.total is None:
        return f"the first {read} rows; how many there are was not counted"
    return f"the first {read} of {number(sample.total, sample.counted)} rows"


def _source_keys(
    sample: Sample, raw: Sequence[Row], formats: Mapping[str, Format], source: Source
) -> Keys:
    """Return what stands under `sources:`."""
    columns = {column for row in raw for column in row}
    taken = {_taken(found) for found in formats.values()}
    lines = []
    for name, fields in sorted(taken):
        of = [file for file, found in formats.items() if _taken(found) == (name, fields)]
        single = Path(of[0]).name if source.path else of[0]
        where = f"{len(of)} files" if len(of) > 1 else single
        said = ", ".join(f if f == c else f"{f} from `{c}`" for f, c in fields)
        lines.append(f"{where}: format {name}, with {said}")
    (name, fields), *others = sorted(taken)
    used = {column for _, each in taken for _, column in each}
    rest = sorted(columns - used - {SPLIT_COLUMN})
    if rest:
        lines.append(f"columns not used: {', '.join(rest)}")
    found = {field: [c for c in NAMES[field] if c in columns - used] for field, _ in fields}
    rivals = {field: ours for field, ours in found.items() if ours}
    pair = not others and name in ("alpaca", "prompt_completion")
    long = [c for c in rest if _is_text(raw, c)] if pair else []
    origin = {k: getattr(source, k) for k in ("path", "query", "connection", "hub", "function")}
    return {
        "origin": {k: v for k, v in origin.items() if v is not None},
        "description": f"Rows of {_place(source)}.",
        "format": "auto" if others else name,
        "how": "Files of several formats; `auto` tells each from its columns."
        if others
        else f"Told from {_listed([c for _, c in fields])}; `auto` would look again at every run.",
        "columns": dict(fields) if rivals and not others else None,
        "ambiguous": [
            f"`{field}` could also be {' or '.join(f'`{c}`' for c in ours)}."
            for field, ours in rivals.items()
        ],
        "template": template_over([*long, *(c for _, c in fields)]) if long else None,
        "attributes": [c for c in rest if _has_few_values(raw, c)],
        "sample": 5000 if (sample.total or 0) > 20_000 else None,
        "format_lines": lines,
    }


def _place(source: Source) -> str:
    """Return a short name of the source, for people who know their data."""
    parts = source.path.rstrip("/").split("/")[-2:] if source.path else [f"the {source.label}"]
    return "/".join(part for part in parts if part != "..")


def _listed(columns: Sequence[str]) -> str:
    named = ", ".join(f"`{c}`" for c in columns)
    return f"the column{'s' if len(columns) > 1 else ''} {named}"


def _taken(found: Format) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the format's name, and its columns by field."""
    fields = [f for f in FIELDS[found.name] if f in found.columns]
    if "messages" in fields:
        fields = [f for f in fields if f not in ("prompt", "completion")]
    return found.name, tuple((f, found.columns[f]) for f in fields)


def _is_text(raw: Sequence[Row], column: str) -> bool:
    """Return whether a column could be part of a question: texts of several words, most of them."""
    texts = [v for row in raw if isinstance(v := row.get(column), str)]
    several = sum(len(text.split()) > 3 for text in texts)
    return column.isidentifier() and several > len(raw) / 2


def _has_few_values(raw: Sequence[Row], column: str) -> bool:
    values = [row.get(column) for row in raw]
    if not all(isinstance(v, str | int | bool | None) for v in values):
        return False
    return 1 < len(set(values)) <= min(FEW_VALUES, len(values) / 5)


def _corpus_keys(record: CorpusRecord) -> Keys:
    """Return what stands under `cleaning:`, and what was found in the rows."""
    total, unusable = record.total, record.rejected
    reasons = [f"{r.rows} x {r.reason}" for r in record.reasons if r.step == UNUSABLE]
    exact, near = record.exact_duplicates, record.near_duplicates
    personal = record.personal_data
    kinds = ", ".join(f"{kind} {rows}" for kind, rows in personal.kinds.items())
    languages = [f"{k} {n:.0%}" for k, n in record.languages.items() if n >= 0.01]
    some = f"{unusable} of {total} rows unusable: {'; '.join(reasons[:5])}"
    lines = [
        some if unusable else "no unusable rows",
        f"{exact} exact duplicates; {near} rows ask the same as an earlier one, or nearly",
        f"rows with personal data: {personal.rows}" + (f" ({kinds})" if kinds else ""),
        f"languages, of a few hundred rows: {', '.join(languages[:4])}",
    ]
    if record.cut_turns:
        lines.append(f"{record.cut_turns} turns after the last answer, which are left out")
    share = unusable / total
    limit = 0.1 if share <= 0.08 else min(1.0, ceil((share + 0.02) * 20) / 20)
    return {
        "corpus_lines": lines,
        "max_rejected": limit,
        "rejected_reason": f"Share of rows that may be unusable before a run stops; "
        f"{f'{share:.1%} are' if unusable else 'none is'}"
        + (": mend them, or live without them." if limit > 0.1 else "."),
        "exact_reason": f"{exact or 'No'} rows repeat another, character by character.",
        "near_reason": f"{near or 'No'} rows ask the same as an earlier one, or nearly: `group` "
        "keeps them in one split, `drop` removes those whose answers are near too.",
        "personal_reason": f"Rows where it was found: {kinds}. `redact` writes [EMAIL] and the "
        "like instead; `drop` sets rows aside; `region` finds national phone numbers too."
        if kinds
        else "None was found; `report` goes on looking.",
        "no_system": not record.roles.get("system") and bool(record.roles),
    }


def _answer_lines(rows: pl.DataFrame) -> list[str]:
    """Return what is learned of rows that hold more than one answer to follow."""
    unwanted = rows.filter(~pl.col("label")).height
    lines = [f"answers labelled as unwanted, which are not learned: {unwanted}"] if unwanted else []
    if rows["chosen"].is_not_null().any():
        lines.append("of two answers the chosen one is learned")
    return lines


def _pins(sample: Sample, raw: Sequence[Row]) -> tuple[str | None, str | None]:
    """Return the column that pins rows to splits, if one can be used, and what is said of it."""
    values = Counter(str(row.get(SPLIT_COLUMN) or "") for row in raw)
    named = set(values) - {""}
    if not named or len(named) > FEW_VALUES:
        return None, None
    said = ", ".join(f"{value or 'empty'} {count}" for value, count in values.items())
    unfilled = [s for s in SPLIT_NAMES if s not in named] if sample.complete else []
    if not named <= set(SPLIT_NAMES):
        problem = "must say train, validation or test"
    elif not all(SPLIT_COLUMN in row for row in raw):
        problem = "must be in every row, if only empty,"
    elif unfilled and "" not in values:
        problem = f"has no rows for {' and '.join(unfilled)}, which it needs"
    else:
        return SPLIT_COLUMN, f"The column `{SPLIT_COLUMN}` says where rows belong: {said}."
    return None, f"A column `{SPLIT_COLUMN}` is there ({said}), but {problem} to be used here."


def _split_keys(sample: Sample, raw: Sequence[Row], rows: pl.DataFrame) -> Keys:
    """Return what stands under `splits:`."""
    column, said = _pins(sample, raw)
    drawn, reason = _drawn_splits(sample, rows)
    some_drawn = column is None or any(not row.get(column) for row in raw)
    return {
        "splits": ({"column": column} if column else {}) | (drawn if some_drawn else {}),
        "split_reasons": [*([said] if said else []), *([reason] if some_drawn else [])],
        "commented_column": column is None and said is not None,
    }


def _drawn_splits(sample: Sample, rows: pl.DataFrame) -> tuple[Keys, str]:
    """Return the sizes of the splits that are drawn, and why."""
    questions = rows["prompt_key"].n_unique()
    total = _usable_rows(sample, rows)
    if sample.complete and questions < FEW_QUESTIONS:
        count = max(1, round(rows.height / 10))
        reason = f"A tenth each, as counts: {questions} different questions are so few that a "
        reason += "fraction drawn by hash could leave a split empty."
        return {"validation": count, "test": count}, reason
    if total > 10 * EVALUATION_ROWS:
        share = float(f"{EVALUATION_ROWS / total:.0e}")
        reason = f"About {EVALUATION_ROWS} rows each are enough to tell models apart."
        return {"validation": share, "test": share}, reason
    return {"validation": 0.1, "test": 0.1}, "A tenth each; a fraction never moves a row."


def _training_share(splits: Keys, raw: Sequence[Row], rows: pl.DataFrame) -> float:
    """Return the share of rows that is left for training."""
    if "column" in splits:
        values = Counter(row.get(SPLIT_COLUMN) or "train" for row in raw)
        return values["train"] / len(raw)
    drawn = splits["validation"] + splits["test"]
    return 1 - (drawn if isinstance(drawn, float) else drawn / rows.height)


def _usable_rows(sample: Sample, rows: pl.DataFrame) -> int:
    """Clean rows of the whole source; of those read where its size is not known."""
    read = sample.frame.height
    return round((sample.total or read) * rows.height / read)
