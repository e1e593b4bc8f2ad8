"""From a source to a vocabulary and a split, in one call."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from recsys.data import shards
from recsys.data.interactions import Log, filter_interactions
from recsys.data.sequences import Sequences, build_sequences
from recsys.data.splits import BY_USER, Split
from recsys.data.vocabulary import FIRST_ITEM_INDEX, Vocabulary
from recsys.errors import InputError

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
