"""Exact top-k by dot product, over the candidates in chunks."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# What a row holds where no candidate is left.
NO_ROW = -1
# Candidates are looked at in groups of so many: one maximum for each.
_GROUP_SIZE = 16
# Queries that go over the candidates together.
_QUERIES_PER_BLOCK = 512
# Scores held at once: 8 MB, which stay in the processor's cache.
_SCORES_PER_CHUNK = 2**21
# The first bound is the k-th of the groups' maxima; of few groups it is low.
_GROUPS_PER_K = 4
_MAX_SCORES = 2**24
# Up to so many scores, or candidates, sorting all takes less time than leaving
# some out.
_FEW_SCORES = 2**17
_FEW_CANDIDATES = 2**14


def top_k(
    queries: np.ndarray,
    candidates: tf.Tensor,
    k: int,
    *,
    exclusions: tuple[np.ndarray, np.ndarray] | None = None,
    rows: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the candidates with the highest dot products.

    Of each chunk of candidates only the scores above a query's k-th best so
    far are kept, so nothing is sorted but what may still be on the list, and
    memory does not grow with the number of candidates.

    Args:
        queries: `[num_queries, dim]` float32, finite.
        candidates: `[num_candidates, dim]` float32, finite.
        k: How many for each query, from 1.
        exclusions: Rows that a query may not get: `[total]` integers, the
            queries' one after the other, and `[num_queries + 1]` offsets.
            Default: none.
        rows: `[n]` rising rows: no others are candidates. Default: all are.

    Returns:
        `[num_queries, k]` int64 rows, best first, of equal scores the lowest
        row first, and their `[num_queries, k]` float32 scores. Where fewer
        than k are left, a list ends in rows -1 with scores -inf.
    """
    num_queries = len(queries)
    found = np.full((num_queries, k), NO_ROW, np.int64)
    scores = np.full((num_queries, k), -np.inf, np.float32)
    num_candidates = candidates.shape[0] if rows is None else len(rows)
    width = min(k, num_candidates)
    if not num_queries or not width:
        return found, scores
    # No more queries than leaves room for the groups of the first bound.
    largest = _MAX_SCORES // (_GROUPS_PER_K * _GROUP_SIZE * width)
    step = min(max(largest, 1), _QUERIES_PER_BLOCK)
    for begin in range(0, num_queries, step):
        block = slice(begin, min(begin + step, num_queries))
        excluded = None
        if exclusions is not None:
            excluded = _by_row(*exclusions, block, rows)
        search = _Search(queries[block], width)
        search.run(candidates, rows, excluded)
        found[block, :width], scores[block, :width] = search.best()
    if rows is not None:
        found = np.where(found < 0, NO_ROW, rows[found])
    return found, scores


def _by_row(
    excluded: np.ndarray,
    offsets: np.ndarray,
    block: slice,
    rows: np.ndarray | None,
) -> np.ndarray:
    """Returns `[n, 2]` int64 (row, query of the block), rows rising."""
    num_queries = block.stop - block.start
    lengths = np.diff(offsets[block.start : block.stop + 1])
    part = excluded[offsets[block.start] : offsets[block.stop]]
    part = part.astype(np.int64)
    queries = np.repeat(np.arange(num_queries), lengths)
    if rows is not None:
        places = np.searchsorted(rows, part)
        is_there = np.append(rows, NO_ROW)[places] == part
        part, queries = places[is_there], queries[is_there]
    # One number for each pair: far faster to sort than rows of two.
    pairs = np.sort(part * num_queries + queries)
    return np.stack(np.divmod(pairs, num_queries), axis=1)


class _Search:
    """The best candidates so far of a block of queries.

    Args:
        queries: `[num_queries, dim]` float32.
        k: How many for each; not more than there are candidates.
    """

    def __init__(self, queries: np.ndarray, k: int) -> None:
        self._queries = tf.constant(queries, tf.float32)
        self._k = k
        shape = (len(queries), k)
        self._rows = np.full(shape, NO_ROW, np.int64)
        self._scores = np.full(shape, -np.inf, np.float32)
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._num_pending = 0

    def run(
        self,
        candidates: tf.Tensor,
        rows: np.ndarray | None,
        excluded: np.ndarray | None,
    ) -> None:
        """Goes over all candidates.

        Args:
            candidates: `[num_candidates, dim]` float32.
            rows: `[n]` rows of the candidates; they are counted anew from 0.
            excluded: `[m, 2]` int64 (row, query), rows rising.
        """
        num_queries = len(self._rows)
        if excluded is None:
            excluded = np.empty((0, 2), np.int64)
        end = candidates.shape[0] if rows is None else len(rows)
        if num_queries * end <= _FEW_SCORES or end <= _FEW_CANDIDATES:
            if rows is not None:
                candidates = tf.gather(candidates, rows)
            self._sort(candidates, excluded)
            return
        least = _GROUPS_PER_K * self._k
        step = max(_SCORES_PER_CHUNK // num_queries // _GROUP_SIZE, least)
        for begin, stop, size in _pieces(end, step * _GROUP_SIZE):
            if rows is None:
                chunk = candidates[begin:stop]
            else:
                chunk = tf.gather(candidates, rows[begin:stop])
            first, last = np.searchsorted(excluded[:, 0], [begin, stop])
            few = excluded[first:last] - [begin, 0]
            # Until all lists are full there is no bound but the chunk's own.
            has_bound = (stop - begin) // size >= self._k
            is_open = bool(np.isneginf(self._scores[:, -1]).any())
            kept_rows, query, kept_scores = _above(
                self._queries,
                chunk,
                few,
                self._scores[:, -1],
                size,
                self._k if has_bound and is_open else 0,
            )
            self._pending.append(
                (kept_rows.numpy() + begin, query.numpy(), kept_scores.numpy())
            )
            self._num_pending += len(self._pending[-1][0])
            # Merging is worth it when it may double what is known.
            if self._num_pending > num_queries * self._k or is_open:
                self._merge()

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns `[num_queries, k]` int64 rows and float32 scores."""
        self._merge()
        return self._rows, self._scores

    def _sort(self, candidates: tf.Tensor, excluded: np.ndarray) -> None:
        """Does all at once."""
        best, found = _sorted(self._queries, candidates, excluded, self._k)
        self._scores = best.numpy()
        self._rows = found.numpy().astype(np.int64)
        self._rows[np.isneginf(self._scores)] = NO_ROW

    def _merge(self) -> None:
        """Puts what was kept since the last time among the best."""
        if not self._num_pending:
            self._pending = []
            return
        rows, queries, scores = map(
            np.concatenate, zip(*self._pending, strict=True)
        )
        self._pending, self._num_pending = [], 0
        # Rows rise within a query, and those of the list are lower still:
        # top_k puts the first of equal scores first.
        order = np.argsort(queries.astype(np.int16), kind="stable")
        counts = np.bincount(queries, minlength=len(self._rows))
        is_there = np.arange(counts.max()) < counts[:, np.newaxis]
        wide_rows = np.full(is_there.shape, NO_ROW, np.int64)
        wide_scores = np.full(is_there.shape, -np.inf, np.float32)
        wide_rows[is_there] = rows[order]
        wide_scores[is_there] = scores[order]
        wide_rows = np.concatenate([self._rows, wide_rows], axis=1)
        best, columns = tf.math.top_k(
            np.concatenate([self._scores, wide_scores], axis=1), self._k
        )
        self._scores = best.numpy()
        self._rows = np.take_along_axis(wide_rows, columns.numpy(), axis=1)
        self._rows[np.isneginf(self._scores)] = NO_ROW


def _pieces(end: int, step: int) -> list[tuple[int, int, int]]:
    """Cuts rows into chunks of whole groups: begin, end and group size."""
    whole = end - end % _GROUP_SIZE
    pieces = [
        (begin, min(begin + step, whole), _GROUP_SIZE)
        for begin in range(0, whole, step)
    ]
    if end > whole:
        pieces.append((whole, end, end - whole))
    return pieces


@tf.function(
    autograph=False,
    input_signature=[
        tf.TensorSpec([None, None]),
        tf.TensorSpec([None, None]),
        tf.TensorSpec([None, 2], tf.int64),
        tf.TensorSpec([], tf.int32),
    ],
)
def _sorted(
    queries: tf.Tensor, candidates: tf.Tensor, excluded: tf.Tensor, k: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sorts all candidates.

    Args:
        queries: `[num_queries, dim]` float32.
        candidates: `[num_candidates, dim]` float32.
        excluded: `[m, 2]` int64 (row, query).
        k: int32 scalar, how many to return.

    Returns:
        `[num_queries, k]` float32 scores and int32 rows.
    """
    scores = tf.matmul(queries, candidates, transpose_b=True)
    scores = tf.tensor_scatter_nd_update(
        scores,
        tf.reverse(excluded, [1]),
        tf.fill([tf.shape(excluded)[0]], -np.inf),
    )
    best, rows = tf.math.top_k(scores, k)
    return best, rows


@tf.function(
    autograph=False,
    input_signature=[
        tf.TensorSpec([None, None]),
        tf.TensorSpec([None, None]),
        tf.TensorSpec([None, 2], tf.int64),
        tf.TensorSpec([None]),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([], tf.int32),
    ],
)
def _above(
    queries: tf.Tensor,
    chunk: tf.Tensor,
    excluded: tf.Tensor,
    bound: tf.Tensor,
    group_size: tf.Tensor,
    k: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Scores a chunk and keeps what may be among the k best.

    Args:
        queries: `[num_queries, dim]` float32.
        chunk: `[n, dim]` float32 candidates.
        excluded: `[m, 2]` int64 (row in the chunk, query).
        bound: `[num_queries]` float32; only higher scores are kept.
        group_size: int32 scalar that divides n.
        k: int32 scalar; above 0, the k-th highest of the groups' maxima is a
            bound too: so many scores of the chunk reach it. There must be so
            many groups.

    Returns:
        `[kept]` int64 rows in the chunk, rising for each query, int64 queries
        and float32 scores.
    """
    num_queries = tf.shape(queries)[0]
    # With the candidates in front: far faster when the queries are few.
    scores = tf.matmul(chunk, queries, transpose_b=True)
    scores = tf.tensor_scatter_nd_update(
        scores, excluded, tf.fill([tf.shape(excluded)[0]], -np.inf)
    )
    grouped = tf.reshape(scores, [-1, group_size, num_queries])
    highest = tf.reduce_max(grouped, axis=1)
    least = tf.cond(
        k > 0,
        lambda: tf.math.top_k(tf.transpose(highest), k)[0][:, -1],
        lambda: tf.fill([num_queries], -np.inf),
    )
    may_be = (highest > bound) & (highest >= least)
    group, query = tf.unstack(tf.where(may_be), axis=1)
    size = tf.cast(group_size, tf.int64)
    rows = group[:, tf.newaxis] * size + tf.range(size)
    width = tf.cast(num_queries, tf.int64)
    places = rows * width + query[:, tf.newaxis]
    few = tf.gather(tf.reshape(scores, [-1]), places)
    # A score that equals the k-th maximum is needed, one that equals the
    # bound is not: candidates of lower rows are on the list already.
    kept = tf.where(
        (few > tf.gather(bound, query)[:, tf.newaxis])
        & (few >= tf.gather(least, query)[:, tf.newaxis])
    )
    return (
        tf.gather_nd(rows, kept),
        tf.gather(query, kept[:, 0]),
        tf.gather_nd(few, kept),
    )
