"""The k best of every row of a score matrix, without a full sort."""

from __future__ import annotations

import numpy as np

from recsys.data.vocabulary import PADDING_INDEX


def top_lists(
    scores: np.ndarray, k: int, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k highest scores of each row.

    Equal scores are ordered by lower column, so that the answer does not
    depend on the machine. Columns of score -inf are never listed.

    Args:
        scores: `[num_rows, num_columns]` float without NaN.
        k: Length of the lists, from 1.
        mask: `[num_rows, num_columns]` bool scratch space, C-contiguous;
            None allocates it.

    Returns:
        `items`, `[num_rows, k]` int32 columns, best first, and their scores,
        `[num_rows, k]` in the type of `scores`. A row with fewer than k
        finite scores ends in items 0 with scores -inf.
    """
    num_rows, num_columns = scores.shape
    width = min(k, num_columns)
    if mask is None:
        mask = np.empty(scores.shape, bool)
    place = num_columns - width
    threshold = np.partition(scores, place, axis=1)[:, place, np.newaxis]
    np.greater_equal(scores, threshold, out=mask)
    crowded = np.flatnonzero(np.count_nonzero(mask, axis=1) > width)
    if len(crowded):
        mask[crowded] = _first_ties(scores[crowded], threshold[crowded], width)
    # flatnonzero goes by rows and, within a row, by rising columns, so the
    # stable sort leaves the lower column first where scores are equal.
    found = np.flatnonzero(mask).reshape(num_rows, width)
    found -= num_columns * np.arange(num_rows)[:, np.newaxis]
    found_scores = np.take_along_axis(scores, found, axis=1)
    order = np.argsort(-found_scores, axis=1, kind="stable")
    items = np.full((num_rows, k), PADDING_INDEX, np.int32)
    best = np.full((num_rows, k), -np.inf, scores.dtype)
    items[:, :width] = np.take_along_axis(found, order, axis=1)
    best[:, :width] = np.take_along_axis(found_scores, order, axis=1)
    items[np.isneginf(best)] = PADDING_INDEX
    return items, best


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
