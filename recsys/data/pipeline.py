"""tf.data pipelines from sequences to training and query batches.

Training rows are windows over each user's whole history, every interaction
but a user's first being a target once per epoch. Rows of similar length share
a batch (length buckets), and all batches hold about the same number of
positions. The order depends on (seed, epoch) alone, so a run can be entered
at any (epoch, step).

Sequences in shards are read group by group, in an order drawn for the epoch;
each group is planned and dealt into batches as sequences in memory are.

In distributed training all processes draw the same plan, so that they agree on
every batch without a word between them; each makes its own rows of it alone. Of
sequences in memory every process takes an equal slice of each batch. Of
sequences in shards it takes the rows of the users in its own shards, and reads
the items of no others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from recsys.data.sequences import Sequences, concatenated_ranges, offsets_of
from recsys.data.shards import ShardedSequences


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Turns off tf.data's own choice of parallelism and buffer sizes.

    With it, the end of an iterator now and then waits for the tuning thread,
    which wakes after 0.01 * (2^n - 1) seconds: an epoch of 25 seconds took 41
    (TensorFlow 2.21). What the pipeline's stages ask for must be numbers.

    Args:
        dataset: Any dataset.

    Returns:
        The same elements.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several processes.

    Attributes:
        index: Its number, from 0.
        count: How many there are.
    """

    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class PartOfGroup:
    """What one process has of a group of sequences.

    Attributes:
        items: `[total]` int32; 0 where the items are another process's.
        offsets: `[num_users + 1]` int64, of the sequences of the whole group.
        shard_ends: `[num_shards]` int64, where in `items` each shard ends, if
            each process has shards of its own; None if all have all.
    """

    items: np.ndarray
    offsets: np.ndarray
    shard_ends: np.ndarray | None


def read_group(
    sequences: Sequences | ShardedSequences,
    shards: np.ndarray,
    part: Part | None = None,
) -> PartOfGroup:
    """Reads what one process needs of a group.

    Args:
        sequences: All sequences.
        shards: The numbers of the group's shards; not read for sequences in
            memory, which are one group.
        part: The process; None for the only one.

    Returns:
        The sequences. Where a group has fewer shards than there are
        processes, each of these reads them all.
    """
    if isinstance(sequences, Sequences):
        return PartOfGroup(sequences.items, sequences.offsets, None)
    if part is None or len(shards) < part.count:
        return PartOfGroup(*sequences.read_items(shards), None)
    lengths = [sequences.read_lengths([shard]) for shard in shards]
    offsets = offsets_of(np.concatenate(lengths))
    ends = np.cumsum([each.sum() for each in lengths])
    items = np.zeros(offsets[-1], np.int32)
    for number in range(part.index, len(shards), part.count):
        begin = ends[number] - lengths[number].sum()
        own, _ = sequences.read_items(shards[number : number + 1])
        items[begin : ends[number]] = own
    return PartOfGroup(items, offsets, ends)


def own_rows(
    earliest: np.ndarray,
    rows: np.ndarray,
    offsets: np.ndarray,
    shard_ends: np.ndarray | None,
    part: Part,
) -> np.ndarray:
    """Returns which rows of a group's batches a process makes.

    Args:
        earliest: `[num_windows]` int64, where in the group's items the user
            of each window begins.
        rows: `[num_rows]` int64, the windows of the batches, one batch after
            the other; `num_windows` itself for a row of padding.
        offsets: `[num_batches + 1]` int64, where in `rows` each batch begins.
        shard_ends: As in `PartOfGroup`.
        part: The process.

    Returns:
        `[num_rows]` boolean. Each row is one process's.
    """
    if shard_ends is not None:
        # An empty shard ends where the one before it does.
        owner = np.searchsorted(shard_ends, earliest, "right") % part.count
        # Rows of padding are the first one's: optimizers see their negatives.
        return np.append(owner == part.index, part.index == 0)[rows]
    sizes = np.diff(offsets)
    batch = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(rows)) - offsets[batch]
    begin = sizes[batch] * part.index // part.count
    end = sizes[batch] * (part.index + 1) // part.count
    return (begin <= place) & (place < end)


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
    offsets: np.ndarray, max_length: int, rng: np.random.Generator
) -> Windows:
    """Cuts every user's sequence into windows that share no target.

    The first cut of a long sequence falls at a random place, so that each
    epoch sees other windows.

    Args:
        offsets: `[num_users + 1]` int64, where each sequence begins.
        max_length: Most targets of a window.
        rng: Draws the cuts.

    Returns:
        The windows; users with fewer than two interactions have none.
    """
    num_targets = np.maximum(np.diff(offsets) - 1, 0)
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
    earliest = offsets[:-1][user]
    return Windows(
        earliest=earliest,
        first_targets=earliest + begin + 1,
        ends=earliest + end,
    )


# Histories to be encoded are padded to a multiple of so many items.
_LENGTH_STEP = 8


@dataclasses.dataclass(frozen=True)
class GroupPlan:
    """The batches that some sequences in memory are dealt into.

    Attributes:
        windows: All rows.
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


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch, group by group.

    Attributes:
        shards: The numbers of each group's shards; sequences in memory are
            one group, and its numbers are not read.
        num_batches: Of each group.
        plan_group: Draws the batches of a group, given its number and the
            `[num_users + 1]` int64 offsets of its sequences; always the same
            ones.
    """

    shards: list[np.ndarray]
    num_batches: list[int]
    plan_group: Callable[[int, np.ndarray], GroupPlan]

    def __len__(self) -> int:
        return sum(self.num_batches)


def plan_epoch(
    sequences: Sequences | ShardedSequences,
    *,
    max_length: int,
    positions_per_batch: int,
    seed: int,
    epoch: int,
) -> EpochPlan:
    """Draws the windows of an epoch and deals them into batches.

    A batch holds rows of one length. Rows that are left over when the full
    batches of their length are made go up to the next length, so that only
    the longest has a batch with padding in place of rows. Of sequences in
    shards the lengths are read, nothing else.

    Args:
        sequences: The training sequences.
        max_length: Longest history of a row.
        positions_per_batch: Positions of a batch; a batch of rows of length L
            holds `positions_per_batch // L` rows, or all rows of its group if
            these are fewer.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        The plan: every window once, groups, rows and batches in random order.
    """

    def plan_group(group: int, offsets: np.ndarray) -> GroupPlan:
        rng = np.random.default_rng([seed, epoch, group])
        return _plan_group(offsets, max_length, positions_per_batch, rng)

    if isinstance(sequences, Sequences):
        plan = plan_group(0, sequences.offsets)
        return EpochPlan(
            [np.zeros(1, np.int64)], [len(plan)], lambda _, __: plan
        )
    # A stream of its own, beside those of the groups.
    shards = sequences.groups(np.random.default_rng([seed, epoch, 0, 1]))
    num_batches = []
    for group, numbers in enumerate(shards):
        lengths = sequences.read_lengths(numbers)
        num_batches.append(len(plan_group(group, offsets_of(lengths))))
    return EpochPlan(shards, num_batches, plan_group)


def _plan_group(
    sequence_offsets: np.ndarray,
    max_length: int,
    positions_per_batch: int,
    rng: np.random.Generator,
) -> GroupPlan:
    windows = cut_windows(sequence_offsets, max_length, rng)
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
    sizes = np.array([len(batches[i]) for i in order], np.int64)
    empty = np.zeros(0, np.int64)
    return GroupPlan(
        windows=windows,
        lengths=np.array([lengths[i] for i in order], np.int64),
        rows=np.concatenate([empty] + [batches[i] for i in order]),
        offsets=offsets_of(sizes),
    )


def train_dataset(
    sequences: Sequences | ShardedSequences,
    plan: EpochPlan,
    *,
    first_step: int = 0,
    part: Part | None = None,
) -> tf.data.Dataset:
    """Makes the batches of an epoch, from some step on.

    Sequences in shards are read while the batches before them are used: two
    groups are in memory, whatever the number of shards.

    Args:
        sequences: The sequences that the plan was drawn from.
        plan: The epoch's batches.
        first_step: How many batches to pass over; groups that end before it
            are not read.
        part: Which of several processes this is, each of which makes some
            rows of every batch; None for the only one.

    Returns:
        A dataset of dictionaries with `history_ids` and `target_ids`, both
        `[rows, length]` int32, padded with 0 on the right; a target is 0
        where nothing is to be learned. With `part` also `places`, `[rows]`
        int64, which rows of the whole batch these are, and `num_rows`, int64,
        how many rows that has.
    """

    def groups() -> Iterator[dict[str, np.ndarray]]:
        passed_over = first_step
        for group, num_batches in enumerate(plan.num_batches):
            if passed_over < num_batches:
                own = read_group(sequences, plan.shards[group], part)
                batches = plan.plan_group(group, own.offsets)
                yield _group_arrays(own, batches, passed_over, part)
            passed_over = max(0, passed_over - num_batches)

    groups_ds = tf.data.Dataset.from_generator(
        groups,
        output_signature={
            name: tf.TensorSpec([None] if name != "first" else [], dtype)
            for name, dtype in _GROUP_TYPES.items()
        },
    )
    train_ds = groups_ds.prefetch(1).flat_map(
        lambda group: _batches_of_group(group, with_places=part is not None)
    )
    return without_autotune(train_ds.prefetch(8))


_GROUP_TYPES = {
    "items": tf.int32,
    "earliest": tf.int64,
    "ends": tf.int64,
    "first_targets": tf.int64,
    "rows": tf.int64,
    "places": tf.int64,
    "offsets": tf.int64,
    "sizes": tf.int64,
    "lengths": tf.int64,
    "first": tf.int64,
}


# Batches that are made at once: one alone keeps ahead of the training step.
_PARALLEL_CALLS = 2


def _group_arrays(
    group: PartOfGroup, plan: GroupPlan, first: int, part: Part | None
) -> dict[str, np.ndarray]:
    """Returns all that the batches of a group are made from."""
    windows, offsets = plan.windows, plan.offsets
    sizes = np.diff(offsets)
    rows = plan.rows
    places = np.arange(len(rows)) - np.repeat(offsets[:-1], sizes)
    if part is not None:
        own = own_rows(windows.earliest, rows, offsets, group.shard_ends, part)
        rows, places = rows[own], places[own]
        offsets = offsets_of(own)[offsets]
    return {
        "items": group.items,
        # One more window, of padding only.
        "earliest": np.append(windows.earliest, 0),
        "ends": np.append(windows.ends, 0),
        "first_targets": np.append(windows.first_targets, 0),
        "rows": rows,
        "places": places,
        "offsets": offsets,
        "sizes": sizes,
        "lengths": plan.lengths,
        "first": np.array(first, np.int64),
    }


def _batches_of_group(
    group: dict[str, tf.Tensor], with_places: bool
) -> tf.data.Dataset:
    def make_batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        items, length = group["items"], group["lengths"][step]
        own = slice(group["offsets"][step], group["offsets"][step + 1])
        rows = group["rows"][own]
        row_ends = tf.gather(group["ends"], rows)
        earliest = tf.gather(group["earliest"], rows)
        starts = tf.maximum(earliest, row_ends - length)
        position = starts[:, tf.newaxis] + tf.range(length)[tf.newaxis]
        inside = position < row_ends[:, tf.newaxis]
        first = tf.gather(group["first_targets"], rows)[:, tf.newaxis]
        learned = inside & (position + 1 >= first)
        position = tf.where(inside, position, 0)
        batch = {
            "history_ids": tf.where(inside, tf.gather(items, position), 0),
            "target_ids": tf.where(learned, tf.gather(items, position + 1), 0),
        }
        if with_places:
            batch["places"] = group["places"][own]
            batch["num_rows"] = group["sizes"][step]
        return batch

    num_batches = tf.size(group["lengths"], out_type=tf.int64)
    steps = tf.data.Dataset.range(group["first"], num_batches)
    return steps.map(make_batch, _PARALLEL_CALLS, deterministic=True)


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
