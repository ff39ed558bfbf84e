"""Writing what was trained as an artifact that stock PEFT or transformers loads."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel

from finetune_assets.catalog.training import Training
from finetune_assets.models.adapters.initial import Matrices, difference
from finetune_assets.models.bases.weights import copy_companions, dtypes, stored_dtype
from finetune_assets.models.kernels.types import Model
from finetune_assets.models.planning import ranks
from finetune_assets.models.planning.choices import FROM_BASE

INITIAL = "initial.safetensors"
"""File beside the checkpoints with the matrices from which `pissa` and `loftq` began."""
ADAPTER_CONFIG = "adapter_config.json"
"""File whose presence tells an adapter from a model tuned whole."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""torch's dtypes of weights that can be trained, by safetensors' names."""


def save_adapter(
    model: Model,
    out: Path,
    training: Training,
    base: Path,
    initial: Path | None = None,
    weights: Matrices | None = None,
) -> None:
    """Write the trained adapter (PEFT format) or, after full tuning, the model into `out`.

    Either applies to the original base, names no path of this machine, and is the same to the byte
    for the same weights: the model's own, or `weights`, which `gather` put together. `initial` is
    the file that `add_adapter` was given.
    """
    if isinstance(model, PeftModel):
        _save_peft(model, out, training, initial, weights)
    else:
        _save_model(model, out, base, weights)


def _save_peft(
    model: PeftModel, out: Path, training: Training, initial: Path | None, weights: Matrices | None
) -> None:
    # PEFT would add a copy of the frozen embeddings where they are adapted.
    tensors = get_peft_model_state_dict(model, weights, save_embedding_layers=False)
    config: Any = deepcopy(model.peft_config["default"])
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
    config.save_pretrained(str(out))


def _save_model(model: PreTrainedModel, out: Path, base: Path, weights: Matrices | None) -> None:
    """Write weights in the dtypes of the base's own; configuration and tokenizer are the base's."""
    found, usual = dtypes(base), stored_dtype(base)
    tensors = {
        name: tensor.detach().to(DTYPES[found.get(name, usual)])
        for name, tensor in (weights or model.state_dict()).items()
    }
    model.save_pretrained(out, state_dict=tensors)
    copy_companions(base, out)


def gather(model: torch.nn.Module, training: Training) -> Matrices | None:
    """Put trained weights together, by name, in float32: every process asks, the first is told.

    The result is None where the model of each process has them anyway.
    """
    if ranks.keeps_gradients(training):
        return None
    trained: dict[str, Any] = {n: p for n, p in model.named_parameters() if p.requires_grad}
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
