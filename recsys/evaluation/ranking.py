"""Full-catalog ranking: from scores to expected ranks and top lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from recsys.data.splits import Queries
from recsys.errors import InputError
from recsys.evaluation.results import Evaluation, query_ids
from recsys.ids import FIRST_ITEM_INDEX, PADDING_INDEX
from recsys.retrieval import top_columns

# Rows are ranked in chunks of about this many scores, which fit in the cache.
_CHUNK_SCORES = 2**18
# Memory of the scores of one batch.
_BATCH_BYTES = 256 * 2**20


class Scorer(Protocol):
    """Anything that scores the catalog for a history.

    Attributes:
        name: The name in results tables and error messages.
    """

    name: str

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Scores every item for each history.

        Args:
            items: `[total]` int32 vocabulary indices of all histories, each
                oldest first.
            offsets: `[num_queries + 1]` int64. The history of query q is
                `items[offsets[q]:offsets[q + 1]]`, which may be empty.

        Returns:
            `[num_queries, vocabulary_size]` float32. Columns 0 and 1
            (padding, unknown) are ignored. An item with the score -inf ranks
            behind all others and is never listed.
        """


def evaluate(
    scorer: Scorer,
    queries: Queries,
    *,
    protocol: str,
    ks: Iterable[int] = (1, 5, 10, 20, 50, 100),
    exclude_history: bool = True,
    lists: bool = True,
    batch_size: int = 1024,
) -> Evaluation:
    """Ranks the full catalog for every query.

    Items without training interactions are candidates, too. Memory is
    limited to one batch of scores plus the results, which do not depend on
    the batch size as long as the scores do not. `ks=(10,), lists=False` is
    the cheap form for validation during training.

    Args:
        scorer: Computes the scores.
        queries: The queries.
        protocol: The name of the split, for the results.
        ks: Cutoffs of the metrics; the largest is the length of the lists.
        exclude_history: Whether to exclude the items of a query's history
            from its candidates.
        lists: Whether to keep the lists of recommended items.
        batch_size: Maximum number of histories to score at once. Batches are
            smaller if their scores would exceed 256 MB. Histories of similar
            length are scored together.

    Returns:
        One entry per query, in the order of `queries`.

    Raises:
        InputError: There is no query, or a relevant item is missing,
            duplicated, outside of the catalog or excluded.
        ValueError: The scores have the wrong shape or contain NaN or +inf, or
            `ks` or `batch_size` is not positive.
    """
    ks = tuple(sorted(set(ks)))
    if not ks or ks[0] < 1 or batch_size < 1:
        raise ValueError(
            "`ks` and `batch_size` must be positive. Received: "
            f"{ks} and {batch_size}"
        )
    ranking = _Ranking(queries, ks[-1] if lists else 0)
    for rows in _batches(queries, batch_size):
        ranking.add(scorer, rows, exclude_history)
    return Evaluation(
        name=scorer.name,
        protocol=protocol,
        ks=ks,
        exclude_history=exclude_history,
        num_items=ranking.vocabulary_size - FIRST_ITEM_INDEX,
        query_ids=ranking.names,
        ranks=ranking.ranks,
        relevant_items=ranking.relevant_items,
        num_candidates=ranking.num_candidates,
        top_items=ranking.top_items if lists else None,
        top_scores=ranking.top_scores if lists else None,
    )


def _batches(queries: Queries, batch_size: int) -> Iterator[np.ndarray]:
    """Yields the rows of each batch, queries with short histories first."""
    largest = int(queries.sequences.items.max(initial=0)) + 1
    size = min(batch_size, max(1, _BATCH_BYTES // (4 * largest)))
    lengths = queries.history_ends - queries.history_starts
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


class _Ranking:
    """The results of all queries, filled batch by batch; see `Evaluation`."""

    def __init__(self, queries: Queries, k: int) -> None:
        self._queries = queries
        self.names = query_ids(queries)
        self.vocabulary_size = 0
        # Each batch sorts its rows by rank.
        self.relevant_items = padded_relevant_items(queries, self.names)
        self.ranks = np.full(self.relevant_items.shape, np.nan)
        self.num_candidates = np.zeros(len(queries), np.int32)
        self.top_items = np.empty((len(queries), k), np.int32)
        self.top_scores = np.empty((len(queries), k), np.float32)

    def add(self, scorer: Scorer, rows: np.ndarray, exclude: bool) -> None:
        """Ranks for some queries, without their history if `exclude`."""
        items, offsets = self._queries.histories(rows)
        names = self.names[rows]
        # A model of further features reads them from the queries.
        score_queries = getattr(scorer, "query_scores", None)
        scores = _checked(
            scorer,
            scorer.scores(items, offsets)
            if score_queries is None
            else score_queries(self._queries, rows),
            names,
        )
        size = self.vocabulary_size = scores.shape[1]
        relevant = self.relevant_items[rows]
        largest = max(items.max(initial=0), relevant.max())
        if largest >= size:
            raise InputError(
                "the items of all queries must be below the vocabulary size "
                f"{size} of {scorer.name!r}. Received: index {largest}"
            )
        if not exclude:
            items, offsets = items[:0], np.zeros_like(offsets)
        num_candidates = size - FIRST_ITEM_INDEX - num_distinct(items, offsets)
        self.num_candidates[rows] = num_candidates
        width = int(np.count_nonzero(relevant.any(axis=0)))
        k = self.top_items.shape[1]
        step = max(8, _CHUNK_SCORES // size)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            chunk = scores[part].copy()
            ends = offsets[start : start + step + 1]
            excluded = (
                np.repeat(np.arange(len(chunk)), np.diff(ends)),
                items[ends[0] : ends[-1]],
            )
            asked = relevant[part, :width]
            found = _exclude(chunk, asked, excluded, names[part])
            ranks, ordered = expected_ranks(
                chunk, asked, found, num_candidates[part]
            )
            self.ranks[rows[part], :width] = ranks
            self.relevant_items[rows[part], :width] = ordered
            if k:
                columns, top_scores = top_columns(chunk, k)
                self.top_items[rows[part]] = np.maximum(columns, PADDING_INDEX)
                self.top_scores[rows[part]] = top_scores


def padded_relevant_items(queries: Queries, names: np.ndarray) -> np.ndarray:
    """Returns the checked relevant items of each query.

    Args:
        queries: The queries.
        names: `[num_queries]` object array of str, for error messages.

    Returns:
        `[num_queries, max_relevant]` int32, rows padded with 0 at the end.

    Raises:
        InputError: There is no query, or a query's relevant items are
            missing, duplicated, padding or unknown.
    """
    if not len(queries):
        raise InputError("`queries` must not be empty. Received: none")
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
            "the relevant items of a query must be distinct (keep one "
            'interaction per user and item, repeats="first"). Received: item '
            f"index {ordered[row, column]} twice for query {names[row]!r}"
        )
    return padded


def _checked(scorer: Scorer, found: Any, names: np.ndarray) -> np.ndarray:
    """Returns `[batch_size, vocabulary_size]` scores after checking them."""
    scores = np.asarray(found)
    if scores.ndim != 2 or len(scores) != len(names):
        raise ValueError(
            f"`scores` of {scorer.name!r} must have the shape "
            f"[{len(names)}, vocabulary_size]. Received: {scores.shape}"
        )
    # The maximum of a row is NaN if any of its scores is.
    highest = scores[:, FIRST_ITEM_INDEX:].max(axis=1)
    wrong = np.flatnonzero(np.isnan(highest) | np.isposinf(highest))
    if len(wrong):
        raise ValueError(
            f"`scores` of {scorer.name!r} must be finite or -inf. Received: "
            f"{highest[wrong[0]]} for query {names[wrong[0]]!r}"
        )
    # Half precision is widened; double stays, as rounding would create ties.
    return scores.astype(np.result_type(scores, np.float32), copy=False)


def _exclude(
    chunk: np.ndarray,
    relevant_items: np.ndarray,
    excluded: tuple[np.ndarray, np.ndarray],
    names: np.ndarray,
) -> np.ndarray:
    """Sets non-candidates to -inf; returns the relevant items' scores."""
    is_padding = relevant_items == PADDING_INDEX
    relevant_scores = np.take_along_axis(chunk, relevant_items, axis=1)
    relevant_scores[is_padding] = np.nan
    # Relevant items are marked with +inf: one that loses its mark is excluded.
    np.put_along_axis(chunk, relevant_items, np.inf, axis=1)
    chunk[excluded] = -np.inf
    marks = np.take_along_axis(chunk, relevant_items, axis=1)
    lost = np.argwhere(~is_padding & (marks != np.inf))
    if len(lost):
        row, column = lost[0]
        raise InputError(
            "a relevant item must be a candidate, but this one is in the "
            "query's own history, which is excluded: keep one interaction per "
            'user and item (repeats="first") or pass `exclude_history=False`. '
            f"Received: item index {relevant_items[row, column]} for query "
            f"{names[row]!r}"
        )
    np.put_along_axis(chunk, relevant_items, relevant_scores, axis=1)
    chunk[:, :FIRST_ITEM_INDEX] = -np.inf
    return relevant_scores


def expected_ranks(
    scores: np.ndarray,
    relevant_items: np.ndarray,
    relevant_scores: np.ndarray,
    num_candidates: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks relevant items among candidates; see `recsys.metrics` for ties.

    Candidates with the score -inf are tied behind all others.

    Args:
        scores: `[num_rows, num_columns]` float without NaN and +inf; -inf for
            everything that is not a candidate.
        relevant_items: `[num_rows, max_relevant]` int32.
        relevant_scores: `[num_rows, max_relevant]` float, NaN for padding.
        num_candidates: `[num_rows]` int.

    Returns:
        `[num_rows, max_relevant]` float64 ranks, ascending, NaN for padding,
        and the `[num_rows, max_relevant]` int32 items in the same order.
    """
    order = np.lexsort((relevant_items, -relevant_scores), axis=-1)
    relevant_scores = np.take_along_axis(relevant_scores, order, axis=1)
    # Tied relevant items are runs of equal scores; none continues in the next
    # row, because each row starts a new one.
    is_new = np.ones(relevant_scores.shape, bool)
    is_new[:, 1:] = relevant_scores[:, 1:] != relevant_scores[:, :-1]
    starts = np.flatnonzero(is_new)
    run = np.cumsum(is_new).reshape(is_new.shape) - 1
    place = np.arange(is_new.size).reshape(is_new.shape) - starts[run] + 1
    size = np.diff(starts, append=is_new.size)[run]
    # Rows of whole 8-byte words, as scratch space.
    num_rows, num_columns = scores.shape
    mask = np.zeros((num_rows, -(-num_columns // 8) * 8), bool)
    better = np.zeros(relevant_scores.shape, np.int64)
    tied = np.zeros(relevant_scores.shape, np.int64)
    for column in range(relevant_scores.shape[1]):
        rows = np.flatnonzero(~np.isnan(relevant_scores[:, column]))
        part = scores if len(rows) == num_rows else scores[rows]
        score = relevant_scores[rows, column, np.newaxis]
        better[rows, column] = _count(np.greater, part, score, mask)
        tied[rows, column] = _count(np.equal, part, score, mask)
    # Excluded columns are -inf, too, and must not be counted as ties.
    tied = np.where(
        np.isneginf(relevant_scores),
        num_candidates[:, np.newaxis] - better,
        tied,
    )
    ranks = better + place * (tied + 1) / (size + 1)
    return (
        np.where(np.isnan(relevant_scores), np.nan, ranks),
        np.take_along_axis(relevant_items, order, axis=1),
    )


def _count(
    compare: np.ufunc, scores: np.ndarray, score: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Counts the `[num_rows]` columns for which `compare(scores, score)`."""
    # Counting bits of words takes a third of the time of np.count_nonzero.
    mask = mask[: len(scores)]
    compare(scores, score, out=mask[:, : scores.shape[1]])
    return np.bitwise_count(mask.view(np.uint64)).sum(axis=1, dtype=np.int64)


def num_distinct(items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Counts the `[num_queries]` distinct known items of each history."""
    num_queries = len(offsets) - 1
    queries = np.repeat(np.arange(num_queries), np.diff(offsets))
    known = items >= FIRST_ITEM_INDEX
    width = int(items.max(initial=0)) + 1
    # np.unique would hash, which takes twenty times as long as sorting.
    keys = np.sort(queries[known] * width + items[known])
    is_new = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    return np.bincount(keys[is_new] // width, minlength=num_queries)
