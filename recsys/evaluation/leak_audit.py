"""Proves from the data that a split holds no leak."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.sequences import Sequences
from recsys.data.shards import ShardedSequences
from recsys.data.splits import Queries, Split
from recsys.evaluation.results import query_ids

_NO_TARGET = np.iinfo(np.int64).max


class LeakError(ValueError):
    """A split lets what is to be predicted into what predicts it."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at, in every query or interaction.

    Attributes:
        claim: What holds when there is no violation.
        num_checked: How many things were looked at.
        unit: What they are, in the plural.
        num_violations: For how many of them the claim does not hold.
        example: The query or user of the first violation; empty when there
            is none.
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
            f"LEAK  {self.claim}: does not hold for {self.num_violations:,} "
            f"of {self.num_checked:,} {self.unit}; first: {self.example}"
        )


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """What an audit looked at and found; `str` of it is for printing.

    Attributes:
        protocol: The name of the split.
        checks: In the order in which they were made.
    """

    protocol: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check found a violation."""
        return not any(check.num_violations for check in self.checks)

    def raise_for_leaks(self) -> None:
        """Raises LeakError with the whole report unless all checks passed."""
        if not self.passed:
            raise LeakError(str(self))

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "LEAKS FOUND"
        lines = [f"Leak audit of split {self.protocol}: {verdict}"]
        return "\n  ".join([*lines, *map(str, self.checks)])


def audit(split: Split) -> AuditReport:
    """Checks that no query can see what it asks for.

    For validation and test each: histories and targets lie in the sequence of
    the query's own user; they are in order of time; and the training set
    holds nothing of the user from the first target on (`held_out_users`:
    nothing of the user at all; `temporal`: besides, of no user anything at or
    after the time of the earliest query; `held_out_items`: besides, nobody's
    interaction with any item that test asks for). Validation queries see and
    ask for nothing that test queries ask for. A split with another name is
    checked as `leave_last_out` is.

    Nothing is taken from how a split was made: training interactions are
    compared with the sequences of the queries by user, item and time. Of
    shards those of the users that are asked are read.

    Args:
        split: Any split.

    Returns:
        The report. It does not raise; see `AuditReport.raise_for_leaks`.
    """
    if isinstance(split.train, ShardedSequences):
        asked = split.validation.sequences.user_ids
        split = dataclasses.replace(split, train=split.train.of_users(asked))
    parts = {
        name: queries
        for name, queries in (
            ("validation", split.validation),
            ("test", split.test),
        )
        if queries is not None and len(queries)
    }
    checks = [_own_sequence(*part) for part in parts.items()]
    # Positions outside of the sequences could not be looked up.
    if not any(check.num_violations for check in checks):
        for name, queries in parts.items():
            checks += _training_checks(name, queries, split)
        if len(parts) == 2:
            checks += _overlap_checks(split.protocol, **parts)
    return AuditReport(split.protocol, tuple(checks))


def _training_checks(part: str, queries: Queries, split: Split) -> list[Check]:
    """What the histories and the training set may hold."""
    assert isinstance(split.train, Sequences)  # See `audit`.
    checks = [_history_is_older(part, queries)]
    if split.protocol == "held_out_users":
        checks.append(_users_are_unseen(part, queries, split.train))
    else:
        checks.append(_training_is_older(part, queries, split.train))
    if split.protocol == "temporal":
        checks.append(_all_training_is_older(part, queries, split.train))
    if split.protocol == "held_out_items" and part == "test":
        checks.append(_items_are_unseen(part, queries, split.train))
    return checks


def _overlap_checks(
    protocol: str, validation: Queries, test: Queries
) -> list[Check]:
    """What validation and test may have in common."""
    checks = [_parts_are_apart(validation, test)]
    if protocol == "held_out_users":
        checks.append(_users_differ(validation, test))
    if protocol == "temporal":
        checks.append(_test_is_later(validation, test))
    return checks


def _check(
    claim: str, violates: np.ndarray, names: np.ndarray, unit: str = "queries"
) -> Check:
    """Makes a check from `[n]` bool violations of things with `[n]` names."""
    rows = np.flatnonzero(violates)
    example = repr(names[rows[0]]) if len(rows) else ""
    return Check(claim, len(violates), unit, len(rows), example)


def _own_sequence(part: str, queries: Queries) -> Check:
    offsets = queries.sequences.offsets
    users = queries.users
    inside = (
        (queries.history_starts >= offsets[users])
        & (queries.history_ends >= queries.history_starts)
        & (queries.target_ends > queries.history_ends)
        & (queries.target_ends <= offsets[users + 1])
    )
    return _check(
        f"{part}: history and targets are of the query's own user",
        ~inside,
        query_ids(queries),
    )


def _history_is_older(part: str, queries: Queries) -> Check:
    times = queries.sequences.timestamps
    # falls[p] counts the places up to p at which time goes back; a slice
    # in which it never does is in order, its targets last.
    falls = np.zeros(len(times) + 1, np.int64)
    np.cumsum(times[1:] < times[:-1], out=falls[1 : len(times)])
    falls[len(times)] = falls[len(times) - 1]
    first = np.clip(queries.history_starts, 0, len(times))
    last = np.clip(queries.target_ends - 1, 0, len(times))
    return _check(
        f"{part}: histories are in order of time, targets last",
        falls[last] != falls[first],
        query_ids(queries),
    )


def _training_is_older(part: str, queries: Queries, train: Sequences) -> Check:
    """Compares each user's training interactions with the sequence.

    They must be among those before the user's first target. That is plain
    where they are the beginning of the sequence, interaction by interaction;
    other users' interactions are counted by item and time.
    """
    source = queries.sequences
    first_target = _first_targets(queries)
    source_rows = _rows_of(train.user_ids, source.user_ids)
    has_query = source_rows >= 0
    has_query[has_query] = first_target[source_rows[has_query]] != _NO_TARGET
    users = np.repeat(np.arange(train.num_users), train.lengths)
    mine = np.flatnonzero(has_query[users])
    users = users[mine]
    rows = source_rows[users]
    place = mine - train.offsets[users]
    same = place < first_target[rows]
    at = (source.offsets[rows] + place)[same]
    same[same] = (train.items[mine[same]] == source.items[at]) & (
        train.timestamps[mine[same]] == source.timestamps[at]
    )
    is_odd = np.zeros(train.num_users, bool)
    is_odd[users[~same]] = True
    violates = np.zeros(len(mine), bool)
    if is_odd.any():
        odd = is_odd[users]
        violates[odd] = _surplus(
            train, mine[odd], rows[odd], source, first_target
        )
    return _check(
        f"{part}: training holds nothing of a user from the first target on",
        violates,
        train.user_ids[users],
        "training interactions",
    )


def _surplus(
    train: Sequences,
    positions: np.ndarray,
    rows: np.ndarray,
    source: Sequences,
    first_target: np.ndarray,
) -> np.ndarray:
    """Marks training interactions that the allowed ones do not account for.

    Args:
        train: The training sequences.
        positions: `[n]` int64 positions in `train`.
        rows: `[n]` int64, the users of these in `source`.
        source: The sequences of the queries.
        first_target: `[num_users of source]` int64 places in each sequence;
            what is before is allowed.

    Returns:
        `[n]` bool; of k equal interactions where j are allowed, k - j are
        marked.
    """
    is_mine = np.zeros(source.num_users, bool)
    is_mine[rows] = True
    users = np.repeat(np.arange(source.num_users), source.lengths)
    allowed = np.flatnonzero(is_mine[users])
    place = allowed - source.offsets[users[allowed]]
    allowed = allowed[place < first_target[users[allowed]]]
    keys = np.stack(
        [
            np.append(users[allowed], rows),
            np.append(source.items[allowed], train.items[positions]),
            np.append(source.timestamps[allowed], train.timestamps[positions]),
        ]
    )
    order = np.lexsort(keys)
    keys = keys[:, order]
    is_new = np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0))
    group = np.cumsum(is_new) - 1
    from_train = order >= len(allowed)
    num_allowed = np.bincount(group[~from_train], minlength=group[-1] + 1)
    # The sort is stable, so within a group the allowed ones come first.
    place = np.arange(len(order)) - np.flatnonzero(is_new)[group]
    marked = np.empty(len(order), bool)
    marked[order] = from_train & (place >= 2 * num_allowed[group])
    return marked[len(allowed) :]


def _items_are_unseen(part: str, queries: Queries, train: Sequences) -> Check:
    targets, offsets = queries.targets(np.arange(len(queries)))
    seen = np.append(0, np.cumsum(np.isin(targets, train.items)))
    return _check(
        f"{part}: nobody's interactions with the targets are trained on",
        seen[offsets[1:]] > seen[offsets[:-1]],
        query_ids(queries),
    )


def _all_training_is_older(
    part: str, queries: Queries, train: Sequences
) -> Check:
    earliest = queries.sequences.timestamps[queries.history_ends].min()
    users = np.repeat(np.arange(train.num_users), train.lengths)
    return _check(
        f"{part}: all training is strictly before the earliest query, at "
        f"time {earliest}",
        train.timestamps >= earliest,
        train.user_ids[users],
        "training interactions",
    )


def _users_are_unseen(part: str, queries: Queries, train: Sequences) -> Check:
    rows = _rows_of(queries.sequences.user_ids[queries.users], train.user_ids)
    seen = rows >= 0
    seen[seen] = train.lengths[rows[seen]] > 0
    return _check(
        f"{part}: no user of a query is in training", seen, query_ids(queries)
    )


def _users_differ(validation: Queries, test: Queries) -> Check:
    rows = _rows_of(
        validation.sequences.user_ids[validation.users],
        test.sequences.user_ids[test.users],
    )
    return _check(
        "validation and test have no user in common",
        rows >= 0,
        query_ids(validation),
    )


def _parts_are_apart(validation: Queries, test: Queries) -> Check:
    """Validation must end, in each sequence, where test begins to ask."""
    begins = validation.sequences.offsets[validation.users]
    rows = _rows_of(
        validation.sequences.user_ids[validation.users],
        test.sequences.user_ids,
    )
    return _check(
        "validation neither sees nor asks for what test asks for",
        (rows >= 0)
        & (validation.target_ends - begins > _first_targets(test)[rows]),
        query_ids(validation),
    )


def _test_is_later(validation: Queries, test: Queries) -> Check:
    earliest = test.sequences.timestamps[test.history_ends].min()
    last = validation.sequences.timestamps[validation.target_ends - 1]
    return _check(
        "validation is strictly before the earliest test query, at time "
        f"{earliest}",
        last >= earliest,
        query_ids(validation),
    )


def _first_targets(queries: Queries) -> np.ndarray:
    """Returns the place of each user's first target in the user's sequence.

    Args:
        queries: Any.

    Returns:
        `[num_users]` int64, `_NO_TARGET` for users without a query.
    """
    first = np.full(queries.sequences.num_users, _NO_TARGET)
    begins = queries.sequences.offsets[queries.users]
    np.minimum.at(first, queries.users, queries.history_ends - begins)
    return first


def _rows_of(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Returns the row of each of `[n]` ids among others, or -1."""
    found = pc.index_in(
        pa.array(ids, pa.string()), value_set=pa.array(among, pa.string())
    )
    return found.fill_null(-1).to_numpy().astype(np.int64)
