"""Results for subsets of the queries or of the relevant items."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from recsys.data.sequences import concatenated_ranges
from recsys.data.splits import Queries
from recsys.evaluation.results import Evaluation
from recsys.ids import FIRST_ITEM_INDEX

GROUPS = ("head", "mid", "tail", "unseen")


@dataclasses.dataclass(frozen=True)
class Slice:
    """A subset of an evaluation.

    Attributes:
        name: What its members have in common, such as `head` or `10-19`.
        evaluation: The results of the subset.
        share: Its share of all relevant items.
    """

    name: str
    evaluation: Evaluation
    share: float


def popularity_groups(
    item_counts: np.ndarray, shares: tuple[float, float] = (0.5, 0.8)
) -> np.ndarray:
    """Groups items into head, mid, tail and unseen by popularity.

    The most popular items that together have the first half of all training
    interactions are the head, those up to 80 % are mid, the rest is the tail.
    Unseen items have no training interaction.

    Args:
        item_counts: `[vocabulary_size]` int, training interactions per item.
        shares: Where head and mid end.

    Returns:
        `[vocabulary_size]` int8 indices into `GROUPS`; -1 for padding and
        unknown.

    Raises:
        ValueError: `shares` are not increasing within [0, 1].
    """
    if not 0 <= shares[0] <= shares[1] <= 1:
        raise ValueError(
            f"`shares` must increase within [0, 1]. Received: {shares}"
        )
    order = np.argsort(-item_counts, kind="stable")
    before = np.cumsum(item_counts[order]) - item_counts[order]
    groups = np.empty(len(item_counts), np.int8)
    groups[order] = np.searchsorted(
        np.array(shares) * item_counts.sum(), before, "right"
    )
    groups[item_counts == 0] = GROUPS.index("unseen")
    groups[:FIRST_ITEM_INDEX] = -1
    return groups


def by_item_popularity(
    evaluation: Evaluation,
    item_counts: np.ndarray,
    shares: tuple[float, float] = (0.5, 0.8),
) -> list[Slice]:
    """Slices by the popularity group of the relevant items.

    A query with relevant items of several groups is in several slices, each
    with the items of that group only. Ranks remain those among all candidates.

    Args:
        evaluation: The results of all queries.
        item_counts: `[vocabulary_size]` int, training interactions per item.
        shares: See `popularity_groups`.

    Returns:
        Slices named as in `GROUPS`, except for those without a query.
    """
    groups = popularity_groups(item_counts, shares)
    return _slices(evaluation, GROUPS, groups[evaluation.relevant_items])


def by_history_length(
    evaluation: Evaluation,
    lengths: np.ndarray,
    edges: Sequence[int] = (0, 10, 20, 50, 100, 200),
) -> list[Slice]:
    """Slices by the number of interactions in the history.

    Args:
        evaluation: The results of all queries.
        lengths: `[num_queries]` int, the lengths of the histories.
        edges: The smallest length of each slice, increasing from 0.

    Returns:
        Slices named like `10-19`, except for those without a query.

    Raises:
        ValueError: `lengths` has another number of queries, or `edges` do not
            increase from 0.
    """
    if len(lengths) != evaluation.num_queries:
        raise ValueError(
            "`lengths` must have one entry for each of "
            f"{evaluation.num_queries} queries. Received: {len(lengths)}"
        )
    edges = list(edges)
    if edges[:1] != [0] or sorted(set(edges)) != edges:
        raise ValueError(f"`edges` must increase from 0. Received: {edges}")
    names = [
        f"{low}-{high - 1}" if high - low > 1 else f"{low}"
        for low, high in itertools.pairwise(edges)
    ]
    numbers = np.searchsorted(edges, lengths, "right") - 1
    return _slices(
        evaluation,
        [*names, f"{edges[-1]}+"],
        np.where(np.isnan(evaluation.ranks), -1, numbers[:, np.newaxis]),
    )


def by_event(evaluation: Evaluation, queries: Queries) -> list[Slice]:
    """Slices by the kind of event of the relevant items.

    Args:
        evaluation: The results of all queries.
        queries: The queries, in the same order.

    Returns:
        Slices named as the kinds, except for those without a query; nothing
        where there are no kinds.
    """
    kinds = queries.sequences.kinds
    if kinds is None:
        return []
    lengths = queries.target_ends - queries.history_ends
    rows = np.repeat(np.arange(len(lengths)), lengths)
    positions = concatenated_ranges(queries.history_ends, lengths)
    # Each batch of the evaluation sorts the items of a query by rank.
    asked = np.argsort(rows * 2**32 + queries.sequences.items[positions])
    listed = evaluation.relevant_items.astype(np.int64)
    row, column = np.nonzero(listed >= FIRST_ITEM_INDEX)
    order = np.argsort(row * 2**32 + listed[row, column])
    numbers = np.full(listed.shape, -1)
    codes = queries.sequences.columns["event"][positions]
    numbers[row[order], column[order]] = codes[asked]
    return _slices(evaluation, kinds.names, numbers)


def _slices(
    evaluation: Evaluation, names: Sequence[str], numbers: np.ndarray
) -> list[Slice]:
    """Slices by relevant item: `numbers` index `names`, -1 is padding."""
    slices = []
    for number, name in enumerate(names):
        chosen = numbers == number
        rows = np.flatnonzero(chosen.any(axis=1))
        if not len(rows):
            continue
        chosen = chosen[rows]
        # The other items become padding, which belongs at the end.
        order = np.argsort(~chosen, axis=1, kind="stable")
        ranks = np.where(chosen, evaluation.ranks[rows], np.nan)
        items = np.where(chosen, evaluation.relevant_items[rows], 0)
        part = dataclasses.replace(
            evaluation.select(rows),
            ranks=np.take_along_axis(ranks, order, axis=1),
            relevant_items=np.take_along_axis(items, order, axis=1),
        )
        share = np.count_nonzero(chosen) / evaluation.num_relevant.sum()
        slices.append(Slice(name, part, float(share)))
    return slices
