"""Splits that leak nothing: the same question, or nearly the same, is never in two of them.

Rows with the same normalised prompt are one node. Nodes that ask nearly the same are linked, and a
node belongs to the cluster of the first node that it is linked to. A cluster goes where the hash of
its first node falls, so what is added later, behind it, cannot move it. Links between clusters
remain; where they would join two splits, the later node is set aside.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from finetune_assets.catalog.cleaning import Splits
from finetune_assets.data.conversations.conversations import SPLIT_NAMES
from finetune_assets.errors import UserError

SET_ASIDE = len(SPLIT_NAMES)
"""Assignment of a row that would leak wherever it went."""

UNPINNED = -1
NODE_COLUMNS = ["id", "prompt_key", "split", "source_index"]


@dataclass(frozen=True)
class Assignment:
    """Where every row of a corpus goes."""

    row: np.ndarray
    """Per row: position in SPLIT_NAMES, or SET_ASIDE."""
    node: np.ndarray
    """Per row: its node."""
    cluster: np.ndarray
    """Per row: the first node of its cluster."""
    links: np.ndarray
    """Pairs of linked nodes, (later, earlier), shape (n, 2)."""

    def sizes(self) -> dict[str, int]:
        """Return the rows of every split."""
        return {name: int((self.row == i).sum()) for i, name in enumerate(SPLIT_NAMES)}

    @property
    def set_aside(self) -> int:
        """Rows that are in no split."""
        return int((self.row == SET_ASIDE).sum())

    def largest_cluster(self) -> int:
        """Return how many rows the largest cluster has."""
        return int(np.bincount(self.cluster).max())


def assign(rows: pl.DataFrame, pairs: pl.DataFrame, config: Splits, where: str) -> Assignment:
    """Divide rows (NODE_COLUMNS) into train, validation and test; UserError for an empty one.

    With fractions the bounds are constants, so a row never moves. With counts, and when
    stratified, they follow the number of rows, and rows at the border can move.

    A cluster with a row that is pinned goes to its split: to test before validation before train,
    if it has several. Rows pinned elsewhere are set aside then. `pairs` are ids (`later`,
    `earlier`) of rows that ask nearly the same.
    """
    nodes = _nodes(rows)
    node = rows.join(nodes, on="prompt_key", how="left", maintain_order="left")["node"].to_numpy()
    links = _links(rows, node, pairs)
    pins = _pins(rows)
    pin = np.full(nodes.height, UNPINNED)
    np.maximum.at(pin, node, pins)
    cluster = _clusters(nodes.height, links)
    cluster_pin = np.full(nodes.height, UNPINNED)
    np.maximum.at(cluster_pin, cluster, pin)
    drawn = _draw(nodes, cluster, cluster_pin, config)
    split = np.where(cluster_pin == UNPINNED, drawn, cluster_pin)[cluster]
    aside = _set_aside(links, split, pin)
    row = np.where(aside[node], SET_ASIDE, split[node])
    row[(pins != UNPINNED) & (pins != row)] = SET_ASIDE
    assignment = Assignment(row, node, cluster[node], links)
    _require_rows(assignment, where)
    return assignment


def count_leaks(assignment: Assignment) -> int:
    """Count questions in several splits, and linked ones in different splits; 0 by design."""
    kept = assignment.row != SET_ASIDE
    frame = pl.DataFrame({"node": assignment.node[kept], "split": assignment.row[kept]}).unique()
    several = frame.group_by("node").len().filter(pl.col("len") > 1).height
    split = np.full(int(assignment.node.max(initial=0)) + 1, SET_ASIDE)
    split[assignment.node[kept]] = assignment.row[kept]
    ends = split[assignment.links]
    apart = (ends[:, 0] != ends[:, 1]) & (ends != SET_ASIDE).all(axis=1)
    return several + int(apart.sum())


def positions(keys: np.ndarray, seed: int) -> np.ndarray:
    """Return deterministic, uniform positions of 64-bit hashes in [0, 1).

    Another seed gives another order. This is the finaliser of SplitMix64 (Steele et al., 2014).
    """
    mixed = keys.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) / 2.0**64


def _nodes(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row per normalised prompt, in order of appearance."""
    groups = rows.group_by("prompt_key", maintain_order=True)
    return groups.agg(pl.len().alias("rows"), pl.col("source_index").first()).with_row_index("node")


def _pins(rows: pl.DataFrame) -> np.ndarray:
    """Return the position in SPLIT_NAMES of the split that each row is pinned to, or UNPINNED."""
    codes = {name: i for i, name in enumerate(SPLIT_NAMES)}
    return rows["split"].replace_strict(codes, default=UNPINNED, return_dtype=pl.Int64).to_numpy()


def _links(rows: pl.DataFrame, node: np.ndarray, pairs: pl.DataFrame) -> np.ndarray:
    """Return different nodes that ask nearly the same, later first, sorted."""
    place = pl.DataFrame({"id": rows["id"], "node": node}).unique("id", keep="first")
    for end, node_name in (("later", "a"), ("earlier", "b")):
        pairs = pairs.join(place.rename({"id": end, "node": node_name}), on=end)
    later, earlier = pl.max_horizontal("a", "b"), pl.min_horizontal("a", "b")
    ends = pairs.select(later.alias("later"), earlier.alias("earlier"))
    different = ends.filter(pl.col("later") != pl.col("earlier")).unique().sort("later", "earlier")
    return different.to_numpy().astype(np.int64).reshape(-1, 2)


def _clusters(count: int, links: np.ndarray) -> np.ndarray:
    """Return the first node of each node's cluster: that of the earliest node it is linked to."""
    cluster = np.arange(count)
    followers, first = np.unique(links[:, 0], return_index=True)
    for later, earlier in zip(followers, links[first, 1], strict=True):
        cluster[later] = cluster[earlier]
    return cluster


def _draw(nodes: pl.DataFrame, cluster: np.ndarray, pin: np.ndarray, config: Splits) -> np.ndarray:
    """Return the split's position for every cluster that is not pinned, at its first node."""
    size = np.bincount(cluster, weights=nodes["rows"].to_numpy(), minlength=nodes.height)
    position = positions(nodes["prompt_key"].to_numpy(), config.seed)
    stratum = nodes["source_index"].to_numpy() if config.stratify else np.zeros(nodes.height)
    drawn = np.zeros(nodes.height, dtype=np.int64)
    free = (pin == UNPINNED) & (size > 0)
    for each in np.unique(stratum):
        mine = np.flatnonzero(free & (stratum == each))
        mine = mine[np.argsort(position[mine], kind="stable")]
        before = np.cumsum(size[mine]) - size[mine]
        start, bound = 0.0, 0.0
        for name in ("test", "validation"):
            code = SPLIT_NAMES.index(name)
            share = getattr(config, name)
            if isinstance(share, float) and not config.stratify:
                bound = start + share
                drawn[mine[(position[mine] >= start) & (position[mine] < bound)]] = code
                start = bound
                continue
            wanted = _wanted(share, size, stratum == each, pin == code)
            taken = drawn[mine] == 0
            offset = before - (before[taken][0] if taken.any() else 0)
            drawn[mine[taken & (position[mine] >= start) & (offset < wanted)]] = code
    return drawn


def _wanted(share: int | float, size: np.ndarray, mine: np.ndarray, pinned: np.ndarray) -> float:
    """Return how many rows are still to be drawn for a split, in one stratum."""
    total, here = size.sum(), size[mine].sum()
    rows = share * here if isinstance(share, float) else share * here / total
    return round(float(rows)) - float(size[mine & pinned].sum())


def _set_aside(links: np.ndarray, split: np.ndarray, pin: np.ndarray) -> np.ndarray:
    """Return nodes that would stand in another split than a node they are linked to.

    The later one gives way; a pinned one only to what is pinned to a split before its own.
    """
    aside = np.zeros(len(split), dtype=bool)
    for later, earlier in links[split[links[:, 0]] != split[links[:, 1]]]:
        if aside[later] or aside[earlier]:
            continue
        keeps = pin[later] != UNPINNED and split[later] > split[earlier]
        aside[earlier if keeps else later] = True
    return aside


def _require_rows(assignment: Assignment, where: str) -> None:
    total = len(assignment.row)
    for name, size in assignment.sizes().items():
        if size:
            continue
        prompts, largest = len(np.unique(assignment.node)), assignment.largest_cluster()
        found = f"{prompts} different prompts; {largest} rows ask nearly the same"
        remedy = f"add rows, or change `splits.{'test' if name == 'train' else name}`"
        if largest > total / 2:
            remedy += "; if they only look alike, raise `cleaning.near_duplicates.similarity`"
        raise UserError(where, f"the {name} split has 0 of {total} rows ({found})", remedy)


def copies(ids: pl.Series, source_index: pl.Series, weights: Mapping[int, float]) -> np.ndarray:
    """Return how often each row stands in training: its source's weight, rounded by hash."""
    keys = np.array([int(i[:16], 16) for i in ids], dtype=np.uint64)
    weight = source_index.replace_strict(dict(weights), return_dtype=pl.Float64).to_numpy()
    whole = np.floor(weight)
    return (whole + (positions(keys, 1) < weight - whole)).astype(np.int64)
