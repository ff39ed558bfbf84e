"""The evaluation report as one HTML page that needs nothing else: no scripts, no requests."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from finetune_assets.evaluation.metrics import BINARY_METRICS
from finetune_assets.evaluation.results import (
    LOWER_IS_BETTER,
    Report,
    Sample,
    Scores,
    Verdict,
    show,
    show_change,
    verdict,
)

BAR_SPACE = 0.82
"""Share of a chart's width for the longest bar; the rest is for its label."""
Group = Literal["worse", "unchanged", "better", "right"]
GROUPS: dict[Group, str] = {
    "worse": "Worse than the base",
    "unchanged": "Unchanged, not right",
    "better": "Better than the base",
    "right": "Right before and after",
}
"""Samples in the order in which they deserve attention."""


class Change(NamedTuple):
    """How the tuned model differs from another one, by one metric."""

    text: str
    verdict: Verdict


class Line(NamedTuple):
    """The values of a metric by model, as shown, and tuned against each of the other models."""

    metric: str
    lower_is_better: bool
    values: dict[str, str]
    changes: dict[str, Change]


class Mark(NamedTuple):
    """One row score of one answer."""

    metric: str
    text: str
    kind: Literal["right", "wrong", "graded"]


def render(report: Report) -> str:
    """Render the page; text of models, data and configuration is escaped, and nothing loaded."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    lines = _lines(report.scores)
    grouping = _grouping_metric(report)
    return environment.get_template("report.html.j2").render(
        report=report,
        primary=next(line for line in lines if line.metric == report.primary_metric),
        lines=lines,
        charts=[(line, _bars(line, report)) for line in lines],
        slices={
            name: {value: (part.rows, _lines(part.scores)) for value, part in values.items()}
            for name, values in report.slices.items()
        },
        grouping=grouping,
        groups=_groups(report.samples, grouping),
        marks=_marks,
    )


def _lines(scores: Mapping[str, Scores]) -> list[Line]:
    return [_line(metric, scores) for metric in scores["base"]]


def _line(metric: str, scores: Mapping[str, Scores]) -> Line:
    values = {model: of_model[metric] for model, of_model in scores.items()}
    shown = {model: show(metric, value) for model, value in values.items()}
    tuned = values.pop("tuned")
    changes = {
        model: Change(show_change(metric, value, tuned), verdict(metric, value, tuned))
        for model, value in values.items()
    }
    return Line(metric, metric in LOWER_IS_BETTER, shown, changes)


def _bars(line: Line, report: Report) -> dict[str, float]:
    """Lengths by model in percent of the width: of 1, of all rows, or of the largest value."""
    values = {model: report.scores[model][line.metric] for model in report.models}
    if line.metric == "runaway":
        full = float(report.rows)
    elif line.lower_is_better:
        full = max((v for v in values.values() if math.isfinite(v)), default=1.0)
    else:
        full = 1.0
    shares = {
        model: min(value / full, 1.0) if math.isfinite(value) and full else float(value > 0)
        for model, value in values.items()
    }
    return {model: round(share * BAR_SPACE * 100, 2) for model, share in shares.items()}


def _grouping_metric(report: Report) -> str | None:
    """The row metric that sorts samples: the primary one, else the first; None without any."""
    measured = [metric for sample in report.samples for metric in sample.scores.get("tuned", {})]
    if report.primary_metric in measured:
        return report.primary_metric
    return measured[0] if measured else None


def _groups(samples: list[Sample], metric: str | None) -> dict[str, list[Sample]]:
    """Titled groups of samples; empty groups are left out."""
    if metric is None:
        return {"All": samples} if samples else {}
    groups = {
        title: [sample for sample in samples if _group(sample, metric) == group]
        for group, title in GROUPS.items()
    }
    return {title: members for title, members in groups.items() if members}


def _group(sample: Sample, metric: str) -> Group:
    base, tuned = sample.scores["base"][metric], sample.scores["tuned"][metric]
    change = verdict(metric, base, tuned)
    if change != "same":
        return change
    return "right" if tuned >= 1 else "unchanged"


def _marks(sample: Sample, model: str) -> list[Mark]:
    return [_mark(metric, score) for metric, score in sample.scores.get(model, {}).items()]


def _mark(metric: str, score: float) -> Mark:
    if metric not in BINARY_METRICS:
        return Mark(metric, show(metric, score), "graded")
    return Mark(metric, "✓", "right") if score >= 1 else Mark(metric, "✗", "wrong")
