"""Pictures for the Dagster UI, drawn by matplotlib and carried inside the metadata."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg


def curves(
    lines: Mapping[str, Sequence[Sequence[float]]], x_label: str, y_label: str
) -> dg.MarkdownMetadataValue:
    """Lines of (x, y) points, one colour each."""
    figure, axes = _figure()
    for name, points in lines.items():
        if points:
            axes.plot([p[0] for p in points], [p[1] for p in points], label=name, marker=".")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False)
    return _picture(figure, y_label)


def bars(binned: Mapping[str, Sequence[float]], x_label: str) -> dg.MarkdownMetadataValue:
    """A histogram from its `edges` and `counts`."""
    figure, axes = _figure()
    if binned["counts"]:
        axes.stairs(binned["counts"], binned["edges"], fill=True)
    axes.set_xlabel(x_label)
    axes.set_ylabel("rows")
    return _picture(figure, x_label)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _picture(figure: Any, name: str) -> dg.MarkdownMetadataValue:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{data})")
