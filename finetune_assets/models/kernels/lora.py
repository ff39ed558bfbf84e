"""LoRA layers whose forward and backward passes are as few matrix products as can be.

PEFT computes `base(x) + scale * B(A(x))` with a conversion of `x` to float32 and back, and autograd
keeps what each step made. One function of both paths keeps the input and its projection to the
rank, computes in the base's dtype, and adds in place.
"""

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora.layer import LoraLayer

from finetune_assets.models.kernels.types import PassContext


def fuse_lora(model: torch.nn.Module) -> int:
    """Replace the forward of every plain LoRA layer of a PEFT model; return how many.

    Left alone are layers with DoRA, dropout, a trained bias, or a base of another kind than a
    linear layer; PEFT computes those. Names, weights and saved files stay PEFT's.
    """
    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and _is_plain(module):
            module.forward = _Forward(module)
            fused += 1
    return fused


def dequantise_base(model: torch.nn.Module) -> int:
    """Keep 4-bit weights as what they stand for, in the dtype of computation; return how many.

    Each value is the one that every forward pass would restore again. It takes four times the
    memory of 4 bits, and saves a third of the time where the processor has no kernel for them.
    """
    changed = 0
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        if not isinstance(module, LoraLayer) or not isinstance(base, Linear4bit):
            continue
        state: QuantState | None = getattr(base.weight, "quant_state", None)
        weight = dequantize_4bit(base.weight.data, state).to(base.compute_dtype)
        with torch.device("meta"):
            plain = torch.nn.Linear(base.in_features, base.out_features, base.bias is not None)
        plain.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
        if base.bias is not None:
            plain.bias = torch.nn.Parameter(base.bias.data.to(weight.dtype), requires_grad=False)
        module.base_layer = plain
        changed += 1
    return changed


def _is_plain(layer: LoraLayer) -> bool:
    if layer.active_adapters != ["default"] or "default" not in layer.lora_A:
        return False
    dropout = layer.lora_dropout["default"]
    return (
        isinstance(layer.base_layer, torch.nn.Linear | Linear4bit)
        and type(layer.base_layer) in (torch.nn.Linear, Linear4bit)
        and isinstance(dropout, torch.nn.Identity)
        and not layer.use_dora.get("default")
        and layer.lora_B["default"].bias is None
        and not getattr(layer.base_layer.bias, "requires_grad", False)
    )


class _Forward:
    """The forward of one layer; an object, so that it can be copied with the layer."""

    def __init__(self, layer: LoraLayer) -> None:
        self._layer = layer
        self._stock = layer.forward  # type: ignore[attr-defined]

    def __call__(self, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        layer = self._layer
        if layer.disable_adapters or layer.merged or args or kwargs:
            return self._stock(x, *args, **kwargs)
        base = layer.base_layer
        state: QuantState | None = getattr(base.weight, "quant_state", None)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        return _apply(x, base.weight, base.bias, a, b, layer.scaling["default"], state)


def _restored(weight: torch.Tensor, state: QuantState | None, dtype: torch.dtype) -> torch.Tensor:
    """The base's weight in the dtype of computation."""
    return (weight if state is None else dequantize_4bit(weight.data, state)).to(dtype)


class FusedLora(torch.autograd.Function):
    """A linear layer of the base and its adapter as one function."""

    @staticmethod
    def forward(
        ctx: PassContext,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        state: QuantState | None,
    ) -> torch.Tensor:
        """Return `x W' + bias + scale * x A' B'` for `x` of shape (..., inputs)."""
        dtype = compute_dtype(x)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        a16, b16 = a.to(dtype), (b * scale).to(dtype)
        base = _restored(weight, state, dtype)
        out = rows @ base.t() if bias is None else torch.addmm(bias.to(dtype), rows, base.t())
        low = rows @ a16.t()
        out.addmm_(low, b16.t())
        ctx.save_for_backward(rows, weight, a16, b16, low)
        ctx.given = scale, state, x.shape, x.dtype, a.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: PassContext, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of `x`, `a` and `b`; the base is frozen."""
        rows, weight, a16, b16, low = ctx.saved_tensors
        scale, state, shape, x_dtype, a_dtype = ctx.given
        grad = grad.reshape(-1, grad.shape[-1]).to(rows.dtype)
        grad_low = grad @ b16
        dx = None
        if ctx.needs_input_grad[0]:
            dx = grad @ _restored(weight, state, rows.dtype)
            dx = dx.addmm_(grad_low, a16).view(shape).to(x_dtype)
        da = (grad_low.t() @ rows).to(a_dtype)
        # The narrow side first: twice as fast as its transpose.
        db = (low.t() @ grad).t().to(a_dtype, memory_format=torch.contiguous_format)
        db.mul_(scale)
        return dx, None, None, da, db, None, None


_apply = torch.compiler.disable(FusedLora.apply)
"""Compiled layers leave it alone: a compiler would keep weights that it restores from 4 bits."""


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype of matrix products of `x`: autocast's inside autocast, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
