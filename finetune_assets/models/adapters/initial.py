"""Adapters that begin from the base's own weights (PiSSA) or from what 4 bits lost (LoftQ).

Both make the adapter relative to something else than the original base: PiSSA takes the first
`B0 @ A0` out of the base, LoftQ adds it as a repair. What is published is `B @ A - B0 @ A0`, which
applies to the original base. A resumed run must begin from the same `A0` and `B0`, and an SVD need
not give the same twice on another machine, so they are kept beside the checkpoints.
"""

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.bases.layout import Layout
from finetune_assets.storage.atomic import replacing

POWER_ITERATIONS = 16
"""How often the randomised SVD refines; PiSSA's authors find its error negligible from here on."""

Matrices = dict[str, torch.Tensor]
"""Float32 tensors under the names of an adapter file."""


def begin(model: PeftModel, training: Training, base: Path, kept: Path | None) -> None:
    """Set every A and B of a fresh adapter, for PiSSA also the base's weights.

    The first matrices are read from the file `kept` where it exists, else written there. A layer
    that has no such decomposition is a UserError.
    """
    layers = _layers(model, training)
    if kept is not None and kept.exists():
        first = load_file(kept)
    else:
        first = _decompose(layers, training, base)
        if kept is not None:
            with replacing(kept) as scratch:  # so that a kill leaves a whole file or none
                save_file(first, scratch)
    with torch.no_grad():
        for name, layer in layers.items():
            a, b = _matrices(layer)
            a.data = first[f"{name}.lora_A.weight"].to(a.device)
            b.data = first[f"{name}.lora_B.weight"].to(b.device)
            if training.lora.init == "pissa":
                weight = _weight(layer)
                part = _oriented(layer, layer.scaling["default"] * (b @ a))
                weight.data = (weight.float() - part).to(weight.dtype)
            if training.lora.dora:
                # DoRA's magnitude is the norm of the weight that training begins from.
                magnitude: Any = layer.lora_magnitude_vector["default"]
                scale = layer.scaling["default"]
                whole = layer.get_base_layer()
                magnitude.update_layer(base_layer=whole, lora_A=a, lora_B=b, scaling=scale)


def difference(trained: Matrices, kept: Path, scale: float) -> Matrices:
    """Return `trained` with `scale * (B @ A - B0 @ A0)` as one product, of twice the rank.

    A0 and B0 are in the file `kept`; the scale of the result is 1.
    """
    result = dict(trained)
    for name, old in load_file(kept).items():
        new = trained[name].float().cpu()
        result[name] = (
            torch.cat([new, old])
            if name.endswith("lora_A.weight")
            else scale * torch.cat([new, -old], dim=1)
        )
    return result


def _layers(model: PeftModel, training: Training) -> dict[str, LoraLayer]:
    """Return the adapted layers by name; raise a UserError where one cannot be decomposed."""
    init = training.lora.init
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    fits = Linear4bit if init == "loftq" else torch.nn.Linear | Conv1D
    for name, layer in layers.items():
        if not isinstance(layer.get_base_layer(), fits):
            wanted = "of 4 bits" if init == "loftq" else "of whole weights"
            raise UserError(
                "training.lora.targets",
                f"`init: {init}` needs linear layers {wanted}, which {name} is not",
                "leave it out of `targets`, or write `init: default`",
            )
    return layers


def _decompose(layers: dict[str, LoraLayer], training: Training, base: Path) -> Matrices:
    """Find the best `scale * B @ A` of rank r for each weight, or for what 4 bits lost of it.

    Where a layer is narrower than r, the rest of its rank begins as LoRA's does.
    """
    layout = Layout.of(base) if training.lora.init == "loftq" else None
    result: Matrices = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(training.seed)
        for name, layer in layers.items():
            first_a, first_b = _matrices(layer)
            a = first_a.float().cpu().clone()
            b = torch.zeros_like(first_b, dtype=torch.float32).cpu()
            rank = min(training.lora.r, a.shape[1], b.shape[0])
            if layout is None:
                matrix = _oriented(layer, _weight(layer).float())
            else:
                matrix = _lost(name, layer, layout)
            u, s, v = torch.svd_lowrank(matrix, q=rank, niter=POWER_ITERATIONS)
            root = (s / layer.scaling["default"]).sqrt()
            a[:rank], b[:, :rank] = (root[:, None] * v.T).cpu(), (u * root).cpu()
            result |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    return result


def _matrices(layer: LoraLayer) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    """Return A (rank, in) and B (out, rank)."""
    a: Any = layer.lora_A["default"]
    b: Any = layer.lora_B["default"]
    return a.weight, b.weight


def _weight(layer: LoraLayer) -> torch.nn.Parameter:
    base: Any = layer.get_base_layer()
    return base.weight


def _oriented(layer: LoraLayer, matrix: torch.Tensor) -> torch.Tensor:
    """Turn (out, in) into the layer's own layout or back: GPT-2's layers are stored transposed."""
    return matrix.T if getattr(layer, "fan_in_fan_out", False) else matrix


def _lost(name: str, layer: LoraLayer, layout: Layout) -> torch.Tensor:
    """Return the layer's original weight less what its 4 bits hold."""
    module = name.removeprefix("base_model.model.")
    stored = [s for s, whole in layout.names.items() if whole == f"{module}.weight"]
    if len(stored) != 1:
        raise UserError(
            "training.lora.init",
            f"`loftq` needs the original weight of {module}, which the base's files hold in "
            f"{len(stored)} parts",
            "write `init: default`",
        )
    held = dequantize_module_weight(layer.get_base_layer()).float()
    with safe_open(layout.files[stored[0]], framework="pt") as file:
        original = file.get_tensor(stored[0]).to(held.device).float()
    return (original.T if layout.is_transposed(module) else original) - held
