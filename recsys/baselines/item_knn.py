"""Item-based nearest neighbours."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from recsys.baselines.co_occurrences import co_occurrence_blocks
from recsys.baselines.histories import binary_matrix
from recsys.data.sequences import Sequences
from recsys.evaluation.top_lists import top_lists


class ItemKNN:
    """Scores an item by its similarity to the items of the history.

    The similarity of items i and j is the cosine of their columns of the
    binary matrix of users and items, shrunk where it rests on few users:

        users(i and j) / (sqrt(users(i) * users(j)) + shrinkage)

    (Sarwar et al. 2001, https://doi.org/10.1145/371920.372071; the shrinkage
    as in Ferrari Dacrema et al. 2019,
    https://doi.org/10.1145/3298689.3347058). The score of j is the sum over
    those items of the history that are among the neighbours of j.

    Args:
        neighbours: `[vocabulary_size, vocabulary_size]` float32, in row j the
            similarities of the neighbours of j.
    """

    name = "item kNN"

    def __init__(self, neighbours: scipy.sparse.csr_array) -> None:
        self._weights = neighbours.T.tocsr()

    @classmethod
    def fit(
        cls,
        train: Sequences,
        vocabulary_size: int,
        *,
        num_neighbours: int = 100,
        shrinkage: float = 10.0,
    ) -> ItemKNN:
        """Finds the neighbours of every item.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, padding and unknown included.
            num_neighbours: How many neighbours of each item are kept. This
                and `shrinkage` were chosen on the validation queries of the
                bundled data, leave-last-out.
            shrinkage: Added to the denominator; larger trusts frequent pairs
                only.

        Returns:
            The recommender.

        Raises:
            ValueError: `num_neighbours` is not positive or `shrinkage` is
                negative.
        """
        if num_neighbours < 1 or shrinkage < 0:
            raise ValueError(
                "`num_neighbours` must be positive and `shrinkage` not "
                f"negative. Received: {num_neighbours} and {shrinkage}"
            )
        matrix = binary_matrix(train.items, train.offsets, vocabulary_size)
        norms = np.sqrt(matrix.sum(axis=0))
        blocks = []
        for rows, similarity in co_occurrence_blocks(matrix):
            similarity /= np.maximum(
                np.outer(norms[rows], norms) + shrinkage, 1e-9
            )
            own = np.arange(rows.start, rows.stop)
            similarity[own - rows.start, own] = 0
            blocks.append(_nearest(similarity, num_neighbours))
        return cls(scipy.sparse.vstack(blocks, format="csr"))

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Sums the similarities to the items of each history.

        Args:
            items: `[total]` int32 histories; their order does not matter.
            offsets: `[num_queries + 1]` int64.

        Returns:
            `[num_queries, vocabulary_size]` float32.
        """
        matrix = binary_matrix(items, offsets, self._weights.shape[0])
        return (matrix @ self._weights).toarray()


def _nearest(similarity: np.ndarray, k: int) -> scipy.sparse.csr_array:
    """Keeps the k highest positive values of each row."""
    columns, values = top_lists(similarity, min(k, similarity.shape[1]))
    rows, places = np.nonzero(values > 0)
    return scipy.sparse.coo_array(
        (values[rows, places], (rows, columns[rows, places])),
        shape=similarity.shape,
    ).tocsr()
