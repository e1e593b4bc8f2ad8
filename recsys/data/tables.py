"""Logs in CSV, TSV and Parquet files: columns, rows and their errors."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from recsys.data.columns import ColumnNames
from recsys.data.input_files import (
    BLOCK_BYTES,
    Parsing,
    Quoting,
    TextForm,
    arrow_stream,
    check_quotes,
    file_kind,
    line_of_row,
    parse_options,
    possible_quotings,
    raise_ragged,
    read_header,
    read_quoted,
    readable,
)
from recsys.data.interactions import Interactions, number_by_appearance
from recsys.errors import InputError


def raise_first_fault(
    file: Any,
    names: ColumnNames,
    table: pa.Table,
    form: TextForm | None,
) -> NoReturn:
    """Raises the InputError that names the first bad row of a log.

    Args:
        file: The file.
        names: Its columns.
        table: Columns "user", "item", "timestamp" and "rating", where there is
            one, as strings or as values of any type.
        form: How its rows are written; None for a Parquet file.
    """
    try:
        columns = table.to_pydict()
    except (LookupError, OverflowError) as error:
        raise InputError(
            f"{file}: expected dates of the years 1 to 9999 in a known time "
            f"zone. Received: {' '.join(str(error).split())}"
        ) from error
    ratings = columns.get("rating", [None] * len(table))
    first_kind = None
    for row, (user, item, time, rating) in enumerate(
        zip(
            columns["user"],
            columns["item"],
            columns["timestamp"],
            ratings,
            strict=True,
        )
    ):
        kind = _time_kind(time)
        first_kind = first_kind or kind
        expected = None
        if not str(user or "").strip():
            expected, value = f"the user id in column {names.user!r}", user
        elif not str(item or "").strip():
            expected, value = f"the item id in column {names.item!r}", item
        elif kind is None or kind != first_kind:
            what = first_kind or "number or an ISO date"
            expected = f"a {what} in the timestamp column {names.timestamp!r}"
            value = time
        elif not _is_rating(rating):
            expected = f"a number in the rating column {names.rating!r}"
            value = rating
        if expected is not None:
            where = (
                f"row {row + 1}"
                if form is None
                else f"line {line_of_row(file, form, row)}"
            )
            raise InputError(
                f"{file}, {where}: expected {expected}. Received: "
                + ("an empty one" if " id in " in expected else repr(value))
            )
    raise InputError(
        f"{file}: expected rows of user, item and timestamp. Received: a "
        f"timestamp column {names.timestamp!r} of {table['timestamp'].type}"
    )


def _time_kind(value: object) -> str | None:
    """Returns "number" or "date"; None for anything else."""
    if isinstance(value, (datetime.date, datetime.datetime)):
        return "date"
    try:
        return "number" if math.isfinite(float(str(value))) else None
    except ValueError:
        pass
    try:
        datetime.datetime.fromisoformat(str(value).strip())
        return "date"
    except ValueError:
        return None


def _is_rating(value: object) -> bool:
    text = str("" if value is None else value).strip().lower()
    try:
        return text in ("", "na", "n/a", "null", "none") or bool(
            float(text) is not None
        )
    except ValueError:
        return False


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
        InputError: The ids are of another type, fractions, or floats too
            large to tell apart.
    """
    name = getattr(names, role)
    where = f"{file}: expected ids in the {role} column {name!r}"
    if pa.types.is_float16(ids.type):
        # Arrow has no dictionaries of these.
        raise InputError(f"{where}. Received: a column of {ids.type}")
    is_encoded = pa.types.is_dictionary(ids.type)
    values = ids.type.value_type if is_encoded else ids.type
    if not (
        pa.types.is_integer(values)
        or pa.types.is_floating(values)
        or pa.types.is_string(values)
        or pa.types.is_large_string(values)
    ):
        raise InputError(f"{where}. Received: a column of {values}")
    if not is_encoded:
        ids = ids.dictionary_encode()
    if pa.types.is_floating(values):
        precision = 24 if pa.types.is_float32(values) else 53
        for chunk in ids.chunks:
            numbers = chunk.dictionary.cast(pa.float64())
            whole = pc.and_(
                pc.equal(numbers, pc.floor(numbers)),
                pc.less(pc.abs(numbers), 2.0**precision),
            )
            if not pc.all(whole).as_py():
                odd = numbers.filter(pc.invert(whole))[0].as_py()
                raise InputError(
                    f"{where}: text, integers, or floats that are whole "
                    f"numbers below 2^{precision}, beyond which they merge. "
                    f"Received: {odd!r}"
                )
        values = pa.int64()
    chunks = [
        pa.DictionaryArray.from_arrays(
            chunk.indices.cast(pa.int32()),
            chunk.dictionary.cast(values).cast(pa.string()),
        )
        for chunk in ids.chunks
    ]
    return pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))


_ID_TYPE = pa.dictionary(pa.int32(), pa.string())


def read_tables(
    parts: Sequence[Traversable], given: ColumnNames
) -> tuple[Interactions, ColumnNames]:
    """Reads the parts of one log.

    Args:
        parts: Files of one format with the same columns, in order.
        given: The column names that the user gave.

    Returns:
        The interactions, and the column names as the files spell them.

    Raises:
        InputError: A file cannot be read, or the parts do not fit together.
    """
    names = find_names(parts, given)
    tables = [_read_part(part, given) for part in parts]
    return assemble(tables, parts), names


def _read_part(part: Traversable, given: ColumnNames) -> pa.Table:
    if file_kind(part) == "parquet":
        return _read_parquet(part, given)
    header, delimiter = read_header(part)
    names = given.find(header, part)
    return read_text(part, names, TextForm(header, delimiter))


def find_names(parts: Sequence[Traversable], given: ColumnNames) -> ColumnNames:
    """Returns the columns of the parts of a log as they spell them.

    Args:
        parts: Files of one log.
        given: The column names that the user gave.

    Raises:
        InputError: A part cannot be read or lacks a column, or its columns
            are not those of the first.
    """
    first, *others = parts
    names = given.find(_header(first), first)
    for part in others:
        found = given.find(_header(part), part)
        if found != names:
            raise InputError(
                f"{part}: expected the columns of {first}, "
                f"{_spell(names)}. Received: {_spell(found)}"
            )
    return names


def _header(part: Traversable) -> list[str]:
    if file_kind(part) == "parquet":
        with readable(part), part.open("rb") as stream:
            return pq.read_schema(stream).names
    return read_header(part)[0]


def num_row_groups(part: Traversable) -> int:
    """Returns how many row groups a Parquet file has."""
    with readable(part), part.open("rb") as stream:
        return pq.ParquetFile(stream).num_row_groups


def stream(
    part: Traversable, given: ColumnNames, row_group: int | None = None
) -> Iterator[Interactions]:
    """Reads a part some rows at a time.

    The columns are understood as in `read_tables`, except that the kind of
    the timestamps must be plain from the first rows, that no value holds a
    line break, and that each block by itself says whether its ids are whole
    numbers with a needless ".0", which is dropped.

    Args:
        part: A CSV, TSV or Parquet file.
        given: The column names that the user gave.
        row_group: Which of a Parquet file's row groups. Default: all rows.

    Yields:
        The interactions, in the order of the file.

    Raises:
        InputError: The file cannot be read.
    """
    if file_kind(part) == "parquet":
        table = _read_parquet(part, given, row_group)
        if len(table):
            yield assemble([_in_one_unit(table, part)], [part])
        return
    header, delimiter = read_header(part)
    names = given.find(header, part)
    form = TextForm(header, delimiter)
    quoting = _streamed_quoting(part, names, form)
    with readable(part), arrow_stream(part) as opened:
        try:
            batches = pa_csv.open_csv(opened, *_parsing(names, form, quoting))
            for batch in batches:
                table = _with_roles(pa.Table.from_batches([batch]), names)
                if not _is_sound(table):
                    raise pa.ArrowInvalid("an id is missing, or no time")
                if len(table):
                    yield assemble([_in_one_unit(table, part)], [part])
            return
        except pa.ArrowInvalid as error:
            reason = str(error)
    _raise_text(part, names, form, quoting, reason)


def _streamed_quoting(
    part: Traversable, names: ColumnNames, form: TextForm
) -> Quoting:
    """Returns how a file is quoted, reading it once if it has quotes."""
    quotings, num_rows = possible_quotings(part, form)
    if num_rows is None:
        return quotings[0]
    for quoting in quotings:
        read, convert = _parsing(names, form, quoting)[::2]
        convert.include_columns = [names.user]
        with readable(part), arrow_stream(part) as opened:
            try:
                parse = _parsing(names, form, quoting)[1]
                batches = pa_csv.open_csv(opened, read, parse, convert)
                if sum(batch.num_rows for batch in batches) == num_rows:
                    return quoting
            except pa.ArrowInvalid:
                continue
    check_quotes(part, form)
    raise InputError(
        f"{part}: expected values without line breaks, which only a log that "
        "is read whole may hold. Received: a quoted value with one"
    )


def read_text(
    file: Traversable, names: ColumnNames, form: TextForm
) -> pa.Table:
    """Reads the columns of one text file, plain or gzip.

    Args:
        file: The file.
        names: Its columns.
        form: How its rows are written.

    Returns:
        Columns "user" and "item" (dictionaries of strings), "timestamp"
        (as Arrow understood it) and, if there is one, "rating".

    Raises:
        InputError: The file is damaged or has a malformed row, which the
            message names by its line.
    """
    table, quoting, reason = read_quoted(
        file, form, lambda quoting: _parsing(names, form, quoting)
    )
    if table is not None:
        table = _with_roles(table, names)
        if _is_sound(table):
            return table
    _raise_text(file, names, form, quoting, reason)


def _raise_text(
    file: Traversable,
    names: ColumnNames,
    form: TextForm,
    quoting: Quoting,
    reason: str,
) -> NoReturn:
    """Raises the InputError that names the first bad line of a text file."""
    read, parse, convert = _parsing(names, form, quoting)
    convert.column_types = {
        name: pa.null() if name in form.blank_columns else pa.string()
        for name in convert.include_columns
    }
    try:
        with readable(file), arrow_stream(file) as stream:
            table = pa_csv.read_csv(stream, read, parse, convert)
    except InputError:
        raise_ragged(file, form, reason)
    raise_first_fault(file, names, _with_roles(table, names), form)


def _parsing(names: ColumnNames, form: TextForm, quoting: Quoting) -> Parsing:
    types = {names.user: _ID_TYPE, names.item: _ID_TYPE}
    types.update((name, pa.null()) for name in form.blank_columns)
    if names.rating:
        types[names.rating] = pa.float32()
    for name in names.others:
        if name != names.timestamp:
            types.setdefault(name, _ID_TYPE)
    wanted = list(dict.fromkeys(names.by_role.values()))
    return (
        pa_csv.ReadOptions(
            block_size=BLOCK_BYTES,
            column_names=None if form.has_header else list(form.header),
        ),
        parse_options(form, quoting),
        pa_csv.ConvertOptions(
            column_types=types,
            include_columns=wanted + list(form.blank_columns),
        ),
    )


def _read_parquet(
    file: Traversable, given: ColumnNames, row_group: int | None = None
) -> pa.Table:
    with readable(file), file.open("rb") as opened:
        schema = pq.ParquetFile(opened).schema_arrow
        names = given.find(schema.names, file)
        strings = [
            name
            for name in {names.user, names.item, *names.others}
            if schema.field(name).type == pa.string()
            and name not in (names.timestamp, names.rating)
        ]
        opened.seek(0)
        parquet = pq.ParquetFile(opened, read_dictionary=strings)
        columns = list(dict.fromkeys(names.by_role.values()))
        if row_group is None:
            table = parquet.read(columns)
        else:
            table = parquet.read_row_group(row_group, columns)
        # Text that is not UTF-8, and positions beyond a dictionary.
        table.validate(full=True)
    return _typed_columns(_with_roles(table, names), names, file)


def read_frame(
    frame: Any, given: ColumnNames, where: str
) -> tuple[Interactions, str]:
    """Takes interactions from a frame.

    Args:
        frame: A frame; see `frame_table`.
        given: The column names that the user gave.
        where: What to call it in messages.

    Returns:
        The interactions, and the name of the item column.

    Raises:
        InputError: A column or a value is missing or not as expected.
    """
    table = frame_table(frame, where)
    names = given.find(table.column_names, where)
    table = _typed_columns(_with_roles(table, names), names, where)
    return assemble([table], [where]), names.by_role["item"]


def frame_table(frame: Any, where: str) -> pa.Table:
    """Returns a frame as an Arrow table of plain types.

    Args:
        frame: Whatever `pyarrow.table` takes: a frame with
            `__arrow_c_stream__`, a pandas DataFrame, or arrays by name.
        where: What to call it in messages.

    Returns:
        The table: categories as their values, NaN as missing.

    Raises:
        InputError: It is none of these, or its values have mixed types.
    """
    try:
        table = pa.table(frame)
        columns = [_plain(column) for column in table.columns]
        table = pa.Table.from_arrays(columns, names=table.column_names)
        table.validate(full=True)
    except (TypeError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where}: expected a pandas, Polars, Arrow or DuckDB table, or "
            "arrays by column name, each of one type. Received: "
            f"{type(frame).__name__} ({reason})"
        ) from error
    return table


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns categories as their values, and NaN as missing."""
    is_encoded = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if is_encoded else column.type
    if pa.types.is_string_view(kind):
        kind = pa.string()
    if is_encoded:
        chunks = [
            c.dictionary.cast(kind).take(c.indices) for c in column.chunks
        ]
        column = pa.chunked_array(chunks, kind)
    elif kind != column.type:
        column = column.cast(kind)
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), None, column)
    return column


def _typed_columns(
    table: pa.Table, names: ColumnNames, file: object
) -> pa.Table:
    """Checks columns by role and gives them their types; see `read_text`."""
    for role in ("user", "item"):
        ids = ids_as_strings(table[role], file, names, role)
        table = table.set_column(table.column_names.index(role), role, ids)
    table = table.set_column(2, "timestamp", _typed(table["timestamp"]))
    if names.rating:
        try:
            ratings = table["rating"].cast(pa.float32(), safe=False)
        except pa.ArrowException:
            raise_first_fault(file, names, table, None)
        table = table.set_column(3, "rating", ratings)
    if not _is_sound(table):
        raise_first_fault(file, names, table, None)
    return table


def _typed(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns timestamps that were written as text by what they say."""
    if pa.types.is_string(times.type) or pa.types.is_large_string(times.type):
        for kind in (
            pa.int64(),
            pa.float64(),
            pa.timestamp("us"),
            pa.timestamp("us", tz="UTC"),
        ):
            try:
                return times.cast(kind)
            except pa.ArrowInvalid:
                continue
    return times


def _in_one_unit(table: pa.Table, part: object) -> pa.Table:
    """Makes dates of fractional seconds, also where some rows have none."""
    times = table["timestamp"]
    if not pa.types.is_floating(times.type):
        return table
    micros = pa.array(_whole(times.to_numpy() * 1e6, part))
    return table.set_column(
        table.column_names.index("timestamp"),
        "timestamp",
        micros.cast(pa.timestamp("us")),
    )


def _with_roles(table: pa.Table, names: ColumnNames) -> pa.Table:
    return pa.table({role: table[name] for role, name in names.by_role.items()})


def _is_sound(table: pa.Table) -> bool:
    """Whether no id is missing and every timestamp says a time."""
    for role in ("user", "item"):
        column = table[role]
        if column.null_count:
            return False
        for chunk in column.chunks:
            trimmed = pc.utf8_trim_whitespace(chunk.dictionary)
            if pc.any(pc.equal(trimmed, "")).as_py():
                return False
    times = table["timestamp"]
    if not len(times):
        return True
    kind = times.type
    if times.null_count:
        return False
    if pa.types.is_floating(kind):
        return pc.all(pc.is_finite(times)).as_py()
    return pa.types.is_integer(kind) or _is_date(kind)


def _is_date(kind: pa.DataType) -> bool:
    """Whether a type says a moment; times of a day and durations do not."""
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def assemble(
    tables: Sequence[pa.Table], parts: Sequence[object]
) -> Interactions:
    """Puts the columns of all parts together.

    Args:
        tables: What `read_text` returns, one for each part.
        parts: What the parts are called, for messages.

    Raises:
        InputError: The parts hold no row, or times of different kinds.
    """
    if not any(map(len, tables)):
        raise InputError(
            f"{parts[0]}: expected interactions. Received: a header and no row"
        )
    filled = [
        (table, part)
        for table, part in zip(tables, parts, strict=True)
        if len(table)
    ]
    timestamps, per_second = _timestamps(
        [table["timestamp"] for table, _ in filled],
        [part for _, part in filled],
    )
    tables = [table for table, _ in filled]
    ratings = None
    if "rating" in tables[0].column_names:
        chunks = [c for table in tables for c in table["rating"].chunks]
        ratings = pa.chunked_array(chunks, pa.float32()).to_numpy()
    user_ids, users = _codes([table["user"] for table in tables])
    item_ids, items = _codes([table["item"] for table in tables])
    return Interactions(
        user_ids,
        item_ids,
        users,
        items,
        timestamps,
        ratings,
        per_second,
        _other_columns(tables, [part for _, part in filled]),
    )


def _other_columns(
    tables: Sequence[pa.Table], parts: Sequence[object]
) -> pa.Table | None:
    """Returns the columns without a role, strings as dictionaries."""
    names = [n[1:] for n in tables[0].column_names if n.startswith("+")]
    if not names:
        return None
    found = []
    for table in tables:
        columns = {name: table[f"+{name}"] for name in names}
        for name, column in columns.items():
            if pa.types.is_large_string(column.type) or column.type == "string":
                columns[name] = column.cast(pa.string()).dictionary_encode()
        found.append(pa.table(columns))
    try:
        merged = pa.concat_tables(found, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(
            f"{parts[0]} and the other parts: expected columns of one type. "
            f"Received: {' '.join(str(error).split())}"
        ) from error
    return merged.unify_dictionaries().combine_chunks()


def _codes(
    columns: Sequence[pa.ChunkedArray],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids by first appearance, and each row's position there."""
    chunks = [chunk for column in columns for chunk in column.chunks]
    column = pa.chunked_array(chunks, _ID_TYPE).unify_dictionaries()
    codes = np.concatenate(
        [chunk.indices.to_numpy() for chunk in column.chunks]
    )
    dictionary = pc.utf8_trim_whitespace(column.chunk(0).dictionary)
    # Pandas writes whole numbers with a fraction where one was missing, so
    # that parts of a log can differ in that.
    if pc.all(pc.match_substring_regex(dictionary, r"^-?\d+(\.0)?$")).as_py():
        dictionary = pc.replace_substring_regex(dictionary, r"\.0$", "")
    # Two spellings of an id are one id now.
    merged = dictionary.dictionary_encode()
    ids = np.empty(len(merged.dictionary), object)
    ids[:] = merged.dictionary.to_pylist()
    if len(ids) < len(dictionary):
        codes = merged.indices.to_numpy()[codes]
    return number_by_appearance(ids, codes)


def _timestamps(
    columns: Sequence[pa.ChunkedArray], parts: Sequence[object]
) -> tuple[np.ndarray, int]:
    """Returns int64 timestamps, and how many of them make a second."""
    temporal = [_is_date(column.type) for column in columns]
    if len(set(temporal)) == 2:
        part = temporal.index(not temporal[0])
        raise InputError(
            f"{parts[part]}: expected timestamps of the kind in {parts[0]}, "
            f"{columns[0].type}. Received: {columns[part].type}"
        )
    if temporal[0]:
        micros = [
            _micros(column, part)
            for column, part in zip(columns, parts, strict=True)
        ]
        return _concatenate(micros), 1_000_000
    if not any(pa.types.is_floating(column.type) for column in columns):
        times = _concatenate(columns)
        if len(times) and times.max() > _HIGHEST_TIME:
            raise _too_large(times.max(), parts[0])
        return times.astype(np.int64, copy=False), 1
    seconds = _concatenate(columns).astype(np.float64, copy=False)
    if (seconds == np.floor(seconds)).all():
        return _whole(seconds, parts[0]), 1
    return _whole(seconds * 1e6, parts[0]), 1_000_000


def _micros(times: pa.ChunkedArray, part: object) -> pa.ChunkedArray:
    """Returns dates as int64 microseconds; what is finer is cut off."""
    is_finer = pa.types.is_timestamp(times.type) and times.type.unit == "ns"
    try:
        micros = times.cast(pa.timestamp("us"), safe=not is_finer)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{part}: expected dates that 64 bits of microseconds can hold. "
            f"Received: {' '.join(str(error).split())}"
        ) from error
    return micros.cast(pa.int64())


_HIGHEST_TIME = 2**63 - 1


def _whole(times: np.ndarray, where: object) -> np.ndarray:
    """Rounds `[n]` float64 times to int64; `where` is for the message.

    Raises:
        InputError: A time is beyond int64.
    """
    # As floats, the times at both ends are 2^63 themselves.
    beyond = np.abs(times) >= 2.0**63
    if beyond.any():
        raise _too_large(times[beyond][0], where)
    return np.rint(times).astype(np.int64)


def _too_large(time: object, where: object) -> InputError:
    return InputError(
        f"{where}: expected times within the range of 64-bit integers. "
        f"Received: {time}"
    )


def _concatenate(columns: Sequence[pa.ChunkedArray]) -> np.ndarray:
    # Arrow's own conversion copies once; parts may differ in their type.
    arrays = [column.to_numpy() for column in columns]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _spell(names: ColumnNames) -> str:
    return ", ".join(names.by_role.values())
