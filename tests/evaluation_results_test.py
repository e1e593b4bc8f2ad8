"""Tests of intervals and comparisons against slow versions, and tables."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from absl.testing import absltest, parameterized

from recsys.evaluation import (
    Evaluation,
    bootstrap_interval,
    compare,
    intervals,
    results_table,
    sign_flip_p_value,
)
from recsys.metrics import Metric


def _evaluation(ranks: np.ndarray) -> Evaluation:
    num_queries = len(ranks)
    return Evaluation(
        name="random",
        protocol="temporal",
        ks=(5, 10),
        exclude_history=True,
        num_items=50,
        query_ids=np.array([f"q{row}" for row in range(num_queries)], object),
        ranks=ranks.astype(np.float64)[:, np.newaxis],
        relevant_items=np.arange(2, num_queries + 2, dtype=np.int32)[:, None],
        num_candidates=np.full(num_queries, 50, np.int32),
    )


def _permuted(evaluation: Evaluation, order: np.ndarray) -> Evaluation:
    return dataclasses.replace(
        evaluation,
        query_ids=evaluation.query_ids[order],
        ranks=evaluation.ranks[order],
        relevant_items=evaluation.relevant_items[order],
        num_candidates=evaluation.num_candidates[order],
    )


class BootstrapTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("few_values", lambda rng: rng.integers(0, 3, 200).astype(float)),
        ("all_different", lambda rng: rng.exponential(size=200)),
    )
    def test_equals_resampling_the_queries(self, draw):
        rng = np.random.default_rng(0)
        values = draw(rng)
        means = rng.choice(values, (20_000, len(values))).mean(axis=1)
        low, high = np.quantile(means, [0.05, 0.95])
        interval = bootstrap_interval(values, level=0.9, num_resamples=20_000)
        self.assertAlmostEqual(interval.mean, values.mean())
        width = high - low
        self.assertAlmostEqual(interval.low, low, delta=0.03 * width)
        self.assertAlmostEqual(interval.high, high, delta=0.03 * width)
        self.assertAlmostEqual(interval.half_width, width / 2, delta=0.03)

    def test_constant_values_have_no_width(self):
        interval = bootstrap_interval(np.full(7, 0.25))
        self.assertEqual((interval.low, interval.high), (0.25, 0.25))

    def test_undefined_values_are_ignored(self):
        values = np.array([1.0, np.nan, 0.0, 1.0])
        self.assertEqual(
            bootstrap_interval(values), bootstrap_interval(values[[0, 2, 3]])
        )
        with self.assertRaisesRegex(ValueError, "Received: none"):
            bootstrap_interval(np.array([np.nan]))

    def test_the_seed_determines_the_interval(self):
        values = np.random.default_rng(1).random(100)
        self.assertEqual(
            bootstrap_interval(values, seed=3),
            bootstrap_interval(values, seed=3),
        )
        self.assertNotEqual(
            bootstrap_interval(values, seed=3),
            bootstrap_interval(values, seed=4),
        )

    def test_intervals_of_all_metrics(self):
        found = intervals(_evaluation(np.arange(1, 21)))
        self.assertAlmostEqual(found["recall@5"].mean, 0.25)
        self.assertLess(found["recall@5"].low, 0.25)
        self.assertGreater(found["ndcg@10"].high, found["ndcg@10"].mean)

    def test_wrong_arguments_are_errors(self):
        with self.assertRaisesRegex(ValueError, "`level`.* Received: 95"):
            bootstrap_interval(np.ones(3), level=95)
        with self.assertRaisesRegex(ValueError, "Received: 0"):
            bootstrap_interval(np.ones(3), num_resamples=0)
        with self.assertRaisesRegex(ValueError, "Received: 0"):
            sign_flip_p_value(np.ones(3), num_flips=0)


class SignFlipTest(parameterized.TestCase):
    @parameterized.parameters(
        ([1.0, 1, 1, -1, 1, 1, 1, 1],),
        ([0.3, -0.1, 0.7, 0.2, 0.0, -0.4, 0.9, 0.1],),
        ([0.0, 0.0],),
        ([2.0],),
    )
    def test_equals_all_sign_combinations(self, differences):
        differences = np.array(differences)
        observed = abs(differences.sum())
        sums = [
            abs(np.dot(signs, differences))
            for signs in itertools.product((-1, 1), repeat=len(differences))
        ]
        exact = np.mean([total >= observed - 1e-12 for total in sums])
        self.assertAlmostEqual(
            sign_flip_p_value(differences, num_flips=40_000), exact, delta=0.01
        )

    def test_many_equal_differences_are_drawn_in_words(self):
        # 130 positive and 100 negative ones: a normal z of 30 / sqrt(230).
        differences = np.repeat([0.5, -0.5], [130, 100])
        # 2 * (1 - Phi((30 - 1) / sqrt(230))), with continuity correction.
        self.assertAlmostEqual(
            sign_flip_p_value(differences, num_flips=40_000),
            0.0559,
            delta=0.006,
        )


class CompareTest(absltest.TestCase):
    def test_queries_are_matched_by_id(self):
        rng = np.random.default_rng(5)
        first = _evaluation(rng.integers(1, 30, 80))
        second = _evaluation(rng.integers(1, 30, 80))
        expected = compare(first, second)
        found = compare(first, _permuted(second, rng.permutation(80)))
        self.assertEqual(found, expected)
        recall = expected["recall@10"]
        difference = np.mean(first.ranks <= 10) - np.mean(second.ranks <= 10)
        self.assertAlmostEqual(recall.difference.mean, difference)
        self.assertAlmostEqual(recall.first - recall.second, difference)
        self.assertLess(recall.difference.low, difference)
        self.assertGreater(recall.p_value, 0)

    def test_the_same_results_do_not_differ(self):
        results = _evaluation(np.arange(1, 40))
        found = compare(results, results, [Metric("ndcg", 10)])
        self.assertEqual(list(found), ["ndcg@10"])
        self.assertEqual(found["ndcg@10"].p_value, 1)
        self.assertEqual(found["ndcg@10"].difference.high, 0)

    def test_a_clear_difference_is_found(self):
        good = _evaluation(np.tile([1, 2, 20], 60))
        bad = _evaluation(np.tile([9, 30, 20], 60))
        found = compare(good, bad)["ndcg@10"]
        self.assertLess(found.p_value, 0.001)
        self.assertGreater(found.difference.low, 0)

    def test_other_queries_are_an_error(self):
        first = _evaluation(np.arange(1, 40))
        ids = first.query_ids.copy()
        ids[3] = "other"
        with self.assertRaisesRegex(ValueError, "Received: query 'q"):
            compare(first, dataclasses.replace(first, query_ids=ids))
        for change in (
            {"protocol": "held_out_users"},
            {"num_items": 51},
            {"exclude_history": False},
            {"relevant_items": first.relevant_items + 1},
        ):
            with self.assertRaisesRegex(ValueError, "must have the same"):
                compare(first, dataclasses.replace(first, **change))


def _table_row(name: str, ranks: list[float], protocol: str) -> Evaluation:
    return Evaluation(
        name=name,
        protocol=protocol,
        ks=(10,),
        exclude_history=True,
        num_items=3416,
        query_ids=np.array([str(row) for row in range(len(ranks))], object),
        ranks=np.array(ranks)[:, np.newaxis],
        relevant_items=np.full((len(ranks), 1), 2, np.int32),
        num_candidates=np.full(len(ranks), 3400, np.int32),
    )


class ResultsTableTest(absltest.TestCase):
    def test_columns_are_aligned_and_the_best_is_marked(self):
        text = results_table(
            [
                _table_row("popularity", [1, 30, 40, 50], "temporal"),
                _table_row("two-tower", [3, 1, 40, 50], "temporal"),
            ],
            ["recall@10", "ndcg@10"],
        )
        self.assertEqual(
            text.splitlines(),
            [
                "Protocol temporal: 4 queries, all 3,416 items ranked, "
                "history excluded",
                "",
                "recommender  recall@10   ndcg@10",
                "---------------------------------",
                "popularity      0.2500    0.2500",
                "two-tower       0.5000*   0.3750*",
                "",
                "*: best in its column.",
                "Nothing in training happened at or after the time of any "
                "query.",
            ],
        )

    def test_leave_last_out_notes_that_it_leaks(self):
        text = results_table([_table_row("markov", [1, 2], "leave_last_out")])
        self.assertIn("leaks across users' timelines", text)
        self.assertNotIn("*", text)

    def test_intervals_follow_the_values(self):
        ranks = [1.0] * 50 + [100.0] * 50
        text = results_table(
            [_table_row("markov", ranks, "temporal")],
            ["recall@10"],
            intervals=True,
        )
        # 1.96 * sqrt(0.5 * 0.5 / 100) = 0.098
        self.assertRegex(text, r"markov +0\.5000 ± 0\.(09|10)\d\d\n")
        self.assertIn("95% bootstrap interval", text)

    def test_results_of_different_queries_are_an_error(self):
        with self.assertRaisesRegex(ValueError, "Received: .*temporal"):
            results_table(
                [
                    _table_row("a", [1, 2], "temporal"),
                    _table_row("b", [1, 2], "leave_last_out"),
                ]
            )
        with self.assertRaisesRegex(ValueError, r"Received: \[\]"):
            results_table([])


if __name__ == "__main__":
    absltest.main()
