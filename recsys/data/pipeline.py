"""tf.data pipelines from sequences to training and query batches.

Training rows are windows over each user's history; every interaction but a
user's first is a target once per epoch. Rows of similar length share a batch
(length buckets), and all batches have about the same number of positions. The
order depends only on (seed, epoch), so a run can resume at any (epoch, step).

Sequences are read in groups, in an order drawn for the epoch, and each group is
dealt into batches of its own.

In distributed training all processes draw the same plan and therefore agree on
every batch without communication; each makes only its own rows. With sequences
in memory these are an equal slice of every batch. With sequences in shards
they are the rows of the users in the process's own shards, the only ones that
it reads the items of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from recsys.data.events import EventKinds
from recsys.data.sequences import (
    Group,
    TrainingSequences,
    concatenated_ranges,
    offsets_of,
)
from recsys.data.sequences import Part as Part
from recsys.data.side_information import NO_TIME, SideEncoder


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Turns off tf.data's autotuning of parallelism and buffer sizes.

    With autotuning, the end of an iterator sometimes waits for the tuning
    thread, which wakes after 0.01 * (2^n - 1) seconds: an epoch of 25 seconds
    took 41 (TensorFlow 2.21). Stages must then set their parallelism and
    buffer sizes as numbers.

    Args:
        dataset: Any dataset.

    Returns:
        The same elements.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def _own_rows(
    earliest: np.ndarray,
    rows: np.ndarray,
    offsets: np.ndarray,
    shard_ends: np.ndarray | None,
    part: Part,
) -> np.ndarray:
    """`[num_rows]` bool, which rows of a group's batches a process has."""
    if shard_ends is not None:
        # An empty shard ends where the one before it does.
        owner = np.searchsorted(shard_ends, earliest, "right") % part.count
        # Rows of padding belong to the first process alone, since their
        # negatives reach the optimizer.
        return np.append(owner == part.index, part.index == 0)[rows]
    sizes = np.diff(offsets)
    batch = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(rows)) - offsets[batch]
    begin = sizes[batch] * part.index // part.count
    end = sizes[batch] * (part.index + 1) // part.count
    return (begin <= place) & (place < end)


def bucket_lengths(max_length: int) -> tuple[int, ...]:
    """Returns the row lengths, ascending: the eighths of the longest."""
    return tuple(sorted({-(-max_length * i // 8) for i in range(1, 9)}))


@dataclasses.dataclass(frozen=True)
class Windows:
    """Slices of sequences, one for each training row.

    The targets of row r are the items at `first_targets[r]` to `ends[r]`, both
    included, each predicted from the history before it. The history ends
    before `ends[r]` and starts at `first_targets[r] - 1`, or earlier if the
    row has room, back to `earliest[r]`: these positions are context, and the
    items after them are targets of other rows.

    Attributes:
        earliest: `[num_rows]` int64, the start of the user's sequence.
        first_targets: `[num_rows]` int64, the first target, after `earliest`.
        ends: `[num_rows]` int64, one past the last history position, which is
            also the position of the last target.
    """

    earliest: np.ndarray
    first_targets: np.ndarray
    ends: np.ndarray

    @property
    def num_targets(self) -> np.ndarray:
        """`[num_rows]` int64, the number of positions each row must have."""
        return self.ends - self.first_targets + 1


def cut_windows(
    offsets: np.ndarray, max_length: int, rng: np.random.Generator
) -> Windows:
    """Cuts every user's sequence into windows with disjoint targets.

    The first cut of a long sequence is random, so that windows differ from
    epoch to epoch.

    Args:
        offsets: `[num_users + 1]` int64, the start of each sequence.
        max_length: Maximum number of targets in a window.
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


# Histories to encode are padded to a multiple of this length.
_LENGTH_STEP = 8


@dataclasses.dataclass(frozen=True)
class GroupPlan:
    """The batches of a group of sequences.

    Attributes:
        windows: All windows.
        lengths: `[num_batches]` int64, the row length of each batch.
        rows: `[num_rows]` int64, the windows in the batches; the number of
            windows stands for a row of padding, which fills up a batch.
        offsets: `[num_batches + 1]` int64, the start of each batch in `rows`.
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
        groups: The groups; see `TrainingSequences.groups`.
        num_batches: The number of batches in each group.
        padding_share: Share of all positions that are padding.
        plan_group: Returns the batches of a group, given its number and the
            `[num_users + 1]` int64 offsets of its sequences. Repeated calls
            return equal batches.
    """

    groups: list[np.ndarray]
    num_batches: list[int]
    padding_share: float
    plan_group: Callable[[int, np.ndarray], GroupPlan]

    def __len__(self) -> int:
        return sum(self.num_batches)


def plan_epoch(
    sequences: TrainingSequences,
    *,
    max_length: int,
    positions_per_batch: int,
    seed: int,
    epoch: int,
) -> EpochPlan:
    """Draws the windows of an epoch and deals them into batches.

    All rows of a batch have the same length. Rows left over from the full
    batches of a length move up to the next length, so only the greatest
    length has a batch filled up with padding. From shards only the lengths
    are read.

    Args:
        sequences: The training sequences.
        max_length: Maximum history length of a row.
        positions_per_batch: Positions in a batch: a batch of rows of length L
            has `positions_per_batch // L` rows, or all rows of its group if
            there are fewer.
        seed: The seed of the run.
        epoch: The number of the epoch, from 0.

    Returns:
        The plan: every window once, with groups, rows and batches shuffled.
    """
    planned: dict[int, GroupPlan] = {}

    def plan_group(group: int, offsets: np.ndarray) -> GroupPlan:
        if group in planned:
            return planned[group]
        rng = np.random.default_rng([seed, epoch, group])
        return _plan_group(offsets, max_length, positions_per_batch, rng)

    # A stream of its own, besides those of the groups.
    groups = sequences.groups(np.random.default_rng([seed, epoch, 0, 1]))
    num_batches, num_real, num_positions = [], 0, 0
    for number, group in enumerate(groups):
        offsets = offsets_of(sequences.group_lengths(group))
        plan = plan_group(number, offsets)
        num_batches.append(len(plan))
        lengths = np.repeat(plan.lengths, np.diff(plan.offsets))
        available = plan.windows.ends - plan.windows.earliest
        available = np.append(available, 0)[plan.rows]
        num_real += int(np.minimum(lengths, available).sum())
        num_positions += int(lengths.sum())
    if len(groups) == 1:
        # The plans of many groups need not fit in memory; this one does.
        planned[0] = plan
    padding_share = 1 - num_real / max(1, num_positions)
    return EpochPlan(groups, num_batches, padding_share, plan_group)


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
    sequences: TrainingSequences,
    plan: EpochPlan,
    *,
    first_step: int = 0,
    part: Part | None = None,
    side: SideEncoder | None = None,
) -> tf.data.Dataset:
    """Makes the batches of an epoch, from some step on.

    The next group is read while the batches of one are used: two groups are
    in memory, whatever the number of shards.

    Args:
        sequences: The sequences that the plan was drawn from.
        plan: The batches of the epoch.
        first_step: The number of batches to skip; groups that end before it
            are not read.
        part: The process, if each of several makes some rows of every batch.
        side: Encodes the features of events, requests and users.

    Returns:
        A dataset of dictionaries with `history_ids` and `target_ids`, both
        `[rows, length]` int32, padded with 0 on the right; targets are also 0
        at positions of context and where the next interaction is history
        only. Where there are kinds of events, also `target_weights`, of the
        same shape, float32. Where there may be dislikes, also `dislike_ids`,
        `[rows, num_dislikes]` int32, padded with 0: those of the user in the
        time of the row's targets, at most the newest 200. With `side`, also
        the entries that `feature_signature` lists. With `part`, also
        `places`, `[rows]` int64, the positions of these rows in the whole
        batch, and `num_rows`, int64, the number of rows in it.
    """

    def groups() -> Iterator[dict[str, np.ndarray]]:
        num_skipped = first_step
        for number, num_batches in enumerate(plan.num_batches):
            if num_skipped < num_batches:
                group = sequences.read_group(plan.groups[number], part)
                batches = plan.plan_group(number, group.offsets)
                arrays = _group_arrays(group, batches, num_skipped, part)
                arrays |= _event_arrays(sequences.kinds, group, batches)
                if side is not None:
                    arrays |= _side_arrays(side, group, batches)
                yield arrays
            num_skipped = max(0, num_skipped - num_batches)

    groups_ds = tf.data.Dataset.from_generator(
        groups, output_signature=_group_signature(sequences, side)
    )
    train_ds = groups_ds.prefetch(1).flat_map(
        lambda group: _batches_of_group(
            group,
            with_places=part is not None,
            reads_request_time=side is not None and side.reads_request_time,
        )
    )
    return without_autotune(train_ds.prefetch(8))


def _group_signature(
    sequences: TrainingSequences, side: SideEncoder | None
) -> dict[str, tf.TensorSpec]:
    signature = dict(_GROUP_SIGNATURE)
    if sequences.kinds is not None:
        signature["target_weights"] = tf.TensorSpec([None], tf.float32)
    if sequences.has_dislikes:
        signature["dislikes"] = tf.TensorSpec([None], tf.int32)
        for name in ("dislike_starts", "dislike_ends"):
            signature[name] = tf.TensorSpec([None], tf.int64)
    if side is not None:
        signature |= _side_signature(side)
    return signature


_GROUP_SIGNATURE = {
    "items": tf.TensorSpec([None], tf.int32),
    "first": tf.TensorSpec([], tf.int64),
    **dict.fromkeys(
        (
            "earliest",
            "ends",
            "first_targets",
            "rows",
            "places",
            "offsets",
            "sizes",
            "lengths",
        ),
        tf.TensorSpec([None], tf.int64),
    ),
}
# Batches made at once; even one at a time is faster than the training step.
_PARALLEL_CALLS = 2
# Dislikes of a row; a batch is padded to the row with the most.
_MOST_DISLIKES = 200


def _group_arrays(
    group: Group, plan: GroupPlan, first: int, part: Part | None
) -> dict[str, np.ndarray]:
    """Returns everything that the batches of a group are made from."""
    windows, offsets = plan.windows, plan.offsets
    sizes = np.diff(offsets)
    rows = plan.rows
    places = np.arange(len(rows)) - np.repeat(offsets[:-1], sizes)
    if part is not None:
        own = _own_rows(windows.earliest, rows, offsets, group.shard_ends, part)
        rows, places = rows[own], places[own]
        offsets = offsets_of(own)[offsets]
    return {
        "items": group.items,
        # Another window, for rows of padding.
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


def _event_arrays(
    kinds: EventKinds | None, group: Group, plan: GroupPlan
) -> dict[str, np.ndarray]:
    """Returns the weights of a group's targets and its windows' dislikes."""
    arrays = {}
    if kinds is not None:
        arrays["target_weights"] = kinds.target_weights[group.columns["event"]]
    if (dislikes := group.dislikes) is None:
        return arrays
    windows, offsets = plan.windows, group.offsets
    users = np.searchsorted(offsets, windows.earliest, "right") - 1
    # A window has the places of its targets, and the first and the last of a
    # user's also those before and after.
    first = windows.first_targets - windows.earliest
    last = windows.ends - windows.earliest
    last += windows.ends + 1 == offsets[users + 1]
    span = int(np.diff(offsets).max(initial=0)) + 2
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(dislikes.offsets))
    keys = owners * span + dislikes.columns["place"]
    starts = np.searchsorted(
        keys, users * span + np.where(first == 1, 0, first), "left"
    )
    ends = np.searchsorted(keys, users * span + last, "right")
    starts = np.maximum(starts, ends - _MOST_DISLIKES)
    # Another window, for rows of padding.
    arrays["dislike_starts"] = np.append(starts, 0)
    arrays["dislike_ends"] = np.append(ends, 0)
    arrays["dislikes"] = dislikes.items
    return arrays


def _side_signature(side: SideEncoder) -> dict[str, tf.TensorSpec]:
    signature = {}
    for part in side.encoders:
        for name, dtype in (
            ("codes", tf.int32),
            ("values", tf.int32),
            ("weights", tf.float32),
        ):
            signature[f"{part}_{name}"] = tf.TensorSpec([None, None], dtype)
    if side.reads_times:
        signature["times"] = tf.TensorSpec([None], tf.int64)
    if "user" in side.encoders:
        signature["users"] = tf.TensorSpec([None], tf.int64)
    return signature


def _side_arrays(
    side: SideEncoder, group: Group, plan: GroupPlan
) -> dict[str, np.ndarray]:
    """Returns the features of a group's events and of its windows' users."""
    arrays = {}
    for part, found in side.code(group).items():
        for name in ("codes", "values", "weights"):
            arrays[f"{part}_{name}"] = getattr(found, name)
    if side.reads_times:
        arrays["times"] = side.times(group)
    if "user" in side.encoders:
        earliest = plan.windows.earliest
        users = np.searchsorted(group.offsets, earliest, "right") - 1
        arrays["users"] = np.append(users, 0)
    return arrays


def feature_signature(
    side: SideEncoder | None, with_kinds: bool
) -> dict[str, tf.TensorSpec]:
    """Returns the entries that features add to a training batch.

    Args:
        side: Their encoder.
        with_kinds: Whether there are kinds of events.

    Returns:
        `<part>_features` (int32) and `<part>_weights` (float32), `[rows,
        length, width]` of "history" and "context" and `[rows, width]` of
        "user"; with the latter `first_ids`, `[rows]` int32, and where there
        are kinds `first_weights`; and `history_times` and `request_times`,
        `[rows, length]` int64.
    """
    entries = {}
    for part in side.encoders if side is not None else ():
        shape = [None] * (2 if part == "user" else 3)
        entries[f"{part}_features"] = tf.TensorSpec(shape, tf.int32)
        entries[f"{part}_weights"] = tf.TensorSpec(shape, tf.float32)
        if part == "user":
            entries["first_ids"] = tf.TensorSpec([None], tf.int32)
            if with_kinds:
                entries["first_weights"] = tf.TensorSpec([None], tf.float32)
    if side is not None and side.reads_times:
        for name in ("history_times", "request_times"):
            entries[name] = tf.TensorSpec([None, None], tf.int64)
    return entries


def _side_entries(
    group: dict[str, tf.Tensor],
    rows: tf.Tensor,
    position: tf.Tensor,
    inside: tf.Tensor,
    reads_request_time: bool,
) -> dict[str, tf.Tensor]:
    """Returns the features of a batch; see `feature_signature`."""
    entries = {}

    def add(part: str, places: tf.Tensor, known: tf.Tensor | None) -> None:
        codes = tf.gather(group[f"{part}_codes"], places)
        if known is not None:
            codes = tf.where(known[..., tf.newaxis], codes, 0)
        shape = tf.concat([tf.shape(places), [-1]], axis=0)
        for name, entry in (("values", "features"), ("weights", "weights")):
            found = tf.gather(group[f"{part}_{name}"], codes)
            entries[f"{part}_{entry}"] = tf.reshape(found, shape)

    if "history_codes" in group:
        add("history", position, inside)
    if "context_codes" in group:
        add("context", position + 1, inside)
    if "user_codes" in group:
        add("user", tf.gather(group["users"], rows), None)
        # The first event is a target in the window that begins with it.
        earliest = tf.gather(group["earliest"], rows)
        starts_here = inside[:, 0] & (position[:, 0] == earliest)
        starts_here &= tf.gather(group["first_targets"], rows) == earliest + 1
        first = tf.gather(group["items"], earliest)
        entries["first_ids"] = tf.where(starts_here, first, 0)
        if "target_weights" in group:
            weights = tf.gather(group["target_weights"], earliest)
            weights = tf.where(starts_here, weights, 0.0)
            entries["first_weights"] = weights
            entries["first_ids"] *= tf.cast(weights > 0, tf.int32)
    if "times" in group:
        unknown = tf.constant(NO_TIME, tf.int64)
        for name, places in (
            ("history_times", position),
            ("request_times", position + 1 if reads_request_time else position),
        ):
            found = tf.gather(group["times"], places)
            entries[name] = tf.where(inside, found, unknown)
    return entries


def _batches_of_group(
    group: dict[str, tf.Tensor], with_places: bool, reads_request_time: bool
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
        if "target_weights" in group:
            weights = tf.gather(group["target_weights"], position + 1)
            weights = tf.where(learned, weights, 0.0)
            batch["target_weights"] = weights
            batch["target_ids"] = tf.where(weights > 0, batch["target_ids"], 0)
        if "dislikes" in group:
            begin = tf.gather(group["dislike_starts"], rows)[:, tf.newaxis]
            end = tf.gather(group["dislike_ends"], rows)[:, tf.newaxis]
            width = tf.reduce_max(tf.concat([[[0]], end - begin], axis=0))
            place = begin + tf.range(width)[tf.newaxis]
            dislikes = tf.concat([group["dislikes"], [0]], axis=0)
            batch["dislike_ids"] = tf.where(
                place < end,
                tf.gather(dislikes, tf.where(place < end, place, 0)),
                0,
            )
        batch |= _side_entries(
            group, rows, position, inside, reads_request_time
        )
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
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pads histories into batches of rows of similar length.

    Args:
        items: `[total]` int32, the histories, each oldest first.
        offsets: `[num_queries + 1]` int64, the start of each history.
        max_length: Longer histories are cut to their newest items.
        positions_per_batch: Approximate number of positions in a batch.

    Yields:
        `rows`, `[n]` int64, the numbers of the queries; `history_ids`,
        `[n, length]` int32, padded with 0 on the right; and the `[n, length]`
        int64 positions of these in `items`, -1 at padding. Every query is in
        exactly one batch.
    """
    lengths = np.minimum(np.diff(offsets), max_length)
    # Padding depends on the history alone, so its vector does too.
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
            position = np.where(inside, starts[:, np.newaxis] + position, -1)
            history_ids = np.zeros((len(rows), length), np.int32)
            history_ids[inside] = items[position[inside]]
            yield rows, history_ids, position
