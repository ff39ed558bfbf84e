"""The dataset file: every key, its type, its default, its unit and the reason for the default."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune_assets.catalog.cleaning import Checks, Cleaning, Contamination, Splits
from finetune_assets.catalog.combinations import WITHOUT_WARMUP
from finetune_assets.catalog.section import Count, Section, Share, misfit
from finetune_assets.catalog.sources import Source
from finetune_assets.catalog.training import Training

MetricName = Literal["exact_match", "rouge_l", "chrf", "json_valid", "sql_execution"]
"""Names of the metrics that compare an output with its reference; higher is better in all."""


class Base(Section):
    """The model to tune."""

    model: str
    """A folder, relative to this file, `hub:ORG/NAME@REVISION`, or `package:PACKAGE/FILE.gguf`."""
    chat_template: str | None = None
    """Jinja file with a chat template, for a base that brings none; relative to this file."""


class SqlExecution(Section):
    """Compare the results of the generated and the reference query on SQLite."""

    name: Literal["sql_execution"]
    database: str
    """SQL script that builds the database; relative to this YAML file, or a URI."""


class Evaluation(Section):
    """How base and tuned model are compared on the test split."""

    metrics: list[MetricName | SqlExecution] = ["exact_match", "rouge_l"]
    """Generation metrics. `sql_execution` needs the form with a database."""
    max_new_tokens: Count = 256
    """Tokens; a generation that reaches it without stopping is counted as runaway."""
    max_rows: Count | None = 200
    """Test rows generated for, the first by hash; loss is over all rows."""
    slices: list[str] = []
    """Attributes by whose values the metrics are also reported."""
    samples: Annotated[int, Field(ge=0)] = 20
    """Rows shown side by side in the report."""

    @model_validator(mode="after")
    def _sql_needs_a_database(self) -> "Evaluation":
        if "sql_execution" in self.metrics:
            remedy = "write `- {name: sql_execution, database: FILE.sql}`"
            raise misfit(f"sql_execution needs a database: {remedy}", "metrics")
        return self

    def metric_names(self) -> list[str]:
        """Return the names of the generation metrics."""
        return [m if isinstance(m, str) else m.name for m in self.metrics]


class Promotion(Section):
    """When a tuned model takes the place of the champion."""

    metric: str = "loss"
    """Metric that decides between challenger and champion: `loss` or a generation metric."""
    min_improvement: Annotated[float, Field(ge=0)] = 0.0
    """The challenger must be better by more than this, in the metric's own unit."""


class Dataset(Section):
    """One dataset, one partition, one model."""

    extends: str | list[str] = []
    """Files that hold any part of a dataset file, relative to this one, or URIs; of several, later
    ones win, and this file wins over all. Mappings are merged, lists and values replace."""
    description: str = ""
    sources: Annotated[list[Source], Field(min_length=1)]
    base: Base
    max_rejected: Share = 0.1
    """Share of rows that may be unusable before the corpus is an error."""
    cleaning: Cleaning = Cleaning()
    splits: Splits = Splits()
    contamination: Contamination = Contamination()
    checks: Checks = Checks()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    promotion: Promotion = Promotion()
    schedule: Literal["daily", "weekly", "monthly"] | None = None
    """Run at 03:00 UTC every day, on Mondays, or on the first of the month."""

    @model_validator(mode="after")
    def _promotion_metric_is_measured(self) -> "Dataset":
        measured, metric = ["loss", *self.evaluation.metric_names()], self.promotion.metric
        if metric not in measured:
            problem = f"promotion.metric is '{metric}', which is not measured; "
            offer = f"measured are {', '.join(measured)}"
            raise misfit(problem + offer, "promotion.metric", "evaluation.metrics")
        return self

    @model_validator(mode="after")
    def _batches_agree(self) -> "Dataset":
        training = self.training
        micro, passes = training.per_device_train_batch_size, training.gradient_accumulation_steps
        declared, whole = "train_batch_size" in training.model_fields_set, training.train_batch_size
        if declared and micro and passes and whole % (micro * passes):
            raise misfit(
                f"`train_batch_size` {whole} is not what `per_device_train_batch_size` {micro} "
                f"times `gradient_accumulation_steps` {passes} make on any number of devices: "
                "leave it out (`null` takes back a shared one), or leave out the passes",
                "training.train_batch_size",
                "training.gradient_accumulation_steps",
            )
        return self

    @model_validator(mode="after")
    def _warmup_is_heeded(self) -> "Dataset":
        training = self.training
        declared = "warmup_steps" in training.model_fields_set and training.warmup_steps > 0
        if declared and training.lr_scheduler_type in WITHOUT_WARMUP:
            remedy = "write `warmup_steps: 0`, or `lr_scheduler_type: constant_with_warmup`"
            problem = f"`{training.lr_scheduler_type}` has no warmup: {remedy}"
            raise misfit(problem, "training.warmup_steps")
        return self
