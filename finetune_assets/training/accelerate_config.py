"""What `accelerate launch` is told for several devices: its own configuration, nothing of ours."""

from pathlib import Path
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.training.hardware import Hardware
from finetune_assets.training.initial import FROM_BASE

KINDS = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
"""accelerate's names; `MULTI_GPU` with `use_cpu` is also how it starts several CPU processes."""


def accelerate_config(
    training: Training, hardware: Hardware, processes: int, deepspeed: Path | None = None
) -> dict[str, Any]:
    """The content of the file that `accelerate launch --config_file` takes.

    Args:
        deepspeed: file with the content of `deepspeed_config`, for the strategies of DeepSpeed.
    """
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": KINDS[training.devices.strategy],
        "num_machines": 1,
        "machine_rank": 0,
        "num_processes": processes,
        "main_process_port": 0,  # whichever is free
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": hardware.device == "cpu",
        "debug": False,
    }
    if training.devices.strategy == "ddp":
        return config | {"mixed_precision": "no"}  # which the trainer decides
    if training.devices.strategy == "fsdp":
        return config | {"mixed_precision": "no", "fsdp_config": _fsdp(training)}
    return config | {
        "deepspeed_config": {
            "deepspeed_config_file": str(deepspeed),
            "zero3_init_flag": training.devices.strategy == "zero3",
        }
    }


def _fsdp(training: Training) -> dict[str, Any]:
    """FSDP2, which divides each matrix by itself: frozen, quantised and trained ones may mix."""
    whole = training.quantization == "none" and training.lora.init not in FROM_BASE
    return {
        "fsdp_version": 2,
        # By decoder layer: one is whole at a time, and is divided again after its forward pass.
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        # One process reads the base and sends it to the others, unless each needs all of it first.
        "fsdp_cpu_ram_efficient_loading": whole,
        # Each process writes its part, and another number of processes can read them.
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_offload_params": False,
        # The trainer does it.
        "fsdp_activation_checkpointing": False,
    }
