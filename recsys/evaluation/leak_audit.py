"""An audit that proves from the data that a split does not leak."""

from __future__ import annotations

import dataclasses
from collections.abc import Set

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import CLOCK_FEATURES, OUTCOMES
from recsys.data.sequences import Sequences, concatenated_ranges, offsets_of
from recsys.data.side_information import SideEncoder, history_side
from recsys.data.splits import Queries, Split
from recsys.evaluation.results import query_ids

# Queries whose features are checked, and the newest events of each.
_MOST_QUERIES = 1_000
_MOST_EVENTS = 64
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


def audit(split: Split, side: SideEncoder | None = None) -> AuditReport:
    """Checks that no query can see its targets.

    For both validation and test, histories and targets must lie within the
    sequence of the query's own user, in chronological order, and the training
    set must not have anything of that user from the first target on. Test
    targets must not occur in validation queries. Some protocols claim more:

    - `held_out_users`: the training set has nothing of the user at all.
    - `temporal`: no user's training interactions are at or after the time of
      the earliest query, nor validation targets at or after that of test.
    - `held_out_items`: no user's training interactions are with test targets.

    Where there are dislikes, the training set must have none of a user's from
    the first target on; where some kinds of events are history only, none of
    them may be a target.

    A split with another name is checked like `leave_last_out`.

    With features, the input for up to 1,000 queries must stay the same when
    everything from the target on changes: its rating and its kind of event, and
    its columns and its time where they are not context. Features of histories
    and users may read nothing from there on.

    The audit does not rely on how the split was made: it compares training
    interactions with the sequences of the queries by user, item and time. Of
    shards, it reads the users of the queries.

    Args:
        split: The split.
        side: Encodes the features of events, requests and users.

    Returns:
        The findings; call `AuditReport.raise_for_leaks` to raise an error.
    """
    train = split.train.of_users(split.validation.sequences.user_ids)
    parts = {"validation": split.validation}
    if split.test is not None:
        parts["test"] = split.test
    parts = {name: part for name, part in parts.items() if len(part)}
    checks = [_position_check(*part) for part in parts.items()]
    # Positions outside of the sequences could not be looked up.
    if not any(check.num_violations for check in checks):
        for name, queries in parts.items():
            checks += _training_checks(split.protocol, name, queries, train)
            if side is not None:
                checks += _feature_checks(name, queries, side)
        if len(parts) == 2:
            checks += _overlap_checks(split.protocol, **parts)
    return AuditReport(split.protocol, tuple(checks))


def _check(
    claim: str, violates: np.ndarray, names: np.ndarray, unit: str = "queries"
) -> Check:
    """Makes a check from `[n]` bool violations of things with `[n]` names."""
    rows = np.flatnonzero(violates)
    example = repr(names[rows[0]]) if len(rows) else ""
    return Check(claim, len(violates), unit, len(rows), example)


def _position_check(part: str, queries: Queries) -> Check:
    """Checks that no history or target is outside of the user's sequence."""
    offsets = queries.sequences.offsets
    inside = (
        (queries.history_starts >= offsets[queries.users])
        & (queries.history_ends >= queries.history_starts)
        & (queries.target_ends > queries.history_ends)
        & (queries.target_ends <= offsets[queries.users + 1])
    )
    return _check(
        f"{part}: history and targets belong to the query's own user",
        ~inside,
        query_ids(queries),
    )


def _training_checks(
    protocol: str, part: str, queries: Queries, train: Sequences
) -> list[Check]:
    """Checks what the histories of a part and the training set contain."""
    ids = query_ids(queries)
    times = queries.sequences.timestamps
    # num_falls[p] counts the positions up to p at which time goes back.
    num_falls = np.append(0, np.cumsum(times[1:] < times[:-1]))
    first, last = queries.history_starts, queries.target_ends - 1
    checks = [
        _check(
            f"{part}: histories are in order of time, targets last",
            num_falls[last] != num_falls[first],
            ids,
        )
    ]
    if protocol == "held_out_users":
        rows = _rows_of(_user_ids(queries), train.user_ids)
        seen = (rows >= 0) & (np.append(train.lengths, 0)[rows] > 0)
        claim = f"{part}: no user of a query is in training"
        checks.append(_check(claim, seen, ids))
    else:
        claim = f"{part}: training has nothing of a user from the first target"
        late = _late_training(queries, train)
        checks.append(_check(f"{claim} on", *late, "training interactions"))
    if train.dislikes is not None:
        claim = (
            f"{part}: training has no dislike of a user from the first target"
        )
        late = _late_dislikes(queries, train.dislikes)
        checks.append(_check(f"{claim} on", *late, "dislikes"))
    if queries.sequences.kinds is not None:
        targets = offsets_of(~queries.sequences.are_targets)
        wrong = targets[queries.target_ends] > targets[queries.history_ends]
        claim = f"{part}: no target is an event that is history only"
        checks.append(_check(claim, wrong, ids))
    if protocol == "temporal":
        earliest = times[queries.history_ends].min()
        checks.append(
            _check(
                f"{part}: all training is strictly before the earliest query, "
                f"at time {earliest}",
                train.timestamps >= earliest,
                np.repeat(train.user_ids, train.lengths),
                "training interactions",
            )
        )
    if protocol == "held_out_items" and part == "test":
        targets, offsets = queries.targets(np.arange(len(queries)))
        seen = np.append(0, np.cumsum(np.isin(targets, train.items)))
        checks.append(
            _check(
                f"{part}: no user's interactions with the targets are in "
                "training",
                seen[offsets[1:]] > seen[offsets[:-1]],
                ids,
            )
        )
    return checks


def _feature_checks(
    part: str, queries: Queries, side: SideEncoder
) -> list[Check]:
    """Checks that features of a query do not reveal its target."""
    # One of a user: what follows it is the history of no other.
    _, first = np.unique(queries.users, return_index=True)
    step = -(-len(first) // _MOST_QUERIES)
    queries = queries.select(first[::step])
    sequences = queries.sequences
    names = {"time", *sequences.columns}
    context = {*side.column_names("context")}
    hidden = names & {*OUTCOMES} | names - context
    if context & {*CLOCK_FEATURES}:
        hidden -= {"time"}
    before = _entries(side, sequences, queries)
    checks = []
    for claim, changed, read in (
        (
            f"{part}: features do not reveal the target's "
            f"{', '.join(sorted(hidden)) or 'row'}",
            hidden,
            before.keys(),
        ),
        (
            f"{part}: features of histories and users reveal nothing from the "
            "target on",
            names,
            [n for n in before if n.startswith(("history", "user"))],
        ),
    ):
        after = _entries(side, _altered(queries, changed), queries)
        violates = np.zeros(len(queries), bool)
        for name in read:
            differs = before[name] != after[name]
            violates |= differs.reshape(len(differs), -1).any(axis=1)
        checks.append(_check(claim, violates, query_ids(queries)))
    return checks


def _altered(queries: Queries, names: Set[str]) -> Sequences:
    """Returns sequences with other values from each first target on."""
    sequences = queries.sequences
    ends = sequences.offsets[queries.users + 1]
    rows = concatenated_ranges(
        queries.history_ends, ends - queries.history_ends
    )
    columns = dict(sequences.columns)
    for name in names & columns.keys():
        codes = columns[name] = columns[name].copy()
        levels = sequences.levels.get(name)
        num = codes.max(initial=-1) + 1 if levels is None else len(levels)
        codes[rows] = np.where(codes[rows] + 1 < num, codes[rows] + 1, -1)
    times = sequences.timestamps.copy()
    if "time" in names:
        # Another hour, weekday and month.
        seconds = 40 * 86_400 + 7 * 3600 + 11
        times[rows] += seconds * max(1, sequences.timestamps_per_second)
    return dataclasses.replace(sequences, columns=columns, timestamps=times)


def _entries(
    side: SideEncoder, sequences: Sequences, queries: Queries
) -> dict[str, np.ndarray]:
    """Returns what a model reads besides items, of the newest events."""
    starts, ends = queries.history_starts, queries.history_ends
    known = history_side(
        side, sequences, starts, ends, queries.users, are_followed=True
    )
    offsets = offsets_of(ends - starts)
    length = min(_MOST_EVENTS, int((ends - starts).max()))
    positions = offsets[1:, np.newaxis] + np.arange(-length, 0)
    positions[positions < offsets[:-1, np.newaxis]] = -1
    return known.batch(np.arange(len(queries)), positions, offsets[1:])


def _overlap_checks(
    protocol: str, validation: Queries, test: Queries
) -> list[Check]:
    """Checks what validation and test have in common."""
    sequences = validation.sequences
    user_ids = _user_ids(validation)
    rows = _rows_of(user_ids, test.sequences.user_ids)
    used = validation.target_ends - sequences.offsets[validation.users]
    claims = {
        "validation does not use what test asks for": (
            (rows >= 0) & (used > _first_targets(test)[rows])
        )
    }
    if protocol == "held_out_users":
        claims["validation and test have no user in common"] = (
            _rows_of(user_ids, _user_ids(test)) >= 0
        )
    if protocol == "temporal":
        earliest = test.sequences.timestamps[test.history_ends].min()
        last = sequences.timestamps[validation.target_ends - 1]
        claims[
            "validation is strictly before the earliest test query, at time "
            f"{earliest}"
        ] = last >= earliest
    ids = query_ids(validation)
    return [_check(claim, violates, ids) for claim, violates in claims.items()]


def _late_training(
    queries: Queries, train: Sequences
) -> tuple[np.ndarray, np.ndarray]:
    """Marks training interactions not before a user's targets; and users."""
    source = queries.sequences
    first_targets = _first_targets(queries)
    source_rows = _rows_of(train.user_ids, source.user_ids)
    has_query = (source_rows >= 0) & (first_targets[source_rows] != _NO_TARGET)
    users = np.repeat(np.arange(train.num_users), train.lengths)
    mine = np.flatnonzero(has_query[users])
    users = users[mine]
    rows = source_rows[users]
    place = mine - train.offsets[users]
    same = place < first_targets[rows]
    at = (source.offsets[rows] + place)[same]
    same[same] = (train.items[mine[same]] == source.items[at]) & (
        train.timestamps[mine[same]] == source.timestamps[at]
    )
    is_odd = np.zeros(train.num_users, bool)
    is_odd[users[~same]] = True
    odd = is_odd[users]
    late = np.zeros(len(mine), bool)
    if odd.any():
        late[odd] = _unaccounted(
            source, first_targets, train, mine[odd], rows[odd]
        )
    return late, train.user_ids[users]


def _late_dislikes(
    queries: Queries, dislikes: Sequences
) -> tuple[np.ndarray, np.ndarray]:
    """Marks dislikes not before the time of the first target; and users."""
    source = queries.sequences
    first = np.full(source.num_users + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, queries.users, source.timestamps[queries.history_ends])
    rows = _rows_of(dislikes.user_ids, source.user_ids)  # -1 is the last entry.
    users = np.repeat(np.arange(dislikes.num_users), dislikes.lengths)
    late = dislikes.timestamps >= first[rows[users]]
    return late, dislikes.user_ids[users]


def _unaccounted(
    source: Sequences,
    first_targets: np.ndarray,
    train: Sequences,
    positions: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:
    """`[n]` bool: training interactions not before the first target."""
    users = np.repeat(np.arange(source.num_users), source.lengths)
    place = np.arange(len(users)) - source.offsets[users]
    allowed = np.flatnonzero(
        np.isin(users, rows) & (place < first_targets[users])
    )
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
    num_allowed = np.bincount(group, ~from_train)
    # The sort is stable, so the allowed ones come first in each group.
    place = np.arange(len(order)) - np.flatnonzero(is_new)[group]
    marked = np.empty(len(order), bool)
    marked[order] = from_train & (place >= 2 * num_allowed[group])
    return marked[len(allowed) :]


def _user_ids(queries: Queries) -> np.ndarray:
    """Returns the user of each query, `[num_queries]` object array of str."""
    return queries.sequences.user_ids[queries.users]


def _first_targets(queries: Queries) -> np.ndarray:
    """`[num_users]` places of first targets, or `_NO_TARGET`."""
    first = np.full(queries.sequences.num_users, _NO_TARGET)
    begins = queries.sequences.offsets[queries.users]
    np.minimum.at(first, queries.users, queries.history_ends - begins)
    return first


def _rows_of(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Returns the `[n]` int64 rows of ids among others, or -1."""
    found = pc.index_in(
        pa.array(ids, pa.string()), value_set=pa.array(among, pa.string())
    )
    return found.fill_null(-1).to_numpy().astype(np.int64)
