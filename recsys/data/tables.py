"""Logs in CSV, TSV and Parquet files: columns, rows and their errors."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import gzip
import itertools
import lzma
import math
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
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
        others: Further columns to read.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None
    others: tuple[str, ...] = ()

    @property
    def by_role(self) -> dict[str, str]:
        """The columns by role; another column's role is "+" and its name."""
        roles = {role: getattr(self, role) for role in SPELLINGS}
        roles.update((f"+{name}", name) for name in self.others)
        return {role: name for role, name in roles.items() if name}

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
        names = list(found.by_role.values())
        if len(set(names)) < len(names):
            raise InputError(
                f"{file}: expected a column of its own for each of user, "
                f"item, timestamp and rating. Received: {', '.join(names)}"
            )
        if missing := [name for name in self.others if name not in header]:
            raise InputError(
                f"{file}: expected a column {missing[0]!r}. "
                f"Received columns: {_quoted(header)}"
            )
        return dataclasses.replace(found, others=self.others)

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
    """Turns what a damaged or odd file raises into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (
        OSError,
        EOFError,
        # An encrypted zip archive, or one of another version or method.
        RuntimeError,
        UnicodeDecodeError,
        csv.Error,
        lzma.LZMAError,
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
        # A carriage return alone ends a line, too, as on old Macs.
        lines = (line for each in stream for line in each.splitlines(True))
        for number, line in enumerate(lines, 1):
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
    with readable(file):
        header = next(csv.reader([first], delimiter=delimiter))
    return header, delimiter


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
        # A member called "/" is a folder without a name, within itself.
        if (
            len(children) != 1
            or not children[0].name
            or not children[0].is_dir()
        ):
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


@dataclasses.dataclass(frozen=True)
class Quoting:
    """How a text file quotes values that hold a delimiter.

    Attributes:
        quote: The quotation mark; False if it is an ordinary character.
        escape: What stands before a quotation mark within a quoted value;
            False if it is doubled instead.
        newlines: Whether quoted values may hold line breaks.
    """

    quote: str | bool = '"'
    escape: str | bool = False
    newlines: bool = False


def possible_quotings(
    file: Traversable, form: TextForm
) -> tuple[list[Quoting], int | None]:
    """Returns how a file may be quoted, and how many rows it then has.

    A quotation mark that is never closed makes a parser take everything up to
    the next one for a single value. So the rows that were read are counted and
    compared with the lines of the file. By convention, TSV is not quoted.

    Args:
        file: A text file.
        form: How its rows are written.

    Returns:
        What to try, in order, and the number of rows to expect of all but
        those with `newlines`; None where the file holds no quotation mark, so
        that nothing can go wrong.
    """
    if not form.has_header:
        return [Quoting(quote=False)], None
    has_quotes = has_escapes = False
    with readable(file), arrow_stream(file) as stream:
        while block := stream.read(_BLOCK_BYTES):
            has_quotes = has_quotes or b'"' in block
            has_escapes = has_escapes or b'\\"' in block
            if has_escapes:
                break
    if not has_quotes:
        return [Quoting()], None
    found = [Quoting(escape="\\")] if has_escapes else []
    found.append(Quoting())
    if form.delimiter == "\t":
        found.append(Quoting(quote=False))
    found.append(Quoting(newlines=True))
    return found, _num_lines(file) - 1


def _num_lines(file: Traversable) -> int:
    """Counts the lines of a text file that are not empty."""
    count = 0
    line_is_empty, returned = True, False
    with readable(file), arrow_stream(file) as stream:
        while block := stream.read(_BLOCK_BYTES):
            if returned and block[:1] == b"\n":
                block = block[1:]  # The block before ended within \r\n.
            returned = block[-1:] == b"\r"
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            ends = np.frombuffer(block, np.uint8) == ord("\n")
            if not len(ends):
                continue
            # An end right behind another one ends an empty line.
            empty = ends & np.append(line_is_empty, ends[:-1])
            count += int(np.count_nonzero(ends) - np.count_nonzero(empty))
            line_is_empty = bool(ends[-1])
    return count + (not line_is_empty)


def check_quotes(file: Traversable, form: TextForm) -> None:
    """Checks that every quoted value of a file ends as it should.

    Args:
        file: A text file with quoted values that hold line breaks.
        form: How its rows are written.

    Raises:
        InputError: A quotation mark is not closed, or what is behind the
            closing one is no delimiter; names the line.
    """
    reader = csv.reader(
        read_lines(file, form.fallback_encoding),
        delimiter=form.delimiter,
        strict=True,
    )
    begin = 1
    try:
        for row in reader:
            if row and len(row) != len(form.header):
                raise csv.Error(f"{len(row)} columns, not {len(form.header)}")
            begin = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{file}, line {begin}: expected every quotation mark to be "
            f"closed. Received: {error} by line {reader.line_num}"
        ) from error


def raise_first_fault(
    file: Traversable,
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
                else f"line {_line_of_row(file, form, row)}"
            )
            raise InputError(
                f"{file}, {where}: expected {expected}. Received: "
                + ("an empty one" if " id in " in expected else repr(value))
            )
    raise InputError(
        f"{file}: expected rows of user, item and timestamp. Received: a "
        f"timestamp column {names.timestamp!r} of {table['timestamp'].type}"
    )


def _line_of_row(file: Traversable, form: TextForm, row: int) -> int:
    """Returns the number of the line that holds a row, both from 0 and 1."""
    lines = read_lines(file, form.fallback_encoding)
    if form.has_header:
        reader = csv.reader(lines, delimiter=form.delimiter)
        numbers = (reader.line_num for values in reader if values)
        row += 1
    else:
        numbers = (n for n, line in enumerate(lines, 1) if line.strip("\r\n"))
    with readable(file):
        return next(itertools.islice(numbers, row, None), row)
    raise AssertionError  # `readable` lets nothing pass.


def raise_ragged(file: Traversable, form: TextForm, reason: str) -> NoReturn:
    """Raises the InputError that names the first line of a wrong length.

    Args:
        file: The file.
        form: How its rows are written.
        reason: What to report if every row has its length.
    """
    expected = len(form.header) - len(form.blank_columns)
    all_lines = read_lines(file, form.fallback_encoding)
    for number, line in enumerate(all_lines, 1):
        text = line.strip("\r\n")
        if not text:
            continue
        if form.has_header:
            with readable(file):
                row = next(csv.reader([text], delimiter=form.delimiter))
        else:
            row = text.split(form.delimiter)
        if len(row) != expected:
            raise InputError(
                f"{file}, line {number}: expected {expected} columns. "
                f"Received {len(row)}: {text[:120]!r}"
            )
    raise InputError(
        f"{file}: expected a table. Received: {' '.join(reason.split())}"
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


_Parsing = tuple[pa_csv.ReadOptions, pa_csv.ParseOptions, pa_csv.ConvertOptions]


def read_quoted(
    file: Traversable, form: TextForm, options: Callable[[Quoting], _Parsing]
) -> tuple[pa.Table | None, Quoting, str]:
    """Reads a text file in the first quoting that gives all of its rows.

    Args:
        file: The file.
        form: How its rows are written.
        options: How to read it, given its quoting.

    Returns:
        The table, its quoting and an empty text; or None, the first quoting
        that was tried, and what Arrow said of it.

    Raises:
        InputError: A quotation mark is not closed.
    """
    quotings, num_rows = possible_quotings(file, form)
    reason = ""
    for quoting in quotings:
        if quoting.newlines and not reason:
            # No quoting gives as many rows as there are lines.
            check_quotes(file, form)
        with readable(file), arrow_stream(file) as stream:
            try:
                table = pa_csv.read_csv(stream, *options(quoting))
            except pa.ArrowInvalid as error:
                reason = reason or str(error)
                continue
        if num_rows in (None, len(table)) or quoting.newlines:
            return table, quoting, ""
    return None, quotings[0], reason


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


def _parsing(names: ColumnNames, form: TextForm, quoting: Quoting) -> _Parsing:
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
            block_size=_BLOCK_BYTES,
            column_names=None if form.has_header else list(form.header),
        ),
        parse_options(form, quoting),
        pa_csv.ConvertOptions(
            column_types=types,
            include_columns=wanted + list(form.blank_columns),
        ),
    )


def parse_options(form: TextForm, quoting: Quoting) -> pa_csv.ParseOptions:
    """Returns how Arrow splits the rows of a text file."""
    return pa_csv.ParseOptions(
        delimiter=form.delimiter[0],
        quote_char=quoting.quote,
        escape_char=quoting.escape,
        newlines_in_values=quoting.newlines,
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
    table = _with_roles(table, names)
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
