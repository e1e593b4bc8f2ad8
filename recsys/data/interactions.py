"""The interactions of a log as columns, and filters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from recsys.config import REPEATS
from recsys.errors import InputError

# The name in `Interactions.columns` of the column of kinds of events.
EVENT = "event"
# Why interactions are dropped, in this order.
DROPPED = ("below min_rating or unrated", "repeated", "rare")


@dataclasses.dataclass(frozen=True)
class Interactions:
    """The columns of a log, in the order of its file.

    Attributes:
        user_ids: `[num_users]` object array of str, the raw user ids in the
            order of their first appearance.
        item_ids: `[num_items]` object array of str, likewise.
        users: `[num_interactions]` int32, positions in `user_ids`.
        items: `[num_interactions]` int32, positions in `item_ids`.
        timestamps: `[num_interactions]` int64.
        ratings: `[num_interactions]` float32, NaN if missing, or None for a
            log without ratings.
        timestamps_per_second: Units of `timestamps` in a second: 1,000,000
            for dates and fractions of a second; 1,000, 1,000,000 or
            1,000,000,000 for whole numbers that are such times since 1970;
            1 for other numbers, whose unit is not converted; 0 for a log
            without times, whose timestamps are the positions of its rows.
        columns: `[num_interactions]` rows: the other columns of the log that
            were asked for, strings dictionary-encoded; None without any. Text
            files give strings, as they are written.
        num_empty: Rows of the files without any item, in a list of them.

    Raises:
        ValueError: The columns differ in length.
    """

    user_ids: np.ndarray
    item_ids: np.ndarray
    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    ratings: np.ndarray | None = None
    timestamps_per_second: int = 1
    columns: pa.Table | None = None
    num_empty: int = 0

    def __post_init__(self) -> None:
        lengths = [len(self.users), len(self.items), len(self.timestamps)]
        if self.ratings is not None:
            lengths.append(len(self.ratings))
        if self.columns is not None:
            lengths.append(len(self.columns))
        if len(set(lengths)) != 1:
            raise ValueError(
                "`users`, `items`, `timestamps`, `ratings` and `columns` must "
                f"have one length. Received lengths: {lengths}"
            )

    def __len__(self) -> int:
        return len(self.users)

    @property
    def event_codes(self) -> np.ndarray | None:
        """`[num_interactions]` int32, if rows have codes of kinds of events."""
        if self.columns is None or EVENT not in self.columns.column_names:
            return None
        codes = self.columns[EVENT]
        return codes.to_numpy() if codes.type == pa.int32() else None

    def rows_rated(self, min_rating: float | None) -> np.ndarray:
        """Returns the rows with at least some rating, ascending, int64.

        Args:
            min_rating: The lowest rating to keep; a missing rating is not
                kept. None keeps all rows.

        Raises:
            InputError: `min_rating` is given and the log has no ratings.
        """
        if min_rating is None:
            return np.arange(len(self))
        if self.ratings is None:
            raise InputError(
                "`min_rating` needs a log with a rating column, and this one "
                f"has none. Received: min_rating={min_rating}"
            )
        return np.flatnonzero(self.ratings >= min_rating)


def filter_interactions(
    interactions: Interactions,
    *,
    min_rating: float | None = None,
    min_item_count: int = 1,
    min_user_count: int = 1,
    repeats: str = "first",
    dropped: dict[str, int] | None = None,
) -> Interactions:
    """Filters interactions without changing their order.

    Low ratings are dropped first, then repeated (user, item) pairs (of one kind
    of event, where rows have `event_codes`), then rare items and users,
    repeatedly until all that are left are frequent enough (the k-core).

    Args:
        interactions: The log.
        min_rating: The lowest rating to keep; a missing rating is not kept.
            Default: keep all.
        min_item_count: The fewest interactions of an item that is kept.
        min_user_count: The fewest interactions of a user who is kept.
        repeats: Which of several interactions of the same user and item to
            keep, in the order of (timestamp, position in the file): "first",
            "last" or "all".
        dropped: Receives how many interactions are dropped, by reason.

    Returns:
        A new log with only the ids in use, in the order of their first
        appearance.

    Raises:
        InputError: An argument is out of range, `min_rating` is given for a
            log without ratings, or no interaction is left.
    """
    for name, count in (
        ("min_item_count", min_item_count),
        ("min_user_count", min_user_count),
    ):
        if count < 1:
            raise InputError(f"`{name}` must be at least 1. Received: {count}")
    if repeats not in REPEATS:
        raise InputError(
            f"`repeats` must be one of {', '.join(REPEATS)}. "
            f"Received: {repeats!r}"
        )
    left = [len(interactions)]
    rows = interactions.rows_rated(min_rating)
    left.append(len(rows))
    if repeats != "all":
        rows = _without_repeats(interactions, rows, last=repeats == "last")
    left.append(len(rows))
    rows = _core(interactions, rows, min_item_count, min_user_count)
    left.append(len(rows))
    if dropped is not None:
        lost = (-np.diff(left)).tolist()
        dropped.update(zip(DROPPED, lost, strict=True))
    if not len(rows):
        raise InputError(
            f"no interaction is left with `min_rating`={min_rating}, "
            f"`min_item_count`={min_item_count} and "
            f"`min_user_count`={min_user_count}. "
            f"Received: {len(interactions)} interactions"
        )
    return take(interactions, rows)


def _without_repeats(
    interactions: Interactions, rows: np.ndarray, last: bool
) -> np.ndarray:
    """Returns one of the rows of each (user, item) pair."""
    pairs = interactions.users[rows].astype(np.int64)
    pairs *= len(interactions.item_ids)
    pairs += interactions.items[rows]
    if (codes := interactions.event_codes) is not None:
        pairs *= int(codes.max(initial=0)) + 1
        pairs += codes[rows]
    in_order = np.sort(pairs)
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    if not len(repeated):
        return rows
    # Most logs repeat few pairs; only their rows need the slow stable sort.
    found = np.searchsorted(repeated, pairs)
    found[found == len(repeated)] = 0
    candidates = np.flatnonzero(repeated[found] == pairs)
    # Stable, to keep the order of the file within a pair.
    candidates = candidates[np.argsort(pairs[candidates], kind="stable")]
    begins = _changes(pairs[candidates], last=False)
    starts = np.flatnonzero(begins)
    group = np.cumsum(begins) - 1
    times = interactions.timestamps[rows[candidates]]
    extreme = (np.maximum if last else np.minimum).reduceat(times, starts)
    ties = np.flatnonzero(times == extreme[group])
    ties = ties[_changes(group[ties], last)]
    kept = np.ones(len(rows), bool)
    kept[candidates] = False
    kept[candidates[ties]] = True
    return rows[kept]


def _changes(values: np.ndarray, last: bool) -> np.ndarray:
    """Whether each value is the first (or last) of a run of equal values."""
    differs = values[1:] != values[:-1]
    return np.append(differs, True) if last else np.insert(differs, 0, True)


def _core(
    interactions: Interactions,
    rows: np.ndarray,
    min_item_count: int,
    min_user_count: int,
) -> np.ndarray:
    """Returns the largest set of rows with only frequent items and users."""
    while True:
        before = len(rows)
        for codes, least in (
            (interactions.items, min_item_count),
            (interactions.users, min_user_count),
        ):
            if least > 1 and len(rows):
                column = codes[rows]
                rows = rows[np.bincount(column)[column] >= least]
        if len(rows) == before:
            return rows


def take(interactions: Interactions, rows: np.ndarray) -> Interactions:
    """Returns some of the rows, `[n]` integers, as a new log."""
    user_ids, users = number_by_appearance(
        interactions.user_ids, interactions.users[rows]
    )
    item_ids, items = number_by_appearance(
        interactions.item_ids, interactions.items[rows]
    )
    ratings, columns = interactions.ratings, interactions.columns
    return dataclasses.replace(
        interactions,
        user_ids=user_ids,
        item_ids=item_ids,
        users=users,
        items=items,
        timestamps=interactions.timestamps[rows],
        ratings=None if ratings is None else ratings[rows],
        columns=None if columns is None else columns.take(pa.array(rows)),
    )


def number_by_appearance(
    ids: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Drops unused ids and numbers the rest by first appearance.

    Args:
        ids: `[num_ids]` object array of str.
        codes: `[num_interactions]` integers, positions in `ids`.

    Returns:
        The ids in use, and int32 codes into them.
    """
    first = np.full(len(ids), len(codes), np.int64)
    # Written in reverse, so that the earliest position is written last.
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    order = np.argsort(first, kind="stable")
    order = order[: np.count_nonzero(first < len(codes))]
    numbers = np.zeros(len(ids), np.int32)
    numbers[order] = np.arange(len(order), dtype=np.int32)
    return ids[order], numbers[codes]
