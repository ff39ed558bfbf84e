"""Asset checks of the model wing: what is learned, whether it fits, whether merging kept it."""

import json
from dataclasses import replace

import dagster as dg
import fsspec

from finetune_assets import settings
from finetune_assets.catalog.cleaning import Limit
from finetune_assets.catalog.config import Dataset
from finetune_assets.catalog.load import Entry
from finetune_assets.defs.data_checks import limited, severity
from finetune_assets.defs.metadata import Shown, table
from finetune_assets.models.planning import shape
from finetune_assets.models.planning.need import Counts, target
from finetune_assets.models.planning.preflight import Plan, preflight
from finetune_assets.models.planning.speed import measure_speed
from finetune_assets.models.planning.tables import GB, memory_rows, suggestion_rows
from finetune_assets.models.records import MergedRecord, PlanRecord, TrainingSetRecord
from finetune_assets.storage.artifacts import Manifest

TRAINING_SET_CHECKS = {
    "answers_whole": "No row was cut or dropped to fit the context.",
    "tokens_with_loss": "Enough of the tokens carry loss.",
    "fits_the_machine": "Training needs no more memory than its device has, by the estimate.",
}
PARITY = dg.AssetCheckSpec(
    "logits_match_adapter",
    asset="merged_models",
    blocking=True,
    description="On real prompts the merged model's logits are those of base + adapter.",
)


def training_set(record: TrainingSetRecord, config: Dataset) -> list[dg.AssetCheckResult]:
    """Judge what a training set's rows became."""
    parts = (record.train, record.validation)
    cut = sum(part.truncated_rows + part.dropped_rows for part in parts)
    rows = cut + sum(part.rows - part.truncated_rows for part in parts)
    tokens = sum(part.tokens for part in parts)
    share = sum(part.tokens_with_loss for part in parts) / max(1, tokens)
    least = config.checks.tokens_with_loss
    longer = f"{cut} rows are longer than max_length {config.training.max_length}"
    return [
        limited(
            "answers_whole", cut / max(1, rows), config.checks.truncated, longer, {"rows": cut}
        ),
        dg.AssetCheckResult(
            check_name="tokens_with_loss",
            passed=share >= least.limit,
            severity=severity(least),
            description=f"{share:.1%} of {tokens} tokens carry loss (at least {least.limit:.1%})",
            metadata={"share": round(share, 5), "limit": least.limit},
        ),
    ]


def preflight_of(entry: Entry, base: Manifest, training_set: Manifest) -> Plan | None:
    """Estimate what training will need; None where the base's architecture is not known.

    Where no device is declared, this machine is asked what it has and timed, which loads torch.
    """
    uri, training = f"{base.uri}/config.json", entry.config.training
    with fsspec.open(uri, "r") as file:
        config = json.load(file)
    if not shape.known(config):
        return None
    on = target(training, settings.DEVICE_VARIABLE, settings.device(), None)
    base_shape = shape.read(config, uri)
    if on.speed is None:
        on = replace(on, speed=measure_speed(on.hardware, base_shape))
    counts = Counts.of(training_set.record(TrainingSetRecord))
    return preflight(base_shape, training, on, counts)


def fits_the_machine(plan: Plan | None, limit: Limit) -> dg.AssetCheckResult:
    """Judge whether the device has the memory; warn where the base's architecture is not known."""
    name = "fits_the_machine"
    if plan is None:
        return dg.AssetCheckResult(
            check_name=name,
            passed=True,
            severity=dg.AssetCheckSeverity.WARN,
            description="not estimated: the base's architecture is none that is known",
        )
    needed, memory = plan.needed.total / GB, plan.target.memory / GB
    shown: dict[str, Shown] = {"estimate": table(memory_rows(plan))}
    if plan.suggestions:
        shown["what_would_fit"] = table(suggestion_rows(plan))
    said = f"training needs {needed:.2f} GB of the {memory:.2f} GB of {plan.target.hardware.name}"
    return limited(name, needed / memory, limit, said, shown)


def has_fitted(plan: PlanRecord | None) -> dg.AssetCheckResult:
    """Pass for an adapter that is there already, with what its run was expected to need."""
    said = "trained already"
    if plan is not None:
        needed, memory = plan.needed_bytes / GB, plan.available_bytes / GB
        said += f": {needed:.2f} GB of the {memory:.2f} GB of {plan.device} were expected"
    return dg.AssetCheckResult(check_name="fits_the_machine", passed=True, description=said)


def parity(record: MergedRecord) -> dg.AssetCheckResult:
    """Judge whether the merged model is the adapter's equal, within rounding of its dtype."""
    limit = record.limit
    return dg.AssetCheckResult(
        check_name=PARITY.name,
        passed=record.relative_difference <= limit,
        description=f"largest logit difference {record.max_logit_difference:.2e}, "
        f"{record.relative_difference:.2e} of the logits' range (limit {limit:.0e})",
        metadata={"relative_difference": record.relative_difference, "limit": limit},
    )
