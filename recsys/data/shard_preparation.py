"""From a log to shards, on this machine.

1. `Preparation.deal` deals the rows of a unit to the shards of their users.
2. `FoundItems` and `number_items` number the items of all units.
3. `Preparation.write_shard` makes one shard, the only one in its memory.
4. `Preparation.write_manifest` sums up all shards.

`recsys.data.beam_preparation` takes the same steps on any runner of Apache
Beam.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import files
from recsys.config import (
    EVENT_FIELDS,
    FEATURE_FIELDS,
    HELD_OUT_BY_USER,
    REPEATS,
    TrainConfig,
)
from recsys.data import shards
from recsys.data.columns import concat
from recsys.data.events import DISLIKE, label
from recsys.data.features import parse_columns
from recsys.data.interactions import (
    DROPPED,
    EVENT,
    Interactions,
    filter_interactions,
)
from recsys.data.prepare import (
    item_totals,
    no_training_pairs,
    no_users,
    odd_notes,
    odd_rows,
)
from recsys.data.sequences import Sequences, build_sequences
from recsys.data.shards import FEATURE, Manifest, ShardRules
from recsys.data.sources import Source, Unit
from recsys.data.splits import last_targets, train_lengths
from recsys.data.vocabulary import Vocabulary, string_hashes
from recsys.errors import InputError
from recsys.files import can_write, is_new_or_empty, num_usable_cores
from recsys.ids import FIRST_ITEM_INDEX

_NO_ITEMS = pa.table(
    {"item": pa.array([], pa.string()), "row": pa.array([], pa.int64())}
)
_NO_ROWS = pa.table(
    {
        "user": pa.array([], pa.string()),
        "item": pa.array([], pa.string()),
        "timestamp": pa.array([], pa.int64()),
        EVENT: pa.array([], pa.int32()),
    }
)
# Rows of the items of several blocks that are kept before they are merged.
_ITEM_ROWS = 2**22
# The schema of a piece names the file that its rows are from.
_SOURCE = b"source"
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")
# Opens a file of the output folder, by its path there, for writing bytes.
Opener = Callable[[str], IO[bytes]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ShardRules):
    """How to prepare shards.

    With `target_events`, `events` must be given: rows are labeled before all
    kinds are known.

    Attributes:
        num_shards: The number of shards. A process holds a whole shard in
            memory while making it: a million interactions are a good size.
        num_queries: The number of queried users, selected by a hash of their
            ids; 0 for all users.
        split: One of `HELD_OUT_BY_USER`.
        min_rating: The lowest rating to keep; None for all.
        repeats: Which of several interactions of the same user and item to
            keep.

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
        names = (*EVENT_FIELDS, *FEATURE_FIELDS, "min_rating")
        TrainConfig(**{name: getattr(self, name) for name in names})
        if self.target_events and not self.events:
            raise InputError(
                "--target_events of shards needs --events, which lists all "
                f"kinds to keep. Received: --target_events={self.target_events}"
            )


@dataclasses.dataclass(frozen=True)
class Dealt:
    """The rows of a block, dealt to shards.

    Attributes:
        pieces: The rows of each shard, in the order of the log.
        first_row: A number that increases from block to block.
        items: The items of the block with their first row, columns `item`
            and `row`.
        counts: The number of rows removed by `min_rating`, "low_ratings", of
            dislikes, of each kind of event, by "kind:" and its name, and of
            odd rows, by "odd:" and what is odd, and of units of time, by
            "unit:" and the number in a second.
    """

    pieces: list[pa.RecordBatch]
    first_row: int
    items: pa.Table
    counts: Counter[str]


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """The content of a shard.

    Attributes:
        shard: Its number.
        num_users: Number of users.
        num_train: Number of training interactions.
        num_queries: Number of queried users.
        num_interactions: Number of interactions, held-out ones included.
        num_single: Number of users with a single interaction.
        num_repeated: Number of interactions removed as repeats.
        can_learn: Whether it has a training target with a history.
        num_dislikes: Number of dislikes that are used.
        totals: By column of the vocabulary, `[n]` int32 indices of items in
            the training set, and `[n]` what each adds to the column.
    """

    shard: int
    num_users: int
    num_train: int
    num_queries: int
    num_interactions: int
    num_single: int
    num_repeated: int
    can_learn: bool
    num_dislikes: int
    totals: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The steps that workers take; small enough to be sent to each.

    Attributes:
        name: The name of the log.
        options: How to prepare it.
        open_file: Opens a file of the output folder.
    """

    name: str
    options: Options
    open_file: Opener

    def deal(self, unit: Unit) -> Iterator[Dealt]:
        """Reads a unit and deals the rows of each block to shards.

        Args:
            unit: The unit.

        Yields:
            The blocks, with one piece for each shard.

        Raises:
            InputError: The log cannot be read, or has no ratings to filter.
        """
        row = unit.number << 40
        for block in unit.blocks():
            yield self._deal_block(block, row, unit.name)
            row += len(block)

    def _deal_block(
        self, block: Interactions, first_row: int, source: str
    ) -> Dealt:
        labels = label(block, self.options)
        liked = rows = block.rows_rated(self.options.min_rating)
        counts = Counter({f"kind:{k}": n for k, n in labels.found.items()})
        counts["low_ratings"] = len(block) - len(rows)
        if (codes := labels.codes) is not None:
            is_rated = np.zeros(len(block), bool)
            is_rated[rows] = True
            is_liked = codes >= 0
            counts["low_ratings"] = int(np.sum(is_liked & ~is_rated))
            counts["dislikes"] = int(np.sum(codes == DISLIKE))
            liked = np.flatnonzero(is_liked & is_rated)
            rows = np.flatnonzero((is_liked & is_rated) | (codes == DISLIKE))
        counts[f"unit:{block.timestamps_per_second}"] = len(block)
        for what, number in odd_rows(block).items():
            counts[f"odd:{what}"] = number
        num_shards = self.options.num_shards
        user_ids = pa.array(block.user_ids, pa.string())
        shard_of_user = string_hashes(user_ids) % np.uint64(num_shards)
        shard = shard_of_user.astype(np.int64)[block.users[rows]]
        in_order = rows[np.argsort(shard, kind="stable")]
        item_ids = pa.array(block.item_ids, pa.string())
        timestamps = pa.array(block.timestamps[in_order])
        if block.timestamps_per_second == 1_000_000:
            # A type of its own, since plain numbers may have another unit.
            timestamps = timestamps.cast(pa.timestamp("us"))
        columns = {
            "user": user_ids.take(pa.array(block.users[in_order])),
            "item": item_ids.take(pa.array(block.items[in_order])),
            "timestamp": timestamps,
        }
        if codes is not None:
            columns[EVENT] = pa.array(codes[in_order])
        columns |= self._raw_columns(block, in_order, source)
        table = pa.record_batch(columns).replace_schema_metadata(
            {_SOURCE: source.encode()}
        )
        sizes = np.bincount(shard, minlength=num_shards)
        items, first = np.unique(block.items[liked], return_index=True)
        return Dealt(
            pieces=[
                table.slice(end - size, size)
                for end, size in zip(np.cumsum(sizes), sizes, strict=True)
            ],
            first_row=first_row,
            items=pa.table(
                {
                    "item": item_ids.take(pa.array(items)),
                    "row": first_row + liked[first],
                }
            ),
            counts=counts,
        )

    def _raw_columns(
        self, block: Interactions, rows: np.ndarray, source: str
    ) -> dict[str, pa.Array]:
        """Returns what features read of some rows, text in full."""
        if "rating" in self.options.columns and block.ratings is None:
            raise InputError(
                f"{source}: expected a rating column, which "
                "--event_features=rating keeps. Received: none"
            )
        found = {}
        for name in self.options.columns:
            if name == "rating":
                column = pa.array(block.ratings, from_pandas=True)
            else:
                assert block.columns is not None  # It was asked for.
                column = block.columns[name].combine_chunks()
            taken = column.take(pa.array(rows))
            if pa.types.is_dictionary(taken.type):
                taken = taken.dictionary_decode()
            found[FEATURE + name] = taken
        return found

    def write_shard(
        self,
        shard: int,
        pieces: Iterable[pa.RecordBatch],
        vocabulary: Vocabulary,
        users: pa.Table | None = None,
    ) -> ShardSummary:
        """Makes the sequences of a shard and writes them.

        Args:
            shard: Its number.
            pieces: Its rows, in the order of the log.
            vocabulary: All items.
            users: The user metadata; see `kept_users`.

        Returns:
            A summary of the shard.

        Raises:
            InputError: Timestamps are dates in some rows, numbers in others.
        """
        pieces = [piece for piece in pieces if piece.num_rows]
        sequences, num_rows = _to_sequences(
            pieces, vocabulary, self.options, users
        )
        lengths = train_lengths(self.options.split, sequences)
        train = sequences.prefixes(lengths)
        held_out = np.flatnonzero(lengths < sequences.lengths)
        asked = self._queried_users(shard, sequences, held_out)
        queried = sequences.select(asked)
        parts = {
            shards.sequences_name(shard): train,
            shards.queries_name(shard): queried,
        }
        others = np.setdiff1d(held_out, asked)
        if len(others):
            rest = sequences.suffixes(lengths).select(others)
            parts[shards.held_out_name(shard)] = rest
        for path, part in parts.items():
            with self.open_file(path) as stream:
                shards.write_table(shards.to_table(part), stream)
        totals = {}
        for name, (items, values) in item_totals(train).items():
            distinct, place = np.unique(items, return_inverse=True)
            sums = np.bincount(place, values, minlength=len(distinct))
            totals[name] = distinct, sums
        dislikes = sequences.dislikes
        return ShardSummary(
            shard=shard,
            num_users=sequences.num_users,
            num_train=train.num_interactions,
            num_queries=queried.num_users,
            num_interactions=sequences.num_interactions,
            num_single=int(np.count_nonzero(sequences.lengths == 1)),
            num_repeated=num_rows - sequences.num_interactions,
            can_learn=bool((last_targets(train) >= 0).any()),
            num_dislikes=0 if dislikes is None else dislikes.num_interactions,
            totals=totals,
        )

    def _queried_users(
        self, shard: int, sequences: Sequences, candidates: np.ndarray
    ) -> np.ndarray:
        """Returns the rows of the shard's queried users, ascending."""
        if not self.options.num_queries:
            return candidates
        share, rest = divmod(self.options.num_queries, self.options.num_shards)
        quota = share + (shard < rest)
        ids = pa.array(sequences.user_ids[candidates], pa.string())
        # Low bits of the hash selected the shard and are alike in all of it.
        hashes = string_hashes(ids) >> np.uint64(20)
        order = np.argsort(hashes, kind="stable")
        return np.sort(candidates[order[:quota]])

    def write_manifest(
        self,
        summaries: Iterable[ShardSummary],
        vocabulary: Vocabulary,
        items: pa.Table | None,
        counts: Counter[str],
    ) -> Manifest:
        """Writes the vocabulary and, last of all, the manifest.

        Args:
            summaries: One for each shard, in any order.
            vocabulary: All items.
            items: The item metadata.
            counts: As in `Dealt`, of the whole log.

        Returns:
            The manifest.

        Raises:
            InputError: No user has enough interactions.
        """
        summaries = sorted(summaries, key=lambda summary: summary.shard)
        found = _of_kind(counts, "kind:")
        self.options.check(self.name, found)
        repeated = sum(each.num_repeated for each in summaries)
        lost = zip(DROPPED, (counts["low_ratings"], repeated), strict=False)
        dropped = {reason: number for reason, number in lost if number}
        rules = dataclasses.asdict(ShardRules.of(self.options))
        if any(rules[name] for name in FEATURE_FIELDS):
            # As for a log in memory, whose unit all of it must have.
            unit, *others = map(int, _of_kind(counts, "unit:"))
            rules["timestamps_per_second"] = 1 if others else unit
        manifest = Manifest(
            name=self.name,
            split=self.options.split,
            min_rating=self.options.min_rating,
            repeats=self.options.repeats,
            num_users=[each.num_users for each in summaries],
            num_train=[each.num_train for each in summaries],
            num_queries=[each.num_queries for each in summaries],
            num_interactions=sum(each.num_interactions for each in summaries),
            num_single=sum(each.num_single for each in summaries),
            num_dropped=sum(dropped.values()),
            dropped=dropped,
            odd=odd_notes(_of_kind(counts, "odd:")),
            num_dislikes=counts["dislikes"],
            num_kept_dislikes=sum(each.num_dislikes for each in summaries),
            found=found,
            **rules,
        )
        if not any(each.can_learn for each in summaries):
            raise no_training_pairs(self.name, self.options.target_events)
        counted = _with_totals(
            Vocabulary(vocabulary.items["item_id"], items), summaries
        )
        with self.open_file(shards.VOCABULARY) as stream:
            counted.write(stream)
        with self.open_file(shards.MANIFEST) as stream:
            stream.write(manifest.to_json().encode())
        return manifest


def _with_totals(
    vocabulary: Vocabulary, summaries: Sequence[ShardSummary]
) -> Vocabulary:
    """Returns a vocabulary with the sums of all shards' totals."""
    for column in summaries[0].totals:
        parts = [each.totals[column] for each in summaries]
        total = np.zeros(vocabulary.size, parts[0][1].dtype)
        for indices, values in parts:
            total[indices] += values
        vocabulary = vocabulary.with_column(column, total[FIRST_ITEM_INDEX:])
    return vocabulary


def _of_kind(counts: Counter[str], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): count
        for name, count in counts.most_common()
        if name.startswith(prefix)
    }


def _to_sequences(
    pieces: Sequence[pa.RecordBatch],
    vocabulary: Vocabulary,
    options: Options,
    users: pa.Table | None,
) -> tuple[Sequences, int]:
    """Returns the sequences of a shard, and the interactions with repeats."""
    kinds = options.kinds()
    liked = disliked = _NO_ROWS
    for name in options.columns:
        liked = liked.append_column(FEATURE + name, pa.nulls(0))
    if pieces:
        _check_timestamp_types(pieces)
        parts = [pa.Table.from_batches([piece]) for piece in pieces]
        liked = concat(parts, "the parts of the log")
        if not options.is_empty:
            is_liked = pc.greater_equal(liked[EVENT], 0)
            disliked = liked.filter(pc.invert(is_liked))
            liked = liked.filter(is_liked)
    columns = {EVENT: EVENT} if kinds is not None else {}
    likes, dislikes = (
        _interactions(table, options.repeats, {**columns, **kept})
        for table, kept in (
            (liked, {FEATURE + name: name for name in options.columns}),
            (disliked, {}),
        )
    )
    sequences = build_sequences(
        likes,
        vocabulary,
        kinds,
        dislikes if options.has_dislikes else None,
        users=users,
    )
    return sequences, len(liked)


def _interactions(
    table: pa.Table, repeats: str, columns: dict[str, str]
) -> Interactions:
    """Returns the rows of pieces without repeats."""
    user_ids, users = _codes(table["user"])
    item_ids, items = _codes(table["item"])
    interactions = Interactions(
        user_ids=user_ids,
        item_ids=item_ids,
        users=users,
        items=items,
        timestamps=table["timestamp"].cast(pa.int64()).to_numpy(),
        columns=table.select([*columns]).rename_columns([*columns.values()])
        if columns
        else None,
    )
    if not len(interactions):
        return interactions
    return filter_interactions(interactions, repeats=repeats)


def _check_timestamp_types(pieces: Sequence[pa.RecordBatch]) -> None:
    """Raises InputError if dates would be compared with numbers."""
    first = pieces[0].schema
    for schema in (piece.schema for piece in pieces):
        types = [s.field("timestamp").type for s in (first, schema)]
        if types[0] == types[1]:
            continue
        (expected, kind), (source, other) = (
            (
                each.metadata[_SOURCE].decode(),
                "dates or fractions of a second"
                if pa.types.is_timestamp(each.field("timestamp").type)
                else "whole numbers",
            )
            for each in (first, schema)
        )
        raise InputError(
            f"{source}: expected timestamps of the kind in {expected}, "
            f"{kind}. Received: {other}"
        )


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns distinct ids by first appearance, and codes into them."""
    coded = column.combine_chunks().dictionary_encode()
    ids = np.empty(len(coded.dictionary), object)
    ids[:] = coded.dictionary.to_pylist()
    return ids, coded.indices.to_numpy()


class FoundItems:
    """The items of any number of blocks, merged now and then."""

    def __init__(self) -> None:
        self._tables = [_NO_ITEMS]

    def add(self, items: pa.Table) -> None:
        """Adds the items of one or more blocks.

        Args:
            items: Columns `item` and `row`.
        """
        self._tables.append(items)
        before, *fresh = map(len, self._tables)
        if sum(fresh) > max(_ITEM_ROWS, before):
            self._tables = [self.merged()]

    def merged(self) -> pa.Table:
        """Returns each item once, with its lowest row."""
        table = pa.concat_tables(self._tables).group_by("item")
        return table.aggregate([("row", "min")]).rename_columns(["item", "row"])


def number_items(found: pa.Table) -> Vocabulary:
    """Orders all items by their first appearance in the log.

    Args:
        found: The items of the whole log; see `FoundItems.merged`.

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


def kept_users(source: Source, options: Options) -> pa.Table | None:
    """Reads the columns of users that shards keep, with their `user_id`.

    Args:
        source: The log.
        options: How to prepare the shards.

    Raises:
        InputError: The log comes without such columns.
    """
    if options.user_features is None:
        return None
    users = source.users()
    if users is None:
        raise no_users(source.data)
    known = users.drop_columns(["user_id"])
    columns = parse_columns(options.user_features, known, "user")
    return users.select(["user_id", *(column.name for column in columns)])


def prepare_shards(
    source: Source,
    output: pathlib.Path,
    options: Options,
    num_workers: int | None = None,
) -> Manifest:
    """Reads a log and writes shards.

    Args:
        source: The log.
        output: The folder of the shards, new or empty. While it is being
            made, a folder within it holds the rows of the log.
        options: How to prepare the shards.
        num_workers: The number of processes; with 1, this one. Default: one
            for each core that this process may use.

    Returns:
        The manifest of the folder.

    Raises:
        InputError: The folder cannot be used, the log cannot be read, or too
            little is left of it.
        OSError: The disk is full or cannot be written.
    """
    _check_output(output)
    units, items = source.units()
    users = kept_users(source, options)
    output.mkdir(parents=True, exist_ok=True)
    preparation = Preparation(
        source.data, options, functools.partial(_open, output)
    )
    with (
        _unfinished(output) as folder,
        _map_on_workers(num_workers or num_usable_cores()) as run,
    ):
        spill = _Spill(folder, preparation)
        found = FoundItems()
        counts: Counter[str] = Counter()
        for unit_items, unit_counts in run(spill.write_unit, units):
            found.add(unit_items)
            counts += unit_counts
        vocabulary = number_items(found.merged())
        del found
        vocabulary.save(spill.vocabulary)
        if users is not None:
            pq.write_table(users, spill.users)
        make = functools.partial(spill.write_shard, num_units=len(units))
        summaries = list(run(make, range(options.num_shards)))
        return preparation.write_manifest(summaries, vocabulary, items, counts)


@dataclasses.dataclass(frozen=True)
class _Spill:
    """The log on disk: of each unit a file with pieces, shard after shard."""

    folder: pathlib.Path
    preparation: Preparation

    @property
    def vocabulary(self) -> pathlib.Path:
        return self.folder / "items.parquet"

    @property
    def users(self) -> pathlib.Path:
        return self.folder / "users.parquet"

    def write_unit(self, unit: Unit) -> tuple[pa.Table, Counter[str]]:
        """Writes the rows of a unit; returns its items and counts."""
        found = FoundItems()
        counts: Counter[str] = Counter()
        with contextlib.ExitStack() as stack:
            writer = None
            for dealt in self.preparation.deal(unit):
                if writer is None:
                    path = str(self._path(unit.number))
                    schema = dealt.pieces[0].schema
                    writer = stack.enter_context(
                        pa.ipc.new_file(path, schema, options=_LZ4)
                    )
                for piece in dealt.pieces:
                    writer.write_batch(piece)
                found.add(dealt.items)
                counts += dealt.counts
        return found.merged(), counts

    def write_shard(self, shard: int, num_units: int) -> ShardSummary:
        return self.preparation.write_shard(
            shard,
            self._pieces(shard, num_units),
            _load_vocabulary(self.vocabulary),
            _load_users(self.users) if self.users.exists() else None,
        )

    def _pieces(self, shard: int, num_units: int) -> Iterator[pa.RecordBatch]:
        num_shards = self.preparation.options.num_shards
        for path in map(self._path, range(num_units)):
            if not path.exists():
                continue  # A unit without rows.
            with pa.memory_map(str(path)) as stream:
                reader = pa.ipc.open_file(stream)
                for i in range(shard, reader.num_record_batches, num_shards):
                    yield reader.get_batch(i)

    def _path(self, unit: int) -> pathlib.Path:
        return self.folder / f"{unit:08d}.arrow"


@functools.lru_cache(maxsize=1)
def _load_vocabulary(path: pathlib.Path) -> Vocabulary:
    """Loads the items, once in each process."""
    return Vocabulary.load(path)


@functools.lru_cache(maxsize=1)
def _load_users(path: pathlib.Path) -> pa.Table:
    """Loads the user metadata, once in each process."""
    return pq.read_table(path)


@contextlib.contextmanager
def _map_on_workers(num_workers: int) -> Iterator[Any]:
    """Provides a `map` over processes, or in this process alone."""
    if num_workers == 1:
        yield map
        return
    # A fork would copy Arrow's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    before = multiprocessing.active_children()
    with concurrent.futures.ProcessPoolExecutor(
        num_workers, context, initializer=_end_with_parent
    ) as pool:
        try:
            yield pool.map
        except BaseException:
            # Waiting for work that nobody wants takes minutes.
            for child in multiprocessing.active_children():
                if child not in before:
                    child.terminate()
            raise


def _end_with_parent() -> None:
    """Ends this worker when its parent ends, however that happens."""
    # Ctrl-C reaches all processes; the parent is the one that says so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # This runs in workers only.

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _unfinished(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Provides a folder in `output` that marks it as not complete."""
    folder = output / f".recsys-{os.getpid()}-rows"
    folder.mkdir()
    try:
        yield folder
    except BaseException:
        _remove_unfinished(output)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_unfinished(output: pathlib.Path) -> None:
    """Removes what an incomplete preparation has made, but nothing else."""
    if (output / shards.MANIFEST).exists():
        return
    for name in (shards.sequences_name(0), shards.queries_name(0)):
        shutil.rmtree(output / pathlib.PurePath(name).parts[0], True)
    (output / shards.VOCABULARY).unlink(missing_ok=True)


def _open(folder: pathlib.Path, name: str) -> IO[bytes]:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    return path.open("wb")


def _check_output(output: pathlib.Path) -> None:
    for left in output.glob(".recsys-*-rows"):
        if files.is_stale(left):
            _remove_unfinished(output)
            files.remove_if_stale(left)
    if not is_new_or_empty(output):
        raise InputError(
            "--output must be a new or an empty folder. "
            f"Received: {str(output)!r}"
        )
    if not can_write(output):
        raise InputError(
            f"--output must be a writable folder. Received: {str(output)!r}"
        )
