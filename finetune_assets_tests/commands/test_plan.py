"""`finetune plan` and the check before training: what they say, and that it holds."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from finetune_assets import settings
from finetune_assets.catalog import load as catalog
from finetune_assets.commands.plan import counted, plan, sampled
from finetune_assets.models.records import SplitCounts, TokenHistogram, TrainingSetRecord
from finetune_assets.storage.artifacts import MANIFEST, Manifest
from finetune_assets_tests.commands.invoking import invoke


def change(project: Path, **keys: Any) -> None:
    """Keys of `training:` of the dataset `tiny`."""
    path = project / "catalog" / "tiny.yaml"
    config = YAML(typ="safe").load(path.read_text())
    config["training"] |= keys
    YAML(typ="safe").dump(config, path)


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
    split = SplitCounts(
        rows=10_000,
        contexts=2_500,
        truncated_rows=0,
        dropped_rows=0,
        dropped_at=[],
        tokens=tokens,
        tokens_with_loss=tokens // 3,
        tokens_without_loss=tokens - tokens // 3,
        longest=900,
        lengths=TokenHistogram(edges=[1, 900], counts=[10_000]),
        fill=0.9,
        unwanted_rows=0,
        preview=[],
    )
    made = TrainingSetRecord(stop_token_ids=[2], train=split, validation=split)
    training = entry.config.training.model_dump(mode="json")
    keys = {key: training[key] for key in ("max_length", "long_rows", "packing")}
    manifest = Manifest(
        asset="training_sets",
        dataset=entry.name,
        fingerprint=f"made of {tokens} {config}",
        data_version="1",
        config={**keys, **config},
        statistics=made.model_dump(mode="json", exclude_unset=True),
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
    config = YAML(typ="safe").load(path.read_text())
    config["base"] = str(large_base(project / "large"))
    config["training"] = {"quantization": "none", "max_length": 4096}
    YAML(typ="safe").dump(config, path)
    training_set(catalog.load("tiny"))
    code, output = invoke("plan", "tiny", "--gpu", "T4")
    assert code == 1
    assert "✗ does not fit" in output
    assert "quantization: nf4" in output
    made = plan(catalog.load("tiny"), "T4")
    advice = made.suggestions[-1]
    assert advice.fits
    config["training"] |= advice.changes
    YAML(typ="safe").dump(config, path)
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


def test_a_proposed_file_tells_what_it_takes(project: Path, tiny_base: Path) -> None:
    rows = str(project / "catalog" / "rows.jsonl")
    code, output = invoke("init", "new", "--from", rows, "--base", str(tiny_base))
    assert code == 0, output
    text = " ".join((project / "catalog" / "new.yaml").read_text().replace("#", "").split())
    assert "optimizer steps. On this machine (CPU" in text
    assert re.search(r"they take about (\d+ (h|min) )?\d+ (min|s) and \d", text)
    assert "finetune plan new --gpu 'A100 80GB'" in text
