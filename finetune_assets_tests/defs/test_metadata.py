"""What the page of an adapter says of its estimate."""

from finetune_assets.defs import metadata
from finetune_assets.models.records import PlanRecord
from finetune_assets.storage.artifacts import Manifest
from finetune_assets_tests.models.made_before import ADAPTER

PLAN = PlanRecord(
    device="CPU AVX512",
    devices=1,
    needed_bytes=2_893_000_000,
    parts_bytes={"weights": 2_893_000_000},
    available_bytes=32_000_000_000,
    gradient_checkpointing=False,
    tokens=102_124,
    steps=216,
    seconds=800.0,
)


def page(**statistics: object) -> metadata.Metadata:
    return metadata.adapter(
        Manifest(
            asset="adapters",
            dataset="tiny",
            fingerprint="f",
            data_version="f",
            statistics={**ADAPTER, **statistics},
        )
    )


def test_what_was_expected_of_a_run_stands_beside_what_it_took() -> None:
    table = page(plan=PLAN.model_dump())["estimate_and_actual"]
    rows = {row.data[""]: row.data for row in table.records}  # type: ignore[union-attr]
    assert rows["memory (GB)"]["estimate is off by"] == "+10%"
    assert rows["steps"]["measured"] == 108
    assert rows["minutes"]["estimated"] == 6.667, "of the steps that were made"


def test_an_adapter_that_was_made_before_plans_were_kept_is_compared_with_nothing() -> None:
    shown = page()
    assert "estimate_and_actual" not in shown
    assert shown["validation_loss"] == ADAPTER["best_validation_loss"]
