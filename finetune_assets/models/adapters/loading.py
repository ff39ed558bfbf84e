"""Loading the base and making it trainable, whole or by an adapter."""

import difflib
import logging
import os
import re
import textwrap
from pathlib import Path
from typing import Any

from finetune_assets.catalog.training import Lora, Training
from finetune_assets.errors import UserError
from finetune_assets.models.adapters.initial import FROM_BASE, begin
from finetune_assets.models.bases.layout import Layout
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.planning.ranks import divides


def load_base(folder: Path, hardware: Hardware, training: Training) -> Any:
    """The base model: quantised and frozen under an adapter, or ready to be tuned whole.

    What is frozen stays in the hardware's dtype. What `method: full` trains is float32: updates of
    a thousandth of a weight are lost in bf16, and autocast computes in the hardware's dtype anyway.
    """
    from transformers import AutoModelForCausalLM

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
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
    """Each process has a GPU of its own, which its launcher numbers.

    None where the weights are spread: whoever divides them also places them, and ZeRO-3 refuses a
    map.
    """
    if hardware.device != "cuda" or divides(training):
        return None
    return {"": int(os.environ.get("LOCAL_RANK", "0"))}


def _attention(folder: Path, hardware: Hardware) -> str | None:
    """The hardware's, where the architecture has it; None lets transformers choose."""
    if hardware.attention != "flash_attention_2":
        return None  # sdpa, or eager for the few that have no other, as Gemma 2
    return hardware.attention if Layout.of(folder).model._supports_flash_attn else None


def _quantization(training: Training, hardware: Hardware) -> Any:
    """The `quantization_config` of transformers; None loads the weights as they are."""
    from transformers import BitsAndBytesConfig

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


def keep_quantised_layers_trainable(model: Any) -> None:
    """Hold bitsandbytes to its one weight layout.

    On a CPU with AVX512-BF16 the first forward pass without gradients repacks the 4-bit weights
    for inference, after which the backward pass loses most of the adapter's gradient.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def add_adapter(model: Any, training: Training, base: Path, initial: Path | None = None) -> Any:
    """A PEFT model with a fresh adapter in float32; with `method: full`, the model itself.

    Args:
        base: folder from which `model` was loaded.
        initial: file, beside the checkpoints, that keeps the matrices from which `pissa` and
            `loftq` begin; read where it exists, so that a resumed run has the same ones.

    Raises:
        UserError: a name of `training.lora` is no module of the model, or cannot be trained.
    """
    if training.method == "full":
        return model
    from peft import LoraConfig, get_peft_model

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
        raise UserError(
            "training.lora",
            textwrap.shorten(f"PEFT refuses it: {error}", 200),
            "let `targets` name linear or embedding layers only",
        ) from error
    _require_biases(adapted, lora)
    if lora.init in FROM_BASE:
        begin(adapted, training, base, initial)
    return adapter_in_float32(adapted)


def adapter_in_float32(model: Any) -> Any:
    """Cast what is trained to float32: small updates vanish in bf16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _require_modules(model: Any, lora: Lora) -> None:
    """Every name of the recipe fits a module; PEFT passes over those that fit none."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

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


def _unknown(key: str, name: str, modules: dict[str, Any]) -> UserError:
    last = {path.rsplit(".", 1)[-1] for path in modules}
    names = sorted(part for part in last if not part.isdigit())
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], names, n=3, cutoff=0.5)
    return UserError(
        f"training.lora.{key}",
        f"no module of the base is named '{name}'",
        f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(names)}",
    )


def _require_biases(model: Any, lora: Lora) -> None:
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if lora.bias != "none" and not any(name.endswith(".bias") for name in names):
        raise UserError(
            "training.lora.bias",
            f"`{lora.bias}` trains no bias, because the layers have none",
            "write `bias: none`",
        )
