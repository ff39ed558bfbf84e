"""MLflow runs: one per root run, asset and dataset, with the status it really had."""

import subprocess
import sys
from pathlib import Path

from finetune_assets.registry import tracking


def test_a_retry_finds_its_run_again(project: Path) -> None:
    first = tracking.start_run("tiny", "adapters", "root-1", {"dagster.run_id": "run-1"})
    tracking.finish_run(first, "FAILED")
    again = tracking.start_run("tiny", "adapters", "root-1", {"dagster.run_id": "run-2"})
    other = tracking.start_run("tiny", "merged_models", "root-1", {})
    assert again == first
    assert other != first
    run = tracking.client().get_run(first)
    assert run.info.status == "RUNNING"
    assert run.data.tags["dagster.run_id"] == "run-2"
    tracking.finish_run(first, "FINISHED")
    assert tracking.client().get_run(first).info.status == "FINISHED"


def test_a_run_that_a_kill_left_open_is_closed_as_failed(project: Path) -> None:
    script = (
        "import os, signal; from finetune_assets.registry import tracking;"
        "print(tracking.start_run('tiny', 'adapters', 'root-1', {}), flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    orphan = done.stdout.strip().splitlines()[-1]
    assert tracking.client().get_run(orphan).info.status == "RUNNING"
    tracking.start_run("tiny", "adapters", "root-2", {})
    assert tracking.client().get_run(orphan).info.status == "FAILED"


def test_metrics_and_parameters_are_logged(project: Path) -> None:
    run_id = tracking.start_run("tiny", "adapters", "root-1", {})
    tracking.log_metrics(run_id, {"loss": 2.0}, step=1)
    tracking.log_metrics(run_id, {"loss": 1.0}, step=2)
    tracking.log_parameters(run_id, {"lora": {"r": 4}, "seed": 0})
    run = tracking.client().get_run(run_id)
    assert run.data.metrics["loss"] == 1.0
    assert run.data.params == {"lora.r": "4", "seed": "0"}
    assert [m.value for m in tracking.client().get_metric_history(run_id, "loss")] == [2.0, 1.0]
