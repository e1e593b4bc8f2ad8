"""Histories as sparse matrices and as their last items."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from recsys.data.vocabulary import FIRST_ITEM_INDEX, UNKNOWN_INDEX


def binary_matrix(
    items: np.ndarray, offsets: np.ndarray, vocabulary_size: int
) -> scipy.sparse.csr_array:
    """Says which items occur in which history.

    Args:
        items: `[total]` int32 vocabulary indices, the histories one after
            the other. Padding and unknown items are left out.
        offsets: `[num_histories + 1]` int64, where each history begins.
        vocabulary_size: Number of columns.

    Returns:
        `[num_histories, vocabulary_size]` float32, 1 where the item is in the
        history once or more.
    """
    num_histories = len(offsets) - 1
    rows = np.repeat(np.arange(num_histories), np.diff(offsets))
    real = items >= FIRST_ITEM_INDEX
    matrix = scipy.sparse.coo_array(
        (
            np.ones(np.count_nonzero(real), np.float32),
            (rows[real], items[real]),
        ),
        shape=(num_histories, vocabulary_size),
    ).tocsr()
    # The conversion has summed repeated items.
    matrix.data[:] = 1
    return matrix


def last_items(items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns each history's newest item.

    Args:
        items: `[total]` int32 vocabulary indices, oldest first.
        offsets: `[num_histories + 1]` int64, where each history begins.

    Returns:
        `[num_histories]` int32; the unknown item where a history is empty.
    """
    padded = np.append(np.int32(UNKNOWN_INDEX), items)
    return np.where(
        offsets[1:] > offsets[:-1], padded[offsets[1:]], UNKNOWN_INDEX
    )
