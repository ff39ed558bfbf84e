"""Writing what was trained as an artifact that stock PEFT or transformers loads."""

from pathlib import Path
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.models.adapters.initial import FROM_BASE, difference
from finetune_assets.models.bases.weights import copy_companions, dtypes, stored_dtype
from finetune_assets.models.planning import ranks

INITIAL = "initial.safetensors"
"""Beside the checkpoints: the matrices from which `pissa` and `loftq` began."""
ADAPTER_CONFIG = "adapter_config.json"
"""Its presence tells an adapter from a model tuned whole."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def save_adapter(
    model: Any,
    out: Path,
    training: Training,
    base: Path,
    initial: Path | None = None,
    state_dict: dict[str, Any] | None = None,
) -> None:
    """Write the trained adapter (PEFT format) or, after full tuning, the model into `out`.

    Either applies to the original base, names no path of this machine, and is the same to the byte
    for the same weights.

    Args:
        base: folder of the original base.
        initial: the file that `add_adapter` was given.
        state_dict: of a model that is divided over devices, gathered; else the model's own.
    """
    if training.method == "full":
        _save_model(model, out, base, state_dict)
    else:
        _save_peft(model, out, training, initial, state_dict)


def _save_peft(
    model: Any,
    out: Path,
    training: Training,
    initial: Path | None,
    state_dict: dict[str, Any] | None,
) -> None:
    from copy import deepcopy

    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    # PEFT would add a copy of the frozen embeddings where they are adapted.
    tensors = get_peft_model_state_dict(model, state_dict, save_embedding_layers=False)
    config = deepcopy(model.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = None
    for key, value in vars(config).items():
        if isinstance(value, set):  # whose order changes from process to process
            setattr(config, key, sorted(value))
    if training.lora.init in FROM_BASE:
        if initial is None:
            raise ValueError(f"{training.lora.init} needs the file of its first matrices")
        scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
        tensors = difference(tensors, initial, scale)
        config.r = config.lora_alpha = 2 * config.r
        config.use_rslora = False
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(out)


def _save_model(model: Any, out: Path, base: Path, state_dict: dict[str, Any] | None) -> None:
    """Weights in the dtypes of the base's own; configuration and tokenizer are the base's."""
    import torch

    found, usual = dtypes(base), stored_dtype(base)
    weights = {
        name: tensor.detach().to(getattr(torch, DTYPES[found.get(name, usual)]))
        for name, tensor in (state_dict or model.state_dict()).items()
    }
    model.save_pretrained(out, state_dict=weights)
    copy_companions(base, out)


DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Of weights that can be trained: safetensors' names in torch's."""


def gathered(model: Any, training: Training) -> dict[str, Any] | None:
    """Trained weights by name, whole, in float32; every process must ask, the first one is told.

    None where the model of each process has them.
    """
    if ranks.keeps_gradients(training):
        return None
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = {}
    for name, parameter in trained.items():
        if training.devices.strategy == "fsdp":
            whole = parameter.full_tensor()
        else:
            from deepspeed.utils import safe_get_full_fp32_param

            whole = safe_get_full_fp32_param(parameter)
        if ranks.index() == 0:
            weights[name] = whole.detach().cpu()
    return weights
