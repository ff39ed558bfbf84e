"""What the Dagster UI shows of each artifact."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from finetune_assets.defs import charts
from finetune_assets.defs.markdown import masked
from finetune_assets.storage.artifacts import MANIFEST, Manifest

if TYPE_CHECKING:
    from finetune_assets.models.planning.preflight import Plan

Metadata = dict[str, Any]


def result(
    manifest: Manifest,
    reused: bool,
    shown: Metadata,
    checks: Sequence[dg.AssetCheckResult] = (),
) -> dg.MaterializeResult:
    """The materialization of an artifact: the same, whether it was made or found."""
    common: Metadata = {
        "reused": reused,
        "manifest": dg.MetadataValue.path(f"{manifest.uri}/{MANIFEST}"),
        "fingerprint": manifest.fingerprint,
        "seconds": manifest.seconds,
        "size_mb": round(sum(f.size for f in manifest.files) / 1e6, 2),
    }
    if manifest.mlflow_run_id:
        from finetune_assets.registry import tracking

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
    s = manifest.statistics
    return {
        "model": manifest.config["model"],
        "architecture": s["architecture"],
        "parameters": s["parameters"],
        "context_length": s["context_length"],
        "stop_tokens": dg.MetadataValue.json(s["stop_tokens"]),
        "template_fingerprint": s["template_fingerprint"],
    }


def training_set(manifest: Manifest) -> Metadata:
    s = manifest.statistics
    keys = (
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
    counts = [{"split": n, **{k: s[n][k] for k in keys}} for n in ("train", "validation")]
    return {
        "dagster/row_count": s["train"]["rows"],
        "counts": table(counts),
        "tokens_with_loss": s["train"]["tokens_with_loss"],
        "lengths": charts.bars(s["train"]["lengths"], "tokens of a row (training split)"),
        "rows_as_the_model_sees_them": dg.MetadataValue.md(masked(s["train"]["preview"])),
    }


def adapter(manifest: Manifest, plan: "Plan | None") -> Metadata:
    from finetune_assets.models.planning.tables import estimate_table

    s = manifest.statistics
    shown: Metadata = {
        "validation_loss": s["best_validation_loss"],
        "best_step": s["best_step"],
        "steps": s["steps"],
        "epochs": s["epochs"],
        "resumed_from_step": s["resumed_from_step"] or 0,
        "trainable_parameters": s["trainable_parameters"],
        "tokens_per_second": s["tokens_per_second"],
        "curves": charts.training_curves(s),
    }
    if plan is not None:
        shown["estimate_and_actual"] = table(estimate_table(plan.record(), s))
    if s["samples"]:
        shown["answers_over_time"] = table(s["samples"])
    return shown | {
        "kernels": dg.MetadataValue.json(s["kernels"]),
        "hardware": dg.MetadataValue.json(s["hardware"]),
        "recipe": dg.MetadataValue.json(manifest.config),
    }


def merged(manifest: Manifest) -> Metadata:
    s = manifest.statistics
    return {
        "merged_layers": s["merged_layers"],
        "stored_dtype": s["stored_dtype"],
        "max_logit_difference": s["max_logit_difference"],
        "top_token_disagreements": s["top_token_disagreements"],
        "positions_compared": s["positions"],
    }


TOLERANCE = {"F32": 1e-4, "BF16": 2e-2, "F16": 5e-3}
"""Largest relative logit difference by stored dtype: rounding of the merged weights explains it."""


def parity(manifest: Manifest) -> dg.AssetCheckResult:
    """Whether the merged model is the adapter's equal, within rounding of its stored dtype."""
    s = manifest.statistics
    limit = TOLERANCE[s["stored_dtype"]]
    return dg.AssetCheckResult(
        check_name="logits_match_adapter",
        passed=s["relative_difference"] <= limit,
        description=f"largest logit difference {s['max_logit_difference']:.2e}, "
        f"{s['relative_difference']:.2e} of the logits' range (limit {limit:.0e})",
        metadata={"relative_difference": s["relative_difference"], "limit": limit},
    )


def evaluation(manifest: Manifest) -> Metadata:
    from finetune_assets.evaluation.results import Report, compare_table
    from finetune_assets.storage import artifacts as artifacts

    folder = artifacts.local_copy(manifest)
    report = Report.model_validate_json((folder / "report.json").read_text())
    s = manifest.statistics
    shown: Metadata = {
        "dagster/row_count": s["rows"],
        "scores": dg.MetadataValue.md(compare_table(report)),
        "report": dg.MetadataValue.path(str(folder / "report.html")),
    }
    for metric, value in s["scores"]["tuned"].items():
        shown[f"tuned_{metric}"] = float(value)
        shown[f"base_{metric}"] = float(s["scores"]["base"][metric])
    return shown


def registered(manifest: Manifest) -> Metadata:
    from finetune_assets.registry import tracking

    s = manifest.statistics
    return {
        "version": int(s["version"]),
        "decision": s["decision"],
        "reason": s["reason"],
        "model_version": dg.MetadataValue.url(tracking.version_url(manifest.dataset, s["version"])),
        "load_with": dg.MetadataValue.md(
            f'`mlflow.transformers.load_model("models:/{manifest.dataset}@champion")`'
        ),
    }


SHOWN_IN_CELL = 120
"""Longer text is cut in tables."""


def table(rows: list[dict[str, Any]]) -> dg.TableMetadataValue:
    """A table of the UI; values that are no scalars are shown as text."""
    records = [dg.TableRecord({k: _cell(v) for k, v in row.items()}) for row in rows]
    columns = [dg.TableColumn(name) for name in rows[0]] if rows else []
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


def _cell(value: Any) -> str | int | float | bool:
    if isinstance(value, int | float | bool):
        return value
    text = "" if value is None else str(value)
    return text if len(text) <= SHOWN_IN_CELL else text[:SHOWN_IN_CELL] + " …"
