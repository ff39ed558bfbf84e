"""MLflow runs: one per artifact that is made, also by several attempts, with its true status."""

import subprocess
import sys
from pathlib import Path

import pytest

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


def killed(tags: dict[str, str]) -> str:
    """MLflow run that a process opened which was killed then."""
    script = (
        "import os, signal; from finetune_assets.registry import tracking;"
        f"print(tracking.start_run('tiny', 'adapters', 'root-1', {tags}), flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    run_id = done.stdout.strip().splitlines()[-1]
    assert tracking.client().get_run(run_id).info.status == "RUNNING"
    return run_id


def attempt(number: int, fingerprint: str) -> dict[str, str]:
    return {"dagster.run_id": f"run-{number}", "finetune.fingerprint": fingerprint}


def test_a_run_that_a_kill_left_open_is_closed_as_failed(project: Path) -> None:
    orphan = killed(attempt(1, "f"))
    assert tracking.start_run("tiny", "adapters", "root-2", attempt(2, "another")) != orphan
    assert tracking.client().get_run(orphan).info.status == "FAILED"


def test_whoever_runs_again_after_a_kill_goes_on_with_the_same_run(project: Path) -> None:
    first = killed(attempt(1, "f"))
    tracking.log_metrics(first, {"loss": 2.0}, step=1)
    assert tracking.start_run("tiny", "merged_models", "root-2", attempt(2, "f")) != first
    assert tracking.start_run("tiny", "adapters", "root-2", attempt(2, "f")) == first
    tracking.finish_run(first, "KILLED")
    assert tracking.start_run("tiny", "adapters", "root-3", attempt(3, "f")) == first
    run = tracking.client().get_run(first)
    assert run.info.status == "RUNNING"
    assert run.data.tags["dagster.root_run_id"] == "root-3"
    assert run.data.tags["dagster.run_id"] == "run-3"
    assert run.data.tags["dagster.run_ids"] == "run-1,run-2,run-3"
    assert run.data.metrics == {"loss": 2.0}
    ended = run.info.end_time
    tracking.finish_run(first, "FINISHED")
    assert tracking.client().get_run(first).info.end_time > ended
    assert tracking.start_run("tiny", "adapters", "root-4", attempt(4, "f")) != first


def test_a_run_that_goes_on_here_is_not_taken_over_and_one_of_a_lost_machine_is(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tracking.start_run("tiny", "adapters", "root-1", attempt(1, "f"))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "another-machine")
        there = tracking.start_run("tiny", "adapters", "root-2", attempt(2, "g"))
    assert tracking.start_run("tiny", "adapters", "root-3", attempt(3, "f")) != here
    assert tracking.start_run("tiny", "adapters", "root-4", attempt(4, "g")) == there


def test_metrics_and_parameters_are_logged(project: Path) -> None:
    run_id = tracking.start_run("tiny", "adapters", "root-1", {})
    tracking.log_metrics(run_id, {"loss": 2.0}, step=1)
    tracking.log_metrics(run_id, {"loss": 1.0}, step=2)
    tracking.log_parameters(run_id, {"lora": {"r": 4}, "seed": 0})
    run = tracking.client().get_run(run_id)
    assert run.data.metrics["loss"] == 1.0
    assert run.data.params == {"lora.r": "4", "seed": "0"}
    assert [m.value for m in tracking.client().get_metric_history(run_id, "loss")] == [2.0, 1.0]
