"""Types that the stubs of torch and transformers lack."""

from typing import Any, TypeAlias

import torch
from peft import PeftModel
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel

Model: TypeAlias = PreTrainedModel | PeftModel
"""A causal language model, with or without an adapter around it."""


class PassContext(FunctionCtx):
    """What a forward pass keeps for its backward pass; torch's stubs name only the methods."""

    saved_tensors: tuple[torch.Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    given: Any
    """Values that are no inputs or outputs, as the function's own forward pass set them."""
