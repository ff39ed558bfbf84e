"""Asset checks of the data: what the dataset file's `checks:` and `contamination:` limit."""

from collections.abc import Mapping

import dagster as dg

from finetune_assets.catalog.cleaning import Limit
from finetune_assets.catalog.config import Dataset
from finetune_assets.data.corpora.corpus_record import CorpusRecord
from finetune_assets.data.splits.split_record import SplitRecord
from finetune_assets.defs.metadata import Shown
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


def specs(asset: str, checks: Mapping[str, str]) -> list[dg.AssetCheckSpec]:
    """Return an asset's check specs; all may block: one whose severity is `error` stops the run."""
    return [
        dg.AssetCheckSpec(name, asset=asset, description=text, blocking=True)
        for name, text in checks.items()
    ]


def severity(limit: Limit) -> dg.AssetCheckSeverity:
    """Return Dagster's severity of a check that fails by this limit."""
    return dg.AssetCheckSeverity(limit.severity.upper())


def limited(
    name: str,
    share: float,
    limit: Limit,
    description: str,
    metadata: Mapping[str, Shown] | None = None,
) -> dg.AssetCheckResult:
    """Return a check that passes while a share is at most its limit."""
    return dg.AssetCheckResult(
        check_name=name,
        passed=share <= limit.limit,
        severity=severity(limit),
        description=f"{description} ({share:.2%}; limit {limit.limit:.2%})",
        metadata={"share": round(share, 5), "limit": limit.limit, **(metadata or {})},
    )


def corpus(
    manifest: Manifest, before: Manifest | None, config: Dataset
) -> list[dg.AssetCheckResult]:
    """Return the checks of a corpus; `before` is the last materialization's, if there is one."""
    found, checks = manifest.record(CorpusRecord), config.checks
    total, rows = max(1, found.total), max(1, found.rows)
    duplicates = found.exact_duplicates + found.near_duplicates
    personal, outliers = found.personal_data, found.answer_outliers
    left = 0 if config.cleaning.personal_data.action in ("redact", "drop") else personal.rows
    rejected = f"{found.rejected} of {total} rows rejected"
    repeated = f"{found.exact_duplicates} exact and {found.near_duplicates} near duplicates"
    kinds = ", ".join(f"{k} {n}" for k, n in personal.kinds.items()) or "-"
    longer = f"{outliers.rows} answers longer than {outliers.limit:.0f} characters"
    return [
        limited("rows_usable", found.rejected / total, checks.rejected, rejected),
        limited("few_duplicates", duplicates / total, checks.duplicates, repeated),
        limited("no_personal_data", left / rows, checks.personal_data, f"{left} rows: {kinds}"),
        limited("answer_lengths", outliers.share, checks.answer_outliers, longer),
        _drift(found, before, checks.drift),
    ]


def _drift(found: CorpusRecord, before: Manifest | None, limit: Limit) -> dg.AssetCheckResult:
    from finetune_assets.data.corpora.difference import variation

    if before is None or "languages" not in before.statistics:
        return limited("no_drift", 0.0, limit, "nothing to compare with yet")
    earlier = before.record(CorpusRecord)
    amounts = {
        "languages": variation(earlier.languages, found.languages),
        "roles": variation(earlier.roles, found.roles),
    }
    worst = max(amounts, key=lambda mix: amounts[mix])
    return limited("no_drift", amounts[worst], limit, f"{worst} changed most", amounts)


def test_split(manifest: Manifest, config: Dataset) -> list[dg.AssetCheckResult]:
    """Return the checks of the test split: leaks among the splits, and contamination."""
    record, most = manifest.record(SplitRecord), config.contamination.max_contaminated
    leaked = record.leaked_prompts
    parts = record.contamination.rows if record.contamination else []
    worst = max((part.share for part in parts), default=0.0)
    found = "; ".join(f"{p.contaminated} of {p.rows} {p.of} rows" for p in parts)
    return [
        dg.AssetCheckResult(
            check_name="no_leaked_prompts",
            passed=leaked == 0,
            description=f"{leaked} questions occur, or nearly occur, in more than one split",
            metadata={"leaked_prompts": leaked},
        ),
        limited("no_contamination", worst, Limit(limit=most, severity="error"), found),
    ]
