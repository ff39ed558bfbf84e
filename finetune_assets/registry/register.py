"""The task `registered_models`: an MLflow version, its aliases and the promotion decision."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from finetune_assets.registry import tracking
from finetune_assets.registry.promotion import RegisteredRecord, decide
from finetune_assets.storage import artifacts
from finetune_assets.storage.artifacts import write_json
from finetune_assets.storage.fingerprint import library_versions
from finetune_assets.storage.job import Job

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

MERGED_VERSION = "finetune.merged_models"
"""Version tag with the data version of the merged model, by which a version is found again."""
MERGED_MANIFEST = "finetune.merged_models_manifest"
"""Version tag with the URI of the merged model's manifest, by which its weights are found."""


class Opponent(NamedTuple):
    """The registered version that a new model has to beat."""

    version: str
    manifest_uri: str
    """URI of the manifest of its merged model."""


def opponent(dataset: str, merged_data_version: str) -> Opponent | None:
    """Return the champion; or, if this very model is the champion, the one that it replaced."""
    for alias in ("champion", "previous-champion"):
        found = _by_alias(dataset, alias)
        if found is not None and found.tags.get(MERGED_VERSION) != merged_data_version:
            uri = found.tags.get(MERGED_MANIFEST)
            return Opponent(found.version, uri) if uri else None
    return None


def register(job: Job, out: Path, log: Callable[[str], None]) -> RegisteredRecord:
    """Register the merged model, set `challenger`, and `champion` if it is better.

    Runs again after a kill at any point: the version is found by the merged model's data version,
    and aliases are set to what the decision says.
    """
    client, dataset = tracking.client(), job.manifest.dataset
    merged = job.input("merged_models")
    report = json.loads((job.folder("evaluation_reports") / "report.json").read_text())
    version = _existing(dataset, merged.data_version)
    if version is None:
        log("writing the model into MLflow")
        version = _create(job, merged, report["scores"]["tuned"])
    metric, scores = job.config["metric"], report["scores"]
    champion = scores["champion"][metric] if "champion" in scores else None
    decision = decide(metric, scores["tuned"][metric], champion, job.config["min_improvement"])
    client.set_registered_model_alias(dataset, "challenger", version)
    if decision.outcome == "promoted":
        current = _by_alias(dataset, "champion")
        if current is not None and current.version != version:
            client.set_registered_model_alias(dataset, "previous-champion", current.version)
        client.set_registered_model_alias(dataset, "champion", version)
    said = {"decision": decision.outcome, "reason": decision.reason, "metric": metric}
    for key, value in said.items():
        client.set_model_version_tag(dataset, version, f"finetune.{key}", value)
    log(f"version {version} {decision.outcome}: {decision.reason}")
    record = RegisteredRecord(version=version, decision=decision.outcome, reason=decision.reason)
    write_json(out / "decision.json", record.model_dump(exclude_unset=True))
    return record


def _by_alias(dataset: str, alias: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        return tracking.client().get_model_version_by_alias(dataset, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _existing(dataset: str, merged_data_version: str) -> str | None:
    query = f"name = '{dataset}' and tags.`{MERGED_VERSION}` = '{merged_data_version}'"
    found = tracking.client().search_model_versions(query)
    ready = [v for v in found if v.status == "READY"]
    return max((v.version for v in ready), key=int, default=None)


def _create(job: Job, merged: artifacts.Manifest, scores: dict[str, float]) -> str:
    import mlflow
    import torch
    from mlflow.exceptions import MlflowException
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, dataset = artifacts.local_copy(merged), job.manifest.dataset
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    client = tracking.client()
    with mlflow.start_run(run_id=job.manifest.mlflow_run_id):
        pinned = library_versions("torch", "transformers", "accelerate")
        info = mlflow.transformers.log_model(
            {"model": model, "tokenizer": AutoTokenizer.from_pretrained(folder)},
            name="model",
            task="llm/v1/chat",
            torch_dtype=getattr(torch, str(model.dtype).removeprefix("torch.")),
            pip_requirements=[f"{name}=={number}" for name, number in pinned.items()],
        )
    try:
        client.create_registered_model(dataset)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        dataset,
        source=info.model_uri,
        run_id=job.manifest.mlflow_run_id,
        model_id=info.model_id,
        tags={
            MERGED_VERSION: merged.data_version,
            MERGED_MANIFEST: f"{merged.uri}/{artifacts.MANIFEST}",
            "dagster.run_id": job.dagster_run_id or "",
            "finetune.git_commit": job.manifest.git_commit or "",
            **{f"finetune.score.{name}": f"{value:.6g}" for name, value in scores.items()},
        },
    )
    return version.version
