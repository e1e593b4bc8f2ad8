"""What was found in a log, in a few lines."""

from __future__ import annotations

import numpy as np

from recsys.data.prepare import TRAIN_COUNT, PreparedData


def describe(data: PreparedData) -> str:
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
