"""Expected ranks and top lists from a matrix of scores."""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys.data.vocabulary import FIRST_ITEM_INDEX, PADDING_INDEX
from recsys.errors import InputError
from recsys.evaluation.top_lists import top_lists

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
