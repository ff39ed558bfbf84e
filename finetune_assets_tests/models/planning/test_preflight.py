"""The check before training: what fits, how long it takes, and advice that holds."""

from typing import Any

import pytest

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.gpus import GPUS, gpu
from finetune_assets.models.planning.need import need, target
from finetune_assets.models.planning.tables import estimate_table
from finetune_assets.models.records import AdapterRecord
from finetune_assets_tests.models.planning.plans import COUNTS, WHOLE, planned
from finetune_assets_tests.models.planning.published import (
    FULL,
    LLAMA_7B,
    LLAMA_31_8B,
    LLAMA_31_70B,
    LLAMA_65B,
    recipe,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("a100-40gb", "A100 40GB"),
        ("H100", "H100 80GB"),
        ("NVIDIA H100 PCIe", "H100 PCIe 80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090 24GB"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("A10", "A10 24GB"),
        ("A10G", "A10G 24GB"),
        *((each.name, each.name) for each in GPUS),
    ],
)
def test_gpus_are_known_by_the_names_in_use(name: str, expected: str) -> None:
    assert gpu(name, "--gpu").name == expected


@pytest.mark.parametrize(
    ("shape", "training", "device", "devices", "expected"),
    [
        (
            LLAMA_31_8B,
            recipe(max_length=8192, gradient_checkpointing=False, per_device_train_batch_size=4),
            "L4",
            1,
            ["gradient_checkpointing", "per_device_train_batch_size"],
        ),
        (LLAMA_31_8B, recipe(quantization="none"), "T4", 1, ["quantization"]),
        (LLAMA_65B, recipe(), "L4", 1, ["devices"]),
        (LLAMA_31_70B, FULL, "H100", 8, ["devices"]),
        (LLAMA_7B, FULL, "RTX 4090", 1, ["method"]),
        (LLAMA_7B, recipe(**WHOLE, optim="adamw_torch"), "H100", 1, ["optim"]),
    ],
)
def test_advice_saves_memory_step_by_step_until_it_fits(
    shape: Any, training: Training, device: str, devices: int, expected: list[str]
) -> None:
    made = planned(shape, training, device, devices)
    assert not made.fits
    needed = [made.needed.total, *(each.needed for each in made.suggestions)]
    assert needed == sorted(needed, reverse=True)
    assert [each.fits for each in made.suggestions][-1]
    assert not any(each.fits for each in made.suggestions[:-1])
    last = made.suggestions[-1]
    assert set(expected) <= set(last.changes)
    changed = Training.model_validate({**training.model_dump(), **last.changes})
    count = last.changes.get("devices", {}).get("count", devices)
    on = target(changed, "", device, count)
    assert need(shape, changed, on, COUNTS).memory.total == last.needed


def test_smaller_passes_leave_the_step_as_it_was() -> None:
    training = recipe(per_device_train_batch_size=8, gradient_accumulation_steps=2, max_length=4096)
    made = planned(LLAMA_65B, training, "A100 80GB")
    assert not made.fits
    last = made.suggestions[-1].changes
    assert last["per_device_train_batch_size"] * last["gradient_accumulation_steps"] == 16


def test_checkpointing_is_on_only_where_it_must_be() -> None:
    assert not planned(LLAMA_7B, recipe(per_device_train_batch_size=1), "A100 80GB").checkpointing
    assert planned(LLAMA_7B, recipe(per_device_train_batch_size=16), "RTX 3090").checkpointing
    off = recipe(gradient_checkpointing=False, per_device_train_batch_size=16)
    assert not planned(LLAMA_7B, off, "RTX 3090").checkpointing


def test_time_grows_with_the_work_and_falls_with_the_speed() -> None:
    def seconds(device: str = "A100 80GB", devices: int = 1, **keys: Any) -> float:
        made = planned(LLAMA_7B, recipe(per_device_train_batch_size=4, **keys), device, devices)
        assert made.seconds is not None
        return made.seconds

    known = seconds()
    assert seconds(num_train_epochs=6) == pytest.approx(2 * known, rel=0.01)
    assert seconds(max_steps=200, eval_steps=100) < known / 2
    assert seconds("H100 80GB") < known < seconds("L4")
    assert seconds(devices=2) == pytest.approx(known / 2, rel=0.05)
    assert seconds(gradient_checkpointing=True) > 1.3 * known
    assert seconds(quantization="none") < known
    kept = {"quantization": "none", "gradient_checkpointing": False}
    full = seconds(method="full", **kept)
    assert full == pytest.approx(1.5 * seconds(**kept), rel=0.1)


def test_the_estimate_stands_beside_what_was_measured() -> None:
    made = planned(LLAMA_7B, recipe(), "A100 80GB")
    half = made.schedule.total_steps // 2
    measured = AdapterRecord(
        train_loss=[],
        validation_loss=[],
        learning_rate=[],
        samples=[],
        best_validation_loss=None,
        best_step=None,
        steps=half,
        epochs=1.0,
        resumed_from_step=None,
        seconds_training=(made.seconds or 0) / 2,
        seconds_loading=1.0,
        tokens_trained=0,
        tokens_per_second=0.0,
        tokens_per_epoch=0,
        trainable_parameters=0,
        schedule={},
        hardware={},
        kernels={},
        device_peak_gb=made.needed.total / 1e9 / 1.1,
        peak_rss_gb=3.0,
        plan=made.record(),
    )
    kept = AdapterRecord.model_validate_json(measured.model_dump_json())
    assert kept.plan is not None
    rows = estimate_table(kept.plan, kept)
    assert [row[""] for row in rows] == ["memory (GB)", "steps", "minutes"]
    assert rows[0]["estimate is off by"] == "+10%"
    assert rows[2]["estimate is off by"] in ("+0%", "-0%", "-1%")
    on_cpu = estimate_table(
        kept.plan, kept.model_copy(update={"device_peak_gb": None, "peak_rss_gb": 2.0})
    )
    assert on_cpu[0]["measured"] == 2.0
