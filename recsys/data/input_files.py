"""Input files as they lie: bytes, archives, lines, quoted values."""

from __future__ import annotations

import ast
import codecs
import contextlib
import csv
import dataclasses
import datetime
import importlib
import io
import itertools
import json
import lzma
import os
import pathlib
import re
import threading
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.fs as fs

from recsys.data.columns import TextOptions, is_usual
from recsys.errors import DISTRIBUTION, InputError

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PAR1": "parquet",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"7z\xbc\xaf": "7-Zip",
    b"ARROW1": "Arrow or Feather",
    b"FEA1": "Feather",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"\x89HDF": "HDF5",
    b"SQLite": "SQLite",
    b"\x93NUMPY": "NumPy",
    b"\x80\x03": "pickle",
    b"\x80\x04": "pickle",
    b"\x80\x05": "pickle",
}
_READ = ("gzip", "parquet", "zip")
_SUFFIXES = {".gz": "gzip", ".parquet": "parquet", ".zip": "zip"}
_DELIMITERS = "\t,;|"
# What `--separator` may name; no text stands for runs of blanks and tabs.
SEPARATORS = {
    "tab": "\t",
    "\\t": "\t",
    "comma": ",",
    "semicolon": ";",
    "blank": " ",
    "blanks": "",
}
# Splits no line, so that Arrow gives it whole.
_NO_DELIMITER = "\x1f"
# Lines that tell what a file is, and a row of Netflix's, whose lines "1:" say
# of which film the next ones are.
_SAMPLE_LINES, _JSON_LINES = 1_000, 100
_NETFLIX_ROW = re.compile(r"\d+,\d+,\d{4}-\d\d-\d\d")
BLOCK_BYTES = 8 << 20
_CSV_LIMIT = threading.RLock()


@contextlib.contextmanager
def _long_values() -> Iterator[None]:
    """Lets csv read values above 131,072 characters, such as reviews."""
    with _CSV_LIMIT:
        before = csv.field_size_limit(2**31 - 1)
        try:
            yield
        finally:
            csv.field_size_limit(before)


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
        UnicodeError,
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
        head = stream.read(6)
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
            f"Received: a file that begins with {head[:4]!r}"
        )
    if found not in (*_READ, "text"):
        raise InputError(
            f"{file}: expected text (plain or gzip), Parquet or a zip archive. "
            f"Received: a {found} file; unpack or convert it first"
        )
    return found


def arrow_stream(
    file: Traversable, encoding: str | None = None
) -> pa.NativeFile:
    """Opens a text file, plain or gzip, for Arrow, as UTF-8."""
    compression = "gzip" if file_kind(file) == "gzip" else None
    # Arrow reads a real file by itself, outside Python's lock.
    source = str(file) if isinstance(file, pathlib.Path) else file.open("rb")
    stream = pa.input_stream(source, compression=compression)
    if encoding is None:
        return stream
    return pa.transcoding_input_stream(stream, encoding, "utf-8")


def read_lines(
    file: Traversable,
    fallback_encoding: str | None = None,
    encoding: str | None = None,
) -> Generator[str, None, None]:
    """Yields the lines of a text file, plain or gzip.

    Args:
        file: The file.
        fallback_encoding: How a line that is not UTF-8 is read. By default
            such a line is an error.
        encoding: The encoding of the file, if it is not UTF-8.

    Raises:
        InputError: The file is damaged, or a line is not UTF-8.
    """
    with readable(file), arrow_stream(file, encoding) as opened:
        stream = io.BufferedReader(opened)
        # A carriage return alone ends a line, too, as on old Macs.
        lines = (line for each in stream for line in each.splitlines(True))
        for number, line in enumerate(lines, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                if fallback_encoding is None:
                    raise InputError(
                        f"{file}, line {number}: expected UTF-8. Received: "
                        f"{line[:80]!r}; --encoding names another encoding, "
                        "such as latin-1"
                    ) from None
                yield line.decode(fallback_encoding)


class _RemotePath(Traversable):
    """A file or folder of a file system that Arrow or fsspec reads."""

    def __init__(self, system: fs.FileSystem, path: str, uri: str) -> None:
        self._system, self._path, self._uri = system, path, uri

    def __str__(self) -> str:
        return self._uri

    @property
    def name(self) -> str:
        return self._path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> _RemotePath:
        path, uri = (
            text.rstrip("/").rpartition("/")[0]
            for text in (self._path, self._uri)
        )
        return _RemotePath(self._system, path, uri)

    def _kind(self) -> fs.FileType:
        with readable(self):
            return self._system.get_file_info(self._path).type

    def exists(self) -> bool:
        return self._kind() != fs.FileType.NotFound

    def is_dir(self) -> bool:
        return self._kind() == fs.FileType.Directory

    def is_file(self) -> bool:
        return self._kind() == fs.FileType.File

    def iterdir(self) -> Iterator[Traversable]:
        for info in self._system.get_file_info(fs.FileSelector(self._path)):
            yield self / info.base_name

    def joinpath(self, *names: Any) -> Traversable:
        path, uri = (
            "/".join([text.rstrip("/"), *names])
            for text in (self._path, self._uri)
        )
        return _RemotePath(self._system, path, uri)

    def open(self, mode: str = "rb", *_: Any, **__: Any) -> Any:
        return self._system.open_input_file(self._path)

    def read_bytes(self) -> bytes:
        return bytes(self.open().read())

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")


AnyPath = pathlib.Path | _RemotePath


def path_at(text: str) -> AnyPath:
    """Returns the path that a user gave, on this machine or by its URI.

    Raises:
        InputError: No file system is there for the URI.
    """
    if not re.match(r"[a-z][a-z0-9+.-]+://", text):
        return pathlib.Path(os.path.expanduser(text))
    # Options and passwords are not part of names, nor of messages.
    name = re.sub(r"(?<=://)[^/@]*:[^/@]*@|\?.*", "", text)
    if text.startswith(("gs:", "gcs:")) and "retry_limit_seconds" not in text:
        # Where there is no access, it would try for a quarter of an hour.
        text += f"{'&' if '?' in text else '?'}retry_limit_seconds=60"
    try:
        try:
            system, path = fs.FileSystem.from_uri(text)
        except pa.ArrowInvalid:
            # A scheme that Arrow does not know.
            system, path = _with_fsspec(text)
    except (ImportError, ValueError, OSError) as error:
        raise InputError(
            f"{name}: expected a URI that Arrow (s3, gs, hdfs, abfs) or the "
            f"package fsspec (https; pip install '{DISTRIBUTION}[remote]') can "
            "open; or download the file first. "
            f"Received: {' '.join(str(error).split())}"
        ) from error
    return _RemotePath(system, path, name)


def _with_fsspec(uri: str) -> tuple[fs.FileSystem, str]:
    # Not a dependency; what it needs for a scheme is neither.
    fsspec = importlib.import_module("fsspec")
    system, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path


def is_empty(file: Traversable) -> bool:
    """Whether a file has no bytes."""
    with readable(file), file.open("rb") as stream:
        return not stream.read(1)


def text_form(file: Traversable, options: TextOptions) -> TextForm:
    """Returns how the rows of a text file are written.

    Args:
        file: The file.
        options: What the user says of it.

    Raises:
        InputError: The file is damaged or holds no line, or an option is
            unknown or does not fit.
    """
    encoding = _encoding(file, options.encoding)
    lines = _sample(file, encoding, 1)
    if not lines:
        raise InputError(f"{file}: expected a header. Received: no line")
    [first] = lines
    if first.lstrip().startswith(("{", "[")) and not options.columns:
        reject_options(file, options, "JSON")
        return _json_form(file, encoding)
    if options.separator is None:
        separator = max(_DELIMITERS, key=first.count)
        if not first.count(separator):
            separator = "::" if "::" in first else ","
            if separator == "," and len(first.split()) > 1:
                separator = ""
    else:
        separator = _separator(options.separator)
    header, layout = options.columns, options.layout or "rows"
    is_film = re.fullmatch(r"\d+:\s*", first) is not None
    if options.layout is None and not header and (is_film or not separator):
        lines = _sample(file, encoding, _SAMPLE_LINES)
        if is_film and len(lines) > 1 and _NETFLIX_ROW.fullmatch(lines[1]):
            layout, separator = "netflix", ""
        elif not separator and _only_sequences(lines):
            layout = "sequences"
    if header or options.layout == "sequences":
        _reject_header(file, _split(file, first, separator), options)
    if layout == "sequences":
        if header:
            raise InputError(
                f"{file}: expected no --columns with --layout=sequences, "
                f"which has a user and items. Received: {','.join(header)}"
            )
        return TextForm(
            ("user", "items"), separator, False, (), encoding, layout
        )
    if layout == "netflix":
        header = ("item", "user", "rating", "timestamp")
    has_header = not header
    if has_header:
        header = tuple(_split(file, first, separator))
    # Arrow splits at single characters: "::" gives empty columns in between.
    gap = max(1, len(separator))
    cells = [f"_{n}" for n in range((len(header) - 1) * gap + 1)]
    blank = [cell for n, cell in enumerate(cells) if n % gap]
    cells[::gap] = header
    return TextForm(cells, separator, has_header, blank, encoding, layout)


def _reject_header(
    file: Traversable, values: Sequence[str], options: TextOptions
) -> None:
    """Raises InputError for a first line that names a user and an item."""
    if all(any(is_usual(v, role) for v in values) for role in ("user", "item")):
        flag = "--columns" if options.columns else "--layout=sequences"
        raise InputError(
            f"{file}: expected no header with {flag}. Received: "
            f"{', '.join(map(repr, values))} in the first line; leave out "
            f"{flag}, or delete that line"
        )


def _sample(file: Traversable, encoding: str | None, number: int) -> list[str]:
    """Returns the first lines that are not blank, without their ends."""
    with contextlib.closing(read_lines(file, None, encoding)) as all_lines:
        full = (line.rstrip("\r\n") for line in all_lines if line.strip())
        lines = list(itertools.islice(full, number))
    if any("\0" in line for line in lines):
        raise InputError(
            f"{file}: expected text. Received: zero bytes in its first lines; "
            "if it is UTF-16, add --encoding=utf-16-le or --encoding=utf-16-be"
        )
    return lines


def _encoding(file: Traversable, given: str | None) -> str | None:
    if given is None:
        with readable(file), arrow_stream(file) as stream:
            is_utf16 = stream.read(2) in (
                codecs.BOM_UTF16_LE,
                codecs.BOM_UTF16_BE,
            )
        return "utf-16" if is_utf16 else None
    try:
        "é".encode(given)
    except LookupError:
        raise InputError(
            "--encoding must be a codec of Python, such as latin-1 or utf-16. "
            f"Received: {given!r}"
        ) from None
    except UnicodeError:
        pass
    return None if codecs.lookup(given).name == "utf-8" else given


def _separator(given: str) -> str:
    found = SEPARATORS.get(given.lower(), given)
    if len(set(found)) > 1 or (not found and given != "blanks"):
        raise InputError(
            "--separator must be one character, or the same one several times, "
            f"or one of {', '.join(n for n in SEPARATORS if n.isalpha())}. "
            f"Received: {given!r}"
        )
    return found


def reject_options(file: object, options: TextOptions, received: str) -> None:
    """Raises InputError for options of text that a file is not."""
    for name in ("columns", "separator", "layout"):
        if value := getattr(options, name):
            raise InputError(
                f"{file}: expected a table in text with --{name}. "
                f"Received: --{name}={value} with {received}"
            )


def _split(file: Traversable, line: str, separator: str) -> list[str]:
    """Splits a line of a table."""
    if len(separator) != 1:
        return line.split(separator or None)
    with readable(file), _long_values():
        return next(csv.reader([line], delimiter=separator))


def _only_sequences(lines: Sequence[str]) -> bool:
    """Whether lines cannot be anything else than a user and all items.

    They hold whole numbers, not as many in each, and no user twice.
    """
    rows = [line.split() for line in lines]
    return (
        len({len(row) for row in rows}) > 1
        and min(map(len, rows)) > 1
        and len({row[0] for row in rows}) == len(rows)
        and all(value.isdecimal() for row in rows for value in row)
    )


def suggest_columns(form: TextForm) -> str | None:
    """Returns flags for a file without a header, or None if it can have one.

    They are a guess, to be checked by the user.

    Args:
        form: The form of the file, as if its first line were the header.
    """
    values = form.names
    kinds = [_kind_of_value(value) for value in values]
    if not form.has_header or len(values) < 2 or not any(kinds):
        return None
    roles = ["_"] * len(values)
    for kind in ("date", "time"):
        if kind in kinds and "timestamp" not in roles:
            roles[len(kinds) - 1 - kinds[::-1].index(kind)] = "timestamp"
    # The rating, if there is one, follows the user and the item.
    if len(kinds) > 2 and kinds[2] == "rating":
        roles[2] = "rating"
    free = [
        place
        for place, kind in enumerate(kinds)
        if roles[place] == "_" and kind != "fraction"
    ]
    for role, place in zip(("user", "item"), free, strict=False):
        roles[place] = role
    flags = f"--columns={','.join(roles)}"
    if not form.delimiter:
        return f"{flags} --separator=blanks or --layout=sequences"
    if form.delimiter not in _DELIMITERS:
        flags += f" --separator={form.delimiter}"
    return flags


def _kind_of_value(value: str) -> str | None:
    """Says what a value can be; None for text."""
    try:
        number = float(value)
    except ValueError:
        try:
            datetime.datetime.fromisoformat(value.strip())
        except ValueError:
            return None
        return "date"
    if number * 2 % 1:
        return "fraction"
    # Seconds, milliseconds or microseconds of the years 1985 to 2096.
    if any(5e8 <= number / unit < 4e9 for unit in (1, 1e3, 1e6)):
        return "time"
    return "rating" if 0 <= number <= 10 else "number"


def _json_form(file: Traversable, encoding: str | None) -> TextForm:
    """Returns the form of a file of JSON objects, one per line.

    Lines may be Python's dictionaries, too, as in the Steam data, and need not
    have all of the fields.
    """
    lines = _sample(file, encoding, _JSON_LINES)
    layout = "json"
    decode: Callable[[str], Any] = json.loads
    with contextlib.suppress(RecursionError):
        try:
            decode(lines[0])
        except ValueError:
            layout, decode = "python", ast.literal_eval
    found: dict[str, Any] = {}
    for number, line in enumerate(lines):
        each = None
        # Those behind the first are named when they are read.
        with contextlib.suppress(
            ValueError, SyntaxError, RecursionError, MemoryError
        ):
            each = decode(line.strip())
        if isinstance(each, dict):
            found |= {k: v for k, v in each.items() if v or k not in found}
        elif not number:
            raise InputError(
                f"{file}: expected one JSON object per line. "
                f"Received: {line.strip()[:80]!r}"
            )
    inner = tuple(
        (key, tuple(value[0]))
        for key, value in found.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    )
    return TextForm(tuple(found), "", False, (), encoding, layout, inner)


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
        delimiter: What stands between two columns; "" for runs of blanks.
        has_header: Whether the first line is the header.
        blank_columns: Columns that Arrow sees and that must be empty.
        encoding: The encoding of the file, if it is not UTF-8.
        layout: "rows", "sequences", "netflix", "json" or "python".
        inner: The fields of the objects in each field of JSON that is a list.
    """

    header: Sequence[str]
    delimiter: str
    has_header: bool = True
    blank_columns: Sequence[str] = ()
    encoding: str | None = None
    layout: str = "rows"
    inner: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def names(self) -> list[str]:
        """The column names, without those between repeated delimiters."""
        return [name for name in self.header if name not in self.blank_columns]

    @property
    def is_split_here(self) -> bool:
        """Whether Arrow gives whole lines, which `tables` splits."""
        return not self.delimiter or self.layout != "rows"

    def lines(self, file: Traversable) -> Generator[str, None, None]:
        """Yields the lines of a file of this form."""
        return read_lines(file, None, self.encoding)

    def read_options(self) -> pa_csv.ReadOptions:
        """Returns where Arrow finds the names of the columns."""
        names = list(self.header)
        if self.is_split_here:
            names = ["line"]
        is_plain = self.has_header and not (
            self.blank_columns or self.is_split_here
        )
        return pa_csv.ReadOptions(
            block_size=BLOCK_BYTES,
            column_names=None if is_plain else names,
            skip_rows=int(self.has_header and not is_plain),
        )


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
    if form.blank_columns or form.is_split_here:
        return [Quoting(quote=False)], None
    has_quotes = has_escapes = False
    with readable(file), arrow_stream(file, form.encoding) as stream:
        while block := stream.read(BLOCK_BYTES):
            # One search of most files, which have no quotation mark at all.
            if b'"' in block:
                has_quotes = True
                has_escapes = b'\\"' in block
            if has_escapes:
                break
    if not has_quotes:
        return [Quoting()], None
    found = [Quoting(escape="\\")] if has_escapes else []
    found.append(Quoting())
    if form.delimiter == "\t":
        found.append(Quoting(quote=False))
    found.append(Quoting(newlines=True))
    return found, _num_lines(file, form.encoding) - form.has_header


def _num_lines(file: Traversable, encoding: str | None) -> int:
    """Counts the lines of a text file that are not empty."""
    count = 0
    line_is_empty, returned = True, False
    with readable(file), arrow_stream(file, encoding) as stream:
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
    reader = csv.reader(form.lines(file), delimiter=form.delimiter, strict=True)
    begin = 1
    try:
        with _long_values():
            for row in reader:
                if row and len(row) != len(form.header):
                    raise csv.Error(
                        f"{len(row)} columns, not {len(form.header)}"
                    )
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
        with readable(file), arrow_stream(file, form.encoding) as stream:
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
        delimiter=_NO_DELIMITER if form.is_split_here else form.delimiter[0],
        quote_char=quoting.quote,
        escape_char=quoting.escape,
        newlines_in_values=quoting.newlines,
    )


def line_of_row(file: Traversable, form: TextForm, row: int) -> int:
    """Returns the number of the line that holds a row, both from 0 and 1."""
    lines = form.lines(file)
    if len(form.delimiter) == 1 and not form.is_split_here:
        reader = csv.reader(lines, delimiter=form.delimiter)
        numbers = (reader.line_num for values in reader if values)
    else:
        numbers = (n for n, line in enumerate(lines, 1) if line.strip("\r\n"))
    row += form.has_header
    with readable(file), _long_values():
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
    for number, line in enumerate(form.lines(file), 1):
        text = line.strip("\r\n")
        if not text:
            continue
        row = _split(file, text, form.delimiter)
        if len(row) != expected:
            raise InputError(
                f"{file}, line {number}: expected {expected} columns. "
                f"Received {len(row)}: {text[:120]!r}"
            )
    raise InputError(
        f"{file}: expected a table. Received: {' '.join(reason.split())}"
    )
