"""Splits of a log into training sequences, validation and test queries.

Every query is a slice of its user's time-ordered sequence: a history, directly
followed by the relevant items. Queries do not copy the sequences, and a history
never includes an interaction at or after the position of its query.

Where some kinds of events are history only, no such interaction is a target:
"a user's last interaction" then is the last that may be one, and its history
is everything before it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys.config import HELD_OUT_BY_USER
from recsys.data.sequences import (
    Sequences,
    TrainingSequences,
    concatenated_ranges,
    offsets_of,
)
from recsys.errors import InputError


@dataclasses.dataclass(frozen=True)
class Queries:
    """Evaluation queries as slices of sequences.

    Query `q` has the history `items[history_starts[q]:history_ends[q]]` and
    the relevant items `items[history_ends[q]:target_ends[q]]`, where `items`
    are `sequences.items`.

    Attributes:
        sequences: The sequences that the queries are slices of.
        users: `[num_queries]` int64 row of each query's user in `sequences`.
        history_starts: `[num_queries]` int64.
        history_ends: `[num_queries]` int64.
        target_ends: `[num_queries]` int64, greater than `history_ends`.
    """

    sequences: Sequences
    users: np.ndarray
    history_starts: np.ndarray
    history_ends: np.ndarray
    target_ends: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def histories(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the histories of some queries.

        Args:
            rows: `[n]` integer, the numbers of the queries.

        Returns:
            `items`, `[total]` int32, the histories, each oldest first, and
            `offsets`, `[n + 1]` int64, the start of each history.
        """
        return self._slices(self.history_starts[rows], self.history_ends[rows])

    def targets(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the relevant items of some queries, like `histories`."""
        return self._slices(self.history_ends[rows], self.target_ends[rows])

    def select(self, rows: np.ndarray) -> Queries:
        """Returns some of the queries, in the order of `rows`."""
        return Queries(
            sequences=self.sequences,
            users=self.users[rows],
            history_starts=self.history_starts[rows],
            history_ends=self.history_ends[rows],
            target_ends=self.target_ends[rows],
        )

    def _slices(
        self, starts: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        lengths = ends - starts
        positions = concatenated_ranges(starts, lengths)
        return self.sequences.items[positions], offsets_of(lengths)


@dataclasses.dataclass(frozen=True)
class Split:
    """A training set, validation queries and test queries.

    Attributes:
        protocol: The name of the split, which all results state.
        train: The training sequences, in memory or in shards.
        validation: The queries for decisions during training.
        test: The queries for the final evaluation; None if the test set is
            kept elsewhere.
    """

    protocol: str
    train: TrainingSequences
    validation: Queries
    test: Queries | None

    @property
    def reported(self) -> tuple[Queries, str]:
        """The queries to report on, and their name: "test" or "validation".

        Without test queries, these are the validation queries.
        """
        if self.test is None:
            return self.validation, "validation"
        return self.test, "test"


def leave_last_out(sequences: Sequences) -> Split:
    """Holds out each user's last interaction for test, the previous one too.

    The interaction before the last is for validation, and also part of the
    test history. A user with two interactions has only a test query; a user
    with one has no query. Every history therefore has at least one item, and
    the training set has no target.

    The history of one user may end after the targets of another: the protocol
    leaks across users (Meng et al. 2020,
    https://doi.org/10.1145/3383313.3418479); `temporal` does not.

    Args:
        sequences: The whole log.

    Returns:
        The split.

    Raises:
        InputError: No user has three interactions to validate with.
    """
    return Split(
        protocol="leave_last_out",
        train=sequences.prefixes(train_lengths("leave_last_out", sequences)),
        validation=_single_targets(sequences, from_end=2),
        test=_single_targets(sequences, from_end=1),
    )


def validation_only(sequences: Sequences) -> Split:
    """Holds out each user's last interaction for validation.

    For use with a test set that is kept elsewhere.

    Args:
        sequences: The whole log, without the test set.

    Returns:
        The split; `test` is None.

    Raises:
        InputError: No user has two interactions.
    """
    return Split(
        protocol="validation_only",
        train=sequences.prefixes(train_lengths("validation_only", sequences)),
        validation=_single_targets(sequences, from_end=1),
        test=None,
    )


# The splits of `HELD_OUT_BY_USER`.
BY_USER = {
    "leave_last_out": leave_last_out,
    "validation_only": validation_only,
}


def train_lengths(split: str, sequences: Sequences) -> np.ndarray:
    """Returns how many of a user's interactions a split trains on.

    Args:
        split: One of `HELD_OUT_BY_USER`.
        sequences: The whole log.

    Returns:
        `[num_users]` int64: as many as precede the first target that is held
        out, or all.
    """
    lengths = sequences.lengths
    for from_end in range(1, HELD_OUT_BY_USER[split] + 1):
        last = last_targets(sequences, from_end) - sequences.offsets[:-1]
        lengths = np.where(last >= 0, last, lengths)
    return lengths


def last_targets(sequences: Sequences, from_end: int = 1) -> np.ndarray:
    """Returns the position of a late target with a history, or one below 0.

    Args:
        sequences: The whole log.
        from_end: Which of a user's targets, 1 for the last.

    Returns:
        `[num_users]` int64.
    """
    none = np.iinfo(np.int64).min // 2
    # The first interaction has no history.
    if sequences.kinds is None:
        last = sequences.offsets[1:] - from_end
        return np.where(last > sequences.offsets[:-1], last, none)
    can_be_asked = sequences.are_targets.copy()
    can_be_asked[sequences.offsets[:-1][sequences.lengths > 0]] = False
    positions = np.flatnonzero(can_be_asked)
    counts = offsets_of(can_be_asked)[sequences.offsets]
    wanted = counts[1:] - from_end
    found = wanted >= counts[:-1]
    result = np.full(sequences.num_users, none)
    result[found] = positions[wanted[found]]
    return result


def temporal(
    sequences: Sequences,
    validation_from: int,
    test_from: int,
    queries_per_user: int = 0,
) -> Split:
    """Splits at the same two points in time for all users.

    Interactions strictly before the first cutoff are for training, those from
    there to strictly before the second for validation, and all later ones for
    test. Each validation or test interaction is a query with everything that
    its user did before as history; without any history it is not a query.

    Args:
        sequences: The whole log.
        validation_from: The first cutoff, a timestamp; see `time_quantile`.
        test_from: The second cutoff.
        queries_per_user: Maximum number of queries per user in validation and
            in test, the earliest ones; 0 for all.

    Returns:
        The split.

    Raises:
        InputError: The cutoffs are not in order, or a part would be empty.
    """
    if validation_from >= test_from:
        raise InputError(
            "`validation_from` must be before `test_from`. Received: the "
            f"times {validation_from} and {test_from}"
        )
    times = sequences.timestamps
    in_train = times < validation_from
    in_test = times >= test_from
    if not in_train.any():
        raise InputError(
            "split `temporal` must find interactions before its cutoff to "
            f"train on. Received: none before time {validation_from}"
        )
    before = np.append(0, np.cumsum(in_train))
    train = sequences.prefixes(np.diff(before[sequences.offsets]))
    if train.dislikes is not None:
        early = train.dislikes.timestamps < validation_from
        train = dataclasses.replace(train, dislikes=train.dislikes.keep(early))
    return Split(
        protocol="temporal",
        train=train,
        validation=_queries_where(
            sequences, ~in_train & ~in_test, queries_per_user
        ),
        test=_queries_where(sequences, in_test, queries_per_user),
    )


def time_quantile(sequences: Sequences, share: float) -> int:
    """Finds a cutoff for `temporal` by a share of the interactions.

    Args:
        sequences: The whole log.
        share: The share of the interactions before the cutoff, from 0 to 1.
            Fewer are before it if several interactions have its time.

    Returns:
        The cutoff, a timestamp.

    Raises:
        InputError: There are no interactions.
    """
    if not sequences.num_interactions:
        raise InputError(
            "split `temporal` must have interactions. Received: none"
        )
    times = np.sort(sequences.timestamps)
    # Rounded first, since floating-point products may fall below integers.
    row = int(round(len(times) * share, 6))
    return int(times[min(len(times) - 1, row)])


def held_out_users(
    sequences: Sequences,
    seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    fold_in: float = 0.8,
) -> Split:
    """Holds out whole users, to evaluate strong generalization.

    As in Liang et al. 2018 (https://doi.org/10.1145/3178876.3186150), users
    for validation and test are drawn at random and unseen in training. The
    first part of a held-out user's sequence is the history, the rest, up to
    the first item that comes again, is relevant. The paper takes a random 80 %
    as the history; this split takes the first 80 %, so that no history has a
    later interaction.

    Args:
        sequences: The whole log.
        seed: Draws the users.
        validation_fraction: The share of the users for validation.
        test_fraction: The share of the users for test.
        fold_in: The share of a held-out user's interactions in the history,
            rounded down, but at least one and at most all but one.

    Returns:
        The split.

    Raises:
        InputError: A fraction is out of range, or a part would be empty.
    """
    if not (validation_fraction > 0 and test_fraction > 0 and 0 < fold_in < 1):
        raise InputError(
            "`validation_fraction` and `test_fraction` must be positive and "
            f"`fold_in` between 0 and 1. Received: {validation_fraction}, "
            f"{test_fraction} and {fold_in}"
        )
    usable = np.flatnonzero(last_targets(sequences) >= 0)
    num_validation = max(1, round(len(usable) * validation_fraction))
    num_test = max(1, round(len(usable) * test_fraction))
    if len(usable) < num_validation + num_test + 1:
        raise InputError(
            "split `held_out_users` must find users with two or more "
            "interactions for each of its three parts. Received: "
            f"{len(usable)} such users"
        )
    drawn = np.random.default_rng(seed).permutation(usable)
    test = np.sort(drawn[:num_test])
    validation = np.sort(drawn[num_test : num_test + num_validation])
    train_lengths = sequences.lengths.copy()
    train_lengths[test] = 0
    train_lengths[validation] = 0
    return Split(
        protocol="held_out_users",
        train=sequences.prefixes(train_lengths),
        validation=_fold_in(sequences, validation, fold_in),
        test=_fold_in(sequences, test, fold_in),
    )


def held_out_items(
    sequences: Sequences, seed: int = 0, fraction: float = 0.2
) -> Split:
    """Holds out whole items, to evaluate cold start.

    Items are drawn at random, and all interactions with them are left out of
    the training set. A user's last interaction with a held-out item is a test
    query, the last one before it with any other item a validation query, and
    earlier ones with other items are for training. Users without held-out
    items validate with their last interaction. Histories have no held-out
    items, which a model of ids cannot know.

    Args:
        sequences: The whole log.
        seed: Draws the items.
        fraction: The share of the items to hold out.

    Returns:
        The split.

    Raises:
        InputError: The fraction is out of range, or a part would be empty.
    """
    if not 0 < fraction < 1:
        raise InputError(
            f"`fraction` must be between 0 and 1. Received: {fraction}"
        )
    items = np.unique(sequences.items)
    drawn = np.random.default_rng(seed).permutation(items)
    is_cold = np.isin(sequences.items, drawn[: round(len(items) * fraction)])
    users = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    places = np.arange(len(users))
    test = np.full(sequences.num_users, -1)
    asked = is_cold & sequences.are_targets
    # Repeated indices keep the last assignment.
    test[users[asked]] = places[asked]
    is_tested = test >= 0
    ends = np.where(is_tested, test, sequences.offsets[1:])
    is_warm = ~is_cold & (places < ends[users])
    num_warm = np.bincount(users[is_warm], minlength=sequences.num_users)
    if sequences.dislikes is not None:
        warm = ~np.isin(sequences.dislikes.items, sequences.items[is_cold])
        sequences = dataclasses.replace(
            sequences, dislikes=sequences.dislikes.keep(warm)
        )
    kept = sequences.keep(is_warm | (places == test[users]))
    warm_only = kept.prefixes(num_warm)
    validation = last_targets(warm_only) - warm_only.offsets[:-1]
    can_validate = validation >= 0
    # A single interaction has nothing to learn.
    num_train = np.where(num_warm > 1, num_warm, 0)
    num_train[can_validate] = validation[can_validate]
    return Split(
        protocol="held_out_items",
        train=kept.prefixes(num_train),
        validation=_queries_after(kept, validation, can_validate),
        test=_queries_after(kept, num_warm, is_tested & (num_warm >= 1)),
    )


def _queries_after(
    sequences: Sequences, lengths: np.ndarray, which: np.ndarray
) -> Queries:
    """One query per chosen user: the item after a history of some length."""
    users = np.flatnonzero(which)
    if not len(users):
        raise InputError(
            "split `held_out_items` must find users with items that are held "
            "out and items that are not. Received: none"
        )
    return _queries(sequences, users, sequences.offsets[users] + lengths[users])


def _single_targets(sequences: Sequences, from_end: int) -> Queries:
    """One query per user with as many targets: the one so far from the end."""
    positions = last_targets(sequences, from_end)
    users = np.flatnonzero(positions >= 0)
    if not len(users):
        least, most = f"{from_end + 1}", int(sequences.lengths.max(initial=0))
        if sequences.kinds is not None:
            least = f"{from_end} targets with a history"
            most = from_end - 1
            while most and (last_targets(sequences, most) < 0).all():
                most -= 1
        raise InputError(
            "no user has enough interactions: a user must have at least "
            f"{least}. Received: at most {most}"
        )
    return _queries(sequences, users, positions[users])


def _queries_where(
    sequences: Sequences, is_target: np.ndarray, max_per_user: int
) -> Queries:
    """One query per marked interaction with a history."""
    starts = np.repeat(sequences.offsets[:-1], sequences.lengths)
    positions = np.flatnonzero(is_target & sequences.are_targets)
    positions = positions[positions > starts[positions]]
    if not len(positions):
        raise InputError(
            "split `temporal` must find interactions after its cutoffs by "
            "users with a history. Received: none"
        )
    users = np.searchsorted(sequences.offsets, positions, "right") - 1
    if max_per_user:
        first = np.searchsorted(users, users, "left")
        kept = np.arange(len(users)) - first < max_per_user
        users, positions = users[kept], positions[kept]
    return _queries(sequences, users, positions)


def _fold_in(
    sequences: Sequences, users: np.ndarray, fraction: float
) -> Queries:
    """One query per user: the first part is the history, the rest relevant.

    Where some kinds are history only, the last target alone is relevant. The
    relevant items are distinct: they end where one of them comes again.
    """
    if not sequences.are_targets.all():
        return _queries(sequences, users, last_targets(sequences)[users])
    lengths = sequences.lengths[users]
    given = np.clip((lengths * fraction).astype(np.int64), 1, lengths - 1)
    begins, ends = (
        sequences.offsets[users] + given,
        sequences.offsets[users + 1],
    )
    positions = concatenated_ranges(begins, ends - begins)
    rows = np.repeat(np.arange(len(users)), ends - begins)
    pairs = rows * (int(sequences.items.max(initial=0)) + 1)
    _, first = np.unique(pairs + sequences.items[positions], return_index=True)
    again = np.delete(np.arange(len(rows)), first)
    np.minimum.at(ends, rows[again], positions[again])
    return _queries(sequences, users, begins, ends)


def _queries(
    sequences: Sequences,
    users: np.ndarray,
    history_ends: np.ndarray,
    target_ends: np.ndarray | None = None,
) -> Queries:
    """Queries with full histories, by default with a single target."""
    return Queries(
        sequences=sequences,
        users=users,
        history_starts=sequences.offsets[users],
        history_ends=history_ends,
        target_ends=history_ends + 1 if target_ends is None else target_ends,
    )
