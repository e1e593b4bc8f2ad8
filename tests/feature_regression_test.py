from __future__ import annotations

from unittest import mock

import numpy as np
import scipy.sparse
from absl.testing import absltest

from recsys import ItemFeatures
from recsys.data.features import EncodedItems
from recsys.data.sequences import Sequences
from recsys.data.vocabulary import Vocabulary
from recsys.training import initial_table


def dense(values, weights, vectors, num_values):
    """Returns `[num_items, num_values + vector_dim]`, item by item."""
    matrix = np.zeros((len(values), num_values + vectors.shape[1]))
    for item in range(len(values)):
        for value, weight in zip(values[item], weights[item], strict=True):
            matrix[item, value] += weight
        matrix[item, num_values:] = vectors[item]
    return matrix


def regression(values, weights, vectors, num_values, counts):
    """Returns the regression of items with given features and counts."""
    ids = np.array([f"i{i}" for i in range(len(values))], object)
    encoded = EncodedItems(values, weights, vectors)
    return initial_table.FeatureRegression(
        mock.Mock(num_values=num_values, encode=lambda _: encoded),
        Vocabulary(ids).with_column("train_count", counts[2:]),
    )


class FeatureRegressionTest(absltest.TestCase):
    def test_ridge_regression(self):
        rng = np.random.default_rng(0)
        matrix = rng.random((40, 6)) * (rng.random((40, 6)) < 0.5)
        targets = rng.standard_normal((40, 3))
        found = initial_table.ridge_coefficients(
            [scipy.sparse.csr_array(matrix[:, :2]), matrix[:, 2:]], targets
        )
        expected = np.linalg.solve(
            matrix.T @ matrix + 3 * np.eye(6), matrix.T @ targets
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_a_column_of_zeros(self):
        found = initial_table.ridge_coefficients(
            [scipy.sparse.csr_array((4, 2))], np.ones((4, 3))
        )
        np.testing.assert_array_equal(found, np.zeros((2, 3)))

    def test_padding_is_not_stored(self):
        values, weights = np.array([[1, 0], [2, 1]]), np.array([[1, 0], [1, 1]])
        found = initial_table.feature_matrix(values, weights, None, 3)
        self.assertLen(found, 1)
        self.assertEqual(found[0].nnz, 3)

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
        matrix[2:] = dense(values, weights, vectors, 5)
        found = initial_table.feature_matrix(values, weights, vectors, 5)
        self.assertLen(found, 2)
        np.testing.assert_allclose(found[0].toarray(), matrix[2:, :5])
        np.testing.assert_array_equal(found[1], vectors)
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


class PredictedRowsTest(absltest.TestCase):
    """Rows of 60 items, 4 of them new, that their features explain in part."""

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.counts = rng.integers(1, 30, 62)
        self.counts[[0, 1]] = 0
        self.new = [5, 20, 33, 61]
        self.counts[self.new] = 0
        self.counts[7] = 10**6
        values = rng.integers(1, 6, (60, 2)).astype(np.int32)
        weights = rng.random((60, 2)).astype(np.float32)
        vectors = rng.standard_normal((60, 3)).astype(np.float32)
        self.matrix = dense(values, weights, vectors, 6)
        rows = self.matrix @ rng.standard_normal((9, 4)) + 3
        rows += 0.3 * rng.standard_normal(rows.shape)
        self.table = np.concatenate([np.ones((2, 4)), rows]).astype(np.float32)
        self.regression = regression(values, weights, vectors, 6, self.counts)

    def predictions(self, known):
        """Slow and plain, of all 60 items, with the penalty of each size."""
        matrix, rows = self.matrix[known - 2], self.table[known].astype(float)
        mean = rows.mean(axis=0)
        popular = np.average(rows, axis=0, weights=self.counts[known])

        def fit(chosen, penalty):
            x = matrix[chosen]
            return np.linalg.solve(
                x.T @ x + penalty * np.eye(9), x.T @ (rows - mean)[chosen]
            )

        held = np.arange(4, len(known), 5)
        others = np.setdiff1d(np.arange(len(known)), held)
        penalties = [1, 3, 10, 30, 100, 300]
        errors = [
            np.sum(
                ((rows - mean)[held] - matrix[held] @ fit(others, penalty)) ** 2
            )
            for penalty in penalties
        ]
        penalty = max(
            p
            for p, error in zip(penalties, errors, strict=True)
            if error <= 1.03 * min(errors)
        )
        explained = self.matrix @ fit(np.arange(len(known)), penalty)
        scale = 0.7 * (
            np.linalg.norm(rows - mean, axis=1).mean()
            / np.linalg.norm(explained[known - 2], axis=1).mean()
        )
        return mean + 0.5 * (popular - mean) + scale * explained

    def test_rows_by_hand(self):
        known = np.flatnonzero(self.counts)
        predicted = self.predictions(known)
        found = self.regression.blended(self.table)
        np.testing.assert_array_equal(found[:2], self.table[:2])
        for item in range(2, 62):
            n = self.counts[item]
            expected = (n * self.table[item] + 3 * predicted[item - 2]) / (
                n + 3
            )
            np.testing.assert_allclose(found[item], expected, atol=1e-4)
        # A new item gets the features alone, a frequent one almost its own.
        np.testing.assert_allclose(
            found[self.new], predicted[np.subtract(self.new, 2)], atol=1e-4
        )
        np.testing.assert_allclose(found[7], self.table[7], atol=1e-4)

    def test_new_items_alone(self):
        found = self.regression.filled(self.table)
        others = np.setdiff1d(np.arange(62), self.new)
        np.testing.assert_array_equal(found[others], self.table[others])
        np.testing.assert_array_equal(
            found[self.new], self.regression.blended(self.table)[self.new]
        )
        # What their rows were before makes no difference.
        self.table[self.new] = 9
        np.testing.assert_array_equal(self.regression.filled(self.table), found)

    def test_learned_from_some_items(self):
        known = np.ones(62, bool)
        known[40:50] = False
        expected = self.predictions(np.flatnonzero(known & (self.counts > 0)))
        found = self.regression.blended(self.table, known=known)
        np.testing.assert_allclose(
            found[self.new], expected[np.subtract(self.new, 2)], atol=1e-4
        )

    def test_features_that_tell_nothing(self):
        found = regression(
            np.zeros((60, 0), np.int32),
            np.zeros((60, 0), np.float32),
            np.zeros((60, 1), np.float32),
            1,
            self.counts,
        ).filled(self.table)[self.new]
        known = np.flatnonzero(self.counts)
        mean = self.table[known].mean(axis=0)
        popular = np.average(
            self.table[known], axis=0, weights=self.counts[known]
        )
        np.testing.assert_allclose(
            found, np.tile((mean + popular) / 2, (4, 1)), rtol=1e-5
        )


class TransitionSketchTest(absltest.TestCase):
    def sequences(self, *users: list[int]) -> Sequences:
        items = np.array([i for user in users for i in user], np.int32)
        return Sequences(
            user_ids=np.array([f"u{i}" for i in range(len(users))], object),
            offsets=np.cumsum([0, *map(len, users)]),
            items=items,
            timestamps=np.arange(len(items)),
        )

    def test_products_are_strengths(self):
        sequences = self.sequences([2, 3, 4], [2, 3], [5, 2, 2, 3, 5, 3, 4])
        keys = initial_table.transition_keys(6, 4096)
        values = initial_table.transition_values(
            sequences, keys, decay=0.5, window=2
        )
        self.assertEqual((keys.shape, values.dtype), ((6, 4096), np.float32))
        np.testing.assert_allclose(np.abs(keys[2:]), 1 / 64)
        self.assertFalse(keys[:2].any() or values[:2].any())
        counts = np.bincount(sequences.items)
        self.assertEqual(counts[2:].tolist(), [4, 4, 2, 2])
        strengths = np.zeros((6, 6))
        # 2 → 3: three times at once, once after another item.
        strengths[2, 3] = 3.5 / 24
        # 2 → 2, 3 → 3: 1, and half of one; 3 → 4: twice.
        strengths[2, 2], strengths[3, 3] = 1 / 24, 0.5 / 24
        strengths[3, 4] = 2 / np.sqrt(24 * 22)
        strengths[2, 4] = 0.5 / np.sqrt(24 * 22)
        # 5 → 2: at once and after one; 5 → 3 and half for 5 → 4; 2 → 5.
        strengths[5, 2] = 1.5 / np.sqrt(22 * 24)
        strengths[5, 3] = 1 / np.sqrt(22 * 24)
        strengths[5, 4] = 0.5 / 22
        strengths[2, 5] = 0.5 / np.sqrt(22 * 24)
        strengths[3, 5] = 1 / np.sqrt(22 * 24)
        np.testing.assert_allclose(keys @ values.T, strengths, atol=0.01)
        expected = strengths.T @ keys
        np.testing.assert_allclose(values, expected, atol=1e-6)

    def test_another_seed_has_other_keys(self):
        first, again, other = (
            initial_table.transition_keys(9, 64, seed) for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        self.assertTrue((first != other).any())

    def test_no_transitions(self):
        keys = initial_table.transition_keys(4, 8)
        for users in ([], [[2], [3]]):
            sequences = self.sequences(*users)
            values = initial_table.transition_values(sequences, keys)
            self.assertFalse(values.any())


if __name__ == "__main__":
    absltest.main()
