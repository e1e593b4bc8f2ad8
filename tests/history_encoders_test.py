from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys import GRUEncoder, MeanPooling, SelfAttentionEncoder

DIM = 6
ENCODERS = {
    "mean": lambda: MeanPooling(dropout=0.2),
    "gru": lambda: GRUEncoder(units=5),
    "attention": lambda: SelfAttentionEncoder(
        num_blocks=2, num_heads=3, max_distance=4
    ),
}


def _vectors(batch: int = 2, length: int = 7, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, length, DIM)).astype(np.float32)


def _randomize(layer: keras.layers.Layer, seed: int = 1) -> None:
    """Gives every weight, biases and scales too, a value of its own."""
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(scale=0.5, size=variable.shape))


class EveryEncoderTest(parameterized.TestCase):
    def _encoder(self, name: str) -> keras.layers.Layer:
        encoder = ENCODERS[name]()
        encoder.build((None, None, DIM))
        _randomize(encoder)
        return encoder

    @parameterized.parameters(*ENCODERS)
    def test_a_later_item_changes_no_earlier_output(self, name):
        encoder = self._encoder(name)
        vectors = _vectors()
        before = encoder(vectors).numpy()
        for position in range(1, vectors.shape[1]):
            changed = vectors.copy()
            changed[:, position:] += 3
            after = encoder(changed).numpy()
            np.testing.assert_allclose(
                after[:, :position], before[:, :position], atol=1e-6
            )
            self.assertGreater(
                np.abs(after[:, position] - before[:, position]).max(), 1e-3
            )

    @parameterized.product(name=list(ENCODERS), padding=(1, 4))
    def test_padding_on_either_side_changes_nothing(self, name, padding):
        encoder = self._encoder(name)
        vectors = _vectors()
        alone = encoder(vectors).numpy()
        # What stands in the padding must not matter.
        noise = 100 * _vectors(2, padding, seed=5)
        real, none = np.ones((2, 7), bool), np.zeros((2, padding), bool)
        left = encoder(
            np.concatenate([noise, vectors], 1),
            mask=tf.constant(np.concatenate([none, real], 1)),
        )
        np.testing.assert_allclose(left[:, padding:], alone, atol=2e-5)
        right = encoder(
            np.concatenate([vectors, noise], 1),
            mask=tf.constant(np.concatenate([real, none], 1)),
        )
        np.testing.assert_allclose(right[:, :7], alone, atol=2e-5)
        self.assertTrue(np.isfinite(left).all() and np.isfinite(right).all())

    @parameterized.parameters(*ENCODERS)
    def test_rows_do_not_mix(self, name):
        encoder = self._encoder(name)
        vectors = _vectors(3)
        together = encoder(vectors)
        for row in range(3):
            np.testing.assert_allclose(
                encoder(vectors[row : row + 1])[0], together[row], atol=1e-5
            )

    @parameterized.parameters(*ENCODERS)
    def test_dropout_in_training_alone(self, name):
        encoder = self._encoder(name)
        encoder.dropout.rate = 0.5
        vectors = _vectors()
        np.testing.assert_array_equal(
            encoder(vectors), encoder(vectors, training=False)
        )
        self.assertGreater(
            np.abs(encoder(vectors, training=True) - encoder(vectors)).max(),
            1e-3,
        )

    @parameterized.parameters(*ENCODERS)
    def test_gradient_is_that_of_finite_differences(self, name):
        encoder = self._encoder(name)
        vectors = tf.constant(_vectors(1, 5))
        mask = tf.constant([[False, True, True, True, False]])
        mixing = tf.constant(_vectors(1, 5, seed=7)) * tf.cast(
            mask[..., tf.newaxis], tf.float32
        )
        direction = _vectors(1, 5, seed=8)

        def value(at: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(encoder(at, mask=mask) * mixing)

        with tf.GradientTape() as tape:
            tape.watch(vectors)
            total = value(vectors)
        slope = np.sum(tape.gradient(total, vectors).numpy() * direction)
        step = 1e-2
        expected = (
            value(vectors + step * direction)
            - value(vectors - step * direction)
        ) / (2 * step)
        np.testing.assert_allclose(slope, expected, rtol=0.02, atol=0.02)


class MeanPoolingTest(parameterized.TestCase):
    def test_by_hand(self):
        vectors = np.array([[[9, 9], [1, 2], [3, 6], [9, 9], [5, 1]]], "f4")
        mask = tf.constant([[False, True, True, False, True]])
        np.testing.assert_allclose(
            MeanPooling()(vectors, mask=mask),
            # Positions of padding repeat the mean so far.
            [[[0, 0], [1, 2], [2, 4], [2, 4], [3, 3]]],
        )
        np.testing.assert_allclose(
            MeanPooling()(vectors[:, 1:3]), [[[1, 2], [2, 4]]]
        )

    def test_long_histories_in_half_precision(self):
        # A float16 sum of 4000 ones would stall at 2048.
        ones = np.ones((1, 4000, 1), np.float16)
        mean = MeanPooling(dtype="mixed_float16")(ones)
        self.assertEqual(float(mean[0, -1, 0]), 1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x) + 1e-6) * scale


def _plain_block(
    weights: dict[str, np.ndarray], x: np.ndarray, real: np.ndarray
) -> np.ndarray:
    """One block over one row, position by position."""
    num_heads, max_distance = weights["distance_bias"].shape
    head_dim = DIM // num_heads
    inputs = [
        np.split(
            _norm(v, weights["attention_norm"]) @ weights["attention_in"], 4
        )
        for v in x
    ]
    hidden = np.zeros_like(x)
    for t in range(len(x)):
        query, _, _, gate = inputs[t]
        attended = np.zeros(DIM)
        for head in range(num_heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            read = [s for s in range(t + 1) if real[s]]
            logits = np.array(
                [
                    query[part] @ inputs[s][1][part] / np.sqrt(head_dim)
                    + weights["distance_bias"][
                        head, min(t - s, max_distance - 1)
                    ]
                    for s in read
                ]
            )
            if not read:
                continue
            share = np.exp(logits - logits.max())
            share /= share.sum()
            attended[part] = sum(
                a * inputs[s][2][part] for a, s in zip(share, read)
            )
        hidden[t] = x[t] + attended @ weights["attention_out"] * _sigmoid(gate)
    result = np.zeros_like(x)
    for t, h in enumerate(hidden):
        left, right, gate = np.split(
            _norm(h, weights["feed_forward_norm"]) @ weights["feed_forward_in"],
            [2 * DIM, 4 * DIM],
        )
        fed = left * _sigmoid(left) * right
        result[t] = h + fed @ weights["feed_forward_out"] * _sigmoid(gate)
    return result


class SelfAttentionEncoderTest(parameterized.TestCase):
    @parameterized.parameters(
        # Histories shorter than, as long as and longer than max_distance.
        (4, 9),
        (9, 9),
        (9, 3),
        (6, 1),
        (1, 2),
    )
    def test_against_plain_numpy(self, length, max_distance):
        encoder = SelfAttentionEncoder(
            num_blocks=2, num_heads=3, max_distance=max_distance
        )
        encoder.build((None, None, DIM))
        _randomize(encoder)
        vectors = _vectors(2, length).astype(np.float64)
        real = np.ones((2, length), bool)
        real[1, : length // 3] = False
        real[1, length // 2 : length // 2 + 1] = length < 4
        got = encoder(vectors.astype(np.float32), mask=tf.constant(real))
        for row in range(2):
            x = vectors[row] * np.sqrt(DIM)
            for block in encoder.blocks:
                weights = {
                    name: getattr(block, name).numpy().astype(np.float64)
                    for name in (
                        "attention_in",
                        "attention_out",
                        "feed_forward_in",
                        "feed_forward_out",
                        "distance_bias",
                    )
                }
                for name in ("attention_norm", "feed_forward_norm"):
                    weights[name] = getattr(block, name).scale.numpy()
                x = _plain_block(weights, x, real[row])
            expected = np.stack(
                [_norm(v, encoder.norm.scale.numpy()) for v in x]
            )
            np.testing.assert_allclose(
                got[row][real[row]], expected[real[row]], rtol=1e-3, atol=1e-4
            )

    @parameterized.product(dtype=("float32", "bfloat16"), num_blocks=(1, 2))
    def test_one_position_is_as_among_all(self, dtype, num_blocks):
        encoder = SelfAttentionEncoder(
            num_blocks=num_blocks, num_heads=2, max_distance=4, dtype=dtype
        )
        vectors = tf.cast(_vectors(4, 7), dtype)
        encoder.build(vectors.shape)
        _randomize(encoder)
        # Padding on the right, on the left, nowhere and everywhere.
        mask = np.ones((4, 7), bool)
        mask[0, 5:] = mask[1, :2] = mask[3] = False
        every = tf.cast(encoder(vectors, mask=mask), "float32").numpy()
        positions = np.array([4, 6, 3, -1], np.int32)
        one = encoder(vectors, mask=mask, only_positions=positions)
        self.assertEqual(one.dtype, dtype)
        np.testing.assert_allclose(
            tf.cast(one, "float32")[:3],
            every[np.arange(3), positions[:3]],
            rtol=1e-5 if dtype == "float32" else 0.1,
            atol=1e-5 if dtype == "float32" else 0.1,
        )
        np.testing.assert_array_equal(np.isfinite(one[3]), True)

    @parameterized.product(reads_times=(False, True), num_blocks=(1, 2))
    def test_skipping_padding_changes_nothing_else(
        self, reads_times, num_blocks
    ):
        vectors = tf.constant(_vectors(5, 7))
        # Padding on the right, on the left, in between, nowhere, everywhere.
        mask = np.ones((5, 7), bool)
        mask[0, 3:] = mask[1, :2] = mask[2, [0, 4]] = mask[4] = False
        times = tf.constant(np.arange(35).reshape(5, 7) * 3600, tf.int64)
        known = {"times": (times, times)} if reads_times else {}
        found = []
        for skips in (False, True):
            encoder = SelfAttentionEncoder(
                num_blocks=num_blocks,
                num_heads=2,
                dropout=0.0,
                max_distance=4,
                reads_times=reads_times,
            )
            encoder.skips_padding = skips
            encoder.build(vectors.shape)
            _randomize(encoder)
            with tf.GradientTape() as tape:
                tape.watch(vectors)
                answer = encoder(vectors, mask=mask, training=True, **known)
                total = tf.reduce_sum(answer[mask] ** 3)
            sources = [vectors, *encoder.trainable_variables]
            found.append([answer[mask], *tape.gradient(total, sources)])
            # Nothing is asked of padding, and nothing learned from it.
            np.testing.assert_array_equal(found[-1][1][~mask], 0)
        np.testing.assert_array_equal(answer[~mask], 0)
        for here, there in zip(*found, strict=True):
            np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5)

    def test_padding_is_not_computed(self):
        encoder = SelfAttentionEncoder(num_blocks=1, dropout=0.0)
        encoder.skips_padding = True
        encoder.build((None, None, DIM))
        mask = np.zeros((4, 50), bool)
        mask[:, :3] = True
        sizes = []
        original = encoder.blocks[0].feed_forward_norm.call

        def call(inputs):
            sizes.append(inputs.shape)
            return original(inputs)

        encoder.blocks[0].feed_forward_norm.call = call
        encoder(_vectors(4, 50), mask=mask, training=True)
        self.assertEqual(sizes, [(4 * 3, DIM)])

    def test_beyond_max_distance_only_the_bias_is_shared(self):
        # One head, bias 0 but for the farthest distance: with max_distance
        # 2, an item ten places back and one two places back weigh the same.
        encoder = SelfAttentionEncoder(
            num_blocks=1, num_heads=1, max_distance=2
        )
        long = _vectors(1, 12)
        encoder.build(long.shape)
        _randomize(encoder)
        swapped = long.copy()
        swapped[:, [1, 8]] = swapped[:, [8, 1]]
        np.testing.assert_allclose(
            encoder(long)[:, -1], encoder(swapped)[:, -1], atol=1e-5
        )

    @parameterized.parameters("num_blocks", "num_heads", "max_distance")
    def test_bad_numbers(self, name):
        with self.assertRaisesRegex(
            ValueError, f"`{name}` must be positive. Received: 0"
        ):
            SelfAttentionEncoder(**{name: 0})

    def test_heads_must_divide_the_dim(self):
        with self.assertRaisesRegex(
            ValueError, "`num_heads` must divide the vectors' dim 6.*4"
        ):
            SelfAttentionEncoder(num_heads=4)(_vectors())

    @parameterized.parameters(False, True)
    def test_a_graph_to_serve_is_freed_with_its_model(self, reads_times):
        encoder = SelfAttentionEncoder(num_blocks=2, reads_times=reads_times)
        encoder.build((None, None, DIM))
        _randomize(encoder)
        vectors = tf.constant(_vectors())
        times = tf.constant(np.arange(14).reshape(2, 7), tf.int64)
        known = {"times": (times, times)} if reads_times else {}

        def traced(**options):
            function = tf.function(
                lambda: encoder(vectors, **known, **options)
            ).get_concrete_function()
            graph = function.graph.as_graph_def()
            # TensorFlow keeps what has a gradient of its own for good.
            return function(), "CustomGradient" in str(graph)

        served, has_gradient = traced(training=False)
        self.assertFalse(has_gradient)
        other, has_gradient = traced()
        self.assertTrue(has_gradient)
        np.testing.assert_array_equal(served, other)


class GRUEncoderTest(parameterized.TestCase):
    def test_units_default_to_the_dim(self):
        encoder = GRUEncoder()
        self.assertEqual(encoder(_vectors()).shape, (2, 7, DIM))
        self.assertEqual(encoder.gru.units, DIM)
        self.assertIsNone(encoder.get_config()["units"])

    def test_is_keras_s_gru_and_a_projection(self):
        encoder = GRUEncoder(units=5)
        vectors = _vectors()
        encoder.build(vectors.shape)
        _randomize(encoder)
        gru = keras.layers.GRU(5, return_sequences=True)
        gru.build(vectors.shape)
        gru.set_weights(encoder.gru.get_weights())
        kernel, bias = encoder.projection.get_weights()
        np.testing.assert_allclose(
            encoder(vectors), gru(vectors) @ kernel + bias, atol=1e-5
        )


if __name__ == "__main__":
    absltest.main()
