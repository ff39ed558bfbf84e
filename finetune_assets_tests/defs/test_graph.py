"""The whole graph on real stores: run, reuse, change, kill, cancel.

Each test begins with a project whose dataset has been run once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from finetune_assets.registry import tracking
from finetune_assets.storage import artifacts
from finetune_assets_tests.defs.graph import ASSETS, made, manifest, materializations, run_again
from finetune_assets_tests.projects import (
    FIRST_RUN,
    change_recipe,
    inside,
    restored,
    run_first,
    write_project,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("graph")]
"""In one worker, so that the first run is made once."""


@pytest.fixture(scope="module")
def first(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Place of a project in which `tiny` has been run from the command line; a copy of it."""
    root = tmp_path_factory.mktemp("graph")
    folder, kept = root / "project", root / "kept"
    write_project(folder, tiny_base)
    with inside(folder):
        run_first(folder, kept)
    return folder, kept


@pytest.fixture
def finished(first: tuple[Path, Path]) -> Iterator[Path]:
    """The project as its first run has left it."""
    folder, kept = first
    with restored(folder, kept):
        yield folder


def test_a_run_ends_with_a_champion_and_says_where_to_look(finished: Path) -> None:
    output = (finished / FIRST_RUN).read_text()
    assert made(materializations()) == ASSETS
    assert "promoted" in output
    assert "base" in output
    assert "tuned" in output
    assert "report.html" in output
    version = tracking.client().get_model_version_by_alias("tiny", "champion")
    assert version.version in (1, "1")
    assert version.tags["finetune.decision"] == "promoted"


def test_lineage_goes_both_ways_and_every_mlflow_run_has_ended_well(finished: Path) -> None:
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


def test_the_champion_loads_with_stock_mlflow_and_generates(finished: Path) -> None:
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


def test_a_second_run_reuses_everything(finished: Path) -> None:
    before = len(tracking.client().search_runs([tracking.experiment_id("tiny")]))
    assert made(run_again()) == set()
    assert len(tracking.client().search_runs([tracking.experiment_id("tiny")])) == before


def test_no_checkpoint_outlives_its_adapter(finished: Path) -> None:
    root = finished / "storage" / "checkpoints"
    assert list(root.iterdir()) == []
    left = root / manifest("adapters").fingerprint / "checkpoint-1"
    left.mkdir(parents=True)  # by a kill between publication and removal
    assert made(run_again()) == set()
    assert list(root.iterdir()) == []


def test_a_comment_changes_nothing(finished: Path) -> None:
    change_recipe(finished, "sources:", "# a comment\nsources:")
    assert made(run_again()) == set()


def test_evaluation_settings_do_not_retrain(finished: Path) -> None:
    change_recipe(finished, "max_rows: 6", "max_rows: 5")
    assert made(run_again()) == {"evaluation_reports", "registered_models"}
    versions = tracking.client().search_model_versions("name = 'tiny'")
    assert len(versions) == 1, "the same model is registered once"


def test_what_a_kill_left_of_an_artifact_is_made_again(finished: Path) -> None:
    folder = artifacts.local_copy(manifest("training_sets"))
    (folder / "manifest.json").unlink()
    assert made(run_again()) == {"training_sets"}


def test_a_changed_row_retrains_and_meets_the_champion(finished: Path) -> None:
    rows = finished / "catalog" / "rows.jsonl"
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


def test_a_killed_worker_fails_the_run_and_the_next_one_resumes(finished: Path) -> None:
    change_recipe(finished, "num_train_epochs: 4", "num_train_epochs: 12")
    process, worker = start_until_training(finished, checkpoints=2)
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


def test_cancel_leaves_no_process_and_the_run_is_canceled(finished: Path) -> None:
    change_recipe(finished, "num_train_epochs: 4", "num_train_epochs: 500")
    process, worker = start_until_training(finished, checkpoints=1)
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
    finished: Path, checkpoints: int
) -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a run; return once its trainer has written that many new checkpoints."""
    root = finished / "storage" / "checkpoints"
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
