"""Conversations to measure the data path with: English-like, with the defects that real ones have.

The first n rows are the same however many are asked for.
"""

import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

SHARES = {
    "exact": 0.03,
    "near": 0.03,
    "email": 0.01,
    "accents": 0.01,
    "mojibake": 0.005,
    "controls": 0.005,
    "unusable": 0.005,
}
"""Share of rows of each kind; the others are plain."""

EDITED = 0.05
"""Share of a prompt's characters that a near duplicate has replaced."""

MULTI_TURN = 0.1
PROMPT_WORDS, ANSWER_WORDS = (20, 120), (60, 250)

WORDS = 4000
CHUNK = 2000
COPIED_FROM = 20_000
"""Plain rows held to be copied, a random choice of all before."""

TRUTH_SCHEMA: dict[str, Any] = {"line": pl.Int64, "kind": pl.String, "family": pl.Int64}
"""`family` is the line of the row that this one copies, or its own."""


def generate(path: Path, truth: Path, count: int) -> None:
    """Write `count` rows as JSON lines, and what they are (TRUTH_SCHEMA) as Parquet."""
    if truth.exists():
        return
    kinds, families = [], []
    with path.open("wb") as file:
        for turns, kind, family in rows(count):
            file.write(orjson.dumps({"messages": turns}) + b"\n")
            kinds.append(kind)
            families.append(family)
    lines = range(1, count + 1)
    table = {"line": lines, "kind": kinds, "family": families}
    pl.DataFrame(table, schema=TRUTH_SCHEMA).write_parquet(truth)


def rows(count: int, seed: int = 0) -> Iterator[tuple[list[dict[str, str]], str, int]]:
    """Turns of each row, its kind and its family."""
    drawn, chosen = np.random.default_rng(seed), random.Random(seed)
    tokens = _tokens(_vocabulary(chosen))
    names, weights = [*SHARES, "plain"], [*SHARES.values(), 1 - sum(SHARES.values())]
    originals: list[tuple[int, list[str]]] = []
    line, plain = 0, 0
    while True:
        kinds = chosen.choices(names, weights, k=CHUNK)
        for kind, texts in zip(kinds, _texts(drawn, tokens), strict=True):
            if line == count:
                return
            line += 1
            family = line
            if kind in ("exact", "near") and originals:
                family, texts = chosen.choice(originals)
            elif kind == "plain":
                plain += 1
                if len(originals) < COPIED_FROM:
                    originals.append((line, texts))
                elif (place := chosen.randrange(plain)) < COPIED_FROM:
                    originals[place] = (line, texts)
            yield _turns(_damaged(texts, kind, chosen)), kind, family


def _turns(texts: list[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def _damaged(texts: list[str], kind: str, chosen: random.Random) -> list[str]:
    """The texts of a row of this kind."""
    first, *others = texts
    if kind == "near":
        letters = list(first)
        for place in chosen.sample(range(len(letters)), round(EDITED * len(letters))):
            letters[place] = chosen.choice(string.ascii_lowercase)
        return ["".join(letters), *others]
    if kind == "unusable":
        return [*texts[:-1], ""]
    put_in = {
        "email": f"{chosen.choice(first.split()).strip('.,').lower()}@example.com",
        "accents": "cafe\u0301 nai\u0308ve",
        "mojibake": "cafÃ© naÃ¯ve",
        "controls": "zero\u200bwidth\x07",
    }.get(kind)
    if put_in is None:
        return texts
    words = first.split(" ")
    words.insert(chosen.randrange(len(words)), put_in)
    return [" ".join(words), *others]


def _texts(drawn: np.random.Generator, tokens: np.ndarray) -> Iterator[list[str]]:
    """Texts of CHUNK rows, prompts and answers in turn."""
    exchanges = 1 + (drawn.random(CHUNK) < MULTI_TURN)
    total = int(exchanges.sum())
    lengths = np.stack(
        [
            least + ((most - least) * drawn.beta(1.2, 3.8, total)).astype(int)
            for least, most in (PROMPT_WORDS, ANSWER_WORDS)
        ],
        axis=1,
    ).ravel()
    said = _stream(drawn, tokens, lengths)
    edges = [0, *np.cumsum(lengths).tolist()]
    text = 0
    for count in exchanges.tolist():
        parts = range(text, text + 2 * count)
        yield [" ".join(said[edges[i] : edges[i + 1]]) for i in parts]
        text += 2 * count


def _stream(drawn: np.random.Generator, tokens: np.ndarray, lengths: np.ndarray) -> list[str]:
    """Words with Zipf frequencies, in sentences; every text begins and ends one."""
    frequencies = 1 / (np.arange(tokens.shape[1]) + 2.7)
    bounds = np.cumsum(frequencies / frequencies.sum())
    size = int(lengths.sum())
    word = np.minimum(np.searchsorted(bounds, drawn.random(size)), len(bounds) - 1)
    ending = np.searchsorted([0.84, 0.92], drawn.random(size))
    ending[np.cumsum(lengths) - 1] = 2
    begins = np.append(True, ending[:-1] == 2)
    return tokens[ending + 3 * begins, word].tolist()


def _tokens(words: list[str]) -> np.ndarray:
    """Each word as it is, before a comma, before a full stop; and the same with a capital."""
    forms = [[word + end for word in words] for end in ("", ",", ".")]
    return np.array(forms + [[w.capitalize() for w in form] for form in forms], dtype=object)


def _vocabulary(chosen: random.Random) -> list[str]:
    """Different words, the short ones most often among the frequent, numbers and phrases."""
    onsets = ["", *"bcdfghjklmnprstvwy", "br", "ch", "cl", "gr", "pl", "pr", "sh", "st", "th", "tr"]
    vowels = [*"aeiou", "ea", "ou", "ai", "io"]
    codas = ["", "", *"dlmnrstk", "nd", "ng", "st", "rt"]
    words: dict[str, None] = {}
    while len(words) < WORDS:
        syllables = chosen.choices((1, 2, 3), (1, 5, 3))[0]
        parts = [chosen.choice(onsets) + chosen.choice(vowels) for _ in range(syllables)]
        words["".join(parts) + chosen.choice(codas)] = None
    numbers = [str(chosen.randrange(1, 5000)) for _ in range(WORDS // 50)]
    common = sorted(words, key=len)[: WORDS // 10]
    phrases = [" ".join(chosen.sample(common, chosen.choice((2, 3)))) for _ in range(WORDS // 20)]
    length = {word: len(word) for word in words} | dict.fromkeys(numbers, 7)
    length |= dict.fromkeys(phrases, 3.2)
    ranked = sorted(length, key=lambda word: length[word] + chosen.gauss(0, 1.2))
    return ranked
