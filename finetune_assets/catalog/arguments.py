"""`training.arguments`: keys of TRL's SFTConfig that have no key of their own in a recipe.

`trainer_keys.py` says of every other key what to write instead, or why it cannot be set. A test
compares both with the SFTConfig that is installed.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from finetune_assets.catalog.section import Switch, misfit

LogLevel = Literal["debug", "info", "warning", "error", "critical", "passive"]


def _no_former_booleans(options: dict[str, Any]) -> dict[str, Any]:
    for key, value in options.items():
        if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
            raise misfit(f"`{key}` is the word '{value}': write true or false", key)
    return options


Options = Annotated[dict[str, Any], AfterValidator(_no_former_booleans)]


@with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Arguments(TypedDict, total=False):
    """Keys that are passed to the trainer as they are; the defaults are those of TRL."""

    adam_beta1: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the mean of gradients, of AdamW and Lion; default 0.9."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the mean of squared gradients; default 0.999, and 0.95 is usual for full tuning."""
    adam_epsilon: Annotated[float, Field(gt=0)]
    """Added to the denominator of AdamW; default 1e-8."""
    optim_args: Annotated[str, Field(pattern=r"^\w+=[\w.+-]+(, *\w+=[\w.+-]+)*$")]
    """Options of sgd, adagrad or rmsprop, as `momentum=0.9,nesterov=true`."""
    lr_scheduler_kwargs: Options
    """Options of `lr_scheduler_type`, e.g. `{min_lr_rate: 0.1}` of cosine_with_min_lr."""
    activation_checkpointing_kwargs: Options
    """Options of `gradient_checkpointing`, e.g. `{use_reentrant: false}`."""
    activation_offloading: Switch
    """Keep activations in the memory of the host between forward and backward pass."""
    torch_empty_cache_steps: Annotated[int, Field(ge=1)]
    """Optimizer steps after which unused GPU memory is given back; a tenth slower at 1."""
    full_determinism: Switch
    """Deterministic kernels only; slower, and an error where there is none."""
    data_seed: int
    """Order of contexts; default: `training.seed`."""
    eval_on_start: Switch
    """Validation loss before the first step too."""
    eval_delay: Annotated[float, Field(ge=0)]
    """Optimizer steps before the first validation loss."""
    logging_first_step: Switch
    """Report the first step too, where `training.logging_steps` is above 1."""
    log_level: LogLevel
    """Level of transformers' own log."""
    log_level_replica: LogLevel
    """Level of that log on processes other than the first."""
    debug: Literal["underflow_overflow"]
    """Stop at the first inf or nan in weights or activations, and print where."""
    dataloader_num_workers: Annotated[int, Field(ge=0)]
    """Processes that make batches; 0 makes them in the trainer, as contexts are in memory."""
    dataloader_prefetch_factor: Annotated[int, Field(ge=1)]
    """Batches that each process of `dataloader_num_workers` holds ready."""
    dataloader_persistent_workers: Switch
    """Keep the processes that make batches from one epoch to the next."""
    ddp_find_unused_parameters: Switch
    """Look for parameters without gradient at every step; for bases with unused layers."""
    ddp_bucket_cap_mb: Annotated[int, Field(ge=1)]
    """Megabytes of gradients that are exchanged together."""
    ddp_broadcast_buffers: Switch
    """Copy the buffers of the first device to the others at every step."""
    ddp_static_graph: Switch
    """Rely on the same parameters being used at every step."""
    ddp_backend: Literal["nccl", "gloo", "mpi", "xccl", "hccl"]
    """How devices speak with each other; default: nccl on CUDA, gloo on CPU."""
    ddp_timeout: Annotated[int, Field(ge=1)]
    """Seconds to wait for the others; default 1800."""
