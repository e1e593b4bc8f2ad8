"""Evaluation of a recommender over the full catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from recsys.data.splits import Queries
from recsys.data.vocabulary import FIRST_ITEM_INDEX, PADDING_INDEX
from recsys.errors import InputError
from recsys.evaluation.candidate_ranking import Ranked, rank_candidates
from recsys.evaluation.results import Evaluation, query_ids

# The scores of one batch take at most this much memory (bytes).
_BATCH_BYTES = 256 * 2**20


class Recommender(Protocol):
    """Anything that scores the catalogue for a history.

    Attributes:
        name: Stands in results tables and error messages.
    """

    name: str

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Scores every item for each history.

        Args:
            items: `[total]` int32 vocabulary indices, the histories one after
                the other, each oldest first.
            offsets: `[num_queries + 1]` int64: query q has the history
                `items[offsets[q]:offsets[q + 1]]`, which may be empty.

        Returns:
            `[num_queries, vocabulary_size]` float32. Columns 0 and 1
            (padding, unknown) are ignored. A score of -inf puts an item
            behind all others, and on no list.
        """


def evaluate(
    recommender: Recommender,
    queries: Queries,
    *,
    protocol: str,
    ks: Iterable[int] = (1, 5, 10, 20, 50, 100),
    exclude_history: bool = True,
    lists: bool = True,
    batch_size: int = 1024,
) -> Evaluation:
    """Ranks the full catalogue for every query.

    The candidates of a query are all items, except those of its history when
    `exclude_history`. Items that nobody interacted with in training are
    candidates too. Memory is that of one batch of scores plus the results;
    the results do not depend on the batch size, as long as the recommender's
    scores do not.

    For validation within a training run, `ks=(10,), lists=False` is the
    cheap form.

    Args:
        recommender: Gives the scores.
        queries: What is asked.
        protocol: The name of the split, for the results.
        ks: Cuts of the metrics; the lists are as long as the largest.
        exclude_history: Whether items of a query's history are left out of
            its candidates.
        lists: Whether the result holds lists of recommended items.
        batch_size: Histories given to the recommender at once, at most; they
            are fewer where their scores would take more than 256 MB. Queries
            come by length of history, so a batch needs little padding.

    Returns:
        One entry per query, in the order of `queries`.

    Raises:
        InputError: There is no query, or a query has no relevant item, the
            same one twice, one that is padding, unknown or outside the
            catalogue, or, with `exclude_history`, one from its own history.
        ValueError: The scores have the wrong shape, or one is NaN or +inf;
            `ks` or `batch_size` is not positive.
    """
    ks = tuple(sorted(set(ks)))
    if not ks or ks[0] < 1 or batch_size < 1:
        raise ValueError(
            "`ks` and `batch_size` must be positive. Received: "
            f"{ks} and {batch_size}"
        )
    names = query_ids(queries)
    relevant_items = padded_relevant_items(queries, names)
    k = ks[-1] if lists else 0
    ranked = _empty(relevant_items.shape, k)
    vocabulary_size = 0
    for rows in _batches(queries, batch_size):
        items, offsets = queries.histories(rows)
        relevant = relevant_items[rows]
        relevant = relevant[:, relevant.any(axis=0)]
        scores = _scores(recommender, items, offsets, names[rows])
        vocabulary_size = scores.shape[1]
        _check_range(vocabulary_size, items, relevant)
        batch = rank_candidates(
            scores,
            relevant,
            (items, offsets) if exclude_history else None,
            k,
            names[rows],
        )
        _write(ranked, rows, batch)
    return Evaluation(
        name=recommender.name,
        protocol=protocol,
        ks=ks,
        exclude_history=exclude_history,
        num_items=vocabulary_size - FIRST_ITEM_INDEX,
        query_ids=names,
        ranks=ranked.ranks,
        relevant_items=ranked.relevant_items,
        num_candidates=ranked.num_candidates,
        top_items=ranked.top_items,
        top_scores=ranked.top_scores,
    )


def _batches(queries: Queries, batch_size: int) -> Iterator[np.ndarray]:
    """Yields the rows of each batch, queries with short histories first."""
    largest = int(queries.sequences.items.max(initial=0)) + 1
    size = min(batch_size, max(1, _BATCH_BYTES // (4 * largest)))
    lengths = queries.history_ends - queries.history_starts
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _empty(shape: tuple[int, int], k: int) -> Ranked:
    """Allocates the results of all queries."""
    lists = (shape[0], k)
    return Ranked(
        ranks=np.full(shape, np.nan),
        relevant_items=np.full(shape, PADDING_INDEX, np.int32),
        num_candidates=np.zeros(shape[0], np.int32),
        top_items=np.empty(lists, np.int32) if k else None,
        top_scores=np.empty(lists, np.float32) if k else None,
    )


def _write(ranked: Ranked, rows: np.ndarray, batch: Ranked) -> None:
    """Writes the results of a batch into those of all queries."""
    width = batch.ranks.shape[1]
    ranked.ranks[rows, :width] = batch.ranks
    ranked.relevant_items[rows, :width] = batch.relevant_items
    ranked.num_candidates[rows] = batch.num_candidates
    if ranked.top_items is not None and ranked.top_scores is not None:
        ranked.top_items[rows] = batch.top_items
        ranked.top_scores[rows] = batch.top_scores


def padded_relevant_items(queries: Queries, names: np.ndarray) -> np.ndarray:
    """Lays out `[num_queries, max_relevant]` int32 items, after checking.

    Rows are padded with 0 behind their last item.
    """
    if not len(queries):
        raise InputError("`queries` must hold at least one. Received: none")
    items, offsets = queries.targets(np.arange(len(queries)))
    counts = np.diff(offsets)
    if counts.min() < 1:
        raise InputError(
            "every query needs a relevant item. Received: none for query "
            f"{names[np.argmin(counts)]!r}"
        )
    rows = np.repeat(np.arange(len(queries)), counts)
    unknown = np.flatnonzero(items < FIRST_ITEM_INDEX)
    if len(unknown):
        raise InputError(
            "relevant items must be in the vocabulary (index 2 or above). "
            f"Received: index {items[unknown[0]]} for query "
            f"{names[rows[unknown[0]]]!r}"
        )
    padded = np.zeros((len(queries), counts.max()), np.int32)
    padded[rows, np.arange(len(items)) - offsets[rows]] = items
    ordered = np.sort(padded, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)
    if repeated.any():
        row, column = np.argwhere(repeated)[0]
        raise InputError(
            "the relevant items of a query must differ (keep one interaction "
            'of each user with each item, repeats="first"). Received: item '
            f"index {ordered[row, column]} twice for query {names[row]!r}"
        )
    return padded


def _scores(
    recommender: Recommender,
    items: np.ndarray,
    offsets: np.ndarray,
    names: np.ndarray,
) -> np.ndarray:
    """Returns the checked `[batch_size, vocabulary_size]` scores."""
    scores = np.asarray(recommender.scores(items, offsets))
    if scores.ndim != 2 or len(scores) != len(names):
        raise ValueError(
            f"`scores` of recommender {recommender.name!r} must have the "
            f"shape [{len(names)}, vocabulary_size]. Received: {scores.shape}"
        )
    # The highest score of a row is NaN when any is.
    highest = scores[:, FIRST_ITEM_INDEX:].max(axis=1)
    wrong = np.flatnonzero(np.isnan(highest) | np.isposinf(highest))
    if len(wrong):
        raise ValueError(
            f"`scores` of recommender {recommender.name!r} must be finite or "
            f"-inf. Received: {highest[wrong[0]]} for query "
            f"{names[wrong[0]]!r}"
        )
    # Half precision is ranked as it is, only wider; double stays double, so
    # that nothing is tied here that was not tied before.
    return scores.astype(np.result_type(scores, np.float32), copy=False)


def _check_range(
    vocabulary_size: int, items: np.ndarray, relevant: np.ndarray
) -> None:
    """Raises InputError when an item has no column among the scores."""
    largest = max(items.max(initial=0), relevant.max())
    if largest >= vocabulary_size:
        raise InputError(
            "the items of all queries must be below the recommender's "
            f"vocabulary size {vocabulary_size}. Received: index {largest}"
        )
