"""Results for parts of the queries or of the relevant items."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from recsys.evaluation.results import Evaluation
from recsys.ids import FIRST_ITEM_INDEX

GROUPS = ("head", "mid", "tail", "unseen")


@dataclasses.dataclass(frozen=True)
class Slice:
    """A part of an evaluation.

    Attributes:
        name: What the part has in common, such as `head` or `10-19`.
        evaluation: The results of that part.
        share: The share of all relevant items that is in the part.
    """

    name: str
    evaluation: Evaluation
    share: float


def popularity_groups(
    item_counts: np.ndarray, shares: tuple[float, float] = (0.5, 0.8)
) -> np.ndarray:
    """Sorts items into head, mid, tail and unseen by training interactions.

    The most popular items that together have the first half of all training
    interactions are the head, those up to 80 % are mid, the rest is the tail.
    Unseen items have no training interaction.

    Args:
        item_counts: `[vocabulary_size]` int, training interactions of items.
        shares: Where head and mid end.

    Returns:
        `[vocabulary_size]` int8 places in `GROUPS`; -1 for padding and
        unknown.

    Raises:
        ValueError: `shares` do not rise within [0, 1].
    """
    if not 0 <= shares[0] <= shares[1] <= 1:
        raise ValueError(f"`shares` must rise from 0 to 1. Received: {shares}")
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

    A query with relevant items of several groups is in several slices, in
    each with the items of that group only. Their ranks stay those among all
    candidates.

    Args:
        evaluation: The results of all queries.
        item_counts: `[vocabulary_size]` int, training interactions of items.
        shares: See `popularity_groups`.

    Returns:
        Slices named as in `GROUPS`; those without a query are left out.
    """
    groups = popularity_groups(item_counts, shares)
    found = groups[evaluation.relevant_items]
    return _present(
        _relevant_slice(evaluation, name, found == place)
        for place, name in enumerate(GROUPS)
    )


def by_history_length(
    evaluation: Evaluation,
    lengths: np.ndarray,
    edges: Sequence[int] = (0, 10, 20, 50, 100, 200),
) -> list[Slice]:
    """Slices by the number of interactions in the history.

    Args:
        evaluation: The results of all queries.
        lengths: `[num_queries]` int, the lengths of the histories.
        edges: The smallest length of each slice, rising from 0.

    Returns:
        Slices named as in `10-19`; those without a query are left out.

    Raises:
        ValueError: `lengths` is of other queries or `edges` do not rise
            from 0.
    """
    if len(lengths) != evaluation.num_queries:
        raise ValueError(
            f"`lengths` must be {evaluation.num_queries}, one per query. "
            f"Received: {len(lengths)}"
        )
    edges = list(edges)
    if edges[:1] != [0] or sorted(set(edges)) != edges:
        raise ValueError(f"`edges` must rise from 0. Received: {edges}")
    places = np.searchsorted(edges, lengths, "right") - 1
    is_relevant = ~np.isnan(evaluation.ranks)
    names = [
        f"{low}-{high - 1}" if high - low > 1 else f"{low}"
        for low, high in itertools.pairwise(edges)
    ]
    names.append(f"{edges[-1]}+")
    return _present(
        _relevant_slice(
            evaluation, name, is_relevant & (places == place)[:, np.newaxis]
        )
        for place, name in enumerate(names)
    )


def _present(slices: Iterable[Slice]) -> list[Slice]:
    return [each for each in slices if each.evaluation.num_queries]


def _relevant_slice(
    evaluation: Evaluation, name: str, chosen: np.ndarray
) -> Slice:
    """Keeps the relevant items that `[num_queries, max_relevant]` marks."""
    rows = np.flatnonzero(chosen.any(axis=1))
    chosen = chosen[rows]
    # Unmarked items become padding, which belongs behind the others.
    order = np.argsort(~chosen, axis=1, kind="stable")
    ranks = np.where(chosen, evaluation.ranks[rows], np.nan)
    items = np.where(chosen, evaluation.relevant_items[rows], 0)
    part = dataclasses.replace(
        evaluation.select(rows),
        ranks=np.take_along_axis(ranks, order, axis=1),
        relevant_items=np.take_along_axis(items, order, axis=1),
    )
    total = np.count_nonzero(~np.isnan(evaluation.ranks))
    return Slice(name, part, float(np.count_nonzero(chosen) / total))
