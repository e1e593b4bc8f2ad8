"""Where a log comes from, read whole or some rows at a time."""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import Any

import pyarrow as pa

from recsys.data import items as items_lib
from recsys.data import movielens, synthetic, tables
from recsys.data.interactions import Interactions, Log
from recsys.data.tables import ColumnNames
from recsys.errors import InputError

BUNDLED = "movielens-small"
TFDS_PREFIX = "tfds:"
_PART_SUFFIXES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")
_ITEMS_NAMES = tuple(
    stem + suffix for stem in ("movies", "items") for suffix in _PART_SUFFIXES
)


def read(
    data: str,
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    timestamp_column: str | None = None,
    rating_column: str | None = None,
    items_file: str | None = None,
    tfds_data_dir: str | None = None,
    tfds_manual_dir: str | None = None,
) -> Log:
    """Reads a log of interactions.

    Args:
        data: "movielens-small" (comes with the package);
            "tfds:movielens/<config>-ratings"; "synthetic:users=…,items=…,
            interactions=…,seed=…" (see `recsys.data.synthetic`); or a path: a
            folder or zip in a GroupLens layout, a CSV, TSV (plain or gzip) or
            Parquet file, or a folder of such parts, read in the order of
            their names.
        user_column: Its column of user ids. Default: found by the usual
            spellings, as for the next three.
        item_column: Its column of item ids.
        timestamp_column: Its column of times: numbers or ISO dates.
        rating_column: Its column of ratings; "" if it has none after all.
        items_file: CSV or Parquet with a column of item ids and titles,
            genres (separated by "|") or any others. Default: `movies.csv` or
            `items.csv` (or .tsv, .parquet) beside the interactions.
        tfds_data_dir: Where TensorFlow Datasets keeps what it prepares.
            Default: its own.
        tfds_manual_dir: A folder with the original archive, which is then
            used in place of a download.

    Returns:
        The log.

    Raises:
        InputError: There is nothing to read, or it cannot be read.
    """
    given = ColumnNames(
        user_column, item_column, timestamp_column, rating_column
    )
    from_tfds = data.startswith(TFDS_PREFIX)
    reject_ignored(data, given, tfds_data_dir, tfds_manual_dir)
    if data == BUNDLED:
        root = importlib.resources.files("recsys.data") / "movielens_small"
        interactions, items = _read_folder(root, given, items_file)
    elif from_tfds:
        interactions, items = movielens.read_tfds(
            data.removeprefix(TFDS_PREFIX), tfds_data_dir, tfds_manual_dir
        )
        if items_file is not None:
            items = _read_items_file(items_file, None)
    elif synthetic.is_synthetic(data):
        interactions = synthetic.parse(data).interactions_in_memory()
        items = None
        if items_file is not None:
            items = _read_items_file(items_file, None)
    else:
        path = existing_path(data)
        if path.is_dir():
            interactions, items = _read_folder(path, given, items_file)
        else:
            interactions, items = _read_file(path, given, items_file)
    return Log(data, interactions, items)


def existing_path(data: str) -> pathlib.Path:
    """Returns the path of a log.

    Raises:
        InputError: There is no such file or folder.
    """
    path = pathlib.Path(data).expanduser()
    if not path.exists():
        raise InputError(
            f"`data` must be {BUNDLED!r}, 'tfds:movielens/...', "
            "'synthetic:users=...', or the path of a file or folder that "
            f"exists. Received: {data!r}"
        )
    return path


def reject_ignored(
    data: str,
    given: ColumnNames,
    tfds_data_dir: str | None,
    tfds_manual_dir: str | None,
) -> None:
    """Raises for arguments that would have no effect on this source."""
    from_tfds = data.startswith(TFDS_PREFIX)
    ignored: dict[str, tuple[str | None, str]] = {}
    if from_tfds or synthetic.is_synthetic(data):
        ignored = {
            f"{role}_column": (name, "a file or folder")
            for role, name in dataclasses.asdict(given).items()
        }
    if not from_tfds:
        ignored["tfds_data_dir"] = (tfds_data_dir, "a 'tfds:...' source")
        ignored["tfds_manual_dir"] = (tfds_manual_dir, "a 'tfds:...' source")
    for name, (value, kind) in ignored.items():
        if value is not None:
            raise InputError(
                f"`{name}` needs `data` to be {kind}. "
                f"Received: {name}={value!r} with data={data!r}"
            )


def _read_folder(
    folder: Traversable, given: ColumnNames, items_file: str | None
) -> tuple[Interactions, pa.Table | None]:
    members = tables.list_members(folder)
    layouts = movielens.layouts(members)
    if len(layouts) > 1:
        raise InputError(
            f"{folder}: expected one log, name the file that is meant. "
            f"Received: {', '.join(layouts)}"
        )
    if layouts:
        interactions, items = movielens.read_grouplens(
            members, layouts[0], given, with_items=items_file is None
        )
        if items_file is not None:
            items = _read_items_file(items_file, given.item)
        return interactions, items
    parts = parts_of(members)
    archives = [name for name in members if name.lower().endswith(".zip")]
    if not parts and len(archives) == 1:
        with tables.open_zip(members[archives[0]]) as archive:
            return _read_folder(archive, given, items_file)
    if not parts:
        raise InputError(
            f"{folder}: expected ratings.csv, ratings.dat, u.data, or CSV, "
            f"TSV or Parquet files. Received: "
            + (", ".join(list(members)[:10]) or "an empty folder")
        )
    return _read_parts(parts, members, given, items_file)


def parts_of(members: dict[str, Traversable]) -> list[Traversable]:
    """Returns the parts of a log among the files of a folder."""
    return [
        file
        for name, file in members.items()
        if name.lower().endswith(_PART_SUFFIXES) and name not in _ITEMS_NAMES
    ]


def _read_file(
    path: pathlib.Path, given: ColumnNames, items_file: str | None
) -> tuple[Interactions, pa.Table | None]:
    if tables.file_kind(path) == "zip":
        with tables.open_zip(path) as archive:
            return _read_folder(archive, given, items_file)
    members = tables.list_members(path.parent)
    layout = path.name.removesuffix(".gz")
    if layout in movielens.LAYOUTS:
        # Only the file that was named counts, whatever stands beside it.
        members = {
            name: file
            for name, file in members.items()
            if name == path.name or name.removesuffix(".gz") != layout
        }
        interactions, items = movielens.read_grouplens(
            members, layout, given, with_items=items_file is None
        )
        if items_file is not None:
            items = _read_items_file(items_file, given.item)
        return interactions, items
    return _read_parts([path], members, given, items_file)


def _read_parts(
    parts: list[Traversable],
    members: dict[str, Traversable],
    given: ColumnNames,
    items_file: str | None,
) -> tuple[Interactions, pa.Table | None]:
    interactions, names = tables.read_tables(parts, given)
    return interactions, items_beside(parts, members, names.item, items_file)


def items_beside(
    parts: list[Traversable],
    members: dict[str, Traversable],
    item_column: str | None,
    items_file: str | None,
) -> pa.Table | None:
    """Reads what is known of the items of a log.

    Args:
        parts: The log.
        members: All files of its folder by name.
        item_column: What the log calls its items.
        items_file: The file that the user named, if any.

    Returns:
        The items, or None where nothing is known of them.

    Raises:
        InputError: There are several files of items, or it cannot be read.
    """
    if items_file is not None:
        return _read_items_file(items_file, item_column)
    found = [members[name] for name in _ITEMS_NAMES if name in members]
    if len(found) > 1:
        raise InputError(
            f"{parts[0]}: expected one items file beside it, name it with "
            f"--items_file. Received: {', '.join(f.name for f in found)}"
        )
    if not found or found[0] in parts:
        return None
    return items_lib.read_items(found[0], item_column)


def _read_items_file(items_file: str, item_column: str | None) -> pa.Table:
    path = pathlib.Path(items_file).expanduser()
    if not path.is_file():
        raise InputError(
            f"`items_file` must be a CSV or Parquet file. "
            f"Received: {items_file!r}"
        )
    return items_lib.read_items(path, item_column)


# Rows of a source that can only be read whole.
_BLOCK_ROWS = 2**20


@dataclasses.dataclass(frozen=True)
class Source:
    """What `read` is asked for: see there."""

    data: str
    user_column: str | None = None
    item_column: str | None = None
    timestamp_column: str | None = None
    rating_column: str | None = None
    items_file: str | None = None
    tfds_data_dir: str | None = None
    tfds_manual_dir: str | None = None

    @property
    def columns(self) -> ColumnNames:
        """The column names that the user gave."""
        return ColumnNames(
            self.user_column,
            self.item_column,
            self.timestamp_column,
            self.rating_column,
        )


@dataclasses.dataclass(frozen=True)
class Unit:
    """A part of a log that one worker reads from its beginning to its end.

    Attributes:
        number: Its place among the units of the log.
        source: The log.
        part: The file that it is, or None where it is no file.
        piece: The row group of the file or the chunk of the synthetic log;
            None for all of it.
    """

    number: int
    source: Source
    part: Traversable | None = None
    piece: int | None = None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.source.data if self.part is None else str(self.part)

    def blocks(self) -> Iterator[Interactions]:
        """Yields the rows, in order, about a million or fewer at a time.

        Raises:
            InputError: The log cannot be read.
        """
        if self.part is not None:
            yield from tables.stream(self.part, self.source.columns, self.piece)
        elif self.piece is not None:
            yield synthetic.parse(self.source.data).chunk(self.piece)
        else:
            log = read(**dataclasses.asdict(self.source))
            yield from _slices(log.interactions)


def units(source: Source) -> tuple[list[Unit], pa.Table | None]:
    """Divides a log into units.

    Rows of CSV files, of the row groups of Parquet files and of a synthetic
    log are read as they are needed. Any other source is one unit, and all in
    the memory of the worker that reads it.

    Args:
        source: The log.

    Returns:
        The units in the order of the log, and what is known of the items.

    Raises:
        InputError: There is nothing to read, it cannot be read, or its
            parts do not have the same columns.
    """
    data, given = source.data, source.columns
    reject_ignored(data, given, source.tfds_data_dir, source.tfds_manual_dir)
    if synthetic.is_synthetic(data):
        num_chunks = synthetic.parse(data).num_chunks
        pieces: list[tuple[Any, int | None]] = [
            (None, chunk) for chunk in range(num_chunks)
        ]
        items = items_beside([], {}, None, source.items_file)
    elif parts := _parts(data):
        names = tables.find_names(parts, given)
        pieces = []
        for part in parts:
            if tables.file_kind(part) == "parquet":
                groups = range(tables.num_row_groups(part))
                pieces += [(part, group) for group in groups]
            else:
                pieces.append((part, None))
        members = tables.list_members(parts[0].parent)
        items = items_beside(
            list(parts), members, names.item, source.items_file
        )
    else:
        pieces = [(None, None)]
        items = read(**dataclasses.asdict(source)).items
    return [
        Unit(number, source, part, piece)
        for number, (part, piece) in enumerate(pieces)
    ], items


def _parts(data: str) -> list[pathlib.Path]:
    """Returns the files of a log that can be read row by row, if any."""
    if data == BUNDLED or data.startswith(TFDS_PREFIX):
        return []
    path = existing_path(data)
    if path.is_dir():
        members = tables.list_members(path)
        found = movielens.layouts(members)
        if found == ["ratings.csv"]:
            names = ("ratings.csv", "ratings.csv.gz")
            return [path / name for name in names if name in members][:1]
        if found:
            return []
        return [path / part.name for part in parts_of(members)]
    layout = path.name.removesuffix(".gz")
    is_other = layout in movielens.LAYOUTS and layout != "ratings.csv"
    return [] if is_other or tables.file_kind(path) == "zip" else [path]


def _slices(interactions: Interactions) -> Iterator[Interactions]:
    """Yields runs of rows; the ids stay those of the whole log."""
    for begin in range(0, len(interactions), _BLOCK_ROWS):
        rows = slice(begin, begin + _BLOCK_ROWS)
        ratings = interactions.ratings
        yield dataclasses.replace(
            interactions,
            users=interactions.users[rows],
            items=interactions.items[rows],
            timestamps=interactions.timestamps[rows],
            ratings=None if ratings is None else ratings[rows],
        )
