"""Tests of the metrics of lists against hand arithmetic and slow versions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import scipy.sparse
from absl.testing import absltest

from recsys import metrics

# Items 2, 3, 4 and 5; the last list is shorter, the third is empty.
_LISTS = np.array([[2, 3], [2, 4], [0, 0], [2, 0]], np.int32)
_COUNTS = np.array([0, 0, 8, 2, 1, 0])
_NAN = math.nan


class ListMetricsTest(absltest.TestCase):
    def test_catalogue_coverage(self):
        self.assertEqual(metrics.catalogue_coverage(_LISTS, 4), 0.75)

    def test_gini_by_hand(self):
        # Listed 0, 1, 1 and 3 times: (-3*0 - 1*1 + 1*1 + 3*3) / (4 * 5).
        self.assertAlmostEqual(metrics.gini(_LISTS, 4), 9 / 20)
        equal = np.array([[2, 3], [4, 5]], np.int32)
        self.assertAlmostEqual(metrics.gini(equal, 4), 0)
        one = np.full((50, 1), 7, np.int32)
        self.assertAlmostEqual(metrics.gini(one, 1000), 0.999)
        self.assertTrue(math.isnan(metrics.gini(np.zeros((3, 2), np.int32), 4)))

    def test_gini_is_half_the_mean_absolute_difference(self):
        lists = np.random.default_rng(0).integers(2, 20, (30, 4))
        listed = np.bincount(lists.ravel(), minlength=22)[2:]
        difference = np.abs(listed[:, None] - listed[None, :]).mean()
        self.assertAlmostEqual(
            metrics.gini(lists, 20), difference / (2 * listed.mean())
        )

    def test_novelty_by_hand(self):
        # Of 16 users: 1 bit for item 2, 3 for item 3, 4 for item 4.
        np.testing.assert_allclose(
            metrics.novelty(_LISTS, _COUNTS, 16), [2, 2.5, _NAN, 1]
        )
        # An item that nobody knows counts as known by one.
        np.testing.assert_allclose(
            metrics.novelty(np.array([[5]]), _COUNTS, 16), [4]
        )

    def test_popularity_by_hand(self):
        np.testing.assert_allclose(
            metrics.average_popularity(_LISTS, _COUNTS),
            [5, 4.5, _NAN, 8],
        )
        np.testing.assert_allclose(
            metrics.history_popularity(
                np.array([2, 1, 3, 1, 5]), np.array([0, 3, 3, 4, 5]), _COUNTS
            ),
            [5, _NAN, _NAN, 0],
        )

    def test_diversity_equals_the_mean_over_pairs(self):
        rng = np.random.default_rng(1)
        genres = (rng.random((40, 6)) < 0.3).astype(np.float64)
        genres[5] = 0
        lists = np.array([rng.permutation(38)[:8] + 2 for _ in range(20)])
        lists[3, 5:] = 0
        expected = []
        for row in lists:
            known = [item for item in row if item > 1 and genres[item].any()]
            expected.append(
                np.mean(
                    [
                        1
                        - genres[a]
                        @ genres[b]
                        / np.sqrt(genres[a].sum() * genres[b].sum())
                        for a, b in itertools.combinations(known, 2)
                    ]
                )
            )
        np.testing.assert_allclose(
            metrics.intra_list_diversity(lists, scipy.sparse.csr_array(genres)),
            expected,
        )

    def test_diversity_needs_two_items_with_features(self):
        features = scipy.sparse.csr_array(np.eye(6)[:, :4])
        np.testing.assert_array_equal(
            metrics.intra_list_diversity(
                np.array([[2, 3], [2, 0], [2, 4], [2, 2]]), features
            ),
            [1, _NAN, _NAN, 0],
        )


if __name__ == "__main__":
    absltest.main()
