"""Tables of a plan, and of a plan beside what its run measured."""

from typing import Any

from finetune_assets.models.planning.preflight import Plan
from finetune_assets.models.records import AdapterRecord, PlanRecord

GB = 1e9
TableRow = dict[str, Any]
"""Values by the titles of columns."""


def memory_rows(plan: Plan) -> list[TableRow]:
    """Return the memory by part, as a table."""
    total = plan.needed.total
    rows = [
        {"memory": part, "GB": round(size / GB, 3), "share": f"{size / total:.0%}"}
        for part, size in plan.needed.parts().items()
    ]
    if plan.on_host:
        size = round(plan.on_host / GB, 3)
        rows.append({"memory": "optimizer, paged", "GB": size, "share": "may be on the host"})
    return [*rows, {"memory": "all", "GB": round(total / GB, 3), "share": "100%"}]


def suggestion_rows(plan: Plan) -> list[TableRow]:
    """Return the changes of the recipe, each on top of the last, as a table."""
    rows: list[TableRow] = []
    before: TableRow = {}
    for each in plan.suggestions:
        new = {key: value for key, value in each.changes.items() if before.get(key) != value}
        change = ", ".join(f"{key}: {_yaml(value)}" for key, value in new.items())
        rows.append({"training": change, "GB": round(each.needed / GB, 2), "fits": each.fits})
        before = each.changes
    return rows


def estimate_table(plan: PlanRecord, actual: AdapterRecord) -> list[TableRow]:
    """Return what a run was expected to need beside what it needed, as a table.

    Memory is that of the GPU where there is one, or that of the process; what was not estimated or
    not measured is left out.
    """
    seconds = plan.seconds
    # A run that ended early, or was resumed, is compared by what it did.
    share = actual.steps / plan.steps
    pairs = {
        "memory (GB)": (plan.needed_bytes / GB, actual.device_peak_gb or actual.peak_rss_gb),
        "steps": (plan.steps, actual.steps),
        "minutes": (seconds and seconds * share / 60, actual.seconds_training / 60),
        "tokens a second": (seconds and plan.tokens / seconds, actual.tokens_per_second),
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


def _yaml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
