"""Logs in text, JSON and Parquet files: rows and their errors."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from recsys.data.columns import (
    ID_TYPE,
    SPELLINGS,
    ColumnNames,
    concat,
    find_optional_column,
    ids_as_strings,
    is_date,
    is_list,
    is_list_name,
    is_text,
    is_usual,
    kind_of_time,
    to_timestamps,
    to_whole,
    typed_times,
)
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
    read_quoted,
    readable,
    reject_options,
    suggest_columns,
    text_form,
)
from recsys.data.interactions import (
    EVENT,
    Interactions,
    number_by_appearance,
)
from recsys.errors import InputError

# In the schema of a table: how many rows had an empty list of items.
_EMPTY = b"empty"
# Lines of JSON that tell its types, and Python's dictionaries in a block.
_SAMPLE_LINES, _BLOCK_LINES = 1_000, 50_000
_NO_TEXT = pa.scalar(None, pa.string())


@dataclasses.dataclass
class Part:
    """A file of a log, and what was understood of it.

    Attributes:
        file: The file, or the name of a frame.
        form: How its rows are written; None for Parquet and frames.
        names: Its columns.
        nested: The column with lists of objects that hold the items.
        time_format: The format of its timestamps, once it is known.
    """

    file: Any
    form: TextForm | None
    names: ColumnNames
    nested: str | None = None
    time_format: str | None = None

    @property
    def wanted(self) -> list[str]:
        """The names of the columns to read, each once."""
        return list(dict.fromkeys(self.names.by_role.values()))

    @property
    def has_lists(self) -> bool:
        """Whether a text column is split into several items."""
        return self.form is not None and is_list_name(self.names.item or "")


def understand(file: Traversable, given: ColumnNames) -> Part:
    """Finds out how a file is written and which columns it has.

    Args:
        file: A text file or a Parquet file.
        given: What the user says of it.

    Raises:
        InputError: The file cannot be read, or a column is missing or
            ambiguous.
    """
    if file_kind(file) != "parquet":
        form = text_form(file, given.text)
        return _understand(file, form, form.names, form.inner, given)
    reject_options(file, given.text, "Parquet")
    with readable(file), file.open("rb") as stream:
        return _understand_schema(file, pq.read_schema(stream), given)


def _understand_schema(
    file: Any, schema: pa.Schema, given: ColumnNames
) -> Part:
    inner = tuple(
        (field.name, tuple(each.name for each in field.type.value_type))
        for field in schema
        if is_list(field.type) and pa.types.is_struct(field.type.value_type)
    )
    return _understand(file, None, schema.names, inner, given)


def _understand(
    file: Any,
    form: TextForm | None,
    header: Sequence[str],
    inner: Sequence[tuple[str, tuple[str, ...]]],
    given: ColumnNames,
) -> Part:
    """Returns a part by its columns and the fields of those of objects."""
    nested = None
    if inner:
        header = [name for name in header if name not in dict(inner)]
        holders = [each for each in inner if _has_item(each[1], given)]
        if holders and not _has_item(header, given):
            nested, fields = holders[0]
            header = [*header, *fields]
        else:
            header = [*header, *dict(inner)]
    try:
        names = given.find(header, file)
    except InputError as error:
        flags = suggest_columns(form) if form else None
        if given.user or given.item or not form or not form.has_header:
            raise
        if any(is_usual(name, role) for name in header for role in SPELLINGS):
            raise  # It is a header.
        if flags is None:
            raise InputError(
                f"{error}. If there is no header, name them all with --columns,"
                " or add --layout=sequences; --separator sets the delimiter"
            ) from error
        raise InputError(
            f"{file}: expected the names of the columns in the first line, "
            f"which looks like a row: if there is no header, add {flags} "
            "(check which column is which). "
            f"Received: {', '.join(map(repr, header))}"
        ) from error
    return Part(file, form, names, nested, given.text.time_format)


def _has_item(header: Sequence[str], given: ColumnNames) -> bool:
    if given.item is not None:
        return given.item in header
    return find_optional_column(header, "item", None, "") is not None


def notes(part: Part, given: ColumnNames) -> list[str]:
    """Returns what the user should know about how a log was read.

    Args:
        part: Its first file.
        given: What the user said of it.
    """
    names, found = part.names, []
    layout = part.form.layout if part.form else ""
    unusual = [
        f"{role} {name!r}"
        for role, name in names.by_role.items()
        if not role.startswith("+")
        and getattr(given, role) is None
        and not is_usual(name, role)
    ]
    no_time = "no time column: the order of the file is the order of events"
    if layout == "sequences":
        found.append("each line is a user and all of the user's items in order")
        return [*found, no_time]
    if unusual:
        found.append(f"columns found by name: {', '.join(unusual)}")
    if part.has_lists:
        found.append(f"each value of {names.item!r} is a list of items")
    if part.nested:
        found.append(f"each value of {part.nested!r} is a list of events")
    if names.timestamp is None:
        found.append(f"{no_time} (--timestamp_column names one)")
    return found


def raise_first_fault(
    part: Part, table: pa.Table, rows: np.ndarray | None = None
) -> NoReturn:
    """Raises the InputError that names the first bad row of a log.

    Args:
        part: The file.
        table: Its columns by role, as strings or as values of any type.
        rows: Which row of the file each row is from. Default: the same.
    """
    file, names, form = part.file, part.names, part.form
    try:
        columns = table.to_pydict()
    except (LookupError, OverflowError) as error:
        raise InputError(
            f"{file}: expected dates of the years 1 to 9999 in a known time "
            f"zone. Received: {' '.join(str(error).split())}"
        ) from error
    nothing = [None] * len(table)
    first_kind = None
    for row, (user, item, time, rating) in enumerate(
        zip(
            columns["user"],
            columns["item"],
            columns.get("timestamp", nothing),
            columns.get("rating", nothing),
            strict=True,
        )
    ):
        kind: str | None = "number"
        if names.timestamp:
            kind = kind_of_time(time, part.time_format)
        first_kind = first_kind or kind
        expected = None
        if not str("" if user is None else user).strip():
            expected, value = f"the user id in column {names.user!r}", user
        elif not (
            str("" if item is None else item).strip()
            # An empty list, which may be.
            or (part.has_lists and rows is None)
        ):
            expected, value = f"the item id in column {names.item!r}", item
        elif kind is None or kind != first_kind:
            what = _expected_time(part, first_kind, kind)
            expected = f"a {what} in the timestamp column {names.timestamp!r}"
            value = time
        elif not _is_rating(rating):
            expected = f"a number in the rating column {names.rating!r}"
            value = rating
        if expected is not None:
            row = row if rows is None else int(rows[row])
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
        f"{file}: expected rows of user, item and timestamp. Received: columns "
        f"of {', '.join(str(kind) for kind in table.schema.types)}"
    )


def _expected_time(part: Part, first: str | None, found: str | None) -> str:
    if part.time_format:
        return f"date of the form {part.time_format!r}"
    if (first, found) == ("date", "date with a time zone"):
        return "date without a time zone"
    return first or "number or an ISO date"


def _is_rating(value: object) -> bool:
    text = str("" if value is None else value).strip().lower()
    is_missing = text in ("", "na", "n/a", "null", "none")
    return is_missing or kind_of_time(text, None) == "number"


def read_tables(
    files: Sequence[Traversable], given: ColumnNames
) -> tuple[Interactions, ColumnNames]:
    """Reads the parts of one log.

    Args:
        files: Files of one format with the same columns, in order.
        given: The column names that the user gave, and how text is written.

    Returns:
        The interactions, and the column names as the files spell them.

    Raises:
        InputError: A file cannot be read, or the parts do not fit together.
    """
    parts = find_parts(files, given)
    found = [(part.file, each) for part in parts for each in _read(part)]
    names, tables = zip(*found, strict=True)
    return assemble(tables, names), parts[0].names


def _read(
    part: Part, row_group: int | None = None, in_blocks: bool = False
) -> Iterator[pa.Table]:
    """Yields the rows of a file by role, once or in blocks."""
    form = part.form
    if form is None:
        yield _read_parquet(part, row_group)
    elif form.layout in ("json", "python"):
        yield from _read_json(part, in_blocks)
    elif form.is_split_here:
        yield from _read_lines(part)
    elif in_blocks:
        yield from _read_text_in_blocks(part)
    else:
        yield read_text(part)


def find_parts(files: Sequence[Traversable], given: ColumnNames) -> list[Part]:
    """Returns the parts of a log, whose columns are the same.

    Args:
        files: Files of one log.
        given: The column names that the user gave, and how text is written.

    Raises:
        InputError: A part cannot be read or lacks a column, or its columns
            are not those of the first.
    """
    try:
        parts = [understand(file, given) for file in files]
    except InputError as error:
        if len(files) == 1:
            raise
        raise InputError(
            f"{error}. All {len(files):,} tables of a folder or a zip file are "
            "read as one log: unpack it, and name one, if they are not"
        ) from error
    first = parts[0]
    if given.event is None and len({part.names.event for part in parts}) > 1:
        # Nobody named it, and not all parts have it.
        for part in parts:
            part.names = dataclasses.replace(part.names, event=None)
    for part in parts[1:]:
        if part.names != first.names:
            raise InputError(
                f"{part.file}: expected the columns of {first.file}, "
                f"{', '.join(first.names.by_role.values())}. "
                f"Received: {', '.join(part.names.by_role.values())}"
            )
    return parts


def num_row_groups(part: Traversable) -> int:
    """Returns how many row groups a Parquet file has."""
    with readable(part), part.open("rb") as stream:
        return pq.ParquetFile(stream).num_row_groups


def stream(
    file: Traversable,
    given: ColumnNames,
    row_group: int | None = None,
    first_position: int = 0,
) -> Iterator[Interactions]:
    """Reads a part some rows at a time.

    The columns are understood as in `read_tables`, except that the kind of
    the timestamps must be plain from the first rows, that no value holds a
    line break, and that each block by itself says whether its ids are whole
    numbers with a needless ".0", which is dropped.

    Args:
        file: A text file or a Parquet file.
        given: The column names that the user gave, and how text is written.
        row_group: Which of a Parquet file's row groups. Default: all rows.
        first_position: What the first row gets in place of a timestamp if
            there is none.

    Yields:
        The interactions, in the order of the file.

    Raises:
        InputError: The file cannot be read.
    """
    part = understand(file, given)
    for table in _read(part, row_group, in_blocks=True):
        if len(table):
            table = _in_one_unit(table, file)
            yield assemble([table], [file], first_position)
            first_position += len(table)


def _read_text_in_blocks(part: Part) -> Iterator[pa.Table]:
    assert part.form is not None
    quoting = _streamed_quoting(part)

    def fault(*_: object) -> NoReturn:
        raise pa.ArrowInvalid("an id is missing, or no time")

    with (
        readable(part.file),
        arrow_stream(part.file, part.form.encoding) as opened,
    ):
        try:
            for batch in pa_csv.open_csv(opened, *_parsing(part, quoting)):
                yield _finish(part, pa.Table.from_batches([batch]), fault)
            return
        except pa.ArrowInvalid as error:
            reason = str(error)
    _raise_text(part, quoting, reason)


def _streamed_quoting(part: Part) -> Quoting:
    """Returns how a file is quoted, reading it once if it has quotes."""
    file, form = part.file, part.form
    assert form is not None
    quotings, num_rows = possible_quotings(file, form)
    if num_rows is None:
        return quotings[0]
    for quoting in quotings:
        read, parse, convert = _parsing(part, quoting)
        convert.include_columns = [part.names.user]
        with readable(file), arrow_stream(file, form.encoding) as opened:
            try:
                batches = pa_csv.open_csv(opened, read, parse, convert)
                if sum(batch.num_rows for batch in batches) == num_rows:
                    return quoting
            except pa.ArrowInvalid:
                continue
    check_quotes(file, form)
    raise InputError(
        f"{file}: expected values without line breaks, which only a log that "
        "is read whole may hold. Received: a quoted value with one"
    )


def read_text(part: Part) -> pa.Table:
    """Reads the columns of one text file, plain or gzip.

    Args:
        part: The file.

    Returns:
        Columns "user" and "item" (dictionaries of strings) and, if there are
        any, "timestamp" (as Arrow understood it), "rating" and others by
        their role.

    Raises:
        InputError: The file is damaged or has a malformed row, which the
            message names by its line.
    """
    assert part.form is not None
    table, quoting, reason = read_quoted(
        part.file, part.form, lambda quoting: _parsing(part, quoting)
    )
    if table is None:
        _raise_text(part, quoting, reason)
    return _finish(part, table, lambda *_: _raise_text(part, quoting, reason))


def _raise_text(part: Part, quoting: Quoting, reason: str) -> NoReturn:
    """Raises the InputError that names the first bad line of a text file."""
    file, form = part.file, part.form
    assert form is not None
    read, parse, convert = _parsing(part, quoting)
    convert.column_types = {
        name: pa.null() if name in form.blank_columns else pa.string()
        for name in convert.include_columns
    }
    try:
        with readable(file), arrow_stream(file, form.encoding) as opened:
            table = pa_csv.read_csv(opened, read, parse, convert)
    except InputError:
        raise_ragged(file, form, reason)
    raise_first_fault(part, _with_roles(table, part.names))


def _parsing(part: Part, quoting: Quoting) -> Parsing:
    names, form = part.names, part.form
    assert form is not None
    types = {names.user: ID_TYPE}
    types[names.item] = pa.string() if part.has_lists else ID_TYPE
    types.update((name, pa.null()) for name in form.blank_columns)
    if names.rating:
        types[names.rating] = pa.float32()
    if names.timestamp and part.time_format:
        types[names.timestamp] = pa.string()
    for role, name in names.by_role.items():
        if role.startswith("+") and name != names.timestamp:
            types.setdefault(name, ID_TYPE)
    return (
        form.read_options(),
        parse_options(form, quoting),
        pa_csv.ConvertOptions(
            column_types=types,
            include_columns=part.wanted + list(form.blank_columns),
        ),
    )


def _read_lines(part: Part) -> Iterator[pa.Table]:
    """Reads lines that Arrow cannot split, in blocks."""
    file, form = part.file, part.form
    assert form is not None
    types = pa_csv.ConvertOptions(column_types={"line": pa.string()})
    parse = parse_options(form, Quoting(quote=False))
    num_rows, film = 0, _NO_TEXT
    with readable(file), arrow_stream(file, form.encoding) as opened:
        try:
            blocks = pa_csv.open_csv(opened, form.read_options(), parse, types)
            for block in blocks:
                lines = pc.utf8_trim_whitespace(block["line"])
                rows = np.arange(num_rows, num_rows + len(lines))
                num_rows += len(lines)
                if form.layout == "netflix":
                    is_film = pc.ends_with(lines, ":")
                    films = pc.if_else(is_film, lines, _NO_TEXT)
                    films = pc.fill_null(pc.fill_null_forward(films), film)
                    film = films[-1]
                    is_row = pc.invert(is_film)
                    lines = pc.binary_join_element_wise(
                        pc.utf8_rtrim(films.filter(is_row), ":"),
                        lines.filter(is_row),
                        ",",
                    )
                    rows = rows[is_row.to_numpy(zero_copy_only=False)]
                yield _finish(part, _split_lines(part, lines), None, rows)
            return
        except pa.ArrowInvalid as error:
            reason = str(error)
    raise_ragged(file, form, reason)


def _split_lines(part: Part, lines: pa.Array) -> pa.Table:
    form = part.form
    assert form is not None
    delimiter = "," if form.layout == "netflix" else form.delimiter
    if delimiter:
        values = pc.split_pattern(lines, delimiter)
    else:
        values = pc.utf8_split_whitespace(lines)
    if form.layout == "sequences":
        columns = [pc.list_element(values, 0), pc.list_slice(values, 1)]
    else:
        lengths = pc.list_value_length(values)
        if not pc.all(pc.equal(lengths, len(form.header))).as_py():
            raise pa.ArrowInvalid("lines differ in their number of values")
        columns = [pc.list_element(values, i) for i in range(len(form.header))]
    return pa.table(columns, names=list(form.header))


def _read_json(part: Part, in_blocks: bool) -> Iterator[pa.Table]:
    """Reads one JSON object, or one dictionary of Python, per line."""
    file, form = part.file, part.form
    assert form is not None
    schema, num_rows = _json_schema(part), 0
    options = (
        pa_json.ReadOptions(block_size=BLOCK_BYTES),
        pa_json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="ignore"
        ),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(readable(file))
        try:
            if form.layout == "python":
                blocks = _dictionaries(part, *options)
            else:
                opened = stack.enter_context(arrow_stream(file, form.encoding))
                if in_blocks:
                    blocks = (
                        pa.Table.from_batches([batch])
                        for batch in pa_json.open_json(opened, *options)
                    )
                else:
                    blocks = iter([pa_json.read_json(opened, *options)])
            for table in blocks:
                rows = np.arange(num_rows, num_rows + len(table))
                num_rows += len(table)
                yield _finish(part, table, None, rows)
            return
        except pa.ArrowInvalid as error:
            reason = " ".join(str(error).split())
    for number, found in _objects(part):
        for field in schema:
            try:
                pa.array([found.get(field.name)], field.type)
            except (pa.ArrowException, TypeError) as error:
                raise InputError(
                    f"{file}, line {number}: expected {field.type} in "
                    f"{field.name!r}, as in the lines before. "
                    f"Received: {found[field.name]!r}"
                ) from error
    raise InputError(f"{file}: expected JSON lines. Received: {reason}")


def _objects(part: Part) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the lines of JSON, decoded, with their numbers."""
    assert part.form is not None
    decode = json.loads if part.form.layout == "json" else ast.literal_eval
    for number, line in enumerate(part.form.lines(part.file), 1):
        if not line.strip():
            continue
        try:
            found = decode(line.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found = None
        if not isinstance(found, dict):
            raise InputError(
                f"{part.file}, line {number}: expected an object in JSON. "
                f"Received: {line[:80]!r}"
            )
        yield number, found


def _dictionaries(part: Part, *options: Any) -> Iterator[pa.Table]:
    """Reads dictionaries of Python, through JSON."""
    found = (json.dumps(each, default=str) for _, each in _objects(part))
    while block := "\n".join(itertools.islice(found, _BLOCK_LINES)):
        yield pa_json.read_json(io.BytesIO(block.encode()), *options)


def _json_schema(part: Part) -> pa.Schema:
    """Returns the types of the fields to read, from the first lines."""
    sample = list(itertools.islice(_objects(part), _SAMPLE_LINES))
    fields: list[Any] = []
    inner: list[Any] = []
    for name in part.wanted:
        values = [found.get(name) for _, found in sample]
        events = [
            event.get(name)
            for _, found in sample
            for event in found.get(part.nested or "") or ()
            if isinstance(event, dict)
        ]
        is_inner = bool(events) and all(value is None for value in values)
        kind = _json_type(part, name, events if is_inner else values)
        (inner if is_inner else fields).append((name, kind))
    if part.nested:
        fields.append((part.nested, pa.list_(pa.struct(inner))))
    return pa.schema(fields)


def _json_type(part: Part, name: str, values: list[Any]) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError) as error:
        kinds = {type(value): value for value in values if value is not None}
        raise InputError(
            f"{part.file}: expected values of one type, within 64 bits, in "
            f"{name!r}. Received: {' and '.join(map(repr, kinds.values()))}"
        ) from error
    if pa.types.is_null(kind):
        return pa.string()
    if name == part.names.rating and pa.types.is_integer(kind):
        return pa.float64()
    return kind


def _read_parquet(part: Part, row_group: int | None = None) -> pa.Table:
    names, columns = part.names, part.wanted
    with readable(part.file), part.file.open("rb") as opened:
        schema = pq.ParquetFile(opened).schema_arrow
        if part.nested:
            own = [name for name in columns if name in schema.names]
            columns = [*own, part.nested]
        strings = [
            name
            for name in {names.user, names.item, names.event, *names.others}
            if name in schema.names
            and schema.field(name).type == pa.string()
            and name not in (names.timestamp, names.rating)
        ]
        opened.seek(0)
        parquet = pq.ParquetFile(opened, read_dictionary=strings)
        if row_group is None:
            table = parquet.read(columns)
        else:
            table = parquet.read_row_group(row_group, columns)
        # Text that is not UTF-8, and positions beyond a dictionary.
        table.validate(full=True)
    return _finish(part, table)


def read_frame(
    frame: Any, given: ColumnNames, where: str
) -> tuple[Interactions, Part]:
    """Takes interactions from a frame.

    Args:
        frame: A frame; see `frame_table`.
        given: The column names that the user gave.
        where: What to call it in messages.

    Returns:
        The interactions, and how they were understood.
    """
    table = frame_table(frame, where)
    part = _understand_schema(where, table.schema, given)
    return assemble([_finish(part, table)], [where]), part


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
        columns = [
            pa.chunked_array(
                [_plain(c) for c in column.chunks or [pa.nulls(0, column.type)]]
            )
            for column in table.columns
        ]
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


def _plain(array: pa.Array) -> pa.Array:
    """Returns categories as their values, and NaN as missing."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _plain(array.dictionary).take(array.indices)
    if pa.types.is_string_view(kind):
        return array.cast(pa.string())
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_nan(array), None, array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.list_value_length(array).fill_null(0).to_numpy()
        return pa.LargeListArray.from_arrays(
            np.append(0, np.cumsum(lengths)),
            _plain(pc.list_flatten(array)),
            mask=array.is_null(),
        )
    return array


def _finish(
    part: Part,
    table: pa.Table,
    fault: Callable[[pa.Table, np.ndarray | None], NoReturn] | None = None,
    rows: np.ndarray | None = None,
) -> pa.Table:
    """Gives columns their roles and types, and lists a row for each item.

    Args:
        part: The file.
        table: Columns by their names in the file.
        fault: Raises the error for a bad row. Default: names the row.
        rows: Which row of the file each row is from. Default: the same.
    """
    names = part.names
    fault = fault or (lambda *found: raise_first_fault(part, *found))
    if part.nested:
        table = _unnest(table, part.nested)
    columns = {role: table[name] for role, name in names.by_role.items()}
    items, num_empty = columns["item"], 0
    if part.has_lists and is_text(items.type):
        trimmed = pc.utf8_trim_whitespace(items)
        odd = trimmed.filter(pc.match_substring_regex(trimmed, r"[\[\],;|]"))
        if len(odd):
            raise InputError(
                f"{part.file}: expected items with blanks between them in "
                f"column {names.item!r}, or lists in JSON lines or Parquet. "
                f"Received: {odd[0].as_py()[:80]!r}"
            )
        full = pc.if_else(pc.equal(trimmed, ""), _NO_TEXT, trimmed)
        columns["item"] = pc.utf8_split_whitespace(full)
    if is_list(columns["item"].type):
        columns, rows, num_empty = _explode(part, pa.table(columns), rows)
    for role in ("user", "item"):
        columns[role] = ids_as_strings(columns[role], part.file, names, role)
    if names.timestamp:
        where = f"{part.file}, column {names.timestamp!r}"
        columns["timestamp"], found = typed_times(
            columns["timestamp"], part.time_format, where
        )
        part.time_format = part.time_format or found
    if names.rating:
        try:
            columns["rating"] = columns["rating"].cast(pa.float32(), safe=False)
        except pa.ArrowException:
            fault(pa.table(columns), rows)
    table = pa.table(columns)
    if not _is_sound(table):
        fault(table, rows)
    if num_empty:
        table = table.replace_schema_metadata({_EMPTY: str(num_empty)})
    return table


def _unnest(table: pa.Table, nested: str) -> pa.Table:
    """Makes a column of lists for each field of a list of objects."""
    columns = {name: table[name] for name in table.column_names}
    chunks = columns.pop(nested).chunks
    for field in table.schema.field(nested).type.value_type:
        columns[field.name] = pa.chunked_array(
            [
                type(chunk).from_arrays(
                    chunk.offsets, pc.struct_field(chunk.values, field.name)
                )
                for chunk in chunks
            ],
            pa.list_(field.type),
        )
    return pa.table(columns)


def _explode(
    part: Part, table: pa.Table, rows: np.ndarray | None
) -> tuple[dict[str, pa.ChunkedArray], np.ndarray, int]:
    """Returns a row for each item of a list, their rows, and empty lists."""
    if rows is None:
        rows = np.arange(len(table))
    found, origins, num_empty, begin = [], [rows[:0]], 0, 0
    for batch in table.to_batches() or [
        pa.RecordBatch.from_pylist([], table.schema)
    ]:
        lengths = _lengths(batch["item"])
        parents = pc.list_parent_indices(batch["item"])
        columns = {}
        for role, column in zip(table.column_names, batch.columns, strict=True):
            if not is_list(column.type):
                columns[role] = column.take(parents)
                continue
            differs = np.flatnonzero(_lengths(column) != lengths)
            if len(differs):
                row = begin + differs[0]
                raise InputError(
                    f"{part.file}, row {rows[row] + 1}: expected as many "
                    f"values in the list of {role.removeprefix('+')} as in "
                    f"that of items, {lengths[differs[0]]}. "
                    f"Received: {_lengths(column)[differs[0]]}"
                )
            columns[role] = pc.list_flatten(column)
        found.append(pa.table(columns))
        origins.append(rows[begin + parents.to_numpy()])
        num_empty += int(np.count_nonzero(lengths == 0))
        begin += len(batch)
    merged = pa.concat_tables(found)
    columns = {name: merged[name] for name in merged.column_names}
    return columns, np.concatenate(origins), num_empty


def _lengths(lists: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy()


def _in_one_unit(table: pa.Table, part: object) -> pa.Table:
    """Makes dates of fractional seconds, also where some rows have none."""
    if "timestamp" not in table.column_names:
        return table
    times = table["timestamp"]
    if not pa.types.is_floating(times.type):
        return table
    micros = pa.array(to_whole(times.to_numpy(), part, 1e6))
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
    if "timestamp" not in table.column_names or not len(table):
        return True
    times = table["timestamp"]
    kind = times.type
    if times.null_count:
        return False
    if pa.types.is_floating(kind):
        return pc.all(pc.is_finite(times)).as_py()
    return pa.types.is_integer(kind) or is_date(kind)


def assemble(
    tables: Sequence[pa.Table],
    parts: Sequence[object],
    first_position: int = 0,
) -> Interactions:
    """Puts the columns of all parts together.

    Args:
        tables: What `read_text` returns, one for each part.
        parts: What the parts are called, for messages.
        first_position: What the first row gets in place of a timestamp if
            there is none.

    Raises:
        InputError: The parts hold no row, or times of different kinds.
    """
    num_empty = sum(
        int((table.schema.metadata or {}).get(_EMPTY, 0)) for table in tables
    )
    if not any(map(len, tables)):
        received = "a header and no row"
        if num_empty:
            received = f"{num_empty:,} rows, each with an empty list of items"
        raise InputError(
            f"{parts[0]}: expected interactions. Received: {received}"
        )
    filled = [
        (table, part)
        for table, part in zip(tables, parts, strict=True)
        if len(table)
    ]
    if "timestamp" in filled[0][0].column_names:
        timestamps, per_second = to_timestamps(
            [table["timestamp"] for table, _ in filled],
            [part for _, part in filled],
        )
    else:
        num_rows = sum(len(table) for table, _ in filled)
        timestamps = np.arange(first_position, first_position + num_rows)
        per_second = 0
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
        num_empty,
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
            if is_text(column.type) or (
                name == EVENT and pa.types.is_primitive(column.type)
            ):
                columns[name] = column.cast(pa.string()).dictionary_encode()
        found.append(pa.table(columns))
    merged = concat(found, f"{parts[0]} and the other parts")
    return merged.unify_dictionaries().combine_chunks()


def _codes(
    columns: Sequence[pa.ChunkedArray],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids by first appearance, and each row's position there."""
    chunks = [chunk for column in columns for chunk in column.chunks]
    column = pa.chunked_array(chunks, ID_TYPE).unify_dictionaries()
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
