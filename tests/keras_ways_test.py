"""What strangers do with the layers and the model, in Keras's own ways."""

import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

import recsys
from recsys import losses
from recsys.negatives import NegativeSampler

SIZE, DIM = 12, 4
HISTORIES = np.array([[2, 3, 4], [0, 5, 6], [7, 8, 0], [9, 0, 0]], np.int32)
TARGETS = np.array([[3, 4, 5], [0, 6, 7], [8, 9, 0], [10, 0, 0]], np.int32)


def make_model(encoder=None, **table):
    embedding = recsys.SharedItemEmbedding(SIZE, DIM, **table)
    model = recsys.TwoTower(
        recsys.HistoryTower(embedding, encoder or recsys.MeanPooling()),
        recsys.CandidateTower(embedding),
    )
    model.build()
    return model


def table_of(model):
    return model.candidate_tower.embedding.embeddings


class Mine(keras.layers.Layer):
    """An encoder of one's own, registered nowhere."""

    def call(self, vectors, mask=None):
        return 2 * vectors


class RegistrationTest(absltest.TestCase):
    def test_files_load_after_import_recsys_alone(self):
        folder = self.enter_context(tempfile.TemporaryDirectory())
        table = recsys.SharedItemEmbedding(SIZE, DIM)
        ids = keras.Input((None,), dtype="int32")
        features = recsys.ItemFeatures(
            SIZE, DIM, num_values=3, values_per_item=2
        )
        tower = recsys.HistoryTower(
            table, recsys.SelfAttentionEncoder(1, 1), item_features=features
        )
        trained = make_model(recsys.GRUEncoder())
        trained.compile(optimizer=recsys.optimizers.LazyAdam(0.01))
        models = {
            "table": keras.Model(ids, table(ids, pooling="mean")),
            "tower": keras.Model(ids, tower(ids)),
            "candidate": keras.Model(ids, recsys.CandidateTower(table)(ids)),
            "two_tower": trained,
        }
        for name, model in models.items():
            model.save(f"{folder}/{name}.keras")
        for before in (
            "import recsys, keras",
            "import keras, recsys",
            "import recsys.optimizers, keras",
            "import recsys.negatives, keras",
            "import recsys.models.towers, keras",
            "import recsys.losses, keras",
        ):
            code = f"{before}\n" + "\n".join(
                f"keras.saving.load_model({folder!r} + '/{name}.keras')"
                for name in models
            )
            subprocess.run([sys.executable, "-c", code], check=True)

    def test_importing_recsys_loads_neither_keras_nor_tensorflow(self):
        code = (
            "import sys, recsys\n"
            "sys.exit(bool({'keras', 'tensorflow'} & sys.modules.keys()))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_custom_objects(self):
        path = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory()), "a.keras"
        )
        make_model(Mine()).save(path)
        again = keras.saving.load_model(path, custom_objects={"Mine": Mine})
        self.assertIsInstance(again.history_tower.encoder, Mine)
        with keras.saving.custom_object_scope({"Mine": Mine}):
            keras.saving.load_model(path)


class TargetsTest(parameterized.TestCase):
    def loss(self, targets, **options):
        model = make_model()
        model.history_tower.embedding.embeddings.assign(
            np.random.default_rng(0).normal(size=(SIZE, DIM))
        )
        inputs = {"history_ids": HISTORIES, "target_ids": targets}
        loss, count = model.next_item_loss(inputs, training=False, **options)
        return float(loss), float(count)

    def test_one_target_per_history_belongs_to_its_last_item(self):
        targets = np.zeros_like(HISTORIES)
        last = np.array([5, 7, 9, 10])
        targets[np.arange(4), [2, 2, 1, 0]] = last
        expected = self.loss(targets)
        self.assertEqual(expected[1], 4)
        for given in (last, last[:, np.newaxis]):
            np.testing.assert_allclose(self.loss(given), expected, rtol=1e-6)

    def test_one_target_per_history_in_fit(self):
        rng = np.random.default_rng(0)
        histories = rng.integers(2, SIZE - 1, (256, 5)).astype(np.int32)
        targets = histories[:, -1] + 1
        for sampled in (False, True):
            keras.utils.set_random_seed(0)
            model = make_model(recsys.SelfAttentionEncoder(1, 1, dropout=0.0))
            if sampled:
                model.negative_sampler = NegativeSampler("uniform", 20, SIZE)
            model.compile(optimizer=keras.optimizers.Adam(0.05))
            model.fit({"history_ids": histories}, targets, epochs=12, verbose=0)
            scores = model.predict({"history_ids": histories}, verbose=0)
            self.assertGreater(np.mean(scores.argmax(1) == targets), 0.9)

    def test_other_shapes_are_errors(self):
        with self.assertRaisesRegex(
            ValueError, r"shape of `history_ids`, \(4, 3\).*Received: \(4, 2\)"
        ):
            self.loss(TARGETS[:, :2])
        with self.assertRaisesRegex(ValueError, "must have `target_ids`"):
            make_model().next_item_loss({"history_ids": HISTORIES})

    def test_a_target_beyond_the_table_is_an_error(self):
        targets = np.where(TARGETS == 10, SIZE, TARGETS)
        with self.assertRaisesRegex(
            tf.errors.InvalidArgumentError, "below the 12 rows"
        ):
            self.loss(targets)
        queries, candidates = tf.ones([2, 3]), tf.ones([5, 3])
        for target, is_fine in ((4, True), (5, False), (-1, False)):
            loss = losses.full_softmax(
                queries, candidates, tf.constant([0, target]), tf.ones(2)
            )
            self.assertEqual(bool(np.isfinite(loss)), is_fine)
        ignored = losses.full_softmax(
            queries, candidates, tf.constant([0, 99]), tf.constant([1.0, 0])
        )
        # All five candidates score alike.
        self.assertAlmostEqual(float(ignored), np.log(5), places=5)

    def test_sample_weight_multiplies_the_loss(self):
        alone = [
            self.loss(np.where(np.arange(4)[:, np.newaxis] == row, TARGETS, 0))[
                0
            ]
            for row in range(4)
        ]
        weights = tf.constant([2.0, 0.0, 1.0, 3.0])
        loss, count = self.loss(TARGETS, sample_weight=weights)
        expected = 2 * alone[0] + alone[2] + 3 * alone[3]
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        self.assertEqual(count, 8)

    def test_sample_weight_in_fit(self):
        moved = {}
        for name, weights in (("none", None), ("zero", np.zeros(4))):
            model = make_model()
            model.compile(optimizer=keras.optimizers.SGD(1.0))
            before = table_of(model).numpy()
            inputs = {"history_ids": HISTORIES, "target_ids": TARGETS}
            model.fit(inputs, sample_weight=weights, verbose=0)
            moved[name] = np.abs(table_of(model).numpy() - before).max()
        self.assertGreater(moved["none"], 0)
        self.assertEqual(moved["zero"], 0)

    def test_what_has_no_meaning_is_refused(self):
        model = make_model()
        model.compile(optimizer="sgd")
        inputs = {"history_ids": HISTORIES, "target_ids": TARGETS}
        with self.assertRaisesRegex(ValueError, "`class_weight` must be left"):
            model.fit(inputs, class_weight={5: 2.0})
        with self.assertRaisesRegex(ValueError, "`y` must be left out"):
            model.fit(inputs, TARGETS, verbose=0)


class FrozenTest(parameterized.TestCase):
    def test_a_table_frozen_in_its_constructor(self):
        model = make_model(recsys.GRUEncoder(), trainable=False)
        model.compile(optimizer=keras.optimizers.SGD(1.0))
        before = table_of(model).numpy()
        inputs = {"history_ids": HISTORIES, "target_ids": TARGETS}
        model.fit(inputs, verbose=0)
        np.testing.assert_array_equal(table_of(model).numpy(), before)

    @parameterized.parameters(
        lambda: recsys.SelfAttentionEncoder(1, 1), recsys.GRUEncoder
    )
    def test_an_encoder_frozen_before_it_is_built(self, make):
        encoder = make()
        encoder.trainable = False
        self.assertLen(make_model(encoder).trainable_weights, 1)
        self.assertLen(
            make_model(make()).trainable_weights, len(encoder.weights) + 1
        )

    def test_after_load_and_clone(self):
        path = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory()), "a.keras"
        )
        model = make_model(recsys.SelfAttentionEncoder(1, 1))
        model.history_tower.encoder.trainable = False
        model.save(path)
        self.assertLen(keras.saving.load_model(path).trainable_weights, 1)
        model = make_model()
        model.candidate_tower.embedding.trainable = False
        again = keras.models.clone_model(model)
        again.build()
        self.assertEmpty(again.trainable_weights)


class FitTest(absltest.TestCase):
    def test_callbacks_and_saving_find_the_weights(self):
        folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        table = recsys.SharedItemEmbedding(SIZE, DIM)
        model = recsys.TwoTower(
            recsys.HistoryTower(table, recsys.MeanPooling()),
            recsys.CandidateTower(table),
        )
        model.compile(optimizer="adam")
        model.fit(
            {"history_ids": HISTORIES, "target_ids": TARGETS},
            verbose=0,
            callbacks=[
                keras.callbacks.ModelCheckpoint(
                    folder / "m.weights.h5", save_weights_only=True
                ),
                keras.callbacks.BackupAndRestore(folder / "backup"),
            ],
        )
        model.save(folder / "a.keras")
        again = keras.saving.load_model(folder / "a.keras")
        self.assertLen(again.optimizer.variables, 4)
        for one, other in zip(
            model.optimizer.variables, again.optimizer.variables
        ):
            np.testing.assert_array_equal(one.numpy(), other.numpy())


class LayersTest(parameterized.TestCase):
    @parameterized.parameters(
        (lambda: recsys.SharedItemEmbedding(SIZE, DIM), (None, 3, 5, DIM)),
        (
            lambda: recsys.HistoryTower(
                recsys.SharedItemEmbedding(SIZE, DIM), recsys.MeanPooling()
            ),
            (None, 3, DIM),
        ),
        (
            lambda: recsys.CandidateTower(
                recsys.SharedItemEmbedding(SIZE, DIM)
            ),
            (None, 3, 5, DIM),
        ),
    )
    def test_time_distributed(self, make, shape):
        ids = keras.Input((3, 5), dtype="int32")
        outputs = keras.layers.TimeDistributed(make())(ids)
        self.assertEqual(outputs.shape, shape)

    @parameterized.parameters(
        recsys.MeanPooling,
        recsys.GRUEncoder,
        lambda: recsys.SelfAttentionEncoder(1, 1),
    )
    def test_histories_of_no_length(self, make):
        tower = recsys.HistoryTower(
            recsys.SharedItemEmbedding(SIZE, DIM), make()
        )
        empty = tf.ragged.constant([[], []], dtype=tf.int32)
        np.testing.assert_array_equal(tower(empty), np.zeros((2, DIM)))

    @parameterized.parameters(
        (tf.ragged.constant([[1.0], [1.0]]),),
        (tf.ragged.constant([[1.0], [1.0, 7.0]]),),
        (tf.constant([[1.0, 2.0], [3.0, 4.0]]),),
    )
    def test_weights_of_another_shape(self, weights):
        table = recsys.SharedItemEmbedding(SIZE, DIM)
        ids = tf.ragged.constant([[3, 4], [5]], dtype=tf.int32)
        with self.assertRaisesRegex(ValueError, "`weights` must be shaped as"):
            table(ids, weights=weights, pooling="sum")
        with self.assertRaisesRegex(ValueError, "`weights` must be shaped as"):
            table(tf.constant([[3, 4]]), tf.constant([[1.0]]), pooling="sum")

    def test_row_of_padding_is_never_read(self):
        table = recsys.SharedItemEmbedding(SIZE, DIM)
        table.build()
        values = np.arange(SIZE * DIM, dtype=np.float32).reshape(SIZE, DIM)
        values[0] = np.nan
        table.embeddings.assign(values)
        ids = tf.constant([[0, 3]])
        np.testing.assert_array_equal(table(ids)[0], [[0] * DIM, values[3]])
        np.testing.assert_array_equal(table(ids, pooling="mean"), values[3:4])


if __name__ == "__main__":
    absltest.main()
