"""A run's log grown by new interactions, before any model is touched."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import SEEDED_SPLITS, SOURCE_FIELDS, TrainConfig
from recsys.data import shards, sources
from recsys.data.interactions import Interactions, Log
from recsys.data.prepare import PreparedData, prepare_log, read_log
from recsys.data.sequences import Sequences, concatenated_ranges
from recsys.data.splits import Queries, Split
from recsys.errors import InputError
from recsys.evaluation import audit
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX
from recsys.workdir import Workdir


def merge_logs(old: Log, new: Log) -> Log:
    """Puts a log behind another.

    Args:
        old: The first.
        new: The second, of any users and items.

    Returns:
        Both, users and items in the order of their first appearance. Of an
        item that both describe, the old log's description stays.

    Raises:
        InputError: One log has dates and the other numbers as times, or they
            describe items in ways that do not go together.
    """
    first, second = old.interactions, new.interactions
    if first.timestamps_per_second != second.timestamps_per_second:
        raise InputError(
            f"{new.name}: expected timestamps of the kind in {old.name}. "
            "Received: dates in one and numbers in the other"
        )
    user_ids, users = _merge_codes(
        first.user_ids, first.users, second.user_ids, second.users
    )
    item_ids, items = _merge_codes(
        first.item_ids, first.items, second.item_ids, second.items
    )
    ratings = None
    if first.ratings is not None or second.ratings is not None:
        ratings = np.concatenate([_ratings(first), _ratings(second)])
    return Log(
        name=old.name,
        interactions=Interactions(
            user_ids=user_ids,
            item_ids=item_ids,
            users=users,
            items=items,
            timestamps=np.concatenate([first.timestamps, second.timestamps]),
            ratings=ratings,
            timestamps_per_second=first.timestamps_per_second,
        ),
        items=_merge_items(old, new),
    )


def write_log(log: Log, folder: pathlib.Path) -> None:
    """Writes a log so that reading the folder gives it back.

    Args:
        log: The log.
        folder: The folder to write into; it gets `interactions.parquet` and,
            where something is known of the items, `items.parquet`.
    """
    interactions = log.interactions
    times = pa.array(interactions.timestamps)
    if interactions.timestamps_per_second > 1:
        times = times.cast(pa.timestamp("us"))
    columns = {
        "user_id": _decoded(interactions.user_ids, interactions.users),
        "item_id": _decoded(interactions.item_ids, interactions.items),
        "timestamp": times,
    }
    if interactions.ratings is not None:
        columns["rating"] = pa.array(interactions.ratings)
    _write(pa.table(columns), folder / "interactions.parquet")
    if log.items is not None:
        _write(log.items, folder / "items.parquet")


def check_not_trained_on(
    queries: Queries,
    item_ids: np.ndarray,
    trained: Sequences,
    trained_item_ids: np.ndarray,
) -> None:
    """Checks that queries ask for nothing that a model was trained on.

    Args:
        queries: The queries, of a grown log.
        item_ids: `[num_items]` raw ids of their items, from index 2.
        trained: What the model was trained on.
        trained_item_ids: Likewise of its items.

    Raises:
        InputError: They do.
    """
    targets, offsets = queries.targets(np.arange(len(queries)))
    users = queries.sequences.user_ids[
        np.repeat(queries.users, np.diff(offsets))
    ]
    positions = concatenated_ranges(queries.history_ends, np.diff(offsets))
    times = queries.sequences.timestamps[positions]
    asked = set(
        zip(
            users,
            item_ids[targets - FIRST_ITEM_INDEX],
            times.tolist(),
            strict=True,
        )
    )
    known = np.isin(trained.user_ids, users)
    rows = np.repeat(known, trained.lengths)
    owners = np.repeat(trained.user_ids, trained.lengths)[rows]
    seen = zip(
        owners,
        trained_item_ids[trained.items[rows] - FIRST_ITEM_INDEX],
        trained.timestamps[rows].tolist(),
        strict=True,
    )
    num_seen = sum(each in asked for each in seen)
    if num_seen:
        raise InputError(
            "the new interactions must leave the model's training set in "
            "that of the grown log; train anew instead. Received: "
            f"{num_seen:,} interactions that the model was trained on and "
            "would be asked for"
        )


def _merge_codes(
    first_ids: np.ndarray,
    first: np.ndarray,
    second_ids: np.ndarray,
    second: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of both, and int32 codes of both logs into them."""
    both = pa.array(np.concatenate([first_ids, second_ids]), pa.string())
    merged = both.dictionary_encode()
    codes = merged.indices.to_numpy()
    ids = np.empty(len(merged.dictionary), object)
    ids[:] = merged.dictionary.to_pylist()
    return ids, np.concatenate(
        [codes[: len(first_ids)][first], codes[len(first_ids) :][second]]
    ).astype(np.int32)


def _ratings(interactions: Interactions) -> np.ndarray:
    if interactions.ratings is not None:
        return interactions.ratings
    return np.full(len(interactions), np.nan, np.float32)


def _merge_items(old: Log, new: Log) -> pa.Table | None:
    if old.items is None or new.items is None:
        return new.items if old.items is None else old.items
    known = set(old.items["item_id"].to_pylist())
    fresh = [item not in known for item in new.items["item_id"].to_pylist()]
    try:
        return pa.concat_tables(
            [old.items, new.items.filter(pa.array(fresh, pa.bool_()))],
            promote_options="permissive",
        )
    except pa.ArrowException as error:
        raise InputError(
            f"{new.name}: expected items described as in {old.name}. "
            f"Received: {error}"
        ) from error


def _decoded(ids: np.ndarray, codes: np.ndarray) -> pa.Array:
    return pa.array(ids, pa.string()).take(pa.array(codes))


def _write(table: pa.Table, path: pathlib.Path) -> None:
    pq.write_table(table, path, compression="zstd")


# Where the grown log is, within the workdir of the run that goes on with it.
DATA_FOLDER = "data"


@dataclasses.dataclass(frozen=True)
class GrownData:
    """What a run goes on from, and with.

    Attributes:
        workdir: The run so far.
        config: Its configuration.
        data: Its data.
        log: Its log and the new interactions.
        grown_config: The configuration of the run that goes on.
        grown_data: Its data.
        indices: `[vocabulary size of data]` int32: which index of the grown
            vocabulary each index of the old one has now.
    """

    workdir: Workdir
    config: TrainConfig
    data: PreparedData
    log: Log
    grown_config: TrainConfig
    grown_data: PreparedData
    indices: np.ndarray

    @property
    def num_new_items(self) -> int:
        """How many items are new."""
        return self.grown_data.vocabulary.num_items - (
            self.data.vocabulary.num_items
        )


def grow_data(
    workdir: Workdir,
    source: dict[str, Any],
    output: pathlib.Path,
    changes: dict[str, Any],
) -> GrownData:
    """Reads a run's log and new interactions and puts them together.

    Args:
        workdir: The run.
        source: Where the new interactions are; arguments of `sources.read`.
        output: The workdir of the run that goes on.
        changes: What else its configuration changes.

    Returns:
        The data of both runs.

    Raises:
        InputError: The workdir holds no run, its log has changed, the new
            interactions cannot be read, do not go with the log, or the grown
            log would ask for what the model was trained on.
    """
    config = workdir.read_config()
    # First, since it is told at once whether the changes fit.
    own_source: dict[str, Any] = dict.fromkeys(SOURCE_FIELDS)
    grown_config = dataclasses.replace(
        config,
        **{**own_source, "data": str(output / DATA_FOLDER), **changes},
    )
    for name in (config.data, source["data"]):
        if shards.is_sharded(name):
            raise InputError(
                "a model is extended by one log and another, in memory; "
                "prepare shards of both and train anew. Received: the shards "
                f"{name}"
            )
    old_log = read_log(config)
    data = prepare_log(old_log, config)
    workdir.check_data(data.vocabulary)
    log = merge_logs(old_log, sources.read(**source))
    grown_data = prepare_log(log, grown_config)
    old_ids = data.vocabulary.item_ids
    indices = grown_data.vocabulary.indices_of(data.vocabulary)
    lost = old_ids[indices[FIRST_ITEM_INDEX:] == UNKNOWN_INDEX]
    if len(lost):
        raise InputError(
            "the grown log must have all items of the model. Received: "
            f"{len(lost):,} that the filters now leave out, such as {lost[0]!r}"
        )
    trained = data.split.train.read_all()
    for queries in (grown_data.split.validation, grown_data.split.test):
        if queries is not None:
            check_not_trained_on(
                queries,
                grown_data.vocabulary.item_ids,
                trained,
                old_ids,
            )
    if config.split in SEEDED_SPLITS:
        trained = dataclasses.replace(trained, items=indices[trained.items])
        _check_held_out(dataclasses.replace(grown_data.split, train=trained))
    return GrownData(
        workdir=workdir,
        config=config,
        data=data,
        log=log,
        grown_config=grown_config,
        grown_data=grown_data,
        indices=indices,
    )


def _check_held_out(split: Split) -> None:
    """Checks that users or items that are asked for were held out before.

    Args:
        split: The queries of the grown log, and what the model was trained on.

    Raises:
        InputError: The model knows some.
    """
    for check in audit(split).checks:
        if check.num_violations:
            raise InputError(
                f"the model must know nothing of what {split.protocol} holds "
                "out of the grown log, which are others than before; train "
                f"anew instead. Received: {check.num_violations:,} of "
                f"{check.num_checked:,} {check.unit} that it was trained on"
            )
