"""Every shipped recipe is valid and says what it is for; those for a CPU read their rows."""

import io
import json
import re
import runpy
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from rich.console import Console
from ruamel.yaml import YAML

from finetune_assets import settings
from finetune_assets.catalog.load import load, parse
from finetune_assets.commands.check import show
from finetune_assets.definitions import RESOURCES
from finetune_assets.defs.data_assets import prompt_corpora, raw_datasets, splits
from finetune_assets.models.training.passthrough import require_valid
from finetune_assets.registry import tracking

FOLDER = Path(__file__).parents[2] / "examples" / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
DATASETS = [file.stem for file in FILES if "description:" in file.read_text()]
PARTS = [file.stem for file in FILES if file.stem not in DATASETS]


def written(file: Path) -> dict[str, Any]:
    data = YAML(typ="safe").load(file.read_text())
    assert isinstance(data, dict)
    return data


def test_there_are_datasets_and_parts() -> None:
    assert len(DATASETS) >= 6
    assert len(PARTS) >= 8


@pytest.mark.parametrize("name", DATASETS)
def test_datasets_are_whole_and_their_files_are_there(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(FOLDER))
    config = load(name).config
    assert config.base.model.startswith("package:"), "it runs without a hub"
    assert config.training.devices.count == 1
    require_valid(config.training.arguments, name)


@pytest.mark.parametrize("name", PARTS)
def test_parts_make_a_dataset_of_two_lines(name: str) -> None:
    config = parse(f"extends: {name}.yaml\nsources: rows.jsonl\n", str(FOLDER / "mine.yaml"))
    require_valid(config.training.arguments, name)
    model = config.base.model
    assert model.startswith("package:") or re.fullmatch(r"hub:[\w.-]+/[\w.-]+@[0-9a-f]{40}", model)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_recipes_say_what_they_are_and_why(file: Path) -> None:
    schema, first, *_ = file.read_text().splitlines()
    assert schema == "# yaml-language-server: $schema=../../catalog/schema.json"
    assert first.startswith("# "), "what it is for"
    assert max(len(line) for line in file.read_text().splitlines()) <= 100


@pytest.mark.slow
def test_rows_of_datasets_become_splits_without_leaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(FOLDER))
    monkeypatch.setenv(settings.STORAGE_VARIABLE, str(tmp_path / "storage"))
    monkeypatch.setenv(settings.DAGSTER_VARIABLE, str(tmp_path / "dagster"))
    monkeypatch.delenv(settings.MLFLOW_VARIABLE, raising=False)
    tracking.client.cache_clear()
    settings.ensure_dagster_home()
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("datasets", DATASETS)
        for name in DATASETS:
            chosen = [raw_datasets, prompt_corpora, splits]
            done = dg.materialize(
                chosen, instance=instance, partition_key=name, resources=RESOURCES
            )
            checks = {e.check_name: e.passed for e in done.get_asset_check_evaluations()}
            assert checks["no_contamination"], name
            assert checks["few_duplicates"], name
    tracking.client.cache_clear()


def test_calls_of_functions_are_shown_and_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(FOLDER))
    out = io.StringIO()
    show(load("tool_calling"), 1, Console(file=out, width=200))
    assert '<tools>\n{"type": "function"' in out.getvalue()
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Lisbon"' in out.getvalue()
    assert "; 0 above max_length" in out.getvalue(), "which `long_rows: error` would stop at"


def test_two_datasets_share_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.CATALOG_VARIABLE, str(FOLDER))
    trial, thorough = load("sql_quick_trial").config, load("sql_thorough").config
    assert trial.sources == thorough.sources
    assert trial.training.lora.targets == thorough.training.lora.targets
    assert (trial.training.lora.r, thorough.training.lora.r) == (4, 16)


def test_recipes_are_listed_and_show_every_kind_of_run() -> None:
    page = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"\((\w+)\.yaml\)", page)) == {file.stem for file in FILES}
    trainings = [written(file).get("training", {}) for file in FILES]
    assert {t.get("method") for t in trainings} >= {"lora", "full"}
    assert {t["devices"]["strategy"] for t in trainings if "devices" in t} == {"fsdp", "zero3"}


def test_the_calls_are_what_their_script_makes() -> None:
    made = runpy.run_path(str(FOLDER / "tool_calls.py"))["rows"]()
    text = "".join(json.dumps(row) + "\n" for row in made)
    assert text == (FOLDER / "tool_calls.jsonl").read_text()
    called = {
        call["function"]["name"]
        for row in made
        for message in row["messages"]
        for call in message.get("tool_calls", [])
    }
    assert called == {tool["function"]["name"] for row in made for tool in row["tools"]}
