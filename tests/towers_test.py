from __future__ import annotations

import warnings

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys import (
    CandidateTower,
    GRUEncoder,
    HistoryTower,
    MeanPooling,
    SelfAttentionEncoder,
    SharedItemEmbedding,
)

ENCODERS = {
    "mean": MeanPooling,
    "gru": GRUEncoder,
    "attention": lambda: SelfAttentionEncoder(num_blocks=1, max_distance=3),
    "keras_gru": lambda: keras.layers.GRU(4, return_sequences=True),
    "sequential": lambda: keras.Sequential(
        [keras.layers.GRU(4, return_sequences=True), keras.layers.Dense(4)]
    ),
    "no_mask": lambda: TwiceThePosition(),
}


class TwiceThePosition(keras.layers.Layer):
    """Someone's layer that has not heard of masks or training."""

    def call(self, inputs):
        return 2 * inputs


class RowFeature(keras.layers.Layer):
    """Adds the id itself, in the last place."""

    def call(self, ids):
        last = tf.constant([0.0, 0.0, 0.0, 1.0])
        return tf.cast(ids, tf.float32)[..., tf.newaxis] * last


def _table() -> SharedItemEmbedding:
    table = SharedItemEmbedding(9, 4)
    table.build()
    rows = np.random.default_rng(0).normal(size=(9, 4))
    table.embeddings.assign(rows)
    return table


class HistoryTowerTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        # Keras warns where a mask is lost or state is not built.
        self.enterContext(warnings.catch_warnings())
        warnings.simplefilter("error", UserWarning)

    @parameterized.parameters(*ENCODERS)
    def test_padding_on_either_side_and_ragged_are_the_same(self, name):
        tower = HistoryTower(_table(), encoder=ENCODERS[name]())
        right = tower(np.array([[3, 4, 5, 0, 0], [8, 0, 0, 0, 0]], np.int32))
        left = tower(np.array([[0, 0, 3, 4, 5], [0, 0, 0, 0, 8]], np.int32))
        ragged = tower(tf.ragged.constant([[3, 4, 5], [8]], dtype=tf.int32))
        self.assertEqual(right.shape, (2, 4))
        self.assertGreater(np.abs(right).min(axis=1).max(), 0)
        np.testing.assert_allclose(left, right, atol=1e-5)
        np.testing.assert_allclose(ragged, right, atol=1e-5)

    @parameterized.parameters(*ENCODERS)
    def test_the_answer_is_the_last_position(self, name):
        tower = HistoryTower(_table(), encoder=ENCODERS[name]())
        ids = np.array([[3, 4, 5, 0], [0, 0, 8, 7], [0, 0, 0, 0]], np.int32)
        every = tower(ids, return_sequences=True).numpy()
        self.assertEqual(every.shape, (3, 4, 4))
        np.testing.assert_allclose(
            tower(ids), [every[0, 2], every[1, 3], np.zeros(4)], atol=1e-6
        )
        # Nothing at padding.
        np.testing.assert_array_equal(every[ids == 0], np.zeros((7, 4)))
        # Each position is what the shorter history would have given.
        np.testing.assert_allclose(
            every[0, 1], tower(ids[:1, :2])[0], atol=1e-5
        )

    def test_mean_pooling_by_hand(self):
        table = _table()
        rows = table.embeddings.numpy()
        tower = HistoryTower(table, encoder=MeanPooling())
        np.testing.assert_allclose(
            tower(np.array([[0, 3, 1, 8]])),
            [(rows[3] + rows[1] + rows[8]) / 3],
            rtol=1e-5,
        )

    @parameterized.parameters(*ENCODERS)
    def test_empty_histories_are_zero(self, name):
        tower = HistoryTower(_table(), encoder=ENCODERS[name]())
        np.testing.assert_array_equal(
            tower(np.zeros((2, 3), np.int32)), np.zeros((2, 4))
        )

    def test_histories_of_no_length(self):
        tower = HistoryTower(_table(), encoder=ENCODERS["attention"]())
        np.testing.assert_array_equal(
            tower(np.zeros((2, 0), np.int32)), np.zeros((2, 4))
        )
        ragged = tf.RaggedTensor.from_row_lengths(
            tf.zeros([0], tf.int32), [0, 0]
        )
        np.testing.assert_array_equal(tower(ragged), np.zeros((2, 4)))

    def test_sketch_by_hand(self):
        table = _table()
        tower = HistoryTower(
            table,
            encoder=MeanPooling(),
            transition_dim=2,
            transition_weight=3.0,
            transition_decay=0.5,
        )
        plain = HistoryTower(table, encoder=MeanPooling())
        tower.build()
        self.assertEqual(tower.output_dim, 6)
        keys = np.zeros((table.vocabulary_size, 2), np.float32)
        keys[3], keys[4], keys[8] = [1, 0], [0, 1], [4, 4]
        tower.transition_keys.assign(keys)
        # 3 (k_8 + k_4 / 2 + k_3 / 4): an unknown item (1) does not count.
        expected = [[12.75, 13.5], [3, 0], [0, 0]]
        for ids in (
            np.array([[3, 4, 1, 8, 0], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0]]),
            np.array([[0, 3, 4, 1, 8], [0, 0, 0, 0, 3], [0, 0, 0, 0, 0]]),
            tf.ragged.constant([[3, 4, 1, 8], [3], []]),
        ):
            found = tower(ids)
            np.testing.assert_allclose(found[:, 4:], expected)
            np.testing.assert_allclose(found[:, :4], plain(ids))
        # Training sees the encoder's vectors alone.
        self.assertEqual(tower(ids, return_sequences=True).shape[2], 4)
        self.assertNotIn(
            "transition_keys", [w.name for w in tower.trainable_weights]
        )

    @parameterized.parameters(
        ("transition_weight", -1.0),
        ("transition_weight", float("inf")),
        ("transition_decay", 1.5),
        ("transition_decay", float("nan")),
    )
    def test_transitions_out_of_range(self, name, value):
        with self.assertRaisesRegex(ValueError, f"`{name}` .*: {value}$"):
            HistoryTower(_table(), transition_dim=2, **{name: value})

    @parameterized.parameters(HistoryTower, CandidateTower)
    def test_negative_transition_dim(self, tower):
        with self.assertRaisesRegex(ValueError, "that is not negative. .*: -1"):
            tower(_table(), transition_dim=-1)

    def test_features_are_added_before_the_encoder(self):
        table = _table()
        plain = HistoryTower(table, encoder=MeanPooling())
        featured = HistoryTower(
            table, encoder=MeanPooling(), item_features=RowFeature()
        )
        ids = np.array([[3, 8, 0]])
        # The mean of ids 3 and 8, in the last place.
        np.testing.assert_allclose(
            featured(ids) - plain(ids), [[0, 0, 0, 5.5]], rtol=1e-5
        )

    def test_item_dropout_hides_whole_items_in_training(self):
        keras.utils.set_random_seed(0)
        table = _table()
        tower = HistoryTower(
            table, encoder=keras.layers.Identity(), item_dropout=0.25
        )
        ids = np.full((50, 40), 3)
        seen = tower(ids, training=True, return_sequences=True).numpy()
        row = table.embeddings.numpy()[3]
        hidden = (seen == 0).all(axis=-1)
        np.testing.assert_array_equal(
            seen[~hidden], np.broadcast_to(row, (np.sum(~hidden), 4))
        )
        # 2,000 draws: a standard deviation is 0.01.
        self.assertBetween(hidden.mean(), 0.21, 0.29)
        again = tower(ids, training=True, return_sequences=True).numpy()
        self.assertTrue((seen != again).any())
        np.testing.assert_array_equal(
            tower(ids, return_sequences=True),
            np.broadcast_to(row, (50, 40, 4)),
        )

    @parameterized.parameters(-0.1, 1.0)
    def test_item_dropout_out_of_range(self, share):
        with self.assertRaisesRegex(
            ValueError, f"`item_dropout` must .* below 1. Received: {share}$"
        ):
            HistoryTower(_table(), item_dropout=share)

    def test_default_encoder(self):
        self.assertIsInstance(
            HistoryTower(_table()).encoder, SelfAttentionEncoder
        )

    def test_building_twice_makes_nothing_new(self):
        table = _table()
        tower = HistoryTower(table, encoder=GRUEncoder())
        tower.build()
        before = [id(variable) for variable in tower.variables]
        tower.build()
        CandidateTower(table).build()
        tower(np.array([[3]]))
        self.assertEqual([id(v) for v in tower.variables], before)
        self.assertLen(set(before), len(before))

    @parameterized.parameters(HistoryTower, CandidateTower)
    def test_the_embedding_must_be_shared(self, tower):
        with self.assertRaisesRegex(
            TypeError,
            "`embedding` must be a SharedItemEmbedding. Received: Embedding$",
        ):
            tower(keras.layers.Embedding(9, 4))


class CandidateTowerTest(parameterized.TestCase):
    @parameterized.parameters((3,), ([2, 8],), ([[2], [0]],), ([[[1, 1]]],))
    def test_is_the_row_of_the_table(self, ids):
        table = _table()
        rows = table.embeddings.numpy()
        rows[0] = 0
        vectors = CandidateTower(table)(np.array(ids, np.int32))
        np.testing.assert_array_equal(vectors, rows[np.array(ids)])

    def test_ragged(self):
        table = _table()
        vectors = CandidateTower(table)(
            tf.ragged.constant([[3], [], [8, 2]], dtype=tf.int32)
        )
        np.testing.assert_array_equal(
            vectors.flat_values, table.embeddings.numpy()[[3, 8, 2]]
        )
        self.assertEqual(vectors.row_lengths().numpy().tolist(), [1, 0, 2])

    @parameterized.parameters(None, RowFeature)
    def test_all_candidates_are_what_a_call_gives(self, features):
        tower = CandidateTower(_table(), item_features=features and features())
        everything = tower.all_candidates().numpy()
        self.assertEqual(everything.shape, (9, 4))
        np.testing.assert_allclose(everything[1:], tower(np.arange(1, 9)))

    def test_transition_values_follow_the_row(self):
        table = _table()
        tower = CandidateTower(table, transition_dim=2)
        tower.build()
        size = table.vocabulary_size
        values = np.arange(2 * size, dtype=np.float32).reshape(size, 2)
        tower.transition_values.assign(values)
        rows = np.concatenate([table.embeddings.numpy(), values], axis=1)
        self.assertFalse(tower.is_table)
        np.testing.assert_array_equal(tower.all_candidates(), rows)
        for ids in (np.array([3, 5]), np.array([[3], [8]])):
            np.testing.assert_array_equal(tower(ids), rows[ids])
            np.testing.assert_array_equal(
                tower(ids, with_transitions=False), rows[ids][..., :4]
            )
        ragged = tower(tf.ragged.constant([[3, 4], [5]]))
        np.testing.assert_array_equal(ragged.flat_values, rows[[3, 4, 5]])
        np.testing.assert_array_equal(
            tower.all_candidates(with_transitions=False), rows[:, :4]
        )

    def test_all_candidates_builds_the_tower(self):
        tower = CandidateTower(SharedItemEmbedding(9, 4))
        self.assertEqual(tower.all_candidates().shape, (9, 4))

    def test_features_are_added(self):
        table = _table()
        difference = CandidateTower(table, item_features=RowFeature())(
            np.array([7])
        ) - CandidateTower(table)(np.array([7]))
        np.testing.assert_allclose(difference, [[0, 0, 0, 7]], rtol=1e-6)

    def test_no_mask_leaves_the_towers(self):
        table = _table()
        ids = tf.constant([[3, 0]])
        for vectors in (
            CandidateTower(table)(ids),
            CandidateTower(table, item_features=RowFeature())(ids),
            HistoryTower(table, encoder=MeanPooling())(
                ids, return_sequences=True
            ),
        ):
            self.assertIsNone(getattr(vectors, "_keras_mask", None))


if __name__ == "__main__":
    absltest.main()
