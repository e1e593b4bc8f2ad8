"""Which rows of a training batch each of several processes makes.

All processes draw the same plan of an epoch, so that they agree on every
batch without a word between them; each makes its own rows of it alone. Which
rows these are changes nothing in the sum of their losses.

Of sequences in memory every process has all, and takes an equal slice of each
batch. Of sequences in shards it takes the rows of the users in its own shards,
and reads the items of no others.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys.data.sequences import Sequences, offsets_of
from recsys.data.shards import ShardedSequences


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
