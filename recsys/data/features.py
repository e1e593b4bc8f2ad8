"""Features: columns of a table of items, users or events, as arrays."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.columns import is_list
from recsys.data.items import NO_GENRES, name_here
from recsys.errors import InputError
from recsys.files import atomic_path, read_json_object

KINDS = ("categorical", "multi", "words", "numeric", "vector")
DEFAULT_SEPARATOR = "|"
# The columns that `auto` uses if an items table has them.
_USUAL = ("genres", "year", "title")
YEAR_IN_TITLE = r"\((?P<year>\d{4})(?:[-–]\d{0,4})?\)\s*$"
BETWEEN_WORDS = r"[^\p{L}\p{N}]+"
# A comma between columns, not one that is the separator of a multi column.
_COMMA = re.compile(r"(?<!:multi:),")


@dataclasses.dataclass(frozen=True)
class FeatureColumn:
    """A column of a table that is used as a feature.

    Attributes:
        name: The column. Without a column `year`, the year is taken from the
            end of the titles, as in "Toy Story (1995)".
        kind: "categorical" for a single value; "multi" for several values (a
            list, or text with separators); "words" for the words of a text;
            "numeric" for a number; "vector" for an embedding (a list, or text
            with spaces or commas).
        separator: The separator of values in a "multi" column of text.
        of: What a row is, for messages: "item", "user", "event" or "context".

    Raises:
        InputError: The kind is unknown, or the separator is empty.
    """

    name: str
    kind: str
    separator: str = DEFAULT_SEPARATOR
    of: str = "item"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"the kind of {self.of} feature `{self.name}` must be one of "
                f"{', '.join(KINDS)}. Received: {self.kind!r}"
            )
        if not self.separator:
            raise InputError(
                f"the separator of {self.of} feature `{self.name}` must not be "
                "empty. Received: ''"
            )


def parse_columns(
    text: str, items: pa.Table, of: str = "item"
) -> list[FeatureColumn]:
    """Parses the value of `--item_features` or another such flag.

    Args:
        text: "auto" for those of genres, year and title that have values (of
            users, all that have), or column names separated by commas. A kind
            and a separator may follow a name; by default the column's type and
            name decide: `genres,year,tags:multi:;,brand:categorical`.
        items: The items table, or a table of what `of` says.
        of: What a row is.

    Returns:
        The columns.

    Raises:
        InputError: A column is missing or duplicated, a kind is unknown, or
            there are no columns.
    """
    if text.strip() == "auto":
        usual = _USUAL if of == "item" else items.column_names
        parts = [name for name in usual if _has_values(items, name)]
    else:
        parts = [part.strip() for part in _COMMA.split(text)]
    columns: list[FeatureColumn] = []
    for part in filter(None, parts):
        name, _, rest = part.partition(":")
        kind, _, separator = rest.partition(":")
        if of == "item":
            name = name_here(items, name)
        column = FeatureColumn(
            name,
            kind or _usual_kind(name, raw_column(items, name, of)),
            separator or DEFAULT_SEPARATOR,
            of,
        )
        if name in (other.name for other in columns):
            raise InputError(
                f"{of} features must name each column once. Received: {text!r}"
            )
        columns.append(column)
    if not columns:
        raise InputError(
            f"{of} features must name at least one column. Received: "
            f"{text!r} for a table of {', '.join(items.column_names)}"
        )
    return columns


def raw_column(items: pa.Table, name: str, of: str = "item") -> pa.Array:
    """Returns a column of a table without conversion.

    Args:
        items: The items table.
        name: The column, or `year`.
        of: What a row is, for messages.

    Returns:
        One value per row.

    Raises:
        InputError: The table has no such column.
    """
    if name in items.column_names:
        return items.column(name).combine_chunks()
    if _has(items, name):
        titles = items.column("title").combine_chunks()
        found = pc.extract_regex(titles, YEAR_IN_TITLE)
        return pc.struct_field(found, "year").cast(pa.float32())
    known = [n for n in items.column_names if n not in ("item_id", "user_id")]
    where = "log" if of in ("event", "context") else f"{of}s file"
    raise InputError(
        f"{'an' if of[0] in 'aei' else 'a'} {of} feature must be a column of "
        f"the {where} ({', '.join(known) or 'which has ids only'}). "
        f"Received: {name!r}"
    )


def text_values(items: pa.Table, column: FeatureColumn) -> pa.ListArray:
    """Returns the values of a categorical, multi-valued or words column.

    Args:
        items: The items table.
        column: The column.

    Returns:
        One list of stripped strings per row; null for missing values and for
        the usual names of "no genre".

    Raises:
        InputError: The column's type does not match its kind.
    """
    values = raw_column(items, column.name, column.of)
    try:
        if is_list(values.type) and column.kind == "multi":
            return values.cast(pa.list_(pa.string()))
        text = values.cast(pa.string())
    except pa.ArrowException as error:
        raise _wrong_type(column, values.type) from error
    if column.kind == "words":
        text = pc.replace_substring_regex(text, YEAR_IN_TITLE, "")
        return pc.split_pattern_regex(pc.utf8_lower(text), BETWEEN_WORDS)
    text = pc.utf8_trim_whitespace(text)
    known = pc.invert(pc.is_in(text, value_set=pa.array(NO_GENRES)))
    text = pc.if_else(known, text, pa.scalar(None, pa.string()))
    if column.kind == "multi":
        return pc.split_pattern(text, column.separator)
    return pa.ListArray.from_arrays(
        pa.array(np.arange(len(text) + 1), pa.int32()), text
    )


def numbers(items: pa.Table, column: FeatureColumn) -> np.ndarray:
    """Returns a numeric column.

    Args:
        items: The items table.
        column: The column.

    Returns:
        `[num_items]` float64, NaN for missing values.

    Raises:
        InputError: The column's type does not match its kind.
    """
    values = raw_column(items, column.name, column.of)
    try:
        if pa.types.is_temporal(values.type):
            seconds = values.cast(pa.timestamp("s"), safe=False)
            values = seconds.cast(pa.int64())
        # An unsafe cast, since large integers may be rounded.
        known = values.cast(pa.float64(), safe=False)
        found = known.to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise _wrong_type(column, values.type) from error
    return np.where(np.isfinite(found), found, np.nan)


def vectors(items: pa.Table, column: FeatureColumn) -> np.ndarray:
    """Returns a column of vectors.

    Args:
        items: The items table.
        column: The column.

    Returns:
        `[num_items, dim]` float32, NaN in rows whose vector is missing or not
        finite.

    Raises:
        InputError: The column's type does not match its kind, or the vectors
            differ in length.
    """
    raw = values = raw_column(items, column.name, column.of)
    try:
        if pa.types.is_string(raw.type) or pa.types.is_large_string(raw.type):
            trimmed = pc.utf8_trim(values.cast(pa.string()), " []()")
            values = pc.split_pattern_regex(trimmed, r"[,;\s]+")
        rows = values.cast(pa.list_(pa.float32())).drop_null()
        flat = rows.flatten()
    except pa.ArrowException as error:
        raise _wrong_type(column, raw.type) from error
    lengths = np.unique(pc.list_value_length(rows).to_numpy())
    if len(lengths) != 1 or not lengths[0]:
        raise InputError(
            f"{column.of} feature `{column.name}` must hold vectors of one "
            "length. "
            f"Received lengths: {', '.join(map(str, lengths[:5])) or 'none'}"
        )
    found = np.full((len(values), lengths[0]), np.nan, np.float32)
    known = values.is_valid().to_numpy(zero_copy_only=False)
    # A null within a vector becomes NaN.
    flat = flat.to_numpy(zero_copy_only=False)
    found[known] = flat.reshape(-1, lengths[0])
    found[~np.isfinite(found).all(axis=1)] = np.nan
    return found


def describe_columns(items: pa.Table, columns: Sequence[FeatureColumn]) -> str:
    """Returns a line that counts the items without a value in each column.

    Raises:
        InputError: A column's type does not match its kind.
    """
    parts = []
    for column in columns:
        if column.kind in ("vector", "numeric"):
            read = vectors if column.kind == "vector" else numbers
            found = read(items, column).reshape(len(items), -1)[:, 0]
            missing = int(np.isnan(found).sum())
        else:
            rows, _ = _flatten(text_values(items, column))
            missing = len(items) - len(np.unique(rows))
        note = f" (none or invalid for {missing:,})" if missing else ""
        parts.append(column.name + note)
    return f"item features of {len(items):,} items: {', '.join(parts)}"


def _has(items: pa.Table, name: str) -> bool:
    if name in items.column_names:
        return True
    return name == "year" and "title" in items.column_names


def _has_values(items: pa.Table, name: str) -> bool:
    """Whether the table has a column with at least one value."""
    if not _has(items, name):
        return False
    values = raw_column(items, name)
    if is_list(values.type):
        values = values.flatten()
    return values.null_count < len(values)


def _usual_kind(name: str, values: pa.Array) -> str:
    """Returns the kind that a column's name and type suggest."""
    kind = values.type
    if is_list(kind):
        return "vector" if pa.types.is_floating(kind.value_type) else "multi"
    if (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_temporal(kind)
    ):
        return "numeric"
    return "words" if name == "title" else "categorical"


def _wrong_type(column: FeatureColumn, found: pa.DataType) -> InputError:
    return InputError(
        f"{column.of} feature `{column.name}` must be a column of kind "
        f"`{column.kind}`; name another kind as `{column.name}:kind`. "
        f"Received: a column of {found}"
    )


# The fewest items with a value that is kept: rarer ones do not generalize.
MIN_COUNTS = {"categorical": 2, "multi": 2, "words": 3}
# An item has at most this many values in a column: the first ones.
MAX_VALUES = 24
_NUM_KNOTS = 16


@dataclasses.dataclass(frozen=True)
class EncodedItems:
    """Encoded features of items, one row per item.

    Attributes:
        values: `[num_items, width]` int32 rows of the table of values, padded
            with 0.
        weights: `[num_items, width]` float32, padded with 0. Each of n values
            in a column has weight 1 / √n; the two weights of a number add up
            to 1.
        vectors: `[num_items, vector_dim]` float32, scaled to a mean of zero
            and a mean squared length of 1; zero if missing.
    """

    values: np.ndarray
    weights: np.ndarray
    vectors: np.ndarray


class ItemEncoder:
    """Encodes items tables as arrays, always with the same values.

    Made by `fit` or `load`.

    Args:
        columns: The features.
        states: The fitted state of each column: `values`, a list of strings;
            `knots`, ascending numbers; or `mean`, numbers, and `scale`.
    """

    def __init__(
        self,
        columns: Sequence[FeatureColumn],
        states: Sequence[dict[str, Any]],
    ) -> None:
        self.columns = list(columns)
        self._states = list(states)

    @classmethod
    def fit(
        cls, items: pa.Table, columns: Sequence[FeatureColumn]
    ) -> ItemEncoder:
        """Finds the values of each column.

        Args:
            items: The trained items only: values of other items would stay
                untrained.
            columns: The features; see `parse_columns`.

        Returns:
            The encoder.

        Raises:
            InputError: A column is missing, its type does not match its kind,
                or no value is frequent enough.
        """
        return cls(columns, [_fit(items, column) for column in columns])

    @property
    def num_values(self) -> int:
        """Rows of the table of values, including row 0 for padding."""
        return 1 + sum(map(_num_values, self._states))

    @property
    def vector_dim(self) -> int:
        """Total length of the vectors of all columns."""
        return sum(len(state.get("mean", ())) for state in self._states)

    @property
    def names(self) -> list[str]:
        """`[num_values]` readable names such as "genres=Drama"."""
        names = [""]
        for column, state in zip(self.columns, self._states, strict=True):
            known = state.get("values", [f"{k:g}" for k in _knots(state)])
            names += [f"{column.name}={value}" for value in known]
        return names

    def encode(self, items: pa.Table) -> EncodedItems:
        """Encodes items, whether or not `fit` saw them.

        Args:
            items: Any items table with the columns.

        Returns:
            The features, without values that `fit` did not keep.

        Raises:
            InputError: A column is missing, or its type does not match.
        """
        none = np.zeros((len(items), 0), np.float32)
        parts, vectors = [(none.astype(np.int32), none)], [none]
        for number, column in enumerate(self.columns):
            state = self._states[number]
            if "mean" in state:
                vectors.append(_encode_vectors(items, column, state))
            else:
                raw = raw_column(items, column.name, column.of)
                parts.append(self.encode_column(number, raw))
        values, weights = (
            np.concatenate(each, axis=1) for each in zip(*parts, strict=True)
        )
        # Moves padding to the end and drops columns that hold nothing else.
        order = np.argsort(weights == 0, axis=1, kind="stable")
        order = order[:, : np.count_nonzero(weights, axis=1).max(initial=0)]
        return EncodedItems(
            values=np.take_along_axis(values, order, 1),
            weights=np.take_along_axis(weights, order, 1),
            vectors=np.concatenate(vectors, axis=1),
        )

    def levels(self, number: int) -> list[Any]:
        """Returns the values, or the knots, that `fit` kept of a column.

        Args:
            number: The position of the column in `columns`.
        """
        state = self._states[number]
        return list(state.get("values", _knots(state)))

    def first_row(self, number: int) -> int:
        """Returns the row of the first value of a column; see `encode_column`.

        Args:
            number: The position of the column in `columns`.
        """
        before = self._states[:number]
        if "mean" in self._states[number]:
            num_before = sum(len(state.get("mean", ())) for state in before)
            return self.num_values + num_before
        return 1 + sum(map(_num_values, before))

    def scaling(self, number: int) -> tuple[np.ndarray, np.float32]:
        """Returns what is subtracted from vectors, and what divides them.

        Args:
            number: The position of a column of vectors in `columns`.
        """
        return _scaling(self._states[number])

    def encode_column(
        self, number: int, values: pa.Array
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes one column as rows of a table and their weights.

        A vector counts as its numbers, each the weight of a row of its own;
        those rows come after the `num_values` of the other columns.

        Args:
            number: The position of the column in `columns`.
            values: Its raw values.

        Returns:
            `[num_values, width]` int32 rows below `num_values + vector_dim`
            and float32 weights, 0 where there is none.

        Raises:
            InputError: The values' type does not match.
        """
        column, state = self.columns[number], self._states[number]
        table = pa.table({column.name: values})
        first = self.first_row(number)
        if "mean" in state:
            weights = _encode_vectors(table, column, state)
            rows = np.arange(first, first + weights.shape[1])
            return np.tile(rows, (len(weights), 1)).astype(np.int32), weights
        encode = _encode_numbers if "knots" in state else _encode_text
        rows, weights = encode(table, column, state)
        rows = np.where(weights > 0, rows + first, 0).astype(np.int32)
        return rows, weights.astype(np.float32)

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the columns and what was fitted, ready for JSON."""
        fields = ("name", "kind", "separator")
        return [
            {**{f: getattr(column, f) for f in fields}, **state}
            for column, state in zip(self.columns, self._states, strict=True)
        ]

    @classmethod
    def from_json(
        cls, content: Any, path: object, of: str = "item"
    ) -> ItemEncoder:
        """Returns the encoder that `to_json` described.

        Args:
            content: What it returned.
            path: Where that was read, for messages.
            of: What a row is.

        Raises:
            InputError: It is not such a description.
        """
        columns, states = [], []
        try:
            for entry in content:
                fields = ("name", "kind", "separator")
                given = {name: entry.pop(name) for name in fields}
                column = FeatureColumn(**given, of=of)
                for name, kind in _STATES.get(column.kind, _TEXT_STATE).items():
                    if not isinstance(entry[name], kind):
                        raise TypeError(f"`{name}` of column {column.name!r}")
                columns.append(column)
                states.append(entry)
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: expected the {of} features of a model, as JSON. "
                f"Received: {error}"
            ) from error
        return cls(columns, states)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file."""
        content = self.to_json()
        text = json.dumps({"columns": content}, ensure_ascii=False, indent=1)
        with atomic_path(pathlib.Path(path)) as temporary:
            temporary.write_text(text + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ItemEncoder:
        """Reads a file that `save` wrote.

        Raises:
            InputError: The file is missing or invalid.
        """
        content = read_json_object(pathlib.Path(path), columns=list)
        return cls.from_json(content["columns"], path)


# What is fitted of a column, by its kind.
_STATES: dict[str, dict[str, Any]] = {
    "vector": {"mean": list, "scale": (float, int)},
    "numeric": {"knots": list},
}
_TEXT_STATE = {"values": list}


def _fit(items: pa.Table, column: FeatureColumn) -> dict[str, Any]:
    if column.kind == "vector":
        found = vectors(items, column)
        known = found[~np.isnan(found).any(axis=1)]
        if len(known):
            mean = known.mean(axis=0, dtype=np.float64)
            scale = np.sqrt(np.mean(np.sum((known - mean) ** 2, axis=1)))
            return {"mean": mean.tolist(), "scale": float(scale) or 1.0}
    elif column.kind == "numeric":
        known = numbers(items, column)
        known = known[~np.isnan(known)]
        if len(known):
            shares = np.linspace(0, 1, _NUM_KNOTS)
            knots = np.unique(np.quantile(known, shares))
            return {"knots": knots.tolist()}
    else:
        lists = text_values(items, column)
        _, values = _flatten(lists)
        counted = pc.value_counts(values)
        counts = counted.field("counts").to_numpy()
        kept = counted.field("values").filter(
            pa.array(counts >= MIN_COUNTS[column.kind])
        )
        if len(kept):
            return {"values": sorted(kept.to_pylist())}
    rows = {"item": "items", "user": "users"}.get(column.of, "events")
    raise InputError(
        f"{column.of} feature `{column.name}` must have a value that several "
        f"{rows} share. Received: none among {len(items):,} {rows}"
    )


def _flatten(lists: pa.ListArray) -> tuple[np.ndarray, pa.Array]:
    """Returns the row and the value of each distinct value in a row."""
    values = pc.utf8_trim_whitespace(lists.flatten())
    # Arrow's parent indices would include values hidden under a null.
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    rows = np.repeat(np.arange(len(lists)), lengths)
    coded = values.dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    # Nulls, empty strings and duplicates are dropped.
    codes = np.where(pc.equal(values, "").fill_null(True), -1, codes)
    keys = rows * (len(coded.dictionary) + 1) + codes
    _, first = np.unique(keys, return_index=True)
    kept = np.sort(first[codes[first] >= 0])
    return rows[kept], values.take(pa.array(kept))


def _encode_text(
    items: pa.Table, column: FeatureColumn, state: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[num_items, width]` values, from 0, and their weights."""
    rows, values = _flatten(text_values(items, column))
    known = pa.array(state["values"], pa.string())
    found = pc.index_in(values, value_set=known).fill_null(-1).to_numpy()
    rows, found = rows[found >= 0], found[found >= 0]
    # The position of each value in its row.
    starts = np.searchsorted(rows, rows, "left")
    place = np.arange(len(rows)) - starts
    rows, found, place = (
        each[place < MAX_VALUES] for each in (rows, found, place)
    )
    counts = np.bincount(rows, minlength=len(items))
    shape = (len(items), int(counts.max(initial=0)))
    padded, weights = np.zeros(shape, np.int64), np.zeros(shape)
    padded[rows, place] = found
    weights[rows, place] = 1 / np.sqrt(counts[rows])
    return padded, weights


def _encode_numbers(
    items: pa.Table, column: FeatureColumn, state: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[num_items, 2]` knots, from 0, and their weights."""
    knots = np.array(state["knots"])
    found = numbers(items, column)
    known = ~np.isnan(found)
    # Numbers beyond the knots are clipped.
    place = np.interp(np.where(known, found, 0), knots, np.arange(len(knots)))
    below = np.floor(place).astype(np.int64)
    share = place - below
    values = np.stack([below, np.minimum(below + 1, len(knots) - 1)], axis=1)
    weights = np.stack([1 - share, share], axis=1)
    return values, weights * known[:, np.newaxis]


def _encode_vectors(
    items: pa.Table, column: FeatureColumn, state: dict[str, Any]
) -> np.ndarray:
    found = vectors(items, column)
    mean, scale = _scaling(state)
    if found.shape[1] != len(mean):
        raise InputError(
            f"{column.of} feature `{column.name}` must hold vectors of length "
            f"{len(mean)}. Received length: {found.shape[1]}"
        )
    return np.nan_to_num((found - mean) / scale, nan=0.0)


def _scaling(state: dict[str, Any]) -> tuple[np.ndarray, np.float32]:
    return np.array(state["mean"], np.float32), np.float32(state["scale"])


def _knots(state: dict[str, Any]) -> list[float]:
    return state.get("knots", [])


def _num_values(state: dict[str, Any]) -> int:
    return len(state.get("values", ())) + len(_knots(state))
