"""Training sequences that need not fit in memory: a folder of Parquet shards.

    DIR/manifest.json             how they were prepared, and their sizes
    DIR/vocabulary.parquet        the items, with `train_count`
    DIR/sequences/00000.parquet   training sequences of whole users
    DIR/queries/00000.parquet     full sequences of the queried users
    DIR/held_out/00000.parquet    what others have besides, for recommendations

Columns of events and dislikes, where a log has them, are lists like the items:
`event`, `disliked_items` and so on. What features read is kept as it is in the
log: lists such as `feature_rating`, and `user`, a struct with columns of users.

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
from recsys.config import (
    CLOCK_FEATURES,
    EVENT_FIELDS,
    FEATURE_FIELDS,
    parse_names,
    read_names,
)
from recsys.data.columns import concat
from recsys.data.events import EventKinds, EventRules, describe, dislikes_note
from recsys.data.sequences import (
    Group,
    Part,
    Sequences,
    TrainingSequences,
    coded,
    offsets_of,
)
from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX

MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.parquet"
_FORMAT = 1
# What the columns of dislikes begin with.
_DISLIKED = "disliked_"
# What columns that features read begin with, and the struct of those of users.
FEATURE = "feature_"
_USER = "user"
# Entries of the manifest that are left out where they are empty or 0.
_EVENT_COUNTS = (
    *("num_dislikes", "num_kept_dislikes", "found", "dropped", "odd"),
)
# Those that are left out only where they are None.
_OR_NONE = (*EVENT_FIELDS, *FEATURE_FIELDS, "timestamps_per_second")
# What takes the flags of events.
_PROGRAM = "recsys.prepare_shards "


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardRules(EventRules):
    """How events are treated, and what features read; the fields are flags."""

    event_features: str | None = None
    time_features: str | None = None
    context_features: str | None = None
    user_features: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns of the log that are kept: any but kinds of events."""
        others = ("event", *CLOCK_FEATURES)
        return [name for name in read_names(self) if name not in others]

    @property
    def reads_clock(self) -> bool:
        """Whether the times of events are features."""
        names = parse_names(self.context_features)
        return bool(self.time_features or {*CLOCK_FEATURES} & {*names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(ShardRules):
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
        dropped: The same by reason.
        odd: Lines on rows that the user should know about.
        num_dislikes: Rows of the log that are dislikes.
        num_kept_dislikes: Those of them that are used.
        found: The rows of each kind of event, if the log has any.
        timestamps_per_second: As in `Interactions`; None without features.
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
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    odd: list[str] = dataclasses.field(default_factory=list)
    num_dislikes: int = 0
    num_kept_dislikes: int = 0
    found: dict[str, int] = dataclasses.field(default_factory=dict)
    timestamps_per_second: int | None = None

    def notes(self) -> list[str]:
        """Describes odd rows, kinds of events and dislikes, in a line each."""
        kinds = describe(self, self.kinds(), self.found, _PROGRAM)
        lines = [*self.odd, *kinds]
        if self.has_dislikes:
            lines.append(
                dislikes_note(self.num_dislikes, self.num_kept_dislikes)
            )
        return lines

    def summary(self) -> str:
        """Describes the shards, the kinds of events in lines of their own."""
        first = (
            f"{len(self.num_users):,} shards of {self.name}: "
            f"{sum(self.num_users):,} users, {self.num_interactions:,} "
            f"interactions, {sum(self.num_queries):,} queried users"
        )
        return "\n".join([first, *self.notes()])

    def to_json(self) -> str:
        """Returns the text of `manifest.json`, without what is not used."""
        fields = {"format": _FORMAT, **dataclasses.asdict(self)}
        unused = [name for name in _OR_NONE if fields[name] is None]
        unused += [name for name in _EVENT_COUNTS if not fields[name]]
        for name in unused:
            del fields[name]
        return files.json_text(fields)


@dataclasses.dataclass(frozen=True)
class ShardedSequences(TrainingSequences):
    """Training sequences in files, read a few files at a time.

    Attributes:
        paths: The shards.
        users_per_shard: `[num_shards]` int64.
        interactions_per_shard: `[num_shards]` int64.
        counts: `[vocabulary_size]` int64, interactions with each item.
        kinds: The kinds of events, or None.
        target_weights: `[vocabulary_size]`; see `target_weights_by_item`.
        rules: How events were treated, and what features are read.
        group_interactions: Approximate interactions in a group, exceeded by
            less than a shard. Two groups are in memory at a time, at 4 bytes
            per interaction.
    """

    in_memory = False

    paths: tuple[pathlib.Path, ...]
    users_per_shard: np.ndarray
    interactions_per_shard: np.ndarray
    counts: np.ndarray
    kinds: EventKinds | None
    target_weights: np.ndarray
    rules: Manifest
    group_interactions: int = 2**23

    @property
    def num_users(self) -> int:
        """Number of users."""
        return int(self.users_per_shard.sum())

    @property
    def num_interactions(self) -> int:
        """Total number of interactions."""
        return int(self.interactions_per_shard.sum())

    @property
    def has_dislikes(self) -> bool:
        """Whether users may have known negatives."""
        return self.rules.has_dislikes

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

    def target_weights_by_item(self, vocabulary_size: int) -> np.ndarray:
        """Returns the weights, which were summed with the shards."""
        self.item_counts(vocabulary_size)  # Checks the size.
        return self.target_weights

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
        columns = ["items"] + ["event"] * (self.kinds is not None)
        columns += ["timestamps"] * self.rules.reads_clock
        disliked = ["items", "place"] * self.has_dislikes
        wanted = ["length", *columns]
        wanted += [FEATURE + name for name in self.rules.columns]
        wanted += [_USER] * (self.rules.user_features is not None)
        if disliked:
            wanted += [_DISLIKED + name for name in ("length", *disliked)]
        if part is not None and len(group) < part.count:
            part = None
        tables = [
            _read(
                self.paths[shard],
                wanted
                if part is None or number % part.count == part.index
                else ["length"],
            )
            for number, shard in enumerate(group)
        ]
        ends = [pc.sum(table["length"]).as_py() or 0 for table in tables]
        found = _group(tables, "", columns)
        features, levels = _features(tables, self.rules.columns)
        return dataclasses.replace(
            found,
            columns={**found.columns, **features},
            levels=levels,
            users=_users(tables),
            shard_ends=None if part is None else np.cumsum(ends),
            dislikes=_group(tables, _DISLIKED, disliked) if disliked else None,
        )

    def sample(self, rng: np.random.Generator) -> Sequences:
        """Reads a group."""
        return to_sequences(self._read(self.groups(rng)[0]), self.rules)

    def of_users(self, user_ids: np.ndarray) -> Sequences:
        """Reads the sequences of some users, from all shards."""
        wanted = pa.array(user_ids, pa.string())
        tables = []
        for path in self.paths:
            table = _read(path)
            found = pc.is_in(table["user_id"], value_set=wanted)
            tables.append(table.filter(found))
        return to_sequences(_joined(tables), self.rules)

    def read_all(self) -> Sequences:
        """Reads all sequences."""
        return to_sequences(self._read(range(len(self.paths))), self.rules)

    def _read(
        self,
        shards: Sequence[int] | np.ndarray,
        columns: list[str] | None = None,
    ) -> pa.Table:
        return _joined([_read(self.paths[shard], columns) for shard in shards])


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


def held_out_name(shard: int) -> str:
    """Returns the path of what a shard holds out of users who are not queried.

    There is no such file where all are queried.
    """
    return f"held_out/{shard:05d}.parquet"


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
    folder: pathlib.Path,
    manifest: Manifest,
    counts: np.ndarray,
    target_weights: np.ndarray,
) -> ShardedSequences:
    """Returns the training sequences of a folder without reading any.

    Args:
        folder: The folder.
        manifest: Its manifest.
        counts: `[vocabulary_size]` int64, training interactions of each item.
        target_weights: `[vocabulary_size]`, the summed weights of those that
            are targets.
    """
    return ShardedSequences(
        paths=tuple(
            folder / sequences_name(shard)
            for shard in range(len(manifest.num_users))
        ),
        users_per_shard=np.array(manifest.num_users, np.int64),
        interactions_per_shard=np.array(manifest.num_train, np.int64),
        counts=counts,
        kinds=manifest.kinds(),
        target_weights=target_weights,
        rules=manifest,
    )


def read_queried(folder: pathlib.Path, manifest: Manifest) -> Sequences:
    """Reads the full sequences of the queried users."""
    names = map(queries_name, range(len(manifest.num_users)))
    tables = [_read(folder / name) for name in names]
    return to_sequences(_joined(tables), manifest)


def read_users(
    folder: pathlib.Path,
    shard: int,
    indices: np.ndarray,
    manifest: Manifest,
) -> Sequences:
    """Reads the full sequences of all users of a shard, and their dislikes.

    Args:
        folder: The folder.
        shard: The number of the shard.
        indices: `[vocabulary_size]` int32, the index to return for each index
            of the folder's vocabulary.
        manifest: The folder's manifest.
    """
    queried = _read(folder / queries_name(shard))
    train = _read(folder / sequences_name(shard))
    # Without the targets of those who are queried.
    is_there = pc.is_in(train["user_id"], value_set=queried["user_id"])
    train = train.filter(pc.invert(is_there))
    later = folder / held_out_name(shard)
    if later.is_file():
        train = _continued(train, _read(later))
    table = _joined([train, queried])
    found = to_sequences(table, manifest)
    dislikes = found.dislikes
    if dislikes is not None:
        # Of items that the index still knows, which has no unknown ones.
        dislikes = dataclasses.replace(dislikes, items=indices[dislikes.items])
        dislikes = dislikes.keep(dislikes.items >= FIRST_ITEM_INDEX)
    return dataclasses.replace(
        found, items=indices[found.items], dislikes=dislikes
    )


def _continued(table: pa.Table, later: pa.Table) -> pa.Table:
    """Appends the lists of later rows to those of the same users."""
    rows = pc.index_in(later["user_id"], value_set=table["user_id"]).to_numpy()
    owners = np.append(np.arange(len(table)), rows)
    order = np.argsort(owners, kind="stable")
    both, owners = _joined([table, later]).take(order), owners[order]
    columns = {}
    for name in table.column_names:
        column = table[name]
        prefix = _DISLIKED if name.startswith(_DISLIKED) else ""
        added = both[f"{prefix}length"].to_numpy()
        lengths = np.bincount(owners, added, len(table)).astype(np.int32)
        if name == f"{prefix}length":
            column = lengths
        elif pa.types.is_list(column.type):
            offsets = pa.array(offsets_of(lengths).astype(np.int32))
            values = pc.list_flatten(both[name]).combine_chunks()
            column = pa.ListArray.from_arrays(offsets, values)
        columns[name] = column
    return pa.table(columns)


def to_table(sequences: Sequences) -> pa.Table:
    """Returns sequences as the table of a shard."""
    columns = {
        "user_id": pa.array(sequences.user_ids, pa.string()),
        **_lists("", sequences),
    }
    if sequences.dislikes is not None:
        columns |= _lists(_DISLIKED, sequences.dislikes)
    if sequences.users is not None:
        columns[_USER] = sequences.users.to_struct_array()
    return pa.table(columns)


def _lists(prefix: str, sequences: Sequences) -> dict[str, pa.Array]:
    """Returns each user's interactions as columns of lists."""
    offsets = pa.array(sequences.offsets.astype(np.int32))
    arrays = {
        "items": sequences.items,
        "timestamps": sequences.timestamps,
    }
    for name, codes in sequences.columns.items():
        if (levels := sequences.levels.get(name)) is None:
            arrays[name] = codes
        else:
            raw = levels.take(pa.array(codes, mask=codes < 0))
            arrays[FEATURE + name] = raw
    columns = {"length": pa.array(sequences.lengths.astype(np.int32))}
    for name, array in arrays.items():
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(array))
    return {prefix + name: column for name, column in columns.items()}


def to_sequences(
    table: pa.Table, manifest: Manifest | None = None
) -> Sequences:
    """Returns the sequences in the table of a shard, or of several.

    Args:
        table: The table.
        manifest: Names its kinds of events and unit of time.
    """
    user_ids = np.array(table["user_id"].to_pylist(), object)

    def sequences(prefix: str, **fields: Any) -> Sequences:
        return Sequences(
            user_ids=user_ids,
            offsets=offsets_of(table[f"{prefix}length"].to_numpy()),
            items=_flat(table[f"{prefix}items"]),
            timestamps=_flat(table[f"{prefix}timestamps"]),
            **fields,
        )

    dislikes = None
    if f"{_DISLIKED}items" in table.column_names:
        place = _flat(table[f"{_DISLIKED}place"])
        dislikes = sequences(_DISLIKED, columns={"place": place})
    names = [n for n in table.column_names if n.startswith(FEATURE)]
    columns, levels = _features([table], [n[len(FEATURE) :] for n in names])
    kinds, per_second = None, None
    if manifest is not None:
        kinds, per_second = manifest.kinds(), manifest.timestamps_per_second
    if kinds is not None:
        columns["event"] = _flat(table["event"])
    return sequences(
        "",
        columns=columns,
        levels=levels,
        users=_users([table]),
        kinds=kinds,
        dislikes=dislikes,
        timestamps_per_second=1 if per_second is None else per_second,
    )


def _features(
    tables: Sequence[pa.Table], names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, pa.Array]]:
    """Returns codes and levels; unknown where a table lacks the column."""
    columns, levels = {}, {}
    for name in names:
        parts = [
            pc.list_flatten(table[FEATURE + name])
            if FEATURE + name in table.column_names
            else pa.nulls(pc.sum(table["length"]).as_py() or 0)
            for table in tables
        ]
        found = _joined([pa.table({name: part}) for part in parts])[name]
        columns[name], levels[name] = coded(found.combine_chunks())
    return columns, levels


def _users(tables: Sequence[pa.Table]) -> pa.Table | None:
    """Returns the user metadata; null where a table has none."""
    if not any(_USER in table.column_names for table in tables):
        return None
    names = ["length", _USER]
    parts = [
        table.select([n for n in names if n in table.column_names])
        for table in tables
    ]
    users = _joined(parts)[_USER].combine_chunks()
    return pa.Table.from_struct_array(users)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return concat(tables, "the shards")


def _group(
    tables: Sequence[pa.Table], prefix: str, columns: Sequence[str]
) -> Group:
    """Returns lists by user; zeros, or nothing, where a table has none."""
    lengths = []
    parts: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    for table in tables:
        is_own = f"{prefix}items" in table.column_names
        length = np.zeros(len(table), np.int32)
        if is_own or not prefix:
            length = table[f"{prefix}length"].to_numpy()
        lengths.append(length)
        for name, found in parts.items():
            zeros = np.zeros(length.sum(), np.int32)
            found.append(_flat(table[prefix + name]) if is_own else zeros)
    arrays = {name: np.concatenate(found) for name, found in parts.items()}
    offsets = offsets_of(np.concatenate(lengths))
    return Group(
        arrays.pop("items"),
        offsets,
        timestamps=arrays.pop("timestamps", None),
        columns=arrays,
    )


def write_table(table: pa.Table, sink: Any) -> None:
    """Writes the table of a shard as Parquet.

    Args:
        table: What `to_table` returned.
        sink: A path or a file object.
    """
    raw = [name for name in table.column_names if name.startswith(FEATURE)]
    numbers = [
        name + ".list.element" * pa.types.is_list(table[name].type)
        for name in table.column_names
        if name not in ("user_id", _USER, *raw)
    ]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=[f"{name}.list.element" for name in raw] or False,
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
