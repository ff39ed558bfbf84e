"""How many processes share a run, and what one of them knows of the others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.training.hardware import Hardware


def wanted(training: Training, hardware: Hardware) -> int:
    """Processes that the recipe asks for, one a device.

    Raises:
        UserError: the machine has fewer GPUs.
    """
    count = training.devices.count
    if count == "auto":
        return hardware.devices
    if hardware.device == "cuda" and count > hardware.devices:
        raise UserError(
            "training.devices.count",
            f"{count} GPUs are asked for, and this machine shows {hardware.devices}",
            "write `count: auto`, or give the step a machine with more (CUDA_VISIBLE_DEVICES hides "
            "those that it does not name)",
        )
    return count


def count() -> int:
    """Processes that share every step of this one; 1 outside a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def divides(training: Training) -> bool:
    """Weights are spread over the processes, so that no layer may be read from outside."""
    return count() > 1 and training.devices.strategy in ("fsdp", "zero3")


@contextmanager
def first_one_first(needed: bool) -> Iterator[None]:
    """Where needed, the other processes begin the block when the first one has ended it."""
    if needed and count() > 1:
        from accelerate import PartialState

        with PartialState().main_process_first():
            yield
    else:
        yield


def keeps_gradients(training: Training) -> bool:
    """Gradients lie whole at the weights that they are of."""
    return count() == 1 or training.devices.strategy == "ddp"


def gathered(model: Any, training: Training) -> dict[str, Any] | None:
    """Trained weights by name, whole, in float32; every process must ask, the first one is told.

    None where the model of each process has them.
    """
    if keeps_gradients(training):
        return None
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = {}
    for name, parameter in trained.items():
        if training.devices.strategy == "fsdp":
            whole = parameter.full_tensor()
        else:
            from deepspeed.utils import safe_get_full_fp32_param

            whole = safe_get_full_fp32_param(parameter)
        if index() == 0:
            weights[name] = whole.detach().cpu()
    return weights


@contextmanager
def same_logits(model: Any, training: Training) -> Iterator[None]:
    """Let all processes go on from the first one's logits, so that they generate alike.

    Where weights are divided, one that stopped earlier would keep the others waiting for ever.
    """
    if not divides(training):
        yield
        return
    import torch

    hook = model.register_forward_hook(
        lambda _, __, output: torch.distributed.broadcast(output.logits, 0)
    )
    try:
        yield
    finally:
        hook.remove()
