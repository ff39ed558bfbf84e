"""Changes of a recipe that make a run fit, the least harmful first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.need import Counts, Target, need
from finetune_assets.models.planning.schedule import Schedule
from finetune_assets.models.planning.shape import Shape

SAVING = 0.01
"""Share of the memory that a change must save to be worth suggesting."""

SHORTEST = 256
"""Tokens to which a suggestion shortens contexts at most."""


@dataclass(frozen=True)
class Suggestion:
    """Changes of a recipe, all of them together, and the bytes that are needed then."""

    changes: dict[str, Any]
    needed: int
    fits: bool


def suggestions(
    shape: Shape, training: Training, target: Target, counts: Counts
) -> Iterator[Suggestion]:
    """Yield changes by growing harm, each kept if it saves, until the run fits."""
    changes: dict[str, Any] = {}
    before = need(shape, training, target, counts).memory.total
    for change in _changes(shape, training, target, counts):
        wanted = changes | change
        tried = Training.model_validate({**training.model_dump(), **wanted})
        devices = wanted["devices"]["count"] if "devices" in wanted else target.devices
        needed = need(shape, tried, replace(target, devices=devices), counts).memory.total
        if needed > before * (1 - SAVING):
            continue
        changes, before = wanted, needed
        yield Suggestion(changes, needed, needed <= target.memory)
        if needed <= target.memory:
            return


def _changes(
    shape: Shape, training: Training, target: Target, counts: Counts
) -> Iterator[dict[str, Any]]:
    if training.gradient_checkpointing is False:
        yield {"gradient_checkpointing": True}
    if target.devices > 1 and training.devices.strategy not in ("fsdp", "zero3"):
        yield {"devices": {"count": target.devices, "strategy": "fsdp"}}
    yield from _smaller_batches(need(shape, training, target, counts).schedule, training)
    if target.hardware.device == "cuda" and "optim_args" not in training.arguments:
        yield {"optim": "paged_adamw_8bit"}
    if training.method == "full":
        yield {"method": "lora", "quantization": "nf4"}
    elif training.lora.init != "pissa":  # which needs weights that it can change
        yield {"quantization": "nf4"}
    length = training.max_length
    while (length := length // 2) >= max(SHORTEST, 2 * training.documents.overlap + 2):
        yield {"max_length": length}
    if target.hardware.device == "cuda":
        for count in (2, 4, 8):
            if count > target.devices:
                yield {"devices": {"count": count, "strategy": "fsdp"}}


def _smaller_batches(schedule: Schedule, training: Training) -> Iterator[dict[str, Any]]:
    """Fewer contexts a pass, with as many a step."""
    given = bool(training.gradient_accumulation_steps)
    of_a_step = schedule.micro_batch * schedule.accumulation if given else training.train_batch_size
    for smaller in range(schedule.micro_batch - 1, 0, -1):
        if of_a_step % smaller == 0:
            passes = {"gradient_accumulation_steps": of_a_step // smaller} if given else {}
            yield {"per_device_train_batch_size": smaller, **passes}
