from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
import tempfile
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized

from recsys.config import TrainConfig
from recsys.data import (
    input_files,
    pipeline,
    shard_preparation,
    shards,
    sources,
)
from recsys.data.prepare import (
    PreparedData,
    build_data,
    open_shards,
    prepare_log,
)
from recsys.data.sequences import Sequences
from recsys.data.shard_preparation import Options
from recsys.errors import InputError
from recsys.evaluation import audit

LOG = "synthetic:users=300,items=200,interactions=9000,seed=4"


def prepare_folder(
    output: pathlib.Path,
    data: str = LOG,
    num_workers: int | None = 1,
    **options,
) -> PreparedData:
    """Prepares shards on this machine and opens them."""
    given = {"num_shards": 4, "num_queries": 0, **options}
    shard_preparation.prepare_shards(
        sources.Source(data), output, Options(**given), num_workers
    )
    return open_shards(output)


def prepare_in_memory(data: str = LOG, **fields) -> PreparedData:
    return prepare_log(sources.read(data), TrainConfig(data=data, **fields))


def _folder(test: absltest.TestCase) -> pathlib.Path:
    return pathlib.Path(test.enterContext(tempfile.TemporaryDirectory()))


def by_user(sequences: Sequences, vocabulary) -> dict[str, list]:
    """Returns each user's raw ids and times."""
    ids = vocabulary.decode(sequences.items)
    return {
        user: list(zip(ids[begin:end], sequences.timestamps[begin:end]))
        for user, begin, end in zip(
            sequences.user_ids, sequences.offsets[:-1], sequences.offsets[1:]
        )
    }


def asked(queries, vocabulary) -> dict[str, tuple]:
    """Returns each asked user's history and targets, as raw ids."""
    rows = np.arange(len(queries))
    users = queries.sequences.user_ids[queries.users]
    slices = [queries.histories(rows), queries.targets(rows)]
    return {
        user: tuple(
            vocabulary.decode(items[offsets[row] : offsets[row + 1]]).tolist()
            for items, offsets in slices
        )
        for row, user in enumerate(users)
    }


def assert_same_data(
    test, sharded: PreparedData, whole: PreparedData, same_order: bool = True
) -> None:
    """Checks that shards equal data prepared in memory."""
    tables = [sharded.vocabulary.items, whole.vocabulary.items]
    if not same_order:
        tables = [table.sort_by("item_id") for table in tables]
    test.assertTrue(tables[0].equals(tables[1]))
    for name in ("num_interactions", "num_single", "num_dropped", "name"):
        test.assertEqual(getattr(sharded, name), getattr(whole, name))
    train = sharded.split.train
    every = train.read_all()
    test.assertEqual(
        by_user(every, sharded.vocabulary),
        by_user(whole.split.train, whole.vocabulary),
    )
    for part in ("validation", "test"):
        queries = getattr(sharded.split, part)
        expected = getattr(whole.split, part)
        test.assertEqual(queries is None, expected is None)
        if queries is not None:
            test.assertEqual(
                asked(queries, sharded.vocabulary),
                asked(expected, whole.vocabulary),
            )


class PreparationTest(parameterized.TestCase):
    @parameterized.parameters(
        ("leave_last_out", {}),
        ("validation_only", {"num_shards": 1}),
        ("leave_last_out", {"repeats": "last", "num_shards": 7}),
        ("leave_last_out", {"repeats": "all", "num_shards": 50}),
    )
    def test_equals_preparation_in_memory(self, split, options):
        whole = prepare_in_memory(
            split=split, repeats=options.get("repeats", "first")
        )
        folder = _folder(self)
        sharded = prepare_folder(folder, split=split, **options)
        # Where a first repetition is dropped, an item may come in later.
        same_order = options.get("repeats") != "last"
        assert_same_data(self, sharded, whole, same_order)

    def test_titles_and_ratings_of_files(self):
        folder = _folder(self)
        log = folder / "log"
        log.mkdir()
        # Two parts; items in another order than by id, a user in both, equal
        # times, ids with blanks, a rating that is too low.
        (log / "a.csv").write_text(
            "user,item,timestamp,rating\n"
            "u1,b,5,4\nu2,a,5,5\nu1,a,5,1\nu1, a,5,5\n"
        )
        (log / "b.csv").write_text(
            "user,item,timestamp,rating\n"
            "u2,c,1,5\nu2,b,1,4\nu2,d,0,5\nu1,d,9,5\nu3,d,2,4\nu3,e,2,1\n"
        )
        (log / "items.csv").write_text("item,title\na,Alpha\nd,Delta\n")
        sharded = prepare_folder(
            folder / "out", str(log), min_rating=4.0, num_shards=3
        )
        whole = prepare_in_memory(str(log), min_rating=4.0)
        assert_same_data(self, sharded, whole)
        self.assertEqual(
            sharded.vocabulary.titles.tolist(), [None, "Alpha", None, "Delta"]
        )

    def test_parquet_by_row_groups(self):
        folder = _folder(self)
        log = sources.read(LOG).interactions
        table = pa.table(
            {
                "user_id": log.user_ids[log.users],
                "item_id": log.item_ids[log.items],
                "timestamp": log.timestamps,
            }
        )
        pq.write_table(table, folder / "log.parquet", row_group_size=1_000)
        data = str(folder / "log.parquet")
        units, _ = sources.Source(data).units()
        self.assertLen(units, 9)
        sharded = prepare_folder(folder / "out", data)
        whole = prepare_in_memory(data)
        assert_same_data(self, sharded, whole)

    def test_the_bundled_log_in_two_processes(self):
        folder = _folder(self)
        sharded = prepare_folder(folder, "movielens-small", num_workers=2)
        whole = prepare_in_memory("movielens-small")
        assert_same_data(self, sharded, whole)

    def test_as_many_workers_as_usable_cores(self):
        folder = _folder(self)
        sizes = []

        def no_pool(count, *_, **__):
            sizes.append(count)
            raise MemoryError

        self.enter_context(
            mock.patch("concurrent.futures.ProcessPoolExecutor", no_pool)
        )
        for cores in ({0, 2, 5}, {4}):
            with mock.patch("os.sched_getaffinity", return_value=cores):
                if len(cores) > 1:
                    with self.assertRaises(MemoryError):
                        prepare_folder(folder / "three", num_workers=None)
                else:  # This process alone.
                    prepare_folder(folder / "one", num_workers=None)
        self.assertEqual(sizes, [3])

    def test_number_of_queried_users(self):
        folder = _folder(self)
        some = prepare_folder(folder / "some", num_queries=50)
        every = prepare_folder(folder / "all")
        self.assertLen(some.split.test, 50)
        every_asked = asked(every.split.test, every.vocabulary)
        some_asked = asked(some.split.test, some.vocabulary)
        for user, query in some_asked.items():
            self.assertEqual(query, every_asked[user])
        self.assertTrue(audit(some.split).passed)

    def test_a_damaged_row_is_named(self):
        folder = _folder(self)
        path = folder / "log.csv"
        path.write_text("user,item,timestamp\na,x,1\na,,2\n")
        with self.assertRaisesRegex(InputError, "line 3.*item"):
            prepare_folder(folder / "out", str(path))

    @parameterized.parameters("2020-01-01 10:00:00", "1577836800.5")
    def test_dates_and_numbers_do_not_mix(self, time):
        log = _folder(self)
        (log / "a.csv").write_text(
            f"user,item,timestamp\na,x,{time}\na,y,{time}\n"
        )
        (log / "b.csv").write_text(
            "user,item,timestamp\na,z,1577836800\na,x,1577836801\n"
        )
        with self.assertRaisesRegex(
            InputError, "b.csv: .*timestamps.*a.csv.*Received: whole numbers"
        ):
            prepare_folder(log / "out", str(log))

    def test_dates_and_fractions_of_a_second_mix(self):
        log = _folder(self)
        (log / "a.csv").write_text(
            "user,item,timestamp\na,x,2020-01-01\na,y,2020-01-03\n"
        )
        # The second of January.
        (log / "b.csv").write_text(
            "user,item,timestamp\na,z,1577923200.5\na,w,1577923201.5\n"
        )
        data = prepare_folder(log / "out", str(log))
        self.assertEqual(
            asked(data.split.test, data.vocabulary),
            {"a": (["x", "z", "w"], ["y"])},
        )

    def test_parts_must_have_the_same_columns(self):
        log = _folder(self)
        (log / "a.csv").write_text("user,item,timestamp\na,x,1\n")
        (log / "b.csv").write_text("user,movie,timestamp\na,y,2\n")
        with self.assertRaisesRegex(
            InputError, "b.csv: expected the columns of .*a.csv.*movie"
        ):
            prepare_folder(log / "out", str(log))

    def test_items_of_many_blocks_are_merged(self):
        folder = _folder(self)
        path = folder / "log.csv"
        rows = [f"{row % 99},{row % 5},{row}" for row in range(2_000)]
        path.write_text("\n".join(["user,item,timestamp", *rows, "0,9,9\n"]))
        # 50 rows a block or fewer, so 40 blocks of 5 items or more.
        self.enterContext(mock.patch.object(input_files, "BLOCK_BYTES", 512))
        self.enterContext(
            mock.patch.object(shard_preparation, "_ITEM_ROWS", 10)
        )
        kept = []

        class Spy(shard_preparation.FoundItems):
            def merged(self):
                kept.append(sum(map(len, self._tables)))
                return super().merged()

        self.enterContext(
            mock.patch.object(shard_preparation, "FoundItems", Spy)
        )
        data = prepare_folder(folder / "out", str(path))
        self.assertEqual(data.vocabulary.item_ids.tolist(), list("012349"))
        self.assertGreater(len(kept), 5)
        self.assertLess(max(kept), 30)

    def test_min_rating_above_all_ratings(self):
        folder = _folder(self)
        with self.assertRaisesRegex(InputError, "two items"):
            prepare_folder(folder, "movielens-small", min_rating=6.0)


class ShardedTrainingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = _folder(self)
        self.train = dataclasses.replace(
            prepare_folder(folder, num_shards=7).split.train,
            group_interactions=2_000,
        )

    def _plan(self, train, epoch=0):
        return pipeline.plan_epoch(
            train, max_length=16, positions_per_batch=320, seed=3, epoch=epoch
        )

    def _batches(self, train, epoch=0, first_step=0):
        plan = self._plan(train, epoch)
        dataset = pipeline.train_dataset(train, plan, first_step=first_step)
        return list(dataset.as_numpy_iterator())

    def test_every_target_once_in_an_epoch(self):
        whole = self.train.read_all()
        pairs = collections.Counter()
        for batch in self._batches(self.train):
            learned = batch["target_ids"] > 0
            pairs.update(
                zip(batch["history_ids"][learned], batch["target_ids"][learned])
            )
        expected = collections.Counter()
        for begin, end in zip(whole.offsets[:-1], whole.offsets[1:]):
            items = whole.items[begin:end]
            expected.update(itertools.pairwise(items))
        self.assertEqual(pairs, expected)

    def test_length_of_the_plan(self):
        plan = self._plan(self.train)
        self.assertGreater(len(plan.num_batches), 2)
        batches = self._batches(self.train)
        self.assertLen(batches, len(plan))
        real = sum(np.count_nonzero(b["history_ids"]) for b in batches)
        total = sum(b["history_ids"].size for b in batches)
        self.assertAlmostEqual(plan.padding_share, 1 - real / total)

    def test_resuming_anywhere_gives_the_same_batches(self):
        every = self._batches(self.train, epoch=1)
        border = self._plan(self.train, 1).num_batches[0]
        for step in (1, border - 1, border, border + 1, len(every) - 1):
            rest = self._batches(self.train, epoch=1, first_step=step)
            self.assertLen(rest, len(every) - step)
            for one, other in zip(every[step:], rest):
                for name in one:
                    np.testing.assert_array_equal(one[name], other[name])

    def test_groups_differ_between_epochs(self):
        orders = [
            np.concatenate(self._plan(self.train, epoch).groups).tolist()
            for epoch in range(3)
        ]
        for order in orders:
            self.assertCountEqual(order, range(7))
        self.assertNotEqual(orders[0], orders[1])
        self.assertNotEqual(orders[1], orders[2])

    def test_skipped_groups_are_not_read(self):
        plan = self._plan(self.train)
        read = []

        class Spy(shards.ShardedSequences):
            def read_group(self, group, part=None):
                read.append(group.tolist())
                return super().read_group(group, part)

        fields = dataclasses.fields(self.train)
        spy = Spy(**{f.name: getattr(self.train, f.name) for f in fields})
        last = len(plan) - 1
        list(pipeline.train_dataset(spy, plan, first_step=last))
        self.assertEqual(read, [plan.groups[-1].tolist()])

    def test_one_shard_gives_the_batches_of_sequences_in_memory(self):
        folder = _folder(self)
        one = prepare_folder(folder, num_shards=1).split.train
        whole = prepare_in_memory().split.train
        batches = [self._batches(train, epoch=2) for train in (one, whole)]
        self.assertEqual(*map(len, batches))
        for sharded, in_memory in zip(*batches):
            for name in sharded:
                np.testing.assert_array_equal(sharded[name], in_memory[name])


class BuildDataTest(parameterized.TestCase):
    @parameterized.parameters(
        {"repeats": "all"},
        {"split": "validation_only"},
        {"min_rating": 3.0},
        {"min_item_count": 5},
        {"user_column": "user"},
    )
    def test_fields_that_contradict_the_shards(self, **fields):
        folder = _folder(self)
        prepare_folder(folder)
        build_data(TrainConfig(data=str(folder)))
        with self.assertRaisesRegex(InputError, next(iter(fields))):
            build_data(TrainConfig(data=str(folder), **fields))

    def test_missing_and_damaged_files_are_named(self):
        folder = _folder(self)
        prepare_folder(folder)
        config = TrainConfig(data=str(folder))
        shard = folder / "queries" / "00002.parquet"
        shard.write_bytes(b"PAR1")
        with self.assertRaisesRegex(InputError, "00002.parquet"):
            build_data(config)
        shard.unlink()
        with self.assertRaisesRegex(InputError, "queries/00002.parquet"):
            build_data(config)
        (folder / "manifest.json").write_text("{}")
        with self.assertRaisesRegex(InputError, "manifest.json: expected"):
            build_data(config)


if __name__ == "__main__":
    absltest.main()
