"""A trained model together with its vocabulary: raw ids in, raw ids out."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import threading
import zipfile
from collections.abc import Sequence
from concurrent import futures

import keras
import numpy as np
import tensorflow as tf

from recsys import workdir as workdir_lib
from recsys.data import pipeline
from recsys.data.prepare import train_counts
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX
from recsys.models.two_tower import TwoTower
from recsys.retrieval import top_k

# Positions encoded at once. Large enough for few calls, small enough that the
# activations stay within some tens of megabytes.
_POSITIONS_PER_BATCH = 6_400
# Batches encoded side by side: many operations use one core only.
_NUM_WORKERS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item_id: The raw id.
        title: The title, or the raw id where no title is known.
        score: The dot product of the history's and the item's vector.
    """

    item_id: str
    title: str
    score: float


@dataclasses.dataclass(frozen=True)
class Influence:
    """What an item of a history did to the score of another.

    Attributes:
        item_id: The raw id.
        title: The title, or the raw id where no title is known.
        change: The score with the whole history less the score without the
            item.
    """

    item_id: str
    title: str
    change: float


class Recommender:
    """A two-tower model that knows its vocabulary.

    Args:
        model: The model; its table has a row for every vocabulary index.
        vocabulary: The items.
        max_history_length: The newest items of a history that are read.
        name: What results call the model.

    Raises:
        ValueError: The model's table and the vocabulary differ in size.
    """

    def __init__(
        self,
        model: TwoTower,
        vocabulary: Vocabulary,
        max_history_length: int,
        name: str = "two-tower",
    ) -> None:
        rows = model.candidate_tower.embedding.vocabulary_size
        if rows != vocabulary.size:
            raise ValueError(
                f"`vocabulary` must have the {rows} rows of the model's "
                f"table. Received: {vocabulary.size}"
            )
        self.model = model
        self.vocabulary = vocabulary
        self.name = name
        self._max_length = max_history_length
        self._popularity = train_counts(vocabulary).astype(np.float32)
        self._encode = tf.function(
            model.history_tower,
            input_signature=[tf.TensorSpec([None, None], tf.int32)],
        )

    @property
    def max_history_length(self) -> int:
        """The newest items of a history that are read."""
        return self._max_length

    @property
    def popularity(self) -> np.ndarray:
        """`[vocabulary_size]` float32, each item's training interactions."""
        return self._popularity

    def user_vectors(
        self, items: np.ndarray, offsets: np.ndarray
    ) -> np.ndarray:
        """Encodes histories.

        An unknown item is passed over: its row of the table is never trained.

        Args:
            items: `[total]` int32 vocabulary indices, the histories one
                after the other, each oldest first.
            offsets: `[num_queries + 1]` int64.

        Returns:
            `[num_queries, embedding_dim]` float32; zero for an empty history
            or one of unknown items only.
        """
        items, offsets = _without_unknown(items, offsets)
        dim = self.model.history_tower.embedding.embedding_dim
        vectors = np.zeros((len(offsets) - 1, dim), np.float32)
        batches = pipeline.history_batches(
            items,
            offsets,
            max_length=self._max_length,
            positions_per_batch=_POSITIONS_PER_BATCH,
        )
        # Traced here, once, rather than by whichever worker is first.
        encode = self._encode.get_concrete_function()

        lock = threading.Lock()

        def encode_batches() -> None:
            # Each worker fetches its next batch itself, so that there are
            # never more batches than workers.
            while True:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    return
                rows, history_ids = batch
                vectors[rows] = encode(tf.constant(history_ids)).numpy()

        with futures.ThreadPoolExecutor(_NUM_WORKERS) as pool:
            workers = [pool.submit(encode_batches) for _ in range(_NUM_WORKERS)]
        for worker in workers:
            worker.result()  # Raises what the worker raised.
        return vectors

    def item_vectors(self) -> np.ndarray:
        """Returns `[vocabulary_size, embedding_dim]` float32, read-only."""
        tower = self.model.candidate_tower
        if isinstance(tower.embedding.embeddings.value, tf.Variable):
            # An optimizer that updates single rows makes TensorFlow copy the
            # table at each read; a view of it is enough.
            tf.raw_ops.DisableCopyOnRead(
                resource=tower.embedding.embeddings.handle
            )
        vectors = np.asarray(tower.all_candidates())
        return vectors.astype(np.float32, copy=False)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Scores every item for each history.

        Args:
            items: As for `user_vectors`.
            offsets: As for `user_vectors`.

        Returns:
            `[num_queries, vocabulary_size]` float32; columns 0 and 1 are no
            candidates.
        """
        return self.user_vectors(items, offsets) @ self.item_vectors().T

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude_history: bool = True,
    ) -> list[Recommendation]:
        """Recommends items for one history.

        Args:
            history: Raw item ids or titles, oldest first. None may be
                unknown; see `Vocabulary.find`.
            k: How many items.
            exclude_history: Whether items of the history are left out.

        Returns:
            At most `k` items, best first; fewer when no more are left.

        Raises:
            InputError: An entry of the history is not found or ambiguous.
        """
        indices = [self.vocabulary.find(text) for text in history]
        items, scores = self.recommend_indices(
            np.array(indices, np.int32),
            np.array([0, len(indices)], np.int64),
            k,
            exclude_history=exclude_history,
        )
        return self._named(items[0], scores[0])

    def similar(self, item: str, k: int = 10) -> list[Recommendation]:
        """Finds the items whose vectors point the same way as an item's.

        Args:
            item: A raw item id or a title; see `Vocabulary.find`.
            k: How many items.

        Returns:
            At most `k` items without the item itself, best first, scored by
            the cosine of their vectors with the item's.

        Raises:
            InputError: The item is not found or ambiguous, or `k` is not
                positive.
        """
        if k < 1:
            raise InputError(f"`k` must be positive. Received: {k}")
        row = self.vocabulary.find(item) - FIRST_ITEM_INDEX
        vectors = tf.math.l2_normalize(self._candidates(), axis=1)
        rows, scores = top_k(
            vectors[row : row + 1].numpy(),
            vectors,
            k,
            exclusions=(np.array([row]), np.array([0, 1])),
        )
        return self._named(_indices(rows)[0], scores[0])

    def explain(self, history: Sequence[str], item: str) -> list[Influence]:
        """Tells what each item of a history does to the score of an item.

        Args:
            history: As for `recommend`.
            item: The item that is scored, by raw id or title.

        Returns:
            The items of the history that the model reads, those that move
            the score most in front.

        Raises:
            InputError: An item is not found or ambiguous.
        """
        indices = np.array(
            [self.vocabulary.find(text) for text in history], np.int32
        )
        scored = np.array([self.vocabulary.find(item)])
        [influences] = self.explain_indices(indices, scored)
        return influences

    def explain_indices(
        self, history: np.ndarray, items: np.ndarray
    ) -> list[list[Influence]]:
        """Tells what each item of a history does to the scores of others.

        The history is encoded once without each of its items (every time
        that it is in there) and compared with the whole: exact for any
        encoder, at the cost of as many histories. Where nothing else is left
        the score without the item is 0.

        Args:
            history: `[length]` int32 vocabulary indices, oldest first; an
                unknown item is passed over.
            items: `[n]` integer indices of the items that are scored.

        Returns:
            For each of `items`, the known items among the newest
            `max_history_length` of the history, those that move the score
            most in front.
        """
        known = history[history >= FIRST_ITEM_INDEX]
        left_out = np.unique(known[-self._max_length :])
        if not len(left_out):
            return [[] for _ in items]
        histories = [known, *(known[known != item] for item in left_out)]
        vectors = self.user_vectors(
            np.concatenate(histories),
            np.cumsum([0, *map(len, histories)]),
        )
        scores = vectors @ self.item_vectors()[items].T
        changes = scores[0] - scores[1:]
        ids = self.vocabulary.decode(left_out)
        return [
            [
                Influence(
                    ids[place],
                    self.vocabulary.describe(int(left_out[place])),
                    float(column[place]),
                )
                for place in np.argsort(-np.abs(column), kind="stable")
            ]
            for column in changes.T
        ]

    def recommend_indices(
        self,
        items: np.ndarray,
        offsets: np.ndarray,
        k: int,
        *,
        exclude_history: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Recommends items for many histories.

        An empty history, or one of unknown items only, has no vector; its
        recommendations are the items with the most training interactions,
        scored by that number.

        Args:
            items: As for `user_vectors`.
            offsets: As for `user_vectors`.
            k: How many items for each.
            exclude_history: Whether items of a history are left out.

        Returns:
            `[num_queries, k]` int32 vocabulary indices, best first, 0 where
            no item is left, and their scores, -inf there.

        Raises:
            InputError: `k` is not positive.
        """
        if k < 1:
            raise InputError(f"`k` must be positive. Received: {k}")
        items, offsets = _without_unknown(items, offsets)
        lengths = np.diff(offsets)
        found = np.empty((len(lengths), k), np.int64)
        scores = np.empty((len(lengths), k), np.float32)
        has_history = lengths > 0
        exclusions = None
        if exclude_history:
            exclusions = (
                items - FIRST_ITEM_INDEX,
                np.append(0, offsets[1:][has_history]),
            )
        found[has_history], scores[has_history] = top_k(
            self.user_vectors(items, offsets)[has_history],
            self._candidates(),
            k,
            exclusions=exclusions,
        )
        if not has_history.all():
            # Every list of the most popular items is the same.
            found[~has_history], scores[~has_history] = top_k(
                np.ones((1, 1), np.float32),
                tf.constant(self._popularity[FIRST_ITEM_INDEX:, np.newaxis]),
                k,
            )
        return _indices(found), scores

    def _candidates(self) -> tf.Tensor:
        """Returns the `[num_items, embedding_dim]` vectors of the items."""
        vectors = self.model.candidate_tower.all_candidates()
        return tf.cast(vectors[FIRST_ITEM_INDEX:], tf.float32)

    def _named(
        self, items: np.ndarray, scores: np.ndarray
    ) -> list[Recommendation]:
        """Gives a list of indices their ids and titles."""
        found = items > 0
        ids = self.vocabulary.decode(items[found])
        return [
            Recommendation(
                item_id, self.vocabulary.describe(int(index)), float(score)
            )
            for item_id, index, score in zip(
                ids, items[found], scores[found], strict=True
            )
        ]


def _indices(rows: np.ndarray) -> np.ndarray:
    """Returns int32 vocabulary indices of candidates, 0 for none."""
    return np.where(rows < 0, 0, rows + FIRST_ITEM_INDEX).astype(np.int32)


def _without_unknown(
    items: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Drops unknown items, and padding, from histories.

    Args:
        items: `[total]` int32 vocabulary indices.
        offsets: `[num_queries + 1]` int64.

    Returns:
        Both without them.
    """
    known = items >= FIRST_ITEM_INDEX
    if known.all():
        return items, offsets
    before = np.zeros(len(items) + 1, np.int64)
    np.cumsum(known, out=before[1:])
    return items[known], before[offsets]


def load(workdir: str | os.PathLike[str]) -> Recommender:
    """Loads the best model of a training run.

    Args:
        workdir: Where `recsys.train` put it.

    Returns:
        The model with its vocabulary.

    Raises:
        InputError: The folder is missing or holds no trained model.
    """
    folder = workdir_lib.Workdir(pathlib.Path(workdir))
    config = folder.read_config()
    try:
        model = keras.saving.load_model(folder.model, compile=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise InputError(
            f"{folder.model}: expected a model of this version of recsys. "
            f"Received: a file that cannot be loaded: {reason}"
        ) from error
    return Recommender(
        model, Vocabulary.load(folder.vocabulary), config.max_history_length
    )
