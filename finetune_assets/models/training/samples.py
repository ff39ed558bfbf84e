"""Answers to a few declared prompts while training goes on, so that people see what it learns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetune_assets.catalog.training import Training
from finetune_assets.models.kernels.attention import use_document_attention, uses_document_attention
from finetune_assets.models.planning import ranks

Row = dict[str, Any]


def answering(model: Any, tokenizer: Any, training: Training) -> Callable[[int], list[Row]] | None:
    """A function of the step that answers the prompts greedily; None where none are declared."""
    from finetune_assets.models.kernels.generate import generate
    from finetune_assets.models.tokenization.render import prompt_ids, stop_token_ids

    if not training.sample_prompts:
        return None
    prompts = [prompt_ids(tokenizer, [_asked(text)]) for text in training.sample_prompts]
    stops = stop_token_ids(tokenizer, "training.sample_prompts")

    def answer(step: int) -> list[Row]:
        with _as_in_use(model), _same_logits(model, training):
            answers = generate(
                model,
                tokenizer,
                prompts,
                max_new_tokens=training.sample_max_new_tokens,
                batch_size=len(prompts),
                stop_token_ids=stops,
            )
        return [
            {"step": step, "prompt": prompt, "answer": made.text, "stopped": made.stopped}
            for prompt, made in zip(training.sample_prompts, answers, strict=True)
        ]

    return answer


def _asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@contextmanager
def _as_in_use(model: Any) -> Any:
    """In evaluation mode and with attention that has a cache; training goes on as it was."""
    import torch

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
def _same_logits(model: Any, training: Training) -> Iterator[None]:
    """Let all processes go on from the first one's logits, so that they generate alike.

    Where weights are divided, one that stopped earlier would keep the others waiting for ever.
    """
    if not ranks.divides(training):
        yield
        return
    import torch

    hook = model.register_forward_hook(
        lambda _, __, output: torch.distributed.broadcast(output.logits, 0)
    )
    try:
        yield
    finally:
        hook.remove()
