"""The `training:` of a dataset file: how a model is tuned, under the names of TRL and transformers.

Every default is stated here once, with its unit and reason. What the hardware decides (batch of a
forward pass, dtype, kernels) is `auto` or None here and resolved by `models/planning/hardware.py`.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune_assets.catalog.arguments import Arguments
from finetune_assets.catalog.combinations import require_fit
from finetune_assets.catalog.remakes import ADAPTERS, NOTHING, TRAINING_SETS
from finetune_assets.catalog.section import Count, Section, Switch, misfit

Positive = Annotated[float, Field(gt=0)]
Natural = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "warmup_stable_decay",
]
Optimizer = Literal[
    "auto",
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adafactor",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop",
    "adagrad",
    "sgd",
]


class Lora(Section):
    """The adapter; names are those of PEFT's LoraConfig without their prefix."""

    r: Count = 16
    """Rank of the update; 16 learns a task of a few thousand rows."""
    alpha: Count = 32
    """Scale; twice the rank, as in the QLoRA paper's follow-ups."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that are dropped; 0 lets kernels be fused."""
    targets: str | Annotated[list[Name], Field(min_length=1)] = "all-linear"
    """Layers, by name, e.g. `[q_proj, v_proj]`, or by a regular expression over whole paths; all
    linear layers is what makes LoRA match full tuning (QLoRA, 2023)."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that are trained too."""
    rslora: Switch = False
    """Scale by the square root of the rank, which keeps high ranks stable."""
    dora: Switch = False
    """Learn magnitude and direction apart; slower, better at low ranks."""
    init: Literal["default", "gaussian", "pissa", "loftq"] = "default"
    """`pissa` begins with the base's principal components (needs `quantization: none`), `loftq`
    with what quantisation lost (needs nf4)."""
    modules_to_save: list[Name] = []
    """Modules trained whole beside the adapter, e.g. `lm_head` for new tokens."""

    @model_validator(mode="after")
    def _targets_can_match(self) -> "Lora":
        if isinstance(self.targets, list):
            if "all-linear" in self.targets:
                raise misfit("`all-linear` is no layer's name: write it without a list", "targets")
        elif self.targets != "all-linear":
            if re.fullmatch(r"[\w.]*", self.targets):
                problem = "a text is a regular expression over the whole path of a layer: "
                remedy = f"write `[{self.targets or 'q_proj'}]` for layers of that name"
                raise misfit(problem + remedy, "targets")
            try:
                re.compile(self.targets)
            except re.error as error:
                raise misfit(f"no regular expression: {error}", "targets") from error
        return self


class Documents(Section):
    """Plain text: how documents become contexts. No effect on conversations."""

    boundary: Name | None = None
    """Text such as "\\n" after which a document is cut by preference: the last one in the second
    half of a full context. None cuts at exactly `max_length` tokens."""
    overlap: Annotated[int, Field(ge=0)] = 0
    """Tokens of the end of one piece that begin the next, as context without loss, so that every
    token is learned exactly once."""
    shuffle: Switch = True
    """Contexts in random order (by `seed`), as epochs shuffle them; false keeps the order of the
    documents, also in every epoch."""
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the pieces that is kept, chosen by hash."""


class Devices(Section):
    """More than one device: both settings become an `accelerate launch` configuration."""

    count: Count | Literal["auto"] = 1
    """Processes of this machine, one a device; `auto` takes every GPU."""
    strategy: Literal["ddp", "fsdp", "zero2", "zero3"] = "ddp"
    """`ddp` copies the model, `fsdp` and `zero3` divide it, `zero2` divides gradients and optimizer
    state only."""


class Training(Section):
    """How the model is tuned."""

    method: Annotated[Literal["lora", "full"], ADAPTERS] = "lora"
    """`full` trains every weight; it needs `quantization: none`."""
    num_train_epochs: Annotated[Positive, ADAPTERS] = 3
    max_steps: Annotated[Count | None, ADAPTERS] = None
    """Optimizer steps; overrides epochs."""
    max_length: Annotated[int, Field(ge=16), TRAINING_SETS] = 1024
    """Tokens of one context; longer rows follow `long_rows`."""
    long_rows: Annotated[Literal["truncate", "drop", "error"], TRAINING_SETS] = "truncate"
    """A truncated answer keeps no stop token, so it is never taught as complete."""
    packing: Annotated[Switch, TRAINING_SETS] = True
    """Several rows in one context, isolated from each other. Without it a context is a row; no
    padding is computed either way."""
    loss_mask: Annotated[Literal["assistant", "completion", "all"], TRAINING_SETS] = "assistant"
    """Tokens that carry loss: every assistant turn, the last one only, or the whole text."""
    documents: Annotated[Documents, TRAINING_SETS] = Documents()
    per_device_train_batch_size: Annotated[Count | None, ADAPTERS] = None
    """Contexts of a forward pass; default: what the hardware holds."""
    train_batch_size: Annotated[Count, ADAPTERS] = 16
    """Contexts of an optimizer step; accumulation follows from the hardware's batch."""
    gradient_accumulation_steps: Annotated[Count | None, ADAPTERS] = None
    """Forward passes of an optimizer step; with `per_device_train_batch_size` it replaces
    `train_batch_size`."""
    learning_rate: Annotated[Positive, ADAPTERS] = 2e-4
    lr_scheduler_type: Annotated[Scheduler, ADAPTERS] = "cosine"
    warmup_steps: Annotated[Natural, ADAPTERS] = 0.03
    """Steps if >= 1, else a fraction of all steps."""
    weight_decay: Annotated[Natural, ADAPTERS] = 0.0
    max_grad_norm: Annotated[Natural, ADAPTERS] = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    optim: Annotated[Optimizer, ADAPTERS] = "auto"
    """`auto`: paged 8-bit AdamW on CUDA, fused AdamW on CPU."""
    precision: Annotated[Literal["auto", "bf16", "fp16", "fp32"], ADAPTERS] = "auto"
    """Number format of computation; adapter weights and optimizer state are float32."""
    quantization: Annotated[Literal["nf4", "fp4", "int8", "none"], ADAPTERS] = "nf4"
    double_quantization: Annotated[Switch, ADAPTERS] = True
    """Quantise the 4-bit scales too: 0.4 bits less a parameter."""
    gradient_checkpointing: Annotated[Switch | Literal["auto"], NOTHING] = "auto"
    """Recompute activations in the backward pass: a third slower, far less memory. `auto`: only
    where the estimate says that they would not fit."""
    torch_compile: Annotated[Switch | Literal["auto"], NOTHING] = "auto"
    """`auto`: where the run is long enough to win back the time that compiling takes."""
    lora: Annotated[Lora, ADAPTERS] = Lora()
    neftune_noise_alpha: Annotated[Positive | None, ADAPTERS] = None
    """Noise on embeddings (NEFTune); 5 is its paper's value."""
    evals_per_epoch: Annotated[Positive, ADAPTERS] = 2
    """Validation losses per epoch."""
    eval_steps: Annotated[Count | None, ADAPTERS] = None
    """Optimizer steps between validation losses; overrides `evals_per_epoch`."""
    save_steps: Annotated[Count | None, NOTHING] = None
    """Optimizer steps between checkpoints; default: at each validation loss. A lost machine loses
    at most this much."""
    save_total_limit: Annotated[Count, NOTHING] = 2
    """Checkpoints kept, the best one beside them."""
    logging_steps: Annotated[Count, NOTHING] = 1
    """Optimizer steps between reports of loss, speed and memory."""
    load_best_model_at_end: Annotated[Switch, ADAPTERS] = True
    """Keep the checkpoint of the lowest validation loss instead of the last."""
    early_stopping_patience: Annotated[Count | None, ADAPTERS] = None
    """Validation losses without improvement after which training ends; None never does."""
    early_stopping_threshold: Annotated[Natural, ADAPTERS] = 0.0
    """Nats per token by which a validation loss must fall to count as an improvement."""
    sample_prompts: Annotated[list[Name], NOTHING] = []
    """Questions answered at each validation loss, shown as a table over time."""
    sample_max_new_tokens: Annotated[Count, NOTHING] = 64
    """Tokens of an answer to one of `sample_prompts`."""
    devices: Annotated[Devices, ADAPTERS] = Devices()
    price_per_hour: Annotated[Natural, NOTHING] = 0.0
    """Price of the machine in any currency; `finetune plan` multiplies it by the hours."""
    seed: Annotated[int, Field(ge=0, lt=2**32), ADAPTERS] = 0
    """Seed of weights that begin at random, of dropout and of the order; numpy takes 32 bits."""
    arguments: Annotated[Arguments, ADAPTERS] = {}
    """Keys of TRL's SFTConfig and transformers' TrainingArguments that have none of their own here,
    passed through."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "Training":
        require_fit(self)
        return self
