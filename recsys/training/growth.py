"""A run's log grown by new interactions, before any model is touched."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.config import SEEDED_SPLITS, SOURCE_FIELDS, TrainConfig
from recsys.data import shards
from recsys.data.columns import concat
from recsys.data.events import EventRules, label
from recsys.data.interactions import Interactions
from recsys.data.prepare import (
    PreparedData,
    counted,
    features_of,
    prepare_log,
    read_log,
)
from recsys.data.sequences import (
    Sequences,
    build_sequences,
    concatenated_ranges,
)
from recsys.data.sources import Log
from recsys.data.splits import Queries
from recsys.errors import InputError
from recsys.evaluation import audit
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX
from recsys.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class GrownData:
    """A trained run and the data of the run that extends it.

    Attributes:
        workdir: The trained run.
        config: Its configuration.
        data: Its data.
        log: Its log together with the new interactions.
        grown_config: The configuration of the extending run.
        grown_data: The data of the extending run.
        indices: `[old vocabulary size]` int32, the index in the grown
            vocabulary of each index of the old one.
        unseen: Lines that count new feature values unknown to the model.
    """

    workdir: Workdir
    config: TrainConfig
    data: PreparedData
    log: Log
    grown_config: TrainConfig
    grown_data: PreparedData
    indices: np.ndarray
    unseen: Sequence[str] = ()

    @property
    def num_new_items(self) -> int:
        """Number of items that the trained run did not have."""
        old, grown = self.data.vocabulary, self.grown_data.vocabulary
        return grown.num_items - old.num_items


def grow_data(
    workdir: Workdir,
    source: dict[str, Any],
    output: pathlib.Path,
    changes: dict[str, Any],
) -> GrownData:
    """Reads a run's log and new interactions and merges them.

    Args:
        workdir: The trained run.
        source: Where the new interactions are; arguments of `sources.read`.
        output: The workdir of the extending run.
        changes: Other fields in which its configuration differs.

    Returns:
        The data of both runs.

    Raises:
        InputError: The workdir holds no run, its log has changed, the new
            interactions cannot be read or merged, or queries of the grown log
            ask for what the model was trained on.
    """
    config = workdir.read_config()
    # The configuration checks `changes`, before the slow reading of logs.
    new_source: dict[str, Any] = {
        **dict.fromkeys(SOURCE_FIELDS),
        "data": str(Workdir(output).log),
    }
    grown_config = dataclasses.replace(config, **new_source, **changes)
    for name in (config.data, source["data"]):
        if shards.is_sharded(name):
            raise InputError(
                "only a log in memory can extend another one; prepare shards "
                "of both logs and train from scratch. Received: the shards "
                f"{name}"
            )
    old_log = read_log(config)
    data = prepare_log(old_log, config)
    workdir.check_data(data.vocabulary)
    new_log = read_log(dataclasses.replace(config, **source))
    try:
        # What the filters need, or all new rows would be dropped.
        label(new_log.interactions, EventRules.of(config))
        new_log.interactions.rows_rated(config.min_rating)
    except InputError as error:
        raise InputError(f"{new_log.name}: {error}") from error
    log = merge_logs(old_log, new_log)
    grown_data = prepare_log(log, grown_config)
    grown = GrownData(
        workdir=workdir,
        config=config,
        data=data,
        log=log,
        grown_config=grown_config,
        grown_data=grown_data,
        indices=grown_data.vocabulary.indices_of(data.vocabulary),
    )
    _check_items(grown)
    _check_queries(grown)
    return dataclasses.replace(grown, unseen=_unseen(grown, new_log))


def _unseen(grown: GrownData, new_log: Log) -> list[str]:
    """Counts the feature values of a new log that the model does not know.

    Raises:
        InputError: The new log lacks what the features read.
    """
    encoder = grown.workdir.read_side_encoder()
    if encoder is None:
        return []
    if (users := new_log.users) is not None:
        names = encoder.given_names("user")
        if missing := [n for n in names if n not in users.column_names]:
            raise InputError(
                f"{new_log.name}: expected the columns of users that the "
                f"model reads, {', '.join(names)}. Received: no {missing[0]!r}"
            )
    # The users file of the new log need not list all of its users.
    described = dataclasses.replace(new_log, users=grown.log.users)
    sequences = build_sequences(
        new_log.interactions,
        grown.grown_data.vocabulary,
        **features_of(described, grown.config),
        strict=False,
    )
    found = encoder.unseen(encoder.code(sequences), {})
    return [
        f"{new_log.name}: {counted(number, 'value')} of {name} unknown to the "
        "model, ignored"
        for name, number in found.items()
    ]


def _check_items(grown: GrownData) -> None:
    """Raises InputError unless the grown log has all items of the model."""
    lost = grown.data.vocabulary.item_ids[
        grown.indices[FIRST_ITEM_INDEX:] == UNKNOWN_INDEX
    ]
    if len(lost):
        raise InputError(
            "the grown log must have all items of the model. Received: "
            f"{len(lost):,} that the filters now drop, such as {lost[0]!r}"
        )


def _check_queries(grown: GrownData) -> None:
    """Raises InputError if queries ask for what the model was trained on."""
    trained = grown.data.split.train.read_all()
    split = grown.grown_data.split
    for queries in (split.validation, split.test):
        if queries is not None:
            check_not_trained_on(
                queries,
                grown.grown_data.vocabulary.item_ids,
                trained,
                grown.data.vocabulary.item_ids,
            )
    if grown.config.split not in SEEDED_SPLITS:
        return
    # The users or items that these splits hold out must be the same as before.
    trained = dataclasses.replace(trained, items=grown.indices[trained.items])
    for check in audit(dataclasses.replace(split, train=trained)).checks:
        if check.num_violations:
            raise InputError(
                f"the split {split.protocol} of the grown log must not hold "
                "out what the model was trained on; train from scratch "
                f"instead. Received: {check.num_violations:,} of "
                f"{check.num_checked:,} {check.unit} that it was trained on"
            )


def check_not_trained_on(
    queries: Queries,
    item_ids: np.ndarray,
    trained: Sequences,
    trained_item_ids: np.ndarray,
) -> None:
    """Checks that no query's target is an interaction of the training set.

    Args:
        queries: Queries of a grown log.
        item_ids: `[num_items]` raw item ids of the grown log.
        trained: The model's training set.
        trained_item_ids: `[num_trained_items]` raw item ids of that set.

    Raises:
        InputError: Some targets are.
    """
    lengths = queries.target_ends - queries.history_ends
    targets = concatenated_ranges(queries.history_ends, lengths)
    asked = set(_events(queries.sequences, targets, item_ids))
    # Other users' interactions need no look-up.
    users = queries.sequences.user_ids[queries.users]
    is_theirs = np.repeat(np.isin(trained.user_ids, users), trained.lengths)
    seen = _events(trained, np.flatnonzero(is_theirs), trained_item_ids)
    num_seen = sum(event in asked for event in seen)
    if num_seen:
        raise InputError(
            "the new interactions must leave the model's training set within "
            "that of the grown log; train from scratch instead. Received: "
            f"{num_seen:,} interactions that the model was trained on and "
            "that queries would ask for"
        )


def _events(
    sequences: Sequences, positions: np.ndarray, item_ids: np.ndarray
) -> Iterator[tuple[Any, Any, int, str]]:
    """Returns interactions as (raw user id, raw item id, timestamp, kind)."""
    kinds = [""] * len(positions)
    if sequences.kinds is not None:
        codes = sequences.columns["event"][positions]
        kinds = [sequences.kinds.names[code] for code in codes]
    return zip(
        np.repeat(sequences.user_ids, sequences.lengths)[positions],
        item_ids[sequences.items[positions] - FIRST_ITEM_INDEX],
        sequences.timestamps[positions].tolist(),
        kinds,
        strict=True,
    )


# What timestamps are, by how many of them make a second.
_TIMES = {
    0: "none (the order of the file)",
    1: "numbers",
    10**3: "milliseconds",
    10**6: "dates or microseconds",
    10**9: "nanoseconds",
}


def merge_logs(old: Log, new: Log) -> Log:
    """Appends a log to another one.

    Args:
        old: The first.
        new: The second, with any users and items.

    Returns:
        Both, with users and items in the order of their first appearance. An
        item that both logs describe keeps its description in the old one. A
        column that only one has is null in the rows of the other, which the
        notes say.

    Raises:
        InputError: One log has dates and the other numbers as times, or their
            item descriptions have incompatible types.
    """
    first, second = old.interactions, new.interactions
    if first.timestamps_per_second != second.timestamps_per_second:
        raise InputError(
            f"{new.name}: expected timestamps of the same kind as in "
            f"{old.name}, {_TIMES[first.timestamps_per_second]}. Received: "
            f"{_TIMES[second.timestamps_per_second]}"
        )
    user_ids, users = _merge_codes(
        first.user_ids, first.users, second.user_ids, second.users
    )
    item_ids, items = _merge_codes(
        first.item_ids, first.items, second.item_ids, second.items
    )
    times = second.timestamps
    if not second.timestamps_per_second and len(first):
        # The positions of the second log follow those of the first.
        times = times + (first.timestamps.max() + 1)
    ratings = None
    if first.ratings is not None or second.ratings is not None:
        ratings = np.concatenate([_ratings(first), _ratings(second)])
    where = f"{new.name} after {old.name}"
    columns, notes = _merge_columns(old, new, where)
    return Log(
        name=old.name,
        interactions=Interactions(
            user_ids=user_ids,
            item_ids=item_ids,
            users=users,
            items=items,
            timestamps=np.concatenate([first.timestamps, times]),
            ratings=ratings,
            timestamps_per_second=first.timestamps_per_second,
            columns=columns,
            num_empty=first.num_empty + second.num_empty,
        ),
        items=_merge_known(old.items, new.items, "item_id", where),
        users=_merge_known(old.users, new.users, "user_id", where),
        notes=tuple(dict.fromkeys([*old.notes, *new.notes, *notes])),
    )


def _merge_columns(
    old: Log, new: Log, where: str
) -> tuple[pa.Table | None, list[str]]:
    """Returns the columns of both logs, and lines on what one of them lacks."""
    logs, notes = [log.interactions for log in (old, new)], []
    # A table needs a column to have rows.
    tables = [log.columns or pa.table({"": pa.nulls(len(log))}) for log in logs]
    has = [set(table.column_names) - {""} for table in tables]
    for log, missing in ((old, has[1] - has[0]), (new, has[0] - has[1])):
        rows = counted(len(log.interactions), "row")
        notes += [f"{log.name}: {rows} without {n!r}" for n in sorted(missing)]
    if not any(has):
        return None, notes
    merged = concat(tables, where)
    names = [name for name in merged.column_names if name]
    return merged.select(names).unify_dictionaries(), notes


def _merge_codes(
    first_ids: np.ndarray,
    first: np.ndarray,
    second_ids: np.ndarray,
    second: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of both logs, and int32 codes of both logs into them."""
    both = pa.array(np.concatenate([first_ids, second_ids]), pa.string())
    merged = both.dictionary_encode()
    codes = merged.indices.to_numpy()
    ids = np.empty(len(merged.dictionary), object)
    ids[:] = merged.dictionary.to_pylist()
    return ids, np.concatenate(
        [codes[first], codes[len(first_ids) :][second]]
    ).astype(np.int32)


def _ratings(interactions: Interactions) -> np.ndarray:
    if interactions.ratings is not None:
        return interactions.ratings
    return np.full(len(interactions), np.nan, np.float32)


def _merge_known(
    first: pa.Table | None, second: pa.Table | None, ids: str, where: str
) -> pa.Table | None:
    """Returns the metadata of both logs; the first describes known ids."""
    if first is None or second is None:
        return second if first is None else first
    is_new = pc.invert(pc.is_in(second[ids], value_set=first[ids]))
    return concat([first, second.filter(is_new)], where)


def write_log(log: Log, folder: pathlib.Path) -> None:
    """Writes a log so that `sources.read` of the folder returns it.

    Args:
        log: The log.
        folder: The folder, which gets `interactions.parquet` and, if the log
            has them, `items.parquet` and `users.parquet`.
    """
    for name, table in _log_tables(log).items():
        if table is not None:
            pq.write_table(
                table, folder / f"{name}.parquet", compression="zstd"
            )


def is_written(log: Log, folder: pathlib.Path) -> bool:
    """Whether a folder holds what `write_log` writes for a log."""
    for name, table in _log_tables(log).items():
        path = folder / f"{name}.parquet"
        found = pq.read_table(path) if path.is_file() else None
        if found is None or table is None:
            if found is not table:
                return False
        elif not found.equals(table):
            return False
    return True


def _log_tables(log: Log) -> dict[str, pa.Table | None]:
    interactions = log.interactions
    times = pa.array(interactions.timestamps)
    # Other numbers are understood again when they are read.
    if interactions.timestamps_per_second == 1_000_000:
        times = times.cast(pa.timestamp("us"))
    columns = {
        "user_id": _decoded(interactions.user_ids, interactions.users),
        "item_id": _decoded(interactions.item_ids, interactions.items),
    }
    if interactions.timestamps_per_second:
        columns["timestamp"] = times
    if interactions.ratings is not None:
        columns["rating"] = pa.array(interactions.ratings, from_pandas=True)
    if interactions.columns is not None:
        for name in interactions.columns.column_names:
            columns.setdefault(name, interactions.columns[name])
    table = pa.table(columns)
    return {"interactions": table, "items": log.items, "users": log.users}


def _decoded(ids: np.ndarray, codes: np.ndarray) -> pa.Array:
    return pa.array(ids, pa.string()).take(pa.array(codes))
