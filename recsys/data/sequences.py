"""Per-user, time-ordered sequences as flat arrays with offsets."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.columns import is_list
from recsys.data.events import EventKinds
from recsys.data.interactions import EVENT, Interactions
from recsys.data.vocabulary import Vocabulary
from recsys.ids import FIRST_ITEM_INDEX


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
        columns: As in `Sequences`, likewise.
        levels: As in `Sequences`.
        timestamps: As in `Sequences`, likewise; None where not asked for.
        users: As in `Sequences`.
        dislikes: As in `Sequences`; none in place of another process's.
    """

    items: np.ndarray
    offsets: np.ndarray
    shard_ends: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    levels: Mapping[str, pa.Array] = dataclasses.field(default_factory=dict)
    timestamps: np.ndarray | None = None
    users: pa.Table | None = None
    dislikes: Group | None = None


class TrainingSequences(abc.ABC):
    """One time-ordered sequence of items per user, in memory or in files.

    An epoch reads the sequences in groups; those in memory are one group.

    Attributes:
        in_memory: Whether all sequences are in memory.
        kinds: The kinds of events; None where all interactions are alike.
    """

    in_memory: ClassVar[bool]
    kinds: EventKinds | None

    @property
    @abc.abstractmethod
    def has_dislikes(self) -> bool:
        """Whether users may have known negatives."""

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
    def target_weights_by_item(self, vocabulary_size: int) -> np.ndarray:
        """Sums the weights of the interactions with each item that are targets.

        Args:
            vocabulary_size: Number of items, including padding and unknown.

        Returns:
            `[vocabulary_size]`, the item counts where there are no kinds.
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
        columns: `[num_interactions]` int32 arrays, further columns of each
            interaction; "event" is its position in `kinds`, any other column
            that in its `levels`, -1 where it is missing.
        levels: The distinct values of the columns, but "event".
        timestamps_per_second: As in `Interactions`.
        users: `[num_users]` rows of user metadata, null where there is none
            for a user. None without a users file.
        kinds: The kinds of events, if `columns` has them.
        dislikes: The known negatives of the same users. Their column "place",
            int64, is the number of the user's interactions up to their time.
    """

    in_memory = True

    user_ids: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    kinds: EventKinds | None = None
    dislikes: Sequences | None = None
    levels: Mapping[str, pa.Array] = dataclasses.field(default_factory=dict)
    timestamps_per_second: int = 1
    users: pa.Table | None = None

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

    @property
    def has_dislikes(self) -> bool:
        """Whether users may have known negatives."""
        return self.dislikes is not None

    @property
    def event_weights(self) -> np.ndarray | None:
        """`[num_interactions]` float32, or None where there are no kinds."""
        if self.kinds is None:
            return None
        return self.kinds.weights[self.columns["event"]]

    @property
    def target_weights(self) -> np.ndarray | None:
        """As `event_weights`, but 0 where an interaction is history only."""
        if self.kinds is None:
            return None
        return self.kinds.target_weights[self.columns["event"]]

    @property
    def are_targets(self) -> np.ndarray:
        """`[num_interactions]` bool, false for those that are history only."""
        if self.kinds is None:
            return np.ones(len(self.items), bool)
        return self.kinds.are_targets[self.columns["event"]]

    def item_counts(self, vocabulary_size: int) -> np.ndarray:
        """Counts the interactions with each item."""
        return np.bincount(self.items, minlength=vocabulary_size)

    def target_weights_by_item(self, vocabulary_size: int) -> np.ndarray:
        """Sums the weights of each item's targets."""
        return np.bincount(
            self.items, self.target_weights, minlength=vocabulary_size
        )

    def groups(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Returns a single group."""
        return [np.zeros(1, np.int64)]

    def group_lengths(self, group: np.ndarray) -> np.ndarray:
        """Returns the lengths of all sequences."""
        return self.lengths

    def read_group(self, group: np.ndarray, part: Part | None = None) -> Group:
        """Returns all sequences, which every process has."""
        dislikes = None
        if self.dislikes is not None:
            dislikes = self.dislikes.read_group(group)
        return Group(
            self.items,
            self.offsets,
            columns=self.columns,
            levels=self.levels,
            timestamps=self.timestamps,
            users=self.users,
            dislikes=dislikes,
        )

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
        dislikes = self.dislikes
        if dislikes is not None:
            dislikes = dislikes.keep(self._are_early_dislikes(lengths))
        positions = concatenated_ranges(self.offsets[:-1], lengths)
        return self._taken(positions, lengths, dislikes=dislikes)

    def suffixes(self, lengths: np.ndarray) -> Sequences:
        """Returns what `prefixes` leaves out; places of dislikes stay."""
        dislikes = self.dislikes
        if dislikes is not None:
            dislikes = dislikes.keep(~self._are_early_dislikes(lengths))
        rest = self.lengths - lengths
        positions = concatenated_ranges(self.offsets[:-1] + lengths, rest)
        return self._taken(positions, rest, dislikes=dislikes)

    def _are_early_dislikes(self, lengths: np.ndarray) -> np.ndarray:
        """Whether dislikes are before the first interaction left out.

        A user with none of the interactions has none of the dislikes.
        """
        assert self.dislikes is not None
        last = np.repeat(lengths - (lengths == 0), self.dislikes.lengths)
        return self.dislikes.columns["place"] <= last

    def keep(self, is_kept: np.ndarray) -> Sequences:
        """Returns some interactions of the same users.

        Args:
            is_kept: `[num_interactions]` bool.
        """
        before = offsets_of(is_kept)
        offsets = before[self.offsets]
        dislikes = self.dislikes
        if dislikes is not None:
            starts = np.repeat(self.offsets[:-1], dislikes.lengths)
            firsts = np.repeat(offsets[:-1], dislikes.lengths)
            place = before[starts + dislikes.columns["place"]] - firsts
            dislikes = dataclasses.replace(
                dislikes, columns={**dislikes.columns, "place": place}
            )
        return self._taken(
            np.flatnonzero(is_kept), np.diff(offsets), dislikes=dislikes
        )

    def select(self, users: np.ndarray | list[int]) -> Sequences:
        """Returns the sequences of some users.

        Args:
            users: `[n]` integer rows, in the order wanted.
        """
        lengths = self.lengths[users]
        positions = concatenated_ranges(self.offsets[users], lengths)
        return self._taken(
            positions,
            lengths,
            user_ids=self.user_ids[users],
            users=None if self.users is None else self.users.take(users),
            dislikes=self.dislikes and self.dislikes.select(users),
        )

    def _taken(
        self, positions: np.ndarray, lengths: np.ndarray, **fields: Any
    ) -> Sequences:
        """Returns interactions by their positions, with some other fields."""
        return dataclasses.replace(
            self,
            offsets=offsets_of(lengths),
            items=self.items[positions],
            timestamps=self.timestamps[positions],
            columns={k: each[positions] for k, each in self.columns.items()},
            **fields,
        )


def build_sequences(
    interactions: Interactions,
    vocabulary: Vocabulary,
    kinds: EventKinds | None = None,
    dislikes: Interactions | None = None,
    *,
    strict: bool = True,
    with_ratings: bool = False,
    users: pa.Table | None = None,
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
        kinds: The kinds of events, where the log has `event_codes`.
        dislikes: Known negatives; those of other users or items are left out.
        with_ratings: Whether ratings become a column.
        users: The user metadata, with `user_id`, in any order.

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
    columns, levels = _coded_columns(interactions, order, with_ratings)
    if users is not None:
        ids = pa.array(interactions.user_ids, pa.string())
        rows = pc.index_in(ids, value_set=users["user_id"])
        users = users.drop_columns(["user_id"]).take(rows)
    sequences = Sequences(
        user_ids=interactions.user_ids,
        offsets=offsets_of(counts),
        items=indices[interactions.items[order]],
        timestamps=interactions.timestamps[order],
        columns=columns,
        kinds=kinds,
        levels=levels,
        timestamps_per_second=interactions.timestamps_per_second,
        users=users,
    )
    if dislikes is None:
        return sequences
    return dataclasses.replace(
        sequences, dislikes=_dislikes(dislikes, sequences, vocabulary)
    )


def _coded_columns(
    interactions: Interactions, order: np.ndarray, with_ratings: bool
) -> tuple[dict[str, np.ndarray], dict[str, pa.Array]]:
    """Returns columns as codes, in some order, and the distinct values."""
    found: dict[str, pa.Array] = {}
    columns = {}
    if interactions.columns is not None:
        for name in interactions.columns.column_names:
            found[name] = interactions.columns[name].combine_chunks()
    if (codes := interactions.event_codes) is not None:
        columns[EVENT] = codes[order]
    found.pop(EVENT, None)
    if with_ratings and interactions.ratings is not None:
        found["rating"] = pa.array(interactions.ratings, from_pandas=True)
    levels = {}
    for name, values in found.items():
        codes, levels[name] = coded(values)
        columns[name] = codes[order]
    return columns, levels


def coded(values: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Returns each value's position among the distinct ones, and those.

    Args:
        values: Of any type.

    Returns:
        `[n]` int32, -1 for null; the distinct values.
    """
    if pa.types.is_null(values.type):
        # Arrow's dictionary of nothing but null has a null in it.
        return np.full(len(values), -1, np.int32), values[:0]
    if is_list(values.type):
        # Arrow has no dictionaries of lists.
        keys: dict[Any, int] = {}
        rows = [
            -1 if row is None else keys.setdefault(tuple(row), len(keys))
            for row in values.to_pylist()
        ]
        distinct = pa.array([list(key) for key in keys], values.type)
        return np.array(rows, np.int32), distinct
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    codes = pc.fill_null(values.indices, -1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int32), values.dictionary


def _dislikes(
    dislikes: Interactions, sequences: Sequences, vocabulary: Vocabulary
) -> Sequences:
    """Sorts dislikes by the user of some sequences and time."""
    row_of = pc.index_in(
        pa.array(dislikes.user_ids, pa.string()),
        value_set=pa.array(sequences.user_ids, pa.string()),
    )
    users = row_of.fill_null(-1).to_numpy().astype(np.int64)[dislikes.users]
    items = vocabulary.encode(dislikes.item_ids)[dislikes.items]
    known = (users >= 0) & (items >= FIRST_ITEM_INDEX)
    users, items = users[known], items[known]
    times = dislikes.timestamps[known]
    order = _chronological(users, times)
    users, times = users[order], times[order]
    # By bisection within each user's times. At the same time, interactions come
    # first: a dislike must not be taken to precede what a query asks for.
    starts = sequences.offsets[users]
    low, high = starts, sequences.offsets[users + 1]
    while (is_open := low < high).any():
        middle = (low + high) // 2
        is_past = is_open & (
            times < sequences.timestamps.take(middle, mode="clip")
        )
        low, high = (
            np.where(is_open & ~is_past, middle + 1, low),
            np.where(is_past, middle, high),
        )
    return Sequences(
        user_ids=sequences.user_ids,
        offsets=offsets_of(np.bincount(users, minlength=sequences.num_users)),
        items=items[order],
        timestamps=times,
        columns={"place": low - starts},
    )


def _chronological(users: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """Returns the order by user, then time, then position in the file."""
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


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the offsets of consecutive parts, and the end of the last.

    Args:
        lengths: `[n]` integer, non-negative.

    Returns:
        `[n + 1]` int64, starting at 0.
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
