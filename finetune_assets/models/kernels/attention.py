"""Attention over documents that share a row, each seeing only itself: the CPU's fast path.

Stock kernels on a CPU either mask a whole row, and so compute what packing forbids, or run one
document at a time through a blocked kernel whose backward pass reaches a tenth of what matrix
products do. Here each document is a few plain products, with the query heads that share a key head
stacked into one. A mixture of documents costs the sum of their squares, not the square of the sum;
blocks of queries leave out most keys that lie ahead of them.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig

from finetune_assets.models.kernels.lora import compute_dtype
from finetune_assets.models.kernels.types import Model, PassContext
from finetune_assets.models.planning.choices import LONGEST_STORED, PLAIN

IMPLEMENTATION = "documents"
"""Name under which transformers finds this attention."""

BLOCK = 256
"""Queries of a document that are computed together, at most: each block takes the keys up to its
end. Smaller blocks leave out more keys, and their products are less efficient."""

Triple = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, or their gradients."""


def use_document_attention(model: Model) -> bool:
    """Switch a model to document attention where that is the same; return whether it is."""
    if not _is_plain(model.config):
        return False
    AttentionInterface.register(IMPLEMENTATION, _forward)
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
    model.set_attn_implementation(IMPLEMENTATION)
    return True


def uses_document_attention(model: Model) -> bool:
    """Whether a model has been switched by `use_document_attention`."""
    return model.config._attn_implementation == IMPLEMENTATION


def _is_plain(config: PretrainedConfig) -> bool:
    """Softmax attention in every layer, without capped scores, sinks or dropout."""
    values = config.to_dict()
    kinds = set(values.get("layer_types") or ())
    return (
        kinds <= {"full_attention", "sliding_attention"}
        and not values.get("attn_logit_softcapping")
        and not values.get("attention_dropout")
        and values.get("model_type") in PLAIN
    )


def offsets_as_mask(offsets: Tensor) -> Tensor:
    """Return offsets of documents, and the end, in the one shape that all models pass on unread."""
    return offsets.view(1, 1, 1, -1)


def _forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend as transformers asks it to; tensors of shape (1, heads, tokens, width)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    offsets = attention_mask.flatten().tolist()
    # Inside autocast, float32 positions make float32 of queries and keys, and not of values.
    dtype = compute_dtype(value)
    parts = (part.to(dtype) for part in (query, key, value))
    return _attend(*parts, scale, offsets, sliding_window), None


@lru_cache(maxsize=8)
def _hidden(before: int, rows: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to scores: (rows, before + rows), for queries that have `before` keys ahead.

    Zero where a query sees a key, minus infinity elsewhere.
    """
    ones = torch.ones(rows, before + rows, dtype=torch.bool)
    hidden = ones.triu(1 + before)
    if window is not None:
        hidden |= ones.tril(before - window)
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


class Block(NamedTuple):
    """Some queries of a document, and the keys that they may see, by their places in it."""

    rows: int
    queries: slice
    keys: slice


def _blocks(length: int, window: int | None) -> list[Block]:
    """Blocks of nearly the same size."""
    count = -(-length // BLOCK)
    edges = [length * i // count for i in range(count + 1)]
    reach = length if window is None else window - 1
    return [
        Block(end - start, slice(start, end), slice(max(0, start - reach), end))
        for start, end in pairwise(edges)
    ]


def _hide(scores: Tensor, block: Block, window: int | None) -> None:
    """Put minus infinity where a query must not look; scores (key heads, groups, queries, keys)."""
    rows = block.rows
    if window is None:
        # Keys before the block are seen by all of it.
        scores[..., -rows:] += _hidden(0, BLOCK, None, scores.dtype)[:rows, :rows]
    else:
        unseen = window - 1 - (block.queries.start - block.keys.start)
        mask = _hidden(window - 1, BLOCK, window, scores.dtype)
        scores += mask[:rows, unseen : unseen + scores.shape[-1]]


class Documents(torch.autograd.Function):
    """Attention over documents in one row; each is computed by itself."""

    @staticmethod
    def forward(
        ctx: PassContext,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        offsets: list[int],
        window: int | None,
    ) -> Tensor:
        """Return the answers (1, tokens, heads, width).

        Args:
            q: queries (1, heads, tokens, width), as `k` and `v`, which may have fewer heads.
            offsets: where documents begin, and the end.
            window: keys that a query sees at most.
        """
        heads, tokens = q.shape[1:3]
        out = q.new_empty(tokens, heads, v.shape[-1])
        kept: list[Tensor] = []
        for start, end in pairwise(offsets):
            document = (q[0, :, start:end], k[0, :, start:end], v[0, :, start:end])
            if _is_short(end - start, window):
                kept += _short(document, scale, window, out[start:end].transpose(0, 1))
            else:
                answer, log_sum = _long(document, scale)
                kept += (answer, log_sum)
                out[start:end].copy_(answer[0].transpose(0, 1))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.given = scale, offsets, window
        return out[None]

    @staticmethod
    def backward(ctx: PassContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        q, k, v, *kept = ctx.saved_tensors
        scale, offsets, window = ctx.given
        dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        remaining = iter(kept)
        for start, end in pairwise(offsets):
            g = grad[0, start:end].transpose(0, 1)
            document = (q[0, :, start:end], k[0, :, start:end], v[0, :, start:end])
            into = (dq[0, :, start:end], dk[0, :, start:end], dv[0, :, start:end])
            if _is_short(end - start, window):
                _short_backward(g, document, remaining, scale, window, into)
                continue
            made = _long_backward(g, document, next(remaining), next(remaining), scale)
            for target, gradient in zip(into, made, strict=True):
                target.copy_(gradient)
        return dq, dk, dv, None, None, None


_attend = torch.compiler.disable(Documents.apply)


def _is_short(length: int, window: int | None) -> bool:
    return length <= LONGEST_STORED or (window is not None and window < length)


def _stacked(x: Tensor, rows: slice, shared: int) -> Tensor:
    """Query heads that share a key head under one another: (key heads, groups * rows, width)."""
    return x[:, rows].reshape(shared, -1, x.shape[-1])


def _short(document: Triple, scale: float, window: int | None, out: Tensor) -> list[Tensor]:
    """Write answers (heads, length, width) into `out`; return the probabilities of each block."""
    q, k, v = document
    shared, groups = k.shape[0], q.shape[0] // k.shape[0]
    kept = []
    for block in _blocks(q.shape[1], window):
        queries, keys = _stacked(q, block.queries, shared), k[:, block.keys]
        none = queries.new_empty(())
        scores = torch.baddbmm(none, queries, keys.transpose(1, 2), beta=0, alpha=scale)
        _hide(scores.view(shared, groups, block.rows, -1), block, window)
        probabilities = torch.softmax(scores, -1)
        answer = torch.bmm(probabilities, v[:, block.keys])
        out[:, block.queries].copy_(answer.view(q.shape[0], block.rows, -1))
        kept.append(probabilities)
    return kept


def _short_backward(
    grad: Tensor,
    document: Triple,
    kept: Iterator[Tensor],
    scale: float,
    window: int | None,
    into: Triple,
) -> None:
    """Write gradients of a document into `into`; `kept` gives the probabilities of its blocks."""
    (q, k, v), (dq, dk, dv) = document, into
    shared, length = k.shape[:2]
    blocks = _blocks(length, window)
    probabilities = list(islice(kept, len(blocks)))
    sums: list[Tensor] = []
    for block in reversed(blocks):
        p, keys = probabilities.pop(), k[:, block.keys]
        g, queries = (_stacked(t, block.queries, shared) for t in (grad, q))
        dp = torch.bmm(g, v[:, block.keys].transpose(1, 2))
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, dp.dtype)
        of_queries = torch.bmm(ds, keys).view(q.shape[0], -1, q.shape[-1])
        torch.mul(of_queries, scale, out=dq[:, block.queries])
        parts = [torch.bmm(ds.transpose(1, 2), queries), torch.bmm(p.transpose(1, 2), g)]
        if not sums and block.keys.start == 0:  # the last, unless a window hides keys
            sums = parts
            continue
        sums = sums or [torch.zeros_like(k), torch.zeros_like(v)]
        for total, part in zip(sums, parts, strict=True):
            total[:, block.keys] += part
    torch.mul(sums[0], scale, out=dk)
    dv.copy_(sums[1])


def _unshared(document: Triple) -> Triple:
    """Give every query head keys and values of its own, in a batch of one, as torch's kernel asks.

    Document and result: (heads, length, width), and (1, heads, length, width).
    """
    q, k, v = document
    groups = q.shape[0] // k.shape[0]
    return q[None], k.repeat_interleave(groups, 0)[None], v.repeat_interleave(groups, 0)[None]


def _long(document: Triple, scale: float) -> tuple[Tensor, Tensor]:
    """Return answer (1, heads, length, width) and log-sums by torch's blocked kernel."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *_unshared(document), 0.0, True, scale=scale
    )


def _long_backward(
    grad: Tensor, document: Triple, out: Tensor, log_sum: Tensor, scale: float
) -> Triple:
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad[None], *_unshared(document), out, log_sum, 0.0, True, scale=scale
    )
    shared = document[1].shape[0]
    dk, dv = (t.view(1, shared, -1, *t.shape[2:]).sum(2) for t in (dk, dv))
    return dq[0], dk[0], dv[0]
