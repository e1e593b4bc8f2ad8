"""Training sequences that need not fit in memory: a folder of Parquet shards.

    DIR/manifest.json             what was prepared, and how much
    DIR/vocabulary.parquet        the items, with `train_count`
    DIR/sequences/00000.parquet   training sequences of whole users
    DIR/queries/00000.parquet     whole sequences of the users that are asked

`sequences` holds nothing that a query asks for, whoever reads it. A user is
in the shard that a hash of the id names, so any few shards are a random sample
of the users: reading whole shards in random order, a few at a time, shuffles.

Parquet, because everything else reads and writes it too (Beam, Spark, DuckDB,
pandas), because a reader fetches single columns, and because whole columns
become arrays without a step per record. TFRecord costs a protocol buffer per
user to decode; ArrayRecord's random access is of no use to a reader of whole
shards.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.data.sequences import Sequences, join_sequences, offsets_of
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
    """What a folder of shards holds.

    Attributes:
        name: The name of the log.
        split: The name of the split.
        min_rating: The lowest rating that counted, or None.
        repeats: Which of repeated pairs stayed.
        num_users: Of each shard, how many users.
        num_train: Of each shard, how many training interactions.
        num_queries: Of each shard, how many users are asked.
        num_interactions: Interactions of all users, held-out ones included.
        num_single: Users with one interaction only.
        num_dropped: Interactions of the log that the filters left out.
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
        """Says in a line what there is."""
        return (
            f"{len(self.num_users):,} shards of {self.name}: "
            f"{sum(self.num_users):,} users, {self.num_interactions:,} "
            f"interactions ({self.num_dropped:,} dropped), "
            f"{sum(self.num_queries):,} users are asked"
        )

    def to_json(self) -> str:
        """Returns the text of `manifest.json`."""
        fields = {"format": _FORMAT, **dataclasses.asdict(self)}
        return json.dumps(fields, indent=2) + "\n"


@dataclasses.dataclass(frozen=True)
class ShardedSequences:
    """Training sequences in files, read a few files at a time.

    Attributes:
        paths: The shards.
        users_per_shard: `[num_shards]` int64.
        interactions_per_shard: `[num_shards]` int64.
        counts: `[vocabulary_size]` int64, interactions with each item.
        group_interactions: Shards are read in groups of about so many
            interactions, fewer than these and a shard's, out of which batches
            are drawn. Two groups are in memory at a time, of 4 bytes an
            interaction each.
    """

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
        """Number of interactions of all users together."""
        return int(self.interactions_per_shard.sum())

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """`[num_users]` int64, the number of interactions of each user."""
        return self.read_lengths(range(len(self.paths)))

    def item_counts(self, vocabulary_size: int) -> np.ndarray:
        """Counts interactions, as `Sequences.item_counts` does."""
        if vocabulary_size != len(self.counts):
            raise ValueError(
                f"`vocabulary_size` must be {len(self.counts)}. "
                f"Received: {vocabulary_size}"
            )
        return self.counts

    def groups(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Deals the shards, in random order, into groups.

        Args:
            rng: Draws the order.

        Returns:
            The numbers of each group's shards, each shard once.
        """
        order = rng.permutation(len(self.paths))
        before = np.cumsum(self.interactions_per_shard[order])
        before -= self.interactions_per_shard[order]
        number = before // self.group_interactions
        ends = np.flatnonzero(np.diff(number)) + 1
        return np.split(order, ends)

    def read_lengths(self, shards: Sequence[int] | np.ndarray) -> np.ndarray:
        """Reads the lengths of the sequences of some shards, `[n]` int64."""
        lengths = [
            _column(self.paths[shard], "length").to_numpy() for shard in shards
        ]
        return np.concatenate(lengths).astype(np.int64)

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
        lists = [
            chunk
            for shard in shards
            for chunk in _column(self.paths[shard], "items").chunks
        ]
        lengths = [np.diff(part.offsets.to_numpy()) for part in lists]
        offsets = offsets_of(np.concatenate([np.zeros(0, np.int32), *lengths]))
        parts = [part.flatten().to_numpy() for part in lists]
        return np.concatenate([np.zeros(0, np.int32), *parts]), offsets

    def read(self, shards: Sequence[int] | np.ndarray) -> Sequences:
        """Reads the sequences of some shards."""
        return join_sequences(
            [to_sequences(_read(self.paths[shard])) for shard in shards]
        )

    def of_users(self, user_ids: np.ndarray) -> Sequences:
        """Reads the sequences of some users, looking through all shards.

        Args:
            user_ids: Object array of str.

        Returns:
            Those that are in the shards.
        """
        wanted = pa.array(user_ids, pa.string())
        parts = []
        for path in self.paths:
            table = _read(path)
            found = pc.is_in(table["user_id"], value_set=wanted)
            parts.append(to_sequences(table.filter(found)))
        return join_sequences(parts)


def is_sharded(data: str) -> bool:
    """Whether `data` names a folder that `recsys.prepare_shards` wrote."""
    return (pathlib.Path(data).expanduser() / MANIFEST).is_file()


def sequences_name(shard: int) -> str:
    """Where in the folder the training sequences of a shard are."""
    return f"sequences/{shard:05d}.parquet"


def queries_name(shard: int) -> str:
    """Where in the folder the sequences of a shard's asked users are."""
    return f"queries/{shard:05d}.parquet"


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Reads and checks `manifest.json`.

    Raises:
        InputError: It is not one, or a shard that it lists is missing.
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
    """Reads the text of a manifest.

    Args:
        text: What `Manifest.to_json` returned.
        path: Where it comes from, for messages.

    Raises:
        InputError: It is no manifest of this format.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        version = fields.pop("format")
        manifest = Manifest(**fields)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _no_manifest(path, error) from error
    if version != _FORMAT:
        raise InputError(
            f"{path}: expected shards of format {_FORMAT}. Received: {version}"
        )
    return manifest


def _no_manifest(path: object, reason: Exception) -> InputError:
    return InputError(
        f"{path}: expected what recsys.prepare_shards writes. "
        f"Received: {reason}"
    )


def open_sequences(
    folder: pathlib.Path, manifest: Manifest, counts: np.ndarray
) -> ShardedSequences:
    """Returns the training sequences of a folder; reads none.

    Args:
        folder: The folder.
        manifest: What it holds.
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
    """Reads the whole sequences of the users that are asked."""
    return join_sequences(
        [
            to_sequences(_read(folder / queries_name(shard)))
            for shard in range(len(manifest.num_users))
        ]
    )


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
    """Returns the sequences that the table of a shard holds."""
    return Sequences(
        user_ids=np.array(table["user_id"].to_pylist(), object),
        offsets=offsets_of(table["length"].to_numpy()),
        items=_flat(table["items"], np.int32),
        timestamps=_flat(table["timestamps"], np.int64),
    )


def write_table(table: pa.Table, sink: Any) -> None:
    """Writes the table of a shard as Parquet.

    Args:
        table: What `to_table` returns.
        sink: A path or a file object.
    """
    numbers = ("length", "items.list.element", "timestamps.list.element")
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=False,
        # Blocks of numbers in as many bits as they need: smaller than plain,
        # and as fast to read.
        column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
        row_group_size=max(1, len(table)),
    )


def _flat(column: pa.ChunkedArray, dtype: type) -> np.ndarray:
    parts = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate([np.zeros(0, dtype), *parts])


def _column(path: pathlib.Path, name: str) -> pa.ChunkedArray:
    return _read(path, [name])[name]


def _read(path: pathlib.Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.ParquetFile(path).read(columns)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(
            f"{path}: expected a shard that can be read. Received: "
            + " ".join(str(error).split())
        ) from error
