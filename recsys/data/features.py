"""Columns that describe the items, and their encoding as arrays."""

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

from recsys.data.items import NO_GENRES, is_list
from recsys.errors import InputError
from recsys.files import atomic_path

KINDS = ("categorical", "multi", "words", "numeric", "vector")
DEFAULT_SEPARATOR = "|"
# What `auto` takes where an items table has it.
_USUAL = ("genres", "year", "title")
_YEAR_IN_TITLE = r"\((?P<year>\d{4})(?:[-–]\d{0,4})?\)\s*$"
_NO_WORD = r"[^\p{L}\p{N}]+"
# A comma divides columns, unless it is the separator of a multi-valued one.
_COMMA = re.compile(r"(?<!:multi:),")


@dataclasses.dataclass(frozen=True)
class FeatureColumn:
    """A column of an items table that describes the items.

    Attributes:
        name: The column. `year` is taken from the end of the titles, as in
            "Toy Story (1995)", where the table has no such column.
        kind: "categorical", one value; "multi", several values (a list, or
            text with separators); "words", the words of a text; "numeric", a
            number; "vector", numbers that were made elsewhere (a list, or
            text with blanks or commas between).
        separator: What stands between the values of a "multi" column of text.

    Raises:
        InputError: The kind is unknown, or the separator empty.
    """

    name: str
    kind: str
    separator: str = DEFAULT_SEPARATOR

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"the kind of item feature `{self.name}` must be one of "
                f"{', '.join(KINDS)}. Received: {self.kind!r}"
            )
        if not self.separator:
            raise InputError(
                f"the separator of item feature `{self.name}` must not be "
                "empty. Received: ''"
            )


def parse_columns(text: str, items: pa.Table) -> list[FeatureColumn]:
    """Reads which columns are features from what a user wrote.

    Args:
        text: "auto" (genres, year and title, where the table tells them of
            any item), or column names with commas between, each with its
            kind and its separator behind it where these are not what the
            column's type and name suggest:
            `genres,year,tags:multi:;,brand:categorical`.
        items: The items table.

    Returns:
        The columns, each once.

    Raises:
        InputError: A column is missing or there twice, a kind is unknown, or
            nothing is left.
    """
    if text.strip() == "auto":
        parts = [name for name in _USUAL if _tells(items, name)]
    else:
        parts = [part.strip() for part in _COMMA.split(text)]
    columns: list[FeatureColumn] = []
    for part in filter(None, parts):
        name, _, rest = part.partition(":")
        kind, _, separator = rest.partition(":")
        column = FeatureColumn(
            name,
            kind or _usual_kind(name, raw_column(items, name)),
            separator or DEFAULT_SEPARATOR,
        )
        if name in (other.name for other in columns):
            raise InputError(
                f"item features must name each column once. Received: {text!r}"
            )
        columns.append(column)
    if not columns:
        raise InputError(
            "item features must name at least one column. Received: "
            f"{text!r} for an items table of {', '.join(items.column_names)}"
        )
    return columns


def raw_column(items: pa.Table, name: str) -> pa.Array:
    """Returns a column of an items table as it is.

    Args:
        items: The items table.
        name: A column, or `year`.

    Returns:
        One value per row.

    Raises:
        InputError: There is no such column.
    """
    if name in items.column_names:
        return items.column(name).combine_chunks()
    if _has(items, name):
        titles = items.column("title").combine_chunks()
        found = pc.extract_regex(titles, _YEAR_IN_TITLE)
        return pc.struct_field(found, "year").cast(pa.float32())
    known = [column for column in items.column_names if column != "item_id"]
    raise InputError(
        "an item feature must be a column of the items file "
        f"({', '.join(known) or 'which has none but the ids'}). "
        f"Received: {name!r}"
    )


def text_values(items: pa.Table, column: FeatureColumn) -> pa.ListArray:
    """Returns the values of a categorical, multi-valued or words column.

    Args:
        items: The items table.
        column: The column.

    Returns:
        One list of strings per row, without blanks around them, empty
        strings and the usual names for "no genre"; null where none is known.

    Raises:
        InputError: The column's type does not fit its kind.
    """
    values = raw_column(items, column.name)
    try:
        if is_list(values.type) and column.kind == "multi":
            return values.cast(pa.list_(pa.string()))
        text = values.cast(pa.string())
    except pa.ArrowException as error:
        raise _wrong_type(column, values.type) from error
    if column.kind == "words":
        text = pc.replace_substring_regex(text, _YEAR_IN_TITLE, "")
        return pc.split_pattern_regex(pc.utf8_lower(text), _NO_WORD)
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
        `[num_items]` float64, NaN where none is known.

    Raises:
        InputError: The column's type does not fit its kind.
    """
    values = raw_column(items, column.name)
    try:
        if pa.types.is_temporal(values.type):
            seconds = values.cast(pa.timestamp("s"), safe=False)
            values = seconds.cast(pa.int64())
        # Not safe: large whole numbers may be rounded.
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
        `[num_items, dim]` float32, NaN in the rows of which none is known or
        one that is not finite.

    Raises:
        InputError: The column's type does not fit its kind, or the vectors
            differ in length.
    """
    raw = values = raw_column(items, column.name)
    try:
        if pa.types.is_string(raw.type) or pa.types.is_large_string(raw.type):
            trimmed = pc.utf8_trim(values.cast(pa.string()), " []()")
            values = pc.split_pattern_regex(trimmed, r"[,;\s]+")
        rows = values.cast(pa.list_(pa.float32())).drop_null()
        flat = rows.flatten()
    except pa.ArrowException as error:
        raise _wrong_type(column, raw.type) from error
    lengths = np.unique(pc.list_value_length(rows).to_numpy())
    if len(lengths) != 1 or not lengths[0] or flat.null_count:
        raise InputError(
            f"item feature `{column.name}` must hold vectors of one length. "
            f"Received lengths: {', '.join(map(str, lengths[:5])) or 'none'}"
        )
    found = np.full((len(values), lengths[0]), np.nan, np.float32)
    known = values.is_valid().to_numpy(zero_copy_only=False)
    found[known] = flat.to_numpy().reshape(-1, lengths[0])
    found[~np.isfinite(found).all(axis=1)] = np.nan
    return found


def _has(items: pa.Table, name: str) -> bool:
    if name in items.column_names:
        return True
    return name == "year" and "title" in items.column_names


def _tells(items: pa.Table, name: str) -> bool:
    """Whether the table has a column with anything in it."""
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
        f"item feature `{column.name}` must be a column of kind "
        f"`{column.kind}`; name another kind as `{column.name}:kind`. "
        f"Received: a column of {found}"
    )


# Values of fewer items teach nothing about others.
MIN_COUNTS = {"categorical": 2, "multi": 2, "words": 3}
# Values of one item in one column, at most: the first ones.
MAX_VALUES = 24
_NUM_KNOTS = 16


@dataclasses.dataclass(frozen=True)
class EncodedItems:
    """Features of items; row i is the i-th item.

    Attributes:
        values: `[num_items, width]` int32 rows of the table of values, 0
            where there is none.
        weights: `[num_items, width]` float32, 0 where there is none. Of n
            values in one column each has 1 / √n, the two of a number add up
            to 1.
        vectors: `[num_items, vector_dim]` float32, zero where unknown; made
            elsewhere, with a mean of zero and a mean square length of 1.
    """

    values: np.ndarray
    weights: np.ndarray
    vectors: np.ndarray


class ItemEncoder:
    """Turns an items table into arrays, always with the same values.

    Made by `fit` or `load`.

    Args:
        columns: The features.
        states: What `fit` learned of each column: `values`, a list of strings;
            `knots`, rising numbers; or `mean`, numbers, and `scale`.
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
            items: The items that a model is trained on. Values that only
                others have would stay untrained, so these do not belong here.
            columns: The features; see `parse_columns`.

        Returns:
            The encoder.

        Raises:
            InputError: A column is missing, its type does not fit its kind,
                or no value is frequent enough.
        """
        return cls(columns, [_fit(items, column) for column in columns])

    @property
    def num_values(self) -> int:
        """Rows of the table of values, with row 0, which none has."""
        return 1 + sum(map(_num_values, self._states))

    @property
    def vector_dim(self) -> int:
        """Length of the vectors of all columns together."""
        return sum(len(state.get("mean", ())) for state in self._states)

    @property
    def names(self) -> list[str]:
        """`[num_values]` names such as "genres=Drama", for people."""
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
            Their features. A value that `fit` did not keep is left out.

        Raises:
            InputError: A column is missing, or its type does not fit.
        """
        none = np.zeros((len(items), 0), np.float32)
        parts, vectors = [(none.astype(np.int64), none)], [none]
        first = 1
        for column, state in zip(self.columns, self._states, strict=True):
            if "mean" in state:
                vectors.append(_encode_vectors(items, column, state))
                continue
            encode = _encode_numbers if "knots" in state else _encode_text
            values, weights = encode(items, column, state)
            parts.append((np.where(weights > 0, values + first, 0), weights))
            first += _num_values(state)
        values, weights = (
            np.concatenate(each, axis=1) for each in zip(*parts, strict=True)
        )
        # Each item's values to the front, in as few places as can be.
        order = np.argsort(weights == 0, axis=1, kind="stable")
        order = order[:, : np.count_nonzero(weights, axis=1).max(initial=0)]
        return EncodedItems(
            values=np.take_along_axis(values, order, 1).astype(np.int32),
            weights=np.take_along_axis(weights, order, 1).astype(np.float32),
            vectors=np.concatenate(vectors, axis=1),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file."""
        content = [
            {**dataclasses.asdict(column), **state}
            for column, state in zip(self.columns, self._states, strict=True)
        ]
        text = json.dumps({"columns": content}, ensure_ascii=False, indent=1)
        with atomic_path(pathlib.Path(path)) as temporary:
            temporary.write_text(text + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ItemEncoder:
        """Reads what `save` wrote.

        Raises:
            InputError: The file is missing or of another kind.
        """
        try:
            content = json.loads(pathlib.Path(path).read_text("utf-8"))
            columns, states = [], []
            for entry in content["columns"]:
                fields = ("name", "kind", "separator")
                columns.append(FeatureColumn(*(entry.pop(f) for f in fields)))
                states.append(entry)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: expected the item features of a model, as JSON. "
                f"Received: {error}"
            ) from error
        return cls(columns, states)


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
    raise InputError(
        f"item feature `{column.name}` must tell items apart. Received: "
        f"no value that enough of {len(items):,} items have"
    )


def _flatten(lists: pa.ListArray) -> tuple[np.ndarray, pa.Array]:
    """Returns each row's distinct values, and their rows."""
    values = pc.utf8_trim_whitespace(lists.flatten())
    # Not Arrow's parent indices, which count what may lie under a null.
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    rows = np.repeat(np.arange(len(lists)), lengths)
    coded = values.dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    # Null and empty strings are no values; one twice is one.
    codes = np.where(pc.equal(values, "").fill_null(True), -1, codes)
    keys = rows * (len(coded.dictionary) + 1) + codes
    _, first = np.unique(keys, return_index=True)
    kept = np.sort(first[codes[first] >= 0])
    return rows[kept], values.take(pa.array(kept))


def _encode_text(
    items: pa.Table, column: FeatureColumn, state: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[num_items, width]` values from 0, and weights."""
    rows, values = _flatten(text_values(items, column))
    known = pa.array(state["values"], pa.string())
    found = pc.index_in(values, value_set=known).fill_null(-1).to_numpy()
    rows, found = rows[found >= 0], found[found >= 0]
    # The place of each value within its row.
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
    """Returns `[num_items, 2]` knots from 0, and weights."""
    knots = np.array(state["knots"])
    found = numbers(items, column)
    known = ~np.isnan(found)
    # Beyond the knots an item is at the last.
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
    mean = np.array(state["mean"], np.float32)
    if found.shape[1] != len(mean):
        raise InputError(
            f"item feature `{column.name}` must hold vectors of length "
            f"{len(mean)}. Received length: {found.shape[1]}"
        )
    scaled = (found - mean) / np.float32(state["scale"])
    return np.nan_to_num(scaled, nan=0.0)


def _knots(state: dict[str, Any]) -> list[float]:
    return state.get("knots", [])


def _num_values(state: dict[str, Any]) -> int:
    return len(state.get("values", ())) + len(_knots(state))
