"""Kinds of events: which rows are kept, targets, or dislikes, and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import parse_events, parse_names
from recsys.data.interactions import EVENT, Interactions, take
from recsys.errors import InputError

# Codes of rows whose kind is not kept.
DISLIKE = -1
_DROPPED = -2
# More distinct values than this are not kinds but ids or texts.
_MOST_KINDS = 50
_BLANK = "(blank)"


@dataclasses.dataclass(frozen=True)
class EventKinds:
    """The kinds of events that are kept.

    Attributes:
        names: Their names; a code is a position here.
        weights: `[num_kinds]` float32, positive.
        are_targets: `[num_kinds]` bool; the other kinds are history only.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    are_targets: np.ndarray

    @property
    def target_weights(self) -> np.ndarray:
        """`[num_kinds]` float32, 0 for kinds that are history only."""
        return self.weights * self.are_targets


@dataclasses.dataclass(frozen=True)
class EventRules:
    """How a configuration treats events; the fields are flags.

    Attributes:
        events: The kinds to keep and their weights; None for all.
        target_events: The kinds that are targets; None for all.
        dislikes: The kinds that are known negatives.
        max_rating: The highest rating of a known negative; None for none.
    """

    events: str | None = None
    target_events: str | None = None
    dislikes: str | None = None
    max_rating: float | None = None

    @classmethod
    def of(cls, fields: Any) -> Self:
        """Returns the rules among the attributes of a configuration."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(fields, name) for name in names})

    @property
    def is_empty(self) -> bool:
        """Whether no rule is given."""
        return not (self.keeps_kinds or self.has_dislikes)

    @property
    def keeps_kinds(self) -> bool:
        """Whether interactions keep their kinds."""
        return bool(self.events or self.target_events)

    @property
    def has_dislikes(self) -> bool:
        """Whether some rows are known negatives."""
        return bool(self.dislikes) or self.max_rating is not None

    def kinds(
        self, found: Mapping[str, int] | None = None
    ) -> EventKinds | None:
        """Returns the kinds that interactions keep, if they do.

        Args:
            found: The kinds of the log, of which all but the dislikes are kept
                without `events`.
        """
        if not self.keeps_kinds:
            return None
        weights = parse_events(self.events)
        if not weights:
            dislikes = parse_names(self.dislikes)
            weights = {n: 1.0 for n in found or {} if n not in dislikes}
        targets = parse_names(self.target_events) or tuple(weights)
        return EventKinds(
            tuple(weights),
            np.array(list(weights.values()), np.float32),
            np.array([name in targets for name in weights], bool),
        )

    def check(self, name: str, found: Mapping[str, int]) -> None:
        """Raises InputError for kinds that the log does not have.

        Args:
            name: The name of the log.
            found: Its kinds.
        """
        for field in ("events", "target_events", "dislikes"):
            text = getattr(self, field)
            parsed = parse_events if field == "events" else parse_names
            missing = [kind for kind in parsed(text) if kind not in found]
            if missing:
                raise InputError(
                    f"{name}: expected rows of every kind that --{field} "
                    f"names; the log has {', '.join(found) or 'none'}. "
                    f"Received: {missing[0]}"
                )


@dataclasses.dataclass(frozen=True)
class EventLabels:
    """Which rows of a log are kept, dislikes or dropped.

    Attributes:
        codes: `[num_interactions]` int32: the kind's position in `kinds`, or
            0 without kinds; `DISLIKE`; lower for rows to drop. None where
            no rule is given.
        kinds: The kinds that are kept, or None.
        found: The rows of each kind of the log, most frequent first.
        num_kept: The number of rows that are neither dislikes nor dropped.
    """

    codes: np.ndarray | None
    kinds: EventKinds | None
    found: dict[str, int]
    num_kept: int

    def rows(self, interactions: Interactions, dislikes: bool) -> Interactions:
        """Returns a log's likes or dislikes, with their codes as "event".

        Args:
            interactions: The log.
            dislikes: Whether to return the dislikes.
        """
        columns = interactions.columns
        if columns is not None and EVENT in columns.column_names:
            columns = columns.drop_columns([EVENT])
        if self.kinds is not None:
            codes = pa.array(self.codes)
            columns = (columns or pa.table({})).append_column(EVENT, codes)
        if not (columns and columns.num_columns):
            columns = None
        labeled = dataclasses.replace(interactions, columns=columns)
        if self.codes is None:
            return labeled
        chosen = self.codes == DISLIKE if dislikes else self.codes >= 0
        return take(labeled, np.flatnonzero(chosen))


def label(interactions: Interactions, rules: EventRules) -> EventLabels:
    """Labels the rows of a log, or of a part of one.

    Args:
        interactions: The rows.
        rules: How to treat them.

    Returns:
        The labels.

    Raises:
        InputError: The log lacks the ratings or kinds that the rules need.
    """
    names, column = _kinds_of(interactions)
    counts = np.bincount(column, minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    found = {names[i]: int(counts[i]) for i in order if counts[i]}
    if rules.is_empty:
        return EventLabels(None, None, found, len(interactions))
    kinds = rules.kinds(found)
    codes = np.zeros(len(interactions), np.int32)
    if kinds is not None or rules.dislikes:
        if not names:
            asked = ("events", "target_events", "dislikes")
            given = next(name for name in asked if getattr(rules, name))
            raise InputError(
                f"--{given} needs a log with a column of kinds of events; "
                "name it with --event_column. Received: a log without one"
            )
        code_of = dict.fromkeys(names, 0 if kinds is None else _DROPPED)
        if kinds is not None:
            code_of.update((n, i) for i, n in enumerate(kinds.names))
        code_of.update(dict.fromkeys(parse_names(rules.dislikes), DISLIKE))
        codes = np.array([code_of[n] for n in names], np.int32)[column]
    if rules.max_rating is not None:
        if interactions.ratings is None:
            raise InputError(
                "--max_rating needs a log with a rating column, and this one "
                f"has none. Received: --max_rating={rules.max_rating}"
            )
        low = interactions.ratings <= rules.max_rating
        codes[low & (codes >= 0)] = DISLIKE
    return EventLabels(codes, kinds, found, int(np.sum(codes >= 0)))


def _kinds_of(interactions: Interactions) -> tuple[list[str], np.ndarray]:
    """Returns the distinct kinds, and int32 codes into them; or nothing."""
    columns = interactions.columns
    if columns is None or EVENT not in columns.column_names:
        return [], np.zeros(0, np.int32)
    column = columns[EVENT].combine_chunks()
    # `tables` makes dictionaries of texts and whole numbers; nothing else is
    # a kind.
    if not pa.types.is_dictionary(column.type):
        return [], np.zeros(0, np.int32)
    if not pa.types.is_string(column.type.value_type):
        values = column.cast(column.type.value_type)
        column = values.cast(pa.string()).dictionary_encode()
    codes = pc.fill_null(column.indices, len(column.dictionary)).to_numpy()
    names = [(name or "").strip() for name in column.dictionary.to_pylist()]
    distinct = list(dict.fromkeys(name or _BLANK for name in [*names, ""]))
    place = {name: i for i, name in enumerate(distinct)}
    places = [place[name or _BLANK] for name in [*names, ""]]
    return distinct, np.array(places, np.int32)[codes]


def describe(
    rules: EventRules,
    kinds: EventKinds | None,
    found: Mapping[str, int],
    program: str = "",
) -> list[str]:
    """Describes what becomes of the kinds of a log, in a line each.

    Args:
        rules: How they are treated.
        kinds: The kinds that are kept, if rows keep them.
        found: The rows of each kind.
        program: What takes the flags, if not the one that prints the lines;
            with a blank behind it.
    """
    dislikes = parse_names(rules.dislikes)
    rest = {name: n for name, n in found.items() if name not in dislikes}
    if kinds is None:
        if not 2 <= len(rest) <= _MOST_KINDS:
            return []
        flag = ",".join(f"{name}:1" for name in rest)
        return [
            f"kinds of events: {_listed(rest)} rows count alike; {program}"
            f"--events={flag} keeps these kinds and weights them"
        ]
    parts = [
        f"{found.get(name, 0):,} {name} (weight {weight:g}"
        + ("" if is_target else ", history only")
        + ")"
        for name, weight, is_target in zip(
            kinds.names, kinds.weights, kinds.are_targets, strict=True
        )
    ]
    lines = ["kinds of events: " + ", ".join(parts)]
    if dropped := {n: c for n, c in rest.items() if n not in kinds.names}:
        lines.append(f"rows of other kinds dropped: {_listed(dropped)}")
    return lines


def dislikes_note(num_dislikes: int, num_kept: int) -> str:
    """Describes what became of the dislikes of a log.

    Args:
        num_dislikes: Their number.
        num_kept: The number of those that are used.
    """
    return (
        f"{num_dislikes:,} dislikes: {num_kept:,} kept as negatives of their "
        f"users, {num_dislikes - num_kept:,} dropped (repeats, and users or "
        "items without any other event)"
    )


def _listed(counts: Mapping[str, int]) -> str:
    first = list(counts.items())[:_MOST_KINDS]
    text = ", ".join(f"{count:,} {name}" for name, count in first)
    more = sum(counts.values()) - sum(count for _, count in first)
    return text + (f", {more:,} of further kinds" if more else "")
