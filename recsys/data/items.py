"""Metadata of items and users: columns by id."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources.abc import Traversable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from recsys.data import input_files, tables
from recsys.data.columns import TextOptions, find_column, is_list, is_usual
from recsys.errors import InputError

_TITLES = ("title", "name", "movietitle", "itemname", "itemtitle")
_GENRES = ("genres", "genre", "moviegenres", "categories", "category")
_ROLES = {"title": _TITLES, "genres": _GENRES}
# How the MovieLens sets write that they know no genre.
NO_GENRES = ("(no genres listed)", "unknown", "")


def read_items(
    file: Traversable, item_column: str | None, encoding: str | None = None
) -> pa.Table:
    """Reads an items file, CSV, TSV or Parquet.

    Args:
        file: The file.
        item_column: What the item column is called in the interactions; the
            usual spellings and "id" are tried where it is not there.
        encoding: The encoding of text, if it is not UTF-8.

    Returns:
        `item_id` (string), `title` (string) and `genres` (list of strings)
        where the file has them, then its other columns under their names.

    Raises:
        InputError: The file cannot be read, has no item column or names an
            item twice.
    """
    return _with_roles(*_read(file, item_column, encoding, "item"), file)


def read_users(
    file: Traversable, user_column: str | None, encoding: str | None = None
) -> pa.Table:
    """Reads a users file, as `read_items` reads an items file.

    Returns:
        `user_id` (string), then the other columns.
    """
    return users_table(*_read(file, user_column, encoding, "user"), file)


def users_from_frame(frame: Any, user_column: str | None) -> pa.Table:
    """Takes user metadata from a frame; see `read_users`."""
    where = "users frame"
    table = tables.frame_table(frame, where)
    name = _id_column(table.column_names, user_column, where, "user")
    return users_table(table, name, where)


def users_table(table: pa.Table, name: str, file: object) -> pa.Table:
    """Returns a users table with proper ids.

    Args:
        table: The columns.
        name: The column of user ids.
        file: Where it comes from, for messages.

    Raises:
        InputError: An id is missing or duplicated.
    """
    ids = _checked_ids(as_ids(table[name], file), file, "user")
    rest = table.drop_columns([name])
    return rest.add_column(0, "user_id", ids)


def _read(
    file: Traversable, given: str | None, encoding: str | None, role: str
) -> tuple[pa.Table, str]:
    """Reads a file; returns its columns, and the name of that of ids."""
    with input_files.readable(file):
        if input_files.file_kind(file) == "parquet":
            with file.open("rb") as stream:
                table = pq.ParquetFile(stream).read()
            table.validate(full=True)  # Text may not be UTF-8.
            name = _id_column(table.column_names, given, file, role)
        else:
            form = input_files.text_form(file, TextOptions(encoding=encoding))
            name = _id_column(form.header, given, file, role)
            if form.is_split_here:
                raise InputError(
                    f"{file}: expected columns with commas or tabs between. "
                    f"Received: {' '.join(form.header)!r}"
                )
            table = _read_text(file, form, name)
    return table, name


def from_frame(frame: Any, item_column: str, where: str) -> pa.Table:
    """Takes item metadata from a frame, as `read_items` does from a file.

    Args:
        frame: The frame; see `tables.frame_table`.
        item_column: As for `read_items`.
        where: What to call it in messages.
    """
    table = tables.frame_table(frame, where)
    name = _id_column(table.column_names, item_column, where, "item")
    return _with_roles(table, name, where)


def _with_roles(table: pa.Table, name: str, file: object) -> pa.Table:
    """Returns the columns under the names of `read_items`."""
    columns = {"item_id": as_ids(table[name], file)}
    taken = [name]
    for role, spellings in _ROLES.items():
        column = _find(table.column_names, spellings)
        if column not in (None, name):
            columns[role] = table[column]
            taken.append(column)
    for other in table.column_names:
        if other not in taken and other not in columns:
            columns[other] = table[other]
    return tidy(pa.table(columns), file)


def name_here(table: pa.Table, name: str) -> str:
    """Returns the name that an items table has for a column of its file.

    Args:
        table: The table, as `read_items` returns it.
        name: A name in the file, such as "categories".

    Returns:
        "title" or "genres" where the table has it under that name, else the
        name itself.
    """
    if name in table.column_names:
        return name
    roles = (r for r, usual in _ROLES.items() if _find([name], usual))
    return next((r for r in roles if r in table.column_names), name)


def tidy(table: pa.Table, file: object) -> pa.Table:
    """Returns an items table with proper ids, titles and genres.

    Args:
        table: Columns `item_id`, and where known `title` and `genres` (text
            with "|" between genres, or lists).
        file: Where it comes from, for messages.

    Raises:
        InputError: An id is missing or duplicated.
    """
    ids = _checked_ids(table["item_id"], file, "item")
    columns = dict(zip(table.column_names, table.columns, strict=True))
    columns["item_id"] = ids
    for role, convert in (("title", _as_text), ("genres", _split)):
        if role in columns:
            try:
                columns[role] = convert(columns[role])
            except pa.ArrowException as error:
                raise InputError(
                    f"{file}: expected text in the {role} column. "
                    f"Received: a column of {columns[role].type}"
                ) from error
    return pa.table(columns)


def _checked_ids(
    column: pa.ChunkedArray, file: object, role: str
) -> pa.ChunkedArray:
    """Returns ids if every row has one of its own."""
    ids = pc.utf8_trim_whitespace(column.combine_chunks())
    row = pc.index(ids.fill_null(""), "").as_py()
    if row >= 0:
        raise InputError(
            f"{file}: expected {'an' if role == 'item' else 'a'} {role} id in "
            f"every row. Received: an empty one in row {row + 1}"
        )
    if pc.all(pc.match_substring_regex(ids, r"^-?\d+\.0$")).as_py():
        ids = pc.utf8_slice_codeunits(ids, 0, -2)
    counts = pc.value_counts(ids)
    repeated = counts.field("values").filter(
        pc.greater(counts.field("counts"), 1)
    )
    if len(repeated):
        raise InputError(
            f"{file}: expected every {role} once. "
            f"Received twice: {repeated[0].as_py()!r}"
        )
    return ids


def as_ids(column: pa.ChunkedArray, file: object) -> pa.ChunkedArray:
    """Returns raw ids as strings, whole numbers without a fraction.

    Args:
        column: Text or numbers.
        file: Where they come from, for messages.

    Raises:
        InputError: They are neither.
    """
    try:
        if pa.types.is_floating(column.type):
            column = column.cast(pa.int64())
        return column.cast(pa.string())
    except pa.ArrowException as error:
        raise InputError(
            f"{file}: expected a column of ids. Received: {error}"
        ) from error


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string())


def _split(genres: pa.ChunkedArray) -> pa.Array:
    if is_list(genres.type):
        return genres.cast(pa.list_(pa.string())).combine_chunks()
    text = _as_text(genres).combine_chunks()
    none = pc.is_in(text, value_set=pa.array(NO_GENRES))
    lists = pc.split_pattern(text, "|")
    empty = pa.scalar([], pa.list_(pa.string()))
    return pc.if_else(none, empty, lists)


def _id_column(
    header: Sequence[str], given: str | None, file: object, role: str
) -> str:
    """Returns the column of ids among names that must be distinct."""
    if twice := [name for name in header if header.count(name) > 1]:
        raise InputError(
            f"{file}: expected every column name once. "
            f"Received twice: {twice[0]!r}"
        )
    if given in header:
        return str(given)
    is_plain = any(is_usual(name, role) for name in header)
    found = None if is_plain else _find(header, ("id",))
    return found or find_column(header, role, None, file)


def _find(header: Sequence[str], spellings: tuple[str, ...]) -> str | None:
    """Returns the column with the first of the spellings."""
    plain = {
        "".join(filter(str.isalnum, name.lower())): name
        for name in reversed(header)
    }
    return next((plain[name] for name in spellings if name in plain), None)


def _read_text(
    file: Traversable, form: input_files.TextForm, id_column: str
) -> pa.Table:
    table, _, reason = input_files.read_quoted(
        file,
        form,
        lambda quoting: (
            form.read_options(),
            input_files.parse_options(form, quoting),
            # Ids stay as they are written: "007" is not "7".
            pa_csv.ConvertOptions(column_types={id_column: pa.string()}),
        ),
    )
    if table is None:
        input_files.raise_ragged(file, form, reason)
    return table
