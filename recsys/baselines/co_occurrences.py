"""How many users have each pair of items."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse

# Counts of one block take at most this much memory (bytes).
_BLOCK_BYTES = 64 * 2**20


def co_occurrence_blocks(
    matrix: scipy.sparse.csr_array,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the rows of `X^T X`, some at a time.

    The whole product as a sparse matrix would take several times the memory
    of the dense one, because most popular items meet.

    Args:
        matrix: `[num_users, num_items]` float32, the matrix X.

    Yields:
        The rows, and `[num_rows, num_items]` float32, which may be changed.
    """
    num_items = matrix.shape[1]
    by_item = matrix.T.tocsr()
    step = max(1, _BLOCK_BYTES // (4 * max(1, num_items)))
    for start in range(0, num_items, step):
        rows = slice(start, min(start + step, num_items))
        yield rows, (by_item[rows] @ matrix).toarray()
