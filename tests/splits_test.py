from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from absl.testing import absltest, parameterized

from recsys.config import SPLITS, TrainConfig
from recsys.data import splits
from recsys.data.prepare import make_split
from recsys.data.sequences import Sequences
from recsys.data.side_information import fit_side_encoder, history_side
from recsys.errors import InputError


def _sequences(*users: list[tuple[int, int]]) -> Sequences:
    """One list of (item, timestamp) per user."""
    lengths = [len(user) for user in users]
    rows = [row for user in users for row in user]
    return Sequences(
        user_ids=np.array([f"u{i}" for i in range(len(users))], object),
        offsets=np.append(0, np.cumsum(lengths)).astype(np.int64),
        items=np.array([item for item, _ in rows], np.int32),
        timestamps=np.array([time for _, time in rows], np.int64),
    )


def _of_lengths(*lengths: int) -> Sequences:
    """Users whose items count up from 2, at times that count up."""
    users, item = [], 2
    for length in lengths:
        users.append([(item + i, item + i) for i in range(length)])
        item += length
    return _sequences(*users)


def _queries(queries: splits.Queries) -> list[tuple[int, list, list]]:
    """Each query as (user, history, relevant items)."""
    rows = np.arange(len(queries))
    items, offsets = queries.histories(rows)
    targets, target_offsets = queries.targets(rows)
    return [
        (
            int(queries.users[i]),
            items[offsets[i] : offsets[i + 1]].tolist(),
            targets[target_offsets[i] : target_offsets[i + 1]].tolist(),
        )
        for i in rows
    ]


def _temporal(
    sequences: Sequences, begin=0.8, end=0.9, queries_per_user=0
) -> splits.Split:
    """The temporal split by shares of the interactions."""
    return splits.temporal(
        sequences,
        splits.time_quantile(sequences, begin),
        splits.time_quantile(sequences, end),
        queries_per_user,
    )


def _users(sequences: Sequences) -> list[list[int]]:
    ends = sequences.offsets[1:-1]
    return [part.tolist() for part in np.split(sequences.items, ends)]


class LeaveLastOutTest(parameterized.TestCase):
    def test_users_of_every_length(self):
        # Items: u0 none, u1 2, u2 3-4, u3 5-7, u4 8-11.
        split = splits.leave_last_out(_of_lengths(0, 1, 2, 3, 4))
        self.assertEqual(split.protocol, "leave_last_out")
        self.assertEqual(_users(split.train), [[], [2], [3], [5], [8, 9]])
        self.assertEqual(
            _queries(split.validation),
            [(3, [5], [6]), (4, [8, 9], [10])],
        )
        self.assertEqual(
            _queries(split.test),
            [(2, [3], [4]), (3, [5, 6], [7]), (4, [8, 9, 10], [11])],
        )

    def test_training_has_no_target(self):
        sequences = _of_lengths(7, 3, 12, 2)
        split = splits.leave_last_out(sequences)
        trained = set(split.train.items.tolist())
        for queries in (split.validation, split.test):
            for _, _, targets in _queries(queries):
                self.assertTrue(trained.isdisjoint(targets))

    def test_needs_three_interactions_of_one_user(self):
        with self.assertRaisesRegex(
            InputError, "must have at least 3. Received: at most 2"
        ):
            splits.leave_last_out(_of_lengths(1, 2))

    def test_equal_timestamps_keep_their_order(self):
        sequences = _sequences([(9, 5), (3, 5), (7, 5)])
        split = splits.leave_last_out(sequences)
        self.assertEqual(_queries(split.test), [(0, [9, 3], [7])])


class ValidationOnlyTest(parameterized.TestCase):
    def test_users_of_every_length(self):
        split = splits.validation_only(_of_lengths(1, 2, 3))
        self.assertEqual(split.protocol, "validation_only")
        self.assertEqual(_users(split.train), [[2], [3], [5, 6]])
        self.assertEqual(
            _queries(split.validation), [(1, [3], [4]), (2, [5, 6], [7])]
        )
        self.assertIsNone(split.test)

    def test_needs_two_interactions_of_one_user(self):
        with self.assertRaisesRegex(
            InputError, "must have at least 2. Received: at most 1"
        ):
            splits.validation_only(_of_lengths(1, 1))


class TemporalTest(parameterized.TestCase):
    def test_cutoffs_by_hand(self):
        # Ten interactions at times 0 to 9: eight tenths of them lie below
        # time 8, where validation begins, and nine tenths below time 9.
        sequences = _sequences(
            [(2, 0), (3, 2), (4, 4), (5, 8), (6, 9)],
            [(7, 1), (8, 3), (9, 5), (10, 6), (11, 7)],
        )
        split = _temporal(sequences)
        self.assertEqual(split.protocol, "temporal")
        self.assertEqual(_users(split.train), [[2, 3, 4], [7, 8, 9, 10, 11]])
        self.assertEqual(_queries(split.validation), [(0, [2, 3, 4], [5])])
        self.assertEqual(_queries(split.test), [(0, [2, 3, 4, 5], [6])])

    def test_training_ends_strictly_before_the_cutoff(self):
        # The 0.8 quantile of ten times is row 8, time 5, which rows 5 to 8
        # share: all of them validate.
        sequences = _sequences(
            [(2, 0), (3, 1), (4, 2), (5, 3), (6, 4), (7, 5), (8, 5)],
            [(9, 0), (10, 5), (11, 6)],
        )
        split = _temporal(sequences)
        self.assertEqual(_users(split.train), [[2, 3, 4, 5, 6], [9]])
        self.assertEqual(
            _queries(split.validation),
            [
                (0, [2, 3, 4, 5, 6], [7]),
                (0, [2, 3, 4, 5, 6, 7], [8]),
                (1, [9], [10]),
            ],
        )
        self.assertEqual(_queries(split.test), [(1, [9, 10], [11])])

    @parameterized.parameters(
        (0.4, 0.7, 4, 7), (0.7, 0.8, 7, 8), (0.5, 0.75, 5, 7)
    )
    def test_shares(self, begin, end, first_validation, first_test):
        sequences = _sequences([(item, item - 2) for item in range(2, 12)])
        split = _temporal(sequences, begin, end)
        items = sequences.items.tolist()
        self.assertEqual(_users(split.train), [items[:first_validation]])
        self.assertEqual(
            [targets for _, _, [targets] in _queries(split.validation)],
            items[first_validation:first_test],
        )
        self.assertEqual(
            [targets for _, _, [targets] in _queries(split.test)],
            items[first_test:],
        )

    def test_a_first_interaction_is_not_a_query(self):
        rows = [(item, item) for item in range(2, 10)]
        sequences = _sequences([*rows, (10, 10)], [(3, 11)], [(4, 12)])
        split = _temporal(sequences, 0.6, 0.8)
        for queries in (split.validation, split.test):
            for _, history, _ in _queries(queries):
                self.assertNotEmpty(history)

    def test_queries_per_user_keeps_the_earliest(self):
        sequences = _sequences([(item, item) for item in range(2, 22)])
        split = _temporal(sequences, 0.6, 0.8, queries_per_user=2)
        self.assertEqual(
            [targets for _, _, targets in _queries(split.validation)],
            [[14], [15]],
        )
        self.assertEqual(
            [targets for _, _, targets in _queries(split.test)], [[18], [19]]
        )

    def test_cutoffs_by_time(self):
        sequences = _sequences(
            [(2, 10), (3, 20), (4, 30), (5, 40)], [(6, 15), (7, 35)]
        )
        split = splits.temporal(sequences, 20, 35)
        self.assertEqual(_users(split.train), [[2], [6]])
        self.assertEqual(
            _queries(split.validation), [(0, [2], [3]), (0, [2, 3], [4])]
        )
        self.assertEqual(
            _queries(split.test), [(0, [2, 3, 4], [5]), (1, [6], [7])]
        )

    @parameterized.parameters(
        (5, 5, "must be before `test_from`. Received: the times 5 and 5"),
        (6, 5, "must be before `test_from`. Received: the times 6 and 5"),
        (2, 5, "before its cutoff to train on. Received: none before time 2"),
        (11, 12, "after its cutoffs by users with a history. Received: none"),
        (4, 12, "after its cutoffs by users with a history. Received: none"),
    )
    def test_bad_cutoffs(self, begin, end, message):
        with self.assertRaisesRegex(InputError, message):
            splits.temporal(_of_lengths(10), begin, end)

    def test_all_at_one_time(self):
        sequences = _sequences([(item, 5) for item in range(2, 12)])
        with self.assertRaisesRegex(InputError, "Received: the times 5 and 5"):
            _temporal(sequences)

    def test_no_user_has_a_history_and_a_target(self):
        sequences = _sequences(
            *([(item, item)] for item in range(2, 12)),
        )
        with self.assertRaisesRegex(
            InputError, "by users with a history. Received: none"
        ):
            _temporal(sequences)

    def test_no_interactions(self):
        with self.assertRaisesRegex(
            InputError, "must have interactions. Received: none"
        ):
            splits.time_quantile(_of_lengths(0), 0.5)


class HeldOutUsersTest(parameterized.TestCase):
    def test_parts_share_no_user(self):
        sequences = _of_lengths(*[5] * 20, 1)
        split = splits.held_out_users(sequences, seed=3)
        self.assertEqual(split.protocol, "held_out_users")
        trained = set(np.flatnonzero(split.train.lengths).tolist())
        validation = {user for user, _, _ in _queries(split.validation)}
        test = {user for user, _, _ in _queries(split.test)}
        # A tenth of the twenty users with two or more interactions each.
        self.assertLen(validation, 2)
        self.assertLen(test, 2)
        self.assertLen(trained, 17)
        self.assertEqual(trained | validation | test, set(range(21)))

    @parameterized.parameters((2, 1), (3, 2), (5, 4), (10, 8), (9, 7))
    def test_the_history_is_the_first_part(self, length, given):
        sequences = _of_lengths(*[length] * 3)
        split = splits.held_out_users(sequences, fold_in=0.8)
        for user, history, targets in _queries(split.test):
            items = _users(sequences)[user]
            self.assertEqual(history, items[:given])
            self.assertEqual(targets, items[given:])

    def test_drawn_by_the_seed(self):
        sequences = _of_lengths(*[3] * 50)
        first, again, other = (
            splits.held_out_users(sequences, seed=seed).test.users.tolist()
            for seed in (1, 1, 2)
        )
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

    @parameterized.parameters(
        {"validation_fraction": 0.0},
        {"test_fraction": -0.1},
        {"fold_in": 1.0},
        {"fold_in": 0.0},
    )
    def test_bad_fractions(self, **fractions):
        with self.assertRaisesRegex(
            InputError, "must be positive and `fold_in` between 0 and 1. Rec"
        ):
            splits.held_out_users(_of_lengths(3, 3, 3), **fractions)

    def test_too_few_users(self):
        with self.assertRaisesRegex(InputError, "Received: 2 such users"):
            splits.held_out_users(_of_lengths(3, 3, 1, 0))


class HeldOutItemsTest(parameterized.TestCase):
    def test_by_hand(self):
        sequences = _sequences(
            [(2, 0), (3, 1), (4, 2), (5, 3), (2, 4)],
            [(3, 0), (4, 1)],
            [(5, 0), (2, 1), (5, 2), (4, 3), (3, 4)],
        )
        order = np.random.default_rng(5).permutation([2, 3, 4, 5])
        self.assertEqual(order[:2].tolist(), [5, 3])
        split = splits.held_out_items(sequences, seed=5, fraction=0.5)
        self.assertEqual(split.protocol, "held_out_items")
        # The last 3 or 5 that has a 2 or a 4 before it.
        self.assertEqual(
            _queries(split.test),
            [(0, [2, 4], [5]), (2, [2, 4], [3])],
        )
        # The last 2 or 4 before that, with another before it.
        self.assertEqual(
            _queries(split.validation), [(0, [2], [4]), (2, [2], [4])]
        )
        self.assertEqual(_users(split.train), [[2], [], [2]])
        self.assertEqual(split.train.timestamps.tolist(), [0, 1])

    def test_users_without_held_out_items_validate_with_their_last(self):
        sequences = _sequences(
            [(2, 0), (3, 1), (2, 2)], [(2, 0), (4, 1), (2, 2)]
        )
        order = np.random.default_rng(0).permutation([2, 3, 4])
        self.assertEqual(order[0], 4)
        split = splits.held_out_items(sequences, seed=0, fraction=0.4)
        self.assertEqual(_queries(split.test), [(1, [2], [4])])
        self.assertEqual(_queries(split.validation), [(0, [2, 3], [2])])
        self.assertEqual(_users(split.train), [[2, 3], []])

    def test_drawn_by_the_seed(self):
        rng = np.random.default_rng(0)
        sequences = _sequences(
            *(
                [(i, t) for t, i in enumerate(rng.permutation(30) + 2)]
                for _ in range(20)
            )
        )
        unseen = []
        for seed in (0, 0, 1):
            split = splits.held_out_items(sequences, seed=seed)
            targets, _ = split.test.targets(np.arange(len(split.test)))
            self.assertEmpty(set(targets) & set(split.train.items))
            for queries in (split.validation, split.test):
                histories, _ = queries.histories(np.arange(len(queries)))
                self.assertContainsSubset(histories, split.train.items)
            unseen.append(set(range(2, 32)) - set(split.train.items.tolist()))
        self.assertEqual(unseen[0], unseen[1])
        self.assertNotEqual(unseen[0], unseen[2])
        self.assertLen(unseen[0], 6)

    @parameterized.parameters(0.0, 1.0)
    def test_bad_fraction(self, fraction):
        with self.assertRaisesRegex(InputError, f"`fraction` .*: {fraction}$"):
            splits.held_out_items(_of_lengths(4, 4), fraction=fraction)

    def test_too_few(self):
        with self.assertRaisesRegex(InputError, "`held_out_items` must find"):
            splits.held_out_items(_of_lengths(1, 1, 1))


class QueriesTest(parameterized.TestCase):
    def test_select(self):
        test = splits.leave_last_out(_of_lengths(2, 3, 4)).test
        self.assertEqual(
            _queries(test.select(np.array([2, 0]))),
            [_queries(test)[2], _queries(test)[0]],
        )


class FeaturesTest(parameterized.TestCase):
    """What is known stays with its interaction or user in every split."""

    @parameterized.product(protocol=SPLITS, with_dislikes=(False, True))
    def test_columns_times_and_users_stay_aligned(
        self, protocol, with_dislikes
    ):
        rng = np.random.default_rng(3)
        lengths = rng.integers(1, 12, 25)
        num = int(lengths.sum())
        offsets = np.append(0, np.cumsum(lengths))
        times = [np.sort(rng.integers(0, 500, length)) for length in lengths]
        # Every interaction has an item of its own, which tells the rest.
        codes = rng.permutation(num).astype(np.int32)
        user_ids = np.array([f"u{row}" for row in range(25)], object)
        sequences = Sequences(
            user_ids=user_ids,
            offsets=offsets,
            items=np.arange(2, num + 2, dtype=np.int32),
            timestamps=np.concatenate(times),
            columns={"rating": codes},
            levels={"rating": pa.array(np.arange(num) / 2)},
            timestamps_per_second=1_000,
            users=pa.table({"job": [f"job of {user}" for user in user_ids]}),
        )
        if with_dislikes:
            dislikes = dataclasses.replace(
                sequences,
                columns={"place": np.zeros(num, np.int64)},
                levels={},
                users=None,
            )
            sequences = dataclasses.replace(sequences, dislikes=dislikes)
        split = make_split(sequences, TrainConfig(split=protocol))
        owner = dict(
            zip(sequences.items, np.repeat(user_ids, lengths), strict=True)
        )

        def check(found: Sequences) -> None:
            whole = found.items - 2
            np.testing.assert_array_equal(
                found.timestamps, sequences.timestamps[whole]
            )
            values = found.levels["rating"].take(
                pa.array(found.columns["rating"])
            )
            np.testing.assert_array_equal(values, codes[whole] / 2)
            users = np.repeat(found.user_ids, found.lengths)
            self.assertEqual([owner[i] for i in found.items], list(users))
            self.assertEqual(
                found.users["job"].to_pylist(),
                [f"job of {user}" for user in found.user_ids],
            )
            self.assertEqual(found.timestamps_per_second, 1_000)

        encoder = fit_side_encoder(
            TrainConfig(event_features="rating"), sequences
        )
        check(split.train)
        rows = rng.permutation(split.train.num_users)[:7]
        check(split.train.select(rows))
        check(split.train.keep(rng.random(split.train.num_interactions) < 0.5))
        for queries in filter(None, (split.validation, split.test)):
            check(queries.sequences)
            queries = queries.select(rng.permutation(len(queries))[:9])
            side = history_side(
                encoder,
                queries.sequences,
                queries.history_starts,
                queries.history_ends,
                queries.users,
                are_followed=True,
            )
            everything = np.arange(len(queries))
            items = queries.sequences.items
            expected, _ = queries.histories(everything)
            np.testing.assert_array_equal(items[side.events], expected)
            targets, starts = queries.targets(everything)
            np.testing.assert_array_equal(
                items[side.requests], targets[starts[:-1]]
            )
            self.assertEqual(
                [owner[item] for item in targets[starts[:-1]]],
                list(queries.sequences.user_ids[side.users]),
            )


if __name__ == "__main__":
    absltest.main()
