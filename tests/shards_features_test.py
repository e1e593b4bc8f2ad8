"""Features of events, requests, users and times, through shards."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized
from commands import run

from recsys import evaluate, prepare_shards
from recsys.config import TrainConfig, other_columns
from recsys.data import pipeline, shard_preparation, sources
from recsys.data.prepare import (
    build_data,
    open_shards,
    prepare_log,
    read_log,
    user_histories,
)
from recsys.data.shard_preparation import Options
from recsys.data.side_information import fit_side_encoder
from recsys.errors import InputError

FEATURES = {
    "event_features": "rating,zone,tags:multi",
    "time_features": "gap,hour,age",
    "context_features": "gap,weekday,zone",
    "user_features": "auto",
}
# Sixty users; the ratings, zones and tags of some events are unknown.
HEADER = "user,item,timestamp,rating,zone,tags"


def rows_of(seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(60):
        time = 1_000_000_000 + int(rng.integers(0, 10**7))
        for _ in range(int(rng.integers(1, 25))):
            time += int(rng.integers(0, 3) * rng.integers(0, 100_000))
            rating = rng.choice(["", "1", "2.5", "4"])
            # "01" and "1" are two zones, whatever else a shard has.
            zone = rng.choice(["01", "1", "x", ""], p=[0.4, 0.4, 0.01, 0.19])
            tags = rng.choice(["a|b", "b", "c|a", ""])
            item = rng.integers(0, 30)
            rows.append(f"u{user},i{item},{time},{rating},{zone},{tags}")
    return rows


def write_log(folder: pathlib.Path) -> str:
    text = "\n".join([HEADER, *rows_of()])
    (folder / "log.csv").write_text(text + "\n")
    users = [f"u{n},{20 + n % 30},{'abc'[n % 3]}" for n in range(0, 60, 2)]
    text = "\n".join(["user,age,job", *users])
    (folder / "users.csv").write_text(text + "\n")
    return str(folder / "log.csv")


def prepare(data: str, output: pathlib.Path, **fields) -> TrainConfig:
    """Prepares shards; returns a configuration that reads them."""
    features = {k: v for k, v in fields.items() if k.endswith("_features")}
    config = TrainConfig(data=data, **features)
    source = sources.Source(data, other_columns=other_columns(config))
    options = Options(**{"num_shards": 7, "num_queries": 0, **fields})
    shard_preparation.prepare_shards(source, output, options, 1)
    return dataclasses.replace(config, data=str(output))


def raw(sequences, name: str) -> dict[str, list]:
    """Returns the values of a column by user, as the log has them."""
    levels, codes = sequences.levels[name], sequences.columns[name]
    values = levels.take(pa.array(codes, mask=codes < 0)).to_pylist()
    bounds = zip(sequences.offsets[:-1], sequences.offsets[1:])
    return {
        user: values[begin:end]
        for user, (begin, end) in zip(sequences.user_ids, bounds)
    }


def batches(train, side, part=None, max_length=64):
    plan = pipeline.plan_epoch(
        train, max_length=max_length, positions_per_batch=320, seed=3, epoch=0
    )
    found = pipeline.train_dataset(train, plan, side=side, part=part)
    return list(found.as_numpy_iterator())


def rows_by_history(found) -> dict[tuple, dict]:
    """Returns the rows of batches without padding, by their history."""
    rows = {}
    for batch in found:
        for row, ids in enumerate(batch["history_ids"]):
            length = np.count_nonzero(ids)
            if length:
                rows[tuple(ids[:length])] = {
                    name: values[row][:length]
                    if values.ndim > 1 and not name.startswith("user")
                    else values[row]
                    for name, values in batch.items()
                    if name not in ("places", "num_rows")
                }
    return rows


class ShardsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )

    def in_memory(self, data):
        config = TrainConfig(data=data, **FEATURES)
        return prepare_log(read_log(config), config)

    def test_values_by_hand(self):
        log = self.folder / "log.csv"
        log.write_text(
            "user,item,timestamp,rating,zone\n"
            "ann,a,2001-09-09 01:46:40,5,01\nann,b,2001-09-09 01:46:41,,x\n"
            "ann,c,2001-09-09 01:46:42,2.5,\nann,a,2001-09-09 01:46:43,1,x\n"
            "bob,b,2001-09-09 01:46:40,4,1\nbob,c,2001-09-09 01:46:45,3,1\n"
            "bob,a,2001-09-09 01:46:50,3,7\n"
        )
        (self.folder / "users.csv").write_text(
            "user,zip,age\nbob,A123,40\ncid,1,1\n"
        )
        config = prepare(
            str(log),
            self.folder / "out",
            event_features="rating",
            context_features="zone",
            time_features="gap",
            user_features="zip:categorical",
            repeats="all",
        )
        data = open_shards(self.folder / "out")
        asked = data.split.test.sequences
        self.assertEqual(
            raw(asked, "rating"),
            {"ann": [5.0, None, 2.5, 1.0], "bob": [4.0, 3.0, 3.0]},
        )
        self.assertEqual(
            raw(asked, "zone"),
            {"ann": ["01", "x", "", "x"], "bob": ["1", "1", "7"]},
        )
        self.assertEqual(asked.timestamps_per_second, 1_000_000)
        self.assertEqual(asked.timestamps.min(), 10**15)
        users = dict(zip(asked.user_ids, asked.users.to_pylist()))
        self.assertEqual(users, {"ann": {"zip": None}, "bob": {"zip": "A123"}})
        # Training has nothing of what is held out.
        train = data.split.train
        self.assertEqual(
            raw(train.read_all(), "rating"), {"ann": [5.0, None], "bob": [4.0]}
        )
        self.assertEqual(
            raw(train.of_users(np.array(["bob"], object)), "zone"),
            {"bob": ["1"]},
        )
        # Those who recommend read whole histories.
        config = dataclasses.replace(config, repeats="all")
        found = [read() for read in user_histories(config, data.vocabulary)]
        ratings = [raw(each, "rating") for each in found]
        self.assertEqual(
            {user: values for each in ratings for user, values in each.items()},
            raw(asked, "rating"),
        )

    def test_one_shard_gives_the_batches_of_a_log_in_memory(self):
        data = write_log(self.folder)
        config = prepare(data, self.folder / "one", num_shards=1, **FEATURES)
        whole, one = self.in_memory(data), build_data(config)
        encoders = [
            fit_side_encoder(config, each.sample(0)) for each in (whole, one)
        ]
        texts = []
        for number, encoder in enumerate(encoders):
            encoder.save(self.folder / f"{number}.json")
            texts.append((self.folder / f"{number}.json").read_text())
        self.assertEqual(*texts)
        pairs = zip(
            batches(whole.split.train, encoders[0], max_length=8),
            batches(one.split.train, encoders[1], max_length=8),
            strict=True,
        )
        for expected, found in pairs:
            self.assertContainsSubset(
                {
                    *("history_features", "context_weights", "user_features"),
                    *("history_times", "request_times", "first_ids"),
                },
                found,
            )
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])

    @parameterized.parameters(None, 2, 3)
    def test_many_shards_give_the_same_rows(self, num_parts):
        """Also the parts of several processes, put together."""
        data = write_log(self.folder)
        config = prepare(data, self.folder / "out", num_shards=9, **FEATURES)
        whole = self.in_memory(data)
        side = fit_side_encoder(config, whole.split.train)
        train = dataclasses.replace(
            build_data(config).split.train, group_interactions=400
        )
        expected = rows_by_history(batches(whole.split.train, side))
        parts = [None]
        if num_parts:
            parts = [pipeline.Part(i, num_parts) for i in range(num_parts)]
        of_parts = [rows_by_history(batches(train, side, p)) for p in parts]
        # The two numberings of items are the same: that of first appearance.
        self.assertEqual(sum(map(len, of_parts)), len(expected))
        self.assertGreater(len(expected), 50)
        found = {k: row for each in of_parts for k, row in each.items()}
        self.assertEqual(found.keys(), expected.keys())
        for key, row in expected.items():
            for name, values in row.items():
                got = found[key][name]
                if name.endswith(("_features", "_weights")):
                    # A table of values is as wide as the group needs.
                    got, values = (
                        sorted(zip(*each))
                        for each in (
                            self.pairs(found[key], name),
                            self.pairs(row, name),
                        )
                    )
                    self.assertEqual(got, values)
                else:
                    np.testing.assert_array_equal(got, values, err_msg=name)

    @staticmethod
    def pairs(row, name):
        """Returns positions, values and weights that are not 0."""
        part = name.partition("_")[0]
        weights = row[f"{part}_weights"]
        places = np.nonzero(weights)
        values = row[f"{part}_features"][places]
        return places[0].tolist(), values.tolist(), weights[places].tolist()

    def test_shards_without_features_have_nothing_new(self):
        data = write_log(self.folder)
        prepare(data, self.folder / "out")
        for path in (self.folder / "out").rglob("0*.parquet"):
            self.assertEqual(
                pq.read_schema(path).names,
                ["user_id", "length", "items", "timestamps"],
            )
        text = (self.folder / "out" / "manifest.json").read_text()
        self.assertNoCommonElements(
            {*FEATURES, "timestamps_per_second"}, json.loads(text)
        )

    @parameterized.parameters(
        ("event_features", "rating", "rating,zone", "rating, event, .*zone"),
        ("context_features", None, "zone", "event.*Received: zone"),
        ("context_features", None, "gap", "event.*Received: gap"),
        ("time_features", None, "hour", "event.*Received: hour"),
        ("user_features", None, "auto", "none.*Received: auto"),
        ("user_features", "age", "age,job", "age, auto.*Received: job"),
    )
    def test_features_that_the_shards_lack(self, name, kept, asked, message):
        data, output = write_log(self.folder), self.folder / "out"
        config = prepare(data, output, **({name: kept} if kept else {}))
        config = dataclasses.replace(config, **{name: asked})
        with self.assertRaisesRegex(
            InputError, f"--{name} among .*prepared with .{message}$"
        ):
            build_data(config)

    def test_fewer_features_than_the_shards_have(self):
        config = prepare(
            write_log(self.folder), self.folder / "out", **FEATURES
        )
        fewer = TrainConfig(
            data=config.data, event_features="tags:multi", user_features="age"
        )
        train = build_data(fewer).split.train
        group = train.read_group(np.arange(7))
        self.assertEqual({*group.columns}, {"tags"})
        self.assertIsNone(group.timestamps)
        side = fit_side_encoder(fewer, train.read_all())
        self.assertEqual({*side.encoders}, {"history", "user"})
        self.assertEqual(side.column_names("user"), ["age"])

    def test_types_of_parts(self):
        """Those that go together do; others are an error that names both."""
        log = self.folder / "log"
        log.mkdir()
        for part, kind in (("a", pa.int32()), ("b", pa.float64())):
            table = {
                "user": [f"u{n % 9}" for n in range(90)],
                "item": [f"i{n % 13}" for n in range(90)],
                "timestamp": range(90),
                "price": pa.array([n % 4 for n in range(90)], kind),
            }
            pq.write_table(pa.table(table), log / f"{part}.parquet")
        fields = {"event_features": "price"}
        config = prepare(str(log), self.folder / "out", **fields)
        prices = raw(build_data(config).split.train.read_all(), "price")
        self.assertEqual(
            {*itertools.chain(*prices.values())}, {0.0, 1.0, 2.0, 3.0}
        )
        table["price"] = ["much"] * 90
        pq.write_table(pa.table(table), log / "b.parquet")
        with self.assertRaisesRegex(InputError, "one type.*price.*int32"):
            prepare(str(log), self.folder / "other", **fields)


class CommandTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        self.data = write_log(self.folder)
        self.flags = [f"--{name}={text}" for name, text in FEATURES.items()]

    def prepare(self, output, *flags):
        return run(
            prepare_shards,
            f"--data={self.data}",
            f"--output={self.folder / output}",
            "--num_shards=3",
            "--num_queries=20",
            *flags,
        )

    @unittest.skipUnless(
        importlib.util.find_spec("apache_beam"), "apache-beam is missing"
    )
    def test_beam_writes_the_same(self):
        code, _, error = self.prepare("local", "--num_workers=1", *self.flags)
        self.assertEqual(code, 0, error)
        code, _, error = self.prepare(
            "beam", "--runner=DirectRunner", *self.flags
        )
        self.assertEqual(code, 0, error)
        local = self.folder / "local"
        for path in local.rglob("*.*"):
            other = self.folder / "beam" / path.relative_to(local)
            self.assertEqual(path.read_bytes(), other.read_bytes(), path)

    @parameterized.parameters(
        ("--event_features=colour", "expected a column 'colour'"),
        ("--event_features=event", "--event_features=event needs the kinds"),
        ("--context_features=rating", "--context_features must be known"),
        ("--user_features=shoes", "user feature must be a column"),
        ("--users_file=/none.csv", "--users_file must go with"),
        ("--time_features=second", "--time_features must be among"),
    )
    def test_errors_are_one_line(self, flag, message):
        code, _, error = self.prepare("out", "--num_workers=1", flag)
        self.assertEqual(code, 2, error)
        self.assertIn(message, error)
        self.assertEqual(error.count("\n"), 1)

    def test_no_ratings_and_no_users(self):
        (self.folder / "users.csv").unlink()
        code, _, error = self.prepare(
            "out", "--num_workers=1", "--user_features=auto"
        )
        self.assertEqual(code, 2)
        self.assertIn("needs a users file", error)
        self.data = "synthetic:users=50,items=70,interactions=500"
        code, _, error = self.prepare(
            "out", "--num_workers=1", "--event_features=rating"
        )
        self.assertEqual(code, 2)
        self.assertIn("expected a rating column", error)

    def test_train_and_evaluate_in_processes_of_their_own(self):
        users = self.folder / "people.csv"
        (self.folder / "users.csv").rename(users)
        code, output, error = self.prepare(
            "out", "--num_workers=1", f"--users_file={users}", *self.flags
        )
        self.assertEqual(code, 0, error)
        # The command that it prints, with a small model.
        self.assertIn("--event_features=rating,zone,tags:multi", output)
        self.assertIn("--user_features=auto", output)
        workdir = f"--workdir={self.folder / 'run'}"
        command = ["recsys.train", f"--data={self.folder / 'out'}", workdir]
        command += ["--embedding_dim=8", "--num_epochs=1", *self.flags]
        done = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("20 test queries", done.stdout)
        self.assertIn("event (rating, zone, tags, gap, hour)", done.stderr)
        code, output, error = run(evaluate, workdir, "--audit=true")
        self.assertEqual(code, 0, error)
        self.assertIn("passed", output)


if __name__ == "__main__":
    absltest.main()
