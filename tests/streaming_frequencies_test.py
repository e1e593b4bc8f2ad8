from __future__ import annotations

import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys.negatives import NegativeSampler, StreamingFrequencies


def _feed(layer: StreamingFrequencies, items: np.ndarray, batch_size: int):
    update = tf.function(
        layer.update, input_signature=[tf.TensorSpec([None], tf.int32)]
    )
    if not layer.built:
        layer.build()
    for begin in range(0, len(items), batch_size):
        update(tf.constant(items[begin : begin + batch_size], tf.int32))


class StreamingFrequenciesTest(parameterized.TestCase):
    def test_by_hand(self):
        layer = StreamingFrequencies(100, rate=0.5, initial_gap=1000)
        # Time is 4 after the first batch (padding and unknown do not count),
        # where item 7 is two of four, and 8 after the second.
        layer.update(tf.constant([[7, 9, 0], [7, 8, 1]]))
        np.testing.assert_allclose(
            layer(tf.constant([7, 9, 30])), [1 / 2, 1 / 4, 1 / 1000]
        )
        layer.update(tf.constant([7, 2, 3, 4]))
        # The gap: half of the old 2, half of the new 4.
        np.testing.assert_allclose(
            layer(tf.constant([[7], [9]])), [[1 / 3], [1 / 4]]
        )
        # Twice in one batch: a quarter of the old 3, the rest of 4 / 2.
        layer.update(tf.constant([7, 7, 3, 4]))
        np.testing.assert_allclose(layer(tf.constant([7])), [1 / 2.25])

    @parameterized.parameters(1, 50, 1000)
    def test_learns_the_shares_of_a_stream(self, batch_size):
        shares = np.append([0, 0], 1 / np.arange(1, 21))
        shares /= shares.sum()
        rng = np.random.default_rng(0)
        num = 1_500 if batch_size == 1 else 100_000
        layer = StreamingFrequencies(1000, num_hashes=2, rate=0.02)
        _feed(layer, rng.choice(22, num, p=shares), batch_size)
        got = layer(tf.range(2, 22)).numpy()
        error = np.abs(np.log(got / shares[2:]))
        self.assertLess(error.mean(), 0.2 if batch_size > 1 else 0.35)

    def test_follows_a_drift(self):
        layer = StreamingFrequencies(1000, rate=0.1)
        _feed(layer, np.tile([2, 2, 2, 3], 500), 40)
        np.testing.assert_allclose(layer(tf.constant([2])), [0.75], rtol=0.05)
        _feed(layer, np.tile([2, 3, 3, 3], 500), 40)
        np.testing.assert_allclose(layer(tf.constant([2])), [0.25], rtol=0.05)

    def test_collisions_only_raise_the_estimate(self):
        rng = np.random.default_rng(0)
        ids = rng.choice(10**6, 100, replace=False) + 2
        items = rng.permutation(np.repeat(ids, 40))
        errors = []
        for num_hashes in (1, 4):
            layer = StreamingFrequencies(100, num_hashes, rate=0.02)
            _feed(layer, items, 100)
            errors.append(
                np.abs(layer(tf.constant(ids)).numpy() * 100 - 1).mean()
            )
        self.assertLess(errors[1], 0.5 * errors[0])

    def test_frequencies_of_in_batch_negatives(self):
        layer = StreamingFrequencies(100)
        layer.update(tf.constant([2, 2, 2, 3]))
        sampler = NegativeSampler("in_batch", 10, 6, frequencies=layer)
        batch = {"target_ids": tf.constant([[2, 3]])}
        batch["history_ids"] = batch["target_ids"]
        negatives = sampler.draw(batch, tf.constant([0, 0]))
        # Two targets, so half of ten draws are another's.
        np.testing.assert_allclose(
            np.exp(negatives.log_expected_counts),
            np.where(negatives.ids == 2, 5 * 0.75, 5 * 0.25),
            rtol=1e-5,
        )

    def test_state_is_in_the_weights(self):
        layer, other = (StreamingFrequencies(50) for _ in range(2))
        layer.update(tf.constant([2, 3, 3]))
        other.build()
        other.set_weights(layer.get_weights())
        for each in (layer, other):
            each.update(tf.constant([3, 4]))
        ids = tf.range(2, 10)
        np.testing.assert_array_equal(layer(ids), other(ids))
        self.assertEqual(layer.trainable_weights, [])

    def test_a_checkpoint_beside_the_model(self):
        layer, other = (StreamingFrequencies(50) for _ in range(2))
        layer.update(tf.constant([2, 3, 3]))
        other.build()
        path = self.enterContext(tempfile.TemporaryDirectory()) + "/state"
        tf.train.Checkpoint(frequencies=layer).write(path)
        status = tf.train.Checkpoint(frequencies=other).read(path)
        status.assert_consumed()
        for one, two in zip(layer.weights, other.weights, strict=True):
            np.testing.assert_array_equal(one, two)

    def test_config_round_trip(self):
        layer = StreamingFrequencies(50, 3, 0.5, 10.0, name="mine")
        config = keras.saving.serialize_keras_object(layer)
        again = keras.saving.deserialize_keras_object(config)
        self.assertEqual(again.get_config(), layer.get_config())

    @parameterized.parameters(
        ({"num_buckets": 0}, "`num_buckets` must be positive"),
        ({"num_hashes": 5}, "`num_hashes` must be from 1 to 4"),
        ({"rate": 0.0}, "`rate` must be above 0"),
        ({"initial_gap": 0.5}, "`initial_gap` must be at least 1"),
    )
    def test_errors(self, options, message):
        with self.assertRaisesRegex(ValueError, message):
            StreamingFrequencies(**{"num_buckets": 10, **options})


if __name__ == "__main__":
    absltest.main()
