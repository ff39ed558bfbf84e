"""What is to be trained, and who hears how it goes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.planning.schedule import Schedule


class Listener(Protocol):
    """Hears of a training while it runs."""

    def log(self, message: str) -> None:
        """Take a line for people."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Take numbers of an optimizer step."""

    def observe(self, values: dict[str, float]) -> None:
        """Take a structured event: where training is, as JSON values."""


class Quiet:
    """A listener that does nothing; for further processes, scripts and tests."""

    def log(self, *_: object, **__: object) -> None:
        """Drop what is told."""

    metrics = observe = log


class CheckpointSink(Protocol):
    """Takes finished checkpoints to the store."""

    def put(self, name: str, removed: list[str]) -> None:
        """Take a checkpoint there, and remove those that were removed on this machine."""


@dataclass(frozen=True)
class Request:
    """What is to be trained; paths and values only, so that it can be sent to other processes."""

    base: Path
    """Folder with weights and tokenizer."""
    training_set: Path
    """Folder with the contexts of the splits `train` and `validation`."""
    out: Path
    """Folder that gets the adapter (PEFT format), or after full tuning the model."""
    fingerprint: str
    """Names the checkpoints, so that only the same run resumes them."""
    training: Training
    in_order: bool = False
    """Contexts are learned in their order, in every epoch."""
    checkpointing: bool | None = None
    """Recompute activations; None leaves it to the recipe and the hardware."""


@dataclass(frozen=True)
class Attempt:
    """One try at a request; where several processes share it, each gets the same."""

    request: Request
    hardware: Hardware
    """As each process is to use it."""
    schedule: Schedule
    root: Path
    """Folder of the checkpoints."""
