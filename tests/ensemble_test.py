"""Several models as one: sums of scores, files, the command."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import tempfile

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from absl.testing import absltest, parameterized
from commands import run

import recsys
from recsys import combine, evaluate, export, extend, train
from recsys.config import TrainConfig
from recsys.training import train as run_training
from recsys.workdir import Workdir

SIZE = 12
HISTORIES = np.array([[0, 0, 3, 5], [7, 2, 11, 4], [9, 0, 0, 0]])
ENCODERS = {
    "attention": lambda: recsys.SelfAttentionEncoder(2, 2, dropout=0.3),
    "gru": lambda: recsys.GRUEncoder(units=3),
    "mean": lambda: recsys.MeanPooling(),
    "keras": lambda: keras.Sequential([keras.layers.Activation("tanh")]),
}


def item_features(dim: int) -> recsys.ItemFeatures:
    layer = recsys.ItemFeatures(
        SIZE, dim, num_values=4, values_per_item=2, vector_dim=3
    )
    rng = np.random.default_rng(5)
    layer.set_features(
        rng.integers(0, 4, (SIZE - 2, 2)),
        rng.uniform(size=(SIZE - 2, 2)),
        rng.normal(size=(SIZE - 2, 3)),
    )
    return layer


def model(
    seed: int,
    dim: int = 4,
    encoder: str = "attention",
    transition_dim: int = 0,
    with_features: bool = False,
    **changes,
) -> recsys.TwoTower:
    table = recsys.SharedItemEmbedding(SIZE, dim)
    features, parts = {}, {}
    if with_features:
        features["item_features"] = item_features(dim)
        for part in ("history", "context", "user"):
            parts[f"{part}_features"] = recsys.FeatureSum(5, dim)
    made = recsys.TwoTower(
        recsys.HistoryTower(
            table,
            ENCODERS[encoder](),
            transition_dim=transition_dim,
            **features,
            **parts,
            **changes,
        ),
        recsys.CandidateTower(table, transition_dim=transition_dim, **features),
    )
    made.build()
    rng = np.random.default_rng(seed)
    held = ("values", "value_weights", "vectors")
    for variable in made.weights:
        if variable.name not in held:
            variable.assign(rng.normal(size=variable.shape))
    return made


def inputs(with_features: bool = False) -> dict[str, np.ndarray]:
    found = {"history_ids": HISTORIES}
    if with_features:
        rng = np.random.default_rng(6)
        for part, shape in (
            ("history", (3, 4, 2)),
            ("context", (3, 4, 1)),
            ("user", (3, 2)),
        ):
            found[f"{part}_features"] = rng.integers(1, 5, shape)
    return found


class EnsembleTest(parameterized.TestCase):
    @parameterized.parameters(
        ([{}, {}],),
        ([{"dim": 2}, {"encoder": "gru", "dim": 5}, {"encoder": "mean"}],),
        ([{"encoder": "keras"}, {"encoder": "keras", "dim": 3}],),
        ([{"transition_dim": 3}, {"transition_dim": 2}],),
        ([{"transition_dim": 3}, {"encoder": "mean"}],),
        ([{"with_features": True}, {"with_features": True, "dim": 2}],),
    )
    def test_scores_are_sums(self, kinds):
        models = [model(seed, **kind) for seed, kind in enumerate(kinds)]
        asked = inputs("with_features" in kinds[0])
        before = [each(asked).numpy() for each in models]
        both = recsys.ensemble(models)
        expected = np.sum([each[:, 2:] for each in before], axis=0)
        np.testing.assert_allclose(
            both(asked).numpy()[:, 2:], expected, rtol=1e-4, atol=1e-4
        )
        # Each position, as training asks for them.
        slices = [
            each.history_tower(HISTORIES, return_sequences=True).numpy()
            for each in models
        ]
        np.testing.assert_allclose(
            both.history_tower(HISTORIES, return_sequences=True),
            np.concatenate(slices, axis=2),
            rtol=1e-4,
            atol=1e-5,
        )
        # It is a copy, and one table.
        for variable in both.weights:
            variable.assign(tf.zeros_like(variable))
        for each, scores in zip(models, before):
            np.testing.assert_array_equal(each(asked).numpy(), scores)
        tables = [w for w in both.weights if w.shape[0] == SIZE]
        dim = both.candidate_tower.embedding.embedding_dim
        self.assertLen([w for w in tables if w.shape[1] == dim], 1)

    def test_keras_files(self):
        kinds = {"encoder": "gru", "dim": 2}, {"transition_dim": 3}, {}
        both = recsys.ensemble([model(i, **k) for i, k in enumerate(kinds)])
        expected = both(inputs()).numpy()
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/both.keras"
            both.save(path)
            loaded = keras.saving.load_model(path)
            np.testing.assert_array_equal(loaded(inputs()).numpy(), expected)
            # Of an ensemble, one more; and weights alone.
            more = recsys.ensemble([loaded, model(3)])
            self.assertEqual(more.candidate_tower.output_dim, 2 + 3 * 4 + 3)
            both.save_weights(f"{folder}/both.weights.h5")
            loaded.history_tower.transition_keys.assign(tf.zeros([SIZE, 3]))
            loaded.load_weights(f"{folder}/both.weights.h5")
            np.testing.assert_array_equal(loaded(inputs()).numpy(), expected)
            tf.train.Checkpoint(both).write(f"{folder}/at")
            for variable in loaded.weights:
                variable.assign(tf.zeros_like(variable))
            tf.train.Checkpoint(loaded).read(f"{folder}/at").expect_partial()
            np.testing.assert_array_equal(loaded(inputs()).numpy(), expected)

    def test_training_goes_on(self):
        both = recsys.ensemble([model(0), model(1, encoder="mean")])
        both.compile(keras.optimizers.Adam(0.01))
        before = both.evaluate(
            {"history_ids": HISTORIES}, np.array([5, 6, 7]), verbose=0
        )
        both.fit(
            {"history_ids": HISTORIES},
            np.array([5, 6, 7]),
            epochs=5,
            verbose=0,
        )
        after = both.evaluate(
            {"history_ids": HISTORIES}, np.array([5, 6, 7]), verbose=0
        )
        self.assertLess(after, before)

    @parameterized.parameters(
        ([{}], "at least two. Received: 1"),
        (
            [
                {"transition_dim": 2},
                {"transition_dim": 2, "transition_decay": 0},
            ],
            "agree on transition_decay. Received: 0.8, 0",
        ),
        (
            [{"with_features": True}, {}],
            "agree on the layer of item_features. Received: ItemFeatures, None",
        ),
    )
    def test_mistakes(self, kinds, message):
        with self.assertRaisesRegex(ValueError, message):
            recsys.ensemble([model(i, **kind) for i, kind in enumerate(kinds)])

    def test_other_items_or_features(self):
        small = recsys.SharedItemEmbedding(5, 4)
        small = recsys.TwoTower(
            recsys.HistoryTower(small), recsys.CandidateTower(small)
        )
        with self.assertRaisesRegex(ValueError, "vocabulary_size"):
            recsys.ensemble([model(0), small])
        models = [model(0, with_features=True), model(1, with_features=True)]
        models[1].candidate_tower.item_features.values.assign(
            tf.zeros([SIZE, 2], tf.int32)
        )
        with self.assertRaisesRegex(ValueError, "same features of every item"):
            recsys.ensemble(models)
        own = recsys.SharedItemEmbedding(SIZE, 4)
        own = recsys.TwoTower(
            recsys.HistoryTower(
                own, item_features=keras.layers.Embedding(12, 4)
            ),
            recsys.CandidateTower(own),
        )
        with self.assertRaisesRegex(ValueError, "ItemFeatures or a FeatureSum"):
            recsys.ensemble([own, own])

    def test_what_is_not_a_model(self):
        with self.assertRaisesRegex(
            TypeError, "TwoTower models. Received: str"
        ):
            recsys.ensemble([model(0), "other"])

    def test_weights_that_a_first_call_creates_and_other_types(self):
        class Late(keras.layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.dense = keras.layers.Dense(4)

            def build(self, shape):
                self.built = True

            def call(self, vectors):
                return self.dense(vectors)

        keras.config.set_floatx("float64")
        try:
            table = recsys.SharedItemEmbedding(SIZE, 4)
            double = recsys.TwoTower(
                recsys.HistoryTower(table), recsys.CandidateTower(table)
            )
            double.build()
        finally:
            keras.config.set_floatx("float32")
        table = recsys.SharedItemEmbedding(SIZE, 4)
        late = recsys.TwoTower(
            recsys.HistoryTower(table, Late()), recsys.CandidateTower(table)
        )
        late(inputs())
        both = recsys.ensemble([late, double])
        total = [each(inputs()).numpy()[:, 2:] for each in (late, double)]
        np.testing.assert_allclose(
            both(inputs())[:, 2:], np.sum(total, axis=0), atol=1e-4
        )

    def test_layer_mistakes(self):
        with self.assertRaisesRegex(
            ValueError, "the same length, at least 1. Received: 2"
        ):
            recsys.EncoderEnsemble([recsys.MeanPooling()], [2, 3])
        for dim in (0, -1, 2.5):
            with self.assertRaisesRegex(ValueError, "whole numbers. Received"):
                recsys.EncoderEnsemble([recsys.MeanPooling()], [dim])
        layer = recsys.EncoderEnsemble([recsys.MeanPooling()], [2])
        with self.assertRaisesRegex(ValueError, "vectors' dim, 3. Received"):
            layer(np.zeros([1, 2, 3], np.float32))


class CommandTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(
            cls.enterClassContext(tempfile.TemporaryDirectory())
        )
        lines = ["user,item,time"]
        for user in range(30):
            lines += [
                f"u{user},i{(user + step * (1 + user % 2)) % 12},{step}"
                for step in range(8)
            ]
        (cls.folder / "log.csv").write_text("\n".join(lines))
        config = TrainConfig(
            data=str(cls.folder / "log.csv"),
            embedding_dim=4,
            num_blocks=1,
            num_epochs=1,
            transition_dim=4,
        )
        for name, changes in {
            "one": {},
            "two": {
                "seed": 2,
                "encoder": "gru",
                "embedding_dim": 3,
                "loss": "full_softmax",
            },
            "three": {"seed": 3},
            "held": {"split": "held_out_users"},
            "held_too": {"split": "held_out_users", "seed": 1},
            "short": {"max_history_length": 5},
            "filtered": {"min_user_count": 2},
            "gaps": {"time_features": "gap"},
        }.items():
            run_training(
                dataclasses.replace(config, **changes),
                cls.folder / name,
                verbose=False,
                evaluate=False,
            )

    def combine(self, names: str, output: str) -> tuple[int, str, str]:
        folders = ",".join(str(self.folder / name) for name in names.split())
        return run(
            combine,
            f"--workdirs={folders}",
            f"--output_workdir={self.folder / output}",
        )

    def test_a_workdir_as_any_other(self):
        code, output, errors = self.combine("one two", "both")
        self.assertEqual(code, 0, errors)
        self.assertIn("The sum of 2 models is in ", output)
        loaded = {
            name: recsys.load(self.folder / name)
            for name in ("one", "two", "both")
        }
        history = ["i3", "i4"]
        scores = {
            name: {r.item_id: r.score for r in each.recommend(history, 10)}
            for name, each in loaded.items()
        }
        self.assertLen(scores["both"], 10)
        for item, score in scores["both"].items():
            total = scores["one"][item] + scores["two"][item]
            self.assertAlmostEqual(score, total, places=4)
        flag = f"--workdir={self.folder / 'both'}"
        code, output, errors = run(evaluate, flag)
        self.assertEqual(code, 0, errors)
        self.assertIn("two-tower", output)
        code, _, errors = run(
            export, flag, f"--output={self.folder / 'export'}"
        )
        self.assertEqual(code, 0, errors)
        card = (self.folder / "export" / "MODEL_CARD.md").read_text()
        self.assertIn("the sum of 2 models", card)
        self.assertIn("| seed | 0, 2 |", card)
        self.assertIn("| loss | auto, full_softmax |", card)
        self.assertIn("| dimensions | 7 learned, 8 of transitions", card)
        # The table is in the SavedModel once.
        served = tf.saved_model.load(
            str(self.folder / "export" / "saved_model")
        )
        shapes = [
            variable.shape.as_list()
            for variable in served.held
            if hasattr(variable, "shape")
        ]
        self.assertEqual(shapes.count([14, 7]), 1)
        about = json.loads((self.folder / "both/combination.json").read_text())
        self.assertEqual(
            about["models"],
            [
                {"workdir": str(self.folder / name), "seed": seed, "loss": loss}
                for name, seed, loss in (
                    ("one", 0, "auto"),
                    ("two", 2, "full_softmax"),
                )
            ],
        )
        # It has no run to resume or extend.
        for module, *flags in (
            (train, f"--data={self.folder / 'log.csv'}"),
            (
                extend,
                f"--data={self.folder / 'log.csv'}",
                f"--output_workdir={self.folder / 'grown'}",
            ),
        ):
            code, _, errors = run(module, flag, *flags)
            self.assertEqual(code, 2)
            self.assertIn("Received: a model of recsys.combine", errors)

    def test_of_a_combined_model(self):
        self.combine("one two", "pair")
        code, _, errors = self.combine("pair three", "triple")
        self.assertEqual(code, 0, errors)
        parts = Workdir(self.folder / "triple").parts()
        self.assertEqual([part["seed"] for part in parts], [0, 2, 3])
        code, _, errors = self.combine("triple two", "quadruple")
        self.assertEqual(code, 2)
        self.assertIn(f"Received: {self.folder / 'two'} 2 times", errors)

    def test_a_log_within_the_workdir_comes_along(self):
        frame = pd.DataFrame(
            [
                (user, f"{(user + place) % 8}", place)
                for user in range(9)
                for place in range(6)
            ],
            columns=["user", "item", "time"],
        )
        for seed in (0, 1):
            recsys.fit(
                recsys.Log.from_frame(frame),
                self.folder / f"frame-{seed}",
                seed=seed,
                num_epochs=1,
                verbose=False,
            )
        code, _, errors = self.combine("frame-0 frame-1", "frames")
        self.assertEqual(code, 0, errors)
        for seed in (0, 1):
            shutil.rmtree(self.folder / f"frame-{seed}")
        code, _, errors = run(evaluate, f"--workdir={self.folder / 'frames'}")
        self.assertEqual(code, 0, errors)

    @parameterized.parameters(
        ("one", "new", "at least two folders"),
        ("one one", "new", "each model once"),
        ("one nowhere", "new", "--workdirs must be a folder in which"),
        ("held held_too", "new", "agree on seed. Received: 0 in"),
        ("one short", "new", "agree on max_history_length. Received: 200 in"),
        ("one filtered", "new", "agree on min_user_count. Received: 1 in"),
        ("one gaps", "new", "agree on time_features. Received: None in"),
        ("one two", "one", "must be a new or empty folder"),
    )
    def test_mistakes(self, names, output, message):
        code, _, errors = self.combine(names, output)
        self.assertEqual(code, 2)
        self.assertIn(message, errors)
        self.assertEqual(errors.count("\n"), 1)
        self.assertFalse((self.folder / "new").exists())


if __name__ == "__main__":
    absltest.main()
