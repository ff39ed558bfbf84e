"""A memory of the tokens of words: texts repeat words, and tokenizers work each out anew.

This holds for byte-level BPE with a known pre-tokenizer: those of GPT-2, Llama 3, Qwen and kin.
There, no token spans a space between two printable ASCII characters: every alternative of the
pre-tokenizer's pattern has white space at its beginning only, or is white space. So the tokens of
a text are those of its words, one after another.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

BETWEEN_WORDS = re.compile(r"(?<=[!-~])(?= [!-~])")

_SPLITS_WORDS = tuple(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?"
    + letters
    + numbers
    + r"| ?[^\s"
    + others
    + r"]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for letters, numbers, others in (
        (r"\p{L}+|", r"\p{N}{1,3}", r"\p{L}\p{N}"),  # Llama 3
        (r"\p{L}+|", r"\p{N}", r"\p{L}\p{N}"),  # Qwen 2 and 3
        (r"[\p{L}\p{M}]+|", r"\p{N}", r"\p{L}\p{M}\p{N}"),  # Qwen 3.5
    )
)
"""Patterns of pre-tokenizers beside GPT-2's, which is part of the type ByteLevel."""

LONGEST, MOST = 32, 100_000
"""Characters of a word that is remembered, and words; they take some 30 MB a process."""


class Words:
    """A tokenizer that remembers words, and gives what `core.encode_batch_fast` gives."""

    def __init__(self, core: "Tokenizer") -> None:
        self._core = core
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text."""
        known = self._known
        parts = [BETWEEN_WORDS.split(text) for text in texts]
        new = list(set().union(*parts).difference(known))
        encodings = self._core.encode_batch_fast(new, add_special_tokens=False)
        known.update(zip(new, (encoding.ids for encoding in encodings), strict=True))
        made = [list(chain.from_iterable(map(known.__getitem__, words))) for words in parts]
        room = MOST - len(known) + len(new)
        for word in new:
            if len(word) <= LONGEST and room > 0:
                room -= 1
            else:
                del known[word]
        return made


def are_independent(core: "Tokenizer", description: dict[str, Any]) -> bool:
    """Whether the tokens of a text are those of its words; `description` is the parsed JSON."""
    steps = description["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    return (
        (description["normalizer"] or {}).get("type") in (None, "NFC")
        and description["model"]["type"] == "BPE"
        and not description["model"]["dropout"]
        and all(_is_known(step) for step in steps)
        and any(step["type"] == "Split" or step.get("use_regex") for step in steps)
        and all(_stays_within(token) for token in core.get_added_tokens_decoder().values())
    )


def _is_known(step: dict[str, Any]) -> bool:
    if step.get("type") == "ByteLevel":
        return not step["add_prefix_space"]
    if step.get("type") == "Split":
        isolated = step["behavior"] == "Isolated" and not step["invert"]
        return isolated and step["pattern"].get("Regex") in _SPLITS_WORDS
    return step.get("type") == "Digits"


def _stays_within(token: "AddedToken") -> bool:
    """Whether an added token neither spans words nor looks at what is beside it."""
    looks = token.lstrip or token.rstrip or token.single_word
    return not looks and not re.search(r"[!-~] ([!-~]|$)", token.content)
