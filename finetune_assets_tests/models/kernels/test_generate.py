"""Batched generation equals one by one, stops where it should, and counts runaways."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_assets.models.kernels.generate import generate

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17], [20, 21], [30, 31, 32, 33]]


def test_batches_give_what_single_rows_give(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)

    def run(prompts: list[list[int]], batch_size: int, stops: list[int]) -> list[tuple[str, bool]]:
        made = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=12,
            batch_size=batch_size,
            stop_token_ids=stops,
        )
        return [(g.text, g.stopped) for g in made]

    for stops in ([2], list(range(3, 300, 7))):
        together = run(PROMPTS, 3, stops)
        assert together == [run([p], 1, stops)[0] for p in PROMPTS]
    assert any(stopped for _, stopped in together)
    assert together == run(PROMPTS, 5, stops)


def test_tokens_are_those_of_the_library(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    for prompt in PROMPTS:
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=2
        )[0, len(prompt) :].tolist()
        theirs = theirs[: theirs.index(2)] if 2 in theirs else theirs
        ours = generate(
            model, tokenizer, [prompt], max_new_tokens=10, batch_size=1, stop_token_ids=[2]
        )[0]
        assert ours.token_count == len(theirs)
        assert ours.text == tokenizer.decode(theirs, skip_special_tokens=True)


def test_a_row_that_never_stops_is_a_runaway(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    made = generate(model, tokenizer, PROMPTS, max_new_tokens=4, batch_size=2, stop_token_ids=[])
    assert [g.stopped for g in made] == [False] * 5
    assert [g.token_count for g in made] == [4] * 5
