"""What `finetune run` ends with: base against tuned, the decision, and where to look."""

from collections.abc import Mapping
from pathlib import Path

import dagster as dg
from rich.console import Console
from rich.table import Table

from finetune_assets import settings
from finetune_assets.defs.resources import newest_uri
from finetune_assets.evaluation.results import EvaluationRecord, Scores
from finetune_assets.models import records
from finetune_assets.registry.promotion import RegisteredRecord
from finetune_assets.storage import artifacts
from finetune_assets.storage.artifacts import Manifest, Record


def print_summary(instance: dg.DagsterInstance, name: str, console: Console) -> None:
    """Print the scores of the newest evaluation and the decision of the registry."""
    evaluation = _newest(instance, "evaluation_reports", name)
    registered = _newest(instance, "registered_models", name)
    found = evaluation.record(EvaluationRecord)
    console.print(_table(f"{name}: {found.rows} test rows", found.scores))
    for attribute, values in found.slices.items():
        for value, part in values.items():
            console.print(_table(f"{attribute} = {value}: {part.rows} rows", part.scores))
    made = registered.record(RegisteredRecord)
    console.print(f"version {made.version} [bold]{made.decision}[/bold]: {made.reason}")
    console.print(f"largest process: {peak_memory(instance, name)} GB")
    console.print(f"report   {Path(artifacts.local_copy(evaluation)) / 'report.html'}")
    console.print(f'model    mlflow.transformers.load_model("models:/{name}@champion")')
    console.print(f"MLflow   {settings.mlflow_ui()}/#/models/{name}")
    console.print("Dagster  http://localhost:3000/assets  (both start with `make dev`)")


def peak_memory(instance: dg.DagsterInstance, name: str) -> float:
    """Return the largest peak RSS of the worker processes behind the newest artifacts, in GB."""
    kinds: dict[str, type[Record]] = {
        "base_models": records.BaseRecord,
        "training_sets": records.TrainingSetRecord,
        "adapters": records.AdapterRecord,
        "merged_models": records.MergedRecord,
        "evaluation_reports": EvaluationRecord,
    }
    newest = (_newest(instance, asset, name).record(kind) for asset, kind in kinds.items())
    return max(record.peak_rss_gb or 0.0 for record in newest)


def _newest(instance: dg.DagsterInstance, asset: str, name: str) -> Manifest:
    uri = newest_uri(instance, asset, name)
    assert uri is not None
    return artifacts.read(uri)


def _table(title: str, scores: Mapping[str, Scores]) -> Table:
    table = Table("", title=title, title_justify="left")
    for model in scores:
        table.add_column(model, justify="right")
    for metric in next(iter(scores.values())):
        table.add_row(metric, *(f"{of[metric]:.4g}" for of in scores.values()))
    return table
