"""Logs in CSV, TSV and Parquet files: columns, rows and their errors."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import gzip
import math
import pathlib
import zipfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from recsys.data.interactions import Interactions, number_by_appearance
from recsys.errors import InputError

# Compared without case, blanks and punctuation: "userId" is "user_id".
SPELLINGS = {
    "user": (
        "user userid uid customer customerid visitorid reviewerid memberid "
        "profileid"
    ).split(),
    "item": (
        "item itemid iid movie movieid product productid asin parentasin "
        "article articleid book bookid isbn track trackid song songid artistid "
        "video videoid contentid gameid businessid sku"
    ).split(),
    "timestamp": (
        "timestamp time ts date datetime unixtime unixreviewtime eventtime "
        "eventtimestamp createdat"
    ).split(),
    "rating": "rating ratings userrating score stars overall".split(),
}


@dataclasses.dataclass(frozen=True)
class ColumnNames:
    """Column names: as given by the user, or as found in a file.

    Attributes:
        user: The column of the raw user ids.
        item: The column of the raw item ids.
        timestamp: The column that gives the order.
        rating: The column of the ratings. None is found by itself when
            asked for, and means none when found; "" asks for none.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None

    def find(self, header: Sequence[str], file: object) -> ColumnNames:
        """Returns the names as the file spells them.

        Args:
            header: The column names of the file.
            file: Its name, for messages.

        Raises:
            InputError: A column is missing or ambiguous, or is used twice.
        """
        found = ColumnNames(
            find_column(header, "user", self.user, file),
            find_column(header, "item", self.item, file),
            find_column(header, "timestamp", self.timestamp, file),
            self._rating(header, file),
        )
        names = [name for name in dataclasses.astuple(found) if name]
        if len(set(names)) < len(names):
            raise InputError(
                f"{file}: expected a column of its own for each of user, "
                f"item, timestamp and rating. Received: {', '.join(names)}"
            )
        return found

    def _rating(self, header: Sequence[str], file: object) -> str | None:
        if self.rating == "":
            return None
        return find_optional_column(header, "rating", self.rating, file)


def find_column(
    header: Sequence[str], role: str, given: str | None, file: object
) -> str:
    """Returns the name of the one column that has a role.

    Args:
        header: The column names of the file.
        role: A key of `SPELLINGS`.
        given: The name that the user gave, if any.
        file: The name of the file, for messages.

    Raises:
        InputError: The column is missing or ambiguous.
    """
    found = find_optional_column(header, role, given, file)
    if found is None:
        raise InputError(
            f"{file}: expected one {role} column in the header: name it with "
            f"--{role}_column. Received columns: {_quoted(header)}"
        )
    return found


def find_optional_column(
    header: Sequence[str], role: str, given: str | None, file: object
) -> str | None:
    """Returns the name of the one column that has a role, if there is one.

    Args:
        header: The column names of the file.
        role: A key of `SPELLINGS`.
        given: The name that the user gave, if any.
        file: The name of the file, for messages.

    Raises:
        InputError: The column is ambiguous, or the given one is missing.
    """
    if given is not None:
        matches = [name for name in header if name.strip() == given.strip()]
    else:
        matches = [
            name
            for name in header
            if "".join(filter(str.isalnum, name.lower())) in SPELLINGS[role]
        ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(
            f"{file}: expected one {role} column, found "
            f"{' and '.join(map(repr, matches))}: name it with "
            f"--{role}_column. Received columns: {_quoted(header)}"
        )
    if given is not None:
        raise InputError(
            f"{file}: expected the column {given!r} that --{role}_column "
            f"names. Received columns: {_quoted(header)}"
        )
    return None


def _quoted(header: Sequence[str]) -> str:
    return ", ".join(map(repr, header))


_MAGIC = {b"\x1f\x8b": "gzip", b"PAR1": "parquet", b"PK\x03\x04": "zip"}
_SUFFIXES = {".gz": "gzip", ".parquet": "parquet", ".zip": "zip"}
_DELIMITERS = "\t,;|"


@contextlib.contextmanager
def readable(file: Traversable) -> Iterator[None]:
    """Turns what a damaged file raises into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (
        OSError,
        EOFError,
        zlib.error,
        zipfile.BadZipFile,
        pa.ArrowException,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{file}: expected a readable file. Received: {reason}"
        ) from error


def file_kind(file: Traversable) -> str:
    """Returns "gzip", "parquet", "zip" or "text", by the first bytes.

    Raises:
        InputError: The file is empty, cannot be read, or is not what its
            name says.
    """
    with readable(file), file.open("rb") as stream:
        head = stream.read(4)
    if not head:
        raise InputError(f"{file}: expected interactions. Received: no bytes")
    found = next(
        (name for magic, name in _MAGIC.items() if head.startswith(magic)),
        "text",
    )
    expected = _SUFFIXES.get(pathlib.PurePath(file.name).suffix.lower())
    if expected and found != expected:
        raise InputError(
            f"{file}: expected a {expected} file, by its name. "
            f"Received: a file that begins with {head!r}"
        )
    return found


def arrow_stream(file: Traversable) -> pa.NativeFile:
    """Opens a text file, plain or gzip, for Arrow."""
    compression = "gzip" if file_kind(file) == "gzip" else None
    # Arrow reads a real file by itself, outside Python's lock.
    source = str(file) if isinstance(file, pathlib.Path) else file.open("rb")
    return pa.input_stream(source, compression=compression)


def read_lines(
    file: Traversable, fallback_encoding: str | None = None
) -> Generator[str, None, None]:
    """Yields the lines of a text file, plain or gzip.

    Args:
        file: The file.
        fallback_encoding: How a line that is not UTF-8 is read. By default
            such a line is an error.

    Raises:
        InputError: The file is damaged, or a line is not UTF-8.
    """
    packed = file_kind(file) == "gzip"
    with readable(file), file.open("rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        for number, line in enumerate(stream, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                if fallback_encoding is None:
                    raise InputError(
                        f"{file}, line {number}: expected UTF-8. "
                        f"Received: {line[:80]!r}"
                    ) from None
                yield line.decode(fallback_encoding)


def read_header(file: Traversable) -> tuple[list[str], str]:
    """Returns the column names of a CSV or TSV file, and its delimiter.

    Raises:
        InputError: The file is damaged or holds no line.
    """
    with contextlib.closing(read_lines(file)) as all_lines:
        first = next((line for line in all_lines if line.strip()), None)
    if first is None:
        raise InputError(f"{file}: expected a header. Received: no line")
    delimiter = max(_DELIMITERS, key=first.count)
    if not first.count(delimiter):
        delimiter = ","
    return next(csv.reader([first], delimiter=delimiter)), delimiter


@contextlib.contextmanager
def open_zip(path: Traversable) -> Iterator[Traversable]:
    """Gives the folder that a zip archive holds, while it is open.

    Raises:
        InputError: The file is not a zip archive.
    """
    with contextlib.ExitStack() as stack:
        # What is done inside the archive raises errors of its own.
        with readable(path):
            stream = stack.enter_context(path.open("rb"))
            archive = stack.enter_context(zipfile.ZipFile(stream))
        # The name is only for messages: a member is shown as archive/member.
        archive.filename = str(path)
        yield _inmost(zipfile.Path(archive))


def _inmost(folder: Traversable) -> Traversable:
    """Goes down while a folder holds nothing but one folder."""
    while True:
        children = [
            child
            for child in folder.iterdir()
            if not child.name.startswith(("__MACOSX", "."))
        ]
        if len(children) != 1 or not children[0].is_dir():
            return folder
        folder = children[0]


def list_members(folder: Traversable) -> dict[str, Traversable]:
    """Returns the files of a folder by name, sorted, without hidden ones."""
    with readable(folder):
        found = {
            child.name: child
            for child in folder.iterdir()
            if child.is_file() and not child.name.startswith((".", "_"))
        }
    return dict(sorted(found.items()))


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
    all_lines = read_lines(file, form.fallback_encoding)
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
            yield assemble([_in_one_unit(table)], [part])
        return
    header, delimiter = read_header(part)
    names = given.find(header, part)
    form = TextForm(header, delimiter)
    reason = None
    with readable(part), arrow_stream(part) as opened:
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
        raise_text(part, names, form, reason)


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
    error = None
    # A line break inside quotes is rare, and allowing for it is slow.
    for newlines in (False, True):
        with readable(file), arrow_stream(file) as stream:
            try:
                table = _parse(stream, names, form, newlines)
                break
            except pa.ArrowInvalid as caught:
                error = error or caught
    else:
        raise_text(file, names, form, str(error))
    table = _with_roles(table, names)
    if not _is_sound(table):
        raise_text(file, names, form, f"timestamp of {table['timestamp'].type}")
    return table


def _parse(
    stream: pa.NativeFile,
    names: ColumnNames,
    form: TextForm,
    newlines: bool,
) -> pa.Table:
    return pa_csv.read_csv(stream, *_parsing(names, form, newlines))


def _parsing(
    names: ColumnNames, form: TextForm, newlines: bool
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
    with readable(file), file.open("rb") as opened:
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
        ids = ids_as_strings(table[role], file, names, role)
        table = table.set_column(table.column_names.index(role), role, ids)
    table = table.set_column(2, "timestamp", _typed(table["timestamp"]))
    if names.rating:
        with readable(file):
            table = table.set_column(
                3, "rating", table["rating"].cast(pa.float32(), safe=False)
            )
    if not _is_sound(table):
        raise_columns(file, names, table)
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
