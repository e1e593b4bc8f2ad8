"""Tests of the health report and the summary of the lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from absl.testing import absltest

from recsys.data.sequences import Sequences
from recsys.data.splits import leave_last_out
from recsys.data.vocabulary import Vocabulary
from recsys.evaluation import (
    Evaluation,
    describe_lists,
    genre_matrix,
    health,
    list_summary,
)


def _evaluation(top_items: np.ndarray | None, num_items: int) -> Evaluation:
    num_queries = 1 if top_items is None else len(top_items)
    return Evaluation(
        name="lists",
        protocol="leave_last_out",
        ks=(10,),
        exclude_history=True,
        num_items=num_items,
        query_ids=np.array([f"q{row}" for row in range(num_queries)], object),
        ranks=np.ones((num_queries, 1)),
        relevant_items=np.full((num_queries, 1), 2, np.int32),
        num_candidates=np.full(num_queries, num_items, np.int32),
        top_items=top_items,
    )


class HealthTest(absltest.TestCase):
    def test_varied_lists_are_healthy(self):
        rng = np.random.default_rng(0)
        lists = np.array([rng.permutation(500)[:10] + 2 for _ in range(200)])
        report = health(_evaluation(lists, 500), np.ones(502))
        self.assertIsNone(report.warning)
        self.assertIsNone(report.norm_popularity_correlation)
        self.assertEqual(report.num_distinct_items, len(np.unique(lists)))
        self.assertEqual(report.catalogue_share, len(np.unique(lists)) / 500)
        self.assertBetween(report.effective_num_items, 400, 500)

    def test_the_same_list_for_everybody_is_a_warning(self):
        lists = np.tile(np.arange(2, 12), (200, 1))
        report = health(_evaluation(lists, 500), np.ones(502))
        self.assertAlmostEqual(report.effective_num_items, 10)
        self.assertIn("'lists' have collapsed", report.warning)
        self.assertIn("10 distinct items on 200 lists", report.warning)

    def test_few_queries_or_few_items_are_not_a_collapse(self):
        one = np.arange(2, 12)[np.newaxis]
        self.assertIsNone(health(_evaluation(one, 500), np.ones(502)).warning)
        rng = np.random.default_rng(0)
        lists = np.array([rng.permutation(15)[:10] + 2 for _ in range(200)])
        self.assertIsNone(health(_evaluation(lists, 15), np.ones(17)).warning)

    def test_norms_against_popularity(self):
        counts = np.array([0, 0, 1, 5, 3, 0, 9])
        # The norms rise with the counts, but for padding and unseen items.
        vectors = np.array([9, 9, 1, 3, 2, 8, 4])[:, np.newaxis] * [1.0, 1.0]
        report = health(
            _evaluation(np.array([[2, 3]]), 5), counts, vectors, k=2
        )
        self.assertAlmostEqual(report.norm_popularity_correlation, 1)

    def test_lists_are_needed(self):
        with self.assertRaisesRegex(ValueError, "lists of 10.*Received: 0"):
            health(_evaluation(None, 5), np.ones(7))
        with self.assertRaisesRegex(ValueError, "lists of 10.*Received: 2"):
            health(_evaluation(np.array([[2, 3]]), 5), np.ones(7))


class ListSummaryTest(absltest.TestCase):
    def test_all_metrics_by_name(self):
        sequences = Sequences(
            user_ids=np.array(["a", "b"], object),
            offsets=np.array([0, 3, 6]),
            items=np.array([2, 3, 4, 2, 4, 5], np.int32),
            timestamps=np.arange(6),
        )
        test = leave_last_out(sequences).test
        items = pa.table(
            {
                "item_id": ["w", "x", "y", "z"],
                "genres": [["A", "B"], ["B"], None, []],
            }
        )
        genres = genre_matrix(Vocabulary(["w", "x", "y", "z"], items))
        np.testing.assert_array_equal(
            genres.toarray(), [[0, 0], [0, 0], [1, 1], [0, 1], [0, 0], [0, 0]]
        )
        result = _evaluation(np.array([[2, 3], [2, 4]]), 4)
        found = list_summary(
            result, test, np.array([0, 0, 2, 1, 1, 0]), 2, genres, k=2
        )
        self.assertEqual(found["coverage@2"], 0.75)
        self.assertAlmostEqual(found["novelty@2"], 0.5)
        self.assertAlmostEqual(found["popularity@2"], 1.5)
        self.assertAlmostEqual(found["history_popularity"], 1.5)
        self.assertAlmostEqual(found["diversity@2"], 1 - 1 / np.sqrt(2))
        self.assertIn("gini@2", found)

    def test_one_metric_per_line(self):
        found = health(
            _evaluation(np.array([[2, 3], [2, 4]]), 4), np.arange(6), k=2
        )
        lines = describe_lists(
            found, {"coverage@2": 0.75, "diversity@2": None}
        ).splitlines()
        self.assertEqual(lines[0], "The model's lists of 2:")
        # One item twice and two others once: 2^1.5 = 2.8 effective items.
        self.assertEqual(
            lines[2],
            "coverage@2             0.75  3 items on any list, as varied as 3 "
            "equally frequent ones",
        )
        self.assertRegex(lines[3], r"^diversity@2 +–  1 - cosine")

    def test_without_genres_there_is_no_diversity(self):
        self.assertIsNone(genre_matrix(Vocabulary(["w", "x"])))


if __name__ == "__main__":
    absltest.main()
