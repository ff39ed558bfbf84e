"""Attention over documents that share a row, each seeing only itself: the CPU's fast path.

Stock kernels on a CPU either mask a whole row, and so compute what packing forbids, or run one
document at a time through a blocked kernel whose backward pass reaches a tenth of what matrix
products do. Here each document is a few plain products, with the query heads that share a key head
stacked into one. A mixture of documents costs the sum of their squares, not the square of the sum;
blocks of queries leave out most keys that lie ahead of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise

import torch
from peft import PeftModel
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)

from finetune_assets.models.kernels.lora import compute_dtype
from finetune_assets.models.kernels.types import PassContext
from finetune_assets.models.planning.choices import LONGEST_STORED, PLAIN

IMPLEMENTATION = "documents"
"""Name under which transformers finds this attention."""

BLOCK = 256
"""Queries of a document that are computed together, at most: each block takes the keys up to its
end. Smaller blocks leave out more keys, and their products are less efficient."""

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values, or their gradients."""


def use_document_attention(model: PreTrainedModel | PeftModel) -> bool:
    """Switch a model to document attention, unless its attention is of a kind that this is not.

    Returns:
        Whether it was switched; if not, nothing is changed.
    """
    if not _is_plain(model.config):
        return False
    AttentionInterface.register(IMPLEMENTATION, _forward)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
    model.set_attn_implementation(IMPLEMENTATION)
    return True


def uses_document_attention(model: PreTrainedModel | PeftModel) -> bool:
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


def _no_mask(*_: object, **__: object) -> None:
    return None


def offsets_as_mask(offsets: torch.Tensor) -> torch.Tensor:
    """Return offsets of documents, and the end, in the one shape that all models pass on unread."""
    return offsets.view(1, 1, 1, -1)


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers asks it to; tensors of shape (1, heads, tokens, width)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    offsets = attention_mask.flatten().tolist()
    # Inside autocast, float32 positions make float32 of queries and keys, and not of values.
    dtype = compute_dtype(value)
    parts = (part.to(dtype) for part in (query, key, value))
    return _attend(*parts, scale, offsets, sliding_window), None


@lru_cache(maxsize=8)
def _hidden(before: int, rows: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores: (rows, before + rows), for queries that have `before` keys ahead.

    Zero where a query sees a key, minus infinity elsewhere.
    """
    ones = torch.ones(rows, before + rows, dtype=torch.bool)
    hidden = ones.triu(1 + before)
    if window is not None:
        hidden |= ones.tril(before - window)
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


@dataclass(frozen=True)
class Block:
    """Some queries of a document, and the keys that they may see, by their places in it."""

    first: int
    start: int
    end: int
    """Queries are [start, end), keys [first, end)."""

    @property
    def queries(self) -> slice:
        """The places of the queries."""
        return slice(self.start, self.end)

    @property
    def keys(self) -> slice:
        """The places of the keys."""
        return slice(self.first, self.end)


def _blocks(length: int, window: int | None) -> list[Block]:
    """Blocks of nearly the same size."""
    count = -(-length // BLOCK)
    edges = [length * i // count for i in range(count + 1)]
    reach = length if window is None else window - 1
    return [Block(max(0, start - reach), start, end) for start, end in pairwise(edges)]


def _hide(scores: torch.Tensor, block: Block, window: int | None) -> None:
    """Put minus infinity where a query must not look; scores (key heads, groups, queries, keys)."""
    rows = block.end - block.start
    if window is None:
        # Keys before the block are seen by all of it.
        scores[..., -rows:] += _hidden(0, BLOCK, None, scores.dtype)[:rows, :rows]
    else:
        unseen = window - 1 - (block.start - block.first)
        mask = _hidden(window - 1, BLOCK, window, scores.dtype)
        scores += mask[:rows, unseen : unseen + scores.shape[-1]]


class Documents(torch.autograd.Function):
    """Attention over documents in one row; each is computed by itself."""

    @staticmethod
    def forward(
        ctx: PassContext,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        offsets: list[int],
        window: int | None,
    ) -> torch.Tensor:
        """Return the answers (1, tokens, heads, width).

        Args:
            q: queries (1, heads, tokens, width), as `k` and `v`, which may have fewer heads.
            offsets: where documents begin, and the end.
            window: keys that a query sees at most.
        """
        heads, tokens = q.shape[1:3]
        out = q.new_empty(tokens, heads, v.shape[-1])
        kept: list[torch.Tensor] = []
        for start, end in pairwise(offsets):
            part = (slice(None), slice(start, end))
            if _is_short(end - start, window):
                answer = out[start:end].transpose(0, 1)
                kept += _short(q[0][part], k[0][part], v[0][part], scale, window, answer)
            else:
                answer, log_sum = _long(q, k, v, start, end, scale)
                kept += (answer, log_sum)
                out[start:end].copy_(answer[0].transpose(0, 1))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.given = scale, offsets, window
        return out[None]

    @staticmethod
    def backward(ctx: PassContext, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        q, k, v, *kept = ctx.saved_tensors
        scale, offsets, window = ctx.given
        dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
        remaining = iter(kept)
        for start, end in pairwise(offsets):
            part = (slice(None), slice(start, end))
            g = grad[0, start:end].transpose(0, 1)
            into = (dq[0][part], dk[0][part], dv[0][part])
            if _is_short(end - start, window):
                q_k_v = (q[0][part], k[0][part], v[0][part])
                _short_backward(g, *q_k_v, remaining, scale, window, into)
                continue
            made = _long_backward(g, q, k, v, next(remaining), next(remaining), start, end, scale)
            for target, gradient in zip(into, made, strict=True):
                target.copy_(gradient)
        return dq, dk, dv, None, None, None


_attend = torch.compiler.disable(Documents.apply)


def _is_short(length: int, window: int | None) -> bool:
    return length <= LONGEST_STORED or (window is not None and window < length)


def _stacked(x: torch.Tensor, rows: slice, shared: int) -> torch.Tensor:
    """Query heads that share a key head under one another: (key heads, groups * rows, width)."""
    return x[:, rows].reshape(shared, -1, x.shape[-1])


def _short(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int | None,
    out: torch.Tensor,
) -> list[torch.Tensor]:
    """Write the answers of a document into `out`; return the probabilities of each block.

    Args:
        q: (heads, length, width), as `out`; `k` and `v` have fewer heads.
    """
    shared, groups = k.shape[0], q.shape[0] // k.shape[0]
    kept = []
    for block in _blocks(q.shape[1], window):
        rows, keys = block.end - block.start, k[:, block.keys]
        queries = _stacked(q, block.queries, shared)
        none = queries.new_empty(())
        scores = torch.baddbmm(none, queries, keys.transpose(1, 2), beta=0, alpha=scale)
        _hide(scores.view(shared, groups, rows, -1), block, window)
        probabilities = torch.softmax(scores, -1)
        answer = torch.bmm(probabilities, v[:, block.keys])
        out[:, block.queries].copy_(answer.view(q.shape[0], rows, -1))
        kept.append(probabilities)
    return kept


def _short_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: Iterator[torch.Tensor],
    scale: float,
    window: int | None,
    into: Triple,
) -> None:
    """Write gradients of one document's queries, keys and values into `into`.

    Args:
        kept: gives the probabilities of its blocks.
    """
    shared, length = k.shape[:2]
    blocks = _blocks(length, window)
    probabilities = list(islice(kept, len(blocks)))
    dq, dk, dv = into
    sums: list[torch.Tensor] = []
    for block in reversed(blocks):
        p, keys = probabilities.pop(), k[:, block.keys]
        g, queries = (_stacked(t, block.queries, shared) for t in (grad, q))
        dp = torch.bmm(g, v[:, block.keys].transpose(1, 2))
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, dp.dtype)
        of_queries = torch.bmm(ds, keys).view(q.shape[0], -1, q.shape[-1])
        torch.mul(of_queries, scale, out=dq[:, block.queries])
        parts = [torch.bmm(ds.transpose(1, 2), queries), torch.bmm(p.transpose(1, 2), g)]
        if not sums and block.first == 0:  # the last block, unless a window hides its first keys
            sums = parts
            continue
        sums = sums or [torch.zeros_like(k), torch.zeros_like(v)]
        for total, part in zip(sums, parts, strict=True):
            total[:, block.keys] += part
    torch.mul(sums[0], scale, out=dk)
    dv.copy_(sums[1])


def _long(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int, end: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Answer (1, heads, length, width) and log-sums by torch's blocked kernel."""
    groups = q.shape[1] // k.shape[1]
    queries = q[:, :, start:end]
    keys, values = (t[:, :, start:end].repeat_interleave(groups, 1) for t in (k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries, keys, values, 0.0, True, scale=scale
    )


def _long_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    log_sum: torch.Tensor,
    start: int,
    end: int,
    scale: float,
) -> Triple:
    groups = q.shape[1] // k.shape[1]
    queries = q[:, :, start:end]
    keys, values = (t[:, :, start:end].repeat_interleave(groups, 1) for t in (k, v))
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad[None], queries, keys, values, out, log_sum, 0.0, True, scale=scale
    )
    dk, dv = (t.view(1, k.shape[1], groups, *t.shape[2:]).sum(2) for t in (dk, dv))
    return dq[0], dk[0], dv[0]
