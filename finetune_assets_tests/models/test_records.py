"""Records read the manifests of artifacts that were made before, and write them as they were."""

import json
from typing import Any

import pytest

from finetune_assets.models.records import TrainingSetRecord
from finetune_assets.storage.artifacts import Manifest, Record
from finetune_assets_tests.models.made_before import MADE_BEFORE, SPLIT


@pytest.mark.parametrize(("kind", "statistics"), MADE_BEFORE)
def test_a_manifest_made_before_is_read_and_written_as_it_was(
    kind: type[Record], statistics: dict[str, Any]
) -> None:
    manifest = Manifest(
        asset="any", dataset="any", fingerprint="f", data_version="v", statistics=statistics
    )
    record = manifest.record(kind)
    again = json.dumps(record.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    assert again == json.dumps(statistics, sort_keys=True)


def test_a_training_set_without_an_order_of_its_own_is_shuffled() -> None:
    """As those say nothing of it that were made before there was one."""
    before = {"stop_token_ids": [2], "train": SPLIT, "validation": SPLIT}
    assert TrainingSetRecord.model_validate(before).shuffle
