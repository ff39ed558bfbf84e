"""Asset checks of the data: what the dataset file's `checks:` and `contamination:` limit."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dagster as dg

from finetune_assets import settings
from finetune_assets.catalog.cleaning import Limit
from finetune_assets.catalog.config import Dataset
from finetune_assets.catalog.load import Entry
from finetune_assets.defs.metadata import table
from finetune_assets.models.planning import shape
from finetune_assets.models.planning.need import Counts, target
from finetune_assets.models.planning.preflight import Plan, preflight
from finetune_assets.models.planning.speed import measure_speed
from finetune_assets.models.planning.tables import memory_rows, suggestion_rows
from finetune_assets.storage.artifacts import Manifest

CORPUS_CHECKS = {
    "rows_usable": "Every row became a conversation; rejected rows are listed with reasons.",
    "few_duplicates": "Few rows repeat another, exactly or nearly.",
    "no_personal_data": "No row holds e-mail addresses, phone or card numbers, or API keys.",
    "answer_lengths": "No answer is far longer than the others.",
    "no_drift": "Languages and roles are mixed as in the last materialization.",
}
TEST_SPLIT_CHECKS = {
    "no_leaked_prompts": "No question, nor one nearly the same, is in more than one split.",
    "no_contamination": "Evaluation rows share few n-grams with training rows, and benchmarks too.",
}
TRAINING_SET_CHECKS = {
    "answers_whole": "No row was cut or dropped to fit the context.",
    "tokens_with_loss": "Enough of the tokens carry loss.",
    "fits_the_machine": "Training needs no more memory than its device has, by the estimate.",
}


def specs(asset: str, checks: Mapping[str, str]) -> list[dg.AssetCheckSpec]:
    """All may block: a check whose severity is `error` stops the run."""
    return [
        dg.AssetCheckSpec(name, asset=asset, description=text, blocking=True)
        for name, text in checks.items()
    ]


def limited(
    name: str, share: float, limit: Limit, description: str, metadata: dict[str, Any] | None = None
) -> dg.AssetCheckResult:
    """A check that passes while a share is at most its limit."""
    error = limit.severity == "error"
    return dg.AssetCheckResult(
        check_name=name,
        passed=share <= limit.limit,
        severity=dg.AssetCheckSeverity.ERROR if error else dg.AssetCheckSeverity.WARN,
        description=f"{description} ({share:.2%}; limit {limit.limit:.2%})",
        metadata={"share": round(share, 5), "limit": limit.limit, **(metadata or {})},
    )


def corpus(
    manifest: Manifest, before: Manifest | None, config: Dataset
) -> list[dg.AssetCheckResult]:
    s, checks = manifest.statistics, config.checks
    total, rows = max(1, s["total"]), max(1, s["rows"])
    duplicates = s["exact_duplicates"] + s["near_duplicates"]
    personal, outliers = s["personal_data"], s["answer_outliers"]
    left = 0 if config.cleaning.personal_data.action in ("redact", "drop") else personal["rows"]
    return [
        limited(
            "rows_usable",
            s["rejected"] / total,
            checks.rejected,
            f"{s['rejected']} of {total} rows rejected",
        ),
        limited(
            "few_duplicates",
            duplicates / total,
            checks.duplicates,
            f"{s['exact_duplicates']} exact and {s['near_duplicates']} near duplicates",
        ),
        limited(
            "no_personal_data",
            left / rows,
            checks.personal_data,
            f"{left} rows: " + (", ".join(f"{k} {n}" for k, n in personal["kinds"].items()) or "-"),
        ),
        limited(
            "answer_lengths",
            outliers["share"],
            checks.answer_outliers,
            f"{outliers['rows']} answers longer than {outliers['limit']:.0f} characters",
        ),
        _drift(manifest, before, checks.drift),
    ]


def _drift(manifest: Manifest, before: Manifest | None, limit: Limit) -> dg.AssetCheckResult:
    from finetune_assets.data.corpora.difference import variation

    if before is None or "languages" not in before.statistics:
        return limited("no_drift", 0.0, limit, "nothing to compare with yet")
    amounts = {
        mix: variation(before.statistics[mix], manifest.statistics[mix])
        for mix in ("languages", "roles")
    }
    worst = max(amounts, key=lambda mix: amounts[mix])
    return limited("no_drift", amounts[worst], limit, f"{worst} changed most", amounts)


def test_split(manifest: Manifest, config: Dataset) -> list[dg.AssetCheckResult]:
    s = manifest.statistics
    leaked, found = s["leaked_prompts"], s["contamination"]["rows"]
    worst = max((part["share"] for part in found), default=0.0)
    return [
        dg.AssetCheckResult(
            check_name="no_leaked_prompts",
            passed=leaked == 0,
            description=f"{leaked} questions occur, or nearly occur, in more than one split",
            metadata={"leaked_prompts": leaked},
        ),
        limited(
            "no_contamination",
            worst,
            Limit(limit=config.contamination.max_contaminated, severity="error"),
            "; ".join(f"{p['contaminated']} of {p['rows']} {p['of']} rows" for p in found),
        ),
    ]


def training_set(
    manifest: Manifest, config: Dataset, plan: Plan | None
) -> list[dg.AssetCheckResult]:
    parts = [manifest.statistics[name] for name in ("train", "validation")]
    cut = sum(p["truncated_rows"] + p["dropped_rows"] for p in parts)
    rows = cut + sum(p["rows"] - p["truncated_rows"] for p in parts)
    with_loss, tokens = (sum(p[key] for p in parts) for key in ("tokens_with_loss", "tokens"))
    share = with_loss / max(1, tokens)
    least = config.checks.tokens_with_loss
    error = least.severity == "error"
    return [
        limited(
            "answers_whole",
            cut / max(1, rows),
            config.checks.truncated,
            f"{cut} rows are longer than max_length {config.training.max_length}",
            {"rows": cut},
        ),
        dg.AssetCheckResult(
            check_name="tokens_with_loss",
            passed=share >= least.limit,
            severity=dg.AssetCheckSeverity.ERROR if error else dg.AssetCheckSeverity.WARN,
            description=f"{share:.1%} of {tokens} tokens carry loss (at least {least.limit:.1%})",
            metadata={"share": round(share, 5), "limit": least.limit},
        ),
        fits_the_machine(plan, config.checks.memory),
    ]


def preflight_of(entry: Entry, base: Manifest, training_set: Manifest) -> Plan | None:
    """What training will need; None where the base's architecture is none that is known."""
    import fsspec

    uri, training = f"{base.uri}/config.json", entry.config.training
    with fsspec.open(uri, "r") as file:
        config = json.load(file)
    if not shape.known(config):
        return None
    on = target(training, settings.DEVICE_VARIABLE, settings.device(), None)
    base_shape = shape.read(config, uri)
    if on.speed is None:
        on = replace(on, speed=measure_speed(on.hardware, base_shape))
    return preflight(base_shape, training, on, Counts.of(training_set.statistics))


def fits_the_machine(plan: Plan | None, limit: Limit) -> dg.AssetCheckResult:
    """Whether the device has the memory; where the base's architecture is not known, a warning."""
    name = "fits_the_machine"
    if plan is None:
        return dg.AssetCheckResult(
            check_name=name,
            passed=True,
            severity=dg.AssetCheckSeverity.WARN,
            description="not estimated: the base's architecture is none that is known",
        )
    needed, memory = plan.needed.total / 1e9, plan.target.memory / 1e9
    shown: dict[str, Any] = {"estimate": table(memory_rows(plan))}
    if plan.suggestions:
        shown["what_would_fit"] = table(suggestion_rows(plan))
    return limited(
        name,
        needed / memory,
        limit,
        f"training needs {needed:.2f} GB of the {memory:.2f} GB of {plan.target.hardware.name}",
        shown,
    )
