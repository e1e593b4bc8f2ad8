"""Tests of slices by popularity and history length."""

from __future__ import annotations

import numpy as np
from absl.testing import absltest

from recsys.evaluation import (
    Evaluation,
    by_history_length,
    by_item_popularity,
    popularity_groups,
)

_NAN = np.nan
# Items 2..7 have 10, 6, 2, 1, 1 and 0 training interactions.
_COUNTS = np.array([0, 0, 10, 6, 2, 1, 1, 0])


def _evaluation() -> Evaluation:
    return Evaluation(
        name="by hand",
        protocol="held_out_users",
        ks=(2,),
        exclude_history=True,
        num_items=6,
        query_ids=np.array(["a", "b", "c"], object),
        ranks=np.array([[1, 2, 5], [1, 3, _NAN], [2, _NAN, _NAN]]),
        relevant_items=np.array([[5, 2, 7], [3, 2, 0], [4, 0, 0]], np.int32),
        num_candidates=np.array([6, 6, 6], np.int32),
        top_items=np.array([[5, 2], [3, 4], [2, 4]], np.int32),
        top_scores=np.ones((3, 2), np.float32),
    )


class SlicesTest(absltest.TestCase):
    def test_groups_by_share_of_training_interactions(self):
        # 10 of 20 are the head; 6 more reach 80 %.
        np.testing.assert_array_equal(
            popularity_groups(_COUNTS), [-1, -1, 0, 1, 2, 2, 2, 3]
        )
        np.testing.assert_array_equal(
            popularity_groups(_COUNTS, (0.6, 0.95)),
            [-1, -1, 0, 0, 1, 1, 2, 3],
        )
        with self.assertRaisesRegex(ValueError, r"Received: \(0.8, 0.5\)"):
            popularity_groups(_COUNTS, (0.8, 0.5))

    def test_by_item_popularity_by_hand(self):
        slices = {
            each.name: each
            for each in by_item_popularity(_evaluation(), _COUNTS)
        }
        self.assertEqual(list(slices), ["head", "mid", "tail", "unseen"])
        head = slices["head"].evaluation
        self.assertEqual(head.query_ids.tolist(), ["a", "b"])
        # The padding is behind what is left.
        np.testing.assert_array_equal(head.ranks[:, 0], [2, 3])
        self.assertTrue(np.isnan(head.ranks[:, 1:]).all())
        np.testing.assert_array_equal(
            head.relevant_items, [[2, 0, 0], [2, 0, 0]]
        )
        self.assertEqual(head.metrics()["recall@2"], 0.5)
        self.assertAlmostEqual(slices["head"].share, 2 / 6)
        np.testing.assert_array_equal(
            slices["tail"].evaluation.query_ids, ["a", "c"]
        )
        self.assertEqual(slices["unseen"].evaluation.metrics()["mrr@2"], 0)

    def test_by_history_length_by_hand(self):
        slices = by_history_length(
            _evaluation(), np.array([3, 10, 3]), edges=(0, 3, 4, 9)
        )
        self.assertEqual([each.name for each in slices], ["3", "9+"])
        self.assertEqual(slices[0].evaluation.query_ids.tolist(), ["a", "c"])
        self.assertAlmostEqual(
            slices[0].evaluation.metrics()["recall@2"], (2 / 3 + 1) / 2
        )
        self.assertAlmostEqual(slices[0].share, 4 / 6)
        np.testing.assert_array_equal(slices[1].evaluation.top_items, [[3, 4]])

    def test_wrong_arguments_are_errors(self):
        with self.assertRaisesRegex(
            ValueError, "each of 3 queries.*Received: 2"
        ):
            by_history_length(_evaluation(), np.array([1, 2]))
        with self.assertRaisesRegex(ValueError, r"Received: \[1, 5\]"):
            by_history_length(_evaluation(), np.ones(3), edges=(1, 5))


if __name__ == "__main__":
    absltest.main()
