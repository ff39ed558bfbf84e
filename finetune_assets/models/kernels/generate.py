"""Greedy generation in batches, with finished rows leaving the batch."""

from dataclasses import dataclass
from typing import cast

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from finetune_assets.models.kernels.types import Model


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated answer."""

    text: str
    token_count: int
    """Tokens generated, the stop token not counted."""
    stopped: bool
    """False for a runaway: cut off at the limit of new tokens."""


def generate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop_token_ids: list[int],
) -> list[Generation]:
    """Return the most likely continuation of each prompt (token ids), in the order of the prompts.

    Prompts of like length share a batch.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Generation] = {}
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        tokens = _greedy(model, [prompts[i] for i in members], max_new_tokens, set(stop_token_ids))
        for index, (ids, stopped) in zip(members, tokens, strict=True):
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            answers[index] = Generation(text, len(ids), stopped)
    return [answers[i] for i in range(len(prompts))]


def _greedy(
    model: Model, prompts: list[list[int]], max_new_tokens: int, stops: set[int]
) -> list[tuple[list[int], bool]]:
    """New tokens of each prompt and whether it stopped; left-padded, key-value cache.

    A row that has stopped is taken out of the batch and of the cache, so that one long answer
    does not keep the others computing.
    """
    made: list[list[int]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    alive = list(range(len(prompts)))
    inputs, mask = _left_pad(prompts, model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            logits = model(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            chosen = logits[:, -1].argmax(-1)
            keep = []
            for row, token in enumerate(chosen.tolist()):
                if token in stops:
                    stopped[alive[row]] = True
                else:
                    made[alive[row]].append(token)
                    keep.append(row)
            if not keep:
                break
            rows = torch.tensor(keep, device=model.device)
            if len(keep) < len(alive):
                cache.reorder_cache(cast(torch.LongTensor, rows))
            alive = [alive[row] for row in keep]
            inputs = chosen[rows, None]
            mask = torch.cat([mask[rows], mask.new_ones(len(keep), 1)], dim=1)
            positions = positions[rows, -1:] + 1
    return list(zip(made, stopped, strict=True))


def _left_pad(prompts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask of shape (rows, longest); what the padding holds is never read."""
    longest = max(len(p) for p in prompts)
    ids = [[0] * (longest - len(p)) + p for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
