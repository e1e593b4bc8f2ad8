"""Input files as they lie: bytes, archives, lines, quoted values."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import itertools
import lzma
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from recsys.errors import InputError

_MAGIC = {b"\x1f\x8b": "gzip", b"PAR1": "parquet", b"PK\x03\x04": "zip"}


_SUFFIXES = {".gz": "gzip", ".parquet": "parquet", ".zip": "zip"}


_DELIMITERS = "\t,;|"


BLOCK_BYTES = 8 << 20


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


Parsing = tuple[pa_csv.ReadOptions, pa_csv.ParseOptions, pa_csv.ConvertOptions]


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
        while block := stream.read(BLOCK_BYTES):
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
        while block := stream.read(BLOCK_BYTES):
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


def read_quoted(
    file: Traversable, form: TextForm, options: Callable[[Quoting], Parsing]
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


def parse_options(form: TextForm, quoting: Quoting) -> pa_csv.ParseOptions:
    """Returns how Arrow splits the rows of a text file."""
    return pa_csv.ParseOptions(
        delimiter=form.delimiter[0],
        quote_char=quoting.quote,
        escape_char=quoting.escape,
        newlines_in_values=quoting.newlines,
    )


def line_of_row(file: Traversable, form: TextForm, row: int) -> int:
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
