"""What `accelerate launch` is told for several devices, and what a recipe must leave to it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.planning.choices import FROM_BASE
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.planning.schedule import Schedule

KINDS = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
"""accelerate's names; `MULTI_GPU` with `use_cpu` is also how it starts several CPU processes."""


def accelerate_config(
    training: Training, hardware: Hardware, processes: int, deepspeed: Path | None = None
) -> dict[str, Any]:
    """Return the content of the file that `accelerate launch --config_file` takes.

    For the strategies of DeepSpeed, the file `deepspeed` has the content of `deepspeed_config`.
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
        return config | {"mixed_precision": "no"}  # the trainer decides
    if training.devices.strategy == "fsdp":
        return config | {"mixed_precision": "no", "fsdp_config": _fsdp(training)}
    # accelerate refuses a precision beside a file that has one.
    return config | {
        "deepspeed_config": {
            "deepspeed_config_file": str(deepspeed),
            "zero3_init_flag": training.devices.strategy == "zero3",
        }
    }


def _fsdp(training: Training) -> dict[str, Any]:
    """Configure FSDP2, which divides by matrix: frozen, quantised and trained ones may mix."""
    whole = training.quantization == "none" and training.lora.init not in FROM_BASE
    return {
        "fsdp_version": 2,
        # By decoder layer: one is whole at a time, and is divided again after its forward pass.
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        # The first process sends the weights to the others, unless each has changed its own.
        "fsdp_cpu_ram_efficient_loading": whole,
        # Each process writes its part, and another number of processes can read them.
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_offload_params": False,
        "fsdp_activation_checkpointing": False,  # the trainer does it
    }


def deepspeed_config(
    training: Training, hardware: Hardware, schedule: Schedule, processes: int
) -> dict[str, Any]:
    """Return DeepSpeed's own configuration, whole, as weights are divided while they are loaded."""
    micro, passes = schedule.micro_batch, schedule.accumulation
    offloaded = training.optim.startswith("paged_")
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": passes,
        "train_batch_size": micro * passes * processes,
        "gradient_clipping": training.max_grad_norm,
        "bf16": {"enabled": hardware.dtype == "bfloat16"},
        "fp16": {"enabled": hardware.dtype == "float16"},
        "zero_optimization": {
            "stage": 3 if training.devices.strategy == "zero3" else 2,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            **({"offload_optimizer": {"device": "cpu", "pin_memory": True}} if offloaded else {}),
            **(_STAGE_3 if training.devices.strategy == "zero3" else {}),
        },
        # transformers makes the optimizer, also where its state lies in the host's memory.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


_STAGE_3 = {
    "stage3_gather_16bit_weights_on_model_save": True,
    "stage3_max_live_parameters": 10**9,
    "stage3_max_reuse_distance": 10**9,
}
"""Weights are put together to be saved; the numbers are DeepSpeed's defaults, in elements."""


def fit_optimizer(training: Training, hardware: Hardware) -> Training:
    """Return the recipe with the optimizer that its strategy can divide.

    `auto` is torch's AdamW: its state is divided, so that it needs neither 8 bits nor the host's
    memory. A paged AdamW keeps its state in the host's memory by DeepSpeed's own means. What the
    strategy cannot do, or needs and does not find, is a UserError.
    """
    strategy, optim = training.devices.strategy, training.optim
    if strategy == "ddp":
        return training
    if training.quantization == "int8" and strategy != "zero2":
        raise UserError(
            "training.quantization",
            f"`{strategy}` divides weights in floating point, or 4-bit ones stored in it, not int8",
            "write `quantization: nf4`, or `devices.strategy: ddp`",
        )
    if strategy == "fsdp" and ("8bit" in optim or "paged" in optim or "lion" in optim):
        raise UserError(
            "training.optim",
            f"`{optim}` is of bitsandbytes, which knows no divided weights",
            "write `optim: auto`: FSDP divides its state among the devices",
        )
    if strategy != "fsdp":
        _require_deepspeed(strategy, hardware)
        if optim.startswith("paged_lion"):
            cause = f"DeepSpeed moves AdamW's state to the host's memory, not that of `{optim}`"
            remedy = "write `optim: paged_adamw_32bit`, or `lion_32bit`"
            raise UserError("training.optim", cause, remedy)
    own = "adamw_torch_fused" if strategy == "fsdp" else "adamw_torch"
    replaced = optim == "auto" or optim.startswith("paged_")
    return training.model_copy(update={"optim": own}) if replaced else training


def _require_deepspeed(strategy: str, hardware: Hardware) -> None:
    where = "training.devices.strategy"
    if hardware.device == "cpu":
        cause = f"`{strategy}` needs GPUs: accelerate starts DeepSpeed on no CPU"
        raise UserError(where, cause, "write `strategy: fsdp`, or `ddp`")
    if find_spec("deepspeed") is None:
        cause = f"`{strategy}` needs DeepSpeed, which is not installed"
        raise UserError(where, cause, "run `pip install deepspeed`, or write `strategy: fsdp`")
