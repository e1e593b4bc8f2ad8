"""From the blocks of a log to shards: the steps, whoever runs them.

1. `partition` deals the rows of a block to the shards of their users.
2. `merge_items` and `number_items` number the items of all blocks.
3. `write_shard` makes the sequences of one shard, in its memory alone.
4. `write_manifest` counts up what all shards hold.

`recsys.data.shard_preparation` runs them on this machine,
`recsys.data.beam_preparation` on any runner of Apache Beam.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import multiprocessing
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa

from recsys.config import HELD_OUT_BY_USER, REPEATS
from recsys.data import shards
from recsys.data.interactions import Interactions, filter_interactions
from recsys.data.prepare import TRAIN_COUNT
from recsys.data.sequences import Sequences, build_sequences, offsets_of
from recsys.data.shards import Manifest
from recsys.data.sources import Unit
from recsys.data.splits import num_held_out
from recsys.data.vocabulary import Vocabulary, string_hashes
from recsys.errors import InputError
from recsys.files import can_write, is_new_or_empty
from recsys.ids import FIRST_ITEM_INDEX

NO_ITEMS = pa.table(
    {"item": pa.array([], pa.string()), "row": pa.array([], pa.int64())}
)
# Rows of the items of several blocks, before they are put together.
_ITEM_ROWS = 2**22
# Where the schema of a piece says which file its rows are from.
_SOURCE = b"source"
# Opens a file of the output folder, by its path there, for writing bytes.
Opener = Callable[[str], IO[bytes]]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is prepared.

    Attributes:
        num_shards: How many shards. A shard is in memory at once while it is
            made: a million interactions are a good size.
        num_queries: How many users are asked, drawn by a hash of their ids;
            0 asks all.
        split: One of `HELD_OUT_BY_USER`.
        min_rating: The lowest rating that counts; None counts all.
        repeats: Which of several interactions of one user with one item
            stays.

    Raises:
        InputError: A value is out of range.
    """

    num_shards: int = 64
    num_queries: int = 10_000
    split: str = "leave_last_out"
    min_rating: float | None = None
    repeats: str = "first"

    def __post_init__(self) -> None:
        if not 1 <= self.num_shards <= 99_999:
            raise InputError(
                "--num_shards must be from 1 to 99999. "
                f"Received: {self.num_shards}"
            )
        if self.num_queries < 0:
            raise InputError(
                f"--num_queries must be at least 0. Received: "
                f"{self.num_queries}"
            )
        for name, choices in (
            ("split", tuple(HELD_OUT_BY_USER)),
            ("repeats", REPEATS),
        ):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"--{name} of shards must be one of {', '.join(choices)}. "
                    f"Received: {getattr(self, name)!r}"
                )


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """What one shard holds.

    Attributes:
        shard: Its number.
        num_users: Its users.
        num_train: Its training interactions.
        num_queries: Its users that are asked.
        num_interactions: Its interactions, held-out ones included.
        num_single: Its users with one interaction.
        num_repeated: Interactions left out as repetitions of a pair.
        items: `[n]` int32, the indices of the items it trains on.
        counts: `[n]` int64, how often it does.
    """

    shard: int
    num_users: int
    num_train: int
    num_queries: int
    num_interactions: int
    num_single: int
    num_repeated: int
    items: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Partition:
    """The rows of a block, dealt to shards.

    Attributes:
        pieces: For each shard its rows, in their order.
        items: The block's items with the row of their first appearance,
            columns `item` and `row`.
        num_low_ratings: Rows that `min_rating` left out.
    """

    pieces: list[pa.RecordBatch]
    items: pa.Table
    num_low_ratings: int


def partition(
    block: Interactions, first_row: int, options: Options, source: str
) -> Partition:
    """Deals the rows of a block to shards.

    Args:
        block: Some rows of the log.
        first_row: Stands for the place of the block's first row in the log:
            any numbers that rise with it will do.
        options: What is prepared.
        source: What the block is read from, for messages.

    Returns:
        The rows.

    Raises:
        InputError: `min_rating` is given and the log has no ratings.
    """
    rows = np.arange(len(block))
    if options.min_rating is not None:
        if block.ratings is None:
            raise InputError(
                "`min_rating` needs a log with a rating column, and this one "
                f"has none. Received: min_rating={options.min_rating}"
            )
        rows = np.flatnonzero(block.ratings >= options.min_rating)
    user_ids = pa.array(block.user_ids, pa.string())
    shard = (string_hashes(user_ids) % np.uint64(options.num_shards)).astype(
        np.int64
    )[block.users[rows]]
    order = np.argsort(shard, kind="stable")
    ends = np.cumsum(np.bincount(shard, minlength=options.num_shards))
    in_order = rows[order]
    item_ids = pa.array(block.item_ids, pa.string())
    timestamps = pa.array(block.timestamps[in_order])
    if block.timestamps_per_second > 1:
        # The type keeps them apart from numbers whose unit nobody knows.
        timestamps = timestamps.cast(pa.timestamp("us"))
    table = pa.record_batch(
        {
            "user": user_ids.take(pa.array(block.users[in_order])),
            "item": item_ids.take(pa.array(block.items[in_order])),
            "timestamp": timestamps,
        }
    ).replace_schema_metadata({_SOURCE: source.encode()})
    pieces = [
        table.slice(end - count, count)
        for end, count in zip(ends, np.diff(ends, prepend=0), strict=True)
    ]
    items, first = np.unique(block.items[rows], return_index=True)
    first_rows = first_row + rows[first]
    return Partition(
        pieces,
        pa.table({"item": item_ids.take(pa.array(items)), "row": first_rows}),
        len(block) - len(rows),
    )


def merge_items(found: Sequence[pa.Table]) -> pa.Table:
    """Puts the items of several blocks together, each once.

    Args:
        found: Tables with columns `item` and `row`.

    Returns:
        One such table, with the lowest row of each item.
    """
    table = pa.concat_tables(found).group_by("item")
    return table.aggregate([("row", "min")]).rename_columns(["item", "row"])


class FoundItems:
    """The items of any number of blocks, each kept about once."""

    def __init__(self) -> None:
        self._tables = [NO_ITEMS]

    def add(self, items: pa.Table) -> None:
        """Adds the items of a block, or of several.

        Args:
            items: Columns `item` and `row`.
        """
        self._tables.append(items)
        before, *fresh = map(len, self._tables)
        if sum(fresh) > max(_ITEM_ROWS, before):
            self._tables = [merge_items(self._tables)]

    def merged(self) -> pa.Table:
        """Returns all of them, as `merge_items` does."""
        return merge_items(self._tables)


def number_items(found: pa.Table) -> Vocabulary:
    """Orders all items by their first appearance in the log.

    Args:
        found: What `merge_items` returns for the whole log.

    Returns:
        The items; the first has index 2.

    Raises:
        InputError: There are fewer than two.
    """
    if len(found) < 2:
        raise InputError(
            "expected at least two items to choose between. "
            f"Received: {len(found)}"
        )
    return Vocabulary(found.sort_by("row")["item"].combine_chunks())


def write_shard(
    shard: int,
    pieces: Sequence[pa.RecordBatch],
    vocabulary: Vocabulary,
    options: Options,
    open_file: Opener,
) -> ShardSummary:
    """Makes the sequences of one shard and writes them.

    Args:
        shard: Its number.
        pieces: Its rows, in the order of the log.
        vocabulary: All items.
        options: What is prepared.
        open_file: Opens a file of the output folder.

    Returns:
        What the shard holds.

    Raises:
        InputError: Some rows have dates and others numbers as times.
    """
    pieces = [piece for piece in pieces if piece.num_rows]
    sequences, num_rows = _sequences(pieces, vocabulary, options)
    held_out = num_held_out(options.split, sequences.lengths)
    train = sequences.prefixes(sequences.lengths - held_out)
    asked = _asked_users(sequences, held_out, shard, options)
    queried = _select(sequences, asked)
    for path, part in (
        (shards.sequences_name(shard), train),
        (shards.queries_name(shard), queried),
    ):
        with open_file(path) as stream:
            shards.write_table(shards.to_table(part), stream)
    items, counts = np.unique(train.items, return_counts=True)
    return ShardSummary(
        shard=shard,
        num_users=sequences.num_users,
        num_train=train.num_interactions,
        num_queries=len(asked),
        num_interactions=sequences.num_interactions,
        num_single=int(np.count_nonzero(sequences.lengths == 1)),
        num_repeated=num_rows - sequences.num_interactions,
        items=items,
        counts=counts,
    )


def write_manifest(
    summaries: Sequence[ShardSummary],
    vocabulary: Vocabulary,
    items: pa.Table | None,
    name: str,
    num_low_ratings: int,
    options: Options,
    open_file: Opener,
) -> shards.Manifest:
    """Writes the vocabulary and, last of all, the manifest.

    Args:
        summaries: One for each shard, in any order.
        vocabulary: All items.
        items: What is known of them.
        name: What the log is called.
        num_low_ratings: Interactions that `min_rating` left out.
        options: What is prepared.
        open_file: Opens a file of the output folder.

    Returns:
        The manifest.

    Raises:
        InputError: No user has enough interactions.
    """
    summaries = sorted(summaries, key=lambda each: each.shard)
    counts = np.zeros(vocabulary.size, np.int64)
    for each in summaries:
        counts[each.items] += each.counts
    manifest = shards.Manifest(
        name=name,
        split=options.split,
        min_rating=options.min_rating,
        repeats=options.repeats,
        num_users=[each.num_users for each in summaries],
        num_train=[each.num_train for each in summaries],
        num_queries=[each.num_queries for each in summaries],
        num_interactions=sum(each.num_interactions for each in summaries),
        num_single=sum(each.num_single for each in summaries),
        num_dropped=num_low_ratings
        + sum(each.num_repeated for each in summaries),
    )
    if sum(manifest.num_train) == sum(manifest.num_users):
        raise InputError(
            f"{name}: no user has enough interactions: expected two or more "
            "of one user to train on. Received: at most one"
        )
    counted = Vocabulary(vocabulary.items["item_id"], items).with_column(
        TRAIN_COUNT, counts[FIRST_ITEM_INDEX:]
    )
    with open_file(shards.VOCABULARY) as stream:
        counted.write(stream)
    with open_file(shards.MANIFEST) as stream:
        stream.write(manifest.to_json().encode())
    return manifest


def to_bytes(batch: pa.RecordBatch | pa.Table) -> bytes:
    """Returns rows as Arrow's stream of bytes."""
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write(batch)
    return sink.getvalue()


def from_bytes(data: bytes) -> pa.Table:
    """Reads what `to_bytes` returned."""
    return pa.ipc.open_stream(data).read_all()


def _sequences(
    pieces: Sequence[pa.RecordBatch], vocabulary: Vocabulary, options: Options
) -> tuple[Sequences, int]:
    """Returns a shard's sequences, and how many rows they were made of."""
    if not pieces:
        return Sequences(
            user_ids=np.zeros(0, object),
            offsets=np.zeros(1, np.int64),
            items=np.zeros(0, np.int32),
            timestamps=np.zeros(0, np.int64),
        ), 0
    _check_one_kind(pieces)
    table = pa.Table.from_batches(pieces)
    user_ids, users = _numbered(table["user"])
    item_ids, items = _numbered(table["item"])
    interactions = filter_interactions(
        Interactions(
            user_ids=user_ids,
            item_ids=item_ids,
            users=users,
            items=items,
            timestamps=table["timestamp"].cast(pa.int64()).to_numpy(),
        ),
        repeats=options.repeats,
    )
    return build_sequences(interactions, vocabulary), len(table)


def _check_one_kind(pieces: Sequence[pa.RecordBatch]) -> None:
    """Raises InputError where dates would be compared with numbers."""
    first = pieces[0].schema
    for piece in pieces[1:]:
        if piece.schema.types != first.types:
            kinds = [
                "dates or fractions of a second"
                if pa.types.is_timestamp(schema.field("timestamp").type)
                else "whole numbers"
                for schema in (first, piece.schema)
            ]
            sources = [
                schema.metadata[_SOURCE].decode()
                for schema in (first, piece.schema)
            ]
            raise InputError(
                f"{sources[1]}: expected timestamps of the kind in "
                f"{sources[0]}, {kinds[0]}. Received: {kinds[1]}"
            )


def _numbered(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns different ids by first appearance, and each row's number."""
    coded = column.combine_chunks().dictionary_encode()
    ids = np.empty(len(coded.dictionary), object)
    ids[:] = coded.dictionary.to_pylist()
    return ids, coded.indices.to_numpy()


def _asked_users(
    sequences: Sequences, held_out: np.ndarray, shard: int, options: Options
) -> np.ndarray:
    """Returns the rows of the users that are asked, rising."""
    able = np.flatnonzero(held_out)
    if options.num_queries:
        share, rest = divmod(options.num_queries, options.num_shards)
        quota = share + (shard < rest)
        # Not the hash that chose the shard: its lower digits are alike here.
        hashes = string_hashes(pa.array(sequences.user_ids[able], pa.string()))
        order = np.argsort(hashes >> np.uint64(20), kind="stable")
        able = np.sort(able[order[:quota]])
    return able


def _select(sequences: Sequences, users: np.ndarray) -> Sequences:
    """Returns the sequences of some users."""
    lengths = np.zeros_like(sequences.lengths)
    lengths[users] = sequences.lengths[users]
    chosen = sequences.prefixes(lengths)
    return Sequences(
        user_ids=sequences.user_ids[users],
        offsets=offsets_of(lengths[users]),
        items=chosen.items,
        timestamps=chosen.timestamps,
    )


_VOCABULARY = "items.parquet"


def prepare_shards(
    units: Sequence[Unit],
    items: pa.Table | None,
    name: str,
    output: pathlib.Path,
    options: Options,
    num_workers: int,
) -> Manifest:
    """Reads a log and writes shards.

    Args:
        units: The log.
        items: What is known of its items.
        name: What it is called.
        output: The folder that gets the shards; made if missing. The rows of
            the log wait in a folder within it, that is removed.
        options: What is prepared.
        num_workers: How many processes do it; with 1, this one.

    Returns:
        What the folder holds.

    Raises:
        InputError: The log cannot be read, or too little is left of it.
        OSError: The disk is full or cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        spill = pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=output))
        )
        run = stack.enter_context(_workers(num_workers))
        found = FoundItems()
        num_low_ratings = 0
        deal = functools.partial(_deal, spill=spill, options=options)
        for unit_items, num_low in run(deal, units):
            num_low_ratings += num_low
            found.add(unit_items)
        vocabulary = number_items(found.merged())
        del found
        vocabulary.save(spill / _VOCABULARY)
        make = functools.partial(
            _make,
            spill=spill,
            output=output,
            num_units=len(units),
            options=options,
        )
        summaries = list(run(make, range(options.num_shards)))
        return write_manifest(
            summaries,
            vocabulary,
            items,
            name,
            num_low_ratings,
            options,
            functools.partial(_open, output),
        )


@contextlib.contextmanager
def _workers(num_workers: int) -> Iterator[Any]:
    """Gives a `map` over processes, or over nothing but this one."""
    if num_workers == 1:
        yield map
        return
    # A fork would copy Arrow's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context) as pool:
        yield pool.map


def _deal(
    unit: Unit, spill: pathlib.Path, options: Options
) -> tuple[pa.Table, int]:
    """Writes the rows of a unit to one file, shard by shard in each block.

    Returns:
        The unit's items, and how many rows had too low a rating.
    """
    found = FoundItems()
    num_low_ratings = 0
    row = unit.number << 40
    lz4 = pa.ipc.IpcWriteOptions(compression="lz4")
    with contextlib.ExitStack() as stack:
        writer = None
        for block in unit.blocks():
            part = partition(block, row, options, unit.name)
            if writer is None:
                writer = stack.enter_context(
                    pa.ipc.new_file(
                        str(_spilled(spill, unit.number)),
                        part.pieces[0].schema,
                        options=lz4,
                    )
                )
            for piece in part.pieces:
                writer.write_batch(piece)
            found.add(part.items)
            row += len(block)
            num_low_ratings += part.num_low_ratings
    return found.merged(), num_low_ratings


def _make(
    shard: int,
    spill: pathlib.Path,
    output: pathlib.Path,
    num_units: int,
    options: Options,
) -> ShardSummary:
    """Makes one shard of the rows that were dealt to it."""
    return write_shard(
        shard,
        list(_dealt(spill, num_units, shard, options.num_shards)),
        _vocabulary(spill / _VOCABULARY),
        options,
        functools.partial(_open, output),
    )


def _dealt(
    spill: pathlib.Path, num_units: int, shard: int, num_shards: int
) -> Iterable[pa.RecordBatch]:
    for unit in range(num_units):
        path = _spilled(spill, unit)
        if not path.exists():
            continue
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(shard, reader.num_record_batches, num_shards):
                yield reader.get_batch(number)


@functools.lru_cache(maxsize=1)
def _vocabulary(path: pathlib.Path) -> Vocabulary:
    """Reads the items, once in each process."""
    return Vocabulary.load(path)


def _spilled(spill: pathlib.Path, unit: int) -> pathlib.Path:
    return spill / f"{unit:08d}.arrow"


def _open(folder: pathlib.Path, name: str) -> IO[bytes]:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    return path.open("wb")


def default_workers() -> int:
    """One process for each core."""
    return os.cpu_count() or 1


def check_output(output: pathlib.Path) -> None:
    """Checks that a folder may be filled.

    Raises:
        InputError: It is no folder, not empty, or cannot be written.
    """
    if not is_new_or_empty(output):
        raise InputError(
            "--output must be a new or an empty folder. "
            f"Received: {str(output)!r}"
        )
    if not can_write(output):
        raise InputError(
            "--output must be a folder that can be written. "
            f"Received: {str(output)!r}"
        )
