"""Cross-entropy over the positions that carry loss, and only those."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import cast

import numpy as np
import torch

from finetune_assets.models.kernels.attention import offsets_as_mask, uses_document_attention
from finetune_assets.models.kernels.lora import compute_dtype
from finetune_assets.models.kernels.types import Model, PassContext
from finetune_assets.models.planning.choices import LOGIT_BYTES
from finetune_assets.models.tokenization.contexts import Context
from finetune_assets.models.tokenization.render import IGNORED

ROW_MULTIPLE = 32
"""Tokens that a flat row is a multiple of: tensors of few sizes take the places of those before
them, where those of every size leave gaps, a fifth of the memory after one epoch of the sample. It
costs some 1.5 % of a row."""

Batch = dict[str, torch.Tensor]
"""`input_ids`, `labels` and `position_ids` of one shape; `tokens`, how many of them are no padding;
and `offsets` of documents where contexts lie in one row."""


def collate_flat(contexts: Sequence[Context]) -> Batch:
    """Put contexts one after another into one row of shape (1, tokens).

    `offsets` says where documents begin, and the end; `tokens` has the number of tokens.
    """
    columns = {
        name: np.concatenate([getattr(c, name) for c in contexts])[None].astype(np.int64)
        for name in ("input_ids", "labels", "position_ids")
    }
    starts = np.flatnonzero(columns["position_ids"][0] == 0)
    batch = {name: torch.from_numpy(values) for name, values in columns.items()}
    batch["offsets"] = torch.from_numpy(np.append(starts, columns["input_ids"].shape[1]))
    batch["tokens"] = torch.tensor([columns["input_ids"].shape[1]])
    return batch


def collate_rows(contexts: Sequence[Context], pad_token_id: int) -> Batch:
    """Right-pad contexts to the longest; tensors of shape (batch, longest).

    Padding counts positions from 0 again, so it is a document of its own that nothing attends to;
    there is no attention mask, because one would switch off the isolation that restarting
    positions give.
    """
    longest = max(len(c.input_ids) for c in contexts)
    shape = (len(contexts), longest)
    ids, labels = np.full(shape, pad_token_id), np.full(shape, IGNORED)
    positions = np.zeros(shape, np.int64)
    for row, context in enumerate(contexts):
        length = len(context.input_ids)
        ids[row, :length], labels[row, :length] = context.input_ids, context.labels
        positions[row, :length] = context.position_ids
        positions[row, length:] = np.arange(longest - length)
    columns = {"input_ids": ids, "labels": labels, "position_ids": positions}
    batch = {name: torch.from_numpy(values) for name, values in columns.items()}
    batch["tokens"] = torch.tensor([sum(len(c.input_ids) for c in contexts)])
    return batch


def collate(model: Model, contexts: Sequence[Context], pad_token_id: int) -> Batch:
    """Put contexts into the shape that the model's attention takes; `tokens` counts no padding."""
    if not uses_document_attention(model) and "flash" not in model.config._attn_implementation:
        return collate_rows(contexts, pad_token_id)
    real = sum(len(context.input_ids) for context in contexts)
    batch = collate_flat([*contexts, *_filler(-real % ROW_MULTIPLE, pad_token_id)])
    return {**batch, "tokens": torch.tensor([real])}


def _filler(length: int, pad_token_id: int) -> list[Context]:
    """A document of padding, without loss; none of length 0."""
    ids, labels = np.full(length, pad_token_id), np.full(length, IGNORED)
    return [Context(ids, labels, np.arange(length))] if length else []


def supervised_nll(
    model: torch.nn.Module, batch: Batch, *, fused: bool = True
) -> tuple[torch.Tensor, int]:
    """Return the summed negative log-likelihood (nats, float32) and the tokens that it is over.

    The model may be inside DDP or compilation. With `fused`, a plain linear output head, whole on
    this device, multiplies in slices whose logits are dropped at once.
    """
    # Position i predicts token i + 1; the last position predicts nothing.
    targets = torch.full_like(batch["labels"], IGNORED)
    targets[:, :-1] = batch["labels"][:, 1:]
    keep = targets != IGNORED
    plain = model_of(model)
    inputs, head = inputs_of(plain, batch), plain.get_output_embeddings()
    if fused and _is_plain_head(plain, head):
        with _bypass_head(head, keep):
            hidden = model(**inputs, use_cache=False).logits
        size = LOGIT_BYTES[hidden.device.type]
        learns = torch.is_grad_enabled()
        nll = SlicedCrossEntropy.apply(hidden, head.weight, targets[keep], size, learns)
        return nll, int(keep.sum())
    # Unlike `_bypass_head`, it leaves in force every model's own scaling and capping of logits.
    with head.register_forward_pre_hook(lambda _, args: (args[0][keep], *args[1:])):
        logits = model(**inputs, use_cache=False).logits
    nll = torch.nn.functional.cross_entropy(logits.float(), targets[keep], reduction="sum")
    return nll, int(keep.sum())


def inputs_of(model: Model, batch: Batch) -> Batch:
    """Return what the model takes of a batch."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    if uses_document_attention(model):
        inputs["attention_mask"] = offsets_as_mask(batch["offsets"])
    return inputs


def model_of(wrapped: torch.nn.Module) -> Model:
    """Return the model inside DDP and compilation."""
    while inner := getattr(wrapped, "module", None) or getattr(wrapped, "_orig_mod", None):
        wrapped = inner
    return cast(Model, wrapped)


def _is_plain_head(model: Model, head: torch.nn.Module) -> bool:
    """A linear layer without bias whose product is the logits, neither scaled nor capped."""
    values = model.config.to_dict()
    changes = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier")
    return type(head) is torch.nn.Linear and head.bias is None and not any(map(values.get, changes))


@contextmanager
def _bypass_head(head: torch.nn.Module, keep: torch.Tensor) -> Iterator[None]:
    """While open, the output head returns its input (batch, length, width) at `keep`."""
    head.forward = lambda hidden: hidden[keep]
    try:
        yield
    finally:
        del head.forward


class SlicedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T`, a slice of rows at a time.

    The gradient is made in the forward pass, from the logits while they are in the cache, so that
    they are computed once and never stored.
    """

    @staticmethod
    def forward(
        ctx: PassContext,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        logit_bytes: int,
        learning: bool,
    ) -> torch.Tensor:
        """Return the loss (float32) of `hidden` (rows, width) by the head `weight`.

        `targets` has the token that each row is to predict, `logit_bytes` is the size of the
        float32 logits that exist at a time, and `learning` says whether gradients are wanted.
        """
        learns, tunes_head = (learning and needed for needed in ctx.needs_input_grad[:2])
        dtype = compute_dtype(hidden)
        head = weight.to(dtype)
        rows = max(16, logit_bytes // (4 * len(weight)))
        total = hidden.new_zeros((), dtype=torch.float32)
        d_hidden = torch.empty_like(hidden) if learns else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if tunes_head else None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            states, wanted = hidden[part].to(dtype), targets[part, None]
            logits = (states @ head.t()).float()
            highest = logits.amax(-1, keepdim=True)
            chosen = logits.gather(-1, wanted)
            sums = logits.sub_(highest).exp_().sum(-1, keepdim=True)
            total += (sums.log() + highest - chosen).sum()
            if learns or tunes_head:
                grad = logits.div_(sums)
                grad = grad.scatter_add_(-1, wanted, torch.full_like(sums, -1.0)).to(dtype)
            if d_hidden is not None:
                d_hidden[part] = grad @ head
            if d_weight is not None:
                d_weight += grad.t() @ states
        ctx.given = d_hidden, d_weight, weight.dtype
        return total

    @staticmethod
    def backward(ctx: PassContext, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of `hidden` and `weight`, as far as they are wanted."""
        d_hidden, d_weight, dtype = ctx.given
        if d_hidden is not None:
            d_hidden = d_hidden * grad.to(d_hidden.dtype)
        if d_weight is not None:
            d_weight = (d_weight * grad).to(dtype)
        return d_hidden, d_weight, None, None, None


def nll_of(
    model: torch.nn.Module,
    contexts: Sequence[Context],
    *,
    batch_size: int,
    pad_token_id: int,
    autocast: Callable[[], AbstractContextManager[object]],
    fused: bool = True,
) -> tuple[float, int]:
    """Return the summed loss (nats) and the tokens with loss of contexts.

    Weights, mode and random state of the model stay as they are.
    """
    plain, training = model_of(model), model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), torch.random.fork_rng():
        for start in range(0, len(contexts), batch_size):
            batch = collate(plain, contexts[start : start + batch_size], pad_token_id)
            batch = {key: value.to(plain.device) for key, value in batch.items()}
            with autocast():
                nll, tokens = supervised_nll(model, batch, fused=fused)
            total, count = total + float(nll), count + tokens
    model.train(training)
    return total, count
