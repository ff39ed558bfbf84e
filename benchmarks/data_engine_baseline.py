"""The data path as one writes it with `datasets` and `datasketch`, without waste.

What is repaired, what a shingle is and when two questions count as near is as in the project's own
path, and so are the bands of the LSH unless others are asked for. Candidates are checked as well,
first by the Jaccard similarity of their MinHashes, then by edit distance: without that, chance
would join most rows.
"""

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from finetune_assets.data.corpora.near_duplicates import SHINGLE

PROCESSES = 2
BATCH_ROWS = 1000
SIMILARITY = 0.9
"""Share of equal characters from which two questions are near."""

JACCARD = 0.3
"""Least estimated similarity of shingles at which the edit distance is worth its time."""

SKETCH = 64
"""MinHashes by which that is estimated."""

BOUNDS = {"test": 0.1, "validation": 0.2, "train": 1.0}
"""Position by hash below which a group goes to a split."""

ROLES = {"system", "user", "assistant"}


def run(source: Path, out: Path, bands: int, band_rows: int) -> dict[str, Any]:
    """Clean, deduplicate and split JSON lines; write a Parquet file per split into `out`."""
    try:
        import datasketch  # noqa: F401
    except ImportError as error:
        raise SystemExit("the baseline needs datasketch: pip install datasketch") from error
    import datasets

    datasets.disable_progress_bars()
    files = {"train": str(source)}
    given = datasets.load_dataset(
        "json", data_files=files, split="train", cache_dir=str(out / "cache")
    )
    cleaned = given.map(
        clean,
        batched=True,
        batch_size=BATCH_ROWS,
        with_indices=True,
        remove_columns=given.column_names,
        num_proc=PROCESSES,
        fn_kwargs={"hashes": bands * band_rows},
    )
    distinct = cleaned.select(first_of_each(cleaned["id"][:]))
    group, near = near_groups(distinct, bands, band_rows)
    position = np.array(distinct["position"][:])[group]
    result = {
        "accepted": len(distinct),
        "unusable": len(given) - len(cleaned),
        "exact_duplicates": len(cleaned) - len(distinct),
        "near_duplicates": near,
        "personal_data": sum(map(bool, distinct["personal_data"][:])),
        "splits": {},
    }
    written = distinct.remove_columns(["signature", "question"])
    start = 0.0
    for name, bound in BOUNDS.items():
        chosen = np.flatnonzero((position >= start) & (position < bound))
        written.select(chosen).to_parquet(out / f"{name}.parquet")
        result["splits"][name] = str(out / f"{name}.parquet")
        start = bound
    return result


def clean(batch: dict[str, list[Any]], index: list[int], hashes: int) -> dict[str, Any]:
    """Usable conversations of a batch, repaired, with what duplicates are found by."""
    made: dict[str, list[Any]] = {
        name: [] for name in ("messages", "line", "id", "position", "question", "personal_data")
    }
    for given, position in zip(batch["messages"], index, strict=True):
        messages = usable(given)
        if messages is None:
            continue
        said = "\0".join(f"{m['role']}\1{m['content']}" for m in messages).encode()
        question = normalise(next(m["content"] for m in messages if m["role"] == "user"))
        made["messages"].append(messages)
        made["line"].append(position + 1)
        made["id"].append(hashlib.blake2b(said, digest_size=12).hexdigest())
        made["question"].append(question)
        made["position"].append(unit_hash(question))
        kinds = {kind for m in messages for kind in personal_data(m["content"])}
        made["personal_data"].append(sorted(kinds))
    return made | {"signature": signatures(made["question"], hashes)}


def usable(given: Any) -> list[dict[str, str]] | None:
    """Repaired turns that alternate and end with an answer; None if they cannot be had."""
    if not isinstance(given, list) or not given:
        return None
    messages = []
    for turn in given:
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES or not isinstance(content, str) or not content.strip():
            return None
        messages.append({"role": role, "content": repaired(content)})
    roles = [m["role"] for m in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    while turns and turns[-1] != "assistant":
        turns.pop()
        messages.pop()
    alternate = ["user", "assistant"] * (len(turns) // 2)
    return messages if turns and turns == alternate else None


CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufffe\uffff]")


def repaired(text: str) -> str:
    """Without mojibake and control characters, accents composed."""
    if not text.isascii():
        import ftfy

        text = unicodedata.normalize("NFC", ftfy.fix_encoding(text))
    return CONTROL.sub("", text)


LONG_NUMBER = re.compile(r"\d[\d .()-]{6}|[A-Z]{2}\d\d")
"""What every text with one of NUMBERS contains, found in one search."""

EMAIL = re.compile(r"\b[\w.%+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,24}\b")
NUMBERS = {
    "phone": re.compile(r"(?<!\w)\+\d(?:[\s().-]{0,2}\d){6,14}(?!\w)"),
    "ip_address": re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])"),
    "iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "credit_card": re.compile(r"\b(?:\d{4}[ -]?){3}\d{4}\b|\b\d{4}[ -]?\d{6}[ -]?\d{5}\b"),
}
API_KEY = re.compile(
    r"\b(?:AKIA[A-Z0-9]{16}|gh[pousr]_\w{36}|sk-[\w-]{20,}|xox[abpr]-[\w-]{10,}|AIza[\w-]{35}"
    r"|[sr]k_live_\w{16,}|hf_\w{30,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.)"
)
API_KEY_PARTS = (
    *("AKIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    *("sk-", "xox", "AIza", "k_live_", "hf_", "eyJ"),
)


def personal_data(text: str) -> list[str]:
    """Kinds found in the text."""
    kinds = []
    if LONG_NUMBER.search(text):
        kinds = [kind for kind, pattern in NUMBERS.items() if pattern.search(text)]
    if "@" in text and EMAIL.search(text):
        kinds.append("email")
    if any(part in text for part in API_KEY_PARTS) and API_KEY.search(text):
        kinds.append("api_key")
    return kinds


NO_WORD = re.compile(r"[^\w]+")


def normalise(text: str) -> str:
    """Case, punctuation, width and spacing do not make another question."""
    return NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).lower()).strip() or text


def unit_hash(text: str) -> float:
    """Uniform position of a text in [0, 1)."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def signatures(texts: list[str], hashes: int) -> np.ndarray:
    """MinHashes of the texts' shingles, shape (texts, hashes)."""
    from datasketch import MinHash
    from xxhash import xxh32_intdigest

    encoded = (text.encode() for text in texts)
    shingles = (
        {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))} for text in encoded
    )
    made = MinHash.generator(shingles, num_perm=hashes, hashfunc=xxh32_intdigest)
    return np.array([each.hashvalues for each in made], dtype=np.uint32).reshape(-1, hashes)


def first_of_each(ids: list[str]) -> list[int]:
    """Positions of the rows that no earlier one repeats."""
    seen: set[str] = set()
    return [i for i, row in enumerate(ids) if not (row in seen or seen.add(row))]


def near_groups(rows: Any, bands: int, band_rows: int) -> tuple[np.ndarray, int]:
    """The first row of each row's group, and how many rows are near an earlier one."""
    from datasketch import LeanMinHash, MinHash, MinHashLSH
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    count, near = len(rows), 0
    hashes = bands * band_rows
    index = MinHashLSH(num_perm=hashes, params=(bands, band_rows))
    scheme = MinHash(num_perm=hashes).scheme
    sketches = np.empty((count, SKETCH), dtype=np.uint32)
    questions = rows["question"][:]
    parent = np.arange(count)
    signature = rows.select_columns(["signature"]).with_format("numpy")
    row = 0
    for batch in signature.iter(BATCH_ROWS):
        for values in batch["signature"]:
            minhash = LeanMinHash(seed=1, hashvalues=values, scheme=scheme)
            met = np.array(index.query(minhash), dtype=np.int64)
            index.insert(row, minhash, check_duplication=False)
            sketches[row] = values[:SKETCH]
            alike = met[(sketches[met] == sketches[row]).mean(axis=1) >= JACCARD]
            if alike.size:
                others = [questions[i] for i in alike]
                scores = cdist([questions[row]], others, scorer=Levenshtein.normalized_similarity)[
                    0
                ]
                close = alike[scores >= SIMILARITY]
                near += bool(close.size)
                for other in close:
                    join(parent, row, int(other))
            row += 1
    return np.array([root(parent, i) for i in range(count)], dtype=np.int64), near


def join(parent: np.ndarray, a: int, b: int) -> None:
    a, b = root(parent, a), root(parent, b)
    parent[max(a, b)] = min(a, b)


def root(parent: np.ndarray, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row
