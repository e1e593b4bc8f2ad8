"""Tests of the metrics against hand arithmetic and slow versions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import scipy.sparse
from absl.testing import absltest, parameterized

from recsys import metrics

_NAN = math.nan
# Items 2, 3, 4 and 5; the last list is shorter, the third is empty.
_LISTS = np.array([[2, 3], [2, 4], [0, 0], [2, 0]], np.int32)
_COUNTS = np.array([0, 0, 8, 2, 1, 0])


def _slow_metrics(ranks: list[float], k: int) -> dict[str, float]:
    """All metrics of one query without ties, from an explicit list."""
    listed = [position in ranks for position in range(1, k + 1)]
    gain = sum(
        1 / math.log2(position + 1)
        for position, relevant in enumerate(listed, start=1)
        if relevant
    )
    ideal = sum(
        1 / math.log2(position + 1)
        for position in range(1, min(k, len(ranks)) + 1)
    )
    average_precision = sum(
        sum(listed[: position + 1]) / (position + 1)
        for position in range(k)
        if listed[position]
    ) / len(ranks)
    return {
        "recall": sum(listed) / len(ranks),
        "ndcg": gain / ideal,
        "hit_rate": float(any(listed)),
        "precision": sum(listed) / k,
        "mrr": 1 / (1 + listed.index(True)) if any(listed) else 0.0,
        "map": average_precision,
    }


class MetricsTest(parameterized.TestCase):
    def test_one_relevant_item_by_hand(self):
        ranks = np.array([[1.0], [3.0], [11.0]])
        expected = {
            "recall@10": [1, 1, 0],
            "hit_rate@10": [1, 1, 0],
            "precision@10": [0.1, 0.1, 0],
            "ndcg@10": [1, 0.5, 0],
            "mrr@10": [1, 1 / 3, 0],
            "mrr": [1, 1 / 3, 1 / 11],
            "map@10": [1, 1 / 3, 0],
        }
        for name, values in expected.items():
            with self.subTest(name):
                np.testing.assert_allclose(
                    metrics.parse_metric(name)(ranks), values
                )

    def test_several_relevant_items_by_hand(self):
        # Found at 1 and 3; the third relevant item stands at 7.
        ranks = np.array([[1.0, 3.0, 7.0]])
        ideal_of_three = 1 + 1 / math.log2(3) + 0.5
        expected = {
            "recall@5": 2 / 3,
            "precision@5": 2 / 5,
            "ndcg@5": 1.5 / ideal_of_three,
            "ndcg@2": 1 / (1 + 1 / math.log2(3)),
            "map@5": (1 + 2 / 3) / 3,
            "map@7": (1 + 2 / 3 + 3 / 7) / 3,
            "mrr@5": 1,
        }
        for name, value in expected.items():
            with self.subTest(name):
                np.testing.assert_allclose(
                    metrics.parse_metric(name)(ranks), [value]
                )

    @parameterized.parameters(1, 2, 5, 20, 200)
    def test_equals_an_explicit_list(self, k):
        rng = np.random.default_rng(k)
        queries = [
            sorted(rng.choice(np.arange(1, 41), size, replace=False).tolist())
            for size in rng.integers(1, 9, 50)
        ]
        ranks = np.full((50, 8), _NAN)
        for row, query in enumerate(queries):
            ranks[row, : len(query)] = query
        slow = [_slow_metrics(query, k) for query in queries]
        for name in metrics.METRICS:
            np.testing.assert_allclose(
                metrics.Metric(name, k)(ranks),
                [values[name] for values in slow],
                err_msg=name,
            )

    def test_fractional_ranks_are_used_as_they_are(self):
        # Two relevant items among four tied ones: expected ranks 5/3, 10/3.
        ranks = np.array([[5 / 3, 10 / 3]])
        np.testing.assert_allclose(metrics.recall_at_k(ranks, 3), [0.5])
        np.testing.assert_allclose(metrics.mrr(ranks, 3), [0.6])
        np.testing.assert_allclose(metrics.map_at_k(ranks, 4), [0.6])
        gain = 1 / math.log2(8 / 3) + 1 / math.log2(13 / 3)
        np.testing.assert_allclose(
            metrics.ndcg_at_k(ranks, 4), [gain / (1 + 1 / math.log2(3))]
        )

    def test_an_unranked_item_is_never_found(self):
        ranks = np.array([[2.0, np.inf], [np.inf, _NAN]])
        for name, first in {
            "recall@10": 0.5,
            "hit_rate@10": 1,
            "precision@10": 0.1,
            "ndcg@10": (1 / math.log2(3)) / (1 + 1 / math.log2(3)),
            "mrr": 0.5,
            "map@10": 0.25,
        }.items():
            with self.subTest(name):
                np.testing.assert_allclose(
                    metrics.parse_metric(name)(ranks), [first, 0]
                )

    def test_no_query_gives_no_value(self):
        for metric in metrics.all_metrics((1, 10)):
            self.assertEqual(metric(np.empty((0, 1))).shape, (0,))

    def test_names_round_trip(self):
        for name in ("recall@1", "hit_rate@20", "mrr", "mrr@5"):
            self.assertEqual(str(metrics.parse_metric(name)), name)
        self.assertEqual(
            [str(metric) for metric in metrics.all_metrics([5])],
            [
                "recall@5",
                "ndcg@5",
                "hit_rate@5",
                "precision@5",
                "mrr@5",
                "map@5",
            ],
        )

    @parameterized.parameters(
        "recall", "recall@0", "auc@10", "", "ndcg@-1", "recall@10 "
    )
    def test_an_unknown_name_is_an_error(self, name):
        with self.assertRaisesRegex(ValueError, f"Received: {name!r}"):
            metrics.parse_metric(name)

    def test_a_query_without_a_relevant_item_is_an_error(self):
        with self.assertRaisesRegex(ValueError, "Received: none for query 1"):
            metrics.recall_at_k(np.array([[1.0], [_NAN]]), 10)

    def test_wrong_arguments_are_errors(self):
        with self.assertRaisesRegex(ValueError, r"Received: \(3,\)"):
            metrics.ndcg_at_k(np.ones(3), 10)
        with self.assertRaisesRegex(ValueError, "`k` must be positive"):
            metrics.recall_at_k(np.ones((3, 1)), 0)


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
        # An item without interactions counts as having one.
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
