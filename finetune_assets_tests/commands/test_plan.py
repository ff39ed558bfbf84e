"""`finetune plan` and the check before training: what they say, and that it holds."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from finetune_assets import settings
from finetune_assets.catalog import load as catalog
from finetune_assets.catalog.cleaning import Limit
from finetune_assets.catalog.training import Training
from finetune_assets.commands.plan import counted, plan, sampled
from finetune_assets.defs.data_checks import fits_the_machine
from finetune_assets.models.planning.gpus import GPUS, gpu
from finetune_assets.models.planning.need import Counts, need, target
from finetune_assets.models.planning.preflight import Plan, preflight
from finetune_assets.models.planning.tables import estimate_table
from finetune_assets.storage.artifacts import MANIFEST, Manifest
from finetune_assets_tests.commands.test_cli import invoke
from finetune_assets_tests.models.planning.published import (
    FULL,
    LLAMA_7B,
    LLAMA_31_8B,
    LLAMA_31_70B,
    LLAMA_65B,
    recipe,
)

WHOLE: dict[str, Any] = {"method": "full", "quantization": "none"}
COUNTS = Counts(
    rows=10_000,
    contexts=2_500,
    tokens=2_400_000,
    supervised=800_000,
    longest=1024,
    validation_tokens=100_000,
    exact=True,
)


def planned(shape: Any, training: Training, device: str, devices: int | None = None) -> Plan:
    return preflight(shape, training, target(training, "--gpu", device, devices), COUNTS)


def change(project: Path, **keys: Any) -> None:
    """Keys of `training:` of the dataset `tiny`."""
    path = project / "catalog" / "tiny.yaml"
    config = yaml.safe_load(path.read_text())
    config["training"] |= keys
    path.write_text(yaml.safe_dump(config))


def large_base(folder: Path) -> Path:
    """What `finetune plan` reads of Llama 2 7B: its configuration, and not its weights."""
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def training_set(entry: catalog.Entry, tokens: int = 2_400_000, **config: Any) -> None:
    """The manifest of a training set that was made for a dataset."""
    split = {"rows": 10_000, "contexts": 2_500, "tokens": tokens, "longest": 900}
    split["tokens_with_loss"] = tokens // 3
    training = entry.config.training.model_dump(mode="json")
    keys = {key: training[key] for key in ("max_length", "long_rows", "packing")}
    manifest = Manifest(
        asset="training_sets",
        dataset=entry.name,
        fingerprint=f"made of {tokens} {config}",
        data_version="1",
        config={**keys, **config},
        statistics={"train": split, "validation": split},
        created_at=time.time(),
    )
    folder = Path(manifest.uri)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(manifest.model_dump_json())


def test_the_command_tells_what_a_gpu_would_need(project: Path) -> None:
    change(project, price_per_hour=2.0)
    code, output = invoke("plan", "tiny", "--gpu", "A100 80GB")
    assert code == 0, output
    assert "on A100 80GB" in output
    for part in ("weights", "adapter", "gradients", "optimizer", "activations", "logits"):
        assert part in output
    assert "✓ fits" in output
    assert "from a sample" not in output  # it has fewer rows than a sample
    assert "at 2 an hour" in output
    assert "steps" in output


def test_the_command_fails_where_a_run_would_and_its_advice_holds(project: Path) -> None:
    path = project / "catalog" / "tiny.yaml"
    config = yaml.safe_load(path.read_text())
    config["base"] = str(large_base(project / "large"))
    config["training"] = {"quantization": "none", "max_length": 4096}
    path.write_text(yaml.safe_dump(config))
    training_set(catalog.load("tiny"))
    code, output = invoke("plan", "tiny", "--gpu", "T4")
    assert code == 1
    assert "✗ does not fit" in output
    assert "quantization: nf4" in output
    made = plan(catalog.load("tiny"), "T4")
    advice = made.suggestions[-1]
    assert advice.fits
    config["training"] |= advice.changes
    path.write_text(yaml.safe_dump(config))
    after = plan(catalog.load("tiny"), "T4")
    assert after.fits
    assert after.needed.total == advice.needed
    assert invoke("plan", "tiny", "--gpu", "T4")[0] == 0


def test_a_plan_from_counts_loads_no_torch(project: Path) -> None:
    training_set(catalog.load("tiny"))
    script = (
        "import sys\nfrom finetune_assets.commands.cli import app\n"
        "try:\n    app(['plan', 'tiny', '--gpu', 'L4'])\n"
        "except SystemExit as error:\n    print('code', error.code)\n"
        "print('heavy', {'torch', 'transformers', 'trl', 'peft'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "code 0" in done.stdout
    assert "heavy set()" in done.stdout
    assert "9,600,000 in all epochs" in done.stdout  # of which the recipe has four
    assert "counted in the training set" in done.stdout


def test_the_newest_training_set_of_the_same_keys_is_counted(project: Path) -> None:
    entry = catalog.load("tiny")
    assert counted(entry) is None
    training_set(entry, tokens=3_000)
    training_set(entry, tokens=6_000)
    training_set(entry, tokens=9_000, max_length=128)
    found = counted(entry)
    assert found is not None
    assert found.tokens == 6_000


def test_a_sample_is_scaled_to_all_rows(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalog.load("tiny")
    whole = sampled(entry)
    assert whole.exact
    monkeypatch.setattr("finetune_assets.commands.plan.SAMPLED", 20)
    part = sampled(entry)
    assert not part.exact
    assert part.rows == whole.rows
    assert part.tokens == pytest.approx(whole.tokens, rel=0.05)
    assert part.supervised == pytest.approx(whole.supervised, rel=0.05)
    code, output = invoke("plan", "tiny", "--gpu", "L4")
    assert code == 0
    assert "from a sample of 20 rows" in output


@pytest.mark.parametrize(
    ("keys", "arguments", "expected"),
    [
        ({}, ["--gpu", "A100"], ["--gpu", "more than one GPU", "A100 80GB, A100 40GB"]),
        ({}, ["--gpu", "abacus"], ["--gpu", "no GPU is known as 'abacus'", "RTX 4090 24GB"]),
        ({"arguments": {"adam_beta": 0.9}}, ["--gpu", "L4"], ["tiny.yaml", "adam_beta"]),
        ({"lora": {"targets": ["c_attn"]}}, ["--gpu", "L4"], ["targets", "c_attn", "q_proj"]),
        ({"method": "full"}, ["--gpu", "L4"], ["tiny.yaml", "quantization: none"]),
    ],
)
def test_a_bad_recipe_is_one_clear_error(
    project: Path, keys: dict[str, Any], arguments: list[str], expected: list[str]
) -> None:
    change(project, **keys)
    code, output = invoke("plan", "tiny", *arguments)
    assert code == 1
    for part in [*expected, "remedy:"]:
        assert part in output
    assert "Traceback" not in output


def test_the_declared_device_is_planned_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DEVICE_VARIABLE, "H100")
    assert plan(catalog.load("tiny")).target.hardware.name == "H100 80GB"
    monkeypatch.setenv(settings.DEVICE_VARIABLE, "abacus")
    code, output = invoke("plan", "tiny")
    assert code == 1
    assert settings.DEVICE_VARIABLE in output


def test_this_machine_is_probed_for_its_speed(project: Path) -> None:
    made = plan(catalog.load("tiny"))
    assert made.target.speed is not None
    assert made.target.speed.operations > 1e8
    assert made.seconds is not None
    assert made.seconds > 0


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
    record = json.loads(json.dumps(made.record()))
    half = made.schedule.total_steps // 2
    rows = estimate_table(
        record,
        {
            "device_peak_gb": made.needed.total / 1e9 / 1.1,
            "peak_rss_gb": 3.0,
            "steps": half,
            "seconds_training": (made.seconds or 0) / 2,
        },
    )
    assert [row[""] for row in rows] == ["memory (GB)", "steps", "minutes"]
    assert rows[0]["estimate is off by"] == "+10%"
    assert rows[2]["estimate is off by"] in ("+0%", "-0%", "-1%")
    on_cpu = estimate_table(record, {"peak_rss_gb": 2.0})
    assert on_cpu[0]["measured"] == 2.0


@pytest.mark.parametrize(
    ("limit", "passed", "severity"),
    [
        (Limit(limit=1.0, severity="error"), False, dg.AssetCheckSeverity.ERROR),
        (Limit(limit=1.0, severity="warn"), False, dg.AssetCheckSeverity.WARN),
        (Limit(limit=9.0, severity="error"), True, dg.AssetCheckSeverity.ERROR),
    ],
)
def test_the_check_stops_what_does_not_fit(
    limit: Limit, passed: bool, severity: dg.AssetCheckSeverity
) -> None:
    made = planned(LLAMA_7B, recipe(quantization="none"), "T4")
    result = fits_the_machine(made, limit)
    assert result.passed is passed
    assert result.severity is severity
    assert "GB of the 15.68 GB of T4 16GB" in (result.description or "")
    parts = result.metadata["estimate"].value.records  # type: ignore[union-attr]
    assert [row.data["memory"] for row in parts][:3] == ["weights", "adapter", "gradients"]
    assert result.metadata["what_would_fit"].value  # type: ignore[union-attr]


def test_an_unknown_architecture_does_not_stop_a_run() -> None:
    result = fits_the_machine(None, Limit(limit=1.0, severity="error"))
    assert result.passed
    assert result.severity is dg.AssetCheckSeverity.WARN


def test_a_proposed_file_tells_what_it_takes(project: Path, tiny_base: Path) -> None:
    rows = str(project / "catalog" / "rows.jsonl")
    code, output = invoke("init", "new", "--from", rows, "--base", str(tiny_base))
    assert code == 0, output
    text = " ".join((project / "catalog" / "new.yaml").read_text().replace("#", "").split())
    assert "optimizer steps. On this machine (CPU" in text
    assert re.search(r"they take about (\d+ (h|min) )?\d+ (min|s) and \d", text)
    assert "finetune plan new --gpu 'A100 80GB'" in text
