"""Features of requests as tensors: the encoders of a model, in a graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from recsys.data.features import (
    BETWEEN_WORDS,
    MAX_VALUES,
    YEAR_IN_TITLE,
    ItemEncoder,
)
from recsys.data.items import NO_GENRES
from recsys.data.side_information import (
    CLOCK_COLUMNS,
    NO_TIME,
    SideEncoder,
)

_DAY = 86_400
# What Arrow's `utf8_trim_whitespace` takes away, too.
_SPACE = r"[\s\v\x1c-\x1f\x{85}\p{Z}]+"
_OUTER_SPACE = f"^{_SPACE}|{_SPACE}$"
# Letters whose small form depends on their place, or is two characters, in
# TensorFlow; Arrow has one for each letter.
_LOWER = {"Σ": "σ", "İ": "i"}
# The input of the times, in the unit of the log.
_TIME = "time"


class FeatureTensors:
    """Encodes what is known of requests, as `SideEncoder` does.

    Args:
        side: The encoder.

    Attributes:
        resources: The lookup tables, which a SavedModel must track.
    """

    def __init__(self, side: SideEncoder) -> None:
        self._side = side
        self._columns = {
            part: [
                _Column(encoder, number)
                for number in range(len(encoder.columns))
            ]
            for part, encoder in side.encoders.items()
        }
        self.resources = [
            column.table
            for columns in self._columns.values()
            for column in columns
            if column.table is not None
        ]

    def inputs(self) -> dict[str, tf.TensorSpec]:
        """Returns the inputs of a signature, besides the history.

        Returns:
            `history_time`, `[batch, length]` int64 in the log's unit, and
            `context_time`, `[batch]`, -1 for unknown; `history_<name>`,
            `context_<name>` and `user_<name>`, of the same shapes: float32 for
            numbers (NaN for unknown), else string ("" for unknown; several
            values with the column's separator between). Vectors are float32
            with one more axis, their length.
        """
        specs: dict[str, tf.TensorSpec] = {}
        shapes = {"history": [None, None], "context": [None], "user": [None]}
        if self._side.reads_clock:
            specs["history_time"] = tf.TensorSpec([None, None], tf.int64)
        if self._side.reads_request_time:
            specs["context_time"] = tf.TensorSpec([None], tf.int64)
        for part, columns in self._columns.items():
            for column in columns:
                if not column.is_given:
                    continue
                where = [part]
                if part == "context":
                    # Events have had a context of their own.
                    where = ["context", "history"]
                for each in where:
                    name = f"{each}_{column.name}"
                    shape = [*shapes[each], *column.shape]
                    specs[name] = tf.TensorSpec(shape, column.dtype)
        return specs

    def entries(
        self,
        given: Mapping[str, tf.Tensor],
        is_event: tf.Tensor,
        is_kept: tf.Tensor,
        length: int,
    ) -> dict[str, tf.Tensor]:
        """Returns the entries of a batch of histories, as a model reads them.

        Args:
            given: The inputs; see `inputs`. An axis of 1 goes for all.
            is_event: `[batch, length]` bool: where histories have an item.
            is_kept: Likewise, where they have one that is known.
            length: How many of those are read, the newest.

        Returns:
            The entries that `HistoryTower` describes, without the others.
        """
        shape = tf.shape(is_kept)
        given = dict(given)
        for name, each in given.items():
            num_axes = 2 if name.startswith("history_") else 1
            # A vector has one axis more.
            whole = tf.concat([shape[:num_axes], tf.shape(each)[num_axes:]], 0)
            given[name] = tf.broadcast_to(each, whole)
            if num_axes == 2:
                given[name] = _events(given[name], is_event)
        is_kept = _events(is_kept, is_event)
        times, asked = map(given.get, ("history_time", "context_time"))
        entries = {}
        last = tf.reduce_sum(tf.cast(is_kept, tf.int32), axis=1)
        last = tf.minimum(last, length) - 1
        clocks = {}
        if times is not None:
            clocks["history"] = (times, _before(times))
        if asked is not None:
            ends = tf.reduce_sum(tf.cast(is_event, tf.int32), axis=1)
            padded = tf.pad(times, [[0, 0], [1, 0]], constant_values=NO_TIME)
            clocks["context"] = (asked, tf.gather(padded, ends, batch_dims=1))

        def encode(where: str, column: _Column) -> tuple[tf.Tensor, tf.Tensor]:
            if column.is_given:
                return column.encode(given[f"{where}_{column.name}"])
            return column.encode(self._clock(column.name, *clocks[where]))

        for part, columns in self._columns.items():
            found = []
            for column in columns:
                first = "history" if part == "context" else part
                pair = encode(first, column)
                if part != "user":
                    pair = tuple(_kept(x, is_kept, length) for x in pair)
                if part == "context":
                    now = encode(part, column)
                    pair = tuple(map(_followed_by, pair, now, [last, last]))
                found.append(pair)
            values, weights = zip(*found, strict=True)
            entries[f"{part}_features"] = tf.concat(values, axis=-1)
            entries[f"{part}_weights"] = tf.concat(weights, axis=-1)
        if self._side.reads_times and times is not None:
            entries |= self._times(times, asked, is_kept, length, last)
        return entries

    def _times(
        self,
        times: tf.Tensor,
        asked: tf.Tensor | None,
        is_kept: tf.Tensor,
        length: int,
        last: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        unit = max(1, self._side.per_second)
        unknown = tf.constant(NO_TIME, tf.int64)
        seconds = tf.where(times < 0, unknown, times // unit)
        kept = _kept(seconds[..., tf.newaxis] + 1, is_kept, length)
        requests = kept
        if asked is not None:
            now = tf.where(asked < 0, unknown, asked // unit)
            requests = _followed_by(kept, now[:, tf.newaxis] + 1, last)
            requests = tf.where(requests > 0, requests, kept)
        # Padding, which is 0 here, is unknown like -1.
        return {
            "history_times": kept[..., 0] - 1,
            "request_times": requests[..., 0] - 1,
        }

    def _clock(self, name: str, now: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        """Returns what times tell, given those of the events before."""
        unit = max(1, self._side.per_second)
        known = now >= 0
        if name in ("gap", "same time"):
            gap = tf.cast(now - before, tf.float64) / unit
            known &= before >= 0
            if name != "gap":
                return tf.where(known & (gap == 0), "yes", "")
            log = tf.math.log(tf.maximum(gap, 1e-9)) / float(np.log(2))
            log = tf.cast(tf.round(8 * log) / 8, tf.float32)
            return tf.where(known & (gap > 0), log, np.nan)
        seconds = tf.maximum(now, 0) // unit
        if name == "hour":
            found = seconds % _DAY // 3600
        elif name == "weekday":
            found = (seconds // _DAY + 3) % 7
        else:
            found = _month(seconds // _DAY)
        return tf.where(known, tf.strings.as_string(found), "")


class _Column:
    """One column of an encoder, in a graph."""

    def __init__(self, encoder: ItemEncoder, number: int) -> None:
        column = encoder.columns[number]
        self.name = column.name
        self._separator = column.separator
        self._kind = column.kind
        self.is_given = column.name not in CLOCK_COLUMNS
        is_number = column.kind in ("numeric", "vector")
        self.dtype = tf.float32 if is_number else tf.string
        self.shape: list[int] = []
        self.table: tf.lookup.StaticHashTable | None = None
        self._knots = self._mean = np.zeros(0, np.float32)
        self._first = encoder.first_row(number)
        levels = encoder.levels(number)
        if column.kind == "numeric":
            self._knots = np.array(levels, np.float32)
        elif column.kind == "vector":
            self._mean, self._scale = encoder.scaling(number)
            self.shape = [len(self._mean)]
        else:
            rows = self._first + np.arange(len(levels))
            self.table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    levels, rows.astype(np.int64)
                ),
                default_value=0,
            )

    def encode(self, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `[..., width]` rows of the table of values, and weights."""
        if self._kind == "numeric":
            return self._encode_numbers(values)
        if self._kind == "vector":
            weights = (values - self._mean) / self._scale
            is_known = tf.reduce_all(tf.math.is_finite(values), -1, True)
            weights = tf.where(is_known, weights, 0.0)
            rows = self._first + tf.range(self.shape[0])
            return tf.broadcast_to(rows, tf.shape(weights)), weights
        if self._kind == "categorical":
            rows = self._rows(values)[..., tf.newaxis]
            return rows, tf.cast(rows > 0, tf.float32)
        text = tf.reshape(values, [-1])
        if self._kind == "words":
            text = tf.strings.regex_replace(text, YEAR_IN_TITLE, "")
            for letter, lower in _LOWER.items():
                text = tf.strings.regex_replace(text, letter, lower)
            text = tf.strings.lower(text, encoding="utf-8")
            text = tf.strings.regex_replace(text, BETWEEN_WORDS, " ")
            parts = tf.strings.split(text)
        else:
            trimmed = tf.strings.regex_replace(text, _OUTER_SPACE, "")
            is_none = tf.reduce_any(trimmed[:, tf.newaxis] == NO_GENRES, axis=1)
            text = tf.where(is_none, "", text)
            parts = tf.strings.split(text, self._separator)
        found = self._rows(parts.flat_values)
        # Each value counts once in a row, and only the first ones count.
        keys = parts.value_rowids() * 2**32 + tf.cast(found, tf.int64)
        _, distinct = tf.unique(keys)
        places = tf.range(tf.size(found))
        firsts = tf.math.unsorted_segment_min(places, distinct, tf.size(found))
        is_new = (found > 0) & (tf.gather(firsts, distinct) == places)
        rows = tf.ragged.boolean_mask(
            parts.with_flat_values(found), parts.with_flat_values(is_new)
        )[:, :MAX_VALUES].to_tensor()
        weights = tf.cast(rows > 0, tf.float32)
        num_values = tf.reduce_sum(weights, axis=1, keepdims=True)
        weights = tf.math.divide_no_nan(weights, tf.sqrt(num_values))
        shape = tf.concat([tf.shape(values), tf.shape(rows)[1:]], axis=0)
        return tf.reshape(rows, shape), tf.reshape(weights, shape)

    def _rows(self, values: tf.Tensor) -> tf.Tensor:
        """Looks up rows of the table of values, 0 for unknown ones."""
        assert self.table is not None  # Of a column of text.
        values = tf.strings.regex_replace(values, _OUTER_SPACE, "")
        return tf.cast(self.table.lookup(values), tf.int32)

    def _encode_numbers(self, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        knots = tf.constant(self._knots)
        known = tf.math.is_finite(values)
        clipped = tf.clip_by_value(
            tf.where(known, values, 0.0), knots[0], knots[-1]
        )
        flat = tf.reshape(clipped, [-1])
        above = tf.searchsorted(knots, flat, "right")
        below = tf.reshape(above, tf.shape(values)) - 1
        above = tf.minimum(below + 1, len(self._knots) - 1)
        left, right = tf.gather(knots, below), tf.gather(knots, above)
        share = tf.math.divide_no_nan(clipped - left, right - left)
        weights = tf.stack([1 - share, share], axis=-1)
        weights *= tf.cast(known, tf.float32)[..., tf.newaxis]
        rows = tf.stack([below, above], axis=-1) + self._first
        return tf.where(weights > 0, rows, 0), weights


def _events(values: tf.Tensor, is_event: tf.Tensor) -> tf.Tensor:
    """`[batch, events]` of `[batch, length]`, padded at the end."""
    padding = {tf.int64: NO_TIME, tf.float32: np.nan, tf.bool: False}
    return tf.ragged.boolean_mask(values, is_event).to_tensor(
        padding.get(values.dtype, "")
    )


def _before(times: tf.Tensor) -> tf.Tensor:
    """Returns the time of the event before each, if any."""
    return tf.pad(times[:, :-1], [[0, 0], [1, 0]], constant_values=NO_TIME)


def _kept(values: tf.Tensor, is_kept: tf.Tensor, length: int) -> tf.Tensor:
    """`[batch, newest, width]` of `[batch, length, width]`, 0 at padding."""
    return tf.ragged.boolean_mask(values, is_kept)[:, -length:].to_tensor()


def _followed_by(past: tf.Tensor, now: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """Moves `[batch, length, width]` one place on; `now` comes last."""
    later = tf.pad(past[:, 1:], [[0, 0], [0, 1], [0, 0]])
    later = later[:, : tf.shape(past)[1]]
    is_last = tf.range(tf.shape(past)[1])[tf.newaxis] == last[:, tf.newaxis]
    return tf.where(is_last[..., tf.newaxis], now[:, tf.newaxis], later)


def _month(days: tf.Tensor) -> tf.Tensor:
    """Returns the month, from 1, of days since 1970 in the civil calendar.

    After Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    """
    of_era = (days + 719_468) % 146_097
    year = of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096
    year //= 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    from_march = (5 * of_year + 2) // 153
    return tf.where(from_march < 10, from_march + 3, from_march - 9)
