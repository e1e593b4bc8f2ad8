from __future__ import annotations

import numpy as np
import pyarrow as pa
from absl.testing import absltest, parameterized

from recsys.config import TrainConfig, make_config
from recsys.data.interactions import Interactions
from recsys.data.prepare import (
    PreparedData,
    choose,
    data_summary,
    prepare_log,
)
from recsys.data.sources import Log
from recsys.errors import InputError


def _log(
    rows: list[tuple[str, str, int, float]], items: pa.Table | None = None
) -> Log:
    """(user, item, timestamp, rating) rows."""
    columns = list(zip(*rows))
    users, items_ = ([*dict.fromkeys(column)] for column in columns[:2])
    return Log(
        name="shop.csv",
        interactions=Interactions(
            user_ids=np.array(users, object),
            item_ids=np.array(items_, object),
            users=np.array([users.index(u) for u in columns[0]], np.int32),
            items=np.array([items_.index(i) for i in columns[1]], np.int32),
            timestamps=np.array(columns[2], np.int64),
            ratings=np.array(columns[3], np.float32),
        ),
        items=items,
    )


def _prepare(rows, items: pa.Table | None = None, **fields) -> PreparedData:
    return prepare_log(_log(rows, items), TrainConfig(**fields))


ROWS = [
    ("ann", "tea", 1, 5.0),
    ("ann", "cup", 2, 1.0),
    ("ann", "jam", 3, 4.0),
    ("ann", "tea", 4, 5.0),
    ("bob", "jam", 1, 3.0),
    ("bob", "cup", 2, 3.0),
    ("bob", "tea", 9, 2.0),
    ("bob", "pot", 7, 4.0),
    ("eve", "tea", 5, 5.0),
]


class ChooseTest(parameterized.TestCase):
    @parameterized.parameters(
        ({}, "full_softmax", 1024),
        ({"loss": "full_softmax"}, "full_softmax", 1024),
        ({"num_negatives": 64}, "sampled_softmax", 64),
        ({"loss": "sampled_softmax"}, "sampled_softmax", 1024),
    )
    def test_what_is_given_of_the_loss(self, given, loss, num_negatives):
        data = _prepare(ROWS)
        config, [line] = choose(make_config("auto", given), data)
        self.assertEqual(config.loss, loss)
        self.assertEqual(config.num_negatives, num_negatives)
        self.assertRegex(line, "^preset auto: table_init=co_occurrence, .*; ")
        self.assertEqual(choose(config, data), (config, []))


class PrepareTest(parameterized.TestCase):
    def test_by_hand(self):
        data = _prepare(ROWS)
        self.assertEqual(data.name, "shop.csv")
        self.assertEqual(
            data.vocabulary.item_ids.tolist(), ["tea", "cup", "jam", "pot"]
        )
        # Repeats go, the first stays: ann has tea cup jam, bob, in order of
        # time, jam cup pot tea, eve tea. The last two of each are held out.
        train = data.split.train
        self.assertEqual(train.offsets.tolist(), [0, 1, 3, 4])
        self.assertEqual(
            data.vocabulary.decode(train.items).tolist(),
            ["tea", "jam", "cup", "tea"],
        )
        self.assertEqual(data.num_single, 1)
        self.assertEqual(data.num_dropped, 1)

    def test_counts_cover_only_the_training_set(self):
        data = _prepare(ROWS)
        # tea: ann's and eve's, not bob's, which is his test item.
        self.assertEqual(
            data.vocabulary.items.column("train_count").to_pylist(),
            [2, 1, 1, 0],
        )

    def test_item_metadata_is_joined(self):
        items = pa.table(
            {
                "item_id": ["pot", "tea"],
                "title": ["Teapot", "Green tea"],
                "train_count": [99, 99],
            }
        )
        data = _prepare(ROWS, items)
        self.assertEqual(
            data.vocabulary.titles.tolist(),
            ["Green tea", None, None, "Teapot"],
        )
        # A column of the same name in the items file does not count.
        self.assertEqual(
            data.vocabulary.items.column("train_count").to_pylist(),
            [2, 1, 1, 0],
        )

    def test_filters_are_applied(self):
        data = _prepare(
            ROWS, split="validation_only", min_rating=3, repeats="all"
        )
        # Ratings under 3 go: ann's cup and bob's tea.
        self.assertEqual(data.num_dropped, 2)
        self.assertEqual(data.split.train.num_interactions, 5)
        data = _prepare(ROWS, split="validation_only", min_item_count=2)
        self.assertNotIn("pot", data.vocabulary.item_ids.tolist())
        data = _prepare(ROWS, split="validation_only", min_user_count=2)
        self.assertEqual(data.split.train.num_users, 2)
        self.assertEqual(data.num_single, 0)

    def test_fewer_than_two_items(self):
        with self.assertRaisesRegex(
            InputError, "shop.csv: expected at least two items .*Received: 1$"
        ):
            _prepare([("a", "x", 1, 1.0)])

    def test_filters_that_drop_everything(self):
        with self.assertRaises(InputError):
            _prepare(ROWS, min_item_count=100)

    def test_no_user_with_two_training_interactions(self):
        rows = [
            (user, item, time, 1.0)
            for user in "ab"
            for time, item in enumerate("xyz")
        ]
        # Leave-last-out leaves one interaction of each user: no next item.
        with self.assertRaisesRegex(
            InputError, "shop.csv: no user has enough .*Received: at most one"
        ):
            _prepare(rows)

    def test_summary(self):
        self.assertEqual(
            data_summary(_prepare(ROWS)).splitlines(),
            [
                "shop.csv: 3 users, 4 items, 8 interactions",
                "split leave_last_out: 4 training interactions, 2 validation "
                "queries, 2 test queries",
                "1 interaction dropped: 1 repeated",
                "1 user with a single interaction: used for training, not "
                "queried",
                "1 item without training interactions: still ranked as "
                "candidates",
            ],
        )
        summary = data_summary(_prepare(ROWS, split="validation_only"))
        self.assertIn("2 validation queries, no test queries", summary)


if __name__ == "__main__":
    absltest.main()
