"""What a worker reports to MLflow: one curve, however often the work was cut off."""

from pathlib import Path
from typing import Any

from finetune_assets.launch.reporter import Reporter
from finetune_assets.registry import tracking


def points(run_id: str, name: str) -> list[tuple[int, float]]:
    history = tracking.client().get_metric_history(run_id, name)
    return [(metric.step, metric.value) for metric in history]


def test_an_attempt_after_a_kill_fills_the_curve_and_repeats_nothing(project: Path) -> None:
    run_id = tracking.start_run("tiny", "adapters", "root-1", {})
    pipes: Any = None
    first = Reporter(pipes, run_id)
    with first.tracking({"seed": 0}):
        for step in (1, 2):
            first.metrics({"train_loss": 3.0 - step, "speed": 7.0}, step)
    # Step 3 was not written any more, and step 2 is made again from the checkpoint of step 1.
    again = Reporter(pipes, run_id)
    with again.tracking({"seed": 0}):
        for step in (1, 2, 3, 4):
            again.metrics({"train_loss": 3.0 - step}, step)
        again.metrics({"validation_loss": 0.5}, 4)
    assert points(run_id, "train_loss") == [(1, 2.0), (2, 1.0), (3, 0.0), (4, -1.0)]
    assert points(run_id, "speed") == [(1, 7.0), (2, 7.0)]
    assert points(run_id, "validation_loss") == [(4, 0.5)]


def test_outside_of_tracking_metrics_are_there_at_once(project: Path) -> None:
    run_id = tracking.start_run("tiny", "evaluation_reports", "root-1", {})
    pipes: Any = None
    Reporter(pipes, run_id).metrics({"tuned.loss": 1.5}, 0)
    assert points(run_id, "tuned.loss") == [(0, 1.5)]
