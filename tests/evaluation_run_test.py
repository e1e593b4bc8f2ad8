"""Which data a stored model may be evaluated on, and how."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from recsys.config import TrainConfig
from recsys.data.prepare import build_data
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.evaluation import run


def write_log(
    path: pathlib.Path, offset=0, num_users=10, length=6, start=0
) -> str:
    rows = ["user,item,timestamp"]
    for user in range(num_users):
        for step in range(length):
            item = (user + step) % 9 + offset
            rows.append(f"u{user},i{item},{start + 10 * step + 35 * user}")
    path.write_text("\n".join(rows) + "\n")
    return str(path)


class EvaluationDataTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )
        self.log = write_log(self.folder / "log.csv")

    def asked(self, split, protocol, source=None, **fields):
        """Returns the data asked of a model that was trained on the log."""
        config = TrainConfig(data=self.log, split=split, **fields)
        vocabulary = build_data(config).vocabulary
        return run.evaluation_data(config, vocabulary, source or {}, protocol)

    @parameterized.parameters("leave_last_out", "temporal", "validation_only")
    def test_the_models_own_split(self, split):
        for protocol in (None, split):
            asked = self.asked(split, protocol)
            self.assertEqual(asked.data.split.protocol, split)
            self.assertEqual(asked.notes, [])

    def test_cutoffs_are_those_of_the_training(self):
        fields = {"validation_from": "100", "test_from": "0.9"}
        asked = self.asked("temporal", None, queries_per_user=1, **fields)
        train, test = asked.data.split.train, asked.data.split.test
        # Times are multiples of five, but 95 is none of the log's.
        self.assertEqual(train.timestamps.max(), 90)
        self.assertLen(test, len(np.unique(test.users)))
        # They do not stand in the way of another protocol; the user that is
        # drawn did nothing before them.
        asked = self.asked("temporal", "held_out_users", **fields)
        self.assertEqual(asked.data.split.protocol, "held_out_users")

    def test_other_cutoffs_on_another_log(self):
        # The times of the log are 0 to 365; those of the other begin at 5000.
        fields = {"validation_from": "100", "test_from": "300"}
        other = write_log(self.folder / "other.csv", offset=3, start=5000)
        source = {"data": other, "validation_from": "5050"}
        with self.assertRaisesRegex(InputError, "^--test_from must lie within"):
            self.asked("temporal", None, source, **fields)
        source |= {"test_from": "5200", "queries_per_user": 1}
        asked = self.asked("temporal", None, source, **fields)
        split = asked.data.split
        self.assertEqual(split.train.timestamps.max(), 5045)
        times = split.test.sequences.timestamps[split.test.history_ends]
        self.assertEqual(times.min(), 5205)
        self.assertLen(split.test, len(np.unique(split.test.users)))
        self.assertIn("cannot be checked", asked.notes[0])
        # They serve a model of another split as well.
        asked = self.asked("leave_last_out", "temporal", source)
        self.assertEqual(asked.data.split.train.timestamps.max(), 5045)

    def test_later_cutoffs_ask_what_was_not_trained_on(self):
        fields = {"validation_from": "100", "test_from": "200"}
        asked = self.asked("temporal", None, {"test_from": "300"}, **fields)
        self.assertEqual(asked.data.split.train.timestamps.max(), 90)
        test = asked.data.split.test
        times = test.sequences.timestamps[test.history_ends]
        self.assertEqual(times.min(), 300)
        self.assertEqual(asked.notes, [])
        earlier = {"validation_from": "20", "test_from": "50"}
        with self.assertRaisesRegex(
            InputError,
            "^--validation_from=20 --test_from=50 asks for what the model was "
            "trained on with --split=temporal .*Received: "
            "--validation_from=20 --test_from=50$",
        ):
            self.asked("temporal", None, earlier, **fields)

    @parameterized.parameters(None, "leave_last_out", "held_out_users")
    def test_cutoffs_of_another_protocol(self, protocol):
        with self.assertRaisesRegex(
            InputError,
            "^--test_from must go with --protocol=temporal. Received: "
            "--test_from=0.9 with the protocol ",
        ):
            self.asked("leave_last_out", protocol, {"test_from": "0.9"})

    def test_cutoffs_out_of_range(self):
        with self.assertRaisesRegex(InputError, "^--validation_from must be"):
            self.asked("leave_last_out", "temporal", {"test_from": "0.7"})

    @parameterized.parameters(
        ("leave_last_out", "temporal"),
        ("leave_last_out", "held_out_users"),
        ("validation_only", "temporal"),
        ("held_out_users", "leave_last_out"),
        ("temporal", "held_out_users"),
    )
    def test_another_protocol_leaks(self, split, protocol):
        with self.assertRaisesRegex(
            InputError,
            f"^--protocol={protocol} asks for what the model was trained on "
            f"with --split={split} .*Received: --protocol={protocol}$",
        ):
            self.asked(split, protocol)

    def test_the_models_last_items_were_not_in_its_training(self):
        asked = self.asked("leave_last_out", "validation_only")
        self.assertEqual(asked.data.split.protocol, "validation_only")
        # Two of each user's six are held out, not one.
        self.assertEqual(asked.data.split.train.num_interactions, 10 * 4)
        self.assertEqual(asked.notes, [])

    def test_queries_that_chose_the_model_are_told(self):
        asked = self.asked("validation_only", "leave_last_out")
        self.assertLen(asked.notes, 1)
        self.assertStartsWith(
            asked.notes[0], "The model was selected on 10 of these 10 queries"
        )

    def test_queries_in_common_with_a_split_that_leaves_items_out(self):
        # Held out are items 4 and 5 (from 0); users 6 and 7 alone have
        # neither, so that these validate with their last item.
        drawn = np.random.default_rng(0).permutation(np.arange(2, 11))
        self.assertCountEqual(drawn[:2], [4 + 2, 5 + 2])
        asked = self.asked("held_out_items", "leave_last_out")
        self.assertLen(asked.notes, 1)
        self.assertStartsWith(
            asked.notes[0], "The model was selected on 2 of these 10 queries"
        )

    def test_the_same_log_elsewhere_is_the_same_log(self):
        copy = write_log(self.folder / "copy.csv")
        asked = self.asked("leave_last_out", None, {"data": copy})
        self.assertEqual(asked.notes, [])
        with self.assertRaises(InputError):
            self.asked("leave_last_out", "temporal", {"data": copy})

    def test_another_log(self):
        # Items 3 to 11, of which 9, 10 and 11 are new.
        other = write_log(self.folder / "other.csv", offset=3)
        asked = self.asked("leave_last_out", "temporal", {"data": other})
        self.assertLen(asked.notes, 2)
        self.assertIn("cannot be checked", asked.notes[0])
        self.assertStartsWith(asked.notes[1], "3 of 9 items are unknown")

    def test_columns_are_looked_for_anew_in_another_log(self):
        renamed = self.folder / "renamed.csv"
        text = (self.folder / "log.csv").read_text()
        renamed.write_text(text.replace("user,", "who,", 1))
        config = TrainConfig(data=str(renamed), user_column="who")
        vocabulary = build_data(config).vocabulary
        asked = run.evaluation_data(
            config, vocabulary, {"data": self.log}, None
        )
        self.assertEqual(asked.notes, [])


class FirstItems:
    """Scores an item by its index; remembers what it was asked."""

    name = "first items"

    def scores(self, items, offsets):
        self.items = items
        return np.tile(np.arange(5, dtype=np.float32), (len(offsets) - 1, 1))


class OtherCatalogTest(absltest.TestCase):
    def test_scores(self):
        inner = FirstItems()
        recommender = run.OtherCatalog(
            inner, Vocabulary(["a", "b", "c"]), Vocabulary(["c", "new", "a"])
        )
        scores = recommender.scores(
            np.array([2, 3, 4], np.int32), np.array([0, 2, 3])
        )
        # c is index 4 of the model, "new" is unknown (1), a is index 2.
        np.testing.assert_array_equal(inner.items, [4, 1, 2])
        expected = [4, -np.inf, 2]
        np.testing.assert_array_equal(scores[:, 2:], [expected, expected])


if __name__ == "__main__":
    absltest.main()
