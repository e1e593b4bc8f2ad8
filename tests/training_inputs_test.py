from __future__ import annotations

import numpy as np
from absl.testing import absltest, parameterized

from recsys.config import SPLITS, TrainConfig
from recsys.data.prepare import make_split
from recsys.data.sequences import Sequences
from recsys.errors import InputError

DAY = 86_400
START = 1_435_622_400  # 2015-06-30


def _days(*users: list[int], unit: int = 1) -> Sequences:
    """Users who did something on these days after 2015-06-30."""
    lengths = [len(user) for user in users]
    days = np.array([day for user in users for day in user], np.int64)
    return Sequences(
        user_ids=np.array([f"u{row}" for row in range(len(users))], object),
        offsets=np.append(0, np.cumsum(lengths)).astype(np.int64),
        items=np.arange(2, 2 + len(days), dtype=np.int32),
        timestamps=(START + days * DAY) * unit,
    )


def _temporal(validation_from: str, test_from: str, **fields) -> TrainConfig:
    return TrainConfig(
        split="temporal",
        validation_from=validation_from,
        test_from=test_from,
        **fields,
    )


class MakeSplitTest(parameterized.TestCase):
    @parameterized.parameters(*SPLITS)
    def test_names_are_protocols(self, split):
        sequences = _days(*[list(range(9))] * 9)
        made = make_split(sequences, TrainConfig(split=split))
        self.assertEqual(made.protocol, split)

    @parameterized.product(
        cutoffs=(
            ("2015-07-02", "2015-07-04"),
            ("2015-07-02T00:00:00", "2015-07-03T12:00"),
            (str(START + 2 * DAY), str(START + 4 * DAY - 0.5)),
            ("2015-07-02", "0.75"),
        ),
        unit=(1, 1_000_000),
    )
    def test_dates_and_times_in_either_unit(self, cutoffs, unit):
        # By time: items 2 and 6, 3, 7 and 4, 8, 5; three quarters: 5.25.
        sequences = _days([0, 1, 3, 5], [0, 2, 4], unit=unit)
        split = make_split(sequences, _temporal(*cutoffs), unit)
        self.assertEqual(split.train.items.tolist(), [2, 3, 6])
        for queries, expected in (
            (split.validation, [4, 7]),
            (split.test, [5, 8]),
        ):
            items, _ = queries.targets(np.arange(len(queries)))
            self.assertEqual(items.tolist(), expected)

    def test_queries_per_user(self):
        config = _temporal("0.4", "0.7", queries_per_user=2)
        split = make_split(_days(list(range(10))), config)
        for queries, expected in (
            (split.validation, [6, 7]),
            (split.test, [9, 10]),
        ):
            items, _ = queries.targets(np.arange(len(queries)))
            self.assertEqual(items.tolist(), expected)

    @parameterized.parameters(
        ("2015-06-30", "0.9", 1, "validation_from.*: 2015-06-30"),
        ("0.5", "2016-01-01", 1, "test_from.*: 2016-01-01"),
        ("7", "0.9", 1_000_000, "validation_from.*: 7"),
    )
    def test_outside_of_the_log(self, begin, end, unit, message):
        with self.assertRaisesRegex(
            InputError,
            f"^--{message.split('.')[0]} must lie within the times of the "
            "log, 2015-06-30 00:00:00 to 2015-07-04 00:00:00. Received",
        ):
            make_split(
                _days([0, 1, 2, 3, 4], unit=unit), _temporal(begin, end), unit
            )

    def test_a_number_is_reported_in_the_units_of_the_log(self):
        with self.assertRaisesRegex(
            InputError, f"{START} to {START + 4 * DAY}. Received: 7$"
        ):
            make_split(_days([0, 1, 2, 3, 4]), _temporal("7", "0.9"))

    def test_cutoffs_in_the_wrong_order(self):
        with self.assertRaisesRegex(InputError, "must be before `test_from`"):
            make_split(
                _days([0, 1, 2, 3, 4]), _temporal("2015-07-03", "2015-07-02")
            )


if __name__ == "__main__":
    absltest.main()
