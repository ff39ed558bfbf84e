"""A plan as rows of tables, and beside what a run measured."""

from collections.abc import Mapping
from typing import Any

from finetune_assets.models.planning.preflight import Plan

GB = 1e9
Row = dict[str, Any]


def memory_rows(plan: Plan) -> list[Row]:
    """Memory by part, as a table."""
    total = plan.needed.total
    rows = [
        {"memory": part, "GB": round(size / GB, 3), "share": f"{size / total:.0%}"}
        for part, size in plan.needed.parts().items()
    ]
    if plan.on_host:
        size = round(plan.on_host / GB, 3)
        rows.append({"memory": "optimizer, paged", "GB": size, "share": "may be on the host"})
    return [*rows, {"memory": "all", "GB": round(total / GB, 3), "share": "100%"}]


def suggestion_rows(plan: Plan) -> list[Row]:
    """Changes of the recipe, each on top of the last, as a table."""
    rows: list[Row] = []
    before: Row = {}
    for each in plan.suggestions:
        new = {key: value for key, value in each.changes.items() if before.get(key) != value}
        change = ", ".join(f"{key}: {_yaml(value)}" for key, value in new.items())
        rows.append({"training": change, "GB": round(each.needed / GB, 2), "fits": each.fits})
        before = each.changes
    return rows


def estimate_table(estimate: Mapping[str, Any], actual: Mapping[str, Any]) -> list[Row]:
    """A plan's record beside a run's statistics, as a table.

    Args:
        actual: `seconds_training`, `steps`, `tokens_per_second`, and `device_peak_gb` of a GPU or
            `peak_rss_gb` of a CPU's process; those that are missing are left out.
    """
    peak = actual.get("device_peak_gb") or actual.get("peak_rss_gb")
    seconds, steps = estimate["seconds"], actual.get("steps")
    # A run that ended early, or was resumed, is compared by what it did.
    share = steps / estimate["steps"] if steps else 1
    pairs = {
        "memory (GB)": (estimate["needed_bytes"] / GB, peak),
        "steps": (estimate["steps"], steps),
        "minutes": (
            seconds and seconds * share / 60,
            actual["seconds_training"] / 60 if "seconds_training" in actual else None,
        ),
        "tokens a second": (
            seconds and estimate["tokens"] / seconds,
            actual.get("tokens_per_second"),
        ),
    }
    return [
        {
            "": name,
            "estimated": float(f"{expected:.4g}"),
            "measured": float(f"{measured:.4g}"),
            "estimate is off by": f"{expected / measured - 1:+.0%}",
        }
        for name, (expected, measured) in pairs.items()
        if expected and measured
    ]


def _yaml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
