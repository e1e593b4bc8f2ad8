"""Losses between query vectors and the catalogue.

Pure functions of tensors: they know neither towers nor data.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from recsys.sampled_softmax import sampled_softmax

__all__ = ["full_softmax", "sampled_softmax"]

# Queries whose logits are held at once: 320 rows over a few thousand
# candidates are a few megabytes, near enough to the cores' caches
# (scripts/benchmark_training.py measures it).
CHUNK_SIZE = 320
# exp of logits within ± this is far from the ends of float32, and so is
# its sum over any catalogue.
_PLAIN_EXP_UP_TO = 60.0


def full_softmax(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    targets: tf.Tensor,
    weights: tf.Tensor,
    chunk_size: int = CHUNK_SIZE,
) -> tf.Tensor:
    """Weighted sum of cross-entropies of a softmax over all candidates.

    Σᵢ wᵢ (log Σⱼ exp(qᵢ·cⱼ) − qᵢ·c_target(i)), exactly. The logits
    are made for a chunk of queries at a time and the gradient is computed in
    the same pass, so that memory is `chunk_size * num_candidates` floats
    rather than `num_queries * num_candidates`, and no logit is made twice.
    Queries of weight 0 cost nothing. The gradient of the gradient is not
    available.

    Args:
        queries: `[num_queries, dim]` float.
        candidates: `[num_candidates, dim]` float.
        targets: `[num_queries]` integer row in `candidates`. Where the weight
            is 0 it may be anything.
        weights: `[num_queries]` float; 0 for queries that do not count.
        chunk_size: Queries per chunk.

    Returns:
        Float32 scalar, the weighted sum.
    """
    # Queries that count come first, so that the loop can stop after them.
    order = tf.argsort(tf.cast(weights == 0, tf.int32), stable=True)
    targets = tf.clip_by_value(
        tf.cast(targets, tf.int32), 0, tf.shape(candidates)[0] - 1
    )
    return _fused_full_softmax(
        tf.gather(tf.cast(queries, tf.float32), order),
        tf.cast(candidates, tf.float32),
        tf.gather(targets, order),
        tf.gather(tf.cast(weights, tf.float32), order),
        tf.constant(chunk_size),
    )


@tf.custom_gradient
def _fused_full_softmax(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    targets: tf.Tensor,
    weights: tf.Tensor,
    chunk_size: tf.Tensor,
) -> tuple[tf.Tensor, Callable]:
    num_queries = tf.shape(queries)[0]
    dim = queries.shape[-1]
    num_chunks = -(-num_queries // chunk_size)
    padding = num_chunks * chunk_size - num_queries
    chunks = tf.reshape(
        tf.pad(queries, [[0, padding], [0, 0]]), [num_chunks, chunk_size, dim]
    )
    chunk_weights = tf.reshape(
        tf.pad(weights, [[0, padding]]), [num_chunks, chunk_size]
    )

    needs_no_shift = (
        _largest_norm(queries) * _largest_norm(candidates) < _PLAIN_EXP_UP_TO
    )

    def one_chunk(
        i: tf.Tensor,
        log_sums: tf.TensorArray,
        query_gradients: tf.TensorArray,
        candidate_gradient: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.TensorArray, tf.TensorArray, tf.Tensor]:
        chunk = chunks[i]
        logits = tf.matmul(chunk, candidates, transpose_b=True)
        exp, shift = tf.cond(
            needs_no_shift,
            lambda: (tf.exp(logits), tf.zeros([chunk_size, 1])),
            lambda: _shifted_exp(logits),
        )
        total = tf.reduce_sum(exp, axis=1, keepdims=True)
        # The softmax is exp / total. Scaling the narrow factors of the two
        # products instead of exp saves a pass over the widest array.
        scale = chunk_weights[i][:, tf.newaxis] / total
        return (
            i + 1,
            log_sums.write(i, (shift + tf.math.log(total))[:, 0]),
            query_gradients.write(i, tf.matmul(exp, candidates) * scale),
            candidate_gradient
            + tf.matmul(exp, chunk * scale, transpose_a=True),
        )

    num_counted = tf.math.count_nonzero(weights, dtype=tf.int32)
    counted_chunks = -(-num_counted // chunk_size)
    # Chunks that the loop never reaches stay zero, which is their share.
    zeros = tf.zeros([num_chunks, chunk_size])
    _, log_sums, query_gradients, candidate_gradient = tf.while_loop(
        lambda i, *_: i < counted_chunks,
        one_chunk,
        (
            0,
            tf.TensorArray(tf.float32, num_chunks).unstack(zeros),
            tf.TensorArray(tf.float32, num_chunks).unstack(
                tf.zeros_like(chunks)
            ),
            tf.zeros_like(candidates),
        ),
        maximum_iterations=num_chunks,
    )
    log_sum = tf.reshape(log_sums.stack(), [-1])[:num_queries]
    query_gradient = tf.reshape(query_gradients.stack(), [-1, dim])
    query_gradient = query_gradient[:num_queries]

    # The target's share of the loss and of both gradients is narrow.
    target_vectors = tf.gather(candidates, targets)
    target_logits = tf.reduce_sum(queries * target_vectors, axis=1)
    query_gradient -= target_vectors * weights[:, tf.newaxis]
    candidate_gradient -= tf.math.unsorted_segment_sum(
        queries * weights[:, tf.newaxis], targets, tf.shape(candidates)[0]
    )

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        return (
            upstream * query_gradient,
            upstream * candidate_gradient,
            None,
            upstream * (log_sum - target_logits),
            None,
        )

    return tf.reduce_sum(weights * (log_sum - target_logits)), gradient


def _largest_norm(vectors: tf.Tensor) -> tf.Tensor:
    """The largest norm of `[num_vectors, dim]`; 0 of none.

    No dot product is larger than the product of two (Cauchy-Schwarz).
    """
    squares = tf.reduce_sum(tf.square(vectors), axis=1)
    return tf.sqrt(tf.reduce_max(tf.concat([squares, [0.0]], axis=0)))


def _shifted_exp(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns exp of logits less the highest of their row, and that."""
    highest = tf.reduce_max(logits, axis=1, keepdims=True)
    return tf.exp(logits - highest), highest
