"""Per-user, time-ordered sequences as flat arrays with offsets."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from recsys.data.interactions import Interactions
from recsys.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several processes.

    Attributes:
        index: Its number, from 0.
        count: The number of processes.
    """

    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Sequences that are read together, as far as one process needs them.

    Attributes:
        items: `[total]` int32; 0 in place of another process's items.
        offsets: `[num_users + 1]` int64, of the sequences of the whole group.
        shard_ends: `[num_shards]` int64, the end of each shard in `items`, if
            each process reads shards of its own; None if all read everything.
    """

    items: np.ndarray
    offsets: np.ndarray
    shard_ends: np.ndarray | None = None


class TrainingSequences(abc.ABC):
    """One time-ordered sequence of items per user, in memory or in files.

    An epoch reads the sequences in groups; those in memory are one group.

    Attributes:
        in_memory: Whether all sequences are in memory.
    """

    in_memory: ClassVar[bool]

    @property
    @abc.abstractmethod
    def num_users(self) -> int:
        """Number of users, including those without interactions."""

    @property
    @abc.abstractmethod
    def num_interactions(self) -> int:
        """Total number of interactions."""

    @property
    @abc.abstractmethod
    def lengths(self) -> np.ndarray:
        """`[num_users]` int64, the number of interactions of each user."""

    @abc.abstractmethod
    def item_counts(self, vocabulary_size: int) -> np.ndarray:
        """Counts the interactions with each item.

        Args:
            vocabulary_size: Number of items, including padding and unknown.

        Returns:
            `[vocabulary_size]` int64.
        """

    @abc.abstractmethod
    def groups(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Draws the groups of an epoch.

        Args:
            rng: Draws the order of the shards.

        Returns:
            The numbers of each group's shards, each shard once.
        """

    @abc.abstractmethod
    def group_lengths(self, group: np.ndarray) -> np.ndarray:
        """Returns the lengths of a group's sequences, `[num_users]` int64."""

    @abc.abstractmethod
    def read_group(self, group: np.ndarray, part: Part | None = None) -> Group:
        """Reads what one process needs of a group.

        Args:
            group: One of those that `groups` returned.
            part: The process; None for the only one.

        Returns:
            The sequences.
        """

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator) -> Sequences:
        """Returns a random sample of the users: a group of an epoch.

        Args:
            rng: Draws the groups.
        """

    @abc.abstractmethod
    def of_users(self, user_ids: np.ndarray) -> Sequences:
        """Returns sequences that include those of some users.

        Args:
            user_ids: Object array of str.
        """

    @abc.abstractmethod
    def read_all(self) -> Sequences:
        """Returns all sequences in memory."""


@dataclasses.dataclass(frozen=True)
class Sequences(TrainingSequences):
    """Sequences in memory, stored flat.

    User `u` interacted with `items[offsets[u]:offsets[u + 1]]`, oldest
    first. A user without interactions has two equal offsets.

    Attributes:
        user_ids: `[num_users]` object array of str, the raw user ids.
        offsets: `[num_users + 1]` int64, from 0 to the number of
            interactions, non-decreasing.
        items: `[num_interactions]` int32 vocabulary indices, all real items
            (2 and above).
        timestamps: `[num_interactions]` int64 in the log's own unit,
            non-decreasing within a user.
    """

    in_memory = True

    user_ids: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray

    @property
    def num_users(self) -> int:
        """Number of users, including those without interactions."""
        return len(self.offsets) - 1

    @property
    def num_interactions(self) -> int:
        """Total number of interactions."""
        return len(self.items)

    @property
    def lengths(self) -> np.ndarray:
        """`[num_users]` int64, the number of interactions of each user."""
        return np.diff(self.offsets)

    def item_counts(self, vocabulary_size: int) -> np.ndarray:
        """Counts the interactions with each item."""
        return np.bincount(self.items, minlength=vocabulary_size)

    def groups(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Returns a single group."""
        return [np.zeros(1, np.int64)]

    def group_lengths(self, group: np.ndarray) -> np.ndarray:
        """Returns the lengths of all sequences."""
        return self.lengths

    def read_group(self, group: np.ndarray, part: Part | None = None) -> Group:
        """Returns all sequences, which every process has."""
        return Group(self.items, self.offsets)

    def sample(self, rng: np.random.Generator) -> Sequences:
        """Returns these sequences."""
        return self

    def of_users(self, user_ids: np.ndarray) -> Sequences:
        """Returns these sequences."""
        return self

    def read_all(self) -> Sequences:
        """Returns these sequences."""
        return self

    def near_pairs(
        self, window: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Finds the pairs of items that are close in a sequence.

        Args:
            window: Maximum distance, in positions.

        Yields:
            For each distance from 1 to `window`: the distance, and two int32
            arrays, the earlier and the later item of each pair.
        """
        users = np.repeat(np.arange(self.num_users), self.lengths)
        for distance in range(1, window + 1):
            same_user = users[distance:] == users[:-distance]
            yield (
                distance,
                self.items[:-distance][same_user],
                self.items[distance:][same_user],
            )

    def prefixes(self, lengths: np.ndarray) -> Sequences:
        """Returns the first interactions of every user.

        Args:
            lengths: `[num_users]` int64, the number of interactions to keep,
                from 0 to the user's own number.

        Returns:
            New `Sequences` of the same users in the same order.
        """
        positions = concatenated_ranges(self.offsets[:-1], lengths)
        return Sequences(
            user_ids=self.user_ids,
            offsets=offsets_of(lengths),
            items=self.items[positions],
            timestamps=self.timestamps[positions],
        )

    def select(self, users: np.ndarray) -> Sequences:
        """Returns the sequences of some users.

        Args:
            users: `[n]` integer rows, in the order wanted.
        """
        lengths = self.lengths[users]
        positions = concatenated_ranges(self.offsets[users], lengths)
        return Sequences(
            user_ids=self.user_ids[users],
            offsets=offsets_of(lengths),
            items=self.items[positions],
            timestamps=self.timestamps[positions],
        )


def build_sequences(
    interactions: Interactions, vocabulary: Vocabulary, *, strict: bool = True
) -> Sequences:
    """Sorts a log by user and time.

    Users keep the order of `interactions.user_ids`. Interactions of a user at
    the same time keep the order of the file, so that the result is the same
    on every machine.

    Args:
        interactions: The log.
        vocabulary: Maps its items to indices.
        strict: Whether an item that is not in the vocabulary is an error. If
            not, it gets the unknown index.

    Returns:
        The sequences, one per user of the log.

    Raises:
        InputError: An item of the log is not in the vocabulary, and `strict`
            is set.
    """
    order = _chronological(interactions.users, interactions.timestamps)
    indices = vocabulary.encode(interactions.item_ids, strict=strict)
    counts = np.bincount(
        interactions.users, minlength=len(interactions.user_ids)
    )
    return Sequences(
        user_ids=interactions.user_ids,
        offsets=offsets_of(counts),
        items=indices[interactions.items[order]],
        timestamps=interactions.timestamps[order],
    )


def _chronological(users: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """Returns the order by user, then time, then position in the file.

    Args:
        users: `[num_interactions]` integer, non-negative.
        timestamps: `[num_interactions]` int64.
    """
    if len(users):
        # Python integers, which do not overflow.
        first = int(timestamps.min())
        span = int(timestamps.max()) - first + 1
        if (int(users.max()) + 1) * span < 2**63:
            # A single key sorts several times faster than two, and even
            # faster if the file is partly sorted.
            key = users.astype(np.int64) * span + (timestamps - first)
            return np.argsort(key, kind="stable")
    return np.lexsort((timestamps, users))


def concatenated_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns `starts[i], starts[i] + 1, …` for every `i`, concatenated.

    Args:
        starts: `[n]` int64, the first value of each range.
        lengths: `[n]` int64, the number of values of each range.

    Returns:
        `[sum(lengths)]` int64.
    """
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Returns the offsets of consecutive parts, and the end of the last.

    Args:
        lengths: `[n]` integer, non-negative.

    Returns:
        `[n + 1]` int64, starting at 0.
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
