"""Interactions from CSV, TSV and Parquet, by column, with Arrow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from recsys.data import bad_rows, files
from recsys.data.columns import ColumnNames
from recsys.data.interactions import Interactions, number_by_appearance
from recsys.errors import InputError

_ID_TYPE = pa.dictionary(pa.int32(), pa.string())
_BLOCK_BYTES = 8 << 20


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
    if files.kind(part) == "parquet":
        return _read_parquet(part, given)
    header, delimiter = files.header(part)
    names = given.find(header, part)
    return read_text(part, names, bad_rows.TextForm(header, delimiter))


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
    if files.kind(part) == "parquet":
        with files.readable(part), part.open("rb") as stream:
            return pq.read_schema(stream).names
    return files.header(part)[0]


def num_row_groups(part: Traversable) -> int:
    """Returns how many row groups a Parquet file has."""
    with files.readable(part), part.open("rb") as stream:
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
    if files.kind(part) == "parquet":
        table = _read_parquet(part, given, row_group)
        if len(table):
            yield assemble([_in_one_unit(table)], [part])
        return
    header, delimiter = files.header(part)
    names = given.find(header, part)
    form = bad_rows.TextForm(header, delimiter)
    reason = None
    with files.readable(part), files.arrow_stream(part) as opened:
        try:
            batches = pa_csv.open_csv(opened, *_parsing(names, form, False))
            for batch in batches:
                table = _with_roles(pa.Table.from_batches([batch]), names)
                if not _is_sound(table):
                    raise pa.ArrowInvalid("an id is missing, or no time")
                if len(table):
                    yield assemble([_in_one_unit(table)], [part])
        except pa.ArrowInvalid as error:
            reason = str(error)
    if reason is not None:
        bad_rows.raise_text(part, names, form, reason)


def read_text(
    file: Traversable, names: ColumnNames, form: bad_rows.TextForm
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
    error = None
    # A line break inside quotes is rare, and allowing for it is slow.
    for newlines in (False, True):
        with files.readable(file), files.arrow_stream(file) as stream:
            try:
                table = _parse(stream, names, form, newlines)
                break
            except pa.ArrowInvalid as caught:
                error = error or caught
    else:
        bad_rows.raise_text(file, names, form, str(error))
    table = _with_roles(table, names)
    if not _is_sound(table):
        bad_rows.raise_text(
            file, names, form, f"timestamp of {table['timestamp'].type}"
        )
    return table


def _parse(
    stream: pa.NativeFile,
    names: ColumnNames,
    form: bad_rows.TextForm,
    newlines: bool,
) -> pa.Table:
    return pa_csv.read_csv(stream, *_parsing(names, form, newlines))


def _parsing(
    names: ColumnNames, form: bad_rows.TextForm, newlines: bool
) -> tuple[pa_csv.ReadOptions, pa_csv.ParseOptions, pa_csv.ConvertOptions]:
    types = {names.user: _ID_TYPE, names.item: _ID_TYPE}
    types.update((name, pa.null()) for name in form.blank_columns)
    if names.rating:
        types[names.rating] = pa.float32()
    wanted = [name for name in dataclasses.astuple(names) if name is not None]
    return (
        pa_csv.ReadOptions(
            block_size=_BLOCK_BYTES,
            column_names=None if form.has_header else list(form.header),
        ),
        pa_csv.ParseOptions(
            delimiter=form.delimiter[0],
            quote_char='"' if form.has_header else False,
            newlines_in_values=newlines,
        ),
        pa_csv.ConvertOptions(
            column_types=types,
            include_columns=wanted + list(form.blank_columns),
        ),
    )


def _read_parquet(
    file: Traversable, given: ColumnNames, row_group: int | None = None
) -> pa.Table:
    with files.readable(file), file.open("rb") as opened:
        schema = pq.ParquetFile(opened).schema_arrow
        names = given.find(schema.names, file)
        strings = [
            name
            for name in (names.user, names.item)
            if schema.field(name).type == pa.string()
        ]
        opened.seek(0)
        parquet = pq.ParquetFile(opened, read_dictionary=strings)
        columns = [name for name in dataclasses.astuple(names) if name]
        if row_group is None:
            table = parquet.read(columns)
        else:
            table = parquet.read_row_group(row_group, columns)
    table = _with_roles(table, names)
    for role in ("user", "item"):
        ids = bad_rows.ids_as_strings(table[role], file, names, role)
        table = table.set_column(table.column_names.index(role), role, ids)
    table = table.set_column(2, "timestamp", _typed(table["timestamp"]))
    if names.rating:
        with files.readable(file):
            table = table.set_column(
                3, "rating", table["rating"].cast(pa.float32(), safe=False)
            )
    if not _is_sound(table):
        bad_rows.raise_columns(file, names, table)
    return table


def _typed(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns timestamps that were written as text by what they say."""
    if pa.types.is_string(times.type) or pa.types.is_large_string(times.type):
        for kind in (pa.int64(), pa.float64(), pa.timestamp("us")):
            try:
                return times.cast(kind)
            except pa.ArrowInvalid:
                continue
    return times


def _in_one_unit(table: pa.Table) -> pa.Table:
    """Makes dates of fractional seconds, also where some rows have none."""
    times = table["timestamp"]
    if not pa.types.is_floating(times.type):
        return table
    micros = pa.array(np.rint(times.to_numpy() * 1e6).astype(np.int64))
    return table.set_column(
        table.column_names.index("timestamp"),
        "timestamp",
        micros.cast(pa.timestamp("us")),
    )


def _with_roles(table: pa.Table, names: ColumnNames) -> pa.Table:
    roles = {
        role: table[name]
        for role, name in dataclasses.asdict(names).items()
        if name is not None
    }
    return pa.table(roles)


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
        user_ids, item_ids, users, items, timestamps, ratings, per_second
    )


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
    # Pandas writes whole numbers with a fraction where one was missing.
    if pc.all(pc.match_substring_regex(dictionary, r"^-?\d+\.0$")).as_py():
        dictionary = pc.utf8_slice_codeunits(dictionary, 0, -2)
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
            column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
            for column in columns
        ]
        return _concatenate(micros), 1_000_000
    if not any(pa.types.is_floating(column.type) for column in columns):
        return _concatenate(columns).astype(np.int64, copy=False), 1
    seconds = _concatenate(columns).astype(np.float64, copy=False)
    if (seconds == np.floor(seconds)).all():
        return seconds.astype(np.int64), 1
    return np.rint(seconds * 1e6).astype(np.int64), 1_000_000


def _concatenate(columns: Sequence[pa.ChunkedArray]) -> np.ndarray:
    # Arrow's own conversion copies once; parts may differ in their type.
    arrays = [column.to_numpy() for column in columns]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _spell(names: ColumnNames) -> str:
    return ", ".join(name for name in dataclasses.astuple(names) if name)
