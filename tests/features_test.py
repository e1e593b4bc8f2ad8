"""What is known of events, requests, users and time, from log to answer."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized
from commands import run

import recsys
from recsys import (
    CandidateTower,
    FeatureSum,
    GRUEncoder,
    HistoryTower,
    MeanPooling,
    SelfAttentionEncoder,
    SharedItemEmbedding,
    TwoTower,
    recommend,
)
from recsys.config import TrainConfig
from recsys.data import pipeline, prepare, side_information
from recsys.data.features import FeatureColumn, ItemEncoder
from recsys.data.side_information import Request, clock_column
from recsys.errors import InputError
from recsys.models.transformer_block import time_bias
from recsys.serving import saved_model
from recsys.serving.features import FeatureTensors, _Column

_DAY = 86_400
# 2023-11-14, 22:13:20 UTC, a Tuesday.
_START = 1_700_000_000
_FEATURES = {
    "event_features": "rating,device",
    "time_features": "gap,hour,weekday,month,age",
    "context_features": "gap,hour,device",
    "user_features": "gender,age,tags:multi:;",
}


def write_log(folder: pathlib.Path, num_users: int = 60) -> None:
    """The device decides where the next step leads, and who begins where."""
    rng = np.random.default_rng(0)
    rows = ["user,item,timestamp,rating,device"]
    users = ["user,gender,age,tags"]
    for user in range(num_users):
        gender = "MF"[user % 2]
        place, time = 10 * (user % 2) + int(rng.integers(3)), _START + user
        for _ in range(int(rng.integers(8, 14))):
            device = ["tv", "phone"][int(rng.integers(2))]
            step = 1 if device == "tv" else 7
            place = (place + step) % 20
            time += int(rng.integers(3)) * 1800
            rows.append(
                f"u{user},i{place},{time},{rng.integers(1, 6)},{device}"
            )
        users.append(f"u{user},{gender},{20 + user % 7},a;{gender}")
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    (folder / "users.csv").write_text("\n".join(users) + "\n")


def config_of(folder: pathlib.Path, **fields) -> TrainConfig:
    return TrainConfig(
        data=str(folder / "log.csv"),
        repeats="all",
        embedding_dim=8,
        num_blocks=1,
        max_history_length=8,
        positions_per_batch=256,
        num_epochs=2,
        warmup_steps=2,
        dropout=0.0,
        **{**_FEATURES, **fields},
    )


class LogTestCase(parameterized.TestCase):
    num_users = 60

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(
            cls.enterClassContext(tempfile.TemporaryDirectory())
        )
        write_log(cls.folder, cls.num_users)
        cls.config = config_of(cls.folder)
        cls.data = prepare.build_data(cls.config)
        cls.side = side_information.fit_side_encoder(
            cls.config, cls.data.sample(0)
        )


class ClockTest(absltest.TestCase):
    def test_what_times_tell(self):
        times = np.array([_START, _START, _START + 4, 5, 5 + 3 * _DAY])
        offsets = np.array([0, 3, 5])

        def told(name):
            return clock_column(name, times, offsets, 1).to_pylist()

        self.assertEqual(
            told("gap"),
            [None, None, 2.0, None, round(8 * np.log2(3 * _DAY)) / 8],
        )
        self.assertEqual(told("same time"), [None, "yes", None, None, None])
        self.assertEqual(told("hour"), [22, 22, 22, 0, 0])
        # 1 January 1970 was a Thursday.
        self.assertEqual(told("weekday"), [1, 1, 1, 3, 6])
        self.assertEqual(told("month"), [11, 11, 11, 1, 1])

    def test_units_of_the_log(self):
        times = np.array([0, 2_000_000])
        gap = clock_column("gap", times, np.array([0, 2]), 1_000_000)
        self.assertEqual(gap.to_pylist(), [None, 1.0])

    def test_the_calendar_in_a_graph_is_that_of_numpy(self):
        from recsys.serving.features import _month

        days = np.arange(0, 60_000, 7)
        expected = days.astype("datetime64[D]").astype("datetime64[M]")
        np.testing.assert_array_equal(
            _month(tf.constant(days)), expected.astype(int) % 12 + 1
        )


class TimeBiasTest(absltest.TestCase):
    def test_buckets_and_their_gradient(self):
        table = tf.Variable(np.arange(128.0).reshape(2, 64), dtype=tf.float32)
        keys = tf.constant([[_START, _START + 1, _START + 64, -1]], tf.int64)
        with tf.GradientTape() as tape:
            found = time_bias(table, keys, keys)
            total = tf.reduce_sum(found[0, 1])
        # Unknown 0; none or less 1; 1 s 2; 63 s 2 + ⌊11.95⌋; 64 s 2 + 12.
        expected = [[1, 1, 1, 0], [2, 1, 1, 0], [14, 13, 1, 0], [0, 0, 0, 0]]
        np.testing.assert_array_equal(found[0, 0], expected)
        np.testing.assert_array_equal(found[0, 1], np.add(expected, 64))
        counts = np.bincount(np.ravel(expected), minlength=64)
        np.testing.assert_array_equal(tape.gradient(total, table)[1], counts)

    def test_attention_is_a_softmax_with_the_bias(self):
        encoder = SelfAttentionEncoder(
            num_blocks=1, num_heads=2, dropout=0.0, reads_times=True
        )
        rng = np.random.default_rng(0)
        vectors = tf.constant(rng.normal(size=(2, 5, 4)), tf.float32)
        times = tf.constant(np.cumsum(rng.integers(0, 99, (2, 5)), 1), tf.int64)
        plain = encoder(vectors)
        # Biases of 0 change nothing.
        np.testing.assert_allclose(
            encoder(vectors, times=(times, times)), plain, atol=1e-6
        )
        encoder.time_bias.assign(rng.normal(size=encoder.time_bias.shape))
        found = encoder(vectors, times=(times, times))
        self.assertGreater(np.abs(found - plain).max(), 1e-3)
        # Times at other positions do not matter to a position.
        last = encoder(
            vectors,
            times=(times, times),
            only_positions=tf.constant([4, 2]),
        )
        np.testing.assert_allclose(last[0], found[0, 4], atol=1e-5)
        np.testing.assert_allclose(last[1], found[1, 2], atol=1e-5)
        # Nor does the origin of time.
        moved = encoder(vectors, times=(times + _START, times + _START))
        np.testing.assert_allclose(moved, found, atol=1e-6)


def make_tower(encoder, **parts):
    table = SharedItemEmbedding(9, 4)
    layers = {f"{part}_features": FeatureSum(6, 4, name=part) for part in parts}
    tower = HistoryTower(table, encoder, **layers)
    tower.build()
    rng = np.random.default_rng(0)
    for weight in tower.trainable_variables:
        weight.assign(rng.normal(size=weight.shape) / 2)
    return tower


class TowerTest(parameterized.TestCase):
    def test_features_are_added_to_the_items(self):
        tower = make_tower(MeanPooling(), history=1, context=1)
        ids = np.array([[3, 5, 0]])
        features = {
            "history_features": np.array([[[1, 0], [2, 3], [4, 4]]]),
            "history_weights": np.array(
                [[[0.5, 0], [1, 2], [9, 9]]], np.float32
            ),
            "context_features": np.array([[[0], [5], [5]]]),
        }
        table = tower.embedding.embeddings.numpy()
        history = 4 * tower.history_features.embeddings.numpy()
        context = 4 * tower.context_features.embeddings.numpy()
        first = table[3] + 0.5 * history[1]
        second = table[5] + history[2] + 2 * history[3] + context[5]
        np.testing.assert_allclose(
            tower(ids, features=features)[0], (first + second) / 2, rtol=1e-5
        )
        # What is missing is unknown.
        np.testing.assert_allclose(
            tower(ids)[0], (table[3] + table[5]) / 2, rtol=1e-5
        )
        # That of a request alone belongs to the last event.
        features["context_features"] = np.array([[5]])
        np.testing.assert_allclose(
            tower(ids, features=features)[0], (first + second) / 2, rtol=1e-5
        )

    def test_no_feature_costs_no_operation(self):
        tower = make_tower(MeanPooling())
        ids = tf.TensorSpec([None, None], tf.int32)
        graph = tf.function(tower).get_concrete_function(ids).graph
        found = {each.type for each in graph.get_operations()}
        # The search for the start, and what makes room for it.
        self.assertNoCommonElements(found, {"Min", "Pad"})
        tower = make_tower(MeanPooling(), user=1)
        graph = tf.function(tower).get_concrete_function(ids).graph
        self.assertContainsSubset(
            {"Min", "Pad"}, {each.type for each in graph.get_operations()}
        )

    def test_the_start_is_a_position_of_its_own(self):
        tower = make_tower(MeanPooling(), user=1)
        features = {"user_features": np.array([[2], [3]])}
        table = tower.embedding.embeddings.numpy()
        users = 4 * tower.user_features.embeddings.numpy()
        start = tower.start.numpy() + users[[2, 3]]
        found = tower(np.array([[0, 0], [4, 6]]), features=features)
        np.testing.assert_allclose(found[0], start[0], rtol=1e-5)
        np.testing.assert_allclose(
            found[1], (start[1] + table[4] + table[6]) / 3, rtol=1e-5
        )

    @parameterized.parameters(
        lambda: MeanPooling(),
        lambda: GRUEncoder(),
        lambda: SelfAttentionEncoder(num_blocks=2, reads_times=True),
    )
    def test_padding_on_either_side_changes_nothing(self, encoder):
        tower = make_tower(encoder(), history=1, context=1, user=1)

        def call(left, right, **options):
            around = [(0, 0), (left, right)]
            rng = np.random.default_rng(1)
            values = {
                f"{part}_features": np.pad(
                    rng.integers(0, 6, (2, 3, 2)), [*around, (0, 0)]
                )
                for part in ("history", "context")
            }
            times = np.cumsum(rng.integers(0, 99, (2, 3)), 1)
            times = np.pad(times, around, constant_values=-1)
            return tower(
                np.pad([[3, 4, 5], [6, 7, 8]], around),
                features={
                    **values,
                    "user_features": np.array([[1], [2]]),
                    "history_times": times,
                },
                **options,
            )

        for left, right in ((3, 0), (0, 2), (1, 1)):
            np.testing.assert_allclose(call(left, right), call(0, 0), atol=1e-5)
        found = call(2, 1, return_sequences=True).numpy()
        np.testing.assert_allclose(found[:, 4], call(0, 0), atol=1e-5)
        np.testing.assert_array_equal(found[:, [0, 1, 5]], 0)
        started = call(2, 1, return_sequences=True, with_start=True)
        np.testing.assert_allclose(started[:, 1:], found, atol=1e-6)

    def test_a_functional_model_of_ones_own(self):
        ids = keras.Input([None], dtype="int32")
        events = keras.Input([None, 2], dtype="int32")
        user = keras.Input([1], dtype="int32")
        tower = make_tower(MeanPooling(), history=1, user=1)
        vector = tower(
            ids, features={"history_features": events, "user_features": user}
        )
        model = keras.Model([ids, events, user], keras.layers.Dense(1)(vector))
        model.compile(optimizer="adam", loss="mse")
        inputs = [
            np.array([[3, 4]]),
            np.array([[[1, 2], [3, 0]]]),
            np.array([[2]]),
        ]
        before = tower.history_features.embeddings.numpy()
        model.fit(inputs, np.ones((1, 1)), verbose=0)
        moved = np.abs(tower.history_features.embeddings - before).max(axis=1)
        np.testing.assert_array_equal(moved > 0, [0, 1, 1, 1, 0, 0])
        with tempfile.TemporaryDirectory() as folder:
            model.save(f"{folder}/m.keras")
            again = keras.saving.load_model(f"{folder}/m.keras")
        np.testing.assert_allclose(
            again.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
        )

    def test_fit_with_features_and_first_items(self):
        tower = make_tower(SelfAttentionEncoder(num_blocks=1), user=1)
        model = TwoTower(tower, CandidateTower(tower.embedding))
        model.compile(optimizer="adam")
        inputs = {
            "history_ids": np.array([[3, 4, 0], [5, 6, 7]]),
            "target_ids": np.array([[4, 5, 0], [6, 7, 8]]),
            "user_features": np.array([[1], [2]]),
        }
        _, count = model.next_item_loss(inputs, training=False)
        self.assertEqual(count, 5)
        loss, count = model.next_item_loss(
            {**inputs, "first_ids": np.array([3, 0])}, training=False
        )
        self.assertEqual(count, 6)
        start = (tower.start + 4 * tower.user_features.embeddings[1]).numpy()
        alone = tower(
            np.zeros((1, 0), np.int32),
            features={"user_features": np.array([[1]])},
        )
        logits = (alone.numpy() @ tower.embedding.embeddings.numpy().T)[0, 2:]
        without, _ = model.next_item_loss(inputs, training=False)
        expected = np.log(np.exp(logits).sum()) - logits[1]
        self.assertAllClose(loss - without, expected)
        self.assertEqual(start.shape, (4,))
        model.fit(inputs, epochs=1, verbose=0)

    def assertAllClose(self, found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def test_shapes_are_checked(self):
        tower = make_tower(MeanPooling(), history=1)
        with self.assertRaisesRegex(ValueError, r"must be \[batch, length, w"):
            tower(
                np.array([[3]]), features={"history_features": np.array([[1]])}
            )


class EncoderTest(LogTestCase):
    def test_batches_hold_what_the_log_says(self):
        train = self.data.split.train
        plan = pipeline.plan_epoch(
            train, max_length=8, positions_per_batch=64, seed=0, epoch=0
        )
        parts = self.side.code(train)
        where = {
            (int(train.items[i]), int(train.timestamps[i])): i
            for i in range(train.num_interactions)
        }
        num_first = num_seen = 0
        for batch in pipeline.train_dataset(train, plan, side=self.side):
            batch = {name: each.numpy() for name, each in batch.items()}
            for row, ids in enumerate(batch["history_ids"]):
                times = batch["history_times"][row]
                asked = batch["request_times"][row]
                for place in np.flatnonzero(ids):
                    i = where[int(ids[place]), int(times[place])]
                    num_seen += 1
                    for part, at in (("history", i), ("context", i + 1)):
                        values, weights = parts[part].at(np.array(at))
                        np.testing.assert_array_equal(
                            batch[f"{part}_features"][row, place], values
                        )
                        np.testing.assert_array_equal(
                            batch[f"{part}_weights"][row, place], weights
                        )
                    self.assertEqual(asked[place], train.timestamps[i + 1])
                    user = np.searchsorted(train.offsets, i, "right") - 1
                    np.testing.assert_array_equal(
                        batch["user_features"][row],
                        parts["user"].at(np.array(user))[0],
                    )
                self.assertTrue((times[ids == 0] == -1).all())
                self.assertFalse(batch["history_weights"][row, ids == 0].any())
                if first := batch["first_ids"][row]:
                    num_first += 1
                    self.assertEqual(first, ids[0])
                    self.assertIn(
                        where[int(first), int(times[0])], train.offsets
                    )
        self.assertGreater(num_seen, train.num_interactions - 60)
        self.assertEqual(num_first, 60)

    def test_a_query_knows_its_time_but_not_its_rating(self):
        queries = self.data.split.validation
        sequences = queries.sequences
        rows = np.arange(len(queries))

        def entries(changed):
            side = side_information.history_side(
                self.side,
                changed,
                queries.history_starts,
                queries.history_ends,
                queries.users,
                are_followed=True,
            )
            lengths = queries.history_ends - queries.history_starts
            ends = np.cumsum(lengths)
            positions = (ends - 1)[:, np.newaxis]
            return side.batch(rows, positions, ends)

        def changed(name):
            if name == "time":
                times = sequences.timestamps.copy()
                times[queries.history_ends] += 7 * 3600
                return {"timestamps": times}
            codes = sequences.columns[name].copy()
            codes[queries.history_ends] = 1 - (codes[queries.history_ends] > 0)
            return {"columns": {**sequences.columns, name: codes}}

        before = entries(sequences)
        for name, may_change in (
            ("rating", set()),
            ("device", {"context_features", "context_weights"}),
            (
                "time",
                {"context_features", "context_weights", "request_times"},
            ),
        ):
            after = entries(dataclasses.replace(sequences, **changed(name)))
            differing = {
                key
                for key in before
                if not np.array_equal(before[key], after[key])
            }
            self.assertEmpty(differing - may_change)
            self.assertEqual(bool(differing), bool(may_change), name)

    def test_requests_are_encoded_as_the_log_is(self):
        sequences = self.data.split.validation.sequences
        request = Request.of(
            [
                {
                    "item": "x",
                    "time": int(sequences.timestamps[i]),
                    **{
                        name: sequences.levels[name][int(codes[i])].as_py()
                        for name, codes in sequences.columns.items()
                    },
                }
                for i in range(4)
            ],
            {
                name: sequences.users[name][0].as_py()
                for name in sequences.users.column_names
            },
            {
                "time": int(sequences.timestamps[4]),
                "device": sequences.levels["device"][
                    int(sequences.columns["device"][4])
                ].as_py(),
            },
        )
        found, unseen = self.side.of_requests([request])
        expected = side_information.history_side(
            self.side,
            sequences,
            np.array([0]),
            np.array([4]),
            np.array([0]),
            are_followed=True,
        )
        query, places = np.array([0]), np.arange(4)[np.newaxis]
        got = found.batch(query, places, np.array([4]))
        for name, each in expected.batch(query, places, np.array([4])).items():
            np.testing.assert_array_equal(got[name], each, name)
        self.assertEqual(unseen, {})
        self.assertFalse(self.side.lacks(request))
        self.assertTrue(self.side.lacks(Request.of(["x"])))

    def test_a_value_that_means_nothing_is_counted(self):
        user = {"age": "old", "gender": "?", "tags": "a;?"}
        _, unseen = self.side.of_requests([Request.of([], user)])
        names = ["user feature `age`", "user feature `gender`"]
        self.assertEqual(unseen, dict.fromkeys(names[::-1], 1))

    @parameterized.parameters(
        ({"context": {"colour": 1}}, "context must be among.*device, time"),
        ({"context": {"time": 5}}, "must be in order"),
        ({"context": {"time": "soon"}}, "number in the log's unit or an ISO"),
        ({"user": 3}, "`user` must be an object"),
    )
    def test_a_wrong_request_is_named(self, given, message):
        with self.assertRaisesRegex(InputError, message):
            history = [{"item": "i1", "time": _START}]
            self.side.of_requests([Request.of(history, **given)])

    @parameterized.parameters(
        ({"event_features": "colour"}, "expected a column 'colour'"),
        ({"event_features": "event"}, "needs the kinds of events by name"),
        ({"context_features": "rating"}, "which a rating, a kind of event"),
        ({"time_features": "year"}, "must be among gap, hour"),
        ({"encoder": "gru"}, "must go with --encoder=self_attention"),
        ({"user_features": None, "users_file": "x.csv"}, "must go with --user"),
        ({"user_features": "colour"}, "column of the users file"),
    )
    def test_a_wrong_flag_is_named(self, fields, message):
        with self.assertRaisesRegex(InputError, message):
            config = config_of(self.folder, **fields)
            data = prepare.build_data(config)
            side_information.fit_side_encoder(config, data.sample(0))


_MANY = [f"t{number}" for number in range(40)]
# An encoder with every kind of column, that nothing has been fitted to.
_BY_HAND = ItemEncoder(
    [
        FeatureColumn("kind", "categorical"),
        FeatureColumn("tags", "multi", ";"),
        FeatureColumn("text", "words"),
        FeatureColumn("size", "numeric"),
        FeatureColumn("image", "vector"),
        FeatureColumn("taste", "vector"),
    ],
    [
        {"values": ["Drama", "Élan"]},
        {"values": sorted(["a", "b", "unknown", *_MANY])},
        {"values": sorted(["für", "istanbul", "night", "οδοσ", *_MANY])},
        {"knots": [-1.5, 0.25, 7.0]},
        {"mean": [1.0, 2.0], "scale": 2.0},
        {"mean": [0.0], "scale": 1.0},
    ],
)


class RequestsInAGraphTest(parameterized.TestCase):
    def encoded(self, name, values):
        """Of each value the weights by row, as the package has them, too."""
        names = [column.name for column in _BY_HAND.columns]
        number = names.index(name)
        expected = _BY_HAND.encode_column(number, pa.array(values))
        found = _Column(_BY_HAND, number).encode(tf.constant(values))
        both = [
            [
                {row: round(float(x), 6) for row, x in zip(*pair) if x}
                for pair in zip(np.array(rows), np.array(weights))
            ]
            for rows, weights in (expected, found)
        ]
        for value, *pair in zip(values, *both):
            self.assertEqual(*pair, value)
        return both[1]

    def test_text(self):
        found = self.encoded(
            "kind",
            [
                "",
                " ",
                "Drama",
                "\u00a0Drama\u3000\n",
                "drama",
                "unknown",
                "Élan",
            ],
        )
        self.assertEqual(found, [{}, {}, {1: 1}, {1: 1}, {}, {}, {2: 1}])
        half = round(0.5**0.5, 6)
        found = self.encoded(
            "tags",
            ["", ";; ;", "a;a; a", "b;zz;\u00a0a", " unknown ", "unknown;a"],
        )
        # "unknown" alone says that nothing is known.
        a, b, unknown = 3, 4, 45
        pairs = [{b: half, a: half}, {}, {unknown: half, a: half}]
        self.assertEqual(found, [{}, {}, {a: 1}, *pairs])
        found = self.encoded(
            "text",
            [
                "?",
                "FÜR night FÜR!",
                "Night (1999) ",
                "İstanbul ISTANBUL",
                "ΟΔΟΣ",
                "οδος",
                "1999",
            ],
        )
        number = {w: 46 + n for n, w in enumerate(_BY_HAND.levels(2))}
        self.assertEqual(
            found,
            [
                {},
                {number["für"]: half, number["night"]: half},
                {number["night"]: 1},
                {number["istanbul"]: 1},
                {number["οδοσ"]: 1},
                {},
                {},
            ],
        )

    @parameterized.parameters(("tags", ";"), ("text", " "))
    def test_only_the_first_values_count(self, name, separator):
        repeated = [*["t1"] * 50, *_MANY[::-1], *["zz"] * 50, "b"]
        found = self.encoded(
            name, [separator.join(repeated), separator.join(_MANY), "t1"]
        )
        self.assertEqual([len(row) for row in found], [24, 24, 1])

    def test_a_long_text_takes_no_square_of_memory(self):
        text = tf.constant([" ".join(map(str, range(50_000))) + " night"] * 8)
        rows, _ = _Column(_BY_HAND, 2).encode(text)
        self.assertEqual(rows.shape, (8, 1))

    def test_numbers_and_vectors(self):
        infinite = float("inf")
        found = self.encoded(
            "size",
            np.array(
                [-9, -1.5, -0.625, 0.25, 3.625, 7, 9, np.nan, -infinite],
                np.float32,
            ),
        )
        # The knots are rows 90, 91 and 92, after 2 + 43 + 44 values.
        between = [{90: 0.5, 91: 0.5}, {91: 1}, {91: 0.5, 92: 0.5}]
        self.assertEqual(
            found, [{90: 1}, {90: 1}, *between, {92: 1}, {92: 1}, {}, {}]
        )
        found = self.encoded(
            "image",
            [[3.0, 0.0], [1.0, 4.0], [np.nan, 3.0], [3.0, infinite]],
        )
        self.assertEqual(found, [{93: 1, 94: -1}, {94: 1}, {}, {}])

    def side(self):
        encoders = {
            "history": _BY_HAND,
            "context": ItemEncoder(
                [FeatureColumn("image", "vector")],
                [{"mean": [0.0, 1.0], "scale": 0.5}],
            ),
            "user": ItemEncoder(
                [FeatureColumn("taste", "vector")],
                [{"mean": [1.0], "scale": 1.0}],
            ),
        }
        return side_information.SideEncoder(encoders, False, 1)

    @parameterized.parameters((3, 2), (1, 0), (0, 2), (0, 0))
    def test_one_value_goes_for_all_and_for_none(self, batch, length):
        tensors = FeatureTensors(self.side())
        ones, all_of_them = {}, {}
        for name, spec in tensors.inputs().items():
            value = "night" if spec.dtype == tf.string else 2.0
            axes = [batch, length] if name.startswith("history") else [batch]
            sizes = spec.shape.as_list()[len(axes) :]
            all_of_them[name] = tf.fill([*axes, *sizes], value)
            ones[name] = tf.fill([*[1] * len(axes), *sizes], value)
        is_event = tf.ones([batch, length], tf.bool)
        found, expected = (
            tensors.entries(given, is_event, is_event, 5)
            for given in (ones, all_of_them)
        )
        for name, each in expected.items():
            np.testing.assert_array_equal(found[name], each)
            self.assertLen(each, batch)
            if not name.startswith("user"):
                self.assertEqual(each.shape[1], length if batch else 0)

    def test_requests_without_vectors(self):
        # What is not given is unknown, and nothing new.
        side, unseen = self.side().of_requests(
            [Request.of([{"item": "a", "text": "night"}], {}, {})]
        )
        self.assertEqual(unseen, {})
        for part in ("context", "user"):
            self.assertFalse(np.any(side.parts[part].weights))

    @parameterized.parameters(
        ({"image": [1.0, 2.0, 3.0]}, "vectors of length 2. .*: 3$"),
        ({"image": [[1.0, 2.0]]}, "flat lists .*: list$"),
        ({"image": {"x": 1.0}}, "flat lists .*: dict$"),
    )
    def test_a_vector_of_another_form_is_refused(self, context, message):
        with self.assertRaisesRegex(InputError, message):
            self.side().of_requests([Request.of([], context=context)])


class TrainedTest(LogTestCase):
    num_users = 300

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        fields = {
            name: value
            for name, value in cls.config.to_dict().items()
            if name not in ("data", "chosen", "steps_before")
        }
        fields |= {"num_epochs": 20, "patience": 20, "embedding_dim": 16}
        fields["learning_rate"] = 0.02
        cls.model = recsys.fit(
            cls.folder / "log.csv",
            cls.folder / "run",
            preset="movielens-small",
            verbose=False,
            evaluate=False,
            **fields,
        )

    def recommend(self, device, history=("i3", "i4"), **given):
        events = [
            {"item": item, "time": _START, "device": "tv", "rating": 3}
            for item in history
        ]
        return [
            each.item_id
            for each in self.model.recommend(
                events,
                3,
                context={"time": _START + 1800, "device": device},
                exclude_history=False,
                **given,
            )
        ]

    def test_the_context_decides(self):
        self.assertEqual(self.recommend("tv")[0], "i5")
        self.assertEqual(self.recommend("phone")[0], "i11")

    def test_users_without_history(self):
        tops = {
            gender: self.model.recommend([], 1, user={"gender": gender})
            for gender in "MF"
        }
        # They begin around i1 and i11.
        self.assertNotEqual(tops["M"][0].item_id, tops["F"][0].item_id)
        # Without features either, the most popular.
        score = self.model.recommend([], 1)[0].score
        self.assertEqual(score, self.model.popularity.max())

    def test_explanations_name_features(self):
        found = self.model.explain(
            [{"item": "i4", "time": _START, "device": "tv"}],
            "i11",
            context={"time": _START + 9, "device": "phone"},
        )
        by_name = {each.item_id: each.change for each in found}
        self.assertContainsSubset(
            {"i4", "context: device", "event: rating", "user: gender"}, by_name
        )
        self.assertGreater(by_name["context: device"], 0)
        self.assertEqual(by_name["user: gender"], 0)  # Not given.

    def test_many_requests_and_users(self):
        table = self.model.recommend_histories(
            {
                "a": {
                    "history": [{"item": "i4", "time": _START, "device": "tv"}],
                    "context": {"device": "phone", "time": _START},
                },
                "b": ["i4"],
            },
            k=1,
        )
        self.assertEqual(table["query_id"].to_pylist(), ["a", "b"])
        self.assertEqual(table["item"][0].as_py(), "i11")
        later = {"time": _START + 365 * _DAY, "device": "phone"}
        users = self.model.recommend_users(k=1, context=later)
        self.assertEqual(users.num_rows, 300)
        with self.assertRaisesRegex(InputError, "must not be before the ev"):
            self.model.recommend_users(k=1, context={"time": _START})

    def test_the_server_answers_the_same_alone_and_together(self):
        pytest.importorskip("rapidfuzz")
        from recsys.serving.live import answer_together, read_asked

        event = {"item": "i4", "time": _START, "device": "tv"}
        now = {"time": _START + 1800, "device": "phone"}
        parts = [
            ([event], {"gender": "F"}, now),
            ([event, "i9"], None, {**now, "device": "tv"}),
            ([], {"gender": "M"}, None),
            (["i4"], None, None),
        ]
        asked = [read_asked(self.model, *each, k=3) for each in parts]
        together = answer_together(self.model, asked)
        for (history, user, context), each, (items, scores) in zip(
            parts, asked, together, strict=True
        ):
            expected = self.model.recommend(
                history, 3, user=user, context=context
            )
            [alone] = answer_together(self.model, [each])
            np.testing.assert_array_equal(alone[0], items)
            self.assertEqual(
                self.model.vocabulary.decode(items).tolist(),
                [one.item_id for one in expected],
            )
            for found in (scores, alone[1]):
                np.testing.assert_allclose(
                    found, [one.score for one in expected], rtol=1e-5
                )

    def test_the_saved_model_answers_the_same(self):
        with tempfile.TemporaryDirectory() as folder:
            saved_model.write_saved_model(
                self.model, pathlib.Path(folder), exclude_history=False
            )
            signatures = tf.saved_model.load(folder).signatures
            history = [["i3", "new", "i4", ""], ["i9", "i10", "i17", "i18"]]
            times = np.array([[0, 60, 60, -1], [0, 0, 7200, 7201]])
            times = np.where(times >= 0, times + _START, -1)
            devices = [["tv", "tv", "phone", ""], ["phone", "", "x", "tv"]]
            ratings = np.array([[1, 2, np.nan, np.nan], [5, 4, 3, 2]])
            got = signatures["recommend_with_features"](
                history=tf.constant(history),
                items=tf.constant([[""]]),
                exclude=tf.constant([[""]]),
                k=tf.constant([5]),
                history_time=tf.constant(times),
                history_rating=tf.constant(ratings, tf.float32),
                history_device=tf.constant(devices),
                context_time=tf.constant([_START + 90, -1], tf.int64),
                context_device=tf.constant(["phone", ""]),
                user_gender=tf.constant(["F", ""]),
                user_age=tf.constant([23.5, np.nan]),
                user_tags=tf.constant(["a;F", "M"]),
            )
            plain = signatures["recommend"](
                history=tf.constant([["i3", "i4"]]),
                exclude=tf.constant([[""]]),
                k=tf.constant([5]),
            )
        requests = []
        for row in range(2):
            events = [
                {
                    "item": item,
                    "time": None if time < 0 else int(time),
                    "device": device or None,
                    "rating": None if np.isnan(rating) else float(rating),
                }
                for item, time, device, rating in zip(
                    history[row], times[row], devices[row], ratings[row]
                )
                if item
            ]
            user = {"gender": "F", "age": 23.5, "tags": "a;F"}
            context = {"time": _START + 90, "device": "phone"}
            if row:
                user, context = {"tags": "M"}, {}
            requests.append(
                {"history": events, "user": user, "context": context}
            )
        expected = self.model.recommend_histories(
            requests, k=5, exclude_history=False
        )
        scores = expected["score"].to_numpy().reshape(2, 5)
        np.testing.assert_allclose(got["scores"], scores, rtol=1e-4, atol=1e-4)
        ids = [each.decode() for each in got["item_ids"].numpy().ravel()]
        self.assertEqual(ids, expected["item"].to_pylist())
        again = self.model.recommend(["i3", "i4"], 5, exclude_history=False)
        np.testing.assert_allclose(
            plain["scores"][0], [each.score for each in again], rtol=1e-4
        )

    def test_words_and_vectors_in_the_saved_model(self):
        rng = np.random.default_rng(0)
        notes = ["Für Élise, für alle", "night drive (1999)", "  ", "NIGHT"]
        rows = [
            {
                "user": f"u{user}",
                "item": f"i{rng.integers(8)}",
                "timestamp": place,
                "note": notes[(user + place) % 4],
                "tags": "a;b ;a;zz"[: 2 * (place % 5)],
                "image": [float(user % 3), float(place), 1.0],
            }
            for user in range(20)
            for place in range(6)
        ]
        bios = ["likes jazz", "likes rock", "jazz and rock", ""]
        users = [
            {"user": f"u{n}", "bio": bios[n % 4], "taste": [n % 5, 1.0 * n]}
            for n in range(20)
        ]
        model = recsys.fit(
            recsys.Log.from_frame(
                pa.Table.from_pylist(rows),
                users=pa.Table.from_pylist(users),
                other_columns=("note", "tags", "image"),
            ),
            preset="movielens-small",
            event_features="note:words,tags:multi:;,image:vector",
            context_features="image:vector",
            user_features="bio:words,taste:vector",
            num_epochs=1,
            embedding_dim=8,
            evaluate=False,
            verbose=False,
        )
        nan = [np.nan] * 3
        notes = [["FÜR, night für!", "drive (2001)"], ["", "?"]]
        tags = [["b;b; a", "zz"], ["a", ""]]
        images = [[[2.0, 1.0, 5.0], nan], [[0.0, 0.0, 0.0], nan]]
        asked = [[1.0, 2.0, 3.0], nan]
        bios = ["Rock; likes rock", "unknown"]
        tastes = [[3.0, 4.0], [np.nan, 1.0]]
        with tempfile.TemporaryDirectory() as folder:
            saved_model.write_saved_model(
                model, pathlib.Path(folder), exclude_history=False
            )
            signatures = tf.saved_model.load(folder).signatures
            ask = signatures["recommend_with_features"]
            rest = {
                "items": tf.constant([[""]]),
                "exclude": tf.constant([[""]]),
                "k": tf.constant([4]),
            }
            got = ask(
                history=tf.constant([["i1", "i2"], ["i3", "i3"]]),
                history_note=tf.constant(notes),
                history_tags=tf.constant(tags),
                history_image=tf.constant(images),
                context_image=tf.constant(asked),
                user_bio=tf.constant(bios),
                user_taste=tf.constant(tastes),
                **rest,
            )
            rest |= {
                "history_note": tf.constant([[""]]),
                "history_tags": tf.constant([[""]]),
                "history_image": tf.constant([[nan]]),
                "context_image": tf.constant([nan]),
                "user_bio": tf.constant([""]),
                "user_taste": tf.constant([[np.nan] * 2]),
            }
            # Items alone; no item; no row.
            plain, empty, none = (
                ask(history=tf.constant(rows, tf.string, shape), **rest)
                for rows, shape in (
                    (["i1", "", "i2"], [1, 3]),
                    ([], [1, 0]),
                    ([], [0, 2]),
                )
            )
        requests = [
            {
                "history": [
                    {"item": item, "note": note, "tags": tag, "image": image}
                    for item, note, tag, image in zip(
                        history, notes[row], tags[row], images[row]
                    )
                ],
                "user": {"bio": bios[row], "taste": tastes[row]},
                "context": {"image": asked[row]},
            }
            for row, history in enumerate([["i1", "i2"], ["i3", "i3"]])
        ]
        requests.append({"history": [{"item": "i1", "note": ""}, "i2"]})
        requests.append({"history": [], "context": {"image": None}})
        expected = model.recommend_histories(
            requests, k=4, exclude_history=False
        )
        scores = expected["score"].to_numpy().reshape(4, 4)
        ids = expected["item"].to_numpy().reshape(4, 4)
        for found, rows in ((got, [0, 1]), (plain, [2]), (empty, [3])):
            np.testing.assert_allclose(
                found["scores"], scores[rows], rtol=1e-4, atol=1e-4
            )
            names = found["item_ids"].numpy().astype(str)
            np.testing.assert_array_equal(names, ids[rows])
        self.assertEmpty(none["scores"])

    def test_by_the_command_line(self):
        lines = self.folder / "lines.jsonl"
        request = {
            "query_id": "q",
            "history": [{"item": "i4", "time": _START, "device": "tv"}],
            "context": {"time": _START, "device": "phone"},
        }
        odd = {**request, "context": {"device": "radio"}}
        lines.write_text(
            "\n".join(map(json.dumps, [request, odd, {"history": ["i4"]}]))
        )
        output = self.folder / "answers.jsonl"
        code, _, err = run(
            recommend,
            f"--workdir={self.folder / 'run'}",
            f"--histories={lines}",
            f"--output={output}",
            "--k=1",
        )
        self.assertEqual(code, 0, err)
        self.assertIn("3 histories without some of the features", err)
        self.assertIn("1 value of features that are new", err)
        first = json.loads(output.read_text().splitlines()[0])
        self.assertEqual(first["items"], ["i11"])

    def test_a_model_of_items_alone_is_given_no_features(self):
        table = SharedItemEmbedding(self.model.vocabulary.size, 4)
        tower = HistoryTower(table, MeanPooling())
        plain = recsys.Recommender(
            TwoTower(tower, CandidateTower(table)), self.model.vocabulary, 4
        )
        with self.assertRaisesRegex(InputError, "reads items alone"):
            plain.recommend([{"item": "i3", "rating": 3}])


if __name__ == "__main__":
    absltest.main()
