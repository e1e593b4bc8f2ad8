"""Tests that the audit passes honest splits and catches leaky ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from absl.testing import absltest, parameterized

from recsys.config import SPLITS, TrainConfig
from recsys.data import splits
from recsys.data.prepare import make_split
from recsys.data.sequences import Sequences
from recsys.data.side_information import SideEncoder, fit_side_encoder
from recsys.data.splits import Queries, Split
from recsys.evaluation import LeakError, audit


def _sequences(num_users: int = 30, repeats: bool = False) -> Sequences:
    rng = np.random.default_rng(num_users)
    lengths = rng.integers(1, 12, num_users)
    items = [
        rng.integers(2, 5, length)
        if repeats
        else rng.permutation(40)[:length] + 2
        for length in lengths
    ]
    times = [np.sort(rng.integers(0, 50, length)) for length in lengths]
    return Sequences(
        user_ids=np.array([f"u{row}" for row in range(num_users)], object),
        offsets=np.append(0, np.cumsum(lengths)),
        items=np.concatenate(items).astype(np.int32),
        timestamps=np.concatenate(times).astype(np.int64),
    )


def _changed(queries: Queries, **changes: np.ndarray) -> Queries:
    return dataclasses.replace(queries, **changes)


def _longer(queries: Queries, by: int) -> Queries:
    """The same targets, moved by some places."""
    return _changed(
        queries,
        history_ends=queries.history_ends + by,
        target_ends=queries.target_ends + by,
    )


def _split(protocol: str, sequences: Sequences) -> Split:
    return make_split(sequences, TrainConfig(split=protocol))


class AuditTest(parameterized.TestCase):
    @parameterized.product(protocol=SPLITS, repeats=(False, True))
    def test_honest_splits_pass(self, protocol, repeats):
        split = _split(protocol, _sequences(repeats=repeats))
        report = audit(split)
        self.assertTrue(report.passed, str(report))
        report.raise_for_leaks()
        for check in report.checks:
            self.assertGreater(check.num_checked, 0, str(check))
        self.assertIn(f"split {protocol}: passed", str(report))

    def test_the_report_says_how_much_was_checked(self):
        sequences = _sequences()
        split = splits.leave_last_out(sequences)
        lines = str(audit(split)).splitlines()
        num_tests = np.count_nonzero(sequences.lengths >= 2)
        num_training = np.maximum(sequences.lengths - 2, 1)[
            sequences.lengths >= 2
        ].sum()
        self.assertIn(
            "  ok    test: history and targets belong to the query's own user "
            f"({num_tests} queries)",
            lines,
        )
        self.assertIn(
            "  ok    test: training has nothing of a user from the first "
            f"target on ({num_training} training interactions)",
            lines,
        )

    @parameterized.parameters("leave_last_out", "validation_only", "temporal")
    def test_training_on_everything_is_caught(self, protocol):
        sequences = _sequences()
        split = _split(protocol, sequences)
        report = audit(dataclasses.replace(split, train=sequences))
        self.assertFalse(report.passed)
        found = {
            check.claim: check.num_violations
            for check in report.checks
            if check.num_violations
        }
        part = "validation" if split.test is None else "test"
        claim = f"{part}: training has nothing of a user from the first target"
        if protocol == "leave_last_out":
            self.assertEqual(found[f"{claim} on"], len(split.test))
        self.assertIn(f"{claim} on", found)
        with self.assertRaisesRegex(LeakError, "LEAKS FOUND"):
            report.raise_for_leaks()

    def test_one_target_hidden_in_training_is_caught(self):
        sequences = _sequences()
        split = splits.leave_last_out(sequences)
        # The user's training sequence keeps its length: a target replaces
        # the first item.
        row = int(np.argmax(split.train.lengths))
        items = split.train.items.copy()
        times = split.train.timestamps.copy()
        target = sequences.offsets[row + 1] - 1
        items[split.train.offsets[row]] = sequences.items[target]
        times[split.train.offsets[row]] = sequences.timestamps[target]
        train = dataclasses.replace(split.train, items=items, timestamps=times)
        report = audit(dataclasses.replace(split, train=train))
        found = [check for check in report.checks if check.num_violations]
        # It is a test target, and later than the validation target.
        self.assertLen(found, 2)
        for check in found:
            self.assertEqual(check.num_violations, 1)
            self.assertEqual(check.example, f"'u{row}'")

    def test_another_order_of_training_is_not_a_leak(self):
        split = splits.leave_last_out(_sequences(repeats=True))
        train = split.train
        users = np.random.default_rng(0).permutation(train.num_users)
        slices = [
            np.arange(*train.offsets[user : user + 2])[::-1] for user in users
        ]
        shuffled = Sequences(
            user_ids=train.user_ids[users],
            offsets=np.append(0, np.cumsum([len(each) for each in slices])),
            items=train.items[np.concatenate(slices)],
            timestamps=train.timestamps[np.concatenate(slices)],
        )
        report = audit(dataclasses.replace(split, train=shuffled))
        self.assertTrue(report.passed, str(report))

    def test_an_interaction_trained_on_twice_is_caught(self):
        sequences = Sequences(
            np.array(["a"], object),
            np.array([0, 4]),
            np.array([2, 3, 4, 5], np.int32),
            np.arange(4),
        )
        split = splits.leave_last_out(sequences)
        twice = Sequences(
            sequences.user_ids,
            np.array([0, 3]),
            np.array([2, 2, 3], np.int32),
            np.array([0, 0, 1]),
        )
        report = audit(dataclasses.replace(split, train=twice))
        self.assertEqual(
            [check.num_violations for check in report.checks if check.example],
            [1, 1],
        )

    def test_training_at_the_time_of_a_query_is_caught(self):
        split = _split("temporal", _sequences())
        earliest = split.validation.sequences.timestamps[
            split.validation.history_ends
        ].min()
        times = split.train.timestamps.copy()
        times[7] = earliest
        train = dataclasses.replace(
            split.train,
            timestamps=times,
            user_ids=np.array(
                [f"other{row}" for row in range(split.train.num_users)], object
            ),
        )
        report = audit(dataclasses.replace(split, train=train))
        found = [check for check in report.checks if check.num_violations]
        self.assertLen(found, 1)
        self.assertIn(f"earliest query, at time {earliest}", found[0].claim)
        self.assertEqual(found[0].num_violations, 1)

    def test_a_held_out_user_in_training_is_caught(self):
        sequences = _sequences()
        split = splits.held_out_users(sequences)
        user = int(split.test.users[0])
        keep = np.zeros(sequences.num_users, np.int64)
        keep[user] = 1
        report = audit(
            dataclasses.replace(split, train=sequences.prefixes(keep))
        )
        found = [check for check in report.checks if check.num_violations]
        self.assertLen(found, 1)
        self.assertEqual(
            found[0].claim, "test: no user of a query is in training"
        )
        self.assertEqual(found[0].example, f"'u{user}'")

    def test_a_held_out_item_in_training_is_caught(self):
        split = splits.held_out_items(_sequences())
        self.assertTrue(audit(split).passed)
        target = split.test.targets(np.array([0]))[0][0]
        items = split.train.items.copy()
        items[0] = target
        train = dataclasses.replace(split.train, items=items)
        report = audit(dataclasses.replace(split, train=train))
        self.assertIn(
            "test: no user's interactions with the targets are in training",
            [check.claim for check in report.checks if check.num_violations],
        )

    def test_users_in_validation_and_test_are_caught(self):
        split = splits.held_out_users(_sequences())
        report = audit(dataclasses.replace(split, validation=split.test))
        claims = [
            check.claim for check in report.checks if check.num_violations
        ]
        self.assertIn("validation and test have no user in common", claims)
        self.assertIn("validation does not use what test asks for", claims)

    def test_validation_that_asks_for_the_test_target_is_caught(self):
        split = splits.leave_last_out(_sequences())
        report = audit(
            dataclasses.replace(split, validation=_longer(split.validation, 1))
        )
        found = [check for check in report.checks if check.num_violations]
        self.assertLen(found, 1)
        self.assertEqual(
            found[0].claim,
            "validation does not use what test asks for",
        )
        self.assertEqual(found[0].num_violations, len(split.validation))

    def test_validation_at_the_time_of_test_is_caught(self):
        split = _split("temporal", _sequences())
        report = audit(
            dataclasses.replace(
                split, validation=split.test, test=split.validation
            )
        )
        claims = [
            check.claim for check in report.checks if check.num_violations
        ]
        self.assertTrue(any("strictly before" in claim for claim in claims))

    def test_a_history_that_runs_into_another_user_is_caught(self):
        split = splits.leave_last_out(_sequences())
        starts = split.test.history_starts.copy()
        starts[3] -= 1
        ends = split.test.target_ends.copy()
        ends[-1] += 1
        test = _changed(split.test, history_starts=starts, target_ends=ends)
        report = audit(dataclasses.replace(split, test=test))
        check = report.checks[1]
        self.assertEqual(check.num_violations, 2)
        name = split.test.sequences.user_ids[split.test.users[3]]
        self.assertEqual(check.example, repr(name))

    def test_a_history_that_is_later_than_its_target_is_caught(self):
        sequences = _sequences()
        row = int(np.argmax(sequences.lengths))
        times = sequences.timestamps.copy()
        times[sequences.offsets[row]] = 1000
        split = splits.leave_last_out(
            dataclasses.replace(sequences, timestamps=times)
        )
        report = audit(split)
        found = [check for check in report.checks if check.num_violations]
        self.assertEqual(
            [check.claim for check in found],
            [
                f"{part}: histories are in order of time, targets last"
                for part in ("validation", "test")
            ],
        )
        self.assertEqual(found[0].example, f"'u{row}'")

    def test_a_split_of_another_name_is_checked_by_user(self):
        split = splits.leave_last_out(_sequences())
        own = Split("my_own", split.train, split.validation, None)
        self.assertTrue(audit(own).passed)
        leaky = dataclasses.replace(own, train=_sequences())
        self.assertFalse(audit(leaky).passed)


def _known(num_users: int = 30) -> Sequences:
    """Sequences with ratings, devices, and users."""
    sequences = _sequences(num_users)
    rng = np.random.default_rng(1)
    num = sequences.num_interactions
    return dataclasses.replace(
        sequences,
        timestamps=sequences.timestamps * 86_400 + 10**9,
        columns={
            "rating": rng.integers(-1, 4, num).astype(np.int32),
            "device": rng.integers(0, 3, num).astype(np.int32),
        },
        levels={
            "rating": pa.array([1.0, 2.5, 4.0, 5.0]),
            "device": pa.array(["phone", "desk", "tv"]),
        },
        users=pa.table({"job": [f"job{row % 4}" for row in range(num_users)]}),
    )


def _encoder(sequences: Sequences, **features: str) -> SideEncoder:
    return fit_side_encoder(TrainConfig(**features), sequences)


class FeaturesTest(parameterized.TestCase):
    def findings(self, side, sequences, protocol="leave_last_out"):
        """Returns violations by claim, of the features of test queries."""
        split = _split(protocol, sequences)
        part = "validation" if split.test is None else "test"
        checks = audit(split, side).checks
        return {
            check.claim.removeprefix(f"{part}: "): check.num_violations
            for check in checks
            if check.claim.startswith(f"{part}: features")
        }

    @parameterized.product(
        protocol=SPLITS,
        context=(
            (None, "device, rating, time"),
            ("device", "rating, time"),
            ("gap,hour", "device, rating"),
        ),
    )
    def test_honest_features_pass(self, protocol, context):
        named, hidden = context
        sequences = _known()
        side = _encoder(
            sequences,
            event_features="rating,device",
            time_features="gap,hour,age",
            user_features="auto",
            context_features=named,
        )
        self.assertEqual(
            self.findings(side, sequences, protocol),
            {
                f"features do not reveal the target's {hidden}": 0,
                "features of histories and users reveal nothing from the "
                "target on": 0,
            },
        )

    def test_one_query_of_each_user_is_checked(self):
        sequences = _known()
        side = _encoder(sequences, event_features="rating")
        split = splits.leave_last_out(sequences)
        lines = str(audit(split, side)).splitlines()
        num = np.count_nonzero(sequences.lengths >= 2)
        self.assertIn(
            "  ok    test: features do not reveal the target's device, rating, "
            f"time ({num} queries)",
            lines,
        )

    def test_a_rating_as_context_is_caught(self):
        sequences = _known()
        rating = _encoder(sequences, event_features="rating")
        side = SideEncoder(
            {"context": rating.encoders["history"]}, False, per_second=1
        )
        found = self.findings(side, sequences)
        num = np.count_nonzero(sequences.lengths >= 2)
        self.assertEqual(
            found,
            {
                "features do not reveal the target's device, rating, time": num,
                "features of histories and users reveal nothing from the "
                "target on": 0,
            },
        )
        with self.assertRaisesRegex(LeakError, "target's device, rating"):
            audit(splits.leave_last_out(sequences), side).raise_for_leaks()

    def test_a_history_with_the_rating_of_the_next_event_is_caught(self):
        class Early(SideEncoder):
            def code(self, data):
                coded = super().code(data)["history"]
                codes = np.roll(coded.codes, -1, axis=0)
                return {"history": dataclasses.replace(coded, codes=codes)}

        sequences = _known()
        honest = _encoder(sequences, event_features="rating")
        found = self.findings(Early(honest.encoders, False, 1), sequences)
        num = np.count_nonzero(sequences.lengths >= 2)
        self.assertEqual([*found.values()], [num, num])

    def test_a_time_of_the_request_that_nobody_named_is_caught(self):
        class Late(SideEncoder):
            reads_request_time = True

        sequences = _known()
        honest = _encoder(sequences, time_features="age")
        found = self.findings(Late(honest.encoders, True, 1), sequences)
        num = np.count_nonzero(sequences.lengths >= 2)
        self.assertEqual([*found.values()], [num, 0])


if __name__ == "__main__":
    absltest.main()
