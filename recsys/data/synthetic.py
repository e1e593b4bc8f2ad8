"""Synthetic logs of any size from a known distribution.

Item i belongs to cluster `i % 64` and has rank `i // 64` there: the lower the
rank, the more popular. A user's next item is drawn

- with probability 0.3 from the four successors of the previous item,
  `(a · item + b_j) mod items`, which are the same for all users;
- otherwise from a cluster that the user likes: tastes are a softmax over dot
  products of 8 latent factors, and drift from one draw of the factors to
  another over the time of the log;
- within the cluster by Zipf's law over the ranks, or (one time in five) over
  ranks counted from a position that moves through the cluster: trends.

The probability of every next item is therefore known (see `probabilities`), and
with it how much of it a model recovers. Users are drawn in chunks, each from a
seed of its own, in memory independent of the length of the log.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterator

import numpy as np

from recsys.data.interactions import Interactions, number_by_appearance
from recsys.data.vocabulary import mixed
from recsys.errors import InputError

PREFIX = "synthetic:"
_USAGE = "'synthetic:users=1000,items=500,interactions=50000,seed=0'"

_NUM_CLUSTERS = 64
_NUM_FACTORS = 8
_NUM_SUCCESSORS = 4
_FOLLOWS = 0.3
_TRENDS = 0.2
# Zipf–Mandelbrot: the probability of rank r is about 1 / (r + 10).
_ZIPF_SHIFT = 10.0
# Trends move through a quarter of each cluster.
_TREND_SPAN = 0.25
_TASTE_SCALE = 1.0
_FIRST_TIME = 1_577_836_800  # 2020-01-01, in seconds.
_DURATION = 3 * 365 * 86_400
_CHUNK_INTERACTIONS = 2**20
_MAX_CHUNK_USERS = 2**16


def is_synthetic(data: str) -> bool:
    """Whether `data` names a synthetic log."""
    return data.startswith(PREFIX)


def parse(data: str) -> SyntheticLog:
    """Parses `synthetic:users=…,items=…,interactions=…,seed=…`.

    Raises:
        InputError: A part is missing, unknown or out of range.
    """
    numbers = {"seed": 0}
    for part in data.removeprefix(PREFIX).split(","):
        name, _, text = part.partition("=")
        try:
            numbers[name.strip()] = int(text)
        except ValueError as error:
            raise InputError(
                f"`data` must be like {_USAGE}. Received: {part!r} in {data!r}"
            ) from error
    names = {field.name for field in dataclasses.fields(SyntheticLog)}
    if numbers.keys() != names:
        raise InputError(f"`data` must be like {_USAGE}. Received: {data!r}")
    return SyntheticLog(**numbers)


@dataclasses.dataclass(frozen=True)
class SyntheticLog:
    """A synthetic log and its distribution.

    Attributes:
        users: Number of users; user u has the raw id "u".
        items: Number of items; item i has the raw id "i".
        interactions: Number of interactions, including repeated pairs; at
            least two per user.
        seed: The same numbers and seed give the same log.

    Raises:
        InputError: A number is out of range.
    """

    users: int
    items: int
    interactions: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("users", 1, 2**31 - 1),
            ("items", _NUM_CLUSTERS, 2**31 - 3),
            ("interactions", 2 * self.users, 2**40),
            ("seed", 0, 2**32 - 1),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(
                    f"`{name}` of a synthetic log must be from {least} to "
                    f"{most}. Received: {value}"
                )

    @property
    def num_chunks(self) -> int:
        """Number of chunks of users."""
        return -(-self.users // self._chunk_users)

    def chunks(self) -> Iterator[Interactions]:
        """Yields the log chunk by chunk."""
        for number in range(self.num_chunks):
            yield self.chunk(number)

    def chunk(self, number: int) -> Interactions:
        """Draws the interactions of one chunk of users.

        Args:
            number: The chunk, below `num_chunks`.

        Returns:
            All interactions of these users, each user's oldest first.
        """
        first, lengths, items, timestamps = self._draw(number)
        found, codes = np.unique(items, return_inverse=True)
        return _assemble(first, lengths, found, codes, timestamps)

    def interactions_in_memory(self) -> Interactions:
        """Draws the whole log."""
        chunks = [self._draw(number) for number in range(self.num_chunks)]
        lengths, items, timestamps = (
            np.concatenate([chunk[part] for chunk in chunks])
            for part in (1, 2, 3)
        )
        # Like `np.unique`, but without sorting all interactions.
        found = np.flatnonzero(np.bincount(items, minlength=self.items))
        numbers = np.zeros(self.items, np.int32)
        numbers[found] = np.arange(len(found))
        return _assemble(0, lengths, found, numbers[items], timestamps)

    def probabilities(
        self, users: np.ndarray, previous: np.ndarray, timestamps: np.ndarray
    ) -> np.ndarray:
        """Returns the true probability of each next item.

        Args:
            users: `[n]` integer, the users, as the numbers in their raw ids.
            previous: `[n]` integer, the previous items, likewise; -1 if none.
            timestamps: `[n]` integer, the times of the next items.

        Returns:
            `[n, items]` float64; each row adds up to 1.
        """
        time = (np.asarray(timestamps) - _FIRST_TIME) / _DURATION
        early, late = self._tastes(np.asarray(users))
        taste = (1 - time)[:, None] * early + time[:, None] * late
        item = np.arange(self.items)
        cluster, rank = item % _NUM_CLUSTERS, item // _NUM_CLUSTERS
        size = self._cluster_sizes[cluster]
        shift = self._trend_shift(time[:, None], size)
        in_cluster = (1 - _TRENDS) * _zipf(rank, size) + _TRENDS * _zipf(
            (rank - shift) % size, size
        )
        result = taste[:, cluster] * in_cluster
        known = np.flatnonzero(np.asarray(previous) >= 0)
        result[known] *= 1 - _FOLLOWS
        for j in range(_NUM_SUCCESSORS):
            follower = self._successors(np.asarray(previous)[known], j)
            np.add.at(result, (known, follower), _FOLLOWS / _NUM_SUCCESSORS)
        return result

    @property
    def _chunk_users(self) -> int:
        users = _CHUNK_INTERACTIONS * self.users // self.interactions
        return min(max(1, users), _MAX_CHUNK_USERS)

    @property
    def _cluster_sizes(self) -> np.ndarray:
        return (
            self.items - np.arange(_NUM_CLUSTERS) + _NUM_CLUSTERS - 1
        ) // _NUM_CLUSTERS

    def _draw(
        self, number: int
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Draws a chunk: its first user, lengths, items and timestamps."""
        rng = np.random.default_rng([self.seed, 1, number])
        first = number * self._chunk_users
        end = min(first + self._chunk_users, self.users)
        lengths = self._lengths(first, end, rng)
        users = np.repeat(np.arange(end - first), lengths)
        # Sorts the times of each user: the integer part is the user.
        time = np.sort(users + rng.random(len(users))) - users
        time = np.clip(time, 0, np.nextafter(1, 0))
        tastes = np.stack(self._tastes(np.arange(first, end)), axis=1)
        is_late = rng.random(len(users)) < time
        cluster = _draw_columns(
            tastes.reshape(-1, _NUM_CLUSTERS), 2 * users + is_late, rng
        )
        size = self._cluster_sizes[cluster]
        rank = _draw_zipf(size, rng)
        trends = rng.random(len(users)) < _TRENDS
        shift = self._trend_shift(time[trends], size[trends])
        rank[trends] = (rank[trends] + shift) % size[trends]
        items = rank * _NUM_CLUSTERS + cluster
        follows = rng.random(len(users)) < _FOLLOWS
        follows[np.append(0, np.cumsum(lengths)[:-1])] = False
        which = rng.integers(_NUM_SUCCESSORS, size=len(users))
        self._follow(items, follows, which)
        timestamps = _FIRST_TIME + (time * _DURATION).astype(np.int64)
        return first, lengths, items, timestamps

    def _lengths(
        self, first: int, end: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws log-normal lengths that add up to the share of the chunk."""
        num_users = end - first
        total = (
            self.interactions * end // self.users
            - self.interactions * first // self.users
        )
        least = min(3, total // num_users)
        weights = rng.lognormal(sigma=1.0, size=num_users)
        ends = np.cumsum(weights) / weights.sum()
        ends = np.rint(ends * (total - least * num_users)).astype(np.int64)
        return least + np.diff(ends, prepend=0)

    def _tastes(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns early and late `[n, 64]` probabilities of clusters."""
        clusters = np.random.default_rng([self.seed, 2]).standard_normal(
            (_NUM_FACTORS, _NUM_CLUSTERS)
        )
        factors = _normal(users, 2 * _NUM_FACTORS, self.seed)
        logits = _TASTE_SCALE * (
            factors.reshape(-1, 2, _NUM_FACTORS) @ clusters
        )
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return weights[:, 0], weights[:, 1]

    def _trend_shift(self, time: np.ndarray, size: np.ndarray) -> np.ndarray:
        return (time * _TREND_SPAN * size).astype(np.int64)

    def _successors(
        self, items: np.ndarray, which: np.ndarray | int
    ) -> np.ndarray:
        """Returns successors of items, a permutation for each of `which`."""
        factor = int(self.items * 0.618) | 1
        while math.gcd(factor, self.items) > 1:
            factor += 2
        begins = np.random.default_rng([self.seed, 3]).integers(
            self.items, size=_NUM_SUCCESSORS
        )
        items = np.asarray(items, np.int64)
        return (factor * items + begins[which]) % self.items

    def _follow(
        self, items: np.ndarray, follows: np.ndarray, which: np.ndarray
    ) -> None:
        """Replaces items that follow the item before by its successors."""
        # Walks all chains at once, each from its start.
        places = np.flatnonzero(follows & ~np.append(False, follows[:-1]))
        while len(places):
            items[places] = self._successors(items[places - 1], which[places])
            places = places[places + 1 < len(items)] + 1
            places = places[follows[places]]


def _normal(rows: np.ndarray, columns: int, seed: int) -> np.ndarray:
    """`[n, columns]` normal numbers that depend on (seed, row, column)."""
    key = np.uint64(zlib.crc32(f"tastes {seed}".encode()))
    first = rows[:, None].astype(np.uint64) * np.uint64(2 * columns)
    place = np.arange(2 * columns, dtype=np.uint64)
    bits = mixed(mixed(first + place + (key << np.uint64(32))))
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2 * np.log1p(-uniform[:, :columns]))
    return radius * np.cos(2 * np.pi * uniform[:, columns:])


def _draw_columns(
    weights: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws a column for each of `rows`, given `[n, columns]` weights."""
    ends = np.cumsum(weights, axis=1)
    ends /= ends[:, -1:]
    # The probabilities of row r divide the interval from r to r + 1.
    ends += np.arange(len(weights))[:, None]
    drawn = rows + rng.random(len(rows))
    columns = np.searchsorted(ends.ravel(), drawn, "right")
    columns -= rows * weights.shape[1]
    return np.minimum(columns, weights.shape[1] - 1)


def _zipf(rank: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Returns the probability of a rank among `size`."""
    return np.log1p(1 / (rank + _ZIPF_SHIFT)) / np.log1p(size / _ZIPF_SHIFT)


def _draw_zipf(size: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws ranks with the probabilities of `_zipf`, by inversion."""
    power = rng.random(len(size)) * np.log1p(size / _ZIPF_SHIFT)
    rank = (_ZIPF_SHIFT * np.expm1(power)).astype(np.int64)
    return np.minimum(rank, size - 1)


def _assemble(
    first_user: int,
    lengths: np.ndarray,
    items: np.ndarray,
    codes: np.ndarray,
    timestamps: np.ndarray,
) -> Interactions:
    """Returns interactions, `codes` being positions in `items`."""
    item_ids, codes = number_by_appearance(_names(items), codes)
    users = np.arange(len(lengths), dtype=np.int32)
    return Interactions(
        user_ids=_names(first_user + users.astype(np.int64)),
        item_ids=item_ids,
        users=np.repeat(users, lengths),
        items=codes,
        timestamps=timestamps,
    )


def _names(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(str).astype(object)
