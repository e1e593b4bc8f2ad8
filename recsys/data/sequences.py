"""Per-user, time-ordered sequences as flat arrays with offsets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from recsys.data.interactions import Interactions
from recsys.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Sequences:
    """One time-ordered sequence of items per user, stored flat.

    User `u` interacted with `items[offsets[u]:offsets[u + 1]]`, oldest
    first. A user without interactions has two equal offsets.

    Attributes:
        user_ids: `[num_users]` object array of str, the raw user ids.
        offsets: `[num_users + 1]` int64, from 0 to the number of
            interactions, never falling.
        items: `[num_interactions]` int32 vocabulary indices, all real items
            (2 and above).
        timestamps: `[num_interactions]` int64 in the log's own unit, never
            falling within a user.
    """

    user_ids: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray

    @property
    def num_users(self) -> int:
        """Number of users, those without interactions included."""
        return len(self.offsets) - 1

    @property
    def num_interactions(self) -> int:
        """Number of interactions of all users together."""
        return len(self.items)

    @property
    def lengths(self) -> np.ndarray:
        """`[num_users]` int64, the number of interactions of each user."""
        return np.diff(self.offsets)

    def item_counts(self, vocabulary_size: int) -> np.ndarray:
        """Counts the interactions with each item.

        Args:
            vocabulary_size: Number of items, padding and unknown included.

        Returns:
            `[vocabulary_size]` int64.
        """
        return np.bincount(self.items, minlength=vocabulary_size)

    def near_pairs(
        self, window: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Finds the pairs of items that lie near each other.

        Args:
            window: Greatest distance, in places of one user's sequence.

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
        """Returns the same users with only their first interactions.

        Args:
            lengths: `[num_users]` int64, how many of each user's oldest
                interactions stay; from 0 to the user's own length.

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


def build_sequences(
    interactions: Interactions, vocabulary: Vocabulary
) -> Sequences:
    """Orders a log by user and time.

    Users come in the order of `interactions.user_ids`. Within a user the
    order is that of the timestamps; equal timestamps keep the order of the
    file, so the result is the same on every machine.

    Args:
        interactions: The log. Every one of its items must be in the
            vocabulary.
        vocabulary: Gives each item its index.

    Returns:
        The sequences, one per user of the log.

    Raises:
        InputError: An item of the log is not in the vocabulary.
    """
    order = _chronological(interactions.users, interactions.timestamps)
    indices = vocabulary.encode(interactions.item_ids, strict=True)
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
    """Returns the order by user, then time, then place in the file.

    Args:
        users: `[num_interactions]` integer, not negative.
        timestamps: `[num_interactions]` int64.
    """
    if len(users):
        # Python's integers, which do not overflow.
        first = int(timestamps.min())
        span = int(timestamps.max()) - first + 1
        if (int(users.max()) + 1) * span < 2**63:
            # One key for both: several times faster, and faster still where
            # the file is ordered in part.
            key = users.astype(np.int64) * span + (timestamps - first)
            return np.argsort(key, kind="stable")
    return np.lexsort((timestamps, users))


def join_sequences(parts: Sequence[Sequences]) -> Sequences:
    """Puts sequences of different users together, one part after the other."""
    return Sequences(
        user_ids=np.concatenate([part.user_ids for part in parts]),
        offsets=offsets_of(np.concatenate([part.lengths for part in parts])),
        items=np.concatenate([part.items for part in parts]),
        timestamps=np.concatenate([part.timestamps for part in parts]),
    )


def concatenated_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns `starts[i], starts[i] + 1, …` for every `i`, concatenated.

    Args:
        starts: `[n]` int64, the first value of each range.
        lengths: `[n]` int64, the number of values of each range, from 0.

    Returns:
        `[sum(lengths)]` int64.
    """
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Returns where parts that follow one another begin, and the last ends.

    Args:
        lengths: `[n]` integer, from 0.

    Returns:
        `[n + 1]` int64, beginning with 0.
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
