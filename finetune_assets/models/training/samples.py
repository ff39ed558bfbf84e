"""Answers to a few declared prompts while training goes on, so that people see what it learns."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from finetune_assets.catalog.training import Training
from finetune_assets.models.kernels.attention import use_document_attention, uses_document_attention
from finetune_assets.models.kernels.generate import generate
from finetune_assets.models.kernels.types import Model
from finetune_assets.models.planning import ranks
from finetune_assets.models.tokenization.render import prompt_ids, stop_token_ids


class PromptAnswerer:
    """Answers the declared prompts greedily."""

    def __init__(
        self, model: Model, tokenizer: PreTrainedTokenizerBase, training: Training
    ) -> None:
        self.model, self.tokenizer, self.training = model, tokenizer, training
        asked = [[{"role": "user", "content": text}] for text in training.sample_prompts]
        self.prompts = [prompt_ids(tokenizer, messages) for messages in asked]
        self.stops = stop_token_ids(tokenizer, "training.sample_prompts")

    def answer(self, step: int) -> list[dict[str, JsonValue]]:
        """Return the answers of the model as it is after a step, as an AdapterRecord's samples."""
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


def _share_logits(model: Model, training: Training) -> AbstractContextManager[object]:
    """Let all processes go on from the first one's logits, so that they generate alike.

    Where weights are divided, one that stopped earlier would keep the others waiting for ever.
    """
    if not ranks.divides(training):
        return nullcontext()
    return model.register_forward_hook(
        lambda _, __, output: torch.distributed.broadcast(output.logits, 0)
    )
