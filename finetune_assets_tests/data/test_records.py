"""Manifests that older releases wrote are read into records, and written back as they were."""

from typing import Any

import pytest

from finetune_assets.data.corpora.corpus_record import CorpusRecord
from finetune_assets.data.sources.raw_record import RawRecord
from finetune_assets.data.splits.split_record import SplitRecord
from finetune_assets.storage.artifacts import Manifest, Record

TURN = {"role": "user", "content": "How many?", "weight": None, "tool_calls": None}
ANSWER = {"role": "assistant", "content": "SELECT 1", "weight": 1.0, "tool_calls": "[]"}

SHOWN = {
    "id": "ff270432c87e24daaac3dd6e",
    "source": "/data/questions.jsonl",
    "line": 1,
    "messages": [TURN, ANSWER],
    "text": None,
    "chosen": None,
    "rejected": [ANSWER],
    "tools": None,
}

RAW = {
    "rows": 800,
    "files": [
        {"file": "/data/questions.jsonl", "bytes": 239036, "rows": 800, "sha256": "a60e7cc10ecb"}
    ],
    "preview": [{"source": "/data/questions.jsonl", "line": 1, "row": '{"instruction": "Show"}'}],
}

CORPUS = {
    "rows": 800,
    "total": 803,
    "rejected": 1,
    "removed": 3,
    "reasons": [{"step": "convert", "reason": "empty answer", "rows": 1}],
    "rejected_preview": [
        {"source": "a.jsonl", "line": 3, "step": "convert", "reason": "empty answer", "row": "{}"}
    ],
    "formats": {"/data/questions.jsonl": "alpaca"},
    "repaired": {"mojibake": 0, "control_characters": 0, "unicode_nfc": 2},
    "exact_duplicates": 0,
    "near_duplicates": 181,
    "personal_data": {
        "rows": 1,
        "kinds": {"email": 1},
        "examples": [{"source": "a.jsonl", "line": 7, "kinds": ["email"]}],
    },
    "roles": {"system": 800, "user": 800, "assistant": 800},
    "cut_turns": 0,
    "languages": {"en": 0.75, "de": 0.25},
    "characters": {"edges": [164.0, 167.78, 171.55], "counts": [4, 9]},
    "answer_characters": {"edges": [], "counts": []},
    "answer_outliers": {"share": 0.0, "limit": 199.0, "rows": 0},
    "preview": [SHOWN],
}

TRAIN = {
    "rows": 640,
    "prompts": 640,
    "sizes": {"train": 640, "validation": 40, "test": 120},
    "set_aside": 0,
    "largest_cluster": 4,
    "linked_questions": 221,
    "leaked_prompts": 0,
    "sources": [
        {
            "source": "../data/questions.jsonl",
            "weight": 1.0,
            "train": 640,
            "validation": 40,
            "test": 120,
            "set_aside": 0,
        }
    ],
    "preview": [SHOWN],
}

TEST = TRAIN | {
    "contamination": {
        "n": 8,
        "overlap": 0.8,
        "rows": [
            {
                "of": "validation",
                "rows": 40,
                "contaminated": 1,
                "share": 0.025,
                "mean_overlap": 0.28869,
            }
        ],
        "examples": [
            {
                "of": "validation",
                "evaluation_row": "a.jsonl:3",
                "training_row": "a.jsonl:9",
                "overlap": 0.833,
                "ngrams": 12,
            }
        ],
    }
}

WITH_COLUMN = [CORPUS["rejected_preview"][0] | {"column": "output"}]  # type: ignore[index]


@pytest.mark.parametrize(
    ("kind", "statistics"),
    [
        (RawRecord, RAW),
        (CorpusRecord, CORPUS),
        (CorpusRecord, CORPUS | {"rejected_preview": WITH_COLUMN}),
        (SplitRecord, TRAIN),
        (SplitRecord, TEST),
    ],
)
def test_a_record_is_what_the_manifest_says(kind: type[Record], statistics: dict[str, Any]) -> None:
    manifest = Manifest(
        asset="a", dataset="d", fingerprint="f", data_version="v", statistics=statistics
    )
    read = manifest.record(kind)
    assert read.model_dump(mode="json", exclude_unset=True) == statistics
