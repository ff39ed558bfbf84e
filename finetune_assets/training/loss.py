"""Cross-entropy over the positions that carry loss, and only those."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune_assets.tokenization.contexts import Context
from finetune_assets.tokenization.render import IGNORED

if TYPE_CHECKING:
    import torch


def collate(contexts: Sequence[Any], pad_token_id: int) -> "dict[str, torch.Tensor]":
    """Right-pad contexts to the longest; tensors of shape (batch, longest).

    Takes `Context` objects or dicts with their fields. Padding counts positions from 0 again, so
    it is a document of its own that nothing attends to; there is no attention mask, because one
    would switch off the isolation that restarting positions give.
    """
    import torch

    rows = [_lists(c) if isinstance(c, Context) else c for c in contexts]
    longest = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in rows:
        gap = longest - len(row["input_ids"])
        batch["input_ids"].append([*row["input_ids"], *([pad_token_id] * gap)])
        batch["labels"].append([*row["labels"], *([IGNORED] * gap)])
        batch["position_ids"].append([*row["position_ids"], *range(gap)])
    return {key: torch.tensor(value) for key, value in batch.items()}


def _lists(context: Context) -> dict[str, list[int]]:
    return {name: values.tolist() for name, values in vars(context).items()}


@contextmanager
def head_sees_only(head: Any, keep: "torch.Tensor") -> Iterator[None]:
    """While open, the output head gets hidden states (batch, length, width) at `keep` only.

    Every model's own scaling and capping of logits stays in force, as its forward is not replaced.
    """
    hook = head.register_forward_pre_hook(lambda _, args: (args[0][keep], *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def supervised_nll(model: Any, batch: "dict[str, torch.Tensor]") -> "tuple[torch.Tensor, int]":
    """Summed negative log-likelihood (nats, float32) and the number of supervised tokens."""
    import torch

    # Position i predicts token i + 1; the last position predicts nothing.
    targets = torch.full_like(batch["labels"], IGNORED)
    targets[:, :-1] = batch["labels"][:, 1:]
    keep = targets != IGNORED
    with head_sees_only(model.get_output_embeddings(), keep):
        output = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        )
    nll = torch.nn.functional.cross_entropy(output.logits.float(), targets[keep], reduction="sum")
    return nll, int(keep.sum())


def mean_loss(
    model: Any, contexts: Sequence[Context], *, batch_size: int, pad_token_id: int, autocast: Any
) -> float:
    """Token-weighted mean loss over contexts, without gradients; leaves the training mode as is."""
    import torch

    training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(contexts), batch_size):
            batch = collate(contexts[start : start + batch_size], pad_token_id)
            batch = {key: value.to(model.device) for key, value in batch.items()}
            with autocast():
                nll, tokens = supervised_nll(model, batch)
            total, count = total + float(nll), count + tokens
    model.train(training)
    return total / count
