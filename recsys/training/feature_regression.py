"""Feature vectors to start training from, given the rows of the items."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from recsys.models.item_features import ItemFeatures

# Of the squared length of the coefficients. A value of so few items as this
# explains half of what they have in common.
_PENALTY = 3.0
_NUM_STEPS = 30


def feature_matrix(features: ItemFeatures) -> scipy.sparse.csr_array:
    """Returns `[vocabulary_size, num_values + vector_dim]`.

    Times `[E; W]` and the layer's scale it gives the vectors of all items.
    """
    parts = []
    if features.values_per_item:
        values = features.values.numpy()
        weights = features.value_weights.numpy()
        # Items with fewer values than others are filled up with zeros.
        there = np.nonzero(weights)
        parts.append(
            scipy.sparse.coo_array(
                (weights[there], (there[0], values[there])),
                shape=(len(values), features.num_values),
            )
        )
    if features.vector_dim:
        parts.append(scipy.sparse.coo_array(features.vectors.numpy()))
    return scipy.sparse.hstack(parts).tocsr()


def ridge_coefficients(
    matrix: scipy.sparse.csr_array, targets: np.ndarray
) -> np.ndarray:
    """Returns the B that minimizes ‖X B − Y‖² + penalty ‖B‖².

    By conjugate gradients on the normal equations (Hestenes and Stiefel 1952),
    which needs products with the sparse X only.

    Args:
        matrix: `[num_items, num_features]`, X.
        targets: `[num_items, dim]`, Y.

    Returns:
        `[num_features, dim]` float64; near enough after a few steps.
    """
    solution = np.zeros((matrix.shape[1], targets.shape[1]))
    residual = matrix.T @ targets
    direction = residual.copy()
    length = np.sum(residual**2, axis=0)
    for _ in range(_NUM_STEPS):
        product = matrix.T @ (matrix @ direction) + _PENALTY * direction
        curvature = np.sum(direction * product, axis=0)
        step = length / np.maximum(curvature, 1e-30)
        solution += step * direction
        residual -= step * product
        before, length = length, np.sum(residual**2, axis=0)
        direction = residual + length / np.maximum(before, 1e-30) * direction
    return solution


def explain_rows(
    features: ItemFeatures, rows: np.ndarray, trained: np.ndarray
) -> np.ndarray:
    """Moves what the features explain from the rows into the features.

    Their sum stays what the rows were, for the trained items.

    Args:
        features: The layer; its E and W are set.
        rows: `[vocabulary_size, dim]` float32, what the table starts from.
        trained: `[num_trained]` int, the items with training interactions.

    Returns:
        `[vocabulary_size, dim]` float32, what is left for the table; zero for
        all other items.
    """
    matrix = feature_matrix(features)
    coefficients = ridge_coefficients(matrix[trained], rows[trained])
    coefficients /= features.scale
    if features.values_per_item:
        features.embeddings.assign(coefficients[: features.num_values])
        coefficients = coefficients[features.num_values :]
    if features.vector_dim:
        features.projection.assign(coefficients)
    left = np.zeros_like(rows)
    left[trained] = rows[trained] - features(trained).numpy()
    return left
