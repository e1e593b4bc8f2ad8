from __future__ import annotations

import numpy as np
from absl.testing import absltest, parameterized

from recsys.data.interactions import Interactions
from recsys.data.sequences import build_sequences, concatenated_ranges
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError


def _interactions(rows: list[tuple[int, int, int]]) -> Interactions:
    """(user, item, timestamp) rows over users u0… and items a…."""
    users, items, times = np.array(rows).T
    return Interactions(
        user_ids=np.array([f"u{i}" for i in range(users.max() + 1)], object),
        item_ids=np.array(list("abcdef"[: items.max() + 1]), object),
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        timestamps=times.astype(np.int64),
        ratings=None,
    )


class SequencesTest(parameterized.TestCase):
    def test_orders_by_user_then_time_then_row(self):
        # u1 has a and b at time 5: they stay in the order of the file.
        log = _interactions(
            [(1, 1, 5), (0, 0, 9), (1, 0, 5), (0, 2, 3), (1, 3, 1)]
        )
        sequences = build_sequences(log, Vocabulary(["a", "b", "c", "d"]))
        self.assertEqual(sequences.user_ids.tolist(), ["u0", "u1"])
        self.assertEqual(sequences.offsets.tolist(), [0, 2, 5])
        # Indices are 2 for a, 3 for b, 4 for c, 5 for d.
        self.assertEqual(sequences.items.tolist(), [4, 2, 5, 3, 2])
        self.assertEqual(sequences.timestamps.tolist(), [3, 9, 1, 5, 5])
        self.assertEqual(sequences.items.dtype, np.int32)
        self.assertEqual(sequences.offsets.dtype, np.int64)

    def test_many_equal_timestamps_keep_the_order_of_the_file(self):
        rng = np.random.default_rng(0)
        items = rng.permutation(6).repeat(50)
        rng.shuffle(items)
        log = _interactions([(0, item, 7) for item in items])
        sequences = build_sequences(log, Vocabulary(list("abcdef")))
        self.assertEqual(sequences.items.tolist(), (items + 2).tolist())

    @parameterized.parameters(0, -(2**63), 2**62)
    def test_times_of_any_size(self, first):
        # From -2^63 to 2^63 - 1 there is no room for users in one key.
        last = 2**63 - 1
        rows = [(1, 0, last), (0, 1, last), (1, 2, first), (0, 3, first)]
        log = _interactions([*rows, (1, 4, first + 1)])
        sequences = build_sequences(log, Vocabulary(list("abcde")))
        self.assertEqual(sequences.items.tolist(), [5, 3, 4, 6, 2])
        self.assertEqual(
            sequences.timestamps.tolist(),
            [first, last, first, first + 1, last],
        )

    @parameterized.parameters(1, 2**50)
    def test_order_is_that_of_sorting_rows(self, unit):
        # With the larger unit times and users do not fit into one key. Few
        # times, so that most rows have equals.
        rng = np.random.default_rng(unit)
        rows = [
            (int(user), int(item), unit * int(time))
            for user, item, time in zip(
                rng.integers(0, 20, 500),
                rng.integers(0, 6, 500),
                rng.choice([-900, -7, 0, 7, 900], 500),
                strict=True,
            )
        ]
        sequences = build_sequences(
            _interactions(rows), Vocabulary(list("abcdef"))
        )
        in_order = sorted(rows, key=lambda row: (row[0], row[2]))
        self.assertEqual(
            sequences.timestamps.tolist(), [time for _, _, time in in_order]
        )
        self.assertEqual(
            sequences.items.tolist(), [item + 2 for _, item, _ in in_order]
        )

    def test_no_interactions(self):
        log = _interactions([(0, 0, 1)])
        nothing = Interactions(
            user_ids=log.user_ids,
            item_ids=log.item_ids,
            users=log.users[:0],
            items=log.items[:0],
            timestamps=log.timestamps[:0],
            ratings=None,
        )
        sequences = build_sequences(nothing, Vocabulary(["a"]))
        self.assertEqual(sequences.offsets.tolist(), [0, 0])

    def test_indices_are_those_of_the_vocabulary(self):
        log = _interactions([(0, 0, 1), (0, 1, 2)])
        sequences = build_sequences(log, Vocabulary(["z", "b", "a"]))
        self.assertEqual(sequences.items.tolist(), [4, 3])

    def test_an_item_outside_the_vocabulary_is_an_error(self):
        log = _interactions([(0, 0, 1), (0, 1, 2)])
        with self.assertRaisesRegex(InputError, "Received 1 unknown: 'b'"):
            build_sequences(log, Vocabulary(["a", "c"]))

    def test_near_pairs(self):
        log = _interactions(
            [(0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 3, 1), (1, 0, 2)]
        )
        sequences = build_sequences(log, Vocabulary(["a", "b", "c", "d"]))
        # a b c of one user, d a of the other: indices 2 3 4 and 5 2.
        self.assertEqual(
            [
                (distance, earlier.tolist(), later.tolist())
                for distance, earlier, later in sequences.near_pairs(3)
            ],
            [(1, [2, 3, 5], [3, 4, 2]), (2, [2], [4]), (3, [], [])],
        )

    def test_sizes(self):
        log = _interactions([(0, 0, 1), (2, 1, 2), (2, 0, 3)])
        sequences = build_sequences(log, Vocabulary(["a", "b"]))
        self.assertEqual(sequences.num_users, 3)
        self.assertEqual(sequences.num_interactions, 3)
        self.assertEqual(sequences.lengths.tolist(), [1, 0, 2])

    def test_prefixes(self):
        log = _interactions(
            [(0, 0, 1), (0, 1, 2), (1, 2, 3), (1, 1, 4), (1, 0, 5)]
        )
        sequences = build_sequences(log, Vocabulary(["a", "b", "c"]))
        prefixes = sequences.prefixes(np.array([0, 2]))
        self.assertEqual(prefixes.user_ids.tolist(), ["u0", "u1"])
        self.assertEqual(prefixes.offsets.tolist(), [0, 0, 2])
        self.assertEqual(prefixes.items.tolist(), [4, 3])
        self.assertEqual(prefixes.timestamps.tolist(), [3, 4])

    def test_select(self):
        log = _interactions([(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 1, 4)])
        sequences = build_sequences(log, Vocabulary(["a", "b", "c"]))
        selected = sequences.select(np.array([2, 0]))
        self.assertEqual(selected.user_ids.tolist(), ["u2", "u0"])
        self.assertEqual(selected.offsets.tolist(), [0, 1, 3])
        self.assertEqual(selected.items.tolist(), [3, 2, 3])
        self.assertEqual(selected.timestamps.tolist(), [4, 1, 2])

    @parameterized.parameters(
        ([], [], []),
        ([5], [0], []),
        ([5, 1, 9], [2, 0, 3], [5, 6, 9, 10, 11]),
    )
    def test_concatenated_ranges(self, starts, lengths, expected):
        ranges = concatenated_ranges(
            np.array(starts, np.int64), np.array(lengths, np.int64)
        )
        self.assertEqual(ranges.tolist(), expected)


if __name__ == "__main__":
    absltest.main()
