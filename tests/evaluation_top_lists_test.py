from __future__ import annotations

import numpy as np
from absl.testing import absltest, parameterized

from recsys.evaluation.ranking import top_lists


def _slow(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By a full stable sort of each row."""
    items = np.zeros((len(scores), k), np.int32)
    best = np.full((len(scores), k), -np.inf, scores.dtype)
    for row, values in enumerate(scores):
        order = np.argsort(-values, kind="stable")[:k]
        order = order[values[order] > -np.inf]
        items[row, : len(order)] = order
        best[row, : len(order)] = values[order]
    return items, best


class TopListsTest(parameterized.TestCase):
    @parameterized.product(
        num_columns=(5, 163, 1024),
        k=(1, 10, 64),
        kind=("distinct", "ties", "one value", "few finite"),
        dtype=(np.float32, np.float64),
    )
    def test_equals_a_full_sort(self, num_columns, k, kind, dtype):
        rng = np.random.default_rng(num_columns + k)
        scores = rng.standard_normal((20, num_columns)).astype(dtype)
        if kind == "ties":
            scores = np.round(scores, 1)
        elif kind == "one value":
            scores[::2] = 0.5
        elif kind == "few finite":
            scores[rng.random(scores.shape) < 0.95] = -np.inf
            scores[3] = -np.inf
        before = scores.copy()
        items, best = top_lists(scores, k)
        expected_items, expected_best = _slow(scores, k)
        np.testing.assert_array_equal(items, expected_items)
        np.testing.assert_array_equal(best, expected_best)
        self.assertEqual(best.dtype, dtype)
        np.testing.assert_array_equal(scores, before)

    def test_no_rows(self):
        items, best = top_lists(np.zeros((0, 400), np.float32), 10)
        self.assertEqual(items.shape, (0, 10))
        self.assertEqual(best.shape, (0, 10))


if __name__ == "__main__":
    absltest.main()
