"""What is known of events, requests and users besides the items.

A column of any kind becomes rows of a table of values, with weights (see
`recsys.data.features`): those of an event of the history, of the request (in
training, the row of the target) and of the user. What a time tells is a column
like any other.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import (
    CLOCK_FEATURES,
    TrainConfig,
    iso_seconds,
    parse_names,
)
from recsys.data.columns import is_list, is_text
from recsys.data.features import FeatureColumn, ItemEncoder, parse_columns
from recsys.data.interactions import EVENT
from recsys.data.sequences import (
    Group,
    Sequences,
    coded,
    concatenated_ranges,
    offsets_of,
)
from recsys.errors import InputError
from recsys.files import read_json_object, write_json

# What each part is called in messages.
PARTS = {"history": "event", "context": "context", "user": "user"}
# A time that is not known, in batches and in sequences.
NO_TIME = -1
_UNKNOWN = np.iinfo(np.int64).min
# Whether an event has the time of the one before, of which `gap` has no log.
_SAME_TIME = "same time"
# The columns that times tell, and their kinds where these are not categories.
CLOCK_COLUMNS = (*CLOCK_FEATURES, _SAME_TIME)
_KINDS = {"gap": "numeric"}
_DAY = 86_400
_NUMBER = r"^[-+]?([Nn][Aa][Nn]|(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)$"
# More rows than this say no more about the values of a column.
_MOST_ROWS = 2**20
# Later than 1973 and before 2286 in seconds: numbers that are dates.
_DATES = (1e8, 1e10)


@dataclasses.dataclass(frozen=True)
class Coded:
    """Encoded columns of many rows, by the distinct values of each column.

    Attributes:
        codes: `[num_rows, num_columns]` int32 rows of the other two.
        values: `[num_levels, width]` int32 rows of the table of values; the
            first level is "unknown", without any.
        weights: `[num_levels, width]` float32, 0 where there is no value.
    """

    codes: np.ndarray
    values: np.ndarray
    weights: np.ndarray

    def at(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns values and weights of some rows.

        Args:
            rows: `[...]` integers, negative for "unknown".

        Returns:
            `[..., num_columns * width]` int32 and float32.
        """
        known = rows >= 0
        codes = np.zeros((*rows.shape, self.codes.shape[1]), np.int32)
        codes[known] = self.codes[rows[known]]
        shape = (*rows.shape, self.codes.shape[1] * self.values.shape[1])
        return (
            self.values[codes].reshape(shape),
            self.weights[codes].reshape(shape),
        )


@dataclasses.dataclass(frozen=True)
class Side:
    """What is known of some requests; made by `SideEncoder`.

    Attributes:
        parts: The encoded columns of each part; of "history" and "context",
            a row is an event or a request, of "user" a user.
        times: `[num_rows]` int64 seconds, or `NO_TIME`; None where no
            attention reads them.
        reads_request_time: Whether attention may read the time of a request.
        events: `[total]` int64 rows of the items of all histories.
        requests: `[num_queries]` int64 rows of the requests, -1 for unknown.
        users: `[num_queries]` int64 rows of the users, -1 for unknown.
    """

    parts: Mapping[str, Coded]
    times: np.ndarray | None
    reads_request_time: bool
    events: np.ndarray
    requests: np.ndarray
    users: np.ndarray

    def keep(self, is_kept: np.ndarray) -> Side:
        """Returns what is known without some items of the histories.

        Args:
            is_kept: `[total]` bool.
        """
        return dataclasses.replace(self, events=self.events[is_kept])

    def select(self, queries: np.ndarray, taken: np.ndarray) -> Side:
        """Returns what is known of some queries.

        Args:
            queries: `[n]` integers, their numbers.
            taken: `[total]` integers, the positions of their items.
        """
        return dataclasses.replace(
            self,
            events=self.events[taken],
            requests=self.requests[queries],
            users=self.users[queries],
        )

    def repeat(self, kept: Sequence[np.ndarray]) -> Side:
        """Returns what is known of one query, with parts of its history.

        Args:
            kept: `[total]` bool for each part.
        """
        return dataclasses.replace(
            self,
            events=np.concatenate([self.events[each] for each in kept]),
            requests=self.requests.repeat(len(kept)),
            users=self.users.repeat(len(kept)),
        )

    def without(self, part: str, columns: Sequence[int]) -> Side:
        """Returns what is known but some columns of a part.

        Args:
            part: One of `parts`.
            columns: The positions of the columns.
        """
        codes = self.parts[part].codes.copy()
        codes[:, columns] = 0
        changed = dataclasses.replace(self.parts[part], codes=codes)
        return dataclasses.replace(self, parts={**self.parts, part: changed})

    @property
    def knows_user(self) -> np.ndarray:
        """`[num_queries]` bool: whether a user has any known feature."""
        if "user" not in self.parts:
            return np.zeros(len(self.users), bool)
        return (self.parts["user"].at(self.users)[1] != 0).any(axis=1)

    def batch(
        self, queries: np.ndarray, positions: np.ndarray, ends: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the entries of a batch of histories, as a model reads them.

        Args:
            queries: `[n]` integers, the queries of the batch.
            positions: `[n, length]` integers, the items of the histories
                among all; negative at padding.
            ends: `[n]` integers, the end of each query's items among all.

        Returns:
            The entries that `HistoryTower` describes.
        """
        inside = positions >= 0
        events = np.full(positions.shape, -1, np.int64)
        events[inside] = self.events[positions[inside]]
        later = np.where(inside, self.requests[queries][:, np.newaxis], -1)
        followed = inside & (positions + 1 < ends[:, np.newaxis])
        later[followed] = self.events[positions[followed] + 1]
        rows = {"history": events, "context": later}
        rows["user"] = self.users[queries]
        entries = {}
        for part, encoded in self.parts.items():
            values, weights = encoded.at(rows[part])
            entries[f"{part}_features"] = values
            entries[f"{part}_weights"] = weights
        if self.times is not None:
            known, asked = np.full((2, *positions.shape), NO_TIME)
            known[inside] = self.times[events[inside]]
            if self.reads_request_time:
                asked[later >= 0] = self.times[later[later >= 0]]
            asked = np.where(asked == NO_TIME, known, asked)
            entries |= {"history_times": known, "request_times": asked}
        return entries


@dataclasses.dataclass(frozen=True)
class Request:
    """A request with what is known of it; unknown where nothing is given.

    Attributes:
        items: The items of the history by name, oldest first.
        events: What is known of each of them: its columns by name, and "time",
            a number in the log's unit or an ISO date.
        user: Columns of the user by name.
        context: Columns of the request by name, and "time".
    """

    items: Sequence[str]
    events: Sequence[Mapping[str, Any]]
    user: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    context: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        history: Sequence[Any],
        user: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Request:
        """Returns a request.

        Args:
            history: Ids, or mappings with "item" and what is known of it.
            user: What is known of the user. Default: nothing.
            context: What is known of the request. Default: nothing.

        Raises:
            InputError: An entry is neither, or a part is no mapping.
        """
        items, events = [], []
        for entry in history:
            known = {}
            if isinstance(entry, Mapping):
                known = {n: v for n, v in entry.items() if n != "item"}
                entry = entry.get("item")
            if type(entry) not in (str, int):
                raise InputError(
                    "an entry of a history must be an item id, or an object "
                    'with "item". Received: ' + repr(entry)[:80]
                )
            items.append(str(entry))
            events.append(known)
        for name, part in (("user", user), ("context", context)):
            if not isinstance(part, Mapping | None):
                raise InputError(
                    f"`{name}` must be an object of features by name. "
                    f"Received: {part!r}"
                )
        return cls(items, events, user or {}, context or {})

    @property
    def has_features(self) -> bool:
        """Whether anything but items is known."""
        return bool(self.user or self.context or any(self.events))


class SideEncoder:
    """Encodes what is known of events, requests and users.

    Made by `fit_side_encoder` or `load`.

    Args:
        encoders: The encoder of each part that the model reads.
        reads_times: Whether attention reads the times of events.
        per_second: Units of the log's times in a second; 0 for none.
        kinds: Names of the kinds of events, where a part reads them.

    Attributes:
        encoders: As given, in the order of `PARTS`.
        reads_times: As given.
        per_second: As given.
    """

    def __init__(
        self,
        encoders: Mapping[str, ItemEncoder],
        reads_times: bool,
        per_second: int,
        kinds: Sequence[str] = (),
    ) -> None:
        self.encoders = {p: encoders[p] for p in PARTS if p in encoders}
        self.reads_times = reads_times
        self.per_second = per_second
        self._kinds = tuple(kinds)
        # Evaluation asks for many batches of the same sequences.
        self._latest: tuple[Any, Any] = (None, None)

    @property
    def reads_request_time(self) -> bool:
        """Whether the model may know the time of a request."""
        return bool(
            {*CLOCK_FEATURES}.intersection(self.column_names("context"))
        )

    @property
    def reads_clock(self) -> bool:
        """Whether any time is read."""
        names = self.column_names("history") + self.column_names("context")
        return self.reads_times or any(n in CLOCK_COLUMNS for n in names)

    def num_values(self, part: str) -> int:
        """Rows of a part's table of values, row 0 for padding included."""
        encoder = self.encoders[part]
        return encoder.num_values + encoder.vector_dim

    def column_names(self, part: str) -> list[str]:
        """The columns of a part, those made of times included."""
        if part not in self.encoders:
            return []
        return [column.name for column in self.encoders[part].columns]

    def given_names(self, part: str) -> list[str]:
        """The columns of a part that a request may give."""
        return [n for n in self.column_names(part) if n not in CLOCK_COLUMNS]

    def describe(self) -> str:
        """Returns a line on what is read."""
        found = []
        for part in PARTS:
            names = [n for n in self.column_names(part) if n != _SAME_TIME]
            if names:
                found.append(f"{PARTS[part]} ({', '.join(names)})")
        if self.reads_times:
            found.append("attention by time")
        return "features: " + ", ".join(found)

    def code(self, data: Sequences | Group) -> dict[str, Coded]:
        """Encodes the columns of sequences, each part by itself.

        Args:
            data: The sequences, with the columns that the parts read; a
                column that is missing is unknown throughout.

        Returns:
            For "history" and "context" a row for each interaction, for "user"
            one for each user.
        """
        found = {}
        for part, encoder in self.encoders.items():
            columns = [
                self._coded_column(data, part, column.name)
                for column in encoder.columns
            ]
            found[part] = _merge(encoder, columns)
        return found

    def times(self, data: Sequences | Group) -> np.ndarray | None:
        """Returns `[num_interactions]` int64 seconds, if they are read."""
        if not self.reads_times:
            return None
        times = data.timestamps
        assert times is not None  # Those who read times ask for them.
        seconds = times // max(1, self.per_second)
        return np.where(times == _UNKNOWN, NO_TIME, seconds)

    def side(
        self,
        sequences: Sequences,
        events: np.ndarray,
        requests: np.ndarray,
        users: np.ndarray,
    ) -> Side:
        """Returns what is known of histories within sequences.

        Args:
            sequences: The sequences.
            events: `[total]` int64 positions in `sequences` of the items.
            requests: `[num_queries]` int64 positions of what is asked for, -1
                where that is not in the log.
            users: `[num_queries]` int64 rows of the users.
        """
        if self._latest[0] is not sequences:
            found = (self.code(sequences), self.times(sequences))
            self._latest = (sequences, found)
        parts, times = self._latest[1]
        return Side(
            parts, times, self.reads_request_time, events, requests, users
        )

    def without_each(self, side: Side) -> Iterator[tuple[str, Side]]:
        """Yields what is known without each feature, and the feature's name.

        Args:
            side: What is known.
        """
        for part in side.parts:
            names = self.column_names(part)
            for place, name in enumerate(names):
                if name == _SAME_TIME:
                    continue
                columns = [place]
                if name == "gap" and _SAME_TIME in names:
                    columns.append(names.index(_SAME_TIME))
                yield f"{PARTS[part]}: {name}", side.without(part, columns)
        if side.times is not None:
            yield "time between events", dataclasses.replace(side, times=None)

    def lacks(self, request: Request) -> bool:
        """Whether a feature that the model reads is not given."""
        of_event = self.given_names("history") + ["time"] * self.reads_clock
        wanted = (
            (request.user, self.given_names("user")),
            *((row, of_event) for row in request.events),
        )
        return self.lacks_context(request.context) or any(
            row.get(n) is None for row, names in wanted for n in names
        )

    def lacks_context(self, context: Mapping[str, Any]) -> bool:
        """Whether a feature of a request that the model reads is not given."""
        time = ["time"] * self.reads_request_time
        names = self.given_names("context") + time
        return any(context.get(name) is None for name in names)

    def of_users(
        self, sequences: Sequences, context: Mapping[str, Any]
    ) -> Side:
        """Returns what is known of users whose whole sequences are histories.

        Args:
            sequences: Their sequences.
            context: What is known of the request, the same for all; see
                `Request`.

        Raises:
            InputError: A name or a value cannot be used, or the time of the
                request is before an event.
        """
        self._check_names([Request((), (), context=context)])
        offsets, ends = sequences.offsets, sequences.offsets[1:]
        num_users = sequences.num_users
        columns, levels = {}, dict(sequences.levels)
        for name, codes in sequences.columns.items():
            code = -1
            if name in levels and context.get(name) is not None:
                value = _as_array(name, [context[name]])
                levels[name] = _joined_levels(name, levels[name], value)
                code = len(levels[name]) - 1
            columns[name] = np.insert(codes, ends, code)
        time = self._time(context.get("time"))
        if time != _UNKNOWN and (sequences.timestamps > time).any():
            late = sequences.timestamps.max()
            raise InputError(
                "the time of the request must not be before the events of the "
                f"users. Received: {context['time']!r}, and events until {late}"
            )
        extended = dataclasses.replace(
            sequences,
            offsets=offsets + np.arange(num_users + 1),
            items=np.insert(sequences.items, ends, 0),
            timestamps=np.insert(sequences.timestamps, ends, time),
            columns=columns,
            levels=levels,
            dislikes=None,
        )
        requests = extended.offsets[1:] - 1
        return self.side(
            extended,
            concatenated_ranges(extended.offsets[:-1], sequences.lengths),
            requests if context else np.full(num_users, -1),
            np.arange(num_users),
        )

    def of_requests(
        self, requests: Sequence[Request]
    ) -> tuple[Side, dict[str, int]]:
        """Encodes requests.

        Args:
            requests: The requests.

        Returns:
            What is known of them, and the number of values of each feature
            that training has not seen, which count as unknown.

        Raises:
            InputError: A name or a value cannot be used, or times are not in
                order.
        """
        lengths = np.array([len(r.events) + 1 for r in requests], np.int64)
        offsets = offsets_of(lengths)
        rows = [row for r in requests for row in (*r.events, r.context)]
        is_request = np.zeros(len(rows), bool)
        is_request[offsets[1:] - 1] = True
        self._check_names(requests)
        times = self._request_times(rows, offsets)
        names = {n for p in ("history", "context") for n in self.given_names(p)}
        columns, levels = {}, {}
        for name in names:
            values = [row.get(name) for row in rows]
            columns[name], levels[name] = coded(_as_array(name, values))
        users = {
            name: _as_array(name, [r.user.get(name) for r in requests])
            for name in self.given_names("user")
        }
        sequences = Sequences(
            user_ids=np.array([""] * len(requests), object),
            offsets=offsets,
            items=np.zeros(len(rows), np.int32),
            timestamps=times,
            columns=columns,
            levels=levels,
            timestamps_per_second=self.per_second,
            users=pa.table(users) if users else None,
        )
        parts = self.code(sequences)
        everything = np.arange(len(rows))
        side = Side(
            parts,
            self.times(sequences),
            self.reads_request_time,
            everything[~is_request],
            everything[is_request],
            np.arange(len(requests)),
        )
        looked_at = {"history": ~is_request, "context": is_request}
        return side, self.unseen(parts, looked_at)

    def unseen(
        self, parts: Mapping[str, Coded], rows: Mapping[str, np.ndarray]
    ) -> dict[str, int]:
        """Counts the values that mean nothing, by the feature.

        Args:
            parts: What `code` returned.
            rows: The rows of each part to look at, bool. Default: all.
        """
        found: dict[str, int] = {}
        for part, encoded in parts.items():
            is_empty = ~(encoded.weights != 0).any(axis=1)
            taken = encoded.codes[rows.get(part, slice(None))]
            for number, name in enumerate(self.column_names(part)):
                codes = taken[:, number]
                if num := int(np.sum((codes > 0) & is_empty[codes])):
                    found[f"{PARTS[part]} feature `{name}`"] = num
        return found

    def _check_names(self, requests: Sequence[Request]) -> None:
        """Raises InputError for a name that means nothing."""
        time = ["time"] * self.reads_clock
        names = {
            part: {*self.given_names(part)}
            for part in ("history", "context", "user")
        }
        # A history has the context of its own events, where that is a column.
        names["history"] |= names["context"] | {*time}
        names["context"] |= {*time}
        for request in requests:
            for part, rows in (
                ("history", request.events),
                ("context", [request.context]),
                ("user", [request.user]),
            ):
                for row in rows:
                    if wrong := row.keys() - names[part]:
                        known = ", ".join(sorted(names[part])) or "none"
                        raise InputError(
                            f"features of the {part} must be among those that "
                            f"the model reads ({known}). Received: "
                            f"{sorted(map(str, wrong))[0]}"
                        )

    def _request_times(
        self, rows: Sequence[Mapping[str, Any]], offsets: np.ndarray
    ) -> np.ndarray:
        """Returns the times of events and requests, in the log's unit."""
        times = np.array(
            [self._time(row.get("time")) for row in rows], np.int64
        )
        for begin, end in itertools.pairwise(offsets):
            known = times[begin:end]
            known = known[known != _UNKNOWN]
            if (np.diff(known) < 0).any():
                raise InputError(
                    "the times of a history must be in order, and that of the "
                    "request not before them. Received: "
                    + ", ".join(
                        str(row.get("time")) for row in rows[begin:end][-5:]
                    )
                )
        return times

    def _time(self, value: Any) -> int:
        """Returns a time in the log's unit."""
        if value is None:
            return _UNKNOWN
        per_second = max(1, self.per_second)
        try:
            if isinstance(value, str):
                return round(iso_seconds(value) * per_second)
            if isinstance(value, bool) or not abs(value) < 2**62:
                raise ValueError
            return int(value)
        except (ValueError, TypeError) as error:
            raise InputError(
                "a time must be a number in the log's unit or an ISO date. "
                f"Received: {value!r}"
            ) from error

    def _coded_column(
        self, data: Sequences | Group, part: str, name: str
    ) -> tuple[np.ndarray, pa.Array]:
        """Returns the codes of a raw column, and its distinct values."""
        if part == "user":
            users = data.users
            num_users = len(data.offsets) - 1
            if users is None or name not in users.column_names:
                return np.full(num_users, -1, np.int32), pa.nulls(0)
            return coded(users[name].combine_chunks())
        if name in CLOCK_COLUMNS:
            return coded(
                clock_column(
                    name, data.timestamps, data.offsets, self.per_second
                )
            )
        if name not in data.columns:
            return np.full(len(data.items), -1, np.int32), pa.nulls(0)
        if name == EVENT and name not in data.levels:
            return data.columns[name], pa.array(self._kinds, pa.string())
        return data.columns[name], data.levels[name]

    def save(self, path: pathlib.Path) -> None:
        """Writes a JSON file."""
        content = {
            "parts": {p: e.to_json() for p, e in self.encoders.items()},
            "reads_times": self.reads_times,
            "per_second": self.per_second,
            "kinds": list(self._kinds),
        }
        write_json(path, content)

    @classmethod
    def load(cls, path: pathlib.Path) -> SideEncoder:
        """Reads a file that `save` wrote.

        Raises:
            InputError: The file is missing or invalid.
        """
        content = read_json_object(
            path, parts=dict, reads_times=bool, per_second=int, kinds=list
        )
        encoders = {
            part: ItemEncoder.from_json(found, path, PARTS.get(part, part))
            for part, found in content["parts"].items()
        }
        return cls(
            encoders,
            content["reads_times"],
            content["per_second"],
            content["kinds"],
        )


def clock_column(
    name: str, times: Any, offsets: np.ndarray, per_second: int
) -> pa.Array:
    """Returns what times tell of each event.

    Args:
        name: "gap", the base-2 logarithm of the time since the event before,
            to an eighth, in seconds or in the log's own unit, null for none
            and for 0; "same time", which is "yes" where it is 0; or "hour",
            "weekday" (0 is Monday) or "month" (from 1), in UTC.
        times: `[num_interactions]` int64, in order within a user.
        offsets: `[num_users + 1]` int64, the start of each user.
        per_second: Units of the times in a second.
    """
    times = np.asarray(times)
    known = times != _UNKNOWN
    unit = max(1, per_second)
    if name in ("gap", _SAME_TIME):
        gaps = np.diff(times, prepend=times[:1]).astype(np.float64) / unit
        has_gap = known & np.append(False, known[:-1])
        has_gap[offsets[:-1][np.diff(offsets) > 0]] = False
        if name == _SAME_TIME:
            is_same = has_gap & (gaps == 0)
            codes = pa.array(np.zeros(len(times), np.int32), mask=~is_same)
            return pa.DictionaryArray.from_arrays(codes, ["yes"])
        has_gap &= gaps > 0
        logs = np.round(8 * np.log2(np.where(has_gap, gaps, 1))) / 8
        return pa.array(logs, mask=~has_gap)
    seconds = np.where(known, times, 0) // unit
    if name == "hour":
        found = seconds % _DAY // 3600
    elif name == "weekday":
        found = (seconds // _DAY + 3) % 7
    else:
        months = seconds.astype("datetime64[s]").astype("datetime64[M]")
        found = months.astype(np.int64) % 12 + 1
    return pa.array(found.astype(np.int32), mask=~known)


def fit_side_encoder(
    config: TrainConfig, train: Sequences
) -> SideEncoder | None:
    """Fits the encoders to training sequences.

    Args:
        config: The configuration.
        train: The sequences, or a sample of them, with the columns that the
            configuration names.

    Returns:
        The encoder, or None if the configuration names no such feature.

    Raises:
        InputError: A column cannot be used as configured, or the log has no
            times, or none that are dates.
    """
    clocks = {
        "history": parse_names(config.time_features),
        "context": tuple(
            name
            for name in parse_names(config.context_features)
            if name in CLOCK_FEATURES
        ),
    }
    texts = {
        "history": config.event_features,
        "context": ",".join(
            name
            for name in parse_names(config.context_features)
            if name not in CLOCK_FEATURES
        ),
        "user": config.user_features,
    }
    per_second = train.timestamps_per_second
    _check_times(train, {*clocks["history"], *clocks["context"]})
    kinds = train.kinds.names if train.kinds is not None else ()
    encoders = {}
    for part, of in PARTS.items():
        table = _sample(train, part, clocks.get(part, ()), kinds)
        columns = []
        if text := texts[part]:
            given = [n for n in table.column_names if n not in CLOCK_COLUMNS]
            typed = {n: _with_numbers(table[n].combine_chunks()) for n in given}
            columns = parse_columns(text, pa.table(typed), of)
            numeric = [c.name for c in columns if c.kind == "numeric"]
            for name in {*numeric} & {*given}:
                place = table.column_names.index(name)
                table = table.set_column(place, name, typed[name])
        columns += [
            FeatureColumn(name, _KINDS.get(name, "categorical"), of=of)
            for name in table.column_names
            if name in CLOCK_COLUMNS
        ]
        if columns:
            encoders[part] = ItemEncoder.fit(table, columns)
    reads_times = "age" in clocks["history"]
    if not encoders and not reads_times:
        return None
    return SideEncoder(encoders, reads_times, per_second, kinds)


def _sample(
    train: Sequences,
    part: str,
    clocks: Sequence[str],
    kinds: Sequence[str],
) -> pa.Table:
    """Returns the raw columns of a part, of at most a million rows."""
    if part == "user":
        return pa.table({}) if train.users is None else train.users
    step = -(-train.num_interactions // _MOST_ROWS)
    rows = slice(None, None, max(1, step))
    found: dict[str, pa.Array] = {}
    for name, codes in train.columns.items():
        levels = train.levels.get(name, pa.array(kinds, pa.string()))
        taken = codes[rows]
        found[name] = levels.take(pa.array(taken, mask=taken < 0))
    names = [name for name in clocks if name in CLOCK_FEATURES]
    names += [_SAME_TIME] * ("gap" in names)
    for name in names:
        column = clock_column(
            name, train.timestamps, train.offsets, train.timestamps_per_second
        )
        column = column[rows]
        if name != _SAME_TIME or len(column) - column.null_count > 1:
            found[name] = column
    return pa.table(found)


def _check_times(train: Sequences, names: set[str]) -> None:
    """Raises InputError for features that the log's times cannot tell."""
    if not names:
        return
    if not train.timestamps_per_second:
        raise InputError(
            "--time_features and --context_features of times need a log with "
            f"times. Received: {', '.join(sorted(names))} with one without"
        )
    dates = sorted(names - {"gap", "age"})
    if dates and train.timestamps_per_second == 1 and train.num_interactions:
        least, most = train.timestamps.min(), train.timestamps.max()
        if not _DATES[0] <= least <= most <= _DATES[1]:
            raise InputError(
                f"`{dates[0]}` needs times that are dates or seconds since "
                f"1970. Received: times from {least} to {most}"
            )


def _merge(
    encoder: ItemEncoder, columns: Sequence[tuple[np.ndarray, pa.Array]]
) -> Coded:
    """Puts the levels of all columns below each other, "unknown" first."""
    parts = [
        encoder.encode_column(
            number, _as_numbers(levels) if column.kind == "numeric" else levels
        )
        if len(levels)
        else (np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32))
        for number, (column, (_, levels)) in enumerate(
            zip(encoder.columns, columns, strict=True)
        )
    ]
    width = max(1, *(values.shape[1] for values, _ in parts))
    codes, first = [], 1
    for code, levels in columns:
        codes.append(np.where(code < 0, 0, code + first))
        first += len(levels)
    blank = [np.zeros((1, width))]
    values, weights = (
        np.concatenate(
            blank
            + [
                np.pad(p[i], ((0, 0), (0, width - p[i].shape[1])))
                for p in parts
            ]
        )
        for i in range(2)
    )
    return Coded(
        np.stack(codes, axis=1).astype(np.int32),
        values.astype(np.int32),
        weights.astype(np.float32),
    )


def _as_numbers(values: pa.Array) -> pa.Array:
    """Returns text as numbers, null where it is none; other types as is."""
    if not is_text(values.type):
        return values
    text = pc.utf8_trim_whitespace(values.cast(pa.string()))
    is_number = pc.match_substring_regex(text, _NUMBER)
    return pc.if_else(is_number, text, None).cast(pa.float64())


def _with_numbers(values: pa.Array) -> pa.Array:
    """Returns text as numbers if all of it is, apart from blanks."""
    numbers = _as_numbers(values)
    if numbers is not values:
        text = pc.utf8_trim_whitespace(values.cast(pa.string()))
        blank = pc.fill_null(pc.equal(text, ""), True)
        if numbers.null_count > pc.sum(blank).as_py():
            return values
    return numbers


def _joined_levels(name: str, levels: pa.Array, value: pa.Array) -> pa.Array:
    try:
        return pa.concat_arrays([levels, value.cast(levels.type)])
    except pa.ArrowException as error:
        raise InputError(
            f"feature `{name}` must be like those of the log, {levels.type}. "
            f"Received: {value[0].as_py()!r}"
        ) from error


def _as_array(name: str, values: list[Any]) -> pa.Array:
    try:
        found = pa.array(values, from_pandas=True)
        kind = found.type.value_type if is_list(found.type) else found.type
        if pa.types.is_nested(kind):
            raise TypeError
        return found
    except (pa.ArrowException, TypeError) as error:
        raise InputError(
            f"the values of feature `{name}` must be of one type: text, "
            "numbers, or flat lists of either. Received: "
            + ", ".join(sorted({type(v).__name__ for v in values}))
        ) from error


def history_side(
    encoder: SideEncoder,
    sequences: Sequences,
    starts: np.ndarray,
    ends: np.ndarray,
    users: np.ndarray,
    *,
    are_followed: bool,
) -> Side:
    """Returns what is known of slices of sequences.

    Args:
        encoder: The encoder.
        sequences: The sequences.
        starts: `[num_queries]` int64, where each history starts.
        ends: `[num_queries]` int64, where it ends.
        users: `[num_queries]` int64 rows of the users.
        are_followed: Whether what is asked for follows each history, so that
            the request is that of its row.
    """
    unknown = np.full(len(ends), -1, np.int64)
    return encoder.side(
        sequences,
        concatenated_ranges(starts, ends - starts),
        ends if are_followed else unknown,
        users,
    )
