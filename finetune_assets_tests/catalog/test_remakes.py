"""What of a dataset file enters which fingerprint: every key is in a group, and none has moved."""

from pathlib import Path

import pytest

from finetune_assets.catalog import remakes
from finetune_assets.catalog.cleaning import Contamination
from finetune_assets.catalog.config import Dataset
from finetune_assets.catalog.load import parse
from finetune_assets.catalog.remakes import (
    ADAPTERS,
    NOTHING,
    PROMPT_CORPORA,
    TEST_SPLITS,
    TRAINING_SETS,
    Remakes,
    dump,
)
from finetune_assets.catalog.section import Section
from finetune_assets.catalog.sources import Source
from finetune_assets.catalog.training import Training
from finetune_assets.storage.fingerprint import digest

ROOT = Path(__file__).parents[2]
FILES = {
    file.stem: file
    for file in [ROOT / "catalog" / "text_to_sql.yaml", *(ROOT / "examples/recipes").glob("*.yaml")]
}
GROUPS = [group for group in vars(remakes).values() if isinstance(group, Remakes)]


@pytest.mark.parametrize("section", [Training, Source, Contamination])
def test_every_key_is_in_exactly_one_group(section: type[Section]) -> None:
    for name in section.model_fields:
        groups = [group.asset for group in GROUPS if name in remakes.keys(section, group)]
        assert len(groups) == 1, f"declare what `{name}` remakes: {groups}"


def parsed(file: Path) -> Dataset:
    """Return a file's dataset, or that of two lines which extend it where it is only a part."""
    text = file.read_text()
    if "\nsources:" in text or "\nextends: sql_shared" in text:
        return parse(text, str(file))
    return parse(f"extends: {file.name}\nsources: rows.jsonl\n", str(file.with_name("mine.yaml")))


def dumps(config: Dataset) -> dict[str, object]:
    """Return what enters the fingerprints of a dataset's artifacts, or lies beside it."""
    contamination = dump(config.contamination, TEST_SPLITS)
    del contamination["benchmarks"]  # absolute paths
    return {
        "training_sets": dump(config.training, TRAINING_SETS),
        "adapters": dump(config.training, ADAPTERS),
        "adapters beside": dump(config.training, TRAINING_SETS) | dump(config.training, NOTHING),
        "prompt_corpora": {
            "sources": [dump(source, PROMPT_CORPORA) for source in config.sources],
            "split_column": config.splits.column,
            "cleaning": config.cleaning.model_dump(),
            "max_rejected": config.max_rejected,
        },
        "splits": {**config.splits.model_dump(), "weights": [s.weight for s in config.sources]},
        "test_splits": contamination,
        "evaluation_reports": {
            **config.evaluation.model_dump(exclude={"metrics"}),
            "metrics": config.evaluation.metric_names(),
        },
        "registered_models": config.promotion.model_dump(),
    }


@pytest.mark.parametrize("name", FILES)
def test_what_enters_fingerprints_is_what_it_was(name: str) -> None:
    found = {key: digest(value) for key, value in dumps(parsed(FILES[name])).items()}
    assert found == EXPECTED[name], f"all would be made again; if that is meant, write {found}"


EXPECTED = {
    "text_to_sql": {
        "training_sets": "48b76fde925391cc12973b86",
        "adapters": "b8798c4a3f4bcc637086b0eb",
        "adapters beside": "373f2537d85c1ae9de3ec40c",
        "prompt_corpora": "8abc260dc5770fa79b3ac43f",
        "splits": "051b0ec6bfbffa480572efb3",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "4d0459dbfe929a552c08ce8d",
        "registered_models": "5eee53aab2716c19f634a775",
    },
    "dora_high_quality": {
        "training_sets": "067fd95fe88dffa1419ad6f5",
        "adapters": "7ce143317b764cca20093ef3",
        "adapters beside": "fbffd7f6951a27bce9a23cad",
        "prompt_corpora": "213d6f2bf8ca571469672c3a",
        "splits": "0b523aedf88085e1e55e66bd",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "426cd286e27f76564ba657d5",
        "registered_models": "a58f39c25d1365026723bafd",
    },
    "fsdp_qlora_70b": {
        "training_sets": "067fd95fe88dffa1419ad6f5",
        "adapters": "8270fbc9d98b0984a5eb2683",
        "adapters beside": "3068c992fa67235efdafec4d",
        "prompt_corpora": "213d6f2bf8ca571469672c3a",
        "splits": "0b523aedf88085e1e55e66bd",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "426cd286e27f76564ba657d5",
        "registered_models": "a58f39c25d1365026723bafd",
    },
    "full_finetune_small": {
        "training_sets": "48b76fde925391cc12973b86",
        "adapters": "287121f1da558553b9902ec7",
        "adapters beside": "49d308ac3b0b5290d900cbc8",
        "prompt_corpora": "bb5d839bc0e5d79a01eac3df",
        "splits": "61fb2e9ae3827ee4f08bed4a",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "79e31e48829f5bdfb8182bca",
        "registered_models": "a58f39c25d1365026723bafd",
    },
    "loftq": {
        "training_sets": "067fd95fe88dffa1419ad6f5",
        "adapters": "3dc832e7b162cf82685a6a3c",
        "adapters beside": "9ec19417175971a386acf1fb",
        "prompt_corpora": "213d6f2bf8ca571469672c3a",
        "splits": "0b523aedf88085e1e55e66bd",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "426cd286e27f76564ba657d5",
        "registered_models": "a58f39c25d1365026723bafd",
    },
    "lora_bf16_8b": {
        "training_sets": "be36aa3cdd1faa662eb4680d",
        "adapters": "ea328f02099ea748fca58959",
        "adapters beside": "ea1512a282f85531a11a1b62",
        "prompt_corpora": "213d6f2bf8ca571469672c3a",
        "splits": "0b523aedf88085e1e55e66bd",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "426cd286e27f76564ba657d5",
        "registered_models": "a58f39c25d1365026723bafd",
    },
    "pissa": {
        "training_sets": "067fd95fe88dffa1419ad6f5",
        "adapters": "954fcc3f4bb917749ee5faaf",
        "adapters beside": "9ec19417175971a386acf1fb",
        "prompt_corpora": "213d6f2bf8ca571469672c3a",
        "splits": "0b523aedf88085e1e55e66bd",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "426cd286e27f76564ba657d5",
        "registered_models": "a58f39c25d1365026723bafd",
    },
    "plain_text_lm": {
        "training_sets": "ceefd3baa82b1b1f9123eca4",
        "adapters": "6bb89af0520867383173aced",
        "adapters beside": "4289bd5bc3bf5e5aa966f968",
        "prompt_corpora": "6b676548255bd5f0eddbfbbf",
        "splits": "db1bd3151e4a22e5bb5a8ced",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "1827106339456b8a2c22e117",
        "registered_models": "a58f39c25d1365026723bafd",
    },
    "qlora_7b_24gb": {
        "training_sets": "067fd95fe88dffa1419ad6f5",
        "adapters": "e2145808b995ea68bb45bde1",
        "adapters beside": "9ec19417175971a386acf1fb",
        "prompt_corpora": "213d6f2bf8ca571469672c3a",
        "splits": "0b523aedf88085e1e55e66bd",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "426cd286e27f76564ba657d5",
        "registered_models": "a58f39c25d1365026723bafd",
    },
    "qlora_small_cpu": {
        "training_sets": "48b76fde925391cc12973b86",
        "adapters": "ff3a8102b21802a4c013083d",
        "adapters beside": "373f2537d85c1ae9de3ec40c",
        "prompt_corpora": "bb5d839bc0e5d79a01eac3df",
        "splits": "61fb2e9ae3827ee4f08bed4a",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "79e31e48829f5bdfb8182bca",
        "registered_models": "a58f39c25d1365026723bafd",
    },
    "sql_quick_trial": {
        "training_sets": "48b76fde925391cc12973b86",
        "adapters": "e3b934a8c6b500efb3f44c08",
        "adapters beside": "373f2537d85c1ae9de3ec40c",
        "prompt_corpora": "bb5d839bc0e5d79a01eac3df",
        "splits": "051b0ec6bfbffa480572efb3",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "0accfbc3f45faabcfc91641e",
        "registered_models": "a58f39c25d1365026723bafd",
    },
    "sql_shared": {
        "training_sets": "48b76fde925391cc12973b86",
        "adapters": "18d8f2ab852586164c5f3749",
        "adapters beside": "373f2537d85c1ae9de3ec40c",
        "prompt_corpora": "bb5d839bc0e5d79a01eac3df",
        "splits": "051b0ec6bfbffa480572efb3",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "9084d742e1bb156feb0e0333",
        "registered_models": "5eee53aab2716c19f634a775",
    },
    "sql_thorough": {
        "training_sets": "48b76fde925391cc12973b86",
        "adapters": "76671fa915c351fd8a6d357e",
        "adapters beside": "373f2537d85c1ae9de3ec40c",
        "prompt_corpora": "bb5d839bc0e5d79a01eac3df",
        "splits": "051b0ec6bfbffa480572efb3",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "9084d742e1bb156feb0e0333",
        "registered_models": "5eee53aab2716c19f634a775",
    },
    "tool_calling": {
        "training_sets": "dc6633d62d4373b0018378dc",
        "adapters": "bcff49da993a31ee8d93641d",
        "adapters beside": "80b5af8cb1b74da0031af2fc",
        "prompt_corpora": "cb5484407a8a614da79b82d7",
        "splits": "5092caf5190dad6ccb0dcee5",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "1df3fd99852cb672aa9f4b10",
        "registered_models": "a58f39c25d1365026723bafd",
    },
    "zero3_full": {
        "training_sets": "be36aa3cdd1faa662eb4680d",
        "adapters": "71378a339c1f1f261ad95cbc",
        "adapters beside": "83a116b1c04a6ff18451154d",
        "prompt_corpora": "213d6f2bf8ca571469672c3a",
        "splits": "0b523aedf88085e1e55e66bd",
        "test_splits": "5b34d179ab7a26025a67237d",
        "evaluation_reports": "426cd286e27f76564ba657d5",
        "registered_models": "a58f39c25d1365026723bafd",
    },
}
"""Digests of the first release that has them; a change on purpose comes with a new code version."""
