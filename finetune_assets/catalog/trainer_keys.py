"""Keys of TRL, transformers, PEFT and AutoTrain: what to write for each in a recipe, or why not."""

import difflib
from typing import NamedTuple

from finetune_assets.catalog.arguments import Arguments

OWNED = {
    "per_device_train_batch_size": "training.per_device_train_batch_size",
    "per_device_eval_batch_size": "training.per_device_train_batch_size",
    "auto_find_batch_size": "training.per_device_train_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "num_train_epochs": "training.num_train_epochs",
    "max_steps": "training.max_steps",
    "learning_rate": "training.learning_rate",
    "lr_scheduler_type": "training.lr_scheduler_type",
    "warmup_steps": "training.warmup_steps",
    "weight_decay": "training.weight_decay",
    "max_grad_norm": "training.max_grad_norm",
    "optim": "training.optim",
    "bf16": "training.precision: bf16",
    "fp16": "training.precision: fp16",
    "bf16_full_eval": "training.precision: bf16",
    "fp16_full_eval": "training.precision: fp16",
    "activation_checkpointing": "training.gradient_checkpointing",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "gradient_checkpointing_kwargs": "training.arguments.activation_checkpointing_kwargs",
    "torch_compile": "training.torch_compile",
    "torch_compile_backend": "training.torch_compile",
    "torch_compile_mode": "training.torch_compile",
    "neftune_noise_alpha": "training.neftune_noise_alpha",
    "logging_strategy": "training.logging_steps",
    "logging_steps": "training.logging_steps",
    "eval_strategy": "training.evals_per_epoch",
    "eval_steps": "training.eval_steps",
    "save_strategy": "training.save_steps",
    "save_steps": "training.save_steps",
    "save_total_limit": "training.save_total_limit",
    "load_best_model_at_end": "training.load_best_model_at_end",
    "seed": "training.seed",
    "fsdp": "training.devices.strategy: fsdp",
    "fsdp_config": "training.devices.strategy: fsdp",
    "deepspeed": "training.devices.strategy: zero3",
    "parallelism_config": "training.devices",
    "max_length": "training.max_length",
    "truncation_mode": "training.long_rows",
    "packing": "training.packing",
    "packing_strategy": "training.packing",
    "eval_packing": "training.packing",
    "padding_free": "training.packing",
    "completion_only_loss": "training.loss_mask: completion",
    "assistant_only_loss": "training.loss_mask: assistant",
    "shuffle_dataset": "training.documents.shuffle",
    "train_sampling_strategy": "training.documents.shuffle",
    "dataset_text_field": "sources.columns.text",
    "chat_template_path": "base.chat_template",
}
"""Fields of SFTConfig that a key of the dataset file sets."""

_STORE = (
    "checkpoints lie under the adapter's fingerprint, so that only the same recipe resumes them"
)
_READY = "rows are tokenised before, by the asset `training_sets`"
_LOSS = "the loss is the mean negative log-likelihood of the tokens that carry it"
_NO_PREDICTIONS = "a validation loss keeps no predictions; `evaluation_reports` generates answers"
_SEEN = "MLflow and Dagster show every run"
_HUB = "nothing leaves for the hub; models are registered in MLflow"
_HARDWARE = "`models/planning/hardware.py` decides it from what the machine has"
_SCRIPT = "it is a flag of example scripts, which the trainer never reads"
_BEST = "the validation loss decides which checkpoint is the best"
_BATCHES = "it would change which contexts are learned, and in how many steps"
_LOADED = "`base_models` and `training` say how the base is loaded"
_RESUME = "a run that was cut off goes on exactly where it was"

FIXED = {
    "output_dir": _STORE,
    "save_only_model": "a run could not be resumed from such a checkpoint",
    "save_on_each_node": _STORE,
    "enable_jit_checkpoint": "a run that is told to end writes a checkpoint anyway",
    "ignore_data_skip": _RESUME,
    "restore_callback_states_from_checkpoint": _RESUME,
    "resume_from_checkpoint": _RESUME,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "average_tokens_across_devices": _LOSS,
    "label_smoothing_factor": _LOSS,
    "loss_type": _LOSS,
    "router_aux_loss_coef": _LOSS,
    "prediction_loss_only": _NO_PREDICTIONS,
    "eval_do_concat_batches": _NO_PREDICTIONS,
    "eval_use_gather_object": _NO_PREDICTIONS,
    "eval_accumulation_steps": _NO_PREDICTIONS,
    "include_for_metrics": _NO_PREDICTIONS,
    "batch_eval_metrics": _NO_PREDICTIONS,
    "report_to": _SEEN,
    "run_name": _SEEN,
    "project": _SEEN,
    "trackio_space_id": _SEEN,
    "trackio_bucket_id": _SEEN,
    "trackio_static_space_id": _SEEN,
    "disable_tqdm": _SEEN,
    "log_on_each_node": _SEEN,
    "include_num_input_tokens_seen": "tokens are counted and reported anyway",
    "skip_memory_metrics": "memory is measured and reported anyway",
    "logging_nan_inf_filter": "a loss that is not finite has to be seen, and ends the run",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "use_cpu": _HARDWARE,
    "tf32": "`training.precision` says how products are computed; GPUs with tf32 have bf16",
    "use_liger_kernel": _HARDWARE,
    "liger_kernel_config": _HARDWARE,
    "dataloader_pin_memory": _HARDWARE,
    "local_rank": "the launcher of `training.devices` sets it",
    "accelerator_config": _BATCHES,
    "dataloader_drop_last": _BATCHES,
    "dataloader_multiprocessing_context": "only forked processes share the contexts in memory",
    "dataloader_in_order": _BATCHES,
    "remove_unused_columns": _READY,
    "label_names": _READY,
    "length_column_name": _READY,
    "dataset_kwargs": _READY,
    "dataset_num_proc": _READY,
    "pad_to_multiple_of": "no padding is computed",
    "pad_token": "padding carries no loss, whichever token it is",
    "eos_token": "the base's chat template says which token ends a turn",
    "use_cache": "packed rows are isolated from each other only without a cache",
    "optim_target_modules": "only GaLore and APOLLO read it, which `training.optim` does not offer",
    "model_init_kwargs": _LOADED,
    "trust_remote_code": "code of a model repository is not run",
    "do_train": _SCRIPT,
    "do_eval": _SCRIPT,
    "do_predict": _SCRIPT,
}
"""Fields of SFTConfig that cannot be set, and why."""

FORMER = {
    # transformers 4
    "warmup_ratio": "training.warmup_steps",  # which takes fractions
    "evaluation_strategy": "training.evals_per_epoch",
    "adafactor": "training.optim: adafactor",
    "per_gpu_train_batch_size": "training.per_device_train_batch_size",
    "per_gpu_eval_batch_size": "training.per_device_train_batch_size",
    "fp16_opt_level": "training.precision",
    "fp16_backend": "training.precision",
    "half_precision_backend": "training.precision",
    "torchdynamo": "training.torch_compile",
    "tpu_num_cores": "training.devices",
    "mp_parameters": "training.devices",
    "sharded_ddp": "training.devices.strategy: fsdp",
    "fsdp_min_num_params": "training.devices.strategy: fsdp",
    "fsdp_transformer_layer_cls_to_wrap": "training.devices.strategy: fsdp",
    # TRL's SFTConfig and ModelConfig of old, and PEFT's LoraConfig
    "max_seq_length": "training.max_length",
    "lora_r": "training.lora.r",
    "lora_alpha": "training.lora.alpha",
    "lora_dropout": "training.lora.dropout",
    "lora_target_modules": "training.lora.targets",
    "target_modules": "training.lora.targets",
    "lora_modules_to_save": "training.lora.modules_to_save",
    "lora_bias": "training.lora.bias",
    "use_rslora": "training.lora.rslora",
    "use_dora": "training.lora.dora",
    "init_lora_weights": "training.lora.init",
    "use_peft": "training.method",
    "load_in_4bit": "training.quantization: nf4",
    "load_in_8bit": "training.quantization: int8",
    "bnb_4bit_quant_type": "training.quantization",
    "use_bnb_nested_quant": "training.double_quantization",
    "bnb_4bit_use_double_quant": "training.double_quantization",
    "bnb_4bit_compute_dtype": "training.precision",
    "torch_dtype": "training.precision",
    "dtype": "training.precision",
    # AutoTrain
    "lr": "training.learning_rate",
    "epochs": "training.num_train_epochs",
    "batch_size": "training.train_batch_size",
    "gradient_accumulation": "training.gradient_accumulation_steps",
    "optimizer": "training.optim",
    "scheduler": "training.lr_scheduler_type",
    "mixed_precision": "training.precision",
    "block_size": "training.max_length",
    "model_max_length": "training.max_length",
    "context_size": "training.max_length",
    "peft": "training.method",
    "distributed_backend": "training.devices.strategy",
}
"""Keys that SFTConfig has no more, or that other tools have, and what means the same here."""

GONE = {
    "save_safetensors": "weights are always saved as safetensors",
    "group_by_length": "no padding is computed, so rows need no sorting by length",
    "overwrite_output_dir": _STORE,
    "logging_dir": _SEEN,
    "no_cuda": _HARDWARE,
    "use_mps_device": _HARDWARE,
    "use_ipex": _HARDWARE,
    "xpu_backend": _HARDWARE,
    "jit_mode_eval": _NO_PREDICTIONS,
    "include_inputs_for_metrics": _NO_PREDICTIONS,
    "include_tokens_per_second": "tokens a second are reported anyway",
    "past_index": "transformers 5 has it no more",
    "ray_scope": "transformers 5 has it no more",
    "use_legacy_prediction_loop": "transformers 5 has it no more",
    "tpu_metrics_debug": "transformers 5 has it no more",
    "dispatch_batches": _BATCHES,
    "split_batches": _BATCHES,
    "push_to_hub_model_id": _HUB,
    "push_to_hub_organization": _HUB,
    "push_to_hub_token": _HUB,
    "dataset_batch_size": _READY,
    "num_of_sequences": _READY,
    "chars_per_token": _READY,
    "use_liger": _HARDWARE,
    "attn_implementation": _HARDWARE,
    "use_flash_attention_2": _HARDWARE,
    "unsloth": _HARDWARE,
}
"""Keys of the same kind that nothing replaces, and why."""


class About(NamedTuple):
    """What there is to say of a key that cannot stand where it was written."""

    cause: str
    remedy: str


def about(key: str) -> About | None:
    """Say why another tool's key is wrong here and what to write; None of a key no tool has."""
    if key in Arguments.__annotations__:
        return About("it is passed through to TRL", f"write it under `training.arguments`: {key}")
    if key in OWNED:
        return About("the recipe has a key for it", f"write `{OWNED[key]}`")
    if key in FORMER:
        return About("it has another name here", f"write `{FORMER[key]}`")
    why = FIXED.get(key) or GONE.get(key)
    return About(why, "remove it") if why else None


def nearest(key: str) -> str | None:
    """Return what a misspelt key could mean: one of `training.arguments`, or one `about` knows."""
    known = [*Arguments.__annotations__, *OWNED, *FIXED, *FORMER, *GONE]
    return next(iter(difflib.get_close_matches(key, known, n=1)), None)
