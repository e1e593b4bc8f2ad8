from __future__ import annotations

import io
import pathlib
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from unittest import mock

import h5py
import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys import (
    CandidateTower,
    FeatureSum,
    HistoryTower,
    ItemFeatures,
    MeanPooling,
    SelfAttentionEncoder,
    SharedItemEmbedding,
    TwoTower,
)
from recsys.negatives import Negatives

# No other variable of these models has this shape.
SHAPE = (13, 6)

HISTORY = np.array([[3, 4, 5, 0], [0, 7, 1, 2], [9, 9, 0, 0]], np.int32)
CANDIDATES = np.array([[2, 12], [5, 6], [9, 3]], np.int32)
BATCH = {
    "history_ids": HISTORY,
    "target_ids": np.array(
        [[4, 5, 6, 0], [0, 0, 2, 8], [0, 10, 0, 0]], np.int32
    ),
}


@keras.saving.register_keras_serializable(package="two_tower_test")
class Parity(keras.layers.Layer):
    """Item features: one vector for odd ids, one for even."""

    def build(self, input_shape):
        self.rows = self.add_weight(name="rows", shape=(2, SHAPE[1]))
        self.built = True

    def call(self, ids):
        return tf.gather(tf.convert_to_tensor(self.rows), ids % 2)


def _table() -> SharedItemEmbedding:
    return SharedItemEmbedding(*SHAPE, embeddings_initializer="random_normal")


def _item_features() -> ItemFeatures:
    layer = ItemFeatures(*SHAPE, num_values=5, values_per_item=2, vector_dim=3)
    rng = np.random.default_rng(0)
    items = SHAPE[0] - 2
    layer.set_features(
        rng.integers(5, size=(items, 2)),
        rng.random((items, 2)),
        rng.standard_normal((items, 3)),
    )
    return layer


def _two_tower(encoder=None, features=None, **kwargs) -> TwoTower:
    table = _table()
    model = TwoTower(
        HistoryTower(table, encoder or MeanPooling(), item_features=features),
        CandidateTower(table, item_features=features),
        **kwargs,
    )
    model.build()
    return model


@keras.saving.register_keras_serializable(package="two_tower_test")
class OwnModel(keras.Model):
    """Someone's subclassed model over our towers."""

    def __init__(self, history_tower, candidate_tower, **kwargs):
        super().__init__(**kwargs)
        self.history_tower = history_tower
        self.candidate_tower = candidate_tower

    def build(self, input_shape=None):
        self.history_tower.build()
        self.candidate_tower.build()
        self.built = True

    def call(self, inputs):
        return {
            "query": self.history_tower(inputs["history"]),
            "candidate": self.candidate_tower(inputs["candidates"]),
        }

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "history_tower": serialize(self.history_tower),
            "candidate_tower": serialize(self.candidate_tower),
        }

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        for name in ("history_tower", "candidate_tower"):
            config[name] = deserialize(config[name])
        return cls(**config)


@keras.saving.register_keras_serializable(package="two_tower_test")
class BareModel(keras.Model):
    """Someone's subclassed model over the bare table, in three places."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = _table()
        self.dense = keras.layers.Dense(SHAPE[1])

    def build(self, input_shape=None):
        self.table.build()
        self.dense.build((None, 2 * SHAPE[1]))
        self.built = True

    def call(self, inputs):
        watched = self.table(inputs["history"], pooling="mean")
        liked = self.table(inputs["history"][:, 1])
        return {
            "query": self.dense(tf.concat([watched, liked], axis=-1)),
            "candidate": self.table(inputs["candidates"]),
        }


def _inputs() -> dict[str, keras.KerasTensor]:
    return {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("history", "candidates")
    }


def _functional(query: Callable, candidate: Callable) -> keras.Model:
    inputs = _inputs()
    return keras.Model(
        inputs,
        {
            "query": query(inputs["history"]),
            "candidate": candidate(inputs["candidates"]),
        },
    )


def _sub_model(layer: Callable, name: str) -> keras.Model:
    ids = keras.Input((None,), dtype="int32")
    return keras.Model(ids, layer(ids), name=name)


def _towers(features, encoder=None) -> tuple[HistoryTower, CandidateTower]:
    table = _table()
    common = {"item_features": features, "id_dropout": 0.1}
    return (
        HistoryTower(table, encoder or MeanPooling(), **common),
        CandidateTower(table, **common),
    )


def _functional_towers() -> keras.Model:
    return _functional(*_towers(Parity()))


def _sub_models_of_towers() -> keras.Model:
    history_tower, candidate_tower = _towers(_item_features())
    return _functional(
        _sub_model(history_tower, "query"),
        _sub_model(candidate_tower, "candidate"),
    )


def _functional_table() -> keras.Model:
    table = _table()

    def query(ids):
        pooled = [table(ids, pooling=pooling) for pooling in ("mean", "sqrtn")]
        last_liked = table(ids[:, -1])
        joined = keras.layers.Concatenate()([*pooled, last_liked])
        return keras.layers.Dense(SHAPE[1])(joined)

    return _functional(query, table)


def _sub_models_of_table() -> keras.Model:
    table = _table()
    return _functional(
        _sub_model(lambda ids: table(ids, pooling="sum"), "query"),
        _sub_model(table, "candidate"),
    )


def _many_sub_models_of_table() -> keras.Model:
    """Four places, of which one is inside another sub-model."""
    table = _table()
    watched = _sub_model(lambda ids: table(ids, pooling="mean"), "watched")
    liked = _sub_model(lambda ids: table(ids[:, -1]), "liked")
    liked = _sub_model(
        lambda ids: keras.layers.Dense(SHAPE[1])(liked(ids)), "projected"
    )
    return _functional(
        lambda ids: keras.layers.Add()([watched(ids), liked(ids)]),
        _sub_model(table, "candidate"),
    )


def _own_two_tower() -> TwoTower:
    encoder = SelfAttentionEncoder(num_blocks=1)
    return TwoTower(*_towers(_item_features(), encoder))


MODELS = {
    "two_tower": _own_two_tower,
    "functional_towers": _functional_towers,
    "sub_models_of_towers": _sub_models_of_towers,
    "functional_table": _functional_table,
    "sub_models_of_table": _sub_models_of_table,
    "many_sub_models_of_table": _many_sub_models_of_table,
    "subclassed_towers": lambda: OwnModel(*_towers(Parity())),
    "subclassed_table": BareModel,
}


def _call(model: keras.Model) -> dict[str, tf.Tensor]:
    if isinstance(model, TwoTower):
        return {
            "query": model.history_tower(tf.constant(HISTORY)),
            "candidate": model.candidate_tower(tf.constant(CANDIDATES)),
        }
    return model({"history": HISTORY, "candidates": CANDIDATES})


def _made(name: str) -> keras.Model:
    model = MODELS[name]()
    if isinstance(model, TwoTower):
        model({"history_ids": HISTORY})
    _call(model)
    return model


def _tables_in_h5(file) -> list[str]:
    found = []

    def visit(name, node):
        if isinstance(node, h5py.Dataset) and node.shape == SHAPE:
            found.append(name)

    with h5py.File(file) as opened:
        opened.visititems(visit)
    return found


def _tables_in_checkpoint(prefix: pathlib.Path) -> list[str]:
    return [
        name
        for name, shape in tf.train.list_variables(str(prefix))
        if tuple(shape) == SHAPE
    ]


class OneTableTest(parameterized.TestCase):
    """Promise 1, for our model and for those that people make of its parts."""

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        self.enterContext(warnings.catch_warnings())
        warnings.simplefilter("error", UserWarning)

    def _check_one_table(self, model: keras.Model) -> None:
        """One variable, which both sides read and a step moves for both."""
        tables = [v for v in model.variables if tuple(v.shape) == SHAPE]
        self.assertLen(tables, 1)
        trained = [
            v for v in model.trainable_variables if tuple(v.shape) == SHAPE
        ]
        self.assertLen(trained, 1)
        for side in ("query", "candidate"):
            before = _call(model)
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(_call(model)[side] ** 2)
            gradient = tape.gradient(loss, tables[0].value)
            self.assertIsNotNone(gradient, f"{side} reads another table")
            optimizer = keras.optimizers.SGD(1.0)
            optimizer.apply([gradient], tables)
            after = _call(model)
            for name in before:
                moved = np.abs(before[name] - after[name]).max()
                self.assertGreater(moved, 0, f"{side} moved {name}")

    def _check_equal(self, model: keras.Model, other: keras.Model) -> None:
        one, two = _call(model), _call(other)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])

    @parameterized.parameters(*MODELS)
    def test_in_memory(self, name):
        self._check_one_table(_made(name))

    @parameterized.parameters(*MODELS)
    def test_keras_file(self, name):
        model = _made(name)
        for generation in range(2):
            path = self.folder / f"{generation}.keras"
            model.save(path)
            with zipfile.ZipFile(path) as opened:
                weights = io.BytesIO(opened.read("model.weights.h5"))
            self.assertLen(_tables_in_h5(weights), 1)
            loaded = keras.models.load_model(path)
            self._check_equal(model, loaded)
            model = loaded
        self._check_one_table(model)
        if isinstance(model, TwoTower):
            self.assertIs(
                model.history_tower.item_features,
                model.candidate_tower.item_features,
            )

    @parameterized.parameters(*MODELS)
    def test_weights_file(self, name):
        model, other = _made(name), _made(name)
        path = self.folder / "x.weights.h5"
        model.save_weights(path)
        self.assertLen(_tables_in_h5(path), 1)
        other.load_weights(path)
        self._check_equal(model, other)
        self._check_one_table(other)

    @parameterized.parameters(*MODELS)
    def test_checkpoint(self, name):
        model, other = _made(name), _made(name)
        prefix = self.folder / "checkpoint"
        tf.train.Checkpoint(model=model).write(str(prefix))
        self.assertLen(_tables_in_checkpoint(prefix), 1)
        tf.train.Checkpoint(model=other).read(str(prefix)).assert_consumed()
        self._check_equal(model, other)
        self._check_one_table(other)

    @parameterized.parameters(*MODELS)
    def test_saved_model(self, name):
        model = _made(name)
        folder = self.folder / "saved"
        signature = tf.function(
            lambda history, candidates: (
                _call(model)
                if isinstance(model, TwoTower)
                else model({"history": history, "candidates": candidates})
            )
        ).get_concrete_function(
            tf.TensorSpec([None, None], tf.int32, "history"),
            tf.TensorSpec([None, None], tf.int32, "candidates"),
        )
        tf.saved_model.save(model, str(folder), signatures=signature)
        self.assertLen(
            _tables_in_checkpoint(folder / "variables" / "variables"), 1
        )
        loaded = tf.saved_model.load(str(folder))
        serve = loaded.signatures["serving_default"]
        tables = [v for v in serve.variables if tuple(v.shape) == SHAPE]
        self.assertLen({id(table) for table in tables}, 1)
        arguments = {
            "history": tf.constant(HISTORY),
            "candidates": tf.constant(CANDIDATES),
        }
        before = serve(**arguments)
        for side, expected in _call(model).items():
            np.testing.assert_allclose(before[side], expected, rtol=1e-5)
        tables[0].assign_add(tf.ones(SHAPE))
        after = serve(**arguments)
        for side in before:
            self.assertGreater(np.abs(before[side] - after[side]).max(), 0)

    @parameterized.parameters(True, False)
    def test_clones_of_two_tower(self, share_features):
        table = _table()
        features = Parity()
        model = TwoTower(
            HistoryTower(table, MeanPooling(), item_features=features),
            CandidateTower(
                table, item_features=features if share_features else Parity()
            ),
        )
        model({"history_ids": HISTORY})
        for clone in (
            keras.models.clone_model(model),
            TwoTower.from_config(model.get_config()),
        ):
            clone({"history_ids": HISTORY})
            self._check_one_table(clone)
            self.assertIsNot(
                clone.history_tower.embedding.embeddings, table.embeddings
            )
            self.assertEqual(
                clone.history_tower.item_features
                is clone.candidate_tower.item_features,
                share_features,
            )
            self.assertEqual(
                [tuple(v.shape) for v in clone.variables],
                [tuple(v.shape) for v in model.variables],
            )

    def test_two_loads_of_a_file_are_two_models(self):
        model = _made("functional_towers")
        model.save(self.folder / "x.keras")
        first, second = (
            keras.models.load_model(self.folder / "x.keras") for _ in range(2)
        )
        self.assertTrue(
            {id(v) for v in first.variables}.isdisjoint(
                id(v) for v in second.variables
            )
        )

    def test_two_tables_stay_two(self):
        inputs = _inputs()
        model = keras.Model(
            inputs,
            [_table()(inputs["history"]), _table()(inputs["candidates"])],
        )
        model.save(self.folder / "x.keras")
        loaded = keras.models.load_model(self.folder / "x.keras")
        self.assertLen(loaded.variables, 2)
        for one, other in zip(model.variables, loaded.variables):
            np.testing.assert_array_equal(one, other)

    def test_export(self):
        model = _two_tower(SelfAttentionEncoder(num_blocks=1))
        model.export(str(self.folder / "export"))
        self.assertLen(
            _tables_in_checkpoint(
                self.folder / "export" / "variables" / "variables"
            ),
            1,
        )
        loaded = tf.saved_model.load(str(self.folder / "export"))
        # Of any number and length, although the model never saw these.
        for history in (HISTORY, HISTORY[:1, :2]):
            np.testing.assert_allclose(
                loaded.serve({"history_ids": tf.constant(history)}),
                model({"history_ids": history}),
                rtol=1e-5,
                atol=1e-7,
            )

    def test_default_signature_of_a_saved_model(self):
        model = _two_tower()
        model({"history_ids": HISTORY})
        tf.saved_model.save(model, str(self.folder / "saved"))
        self.assertLen(
            _tables_in_checkpoint(
                self.folder / "saved" / "variables" / "variables"
            ),
            1,
        )
        loaded = tf.saved_model.load(str(self.folder / "saved"))
        serve = loaded.signatures["serving_default"]
        [scores] = serve(history_ids=tf.constant(HISTORY[:2, 1:3])).values()
        np.testing.assert_allclose(
            scores,
            model({"history_ids": HISTORY[:2, 1:3]}),
            rtol=1e-5,
            atol=1e-7,
        )


def _plain_loss(
    table: np.ndarray, masks_known: bool = False
) -> tuple[float, int]:
    """Mean pooling and softmax, one position after the other."""
    total, count = 0.0, 0
    for history, targets in zip(BATCH["history_ids"], BATCH["target_ids"]):
        read, known = [], set()
        for item, target in zip(history, targets):
            if item:
                read.append(table[item])
            if masks_known:
                known.add(item)
            if target:
                scores = table[2:] @ np.mean(read, axis=0)
                compared = [
                    item == target or item not in known
                    for item in range(2, len(table))
                ]
                log_sum = np.log(np.exp(scores[compared]).sum())
                total += log_sum - scores[target - 2]
                count += 1
    return total, count


class LossTest(parameterized.TestCase):
    @parameterized.product(masks_known=(False, True), trained=(False, True))
    def test_against_plain_numpy(self, masks_known, trained):
        model = _two_tower()
        model.masks_known = masks_known
        if trained:  # All of them, but not in the full softmax's own way.
            model.trained_items = np.arange(2, SHAPE[0])
        model.history_tower.embedding.embeddings.assign(
            np.random.default_rng(0).normal(size=SHAPE)
        )
        loss, count = model.next_item_loss(BATCH)
        expected = _plain_loss(
            model.history_tower.embedding.embeddings.numpy().astype(np.float64),
            masks_known,
        )
        self.assertEqual(float(count), expected[1])
        self.assertAlmostEqual(float(loss), expected[0], places=4)
        if masks_known:
            self.assertLess(
                expected[0],
                _plain_loss(model.history_tower.embedding.embeddings.numpy())[
                    0
                ],
            )

    def test_known_items_that_are_not_trained(self):
        # Items 3 and 4 are no candidates; only 2 is left beside the target 5.
        model = _two_tower()
        model.masks_known = True
        model.trained_items = np.array([2, 5])
        batch = {
            "history_ids": np.array([[3, 4]], np.int32),
            "target_ids": np.array([[0, 5]], np.int32),
        }
        table = model.history_tower.embedding.embeddings.numpy()
        scores = table[[2, 5]] @ ((table[3] + table[4]) / 2)
        loss, _ = model.next_item_loss(batch)
        expected = np.log(np.exp(scores).sum()) - scores[1]
        self.assertAlmostEqual(float(loss), expected, places=5)
        batch["history_ids"][0, 0] = 2
        loss, _ = model.next_item_loss(batch)
        self.assertAlmostEqual(float(loss), 0, places=6)

    def test_known_items_where_the_user_comes_first(self):
        # The first target knows nothing, the second one item 3, and 4 is not
        # known to the position at which it is the target.
        table = SharedItemEmbedding(6, 2)
        tower = HistoryTower(
            table, MeanPooling(dropout=0.0), user_features=FeatureSum(3, 2)
        )
        model = TwoTower(tower, CandidateTower(table))
        model.masks_known = True
        batch = {
            "history_ids": np.array([[3, 4]], np.uint8),
            "target_ids": np.array([[4, 5]], np.int32),
            "first_ids": np.array([3], np.int32),
            "user_features": np.array([[1]], np.int32),
        }
        loss, count = model.next_item_loss(batch)
        queries = tower(
            batch["history_ids"],
            return_sequences=True,
            features={"user_features": batch["user_features"]},
            with_start=True,
        )
        logits = np.exp(queries[0] @ table.embeddings.numpy().T)
        expected = 0.0
        for position, compared in enumerate(([2, 3, 4, 5], [2, 4, 5], [2, 5])):
            target = [3, 4, 5][position]
            total = logits[position, compared].sum()
            expected += np.log(total / logits[position, target])
        self.assertEqual(float(count), 3)
        self.assertAlmostEqual(float(loss), expected, places=5)

    def test_known_items_with_negatives_that_know_of_none(self):
        model = _two_tower()
        batch = {
            "history_ids": np.array([[7]], np.int32),
            "target_ids": np.array([[5]], np.int32),
        }
        losses = []
        for ids, masks_known in ([7, 4], False), ([7, 4], True), ([4], False):
            model.masks_known = masks_known
            negatives = Negatives(tf.constant(ids), None, None)
            loss, _ = model.next_item_loss(batch, negatives=negatives)
            losses.append(float(loss))
        self.assertGreater(losses[0], losses[1])
        self.assertAlmostEqual(losses[1], losses[2], places=6)

    def test_transitions_are_in_scores_but_not_in_the_loss(self):
        table = SharedItemEmbedding(*SHAPE)
        model = TwoTower(
            HistoryTower(table, MeanPooling(dropout=0.0), transition_dim=3),
            CandidateTower(table, transition_dim=3),
        )
        model.build()
        draw = np.random.default_rng(0).normal
        keys, values = (draw(size=(SHAPE[0], 3)) for _ in range(2))
        keys[:2] = 0
        plain = model({"history_ids": HISTORY}).numpy()
        dislikes = {"dislike_ids": np.array([[4]] * len(HISTORY), np.int32)}
        negatives = Negatives(tf.constant([7, 4, 9]), None, None)
        kinds = [(BATCH, None), ({**BATCH, **dislikes}, None)]
        kinds += [(batch, negatives) for batch, _ in kinds]
        before = [
            float(model.next_item_loss(batch, negatives=each)[0])
            for batch, each in kinds
        ]
        model.history_tower.transition_keys.assign(keys)
        model.candidate_tower.transition_values.assign(values)
        after = [
            float(model.next_item_loss(batch, negatives=each)[0])
            for batch, each in kinds
        ]
        self.assertEqual(before, after)
        history = [item for item in HISTORY[0] if item > 1]
        sketch = sum(
            0.8**age * keys[item] for age, item in enumerate(history[::-1])
        )
        scores = model({"history_ids": HISTORY}).numpy()
        np.testing.assert_allclose(
            scores[0, 2:] - plain[0, 2:], 8 * values[2:] @ sketch, rtol=1e-3
        )

    def test_padding_and_unknown_are_no_targets(self):
        model = _two_tower()
        loss, count = model.next_item_loss(
            {**BATCH, "target_ids": HISTORY * 0 + [[0, 1, 0, 1]]}
        )
        self.assertEqual((float(loss), float(count)), (0, 0))

    def test_rows_of_padding_and_unknown_are_not_candidates(self):
        model = _two_tower()
        table = model.history_tower.embedding.embeddings
        with tf.GradientTape() as tape:
            loss, _ = model.next_item_loss(
                {
                    "history_ids": np.array([[3, 4]], np.int32),
                    "target_ids": np.array([[4, 5]], np.int32),
                }
            )
        gradient = tf.convert_to_tensor(tape.gradient(loss, table.value))
        np.testing.assert_array_equal(gradient[:2], np.zeros((2, SHAPE[1])))
        self.assertGreater(np.abs(gradient[2:]).min(axis=1).max(), 0)

    @parameterized.parameters("full", "shared", "per_row", "known")
    def test_one_row(self, kind):
        # Two equal rows have twice the loss of one.
        model = _two_tower()
        table = model.history_tower.embedding.embeddings.value

        @tf.function(
            input_signature=[
                {name: tf.TensorSpec([None, None], tf.int32) for name in BATCH}
            ]
        )
        def loss_and_gradient(batch):
            negatives = None
            num_rows = tf.shape(batch["history_ids"])[0]
            if kind != "full":
                ids = tf.constant([7, 4, 9])
                known = batch["history_ids"] if kind == "known" else None
                if kind == "per_row":
                    ids = tf.tile(ids[tf.newaxis], [num_rows, 1])
                negatives = Negatives(ids, None, known)
            with tf.GradientTape() as tape:
                loss, count = model.next_item_loss(batch, negatives=negatives)
            gradient = tape.gradient(loss, table)
            return loss, count, tf.convert_to_tensor(gradient)

        row = {name: rows[:1] for name, rows in BATCH.items()}
        one = loss_and_gradient(row)
        two = loss_and_gradient(
            {name: np.repeat(rows, 2, axis=0) for name, rows in row.items()}
        )
        self.assertEqual(float(one[1]), 3)
        for of_one, of_two in zip(one, two):
            np.testing.assert_allclose(2 * of_one, of_two, rtol=1e-5, atol=1e-7)


class ScoresTest(parameterized.TestCase):
    @parameterized.parameters(None, Parity)
    def test_dot_products(self, features):
        model = _two_tower(features=features and features())
        scores = model({"history_ids": HISTORY}).numpy()
        queries = model.history_tower(HISTORY).numpy()
        vectors = model.candidate_tower(np.arange(SHAPE[0])).numpy()
        self.assertEqual(scores.shape, (3, SHAPE[0]))
        np.testing.assert_allclose(
            scores[:, 2:], queries @ vectors[2:].T, rtol=1e-5, atol=1e-7
        )
        some = model({"history_ids": HISTORY, "candidate_ids": CANDIDATES})
        np.testing.assert_allclose(
            some,
            np.take_along_axis(scores, CANDIDATES, 1),
            rtol=1e-5,
            atol=1e-7,
        )

    def test_padding_and_unknown_never_rank(self):
        model = _two_tower()
        table = np.full(SHAPE, -5.0)
        table[:2] = 100
        table[3] = 1
        model.history_tower.embedding.embeddings.assign(table)
        scores = model({"history_ids": np.array([[3, 1, 3]])}).numpy()
        self.assertTrue((scores[:, :2] < scores[:, 2:].min()).all())
        self.assertTrue(np.isfinite(scores).all())
        best = tf.math.top_k(scores, SHAPE[0]).indices.numpy()
        self.assertCountEqual(best[0, -2:], [0, 1])


class FitTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enterContext(warnings.catch_warnings())
        warnings.simplefilter("error", UserWarning)
        # Keras says this to everyone who fits a dataset.
        warnings.filterwarnings("ignore", message=".*shuffle=True.*")
        self.train_ds = tf.data.Dataset.from_tensors(BATCH).repeat(5)

    def test_skipping_padding_goes_without_xla(self):
        table = _table()
        encoder = SelfAttentionEncoder(num_blocks=1, num_heads=1)
        model = TwoTower(HistoryTower(table, encoder), CandidateTower(table))
        # With a GPU, Keras compiles with XLA what it can.
        device = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
        for skips in (False, True):
            encoder.skips_padding = skips
            with mock.patch.object(
                tf.config, "list_physical_devices", return_value=[device]
            ):
                model.compile(optimizer="adam")
            self.assertIs(model.jit_compile, not skips)
        losses = model.fit(self.train_ds, verbose=0).history["loss"]
        self.assertTrue(np.isfinite(losses[0]))

    def test_plain_compile_and_fit(self):
        keras.utils.set_random_seed(0)
        table = _table()
        model = TwoTower(
            HistoryTower(table, MeanPooling()), CandidateTower(table)
        )
        model.compile(optimizer=keras.optimizers.Adam(0.05))
        # XLA makes this model slower on a CPU, and takes long to compile.
        self.assertFalse(model.jit_compile)
        losses = model.fit(
            self.train_ds, validation_data=self.train_ds, epochs=4, verbose=0
        ).history
        self.assertLess(losses["loss"][-1], 0.9 * losses["loss"][0])
        # Without dropout the next epoch begins about where this one ended.
        self.assertLess(losses["val_loss"][-1], losses["loss"][-1])
        self.assertEqual(
            model.predict(self.train_ds, verbose=0).shape, (15, SHAPE[0])
        )
        total, count = _plain_loss(table.embeddings.numpy().astype(np.float64))
        self.assertAlmostEqual(
            model.evaluate(self.train_ds, verbose=0), total / count, places=4
        )
        with tempfile.TemporaryDirectory() as folder:
            model.save(f"{folder}/x.keras")
            loaded = keras.models.load_model(f"{folder}/x.keras")
        # With its optimizer, training goes on as if nothing had happened.
        for each in (model, loaded):
            each.fit(self.train_ds, verbose=0)
        np.testing.assert_array_equal(model.variables[0], loaded.variables[0])

    def test_one_step_is_the_gradient_of_the_mean_loss(self):
        model = _two_tower()
        table = model.history_tower.embedding.embeddings
        before = table.numpy()
        with tf.GradientTape() as tape:
            loss, count = model.next_item_loss(BATCH)
            mean = loss / count
        gradient = tf.convert_to_tensor(tape.gradient(mean, table.value))
        model.compile(optimizer=keras.optimizers.SGD(0.5), run_eagerly=True)
        model.train_on_batch(BATCH)
        np.testing.assert_allclose(
            table, before - 0.5 * gradient, rtol=1e-5, atol=1e-7
        )

    @parameterized.parameters("mixed_float16", "mixed_bfloat16")
    def test_half_precision_learns_at_the_same_speed(self, policy):
        losses = []
        for dtype in ("float32", policy):
            keras.utils.set_random_seed(0)
            table = SharedItemEmbedding(*SHAPE, dtype=dtype)
            model = TwoTower(
                HistoryTower(table, MeanPooling(dtype=dtype), dtype=dtype),
                CandidateTower(table, dtype=dtype),
                dtype=dtype,
            )
            model.compile(optimizer=keras.optimizers.SGD(5.0))
            history = model.fit(self.train_ds, epochs=3, verbose=0).history
            losses.append(history["loss"])
        np.testing.assert_allclose(*losses, rtol=0.05)

    def test_regularizers_belong_to_the_loss(self):
        steps = []
        for strength in (0.0, 1.0):
            keras.utils.set_random_seed(0)
            encoder = keras.layers.GRU(
                SHAPE[1],
                return_sequences=True,
                kernel_regularizer=keras.regularizers.L2(strength),
            )
            model = _two_tower(encoder)
            model.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
            kernel = encoder.trainable_variables[0]
            before = kernel.numpy()
            model.train_on_batch(BATCH)
            steps.append(kernel.numpy() - before)
        # The gradient of the L2 penalty is 2 * kernel.
        np.testing.assert_allclose(
            steps[1] - steps[0], -0.2 * before, rtol=1e-3, atol=1e-6
        )

    @parameterized.parameters({"loss": "mse"}, {"metrics": ["accuracy"]})
    def test_a_loss_of_one_s_own_is_not_ignored(self, **arguments):
        model = _two_tower()
        model.compile(optimizer="sgd", run_eagerly=True, **arguments)
        [name] = arguments
        with self.assertRaisesRegex(
            ValueError, f"`{name}` must not be given to .* Received: "
        ):
            model.train_on_batch(BATCH)


class ErrorsTest(parameterized.TestCase):
    def test_towers_of_two_sketches(self):
        table = SharedItemEmbedding(*SHAPE)
        with self.assertRaisesRegex(ValueError, "`transition_dim`. .*3 and 0"):
            TwoTower(
                HistoryTower(table, transition_dim=3), CandidateTower(table)
            )

    def test_towers_of_two_tables(self):
        tables = [SharedItemEmbedding(*SHAPE, name=name) for name in ("a", "b")]
        with self.assertRaisesRegex(
            ValueError,
            "`history_tower` and `candidate_tower` must share one "
            "SharedItemEmbedding. Received: a and b",
        ):
            TwoTower(HistoryTower(tables[0]), CandidateTower(tables[1]))


if __name__ == "__main__":
    absltest.main()
