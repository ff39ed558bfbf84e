"""A model ready to be trained as fast as the hardware allows, and how it came to be."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft.tuners.lora.layer import LoraLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.adapters.loading import adapter_in_float32, add_adapter, load_base
from finetune_assets.models.kernels.attention import use_document_attention
from finetune_assets.models.kernels.lora import dequantise_base, fuse_lora
from finetune_assets.models.kernels.loss import collate_flat, inputs_of
from finetune_assets.models.kernels.norms import fuse_norms
from finetune_assets.models.kernels.types import Model
from finetune_assets.models.planning.choices import pays_to_compile, precision
from finetune_assets.models.planning.hardware import Hardware
from finetune_assets.models.tokenization.contexts import Context, Contexts

PROBED, PROBE_TOKENS = 64, 64
"""Contexts looked through for one with two documents, and tokens of each that are compared."""
ISOLATION = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
"""Largest difference, as a share of the logits' range, that rounding explains."""


@dataclass(frozen=True)
class Engine:
    """A model that is ready to be trained."""

    model: Model
    fused: bool
    """Every trained layer computes in the hardware's dtype by itself, without autocast."""
    kernels: dict[str, str | int | bool]
    """What was chosen, for the manifest."""


def build(
    base: Path,
    training: Training,
    hardware: Hardware,
    initial: Path,
    *,
    tokens: int,
    checkpointing: bool,
) -> Engine:
    """Load the base, add what is trained, and choose how it is computed.

    `initial` is the file that `add_adapter` takes. Whether compiling pays depends on the `tokens`
    that the run will train on. With `checkpointing`, activations are computed again.
    """
    loaded = load_base(base, hardware, training)
    if hardware.document_attention:
        use_document_attention(loaded)
    model = add_adapter(loaded, training, base, initial)
    divided = training.devices.count != 1 and training.devices.strategy in ("fsdp", "zero3")
    compiled = not divided and pays_to_compile(training, hardware, tokens)
    restored = fused = norms = 0
    if training.method == "lora" and not divided:
        restored = dequantise_base(model) if hardware.keep_dequantised else 0
        fused = fuse_lora(model) if hardware.fused_lora else 0
        norms = fuse_norms(model) if hardware.fused_norms and not compiled else 0
    adapter_in_float32(model)
    if checkpointing:
        options = training.arguments.get("activation_checkpointing_kwargs")
        model.gradient_checkpointing_enable(options or {"use_reentrant": False})
        model.enable_input_require_grads()
    if compiled:
        for layer in layers(model):
            layer.compile(dynamic=True)
    kernels = {
        "attention": model.config._attn_implementation,
        "fused_lora_layers": fused,
        "fused_norms": norms,
        "dequantised_layers": restored,
        "gradient_checkpointing": checkpointing,
        "compiled": compiled,
        "dtype": precision(training, hardware),
    }
    adapted = sum(isinstance(module, LoraLayer) for module in model.modules())
    whole = training.method == "lora" and fused == adapted
    extra = training.lora.modules_to_save or training.lora.bias != "none"
    return Engine(model, fused=whole and not extra, kernels=kernels)


def layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the decoder layers: the parts that repeat, so that one compilation serves all."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def require_isolation(model: Model, contexts: Contexts, dtype: str) -> None:
    """Require that two documents in one row give the logits that each gives alone.

    An architecture whose layers carry state along the row (recurrent, convolutional) mixes packed
    documents without a word; here that is a UserError.
    """
    found = next((c for c in contexts[:PROBED] if (c.position_ids == 0).sum() > 1), None)
    if found is None:
        return
    ends = np.flatnonzero(np.append(found.position_ids, 0) == 0)
    spans = [slice(ends[i], min(ends[i + 1], ends[i] + PROBE_TOKENS)) for i in (0, 1)]
    alone = [Context(*(values[s] for values in vars(found).values())) for s in spans]
    training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(model.device.type, getattr(torch, dtype)):
        together = _logits(model, alone)
        apart = torch.cat([_logits(model, [part]) for part in alone])
    model.train(training)
    span = float(apart.max() - apart.min())
    worst = float((together - apart).abs().max()) / span
    if worst > ISOLATION[dtype]:
        raise UserError(
            "training.packing",
            f"documents in one row see each other: logits differ by {worst:.1%} of their range "
            "from those of each document alone",
            "write `packing: false` and `per_device_train_batch_size: 1`, which put one document "
            "into a row",
        )


def _logits(model: Model, parts: list[Context]) -> torch.Tensor:
    """Return the logits (tokens, vocabulary) of contexts in one row."""
    batch = {k: v.to(model.device) for k, v in collate_flat(parts).items()}
    return model(**inputs_of(model, batch), use_cache=False).logits[0].float()
