"""Tests of the plain-text results table."""

from __future__ import annotations

import numpy as np
from absl.testing import absltest

from recsys.evaluation import Evaluation, results_table


def _evaluation(name: str, ranks: list[float], protocol: str) -> Evaluation:
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
                _evaluation("popularity", [1, 30, 40, 50], "temporal"),
                _evaluation("two-tower", [3, 1, 40, 50], "temporal"),
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
                "*: best of its column.",
                "Nothing in training happened at or after the time of any "
                "query.",
            ],
        )

    def test_leave_last_out_says_that_it_leaks(self):
        text = results_table([_evaluation("markov", [1, 2], "leave_last_out")])
        self.assertIn("leaks across users' time lines", text)
        self.assertNotIn("*", text)

    def test_intervals_stand_behind_the_values(self):
        ranks = [1.0] * 50 + [100.0] * 50
        text = results_table(
            [_evaluation("markov", ranks, "temporal")],
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
                    _evaluation("a", [1, 2], "temporal"),
                    _evaluation("b", [1, 2], "leave_last_out"),
                ]
            )
        with self.assertRaisesRegex(ValueError, r"Received: \[\]"):
            results_table([])


if __name__ == "__main__":
    absltest.main()
