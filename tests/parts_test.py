from __future__ import annotations

import collections
import dataclasses
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from recsys.data import pipeline, shard_preparation, shards, sources
from recsys.data.prepare import open_shards
from recsys.data.sequences import Sequences, TrainingSequences
from recsys.data.shard_preparation import Options
from recsys.data.shards import ShardedSequences


def _sequences() -> Sequences:
    """Thirty users; every interaction is an item of its own."""
    lengths = np.random.default_rng(0).integers(0, 20, 30)
    total = int(lengths.sum())
    return Sequences(
        user_ids=np.array([f"u{i}" for i in range(30)], object),
        offsets=np.append(0, np.cumsum(lengths)).astype(np.int64),
        items=np.arange(2, total + 2, dtype=np.int32),
        timestamps=np.arange(total, dtype=np.int64),
    )


def _batches(
    sequences: TrainingSequences,
    part: pipeline.Part | None = None,
    first_step: int = 0,
) -> list[dict[str, np.ndarray]]:
    plan = pipeline.plan_epoch(
        sequences, max_length=8, positions_per_batch=40, seed=0, epoch=1
    )
    train_ds = pipeline.train_dataset(
        sequences, plan, first_step=first_step, part=part
    )
    return list(train_ds.as_numpy_iterator())


def _put_together(of_parts: list[dict[str, np.ndarray]]) -> dict:
    """Returns the whole batch."""
    num_rows = of_parts[0]["num_rows"]
    length = of_parts[0]["history_ids"].shape[1]
    whole = {}
    for name in ("history_ids", "target_ids"):
        whole[name] = np.zeros((num_rows, length), np.int32)
        for part in of_parts:
            whole[name][part["places"]] = part[name]
    return whole


class PartsTest(parameterized.TestCase):
    def _shards(
        self, num_shards: int, group_interactions: int
    ) -> ShardedSequences:
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        log = "synthetic:users=80,items=70,interactions=1500,seed=4"
        options = Options(num_shards=num_shards, num_queries=0)
        shard_preparation.prepare_shards(
            sources.Source(log), folder, options, 1
        )
        sequences = open_shards(folder).split.train
        return dataclasses.replace(
            sequences, group_interactions=group_interactions
        )

    def _assert_parts_make_the_whole(self, sequences, count, first_step=0):
        whole = _batches(sequences, first_step=first_step)
        of_parts = [
            _batches(sequences, pipeline.Part(index, count), first_step)
            for index in range(count)
        ]
        self.assertEqual({len(whole)}, {len(part) for part in of_parts})
        for batch, *own in zip(whole, *of_parts):
            places = np.concatenate([part["places"] for part in own])
            self.assertCountEqual(places, range(own[0]["num_rows"]))
            together = _put_together(own)
            for name in batch:
                np.testing.assert_array_equal(together[name], batch[name])

    @parameterized.parameters((1, 0), (2, 0), (3, 3), (7, 0))
    def test_parts_make_the_whole(self, count, first_step):
        self._assert_parts_make_the_whole(_sequences(), count, first_step)

    @parameterized.product(count=(2, 3), num_shards=(1, 9))
    def test_parts_of_shards_make_the_whole(self, count, num_shards):
        self._assert_parts_make_the_whole(self._shards(num_shards, 500), count)

    def test_slices_of_sequences_in_memory_are_equal(self):
        for batch in _batches(_sequences(), pipeline.Part(1, 2)):
            num_rows = int(batch["num_rows"])
            np.testing.assert_array_equal(
                batch["places"], np.arange(num_rows // 2, num_rows)
            )

    def test_each_part_reads_its_own_shards(self):
        sequences = self._shards(9, 2000)
        read = [collections.Counter() for _ in range(2)]
        read_file = shards._read
        for index, counter in enumerate(read):

            def counted(path, columns, counter=counter):
                if "items" in columns:
                    counter[int(path.stem)] += 1
                return read_file(path, columns)

            with mock.patch.object(shards, "_read", counted):
                _batches(sequences, pipeline.Part(index, 2))
        self.assertEqual(read[0] + read[1], collections.Counter(range(9)))
        self.assertTrue(read[0] and read[1])


if __name__ == "__main__":
    absltest.main()
