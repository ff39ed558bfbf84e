"""How a recipe, a schedule and the hardware become transformers' TrainingArguments."""

import math
from pathlib import Path
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.models.planning.choices import precision
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.planning.schedule import Schedule

OURS = ("activation_offloading",)
"""Pass-through keys that TRL's SFTConfig adds, and the trainer here does itself."""


def arguments(
    training: Training, hardware: Hardware, schedule: Schedule, root: Path, *, fused: bool
) -> dict[str, Any]:
    """Return the keywords of TrainingArguments.

    Args:
        root: folder of the checkpoints.
        fused: every trained layer computes in the hardware's dtype by itself, without autocast.
    """
    dtype = precision(training, hardware)
    passed = {k: v for k, v in training.arguments.items() if k not in OURS}
    return {
        "output_dir": str(root),
        "num_train_epochs": training.num_train_epochs,
        "max_steps": schedule.total_steps,
        "per_device_train_batch_size": schedule.micro_batch,
        "per_device_eval_batch_size": schedule.micro_batch,
        "gradient_accumulation_steps": schedule.accumulation,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": _warmup(training.warmup_steps, schedule.total_steps),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": hardware.optimizer if training.optim == "auto" else training.optim,
        "neftune_noise_alpha": training.neftune_noise_alpha,
        "use_cpu": hardware.device == "cpu",
        # fp16 needs its loss scaled whoever computes in it.
        "bf16": dtype == "bfloat16" and not fused,
        "fp16": dtype == "float16",
        "use_liger_kernel": hardware.use_liger_kernel,
        # The loss is fused already.
        "liger_kernel_config": {"fused_linear_cross_entropy": False, "cross_entropy": False}
        if hardware.use_liger_kernel
        else None,
        "remove_unused_columns": False,
        "eval_strategy": "steps",
        "eval_steps": schedule.eval_steps,
        "save_strategy": "steps",
        "save_steps": schedule.save_steps,
        # What is kept, and which checkpoint is the best, is decided in `trainer.py`.
        "save_total_limit": None,
        "load_best_model_at_end": False,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "logging_steps": training.logging_steps,
        "logging_nan_inf_filter": False,
        "restore_callback_states_from_checkpoint": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": hardware.device == "cuda",
        # What no gradient reaches is an error, see `guards.py`; to look for it costs every step.
        "ddp_find_unused_parameters": False,
        "seed": training.seed,
        **passed,
    }


def _warmup(wanted: float, steps: int) -> int:
    """Return whole steps; less than one is none, as the first step has a rate of 0."""
    if wanted >= 1:
        return round(wanted)
    return math.ceil(wanted * steps) if wanted * steps >= 1 else 0
