"""tf.data pipelines from sequences to training and query batches.

Training rows are windows over each user's whole history, every interaction
but a user's first being a target once per epoch. Rows of similar length share
a batch (length buckets), and all batches hold about the same number of
positions. The order depends on (seed, epoch) alone, so a run can be entered
at any (epoch, step).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from recsys.data.sequences import Sequences, concatenated_ranges


def bucket_lengths(max_length: int) -> tuple[int, ...]:
    """Returns the row lengths, rising: the eighths of the longest."""
    return tuple(sorted({-(-max_length * i // 8) for i in range(1, 9)}))


@dataclasses.dataclass(frozen=True)
class Windows:
    """Slices of sequences that training rows are made of.

    Row r learns the items `[first_targets[r], ends[r]]`, each from the
    history before it. What it reads are the items before `ends[r]`, from
    `first_targets[r] - 1` on, and older ones back to `earliest[r]` as far as
    the row has room for them: context, which other rows have learned from.

    Attributes:
        earliest: `[num_rows]` int64, where the user's sequence begins.
        first_targets: `[num_rows]` int64, the first target, above `earliest`.
        ends: `[num_rows]` int64, one past the last history position. The item
            at `ends` is the last target, so it is within the user's sequence.
    """

    earliest: np.ndarray
    first_targets: np.ndarray
    ends: np.ndarray

    @property
    def num_targets(self) -> np.ndarray:
        """`[num_rows]` int64, the fewest positions that each row needs."""
        return self.ends - self.first_targets + 1


def cut_windows(
    sequences: Sequences, max_length: int, rng: np.random.Generator
) -> Windows:
    """Cuts every user's sequence into windows that share no target.

    The first cut of a long sequence falls at a random place, so that each
    epoch sees other windows.

    Args:
        sequences: The training sequences.
        max_length: Most targets of a window.
        rng: Draws the cuts.

    Returns:
        The windows; users with fewer than two interactions have none.
    """
    num_targets = np.maximum(sequences.lengths - 1, 0)
    # Target j of a user (from 0) follows history position j. The first window
    # holds targets [0, first), later ones `max_length` each.
    first = np.where(
        num_targets > max_length,
        rng.integers(1, max_length + 1, len(num_targets)),
        num_targets,
    )
    rest = num_targets - first
    num_windows = (num_targets > 0) + -(-rest // max_length)
    user = np.repeat(np.arange(len(num_targets)), num_windows)
    number = concatenated_ranges(np.zeros_like(num_windows), num_windows)
    begin = np.where(number == 0, 0, first[user] + (number - 1) * max_length)
    end = np.minimum(first[user] + number * max_length, num_targets[user])
    earliest = sequences.offsets[:-1][user]
    return Windows(
        earliest=earliest,
        first_targets=earliest + begin + 1,
        ends=earliest + end,
    )


# Histories to be encoded are padded to a multiple of so many items.
_LENGTH_STEP = 8


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch.

    Attributes:
        windows: All rows of the epoch.
        lengths: `[num_batches]` int64, the row length of each batch.
        rows: `[num_rows]` int64, which windows the batches hold, one batch
            after the other; the number of windows itself stands for a row of
            padding, which fills up a short batch.
        offsets: `[num_batches + 1]` int64.
    """

    windows: Windows
    lengths: np.ndarray
    rows: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)


def plan_epoch(
    sequences: Sequences,
    *,
    max_length: int,
    positions_per_batch: int,
    seed: int,
    epoch: int,
) -> EpochPlan:
    """Draws the windows of an epoch and deals them into batches.

    A batch holds rows of one length. Rows that are left over when the full
    batches of their length are made go up to the next length, so that only
    the longest has a batch with padding in place of rows.

    Args:
        sequences: The training sequences.
        max_length: Longest history of a row.
        positions_per_batch: Positions of a batch; a batch of rows of length L
            holds `positions_per_batch // L` rows, or all rows of the epoch if
            these are fewer.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        The plan: every window once, rows and batches in random order.
    """
    rng = np.random.default_rng([seed, epoch])
    windows = cut_windows(sequences, max_length, rng)
    buckets = bucket_lengths(max_length)
    bucket = np.searchsorted(buckets, windows.num_targets, "left")
    num_windows = len(bucket)
    lengths: list[int] = []
    batches: list[np.ndarray] = []
    left = np.zeros(0, np.int64)
    for number, length in enumerate(buckets):
        rows = np.append(left, np.flatnonzero(bucket == number))
        rows = rng.permutation(rows)
        size = max(1, min(positions_per_batch // length, num_windows))
        if number == len(buckets) - 1:
            rows = np.append(rows, np.full(-len(rows) % size, num_windows))
        full, left = np.split(rows, [len(rows) // size * size])
        lengths.extend([length] * (len(full) // size))
        batches.extend(full.reshape(-1, size))
    order = rng.permutation(len(batches))
    offsets = np.zeros(len(batches) + 1, np.int64)
    np.cumsum([len(batches[i]) for i in order], out=offsets[1:])
    empty = np.zeros(0, np.int64)
    return EpochPlan(
        windows=windows,
        lengths=np.array([lengths[i] for i in order], np.int64),
        rows=np.concatenate([empty] + [batches[i] for i in order]),
        offsets=offsets,
    )


def train_dataset(
    sequences: Sequences,
    plan: EpochPlan,
    *,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Makes the batches of an epoch, from some step on.

    Args:
        sequences: The sequences that the plan was drawn from.
        plan: The epoch's batches.
        first_step: How many batches to pass over.

    Returns:
        A dataset of dictionaries with `history_ids` and `target_ids`, both
        `[rows, length]` int32, padded with 0 on the right; a target is 0
        where nothing is to be learned.
    """
    items = tf.constant(sequences.items)
    # One more window, of padding only.
    earliest, ends, first_targets = (
        tf.constant(np.append(column, 0))
        for column in (
            plan.windows.earliest,
            plan.windows.ends,
            plan.windows.first_targets,
        )
    )
    rows, offsets = tf.constant(plan.rows), tf.constant(plan.offsets)
    lengths = tf.constant(plan.lengths)

    def make_batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        length = lengths[step]
        batch_rows = rows[offsets[step] : offsets[step + 1]]
        row_ends = tf.gather(ends, batch_rows)
        starts = tf.maximum(tf.gather(earliest, batch_rows), row_ends - length)
        position = starts[:, tf.newaxis] + tf.range(length)[tf.newaxis]
        inside = position < row_ends[:, tf.newaxis]
        first = tf.gather(first_targets, batch_rows)[:, tf.newaxis]
        learned = inside & (position + 1 >= first)
        position = tf.where(inside, position, 0)
        return {
            "history_ids": tf.where(inside, tf.gather(items, position), 0),
            "target_ids": tf.where(learned, tf.gather(items, position + 1), 0),
        }

    steps = tf.data.Dataset.range(first_step, len(plan))
    train_ds = steps.map(make_batch, tf.data.AUTOTUNE, deterministic=True)
    return train_ds.prefetch(8)


def history_batches(
    items: np.ndarray,
    offsets: np.ndarray,
    *,
    max_length: int,
    positions_per_batch: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pads histories into batches of rows of similar length.

    Args:
        items: `[total]` int32, the histories one after the other, each
            oldest first.
        offsets: `[num_queries + 1]` int64.
        max_length: Of a longer history the newest items are kept.
        positions_per_batch: About how many positions a batch has.

    Yields:
        `rows`, `[n]` int64, which queries, and `history_ids`, `[n, length]`
        int32, padded with 0 on the right. Every query is in one batch.
    """
    lengths = np.minimum(np.diff(offsets), max_length)
    # A history's padding depends on itself alone, and so does its vector.
    padded = np.minimum(-(-lengths // _LENGTH_STEP) * _LENGTH_STEP, max_length)
    padded = np.maximum(padded, 1)
    for length in np.unique(padded):
        chosen = np.flatnonzero(padded == length)
        size = max(1, positions_per_batch // length)
        for begin in range(0, len(chosen), size):
            rows = chosen[begin : begin + size]
            position = np.arange(length)[np.newaxis]
            inside = position < lengths[rows][:, np.newaxis]
            starts = offsets[rows + 1] - lengths[rows]
            history_ids = np.zeros((len(rows), length), np.int32)
            history_ids[inside] = items[
                (starts[:, np.newaxis] + position)[inside]
            ]
            yield rows, history_ids
