"""RMS norms in half the passes over memory that autograd makes of them."""

from functools import partial
from typing import cast

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from finetune_assets.models.kernels.types import PassContext


def fuse_norms(model: torch.nn.Module) -> int:
    """Replace the forward of every RMS norm that is Llama's and not trained; return how many.

    Many architectures have a copy of it under a name of their own, which is known by its code.
    """
    fused = 0
    for module in model.modules():
        code = getattr(type(module).forward, "__code__", None)
        if (
            code is not None
            and code.co_code == LlamaRMSNorm.forward.__code__.co_code
            and code.co_names == LlamaRMSNorm.forward.__code__.co_names
            and not module.weight.requires_grad
        ):
            # A partial, and no closure, so that it can be copied with the model.
            module.forward = partial(_forward, cast(LlamaRMSNorm, module))
            fused += 1
    return fused


def _forward(norm: LlamaRMSNorm, hidden_states: torch.Tensor) -> torch.Tensor:
    return FusedNorm.apply(hidden_states, norm.weight, norm.variance_epsilon)


class FusedNorm(torch.autograd.Function):
    """An RMS norm that keeps its input, as the residual stream does, and one number a token."""

    @staticmethod
    def forward(
        ctx: PassContext, x: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """Norm the last dimension of `x` and scale it by `weight`."""
        values = x.to(torch.float32, copy=True)
        norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return weight * values.mul_(inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: PassContext, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of `x`; the weight is not trained."""
        x, weight, inverse = ctx.saved_tensors
        grad = (grad * weight).to(torch.float32)
        normed = x.to(torch.float32, copy=True).mul_(inverse)
        along = (grad * normed).mean(-1, keepdim=True)
        grad = grad.addcmul_(normed, along, value=-1).mul_(inverse)
        return grad.to(x.dtype), None, None
