"""Batches and steps of a run; no torch is needed to know them."""

import math
from dataclasses import dataclass

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.hardware import Hardware


@dataclass(frozen=True)
class Schedule:
    """Batches and steps, derived once from the data, the recipe and the hardware."""

    micro_batch: int
    """Contexts of a forward pass, on each device."""
    accumulation: int
    """Forward passes of an optimizer step."""
    total_steps: int
    eval_steps: int
    """Optimizer steps between validation losses."""
    save_steps: int
    """Optimizer steps between checkpoints."""


def make_schedule(
    contexts: int, training: Training, hardware: Hardware, *, devices: int = 1
) -> Schedule:
    """Derive the batches and steps of a run over training contexts, shared by `devices`."""
    micro, accumulation = _batches(contexts, training, hardware, devices)
    per_epoch = max(1, math.ceil(contexts / (micro * accumulation * devices)))
    total = training.max_steps or math.ceil(training.num_train_epochs * per_epoch)
    each = training.eval_steps or max(1, round(per_epoch / training.evals_per_epoch))
    return Schedule(
        micro_batch=micro,
        accumulation=accumulation,
        total_steps=total,
        eval_steps=min(total, each),
        save_steps=min(total, training.save_steps or each),
    )


def _batches(
    contexts: int, training: Training, hardware: Hardware, devices: int
) -> tuple[int, int]:
    """Contexts of a forward pass, and forward passes of an optimizer step."""
    micro = training.per_device_train_batch_size
    if micro and training.gradient_accumulation_steps:
        return micro, training.gradient_accumulation_steps
    each = max(1, round(min(training.train_batch_size, contexts) / devices))
    if micro is None:
        limit = hardware.micro_batch(training.max_length, each)
        micro = max(size for size in range(1, limit + 1) if each % size == 0)
    return micro, max(1, round(each / micro))
