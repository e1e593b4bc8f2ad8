"""How frequent items are, estimated from the stream of training batches."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from recsys.data.vocabulary import FIRST_ITEM_INDEX

# Knuth's multiplicative hashing, with another odd factor for each hash.
_FACTORS = (2654435761, 2246822519, 3266489917, 668265263)


@keras.saving.register_keras_serializable(package="recsys")
class StreamingFrequencies(keras.layers.Layer):
    """Estimates each item's share of a stream by how far apart it occurs.

    For where nothing can be counted beforehand, and where frequencies drift.
    Per item and hash function it keeps when the item occurred last, A, and
    the mean gap between its occurrences, B, both in interactions. When k of
    the interactions of a batch that ends at time t are the item's, their mean
    gap is (t − A) / k and

        B ← (1 − rate)ᵏ B + (1 − (1 − rate)ᵏ) (t − A) / k,    A ← t,

    save that the first occurrence sets B to t / k. The estimate is 1 / B,
    with the largest B of the hashes, since an item that shares its place seems
    too frequent, never too rare. With one interaction in each batch this is
    algorithm 2 of Yi et al. 2019 (https://doi.org/10.1145/3298689.3346996),
    which counts time in batches, so that an item which is in every batch could
    not be told from one that is ten times in each.

    The state is in the weights of this layer, which a `NegativeSampler` that
    it is given to does not make part of the model: save it beside the model.
    The cost of an update grows with the batch alone.

    Args:
        num_buckets: Places of each hash function; several times the number
            of items keeps collisions rare. Memory: 12 bytes for each place.
        num_hashes: Hash functions, at most 4.
        rate: How fast the estimate forgets, above 0 and at most 1.
        initial_gap: 1 / `initial_gap` is the estimate of an item that never
            occurred.
        **kwargs: Keras's own layer arguments.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        num_buckets: int,
        num_hashes: int = 1,
        rate: float = 0.05,
        initial_gap: float = 1e6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_buckets < 1:
            raise ValueError(
                f"`num_buckets` must be positive. Received: {num_buckets}"
            )
        if not 1 <= num_hashes <= len(_FACTORS):
            raise ValueError(
                f"`num_hashes` must be from 1 to {len(_FACTORS)}. "
                f"Received: {num_hashes}"
            )
        if not 0 < rate <= 1:
            raise ValueError(
                f"`rate` must be above 0 and at most 1. Received: {rate}"
            )
        if initial_gap < 1:
            raise ValueError(
                f"`initial_gap` must be at least 1. Received: {initial_gap}"
            )
        self.num_buckets = num_buckets
        self.num_hashes = num_hashes
        self.rate = rate
        self.initial_gap = initial_gap

    def build(self, input_shape: Any = None) -> None:
        """Creates the state."""
        size = (self.num_hashes * self.num_buckets,)
        self.time = self.add_weight(
            name="time",
            shape=(),
            initializer="zeros",
            dtype="int64",
            trainable=False,
        )
        self.last_times = self.add_weight(
            name="last_times",
            shape=size,
            initializer="zeros",
            dtype="int64",
            trainable=False,
        )
        self.gaps = self.add_weight(
            name="gaps",
            shape=size,
            initializer=keras.initializers.Constant(self.initial_gap),
            dtype="float32",
            trainable=False,
            autocast=False,
        )
        self.built = True

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """Estimates frequencies.

        Args:
            ids: `[...]` integer.

        Returns:
            `[...]` float, each item's share of the stream.
        """
        gaps = tf.gather(self.gaps.value, self._places(ids))
        gap = tf.maximum(1.0, tf.reduce_max(gaps, axis=0))
        return tf.cast(1 / gap, self.compute_dtype)

    def update(self, ids: tf.Tensor) -> None:
        """Takes in the items of a batch.

        Args:
            ids: `[...]` integer; padding and unknown are passed over.
        """
        if not self.built:
            self.build()
        ids = tf.reshape(ids, [-1])
        ids = tf.boolean_mask(ids, ids >= FIRST_ITEM_INDEX)
        time = self.time.value + tf.size(ids, tf.int64)
        places = tf.reshape(self._places(ids), [-1])
        places, _, counts = tf.unique_with_counts(places)
        counts = tf.cast(counts, tf.float32)
        last = tf.gather(self.last_times.value, places)
        gap = tf.cast(time - last, tf.float32) / counts
        old = tf.gather(self.gaps.value, places)
        kept = tf.where(last > 0, tf.pow(1 - self.rate, counts), 0)
        new = kept * old + (1 - kept) * gap
        self.gaps.value.scatter_update(tf.IndexedSlices(new, places))
        self.last_times.value.scatter_update(
            tf.IndexedSlices(tf.fill(tf.shape(places), time), places)
        )
        self.time.assign(time)

    def _places(self, ids: tf.Tensor) -> tf.Tensor:
        """`[num_hashes, ...]` int64, where each hash keeps the ids."""
        ids = tf.cast(ids, tf.int64)
        return tf.stack(
            [
                # The product's high bits are the well-mixed ones.
                (((ids * factor) % 2**32) * self.num_buckets) // 2**32
                + number * self.num_buckets
                for number, factor in enumerate(_FACTORS[: self.num_hashes])
            ]
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_buckets": self.num_buckets,
            "num_hashes": self.num_hashes,
            "rate": self.rate,
            "initial_gap": self.initial_gap,
        }
