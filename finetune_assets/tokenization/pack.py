"""Packing: several conversations in one context, each with positions of its own."""

import bisect
from dataclasses import dataclass

from finetune_assets.tokenization.render import IGNORED, Tokens


@dataclass
class Context:
    """One training example; the three lists have the same length."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    """Restart at 0 with each document, which is what isolates it from its neighbours."""


def pack(documents: list[Tokens], max_length: int) -> list[Context]:
    """Best-fit-decreasing bin packing into contexts of at most `max_length` tokens.

    Each document must fit by itself. Deterministic; costs O(n log n).
    """
    order = sorted(range(len(documents)), key=lambda i: (-len(documents[i].input_ids), i))
    bins: list[list[int]] = []
    # (room left, bin), ascending, so that the tightest bin that fits is found by bisection.
    rooms: list[tuple[int, int]] = []
    for index in order:
        size = len(documents[index].input_ids)
        at = bisect.bisect_left(rooms, (size, -1))
        if at == len(rooms):
            bins.append([index])
            bisect.insort(rooms, (max_length - size, len(bins) - 1))
        else:
            room, target = rooms.pop(at)
            bins[target].append(index)
            bisect.insort(rooms, (room - size, target))
    return [join([documents[i] for i in sorted(members)]) for members in bins]


def join(documents: list[Tokens]) -> Context:
    """Documents one after another; the first token of each has nothing to be predicted from."""
    context = Context([], [], [])
    for document in documents:
        context.input_ids += document.input_ids
        context.labels += [IGNORED, *document.labels[1:]]
        context.position_ids += range(len(document.input_ids))
    return context
