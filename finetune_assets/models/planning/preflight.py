"""A plan before a run: what it needs, whether the device has it, how long it takes, what fits."""

from dataclasses import dataclass
from math import ceil

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.memory import Memory, optimizer_bytes, trained_matrices
from finetune_assets.models.planning.need import Counts, Need, Target, epochs, need
from finetune_assets.models.planning.remedies import Suggestion, suggestions
from finetune_assets.models.planning.schedule import Schedule
from finetune_assets.models.planning.shape import Shape
from finetune_assets.models.planning.speed import forward_operations, seconds, training_operations
from finetune_assets.models.records import PlanRecord


@dataclass(frozen=True)
class Plan:
    """The needs of a run, foretold."""

    target: Target
    needed: Memory
    """Memory of one device."""
    on_host: int
    """Bytes of optimizer state that may be in the host's memory."""
    checkpointing: bool
    schedule: Schedule
    counts: Counts
    tokens: int
    """Tokens of all epochs."""
    seconds: float | None
    """Time of training and its validation losses, without loading; None if no speed is known."""
    price_per_hour: float
    suggestions: tuple[Suggestion, ...]

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return self.needed.total <= self.target.memory

    @property
    def cost(self) -> float | None:
        """The price of the time."""
        return None if self.seconds is None else self.seconds / 3600 * self.price_per_hour

    def record(self) -> PlanRecord:
        """Return what is to be compared with what is measured later."""
        return PlanRecord(
            device=self.target.hardware.name,
            devices=self.target.devices,
            needed_bytes=self.needed.total,
            parts_bytes=self.needed.parts(),
            available_bytes=self.target.memory,
            gradient_checkpointing=self.checkpointing,
            tokens=self.tokens,
            steps=self.schedule.total_steps,
            seconds=self.seconds,
        )


def preflight(shape: Shape, training: Training, target: Target, counts: Counts) -> Plan:
    """Estimate what a run needs, and if that does not fit, what would."""
    needed = need(shape, training, target, counts)
    computation, matrices = needed.computation, trained_matrices(shape, training)
    fits = needed.memory.total <= target.memory
    return Plan(
        target=target,
        needed=needed.memory,
        on_host=optimizer_bytes(matrices, computation) if computation.on_host else 0,
        checkpointing=computation.checkpointing,
        schedule=needed.schedule,
        counts=counts,
        tokens=round(epochs(needed.schedule, target, counts) * counts.tokens),
        seconds=_seconds(shape, training, needed, target, counts),
        price_per_hour=training.price_per_hour,
        suggestions=() if fits else tuple(suggestions(shape, training, target, counts)),
    )


def _seconds(
    shape: Shape, training: Training, needed: Need, target: Target, counts: Counts
) -> float | None:
    """Of training passes and validation losses, on all devices together."""
    if target.speed is None:
        return None
    schedule, rate = needed.schedule, target.speed.operations
    rounds = epochs(schedule, target, counts)
    span, share = counts.tokens / counts.rows, counts.supervised / counts.tokens
    work = training_operations(
        shape,
        training,
        needed.computation,
        tokens=rounds * counts.tokens / target.devices,
        supervised=rounds * counts.supervised / target.devices,
        span=span,
    )
    seen = ceil(schedule.total_steps / schedule.eval_steps) * counts.validation_tokens
    losses = forward_operations(shape, tokens=seen, supervised=seen * share, span=span)
    passes = schedule.total_steps * schedule.accumulation
    trains = seconds(shape, training, needed.computation, target.speed, work=work, passes=passes)
    return trains + losses / target.devices / rate
