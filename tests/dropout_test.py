from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys.models.transformer_block import Dropout


class DropoutTest(parameterized.TestCase):
    @parameterized.parameters(0.1, 0.2, 0.5, 0.9)
    def test_drops_the_share_and_scales_what_is_kept(self, rate):
        outputs = Dropout(rate, seed=1)(tf.ones([500, 401]), training=True)
        outputs = outputs.numpy()
        kept = outputs != 0
        # 200,500 draws: a share's standard deviation is at most 0.0011.
        self.assertAlmostEqual(kept.mean(), 1 - rate, delta=0.005)
        np.testing.assert_allclose(outputs[kept], 1 / (1 - rate), rtol=1e-3)
        self.assertAlmostEqual(outputs.mean(), 1, delta=0.005 / (1 - rate))

    def test_neighbors_are_dropped_independently(self):
        # Two decisions come from one random word.
        kept = Dropout(0.5, seed=1)(tf.ones([200_000]), training=True) != 0
        pairs = np.reshape(kept, [-1, 2])
        shares = [
            np.mean((pairs == both).all(axis=1))
            for both in ([0, 0], [0, 1], [1, 0], [1, 1])
        ]
        np.testing.assert_allclose(shares, 0.25, atol=0.006)

    @parameterized.parameters(0, 1, 2, 7)
    def test_any_number_of_entries(self, size):
        layer = Dropout(0.5, seed=1)
        self.assertEqual(layer(tf.ones([size]), training=True).shape, [size])

    def test_gradient_passes_what_was_kept(self):
        inputs = tf.constant(np.linspace(1, 2, 50, dtype=np.float32))
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = Dropout(0.4, seed=1)(inputs, training=True)
        gradient = tape.gradient(outputs, inputs)
        np.testing.assert_allclose(gradient, outputs / inputs, rtol=1e-6)

    def test_seed_and_step_decide(self):
        first, again = (Dropout(0.5, seed=3) for _ in range(2))
        inputs = tf.ones([64])
        one = first(inputs, training=True)
        np.testing.assert_array_equal(one, again(inputs, training=True))
        self.assertTrue(np.any(one != first(inputs, training=True)))

    @parameterized.parameters(None, False)
    def test_changes_nothing_outside_of_training(self, training):
        inputs = tf.ones([8])
        outputs = Dropout(0.5)(inputs, training=training)
        np.testing.assert_array_equal(outputs, inputs)

    def test_half_precision(self):
        layer = Dropout(0.5, dtype="mixed_float16", seed=1)
        outputs = layer(tf.ones([64], tf.float16), training=True)
        self.assertEqual(outputs.dtype, tf.float16)
        self.assertEqual(set(np.unique(outputs)), {0.0, 2.0})

    def test_config_round_trip(self):
        layer = Dropout.from_config(Dropout(0.3, seed=5).get_config())
        self.assertEqual((layer.rate, layer.seed), (0.3, 5))
        with self.assertRaisesRegex(ValueError, "rate"):
            Dropout(1.5)

    def test_refuses_a_noise_shape(self):
        with self.assertRaisesRegex(ValueError, "`noise_shape`"):
            Dropout(0.3, noise_shape=(1, None))

    def test_rate_of_zero_draws_nothing(self):
        outputs = Dropout(0.0)(tf.ones([8]), training=True)
        np.testing.assert_array_equal(outputs, np.ones(8))

    def test_rate_of_one_drops_all(self):
        outputs = Dropout(1.0)(tf.ones([8]), training=True)
        np.testing.assert_array_equal(outputs, np.zeros(8))

    def test_saved_models_hold_it(self):
        self.assertEqual(
            keras.saving.get_registered_name(Dropout), "recsys>Dropout"
        )


if __name__ == "__main__":
    absltest.main()
