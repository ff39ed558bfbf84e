"""What the Dagster UI shows of rows, corpora and splits."""

from typing import Any

import dagster as dg

from finetune_assets.defs import charts
from finetune_assets.defs.markdown import conversations
from finetune_assets.defs.metadata import Metadata, table
from finetune_assets.storage.artifacts import Manifest


def raw(manifest: Manifest) -> Metadata:
    s = manifest.statistics
    return {
        "dagster/row_count": s["rows"],
        "dagster/column_schema": _column_schema("raw"),
        "files": table(s["files"]),
        "preview": table(s["preview"]),
    }


def corpus(manifest: Manifest, before: Manifest | None) -> Metadata:
    s = manifest.statistics
    shown: Metadata = {
        "dagster/row_count": s["rows"],
        "dagster/column_schema": _column_schema("corpus"),
        "rejected_rows": s["rejected"],
        "removed_rows": s["removed"],
        "exact_duplicates": s["exact_duplicates"],
        "near_duplicates": s["near_duplicates"],
    }
    if s["cut_turns"]:
        shown["turns_after_the_last_answer_removed"] = s["cut_turns"]
    if before is not None:
        shown |= _difference(manifest, before)
    shown |= {
        "formats": table([{"file": f, "format": name} for f, name in s["formats"].items()]),
        "preview": dg.MetadataValue.md(conversations(s["preview"])),
        "lengths": charts.bars(s["characters"], "characters of a row"),
        "answer_lengths": charts.bars(s["answer_characters"], "characters of the answers of a row"),
        "repaired_rows": dg.MetadataValue.json(s["repaired"]),
        "languages": dg.MetadataValue.json(s["languages"]),
        "roles": dg.MetadataValue.json(s["roles"]),
    }
    if s["reasons"]:
        shown["rejected_reasons"] = table(s["reasons"])
        shown["rejected_preview"] = table(s["rejected_preview"])
    if s["personal_data"]["rows"]:
        shown["personal_data"] = dg.MetadataValue.json(s["personal_data"]["kinds"])
        shown["personal_data_rows"] = table(s["personal_data"]["examples"])
    return shown


def _difference(manifest: Manifest, before: Manifest) -> Metadata:
    """Against the previous materialization; nothing if its files are gone."""
    from finetune_assets.data.corpora.difference import difference
    from finetune_assets.storage import artifacts as artifacts

    paths = [artifacts.local_copy(m) / "rows.parquet" for m in (before, manifest)]
    found = difference(*paths)
    shown: Metadata = {
        f"rows_{name}": found[name] for name in ("added", "removed", "changed", "unchanged")
    }
    if found["examples"]:
        shown["difference"] = table(found["examples"])
    return shown


def split(manifest: Manifest) -> Metadata:
    s = manifest.statistics
    shown: Metadata = {
        "dagster/row_count": s["rows"],
        "dagster/column_schema": _column_schema("split"),
        "different_prompts": s["prompts"],
        "all_splits": dg.MetadataValue.json(s["sizes"]),
        "by_source": table(s["sources"]),
        "set_aside": s["set_aside"],
        "largest_group_of_near_questions": s["largest_cluster"],
        "leaked_prompts": s["leaked_prompts"],
        "preview": dg.MetadataValue.md(conversations(s["preview"])),
    }
    if "contamination" in s:
        shown["contamination"] = table(s["contamination"]["rows"])
        if s["contamination"]["examples"]:
            shown["contaminated_rows"] = table(s["contamination"]["examples"])
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

    schema: dict[str, Any] = {
        "raw": RAW_SCHEMA,
        "corpus": CONVERSATION_SCHEMA,
        "split": {name: CONVERSATION_SCHEMA[name] for name in COLUMNS},
    }[kind]
    return dg.TableSchema(
        [
            dg.TableColumn(
                name, "list[message]" if dtype == MESSAGES else str(dtype), description=NOTES[name]
            )
            for name, dtype in schema.items()
        ]
    )
