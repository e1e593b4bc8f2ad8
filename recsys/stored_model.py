"""A trained model and the data that it is evaluated on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from recsys.data.interactions import Log
from recsys.data.prepare import PreparedData, same_training_items
from recsys.data.shards import is_sharded
from recsys.data.splits import Queries, Split
from recsys.data.vocabulary import (
    FIRST_ITEM_INDEX,
    UNKNOWN_INDEX,
    Vocabulary,
)
from recsys.errors import InputError
from recsys.evaluation import Recommender, audit
from recsys.results import asked_queries
from recsys.training.config import (
    SOURCE_FIELDS,
    TEMPORAL_FIELDS,
    TrainConfig,
)
from recsys.training.inputs import build_data, prepare_log, read_log


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """What a stored model is asked.

    Attributes:
        data: The log, its items and its split.
        notes: What the reader of the results has to know.
    """

    data: PreparedData
    notes: list[str]


def evaluation_data(
    config: TrainConfig,
    vocabulary: Vocabulary,
    fields: dict[str, Any],
    protocol: str | None,
) -> EvaluationData:
    """Reads what a model is evaluated on, and checks that it may be.

    On the data that the model was trained on, a split other than the model's
    own must not ask for anything that was in its training set; the baselines
    are then fitted to that training set as well.

    Args:
        config: The model's configuration.
        vocabulary: The model's items.
        fields: Fields of the configuration that name another log or other
            cutoffs of the temporal split; empty for the model's own.
        protocol: Another protocol than the model's own, or None.

    Returns:
        The data.

    Raises:
        InputError: The log cannot be read, a field would be ignored, or the
            split leaks.
    """
    cutoffs = {n: v for n, v in fields.items() if n in TEMPORAL_FIELDS}
    source = {n: v for n, v in fields.items() if n not in cutoffs}
    if source:
        config = _at_other_source(config, source)
    asked = _asked_config(config, protocol, cutoffs)
    notes: list[str] = []
    own: PreparedData | None
    if is_sharded(config.data):
        # Shards of another split than the model's are an error here.
        data = own = build_data(asked)
        notes += _drawn_queries(data)
    else:
        log = read_log(config)
        data = prepare_log(log, asked)
        own = data if asked == config else _own_data(log, config)
    if own is None or not same_training_items(own.vocabulary, vocabulary):
        notes.append(
            "The data are not those that the model was trained on: whether "
            "it has seen what is asked here cannot be checked. The baselines "
            "are fitted to the training part of these data."
        )
        notes += _unknown_items(data, vocabulary)
    elif asked != config:
        flags = {} if protocol is None else {"protocol": protocol}
        _check_leaks(data.split, own.split, _as_flags({**flags, **cutoffs}))
        notes += _notes_on_choice(data.split, own.split)
        split = dataclasses.replace(data.split, train=own.split.train)
        data = dataclasses.replace(data, split=split)
    return EvaluationData(data, notes)


class OtherCatalogue:
    """A recommender that is asked about the items of another log.

    Items are matched by raw id. What the recommender does not know is the
    unknown item in a history, and comes last among the candidates.

    Args:
        recommender: The recommender.
        vocabulary: Its items.
        other: The items of the other log.
    """

    def __init__(
        self,
        recommender: Recommender,
        vocabulary: Vocabulary,
        other: Vocabulary,
    ) -> None:
        self.name = recommender.name
        self._recommender = recommender
        self._indices = vocabulary.indices_of(other)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Scores the items of the other log.

        Args:
            items: `[total]` int32 indices in the other log's vocabulary.
            offsets: `[num_queries + 1]` int64.

        Returns:
            `[num_queries, size of the other vocabulary]` float32, -inf for
            items that the recommender does not know.
        """
        scores = self._recommender.scores(self._indices[items], offsets)
        scores = scores[:, self._indices]
        scores[:, self._indices == UNKNOWN_INDEX] = -np.inf
        return scores


def _drawn_queries(data: PreparedData) -> list[str]:
    """Says how many users of shards are asked, where it is not all."""
    num_asked = data.split.validation.sequences.num_users
    num_users = data.split.train.num_users
    if num_asked + data.num_single >= num_users:
        return []
    return [
        f"{num_asked:,} of {num_users:,} users are asked, drawn by a hash of "
        "their ids when the shards were prepared."
    ]


def _at_other_source(
    config: TrainConfig, source: dict[str, Any]
) -> TrainConfig:
    """Names another log: its columns are looked for anew, filters stay."""
    fresh: dict[str, Any] = {}
    if source.get("data", config.data) != config.data:
        fresh = dict.fromkeys(SOURCE_FIELDS)
    return dataclasses.replace(config, **{**fresh, **source})


def _asked_config(
    config: TrainConfig, protocol: str | None, cutoffs: dict[str, Any]
) -> TrainConfig:
    """Names another split; one of another kind has its own cutoffs."""
    split = protocol or config.split
    if cutoffs and split != "temporal":
        raise InputError(
            f"--{next(iter(cutoffs))} must go with --protocol=temporal. "
            f"Received: {_as_flags(cutoffs)} with the protocol {split}"
        )
    if split != config.split:
        defaults = {
            field.name: field.default
            for field in dataclasses.fields(config)
            if field.name in TEMPORAL_FIELDS
        }
        cutoffs = {**defaults, **cutoffs}
    return dataclasses.replace(config, split=split, **cutoffs)


def _own_data(log: Log, config: TrainConfig) -> PreparedData | None:
    """Splits a log as in training; None where that one cannot be this log."""
    try:
        return prepare_log(log, config)
    except InputError:
        return None


def _as_flags(values: dict[str, Any]) -> str:
    return " ".join(f"--{name}={value}" for name, value in values.items())


def _check_leaks(split: Split, own: Split, flags: str) -> None:
    """Raises InputError when a split asks for what a model was trained on."""
    # The audit of the new queries against the model's own training set.
    queries, _ = asked_queries(split)
    checks = audit(Split(split.protocol, own.train, queries, None)).checks
    leaks = [check for check in checks if check.num_violations]
    if leaks:
        as_in_training = flags.replace("--protocol=", "--split=")
        raise InputError(
            f"{flags} asks for what the model was trained on with "
            f"--split={own.protocol} ({leaks[0].num_violations:,} of "
            f"{leaks[0].num_checked:,} {leaks[0].unit}); train with "
            f"{as_in_training} into another workdir, or evaluate with the "
            f"model's own. Received: {flags}"
        )


def _notes_on_choice(split: Split, own: Split) -> list[str]:
    """Says how many queries the model was chosen by."""
    queries, _ = asked_queries(split)
    num_chosen_by = _num_in_common(queries, own.validation)
    if not num_chosen_by:
        return []
    return [
        f"The model was chosen by {num_chosen_by:,} of these "
        f"{len(queries):,} queries (they validated its training): the "
        "results look better than they are."
    ]


def _num_in_common(queries: Queries, others: Queries) -> int:
    """Counts queries whose first target is a target of the others.

    Both are of the same log, its users and items in the same order, but not
    all splits keep all of its interactions.
    """

    def keys(queries: Queries) -> set[tuple[int, int, int]]:
        asked = queries.history_ends
        columns = (
            queries.users,
            queries.sequences.items[asked],
            queries.sequences.timestamps[asked],
        )
        return set(zip(*(column.tolist() for column in columns), strict=True))

    return len(keys(queries) & keys(others))


def _unknown_items(data: PreparedData, vocabulary: Vocabulary) -> list[str]:
    """Says how much of a log the model does not know."""
    unknown = vocabulary.indices_of(data.vocabulary) == UNKNOWN_INDEX
    num_unknown = int(np.count_nonzero(unknown[FIRST_ITEM_INDEX:]))
    if not num_unknown:
        return []
    queries, _ = asked_queries(data.split)
    targets, _ = queries.targets(np.arange(len(queries)))
    return [
        f"{num_unknown:,} of {data.vocabulary.num_items:,} items are unknown "
        "to the model, which puts them last; "
        f"{int(np.count_nonzero(unknown[targets])):,} of {len(targets):,} "
        "relevant items are among them."
    ]
