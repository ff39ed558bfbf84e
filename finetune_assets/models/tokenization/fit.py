"""Fitting of rows to contexts: long ones are cut, dropped, an error, or divided into pieces."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from finetune_assets.catalog.training import Training
from finetune_assets.errors import UserError
from finetune_assets.models.tokenization.render import IGNORED, Tokens
from finetune_assets.models.tokenization.rows import Row, is_document, place


@dataclass
class Fitted:
    """Documents of at most `max_length` tokens, and what became of the rows they come from."""

    documents: list[Tokens] = field(default_factory=list)
    row_lengths: list[int] = field(default_factory=list)
    """Tokens of each row, before anything was cut."""
    truncated: int = 0
    """Rows that were cut and still teach something."""
    dropped: list[str] = field(default_factory=list)
    """Where rows came from that are left out."""
    texts: int = 0
    """Rows that are plain text."""


def fit_rows(rows: Sequence[Row], tokens: Sequence[Tokens], training: Training) -> Fitted:
    """Make documents of rows, each of which teaches a token; one too long may be a UserError."""
    found = Fitted(row_lengths=[len(t.input_ids) for t in tokens])
    for row, each in zip(rows, tokens, strict=True):
        if is_document(row):
            found.texts += 1
            pieces = cut_document(each, training.max_length, training.documents.overlap)
            pieces = [p for p in pieces if _sampled(p, training.documents.sample)]
            found.documents += [p for p in pieces if p.supervised]
            continue
        long = len(each.input_ids) > training.max_length
        if long and training.long_rows == "error":
            raise UserError(
                place(row),
                f"the row has {len(each.input_ids)} tokens, more than "
                f"max_length {training.max_length}",
                "raise `training.max_length`, or set `training.long_rows` to truncate or drop",
            )
        kept = fit(each, training.max_length) if long else each
        if (long and training.long_rows == "drop") or not kept.supervised:
            found.dropped.append(place(row))
            continue
        found.truncated += long
        found.documents.append(kept)
    return found


def fit(tokens: Tokens, max_length: int) -> Tokens:
    """Cut at `max_length`; a cut answer loses its stop token, so it is not taught as complete."""
    return Tokens(tokens.input_ids[:max_length], tokens.labels[:max_length])


def cut_document(tokens: Tokens, max_length: int, overlap: int = 0) -> list[Tokens]:
    """Cut a document into pieces of at most `max_length` tokens; nothing of it is lost.

    It is cut after the last of its `breaks` in the second half of a full piece, if there is one.
    Each piece but the first begins with the last `overlap` tokens of the one before, without loss.
    """
    pieces, start, fresh = [], 0, 0
    while fresh < len(tokens.input_ids):
        end = start + max_length
        last = int(np.searchsorted(tokens.breaks, end, "right")) - 1
        if end < len(tokens.input_ids) and last >= 0:
            preferred = int(tokens.breaks[last])
            end = preferred if preferred > start + max_length // 2 else end
        labels = tokens.labels[start:end].copy()
        labels[: fresh - start] = IGNORED
        pieces.append(Tokens(tokens.input_ids[start:end], labels))
        start, fresh = end - overlap, end
    return pieces


def _sampled(piece: Tokens, share: float) -> bool:
    """Decided by the piece alone, so that other documents change nothing about it."""
    if share == 1:
        return True
    digest = hashlib.blake2b(piece.input_ids.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
