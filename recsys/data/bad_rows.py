"""Finding the row that made a file unreadable, to name it in the message.

Arrow reads in parallel and does not always know the line. Only after it has
failed is the file read once more, slowly, up to the first bad row.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import math
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from recsys.data import files
from recsys.data.columns import ColumnNames
from recsys.errors import InputError


@dataclasses.dataclass(frozen=True)
class TextForm:
    """How the rows of a text file are written.

    Attributes:
        header: The column names, one for each column that Arrow sees.
        delimiter: What stands between two columns.
        has_header: Whether the first line is the header.
        blank_columns: Columns that Arrow sees and that must be empty.
        fallback_encoding: How a line that is not UTF-8 is read.
    """

    header: Sequence[str]
    delimiter: str
    has_header: bool = True
    blank_columns: Sequence[str] = ()
    fallback_encoding: str | None = None


def raise_text(
    file: Traversable, names: ColumnNames, form: TextForm, reason: str
) -> NoReturn:
    """Raises the InputError that names the first bad line of a text file.

    Args:
        file: The file.
        names: Its columns.
        form: How its rows are written.
        reason: What to say when every single row looks good.
    """
    columns = [name for name in form.header if name not in form.blank_columns]
    roles = {
        role: columns.index(name)
        for role, name in dataclasses.asdict(names).items()
        if name is not None
    }
    first_kind = None
    for number, row in _rows(file, form):
        where = f"{file}, line {number}: expected"
        _check_length(file, number, row, len(columns), form)
        for role in ("user", "item"):
            if not row[roles[role]].strip():
                raise InputError(
                    f"{where} the {role} id in column "
                    f"{getattr(names, role)!r}. Received: an empty one"
                )
        value = row[roles["timestamp"]]
        kind = _timestamp_kind(value)
        first_kind = first_kind or kind
        if kind is None or kind != first_kind:
            raise InputError(
                f"{where} a {first_kind or 'number or an ISO date'} in the "
                f"timestamp column {names.timestamp!r}. Received: {value!r}"
            )
        if names.rating and not _is_rating(row[roles["rating"]]):
            raise InputError(
                f"{where} a number in the rating column {names.rating!r}. "
                f"Received: {row[roles['rating']]!r}"
            )
    raise InputError(
        f"{file}: expected rows of user, item and timestamp. Received: "
        + " ".join(reason.split())
    )


def raise_ragged(file: Traversable, form: TextForm, reason: str) -> NoReturn:
    """Raises the InputError that names the first line of a wrong length.

    Args:
        file: The file.
        form: How its rows are written.
        reason: What to say when every row has its length.
    """
    for number, row in _rows(file, form):
        _check_length(file, number, row, len(form.header), form)
    raise InputError(
        f"{file}: expected a table. Received: {' '.join(reason.split())}"
    )


def _check_length(
    file: Traversable,
    number: int,
    row: list[str],
    num_columns: int,
    form: TextForm,
) -> None:
    if len(row) != num_columns:
        raise InputError(
            f"{file}, line {number}: expected {num_columns} columns. "
            f"Received {len(row)}: {form.delimiter.join(row)[:120]!r}"
        )


def _rows(file: Traversable, form: TextForm) -> Iterator[tuple[int, list[str]]]:
    """Yields line numbers and rows, without the header and blank lines."""
    all_lines = files.lines(file, form.fallback_encoding)
    if form.has_header:
        reader = csv.reader(all_lines, delimiter=form.delimiter)
        next((row for row in reader if row), None)
        try:
            yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as error:
            raise InputError(
                f"{file}, line {reader.line_num}: expected a row of a table. "
                f"Received: {error}"
            ) from error
        return
    for number, line in enumerate(all_lines, 1):
        line = line.rstrip("\r\n")
        if line:
            yield number, line.split(form.delimiter)


def _timestamp_kind(value: str) -> str | None:
    try:
        return "number" if math.isfinite(float(value)) else None
    except ValueError:
        pass
    try:
        datetime.datetime.fromisoformat(value.strip())
        return "date"
    except ValueError:
        return None


def _is_rating(value: str) -> bool:
    if not value.strip():
        return True
    try:
        float(value)
        return True
    except ValueError:
        return value.lower() in ("na", "n/a", "null", "none")


def ids_as_strings(
    ids: pa.ChunkedArray, file: object, names: ColumnNames, role: str
) -> pa.ChunkedArray:
    """Returns a typed column of ids as a dictionary of strings.

    Args:
        ids: Strings or whole numbers, whatever their Arrow type.
        file: The name of the file, for messages.
        names: Its columns.
        role: "user" or "item".

    Raises:
        InputError: The ids are of another type, or fractions.
    """
    if not pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_encode()
    values = ids.type.value_type
    name = getattr(names, role)
    where = f"{file}: expected ids in the {role} column {name!r}"
    if pa.types.is_floating(values):
        for chunk in ids.chunks:
            whole = pc.equal(chunk.dictionary, pc.floor(chunk.dictionary))
            if not pc.all(whole).as_py():
                odd = chunk.dictionary.filter(pc.invert(whole))[0].as_py()
                raise InputError(f"{where}. Received: {odd!r}")
        values = pa.int64()
    elif not (
        pa.types.is_integer(values)
        or pa.types.is_string(values)
        or pa.types.is_large_string(values)
    ):
        raise InputError(f"{where}. Received: a column of {values}")
    chunks = [
        pa.DictionaryArray.from_arrays(
            chunk.indices.cast(pa.int32()),
            chunk.dictionary.cast(values).cast(pa.string()),
        )
        for chunk in ids.chunks
    ]
    return pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))


def raise_columns(
    file: Traversable, names: ColumnNames, table: pa.Table
) -> NoReturn:
    """Raises the InputError that names the first bad row of typed columns.

    Args:
        file: The file.
        names: Its columns.
        table: Columns "user" and "item" of strings, and "timestamp".
    """
    for role in ("user", "item"):
        text = table[role].cast(pa.string()).fill_null("")
        row = pc.index(pc.utf8_trim_whitespace(text), "").as_py()
        if row >= 0:
            raise InputError(
                f"{file}, row {row + 1}: expected the {role} id in column "
                f"{getattr(names, role)!r}. Received: an empty one"
            )
    times = table["timestamp"]
    where = f"a number or a date in the timestamp column {names.timestamp!r}"
    if times.null_count < len(times) and pa.types.is_floating(times.type):
        times = pc.if_else(pc.is_finite(times), times, None)
    if times.null_count:
        row = pc.index(pc.is_null(times), True).as_py()
        raise InputError(
            f"{file}, row {row + 1}: expected {where}. "
            f"Received: {table['timestamp'][row].as_py()}"
        )
    raise InputError(
        f"{file}: expected {where}. Received: a column of {times.type}"
    )
