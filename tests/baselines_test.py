"""Tests of the baselines against slow versions and hand arithmetic."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import unittest
from unittest import mock

import numpy as np
import scipy.optimize
from absl.testing import absltest, parameterized

from recsys import baselines
from recsys.data.sequences import Sequences
from recsys.data.splits import Queries
from recsys.errors import InputError


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
        with self.assertRaisesRegex(ValueError, "`half_life`.* Received: 0"):
            baselines.RecentPopularity.fit(train, 5, half_life=0)
        with self.assertRaisesRegex(ValueError, "`unit`.* Received: 'days'"):
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
        with self.assertRaisesRegex(ValueError, "`smoothing`.* Received: 0"):
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
        scores = baselines.EASE.fit(train, 1102, regularization=2).scores(
            *_flat([5], [1000])
        )
        dense = np.zeros((1300, 1102))
        rows = np.repeat(np.arange(1300), train.lengths)
        dense[rows, train.items] = 1
        inverse = np.linalg.inv(dense.T @ dense + 2 * np.eye(1102))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        np.testing.assert_allclose(scores, weights[[5, 1000]], atol=1e-5)

    def test_regularization_must_be_positive(self):
        with self.assertRaisesRegex(ValueError, "Received: -1"):
            baselines.EASE.fit(_sequences([2, 3]), 5, regularization=-1)


class ItemKnnTest(parameterized.TestCase):
    @parameterized.parameters((2, 0.0), (5, 3.0), (100, 1.0))
    def test_equals_slow_neighbors(self, num_neighbours, shrinkage):
        train = _random_sequences(80, 15)
        dense = np.zeros((80, 18))
        rows = np.repeat(np.arange(80), train.lengths)
        dense[rows, train.items] = 1
        counts = dense.T @ dense
        users = np.diag(counts)
        history = [2, 5, 5, 9, 1]
        expected = np.zeros(18)
        for item in range(2, 17):
            similar = {
                other: counts[item, other]
                / (np.sqrt(users[item] * users[other]) + shrinkage)
                for other in range(2, 17)
                if other != item
            }
            nearest = sorted(similar, key=lambda o: (-similar[o], o))
            expected[item] = sum(
                similar[other]
                for other in nearest[:num_neighbours]
                if other in history
            )
        knn = baselines.ItemKNN.fit(
            train, 18, num_neighbours=num_neighbours, shrinkage=shrinkage
        )
        scores = knn.scores(*_flat(history, []))
        np.testing.assert_allclose(scores[0], expected, rtol=1e-5)
        np.testing.assert_array_equal(scores[1], 0)
        self.assertEqual(scores.dtype, np.float32)

    def test_wrong_arguments_are_errors(self):
        for wrong in ({"num_neighbours": 0}, {"shrinkage": -1}):
            with self.assertRaisesRegex(ValueError, "`num_neighbours` must"):
                baselines.ItemKNN.fit(_sequences([2, 3]), 5, **wrong)


_HAS_IMPLICIT = importlib.util.find_spec("implicit") is not None


class MatrixFactorizationTest(parameterized.TestCase):
    @parameterized.parameters(baselines.ALS, baselines.BPR)
    def test_without_implicit_the_error_names_the_extra(self, baseline):
        with (
            mock.patch.dict(
                sys.modules, {"implicit.als": None, "implicit.bpr": None}
            ),
            self.assertRaisesRegex(InputError, r"install '\.\[baselines\]"),
        ):
            baseline.fit(_sequences([2, 3]), 5)

    @unittest.skipUnless(_HAS_IMPLICIT, "needs recsys[baselines]")
    @parameterized.parameters(baselines.ALS, baselines.BPR)
    def test_two_kinds_of_users_are_distinguished(self, baseline):
        # Half of the users like items 2..11, the others 12..21.
        rng = np.random.default_rng(0)
        train = _sequences(
            *[
                (rng.permutation(10)[:6] + 2 + 10 * (user % 2)).tolist()
                for user in range(80)
            ]
        )
        recommender = baseline.fit(train, 22, num_factors=4)
        scores = recommender.scores(*_flat([2, 3, 1], [12, 13], []))
        self.assertEqual(scores.shape, (3, 22))
        self.assertEqual(scores.dtype, np.float32)
        self.assertGreater(scores[0, 2:12].mean(), scores[0, 12:].mean() + 0.1)
        self.assertLess(scores[1, 2:12].mean(), scores[1, 12:].mean() - 0.1)
        again = baseline.fit(train, 22, num_factors=4)
        np.testing.assert_allclose(
            again.scores(*_flat([2, 3, 1], [12, 13], [])), scores, atol=1e-4
        )

    def test_bpr_finds_the_best_vector_of_a_history(self):
        rng = np.random.default_rng(3)
        vectors = rng.standard_normal((9, 3)).astype(np.float32)
        biases = rng.standard_normal(9).astype(np.float32)
        bpr = baselines.BPR(vectors, biases, fold_in_regularization=0.5)
        history = [2, 5, 6]
        centered = vectors - vectors.mean(axis=0)
        offsets = biases - biases.mean()

        def loss(user: np.ndarray) -> float:
            margins = (centered @ user + offsets)[history]
            return np.log1p(np.exp(-margins)).mean() + 0.25 * user @ user

        best = scipy.optimize.minimize(loss, np.zeros(3)).x
        np.testing.assert_allclose(
            bpr.scores(*_flat(history, [])),
            [centered @ best + offsets, offsets],
            atol=1e-3,
        )


class TuneTest(absltest.TestCase):
    def test_the_best_on_validation_is_kept(self):
        train = _sequences([2, 3, 4], [2, 3, 4], [5, 6])
        sequences = _sequences([2, 3, 4], [5, 6, 4])
        validation = Queries(
            sequences,
            np.array([0, 1]),
            np.array([0, 3]),
            np.array([2, 5]),
            np.array([3, 6]),
        )

        # With reversed scores the target is last.
        def fit(train, vocabulary_size, sign):
            counts = np.bincount(train.items, minlength=vocabulary_size)
            return baselines.Popularity((sign * counts).astype(np.float32))

        tuned = baselines.tune(
            fit,
            train,
            7,
            validation,
            [{"sign": -1}, {"sign": 1}, {"sign": 2}],
            protocol="by_hand",
            metric="mrr@1",
        )
        self.assertEqual(tuned.options, {"sign": 1})
        self.assertEqual(tuned.num_tried, 3)
        # 4 is the best of 4, 5, 6 and ties with 2 and 3 in the other query.
        self.assertEqual(tuned.value, 0.5)
        with self.assertRaisesRegex(ValueError, "`grid` must not be empty"):
            baselines.tune(fit, train, 7, validation, [], protocol="p")

    def test_grids_hold_arguments_of_fit(self):
        for baseline, grid in baselines.GRIDS.items():
            known = inspect.signature(baseline.fit).parameters
            for options in grid:
                self.assertContainsSubset(options, known)


if __name__ == "__main__":
    absltest.main()
