"""Negatives for the sampled softmax, and how often each is expected.

Sources, for a batch with targets t₁ … t_m (padding left out) and N negatives:

- `in_batch`: targets of the batch, drawn at random with replacement. With p(c)
  the share of item c among all targets of the training data, c is expected
  k(c) = N (m − 1) / m · p(c) times as a negative of a position: one draw in m
  is the position's own target, which is an accidental hit.
- `uniform`: any item, k(c) = N / num_items.
- `popularity`: items in proportion to their training count plus one, so that
  each can be drawn: k(c) = N (count(c) + 1) / Σ (count + 1).
- `mixed`: ⌊N / 2⌋ in-batch and the rest uniform negatives (Yang et al. 2020,
  https://doi.org/10.1145/3366424.3386195). Whichever source an item came
  from, it is expected as often as both together expect it: k is the sum.

With `trained_only`, items that were never counted are never drawn.

The cost of a draw does not depend on the number of items.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from recsys.ids import FIRST_ITEM_INDEX


class CountedFrequencies:
    """Frequencies counted from the training data.

    An item that was never counted is taken to be counted once.

    Args:
        counts: `[vocabulary_size]`, each item's number of interactions; those
            of padding and unknown are not read.

    Raises:
        ValueError: Nothing was counted.
    """

    def __init__(self, counts: np.ndarray) -> None:
        shares = item_counts(counts)
        total = shares.sum()
        # In place: of ten million items each copy is 80 MB.
        np.maximum(shares, 1, out=shares)
        shares /= total
        self._shares = constant_table(shares)

    def __call__(self, ids: Any) -> tf.Tensor:
        """Returns each item's share, `[...]` float32."""
        return tf.gather(self._shares, ids)


class AliasTable:
    """Draws items in proportion to weights, in constant time.

    Walker's alias method: every column has the same width, of which a share
    belongs to the column's own item and the rest to one other (Vose 1991).
    Searching the cumulative sum needs less code, but of ten million items
    65,536 draws take 34 ms instead of 3 (2 cores).

    Args:
        counts: `[vocabulary_size]`, of which each item's weight is one more.
        counted_only: Whether an item of count 0 has no weight.
    """

    def __init__(self, counts: np.ndarray, counted_only: bool = False) -> None:
        counts = item_counts(counts)
        weights = counts + 1
        weights[:FIRST_ITEM_INDEX] = 0
        if counted_only:
            weights[counts == 0] = 0
        own_share, alias = alias_table(weights[FIRST_ITEM_INDEX:])
        self._num_items = len(alias)
        self._shares = constant_table(weights / weights.sum())
        self._own_share = constant_table(own_share)
        self._alias = constant_table(alias)

    def draw(self, shape: list[Any], seed: tf.Tensor) -> tf.Tensor:
        """Returns int32 ids of that shape."""
        seeds = tf.random.split(seed, 2)
        columns = tf.random.stateless_uniform(
            shape, seeds[0], minval=0, maxval=self._num_items, dtype=tf.int32
        )
        is_own = tf.random.stateless_uniform(shape, seeds[1]) < tf.gather(
            self._own_share, columns
        )
        drawn = tf.where(is_own, columns, tf.gather(self._alias, columns))
        return drawn + FIRST_ITEM_INDEX

    def shares(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns the probability of each id."""
        return tf.gather(self._shares, ids)


def alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Makes the columns of the alias method, all at once.

    With weights scaled to a mean of 1, light items (below 1) are filled up in
    turn by the first heavy item; one that has given its surplus away is filled
    up by the next. Where that happens follows from the running sums of
    deficits and of surpluses, so that no loop over the items is needed.

    Args:
        weights: `[num_items]` float64, none negative, at least one positive.

    Returns:
        `own_share`, `[num_items]` float64, and `alias`, `[num_items]` int32:
        a column belongs to its own item with that probability, else to that
        other item.
    """
    scaled = weights / weights.mean()
    own_share = np.ones(len(weights))
    alias = np.arange(len(weights), dtype=np.int32)
    light, heavy = np.flatnonzero(scaled < 1), np.flatnonzero(scaled >= 1)
    if not len(light) or not len(heavy):  # All are equal, to rounding.
        return own_share, alias
    deficits = np.cumsum(1 - scaled[light])
    surpluses = np.cumsum(scaled[heavy] - 1)
    before = deficits - (1 - scaled[light])
    # The first heavy item that has not given all its surplus away.
    giver = np.searchsorted(surpluses, before, side="right")
    own_share[light] = scaled[light]
    alias[light] = heavy[np.minimum(giver, len(heavy) - 1)]
    # What a heavy item gave beyond its surplus, it gets from the next one.
    total_given = np.append(0, deficits)
    taken = np.searchsorted(total_given, surpluses, side="left")
    given = total_given[np.minimum(taken, len(light))]
    own_share[heavy[:-1]] = np.clip(1 + (surpluses - given)[:-1], 0, 1)
    alias[heavy[:-1]] = heavy[1:]
    return own_share, alias


def item_counts(counts: np.ndarray) -> np.ndarray:
    """Returns the counts as float64, with 0 for padding and unknown."""
    counts = np.array(counts, np.float64)
    counts[:FIRST_ITEM_INDEX] = 0
    if not counts.sum() > 0:
        raise ValueError(
            "`counts` must hold at least one interaction. Received: none"
        )
    return counts


def constant_table(values: np.ndarray) -> tf.Variable:
    """Returns values as a variable; a constant would be in every graph."""
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    return tf.Variable(values, trainable=False)


# What `NegativeSampler` can draw from.
SOURCES = ("in_batch", "uniform", "popularity", "mixed")


class Negatives(NamedTuple):
    """Negatives of a batch.

    Attributes:
        ids: `[num_negatives]` int32, shared by all positions, or
            `[num_rows, num_negatives]`, each row's own; with repetitions.
        log_expected_counts: Of the same shape, float32: log k of each; None
            where the loss is not to be corrected.
        known_ids: `[num_rows, num_known]` int32, items that are not negatives
            of a row: the last `length`, its history, from their position on,
            those before them from the start. None for none.
    """

    ids: tf.Tensor
    log_expected_counts: tf.Tensor | None
    known_ids: tf.Tensor | None

    @property
    def is_per_row(self) -> bool:
        """Whether each row has negatives of its own."""
        return self.ids.shape.rank == 2

    def of_places(self, places: tf.Tensor) -> Negatives:
        """Returns the negatives of some rows, given their numbers."""
        ids, counts, known = self
        if known is not None:
            known = tf.gather(known, places)
        if self.is_per_row:
            ids = tf.gather(ids, places)
            if counts is not None:
                counts = tf.gather(counts, places)
        return Negatives(ids, counts, known)


class Frequencies(Protocol):
    """Anything that estimates how frequent an item is."""

    def __call__(self, ids: Any) -> tf.Tensor:
        """Returns each item's share of all targets.

        Args:
            ids: `[...]` integer.

        Returns:
            `[...]` float32.
        """


class NegativeSampler:
    """Draws negatives for batches.

    A draw depends on its seed and the batch alone, so that a resumed run sees
    the negatives that it would have seen.

    Args:
        source: One of `SOURCES`.
        num_negatives: How many for each position.
        vocabulary_size: Rows of the item table.
        counts: `[vocabulary_size]`, each item's number of interactions in the
            training data. May be left out for `uniform`, and for `in_batch`
            and `mixed` with other `frequencies` or uncorrected.
        frequencies: What estimates the in-batch negatives' frequencies, such
            as `StreamingFrequencies`. Default: `counts`.
        per_row: Draw for each row of the batch rather than once for all.
        corrected: Whether to return `log_expected_counts` (the logQ
            correction). Without it popular negatives are pushed away too far.
        masks_known: Whether what a history has up to a position is excluded
            from that position's negatives. In-batch negatives hold a row's
            own targets more often than other items: with `in_batch` and
            `mixed` all items of a row are excluded from all of its negatives.
        trained_only: Whether items of count 0 are never drawn. Those that
            have features would only be pushed down, and their features with
            them.

    Raises:
        ValueError: An argument is out of its range, or `counts` are missing.
    """

    def __init__(
        self,
        source: str,
        num_negatives: int,
        vocabulary_size: int,
        *,
        counts: np.ndarray | None = None,
        frequencies: Frequencies | None = None,
        per_row: bool = False,
        corrected: bool = True,
        masks_known: bool = False,
        trained_only: bool = False,
    ) -> None:
        if source not in SOURCES:
            raise ValueError(
                f"`source` must be one of {', '.join(SOURCES)}. "
                f"Received: {source!r}"
            )
        lowest = 2 if source == "mixed" else 1
        if num_negatives < lowest:
            raise ValueError(
                f"`num_negatives` must be at least {lowest}. "
                f"Received: {num_negatives}"
            )
        if counts is not None and len(counts) != vocabulary_size:
            raise ValueError(
                f"`counts` must have {vocabulary_size} entries. "
                f"Received: {len(counts)}"
            )
        reads_batch = source in ("in_batch", "mixed") and corrected
        if frequencies is None and reads_batch and counts is not None:
            frequencies = CountedFrequencies(counts)
        if (frequencies is None and reads_batch) or (
            counts is None and (source == "popularity" or trained_only)
        ):
            raise ValueError(
                f"`counts` must be given with source={source!r} and "
                f"trained_only={trained_only}. Received: None"
            )
        self.source = source
        self.num_negatives = num_negatives
        self._num_in_batch, self._num_uniform = {
            "in_batch": (num_negatives, 0),
            "uniform": (0, num_negatives),
            "popularity": (0, 0),
            "mixed": (num_negatives // 2, num_negatives - num_negatives // 2),
        }[source]
        self._num_items = vocabulary_size - FIRST_ITEM_INDEX
        self._trained_ids: tf.Variable | None = None
        if counts is not None and trained_only:
            ids = np.flatnonzero(item_counts(counts))
            self._trained_ids = constant_table(ids.astype(np.int32))
            self._num_items = len(ids)
        self._frequencies = frequencies if reads_batch else None
        self._per_row = per_row
        self._corrected = corrected
        self._masks_known = masks_known
        self._alias: AliasTable | None = None
        if source == "popularity" and counts is not None:
            self._alias = AliasTable(counts, trained_only)

    def draw(self, batch: dict[str, tf.Tensor], seed: Any) -> Negatives:
        """Draws the negatives of a batch.

        Args:
            batch: `history_ids` and `target_ids`, `[num_rows, length]`
                integer, 0 at padding.
            seed: `[2]` integer, another one for each batch.

        Returns:
            The negatives.
        """
        target_ids = tf.cast(batch["target_ids"], tf.int32)
        rows = [tf.shape(target_ids)[0]] if self._per_row else []
        seeds = tf.random.split(tf.cast(seed, tf.int64), 2)
        targets = tf.reshape(target_ids, [-1])
        targets = tf.boolean_mask(targets, targets >= FIRST_ITEM_INDEX)
        if self._alias is not None:
            ids = self._alias.draw([*rows, self.num_negatives], seeds[0])
        else:
            ids = tf.concat(
                [
                    _choose(targets, [*rows, self._num_in_batch], seeds[0]),
                    self._uniform([*rows, self._num_uniform], seeds[1]),
                ],
                axis=-1,
            )
        known_ids = None
        if self._masks_known:
            known_ids = tf.cast(batch["history_ids"], tf.int32)
            if self._num_in_batch:
                known_ids = tf.concat([target_ids, known_ids], axis=1)
        if not self._corrected:
            return Negatives(ids, None, known_ids)
        counts = self._expected_counts(ids, tf.size(targets))
        # Items that are never drawn are excluded: padding, where a batch has no
        # targets, and a batch's only target.
        log_counts = tf.where(counts > 0, tf.math.log(counts), np.inf)
        return Negatives(ids, log_counts, known_ids)

    def _expected_counts(
        self, ids: tf.Tensor, num_targets: tf.Tensor
    ) -> tf.Tensor:
        """Returns k of each of the ids, whichever source it came from."""
        if self._alias is not None:
            return self.num_negatives * self._alias.shares(ids)
        counts = tf.fill(tf.shape(ids), self._num_uniform / self._num_items)
        if self._frequencies is None:
            return counts
        num_targets = tf.cast(num_targets, tf.float32)
        others = tf.math.divide_no_nan(num_targets - 1, num_targets)
        shares = tf.cast(self._frequencies(ids), tf.float32)
        return counts + self._num_in_batch * others * shares

    def _uniform(self, shape: list[Any], seed: tf.Tensor) -> tf.Tensor:
        places = tf.random.stateless_uniform(
            shape, seed, minval=0, maxval=self._num_items, dtype=tf.int32
        )
        if self._trained_ids is not None:
            return tf.gather(self._trained_ids, places)
        return places + FIRST_ITEM_INDEX


def _choose(values: tf.Tensor, shape: list[Any], seed: tf.Tensor) -> tf.Tensor:
    """Draws from `[n]` values with replacement; padding where n is 0."""
    values = tf.concat([values, [0]], axis=0)
    return tf.gather(
        values,
        tf.random.stateless_uniform(
            shape,
            seed,
            minval=0,
            maxval=tf.maximum(1, tf.shape(values)[0] - 1),
            dtype=tf.int32,
        ),
    )


# Knuth's multiplicative hashing, with another odd factor for each hash.
_HASH_FACTORS = (2654435761, 2246822519, 3266489917, 668265263)


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
    which counts time in batches, so an item that occurs once in every batch
    looks like one that occurs ten times in each.

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
        if not 1 <= num_hashes <= len(_HASH_FACTORS):
            raise ValueError(
                f"`num_hashes` must be from 1 to {len(_HASH_FACTORS)}. "
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
        """Updates the estimates with the items of a batch.

        Args:
            ids: `[...]` integer; padding and unknown are ignored.
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
                for number, factor in enumerate(
                    _HASH_FACTORS[: self.num_hashes]
                )
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
