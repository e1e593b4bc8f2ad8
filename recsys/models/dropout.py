"""Dropout that draws less: two decisions from every 32 random bits."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

_BITS = 16


@keras.saving.register_keras_serializable(package="recsys")
class Dropout(keras.layers.Dropout):
    """Keras's dropout with 16 random bits for each entry in place of 32.

    On a processor the random numbers are most of the cost of a dropout,
    in several layers a twentieth of a training step. The share that is
    dropped is `rate` rounded to a multiple of 2⁻¹⁶; what is kept is
    scaled by the exact share, so that the mean of an entry stays.

    Args:
        rate: Share of the entries that training sets to zero, in [0, 1].
        seed: Of the random numbers. Default: Keras's global one decides.
        **kwargs: Keras's own layer arguments.

    Raises:
        ValueError: `rate` is out of range, or `noise_shape` is given.
    """

    def __init__(
        self, rate: float, seed: int | None = None, **kwargs: Any
    ) -> None:
        noise_shape = kwargs.pop("noise_shape", None)
        if noise_shape is not None:
            raise ValueError(
                "`noise_shape` must be None: every entry is drawn by itself. "
                f"Received: {noise_shape}"
            )
        super().__init__(rate, seed=seed, **kwargs)

    def call(
        self, inputs: tf.Tensor, training: bool | None = False
    ) -> tf.Tensor:
        """Drops entries of a tensor of any shape, in training only."""
        if not training or not self.rate:
            return inputs
        num_kept = round((1 - self.rate) * 2**_BITS)
        shape = tf.shape(inputs)
        size = tf.size(inputs)
        words = tf.random.stateless_uniform(
            [(size + 1) // 2],
            self.seed_generator.next(),
            minval=None,
            maxval=None,
            dtype=tf.int32,
        )
        # Two numbers from each word, all from -2¹⁵ on.
        numbers = tf.reshape(tf.bitcast(words, tf.int16), [-1])[:size]
        kept = tf.reshape(numbers < num_kept - 2 ** (_BITS - 1), shape)
        return tf.where(kept, inputs * (2**_BITS / max(1, num_kept)), 0)
