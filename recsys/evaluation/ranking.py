"""Evaluation of a recommender over the full catalog.

From scores to expected ranks of the relevant items and top lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from recsys.data.splits import Queries
from recsys.errors import InputError
from recsys.evaluation.results import Evaluation, query_ids
from recsys.ids import FIRST_ITEM_INDEX, PADDING_INDEX

# Columns are looked at in groups of so many first.
_GROUP_SIZE = 8


def top_lists(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k highest scores of each row.

    Equal scores are ordered by lower column, so that the answer does not
    depend on the machine. Columns of score -inf are never listed.

    Args:
        scores: `[num_rows, num_columns]` float without NaN.
        k: Length of the lists, from 1.

    Returns:
        `items`, `[num_rows, k]` int32 columns, best first, and their scores,
        `[num_rows, k]` in the type of `scores`. A row with fewer than k
        finite scores ends in items 0 with scores -inf.
    """
    width = min(k, scores.shape[1])
    columns, few = _candidates(scores, width)
    place = few.shape[1] - width
    threshold = np.partition(few, place, axis=1)[:, place, np.newaxis]
    mask = few >= threshold
    crowded = np.flatnonzero(np.count_nonzero(mask, axis=1) > width)
    if len(crowded):
        mask[crowded] = _first_ties(few[crowded], threshold[crowded], width)
    # nonzero goes by rows and, within a row, by rising columns, so the stable
    # sort leaves the lower column first where scores are equal.
    found = np.nonzero(mask)[1].reshape(len(few), width)
    found_scores = np.take_along_axis(few, found, axis=1)
    order = np.argsort(-found_scores, axis=1, kind="stable")
    found = np.take_along_axis(found, order, axis=1)
    if columns is not None:
        found = np.take_along_axis(columns, found, axis=1)
    items = np.full((len(few), k), PADDING_INDEX, np.int32)
    best = np.full((len(few), k), -np.inf, scores.dtype)
    items[:, :width] = found
    best[:, :width] = np.take_along_axis(found_scores, order, axis=1)
    items[np.isneginf(best)] = PADDING_INDEX
    return items, best


def _candidates(
    scores: np.ndarray, width: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Leaves out most columns that cannot be among the best.

    The highest scores of the groups of columns are scores of different
    columns, so the `width`-th highest of them is a score that the `width`
    best columns reach. This takes about a sixth of the time of looking
    for the best among all.

    Args:
        scores: `[num_rows, num_columns]` float.
        width: How many columns of each row must be left, and which: its best.

    Returns:
        `[num_rows, n]` int64 rising columns and their scores, -inf behind a
        row's last; or None and all scores, where that leaves out too little.
    """
    num_rows, num_columns = scores.shape
    num_groups = num_columns // _GROUP_SIZE
    if num_groups < 2 * width or not num_rows:
        return None, scores
    # Column j is in group j % num_groups; those left over are in none.
    grouped = scores[:, : num_groups * _GROUP_SIZE]
    highest = grouped.reshape(num_rows, _GROUP_SIZE, num_groups).max(axis=1)
    place = num_groups - width
    bound = np.partition(highest, place, axis=1)[:, place, np.newaxis]
    flat = np.flatnonzero(scores >= bound)
    ends = np.searchsorted(flat, num_columns * np.arange(num_rows + 1))
    counts = np.diff(ends)
    if 2 * counts.max() > num_columns:
        return None, scores
    is_there = np.arange(counts.max()) < counts[:, np.newaxis]
    columns = np.zeros(is_there.shape, np.int64)
    columns[is_there] = flat % num_columns
    few = np.full(is_there.shape, -np.inf, scores.dtype)
    few[is_there] = scores.ravel()[flat]
    return columns, few


def _first_ties(
    scores: np.ndarray, threshold: np.ndarray, width: int
) -> np.ndarray:
    """Marks exactly `width` columns of rows tied at their threshold.

    Args:
        scores: `[num_rows, num_columns]` float.
        threshold: `[num_rows, 1]`, the `width`-th highest score of each row.
        width: How many columns to mark.

    Returns:
        `[num_rows, num_columns]` bool: all above the threshold and, of those
        at it, the lowest columns.
    """
    above = scores > threshold
    tied = scores == threshold
    room = width - np.count_nonzero(above, axis=1)[:, np.newaxis]
    tied &= np.cumsum(tied, axis=1, dtype=np.int32) <= room
    return above | tied


# Rows are ranked in chunks of about so many scores, which stay in cache.
_CHUNK_SCORES = 2**18


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The ranking of one batch of queries.

    Attributes:
        ranks: `[num_queries, max_relevant]` float64 expected ranks of the
            relevant items, ascending, padded with NaN.
        relevant_items: `[num_queries, max_relevant]` int32, the item at each
            of `ranks`, padded with 0.
        num_candidates: `[num_queries]` int32.
        top_items: `[num_queries, k]` int32, padded with 0; None when k is 0.
        top_scores: `[num_queries, k]` float, padded with -inf; or None.
    """

    ranks: np.ndarray
    relevant_items: np.ndarray
    num_candidates: np.ndarray
    top_items: np.ndarray | None
    top_scores: np.ndarray | None


def rank_candidates(
    scores: np.ndarray,
    relevant_items: np.ndarray,
    excluded: tuple[np.ndarray, np.ndarray] | None,
    k: int,
    names: np.ndarray,
) -> Ranked:
    """Ranks the relevant items of each query among its candidates.

    An item's expected rank is that of `recsys.metrics`. An item of score -inf
    stays a candidate, tied with all others of that score at the end.

    Args:
        scores: `[num_queries, vocabulary_size]` float without NaN and +inf in
            the columns from 2 on; it is not changed.
        relevant_items: `[num_queries, max_relevant]` int32, each query's
            distinct relevant items in any order, padded with 0 behind them.
        excluded: Items that are no candidates, as flat items and
            `[num_queries + 1]` int64 offsets; None when all are candidates.
        k: Length of the top lists; 0 leaves them out.
        names: `[num_queries]` object array of str, for error messages.

    Returns:
        The ranking.

    Raises:
        InputError: A relevant item is also excluded.
    """
    num_queries, vocabulary_size = scores.shape
    if excluded is None:
        excluded = np.empty(0, np.int32), np.zeros(num_queries + 1, np.int64)
    num_candidates = (
        vocabulary_size - FIRST_ITEM_INDEX - num_distinct(*excluded)
    )
    ranks = np.full(relevant_items.shape, np.nan)
    ordered = np.full_like(relevant_items, PADDING_INDEX)
    top_items = np.empty((num_queries, k), np.int32)
    top_scores = np.empty((num_queries, k), scores.dtype)
    step = max(8, _CHUNK_SCORES // vocabulary_size)
    chunk = np.empty((step, vocabulary_size), scores.dtype)
    mask = _mask(step, vocabulary_size)
    for start in range(0, num_queries, step):
        rows = slice(start, start + step)
        part = chunk[: len(scores[rows])]
        np.copyto(part, scores[rows])
        relevant = relevant_items[rows]
        relevant_scores = _exclude(part, relevant, excluded, start, names)
        order = np.lexsort((relevant, -relevant_scores), axis=-1)
        ordered[rows] = np.take_along_axis(relevant, order, axis=1)
        ranks[rows] = expected_ranks(
            part,
            np.take_along_axis(relevant_scores, order, axis=1),
            num_candidates[rows],
            mask,
        )
        if k:
            top_items[rows], top_scores[rows] = top_lists(part, k)
    return Ranked(
        ranks=ranks,
        relevant_items=ordered,
        num_candidates=num_candidates.astype(np.int32),
        top_items=top_items if k else None,
        top_scores=top_scores if k else None,
    )


def _exclude(
    chunk: np.ndarray,
    relevant_items: np.ndarray,
    excluded: tuple[np.ndarray, np.ndarray],
    first_query: int,
    names: np.ndarray,
) -> np.ndarray:
    """Puts everything that is no candidate to -inf, in place.

    Args:
        chunk: `[num_rows, vocabulary_size]` float, a copy of the scores.
        relevant_items: `[num_rows, max_relevant]` int32, padded with 0.
        excluded: Flat items and offsets of the whole batch.
        first_query: The batch's query in the first row of the chunk.
        names: The batch's queries, for error messages.

    Returns:
        `[num_rows, max_relevant]` float, the scores of the relevant items,
        NaN where padded.

    Raises:
        InputError: A relevant item is also excluded.
    """
    items, offsets = excluded
    offsets = offsets[first_query : first_query + len(chunk) + 1]
    rows = np.repeat(np.arange(len(chunk)), np.diff(offsets))
    is_padding = relevant_items == PADDING_INDEX
    relevant_scores = np.take_along_axis(chunk, relevant_items, axis=1)
    relevant_scores[is_padding] = np.nan
    # +inf marks the relevant items while the excluded ones are written: one
    # that has lost its mark was excluded.
    np.put_along_axis(chunk, relevant_items, np.inf, axis=1)
    chunk[rows, items[offsets[0] : offsets[-1]]] = -np.inf
    marks = np.take_along_axis(chunk, relevant_items, axis=1)
    lost = np.argwhere(~is_padding & (marks != np.inf))
    if len(lost):
        row, column = lost[0]
        raise InputError(
            "a relevant item must be a candidate, but it is in the query's "
            "own history, which is excluded: keep one interaction of each "
            'user with each item (repeats="first"), or pass '
            "`exclude_history=False`. Received: item index "
            f"{relevant_items[row, column]} for query "
            f"{names[first_query + row]!r}"
        )
    np.put_along_axis(chunk, relevant_items, relevant_scores, axis=1)
    chunk[:, :FIRST_ITEM_INDEX] = -np.inf
    return relevant_scores


def expected_ranks(
    chunk: np.ndarray,
    relevant_scores: np.ndarray,
    num_candidates: np.ndarray,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Expected ranks of relevant items that come best first.

    Args:
        chunk: `[num_rows, vocabulary_size]` float, -inf where no candidate.
        relevant_scores: `[num_rows, max_relevant]` float, never rising along
            a row, NaN behind each query's last.
        num_candidates: `[num_rows]` int64.
        mask: Scratch space, see `_count`; None allocates it.

    Returns:
        `[num_rows, max_relevant]` float64, NaN where padded.
    """
    if mask is None:
        mask = _mask(*chunk.shape)
    num_relevant = np.count_nonzero(~np.isnan(relevant_scores), axis=1)
    better = np.zeros(relevant_scores.shape, np.int64)
    tied = np.zeros(relevant_scores.shape, np.int64)
    for column in range(relevant_scores.shape[1]):
        rows = np.flatnonzero(num_relevant > column)
        if not len(rows):
            break
        part = chunk if len(rows) == len(chunk) else chunk[rows]
        score = relevant_scores[rows, column, np.newaxis]
        better[rows, column] = _count(np.greater, part, score, mask)
        tied[rows, column] = _count(np.equal, part, score, mask)
    # Excluded columns are -inf too, so ties at -inf are what is left over.
    tied = np.where(
        np.isneginf(relevant_scores),
        num_candidates[:, np.newaxis] - better,
        tied,
    )
    position, size = _tie_groups(relevant_scores)
    ranks = better + position * (tied + 1) / (size + 1)
    return np.where(np.isnan(relevant_scores), np.nan, ranks)


def _count(
    compare: np.ufunc, chunk: np.ndarray, score: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Counts the columns of each row that compare so with its score.

    Counting set bits of whole words takes a third of the time of
    `np.count_nonzero` along an axis.

    Args:
        compare: The comparison, `compare(chunk, score)`.
        chunk: `[num_rows, num_columns]` float.
        score: `[num_rows, 1]` float.
        mask: `[at least num_rows, words of 8 columns]` bool scratch space,
            False behind `num_columns`.

    Returns:
        `[num_rows]` int64.
    """
    mask = mask[: len(chunk)]
    compare(chunk, score, out=mask[:, : chunk.shape[1]])
    return np.bitwise_count(mask.view(np.uint64)).sum(axis=1, dtype=np.int64)


def _mask(num_rows: int, num_columns: int) -> np.ndarray:
    """Allocates what `_count` writes to: rows of whole 8-byte words."""
    return np.zeros((num_rows, -(-num_columns // 8) * 8), bool)


def _tie_groups(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places each score within the run of equal scores that it is in.

    Args:
        scores: `[num_rows, n]` float, equal ones side by side.

    Returns:
        `[num_rows, n]` int64 1-based positions within the run, and the sizes
        of the runs.
    """
    columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    starts_here = np.ones(scores.shape, bool)
    starts_here[:, 1:] = scores[:, 1:] != scores[:, :-1]
    ends_here = np.ones(scores.shape, bool)
    ends_here[:, :-1] = starts_here[:, 1:]
    first = np.maximum.accumulate(np.where(starts_here, columns, 0), axis=1)
    last = np.where(ends_here, columns, scores.shape[1])
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    return columns - first + 1, last - first + 1


def num_distinct(items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Counts the `[num_queries]` distinct real items of each slice."""
    num_queries = len(offsets) - 1
    queries = np.repeat(np.arange(num_queries), np.diff(offsets))
    real = items >= FIRST_ITEM_INDEX
    width = int(items.max(initial=0)) + 1
    # np.unique would hash, which takes twenty times as long as sorting.
    keys = np.sort(queries[real] * width + items[real])
    is_new = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    return np.bincount(keys[is_new] // width, minlength=num_queries)


# The scores of one batch take at most this much memory (bytes).
_BATCH_BYTES = 256 * 2**20


class Recommender(Protocol):
    """Anything that scores the catalog for a history.

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
    """Ranks the full catalog for every query.

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
            catalog, or, with `exclude_history`, one from its own history.
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
