"""From a configuration to data, without TensorFlow.

Apart from the models so that a mistake in the data is told at once, before
seconds have gone into loading TensorFlow.
"""

from __future__ import annotations

import datetime
import math
import pathlib

import pyarrow.compute as pc

from recsys.data import shards, sources, splits
from recsys.data.cutoffs import parse_cutoff
from recsys.data.feature_columns import FeatureColumn, parse_columns
from recsys.data.interactions import Log
from recsys.data.item_features import ItemEncoder
from recsys.data.prepare import (
    TRAIN_COUNT,
    PreparedData,
    open_shards,
    prepare,
)
from recsys.data.sequences import Sequences
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.training.config import SOURCE_FIELDS, TrainConfig


def build_data(config: TrainConfig) -> PreparedData:
    """Reads, filters and splits what the configuration names.

    Of a folder of shards, which are all that already, the queries are read.

    Raises:
        InputError: The data cannot be read or are too few, or shards were
            prepared in another way than the configuration says.
    """
    if shards.is_sharded(config.data):
        data = _build_sharded(config)
    else:
        data = prepare_log(read_log(config), config)
    if config.item_features:
        # Told before anything that takes long.
        _feature_columns(config.item_features, data.vocabulary)
    return data


def fit_item_encoder(
    config: TrainConfig, vocabulary: Vocabulary
) -> ItemEncoder | None:
    """Finds the values of the item features among the trained items.

    Args:
        config: The configuration.
        vocabulary: The items, with their `train_count`.

    Returns:
        The encoder; None where the configuration names no item features.

    Raises:
        InputError: A column cannot be used as the configuration says.
    """
    if not config.item_features:
        return None
    items = vocabulary.items
    return ItemEncoder.fit(
        items.filter(pc.greater(items.column(TRAIN_COUNT), 0)),
        _feature_columns(config.item_features, vocabulary),
    )


def _feature_columns(text: str, vocabulary: Vocabulary) -> list[FeatureColumn]:
    # The count is ours, not the items file's.
    return parse_columns(text, vocabulary.items.drop_columns([TRAIN_COUNT]))


def _build_sharded(config: TrainConfig) -> PreparedData:
    """Opens shards and checks that they are what the configuration says."""
    folder = pathlib.Path(config.data).expanduser()
    manifest = shards.read_manifest(folder)
    for name in ("split", "min_rating", "repeats"):
        prepared, asked = getattr(manifest, name), getattr(config, name)
        if asked != prepared:
            flag = (
                f"--{name}={prepared}"
                if prepared is not None
                else f"no --{name}"
            )
            raise InputError(
                f"{config.data}: expected the flags that these shards were "
                f"prepared with, {flag}. Received: --{name}={asked}"
            )
    for name in ("min_item_count", "min_user_count"):
        if getattr(config, name) > 1:
            raise InputError(
                f"--{name} must be 1 with shards, in which nothing is dropped "
                f"for being rare. Received: {getattr(config, name)}"
            )
    for name in SOURCE_FIELDS:
        if name != "data" and getattr(config, name) is not None:
            raise InputError(
                f"--{name} must go to recsys.prepare_shards, which has read "
                f"the log. Received: --{name}={getattr(config, name)} with "
                f"--data={config.data}"
            )
    return open_shards(folder, manifest)


def read_log(config: TrainConfig) -> Log:
    """Reads the log that the configuration names.

    Raises:
        InputError: It cannot be read.
    """
    return sources.read(**{n: getattr(config, n) for n in SOURCE_FIELDS})


def prepare_log(log: Log, config: TrainConfig) -> PreparedData:
    """Filters and splits a log as the configuration says.

    Raises:
        InputError: Too little is left.
    """
    return prepare(
        log,
        lambda sequences: make_split(
            sequences, config, log.interactions.timestamps_per_second
        ),
        min_rating=config.min_rating,
        min_item_count=config.min_item_count,
        min_user_count=config.min_user_count,
        repeats=config.repeats,
    )


def make_split(
    sequences: Sequences, config: TrainConfig, timestamps_per_second: int = 1
) -> splits.Split:
    """Splits a log as the configuration says.

    Args:
        sequences: The whole log.
        config: The configuration.
        timestamps_per_second: What a second is in the log's timestamps.

    Returns:
        The split.

    Raises:
        InputError: The log does not allow for the split.
    """
    match config.split:
        case "leave_last_out":
            return splits.leave_last_out(sequences)
        case "temporal":
            start, end = (
                _cutoff(sequences, text, name, timestamps_per_second)
                for name, text in (
                    ("validation_from", config.validation_from),
                    ("test_from", config.test_from),
                )
            )
            return splits.temporal(
                sequences, start, end, config.queries_per_user
            )
        case "held_out_users":
            return splits.held_out_users(sequences, config.seed)
        case "held_out_items":
            return splits.held_out_items(sequences, config.seed)
        case "validation_only":
            return splits.validation_only(sequences)
    raise ValueError(f"`split` must be known. Received: {config.split!r}")


def _cutoff(
    sequences: Sequences, text: str, name: str, timestamps_per_second: int
) -> int:
    """Returns the timestamp from which on a part of the log begins."""
    cutoff = parse_cutoff(text, name)
    if cutoff.share is not None:
        return splits.time_quantile(sequences, cutoff.share)
    assert cutoff.seconds is not None  # One of the two is there.
    time = math.ceil(cutoff.seconds * timestamps_per_second)
    times = sequences.timestamps
    if len(times) and not times.min() < time <= times.max():
        as_dates = cutoff.is_date or timestamps_per_second > 1
        first, last = (
            _told(int(each), timestamps_per_second) if as_dates else str(each)
            for each in (times.min(), times.max())
        )
        raise InputError(
            f"--{name} must lie within the times of the log, {first} to "
            f"{last}. Received: {text}"
        )
    return time


def _told(timestamp: int, timestamps_per_second: int) -> str:
    """Writes a timestamp as a date, or as it is where it cannot be one."""
    try:
        moment = datetime.datetime.fromtimestamp(
            timestamp / timestamps_per_second, datetime.UTC
        )
    except (OverflowError, ValueError, OSError):
        return str(timestamp)
    return moment.strftime("%Y-%m-%d %H:%M:%S")
