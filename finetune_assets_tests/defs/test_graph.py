"""The whole graph on real stores: run, reuse, change, kill, cancel.

The tests of this file share one project and follow each other in time.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from finetune_assets import settings
from finetune_assets.commands.run import execute
from finetune_assets.registry import tracking
from finetune_assets.storage import artifacts
from finetune_assets.storage.artifacts import Manifest
from finetune_assets_tests.defs.test_definitions import ASSETS
from finetune_assets_tests.tiny import RECIPE, write_rows


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Path]:
    """A project in which dataset `tiny` has been run once from the command line."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "catalog").mkdir()
    write_rows(folder / "catalog" / "rows.jsonl")
    (folder / "catalog" / "tiny.yaml").write_text(RECIPE.format(base=tiny_base))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(settings.CATALOG_VARIABLE, str(folder / "catalog"))
        patch.setenv(settings.STORAGE_VARIABLE, str(folder / "storage"))
        patch.setenv(settings.DAGSTER_VARIABLE, str(folder / "dagster"))
        patch.delenv(settings.MLFLOW_VARIABLE, raising=False)
        tracking.client.cache_clear()
        settings.ensure_dagster_home()
        done = command_line("run", "tiny")
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "first_run.txt").write_text(done.stdout)
        yield folder
        tracking.client.cache_clear()


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune_assets.commands.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def materializations(run_id: str | None = None) -> dict[str, dict[str, Any]]:
    """Metadata of the newest materialization of each asset (of a run)."""
    found: dict[str, dict[str, Any]] = {}
    with dg.DagsterInstance.get() as instance:
        for asset in ASSETS:
            records = instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
            for record in records:
                if run_id is None or record.run_id == run_id:
                    assert record.asset_materialization is not None
                    metadata = record.asset_materialization.metadata
                    found[asset] = {k: v.value for k, v in metadata.items()}
    return found


def run_again() -> dict[str, dict[str, Any]]:
    run_id = str(uuid.uuid4())
    assert execute("tiny", run_id, force=False)
    return materializations(run_id)


def made(shown: dict[str, dict[str, Any]]) -> set[str]:
    assert set(shown) == ASSETS
    return {asset for asset, metadata in shown.items() if not metadata["reused"]}


def manifest(asset: str) -> Manifest:
    return artifacts.read(str(materializations()[asset]["manifest"]))


def recipe(folder: Path, old: str, new: str) -> None:
    path = folder / "catalog" / "tiny.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_run_ends_with_a_champion_and_says_where_to_look(shared: Path) -> None:
    output = (shared / "first_run.txt").read_text()
    assert made(materializations()) == ASSETS
    assert "promoted" in output
    assert "base" in output
    assert "tuned" in output
    assert "report.html" in output
    version = tracking.client().get_model_version_by_alias("tiny", "champion")
    assert version.version in (1, "1")
    assert version.tags["finetune.decision"] == "promoted"


def test_lineage_goes_both_ways_and_every_mlflow_run_has_ended_well(shared: Path) -> None:
    experiment = tracking.experiment_id("tiny")
    runs = tracking.client().search_runs([experiment])
    assert {r.data.tags["dagster.asset"] for r in runs} == ASSETS
    assert {r.info.status for r in runs} == {"FINISHED"}
    with dg.DagsterInstance.get() as instance:
        run_ids = {run.run_id for run in instance.get_runs()}
    assert {r.data.tags["dagster.run_id"] for r in runs} == run_ids
    for asset, metadata in materializations().items():
        assert manifest(asset).mlflow_run_id in str(metadata["mlflow_run"])
    adapter = next(r for r in runs if r.data.tags["dagster.asset"] == "adapters")
    history = tracking.client().get_metric_history(adapter.info.run_id, "validation_loss")
    assert len(history) >= 4
    report = next(r for r in runs if r.data.tags["dagster.asset"] == "evaluation_reports")
    kept = tracking.client().list_artifacts(report.info.run_id)
    assert "report.html" in [file.path for file in kept]


def test_the_champion_loads_with_stock_mlflow_and_generates(shared: Path) -> None:
    import mlflow

    tracking.client()
    loaded = mlflow.transformers.load_model("models:/tiny@champion", return_type="components")
    model, tokenizer = loaded["model"], loaded["tokenizer"]
    ids = tokenizer("what", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]
    merged = artifacts.local_copy(manifest("merged_models"))
    from transformers import AutoModelForCausalLM

    expected = AutoModelForCausalLM.from_pretrained(merged).state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.equal(expected[name]), name


def test_a_second_run_reuses_everything(shared: Path) -> None:
    before = len(tracking.client().search_runs([tracking.experiment_id("tiny")]))
    assert made(run_again()) == set()
    assert len(tracking.client().search_runs([tracking.experiment_id("tiny")])) == before


def test_no_checkpoint_outlives_its_adapter(shared: Path) -> None:
    root = shared / "storage" / "checkpoints"
    assert list(root.iterdir()) == []
    left = root / manifest("adapters").fingerprint / "checkpoint-1"
    left.mkdir(parents=True)  # by a kill between publication and removal
    assert made(run_again()) == set()
    assert list(root.iterdir()) == []


def test_a_comment_changes_nothing(shared: Path) -> None:
    recipe(shared, "sources:", "# a comment\nsources:")
    assert made(run_again()) == set()


def test_evaluation_settings_do_not_retrain(shared: Path) -> None:
    recipe(shared, "max_rows: 6", "max_rows: 5")
    assert made(run_again()) == {"evaluation_reports", "registered_models"}
    versions = tracking.client().search_model_versions("name = 'tiny'")
    assert len(versions) == 1, "the same model is registered once"


def test_what_a_kill_left_of_an_artifact_is_made_again(shared: Path) -> None:
    folder = artifacts.local_copy(manifest("training_sets"))
    (folder / "manifest.json").unlink()
    assert made(run_again()) == {"training_sets"}


def test_a_changed_row_retrains_and_meets_the_champion(shared: Path) -> None:
    rows = shared / "catalog" / "rows.jsonl"
    split = artifacts.local_copy(manifest("train_splits")) / "rows.parquet"
    import polars as pl

    line = pl.read_parquet(split)["line"][0]
    lines = rows.read_text().splitlines()
    changed = json.loads(lines[line - 1]) | {"completion": "a new answer"}
    lines[line - 1] = json.dumps(changed)
    rows.write_text("\n".join(lines) + "\n")
    again = made(run_again())
    assert {"raw_datasets", "train_splits", "training_sets", "adapters"} <= again
    assert not {"base_models"} & again
    report = manifest("evaluation_reports")
    assert set(report.statistics["scores"]) == {"base", "tuned", "champion"}
    decision = manifest("registered_models").statistics
    champion = tracking.client().get_model_version_by_alias("tiny", "champion").version
    challenger = tracking.client().get_model_version_by_alias("tiny", "challenger").version
    assert str(challenger) == str(decision["version"]) == "2"
    assert str(champion) == ("2" if decision["decision"] == "promoted" else "1")
    assert made(run_again()) == set(), "also where the champion has changed in between"


def test_a_killed_worker_fails_the_run_and_the_next_one_resumes(shared: Path) -> None:
    recipe(shared, "num_train_epochs: 4", "num_train_epochs: 12")
    process, worker = start_until_training(shared, checkpoints=2)
    os.kill(worker.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the worker was killed" in output
    assert "remedy" in output
    before = adapter_runs()
    assert before[0].info.status == "FAILED"
    shown = run_again()
    resumed = shown["adapters"]["resumed_from_step"]
    assert resumed > 0
    again = adapter_runs()
    assert [r.info.run_id for r in again] == [r.info.run_id for r in before]
    assert again[0].info.status == "FINISHED"
    assert len(again[0].data.tags["dagster.run_ids"].split(",")) == 2
    history = tracking.client().get_metric_history(again[0].info.run_id, "train_loss")
    assert [metric.step for metric in history] == list(range(1, len(history) + 1)), "one curve"
    assert len(history) == shown["adapters"]["steps"]


def test_cancel_leaves_no_process_and_the_run_is_canceled(shared: Path) -> None:
    recipe(shared, "num_train_epochs: 12", "num_train_epochs: 500")
    process, worker = start_until_training(shared, checkpoints=1)
    group = [worker, *worker.children(recursive=True)]
    with dg.DagsterInstance.get() as instance:
        run = instance.get_runs(limit=1)[0]
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
        assert "run again: what is complete is reused" in said
        canceled = instance.get_run_by_id(run.run_id)
        assert canceled is not None
        assert canceled.status == dg.DagsterRunStatus.CANCELED
    assert not [p for p in group if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert adapter_runs()[0].info.status == "KILLED"


def adapter_runs() -> list[Any]:
    """The MLflow runs of adapters, newest first."""
    return tracking.client().search_runs(
        [tracking.experiment_id("tiny")],
        "tags.`dagster.asset` = 'adapters'",
        order_by=["attributes.start_time DESC"],
    )


def start_until_training(
    shared: Path, checkpoints: int
) -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a run; return once its trainer has written that many new checkpoints."""
    root = shared / "storage" / "checkpoints"
    before = set(root.glob("*/checkpoint-*/complete"))
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_assets.commands.cli", "run", "tiny"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell without job control starts what is in the background deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while len(set(root.glob("*/checkpoint-*/complete")) - before) < checkpoints:
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = [
        p
        for p in psutil.Process(process.pid).children(recursive=True)
        if p.cmdline()[-2:] == ["finetune_assets.launch.worker", "adapters"]
    ]
    return process, workers[0]
