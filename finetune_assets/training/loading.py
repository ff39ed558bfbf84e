"""Loading the base and wrapping it in an adapter, for training and for reading one back."""

import logging
from pathlib import Path
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.training.hardware import Hardware


def load_base(folder: Path, hardware: Hardware, training: Training) -> Any:
    """The base model, NF4 with double quantisation or in the hardware's dtype."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    dtype = hardware.torch_dtype()
    config = None
    if training.quantization == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=config,
        attn_implementation=hardware.attention,
        device_map={"": 0} if hardware.device == "cuda" else None,
    )
    keep_quantised_layers_trainable(model)
    model.config.use_cache = False
    return model


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
    """A PEFT model with a fresh LoRA adapter in float32.

    Args:
        base: folder from which `model` was loaded.
        initial: file, beside the checkpoints, that keeps the matrices from which `pissa` and
            `loftq` begin; read where it exists, so that a resumed run has the same ones.
    """
    from peft import LoraConfig, get_peft_model

    lora = training.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        use_rslora=lora.rslora,
        task_type="CAUSAL_LM",
    )
    return adapter_in_float32(get_peft_model(model, config))


def adapter_in_float32(model: Any) -> Any:
    """Cast what is trained to float32: small updates vanish in bf16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model
