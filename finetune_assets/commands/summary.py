"""What `finetune run` ends with: base against tuned, the decision, and where to look."""

from pathlib import Path
from typing import Any

import dagster as dg
from rich.console import Console
from rich.table import Table

from finetune_assets import settings
from finetune_assets.storage import artifacts as artifacts
from finetune_assets.storage.artifacts import Manifest


def print_summary(instance: dg.DagsterInstance, name: str, console: Console) -> None:
    """Print the scores of the newest evaluation and the decision of the registry."""
    evaluation = _newest(instance, "evaluation_reports", name)
    registered = _newest(instance, "registered_models", name)
    scores = evaluation.statistics["scores"]
    console.print(_table(f"{name}: {evaluation.statistics['rows']} test rows", scores))
    for attribute, values in evaluation.statistics["slices"].items():
        for value, part in values.items():
            title = f"{attribute} = {value}: {part['rows']} rows"
            console.print(_table(title, part["scores"]))
    decision = registered.statistics
    console.print(
        f"version {decision['version']} [bold]{decision['decision']}[/bold]: {decision['reason']}"
    )
    peak = peak_memory(instance, name)
    console.print(f"largest process: {peak} GB")
    console.print(f"report   {Path(artifacts.local_copy(evaluation)) / 'report.html'}")
    console.print(f'model    mlflow.transformers.load_model("models:/{name}@champion")')
    console.print(f"MLflow   {settings.mlflow_ui()}/#/models/{name}")
    console.print("Dagster  http://localhost:3000/assets  (both start with `make dev`)")


def peak_memory(instance: dg.DagsterInstance, name: str) -> float:
    """Largest peak RSS of the worker processes behind the newest artifacts, GB."""
    assets = ("base_models", "training_sets", "adapters", "merged_models", "evaluation_reports")
    return max(_newest(instance, a, name).statistics["peak_rss_gb"] for a in assets)


def _newest(instance: dg.DagsterInstance, asset: str, name: str) -> Manifest:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[name]), limit=1
    ).records
    materialization = records[0].asset_materialization
    assert materialization is not None
    return artifacts.read(str(materialization.metadata["manifest"].value))


def _table(title: str, scores: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    models = list(scores)
    for model in models:
        table.add_column(model, justify="right")
    for metric in scores[models[0]]:
        cells = [f"{scores[m][metric]:.4g}" for m in models]
        table.add_row(metric, *cells)
    return table
