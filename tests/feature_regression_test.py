from __future__ import annotations

import numpy as np
import scipy.sparse
from absl.testing import absltest

from recsys import ItemFeatures
from recsys.training import initial_table


class FeatureRegressionTest(absltest.TestCase):
    def test_ridge_regression(self):
        rng = np.random.default_rng(0)
        matrix = rng.random((40, 6)) * (rng.random((40, 6)) < 0.5)
        targets = rng.standard_normal((40, 3))
        found = initial_table.ridge_coefficients(
            scipy.sparse.csr_array(matrix), targets
        )
        expected = np.linalg.solve(
            matrix.T @ matrix + 3 * np.eye(6), matrix.T @ targets
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_a_column_of_zeros(self):
        found = initial_table.ridge_coefficients(
            scipy.sparse.csr_array(np.zeros((4, 2))), np.ones((4, 3))
        )
        np.testing.assert_array_equal(found, np.zeros((2, 3)))

    def test_padding_is_not_stored(self):
        features = ItemFeatures(4, 4, num_values=3, values_per_item=2)
        features.set_features([[1, 0], [2, 1]], [[1.0, 0.0], [0.5, 0.5]])
        found = initial_table.feature_matrix(features)
        self.assertEqual(found.nnz, 3)

    def test_rows_and_features_add_up(self):
        rng = np.random.default_rng(0)
        num_items, dim = 30, 4
        values = rng.integers(1, 5, (num_items, 2))
        weights = rng.random((num_items, 2))
        vectors = rng.standard_normal((num_items, 3))
        features = ItemFeatures(
            num_items + 2, dim, num_values=5, values_per_item=2, vector_dim=3
        )
        features.set_features(values, weights, vectors)
        # By hand: X from the arrays, then its product with [E; W].
        matrix = np.zeros((num_items + 2, 8))
        for item in range(num_items):
            for value, weight in zip(values[item], weights[item], strict=True):
                matrix[item + 2, value] += weight
            matrix[item + 2, 5:] = vectors[item]
        found = initial_table.feature_matrix(features)
        np.testing.assert_allclose(found.toarray(), matrix, rtol=1e-6)
        rows = rng.standard_normal((num_items + 2, dim)).astype(np.float32)
        trained = np.arange(2, 25)
        left = initial_table.explain_rows(features, rows, trained)
        total = left + features(np.arange(num_items + 2)).numpy()
        np.testing.assert_allclose(total[trained], rows[trained], atol=1e-5)
        np.testing.assert_array_equal(left[25:], 0)
        np.testing.assert_array_equal(left[:2], 0)
        self.assertLess(
            np.square(left[trained]).sum(), np.square(rows[trained]).sum()
        )
        np.testing.assert_allclose(
            total,
            left
            + features.scale
            * matrix
            @ np.concatenate([features.embeddings, features.projection]),
            atol=1e-5,
        )


if __name__ == "__main__":
    absltest.main()
