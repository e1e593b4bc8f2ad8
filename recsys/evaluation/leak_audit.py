"""An audit that proves from the data that a split does not leak."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.sequences import Sequences
from recsys.data.shards import ShardedSequences
from recsys.data.splits import Queries, Split
from recsys.evaluation.results import query_ids

_NO_TARGET = np.iinfo(np.int64).max


class LeakError(ValueError):
    """A split reveals what is to be predicted."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A claim about every query or interaction, and its violations.

    Attributes:
        claim: What holds if there is no violation.
        num_checked: Number of queries or interactions that were checked.
        unit: What they are, in the plural.
        num_violations: Number of those for which the claim does not hold.
        example: The query or user of the first violation, or empty.
    """

    claim: str
    num_checked: int
    unit: str
    num_violations: int
    example: str = ""

    def __str__(self) -> str:
        if not self.num_violations:
            return f"ok    {self.claim} ({self.num_checked:,} {self.unit})"
        return (
            f"LEAK  {self.claim}: violated by {self.num_violations:,} of "
            f"{self.num_checked:,} {self.unit}; first: {self.example}"
        )


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """The findings of an audit; `str` formats them for printing.

    Attributes:
        protocol: The name of the split.
        checks: The checks, in the order in which they were made.
    """

    protocol: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check found a violation."""
        return not any(check.num_violations for check in self.checks)

    def raise_for_leaks(self) -> None:
        """Raises LeakError with all findings unless every check passed."""
        if not self.passed:
            raise LeakError(str(self))

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "LEAKS FOUND"
        lines = [f"Leak audit of split {self.protocol}: {verdict}"]
        return "\n  ".join([*lines, *map(str, self.checks)])


def audit(split: Split) -> AuditReport:
    """Checks that no query can see its targets.

    For both validation and test, histories and targets must lie within the
    sequence of the query's own user, in chronological order, and the training
    set must not have anything of that user from the first target on. Test
    targets must not occur in validation queries. Some protocols claim more:

    - `held_out_users`: the training set has nothing of the user at all.
    - `temporal`: no user's training interactions are at or after the time of
      the earliest query, nor validation targets at or after that of test.
    - `held_out_items`: no user's training interactions are with test targets.

    A split with another name is checked like `leave_last_out`.

    The audit does not rely on how the split was made: it compares training
    interactions with the sequences of the queries by user, item and time. Of
    shards, it reads the users of the queries.

    Args:
        split: The split.

    Returns:
        The findings; call `AuditReport.raise_for_leaks` to raise an error.
    """
    train = split.train
    if isinstance(train, ShardedSequences):
        train = train.of_users(split.validation.sequences.user_ids)
    parts = [_Part("validation", split.validation)]
    if split.test is not None:
        parts.append(_Part("test", split.test))
    parts = [part for part in parts if len(part.queries)]
    checks = [part.stays_in_own_sequence() for part in parts]
    # Positions outside of the sequences could not be looked up.
    if not any(check.num_violations for check in checks):
        for part in parts:
            checks += _training_checks(split.protocol, part, train)
        if len(parts) == 2:
            checks += _overlap_checks(split.protocol, *parts)
    return AuditReport(split.protocol, tuple(checks))


def _training_checks(
    protocol: str, part: _Part, train: Sequences
) -> list[Check]:
    """Checks what histories and the training set contain."""
    checks = [part.is_chronological()]
    if protocol == "held_out_users":
        checks.append(part.users_are_unseen(train))
    else:
        checks.append(part.users_train_before_targets(train))
    if protocol == "temporal":
        checks.append(part.all_train_before_queries(train))
    if protocol == "held_out_items" and part.name == "test":
        checks.append(part.items_are_unseen(train))
    return checks


def _overlap_checks(
    protocol: str, validation: _Part, test: _Part
) -> list[Check]:
    """Checks what validation and test have in common."""
    queries = validation.queries
    begins = queries.sequences.offsets[queries.users]
    rows = _rows_of(validation.user_ids, test.queries.sequences.user_ids)
    used = queries.target_ends - begins
    checks = [
        validation.check(
            "validation does not use what test asks for",
            (rows >= 0) & (used > test.first_targets[rows]),
        )
    ]
    if protocol == "held_out_users":
        checks.append(
            validation.check(
                "validation and test have no user in common",
                _rows_of(validation.user_ids, test.user_ids) >= 0,
            )
        )
    if protocol == "temporal":
        last = queries.sequences.timestamps[queries.target_ends - 1]
        checks.append(
            validation.check(
                "validation is strictly before the earliest test query, at "
                f"time {test.earliest}",
                last >= test.earliest,
            )
        )
    return checks


@dataclasses.dataclass(frozen=True)
class _Part:
    """The checks of one part of a split.

    Attributes:
        name: "validation" or "test".
        queries: Its queries.
    """

    name: str
    queries: Queries

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """`[num_queries]` object array of str, the names of the queries."""
        return query_ids(self.queries)

    @functools.cached_property
    def user_ids(self) -> np.ndarray:
        """`[num_queries]` object array of str, the users of the queries."""
        return self.queries.sequences.user_ids[self.queries.users]

    @functools.cached_property
    def first_targets(self) -> np.ndarray:
        """`[num_users]` int64 positions of first targets in the sequences.

        `_NO_TARGET` for users without a query.
        """
        queries = self.queries
        first = np.full(queries.sequences.num_users, _NO_TARGET)
        begins = queries.sequences.offsets[queries.users]
        np.minimum.at(first, queries.users, queries.history_ends - begins)
        return first

    @property
    def earliest(self) -> int:
        """The time of the earliest query."""
        queries = self.queries
        return queries.sequences.timestamps[queries.history_ends].min()

    def check(self, claim: str, violates: np.ndarray) -> Check:
        """Makes a check from the `[num_queries]` bool violations."""
        return _check(claim, violates, self.ids, "queries")

    def stays_in_own_sequence(self) -> Check:
        """Checks the positions of histories and targets."""
        queries = self.queries
        offsets = queries.sequences.offsets
        inside = (
            (queries.history_starts >= offsets[queries.users])
            & (queries.history_ends >= queries.history_starts)
            & (queries.target_ends > queries.history_ends)
            & (queries.target_ends <= offsets[queries.users + 1])
        )
        return self.check(
            f"{self.name}: history and targets belong to the query's own user",
            ~inside,
        )

    def is_chronological(self) -> Check:
        """Checks the order of time from each history to its targets."""
        queries = self.queries
        times = queries.sequences.timestamps
        # num_falls[p] counts the positions up to p at which time goes back.
        num_falls = np.append(0, np.cumsum(times[1:] < times[:-1]))
        return self.check(
            f"{self.name}: histories are in order of time, targets last",
            num_falls[queries.target_ends - 1]
            != num_falls[queries.history_starts],
        )

    def users_are_unseen(self, train: Sequences) -> Check:
        """Checks that the users have no training interaction."""
        rows = _rows_of(self.user_ids, train.user_ids)
        return self.check(
            f"{self.name}: no user of a query is in training",
            (rows >= 0) & (np.append(train.lengths, 0)[rows] > 0),
        )

    def items_are_unseen(self, train: Sequences) -> Check:
        """Checks that the targets have no training interaction."""
        targets, offsets = self.queries.targets(np.arange(len(self.queries)))
        seen = np.append(0, np.cumsum(np.isin(targets, train.items)))
        return self.check(
            f"{self.name}: no user's interactions with the targets are in "
            "training",
            seen[offsets[1:]] > seen[offsets[:-1]],
        )

    def all_train_before_queries(self, train: Sequences) -> Check:
        """Checks the times of all training interactions."""
        return _check(
            f"{self.name}: all training is strictly before the earliest "
            f"query, at time {self.earliest}",
            train.timestamps >= self.earliest,
            np.repeat(train.user_ids, train.lengths),
            "training interactions",
        )

    def users_train_before_targets(self, train: Sequences) -> Check:
        """Checks the training interactions of the users of the queries.

        They must be among those before the user's first target. The fast way
        is to find that they equal the beginning of the user's sequence. For
        other users they are counted by item and time.
        """
        source = self.queries.sequences
        source_rows = _rows_of(train.user_ids, source.user_ids)
        has_query = (source_rows >= 0) & (
            self.first_targets[source_rows] != _NO_TARGET
        )
        users = np.repeat(np.arange(train.num_users), train.lengths)
        mine = np.flatnonzero(has_query[users])
        users = users[mine]
        rows = source_rows[users]
        place = mine - train.offsets[users]
        same = place < self.first_targets[rows]
        at = (source.offsets[rows] + place)[same]
        same[same] = (train.items[mine[same]] == source.items[at]) & (
            train.timestamps[mine[same]] == source.timestamps[at]
        )
        is_odd = np.zeros(train.num_users, bool)
        is_odd[users[~same]] = True
        odd = is_odd[users]
        violates = np.zeros(len(mine), bool)
        if odd.any():
            violates[odd] = self._unaccounted(train, mine[odd], rows[odd])
        return _check(
            f"{self.name}: training has nothing of a user from the first "
            "target on",
            violates,
            train.user_ids[users],
            "training interactions",
        )

    def _unaccounted(
        self, train: Sequences, positions: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        """Marks training interactions that are not among the allowed ones.

        Args:
            train: The training sequences.
            positions: `[n]` int64 positions in `train`.
            rows: `[n]` int64, the users of these in the queries' sequences.

        Returns:
            `[n]` bool; of k equal interactions of which j are allowed, k - j
            are marked.
        """
        source = self.queries.sequences
        users = np.repeat(np.arange(source.num_users), source.lengths)
        place = np.arange(len(users)) - source.offsets[users]
        allowed = np.flatnonzero(
            np.isin(users, rows) & (place < self.first_targets[users])
        )
        keys = np.stack(
            [
                np.append(users[allowed], rows),
                np.append(source.items[allowed], train.items[positions]),
                np.append(
                    source.timestamps[allowed], train.timestamps[positions]
                ),
            ]
        )
        order = np.lexsort(keys)
        keys = keys[:, order]
        is_new = np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0))
        group = np.cumsum(is_new) - 1
        from_train = order >= len(allowed)
        num_allowed = np.bincount(group, ~from_train)
        # The sort is stable, so the allowed ones come first in each group.
        place = np.arange(len(order)) - np.flatnonzero(is_new)[group]
        marked = np.empty(len(order), bool)
        marked[order] = from_train & (place >= 2 * num_allowed[group])
        return marked[len(allowed) :]


def _check(
    claim: str, violates: np.ndarray, names: np.ndarray, unit: str
) -> Check:
    """Makes a check from `[n]` bool violations of things with `[n]` names."""
    rows = np.flatnonzero(violates)
    example = repr(names[rows[0]]) if len(rows) else ""
    return Check(claim, len(violates), unit, len(rows), example)


def _rows_of(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Returns the `[n]` int64 rows of ids among others, or -1."""
    found = pc.index_in(
        pa.array(ids, pa.string()), value_set=pa.array(among, pa.string())
    )
    return found.fill_null(-1).to_numpy().astype(np.int64)
