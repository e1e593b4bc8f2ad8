"""From a configuration to a vocabulary and a split, without TensorFlow."""

from __future__ import annotations

import dataclasses
import datetime
import math
import pathlib
from collections.abc import Callable

import numpy as np
import pyarrow.compute as pc

from recsys.config import SOURCE_FIELDS, TrainConfig, parse_cutoff
from recsys.data import shards, sources, splits
from recsys.data.features import FeatureColumn, ItemEncoder, parse_columns
from recsys.data.interactions import Log, filter_interactions
from recsys.data.sequences import Sequences, build_sequences
from recsys.data.splits import BY_USER, Split
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX

# The vocabulary's column with each item's number of training interactions.
TRAIN_COUNT = "train_count"


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """What training and evaluation start from.

    Attributes:
        name: The name of the log.
        vocabulary: All items of the log; its column `train_count` says how
            often each occurs in the training set.
        split: Training sequences and queries over that vocabulary.
        num_interactions: Interactions that count, held-out ones included.
        num_single: Users with one interaction only: trained on in the counts,
            but asked nothing.
        num_dropped: Interactions of the log that the filters left out.
    """

    name: str
    vocabulary: Vocabulary
    split: Split
    num_interactions: int
    num_single: int
    num_dropped: int

    def example_history(self, length: int = 2) -> list[str]:
        """Returns the most frequent items, as a person would name them."""
        vocabulary = self.vocabulary
        names = []
        counts = train_counts(vocabulary)
        for index in np.argsort(-counts, kind="stable")[:length].tolist():
            name = vocabulary.describe(index)
            try:
                is_clear = vocabulary.find(name) == index
            except InputError:
                is_clear = False
            names.append(
                name if is_clear else str(vocabulary.decode([index])[0])
            )
        return names


def prepare(
    log: Log,
    make_split: Callable[[Sequences], Split],
    *,
    min_rating: float | None = None,
    min_item_count: int = 1,
    min_user_count: int = 1,
    repeats: str = "first",
) -> PreparedData:
    """Filters a log, numbers its items and splits it.

    Args:
        log: What a source returned.
        make_split: One of `recsys.data.splits`.
        min_rating: See `filter_interactions`, as for the rest.
        min_item_count: See there.
        min_user_count: See there.
        repeats: See there.

    Returns:
        The data.

    Raises:
        InputError: Fewer than two items, or no user with enough interactions,
            are left.
    """
    interactions = filter_interactions(
        log.interactions,
        min_rating=min_rating,
        min_item_count=min_item_count,
        min_user_count=min_user_count,
        repeats=repeats,
    )
    if len(interactions.item_ids) < 2:
        raise InputError(
            f"{log.name}: expected at least two items to choose between. "
            f"Received: {len(interactions.item_ids)}"
        )
    vocabulary = Vocabulary(interactions.item_ids, log.items)
    sequences = build_sequences(interactions, vocabulary)
    split = make_split(sequences)
    if not (split.train.lengths >= 2).any():
        raise InputError(
            f"{log.name}: no user has enough interactions: expected two or "
            "more of one user to train on. Received: at most one"
        )
    counts = split.train.item_counts(vocabulary.size)
    return PreparedData(
        name=log.name,
        vocabulary=vocabulary.with_column(
            TRAIN_COUNT, counts[FIRST_ITEM_INDEX:]
        ),
        split=split,
        num_interactions=sequences.num_interactions,
        num_single=int(np.count_nonzero(sequences.lengths == 1)),
        num_dropped=len(log.interactions) - len(interactions),
    )


def open_shards(
    folder: pathlib.Path, manifest: shards.Manifest
) -> PreparedData:
    """Opens what `recsys.prepare_shards` wrote.

    The queries are read, and the training sequences left in their files.

    Args:
        folder: The folder.
        manifest: What it holds; see `shards.read_manifest`.

    Returns:
        The data; `split.train` are `ShardedSequences`.

    Raises:
        InputError: A file is missing or damaged.
    """
    vocabulary = Vocabulary.load(folder / shards.VOCABULARY)
    asked = BY_USER[manifest.split](shards.read_queried(folder, manifest))
    train = shards.open_sequences(folder, manifest, train_counts(vocabulary))
    return PreparedData(
        name=manifest.name,
        vocabulary=vocabulary,
        split=dataclasses.replace(asked, train=train),
        num_interactions=manifest.num_interactions,
        num_single=manifest.num_single,
        num_dropped=manifest.num_dropped,
    )


def train_counts(vocabulary: Vocabulary) -> np.ndarray:
    """Returns how often each item occurs in the training set.

    Args:
        vocabulary: Of prepared data.

    Returns:
        `[vocabulary.size]` int64, 0 for padding and unknown; all 0 where the
        vocabulary does not tell.
    """
    counts = np.zeros(vocabulary.size, np.int64)
    if TRAIN_COUNT in vocabulary.items.column_names:
        column = vocabulary.items.column(TRAIN_COUNT)
        counts[FIRST_ITEM_INDEX:] = column.to_numpy()
    return counts


def same_training_items(first: Vocabulary, second: Vocabulary) -> bool:
    """Whether two vocabularies come from the same training set.

    They do, for all purposes, when they number the same items in the same
    order and each has as many training interactions.

    Args:
        first: The vocabulary of some prepared data.
        second: That of others.
    """
    columns = ["item_id", TRAIN_COUNT]
    if not all(
        name in vocabulary.items.column_names
        for vocabulary in (first, second)
        for name in columns
    ):
        return False
    return first.items.select(columns).equals(second.items.select(columns))


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


def data_summary(data: PreparedData) -> str:
    """Describes a log, its split, and what is out of the ordinary.

    Args:
        data: The data.

    Returns:
        Lines without a trailing newline.
    """
    split = data.split
    num_test = "nothing tests"
    if split.test is not None:
        num_test = _count(len(split.test), "query tests", "queries test")
    num_validation = _count(
        len(split.validation), "query validates", "queries validate"
    )
    lines = [
        f"{data.name}: {_count(split.train.num_users, 'user')}, "
        f"{_count(data.vocabulary.num_items, 'item')}, "
        f"{_count(data.num_interactions, 'interaction')}",
        f"split {split.protocol}: "
        f"{_count(split.train.num_interactions, 'interaction')} to train on, "
        f"{num_validation}, {num_test}",
    ]
    if data.num_dropped:
        lines.append(
            f"{_count(data.num_dropped, 'interaction')} dropped by the "
            "filters and the rule for repeated pairs"
        )
    if data.num_single:
        lines.append(
            f"{_count(data.num_single, 'user')} with a single interaction: "
            "counted in training, nothing to ask"
        )
    counts = data.vocabulary.items.column(TRAIN_COUNT).to_numpy()
    num_unseen = int(np.count_nonzero(counts == 0))
    if num_unseen:
        lines.append(
            f"{_count(num_unseen, 'item')} without a training interaction: "
            "ranked all the same"
        )
    return "\n".join(lines)


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"
