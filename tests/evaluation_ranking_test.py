"""Tests of full-catalog ranking and top lists against slow versions."""

from __future__ import annotations

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from recsys import evaluation
from recsys.data.sequences import Sequences
from recsys.data.splits import Queries
from recsys.errors import InputError
from recsys.evaluation import evaluate


@dataclasses.dataclass
class _Table:
    """Looks up the scores in a table by the last item of the history."""

    table: np.ndarray
    name: str = "table"

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        return self.table[items[offsets[1:] - 1]]


def _queries(*users: tuple[list[int], list[int]]) -> Queries:
    """One query per user, given as (history, relevant items)."""
    lengths = np.array([len(h) + len(t) for h, t in users])
    offsets = np.append(0, np.cumsum(lengths))
    items = [item for user in users for part in user for item in part]
    sequences = Sequences(
        user_ids=np.array([f"u{row}" for row in range(len(users))], object),
        offsets=offsets,
        items=np.array(items, np.int32),
        timestamps=np.arange(len(items)),
    )
    ends = offsets[:-1] + np.array([len(history) for history, _ in users])
    return Queries(
        sequences, np.arange(len(users)), offsets[:-1], ends, offsets[1:]
    )


def _random_queries(rng: np.random.Generator, num_items: int) -> Queries:
    users = []
    for _ in range(150):
        drawn = rng.permutation(num_items)[: rng.integers(2, 20)] + 2
        cut = rng.integers(1, min(len(drawn), 12))
        users.append((drawn[:cut].tolist(), drawn[cut:].tolist()))
    return _queries(*users)


def _slow_ranks(scores, history, relevant, exclude_history):
    """Expected ranks, by counting better and tied candidates."""
    candidates = [
        item
        for item in range(2, len(scores))
        if not (exclude_history and item in history)
    ]
    ranks = []
    for score in sorted({scores[item] for item in relevant}, reverse=True):
        better = sum(scores[item] > score for item in candidates)
        tied = sum(scores[item] == score for item in candidates)
        found = sum(scores[item] == score for item in relevant)
        ranks += [
            better + i * (tied + 1) / (found + 1) for i in range(1, found + 1)
        ]
    return ranks


def _slow_top(scores, history, k, exclude_history):
    """The k best by a full sort, ties by lower index."""
    candidates = [
        item
        for item in range(2, len(scores))
        if scores[item] > -np.inf and not (exclude_history and item in history)
    ]
    best = sorted(candidates, key=lambda item: (-scores[item], item))[:k]
    return best + [0] * (k - len(best))


class EvaluateTest(parameterized.TestCase):
    def test_the_protocol_keeps_its_earlier_name(self):
        self.assertIs(evaluation.Recommender, evaluation.Scorer)

    def test_ranks_by_hand(self):
        # Items 2..7; the history is 2, so five candidates are left.
        scores = np.zeros((3, 8), np.float32)
        scores[2] = [9, 9, 9, 3, 5, 4, 5, 1]
        result = evaluate(
            _Table(scores[[0, 0, 2, 0, 0, 0, 0, 0]]),
            _queries(([2], [3, 4, 7])),
            protocol="by_hand",
            ks=(1, 2, 4),
        )
        # 4 ties with 6 for places 1 and 2; 5 is third, 3 fourth, 7 last.
        np.testing.assert_array_equal(result.ranks, [[1.5, 4, 5]])
        np.testing.assert_array_equal(result.relevant_items, [[4, 3, 7]])
        np.testing.assert_array_equal(result.top_items, [[4, 6, 5, 3]])
        np.testing.assert_array_equal(result.top_scores, [[5, 5, 4, 3]])
        np.testing.assert_array_equal(result.num_candidates, [5])
        self.assertEqual(result.num_items, 6)
        self.assertEqual(result.query_ids.tolist(), ["u0"])
        values = result.metrics()
        self.assertEqual(values["recall@1"], 0)
        self.assertAlmostEqual(values["recall@4"], 2 / 3)
        self.assertAlmostEqual(values["mrr@2"], 2 / 3)

    @parameterized.product(
        exclude_history=(True, False), levels=(3, 10**6), lowest=(0, -np.inf)
    )
    def test_equals_a_slow_ranking(self, exclude_history, levels, lowest):
        rng = np.random.default_rng(levels)
        queries = _random_queries(rng, num_items=30)
        table = rng.integers(0, levels, (32, 32)).astype(np.float32)
        table[table < levels * 0.4] = lowest
        result = evaluate(
            _Table(table),
            queries,
            protocol="random",
            ks=(3, 25),
            exclude_history=exclude_history,
            batch_size=32,
        )
        for row in range(len(queries)):
            history = queries.histories(np.array([row]))[0].tolist()
            relevant = queries.targets(np.array([row]))[0].tolist()
            scores = table[history[-1]]
            expected = _slow_ranks(scores, history, relevant, exclude_history)
            np.testing.assert_allclose(
                result.ranks[row, : len(expected)], expected
            )
            self.assertTrue(np.isnan(result.ranks[row, len(expected) :]).all())
            self.assertEqual(
                result.top_items[row].tolist(),
                _slow_top(scores, history, 25, exclude_history),
            )
            found = result.relevant_items[row, : len(expected)].tolist()
            self.assertCountEqual(found, relevant)
            self.assertEqual(
                found, sorted(found, key=lambda item: (-scores[item], item))
            )
            self.assertEqual(
                result.num_candidates[row],
                30 - (len(set(history)) if exclude_history else 0),
            )

    def test_the_expected_rank_is_the_mean_over_random_orders(self):
        # Two relevant items among five tied ones behind one better item.
        scores = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 2]], np.float32)
        result = evaluate(
            _Table(np.repeat(scores, 9, axis=0)),
            _queries(([2], [4, 6])),
            protocol="ties",
        )
        rng = np.random.default_rng(0)
        drawn = np.sort(
            [rng.permutation(5)[:2] + 2 for _ in range(20000)], axis=1
        )
        np.testing.assert_allclose(
            result.ranks[0], drawn.mean(axis=0), atol=0.05
        )
        np.testing.assert_allclose(result.ranks[0], [3, 5])

    def test_results_do_not_depend_on_the_batch_size(self):
        rng = np.random.default_rng(1)
        queries = _random_queries(rng, num_items=40)
        table = rng.standard_normal((42, 42)).astype(np.float32)
        results = [
            evaluate(_Table(table), queries, protocol="random", batch_size=size)
            for size in (1, 7, 1024)
        ]
        for result in results[1:]:
            for field in dataclasses.fields(result):
                np.testing.assert_array_equal(
                    getattr(result, field.name),
                    getattr(results[0], field.name),
                )

    def test_large_catalogs_are_ranked_in_several_chunks(self):
        rng = np.random.default_rng(2)
        scores = rng.standard_normal((3, 50_001)).astype(np.float32)
        queries = _queries(*[([2], [3 + row]) for row in range(30)])
        scorer = _Table(scores)
        scorer.scores = lambda items, offsets: np.resize(
            scores, (len(offsets) - 1, 50_001)
        )
        result = evaluate(scorer, queries, protocol="wide")
        for row in range(30):
            row_scores = scores[row % 3, 2:].copy()
            row_scores[0] = -np.inf
            self.assertEqual(
                result.ranks[row, 0],
                1 + np.sum(row_scores > row_scores[1 + row]),
            )
            np.testing.assert_array_equal(
                result.top_items[row], np.argsort(-row_scores)[:100] + 2
            )

    def test_the_cheap_form_has_the_same_ranks(self):
        rng = np.random.default_rng(3)
        queries = _random_queries(rng, num_items=40)
        scorer = _Table(rng.standard_normal((42, 42)).astype(np.float32))
        full = evaluate(scorer, queries, protocol="p")
        cheap = evaluate(scorer, queries, protocol="p", ks=(10,), lists=False)
        self.assertIsNone(cheap.top_items)
        self.assertIsNone(cheap.top_scores)
        np.testing.assert_array_equal(cheap.ranks, full.ranks)
        self.assertEqual(cheap.metrics()["ndcg@10"], full.metrics()["ndcg@10"])

    def test_scores_are_not_changed_and_may_be_of_any_float(self):
        table = np.arange(64, dtype=np.float64).reshape(8, 8)
        table.setflags(write=False)
        queries = _queries(([2, 3], [4]), ([5], [6]))
        wide = evaluate(_Table(table), queries, protocol="p")
        half = evaluate(_Table(table.astype(np.float16)), queries, protocol="p")
        np.testing.assert_array_equal(wide.ranks, half.ranks)

    def test_padding_and_unknown_are_never_candidates(self):
        table = np.zeros((6, 6), np.float32)
        table[:, :2] = np.nan
        # The unknown item in a history is not a candidate to begin with.
        queries = _queries(([1, 2, 2], [4]))
        result = evaluate(_Table(table), queries, protocol="p", ks=(10,))
        np.testing.assert_array_equal(result.num_candidates, [3])
        np.testing.assert_array_equal(result.ranks, [[2]])
        np.testing.assert_array_equal(
            result.top_items, [[3, 4, 5, 0, 0, 0, 0, 0, 0, 0]]
        )
        np.testing.assert_array_equal(result.top_scores[0, 3:], -np.inf)

    def test_several_queries_of_a_user_have_different_names(self):
        queries = _queries(([2, 3], [4]))
        twice = Queries(
            queries.sequences,
            np.array([0, 0]),
            np.array([0, 0]),
            np.array([1, 2]),
            np.array([2, 3]),
        )
        result = evaluate(
            _Table(np.zeros((6, 6), np.float32)), twice, protocol="temporal"
        )
        self.assertEqual(result.query_ids.tolist(), ["u0:1", "u0:2"])

    @parameterized.parameters(np.nan, np.inf)
    def test_a_score_of_nan_or_infinity_is_an_error(self, value):
        table = np.zeros((6, 6), np.float32)
        table[3, 5] = value
        queries = _queries(([2], [4]), ([3], [4]))
        with self.assertRaisesRegex(
            ValueError, f"'table' must be finite or -inf.*{value}.*'u1'"
        ):
            evaluate(_Table(table), queries, protocol="p")

    @parameterized.parameters(
        (([2], [2]), "own history.*item index 2 for query 'u1'"),
        (([2], []), "Received: none for query 'u1'"),
        (([2], [3, 4, 3]), "index 3 twice for query 'u1'"),
        (([2], [1]), "Received: index 1 for query 'u1'"),
        (([2], [0]), "Received: index 0 for query 'u1'"),
        (([2], [6]), "below the vocabulary size 6 of 'table'"),
    )
    def test_an_invalid_query_is_an_error(self, user, message):
        queries = _queries(([3], [4]), user)
        table = np.zeros((6, 6), np.float32)
        with self.assertRaisesRegex(InputError, message):
            evaluate(_Table(table), queries, protocol="p")

    def test_a_repeated_item_can_be_found_when_nothing_is_excluded(self):
        table = np.tile(np.arange(6, dtype=np.float32), (6, 1))
        result = evaluate(
            _Table(table),
            _queries(([2, 5], [5])),
            protocol="p",
            exclude_history=False,
        )
        np.testing.assert_array_equal(result.ranks, [[1]])

    def test_no_queries_and_wrong_arguments_are_errors(self):
        queries = _queries(([3], [4]))
        table = _Table(np.zeros((6, 6), np.float32))
        with self.assertRaisesRegex(InputError, "Received: none"):
            evaluate(table, queries.select(np.arange(0)), protocol="p")
        for wrong in ({"ks": ()}, {"ks": (0, 1)}, {"batch_size": 0}):
            with self.assertRaisesRegex(ValueError, "must be positive"):
                evaluate(table, queries, protocol="p", **wrong)
        with self.assertRaisesRegex(ValueError, r"Received: \(1,\)"):
            evaluate(_Table(np.zeros(6)), queries, protocol="p")


if __name__ == "__main__":
    absltest.main()
