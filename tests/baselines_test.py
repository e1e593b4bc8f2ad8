"""Tests of the baselines against slow versions and hand arithmetic."""

from __future__ import annotations

import numpy as np
from absl.testing import absltest, parameterized

from recsys import baselines
from recsys.data.sequences import Sequences


def _sequences(*users: list[int], timestamps=None) -> Sequences:
    items = np.array([item for user in users for item in user], np.int32)
    return Sequences(
        user_ids=np.array([f"u{row}" for row in range(len(users))], object),
        offsets=np.append(0, np.cumsum([len(user) for user in users])),
        items=items,
        timestamps=np.arange(len(items))
        if timestamps is None
        else np.array(timestamps),
    )


def _flat(*histories: list[int]) -> tuple[np.ndarray, np.ndarray]:
    sequences = _sequences(*histories)
    return sequences.items, sequences.offsets


def _random_sequences(num_users: int, num_items: int) -> Sequences:
    rng = np.random.default_rng(num_users)
    return _sequences(
        *[
            (rng.permutation(num_items)[: rng.integers(1, 9)] + 2).tolist()
            for _ in range(num_users)
        ]
    )


class PopularityTest(parameterized.TestCase):
    def test_counts_interactions(self):
        train = _sequences([2, 3], [], [3, 5, 3])
        scores = baselines.Popularity.fit(train, 7).scores(*_flat([2], [], [6]))
        np.testing.assert_array_equal(scores, [[0, 0, 1, 3, 0, 1, 0]] * 3)
        self.assertEqual(scores.dtype, np.float32)

    def test_recent_interactions_weigh_more_by_time(self):
        train = _sequences([2, 3], [3, 4], timestamps=[0, 20, 10, 20])
        scores = baselines.RecentPopularity.fit(
            train, 5, half_life=10, unit="time"
        ).scores(*_flat([2]))
        np.testing.assert_allclose(scores, [[0, 0, 0.25, 1.5, 1]])

    def test_recent_interactions_weigh_more_by_order(self):
        # Ages: 3/4 (time 0), 1/2 (time 1), and 0 for both of time 7.
        train = _sequences([2, 3], [3, 4], timestamps=[0, 7, 1, 7])
        scores = baselines.RecentPopularity.fit(
            train, 5, half_life=0.25
        ).scores(*_flat([2]))
        np.testing.assert_allclose(scores, [[0, 0, 1 / 8, 5 / 4, 1]])

    def test_wrong_arguments_are_errors(self):
        train = _sequences([2, 3])
        with self.assertRaisesRegex(ValueError, "`half_life`.* received 0"):
            baselines.RecentPopularity.fit(train, 5, half_life=0)
        with self.assertRaisesRegex(ValueError, "`unit`.* received 'days'"):
            baselines.RecentPopularity.fit(train, 5, unit="days")


class MarkovTest(parameterized.TestCase):
    def test_probabilities_by_hand(self):
        train = _sequences([2, 3, 2, 4], [2, 3], [], [5])
        # After 2 came 3 twice and 4 once; seven interactions in all.
        markov = baselines.Markov.fit(train, 7, smoothing=0.5)
        popularity = np.array([0, 0, 3, 2, 1, 1, 0]) / 7
        after_2 = (np.array([0, 0, 0, 2, 1, 0, 0]) + popularity / 2) / 3.5
        scores = markov.scores(*_flat([5, 2], [4, 5], [], [2, 1]))
        np.testing.assert_allclose(
            scores, [after_2, popularity, popularity, popularity], rtol=1e-6
        )
        np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
        self.assertEqual(scores.dtype, np.float32)

    def test_smoothing_must_be_positive(self):
        with self.assertRaisesRegex(ValueError, "`smoothing`.* received 0"):
            baselines.Markov.fit(_sequences([2, 3]), 5, smoothing=0)


class EaseTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("more_users_than_items", 60, 12), ("fewer_users_than_items", 20, 40)
    )
    def test_equals_the_closed_form(self, num_users, num_items):
        train = _random_sequences(num_users, num_items)
        dense = np.zeros((num_users, num_items + 3))
        for user in range(num_users):
            dense[user, train.items[slice(*train.offsets[user : user + 2])]] = 1
        inverse = np.linalg.inv(dense.T @ dense + 3 * np.eye(num_items + 3))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        ease = baselines.EASE.fit(train, num_items + 3, regularization=3)
        # Repeats count once; unknown and unseen items give nothing.
        histories = _flat([2, 3, 3, 5], [num_items + 2, 4, 1], [])
        expected = [
            weights[2] + weights[3] + weights[5],
            weights[4],
            np.zeros(num_items + 3),
        ]
        scores = ease.scores(*histories)
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        self.assertEqual(scores.dtype, np.float32)

    def test_many_items_are_mirrored_in_blocks(self):
        train = _random_sequences(1300, 1100)
        scores = baselines.EASE.fit(
            train, 1102, regularization=2
        ).scores(*_flat([5], [1000]))
        dense = np.zeros((1300, 1102))
        rows = np.repeat(np.arange(1300), train.lengths)
        dense[rows, train.items] = 1
        inverse = np.linalg.inv(dense.T @ dense + 2 * np.eye(1102))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        np.testing.assert_allclose(scores, weights[[5, 1000]], atol=1e-5)

    def test_regularization_must_be_positive(self):
        with self.assertRaisesRegex(ValueError, "received -1"):
            baselines.EASE.fit(_sequences([2, 3]), 5, regularization=-1)


if __name__ == "__main__":
    absltest.main()
