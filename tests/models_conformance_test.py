"""What every public layer and model must be able to do in Keras."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

import recsys

VOCABULARY_SIZE = 11
DIM = 4

# The same histories with padding on the right, on the left, and ragged.
RIGHT = np.array([[3, 4, 5, 0], [10, 0, 0, 0]], np.int32)
LEFT = np.array([[0, 3, 4, 5], [0, 0, 0, 10]], np.int32)
RAGGED = tf.ragged.constant([[3, 4, 5], [10]], dtype=tf.int32)


def _table(**kwargs: Any) -> recsys.SharedItemEmbedding:
    return recsys.SharedItemEmbedding(VOCABULARY_SIZE, DIM, **kwargs)


def _history_tower(table=None, **kwargs: Any) -> recsys.HistoryTower:
    encoder = recsys.SelfAttentionEncoder(num_blocks=1, dropout=0.1, **kwargs)
    return recsys.HistoryTower(table or _table(**kwargs), encoder, **kwargs)


def _item_features(**kwargs: Any) -> recsys.ItemFeatures:
    features = recsys.ItemFeatures(
        VOCABULARY_SIZE,
        DIM,
        num_values=5,
        values_per_item=3,
        vector_dim=2,
        embeddings_initializer="uniform",
        **kwargs,
    )
    rng = np.random.default_rng(0)
    num_items = VOCABULARY_SIZE - 2
    features.set_features(
        rng.integers(5, size=(num_items, 3)),
        rng.random((num_items, 3)),
        rng.standard_normal((num_items, 2)),
    )
    return features


def _two_tower(**kwargs: Any) -> recsys.TwoTower:
    table = _table(**kwargs)
    return recsys.TwoTower(
        _history_tower(table, **kwargs),
        recsys.CandidateTower(table, **kwargs),
        **kwargs,
    )


def _with_transitions(**kwargs: Any) -> recsys.TwoTower:
    table = _table(**kwargs)
    towers = (
        recsys.HistoryTower(
            table,
            recsys.SelfAttentionEncoder(num_blocks=1, **kwargs),
            transition_dim=3,
            **kwargs,
        ),
        recsys.CandidateTower(table, transition_dim=3, **kwargs),
    )
    model = recsys.TwoTower(*towers, **kwargs)
    model.build()
    rng = np.random.default_rng(0)
    for weight in (towers[0].transition_keys, towers[1].transition_values):
        weight.assign(rng.normal(size=weight.shape))
    return model


@dataclasses.dataclass(frozen=True)
class Case:
    """How a class is made and called.

    Attributes:
        make: From Keras's own arguments to an instance.
        call: From an instance and ids `[batch, length]` to its answer.
        per_position: Whether it answers for every position, so that padding
            moves the answers.
    """

    make: Callable[..., keras.layers.Layer]
    call: Callable[[keras.layers.Layer, Any], Any]
    per_position: bool = False


def _of_vectors(layer: keras.layers.Layer, ids: Any) -> Any:
    """Calls an encoder behind a table of fixed vectors, with its mask."""
    if not hasattr(layer, "table_in_front"):
        table = _table(
            embeddings_initializer=keras.initializers.RandomNormal(seed=1),
            dtype=layer.dtype_policy,
        )
        # Not an attribute that Keras would track as a part of the layer.
        object.__setattr__(layer, "table_in_front", table)
    if isinstance(ids, tf.RaggedTensor):
        ids = ids.to_tensor()
    return layer(layer.table_in_front(ids))


def _values_and_weights(ids: Any) -> tuple[Any, Any]:
    if isinstance(ids, tf.RaggedTensor):
        ids = ids.to_tensor()
    values = keras.ops.expand_dims(ids, -1)
    return values, keras.ops.cast(values != 0, "float32")


CASES = {
    "CandidateTower": Case(
        lambda **kwargs: recsys.CandidateTower(_table(), **kwargs),
        lambda layer, ids: layer(ids),
        per_position=True,
    ),
    "EncoderEnsemble": Case(
        lambda **kwargs: recsys.EncoderEnsemble(
            [
                recsys.SelfAttentionEncoder(1, 1, dropout=0.1),
                recsys.MeanPooling(),
            ],
            [3, 1],
            **kwargs,
        ),
        _of_vectors,
        per_position=True,
    ),
    "FeatureSum": Case(
        lambda **kwargs: recsys.FeatureSum(99, 4, **kwargs),
        lambda layer, ids: layer(*_values_and_weights(ids)),
        per_position=True,
    ),
    "GRUEncoder": Case(
        lambda **kwargs: recsys.GRUEncoder(units=3, dropout=0.1, **kwargs),
        _of_vectors,
        per_position=True,
    ),
    "HistoryTower": Case(_history_tower, lambda layer, ids: layer(ids)),
    "ItemFeatures": Case(
        lambda **kwargs: _item_features(**kwargs),
        lambda layer, ids: layer(ids),
        per_position=True,
    ),
    "MeanPooling": Case(
        lambda **kwargs: recsys.MeanPooling(dropout=0.1, **kwargs),
        _of_vectors,
        per_position=True,
    ),
    "SelfAttentionEncoder": Case(
        lambda **kwargs: recsys.SelfAttentionEncoder(
            num_blocks=2,
            num_heads=1,
            dropout=0.1,
            max_distance=2,
            **kwargs,
        ),
        _of_vectors,
        per_position=True,
    ),
    "SharedItemEmbedding": Case(
        lambda **kwargs: _table(embeddings_initializer="uniform", **kwargs),
        lambda layer, ids: layer(ids),
        per_position=True,
    ),
    "TwoTower": Case(
        _two_tower, lambda layer, ids: layer({"history_ids": ids})
    ),
    "TwoTower, with transitions": Case(
        _with_transitions, lambda layer, ids: layer({"history_ids": ids})
    ),
}


def _public_layers() -> set[str]:
    return {
        name
        for name in recsys.__all__
        if isinstance(getattr(recsys, name), type)
        and issubclass(getattr(recsys, name), keras.layers.Layer)
    }


def _arrays(layer: keras.layers.Layer) -> list[np.ndarray]:
    return [variable.numpy() for variable in layer.weights]


def _dense(answer: Any) -> np.ndarray:
    if isinstance(answer, tf.RaggedTensor):
        answer = answer.to_tensor()
    return tf.cast(answer, tf.float32).numpy()


class ConformanceTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        keras.utils.set_random_seed(0)
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        # A mask that is destroyed, state that is not built, a model that was
        # not built when it was saved: Keras only warns.
        self.enterContext(warnings.catch_warnings())
        warnings.simplefilter("error", UserWarning)

    def _built(self, case: str, **kwargs: Any) -> keras.layers.Layer:
        layer = CASES[case].make(**kwargs)
        CASES[case].call(layer, RIGHT)
        return layer

    def _functional(self, name: str, layer=None) -> keras.Model:
        """The class in a functional model of any batch size and length."""
        ids = keras.Input((None,), dtype="int32", name="ids")
        layer = layer or CASES[name].make()
        return keras.Model(ids, CASES[name].call(layer, ids))

    def test_no_public_layer_is_missing(self):
        classes = {name.partition(",")[0] for name in CASES}
        self.assertEqual(_public_layers(), classes)

    @parameterized.parameters(*CASES)
    def test_is_registered_under_the_package(self, name):
        self.assertEqual(
            keras.saving.get_registered_name(type(CASES[name].make())),
            f"recsys>{name.partition(',')[0]}",
        )

    @parameterized.parameters(*CASES)
    def test_config_round_trip(self, name):
        layer = self._built(name, name="mine")
        config = layer.get_config()
        again = type(layer).from_config(config)
        self.assertEqual(again.name, "mine")
        self.assertEqual(again.get_config(), config)
        # Nothing in a configuration but what JSON can hold.
        config = keras.saving.serialize_keras_object(layer)
        copy = keras.saving.deserialize_keras_object(config)
        CASES[name].call(copy, RIGHT)
        self.assertEqual(
            [weight.shape for weight in copy.weights],
            [weight.shape for weight in layer.weights],
        )
        copy.set_weights(layer.get_weights())
        np.testing.assert_array_equal(
            _dense(CASES[name].call(layer, RIGHT)),
            _dense(CASES[name].call(copy, RIGHT)),
        )

    @parameterized.parameters(*CASES)
    def test_every_constructor_argument_is_in_the_config(self, name):
        layer = CASES[name].make()
        cls = type(layer)
        arguments = set(
            cls.__init__.__code__.co_varnames[1:][
                : cls.__init__.__code__.co_argcount - 1
            ]
        )
        # Keras fills the table in from files, which also hold the weights;
        # `mask_zero` has one value only.
        arguments -= {"table", "weights", "mask_zero"}
        self.assertEmpty(arguments - layer.get_config().keys())

    @parameterized.parameters(*CASES)
    def test_keras_file(self, name):
        model = self._functional(name)
        expected = _dense(model(RIGHT))
        model.save(self.folder / "x.keras")
        loaded = keras.models.load_model(self.folder / "x.keras")
        np.testing.assert_array_equal(_dense(loaded(RIGHT)), expected)
        self.assertLen(loaded.weights, len(model.weights))

    @parameterized.parameters(*CASES)
    def test_weights_file(self, name):
        model, other = self._functional(name), self._functional(name)
        path = self.folder / "x.weights.h5"
        model.save_weights(path)
        other.load_weights(path)
        np.testing.assert_array_equal(
            _dense(other(RIGHT)), _dense(model(RIGHT))
        )

    @parameterized.parameters(*CASES)
    def test_checkpoint(self, name):
        layer, other = self._built(name), self._built(name)
        prefix = str(self.folder / "checkpoint")
        tf.train.Checkpoint(layer=layer).write(prefix)
        status = tf.train.Checkpoint(layer=other).read(prefix)
        status.assert_consumed()
        for one, two in zip(_arrays(layer), _arrays(other)):
            np.testing.assert_array_equal(one, two)
        saved = [
            tuple(shape)
            for key, shape in tf.train.list_variables(prefix)
            if key != "_CHECKPOINTABLE_OBJECT_GRAPH"
            and "seed_generator" not in key
            and key != "save_counter/.ATTRIBUTES/VARIABLE_VALUE"
        ]
        self.assertCountEqual(
            saved, [tuple(weight.shape) for weight in layer.weights]
        )

    @parameterized.parameters(*CASES)
    def test_saved_model(self, name):
        model = self._functional(name)
        tf.saved_model.save(model, str(self.folder / "saved"))
        loaded = tf.saved_model.load(str(self.folder / "saved"))
        serve = loaded.signatures["serving_default"]
        for ids in (RIGHT, RIGHT[:1, :3]):
            [answer] = serve(tf.constant(ids)).values()
            np.testing.assert_allclose(
                _dense(answer), _dense(model(ids)), rtol=1e-5, atol=1e-6
            )

    @parameterized.parameters(*CASES)
    def test_eager_equals_graph(self, name):
        layer = self._built(name)
        call = tf.function(lambda ids: CASES[name].call(layer, ids))
        np.testing.assert_allclose(
            _dense(call(tf.constant(RIGHT))),
            _dense(CASES[name].call(layer, RIGHT)),
            rtol=1e-5,
            atol=1e-6,
        )

    @parameterized.parameters(*CASES)
    def test_unknown_batch_size_and_length(self, name):
        layer = self._built(name)
        model = self._functional(name, layer)
        self.assertIsNone(model.output.shape[0])
        for ids in (RIGHT, RIGHT[:1, :2], RIGHT[:, :1], RIGHT[:0]):
            answer = model(ids)
            np.testing.assert_allclose(
                _dense(answer),
                _dense(CASES[name].call(layer, ids)),
                rtol=1e-5,
                atol=1e-6,
            )
            self.assertTrue(model.output.shape[-1] == answer.shape[-1])

    @parameterized.parameters(*CASES)
    def test_padding_left_padding_right_and_ragged(self, name):
        layer = self._built(name)
        right, left, ragged = (
            _dense(CASES[name].call(layer, ids))
            for ids in (tf.constant(RIGHT), tf.constant(LEFT), RAGGED)
        )
        if CASES[name].per_position:
            right, left = right[RIGHT > 0], left[LEFT > 0]
            ragged = ragged[RIGHT[:, :3] > 0]
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ragged, right, rtol=1e-5, atol=1e-6)

    @parameterized.product(
        name=list(CASES), policy=("mixed_float16", "mixed_bfloat16")
    )
    def test_half_precision(self, name, policy):
        layer = self._built(name, dtype=policy)
        plain = self._built(name)
        plain.set_weights(layer.get_weights())
        for weight in layer.trainable_weights:
            self.assertEqual(weight.dtype, "float32")
        answer = CASES[name].call(layer, RIGHT)
        self.assertEqual(answer.dtype.name, policy.removeprefix("mixed_"))
        expected = _dense(CASES[name].call(plain, RIGHT))
        known = expected > -1e30
        np.testing.assert_allclose(
            _dense(answer)[known],
            expected[known],
            atol=0.06 * np.abs(expected[known]).max(),
        )

    @parameterized.parameters(*CASES)
    def test_every_weight_is_trained(self, name):
        layer = self._built(name)
        with tf.GradientTape() as tape:
            answer = CASES[name].call(layer, RIGHT)
            known = tf.where(answer > -1e30, answer, 0)
            loss = tf.reduce_sum(tf.abs(known + 0.1) ** 3)
        for gradient in tape.gradient(loss, layer.trainable_variables):
            self.assertIsNotNone(gradient)
            values = tf.convert_to_tensor(gradient).numpy()
            self.assertTrue(np.isfinite(values).all())


if __name__ == "__main__":
    absltest.main()
