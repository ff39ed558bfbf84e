"""Whether a challenger becomes the champion."""

from typing import Literal, NamedTuple

from finetune_assets.evaluation.results import LOWER_IS_BETTER
from finetune_assets.storage.artifacts import Record


class Decision(NamedTuple):
    """What becomes of a challenger, and why."""

    outcome: Literal["promoted", "retained"]
    reason: str


def decide(
    metric: str, challenger: float, champion: float | None, min_improvement: float
) -> Decision:
    """Compare two scores over the same rows; the first model of a dataset becomes champion.

    `retained` keeps the champion, and is as normal an outcome as `promoted`.
    """
    if champion is None:
        return Decision("promoted", f"first champion, {metric} {challenger:.4f}")
    gain = champion - challenger if metric in LOWER_IS_BETTER else challenger - champion
    shown = f"{metric} {challenger:.4f} against the champion's {champion:.4f}"
    if gain > min_improvement:
        return Decision("promoted", f"better: {shown}")
    needed = f" (needed: better by more than {min_improvement})" if min_improvement else ""
    return Decision("retained", f"not better: {shown}{needed}")


class RegisteredRecord(Record):
    """A registered version, and what was decided about it."""

    version: str | int
    """MLflow's number of it; its client gives text or a number, by the store."""
    decision: Literal["promoted", "retained"]
    reason: str
