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


def functional_model(table):
    """Histories and candidates, scored by two towers over one table."""
    histories = keras.Input((None,), dtype="int32", name="histories")
    candidate = keras.Input((), dtype="int32", name="candidate")
    return keras.Model(
        [histories, candidate],
        keras.layers.Dot(1)(
            [
                recsys.HistoryTower(table, recsys.MeanPooling())(histories),
                recsys.CandidateTower(table)(candidate),
            ]
        ),
    )


class OneTableTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enter_context(tempfile.TemporaryDirectory())
        self.model = functional_model(recsys.SharedItemEmbedding(SIZE, DIM))

    def check(self, again):
        self.assertLen(again.weights, 1)
        self.assertIsNot(again.weights[0], self.model.weights[0])
        # With a table of ones and a rate of 1, Σ (1 − 3 · 4)² / 1 has the
        # gradient 2 (4 − 1) for each entry of both towers' rows.
        again.set_weights([np.ones((SIZE, DIM))])
        again.compile(keras.optimizers.SGD(1.0), "mse")
        again.fit([np.array([[2]]), np.array([3])], np.ones(1), verbose=0)
        expected = np.ones((SIZE, DIM))
        expected[2:4] -= 2 * (4 - 1)
        np.testing.assert_allclose(again.get_weights()[0], expected)

    @parameterized.parameters("a.keras", "a.h5")
    def test_files(self, name):
        path = f"{self.folder}/{name}"
        self.model.save(path)
        again = keras.saving.load_model(path)
        np.testing.assert_array_equal(
            again.weights[0].numpy(), self.model.weights[0].numpy()
        )
        self.check(again)

    def test_configurations(self):
        path = f"{self.folder}/a.weights.h5"
        self.model.save_weights(path)
        again = keras.models.model_from_json(self.model.to_json())
        again.load_weights(path)
        np.testing.assert_array_equal(
            again.weights[0].numpy(), self.model.weights[0].numpy()
        )
        self.check(again)
        self.check(keras.Model.from_config(self.model.get_config()))

    def test_towers_within_functional_models_within_a_model(self):
        inputs = [
            keras.Input(tensor.shape[1:], dtype="int32")
            for tensor in self.model.inputs
        ]
        histories, candidate = self.model.inputs
        *towers, dot = self.model.layers[-3:]
        user = keras.Model(histories, towers[0](histories))
        item = keras.Model(candidate, towers[1](candidate))
        outputs = dot([user(inputs[0]), item(inputs[1])])
        nested = keras.Model(inputs, outputs)
        self.assertLen(nested.weights, 1)
        self.check(keras.models.model_from_json(nested.to_json()))

    def test_models_of_one_configuration_have_tables_of_their_own(self):
        text = self.model.to_json()
        models = [keras.models.model_from_json(text) for _ in range(2)]
        self.assertIsNot(models[0].weights[0], models[1].weights[0])
        table = self.model.layers[-2].embedding
        self.assertIsNot(
            type(table).from_config(table.get_config()).table, table.table
        )

    def test_clone_model_copies_each_layer(self):
        self.assertLen(keras.models.clone_model(self.model).weights, 2)
        model = keras.models.clone_model(make_model())
        model.build()
        self.assertLen(model.weights, 1)


class EmbeddingArgumentsTest(parameterized.TestCase):
    VALUES = np.arange(SIZE * DIM, dtype=np.float32).reshape(SIZE, DIM)

    def table(self, **kwargs):
        return recsys.SharedItemEmbedding(
            SIZE, DIM, weights=[self.VALUES], **kwargs
        )

    @parameterized.parameters(True, False)
    def test_weights(self, is_list):
        weights = [self.VALUES] if is_list else self.VALUES
        table = recsys.SharedItemEmbedding(
            SIZE, DIM, weights=weights, trainable=False
        )
        np.testing.assert_array_equal(
            table(np.array([[0, 5]]))[0], [[0] * 4, [*range(20, 24)]]
        )
        self.assertEmpty(table.trainable_weights)
        with self.assertRaisesRegex(
            ValueError, r"`weights` must have .*\(12, 4\). Received: \(11, 4\)"
        ):
            recsys.SharedItemEmbedding(SIZE, DIM, weights=self.VALUES[1:])

    def test_mask_zero(self):
        recsys.SharedItemEmbedding(SIZE, DIM, mask_zero=True)
        with self.assertRaisesRegex(ValueError, "`mask_zero` must be True"):
            recsys.SharedItemEmbedding(SIZE, DIM, mask_zero=False)

    def test_regularizer(self):
        table = self.table(embeddings_regularizer=keras.regularizers.L2(0.5))
        # Σ n² for n below 48 is 47 · 48 · 95 / 6.
        self.assertAlmostEqual(float(sum(table.losses)), 0.5 * 35720, places=2)
        again = recsys.SharedItemEmbedding.from_config(table.get_config())
        again.build()
        self.assertLen(again.losses, 1)
        model = make_model(
            embeddings_regularizer="l2", embeddings_initializer="ones"
        )
        model.compile(keras.optimizers.SGD(1.0))
        inputs = {"history_ids": HISTORIES, "target_ids": 0 * TARGETS}
        model.fit(inputs, verbose=0)
        # Nothing to learn but the penalty 0.01 n², with gradient 0.02 n.
        np.testing.assert_allclose(table_of(model).numpy(), 0.98, rtol=1e-6)

    def test_constraint(self):
        model = make_model(
            embeddings_constraint=keras.constraints.MaxNorm(1, axis=1)
        )
        table_of(model).assign(self.VALUES)
        model.compile(keras.optimizers.SGD(0.1))
        model.fit({"history_ids": HISTORIES}, TARGETS, verbose=0)
        norms = np.linalg.norm(table_of(model).numpy(), axis=1)
        np.testing.assert_allclose(norms, 1, rtol=1e-5)

    def test_lora(self):
        table = self.table()
        table.enable_lora(2, lora_alpha=6)
        lora_a, lora_b = table.table.lora_a, table.table.lora_b
        np.testing.assert_array_equal(table(np.array([7])), self.VALUES[7:8])
        lora_a.assign(np.tile(np.arange(SIZE)[:, np.newaxis], 2))
        lora_b.assign([[1, 0, 0, 0], [0, 1, 0, 0]])
        # Item 5: (20, 21, 22, 23) + 6 / 2 · (5, 5, 0, 0).
        expected = [[0, 0, 0, 0], [35, 36, 22, 23]]
        np.testing.assert_array_equal(table(np.array([0, 5])), expected)
        every = recsys.CandidateTower(table).all_candidates()
        np.testing.assert_array_equal(every[5], expected[1])
        self.assertLen(table.trainable_weights, 2)
        with self.assertRaisesRegex(
            ValueError, "without LoRA. Received: one w"
        ):
            table.enable_lora(2)

        path = self.enter_context(tempfile.TemporaryDirectory()) + "/a.keras"
        ids = keras.Input((), dtype="int32")
        keras.Model(ids, table(ids)).save(path)
        again = keras.saving.load_model(path)
        np.testing.assert_array_equal(again(np.array([0, 5])), expected)
        self.assertLen(again.trainable_weights, 2)

    def test_lora_trains_the_update_alone(self):
        model = make_model(lora_rank=2)
        table = model.history_tower.embedding
        before = table.embeddings.numpy(), table.table.rows().numpy()
        model.compile(keras.optimizers.SGD(1.0))
        model.fit({"history_ids": HISTORIES}, TARGETS, verbose=0)
        np.testing.assert_array_equal(table.embeddings.numpy(), before[0])
        self.assertGreater(np.abs(table.table.rows() - before[1]).max(), 0)

    def test_lora_is_refused(self):
        with self.assertRaisesRegex(ValueError, "Received: an unbuilt layer"):
            recsys.SharedItemEmbedding(SIZE, DIM).enable_lora(2)
        with self.assertRaisesRegex(ValueError, "without `embeddings_constra"):
            self.table(embeddings_constraint="max_norm").enable_lora(2)

    def test_sparse_ids(self):
        table = self.table()
        ids = tf.sparse.from_dense([[3, 0, 5], [0, 0, 0]])
        # Rows 3 and 5 are 12 to 15 and 20 to 23.
        np.testing.assert_array_equal(
            table(ids, pooling="mean"), [[16, 17, 18, 19], [0] * 4]
        )
        weights = tf.sparse.from_dense([[3.0, 0, 1], [0, 0, 0]])
        np.testing.assert_array_equal(
            table(ids, weights, pooling="mean"), [[14, 15, 16, 17], [0] * 4]
        )
        inputs = keras.Input((None,), dtype="int32", sparse=True)
        model = keras.Model(inputs, table(inputs, pooling="sum"))
        np.testing.assert_array_equal(model(ids)[0], [32, 34, 36, 38])

    def test_is_an_embedding_to_keras(self):
        table = self.table(name="items")
        model = keras.Sequential([keras.Input((None,), dtype="int32"), table])
        folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        keras.callbacks.TensorBoard(
            folder, embeddings_freq=1, embeddings_metadata={"items": "m.tsv"}
        ).set_model(model)
        (projector,) = folder.rglob("projector_config.pbtxt")
        self.assertIn("m.tsv", projector.read_text())

    def test_quantized(self):
        model = make_model(recsys.GRUEncoder())
        inputs = {"history_ids": HISTORIES}
        exact = model(inputs)[:, 2:]
        with self.assertWarns(UserWarning):  # The GRU's cell stays as it is.
            model.quantize("int8")
        with self.assertRaisesRegex(NotImplementedError, "SharedItemEmbedding"):
            model.history_tower.embedding.quantize("int8")
        quantized = model(inputs)[:, 2:]
        np.testing.assert_allclose(quantized, exact, atol=1e-4)
        self.assertGreater(np.abs(quantized - exact).max(), 0)
        path = self.enter_context(tempfile.TemporaryDirectory()) + "/a.keras"
        model.save(path)
        again = keras.saving.load_model(path)
        np.testing.assert_array_equal(again(inputs)[:, 2:], quantized)


class ShapesTest(parameterized.TestCase):
    @parameterized.parameters(
        (np.array([3, 4]), r"\(2,\)"), (np.ones((2, 3, 4), int), r"\(2, 3, 4\)")
    )
    def test_histories(self, ids, shape):
        with self.assertRaisesRegex(
            ValueError, rf"`ids` must be .*\[batch, length\].*shape: {shape}"
        ):
            make_model().history_tower(ids)

    @parameterized.parameters(
        (lambda: keras.layers.LSTM(DIM), r"\(4, 4\)"),
        (
            lambda: keras.layers.LSTM(7, return_sequences=True),
            r"\(4, 3, 7\)",
        ),
    )
    def test_encoders(self, make, shape):
        with self.assertRaisesRegex(
            ValueError, rf"same shape .*\(4, 3, 4\). Received: {shape}"
        ):
            make_model(make()).history_tower(HISTORIES)

    def test_inputs(self):
        model = make_model()
        for inputs in (HISTORIES, {"ids": HISTORIES}):
            with self.assertRaisesRegex(
                ValueError, "a dictionary with `history_ids`"
            ):
                model(inputs)
        with self.assertRaisesRegex(
            ValueError, r"\[batch, num_candidates\]. Received shape: \(2,\)"
        ):
            model({"history_ids": HISTORIES, "candidate_ids": np.array([7, 8])})

    def test_a_single_id_has_nothing_to_pool(self):
        with self.assertRaisesRegex(ValueError, "an axis to pool"):
            recsys.SharedItemEmbedding(SIZE, DIM)(np.array(3), pooling="mean")

    def test_weights_of_another_table(self):
        path = self.enter_context(tempfile.TemporaryDirectory())
        path += "/a.weights.h5"
        make_model().save_weights(path)
        table = recsys.SharedItemEmbedding(SIZE + 5, DIM)
        model = recsys.TwoTower(
            recsys.HistoryTower(table, recsys.MeanPooling()),
            recsys.CandidateTower(table),
        )
        model.build()
        with self.assertRaisesRegex(
            ValueError, r"the shape .*\(17, 4\). Received: \(12, 4\)"
        ):
            model.load_weights(path)


if __name__ == "__main__":
    absltest.main()
