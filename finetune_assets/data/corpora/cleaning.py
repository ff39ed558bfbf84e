"""Repair of text: polars finds, in Rust, the few texts that need it; only those are touched."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from unicodedata import normalize

import polars as pl

from finetune_assets.catalog.cleaning import Cleaning

CONTROL = r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufffe\uffff]"
"""Characters no reader sees. Tabs, line breaks, and joiners that emoji, Persian and Hindi need
stay: whitespace is content, in code above all."""


def repair(texts: list[str], config: Cleaning) -> tuple[list[str], dict[str, list[int]]]:
    """Return the texts with the declared repairs, and the positions that each repair changed."""
    steps: list[tuple[str, bool, str, Callable[[str], str]]] = [
        # First, as C1 controls are what mojibake often is made of.
        ("mojibake", config.mojibake, r"[^\x00-\x7f]{2}", _decode_again),
        ("control_characters", config.control_characters, CONTROL, partial(re.sub, CONTROL, "")),
        ("unicode_nfc", config.unicode_nfc, r"[^\x00-\x{2ff}]", partial(normalize, "NFC")),
    ]
    changed: dict[str, list[int]] = {}
    repaired = list(texts)
    series = pl.Series(texts, dtype=pl.String)
    for name, wanted, gate, mend in steps:
        changed[name] = []
        if not wanted:
            continue
        for position in series.str.contains(gate).arg_true():
            mended = mend(repaired[position])
            if mended != repaired[position]:
                repaired[position] = mended
                changed[name].append(position)
        if changed[name]:
            series = pl.Series(repaired, dtype=pl.String)
    return repaired, changed


def normalise(texts: Iterable[str]) -> pl.Series:
    """Return texts without case, punctuation, width and spacing, which make no other question."""
    composed = [t if t.isascii() else normalize("NFKC", t) for t in texts]
    series = pl.Series(composed, dtype=pl.String)
    words = series.str.to_lowercase().str.replace_all(r"[^\p{L}\p{M}\p{N}_]+", " ")
    plain = words.str.strip_chars(" ")
    # A text of punctuation alone is itself.
    return plain.zip_with(plain.str.len_bytes() > 0, series)


def _decode_again(text: str) -> str:
    import ftfy

    return ftfy.fix_encoding(text)
