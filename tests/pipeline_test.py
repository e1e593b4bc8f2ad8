from __future__ import annotations

import collections

import numpy as np
from absl.testing import absltest, parameterized

from recsys.data import pipeline
from recsys.data.sequences import Sequences

LENGTHS = (0, 1, 2, 3, 9, 17, 40, 41, 8, 5, 25)


def _sequences(lengths: tuple[int, ...] = LENGTHS) -> Sequences:
    """Every interaction is an item of its own, counted up from 2."""
    total = sum(lengths)
    return Sequences(
        user_ids=np.array([f"u{i}" for i in range(len(lengths))], object),
        offsets=np.append(0, np.cumsum(lengths)).astype(np.int64),
        items=np.arange(2, total + 2, dtype=np.int32),
        timestamps=np.arange(total, dtype=np.int64),
    )


def _batches(
    sequences: Sequences,
    *,
    seed: int = 0,
    epoch: int = 0,
    first_step: int = 0,
    max_length: int = 8,
    positions: int = 24,
) -> list[dict[str, np.ndarray]]:
    plan = pipeline.plan_epoch(
        sequences,
        max_length=max_length,
        positions_per_batch=positions,
        seed=seed,
        epoch=epoch,
    )
    train_ds = pipeline.train_dataset(sequences, plan, first_step=first_step)
    return list(train_ds.as_numpy_iterator())


def _user_of(sequences: Sequences, items: np.ndarray) -> np.ndarray:
    return np.searchsorted(sequences.offsets, items - 2, "right") - 1


class TrainDatasetTest(parameterized.TestCase):
    @parameterized.product(max_length=(1, 3, 8, 50), epoch=(0, 1, 2))
    def test_every_target_exactly_once(self, max_length, epoch):
        sequences = _sequences()
        seen = collections.Counter()
        for batch in _batches(
            sequences, epoch=epoch, max_length=max_length, positions=60
        ):
            seen.update(batch["target_ids"].ravel().tolist())
        del seen[0]
        # Everything but the first item of each user.
        first = sequences.items[sequences.offsets[:-1][sequences.lengths > 0]]
        expected = set(sequences.items.tolist()) - set(first.tolist())
        self.assertEqual(set(seen), expected)
        self.assertEqual(set(seen.values()), {1})

    def test_a_target_follows_its_position(self):
        for batch in _batches(_sequences()):
            learned = batch["target_ids"] > 0
            # Items count up, so the next one is one more.
            np.testing.assert_array_equal(
                batch["target_ids"][learned], batch["history_ids"][learned] + 1
            )

    def test_windows_are_contiguous_and_of_one_user(self):
        sequences = _sequences()
        for batch in _batches(sequences):
            for history, targets in zip(
                batch["history_ids"], batch["target_ids"]
            ):
                real = history[history > 0]
                # Padding is on the right alone.
                np.testing.assert_array_equal(history[: len(real)], real)
                if not len(real):
                    self.assertFalse(targets.any())
                    continue
                np.testing.assert_array_equal(np.diff(real), 1)
                users = _user_of(sequences, np.append(real, targets.max()))
                self.assertLen(set(users.tolist()), 1)

    def test_context_is_not_a_target_again(self):
        # One user of 20 with windows of 8: every row but the first holds 8
        # items although the cuts leave the last one fewer targets.
        sequences = _sequences((20,))
        context = 0
        for epoch in range(5):
            for batch in _batches(sequences, epoch=epoch):
                for history, targets in zip(
                    batch["history_ids"], batch["target_ids"]
                ):
                    if 2 in history or not history.any():
                        continue
                    self.assertTrue(history.all())
                    context += np.count_nonzero(targets == 0)
        self.assertGreater(context, 0)

    def test_equal_seed_and_epoch_give_equal_batches(self):
        first, again = (_batches(_sequences(), seed=5, epoch=2) for _ in "ab")
        self.assertEqual(len(first), len(again))
        for one, other in zip(first, again):
            np.testing.assert_array_equal(
                one["history_ids"], other["history_ids"]
            )
            np.testing.assert_array_equal(
                one["target_ids"], other["target_ids"]
            )

    @parameterized.parameters({"seed": 6, "epoch": 2}, {"seed": 5, "epoch": 3})
    def test_epochs_and_seeds_differ(self, **other):
        first = _batches(_sequences(), seed=5, epoch=2)
        second = _batches(_sequences(), **other)
        self.assertNotEqual(
            [batch["history_ids"].tolist() for batch in first],
            [batch["history_ids"].tolist() for batch in second],
        )

    @parameterized.parameters(1, 4, 1000)
    def test_resuming_at_a_step_gives_the_same_batches(self, step):
        whole = _batches(_sequences(), epoch=1)
        rest = _batches(_sequences(), epoch=1, first_step=step)
        self.assertLen(rest, max(0, len(whole) - step))
        for one, other in zip(whole[step:], rest):
            np.testing.assert_array_equal(
                one["history_ids"], other["history_ids"]
            )
            np.testing.assert_array_equal(
                one["target_ids"], other["target_ids"]
            )

    def test_few_shapes_each_with_a_constant_number_of_rows(self):
        shapes = {b["history_ids"].shape for b in _batches(_sequences())}
        # 24 positions are 24, 12, 6 and 3 rows of 1, 2, 4 and 8. There are
        # fewer rows of the short lengths than that, and more of length 8: the
        # last of its batches is filled up with padding.
        self.assertLen({length for _, length in shapes}, len(shapes))
        self.assertIn((3, 8), shapes)
        for rows, length in shapes:
            self.assertLessEqual(rows * length, 24)

    def test_a_batch_has_no_more_rows_than_the_epoch(self):
        [batch] = _batches(_sequences((4, 3)), positions=10**12, max_length=1)
        # Five targets, each in a row of its own.
        self.assertEqual(batch["history_ids"].shape, (5, 1))

    def test_the_last_partial_batch_is_included(self):
        # Five rows of one target each, four to a batch.
        batches = _batches(_sequences((2,) * 5), max_length=1, positions=4)
        counts = [np.count_nonzero(b["target_ids"]) for b in batches]
        self.assertCountEqual(counts, [4, 1])
        self.assertEqual({b["target_ids"].shape for b in batches}, {(4, 1)})

    def test_autotune_is_off(self):
        sequences = _sequences()
        plan = pipeline.plan_epoch(
            sequences, max_length=8, positions_per_batch=32, seed=0, epoch=0
        )

        options = pipeline.train_dataset(sequences, plan).options()

        self.assertIs(options.autotune.enabled, False)

    @parameterized.parameters(
        # Rows of 2, 3 and 2 positions in batches of two rows of 8; all of the
        # fourth row, which fills up the last batch, is padding.
        ((3, 4, 3), 64, 16, 1 - 7 / 32),
        # Context before a window's targets is not padding.
        ((17, 40), 8, 16, None),
        ((), 8, 8, 1.0),
    )
    def test_padding_share(self, lengths, max_length, positions, expected):
        sequences = _sequences(lengths)
        plan = pipeline.plan_epoch(
            sequences,
            max_length=max_length,
            positions_per_batch=positions,
            seed=0,
            epoch=0,
        )
        if expected is not None:
            self.assertAlmostEqual(plan.padding_share, expected)
        train_ds = pipeline.train_dataset(sequences, plan)
        ids = [batch["history_ids"] for batch in train_ds.as_numpy_iterator()]
        if ids:
            real = sum(np.count_nonzero(each) for each in ids)
            total = sum(each.size for each in ids)
            self.assertAlmostEqual(plan.padding_share, 1 - real / total)

    def test_a_row_longer_than_a_batch_is_a_batch(self):
        batches = _batches(_sequences((9,)), max_length=8, positions=3)
        self.assertLen(batches, 1)
        self.assertEqual(batches[0]["history_ids"].shape, (1, 8))

    @parameterized.parameters(
        (200, (25, 50, 75, 100, 125, 150, 175, 200)),
        (8, (1, 2, 3, 4, 5, 6, 7, 8)),
        (2, (1, 2)),
        (1, (1,)),
        (10, (2, 3, 4, 5, 7, 8, 9, 10)),
    )
    def test_bucket_lengths(self, max_length, expected):
        self.assertEqual(pipeline.bucket_lengths(max_length), expected)


class HistoryBatchesTest(parameterized.TestCase):
    @parameterized.parameters((1, 4), (3, 7), (8, 24), (100, 1000))
    def test_covers_every_query_once_with_its_newest_items(
        self, max_length, positions
    ):
        lengths = np.array([0, 5, 1, 40, 8, 9, 0, 3])
        offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
        items = np.arange(2, offsets[-1] + 2, dtype=np.int32)
        seen = []
        for rows, history_ids, _ in pipeline.history_batches(
            items,
            offsets,
            max_length=max_length,
            positions_per_batch=positions,
        ):
            self.assertEqual(history_ids.dtype, np.int32)
            self.assertLessEqual(
                history_ids.size, max(positions, history_ids.shape[1])
            )
            for row, history in zip(rows, history_ids):
                expected = items[offsets[row] : offsets[row + 1]][-max_length:]
                padding = np.zeros(len(history) - len(expected))
                np.testing.assert_array_equal(
                    history, np.append(expected, padding)
                )
            seen.extend(rows.tolist())
        self.assertCountEqual(seen, range(len(lengths)))

    def test_no_queries(self):
        batches = pipeline.history_batches(
            np.zeros(0, np.int32),
            np.zeros(1, np.int64),
            max_length=5,
            positions_per_batch=10,
        )
        self.assertEmpty(list(batches))


if __name__ == "__main__":
    absltest.main()
