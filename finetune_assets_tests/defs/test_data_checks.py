"""What the UI says of data: checks with limits, the difference to last time, rows to look at."""

import json
import random
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from finetune_assets.definitions import defs

GERMAN = "Warum ist der Himmel am Abend so rot, und am Tage nicht, wo doch die Sonne scheint? {}"
ENGLISH = "Why is the sky so red in the evening, and not in the day when the sun shines too? {}"


def write(project: Path, rows: list[dict[str, Any]], **keys: Any) -> None:
    """The dataset `tiny` with these rows and further keys."""
    catalog = project / "catalog"
    (catalog / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"sources": ["rows.jsonl"], "base": "none", **keys}
    config["cleaning"] = {"near_duplicates": {"action": "off"}}
    (catalog / "tiny.yaml").write_text(json.dumps(config))


def rows(question: str = ENGLISH, count: int = 80) -> list[dict[str, Any]]:
    return [{"prompt": question.format(i), "completion": f"It is light {i}."} for i in range(count)]


def materialize(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    assets = [
        defs.resolve_assets_def(n) for n in ("raw_datasets", "prompt_corpora", "train_splits")
    ]
    return dg.materialize(assets, instance=instance, partition_key="tiny", raise_on_error=False)


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    node = "splits" if asset.endswith("splits") else asset
    events = result.asset_materializations_for_node(node)
    (event,) = [e for e in events if e.asset_key == dg.AssetKey(asset)]
    return {name: value.value for name, value in event.metadata.items()}


def test_clean_data_passes_every_check(project: Path, instance: dg.DagsterInstance) -> None:
    write(project, rows())
    result = materialize(instance)
    assert result.success
    found = checks(result)
    assert len(found) == 7
    assert all(check.passed for check in found.values()), found
    shown = metadata(result, "prompt_corpora")
    assert shown["dagster/row_count"] == 80
    assert "data:image/png;base64," in shown["lengths"]
    assert "**assistant** (learned)" in shown["preview"]
    assert metadata(result, "test_splits")["leaked_prompts"] == 0


@pytest.mark.parametrize(
    ("check", "key", "row"),
    [
        ("rows_usable", "rejected", {"prompt": "empty", "completion": ""}),
        ("few_duplicates", "duplicates", rows()[0]),
        (
            "no_personal_data",
            "personal_data",
            {"prompt": "Where?", "completion": "At someone@example.org"},
        ),
        ("answer_lengths", "answer_outliers", {"prompt": "Long?", "completion": "word " * 99}),
    ],
)
def test_limits_warn_or_stop_the_run(
    project: Path, instance: dg.DagsterInstance, check: str, key: str, row: dict[str, Any]
) -> None:
    write(project, [*rows(), row], checks={key: {"limit": 0.0, "severity": "warn"}})
    result = materialize(instance)
    assert result.success
    assert not checks(result)[check].passed
    assert checks(result)[check].severity == dg.AssetCheckSeverity.WARN
    write(project, [*rows(), row], checks={key: {"limit": 0.0, "severity": "error"}})
    stopped = materialize(instance)
    assert not stopped.success
    assert checks(stopped)[check].severity == dg.AssetCheckSeverity.ERROR
    assert not stopped.asset_materializations_for_node("splits")
    write(project, [*rows(), row], checks={key: {"limit": 0.5, "severity": "error"}})
    assert materialize(instance).success


def test_contamination_stops_the_run(project: Path, instance: dg.DagsterInstance) -> None:
    chance = random.Random(0)
    said = [" ".join(chance.choices(ENGLISH.split(), k=20)) for _ in range(80)]
    different = [{"prompt": text, "completion": text[::-1]} for text in said]
    write(project, different, contamination={"benchmarks": ["rows.jsonl"]})
    result = materialize(instance)
    assert not result.success
    found = checks(result)["no_contamination"]
    assert not found.passed
    assert "rows.jsonl rows" in (found.description or "")
    assert metadata(result, "test_splits")["contaminated_rows"].records


def test_the_difference_to_last_time_is_shown(project: Path, instance: dg.DagsterInstance) -> None:
    write(project, rows())
    assert "rows_added" not in metadata(materialize(instance), "prompt_corpora")
    new = [*rows()[1:], {"prompt": "Something new?", "completion": "Yes."}]
    new[0] = {**new[0], "completion": "Another answer."}
    write(project, new)
    shown = metadata(materialize(instance), "prompt_corpora")
    assert [shown[f"rows_{n}"] for n in ("added", "removed", "changed", "unchanged")] == [
        1, 1, 1, 78
    ]  # fmt: skip
    records = [record.data for record in shown["difference"].records]
    assert {r["change"] for r in records} == {"added", "removed", "changed"}


def test_another_language_is_drift(project: Path, instance: dg.DagsterInstance) -> None:
    write(project, rows())
    assert checks(materialize(instance))["no_drift"].passed
    write(project, rows(GERMAN))
    found = checks(materialize(instance))["no_drift"]
    assert not found.passed
    assert found.metadata["languages"].value == 1
