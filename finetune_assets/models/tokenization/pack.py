"""Packing: which documents share a context, by their lengths alone."""

import numpy as np

Packed = tuple[np.ndarray, np.ndarray]
"""Documents context by context (int64), and where among them each context begins, and the end."""


def pack(lengths: np.ndarray, max_length: int) -> Packed:
    """Pack documents best-fit-decreasing into contexts of at most `max_length` tokens.

    Each document must fit by itself. Deterministic. A bit for every room left that some context
    has finds the tightest one, so the cost is linear in the number of documents.
    """
    context_of = np.empty(len(lengths), np.int64)
    contexts_with: list[list[int]] = [[] for _ in range(max_length + 1)]
    rooms = count = 0  # `rooms` has bit r set where contexts_with[r] is not empty
    for document in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[document])
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            context = contexts_with[room].pop()
            if not contexts_with[room]:
                rooms ^= 1 << room
        else:
            room, context, count = max_length, count, count + 1
        context_of[document] = context
        contexts_with[room - size].append(context)
        rooms |= 1 << (room - size)
    return _grouped(context_of, count)


def pack_in_order(lengths: np.ndarray, max_length: int) -> Packed:
    """Pack documents in their order; where one does not fit, a new context begins."""
    context_of = np.empty(len(lengths), np.int64)
    context, left = -1, 0
    for document, size in enumerate(lengths.tolist()):
        if size > left:
            context, left = context + 1, max_length
        context_of[document] = context
        left -= size
    return _grouped(context_of, context + 1)


def one_each(lengths: np.ndarray) -> Packed:
    """Make a context of each document."""
    return np.arange(len(lengths)), np.arange(len(lengths) + 1)


def _grouped(context_of: np.ndarray, count: int) -> Packed:
    """Documents of a context in their order."""
    members = np.argsort(context_of, kind="stable")
    sizes = np.bincount(context_of, minlength=count)
    return members, np.concatenate([[0], np.cumsum(sizes)])
