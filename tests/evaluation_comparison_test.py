"""A model beside its baselines: the table and metrics.json."""

from __future__ import annotations

import importlib.util
import json
import sys
import unittest
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from recsys.baselines import EASE, Markov
from recsys.data import splits
from recsys.data.sequences import Sequences
from recsys.errors import InputError
from recsys.evaluation import comparison, evaluate

_HAS_IMPLICIT = importlib.util.find_spec("implicit") is not None


def circle() -> Sequences:
    """Five users who follow a circle of seven items, from different places."""
    lengths = np.full(5, 6)
    items = np.concatenate([(np.arange(6) + user) % 7 + 2 for user in range(5)])
    return Sequences(
        user_ids=np.array([f"u{user}" for user in range(5)], object),
        offsets=np.append(0, np.cumsum(lengths)),
        items=items.astype(np.int32),
        timestamps=np.tile(np.arange(6), 5),
    )


class ResultsTest(parameterized.TestCase):
    def measure(self, split, **options):
        model = Markov.fit(split.train, 9)
        model.name = "two-tower"
        return comparison.compare_with_baselines(model, split, 9, **options)

    def test_the_table_has_every_baseline_and_the_model(self):
        measured = self.measure(splits.leave_last_out(circle()))
        table = measured.table()
        self.assertContainsInOrder(
            ["popularity", "markov", "EASE", "two-tower"], table
        )
        self.assertIn("5 queries, all 7 items ranked", table)
        self.assertEqual(measured.part, "test")

    def test_metrics_json(self):
        measured = self.measure(splits.leave_last_out(circle()))
        written = json.loads(json.dumps(measured.to_dict()))
        self.assertEqual(written["protocol"], "leave_last_out")
        self.assertEqual(written["num_queries"], 5)
        self.assertEqual(written["num_candidates"], 7)
        self.assertCountEqual(
            written["baselines"], ["popularity", "markov", "ease"]
        )
        # The model is a Markov chain itself.
        self.assertEqual(written["metrics"], written["baselines"]["markov"])
        # The circle continues as before, except at its end.
        self.assertGreater(written["metrics"]["recall@1"], 0.5)

    def test_validation_where_nothing_tests(self):
        split = splits.validation_only(circle())
        measured = self.measure(split, baselines=("popularity",))
        self.assertEqual(measured.part, "validation")
        self.assertStartsWith(measured.table(), "Validation queries")
        self.assertEqual(measured.to_dict()["queries"], "validation")

    def test_ease_is_left_out_with_a_reason_when_there_are_many_items(self):
        self.enter_context(mock.patch.object(comparison, "MAX_EASE_ITEMS", 6))
        measured = self.measure(splits.leave_last_out(circle()))
        self.assertCountEqual(measured.baselines, ["popularity", "markov"])
        self.assertIn("matrix of 7 x 7 items", measured.skipped["ease"])
        self.assertIn("ease: left out", measured.table())

    @parameterized.parameters([["popularity", "nonsense"]], [[]])
    def test_unknown_baselines(self, *names):
        with self.assertRaisesRegex(InputError, "--baselines must be one or"):
            comparison.check_baselines(names[0] if names else [])

    def test_settings_are_chosen_on_the_validation_queries(self):
        split = splits.leave_last_out(circle())
        measured = self.measure(
            split, baselines=("popularity", "item_knn", "ease"), tune_all=True
        )
        # Popularity has none.
        self.assertCountEqual(measured.tuned, ["item_knn", "ease"])
        written = measured.to_dict()["tuned_baselines"]["ease"]
        self.assertEqual(written["num_tried"], 5)
        self.assertIn(written["options"]["regularization"], (50, 100, 250))
        best = max(
            evaluate(
                EASE.fit(split.train, 9, regularization=value),
                split.validation,
                protocol="p",
                ks=(10,),
            ).metrics()["ndcg@10"]
            for value in (50, 100, 250, 500, 1000)
        )
        self.assertEqual(written["validation_ndcg@10"], best)
        self.assertRegex(
            measured.table(),
            r"\nEASE: regularization=\d+, the best of 5 on the validation que",
        )

    @unittest.skipUnless(_HAS_IMPLICIT, "needs recsys[baselines]")
    def test_als_and_bpr_are_always_tuned(self):
        measured = self.measure(
            splits.leave_last_out(circle()), baselines=("als", "bpr")
        )
        self.assertCountEqual(measured.tuned, ["als", "bpr"])
        for name, options in (("ALS", "num_factors"), ("BPR", "num_epochs")):
            self.assertIn(f"\n{name}: {options}=", measured.table())

    @parameterized.parameters("als", "bpr")
    def test_without_implicit_the_extra_is_named(self, name):
        with (
            mock.patch.dict(sys.modules, {"implicit": None}),
            self.assertRaisesRegex(
                InputError,
                rf"^--baselines={name} needs the extra \[baselines\]: .*"
                "Received: no package `implicit`$",
            ),
        ):
            comparison.check_baselines(["popularity", name])

    def assertContainsInOrder(self, parts, text):
        places = [text.index(part) for part in parts]
        self.assertEqual(places, sorted(places))


if __name__ == "__main__":
    absltest.main()
