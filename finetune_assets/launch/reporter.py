"""What a worker says while it works: to Dagster by Pipes, to MLflow by its client."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dagster_pipes import PipesContext

from finetune_assets.registry import tracking

FLUSH_SECONDS = 2.0
"""Time between writes of metrics to MLflow; one takes longer than a step of a small model."""
OBSERVATION = "observation"
"""Key of a Pipes message that becomes an observation of the asset, while the worker runs."""


class Reporter:
    """A worker's live reports: log lines and events to Dagster, metrics and files to MLflow."""

    def __init__(self, pipes: PipesContext, mlflow_run_id: str | None) -> None:
        self._pipes, self._mlflow_run_id = pipes, mlflow_run_id
        self._waiting: list[tuple[int, int, dict[str, float]]] = []
        self._logged: dict[str, set[int]] = {}
        """Steps that MLflow has of each metric: an attempt after a kill repeats some."""
        self._lock = threading.Lock()

    def log(self, message: str) -> None:
        """Write a line for people into Dagster's log."""
        self._pipes.log.info(message)

    def observe(self, values: Mapping[str, object]) -> None:
        """Put a structured event on the asset's page; values are JSON values."""
        self._pipes.report_custom_message({OBSERVATION: values})

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log metrics of a step to MLflow: at once outside `tracking`, soon within it."""
        with self._lock:
            self._waiting.append((int(time.time() * 1000), step, values))
        if not hasattr(self, "_thread"):
            self._flush()

    def file(self, path: Path) -> None:
        """Keep a copy of a file with the MLflow run, where a browser can open it."""
        if self._mlflow_run_id:
            tracking.client().log_artifact(self._mlflow_run_id, str(path))

    @contextmanager
    def tracking(self, config: Mapping[str, object]) -> Iterator[None]:
        """Give MLflow the configuration, and within the block system metrics and live metrics.

        MLflow's import and the first calls run beside the work.
        """
        if self._mlflow_run_id is None:
            yield
            return
        ended = threading.Event()
        given = (self._mlflow_run_id, config, ended)
        self._thread = threading.Thread(target=self._follow, args=given, daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            ended.set()
            self._thread.join()
            del self._thread

    def _follow(self, run_id: str, config: Mapping[str, object], ended: threading.Event) -> None:
        tracking.client().log_dict(run_id, dict(config), "recipe.json")
        self._logged = tracking.logged_steps(run_id)
        with tracking.system_metrics(run_id):
            while not ended.wait(FLUSH_SECONDS):
                self._flush()
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        points = [(at, step, self._new(values, step)) for at, step, values in waiting]
        if points and self._mlflow_run_id:
            tracking.log_series(self._mlflow_run_id, points)

    def _new(self, values: dict[str, float], step: int) -> dict[str, float]:
        new = {k: value for k, value in values.items() if step not in self._logged.get(k, ())}
        for name in new:
            self._logged.setdefault(name, set()).add(step)
        return new
