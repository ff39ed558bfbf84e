"""Partitions follow the catalog; runs follow the content of the sources."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from finetune_assets.definitions import RESOURCES
from finetune_assets.defs.automation import (
    catalog_partitions,
    declared_schedules,
    is_due,
)
from finetune_assets.defs.data_assets import raw_datasets
from finetune_assets_tests.defs.sensing import keys, tick
from finetune_assets_tests.tiny import write_rows


def test_partitions_are_added_and_removed_with_the_files(
    project: Path, instance: dg.DagsterInstance
) -> None:
    text = (project / "catalog" / "tiny.yaml").read_text()
    (project / "catalog" / "other.yaml").write_text(text)
    (project / "catalog" / "tiny.yaml").unlink()
    result = catalog_partitions(dg.build_sensor_context(instance=instance))
    assert isinstance(result, dg.SensorResult)
    requests = result.dynamic_partitions_requests or []
    assert [list(r.partition_keys) for r in requests] == [["other"], ["tiny"]]


def test_only_a_dataset_whose_content_changed_is_run(
    project: Path, instance: dg.DagsterInstance
) -> None:
    rows = project / "catalog" / "rows.jsonl"
    result, cursor = tick(instance, None)
    assert isinstance(result, dg.SkipReason), "a dataset that was never run waits for its user"

    dg.materialize([raw_datasets], instance=instance, partition_key="tiny", resources=RESOURCES)
    result, cursor = tick(instance, cursor)
    assert isinstance(result, dg.SkipReason)

    rows.touch()
    result, cursor = tick(instance, cursor)
    assert isinstance(result, dg.SkipReason), "the same content under a new time is no change"

    original = rows.read_text()
    write_rows(rows, answer="another answer {}")
    result, cursor = tick(instance, cursor)
    changed = keys(result)
    assert len(changed) == 1
    assert changed[0].startswith("tiny:")
    assert keys(tick(instance, cursor)[0]) == changed, "one run per change, however often it ticks"

    dg.materialize([raw_datasets], instance=instance, partition_key="tiny", resources=RESOURCES)
    assert isinstance(tick(instance, cursor)[0], dg.SkipReason)
    rows.write_text(original)
    result, cursor = tick(instance, cursor)
    assert keys(result) != changed, "a change that is taken back starts a run again"


def test_a_broken_file_does_not_stop_the_others(
    project: Path, instance: dg.DagsterInstance
) -> None:
    (project / "catalog" / "broken.yaml").write_text("sources: [\n")
    instance.add_dynamic_partitions("datasets", ["broken"])
    dg.materialize([raw_datasets], instance=instance, partition_key="tiny", resources=RESOURCES)
    write_rows(project / "catalog" / "rows.jsonl", answer="another {}")
    assert len(keys(tick(instance, None)[0])) == 1


@pytest.mark.parametrize(
    ("schedule", "day", "due"),
    [
        ("daily", 3, True),
        ("weekly", 2, True),
        ("weekly", 3, False),
        ("monthly", 1, True),
        ("monthly", 2, False),
        (None, 1, False),
    ],
)
def test_schedules_are_words(schedule: str | None, day: int, due: bool) -> None:
    assert is_due(schedule, datetime(2026, 11, day, 3, tzinfo=UTC)) == due


def test_the_schedule_asks_for_what_is_declared(
    project: Path, instance: dg.DagsterInstance
) -> None:
    path = project / "catalog" / "tiny.yaml"
    path.write_text(path.read_text() + "schedule: weekly\n")
    monday = datetime(2026, 11, 2, 3, tzinfo=UTC)
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=monday)
    requests = declared_schedules(context)
    assert [r.partition_key for r in requests] == ["tiny"]
