"""What the Dagster UI shows of each artifact."""

from collections.abc import Mapping, Sequence

import dagster as dg

from finetune_assets.defs import charts
from finetune_assets.defs.markdown import masked
from finetune_assets.evaluation.results import EvaluationRecord, Report, compare_table
from finetune_assets.models import records
from finetune_assets.models.planning.tables import estimate_table
from finetune_assets.registry import tracking
from finetune_assets.registry.promotion import RegisteredRecord
from finetune_assets.storage import artifacts
from finetune_assets.storage.artifacts import MANIFEST, Manifest

Shown = dg.MetadataValue | dg.TableSchema | str | int | float | None
Metadata = dict[str, Shown]


def result(
    manifest: Manifest, reused: bool, shown: Metadata, checks: Sequence[dg.AssetCheckResult] = ()
) -> dg.MaterializeResult:
    """Return the materialization of an artifact: the same, whether it was made or found."""
    common: Metadata = {
        "reused": reused,
        "manifest": dg.MetadataValue.path(f"{manifest.uri}/{MANIFEST}"),
        "fingerprint": manifest.fingerprint,
        "seconds": manifest.seconds,
        "size_mb": round(sum(f.size for f in manifest.files) / 1e6, 2),
    }
    if manifest.mlflow_run_id:
        url = tracking.run_url(manifest.dataset, manifest.mlflow_run_id)
        common["mlflow_run"] = dg.MetadataValue.url(url)
    if "peak_rss_gb" in manifest.statistics:
        common["peak_rss_gb"] = manifest.statistics["peak_rss_gb"]
    return dg.MaterializeResult(
        metadata={**shown, **common},
        data_version=dg.DataVersion(manifest.data_version),
        check_results=list(checks),
    )


def base(manifest: Manifest) -> Metadata:
    """Describe a base model."""
    record = manifest.record(records.BaseRecord)
    return {
        "model": manifest.config["model"],
        "architecture": record.architecture,
        "parameters": record.parameters,
        "context_length": record.context_length,
        "stop_tokens": dg.MetadataValue.json(record.stop_tokens),
        "template_fingerprint": record.template_fingerprint,
    }


COUNTED = (
    "rows",
    "contexts",
    "tokens",
    "tokens_with_loss",
    "tokens_without_loss",
    "truncated_rows",
    "dropped_rows",
    "longest",
    "fill",
)
"""Columns of a training set's counts, by the names of its record."""


def training_set(manifest: Manifest, estimate: records.PlanRecord | None) -> Metadata:
    """Describe a training set, and what training on it is estimated to need."""
    record = manifest.record(records.TrainingSetRecord)
    train = record.train
    counts = [
        {"split": name, **{key: getattr(split, key) for key in COUNTED}}
        for name, split in (("train", train), ("validation", record.validation))
    ]
    lengths = train.lengths
    shown: Metadata = {
        "dagster/row_count": train.rows,
        "counts": table(counts),
        "tokens_with_loss": train.tokens_with_loss,
        "lengths": charts.bars(lengths.edges, lengths.counts, "tokens of a row (training split)"),
        "rows_as_the_model_sees_them": dg.MetadataValue.md(masked(train.preview)),
    }
    if estimate is not None:
        shown["estimate"] = dg.MetadataValue.json(estimate.model_dump())
    return shown


def adapter(manifest: Manifest) -> Metadata:
    """Describe an adapter, and how its training went beside what was expected of it."""
    record = manifest.record(records.AdapterRecord)
    shown: Metadata = {
        "validation_loss": record.best_validation_loss,
        "best_step": record.best_step,
        "steps": record.steps,
        "epochs": record.epochs,
        "resumed_from_step": record.resumed_from_step or 0,
        "trainable_parameters": record.trainable_parameters,
        "tokens_per_second": record.tokens_per_second,
        "curves": charts.training_curves(record),
    }
    if record.plan is not None:
        shown["estimate_and_actual"] = table(estimate_table(record.plan, record))
    if record.samples:
        shown["answers_over_time"] = table([sample.model_dump() for sample in record.samples])
    return shown | {
        "kernels": dg.MetadataValue.json(record.kernels),
        "hardware": dg.MetadataValue.json(record.hardware),
        "recipe": dg.MetadataValue.json(manifest.config),
    }


def merged(manifest: Manifest) -> Metadata:
    """Describe a merged model."""
    record = manifest.record(records.MergedRecord)
    return {
        "merged_layers": record.merged_layers,
        "stored_dtype": record.stored_dtype,
        "max_logit_difference": record.max_logit_difference,
        "top_token_disagreements": record.top_token_disagreements,
        "positions_compared": record.positions,
    }


def evaluation(manifest: Manifest) -> Metadata:
    """Describe an evaluation: its scores, and where its report is."""
    record = manifest.record(EvaluationRecord)
    folder = artifacts.local_copy(manifest)
    report = Report.model_validate_json((folder / "report.json").read_text())
    shown: Metadata = {
        "dagster/row_count": record.rows,
        "scores": dg.MetadataValue.md(compare_table(report)),
        "report": dg.MetadataValue.path(str(folder / "report.html")),
    }
    for metric, value in record.scores["tuned"].items():
        shown[f"tuned_{metric}"] = value
        shown[f"base_{metric}"] = record.scores["base"][metric]
    return shown


def registered(manifest: Manifest) -> Metadata:
    """Describe a registered version, and how it is loaded."""
    record = manifest.record(RegisteredRecord)
    url = tracking.version_url(manifest.dataset, record.version)
    return {
        "version": int(record.version),
        "decision": record.decision,
        "reason": record.reason,
        "model_version": dg.MetadataValue.url(url),
        "load_with": dg.MetadataValue.md(
            f'`mlflow.transformers.load_model("models:/{manifest.dataset}@champion")`'
        ),
    }


SHOWN_IN_CELL = 120
"""Longer text is cut in tables."""


def table(rows: Sequence[Mapping[str, object]]) -> dg.TableMetadataValue:
    """Return a table of the UI; values that are no scalars are shown as text."""
    records = [dg.TableRecord({k: _cell(v) for k, v in row.items()}) for row in rows]
    columns = [dg.TableColumn(name) for name in rows[0]] if rows else []
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


def _cell(value: object) -> str | int | float | bool:
    if isinstance(value, int | float | bool):
        return value
    text = "" if value is None else str(value)
    return text if len(text) <= SHOWN_IN_CELL else text[:SHOWN_IN_CELL] + " …"
