"""Causal attention with a bias per distance, computed in blocks of queries.

A query at position t reads keys up to t only, so a block of queries needs the
keys up to the block's end: with two blocks a quarter of all products is never
made. The gradient is written out because the automatic one of a slice
is as large as the whole array.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

_NUM_BLOCKS = 2


def causal_attention(
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    distance_bias: tf.Tensor,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """Softmax attention of every position over itself and those before it.

    The logit of query t and key s is qₜ·kₛ / √head_dim + bias[t − s]; the
    bias of the largest known distance serves all greater ones. The gradient
    of the gradient is not available.

    Args:
        queries: `[batch, heads, length, head_dim]` float.
        keys: Likewise.
        values: Likewise.
        distance_bias: `[heads, max_distance]` float.
        mask: `[batch, length]` boolean, false where a key is not to be read;
            None reads all.

    Returns:
        `[batch, heads, length, head_dim]`. Positions before the first true
        one of the mask hold a mean of unspecified values.
    """
    length = tf.shape(queries)[2]
    queries *= tf.cast(queries.shape[-1], queries.dtype) ** -0.5
    bias = _bias_matrix(tf.cast(distance_bias, queries.dtype), length)
    if mask is None:
        mask = tf.ones([tf.shape(queries)[0], length], tf.bool)
    return _attend(queries, keys, values, bias, mask)


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
    """Adds only where it must, which spares a pass over all logits."""
    return tf.cond(condition, lambda: wide + narrow, lambda: wide)


@tf.custom_gradient
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
        logits += bias[:, start:end, :end]
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
            bias_gradients.append(
                tf.pad(
                    tf.reduce_sum(below, axis=0),
                    [[0, 0], [0, 0], [0, length - end]],
                )
            )
        return (
            tf.concat(query_gradients, axis=2),
            tf.concat([tf.add_n(parts) for parts in key_gradients], axis=2),
            tf.concat([tf.add_n(parts) for parts in value_gradients], axis=2),
            tf.concat(bias_gradients, axis=1),
            None,
        )

    return output, gradient
