"""Packing loses nothing, fills contexts, and isolates documents from each other."""

import random
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from finetune_assets.models.tokenization.contexts import join
from finetune_assets.models.tokenization.pack import Packed, one_each, pack, pack_in_order
from finetune_assets.models.tokenization.render import IGNORED, Tokens


def lengths(count: int, longest: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2, longest + 1, count)


def sizes(lengths: np.ndarray, packed: Packed) -> list[int]:
    """Tokens of each context."""
    members, starts = packed
    return [int(lengths[m].sum()) for m in np.split(members, starts[1:-1])]


def documents(count: int, longest: int, seed: int = 0) -> list[Tokens]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        ids = np.array([rng.randrange(3, 250) for _ in range(rng.randint(2, longest))])
        made.append(Tokens(ids, ids))
    return made


def test_every_document_is_packed_once_and_no_context_is_too_long() -> None:
    given = lengths(300, 60)
    for way in (pack, pack_in_order):
        packed = way(given, 64)
        assert sorted(packed[0].tolist()) == list(range(300))
        assert max(sizes(given, packed)) <= 64
    assert sizes(given, one_each(given)) == given.tolist()


def test_contexts_are_nearly_full() -> None:
    given = lengths(300, 30)
    assert given.sum() / (64 * len(sizes(given, pack(given, 64)))) > 0.95


def test_each_document_goes_where_least_room_is_left() -> None:
    members, starts = pack(np.array([3, 6, 5, 2, 2]), 8)
    # 6 and 5 open contexts; 3 fits the second alone, 2 the first; the last opens a third.
    contexts = [sorted(m.tolist()) for m in np.split(members, starts[1:-1])]
    assert contexts == [[1, 3], [0, 2], [4]]


def test_in_order_no_document_overtakes_another() -> None:
    given = np.array([5, 4, 3, 7, 1])
    members, starts = pack_in_order(given, 8)
    assert members.tolist() == [0, 1, 2, 3, 4]
    assert starts.tolist() == [0, 1, 3, 5]


def test_the_first_token_of_a_document_is_not_predicted_from_its_neighbour() -> None:
    context = join([Tokens(np.array(ids), np.array(ids)) for ids in ([5, 6], [7, 8])])
    assert context.labels.tolist() == [IGNORED, 6, IGNORED, 8]
    assert context.position_ids.tolist() == [0, 1, 0, 1]


def test_packed_logits_equal_unpacked_logits(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    made = documents(6, 20)
    for some in (made[:4], made[4:]):
        context = join(some)
        with torch.no_grad():
            packed = model(
                input_ids=torch.from_numpy(context.input_ids)[None].long(),
                position_ids=torch.from_numpy(context.position_ids)[None].long(),
                use_cache=False,
            ).logits[0]
            start = 0
            for document in some:
                alone = model(input_ids=torch.from_numpy(document.input_ids)[None]).logits[0]
                together = packed[start : start + len(document.input_ids)]
                torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
                start += len(document.input_ids)
