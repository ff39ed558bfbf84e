"""Packing loses nothing and isolates documents from each other."""

import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from finetune_assets.tokenization.pack import join, pack
from finetune_assets.tokenization.render import IGNORED, Tokens
from finetune_assets.training.loss import collate


def documents(count: int, longest: int, seed: int = 0) -> list[Tokens]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [rng.randrange(3, 250) for _ in range(rng.randint(2, longest))]
        made.append(Tokens(ids, [IGNORED, *ids[1:]]))
    return made


def test_every_token_is_packed_once_and_no_context_is_too_long() -> None:
    made = documents(300, 60)
    contexts = pack(made, 64)
    assert max(len(c.input_ids) for c in contexts) <= 64
    assert sorted(t for c in contexts for t in c.input_ids) == sorted(
        t for d in made for t in d.input_ids
    )
    supervised = sum(label != IGNORED for c in contexts for label in c.labels)
    assert supervised == sum(d.supervised for d in made)


def test_contexts_are_nearly_full() -> None:
    made = documents(300, 30)
    contexts = pack(made, 64)
    assert sum(len(d.input_ids) for d in made) / (64 * len(contexts)) > 0.95


def test_the_first_token_of_a_document_is_not_predicted_from_its_neighbour() -> None:
    context = join([Tokens([5, 6], [5, 6]), Tokens([7, 8], [7, 8])])
    assert context.labels == [IGNORED, 6, IGNORED, 8]
    assert context.position_ids == [0, 1, 0, 1]


def test_packed_logits_equal_unpacked_logits(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    made = documents(6, 20)
    contexts = [join(made[:4]), join(made[4:])]
    batch = collate(contexts, pad_token_id=2)
    with torch.no_grad():
        packed = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
        row, start = 0, 0
        for index, document in enumerate(made):
            if index == 4:
                row, start = 1, 0
            alone = model(input_ids=torch.tensor([document.input_ids])).logits[0]
            together = packed[row, start : start + len(document.input_ids)]
            torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
            start += len(document.input_ids)
