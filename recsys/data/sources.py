"""Where a log comes from; reads it whole, or some rows at a time."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import importlib.resources
import os
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import Any

import pyarrow as pa

from recsys import datasets
from recsys.data import input_files, movielens, synthetic, tables
from recsys.data import items as items_lib
from recsys.data.columns import ColumnNames, TextOptions
from recsys.data.input_files import AnyPath
from recsys.data.interactions import Interactions
from recsys.errors import InputError

BUNDLED = "movielens-small"
TFDS_PREFIX = "tfds:"
_PART_SUFFIXES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")
# Read from a folder that holds none of those.
_OTHER_SUFFIXES = tuple(
    suffix + packed
    for suffix in (".inter", ".jsonl", ".ndjson", ".json")
    for packed in ("", ".gz")
)
_ITEMS_NAMES = tuple(
    stem + suffix for stem in ("movies", "items") for suffix in _PART_SUFFIXES
)
_USERS_NAMES = tuple(f"users{suffix}" for suffix in _PART_SUFFIXES)
# Parts as other tools compress them, which are not read.
_PACKED = re.compile(
    r".+\.(csv|tsv|parquet)\.(7z|br|bz2|lz4|lzma|xz|z|zip|zst)"
)
# The options of files.
_FILE_OPTIONS = (
    *("user_column", "item_column", "timestamp_column", "rating_column"),
    *("columns", "separator", "encoding", "layout", "time_format"),
    *("event_column", "other_columns"),
)
# Rows in a block of a log that can only be read whole.
_BLOCK_ROWS = 2**20

# Reads the rows of a unit, in order, about a million or fewer at a time.
_ReadBlocks = Callable[[], Iterator[Interactions]]


def read(data: str, **options: Any) -> Log:
    """Reads a log of interactions.

    Args:
        data: The log; see `Source`.
        **options: The other attributes of `Source`.

    Returns:
        The log.

    Raises:
        InputError: The log cannot be read, or an option has no effect on it.
    """
    return Source(data, **options).read()


@dataclasses.dataclass(frozen=True)
class Unit:
    """A part of a log that one worker reads from beginning to end.

    Attributes:
        number: Its position in the log.
        name: Its name in messages.
        blocks: Yields the rows, in order, about a million or fewer at a time.
            Raises InputError if the log cannot be read.
    """

    number: int
    name: str
    blocks: _ReadBlocks


@dataclasses.dataclass(frozen=True)
class Source:
    """A log of interactions: where it is, and how to read it.

    Attributes:
        data: "movielens-small" (comes with the package); the name of a public
            data set (see `recsys.datasets`), unless there is such a path;
            "tfds:movielens/<config>-ratings"; "synthetic:users=…,items=…,
            interactions=…,seed=…" (see `recsys.data.synthetic`); or a path: a
            folder or zip in a GroupLens layout; a table in text (CSV, TSV and
            others), JSON lines (both plain or gzip) or Parquet, or a folder
            of such parts, read in the order of their names; or the URI of any
            of those, such as s3://bucket/log.csv.
        user_column: The column of user ids. By default this column and the
            next four are found by their usual names.
        item_column: The column of item ids.
        timestamp_column: The column of times: numbers or dates. Default: by
            name; without one, or with "", the order of the file.
        rating_column: The column of ratings; "" ignores the ratings.
        event_column: The column of kinds of events; "" ignores them.
        items_file: CSV or Parquet file with a column of item ids and titles,
            genres (separated by "|") or any other columns. Default:
            `movies.csv` or `items.csv` (or .tsv, .parquet) beside the log.
        users_file: CSV or Parquet file with a column of user ids and any
            others. Default: `users.csv` (or .tsv, .parquet) beside the log, or
            the users of MovieLens.
        with_users: Whether to read the user metadata.
        tfds_data_dir: Where TensorFlow Datasets keeps prepared data.
            Default: its own default.
        tfds_manual_dir: A folder with the original archive, which is used
            instead of a download.
        datasets_dir: Where public data sets are kept. Default: `recsys` in
            $XDG_CACHE_HOME or ~/.cache.
        other_columns: Names of further columns to read, which become
            `Interactions.columns`. Default: none.
        columns: The column names of text without a header, with commas
            between; "_" skips one.
        separator: What stands between two values in text: a character, the
            same one several times, tab, blank, or blanks for runs of them.
        encoding: The encoding of text. Default: UTF-8, or UTF-16 by its mark.
        layout: "rows" of one event each, or "sequences": lines of a user and
            all items, oldest first. Default: rows, unless it cannot be.
        time_format: The format of the times, as for `strptime`.
    """

    data: str
    user_column: str | None = None
    item_column: str | None = None
    timestamp_column: str | None = None
    rating_column: str | None = None
    event_column: str | None = None
    items_file: str | None = None
    users_file: str | None = None
    with_users: bool = False
    tfds_data_dir: str | None = None
    tfds_manual_dir: str | None = None
    datasets_dir: str | None = None
    other_columns: tuple[str, ...] = ()
    columns: str | None = None
    separator: str | None = None
    encoding: str | None = None
    layout: str | None = None
    time_format: str | None = None

    def read(self) -> Log:
        """Reads the whole log.

        Raises:
            InputError: The log cannot be read, or an option has no effect.
        """
        with self._found() as found:
            return Log(
                self.data,
                found.interactions(),
                self._items(found),
                self,
                tuple(found.notes()),
                self._users(found) if self.with_users else None,
            )

    def notes(self) -> list[str]:
        """Returns what the user should know about how the log is read.

        Raises:
            InputError: The log cannot be read, or an option has no effect.
        """
        with self._found() as found:
            return found.notes()

    def users(self) -> pa.Table | None:
        """Reads the user metadata; see `Log`.

        Raises:
            InputError: It cannot be read, or an option has no effect.
        """
        with self._found() as found:
            return self._users(found)

    def units(self) -> tuple[list[Unit], pa.Table | None]:
        """Divides the log into units.

        CSV files, the row groups of Parquet files and synthetic logs are read
        as needed. Any other log is a single unit, which is held in the memory
        of the worker that reads it.

        Returns:
            The units in the order of the log, and the item metadata.

        Raises:
            InputError: The log cannot be read, an option has no effect, or
                the parts of the log differ in their columns.
        """
        with self._found() as found:
            whole = (self.data, functools.partial(_blocks_of_whole, self))
            parts = found.parts_to_stream() or [whole]
            items = self._items(found)
        return [Unit(i, *part) for i, part in enumerate(parts)], items

    @contextlib.contextmanager
    def _found(self) -> Iterator[_FoundLog]:
        """Finds out what `data` is; an archive is open within the block."""
        # What lies at a path of that name goes before a public data set.
        is_path = os.path.exists(os.path.expanduser(self.data))
        public = None if is_path else datasets.find(self.data)
        if public is None:
            self._reject("the name of a public data set", ("datasets_dir",))
        if self.data.startswith(TFDS_PREFIX):
            self._reject("a file or folder", _FILE_OPTIONS)
            yield _TfdsLog(
                self.data.removeprefix(TFDS_PREFIX),
                self.tfds_data_dir,
                self.tfds_manual_dir,
            )
            return
        self._reject(
            f"a '{TFDS_PREFIX}...' source", ("tfds_data_dir", "tfds_manual_dir")
        )
        if synthetic.is_synthetic(self.data):
            self._reject("a file or folder", _FILE_OPTIONS)
            yield _SyntheticLog(self.data, synthetic.parse(self.data))
            return
        with contextlib.ExitStack() as stack:
            if self.data == BUNDLED:
                data = importlib.resources.files("recsys.data")
                yield self._find_in(data / "movielens_small", stack)
            elif public:
                path = datasets.fetch(self.data, self.datasets_dir)
                columns = self.columns or public.columns
                source = dataclasses.replace(self, columns=columns)
                yield source._find_at(path, stack)
            else:
                yield self._find_at(_existing_path(self.data), stack)

    def _reject(self, kind: str, names: tuple[str, ...]) -> None:
        """Raises InputError for given options, which need a kind of log."""
        for name in names:
            if (value := getattr(self, name)) not in (None, ()):
                raise InputError(
                    f"`{name}` needs `data` to be {kind}. "
                    f"Received: {name}={value!r} with data={self.data!r}"
                )

    def _find_at(self, path: AnyPath, stack: contextlib.ExitStack) -> _FoundLog:
        if path.is_dir():
            return self._find_in(path, stack)
        if input_files.file_kind(path) == "zip":
            archive = stack.enter_context(input_files.open_zip(path))
            return self._find_in(archive, stack)
        members = input_files.list_members(path.parent)
        layout = path.name.removesuffix(".gz")
        if layout in movielens.LAYOUTS:
            return self._grouplens(layout, path, members)
        return _TablesLog([path], members, self._columns)

    def _find_in(
        self, folder: Traversable, stack: contextlib.ExitStack
    ) -> _FoundLog:
        members = input_files.list_members(folder)
        ratings = movielens.ratings_files(members)
        if len(ratings) > 1:
            raise InputError(
                f"{folder}: expected one log; name the file to read. "
                f"Received: {', '.join(ratings)}"
            )
        for layout, file in ratings.items():
            return self._grouplens(layout, file, members)
        for suffixes in (_PART_SUFFIXES, _OTHER_SUFFIXES):
            if parts := _parts_in(folder, suffixes):
                return _TablesLog(
                    parts,
                    members,
                    self._columns,
                    left_out=_others_in(folder, suffixes),
                )
        archives = [name for name in members if name.lower().endswith(".zip")]
        known = {*archives, *_ITEMS_NAMES, *_USERS_NAMES}
        if len(members) == 1 and not known & {*members}:
            [(name, only)] = members.items()
            others = _others_in(folder, (name.lower(),))
            return _TablesLog([only], {}, self._columns, left_out=others)
        if len(archives) == 1:
            archive = input_files.open_zip(members[archives[0]])
            return self._find_in(stack.enter_context(archive), stack)
        raise InputError(
            f"{folder}: expected ratings.csv, ratings.dat, u.data, or CSV, "
            "TSV or Parquet files, JSON lines or .inter files. Received: "
            + (", ".join(list(members)[:10]) or "an empty folder")
        )

    def _grouplens(
        self, layout: str, file: Traversable, members: dict[str, Traversable]
    ) -> _FoundLog:
        if layout != movielens.CSV_LAYOUT:
            given = self._columns
            if given.text == TextOptions():
                text = movielens.FORMS[layout]
                given = dataclasses.replace(given, text=text)
            return _TablesLog([file], members, given, layout)
        # GroupLens's own file goes before any other.
        if movies := movielens.member(members, "movies.csv"):
            members = {"movies.csv": movies}
        return _TablesLog([file], members, self._columns)

    @property
    def _columns(self) -> ColumnNames:
        return ColumnNames(
            self.user_column,
            self.item_column,
            self.timestamp_column,
            self.rating_column,
            self.event_column,
            self.other_columns,
            TextOptions(
                tuple(name.strip() for name in (self.columns or "").split(","))
                if self.columns
                else (),
                self.separator,
                self.encoding,
                self.layout,
                self.time_format,
            ),
        )

    def _items(self, found: _FoundLog) -> pa.Table | None:
        path = self._named("items_file") if self.items_file else None
        read = [*getattr(found, "full_parts", ()), *([path] if path else [])]
        kinds = map(input_files.file_kind, read if self.encoding else ())
        if {*kinds} == {"parquet"}:
            self._reject("text, or `items_file`, not Parquet", ("encoding",))
        if not path:
            return found.items()
        return items_lib.read_items(path, found.item_column, self.encoding)

    def _users(self, found: _FoundLog) -> pa.Table | None:
        if self.users_file is None:
            return found.users()
        path = self._named("users_file")
        return items_lib.read_users(path, self.user_column, self.encoding)

    def _named(self, option: str) -> AnyPath:
        """Returns the path of the file that an option names."""
        path = input_files.path_at(getattr(self, option))
        if not path.is_file():
            raise InputError(
                f"`{option}` must be a CSV or Parquet file. "
                f"Received: {getattr(self, option)!r}"
            )
        return path


@dataclasses.dataclass(frozen=True)
class Log:
    """A log of interactions with item metadata.

    Attributes:
        name: The name of the log: a built-in name, the path as given, or
            "frame".
        interactions: The interactions.
        items: The item metadata, or None: one row per item, with `item_id`
            (string), `title` (string) and `genres` (list of strings) if known,
            then any other columns. Neither complete nor aligned with
            `interactions.item_ids`.
        source: Where the log was read from; None for a log in memory.
        notes: What the user should know about how it was read.
        users: The user metadata, or None: one row per user, with
            `user_id` (string), then any other columns.
    """

    name: str
    interactions: Interactions
    items: pa.Table | None = None
    source: Source | None = None
    notes: tuple[str, ...] = ()
    users: pa.Table | None = None

    @staticmethod
    def read(data: str | os.PathLike[str], **options: Any) -> Log:
        """Reads a log.

        Args:
            data: A path or another source; see `Source`.
            **options: The other attributes of `Source`, such as
                `user_column`.

        Returns:
            The log.

        Raises:
            InputError: It cannot be read, or an option has no effect on it.
        """
        return Source(os.fspath(data), **options).read()

    @staticmethod
    def from_frame(
        frame: Any, *, items: Any = None, users: Any = None, **options: Any
    ) -> Log:
        """Takes a log from a DataFrame, by the rules for Parquet files.

        Args:
            frame: One row per interaction: a pandas or Polars DataFrame, an
                Arrow table, a DuckDB relation or anything else with
                `__arrow_c_stream__`, or arrays by column name. Categories
                count as their values, NaN as missing.
            items: One row per item, likewise, with a column of item ids and
                titles, genres or any other columns. Default: none.
            users: One row per user, likewise, with a column of user ids.
            **options: The attributes of `Source` that name columns, such as
                `user_column`, and `time_format`. Ids are text or whole
                numbers. Without a column of times, the order of the rows is
                that of the events.

        Returns:
            The log.

        Raises:
            InputError: This is no frame, an option has no effect on it, a
                column is missing or ambiguous, or a row lacks its user, item
                or time; names row and column.
        """
        source = Source("frame", **options)
        for name, value in options.items():
            if not name.endswith(("_column", "other_columns", "time_format")):
                raise InputError(
                    f"`{name}` needs a file. Received: {name}={value!r} with "
                    "a frame"
                )
        given = source._columns
        interactions, part = tables.read_frame(frame, given, "frame")
        if items is not None:
            item_column = part.names.by_role["item"]
            items = items_lib.from_frame(items, item_column, "items frame")
        notes = tuple(tables.notes(part, given))
        if users is not None:
            user_column = part.names.by_role["user"]
            users = items_lib.users_from_frame(users, user_column)
        return Log("frame", interactions, items, notes=notes, users=users)


class _FoundLog(abc.ABC):
    """A log of some kind; what is not overridden it does not have."""

    @abc.abstractmethod
    def interactions(self) -> Interactions:
        """Reads all interactions."""

    @property
    def item_column(self) -> str | None:
        """The name of the item column, which an items file may share."""
        return None

    def items(self) -> pa.Table | None:
        """Reads the item metadata that comes with the log."""
        return None

    def users(self) -> pa.Table | None:
        """Reads the user metadata that comes with the log."""
        return None

    def notes(self) -> list[str]:
        """Returns what the user should know about how it is read."""
        return []

    def parts_to_stream(self) -> list[tuple[str, _ReadBlocks]]:
        """Returns the names of the parts and how to read each in blocks."""
        return []


@dataclasses.dataclass(frozen=True)
class _TablesLog(_FoundLog):
    """Tables, the files beside them by name, and GroupLens's layout if any."""

    parts: Sequence[Traversable]
    members: dict[str, Traversable]
    given: ColumnNames
    grouplens: str = ""
    left_out: Sequence[str] = ()

    @functools.cached_property
    def full_parts(self) -> list[Traversable]:
        """The parts, without empty files unless all are empty."""
        if len(self.parts) == 1:
            return [*self.parts]
        full = [part for part in self.parts if not input_files.is_empty(part)]
        return full or [*self.parts]

    @functools.cached_property
    def first(self) -> tables.Part:
        """How the first part is understood."""
        return tables.understand(self.full_parts[0], self.given)

    def interactions(self) -> Interactions:
        return tables.read_tables(self.full_parts, self.given)[0]

    def notes(self) -> list[str]:
        parts = self.full_parts
        found = tables.notes(self.first, self.given)
        if num_empty := len(self.parts) - len(parts):
            found.append(
                f"{num_empty:,} of {len(self.parts):,} parts are empty"
            )
        if names := self.left_out:
            rest = f" and {len(names) - 5:,} others" * (len(names) > 5)
            found.append(f"not read: {', '.join(names[:5])}{rest}")
        keys = {
            name
            for part in parts
            for name in re.findall(r"([^/\\]+)=[^/\\]*[/\\]", str(part))
        }
        if keys:
            found.append(
                f"folders named {'=…, '.join(sorted(keys))}=… are read in the "
                "order of their names; their values are not columns"
            )
        elif len(parts) > 1:
            found.append(
                f"{len(parts):,} files are read as one log, "
                f"{parts[0].name} to {parts[-1].name}"
            )
        return found

    @property
    def item_column(self) -> str | None:
        return self.first.names.item

    def items(self) -> pa.Table | None:
        if self.grouplens:
            return movielens.read_films(self.members, self.grouplens)
        file = self._beside("items", _ITEMS_NAMES)
        return file and items_lib.read_items(file, self.item_column)

    def users(self) -> pa.Table | None:
        if found := movielens.read_users(self.members, self.grouplens):
            return found
        file = self._beside("users", _USERS_NAMES)
        return file and items_lib.read_users(file, self.first.names.user)

    def _beside(self, kind: str, names: tuple[str, ...]) -> Traversable | None:
        """Returns the items or users file beside the log, if there is one."""
        found = [self.members[n] for n in names if n in self.members]
        if len(found) > 1:
            raise InputError(
                f"{self.parts[0]}: expected one {kind} file beside it; choose "
                f"one with --{kind}_file. "
                f"Received: {', '.join(file.name for file in found)}"
            )
        return found[0] if found and found[0] not in self.parts else None

    def parts_to_stream(self) -> list[tuple[str, _ReadBlocks]]:
        # Other processes cannot read from an archive that is open in this one.
        parts = self.full_parts
        if not all(isinstance(part, AnyPath) for part in parts):
            return []
        # Parts with other columns are an error before any of them is read.
        first = tables.find_parts(parts, self.given)[0]
        given = dataclasses.replace(self.given, event=first.names.event or "")
        found: list[tuple[str, _ReadBlocks]] = []
        for part in parts:
            groups: Sequence[int | None] = [None]
            if input_files.file_kind(part) == "parquet":
                groups = range(tables.num_row_groups(part))
            for group in groups:
                # Rows of later parts have higher positions, if no times.
                blocks = functools.partial(
                    tables.stream, part, given, group, len(found) << 40
                )
                found.append((str(part), blocks))
        return found


@dataclasses.dataclass(frozen=True)
class _TfdsLog(_FoundLog):
    """A MovieLens configuration of TensorFlow Datasets."""

    name: str
    data_dir: str | None
    manual_dir: str | None

    @functools.cached_property
    def _log(self) -> tuple[Interactions, pa.Table, pa.Table | None]:
        return movielens.read_tfds(self.name, self.data_dir, self.manual_dir)

    def interactions(self) -> Interactions:
        return self._log[0]

    def items(self) -> pa.Table | None:
        return self._log[1]

    def users(self) -> pa.Table | None:
        return self._log[2]


@dataclasses.dataclass(frozen=True)
class _SyntheticLog(_FoundLog):
    name: str
    log: synthetic.SyntheticLog

    def interactions(self) -> Interactions:
        return self.log.interactions_in_memory()

    def parts_to_stream(self) -> list[tuple[str, _ReadBlocks]]:
        return [
            (self.name, functools.partial(_blocks_of_chunk, self.log, number))
            for number in range(self.log.num_chunks)
        ]


def _blocks_of_chunk(
    log: synthetic.SyntheticLog, number: int
) -> Iterator[Interactions]:
    yield log.chunk(number)


def _blocks_of_whole(source: Source) -> Iterator[Interactions]:
    """Yields runs of rows; the ids stay those of the whole log."""
    whole = source.read().interactions
    for begin in range(0, len(whole), _BLOCK_ROWS):
        rows = slice(begin, begin + _BLOCK_ROWS)
        columns = whole.columns
        yield dataclasses.replace(
            whole,
            users=whole.users[rows],
            items=whole.items[rows],
            timestamps=whole.timestamps[rows],
            ratings=None if whole.ratings is None else whole.ratings[rows],
            columns=None if columns is None else columns[rows],
        )


def _parts_in(
    folder: Traversable, suffixes: tuple[str, ...]
) -> list[Traversable]:
    """Returns the parts of a log in a folder, in the order of their names.

    A folder that is named as a part, as Spark writes them, or like
    "day=2024-01-01", as Hive does, holds parts, too.

    Raises:
        InputError: A part would be left out without a word, or read twice.
    """
    parts: list[Traversable] = []
    named: dict[str, Traversable] = {}
    for child in _visible(folder):
        name = child.name.lower()
        if _PACKED.fullmatch(name):
            raise InputError(
                f"{child}: expected parts in CSV or TSV (plain or gzip) or "
                "Parquet. Received: another compression"
            )
        suffix = next(filter(name.endswith, suffixes), None)
        if suffix is None and "=" in name and child.is_dir():
            suffix = ""
        if suffix is None:
            continue
        twin = named.setdefault(name.removesuffix(suffix), child)
        if twin is not child:
            raise InputError(
                f"{folder}: expected every part once; name the file to read. "
                f"Received: {twin.name} and {child.name}"
            )
        inner = _parts_in(child, suffixes) if child.is_dir() else [child]
        if not inner or not all(file.is_file() for file in inner):
            raise InputError(
                f"{child}: expected a file, or a folder of parts. Received: "
                + ("a folder without any" if child.is_dir() else "neither")
            )
        parts += inner
    return parts


def _others_in(folder: Traversable, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the names in a folder of parts that are not parts themselves."""
    return [
        child.name
        for child in _visible(folder)
        if not child.name.lower().endswith(suffixes)
        and not ("=" in child.name and child.is_dir())
    ]


def _visible(folder: Traversable) -> list[Traversable]:
    """Returns what is in a folder of parts, by name, but no items files."""
    with input_files.readable(folder):
        return sorted(
            (
                child
                for child in folder.iterdir()
                if not child.name.startswith((".", "_"))
                and child.name not in (*_ITEMS_NAMES, *_USERS_NAMES)
            ),
            key=lambda child: child.name,
        )


def _existing_path(data: str) -> AnyPath:
    path = input_files.path_at(data)
    # The path of no text would be the current folder.
    if not data or not path.exists():
        raise InputError(
            f"`data` must be {BUNDLED!r}, 'tfds:movielens/...', "
            "'synthetic:users=...', a public data set (python -m "
            "recsys.datasets lists them), or the path or URI of a file or "
            f"folder that exists. Received: {data!r}"
        )
    return path
