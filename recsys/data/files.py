"""Files, folders and zip archives, seen as one kind of tree."""

from __future__ import annotations

import contextlib
import csv
import gzip
import os
import pathlib
import zipfile
import zlib
from collections.abc import Generator, Iterator
from importlib.resources.abc import Traversable

import pyarrow as pa

from recsys.errors import InputError

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


def kind(file: Traversable) -> str:
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
    compression = "gzip" if kind(file) == "gzip" else None
    # Arrow reads a real file by itself, outside Python's lock.
    source = str(file) if isinstance(file, pathlib.Path) else file.open("rb")
    return pa.input_stream(source, compression=compression)


def lines(
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
    packed = kind(file) == "gzip"
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


def header(file: Traversable) -> tuple[list[str], str]:
    """Returns the column names of a CSV or TSV file, and its delimiter.

    Raises:
        InputError: The file is damaged or holds no line.
    """
    with contextlib.closing(lines(file)) as all_lines:
        first = next((line for line in all_lines if line.strip()), None)
    if first is None:
        raise InputError(f"{file}: expected a header. Received: no line")
    delimiter = max(_DELIMITERS, key=first.count)
    if not first.count(delimiter):
        delimiter = ","
    return next(csv.reader([first], delimiter=delimiter)), delimiter


def is_new_or_empty(folder: pathlib.Path) -> bool:
    """Whether a folder is not there yet, or has nothing in it."""
    if not folder.exists():
        return True
    return folder.is_dir() and not any(folder.iterdir())


def can_write(folder: pathlib.Path) -> bool:
    """Whether a folder can be written, or be made where it is missing."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return existing.is_dir() and os.access(existing, os.W_OK)


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


def members(folder: Traversable) -> dict[str, Traversable]:
    """Returns the files of a folder by name, sorted, without hidden ones."""
    with readable(folder):
        found = {
            child.name: child
            for child in folder.iterdir()
            if child.is_file() and not child.name.startswith((".", "_"))
        }
    return dict(sorted(found.items()))
