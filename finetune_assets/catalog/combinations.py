"""Which keys of `training:` go together: what would fail late, or silently do nothing, is an error.

Only values count, never whether they were written: a recipe that was resolved once, with all its
defaults, must be valid again.
"""

from typing import TYPE_CHECKING

from finetune_assets.catalog.section import misfit

if TYPE_CHECKING:
    from finetune_assets.catalog.training import Training

WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")
"""Schedules that do not read `warmup_steps`."""

SCHEDULER_OPTIONS: dict[str, tuple[str, ...]] = {
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr_rate", "min_lr", "num_cycles"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
    "reduce_lr_on_plateau": (
        "mode",
        "factor",
        "patience",
        "threshold",
        "threshold_mode",
        "cooldown",
        "min_lr",
        "eps",
    ),
}
"""What `lr_scheduler_kwargs` may hold; the other schedules have no options."""

REQUIRED_OPTIONS = {
    "cosine_with_min_lr": ("min_lr_rate", "min_lr"),
    "warmup_stable_decay": ("num_decay_steps",),
}
"""Schedules that need exactly one of these."""

OPTIMIZER_OPTIONS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
}
"""What `optim_args` may hold; the other optimizers do not read it."""


def require_fit(training: "Training") -> None:
    """Raise for the first combination that makes no sense."""
    _method(training)
    _batches(training)
    _steps(training)
    _stopping(training)
    _schedule(training)
    _optimizer(training)
    _arguments(training)
    strategy = training.devices.strategy
    if training.devices.count == 1 and strategy != "ddp":
        problem = f"`devices.strategy: {strategy}` divides a model over several devices: "
        remedy = "write how many, `devices.count`, or `auto` for every GPU"
        raise misfit(problem + remedy, "devices.count", "devices.strategy")


def _method(training: "Training") -> None:
    init, quantization = training.lora.init, training.quantization
    if training.method == "full":
        if quantization != "none":
            problem = "`method: full` trains the weights themselves, which quantised ones cannot be"
            raise misfit(f"{problem}: write `quantization: none`", "quantization", "method")
    elif init == "pissa" and quantization != "none":
        problem = "`lora.init: pissa` changes the base: write `quantization: none`"
        raise misfit(problem, "quantization", "lora.init")
    elif init == "loftq" and quantization != "nf4":
        problem = "`lora.init: loftq` repairs 4-bit weights: write `quantization: nf4`"
        raise misfit(problem, "quantization", "lora.init")
    if training.lora.dora and quantization == "int8":
        problem = "`lora.dora` needs the norms of weights, which 8-bit layers do not give: "
        remedy = "write `quantization: nf4` or `none`"
        raise misfit(problem + remedy, "lora.dora", "quantization")


def _batches(training: "Training") -> None:
    micro, whole = training.per_device_train_batch_size, training.train_batch_size
    if training.gradient_accumulation_steps and not micro:
        problem = "`gradient_accumulation_steps` needs `per_device_train_batch_size` beside it; "
        remedy = "`train_batch_size` alone sets the effective batch"
        raise misfit(problem + remedy, "gradient_accumulation_steps")
    if micro and not training.gradient_accumulation_steps and whole % micro:
        problem = f"`train_batch_size` {whole} is no multiple of `per_device_train_batch_size` "
        why = f"{micro}, so that no number of forward passes makes a step of it"
        raise misfit(problem + why, "per_device_train_batch_size", "train_batch_size")
    if training.documents.overlap >= training.max_length // 2:
        problem = "`documents.overlap` must be below half of `max_length`"
        raise misfit(problem, "documents.overlap", "max_length")


def _steps(training: "Training") -> None:
    warmup, steps, between = training.warmup_steps, training.max_steps, training.eval_steps
    if warmup > 1 and warmup % 1:
        problem = f"`warmup_steps` is {warmup}: write whole steps, or a fraction below 1"
        raise misfit(problem, "warmup_steps")
    if steps and warmup >= 1 and warmup >= steps:
        problem = f"`warmup_steps` {warmup:g} is not below `max_steps` {steps}, "
        why = "so that the learning rate is never reached"
        raise misfit(problem + why, "warmup_steps", "max_steps")
    if steps and between and between > steps:
        problem = f"`eval_steps` {between} is above `max_steps` {steps}"
        raise misfit(problem, "eval_steps", "max_steps")


def _stopping(training: "Training") -> None:
    patience = training.early_stopping_patience
    if patience and not training.load_best_model_at_end:
        problem = "`early_stopping_patience` ends a run that many losses after the best one: "
        remedy = "write `load_best_model_at_end: true`, or the best is lost"
        raise misfit(problem + remedy, "load_best_model_at_end", "early_stopping_patience")
    if training.early_stopping_threshold and not patience:
        problem = "`early_stopping_threshold` has no effect without `early_stopping_patience`"
        raise misfit(problem, "early_stopping_threshold")


def _schedule(training: "Training") -> None:
    name, key = training.lr_scheduler_type, "arguments.lr_scheduler_kwargs"
    given = training.arguments.get("lr_scheduler_kwargs", {})
    options = SCHEDULER_OPTIONS.get(name, ())
    if unknown := sorted(set(given) - set(options)):
        problem = f"the schedule `{name}` has no option {', '.join(unknown)}; "
        offer = f"it has {', '.join(options) or 'none'}"
        raise misfit(problem + offer, key, "lr_scheduler_type")
    required = REQUIRED_OPTIONS.get(name, ())
    if required and len(set(required) & set(given)) != 1:
        problem = f"the schedule `{name}` needs {' or '.join(required)}: "
        remedy = f"write `arguments: {{lr_scheduler_kwargs: {{{required[0]}: ...}}}}`"
        raise misfit(problem + remedy, key, "lr_scheduler_type")


def _optimizer(training: "Training") -> None:
    name, arguments = training.optim, training.arguments
    given = [part.split("=")[0].strip() for part in arguments.get("optim_args", "").split(",")]
    options = OPTIMIZER_OPTIONS.get(name, ())
    if unknown := sorted({option for option in given if option} - set(options)):
        problem = f"the optimizer `{name}` has no option {', '.join(unknown)} in `optim_args`; "
        offer = f"it has {', '.join(options) or 'none'}"
        raise misfit(problem + offer, "arguments.optim_args", "optim")
    has_betas = name == "auto" or "adamw" in name or "lion" in name
    for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if key in arguments and (not has_betas or ("lion" in name and key == "adam_epsilon")):
            problem = f"the optimizer `{name}` does not read `{key}`"
            raise misfit(problem, f"arguments.{key}", "optim")


def _arguments(training: "Training") -> None:
    arguments = training.arguments
    for key in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
        if arguments.get(key) and not arguments.get("dataloader_num_workers"):
            raise misfit(f"`{key}` needs `dataloader_num_workers` beside it", f"arguments.{key}")
    if "activation_checkpointing_kwargs" in arguments and training.gradient_checkpointing is False:
        key = "activation_checkpointing_kwargs"
        problem = f"`{key}` has no effect where `gradient_checkpointing` is off"
        raise misfit(problem, f"arguments.{key}", "gradient_checkpointing")
