"""The processes that share a run, and what one of them knows of the others."""

import os

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.planning.hardware import Hardware


def wanted(training: Training, hardware: Hardware) -> int:
    """Return the number of processes that the recipe asks for, one a device that must be there."""
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
    """Return the number of processes that share every step; 1 outside a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """Return which of the processes this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def divides(training: Training) -> bool:
    """Whether weights are spread over the processes, so that no layer may be read from outside."""
    return count() > 1 and training.devices.strategy in ("fsdp", "zero3")


def keeps_gradients(training: Training) -> bool:
    """Whether gradients lie whole at the weights that they belong to."""
    return count() == 1 or training.devices.strategy == "ddp"
