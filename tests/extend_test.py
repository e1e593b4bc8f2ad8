"""Growing catalogs: merged logs, carried-over rows and moments."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import tempfile
from unittest import mock

import numpy as np
import pyarrow as pa
import tensorflow as tf
from absl.testing import absltest, parameterized
from commands import run

import recsys
from recsys import evaluate, extend, files, train
from recsys.config import SOURCE_FIELDS, TrainConfig
from recsys.data import sources
from recsys.data.events import EventKinds, EventRules, label
from recsys.data.features import ItemEncoder
from recsys.data.interactions import Interactions
from recsys.data.prepare import build_data
from recsys.data.sequences import Sequences, build_sequences
from recsys.data.sources import Log
from recsys.data.splits import leave_last_out, validation_only
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.training import build, initial_table
from recsys.training.build import LaterSchedule
from recsys.training.growth import (
    check_not_trained_on,
    grow_data,
    merge_logs,
    write_log,
)
from recsys.workdir import Workdir, checkpoint_paths


def objects(*values: str) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def make_log(rows, items=None, per_second=1, ratings=None) -> Log:
    """Returns a log of rows such as "ann x 7"."""
    users, names, times = zip(*(row.split() for row in rows))
    user_ids = list(dict.fromkeys(users))
    item_ids = list(dict.fromkeys(names))
    return Log(
        "log",
        Interactions(
            objects(*user_ids),
            objects(*item_ids),
            np.array([user_ids.index(u) for u in users], np.int32),
            np.array([item_ids.index(i) for i in names], np.int32),
            np.array(times, np.int64),
            ratings,
            per_second,
        ),
        items,
    )


def rows_of(log: Log) -> list[str]:
    columns = log.interactions
    return [
        f"{columns.user_ids[u]} {columns.item_ids[i]} {t}"
        for u, i, t in zip(columns.users, columns.items, columns.timestamps)
    ]


class MergingTest(parameterized.TestCase):
    def test_rows_users_and_items_in_order(self):
        old = ["ann x 1", "bob y 2"]
        new = ["cid z 3", "ann y 4", "bob x 5"]
        merged = merge_logs(make_log(old), make_log(new))
        self.assertEqual(rows_of(merged), old + new)
        self.assertEqual(
            list(merged.interactions.user_ids), "ann bob cid".split()
        )
        self.assertEqual(list(merged.interactions.item_ids), "x y z".split())
        self.assertIsNone(merged.items)

    def test_ratings_and_items(self):
        old = make_log(
            ["ann x 1"],
            pa.table({"item_id": ["x"], "title": ["X"]}),
            ratings=np.array([4], np.float32),
        )
        new = make_log(
            ["ann y 2"],
            pa.table({"item_id": ["y", "x"], "year": [1999, 1]}),
        )
        merged = merge_logs(old, new)
        np.testing.assert_array_equal(
            merged.interactions.ratings, np.array([4, np.nan], np.float32)
        )
        self.assertEqual(
            merged.items.to_pylist(),
            [
                {"item_id": "x", "title": "X", "year": None},
                {"item_id": "y", "title": None, "year": 1999},
            ],
        )

    def test_columns_that_one_log_lacks_and_notes(self):
        old = make_log(["ann x 1", "bob y 2"])
        events = pa.array(["view", "buy"]).dictionary_encode()
        with_events = dataclasses.replace(
            old.interactions, columns=pa.table({"event": events}), num_empty=2
        )
        old = dataclasses.replace(
            old, interactions=with_events, notes=("both", "old")
        )
        new = make_log(["ann y 3"])
        new = Log(
            "new",
            dataclasses.replace(new.interactions, num_empty=1),
            notes=("both", "new"),
        )
        for first, second, expected in (
            (old, new, ["view", "buy", None]),
            (new, old, [None, "view", "buy"]),
        ):
            merged = merge_logs(first, second)
            columns = merged.interactions.columns
            self.assertEqual(columns.column_names, ["event"])
            self.assertEqual(columns["event"].to_pylist(), expected)
            self.assertEqual(merged.interactions.num_empty, 3)
            said = ["both", "old", "new", "new: 1 row without 'event'"]
            self.assertCountEqual(merged.notes, said)
            with tempfile.TemporaryDirectory() as folder:
                write_log(merged, pathlib.Path(folder))
                again = sources.read(folder).interactions
            found = label(again, EventRules()).found
            self.assertEqual(found, {"view": 1, "buy": 1, "(blank)": 1})
        self.assertIsNone(merge_logs(new, new).interactions.columns)

    def test_without_times_the_new_rows_follow_the_old_ones(self):
        old = make_log(["ann x 0", "bob y 1"], per_second=0)
        new = make_log(["cid z 0", "ann y 1"], per_second=0)
        merged = merge_logs(old, new)
        self.assertEqual(
            rows_of(merged), ["ann x 0", "bob y 1", "cid z 2", "ann y 3"]
        )
        with tempfile.TemporaryDirectory() as folder:
            write_log(merged, pathlib.Path(folder))
            again = sources.read(folder)
        self.assertEqual(rows_of(again), rows_of(merged))
        # And once more.
        self.assertEqual(
            rows_of(merge_logs(again, new))[-2:], ["cid z 4", "ann y 5"]
        )

    @parameterized.parameters(1, 1_000_000)
    def test_written_logs_are_read_back(self, per_second):
        items = pa.table({"item_id": ["x"], "title": ["X"]})
        ratings = np.array([4, 0.5], np.float32)
        log = make_log(["ann x 1", "7 y 2"], items, per_second, ratings)
        with tempfile.TemporaryDirectory() as folder:
            write_log(log, pathlib.Path(folder))
            again = sources.read(folder)
        self.assertEqual(rows_of(again), rows_of(log))
        self.assertEqual(again.interactions.timestamps_per_second, per_second)
        np.testing.assert_array_equal(again.interactions.ratings, ratings)
        self.assertEqual(again.items["title"].to_pylist(), ["X"])

    def test_times_of_two_kinds(self):
        old = make_log(["ann x 1"])
        for per_second, received in ((10**6, "dates or micro"), (0, "none")):
            with self.assertRaisesRegex(
                InputError, f", numbers. Received: {received}"
            ):
                merge_logs(old, make_log(["ann x 1"], per_second=per_second))

    @parameterized.parameters((["ann c 9"], True), (["ann c 3"], False))
    def test_queries_for_trained_interactions(self, later, fits):
        log = make_log(["ann a 1", "ann b 2", "ann d 5", *later])
        vocabulary = Vocabulary(log.interactions.item_ids)
        queries = leave_last_out(
            build_sequences(log.interactions, vocabulary)
        ).test
        trained = Sequences(
            objects("ann"),
            np.array([0, 3]),
            np.array([2, 3, 4], np.int32),
            np.array([1, 2, 5]),
        )
        check = lambda: check_not_trained_on(  # noqa: E731
            queries, vocabulary.item_ids, trained, objects("a", "b", "d")
        )
        if fits:
            check()
        else:
            with self.assertRaisesRegex(InputError, "Received: 1 interaction"):
                check()

    def test_a_view_at_the_time_of_the_purchase_that_is_asked_for(self):
        kinds = EventKinds(
            ("view", "buy"), np.ones(2, np.float32), np.array([False, True])
        )
        sequences = Sequences(
            objects("ann"),
            np.array([0, 3]),
            np.array([2, 3, 3], np.int32),
            np.array([1, 5, 5]),
            columns={"event": np.array([1, 0, 1], np.int32)},
            kinds=kinds,
        )
        split = validation_only(sequences)
        ids = objects("a", "b")
        check_not_trained_on(split.validation, ids, split.train, ids)
        with self.assertRaisesRegex(InputError, "Received: 1 interaction"):
            check_not_trained_on(split.validation, ids, sequences, ids)


class NewRowsTest(absltest.TestCase):
    def test_near_neighbors_and_near_rare_items(self):
        # Items 2 to 4 are old, 5 to 7 new; 7 occurs nowhere. Items 2 and 3
        # are the rarest, once each; 4 occurs twice.
        table = np.array(
            [[9, 9], [9, 9], [1, 0], [3, 0], [0, 6], [0, 0], [0, 0], [0, 0]],
            np.float32,
        )
        is_new = np.arange(8) >= 5
        sequences = Sequences(
            objects("ann", "bob"),
            np.array([0, 3, 6]),
            np.array([2, 5, 4, 6, 3, 4], np.int32),
            np.arange(6),
        )
        with mock.patch.object(initial_table, "_NOISE", 0):
            rows = initial_table.neighbor_rows(table, is_new, sequences, seed=0)
        np.testing.assert_array_equal(rows[:5], table[:5])
        # Old items that occur once have rows of length 2 on average, the mean
        # of the rarest is (2, 0), and 1 / (1 + 1) of a row comes from it.
        for row, mean in ((5, [0.5, 3]), (6, [1.5, 3])):
            expected = 2 * np.array(mean) / np.hypot(*mean) / 2 + [1, 0]
            np.testing.assert_allclose(rows[row], expected, rtol=1e-6)
        np.testing.assert_allclose(rows[7], [2, 0], rtol=1e-6)
        rows = initial_table.neighbor_rows(table, is_new, sequences, seed=0)
        self.assertGreater(np.abs(rows[7] - [2, 0]).min(), 0)
        np.testing.assert_array_equal(rows[:5], table[:5])


class CarryTest(absltest.TestCase):
    def test_by_hand(self):
        from recsys.training.extension import carry

        old = [tf.Variable([[1.0], [2.0], [3.0]]), tf.Variable([7.0, 8.0])]
        new = [tf.Variable(-tf.ones([5, 1])), tf.Variable([0.0, 0.0])]
        carry(old, new, np.array([0, 1, 3]), 5)
        self.assertEqual(new[0].numpy().ravel().tolist(), [1, 2, -1, 3, -1])
        self.assertEqual(new[1].numpy().tolist(), [7, 8])

    def test_another_model(self):
        from recsys.training.extension import carry

        with self.assertRaises(ValueError):
            carry(
                [tf.Variable(tf.ones([3, 2]))],
                [tf.Variable(tf.ones([5, 4]))],
                np.array([0, 1, 3]),
                5,
            )


class ScheduleTest(absltest.TestCase):
    def test_begins_later(self):
        import keras

        schedule = LaterSchedule(
            keras.optimizers.schedules.CosineDecay(0.0, 10, 0.0, "c", 1.0, 4),
            first_step=100,
        )
        again = LaterSchedule.from_config(schedule.get_config())
        for step, expected in ((100, 0.0), (102, 0.5), (104, 1.0), (109, 0.5)):
            self.assertAlmostEqual(float(again(step)), expected, places=6)


def write_csv(path: pathlib.Path, num_items: int, begin: int) -> None:
    """Writes ten steps of 30 users around a circle of items."""
    rows = ["user,item,timestamp"]
    rows += [
        f"u{user},i{(user + begin + step) % num_items},{begin + step}"
        for user in range(30)
        for step in range(10)
    ]
    path.write_text("\n".join(rows) + "\n")


def write_items(path: pathlib.Path, num_items: int) -> None:
    rows = [f"i{i},{'odd' if i % 2 else 'even'}" for i in range(num_items)]
    path.write_text("\n".join(["item,genres", *rows]) + "\n")


def table_and_moments(workdir: pathlib.Path) -> list[np.ndarray]:
    """Returns the checkpoint's variables with the item table's shape."""
    path = str(checkpoint_paths(workdir / "checkpoints")[-1] / "variables")
    values = [
        tf.train.load_variable(path, name)
        for name, shape in tf.train.list_variables(path)
        if len(shape) == 2 and shape[1] == 8
    ]
    return values


class GrowDataTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        write_csv(self.folder / "old.csv", 40, 0)
        write_csv(self.folder / "new.csv", 40, 10)

    def grow(self, split: str, fields=None, **changes):
        """Grows the log of a run with an empty model file."""
        config = TrainConfig(
            data=str(self.folder / "old.csv"), split=split, **(fields or {})
        )
        workdir = Workdir(self.folder / "run")
        workdir.path.mkdir()
        workdir.model.touch()
        files.write_json(workdir.config, config.to_dict())
        build_data(config).vocabulary.save(workdir.vocabulary)
        source = dict.fromkeys(SOURCE_FIELDS)
        source["data"] = str(self.folder / "new.csv")
        return grow_data(workdir, source, self.folder / "grown", changes)

    def test_held_out_users_are_the_same_while_no_user_is_new(self):
        grown = self.grow("held_out_users")
        for part in ("validation", "test"):
            before, after = (
                getattr(data.split, part)
                for data in (grown.data, grown.grown_data)
            )
            np.testing.assert_array_equal(before.users, after.users)

    def test_users_that_were_trained_on_cannot_be_held_out(self):
        # All targets are new, but the users are not.
        with (self.folder / "new.csv").open("a") as file:
            for user in range(30, 36):
                file.write(f"u{user},i1,1\nu{user},i2,2\n")
        with self.assertRaisesRegex(
            InputError, "held_out_users .* [1-4] of 4 queries that it was"
        ):
            self.grow("held_out_users")

    def test_new_rows_lack_what_the_filters_need(self):
        path = self.folder / "old.csv"
        header, *rows = path.read_text().splitlines()
        rows = [f"{row},5,view" for row in rows]
        path.write_text("\n".join([f"{header},rating,event", *rows]) + "\n")
        with self.assertRaisesRegex(
            InputError, "new.csv: .*min_rating.*rating"
        ):
            self.grow("leave_last_out", {"min_rating": 3.0})
        shutil.rmtree(self.folder / "run")
        with self.assertRaisesRegex(
            InputError, "new.csv: --events needs a log"
        ):
            self.grow("leave_last_out", {"events": "view:2"})

    def test_invalid_changes_fail_before_logs_are_read(self):
        with (
            mock.patch("recsys.training.growth.read_log") as read_log,
            self.assertRaisesRegex(InputError, "--num_epochs must be"),
        ):
            self.grow("leave_last_out", num_epochs=0)
        read_log.assert_not_called()


class CommandTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(
            cls.enterClassContext(tempfile.TemporaryDirectory())
        )
        write_csv(cls.folder / "old.csv", 12, 0)
        write_csv(cls.folder / "new.csv", 15, 10)
        cls.old, cls.new = cls.folder / "old", cls.folder / "new"
        code, _, err = run(
            train,
            f"--data={cls.folder / 'old.csv'}",
            f"--workdir={cls.old}",
            "--encoder=mean_pooling",
            "--embedding_dim=8",
            "--num_epochs=1",
            "--warmup_steps=1",
        )
        if code:
            raise AssertionError(err)

    def extend(self, *arguments):
        return run(
            extend,
            f"--workdir={self.old}",
            f"--data={self.folder / 'new.csv'}",
            f"--output_workdir={self.new}",
            "--num_epochs=1",
            *arguments,
        )

    def test_rows_are_added_then_trained(self):
        before = recsys.load(self.old)
        code, out, err = self.extend("--train=false")
        self.assertEqual(code, 0, err)
        self.assertIn("600 interactions with 15 items, of which 3 are new", out)
        after = recsys.load(self.new)
        ids = before.vocabulary.item_ids
        old_rows = before.item_vectors()[before.vocabulary.encode(ids)]
        dim = after.model.candidate_tower.embedding.embedding_dim
        np.testing.assert_array_equal(
            after.item_vectors()[after.vocabulary.encode(ids), :dim],
            old_rows[:, :dim],
        )
        new_ids = sorted(set(after.vocabulary.item_ids) - set(ids))
        self.assertEqual(new_ids, ["i12", "i13", "i14"])
        self.assertGreater(
            np.abs(
                after.item_vectors()[after.vocabulary.encode(new_ids), :dim]
            ).min(),
            0,
        )
        self.check_moments(after.vocabulary.encode(new_ids))
        self.assertIn(
            "i12", [r.item_id for r in after.recommend(["i11"], k=15)]
        )

        # The same command trains, and is then done.
        code, _, err = self.extend()
        self.assertEqual(code, 0, err)
        trained = recsys.load(self.new)
        rows = trained.item_vectors()[trained.vocabulary.encode(ids)]
        self.assertGreater(np.abs(rows - old_rows).max(), 0)
        weights = (self.new / "model.keras").read_bytes()
        self.assertEqual(self.extend()[0], 0)
        self.assertEqual((self.new / "model.keras").read_bytes(), weights)

        # Other commands accept the new workdir.
        code, _, err = run(evaluate, f"--workdir={self.new}", "--audit")
        self.assertEqual(code, 0, err)
        metrics = json.loads((self.new / "metrics.json").read_text())
        self.assertEqual(metrics["num_candidates"], 15)

        code, _, err = self.extend("--learning_rate=0.5")
        self.assertEqual(code, 2)
        self.assertRegex(
            err, r"Received: a run with different learning_rate \(None"
        )

    def check_moments(self, new_rows):
        old, new = map(table_and_moments, (self.old, self.new))
        # The table, then Adam's two moments.
        self.assertLen(old, 3)
        self.assertEqual([len(values) for values in new], [17] * 3)
        kept = np.delete(np.arange(17), new_rows)
        for values, grown in zip(old[1:], new[1:]):
            np.testing.assert_array_equal(grown[kept], values)
            self.assertFalse(grown[new_rows].any())
            self.assertTrue(values[2:].any())

    def test_the_loss_stays_when_the_catalog_outgrows_it(self):
        old, new = self.folder / "old-full", self.folder / "new-full"
        code, _, err = run(
            train,
            f"--data={self.folder / 'old.csv'}",
            f"--workdir={old}",
            "--preset=movielens-small",
            "--encoder=mean_pooling",
            "--embedding_dim=8",
            "--num_epochs=1",
            # Ignored by the full softmax that 12 items get.
            "--num_negatives=64",
        )
        self.assertEqual(code, 0, err)
        with mock.patch.object(build, "LARGEST_FULL_SOFTMAX", 12):
            code, _, err = self.extend(
                f"--workdir={old}", f"--output_workdir={new}", "--train=false"
            )
        self.assertEqual(code, 0, err)
        config = json.loads((new / "config.json").read_text())
        self.assertEqual(config["loss"], "full_softmax")
        self.assertEqual(config["table_optimizer"], "dense")

    def test_old_items_keep_the_keys_of_their_transitions(self):
        old, new = self.folder / "old-sketch", self.folder / "new-sketch"
        code, _, err = run(
            train,
            f"--data={self.folder / 'old.csv'}",
            "--encoder=mean_pooling",
            "--transition_dim=8",
            "--num_epochs=1",
            f"--workdir={old}",
        )
        self.assertEqual(code, 0, err)
        code, _, err = self.extend(
            f"--workdir={old}", f"--output_workdir={new}", "--train=false"
        )
        self.assertEqual(code, 0, err)
        before, after = recsys.load(old), recsys.load(new)
        keys = [m.model.history_tower.transition_keys for m in (before, after)]
        ids = before.vocabulary.item_ids
        rows = [m.vocabulary.encode(ids) for m in (before, after)]
        np.testing.assert_array_equal(
            keys[0].numpy()[rows[0]], keys[1].numpy()[rows[1]]
        )
        [new_row] = after.vocabulary.encode(["i12"])
        values = after.model.candidate_tower.transition_values.numpy()
        for table in (keys[1].numpy(), values):
            self.assertGreater(np.abs(table[new_row]).max(), 0)

    @parameterized.parameters("layer", "regression")
    def test_new_items_start_from_their_features(self, kind):
        old, new = self.folder / f"old-{kind}", self.folder / f"new-{kind}"
        for name, num_items in (("old", 12), ("new", 15)):
            write_items(self.folder / f"{name}-items.csv", num_items)
        code, _, err = run(
            train,
            f"--data={self.folder / 'old.csv'}",
            f"--items_file={self.folder / 'old-items.csv'}",
            "--item_features=genres",
            *(["--id_dropout=0.2"] if kind == "layer" else []),
            f"--workdir={old}",
            "--encoder=mean_pooling",
            "--embedding_dim=8",
            "--num_epochs=1",
        )
        self.assertEqual(code, 0, err)
        code, _, err = self.extend(
            f"--workdir={old}",
            f"--output_workdir={new}",
            f"--items_file={self.folder / 'new-items.csv'}",
            "--train=false",
        )
        self.assertEqual(code, 0, err)
        before, after = recsys.load(old), recsys.load(new)
        ids = before.vocabulary.item_ids
        np.testing.assert_array_equal(
            after.item_vectors()[after.vocabulary.encode(ids)],
            before.item_vectors()[2:],
        )
        if kind == "regression":
            self.check_predicted(after, len(ids), new)
            return
        features = before.model.candidate_tower.item_features
        for item, like in (("i12", "i4"), ("i13", "i5"), ("i14", "i0")):
            expected = features(before.vocabulary.encode([like]))
            got = after.item_vectors()[after.vocabulary.encode([item])]
            self.assertGreater(np.abs(got).max(), 0)
            np.testing.assert_allclose(got, expected, rtol=1e-5)

    def check_predicted(self, after, num_old, workdir):
        """New rows start between their neighbors' and the predicted ones."""
        config = Workdir(workdir).read_config()
        rows = after.item_vectors()
        is_new = np.ones(len(rows), bool)
        old = after.vocabulary.encode([f"i{i}" for i in range(num_old)])
        is_new[[0, 1, *old]] = False
        self.assertEqual(is_new.sum(), 3)
        plain = initial_table.neighbor_rows(
            rows, is_new, build_data(config).split.train, seed=config.seed
        )
        encoder = ItemEncoder.load(Workdir(workdir).item_features)
        regression = initial_table.FeatureRegression(encoder, after.vocabulary)
        expected = regression.blended(plain, known=~is_new)[is_new]
        np.testing.assert_allclose(rows[is_new], expected, rtol=1e-5)
        self.assertGreater(np.abs(expected - plain[is_new]).max(), 1e-3)

    @parameterized.parameters(
        (["--data="], "--data must be given"),
        (["--output_workdir="], "--output_workdir must be given"),
        (["--workdir=/nowhere"], "no such folder"),
        (["--data=/nowhere.csv"], "of a file or folder that exists"),
        (["--num_epochs=0"], "--num_epochs must be at least 1"),
        ([f"--output_workdir={__file__}/x"], "folder that can be written"),
    )
    def test_mistakes(self, arguments, message):
        output = f"--output_workdir={self.folder / 'other'}"
        code, _, err = self.extend(output, *arguments)
        self.assertEqual(code, 2, err)
        self.assertRegex(err, message)
        self.assertLen(err.splitlines(), 1)
        self.assertFalse((self.folder / "other").exists())

    def test_an_occupied_folder(self):
        code, _, err = self.extend(f"--output_workdir={self.old}")
        self.assertEqual(code, 2)
        self.assertIn("must be a new or empty folder", err)


if __name__ == "__main__":
    absltest.main()
