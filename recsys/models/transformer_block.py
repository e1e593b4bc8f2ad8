"""A causal, gated transformer block with relative-position bias.

Attention is computed in blocks of queries: a query at position t reads keys up
to t only, so a block of queries needs the keys up to the block's end, and with
two blocks a quarter of all products is never made. The gradient is written out
because the automatic one of a slice is as large as the whole array.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from recsys.models.shared_item_embedding import keep_frozen

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


_NUM_BLOCKS = 2


def causal_attention(
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    distance_bias: tf.Tensor,
    mask: tf.Tensor | None = None,
    pair_bias: tf.Tensor | None = None,
    training: bool | None = None,
) -> tf.Tensor:
    """Softmax attention of every position over itself and those before it.

    The logit of query t and key s is qₜ·kₛ / √head_dim + bias[t − s], and the
    bias of the pair if there is one; the bias of the largest known distance
    serves all greater ones. The gradient of the gradient is not available.

    Args:
        queries: `[batch, heads, length, head_dim]` float.
        keys: `[batch, heads, length, head_dim]` float.
        values: `[batch, heads, length, head_dim]` float.
        distance_bias: `[heads, max_distance]` float.
        mask: `[batch, length]` boolean, false where a key is not to be read;
            None reads all.
        pair_bias: `[batch, heads, length, length]` float, row the query.
        training: False where no gradient will be asked for: see
            `written_gradient`.

    Returns:
        `[batch, heads, length, head_dim]`. Positions before the first true
        one of the mask hold a mean of unspecified values.
    """
    length = tf.shape(queries)[2]
    queries *= tf.cast(queries.shape[-1], queries.dtype) ** -0.5
    bias = _bias_matrix(tf.cast(distance_bias, queries.dtype), length)
    if pair_bias is not None:
        bias += tf.cast(pair_bias, bias.dtype)
    if mask is None:
        mask = tf.ones([tf.shape(queries)[0], length], tf.bool)
    attend = written_gradient(_attend, training)
    return attend(queries, keys, values, bias, mask)


def written_gradient(
    function: Callable[..., tuple[tf.Tensor, Callable]], training: bool | None
) -> Callable[..., tf.Tensor]:
    """Gives a function the gradient that it returns beside its result.

    TensorFlow keeps every graph with such a function for as long as the process
    lives, so a service that loads one model after another must not have any:
    with `training=False` the function is plain operations with the same result.

    Args:
        function: Returns what it computes, and a function from the gradient of
            that to those of its arguments.
        training: As for a layer.
    """
    if training is False:
        return lambda *arguments: function(*arguments)[0]
    return tf.custom_gradient(function)


def _bias_matrix(distance_bias: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """`[heads, length, length]`, row the query; lowest where key > query."""
    positions = tf.range(length)
    distance = positions[:, tf.newaxis] - positions[tf.newaxis, :]
    nearest = tf.clip_by_value(distance, 0, distance_bias.shape[-1] - 1)
    bias = tf.gather(distance_bias, nearest, axis=1)
    return tf.where(distance >= 0, bias, distance_bias.dtype.min / 2)


def _maybe_add(
    condition: tf.Tensor, wide: tf.Tensor, narrow: tf.Tensor
) -> tf.Tensor:
    """Adds only if the condition holds; else saves a pass over the logits."""
    return tf.cond(condition, lambda: wide + narrow, lambda: wide)


def _attend(
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    bias: tf.Tensor,
    mask: tf.Tensor,
) -> tuple[tf.Tensor, Callable]:
    length = tf.shape(queries)[2]
    # Padding after a history is out of reach of its positions anyway.
    masked = tf.reduce_any(mask[:, 1:] & ~mask[:, :-1])
    barrier = tf.where(mask, tf.zeros([], bias.dtype), bias.dtype.min / 2)
    barrier = barrier[:, tf.newaxis, tf.newaxis]
    ends = [length * (i + 1) // _NUM_BLOCKS for i in range(_NUM_BLOCKS)]
    starts = [0, *ends[:-1]]
    weights = []
    outputs = []
    for start, end in zip(starts, ends, strict=True):
        logits = tf.matmul(
            queries[:, :, start:end], keys[:, :, :end], transpose_b=True
        )
        logits += bias[..., start:end, :end]
        logits = _maybe_add(masked, logits, barrier[..., :end])
        weights.append(tf.nn.softmax(logits))
        outputs.append(tf.matmul(weights[-1], values[:, :, :end]))
    output = tf.concat(outputs, axis=2)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Σ over keys of weight * its gradient, for each query.
        inner = tf.reduce_sum(upstream * output, axis=-1, keepdims=True)
        query_gradients = []
        key_gradients: list[list[tf.Tensor]] = [[] for _ in ends]
        value_gradients: list[list[tf.Tensor]] = [[] for _ in ends]
        bias_gradients = []
        for block, (start, end) in enumerate(zip(starts, ends, strict=True)):
            above = upstream[:, :, start:end]
            weight = weights[block]
            below = tf.matmul(above, values[:, :, :end], transpose_b=True)
            below = weight * (below - inner[:, :, start:end])
            query_gradients.append(tf.matmul(below, keys[:, :, :end]))
            key_parts = tf.matmul(
                below, queries[:, :, start:end], transpose_a=True
            )
            value_parts = tf.matmul(weight, above, transpose_a=True)
            for part in range(block + 1):
                rows = slice(starts[part], ends[part])
                key_gradients[part].append(key_parts[:, :, rows])
                value_gradients[part].append(value_parts[:, :, rows])
            if len(bias.shape) == 3:
                below = tf.reduce_sum(below, axis=0)
            padding = [[0, 0]] * (len(bias.shape) - 1) + [[0, length - end]]
            bias_gradients.append(tf.pad(below, padding))
        return (
            tf.concat(query_gradients, axis=2),
            tf.concat([tf.add_n(parts) for parts in key_gradients], axis=2),
            tf.concat([tf.add_n(parts) for parts in value_gradients], axis=2),
            tf.concat(bias_gradients, axis=-2),
            None,
        )

    return output, gradient


# Of the time between two events: unknown, 0, then two for each doubling.
NUM_TIME_BUCKETS = 64


def time_bias(
    bias: tf.Tensor,
    query_times: tf.Tensor,
    key_times: tf.Tensor,
    training: bool | None = None,
) -> tf.Tensor:
    """Looks up a bias by the time from one event to another.

    After HSTU (Zhai et al. 2024, https://arxiv.org/abs/2402.17152), with a
    bucket for each factor of √2. Times of one row are within 68 years.

    Args:
        bias: `[heads, NUM_TIME_BUCKETS]`.
        query_times: `[batch, queries]` int64 seconds, below 0 for unknown.
        key_times: `[batch, keys]` int64 seconds, likewise.
        training: As for `causal_attention`.

    Returns:
        `[batch, heads, queries, keys]`: the bias 0 where a time is unknown, 1
        for no time or less, else 2 + ⌊2 log₂ seconds⌋.
    """
    lowest = tf.reduce_min(
        tf.where(key_times < 0, key_times.dtype.max, key_times),
        axis=1,
        keepdims=True,
    )
    queries, keys = (
        tf.where(
            times < 0,
            -1,
            tf.cast(tf.clip_by_value(times - lowest, 0, 2**31 - 1), tf.int32),
        )
        for times in (query_times, key_times)
    )
    queries, keys = queries[:, :, tf.newaxis], keys[:, tf.newaxis]
    seconds = tf.cast(tf.maximum(queries - keys, 0), tf.float32)
    doublings = tf.math.log(tf.maximum(seconds, 1.0)) * (2 / math.log(2))
    # The root of two is no float: its power is taken for the whole number.
    buckets = tf.cast(doublings + 1e-4, tf.int32) + 2
    buckets = tf.minimum(buckets, NUM_TIME_BUCKETS - 1)
    buckets = tf.where(seconds > 0, buckets, 1)
    buckets = tf.where((queries < 0) | (keys < 0), 0, buckets)
    look_up = written_gradient(_look_up, training)
    return look_up(tf.convert_to_tensor(bias), buckets)


def _look_up(
    table: tf.Tensor, buckets: tf.Tensor
) -> tuple[tf.Tensor, Callable]:
    """`[batch, heads, n, m]` of `[heads, size]` by `[batch, n, m]`."""
    heads = tf.unstack(table)
    found = tf.stack([tf.gather(head, buckets) for head in heads], axis=1)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        # An eighth of the time of the gather's own gradient. Row by row, since
        # threads would share a single row as they come, and round as they do.
        shape = [tf.shape(buckets)[0], -1]
        flat = tf.reshape(buckets, shape)
        sums = [
            tf.reduce_sum(
                # `tf.math.bincount` computes the size, which XLA refuses.
                tf.raw_ops.DenseBincount(
                    input=flat,
                    size=table.shape[1],
                    weights=tf.reshape(tf.cast(each, tf.float32), shape),
                ),
                axis=0,
            )
            for each in tf.unstack(upstream, num=len(heads), axis=1)
        ]
        return tf.cast(tf.stack(sums), table.dtype), None

    return found, gradient


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
        keep_frozen(self)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalizes `[..., dim]` over its last axis."""
        wide = tf.cast(inputs, tf.float32)
        mean_square = tf.reduce_mean(tf.square(wide), axis=-1, keepdims=True)
        normed = wide * tf.math.rsqrt(mean_square + 1e-6)
        return tf.cast(normed, inputs.dtype) * self.scale


class Packing:
    """The real positions of a batch as the rows of one matrix, in its order.

    Args:
        mask: `[batch, length]` boolean, `num_real` of them true.
    """

    def __init__(self, mask: tf.Tensor) -> None:
        is_real = tf.reshape(mask, [-1])
        number = tf.cumsum(tf.cast(is_real, tf.int32))
        self._shape = tf.shape(mask)
        self._places = tf.cast(tf.where(is_real)[:, 0], tf.int32)
        # One row more, of zeros, for padding.
        self._rows = tf.where(is_real, number - 1, tf.size(self._places))

    def pack(self, values: tf.Tensor) -> tf.Tensor:
        """`[num_real, n]` of `[batch, length, n]`."""
        return _packed(values, self._places, self._rows, self._shape)

    def unpack(self, values: tf.Tensor) -> tf.Tensor:
        """`[batch, length, n]` of `[num_real, n]`, zero at padding."""
        return _unpacked(values, self._places, self._rows, self._shape)


# Each is the other's gradient. The automatic one of a gather adds up rows that
# occur several times, which none does here.
@tf.custom_gradient
def _packed(
    values: tf.Tensor, places: tf.Tensor, rows: tf.Tensor, shape: tf.Tensor
) -> tuple[tf.Tensor, Callable]:
    flat = tf.reshape(values, [-1, values.shape[-1]])

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        return _unpacked(upstream, places, rows, shape), None, None, None

    return tf.gather(flat, places), gradient


@tf.custom_gradient
def _unpacked(
    values: tf.Tensor, places: tf.Tensor, rows: tf.Tensor, shape: tf.Tensor
) -> tuple[tf.Tensor, Callable]:
    width = values.shape[-1]
    flat = tf.gather(tf.pad(values, [[0, 1], [0, 0]]), rows)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        return _packed(upstream, places, rows, shape), None, None, None

    result = tf.reshape(flat, [shape[0], shape[1], width])
    return result, gradient


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
        keep_frozen(self)

    def call(
        self,
        inputs: tf.Tensor,
        mask: tf.Tensor | None = None,
        training: bool | None = None,
        only_positions: tf.Tensor | None = None,
        pair_bias: tf.Tensor | None = None,
        packing: Packing | None = None,
    ) -> tf.Tensor:
        """Runs the block.

        Args:
            inputs: `[batch, length, dim]`, or `[num_real, dim]` with `packing`.
            mask: `[batch, length]` boolean, or None if nothing is padding.
            training: Whether dropout is active.
            only_positions: `[batch]` int32, the one position of each row to
                compute, for a sixth of the products; -1 where none is wanted.
                Default: all.
            pair_bias: `[batch, heads, length, length]` float to add to the
                logits of attention, row the query; `[batch, heads, length]`
                with `only_positions`. Default: none.
            packing: Where the inputs have their places, if they are packed;
                not with `only_positions`.

        Returns:
            As `inputs`; `[batch, dim]` with `only_positions`.
        """
        dim = inputs.shape[-1]
        normed = self.attention_norm(inputs)
        if only_positions is None:
            queries, keys, values, gate = tf.split(
                _product(normed, self.attention_in), 4, axis=-1
            )
            attended = self._attend(
                queries, keys, values, mask, pair_bias, training, packing
            )
        else:
            attended, gate = self._attend_at(
                only_positions, normed, mask, pair_bias
            )
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
        # TensorFlow's own has a written gradient, too.
        if training is False:
            silu = left * tf.sigmoid(left)
        else:
            silu = tf.nn.silu(left)
        fed = _product(silu * right, self.feed_forward_out)
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
        pair_bias: tf.Tensor | None,
        training: bool | None,
        packing: Packing | None,
    ) -> tf.Tensor:
        """Causal multi-head attention, `[batch, length, dim]` or packed."""
        if packing is not None:
            queries, keys, values = map(packing.unpack, (queries, keys, values))
        shape = tf.shape(queries)
        dim = queries.shape[-1]
        heads = [shape[0], shape[1], self.num_heads, dim // self.num_heads]

        def split(x: tf.Tensor) -> tf.Tensor:
            return tf.transpose(tf.reshape(x, heads), [0, 2, 1, 3])

        attended = causal_attention(
            split(queries),
            split(keys),
            split(values),
            self.distance_bias,
            mask,
            pair_bias,
            training,
        )
        attended = tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), shape)
        return attended if packing is None else packing.pack(attended)

    def _attend_at(
        self,
        positions: tf.Tensor,
        normed: tf.Tensor,
        mask: tf.Tensor | None,
        pair_bias: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The same at one position of each row, `[batch]`, with its gate."""
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
        bias = tf.transpose(bias, [1, 0, 2])
        if pair_bias is not None:
            bias += tf.cast(pair_bias, bias.dtype)
        logits = tf.einsum("bhd,blhd->bhl", query * head_dim**-0.5, keys)
        logits = tf.where(
            readable[:, tf.newaxis], logits + bias, logits.dtype.min / 2
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
