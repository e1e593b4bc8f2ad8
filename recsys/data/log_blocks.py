"""A log read some rows at a time, in parts that different workers can read."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import Any

import pyarrow as pa

from recsys.data import files, grouplens, sources, synthetic, tabular
from recsys.data.columns import ColumnNames
from recsys.data.interactions import Interactions

# Rows of a source that can only be read whole.
_BLOCK_ROWS = 2**20


@dataclasses.dataclass(frozen=True)
class Source:
    """What `sources.read` is asked for: see there."""

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
            yield from tabular.stream(
                self.part, self.source.columns, self.piece
            )
        elif self.piece is not None:
            yield synthetic.parse(self.source.data).chunk(self.piece)
        else:
            log = sources.read(**dataclasses.asdict(self.source))
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
    sources.reject_ignored(
        data, given, source.tfds_data_dir, source.tfds_manual_dir
    )
    if synthetic.is_synthetic(data):
        num_chunks = synthetic.parse(data).num_chunks
        pieces: list[tuple[Any, int | None]] = [
            (None, chunk) for chunk in range(num_chunks)
        ]
        items = sources.items_beside([], {}, None, source.items_file)
    elif parts := _parts(data):
        names = tabular.find_names(parts, given)
        pieces = []
        for part in parts:
            if files.kind(part) == "parquet":
                groups = range(tabular.num_row_groups(part))
                pieces += [(part, group) for group in groups]
            else:
                pieces.append((part, None))
        members = files.members(parts[0].parent)
        items = sources.items_beside(
            list(parts), members, names.item, source.items_file
        )
    else:
        pieces = [(None, None)]
        items = sources.read(**dataclasses.asdict(source)).items
    return [
        Unit(number, source, part, piece)
        for number, (part, piece) in enumerate(pieces)
    ], items


def _parts(data: str) -> list[pathlib.Path]:
    """Returns the files of a log that can be read row by row, if any."""
    if data == sources.BUNDLED or data.startswith(sources.TFDS_PREFIX):
        return []
    path = sources.existing_path(data)
    if path.is_dir():
        members = files.members(path)
        found = grouplens.layouts(members)
        if found == ["ratings.csv"]:
            names = ("ratings.csv", "ratings.csv.gz")
            return [path / name for name in names if name in members][:1]
        if found:
            return []
        return [path / part.name for part in sources.parts_of(members)]
    layout = path.name.removesuffix(".gz")
    is_other = layout in grouplens.LAYOUTS and layout != "ratings.csv"
    return [] if is_other or files.kind(path) == "zip" else [path]


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
