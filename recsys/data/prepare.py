"""From a configuration to a vocabulary and a split, without TensorFlow."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from recsys.config import (
    CLOCK_FEATURES,
    DEFAULTS,
    EVENT_FIELDS,
    FEATURE_FIELDS,
    SAMPLING_FIELDS,
    TrainConfig,
    auto_fields,
    bare_names,
    other_columns,
    parse_cutoff,
    read_names,
)
from recsys.data import shards, sources, splits
from recsys.data.events import (
    DISLIKE,
    EventLabels,
    EventRules,
    describe,
    dislikes_note,
    label,
)
from recsys.data.features import (
    FeatureColumn,
    ItemEncoder,
    describe_columns,
    parse_columns,
)
from recsys.data.interactions import Interactions, filter_interactions
from recsys.data.sequences import Sequences, build_sequences
from recsys.data.sources import Log
from recsys.data.splits import BY_USER, Split
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX

# The column of the vocabulary that counts training interactions, and those
# of logs with kinds of events or dislikes: interactions that are targets, the
# sum of their weights, and dislikes.
TRAIN_COUNT = "train_count"
TRAIN_TARGETS = "train_targets"
TRAIN_WEIGHT = "train_weight"
TRAIN_DISLIKES = "train_dislikes"
TOTALS = (TRAIN_COUNT, TRAIN_TARGETS, TRAIN_WEIGHT, TRAIN_DISLIKES)
# Ids that other tools write where there is none.
_MISSING = {"null", "NULL", "NA", "N/A", "nan", "NaN", "None", r"\N"}
_EMPTY = "with an empty list of items: no interactions"
_UNITS = {10**3: "milliseconds", 10**9: "nanoseconds"}


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """A log, filtered and split: the input of training and evaluation.

    Attributes:
        name: The name of the log.
        vocabulary: All items of the log; its column `train_count` holds the
            number of training interactions of each.
        split: Training sequences and queries over that vocabulary.
        num_interactions: Interactions left by the filters, held-out ones
            included.
        num_single: Users with a single interaction, which counts as a
            training interaction but gives no query.
        num_dropped: Interactions removed by the filters.
        dropped: The same by reason, where it is known.
        notes: What the user should know about how the log was read, and
            about kinds of events and dislikes.
    """

    name: str
    vocabulary: Vocabulary
    split: Split
    num_interactions: int
    num_single: int
    num_dropped: int
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def sample(self, seed: int) -> Sequences:
        """Returns training sequences of a random sample of the users.

        Args:
            seed: Draws the users.
        """
        return self.split.train.sample(np.random.default_rng(seed))

    def example_history(self, length: int = 2) -> list[str]:
        """Returns names of the items with the most training interactions."""
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


def build_data(config: TrainConfig) -> PreparedData:
    """Reads, filters and splits the data of a configuration.

    A folder of shards is filtered and split already: only its queries are
    read, and the training sequences stay in their files.

    Args:
        config: The configuration.

    Returns:
        The data.

    Raises:
        InputError: The data cannot be read, too little is left of it, or the
            shards were prepared with other options.
    """
    folder = pathlib.Path(os.path.expanduser(config.data))
    if shards.is_sharded(config.data):
        _check_shards(config, shards.read_manifest(folder))
        data = open_shards(folder, config)
    else:
        data = prepare_log(read_log(config), config)
    if config.item_features:
        # Mistakes in the names are reported before the slow part.
        columns = _feature_columns(config.item_features, data.vocabulary)
        note = describe_columns(data.vocabulary.items, columns)
        data = dataclasses.replace(data, notes=(*data.notes, note))
    return data


def choose(
    config: TrainConfig, data: PreparedData
) -> tuple[TrainConfig, list[str]]:
    """Chooses the fields that the preset "auto" left to the log.

    Args:
        config: The configuration.
        data: Its data.

    Returns:
        The configuration, and at most one line with what was chosen and why.
    """
    if not config.chosen:
        return config, []
    train, loss = data.split.train, config.loss
    if any(getattr(config, n) != DEFAULTS[n] for n in SAMPLING_FIELDS):
        loss = "sampled_softmax"
    fields, why = auto_fields(
        train.num_users,
        data.vocabulary.num_items,
        train.num_interactions,
        loss,
        config.excludes_history,
        bool(config.item_features),
    )
    values = ", ".join(
        f"{name}={fields[name]}"
        for name in config.chosen.split(",")
        if fields[name] != DEFAULTS[name]
    )
    return config.with_chosen(fields), [f"preset auto: {values}; {why}"]


def read_log(config: TrainConfig) -> Log:
    """Reads the log of a configuration.

    Raises:
        InputError: It cannot be read.
    """
    return sources.read(
        **config.source(),
        other_columns=other_columns(config),
        with_users=config.user_features is not None,
    )


def filter_log(
    log: Log,
    config: TrainConfig,
    dropped: dict[str, int] | None = None,
    must_have_kinds: bool = False,
) -> tuple[Interactions, EventLabels]:
    """Applies the filters of a configuration.

    Args:
        log: The log.
        config: The configuration.
        dropped: As for `filter_interactions`.
        must_have_kinds: Whether a kind of event that the configuration names
            and the log lacks is an error.

    Returns:
        The interactions that are left, without dislikes, and the labels of all.

    Raises:
        InputError: As for `filter_interactions` and `label`; or the log lacks
            a kind of event and `must_have_kinds`.
    """
    rules = EventRules.of(config)
    labels = label(log.interactions, rules)
    if must_have_kinds:
        rules.check(log.name, labels.found)
    if not labels.num_kept:
        raise InputError(
            f"{log.name}: expected rows that --events, --dislikes and "
            "--max_rating leave. Received: none of "
            f"{counted(len(log.interactions), 'row')}"
        )
    interactions = filter_interactions(
        labels.rows(log.interactions, dislikes=False),
        min_rating=config.min_rating,
        min_item_count=config.min_item_count,
        min_user_count=config.min_user_count,
        repeats=config.repeats,
        dropped=dropped,
    )
    return interactions, labels


def user_histories(
    config: TrainConfig, vocabulary: Vocabulary, log: Log | None = None
) -> list[Callable[[], Sequences]]:
    """Finds all interactions of the users of a log, held-out ones included.

    Args:
        config: The log and its filters.
        vocabulary: The items; others get the unknown index, or are left out
            of the dislikes.
        log: Another log in memory, to use instead of the configured one.

    Returns:
        Functions that read the sequences of some users each: one for each
        shard, or a single one for a log that is not in shards.

    Raises:
        InputError: The log cannot be read, or nothing is left of it.
    """
    if log is not None or not shards.is_sharded(config.data):
        log = log or read_log(config)
        found = filter_log(log, config)
        sequences = _sequences(log, config, vocabulary, *found, strict=False)
        return [lambda: sequences]
    folder = pathlib.Path(os.path.expanduser(config.data))
    manifest = shards.read_manifest(folder)
    indices = vocabulary.indices_of(Vocabulary.load(folder / shards.VOCABULARY))
    return [
        functools.partial(shards.read_users, folder, shard, indices, manifest)
        for shard in range(len(manifest.num_users))
    ]


def prepare_log(
    log: Log, config: TrainConfig, *, must_have_kinds: bool = True
) -> PreparedData:
    """Filters a log, numbers its items and splits it.

    Args:
        log: The log, as a source returned it.
        config: The filters and the split.
        must_have_kinds: Whether a kind of event that the configuration names
            and the log lacks is an error.

    Returns:
        The data.

    Raises:
        InputError: Fewer than two items, or no user with enough interactions,
            are left, or the log lacks a kind of event.
    """
    dropped: dict[str, int] = {}
    rules = EventRules.of(config)
    interactions, labels = filter_log(log, config, dropped, must_have_kinds)
    if len(interactions.item_ids) < 2:
        raise InputError(
            f"{log.name}: expected at least two items to choose between. "
            f"Received: {len(interactions.item_ids)}"
        )
    vocabulary = Vocabulary(interactions.item_ids, log.items)
    notes = [*_notes(log, config), *describe(rules, labels.kinds, labels.found)]
    sequences = _sequences(log, config, vocabulary, interactions, labels)
    if sequences.dislikes is not None:
        num_dislikes = int(np.sum(labels.codes == DISLIKE))
        notes.append(
            dislikes_note(num_dislikes, sequences.dislikes.num_interactions)
        )
    split = make_split(sequences, config, interactions.timestamps_per_second)
    assert isinstance(split.train, Sequences)  # As `sequences`.
    if not (splits.last_targets(split.train) >= 0).any():
        raise no_training_pairs(log.name, config.target_events)
    for name, (items, values) in item_totals(split.train).items():
        totals = np.bincount(items, values, minlength=vocabulary.size)
        vocabulary = vocabulary.with_column(name, totals[FIRST_ITEM_INDEX:])
    return PreparedData(
        name=log.name,
        vocabulary=vocabulary,
        split=split,
        num_interactions=sequences.num_interactions,
        num_single=int(np.count_nonzero(sequences.lengths == 1)),
        num_dropped=labels.num_kept - len(interactions),
        dropped=dropped,
        notes=tuple(notes),
    )


def features_of(log: Log, config: TrainConfig) -> dict[str, Any]:
    """Returns the arguments of `build_sequences` for what features read.

    Args:
        log: The log.
        config: The configuration.

    Raises:
        InputError: The log does not have it.
    """
    has_users = config.user_features is not None
    if has_users and log.users is None:
        raise no_users(log.name)
    columns = log.interactions.columns
    known = {"rating"} if log.interactions.ratings is not None else set()
    known |= set(columns.column_names if columns is not None else ())
    wanted = [n for n in read_names(config) if n not in CLOCK_FEATURES]
    if missing := [n for n in wanted if n not in known]:
        raise InputError(
            f"{log.name}: expected a column of the log for every name in "
            "--event_features and --context_features. "
            f"Received: none for {missing[0]!r}"
        )
    users = log.users if has_users else None
    return {"with_ratings": "rating" in wanted, "users": users}


def item_totals(
    train: Sequences,
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Returns what is counted of each item in a training set.

    Args:
        train: The training set.

    Returns:
        By the column of the vocabulary that gets the totals, `[n]` items and
        what each adds, one where that is None.
    """
    totals: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
        TRAIN_COUNT: (train.items, None)
    }
    if train.kinds is not None:
        totals[TRAIN_TARGETS] = train.items[train.are_targets], None
        totals[TRAIN_WEIGHT] = train.items, train.target_weights
    if train.dislikes is not None:
        totals[TRAIN_DISLIKES] = train.dislikes.items, None
    return totals


def odd_rows(interactions: Interactions) -> Counter[str]:
    """Counts the rows that the user should know about, by what is odd."""
    found = Counter(
        {_EMPTY: interactions.num_empty} if interactions.num_empty else {}
    )
    for role in ("user", "item"):
        ids = getattr(interactions, f"{role}_ids")
        codes = getattr(interactions, f"{role}s")
        for name in sorted(_MISSING.intersection(ids)):
            what = f"with the {role} id {name!r}: an id like any other"
            found[what] = int(np.sum(codes == np.flatnonzero(ids == name)[0]))
    return found


def odd_notes(found: Mapping[str, int]) -> list[str]:
    """Describes what `odd_rows` counts, in a line each."""
    return [
        f"{counted(number, 'row')} {what}" for what, number in found.items()
    ]


def _notes(log: Log, config: TrainConfig) -> list[str]:
    """Returns what the user should know about how a log was read."""
    notes = [*log.notes, *odd_notes(odd_rows(log.interactions))]
    # Microseconds are what dates are read as, and not worth a line.
    if unit := _UNITS.get(log.interactions.timestamps_per_second):
        notes.append(f"times are {unit} since 1970")
    if config.user_features is not None and log.users is not None:
        known = {*log.users["user_id"].to_pylist()}
        if missing := {*log.interactions.user_ids} - known:
            notes.append(
                f"{counted(len(missing), 'user')} not in the users file: "
                "their features count as unknown"
            )
    return notes


def _sequences(
    log: Log,
    config: TrainConfig,
    vocabulary: Vocabulary,
    interactions: Interactions,
    labels: EventLabels,
    strict: bool = True,
) -> Sequences:
    """Sorts what `filter_log` left, beside the dislikes and the features."""
    dislikes = None
    if EventRules.of(config).has_dislikes:
        dislikes = labels.rows(log.interactions, dislikes=True)
        if len(dislikes):
            dislikes = filter_interactions(dislikes, repeats=config.repeats)
    return build_sequences(
        interactions,
        vocabulary,
        labels.kinds,
        dislikes,
        strict=strict,
        **features_of(log, config),
    )


def no_training_pairs(name: str, target_events: str | None) -> InputError:
    """Returns the error for a log without a next item to learn.

    Args:
        name: The name of the log.
        target_events: The kinds that are targets; None for all.
    """
    expected, received = "two or more training interactions", "at most one"
    if target_events is not None:
        expected = f"a training interaction of {target_events} after another"
        received = "none, as the split holds out all of them"
    return InputError(
        f"{name}: no user has enough interactions: at least one user must "
        f"have {expected}. Received: {received}"
    )


def no_users(name: str) -> InputError:
    """Returns the error for a log without user metadata.

    Args:
        name: The name of the log.
    """
    return InputError(
        "--user_features needs a users file; name it with --users_file. "
        f"Received: {name} without one"
    )


def open_shards(
    folder: pathlib.Path, config: TrainConfig | None = None
) -> PreparedData:
    """Opens a folder that `recsys.prepare_shards` wrote.

    Args:
        folder: The folder.
        config: The features to read. Default: all that it has.

    Returns:
        The data; `split.train` are `ShardedSequences`.

    Raises:
        InputError: A file is missing or damaged.
    """
    manifest = shards.read_manifest(folder)
    if config is not None:
        asked = {name: getattr(config, name) for name in FEATURE_FIELDS}
        manifest = dataclasses.replace(manifest, **asked)
    vocabulary = Vocabulary.load(folder / shards.VOCABULARY)
    queried = BY_USER[manifest.split](shards.read_queried(folder, manifest))
    train = shards.open_sequences(
        folder,
        manifest,
        train_counts(vocabulary),
        train_counts(vocabulary, TRAIN_WEIGHT),
    )
    return PreparedData(
        name=manifest.name,
        vocabulary=vocabulary,
        split=dataclasses.replace(queried, train=train),
        num_interactions=manifest.num_interactions,
        num_single=manifest.num_single,
        num_dropped=manifest.num_dropped,
        dropped=manifest.dropped,
        notes=tuple(manifest.notes()),
    )


def _check_shards(config: TrainConfig, manifest: shards.Manifest) -> None:
    """Raises InputError for fields that contradict how shards were made."""
    for name in ("split", "min_rating", "repeats", *EVENT_FIELDS):
        prepared, asked = getattr(manifest, name), getattr(config, name)
        if asked != prepared:
            flag = (
                f"no --{name}" if prepared is None else f"--{name}={prepared}"
            )
            raise InputError(
                f"{config.data}: expected the flags that these shards were "
                f"prepared with, {flag}. Received: --{name}={asked}"
            )
    times = manifest.timestamps_per_second is not None
    of_log = [*manifest.columns, "event", *("age", *CLOCK_FEATURES) * times]
    of_users = manifest.user_features
    for name in FEATURE_FIELDS:
        asked = bare_names(getattr(config, name))
        kept = of_log
        if name == "user_features":
            kept = list(bare_names(of_users) + ("auto",) * bool(of_users))
            kept += asked * (of_users == "auto")
        if missing := [each for each in asked if each not in kept]:
            raise InputError(
                f"{config.data}: expected --{name} among those that these "
                f"shards were prepared with ({', '.join(kept) or 'none'}); "
                f"name it for recsys.prepare_shards. Received: {missing[0]}"
            )
    for name in ("min_item_count", "min_user_count"):
        if getattr(config, name) > 1:
            raise InputError(
                f"--{name} must be 1 with shards, which keep rare items and "
                f"users. Received: {getattr(config, name)}"
            )
    for name, value in config.source().items():
        if name != "data" and value is not None:
            raise InputError(
                f"--{name} must be given to recsys.prepare_shards, which read "
                f"the log. Received: --{name}={value} with "
                f"--data={config.data}"
            )


def train_counts(
    vocabulary: Vocabulary, total: str = TRAIN_COUNT
) -> np.ndarray:
    """Returns the number of training interactions of each item.

    Args:
        vocabulary: The vocabulary of some prepared data.
        total: One of `TOTALS` to return instead, where the vocabulary has it.

    Returns:
        `[vocabulary.size]` int64 (float64 for weights), 0 for padding and
        unknown; all 0 if the vocabulary has no counts.
    """
    names = vocabulary.items.column_names
    column = total if total in names else TRAIN_COUNT
    if column not in names:
        return np.zeros(vocabulary.size, np.int64)
    counts = vocabulary.items.column(column).to_numpy()
    return np.append(np.zeros(FIRST_ITEM_INDEX, counts.dtype), counts)


def same_training_items(first: Vocabulary, second: Vocabulary) -> bool:
    """Whether two vocabularies come from the same training set.

    That is assumed if they list the same items in the same order with the
    same numbers of training interactions.

    Args:
        first: The vocabulary of some prepared data.
        second: The vocabulary of other prepared data.
    """
    tables = [first.items, second.items]
    found = [set(TOTALS) & set(table.column_names) for table in tables]
    if found[0] != found[1] or TRAIN_COUNT not in found[0]:
        return False
    columns = ["item_id", *sorted(found[0])]
    return tables[0].select(columns).equals(tables[1].select(columns))


def fit_item_encoder(
    config: TrainConfig, vocabulary: Vocabulary
) -> ItemEncoder | None:
    """Fits the encoder of item features to the trained items.

    Args:
        config: The configuration.
        vocabulary: The items, with their `train_count`.

    Returns:
        The encoder, or None if the configuration has no item features.

    Raises:
        InputError: A column cannot be used as configured.
    """
    if not config.item_features:
        return None
    items = vocabulary.items
    return ItemEncoder.fit(
        items.filter(pc.greater(items.column(TRAIN_COUNT), 0)),
        _feature_columns(config.item_features, vocabulary),
    )


def _feature_columns(text: str, vocabulary: Vocabulary) -> list[FeatureColumn]:
    # The items file has no such columns; they are not features.
    counted = set(TOTALS) & set(vocabulary.items.column_names)
    return parse_columns(text, vocabulary.items.drop_columns([*counted]))


def make_split(
    sequences: Sequences, config: TrainConfig, timestamps_per_second: int = 1
) -> splits.Split:
    """Splits a log as configured.

    Args:
        sequences: The whole log.
        config: The configuration.
        timestamps_per_second: Units of the log's timestamps in a second.

    Returns:
        The split.

    Raises:
        InputError: A part of the split would be empty, or a cutoff lies
            outside of the log.
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
    """Returns a cutoff as a timestamp of the log."""
    cutoff = parse_cutoff(text, name)
    if cutoff.share is not None:
        return splits.time_quantile(sequences, cutoff.share)
    assert cutoff.seconds is not None  # Either of the two is set.
    time = math.ceil(cutoff.seconds * max(1, timestamps_per_second))
    times = sequences.timestamps
    own = math.ceil(cutoff.seconds)
    if not cutoff.is_date and len(times) and times.min() < own <= times.max():
        time = own  # In the unit of the log.
    if len(times) and not times.min() < time <= times.max():
        as_dates = timestamps_per_second and (
            cutoff.is_date or timestamps_per_second > 1
        )
        first, last = (
            _format_time(int(each), timestamps_per_second)
            if as_dates
            else str(each)
            for each in (times.min(), times.max())
        )
        raise InputError(
            f"--{name} must lie within the times of the log, {first} to "
            f"{last}. Received: {text}"
        )
    return time


def _format_time(timestamp: int, timestamps_per_second: int) -> str:
    """Formats a timestamp as a date, or as a number if it is none."""
    try:
        moment = datetime.datetime.fromtimestamp(
            timestamp / timestamps_per_second, datetime.UTC
        )
    except (OverflowError, ValueError, OSError):
        return str(timestamp)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def data_summary(data: PreparedData) -> str:
    """Describes a log, its split, and what is unusual about it.

    Args:
        data: The data.

    Returns:
        Lines without a trailing newline.
    """
    split = data.split
    num_test = 0 if split.test is None else len(split.test)
    lines = [
        f"{data.name}: {counted(split.train.num_users, 'user')}, "
        f"{counted(data.vocabulary.num_items, 'item')}, "
        f"{counted(data.num_interactions, 'interaction')}",
        f"split {split.protocol}: "
        f"{counted(split.train.num_interactions, 'training interaction')}, "
        f"{counted(len(split.validation), 'validation query')}, "
        f"{counted(num_test, 'test query')}",
    ]
    lines[1:1] = data.notes
    lines += left_out(data)
    counts = data.vocabulary.items.column(TRAIN_COUNT).to_numpy()
    if num_unseen := int(np.count_nonzero(counts == 0)):
        lines.append(
            f"{counted(num_unseen, 'item')} without training interactions: "
            "still ranked as candidates"
        )
    return "\n".join(lines)


def left_out(data: PreparedData | shards.Manifest) -> list[str]:
    """Describes which interactions and queries are left out, and why."""
    lines = []
    if data.num_dropped:
        reasons = [
            f"{number:,} {reason}"
            for reason, number in data.dropped.items()
            if number
        ]
        lines.append(
            f"{counted(data.num_dropped, 'interaction')} dropped: "
            + (", ".join(reasons) or "filtered or repeated")
        )
    if data.num_single:
        lines.append(
            f"{counted(data.num_single, 'user')} with a single interaction: "
            "used for training, not queried"
        )
    return lines


def counted(number: int, noun: str) -> str:
    """Returns "no users", "1 user" or "2,000 users".

    Args:
        number: How many there are.
        noun: The word for one of them.
    """
    if number != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun}" if number else f"no {noun}"
