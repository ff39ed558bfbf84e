"""Where a running training says what it does; the worker gives it Dagster and MLflow."""

from typing import Any, Protocol


class Report(Protocol):
    def log(self, message: str) -> None:
        """A line for people."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Numbers at an optimizer step."""

    def observe(self, values: dict[str, Any]) -> None:
        """A structured event: where training is, as JSON values."""


class Quiet:
    """Says nothing; for scripts and tests."""

    def log(self, message: str) -> None: ...

    def metrics(self, values: dict[str, float], step: int) -> None: ...

    def observe(self, values: dict[str, Any]) -> None: ...
