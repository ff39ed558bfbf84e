"""MLflow runs: one per artifact that is made, also by several attempts, with its true status."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Literal

from finetune_assets import settings
from finetune_assets.processes import identity as processes
from finetune_assets.storage.artifacts import Manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Status = Literal["FINISHED", "FAILED", "KILLED"]
ROOT_RUN = "dagster.root_run_id"
ASSET = "dagster.asset"
PARTITION = "dagster.partition"
RUN = "dagster.run_id"
"""Tag of the newest attempt's Dagster run."""
RUNS = "dagster.run_ids"
"""Tag of the Dagster runs of every attempt, oldest first, separated by commas."""
FINGERPRINT = "finetune.fingerprint"
PROCESS = "finetune.process"
"""Tag of the run worker's process, by which a run that a kill left open is recognised."""
MOST_METRICS = 1000
"""Metrics that MLflow takes in one write."""


@cache
def client() -> "MlflowClient":
    """Return the MLflow client of the configured store."""
    import mlflow

    uri = settings.mlflow_uri()
    if uri.startswith("sqlite:///"):
        os.makedirs(os.path.dirname(uri.removeprefix("sqlite:///")), exist_ok=True)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient()


def experiment_id(dataset: str) -> str:
    """Return a dataset's experiment; create it, with artifacts beside ours, if it is not there."""
    found = client().get_experiment_by_name(dataset)
    if found:
        return found.experiment_id
    root = settings.mlflow_artifact_root()
    return client().create_experiment(dataset, f"{root}/{dataset}" if root else None)


def start_run(dataset: str, asset: str, root_run_id: str, tags: dict[str, str]) -> str:
    """Open a run for an artifact that is to be made, or open again that of an earlier attempt.

    An earlier attempt has the same Dagster root run, as on a retry, or the same asset and
    fingerprint and did not finish: whoever runs again after a kill goes on with the same work.
    """
    experiment = experiment_id(dataset)
    close_abandoned(experiment)
    own = {ROOT_RUN: root_run_id, ASSET: asset, PARTITION: dataset, PROCESS: processes.here()}
    tags = own | tags
    found = _attempt_before(experiment, tags)
    if found is None:
        tags[RUNS] = tags.get(RUN, "")
        return client().create_run(experiment, run_name=asset, tags=tags).info.run_id
    attempts = [*found.data.tags.get(RUNS, "").split(","), tags.get(RUN, "")]
    tags[RUNS] = ",".join(dict.fromkeys(filter(None, attempts)))
    # Its old end stays until the new one takes its place, as MLflow's own `start_run` leaves it.
    client().update_run(found.info.run_id, status="RUNNING")
    set_tags(found.info.run_id, tags)
    return found.info.run_id


def _attempt_before(experiment: str, tags: dict[str, str]) -> "Run | None":
    """Find the MLflow run that goes on; None for what is made for the first time."""
    of_asset = f"tags.`{ASSET}` = '{tags[ASSET]}'"
    query = f"{of_asset} and tags.`{ROOT_RUN}` = '{tags[ROOT_RUN]}'"
    if found := client().search_runs([experiment], query, max_results=1):
        return found[0]
    query = f"{of_asset} and tags.`{FINGERPRINT}` = '{tags.get(FINGERPRINT, '')}'"
    query += " and attributes.status != 'FINISHED'"
    found = client().search_runs([experiment], query, order_by=["attributes.start_time DESC"])
    # One that runs here still is another's. Of another machine nobody knows: it may be lost.
    return next((run for run in found if not _runs_here(run)), None)


def _runs_here(run: "Run") -> bool:
    host = run.data.tags.get(PROCESS, "").partition(":")[0]
    return run.info.status == "RUNNING" and host == processes.here().partition(":")[0]


def close_abandoned(experiment: str) -> None:
    """End as FAILED the runs that a killed process of this host left RUNNING."""
    for run in client().search_runs([experiment], "attributes.status = 'RUNNING'"):
        if processes.is_gone_from_here(run.data.tags.get(PROCESS, "")):
            client().set_terminated(run.info.run_id, "FAILED")


def finish_run(run_id: str, status: Status) -> None:
    """End a run with what has become of it."""
    client().set_terminated(run_id, status)


def log_parameters(run_id: str, values: Mapping[str, object]) -> None:
    """Log settings, flattened to `section.key`; MLflow keeps 500 characters of a value."""
    for key, value in _flatten(values):
        client().log_param(run_id, key, str(value)[:500])


def log_metrics(run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    """Log metrics of one step."""
    log_series(run_id, [(int(time.time() * 1000), step, values)])


def log_series(run_id: str, points: Sequence[tuple[int, int, Mapping[str, float]]]) -> None:
    """Log metrics of several steps, each with its Unix time in milliseconds, in few writes."""
    from mlflow.entities import Metric

    metrics = [Metric(k, v, at, step) for at, step, values in points for k, v in values.items()]
    for start in range(0, len(metrics), MOST_METRICS):
        client().log_batch(run_id, metrics[start : start + MOST_METRICS])


def logged_steps(run_id: str) -> dict[str, set[int]]:
    """Return the steps that a run has of each metric, but for those of the system."""
    names = [n for n in client().get_run(run_id).data.metrics if not n.startswith("system/")]
    return {n: {m.step for m in client().get_metric_history(run_id, n)} for n in names}


@contextmanager
def system_metrics(run_id: str) -> Iterator[None]:
    """Log CPU, memory, disk, network and GPU of this machine to a run until the block ends."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    client()
    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def log_inputs(run_id: str, inputs: Mapping[str, Manifest]) -> None:
    """Log which artifacts a run reads, by asset; MLflow shows them as its datasets."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    datasets = []
    for asset, made in inputs.items():
        counts = {k: v for k, v in made.statistics.items() if isinstance(v, int)}
        dataset = Dataset(
            name=f"{asset}/{made.dataset}",
            digest=made.data_version,
            source_type="finetune_assets",
            source=json.dumps({"uri": made.uri}),
            profile=json.dumps(counts),
        )
        datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", asset)]))
    client().log_inputs(run_id, datasets=datasets)


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    for key, value in tags.items():
        client().set_tag(run_id, key, value)


def run_url(dataset: str, run_id: str) -> str:
    """Return the address of a run in MLflow's UI."""
    return f"{settings.mlflow_ui()}/#/experiments/{experiment_id(dataset)}/runs/{run_id}"


def version_url(dataset: str, version: str | int) -> str:
    """Return the address of a model version in MLflow's UI."""
    return f"{settings.mlflow_ui()}/#/models/{dataset}/versions/{version}"


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
