"""A causal, gated transformer block with relative-position bias."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from recsys.models.attention import causal_attention
from recsys.models.dropout import Dropout


@keras.saving.register_keras_serializable(package="recsys")
class RMSNorm(keras.layers.Layer):
    """Divides by the root mean square, times a learned scale.

    Zhang and Sennrich 2019 (https://arxiv.org/abs/1910.07467).

    Args:
        **kwargs: Keras's own layer arguments.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Creates the scale."""
        self.scale = self.add_weight(
            name="scale", shape=(input_shape[-1],), initializer="ones"
        )
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalizes `[..., dim]` over its last axis."""
        wide = tf.cast(inputs, tf.float32)
        mean_square = tf.reduce_mean(tf.square(wide), axis=-1, keepdims=True)
        normed = wide * tf.math.rsqrt(mean_square + 1e-6)
        return tf.cast(normed, inputs.dtype) * self.scale


@keras.saving.register_keras_serializable(package="recsys")
class TransformerBlock(keras.layers.Layer):
    """Attention, then a feed-forward layer, each as a gated residual.

    x + dropout(branch(norm(x))) * sigmoid(W norm(x)): the branch is causal
    multi-head attention with a learned bias per head and distance, then
    SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202). The gate follows
    LiGR (Borisyuk et al. 2025, https://arxiv.org/abs/2502.03417).

    Args:
        num_heads: Attention heads; divides the vectors' dim.
        dropout: Share of the entries of each branch dropped in training.
        max_distance: Distances in positions from this on share one bias.
        **kwargs: Keras's own layer arguments.
    """

    def __init__(
        self,
        num_heads: int,
        dropout: float,
        max_distance: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.max_distance = max_distance
        self.dropout = Dropout(dropout, dtype=self.dtype_policy)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Creates the weights.

        Raises:
            ValueError: `num_heads` does not divide the vectors' dim.
        """
        dim = input_shape[-1]
        if dim % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the vectors' dim {dim}. Received: "
                f"{self.num_heads}"
            )
        self.attention_norm = RMSNorm(dtype=self.dtype_policy)
        self.attention_norm.build(input_shape)
        self.feed_forward_norm = RMSNorm(dtype=self.dtype_policy)
        self.feed_forward_norm.build(input_shape)
        # Everything that reads the same input is one matrix product.
        self.hidden_dim = 2 * dim
        self.attention_in = self._matrix("attention_in", dim, 4 * dim)
        self.attention_out = self._matrix("attention_out", dim, dim)
        self.feed_forward_in = self._matrix(
            "feed_forward_in", dim, 2 * self.hidden_dim + dim
        )
        self.feed_forward_out = self._matrix(
            "feed_forward_out", self.hidden_dim, dim
        )
        self.distance_bias = self.add_weight(
            name="distance_bias",
            shape=(self.num_heads, self.max_distance),
            initializer="zeros",
        )
        self.built = True

    def call(
        self,
        inputs: tf.Tensor,
        mask: tf.Tensor | None = None,
        training: bool | None = None,
        only_positions: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Runs the block.

        Args:
            inputs: `[batch, length, dim]`.
            mask: `[batch, length]` boolean, or None if nothing is padding.
            training: Whether dropout is active.
            only_positions: `[batch]` int32, the one position of each row to
                compute, for a sixth of the products; -1 where none is wanted.
                Default: all.

        Returns:
            `[batch, length, dim]`; `[batch, dim]` with `only_positions`.
        """
        dim = inputs.shape[-1]
        normed = self.attention_norm(inputs)
        if only_positions is None:
            queries, keys, values, gate = tf.split(
                _product(normed, self.attention_in), 4, axis=-1
            )
            attended = self._attend(queries, keys, values, mask)
        else:
            attended, gate = self._attend_at(only_positions, normed, mask)
            inputs = pick(only_positions, inputs)
        attended = _product(attended, self.attention_out)
        attended = self.dropout(attended, training=training)
        hidden = inputs + attended * tf.sigmoid(gate)

        normed = self.feed_forward_norm(hidden)
        left, right, gate = tf.split(
            _product(normed, self.feed_forward_in),
            [self.hidden_dim, self.hidden_dim, dim],
            axis=-1,
        )
        fed = _product(tf.nn.silu(left) * right, self.feed_forward_out)
        fed = self.dropout(fed, training=training)
        return hidden + fed * tf.sigmoid(gate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "dropout": self.dropout.rate,
            "max_distance": self.max_distance,
        }

    def _matrix(self, name: str, rows: int, columns: int) -> keras.Variable:
        # Scaled by the input alone: columns are several matrices side by side.
        initializer = keras.initializers.VarianceScaling(
            scale=1.0, mode="fan_in", distribution="truncated_normal"
        )
        return self.add_weight(
            name=name, shape=(rows, columns), initializer=initializer
        )

    def _attend(
        self,
        queries: tf.Tensor,
        keys: tf.Tensor,
        values: tf.Tensor,
        mask: tf.Tensor | None,
    ) -> tf.Tensor:
        """Causal multi-head attention, `[batch, length, dim]` each."""
        shape = tf.shape(queries)
        dim = queries.shape[-1]
        heads = [shape[0], shape[1], self.num_heads, dim // self.num_heads]

        def split(x: tf.Tensor) -> tf.Tensor:
            return tf.transpose(tf.reshape(x, heads), [0, 2, 1, 3])

        attended = causal_attention(
            split(queries), split(keys), split(values), self.distance_bias, mask
        )
        return tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), shape)

    def _attend_at(
        self, positions: tf.Tensor, normed: tf.Tensor, mask: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The same for one position of each row, with its gate.

        Args:
            positions: `[batch]` int32.
            normed: `[batch, length, dim]`.
            mask: `[batch, length]` boolean, or None.

        Returns:
            What is attended to and the gate's input, `[batch, dim]` both.
        """
        shape, dim = tf.shape(normed), normed.shape[-1]
        matrix = keras.ops.convert_to_tensor(self.attention_in)
        keys_and_values = _product(normed, matrix[:, dim : 3 * dim])
        query, gate = tf.split(
            _product(
                pick(positions, normed),
                tf.concat([matrix[:, :dim], matrix[:, 3 * dim :]], axis=1),
            ),
            2,
            axis=-1,
        )
        head_dim = dim // self.num_heads
        keys, values = (
            tf.reshape(each, [shape[0], shape[1], self.num_heads, head_dim])
            for each in tf.split(keys_and_values, 2, axis=-1)
        )
        query = tf.reshape(query, [shape[0], self.num_heads, head_dim])
        distance = positions[:, tf.newaxis] - tf.range(shape[1])[tf.newaxis]
        readable = distance >= 0
        if mask is not None:
            readable &= mask
        bias = tf.gather(
            tf.cast(self.distance_bias, query.dtype),
            tf.clip_by_value(distance, 0, self.max_distance - 1),
            axis=1,
        )
        logits = tf.einsum("bhd,blhd->bhl", query * head_dim**-0.5, keys)
        logits = tf.where(
            readable[:, tf.newaxis],
            logits + tf.transpose(bias, [1, 0, 2]),
            logits.dtype.min / 2,
        )
        attended = tf.einsum("bhl,blhd->bhd", tf.nn.softmax(logits), values)
        return tf.reshape(attended, [shape[0], dim]), gate


def pick(positions: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Takes one position of each row.

    Args:
        positions: `[batch]` int32; -1 picks none.
        values: `[batch, length, dim]`; the length may be 0.

    Returns:
        `[batch, dim]`, zero where none is picked.
    """
    # One-hot rather than gather, which does not know of -1.
    chosen = tf.one_hot(positions, tf.shape(values)[1], dtype=values.dtype)
    return tf.einsum("bl,bld->bd", chosen, values)


def _product(inputs: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """`[..., n]` times `[n, m]`, as one two-dimensional product."""
    flat = tf.reshape(inputs, [-1, inputs.shape[-1]])
    shape = tf.concat([tf.shape(inputs)[:-1], [matrix.shape[-1]]], axis=0)
    result = tf.reshape(tf.matmul(flat, matrix), shape)
    result.set_shape([*inputs.shape[:-1], matrix.shape[-1]])
    return result
