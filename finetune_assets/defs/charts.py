"""Pictures for the Dagster UI, drawn by matplotlib and carried inside the metadata."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from finetune_assets.models.records import AdapterRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_curves(record: AdapterRecord) -> dg.MarkdownMetadataValue:
    """Draw training and validation loss over steps, and the learning rate below them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    curves = {"training": record.train_loss, "validation": record.validation_loss}
    for label, points in curves.items():
        marker = "." if len(points) <= MARKED else None
        losses.plot([p[0] for p in points], [p[1] for p in points], label=label, marker=marker)
    if record.best_step:
        losses.axvline(record.best_step, linestyle=":", color="grey", linewidth=1)
    losses.set_ylabel("loss (nats per token)")
    losses.legend(frameon=False)
    points = record.learning_rate
    rates.plot([p[0] for p in points], [p[1] for p in points], color="grey")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step (dotted: the best validation loss)")
    for axes in (losses, rates):
        axes.spines[["top", "right"]].set_visible(False)
    return _picture(figure, "curves")


MARKED = 60
"""Points of a line, up to which each is marked."""


def bars(edges: Sequence[float], counts: Sequence[int], x_label: str) -> dg.MarkdownMetadataValue:
    """Draw a histogram of rows; there is one edge more than counts, or none of both."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    if counts:
        axes.stairs(counts, edges, fill=True)
    axes.set_xlabel(x_label)
    axes.set_ylabel("rows")
    return _picture(figure, x_label)


def _picture(figure: "Figure", name: str) -> dg.MarkdownMetadataValue:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{data})")
