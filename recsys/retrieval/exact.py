"""Exact top-k in NumPy: of given scores, and by dot product."""

from __future__ import annotations

import numpy as np

# What a row holds where no candidate is left.
NO_ROW = -1
# One maximum is taken of each group of so many columns, before anything else.
_GROUP_SIZE = 8
# One product has so many scores (8 MB) at most, and compares so many queries.
_SCORES_PER_CHUNK = 2**21
_QUERIES_PER_BLOCK = 200
# Lists that are kept at once, however large k is: 200 MB.
_PLACES_PER_BLOCK = 2**24


def top_columns(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k highest scores of each row.

    The only top-k over scores in NumPy: evaluation uses it as well.

    Args:
        scores: `[num_rows, num_columns]` float without NaN.
        k: Length of the lists, from 1.

    Returns:
        `[num_rows, k]` int64 columns, best first, the lower column first where
        scores are equal, and their scores, `[num_rows, k]` in the type of
        `scores`. Columns of score -inf are never listed: a row with too few
        others, or columns, ends in columns -1 with scores -inf.
    """
    width = min(k, scores.shape[1])
    columns, few = _candidates(scores, width)
    rows = np.arange(len(few))[:, np.newaxis]
    place = few.shape[1] - width
    if place:
        threshold = np.partition(few, place, axis=1)[:, place, np.newaxis]
        mask = few >= threshold
        crowded = np.flatnonzero(np.count_nonzero(mask, axis=1) > width)
        if len(crowded):
            mask[crowded] = _first_ties(few[crowded], threshold[crowded], width)
        # Row by row and, within a row, by rising columns, so that the stable
        # sort below leaves the lower column first where scores are equal.
        kept = np.nonzero(mask)[1].reshape(len(few), width)
        few = few[rows, kept]
        columns = kept if columns is None else columns[rows, kept]
    order = np.argsort(-few, axis=1, kind="stable")
    best = few[rows, order]
    found = order if columns is None else columns[rows, order]
    if width < k:
        missing = ((0, 0), (0, k - width))
        best = np.pad(best, missing, constant_values=-np.inf)
        found = np.pad(found, missing, constant_values=NO_ROW)
    found[np.isneginf(best)] = NO_ROW
    return found, best


def _candidates(
    scores: np.ndarray, width: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Leaves out columns not among the `width` best; None if it cannot."""
    # The highest scores of the groups are of different columns, so the best
    # columns reach the `width`-th highest of them: a sixth of partition's time.
    num_rows, num_columns = scores.shape
    num_groups = num_columns // _GROUP_SIZE
    if num_groups < 2 * width or not num_rows or not width:
        return None, scores
    # Column j is in group j % num_groups; those left over are in none.
    grouped = scores[:, : num_groups * _GROUP_SIZE]
    highest = grouped.reshape(num_rows, _GROUP_SIZE, num_groups).max(axis=1)
    place = num_groups - width
    highest.partition(place, axis=1)
    flat = np.flatnonzero(scores >= highest[:, place, np.newaxis])
    if num_rows == 1:
        if 2 * len(flat) > num_columns:
            return None, scores
        return flat[np.newaxis], scores[:, flat]
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
    """Marks `width` columns of each row: of ties, the lowest."""
    above = scores > threshold
    tied = scores == threshold
    room = width - np.count_nonzero(above, axis=1)[:, np.newaxis]
    tied &= np.cumsum(tied, axis=1, dtype=np.int32) <= room
    return above | tied


def top_k(
    queries: np.ndarray,
    candidates: np.ndarray,
    k: int,
    *,
    exclusions: tuple[np.ndarray, np.ndarray] | None = None,
    rows: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the candidates with the highest dot products.

    The candidates are scored in chunks. Of each chunk only the scores above a
    query's k-th best so far are kept, so memory does not grow with the number
    of candidates.

    Args:
        queries: `[num_queries, dim]` float32, finite.
        candidates: `[num_candidates, dim]` float32, finite: an array or a
            tensor on the CPU, which is not copied.
        k: How many candidates for each query, from 1.
        exclusions: Rows that each query must not get: `[total]` integers, one
            query after the other, and `[num_queries + 1]` offsets. Default:
            none.
        rows: `[n]` rising rows, the only ones to consider. Default: all.

    Returns:
        `[num_queries, min(k, num_candidates)]` int64 rows, best first, the
        lower row first where scores are equal, and their float32 scores. A
        list with fewer candidates left ends in rows -1 with scores -inf.
    """
    queries = np.asarray(queries, np.float32)
    candidates = np.asarray(candidates)
    width = min(k, len(candidates))
    step = min(_PLACES_PER_BLOCK // max(width, 1), _QUERIES_PER_BLOCK)
    step = max(step, 1)
    found = np.empty((len(queries), width), np.int64)
    scores = np.empty(found.shape, np.float32)
    for begin in range(0, len(queries), step):
        block = slice(begin, min(begin + step, len(queries)))
        excluded = None
        if exclusions is not None:
            excluded = _by_row(*exclusions, block, rows)
        found[block], scores[block] = _search(
            queries[block], candidates, width, excluded, rows
        )
    if rows is not None and len(rows):
        found = np.where(found < 0, NO_ROW, rows[found])
    return found, scores


def _by_row(
    excluded: np.ndarray,
    offsets: np.ndarray,
    block: slice,
    rows: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[n]` excluded rows, rising, and the block's query of each."""
    num_queries = block.stop - block.start
    lengths = np.diff(offsets[block.start : block.stop + 1])
    part = excluded[offsets[block.start] : offsets[block.stop]]
    part = part.astype(np.int64)
    queries = np.repeat(np.arange(num_queries), lengths)
    if rows is not None:
        places = np.searchsorted(rows, part)
        is_there = np.append(rows, NO_ROW)[places] == part
        part, queries = places[is_there], queries[is_there]
    # One number for each pair: far faster to sort than two keys.
    excluded_rows, queries = np.divmod(
        np.sort(part * num_queries + queries), num_queries
    )
    return excluded_rows, queries


def _search(
    queries: np.ndarray,
    candidates: np.ndarray,
    k: int,
    excluded: tuple[np.ndarray, np.ndarray] | None,
    rows: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """`[num_queries, k]` rows, or places in `rows`, and scores of the best."""
    num_queries = len(queries)
    end = len(candidates) if rows is None else len(rows)
    if not end:
        return top_columns(np.empty((num_queries, 0), np.float32), k)
    step = max(_SCORES_PER_CHUNK // num_queries, 4 * k)
    buffer = np.empty(num_queries * min(step, end), np.float32)
    pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for begin in range(0, end, step):
        stop = min(begin + step, end)
        scores = buffer[: num_queries * (stop - begin)]
        scores = scores.reshape(num_queries, stop - begin)
        chunk = (
            candidates[begin:stop]
            if rows is None
            else candidates[rows[begin:stop]]
        )
        np.matmul(queries, chunk.T, out=scores)
        if excluded is not None:
            few = slice(*np.searchsorted(excluded[0], [begin, stop]))
            scores[excluded[1][few], excluded[0][few] - begin] = -np.inf
        if begin == 0:
            best = top_columns(scores, k)
            continue
        # A score that equals the bound is not needed: there are k candidates
        # of lower rows.
        kept = np.flatnonzero(scores > best[1][:, -1:])
        owners, columns = np.divmod(kept, stop - begin)
        pending.append((columns + begin, owners, scores.ravel()[kept]))
        if sum(len(each[0]) for each in pending) > num_queries * k:
            best = _merged(*best, pending)
            pending = []
    return _merged(*best, pending) if pending else best


def _merged(
    best_rows: np.ndarray,
    best_scores: np.ndarray,
    pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Merges candidates of higher rows into the best so far."""
    num_queries, k = best_rows.shape
    rows, queries, scores = map(np.concatenate, zip(*pending, strict=True))
    order = np.argsort(queries.astype(np.int16), kind="stable")
    counts = np.bincount(queries, minlength=num_queries)
    is_there = np.arange(counts.max(initial=0)) < counts[:, np.newaxis]
    wide_rows = np.full(is_there.shape, NO_ROW, np.int64)
    wide_scores = np.full(is_there.shape, -np.inf, np.float32)
    wide_rows[is_there] = rows[order]
    wide_scores[is_there] = scores[order]
    # The order of columns is that of rows among equal scores.
    wide_rows = np.concatenate([best_rows, wide_rows], axis=1)
    columns, scores = top_columns(
        np.concatenate([best_scores, wide_scores], axis=1), k
    )
    rows = np.take_along_axis(wide_rows, columns, axis=1)
    return np.where(columns < 0, NO_ROW, rows), scores
