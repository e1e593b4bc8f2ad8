"""The k best of every row of a score matrix, without a full sort."""

from __future__ import annotations

import numpy as np

from recsys.data.vocabulary import PADDING_INDEX

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
