from __future__ import annotations

import numpy as np
from absl.testing import absltest, parameterized

from recsys.data.interactions import (
    Interactions,
    filter_interactions,
    number_by_appearance,
)
from recsys.errors import InputError


def _log(rows: list[tuple], with_ratings: bool = True) -> Interactions:
    """Builds a log from (user, item, timestamp, rating) rows."""
    user_ids = list(dict.fromkeys(row[0] for row in rows))
    item_ids = list(dict.fromkeys(row[1] for row in rows))
    return Interactions(
        np.array(user_ids, object),
        np.array(item_ids, object),
        np.array([user_ids.index(row[0]) for row in rows], np.int32),
        np.array([item_ids.index(row[1]) for row in rows], np.int32),
        np.array([row[2] for row in rows], np.int64),
        np.array([row[3] for row in rows], np.float32)
        if with_ratings
        else None,
    )


def _rows(log: Interactions) -> list[tuple]:
    return list(
        zip(
            log.user_ids[log.users],
            log.item_ids[log.items],
            log.timestamps.tolist(),
            log.ratings.tolist(),
        )
    )


def _slow_filter(
    rows: list[tuple],
    min_rating: float,
    item_count: int,
    user_count: int,
    repeats: str,
) -> list[tuple]:
    """The same, one row at a time."""
    rows = [row for row in rows if row[3] >= min_rating]
    if repeats != "all":
        kept = {}
        order = sorted(range(len(rows)), key=lambda i: (rows[i][2], i))
        for i in order if repeats == "last" else order[::-1]:
            kept[rows[i][:2]] = i
        rows = [rows[i] for i in sorted(kept.values())]
    while True:
        before = len(rows)
        for column, least in ((1, item_count), (0, user_count)):
            values = [row[column] for row in rows]
            rows = [row for row in rows if values.count(row[column]) >= least]
        if len(rows) == before:
            return rows


class InteractionsTest(absltest.TestCase):
    def test_columns_of_different_lengths_are_an_error(self):
        log = _log([("u", "a", 1, 1.0)])
        with self.assertRaisesRegex(ValueError, r"one length.*\[1, 1, 2, 1\]"):
            Interactions(
                log.user_ids,
                log.item_ids,
                log.users,
                log.items,
                np.zeros(2, np.int64),
                log.ratings,
            )

    def test_length_is_the_number_of_interactions(self):
        self.assertLen(_log([("u", "a", 1, 1.0), ("u", "b", 1, 1.0)]), 2)


class FilterInteractionsTest(parameterized.TestCase):
    def test_defaults_keep_everything_but_repeats(self):
        rows = [("u", "a", 5, 1.0), ("u", "b", 4, 2.0), ("v", "a", 3, 3.0)]
        self.assertEqual(_rows(filter_interactions(_log(rows))), rows)

    @parameterized.parameters(
        # Timestamps 7, 3, 3, 7: ties go by the order of the file.
        ("first", [1, 4]),
        ("last", [3, 4]),
        ("all", [0, 1, 2, 3, 4]),
    )
    def test_repeats(self, repeats: str, expected: list[int]):
        rows = [
            ("u", "a", 7, 0.0),
            ("u", "a", 3, 1.0),
            ("u", "a", 3, 2.0),
            ("u", "a", 7, 3.0),
            ("u", "b", 1, 4.0),
        ]
        kept = filter_interactions(_log(rows), repeats=repeats)
        self.assertEqual(_rows(kept), [rows[i] for i in expected])

    def test_rating_filter_comes_before_repeats(self):
        rows = [("u", "a", 1, 2.0), ("u", "a", 2, 5.0), ("u", "b", 3, np.nan)]
        kept = filter_interactions(_log(rows), min_rating=3)
        self.assertEqual(_rows(kept), [("u", "a", 2, 5.0)])
        self.assertEqual(kept.item_ids.tolist(), ["a"])

    def test_core_is_iterated_until_stable(self):
        # Without c (once), w has one left and goes; then d has one left,
        # and goes; then v has one left, and goes.
        rows = [
            ("t", "a", 1, 1.0),
            ("t", "b", 2, 1.0),
            ("u", "a", 3, 1.0),
            ("u", "b", 4, 1.0),
            ("v", "a", 5, 1.0),
            ("v", "d", 6, 1.0),
            ("w", "d", 7, 1.0),
            ("w", "c", 8, 1.0),
        ]
        kept = filter_interactions(
            _log(rows), min_item_count=2, min_user_count=2
        )
        self.assertEqual(_rows(kept), rows[:4])

    def test_ids_are_renumbered_by_first_appearance(self):
        rows = [("u", "a", 2, 1.0), ("v", "b", 1, 5.0), ("u", "a", 3, 5.0)]
        kept = filter_interactions(_log(rows), min_rating=5)
        self.assertEqual(kept.user_ids.tolist(), ["v", "u"])
        self.assertEqual(kept.item_ids.tolist(), ["b", "a"])
        self.assertEqual(kept.users.tolist(), [0, 1])
        self.assertEqual(kept.users.dtype, np.int32)

    @parameterized.product(seed=[0, 1, 2], repeats=["first", "last", "all"])
    def test_agrees_with_one_row_at_a_time(self, seed: int, repeats: str):
        rng = np.random.default_rng(seed)
        rows = [
            (f"u{u}", f"i{i}", int(t), float(r))
            for u, i, t, r in zip(
                rng.integers(0, 20, 200),
                rng.integers(0, 15, 200),
                rng.integers(0, 10, 200),
                rng.integers(1, 6, 200),
            )
        ]
        expected = _slow_filter(rows, 2, 6, 4, repeats)
        self.assertNotEmpty(expected)
        self.assertLess(len(expected), len(rows))
        kept = filter_interactions(
            _log(rows),
            min_rating=2,
            min_item_count=6,
            min_user_count=4,
            repeats=repeats,
        )
        self.assertEqual(_rows(kept), expected)

    @parameterized.parameters(
        ({"min_item_count": 0}, "`min_item_count` must be at least 1.*: 0$"),
        ({"min_user_count": -1}, "`min_user_count` must be at .*: -1$"),
        ({"repeats": "some"}, "`repeats` must be one of first, .*'some'$"),
        ({"min_rating": 6}, "no interaction is left .*: 1 interactions$"),
    )
    def test_errors(self, arguments: dict, message: str):
        with self.assertRaisesRegex(InputError, message):
            filter_interactions(_log([("u", "a", 1, 1.0)]), **arguments)

    def test_min_rating_needs_ratings(self):
        log = _log([("u", "a", 1, 1.0)], with_ratings=False)
        with self.assertRaisesRegex(InputError, "`min_rating` needs a log"):
            filter_interactions(log, min_rating=1)


class NumberByAppearanceTest(absltest.TestCase):
    def test_unused_ids_are_dropped(self):
        ids, codes = number_by_appearance(
            np.array(["a", "b", "c"], object), np.array([2, 0, 2])
        )
        self.assertEqual(ids.tolist(), ["c", "a"])
        self.assertEqual(codes.tolist(), [0, 1, 0])


if __name__ == "__main__":
    absltest.main()
