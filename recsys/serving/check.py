"""Whether an export answers as the model does."""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys.errors import MismatchError
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX
from recsys.recommender import Recommender

# Differences that rounding explains, as a share of the largest value.
_TOLERANCE = 1e-4
_HALF_PRECISION_TOLERANCE = 2e-2
# Lists to compare, of a length that one reads.
LIST_LENGTH = 20


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the model answers to some histories.

    Attributes:
        histories: Vocabulary indices, unknown ones among them.
        items: `[num_histories, LIST_LENGTH]` int32, see
            `Recommender.recommend_indices`.
        scores: Their scores.
        user_vectors: `[num_histories, embedding_dim]` float32.
        item_vectors: `[vocabulary_size, embedding_dim]` float32.
        popularity: `[vocabulary_size]` float32.
        tolerance: How far vectors and scores may be off, as a share of the
            largest.
    """

    histories: list[np.ndarray]
    items: np.ndarray
    scores: np.ndarray
    user_vectors: np.ndarray
    item_vectors: np.ndarray
    popularity: np.ndarray
    tolerance: float

    def check_lists(
        self, items: np.ndarray, scores: np.ndarray, what: str
    ) -> None:
        """Compares recommended items.

        Items whose scores differ by rounding only may change places.

        Args:
            items: `[num_histories, n]` vocabulary indices, 0 where no item
                is left; n is `LIST_LENGTH`, or all items if they are fewer.
            scores: `[num_histories, n]`.
            what: What answered, for the error's text.

        Raises:
            MismatchError: They differ.
        """
        width = items.shape[1]
        found = items >= FIRST_ITEM_INDEX
        if not np.array_equal(found, self.items[:, :width] > 0):
            raise MismatchError(f"{what}: lists of other lengths")
        own = np.einsum(
            "nd,nkd->nk", self.user_vectors, self.item_vectors[items]
        )
        is_empty = [(history < 2).all() for history in self.histories]
        own[is_empty] = self.popularity[items[is_empty]]
        expected = self.scores[:, :width]
        self.check(scores[found], expected[found], f"{what}: scores")
        self.check(own[found], expected[found], f"{what}: items")
        for row, listed in zip(items, found, strict=True):
            if len(set(row[listed])) < np.count_nonzero(listed):
                raise MismatchError(f"{what}: an item is listed twice")

    def check(self, got: np.ndarray, own: np.ndarray, what: str) -> None:
        """Compares numbers.

        Args:
            got: Of the export.
            own: Of the model, in the same shape.
            what: What they are, for the error's text.

        Raises:
            MismatchError: They differ by more than rounding.
        """
        if got.shape != own.shape:
            raise MismatchError(
                f"{what}: expected the shape {own.shape}. Received: {got.shape}"
            )
        if not got.size:
            return
        allowed = self.tolerance * max(float(np.abs(own).max()), 1e-6)
        difference = float(np.abs(got - own).max())
        # Not `>`, which a NaN would pass.
        if not difference <= allowed:
            raise MismatchError(
                f"{what} differ from the model's by {difference:.3g}, more "
                f"than rounding explains ({allowed:.3g})"
            )


def ask_model(
    recommender: Recommender,
    *,
    exclude_history: bool,
    longest: int | None = None,
) -> Answers:
    """Asks the model about some random histories.

    They are empty, short, as long as the model reads and longer, with and
    without unknown items.

    Args:
        recommender: The model.
        exclude_history: Whether items of a history are left out.
        longest: Only the newest so many items of them are asked about.
            Default: all.

    Returns:
        Its answers.
    """
    rng = np.random.default_rng(0)
    length = recommender.max_history_length
    size = recommender.vocabulary.size
    histories = [
        rng.integers(FIRST_ITEM_INDEX, size, n, np.int32)
        for n in (0, 1, 2, 5, length // 2, length - 1, length, length + 7)
    ]
    unknown = np.array([UNKNOWN_INDEX], np.int32)
    mixed = histories[3].copy()
    mixed[[0, 2, 4]] = UNKNOWN_INDEX
    histories += [unknown, mixed, np.concatenate([histories[-1], unknown])]
    if longest is not None:
        histories = [history[-longest:] for history in histories]
    flat = np.concatenate(histories)
    offsets = np.cumsum([0, *map(len, histories)])
    items, scores = recommender.recommend_indices(
        flat, offsets, LIST_LENGTH, exclude_history=exclude_history
    )
    is_half = recommender.model.history_tower.compute_dtype != "float32"
    return Answers(
        histories=histories,
        items=items,
        scores=scores,
        user_vectors=recommender.user_vectors(flat, offsets),
        item_vectors=recommender.item_vectors(),
        popularity=recommender.popularity,
        tolerance=_HALF_PRECISION_TOLERANCE if is_half else _TOLERANCE,
    )
