"""Answers to a few declared prompts while training goes on, so that people see what it learns."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

import torch
from transformers import PreTrainedTokenizerBase

from finetune_assets.catalog.training import Training
from finetune_assets.models.kernels.attention import use_document_attention, uses_document_attention
from finetune_assets.models.kernels.generate import generate
from finetune_assets.models.kernels.types import Model
from finetune_assets.models.planning import ranks
from finetune_assets.models.tokenization.render import prompt_ids, stop_token_ids


class Sample(TypedDict):
    """An answer, as reports and manifests show it."""

    step: int
    prompt: str
    answer: str
    stopped: bool
    """The model ended the answer by itself."""


class PromptAnswerer:
    """Answers the declared prompts greedily."""

    def __init__(
        self, model: Model, tokenizer: PreTrainedTokenizerBase, training: Training
    ) -> None:
        self.model, self.tokenizer, self.training = model, tokenizer, training
        asked = [[{"role": "user", "content": text}] for text in training.sample_prompts]
        self.prompts = [prompt_ids(tokenizer, messages) for messages in asked]
        self.stops = stop_token_ids(tokenizer, "training.sample_prompts")

    def answer(self, step: int) -> list[Sample]:
        """Return the answers of the model as it is after a step."""
        with _use_for_inference(self.model), _share_logits(self.model, self.training):
            answers = generate(
                self.model,
                self.tokenizer,
                self.prompts,
                max_new_tokens=self.training.sample_max_new_tokens,
                batch_size=len(self.prompts),
                stop_token_ids=self.stops,
            )
        return [
            {"step": step, "prompt": prompt, "answer": made.text, "stopped": made.stopped}
            for prompt, made in zip(self.training.sample_prompts, answers, strict=True)
        ]


@contextmanager
def _use_for_inference(model: Model) -> Iterator[None]:
    """Switch to evaluation and to attention that has a cache; training goes on as it was."""
    training, documents = model.training, uses_document_attention(model)
    model.eval()
    if documents:
        model.set_attn_implementation("sdpa")
    try:
        with torch.random.fork_rng():
            yield
    finally:
        if documents:
            use_document_attention(model)
        model.train(training)


@contextmanager
def _share_logits(model: Model, training: Training) -> Iterator[None]:
    """Let all processes go on from the first one's logits, so that they generate alike.

    Where weights are divided, one that stopped earlier would keep the others waiting for ever.
    """
    if not ranks.divides(training):
        yield
        return
    hook = model.register_forward_hook(
        lambda _, __, output: torch.distributed.broadcast(output.logits, 0)
    )
    try:
        yield
    finally:
        hook.remove()
