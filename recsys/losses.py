"""Losses between query vectors and the catalog.

Pure functions of tensors: they know neither towers nor data. The full softmax
compares a target with every candidate, the sampled softmax with some negatives;
`recsys.negatives` draws those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = [
    "dislike_logits",
    "dislike_loss",
    "full_softmax",
    "sampled_softmax",
]

# Logits held at once: a few megabytes, as for the full softmax.
_LOGITS_PER_CHUNK = 2**20


def sampled_softmax(
    queries: tf.Tensor,
    target_vectors: tf.Tensor,
    negative_vectors: tf.Tensor,
    target_ids: tf.Tensor,
    negative_ids: tf.Tensor,
    weights: tf.Tensor,
    log_expected_counts: tf.Tensor | None = None,
    known_ids: tf.Tensor | None = None,
    extra_logits: tf.Tensor | None = None,
) -> tf.Tensor:
    """Weighted sum of cross-entropies of each target against negatives.

    With query q, target vector t and negatives n of which item c is expected
    k(c) times, the loss of a query is

        log(exp(q·t) + Σ exp(q·n − log k(n))) − q·t,

    the sum over all negatives that are not the target itself (an accidental
    hit). Its expectation over the negatives is Σ_{c ≠ target} exp(q·c), so
    what stands in the logarithm is an unbiased estimate of the full softmax's
    sum, and value and gradient tend to the full softmax's as negatives grow
    (Bengio and Senécal 2003). The target takes part with certainty, so it is
    not corrected: k is how often an item is expected *as a negative*.

    Logits are made for some queries at a time, together with the gradient, as
    in `full_softmax`. The gradient of the gradient is not available, nor that
    of a weight of 0.

    Args:
        queries: `[num_rows, length, dim]` float.
        target_vectors: `[num_rows, length, dim]` float.
        negative_vectors: `[num_negatives, dim]` float, shared by all, or
            `[num_rows, num_negatives, dim]`, each row's own.
        target_ids: `[num_rows, length]` integer.
        negative_ids: `[num_negatives]` or `[num_rows, num_negatives]`
            integer, with repetitions as they were drawn.
        weights: `[num_rows, length]` float; 0 for queries that do not count.
        log_expected_counts: Shaped as `negative_ids`, float: log k. Infinite
            for an entry that is not a negative. None leaves the logits
            uncorrected, as if k were 1.
        known_ids: `[num_rows, num_known]` integer, items that a row knows: the
            last `length` of them from their position on, such as its history,
            those before them from the start. They are not negatives for the
            queries that know them. None for none.
        extra_logits: `[num_rows, length, num_extra]` float, of further
            negatives of each position, such as `dislike_logits`; None for
            none.

    Returns:
        Float32 scalar, the weighted sum.
    """
    if log_expected_counts is None:
        log_expected_counts = tf.zeros(tf.shape(negative_ids))
    offsets = tf.cast(log_expected_counts, tf.float32)
    ids = [tf.cast(x, tf.int32) for x in (target_ids, negative_ids)]
    known_from = tf.zeros([0, 0], tf.int32)
    if known_ids is not None:
        known_ids = tf.cast(known_ids, tf.int32)
        known_from = _negatives_known_from(known_ids, *ids)
    vectors = (queries, target_vectors, negative_vectors)
    arguments: list[tf.Tensor] = [tf.cast(x, tf.float32) for x in vectors]
    if extra_logits is None:
        extra_logits = tf.zeros(tf.concat([tf.shape(target_ids), [0]], axis=0))
    arguments += [*ids, tf.cast(weights, tf.float32), offsets, extra_logits]
    chunks = _shared if ids[1].shape.rank == 1 else _per_row
    return _fused_sampled_softmax(*chunks(*arguments), known_from)


def dislike_logits(
    queries: tf.Tensor,
    dislike_vectors: tf.Tensor,
    dislike_ids: tf.Tensor,
    target_ids: tf.Tensor,
) -> tf.Tensor:
    """Scores each row's known negatives at all of its positions.

    Args:
        queries: `[num_rows, length, dim]` float.
        dislike_vectors: `[num_rows, num_dislikes, dim]` float.
        dislike_ids: `[num_rows, num_dislikes]` integer, 0 at padding.
        target_ids: `[num_rows, length]` integer.

    Returns:
        `[num_rows, length, num_dislikes]` float32; -inf at padding, and where
        the item is the target itself.
    """
    queries, dislike_vectors = (
        tf.cast(each, tf.float32) for each in (queries, dislike_vectors)
    )
    ids = tf.cast(dislike_ids, target_ids.dtype)[:, tf.newaxis]
    counts = (ids != 0) & (ids != target_ids[:, :, tf.newaxis])
    logits = tf.matmul(queries, dislike_vectors, transpose_b=True)
    return tf.where(counts, logits, float("-inf"))


def dislike_loss(
    queries: tf.Tensor,
    target_vectors: tf.Tensor,
    weights: tf.Tensor,
    logits: tf.Tensor,
) -> tf.Tensor:
    """Weighted sum of cross-entropies of each target against dislikes.

    Σᵢ wᵢ (log(exp(qᵢ·tᵢ) + Σ_d exp(qᵢ·d)) − qᵢ·tᵢ): the term that the full
    softmax, which already counts a dislike as any other item, gets besides.

    Args:
        queries: `[num_rows, length, dim]` float.
        target_vectors: `[num_rows, length, dim]` float.
        weights: `[num_rows, length]` float.
        logits: `[num_rows, length, num_dislikes]`; see `dislike_logits`.

    Returns:
        Float32 scalar, the weighted sum.
    """
    target_logits = tf.reduce_sum(
        tf.cast(queries, tf.float32) * tf.cast(target_vectors, tf.float32),
        axis=2,
        keepdims=True,
    )
    all_logits = tf.concat([target_logits, logits], axis=2)
    losses = tf.reduce_logsumexp(all_logits, axis=2) - target_logits[:, :, 0]
    return tf.reduce_sum(tf.cast(weights, tf.float32) * losses)


def _negatives_known_from(
    known_ids: tf.Tensor, target_ids: tf.Tensor, negative_ids: tf.Tensor
) -> tf.Tensor:
    """`[num_rows, num_negatives]` int32, from which position one is known."""
    length = tf.shape(target_ids)[1]
    positions = _known_positions(known_ids, length)[:, tf.newaxis]
    shared = negative_ids if negative_ids.shape.rank == 1 else None

    def one_row(row: tuple[tf.Tensor, ...]) -> tf.Tensor:
        known, negatives = row[0], row[-1] if shared is None else shared
        is_known = known[:, tf.newaxis] == negatives
        first = tf.reduce_min(tf.where(is_known, positions, length), axis=0)
        return tf.minimum(first, length)  # Of nothing it is the largest int.

    # Row by row: all comparisons at once would be many times the logits.
    rows = (known_ids,) if shared is not None else (known_ids, negative_ids)
    padded = tuple(_with_at_least_one(each) for each in rows)
    known = tf.map_fn(one_row, padded, fn_output_signature=tf.int32)
    return known[: tf.shape(known_ids)[0]]


def _known_positions(known_ids: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """`[num_known]` int32, from which position on a row knows each."""
    num_known = tf.shape(known_ids)[1]
    return tf.maximum(0, tf.range(num_known) - (num_known - length))


def _with_at_least_one(values: tf.Tensor) -> tf.Tensor:
    """Appends zeros to nothing, of which a loop would not know the shape."""
    missing = tf.maximum(0, 1 - tf.shape(values)[0])
    return tf.pad(values, [[0, missing]] + [[0, 0]] * (values.shape.rank - 1))


def _shared(
    queries: tf.Tensor,
    target_vectors: tf.Tensor,
    negative_vectors: tf.Tensor,
    target_ids: tf.Tensor,
    negative_ids: tf.Tensor,
    weights: tf.Tensor,
    offsets: tf.Tensor,
    extra_logits: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
    """Cuts the positions that count into chunks against the same negatives."""
    dim = queries.shape[-1]
    num_negatives = tf.shape(negative_ids)[0]
    num_rows, length = tf.unstack(tf.shape(target_ids))
    size = tf.maximum(1, _LOGITS_PER_CHUNK // tf.maximum(1, num_negatives))
    size = tf.minimum(size, tf.maximum(1, num_rows * length))
    num_chunks = -(-num_rows * length // size)
    padding = num_chunks * size - num_rows * length
    # Queries that count come first, so that the loop can stop after them.
    flat_weights = tf.reshape(weights, [-1])
    order = tf.argsort(tf.cast(flat_weights == 0, tf.int32), stable=True)

    num_extra = tf.shape(extra_logits)[2]

    def chunks(x: tf.Tensor, shape: list[Any]) -> tf.Tensor:
        x = tf.gather(tf.reshape(x, [num_rows * length, *shape]), order)
        x = tf.pad(x, [[0, padding]] + [[0, 0]] * len(shape))
        return tf.reshape(x, [num_chunks, size, *shape])

    flat = tf.range(num_rows * length)
    num_counted = tf.math.count_nonzero(flat_weights, dtype=tf.int32)
    return (
        chunks(queries, [dim]),
        chunks(target_vectors, [dim]),
        negative_vectors[tf.newaxis],
        chunks(target_ids, []),
        negative_ids[tf.newaxis],
        chunks(weights, []),
        offsets[tf.newaxis],
        chunks(flat // length, []),
        chunks(flat % length, []),
        chunks(extra_logits, [num_extra]),
        -(-num_counted // size),
    )


def _per_row(
    queries: tf.Tensor,
    target_vectors: tf.Tensor,
    negative_vectors: tf.Tensor,
    target_ids: tf.Tensor,
    negative_ids: tf.Tensor,
    weights: tf.Tensor,
    offsets: tf.Tensor,
    extra_logits: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
    """Makes each row a chunk, against negatives of its own."""
    num_rows, length = tf.unstack(tf.shape(target_ids))
    rows, positions = tf.meshgrid(
        tf.range(num_rows), tf.range(length), indexing="ij"
    )
    return (
        queries,
        target_vectors,
        negative_vectors,
        target_ids,
        negative_ids,
        weights,
        offsets,
        rows,
        positions,
        extra_logits,
        num_rows,
    )


@tf.custom_gradient
def _fused_sampled_softmax(
    queries: tf.Tensor,  # [num_chunks, size, dim]
    target_vectors: tf.Tensor,  # [num_chunks, size, dim]
    negative_vectors: tf.Tensor,  # [num_chunks or 1, num_negatives, dim]
    target_ids: tf.Tensor,  # [num_chunks, size]
    negative_ids: tf.Tensor,  # [num_chunks or 1, num_negatives]
    weights: tf.Tensor,  # [num_chunks, size]
    offsets: tf.Tensor,  # [num_chunks or 1, num_negatives]
    rows: tf.Tensor,  # [num_chunks, size], a query's row of `known_from`
    positions: tf.Tensor,  # [num_chunks, size], and its position there
    extra_logits: tf.Tensor,  # [num_chunks, size, num_extra]
    counted_chunks: tf.Tensor,  # scalar; later chunks weigh nothing
    known_from: tf.Tensor,  # [num_rows, num_negatives], or [0, 0] for none
) -> tuple[tf.Tensor, Callable]:
    """The loss of queries in chunks."""
    last = tf.shape(negative_ids)[0] - 1
    target_logits = tf.reduce_sum(queries * target_vectors, axis=2)

    def chunk(i: tf.Tensor) -> tuple[tf.Tensor, ...]:
        j = tf.minimum(i, last)
        left_out = target_ids[i][:, tf.newaxis] == negative_ids[j]
        if known_from.shape[1] != 0:
            begins = tf.gather(known_from, rows[i])
            left_out |= begins <= positions[i][:, tf.newaxis]
        return _sampled_chunk(
            queries[i],
            negative_vectors[j],
            target_logits[i][:, tf.newaxis],
            left_out,
            offsets[j],
            weights[i][:, tf.newaxis],
            extra_logits[i],
        )

    log_sums, errors, query_gradients, extra_gradient, negative_gradient = (
        _sampled_pass(
            chunk,
            target_logits,
            (weights, queries, extra_logits, negative_vectors),
            counted_chunks,
        )
    )
    losses = log_sums - target_logits
    error = errors[:, :, tf.newaxis]
    query_gradient = query_gradients - error * target_vectors
    target_gradient = -error * queries
    if negative_vectors.shape[0] == 1:
        negative_gradient = tf.reduce_sum(
            negative_gradient, axis=0, keepdims=True
        )

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        return (
            upstream * query_gradient,
            upstream * target_gradient,
            upstream * negative_gradient,
            None,
            None,
            upstream * losses,
            None,
            None,
            None,
            upstream * extra_gradient,
            None,
            None,
        )

    return tf.reduce_sum(weights * losses), gradient


def _sampled_chunk(
    queries: tf.Tensor,  # [size, dim]
    negative_vectors: tf.Tensor,  # [num_negatives, dim]
    target_logits: tf.Tensor,  # [size, 1]
    left_out: tf.Tensor,  # [size, num_negatives], the target, what is known
    offsets: tf.Tensor,  # [num_negatives]
    weights: tf.Tensor,  # [size, 1]
    extra_logits: tf.Tensor,  # [size, num_extra]
) -> tuple[tf.Tensor, ...]:
    """The softmax of some queries against the same negatives."""
    logits = tf.matmul(queries, negative_vectors, transpose_b=True)
    logits = tf.where(left_out, float("-inf"), logits - offsets)
    highest = tf.maximum(
        tf.reduce_max(logits, axis=1, keepdims=True), target_logits
    )
    # A maximum of nothing is -inf, and a sum 0.
    highest = tf.maximum(
        tf.reduce_max(extra_logits, axis=1, keepdims=True), highest
    )
    exp, extra = tf.exp(logits - highest), tf.exp(extra_logits - highest)
    others = tf.reduce_sum(exp, axis=1, keepdims=True)
    others += tf.reduce_sum(extra, axis=1, keepdims=True)
    total = others + tf.exp(target_logits - highest)
    scale = weights / total
    return (
        (highest + tf.math.log(total))[:, 0],
        # The probability of all others is how wrong the target's logit is.
        (others * scale)[:, 0],
        tf.matmul(exp, negative_vectors) * scale,
        extra * scale,
        tf.matmul(exp, queries * scale, transpose_a=True),
    )


def _sampled_pass(
    chunk: Callable,
    target_logits: tf.Tensor,
    likes: tuple[tf.Tensor, ...],
    counted_chunks: tf.Tensor,
) -> list[tf.Tensor]:
    """Stacks the results of `_sampled_chunk` for the chunks that count."""
    num_chunks = tf.shape(target_logits)[0]
    num_elements = tf.maximum(1, num_chunks)
    # What the loop never reaches counts nothing: log_sum = logit.
    starts = [_with_at_least_one(target_logits)] + [
        tf.zeros(tf.concat([[num_elements], tf.shape(like)[1:]], axis=0))
        for like in likes
    ]
    elements = (None, None, None, None, likes[-1].shape[1:])
    arrays = [
        tf.TensorArray(tf.float32, num_elements, element_shape=element).unstack(
            start
        )
        for start, element in zip(starts, elements, strict=True)
    ]

    def body(i: tf.Tensor, *arrays: tf.TensorArray) -> tuple[Any, ...]:
        written = [
            array.write(i, value)
            for array, value in zip(arrays, chunk(i), strict=True)
        ]
        return (i + 1, *written)

    _, *arrays = tf.while_loop(
        lambda i, *_: i < counted_chunks,
        body,
        (0, *arrays),
        maximum_iterations=num_chunks,
    )
    return [array.stack()[:num_chunks] for array in arrays]


# Queries whose logits are held at once: 320 rows over a few thousand
# candidates are a few megabytes, near enough to the cores' caches
# (scripts/benchmark_training.py measures it).
CHUNK_SIZE = 320
# exp of logits within ± this is far from the ends of float32, and so is
# its sum over any catalog.
_PLAIN_EXP_UP_TO = 60.0


def full_softmax(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    targets: tf.Tensor,
    weights: tf.Tensor,
    chunk_size: int = CHUNK_SIZE,
    known: tf.Tensor | None = None,
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
            is 0 it may be anything; a row that does not exist makes the sum
            NaN elsewhere.
        weights: `[num_queries]` float; 0 for queries that do not count.
        chunk_size: Queries per chunk.
        known: `[num_rows, num_known]` integer rows in `candidates`, any other
            number for none: what the rows know whose queries follow each other
            in `queries`, `length` for each. The last `length` are known from
            their position on, such as a history, those before them from the
            start; if there are fewer, the first positions know none. The
            softmax of a query is over its target and the candidates that it
            does not know. None for all candidates.

    Returns:
        Float32 scalar, the weighted sum.

    Raises:
        tf.errors.InvalidArgumentError: `queries` are not as many for each row
            of `known`.
    """
    # Queries that count come first, so that the loop can stop after them.
    order = tf.argsort(tf.cast(weights == 0, tf.int32), stable=True)
    num_candidates = tf.cast(tf.shape(candidates)[0], targets.dtype)
    in_range = (targets >= 0) & (targets < num_candidates)
    targets = tf.cast(tf.where(in_range, targets, 0), tf.int32)
    weights = tf.cast(weights, tf.float32)
    weights = tf.where(in_range | (weights == 0), weights, math.nan)
    places: tuple[tf.Tensor, ...] = ()
    if known is not None:
        places = _places(known, order, tf.shape(candidates)[0])
    return _fused_full_softmax(
        tf.gather(tf.cast(queries, tf.float32), order),
        tf.cast(candidates, tf.float32),
        tf.gather(targets, order),
        tf.gather(weights, order),
        tf.constant(chunk_size),
        *places,
    )


def _places(
    known: tf.Tensor, order: tf.Tensor, num_candidates: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """From which position each row knows a candidate, and the queries' places.

    Args:
        known: As for `full_softmax`.
        order: `[num_queries]` int32, the queries' numbers.
        num_candidates: How many.

    Returns:
        `[num_rows, num_candidates]` float32, and each query's row and position
        there, `[num_queries]` int32.
    """
    num_rows, num_known = tf.unstack(tf.shape(known))
    length = tf.size(order) // tf.maximum(1, num_rows)
    tf.debugging.assert_equal(
        num_rows * length,
        tf.size(order),
        "`queries` must be as many for each row of `known`",
    )
    length = tf.maximum(1, length)
    rows = tf.repeat(tf.range(num_rows)[:, tf.newaxis], num_known, axis=1)
    # One column more, for none.
    is_one = (known >= 0) & (known < tf.cast(num_candidates, known.dtype))
    columns = tf.where(is_one, tf.cast(known, tf.int32), num_candidates)
    # Floats, as GPUs scatter and gather these but not all integers.
    positions = tf.cast(_known_positions(known, length), tf.float32)
    first = tf.tensor_scatter_nd_min(
        tf.fill([num_rows, num_candidates + 1], tf.cast(length, tf.float32)),
        tf.stack([rows, columns], axis=2),
        tf.repeat(positions[tf.newaxis], num_rows, axis=0),
    )
    return first[:, :num_candidates], order // length, order % length


@tf.custom_gradient
def _fused_full_softmax(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    targets: tf.Tensor,
    weights: tf.Tensor,
    chunk_size: tf.Tensor,
    *places: tf.Tensor,  # From where rows know what; each query's row, position
) -> tuple[tf.Tensor, Callable]:
    """The loss of queries of which those that count come first."""
    log_sum, query_gradient, candidate_gradient = _full_pass(
        queries, candidates, weights, chunk_size, targets, *places
    )
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
            *[None] * len(places),
        )

    return tf.reduce_sum(weights * (log_sum - target_logits)), gradient


def _full_pass(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    weights: tf.Tensor,
    chunk_size: tf.Tensor,
    targets: tf.Tensor,
    *places: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the queries' log-sums, and both gradients of their total."""
    num_queries, dim = tf.shape(queries)[0], queries.shape[-1]
    num_chunks = -(-num_queries // chunk_size)
    padding = num_chunks * chunk_size - num_queries
    chunks = tf.reshape(
        tf.pad(queries, [[0, padding], [0, 0]]), [num_chunks, chunk_size, dim]
    )
    chunk_weights, chunk_targets, *chunk_places = (
        tf.reshape(tf.pad(each, [[0, padding]]), [num_chunks, chunk_size])
        for each in (weights, targets, *places[1:])
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
        logits = tf.matmul(chunks[i], candidates, transpose_b=True)
        if places:
            rows, positions = (each[i] for each in chunk_places)
            known_from = tf.gather(places[0], rows)
            positions = tf.cast(positions[:, tf.newaxis], known_from.dtype)
            logits = _without(known_from <= positions, logits, chunk_targets[i])
        log_sum, query_gradient, added = _full_chunk(
            logits, chunks[i], candidates, chunk_weights[i], needs_no_shift
        )
        return (
            i + 1,
            log_sums.write(i, log_sum),
            query_gradients.write(i, query_gradient),
            candidate_gradient + added,
        )

    num_counted = tf.math.count_nonzero(weights, dtype=tf.int32)
    counted_chunks = -(-num_counted // chunk_size)
    # Chunks that the loop never reaches stay zero, which is their share.
    starts = (tf.zeros([num_chunks, chunk_size]), tf.zeros_like(chunks))
    arrays = [tf.TensorArray(tf.float32, num_chunks).unstack(x) for x in starts]
    _, log_sums, query_gradients, candidate_gradient = tf.while_loop(
        lambda i, *_: i < counted_chunks,
        one_chunk,
        (0, *arrays, tf.zeros_like(candidates)),
        maximum_iterations=num_chunks,
    )
    log_sum = tf.reshape(log_sums.stack(), [-1])[:num_queries]
    query_gradient = tf.reshape(query_gradients.stack(), [-1, dim])
    return log_sum, query_gradient[:num_queries], candidate_gradient


def _without(
    left_out: tf.Tensor, logits: tf.Tensor, targets: tf.Tensor
) -> tf.Tensor:
    """Leaves entries out of the softmax of `logits`, save the targets."""
    places = tf.stack([tf.range(tf.size(targets)), targets], axis=1)
    target_logits = tf.gather_nd(logits, places)
    logits = tf.where(left_out, float("-inf"), logits)
    return tf.tensor_scatter_nd_update(logits, places, target_logits)


def _full_chunk(
    logits: tf.Tensor,
    queries: tf.Tensor,
    candidates: tf.Tensor,
    weights: tf.Tensor,
    needs_no_shift: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """As `_full_pass`, for `[size, dim]` queries and their logits."""
    exp, shift = tf.cond(
        needs_no_shift,
        lambda: (tf.exp(logits), tf.zeros([tf.shape(logits)[0], 1])),
        lambda: _shifted_exp(logits),
    )
    total = tf.reduce_sum(exp, axis=1, keepdims=True)
    # The softmax is exp / total. Scaling the narrow factors of the two
    # products instead of exp saves a pass over the widest array.
    scale = weights[:, tf.newaxis] / total
    return (
        (shift + tf.math.log(total))[:, 0],
        tf.matmul(exp, candidates) * scale,
        tf.matmul(exp, queries * scale, transpose_a=True),
    )


def _largest_norm(vectors: tf.Tensor) -> tf.Tensor:
    """The largest norm, 0 of none, which bounds dot products."""
    squares = tf.reduce_sum(tf.square(vectors), axis=1)
    return tf.sqrt(tf.reduce_max(tf.concat([squares, [0.0]], axis=0)))


def _shifted_exp(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns exp of logits less the highest of their row, and that."""
    highest = tf.reduce_max(logits, axis=1, keepdims=True)
    return tf.exp(logits - highest), highest
