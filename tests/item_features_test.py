from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys import (
    CandidateTower,
    HistoryTower,
    ItemFeatures,
    MeanPooling,
    SharedItemEmbedding,
    TwoTower,
)
from recsys.training.trainer import TrainStep

# Items 2, 3 and 4: two values, one value, none.
VALUES = [[1, 2], [2, 0], [0, 0]]
WEIGHTS = [[0.5, 2.0], [1.0, 0.0], [0.0, 0.0]]
VECTORS = [[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]]


def _features(vector_dim: int = 2, dim: int = 4) -> ItemFeatures:
    layer = ItemFeatures(
        5, dim, num_values=3, values_per_item=2, vector_dim=vector_dim, scale=2
    )
    layer.set_features(VALUES, WEIGHTS, VECTORS if vector_dim else None)
    return layer


class ItemFeaturesTest(parameterized.TestCase):
    def test_by_hand(self):
        layer = _features()
        rows = layer.embeddings.numpy()
        project = layer.projection.numpy()
        none = np.zeros(4)
        expected = np.stack(
            [
                none,
                none,
                2 * (0.5 * rows[1] + 2 * rows[2] + project[0]),
                2 * (rows[2] + 3 * project[1]),
                none,
            ]
        )
        for ids in (np.arange(5), np.array([[4, 3], [2, 0]]), np.array(2)):
            np.testing.assert_allclose(
                layer(ids), expected[ids], rtol=1e-5, atol=1e-7
            )
        ragged = layer(tf.ragged.constant([[3], [], [2, 1]]))
        np.testing.assert_allclose(
            ragged.flat_values, expected[[3, 2, 1]], rtol=1e-5, atol=1e-7
        )
        self.assertEqual(ragged.row_lengths().numpy().tolist(), [1, 0, 2])

    def test_vectors_alone(self):
        layer = ItemFeatures(
            5, 4, num_values=1, values_per_item=0, vector_dim=2, scale=1
        )
        layer.set_features(np.zeros((3, 0)), np.zeros((3, 0)), VECTORS)
        np.testing.assert_allclose(
            layer(np.array([2, 3])),
            [layer.projection[0], 3 * layer.projection[1]],
            rtol=1e-5,
        )
        self.assertLen(layer.trainable_weights, 1)

    def test_what_is_known_of_the_items_is_not_trained(self):
        layer = _features()
        self.assertEqual(
            [weight.name for weight in layer.trainable_weights],
            ["embeddings", "projection"],
        )
        self.assertLen(layer.non_trainable_weights, 3)

    def test_items_without_an_id(self):
        layer = _features()
        np.testing.assert_allclose(
            layer.embed([1, 2, 0], [0.5, 2.0, 9.0], [1.0, 0.0])
            - layer.embed([0], [9.0], [0.0, 0.0]),
            layer(np.array(2)),
            atol=1e-6,
        )

    @parameterized.parameters(0, 2)
    def test_extended(self, vector_dim):
        layer = _features(vector_dim)
        old = layer(np.arange(5)).numpy()
        # One item, of more values than any before it.
        new = ([[2, 1, 1]], [[1.0, 0.5, 0.5]], [[3.0, 1.0]])
        new = new if vector_dim else new[:2]
        longer = layer.extended(*new)
        vectors = longer(np.arange(6)).numpy()
        np.testing.assert_array_equal(vectors[:5], old)
        np.testing.assert_array_equal(vectors[5:], layer.embed(*new))
        self.assertEqual(longer.vocabulary_size, 6)
        self.assertEqual(layer.vocabulary_size, 5)

    def test_vectors_alone_extended(self):
        layer = ItemFeatures(
            5, 4, num_values=1, values_per_item=0, vector_dim=2, scale=1
        )
        layer.set_features(vectors=VECTORS)
        longer = layer.extended(vectors=[[1.0, 1.0]])
        np.testing.assert_allclose(
            longer(np.array([5]))[0],
            tf.reduce_sum(layer.projection, axis=0),
            rtol=1e-5,
        )

    def test_features_can_be_replaced(self):
        layer = _features(vector_dim=0)
        layer.set_features(VALUES[::-1], WEIGHTS[::-1])
        np.testing.assert_allclose(
            layer(np.array([3])), 2 * layer.embeddings.numpy()[2:], rtol=1e-5
        )

    @parameterized.parameters(
        ((VALUES[:2], WEIGHTS), r"`values` .* \(3, 2\). Received: \(2, 2\)$"),
        ((VALUES, None), r"`weights` .* \(3, 2\). Received: None$"),
        (
            (VALUES, WEIGHTS, VECTORS),
            r"`vectors` .* \(3, 0\). Received: \(3, 2\)$",
        ),
        (
            ([[1, 2], [3, 0], [0, 0]], WEIGHTS),
            "`values` must be from 0 to 2. Received: 0 to 3$",
        ),
    )
    def test_features_of_the_wrong_kind(self, arguments, message):
        with self.assertRaisesRegex(ValueError, message):
            _features(vector_dim=0).set_features(*arguments)

    @parameterized.parameters(
        ((2, 4, 3, 2), "`vocabulary_size` must be at least 3. Received: 2$"),
        ((5, 0, 3, 2), "`embedding_dim` must be at least 1. Received: 0$"),
        ((5, 4, 0, 2), "`num_values` must be at least 1. Received: 0$"),
        ((5, 4, 3, -1), "`values_per_item` must be at least 0. Received: -1"),
        ((5, 4, 3, 0), "`values_per_item` or `vector_dim` must be positive"),
    )
    def test_sizes(self, sizes, message):
        with self.assertRaisesRegex(ValueError, message):
            ItemFeatures(*sizes)

    def test_the_scale_must_be_positive(self):
        with self.assertRaisesRegex(ValueError, "`scale` .* Received: 0$"):
            ItemFeatures(5, 4, 3, 2, scale=0)


class TowersTest(parameterized.TestCase):
    def _towers(self, id_dropout: float = 0.0):
        table, features = SharedItemEmbedding(5, 4), _features()
        common = {"item_features": features, "id_dropout": id_dropout}
        return (
            HistoryTower(table, MeanPooling(), **common),
            CandidateTower(table, **common),
        )

    def test_a_row_and_its_features_are_added(self):
        history_tower, candidate_tower = self._towers()
        ids = np.array([2, 3, 4])
        expected = (
            candidate_tower.embedding(ids) + candidate_tower.item_features(ids)
        ).numpy()
        np.testing.assert_allclose(candidate_tower(ids), expected, rtol=1e-5)
        np.testing.assert_allclose(
            candidate_tower.all_candidates()[2:], expected, rtol=1e-5
        )
        np.testing.assert_allclose(
            history_tower(ids[np.newaxis]), [expected.mean(axis=0)], rtol=1e-5
        )

    def test_id_dropout_leaves_the_features_alone(self):
        keras.utils.set_random_seed(1)
        history_tower, candidate_tower = self._towers(id_dropout=0.5)
        ids = np.full([400], 3)
        row = candidate_tower.embedding(ids[:1]).numpy()[0]
        features = candidate_tower.item_features(ids[:1]).numpy()[0]
        for vectors in (
            candidate_tower(ids, training=True).numpy(),
            history_tower(ids[:, np.newaxis], training=True).numpy(),
        ):
            with_row = np.abs(vectors - (features + row)).max(axis=1) < 1e-6
            without = np.abs(vectors - features).max(axis=1) < 1e-6
            # Each is one or the other, whole; about as many of each.
            np.testing.assert_array_equal(with_row, ~without)
            self.assertBetween(with_row.mean(), 0.4, 0.6)
        np.testing.assert_allclose(
            candidate_tower(ids), np.tile(features + row, (400, 1)), rtol=1e-5
        )
        whole = candidate_tower.all_candidates().numpy()
        dropped = [
            candidate_tower.all_candidates(training=True).numpy()
            for _ in range(10)
        ]
        self.assertGreater(np.abs(dropped - whole).max(), 0)

    def test_id_dropout_reaches_the_scores_of_all_items(self):
        keras.utils.set_random_seed(1)
        table = SharedItemEmbedding(5, 4)
        model = TwoTower(
            HistoryTower(table, MeanPooling()),
            CandidateTower(
                table, item_features=_features(), id_dropout=0.999999
            ),
        )
        history = np.array([[2, 3]])
        scores = model({"history_ids": history}, training=True).numpy()
        features = model.candidate_tower.item_features(np.arange(2, 5))
        np.testing.assert_allclose(
            scores[:, 2:],
            model.history_tower(history).numpy() @ features.numpy().T,
            rtol=1e-5,
            atol=1e-7,
        )

    @parameterized.parameters(-0.1, 1.0)
    def test_id_dropout_out_of_range(self, rate):
        with self.assertRaisesRegex(ValueError, f"`id_dropout` .*: {rate}$"):
            self._towers(id_dropout=rate)

    def test_id_dropout_needs_features(self):
        for tower in (HistoryTower, CandidateTower):
            with self.assertRaisesRegex(ValueError, "item_features=None$"):
                tower(SharedItemEmbedding(5, 4), id_dropout=0.1)

    def test_loss_over_some_candidates(self):
        model = TwoTower(*self._towers())
        model.trained_items = [2, 4]
        batch = {
            "history_ids": np.array([[2, 4]], np.int32),
            "target_ids": np.array([[4, 2]], np.int32),
        }
        loss, count = model.next_item_loss(batch, training=False)
        queries = model.history_tower(
            batch["history_ids"], return_sequences=True
        ).numpy()[0]
        logits = queries @ model.candidate_tower(np.array([2, 4])).numpy().T
        expected = np.log(np.exp(logits).sum(axis=1)) - logits[[0, 1], [1, 0]]
        self.assertEqual(float(count), 2)
        np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)

    @parameterized.parameters("fit", "trainer")
    def test_an_item_without_interactions_is_left_alone(self, by):
        """Its row stays, its features move with those of other items."""
        keras.utils.set_random_seed(0)
        model = TwoTower(*self._towers(id_dropout=0.2))
        model.build()
        model.trained_items = np.array([2, 4])
        batch = {
            "history_ids": np.array([[2, 2, 2]], np.int32),
            "target_ids": np.array([[4, 2, 4]], np.int32),
        }
        table = model.candidate_tower.embedding.embeddings
        row, before = table.numpy()[3], model.candidate_tower(np.array([3]))
        optimizer = keras.optimizers.Adam(0.1)
        if by == "fit":
            model.compile(optimizer=optimizer)
            model.fit(batch, epochs=3, verbose=0)
        else:
            optimizer.build(model.trainable_variables)
            step = TrainStep(model, optimizer, None, seed=0)
            for _ in range(3):
                step(batch)
        np.testing.assert_array_equal(table.numpy()[3], row)
        after = model.candidate_tower(np.array([3]))
        self.assertGreater(np.abs(after - before).max(), 1e-3)


if __name__ == "__main__":
    absltest.main()
