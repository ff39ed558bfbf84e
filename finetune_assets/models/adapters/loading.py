"""Loading the base and making it trainable, whole or by an adapter."""

import difflib
import os
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from finetune_assets.catalog.training import Lora, Training
from finetune_assets.errors import UserError
from finetune_assets.models.adapters.initial import begin
from finetune_assets.models.bases.layout import Layout
from finetune_assets.models.kernels.types import Model
from finetune_assets.models.planning.choices import FROM_BASE
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.planning.ranks import divides

M = TypeVar("M", bound=torch.nn.Module)


def load_base(folder: Path, hardware: Hardware, training: Training) -> PreTrainedModel:
    """Load the base, quantised and frozen for an adapter, or ready to be tuned whole.

    What is frozen stays in the hardware's dtype. What `method: full` trains is float32: updates of
    a thousandth of a weight are lost in bf16, and autocast computes in the hardware's dtype anyway.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="float32" if training.method == "full" else hardware.torch_dtype(),
        quantization_config=_quantization(training, hardware),
        attn_implementation=_attention(folder, hardware),
        device_map=_device_map(training, hardware),
    )
    keep_quantised_layers_trainable(model)
    model.config.use_cache = False
    return model


def _device_map(training: Training, hardware: Hardware) -> dict[str, int] | None:
    """Place the model on this process's own GPU, which its launcher numbers."""
    if hardware.device != "cuda" or divides(training):
        return None  # whoever divides weights also places them, and ZeRO-3 refuses a map
    return {"": int(os.environ.get("LOCAL_RANK", "0"))}


def _attention(folder: Path, hardware: Hardware) -> str | None:
    """Return the hardware's, where the architecture has it; None lets transformers choose."""
    if hardware.attention != "flash_attention_2":
        return None  # sdpa, or eager for the few that have no other, as Gemma 2
    return hardware.attention if Layout.of(folder).model._supports_flash_attn else None


def _quantization(training: Training, hardware: Hardware) -> BitsAndBytesConfig | None:
    """Return the `quantization_config` of transformers; None loads the weights as they are."""
    if training.quantization == "none":
        return None
    if training.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=training.quantization,
        bnb_4bit_use_double_quant=training.double_quantization,
        bnb_4bit_compute_dtype=hardware.torch_dtype(),
        # Only floating point can be divided; the bits are what they are.
        bnb_4bit_quant_storage=hardware.torch_dtype() if divides(training) else None,
    )


def keep_quantised_layers_trainable(model: torch.nn.Module) -> None:
    """Hold bitsandbytes to its one weight layout.

    On a CPU with AVX512-BF16 the first forward pass without gradients repacks the 4-bit weights
    for inference, after which the backward pass loses most of the adapter's gradient.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def add_adapter(
    model: PreTrainedModel, training: Training, base: Path, initial: Path | None = None
) -> Model:
    """Return a PEFT model with a fresh adapter in float32; with `method: full`, the model itself.

    `base` is the folder from which `model` was loaded. The file `initial`, beside the checkpoints,
    keeps the matrices from which `pissa` and `loftq` begin; it is read where it exists, so that a
    resumed run has the same ones. A name of `training.lora` that is no module of the model, or
    cannot be trained, is a UserError.
    """
    if training.method == "full":
        return model
    lora = training.lora
    _require_modules(model, lora)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        bias=lora.bias,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights="gaussian" if lora.init == "gaussian" else True,
        modules_to_save=lora.modules_to_save or None,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        cause = textwrap.shorten(f"PEFT refuses it: {error}", 200)
        remedy = "let `targets` name linear or embedding layers only"
        raise UserError("training.lora", cause, remedy) from error
    _require_biases(adapted, lora)
    if lora.init in FROM_BASE:
        begin(adapted, training, base, initial)
    return adapter_in_float32(adapted)


def adapter_in_float32(model: M) -> M:
    """Cast what is trained to float32: small updates vanish in bf16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _require_modules(model: torch.nn.Module, lora: Lora) -> None:
    """Require that every name of the recipe fits a module; PEFT passes over those that do not."""
    modules = {name: module for name, module in model.named_modules() if name}
    if isinstance(lora.targets, list):
        for target in lora.targets:
            if not any(f".{name}".endswith(f".{target}") for name in modules):
                raise _unknown("targets", target, modules)
    elif lora.targets != "all-linear" and not any(re.fullmatch(lora.targets, n) for n in modules):
        raise _unknown("targets", lora.targets, modules)
    for saved in lora.modules_to_save:
        found = [module for name, module in modules.items() if name.endswith(saved)]
        if not found:
            raise _unknown("modules_to_save", saved, modules)
        if any(isinstance(m, Linear4bit | Linear8bitLt) for top in found for m in top.modules()):
            raise UserError(
                "training.lora.modules_to_save",
                f"'{saved}' is quantised, and quantised weights cannot be trained",
                "write `quantization: none`, or name it in `targets` instead",
            )


def _unknown(key: str, name: str, modules: Iterable[str]) -> UserError:
    last = {path.rsplit(".", 1)[-1] for path in modules}
    names = sorted(part for part in last if not part.isdigit())
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], names, n=3, cutoff=0.5)
    return UserError(
        f"training.lora.{key}",
        f"no module of the base is named '{name}'",
        f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(names)}",
    )


def _require_biases(model: torch.nn.Module, lora: Lora) -> None:
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if lora.bias != "none" and not any(name.endswith(".bias") for name in names):
        cause = f"`{lora.bias}` trains no bias, because the layers have none"
        raise UserError("training.lora.bias", cause, "write `bias: none`")
