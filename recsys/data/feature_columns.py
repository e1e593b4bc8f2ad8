"""Columns of an items table as features: which, of which kind, which values."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.items import NO_GENRES, is_list
from recsys.errors import InputError

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
