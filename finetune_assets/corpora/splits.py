"""Splits by hash of the normalised prompt: the same question is never on both sides."""

import re
import unicodedata

import polars as pl

from finetune_assets.catalog.config import Splits
from finetune_assets.corpora.conversations import SPLIT_NAMES
from finetune_assets.corpora.sources import unit_hash
from finetune_assets.errors import UserError

MINIMUM_ROWS = {"train": 1, "validation": 1, "test": 1}

_NOT_WORDS = re.compile(r"[^\w]+")


def normalise(prompt: str) -> str:
    """Case, punctuation, width and spacing do not make another question."""
    text = unicodedata.normalize("NFKC", prompt).casefold()
    return _NOT_WORDS.sub(" ", text).strip() or prompt


def prompt_of(messages: list[dict[str, str]]) -> str:
    """The question that a conversation opens with: its first user turn."""
    return next(m["content"] for m in messages if m["role"] == "user")


def split(rows: pl.DataFrame, config: Splits, where: str) -> dict[str, pl.DataFrame]:
    """Divide conversations (CONVERSATION_SCHEMA) into train, validation and test.

    Every row goes where the hash of its normalised prompt falls in [0, 1): the test split takes
    the lowest positions, validation the next. With fractions the bounds are constants, so a row
    never moves. With counts the bounds follow the number of rows; rows come in whole groups of one
    prompt, in order of position, until the count is reached.

    A group is pinned by the first of its rows that names a split.

    Raises:
        UserError: a split would be empty.
    """
    prompts = [normalise(prompt_of(m)) for m in rows["messages"].to_list()]
    keyed = rows.with_columns(pl.Series("group", prompts, dtype=pl.String))
    groups = (
        keyed.group_by("group", maintain_order=True)
        .agg(pl.len().alias("rows"), pl.col("split").drop_nulls().first().alias("pinned"))
        .with_columns(
            pl.col("group")
            .map_elements(lambda g: unit_hash(g, str(config.seed)), return_dtype=pl.Float64)
            .alias("position")
        )
        .sort("position")
    )
    assigned = _assign(groups, config)
    out = {
        name: keyed.join(
            assigned.filter(pl.col("assigned") == name).select("group"),
            on="group",
            how="semi",
            maintain_order="left",
        ).drop("split")
        for name in SPLIT_NAMES
    }
    for name, part in out.items():
        if part.height < MINIMUM_ROWS[name]:
            raise UserError(
                where,
                f"the {name} split has {part.height} of {rows.height} rows "
                f"({groups.height} different prompts)",
                f"add rows, or change `splits.{'test' if name == 'train' else name}`",
            )
    return out


def leaked_prompts(splits: dict[str, pl.DataFrame]) -> int:
    """Normalised prompts that occur in more than one split."""
    keys = [set(part["group"].to_list()) for part in splits.values()]
    return sum(len(a & b) for i, a in enumerate(keys) for b in keys[i + 1 :])


def _assign(groups: pl.DataFrame, config: Splits) -> pl.DataFrame:
    names: list[str] = []
    total = int(groups["rows"].sum())
    test = _Quota(config.test, 0.0, total, groups, "test")
    start = config.test if isinstance(config.test, float) else 0.0
    validation = _Quota(config.validation, start, total, groups, "validation")
    for group in groups.iter_rows(named=True):
        if group["pinned"]:
            names.append(group["pinned"])
        elif test.takes(group):
            names.append("test")
        elif validation.takes(group):
            names.append("validation")
        else:
            names.append("train")
    return groups.with_columns(pl.Series("assigned", names, dtype=pl.String))


class _Quota:
    """Whether the next group, in order of position, still belongs to a split."""

    def __init__(
        self, size: int | float, start: float, total: int, groups: pl.DataFrame, name: str
    ) -> None:
        self.size, self.start = size, start
        pinned = groups.filter(pl.col("pinned") == name)["rows"].sum()
        self.left = size - pinned if isinstance(size, int) else total

    def takes(self, group: dict) -> bool:
        if isinstance(self.size, float):
            return self.start <= group["position"] < self.start + self.size
        if self.left <= 0:
            return False
        self.left -= group["rows"]
        return True
