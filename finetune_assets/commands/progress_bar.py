"""The bar of a training run on a terminal, fed by the observations of Dagster's event log."""

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from finetune_assets.models.planning.duration import duration_text


class TrainingBar:
    """Bar below the log, from a run's first observation until the step ends.

    Where the output is no terminal there is no bar; log lines say the same.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def observe(self, asset: str, observed: Mapping[str, object]) -> None:
        """Move the bar to what an observation of an asset says."""
        values = {key: value for key, value in observed.items() if isinstance(value, int | float)}
        if "step" not in values or "steps" not in values:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("         [cyan]{task.description}[/cyan]"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"),
                console=self._console,
                transient=True,
                disable=not self._console.is_terminal,
            )
            self._task = self._progress.add_task(asset, total=values["steps"], shown="")
            self._progress.start()
        self._progress.update(
            self._task, total=values["steps"], completed=values["step"], shown=shown(values)
        )

    def end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def shown(values: Mapping[str, float]) -> str:
    """Return what stands beside the bar."""
    parts = []
    if "train_loss" in values:
        parts.append(f"loss {values['train_loss']:.3f}")
    if "validation_loss" in values:
        parts.append(f"validation {values['validation_loss']:.3f}")
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second']:.0f} tokens/s")
    memory = values.get("device_peak_gb") or values.get("process_peak_gb")
    if memory:
        parts.append(f"{memory:.1f} GB")
    if "seconds_left" in values:
        parts.append(f"{duration_text(values['seconds_left'])} left")
    return " · ".join(parts)
