"""What the Dagster UI shows of rows, corpora and splits."""

from collections.abc import Mapping, Sequence

import dagster as dg

from finetune_assets.data.corpora.corpus_record import CorpusRecord
from finetune_assets.data.sources.raw_record import RawRecord
from finetune_assets.data.splits.split_record import SplitRecord
from finetune_assets.defs import charts
from finetune_assets.defs.markdown import conversations
from finetune_assets.defs.metadata import Metadata, table
from finetune_assets.storage import artifacts
from finetune_assets.storage.artifacts import Manifest, RecordPart


def _table(rows: Sequence[RecordPart]) -> dg.TableMetadataValue:
    return table([row.model_dump(exclude_unset=True) for row in rows])


def raw(manifest: Manifest) -> Metadata:
    """Return what is shown of a raw table."""
    read = manifest.record(RawRecord)
    return {
        "dagster/row_count": read.rows,
        "dagster/column_schema": _column_schema("raw"),
        "files": _table(read.files),
        "preview": _table(read.preview),
    }


def corpus(manifest: Manifest, before: Manifest | None) -> Metadata:
    """Return what is shown of a corpus, and how it differs from the one before."""
    found = manifest.record(CorpusRecord)
    shown: Metadata = {
        "dagster/row_count": found.rows,
        "dagster/column_schema": _column_schema("corpus"),
        "rejected_rows": found.rejected,
        "removed_rows": found.removed,
        "exact_duplicates": found.exact_duplicates,
        "near_duplicates": found.near_duplicates,
    }
    if found.cut_turns:
        shown["turns_after_the_last_answer_removed"] = found.cut_turns
    if before is not None:
        shown |= _difference(manifest, before)
    characters, answers = found.characters, found.answer_characters
    said = "characters of the answers of a row"
    shown |= {
        "formats": table([{"file": f, "format": name} for f, name in found.formats.items()]),
        "preview": dg.MetadataValue.md(conversations(found.preview)),
        "lengths": charts.bars(characters.edges, characters.counts, "characters of a row"),
        "answer_lengths": charts.bars(answers.edges, answers.counts, said),
        "repaired_rows": dg.MetadataValue.json(found.repaired),
        "languages": dg.MetadataValue.json(found.languages),
        "roles": dg.MetadataValue.json(found.roles),
    }
    if found.reasons:
        shown["rejected_reasons"] = _table(found.reasons)
        shown["rejected_preview"] = _table(found.rejected_preview)
    if found.personal_data.rows:
        shown["personal_data"] = dg.MetadataValue.json(found.personal_data.kinds)
        shown["personal_data_rows"] = _table(found.personal_data.examples)
    return shown


def _difference(manifest: Manifest, before: Manifest) -> Metadata:
    """Return how the rows differ from those of the previous materialization."""
    from finetune_assets.data.corpora.difference import difference

    found = difference(*(artifacts.local_copy(m) / "rows.parquet" for m in (before, manifest)))
    counted = ("added", "removed", "changed", "unchanged")
    shown: Metadata = {f"rows_{name}": found[name] for name in counted}
    if found["examples"]:
        shown["difference"] = table(found["examples"])
    return shown


def split(manifest: Manifest) -> Metadata:
    """Return what is shown of a split."""
    made = manifest.record(SplitRecord)
    shown: Metadata = {
        "dagster/row_count": made.rows,
        "dagster/column_schema": _column_schema("split"),
        "different_prompts": made.prompts,
        "all_splits": dg.MetadataValue.json(made.sizes),
        "by_source": _table(made.sources),
        "set_aside": made.set_aside,
        "largest_group_of_near_questions": made.largest_cluster,
        "leaked_prompts": made.leaked_prompts,
        "preview": dg.MetadataValue.md(conversations(made.preview)),
    }
    if made.contamination:
        shown["contamination"] = _table(made.contamination.rows)
        if made.contamination.examples:
            shown["contaminated_rows"] = _table(made.contamination.examples)
    return shown


NOTES = {
    "source": "file or other origin",
    "source_index": "position in the dataset file's `sources`",
    "line": "line of the file, or number of the row, from 1",
    "row": "the row as it arrived, as JSON",
    "id": "hash of the conversation",
    "messages": "turns of role, content, weight (0: no loss) and tool_calls (JSON)",
    "tools": "functions that the model may call, as JSON",
    "text": "a plain document, instead of messages",
    "chosen": "preferred answer",
    "rejected": "other answer",
    "label": "false: feedback calls the answer unwanted",
    "split": "split that the row is pinned to",
    "attributes": "columns kept for evaluation slices, as JSON",
    "prompt_key": "hash of the normalised question",
    "duplicate_of": "id of the first row that asks nearly the same",
    "characters": "characters of all turns",
    "answer_characters": "characters of the answers",
}


def _column_schema(kind: str) -> dg.TableSchema:
    from finetune_assets.data.conversations.conversations import CONVERSATION_SCHEMA, MESSAGES
    from finetune_assets.data.sources.raw import RAW_SCHEMA
    from finetune_assets.data.splits.division import COLUMNS

    schemas: dict[str, Mapping[str, object]] = {
        "raw": RAW_SCHEMA,
        "corpus": CONVERSATION_SCHEMA,
        "split": {name: CONVERSATION_SCHEMA[name] for name in COLUMNS},
    }
    columns = {n: "list[message]" if t == MESSAGES else str(t) for n, t in schemas[kind].items()}
    return dg.TableSchema(
        [dg.TableColumn(name, dtype, description=NOTES[name]) for name, dtype in columns.items()]
    )
