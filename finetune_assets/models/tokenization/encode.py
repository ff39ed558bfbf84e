"""Texts to tokens, many at once, by the tokenizer's Rust core, and where in them characters are."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any
from unicodedata import is_normalized

import numpy as np

from finetune_assets.errors import UserError
from finetune_assets.models.tokenization.words import Words, are_independent

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase


AT_ONCE = 256
"""Texts in the core at a time; what it holds of each is a hundred times their tokens."""


@dataclass
class Encoded:
    """The tokens of a text."""

    ids: np.ndarray
    """int32, without special tokens that the text does not spell out."""
    places: np.ndarray
    """For each place asked for, the number of tokens that begin before it."""
    between: np.ndarray
    """For each place asked for, whether it lies between two tokens and not within one."""


class Encoder:
    """A base's tokenizer without truncation, padding, or special tokens of its own."""

    def __init__(self, description: str, split_special_tokens: bool) -> None:
        """Build the Rust core of a tokenizer that is described as JSON.

        With `split_special_tokens`, special tokens that a text spells out are plain text.
        """
        from tokenizers import Tokenizer

        self._given = description, split_special_tokens
        described = json.loads(description)
        # It would shift where tokens begin and end; the rest would cut or lengthen rows in silence.
        described |= {"post_processor": None, "truncation": None, "padding": None}
        self._core = Tokenizer.from_str(json.dumps(described))
        self._core.encode_special_tokens = split_special_tokens
        normalizer = (described["normalizer"] or {}).get("type")
        self._nfc = normalizer == "NFC"
        known = _is_byte_level(described) and normalizer in (None, "NFC")
        self._widths = _widths(self._core) if known else None
        self._words = Words(self._core) if are_independent(self._core, described) else None

    def __reduce__(self) -> tuple[Any, ...]:
        return Encoder, self._given

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", where: str) -> "Encoder":
        """Take over the Rust core of a tokenizer, which must have one."""
        if not tokenizer.is_fast:
            raise UserError(
                where,
                f"the tokenizer of the base is a {type(tokenizer).__name__}, which cannot tell "
                "where in a text its tokens are",
                "use a base that brings a tokenizer.json",
            )
        fast: Any = tokenizer
        return cls(fast.backend_tokenizer.to_str(), bool(fast.split_special_tokens))

    def __call__(self, texts: Sequence[str], places: Sequence[Sequence[int]]) -> list[Encoded]:
        """Return the tokens of each text, and where in them its `places` (characters) are."""
        parts = [slice(start, start + AT_ONCE) for start in range(0, len(texts), AT_ONCE)]
        return [each for part in parts for each in self._encoded(texts[part], places[part])]

    def _encoded(self, texts: Sequence[str], places: Sequence[Sequence[int]]) -> list[Encoded]:
        if self._widths is None:
            encodings = self._core.encode_batch(texts, add_special_tokens=False)
            return [_by_offsets(*each) for each in zip(encodings, places, strict=True)]
        ids = self._ids(texts)
        ends = np.cumsum([0, *map(len, ids)])
        flat = np.fromiter(chain.from_iterable(ids), np.int32, int(ends[-1]))
        edges = np.concatenate([[0], np.cumsum(self._widths[flat])])
        return [
            self._by_widths(text, flat[a:b], edges[a : b + 1], wanted)
            for text, wanted, a, b in zip(
                texts, places, ends[:-1].tolist(), ends[1:].tolist(), strict=True
            )
        ]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self._words is not None:
            return self._words(texts)
        # Without offsets the core takes a fifth less time.
        encodings = self._core.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _by_widths(
        self, text: str, ids: np.ndarray, edges: np.ndarray, places: Sequence[int]
    ) -> Encoded:
        """`edges`: the bytes before each token and after the last, from any number on."""
        ascii_only = text.isascii()
        in_bytes = np.asarray(places) if ascii_only else _bytes_before(text, places)
        size = len(text) if ascii_only else len(text.encode())
        as_spelled = not self._nfc or is_normalized("NFC", text)
        if edges[-1] - edges[0] != size or not as_spelled:
            return _by_offsets(self._core.encode(text, add_special_tokens=False), places)
        at = np.searchsorted(edges, in_bytes + edges[0])
        return Encoded(ids, at, edges[at] == in_bytes + edges[0])


def _by_offsets(encoding: "Encoding", places: Sequence[int]) -> Encoded:
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    at = np.searchsorted(offsets[:, 0], places)
    # The end of the token before each place; a place before all tokens has none.
    ends = np.concatenate([[0], offsets[:, 1]])[at]
    return Encoded(np.array(encoding.ids, np.int32), at, ends <= np.asarray(places))


def _is_byte_level(description: dict[str, Any]) -> bool:
    """Whether the letters of a token are the bytes that it stands for."""
    steps = description["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    return description["model"]["type"] == "BPE" and any(
        step.get("type") == "ByteLevel" and not step["add_prefix_space"] for step in steps
    )


def _widths(core: "Tokenizer") -> np.ndarray:
    vocabulary = core.get_vocab(with_added_tokens=True)
    widths = np.zeros(max(vocabulary.values()) + 1, np.int64)
    for token, number in vocabulary.items():
        widths[number] = len(token)
    for number, added in core.get_added_tokens_decoder().items():
        widths[number] = len(added.content.encode())
    return widths


def _bytes_before(text: str, places: Sequence[int]) -> np.ndarray:
    """How many bytes (UTF-8) each place has before it."""
    letters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + sum((letters >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000))
    return np.concatenate([[0], np.cumsum(widths)])[np.asarray(places, np.int64)]
