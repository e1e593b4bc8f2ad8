"""Training sequences that need not fit in memory: a folder of Parquet shards.

    DIR/manifest.json             how they were prepared, and their sizes
    DIR/vocabulary.parquet        the items, with `train_count`
    DIR/sequences/00000.parquet   training sequences of whole users
    DIR/queries/00000.parquet     full sequences of the queried users

`sequences` contains no target of any query. A hash of the user id selects the
shard, so any few shards are a random sample of the users, and reading whole
shards in random order, a few at a time, shuffles.

Parquet is what other tools read and write (Beam, Spark, DuckDB, pandas); a
reader fetches single columns, and whole columns become arrays without a step
per record. TFRecord would decode a protocol buffer per user; the random access
of ArrayRecord is useless to a reader of whole shards.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import files
from recsys.data.sequences import (
    Group,
    Part,
    Sequences,
    TrainingSequences,
    offsets_of,
)
from recsys.errors import InputError

MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.parquet"
_FORMAT = 1
_SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "length": pa.int32(),
        "items": pa.list_(pa.int32()),
        "timestamps": pa.list_(pa.int64()),
    }
)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Describes a folder of shards.

    Attributes:
        name: The name of the log.
        split: The name of the split.
        min_rating: The lowest rating to keep, or None.
        repeats: Which of repeated pairs are kept.
        num_users: The number of users in each shard.
        num_train: The number of training interactions in each shard.
        num_queries: The number of queried users in each shard.
        num_interactions: Interactions of all users, held-out ones included.
        num_single: Users with a single interaction.
        num_dropped: Interactions of the log removed by the filters.
    """

    name: str
    split: str
    min_rating: float | None
    repeats: str
    num_users: list[int]
    num_train: list[int]
    num_queries: list[int]
    num_interactions: int
    num_single: int
    num_dropped: int

    def summary(self) -> str:
        """Describes the shards in a line."""
        return (
            f"{len(self.num_users):,} shards of {self.name}: "
            f"{sum(self.num_users):,} users, {self.num_interactions:,} "
            f"interactions ({self.num_dropped:,} dropped), "
            f"{sum(self.num_queries):,} queried users"
        )

    def to_json(self) -> str:
        """Returns the text of `manifest.json`."""
        fields = {"format": _FORMAT, **dataclasses.asdict(self)}
        return files.json_text(fields)


@dataclasses.dataclass(frozen=True)
class ShardedSequences(TrainingSequences):
    """Training sequences in files, read a few files at a time.

    Attributes:
        paths: The shards.
        users_per_shard: `[num_shards]` int64.
        interactions_per_shard: `[num_shards]` int64.
        counts: `[vocabulary_size]` int64, interactions with each item.
        group_interactions: Approximate interactions in a group, exceeded by
            less than a shard. Two groups are in memory at a time, at 4 bytes
            per interaction.
    """

    in_memory = False

    paths: tuple[pathlib.Path, ...]
    users_per_shard: np.ndarray
    interactions_per_shard: np.ndarray
    counts: np.ndarray
    group_interactions: int = 2**23

    @property
    def num_users(self) -> int:
        """Number of users."""
        return int(self.users_per_shard.sum())

    @property
    def num_interactions(self) -> int:
        """Total number of interactions."""
        return int(self.interactions_per_shard.sum())

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """`[num_users]` int64, the number of interactions of each user."""
        return self.group_lengths(np.arange(len(self.paths)))

    def item_counts(self, vocabulary_size: int) -> np.ndarray:
        """Returns the counts, which were made with the shards."""
        if vocabulary_size != len(self.counts):
            raise ValueError(
                f"`vocabulary_size` must be {len(self.counts)}. "
                f"Received: {vocabulary_size}"
            )
        return self.counts

    def groups(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Deals the shards, in random order, into groups."""
        order = rng.permutation(len(self.paths))
        before = np.cumsum(self.interactions_per_shard[order])
        before -= self.interactions_per_shard[order]
        number = before // self.group_interactions
        ends = np.flatnonzero(np.diff(number)) + 1
        return np.split(order, ends)

    def group_lengths(self, group: np.ndarray) -> np.ndarray:
        """Reads the lengths of a group's sequences."""
        table = self._read(group, ["length"])
        return table["length"].to_numpy().astype(np.int64)

    def read_group(self, group: np.ndarray, part: Part | None = None) -> Group:
        """Reads the items of a group.

        Of several processes each reads shards of its own, or all shards if
        the group has fewer shards than there are processes.
        """
        if part is None or len(group) < part.count:
            return Group(*self.read_items(group))
        lengths = [
            self.group_lengths(group[i : i + 1]) for i in range(len(group))
        ]
        offsets = offsets_of(np.concatenate(lengths))
        ends = np.cumsum([each.sum() for each in lengths])
        items = np.zeros(offsets[-1], np.int32)
        for number in range(part.index, len(group), part.count):
            begin = ends[number] - lengths[number].sum()
            own, _ = self.read_items(group[number : number + 1])
            items[begin : ends[number]] = own
        return Group(items, offsets, ends)

    def read_items(
        self, shards: Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads the sequences of some shards, without ids and times.

        Args:
            shards: The numbers of the shards.

        Returns:
            `items`, `[total]` int32, and `offsets`, `[num_users + 1]` int64,
            as in `Sequences`.
        """
        table = self._read(shards, ["length", "items"])
        return _flat(table["items"]), offsets_of(table["length"].to_numpy())

    def sample(self, rng: np.random.Generator) -> Sequences:
        """Reads a group."""
        return to_sequences(self._read(self.groups(rng)[0]))

    def of_users(self, user_ids: np.ndarray) -> Sequences:
        """Reads the sequences of some users, from all shards."""
        wanted = pa.array(user_ids, pa.string())
        tables = []
        for path in self.paths:
            table = _read(path)
            found = pc.is_in(table["user_id"], value_set=wanted)
            tables.append(table.filter(found))
        return to_sequences(pa.concat_tables(tables))

    def read_all(self) -> Sequences:
        """Reads all sequences."""
        return to_sequences(self._read(range(len(self.paths))))

    def _read(
        self,
        shards: Sequence[int] | np.ndarray,
        columns: list[str] | None = None,
    ) -> pa.Table:
        return pa.concat_tables(
            [_read(self.paths[shard], columns) for shard in shards]
        )


def is_sharded(data: str) -> bool:
    """Whether `data` is a folder that `recsys.prepare_shards` wrote."""
    path = pathlib.Path(os.path.expanduser(data))
    return bool(data) and (path / MANIFEST).is_file()


def sequences_name(shard: int) -> str:
    """Returns the path of a shard's training sequences in the folder."""
    return f"sequences/{shard:05d}.parquet"


def queries_name(shard: int) -> str:
    """Returns the path of a shard's queried sequences in the folder."""
    return f"queries/{shard:05d}.parquet"


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Reads and checks `manifest.json`.

    Raises:
        InputError: It is invalid, or a shard that it lists is missing.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise _no_manifest(path, error) from error
    manifest = parse_manifest(text, path)
    for shard in range(len(manifest.num_users)):
        for name in (sequences_name(shard), queries_name(shard)):
            if not (folder / name).is_file():
                raise InputError(
                    f"{path}: expected the files of "
                    f"{len(manifest.num_users)} shards. Received: no {name}"
                )
    return manifest


def parse_manifest(text: str, path: object) -> Manifest:
    """Parses the text of a manifest.

    Args:
        text: What `Manifest.to_json` returned.
        path: Where it was read, for messages.

    Raises:
        InputError: It is not a manifest of this format.
    """
    fields = files.checked_object(
        files.parse_json(text, path),
        path,
        split=str,
        num_users=list,
        num_train=list,
        num_queries=list,
    )
    version = fields.pop("format", None)
    try:
        manifest = Manifest(**fields)
    except TypeError as error:
        raise _no_manifest(path, error) from error
    if version != _FORMAT:
        raise InputError(
            f"{path}: expected shards of format {_FORMAT}. Received: {version}"
        )
    return manifest


def _no_manifest(path: object, reason: Exception) -> InputError:
    return InputError(
        f"{path}: expected a manifest written by recsys.prepare_shards. "
        f"Received: {reason}"
    )


def open_sequences(
    folder: pathlib.Path, manifest: Manifest, counts: np.ndarray
) -> ShardedSequences:
    """Returns the training sequences of a folder without reading any.

    Args:
        folder: The folder.
        manifest: Its manifest.
        counts: `[vocabulary_size]` int64, training interactions of each item.
    """
    return ShardedSequences(
        paths=tuple(
            folder / sequences_name(shard)
            for shard in range(len(manifest.num_users))
        ),
        users_per_shard=np.array(manifest.num_users, np.int64),
        interactions_per_shard=np.array(manifest.num_train, np.int64),
        counts=counts,
    )


def read_queried(folder: pathlib.Path, manifest: Manifest) -> Sequences:
    """Reads the full sequences of the queried users."""
    names = map(queries_name, range(len(manifest.num_users)))
    return to_sequences(pa.concat_tables([_read(folder / n) for n in names]))


def read_users(
    folder: pathlib.Path, shard: int, indices: np.ndarray
) -> Sequences:
    """Reads the full sequences of all users of a shard.

    Args:
        folder: The folder.
        shard: The number of the shard.
        indices: `[vocabulary_size]` int32, the index to return for each index
            of the folder's vocabulary.
    """
    queried = _read(folder / queries_name(shard))
    train = _read(folder / sequences_name(shard))
    # Without the targets of those who are queried.
    is_there = pc.is_in(train["user_id"], value_set=queried["user_id"])
    table = pa.concat_tables([train.filter(pc.invert(is_there)), queried])
    found = to_sequences(table)
    return dataclasses.replace(found, items=indices[found.items])


def to_table(sequences: Sequences) -> pa.Table:
    """Returns sequences as the table of a shard."""
    offsets = pa.array(sequences.offsets.astype(np.int32))
    columns = [
        pa.array(sequences.user_ids, pa.string()),
        pa.array(sequences.lengths.astype(np.int32)),
        pa.ListArray.from_arrays(offsets, pa.array(sequences.items)),
        pa.ListArray.from_arrays(offsets, pa.array(sequences.timestamps)),
    ]
    return pa.table(columns, schema=_SCHEMA)


def to_sequences(table: pa.Table) -> Sequences:
    """Returns the sequences in the table of a shard, or of several."""
    return Sequences(
        user_ids=np.array(table["user_id"].to_pylist(), object),
        offsets=offsets_of(table["length"].to_numpy()),
        items=_flat(table["items"]),
        timestamps=_flat(table["timestamps"]),
    )


def write_table(table: pa.Table, sink: Any) -> None:
    """Writes the table of a shard as Parquet.

    Args:
        table: What `to_table` returned.
        sink: A path or a file object.
    """
    numbers = ("length", "items.list.element", "timestamps.list.element")
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=False,
        # Stores each block of numbers in as few bits as it needs: smaller
        # than plain, and as fast to read.
        column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
        row_group_size=max(1, len(table)),
        write_page_checksum=True,
    )


def _flat(lists: pa.ChunkedArray) -> np.ndarray:
    return pc.list_flatten(lists).to_numpy()


def _read(path: pathlib.Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read(
            columns
        )
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(
            f"{path}: expected a readable shard. Received: "
            + " ".join(str(error).split())
        ) from error
