from __future__ import annotations

from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys import SharedItemEmbedding
from recsys.models import shared_item_embedding

# Row i is (i, 10 i); row 0 is never read.
ROWS = np.array([[99, 99], [1, 10], [2, 20], [3, 30], [4, 40]], np.float32)


def _table(**kwargs) -> SharedItemEmbedding:
    table = SharedItemEmbedding(5, 2, **kwargs)
    table.build()
    table.embeddings.assign(ROWS)
    return table


class LookupTest(parameterized.TestCase):
    @parameterized.parameters("int32", "int64", "uint8", "int16")
    def test_rows_of_any_integers(self, dtype):
        ids = np.array([[4, 1], [0, 2]], dtype)
        np.testing.assert_array_equal(
            _table()(ids), [[[4, 40], [1, 10]], [[0, 0], [2, 20]]]
        )

    @parameterized.parameters(0, 1, 2, 3, 4)
    def test_ids_of_any_rank(self, rank):
        ids = np.full([2] * rank, 3, np.int32)
        vectors = _table()(tf.constant(ids))
        self.assertEqual(vectors.shape, (*ids.shape, 2))
        np.testing.assert_array_equal(
            tf.reshape(vectors, [-1, 2]), [[3, 30]] * ids.size
        )

    def test_ragged_ids_give_ragged_vectors(self):
        ids = tf.ragged.constant([[2], [], [3, 0, 1]], dtype=tf.int32)
        vectors = _table()(ids)
        self.assertEqual(
            vectors.to_list(),
            [[[2, 20]], [], [[3, 30], [0, 0], [1, 10]]],
        )

    def test_padding_is_masked_and_gets_no_gradient(self):
        table = _table()
        ids = tf.constant([[0, 2]])
        np.testing.assert_array_equal(table.compute_mask(ids), [[False, True]])
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(table(ids)._keras_mask), [[False, True]]
        )
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(table(ids))
        gradient = tape.gradient(total, table.trainable_variables[0])
        np.testing.assert_array_equal(
            tf.convert_to_tensor(gradient),
            [[0, 0], [0, 0], [1, 1], [0, 0], [0, 0]],
        )

    def test_default_start_is_small_and_seeded(self):
        values = []
        for _ in range(2):
            keras.utils.set_random_seed(3)
            table = SharedItemEmbedding(1000, 16)
            table.build()
            values.append(table.embeddings.numpy())
        np.testing.assert_array_equal(*values)
        self.assertAlmostEqual(float(values[0].std()), 0.02, places=3)

    @mock.patch.object(shared_item_embedding._InPieces, "_NUM_AT_ONCE", 1600)
    def test_large_table_is_filled_in_pieces_that_differ(self):
        values = []
        for _ in range(2):
            keras.utils.set_random_seed(3)
            table = SharedItemEmbedding(1050, 16)
            table.build()
            values.append(table.embeddings.numpy())
        np.testing.assert_array_equal(*values)
        self.assertLen(np.unique(values[0][:, 0]), 1050)
        self.assertAlmostEqual(float(values[0][-50:].std()), 0.02, places=2)
        self.assertAlmostEqual(float(values[0].std()), 0.02, places=3)

    def test_initializer(self):
        table = SharedItemEmbedding(5, 2, embeddings_initializer="ones")
        np.testing.assert_array_equal(table(np.array([4])), [[1, 1]])

    def test_one_instance_has_one_table_two_have_two(self):
        table, other = _table(), SharedItemEmbedding(5, 2)
        table(np.array([1]))
        table(np.array([[2]]), pooling="sum")
        self.assertLen(table.variables, 1)
        self.assertIs(table.variables[0], table.embeddings)
        other(np.array([1]))
        self.assertIsNot(table.embeddings, other.embeddings)

    def test_mixed_precision_keeps_a_float32_table(self):
        table = _table(dtype="mixed_float16")
        self.assertEqual(table.embeddings.dtype, "float32")
        vectors = table(np.array([[3, 0]], np.int32))
        self.assertEqual(vectors.dtype, tf.float16)
        np.testing.assert_array_equal(vectors, [[[3, 30], [0, 0]]])


class PoolingTest(parameterized.TestCase):
    # Row one holds items 2 and 4, row two item 3, row three nothing.
    IDS = np.array([[2, 0, 4], [3, 0, 0], [0, 0, 0]], np.int32)
    WEIGHTS = np.array([[3, 9, 4], [2, 9, 9], [9, 9, 9]], np.float32)

    @parameterized.parameters(
        ("sum", False, [[6, 60], [3, 30], [0, 0]]),
        ("mean", False, [[3, 30], [3, 30], [0, 0]]),
        ("sqrtn", False, [[6 / 2**0.5, 60 / 2**0.5], [3, 30], [0, 0]]),
        # 3 * 2 + 4 * 4 = 22; 3 + 4 = 7; √(9 + 16) = 5.
        ("sum", True, [[22, 220], [6, 60], [0, 0]]),
        ("mean", True, [[22 / 7, 220 / 7], [3, 30], [0, 0]]),
        ("sqrtn", True, [[22 / 5, 44], [3, 30], [0, 0]]),
    )
    def test_by_hand(self, pooling, weighted, expected):
        table = _table()
        ragged_ids = tf.ragged.constant([[2, 0, 4], [3], []], dtype=tf.int32)
        ragged_weights = tf.ragged.constant([[3.0, 9, 4], [2], []])
        for ids, weights in (
            (tf.constant(self.IDS), tf.constant(self.WEIGHTS)),
            (ragged_ids, ragged_weights),
        ):
            pooled = table(
                ids, weights=weights if weighted else None, pooling=pooling
            )
            np.testing.assert_allclose(pooled, expected, rtol=1e-6)

    def test_pools_the_last_axis_of_any_rank(self):
        table = _table()
        np.testing.assert_allclose(
            table(self.IDS[np.newaxis], pooling="mean"),
            [[[3, 30], [3, 30], [0, 0]]],
        )
        np.testing.assert_allclose(table(self.IDS[0], pooling="sum"), [6, 60])

    def test_weights_that_cancel_give_zero_not_nan(self):
        pooled = _table()(
            np.array([[2, 3]]), weights=np.array([[1.0, -1]]), pooling="mean"
        )
        np.testing.assert_array_equal(pooled, [[0, 0]])

    def test_half_precision_sums_in_float32(self):
        # 3000 ones: float16 cannot count beyond 2048.
        table = SharedItemEmbedding(
            3, 1, embeddings_initializer="ones", dtype="mixed_float16"
        )
        pooled = table(np.full([1, 3000], 2, np.int32), pooling="sum")
        self.assertEqual(pooled.dtype, tf.float16)
        self.assertEqual(float(pooled[0, 0]), 3000)

    def test_masks_of_pooled_vectors(self):
        table = _table()
        # One vector per row is a value, present or not.
        self.assertIsNone(
            getattr(table(self.IDS, pooling="mean"), "_keras_mask", None)
        )
        # One per position is masked where nothing was pooled.
        pooled = table(self.IDS[np.newaxis], pooling="mean")
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(pooled._keras_mask),
            [[True, True, False]],
        )

    def test_symbolic_shapes_and_masks(self):
        table = _table()
        ids = keras.Input((None, 7), dtype="int32")
        looked_up, pooled = table(ids), table(ids, pooling="sum")
        self.assertEqual(looked_up.shape, (None, None, 7, 2))
        self.assertEqual(looked_up._keras_mask.shape, (None, None, 7))
        self.assertEqual(pooled.shape, (None, None, 2))
        self.assertEqual(pooled._keras_mask.shape, (None, None))


class ErrorsTest(parameterized.TestCase):
    def test_reading_the_table_before_it_is_built(self):
        table = SharedItemEmbedding(5, 2, name="items")
        with self.assertRaisesRegex(
            ValueError,
            "`embeddings` must be read after the layer is built: .* "
            "Received: the unbuilt layer items$",
        ):
            _ = table.embeddings
        table.build()
        self.assertEqual(table.embeddings.shape, (5, 2))

    @parameterized.parameters(
        (2, 4, "`vocabulary_size` must be at least 3 .* Received: 2$"),
        (5, 0, "`embedding_dim` must be positive. Received: 0$"),
    )
    def test_sizes(self, vocabulary_size, embedding_dim, message):
        with self.assertRaisesRegex(ValueError, message):
            SharedItemEmbedding(vocabulary_size, embedding_dim)

    def test_pooling(self):
        with self.assertRaisesRegex(
            ValueError,
            "`pooling` must be None or one of mean, sum, sqrtn. "
            "Received: 'max'",
        ):
            _table()(np.array([[2]]), pooling="max")

    def test_weights_without_pooling(self):
        with self.assertRaisesRegex(
            ValueError,
            "`weights` must be given with `pooling` only. "
            "Received: weights and pooling=None",
        ):
            _table()(np.array([[2]]), weights=np.array([[1.0]]))

    @parameterized.parameters(
        (tf.float16, 2**11), (tf.bfloat16, 2**8), (tf.float32, 2**24)
    )
    def test_floats_count_as_far_as_they_are_exact(self, dtype, largest):
        table = SharedItemEmbedding(largest, 1, dtype=dtype.name)
        table.table.built = True
        table.table.embeddings = keras.Variable([[0.0], [10.0], [20.0]])
        ids = tf.constant([[2, 0]], dtype)
        self.assertEqual(np.ravel(table(ids)).tolist(), [20, 0])
        table.vocabulary_size += 1
        with self.assertRaisesRegex(
            TypeError,
            f"`ids` must be integers, .* Received dtype: {dtype.name}",
        ):
            table(ids)


if __name__ == "__main__":
    absltest.main()
