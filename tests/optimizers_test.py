from __future__ import annotations

import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys import (
    CandidateTower,
    HistoryTower,
    MeanPooling,
    SharedItemEmbedding,
    TwoTower,
    optimizers,
)
from recsys.negatives import NegativeSampler
from recsys.training.trainer import TrainStep

OPTIMIZERS = (optimizers.LazyAdam, optimizers.RowwiseAdagrad)


def _table(rows: int = 6, dim: int = 3) -> keras.Variable:
    values = np.random.default_rng(0).normal(size=(rows, dim))
    return keras.Variable(values, dtype="float32", name="embeddings")


def _slices(rows: list[int], values, num_rows: int = 6) -> tf.IndexedSlices:
    values = tf.constant(values, tf.float32)
    return tf.IndexedSlices(
        values, tf.constant(rows), tf.constant([num_rows, values.shape[1]])
    )


def _gradients(num_steps: int, shape: tuple[int, int], seed: int = 1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_steps, *shape)).astype(np.float32)


def _decay() -> keras.optimizers.schedules.LearningRateSchedule:
    return keras.optimizers.schedules.InverseTimeDecay(0.1, 1, 0.5)


class MergeRowsTest(absltest.TestCase):
    def test_by_hand(self):
        merged = optimizers.merge_rows(
            _slices([4, 1, 4], [[1, 2], [3, 4], [10, 20]])
        )
        self.assertEqual(merged.indices.numpy().tolist(), [4, 1])
        self.assertEqual(merged.values.numpy().tolist(), [[11, 22], [3, 4]])


class LazyAdamTest(parameterized.TestCase):
    @parameterized.parameters(
        {},
        {"weight_decay": 0.1},
        {"clipnorm": 0.5},
        {"global_clipnorm": 0.5},
        {"clipvalue": 0.2},
        {"beta_1": 0.5, "beta_2": 0.6, "epsilon": 0.1},
    )
    def test_equals_adam_where_every_row_is_touched(self, **options):
        lazy, dense = _table(), _table()
        others = [keras.Variable(np.ones(4), name="kernel") for _ in range(2)]
        one = optimizers.LazyAdam(_decay(), **options)
        two = keras.optimizers.Adam(_decay(), **options)
        for gradient in _gradients(4, (6, 3)):
            # In pieces that belong together: row 2 is there twice.
            rows = [5, 2, 0, 1, 2, 3, 4]
            values = gradient[rows] * np.array(
                [[1], [0.25], [1], [1], [0.75], [1], [1]]
            )
            rest = tf.constant(gradient[:4, 0])
            one.apply([_slices(rows, values), rest], [lazy, others[0]])
            two.apply([tf.constant(gradient), rest], [dense, others[1]])
            np.testing.assert_allclose(lazy, dense, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(*others, rtol=1e-5, atol=1e-6)

    def test_dense_gradient_of_a_table(self):
        lazy, dense = _table(), _table()
        one, two = optimizers.LazyAdam(0.1), keras.optimizers.Adam(0.1)
        for gradient in _gradients(3, (6, 3)):
            one.apply([tf.constant(gradient)], [lazy])
            two.apply([tf.constant(gradient)], [dense])
        np.testing.assert_allclose(lazy, dense, rtol=1e-5, atol=1e-6)

    def test_two_steps_by_hand(self):
        # Row 1 in the first step, row 2 in the second, which is its first but
        # has the bias correction of step 2: m = 0.1 g, v = 0.001 g².
        table = keras.Variable(np.zeros((3, 1)), name="embeddings")
        optimizer = optimizers.LazyAdam(0.5, epsilon=0)
        optimizer.apply([_slices([1], [[4.0]], 3)], [table])
        np.testing.assert_allclose(table, [[0], [-0.5], [0]], rtol=1e-5)
        optimizer.apply([_slices([2], [[4.0]], 3)], [table])
        rate = 0.5 * np.sqrt(1 - 0.999**2) / (1 - 0.9**2)
        change = rate * 0.1 / np.sqrt(0.001)
        np.testing.assert_allclose(table, [[0], [-0.5], [-change]], rtol=1e-4)


class RowwiseAdagradTest(parameterized.TestCase):
    def test_two_steps_by_hand(self):
        table = keras.Variable(np.zeros((3, 2)), name="embeddings")
        optimizer = optimizers.RowwiseAdagrad(
            0.1, epsilon=0.0, table_rate_factor=5.0
        )
        # a = (3² + 4²) / 2, so the change is 0.5 (3, 4) / √12.5.
        optimizer.apply([_slices([1], [[3.0, 4.0]], 3)], [table])
        first = -0.5 * np.array([3, 4]) / np.sqrt(12.5)
        np.testing.assert_allclose(table[1], first, rtol=1e-5)
        # Twice row 1, (1, 0) and (0, 1): a = 12.5 + (1 + 1) / 2.
        optimizer.apply([_slices([1, 1], [[1.0, 0], [0, 1.0]], 3)], [table])
        second = first - 0.5 / np.sqrt(13.5)
        np.testing.assert_allclose(table[1], second, rtol=1e-5)
        self.assertEqual(np.abs(table.numpy()[[0, 2]]).max(), 0)

    def test_equals_adagrad_on_tables_of_one_column(self):
        lazy, dense = _table(dim=1), _table(dim=1)
        one = optimizers.RowwiseAdagrad(
            _decay(),
            epsilon=0.0,
            table_rate_factor=1.0,
            initial_accumulator=0.1,
            weight_decay=0.2,
        )
        two = keras.optimizers.Adagrad(_decay(), epsilon=0, weight_decay=0.2)
        for gradient in _gradients(4, (6, 1)):
            rows = [3, 1, 0, 2, 5, 4]
            one.apply([_slices(rows, gradient[rows])], [lazy])
            two.apply([tf.constant(gradient)], [dense])
        np.testing.assert_allclose(lazy, dense, rtol=1e-5, atol=1e-6)

    def test_other_variables_get_adam(self):
        variables = [keras.Variable(np.ones(3), name="bias") for _ in range(2)]
        one = optimizers.RowwiseAdagrad(0.1)
        one.build([_table(), variables[0]])
        two = keras.optimizers.Adam(0.1)
        two.build([variables[1]])
        for gradient in _gradients(3, (3, 1)):
            gradient = tf.constant(gradient[:, 0])
            one.apply([gradient], [variables[0]])
            two.apply([gradient], [variables[1]])
        np.testing.assert_allclose(*variables, rtol=1e-6)

    def test_memory_is_one_float_for_each_row(self):
        optimizer = optimizers.RowwiseAdagrad()
        optimizer.build([_table(rows=50, dim=8)])
        sizes = [int(np.prod(v.shape)) for v in optimizer.variables]
        self.assertEqual(sorted(sizes), [1, 1, 50])  # Step and rate are two.


class AnyOptimizerTest(parameterized.TestCase):
    @parameterized.parameters(*OPTIMIZERS)
    def test_only_touched_rows_change(self, make):
        table = _table()
        before = table.numpy()
        optimizer = make(0.1, weight_decay=0.1)
        optimizer.apply([_slices([4, 1, 4], np.ones((3, 3)))], [table])
        changed = (table.numpy() != before).any(axis=1)
        self.assertEqual(changed.tolist(), [0, 1, 0, 0, 1, 0])
        for variable in optimizer.variables:
            if variable.shape[:1] == (6,):
                rows = variable.numpy().reshape(6, -1).any(axis=1)
                self.assertEqual(rows.tolist(), [0, 1, 0, 0, 1, 0])

    @parameterized.parameters(*OPTIMIZERS)
    def test_scaled_loss(self, make):
        tables = _table(), _table()
        for table, scale in zip(tables, (1.0, 8.0)):
            optimizer = keras.optimizers.LossScaleOptimizer(
                make(0.1), initial_scale=scale
            )
            optimizer.build([table])
            optimizer.apply([_slices([1, 1], scale * np.ones((2, 3)))], [table])
        np.testing.assert_allclose(*tables, rtol=1e-5)
        self.assertFalse(np.array_equal(tables[0], _table()))

    @parameterized.parameters(*OPTIMIZERS)
    def test_config_round_trip(self, make):
        optimizer = make(
            _decay(), beta_1=0.8, beta_2=0.7, epsilon=0.1, weight_decay=0.2
        )
        config = keras.saving.serialize_keras_object(optimizer)
        again = keras.saving.deserialize_keras_object(config)
        self.assertIsInstance(again, make)
        self.assertEqual(again.get_config(), optimizer.get_config())

    @parameterized.product(
        make=OPTIMIZERS, name=("use_ema", "gradient_accumulation_steps")
    )
    def test_what_touches_every_row_is_refused(self, make, name):
        with self.assertRaisesRegex(ValueError, f"`{name}` must not be given"):
            make(0.1, **{name: 2})

    @parameterized.parameters(*OPTIMIZERS)
    def test_goes_on_from_files(self, make):
        model = _two_tower()
        model.compile(optimizer=make(0.01))
        batch = _batch()
        model.train_step(batch)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.keras")
            model.save(path)
            loaded = keras.models.load_model(path)
            prefix = str(pathlib.Path(folder, "checkpoint"))
            tf.train.Checkpoint(m=model, o=model.optimizer).write(prefix)
            other = _two_tower()
            other.compile(optimizer=make(0.01))
            other.optimizer.build(other.trainable_variables)
            status = tf.train.Checkpoint(m=other, o=other.optimizer).read(
                prefix
            )
            status.assert_existing_objects_matched()
        for each in (model, loaded, other):
            each.negative_sampler = NegativeSampler("uniform", 5, 50)
            each.train_step(batch)
        for each in (loaded, other):
            for one, two in zip(model.weights, each.weights):
                np.testing.assert_array_equal(one, two)


def _two_tower(vocabulary_size: int = 50) -> TwoTower:
    keras.utils.set_random_seed(0)
    table = SharedItemEmbedding(vocabulary_size, 4)
    model = TwoTower(HistoryTower(table, MeanPooling()), CandidateTower(table))
    model.build()
    return model


def _batch() -> dict[str, tf.Tensor]:
    return {
        "history_ids": tf.constant([[3, 4, 5, 0], [10, 3, 0, 0]]),
        "target_ids": tf.constant([[4, 5, 6, 0], [0, 20, 0, 0]]),
    }


def _operations(graph: tf.Graph) -> list[tf.Operation]:
    """All operations of a graph, those of its loops and branches too."""
    found = list(graph.get_operations())
    for function in graph._functions.values():
        inner = getattr(function, "graph", None)
        if inner is not None:
            found += _operations(inner)
    return found


class FlatCostTest(parameterized.TestCase):
    """Promise 6: no work of a step is in proportion to the catalog."""

    @parameterized.product(
        make=OPTIMIZERS, source=("in_batch", "uniform", "popularity", "mixed")
    )
    def test_no_tensor_has_a_row_for_each_item(self, make, source):
        size = 7919
        model = _two_tower(size)
        optimizer = make(0.1, clipnorm=1.0, weight_decay=0.01)
        optimizer.build(model.trainable_variables)
        sampler = NegativeSampler(source, 8, size, counts=np.arange(size))
        step = tf.function(TrainStep(model, optimizer, sampler, seed=0))
        operations = _operations(step.get_concrete_function(_batch()).graph)
        large = [
            operation.name
            for operation in operations
            for tensor in (*operation.inputs, *operation.outputs)
            if tensor.shape.rank and max(map(int, _known(tensor))) >= size - 2
        ]
        self.assertEqual(large, [])
        kinds = {operation.type for operation in operations}
        self.assertContainsSubset({"ResourceGather"}, kinds)

    @parameterized.parameters(*OPTIMIZERS)
    def test_only_rows_of_the_batch_and_its_negatives_change(self, make):
        model = _two_tower()
        optimizer = make(0.1)
        optimizer.build(model.trainable_variables)
        sampler = NegativeSampler("uniform", 4, 50)
        table = model.candidate_tower.embedding.embeddings
        before = table.numpy()
        batch = _batch()
        TrainStep(model, optimizer, sampler, seed=3)(batch)
        negatives = sampler.draw(batch, tf.constant([3, 0])).ids.numpy()
        changed = np.flatnonzero((table.numpy() != before).any(axis=1))
        self.assertEqual(
            set(changed), {3, 4, 5, 6, 10, 20} | set(negatives.tolist())
        )

    def test_full_softmax_would_be_found(self):
        size = 7919
        model = _two_tower(size)
        optimizer = optimizers.LazyAdam(0.1)
        optimizer.build(model.trainable_variables)
        step = tf.function(TrainStep(model, optimizer, None, seed=0))
        operations = _operations(step.get_concrete_function(_batch()).graph)
        self.assertTrue(
            any(
                tensor.shape.rank and max(map(int, _known(tensor))) >= size - 2
                for operation in operations
                for tensor in operation.outputs
            )
        )


def _known(tensor: tf.Tensor) -> list[int]:
    return [size or 0 for size in tensor.shape]


if __name__ == "__main__":
    absltest.main()
