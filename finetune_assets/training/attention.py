"""Attention over documents that share a row, each seeing only itself: the CPU's fast path.

Stock kernels on a CPU either mask a whole row, and so compute what packing forbids, or run one
document at a time through a blocked kernel whose backward pass reaches a tenth of what matrix
products do. Here each document is three plain products, with the query heads that share a key head
stacked into one. A mixture of documents costs the sum of their squares, not the square of the sum.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any

from finetune_assets.training.lora import compute_dtype

IMPLEMENTATION = "documents"
"""Name under which transformers finds it."""

LONGEST_STORED = 1024
"""Tokens of a document whose probabilities are kept for the backward pass; they grow with the
square, so longer ones go through torch's blocked kernel, which computes them again."""


def use_document_attention(model: Any) -> bool:
    """Switch a model to it; False, and nothing is changed, where its attention is of another kind.

    Args:
        model: of transformers, or PEFT around one.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if not _is_plain(model.config):
        return False
    AttentionInterface.register(IMPLEMENTATION, _forward)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
    model.set_attn_implementation(IMPLEMENTATION)
    return True


def uses_document_attention(model: Any) -> bool:
    return model.config._attn_implementation == IMPLEMENTATION


def _is_plain(config: Any) -> bool:
    """Softmax attention in every layer, without capped scores, sinks or dropout."""
    values = config.to_dict()
    kinds = set(values.get("layer_types") or ())
    return (
        kinds <= {"full_attention", "sliding_attention"}
        and not values.get("attn_logit_softcapping")
        and not values.get("attention_dropout")
        and values.get("model_type") in PLAIN
    )


PLAIN = {
    *("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma3_text", "granite"),
    *("olmo", "olmo2", "phi3", "starcoder2", "cohere", "stablelm"),
}
"""Architectures whose attention passes through transformers' interface without additions."""


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def offsets_as_mask(offsets: Any) -> Any:
    """Where documents begin, and the end, in the one shape that every model hands down unread."""
    return offsets.view(1, 1, 1, -1)


def _forward(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """transformers' attention interface; tensors of shape (1, heads, tokens, width)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    offsets = attention_mask.flatten().tolist()
    # Inside autocast, float32 positions make float32 of queries and keys, and not of values.
    dtype = compute_dtype(value)
    parts = (part.to(dtype) for part in (query, key, value))
    return _documents()(*parts, scale, offsets, sliding_window), None


@lru_cache(maxsize=256)
def _causal(length: int, groups: int, window: int | None, dtype: Any) -> Any:
    """What is added to the scores of a document, (groups * length, length)."""
    import torch

    ones = torch.ones(length, length, dtype=torch.bool)
    hidden = ones.triu(1)
    if window is not None and window < length:
        hidden |= ones.tril(-window)
    bias = torch.zeros(length, length, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return bias.repeat(groups, 1)


@lru_cache(maxsize=1)
def _documents() -> Any:
    """The function; made at first use, as torch is heavy to import."""
    import torch

    class Documents(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, scale, offsets, window):
            heads, tokens = q.shape[1:3]
            out = q.new_empty(tokens, heads, v.shape[-1])
            kept: list[tuple[Any, ...]] = []
            for start, end in pairwise(offsets):
                part = (slice(None), slice(start, end))
                if _is_short(end - start, window):
                    probabilities, answer = _short(q[0], k[0], v[0], part, scale, window)
                    kept.append((probabilities,))
                else:
                    answer, log_sum = _long(q, k, v, start, end, scale)
                    kept.append((answer, log_sum))
                    answer = answer[0]
                out[start:end].copy_(answer.transpose(0, 1))
            ctx.save_for_backward(q, k, v, *(t for group in kept for t in group))
            ctx.given = scale, offsets, window
            return out[None]

        @staticmethod
        def backward(ctx, grad):
            q, k, v, *kept = ctx.saved_tensors
            scale, offsets, window = ctx.given
            dq, dk, dv = (
                torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v)
            )
            remaining = iter(kept)
            for start, end in pairwise(offsets):
                part = (slice(None), slice(start, end))
                g = grad[0, start:end].transpose(0, 1)
                if _is_short(end - start, window):
                    made = _short_backward(g, q[0], k[0], v[0], next(remaining), part, scale)
                else:
                    made = _long_backward(
                        g, q, k, v, next(remaining), next(remaining), start, end, scale
                    )
                for target, gradient in zip((dq, dk, dv), made, strict=True):
                    target[0][part].copy_(gradient)
            return dq, dk, dv, None, None, None

    return torch.compiler.disable(Documents.apply)


def _is_short(length: int, window: int | None) -> bool:
    return length <= LONGEST_STORED or (window is not None and window < length)


def _stacked(x: Any, part: Any, shared: int) -> Any:
    """Query heads that share a key head under one another: (key heads, groups * length, width)."""
    piece = x[part]
    return piece.reshape(shared, -1, piece.shape[-1])


def _short(q: Any, k: Any, v: Any, part: Any, scale: float, window: int | None) -> tuple[Any, Any]:
    """Probabilities (key heads, groups * length, length) and answer (heads, length, width)."""
    import torch

    shared, groups = k.shape[0], q.shape[0] // k.shape[0]
    keys, values = k[part], v[part]
    bias = _causal(keys.shape[1], groups, window, q.dtype)
    scores = torch.baddbmm(bias, _stacked(q, part, shared), keys.transpose(1, 2), alpha=scale)
    probabilities = torch.softmax(scores, -1)
    answer = torch.bmm(probabilities, values)
    return probabilities, answer.view(q.shape[0], keys.shape[1], -1)


def _short_backward(
    grad: Any, q: Any, k: Any, v: Any, probabilities: Any, part: Any, scale: float
) -> tuple[Any, Any, Any]:
    import torch

    shared = k.shape[0]
    queries, keys, values = _stacked(q, part, shared), k[part], v[part]
    g = grad.reshape(shared, -1, grad.shape[-1])
    dv = torch.bmm(probabilities.transpose(1, 2), g)
    dp = torch.bmm(g, values.transpose(1, 2))
    ds = torch.ops.aten._softmax_backward_data(dp, probabilities, -1, dp.dtype)
    dq = torch.bmm(ds, keys).mul_(scale)
    dk = torch.bmm(ds.transpose(1, 2), queries).mul_(scale)
    return dq.view(q.shape[0], keys.shape[1], -1), dk, dv


def _long(q: Any, k: Any, v: Any, start: int, end: int, scale: float) -> tuple[Any, Any]:
    """Answer (1, heads, length, width) and log-sums by torch's blocked kernel."""
    import torch

    groups = q.shape[1] // k.shape[1]
    queries = q[:, :, start:end]
    keys, values = (t[:, :, start:end].repeat_interleave(groups, 1) for t in (k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries, keys, values, 0.0, True, scale=scale
    )


def _long_backward(
    grad: Any, q: Any, k: Any, v: Any, out: Any, log_sum: Any, start: int, end: int, scale: float
) -> tuple[Any, Any, Any]:
    import torch

    groups = q.shape[1] // k.shape[1]
    queries = q[:, :, start:end]
    keys, values = (t[:, :, start:end].repeat_interleave(groups, 1) for t in (k, v))
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad[None], queries, keys, values, out, log_sum, 0.0, True, scale=scale
    )
    dk, dv = (t.view(1, k.shape[1], groups, *t.shape[2:]).sum(2) for t in (dk, dv))
    return dq[0], dk[0], dv[0]
