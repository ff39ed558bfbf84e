"""The findings of an evaluation: the record behind the report page, and its table."""

import math
from typing import Literal, Self

from pydantic import JsonValue, model_validator

from finetune_assets.storage.artifacts import Record, RecordPart

LOWER_IS_BETTER: frozenset[str] = frozenset({"loss", "perplexity", "runaway"})
"""Metrics of which less is better; of every other metric more is."""

ModelName = str
"""`base`, `tuned`, or `champion`."""

Scores = dict[str, float]
"""Metric name to value: `loss` in nats per token, `runaway` in rows, the rest as they are named."""

Verdict = Literal["better", "worse", "same"]


class Slice(RecordPart):
    """The test rows that share one value of an attribute."""

    rows: int
    scores: dict[ModelName, Scores]


class Sample(RecordPart):
    """One test row: what was asked, what was expected, what each model answered."""

    id: str
    prompt: str
    reference: str
    outputs: dict[ModelName, str]
    scores: dict[ModelName, Scores] = {}
    """Row scores in [0, 1], by metric."""
    notes: dict[ModelName, str] = {}
    """Why a score is low, such as the error of an SQL query; empty for nothing to say."""
    stopped: dict[ModelName, bool] = {}
    """False for a runaway: the model was cut off at the limit of new tokens."""


class EvaluationRecord(Record):
    """The numbers of a report, for whom its text is not needed."""

    rows: int
    """Test rows that answers were generated for."""
    rows_with_loss: int
    """Test rows behind loss and perplexity."""
    scores: dict[ModelName, Scores]
    slices: dict[str, dict[str, Slice]]
    """Attribute name to attribute value to slice."""
    hardware: dict[str, JsonValue]


class Report(RecordPart):
    """Base against tuned, and against the champion if there is one, on the same test rows."""

    dataset: str
    created: str
    """Time of the evaluation, as shown."""
    base: str
    """Name and revision of the base model."""
    adapter: str
    """Fingerprint of the adapter that was evaluated."""
    models: list[ModelName]
    """In the order of columns; `base` and `tuned` come first."""
    rows: int
    """Test rows that answers were generated for."""
    loss_rows: int | None = None
    """Test rows behind loss and perplexity, if they are others than `rows`."""
    scores: dict[ModelName, Scores]
    slices: dict[str, dict[str, Slice]] = {}
    """Attribute name to attribute value to slice."""
    samples: list[Sample] = []
    primary_metric: str
    """The metric that decides; `LOWER_IS_BETTER` gives its direction."""

    @model_validator(mode="after")
    def _models_are_scored_alike(self) -> Self:
        if self.models[:2] != ["base", "tuned"]:
            raise ValueError(f"models are {self.models}; list `base` and `tuned` first")
        for model in self.models:
            if set(self.scores.get(model, {})) != set(self.scores.get("base", {})):
                raise ValueError(f"{model} and base are not scored by the same metrics")
        if self.primary_metric not in self.scores["base"]:
            raise ValueError(f"the primary metric {self.primary_metric} has no score")
        return self


def verdict(metric: str, before: float, after: float) -> Verdict:
    """Judge whether `after` improves on `before`; values that are shown alike are the same."""
    if show(metric, before) == show(metric, after):
        return "same"
    return "better" if _merit(metric, after) > _merit(metric, before) else "worse"


def show(metric: str, value: float) -> str:
    """Show a value with as many digits as its metric deserves."""
    if not math.isfinite(value):
        return "∞" if value == math.inf else "not a number"
    match metric:
        case "runaway":
            return f"{value:.0f}"
        case "perplexity":
            return f"{value:.2f}" if value < 1e5 else f"{value:.1e}"
        case "loss":
            return f"{value:.4f}"
    return f"{value:.3f}"


def show_change(metric: str, before: float, after: float) -> str:
    """Show the signed difference with an arrow of its direction; a dash if there is none."""
    if verdict(metric, before, after) == "same":
        return "="
    if not (math.isfinite(before) and math.isfinite(after)):
        return "–"
    sign, arrow = ("+", "▲") if after > before else ("−", "▼")
    return f"{arrow} {sign}{show(metric, abs(after - before))}"


def compare_table(report: Report) -> str:
    """Return a Markdown table of scores: base, tuned and their difference, then the champion."""
    opponents = [model for model in report.models if model != "tuned"]
    header = ["metric", *report.models, *(f"tuned vs {model}" for model in opponents)]
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    for metric in report.scores["base"]:
        values = {model: report.scores[model][metric] for model in report.models}
        name = f"**{metric}**" if metric == report.primary_metric else metric
        shown = [show(metric, value) for value in values.values()]
        changes = [_change(metric, values[model], values["tuned"]) for model in opponents]
        lines.append(_line([name, *shown, *changes]))
    return "\n".join(lines)


def _merit(metric: str, value: float) -> float:
    """The value turned so that more is better; what is not a number is worst."""
    if math.isnan(value):
        return -math.inf
    return -value if metric in LOWER_IS_BETTER else value


def _change(metric: str, before: float, after: float) -> str:
    word = verdict(metric, before, after)
    return "same" if word == "same" else f"{show_change(metric, before, after)} {word}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
