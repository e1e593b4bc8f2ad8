"""EASE: a linear item-to-item model with a closed form."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse

from recsys.baselines.counting import binary_matrix, co_occurrence_blocks
from recsys.data.sequences import Sequences


class EASE:
    """Scores an item by the learned weights of the items in the history.

    With X the binary matrix of users and items, EASE minimises
    `|X - X B|^2 + regularization * |B|^2` under a zero diagonal of B. With
    `P = (X^T X + regularization * I)^-1` the solution is
    `B_ij = -P_ij / P_jj` off the diagonal (Steck 2019,
    https://doi.org/10.1145/3308558.3313710). The scores of a history are the
    sum of its rows of B.

    B is dense: 4 bytes times the square of the number of items that occur in
    training, 330 MB at 9,066 items. Other items score 0.

    Args:
        weights: `[num_seen, num_seen]` float32, the matrix B of the items
            that occur in training.
        seen_items: `[num_seen]` int, their vocabulary indices, rising.
        vocabulary_size: Number of items, padding and unknown included.
    """

    name = "EASE"

    def __init__(
        self, weights: np.ndarray, seen_items: np.ndarray, vocabulary_size: int
    ) -> None:
        self._weights = weights
        self._seen_items = seen_items
        self._vocabulary_size = vocabulary_size

    @classmethod
    def fit(
        cls,
        train: Sequences,
        vocabulary_size: int,
        *,
        regularization: float = 250.0,
    ) -> EASE:
        """Solves for B.

        The time grows with the cube of the number of users or of items,
        whichever are fewer.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, padding and unknown included.
            regularization: Weight of the squared norm of B; larger trusts
                frequent pairs only. The default is the best of 30 to 1000 on
                the validation queries of the bundled data, leave-last-out,
                and as good as any on those of MovieLens-1M.

        Returns:
            The recommender.

        Raises:
            ValueError: `regularization` is not positive.
        """
        if not regularization > 0:
            raise ValueError(
                f"`regularization` must be positive. Received: {regularization}"
            )
        matrix = binary_matrix(train.items, train.offsets, vocabulary_size)
        seen_items = np.flatnonzero(matrix.sum(axis=0))
        matrix = matrix[matrix.sum(axis=1) > 0][:, seen_items]
        if matrix.shape[0] < matrix.shape[1]:
            inverse = _inverse_by_users(matrix, regularization)
        else:
            inverse = _inverse_by_items(matrix, regularization)
        # P_jj is the same for a whole column of B; B replaces P in place.
        inverse /= -np.diagonal(inverse).copy()
        np.fill_diagonal(inverse, 0)
        return cls(inverse, seen_items, vocabulary_size)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Sums the rows of B that belong to each history.

        Args:
            items: `[total]` int32 histories; their order does not matter.
            offsets: `[num_queries + 1]` int64.

        Returns:
            `[num_queries, vocabulary_size]` float32.
        """
        matrix = binary_matrix(items, offsets, self._vocabulary_size)
        scores = np.zeros(matrix.shape, np.float32)
        scores[:, self._seen_items] = (
            matrix[:, self._seen_items] @ self._weights
        )
        return scores


def _inverse_by_items(
    matrix: scipy.sparse.csr_array, regularization: float
) -> np.ndarray:
    """Inverts `X^T X + regularization * I` by Cholesky, in place.

    Args:
        matrix: `[num_users, num_items]` float32.
        regularization: Positive.

    Returns:
        `[num_items, num_items]` float32.
    """
    num_items = matrix.shape[1]
    gram = np.empty((num_items, num_items), np.float32, order="F")
    for rows, counts in co_occurrence_blocks(matrix):
        # The product is symmetric, and columns are what lies together.
        gram[:, rows] = counts.T
    gram[np.diag_indices_from(gram)] += np.float32(regularization)
    factor, _ = scipy.linalg.lapack.spotrf(gram, lower=1, overwrite_a=1)
    inverse, _ = scipy.linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    # LAPACK's columns are the rows of the transpose: the order in which a
    # sparse product reads it without a copy.
    return _symmetric(inverse).T


def _inverse_by_users(
    matrix: scipy.sparse.csr_array, regularization: float
) -> np.ndarray:
    """The same inverse by the identity of Woodbury, for few users.

    `(X^T X + r I)^-1 = (I - X^T (X X^T + r I)^-1 X) / r`

    Args:
        matrix: `[num_users, num_items]` float32.
        regularization: Positive.

    Returns:
        `[num_items, num_items]` float32.
    """
    gram = (matrix @ matrix.T).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += regularization
    solved = scipy.linalg.solve(gram, matrix.toarray(), assume_a="pos")
    inverse = matrix.T @ solved.astype(np.float32)
    inverse /= -np.float32(regularization)
    inverse[np.diag_indices_from(inverse)] += np.float32(1 / regularization)
    return inverse


def _symmetric(lower: np.ndarray) -> np.ndarray:
    """Copies the lower triangle onto the upper, in place, by blocks."""
    size = len(lower)
    step = 512
    for start in range(0, size, step):
        block = slice(start, start + step)
        corner = np.tril(lower[block, block])
        lower[block, block] = corner + np.tril(corner, -1).T
        lower[block, start + step :] = lower[start + step :, block].T
    return lower
