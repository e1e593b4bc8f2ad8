"""Where a log comes from: the one entry, `read`."""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib
from importlib.resources.abc import Traversable

import pyarrow as pa

from recsys.data import files, grouplens, synthetic, tabular, tfds
from recsys.data import items as items_lib
from recsys.data.columns import ColumnNames
from recsys.data.interactions import Interactions, Log
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
        interactions, items = tfds.read(
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
    members = files.members(folder)
    layouts = grouplens.layouts(members)
    if len(layouts) > 1:
        raise InputError(
            f"{folder}: expected one log, name the file that is meant. "
            f"Received: {', '.join(layouts)}"
        )
    if layouts:
        interactions, items = grouplens.read(
            members, layouts[0], given, with_items=items_file is None
        )
        if items_file is not None:
            items = _read_items_file(items_file, given.item)
        return interactions, items
    parts = parts_of(members)
    archives = [name for name in members if name.lower().endswith(".zip")]
    if not parts and len(archives) == 1:
        with files.open_zip(members[archives[0]]) as archive:
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
    if files.kind(path) == "zip":
        with files.open_zip(path) as archive:
            return _read_folder(archive, given, items_file)
    members = files.members(path.parent)
    layout = path.name.removesuffix(".gz")
    if layout in grouplens.LAYOUTS:
        # Only the file that was named counts, whatever stands beside it.
        members = {
            name: file
            for name, file in members.items()
            if name == path.name or name.removesuffix(".gz") != layout
        }
        interactions, items = grouplens.read(
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
    interactions, names = tabular.read_tables(parts, given)
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
