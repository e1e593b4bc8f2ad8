"""A SavedModel that takes and returns raw ids, for TensorFlow alone.

It has one signature for each thing that is asked of a model, all over batches
of strings, which is also what TensorFlow Serving's REST interface needs: every
input and output has the batch as its first axis, and scores are finite, since
JSON has no infinity.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from recsys.data.vocabulary import Vocabulary
from recsys.ids import FIRST_ITEM_INDEX, PADDING_INDEX, UNKNOWN_INDEX
from recsys.recommender import Recommender
from recsys.serving.check import LIST_LENGTH, ask_model

# The score of a place in a list for which no item was left.
NO_SCORE = tf.float32.min

_STRINGS = tf.TensorSpec([None], tf.string)
_ROWS_OF_STRINGS = tf.TensorSpec([None, None], tf.string)
_NUMBERS = tf.TensorSpec([None], tf.int32)


class ServedModel:
    """The model as functions of tensors of raw ids.

    An id that the vocabulary does not have, and "" as padding, count for
    nothing wherever they stand.

    Args:
        recommender: The model with its vocabulary.
        exclude_history: Whether `recommend` leaves out items of the history.

    Attributes:
        resources: The variables and the vocabulary, which a SavedModel has to
            be told of; the item table is in it once.
    """

    def __init__(self, recommender: Recommender, exclude_history: bool) -> None:
        model = recommender.model
        vocabulary = recommender.vocabulary
        self._history_tower = model.history_tower
        self._candidate_tower = model.candidate_tower
        self._exclude_history = exclude_history
        self._max_length = recommender.max_history_length
        self._popularity = tf.constant(recommender.popularity)
        self._ids = tf.constant(vocabulary.item_ids.tolist(), tf.string)
        indices = tf.range(FIRST_ITEM_INDEX, vocabulary.size, dtype=tf.int64)
        self._index = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(self._ids, indices),
            default_value=UNKNOWN_INDEX,
        )
        vectors = recommender.item_vectors()
        self._norms = tf.constant(np.linalg.norm(vectors, axis=1))
        self._baked: tf.Variable | None = None
        if model.candidate_tower.item_features is not None:
            # Features of all items would else be computed at each request.
            self._baked = tf.Variable(
                vectors, trainable=False, name="item_vectors"
            )
        self.resources = tf.Module(name="recsys")
        # The variables alone: the layers would bring what Keras adds to them.
        self.resources.held = [
            self._index,
            *(variable.value for variable in model.history_tower.variables),
            *([] if self._baked is None else [self._baked]),
        ]

    def signatures(self) -> dict[str, Callable]:
        """Returns the functions by name; a request without one recommends."""
        recommend = _signature(
            self.recommend,
            history=_ROWS_OF_STRINGS,
            exclude=_ROWS_OF_STRINGS,
            k=_NUMBERS,
        )
        return {
            "serving_default": recommend,
            "recommend": recommend,
            "user_embedding": _signature(
                self.user_embedding, history=_ROWS_OF_STRINGS
            ),
            "item_embedding": _signature(
                self.item_embedding, item_ids=_STRINGS
            ),
            "similar_items": _signature(
                self.similar_items, item_ids=_STRINGS, k=_NUMBERS
            ),
        }

    def recommend(
        self, history: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Recommends items.

        Args:
            history: `[batch, length]` string, oldest first.
            exclude: `[batch, n]` or `[1, n]` string, items to leave out.
            k: `[batch]` or `[1]` int32, how many items, from 1.

        Returns:
            `item_ids` and `scores`, `[batch, width]` with the largest k as
            the width, or the number of items if that is smaller; "" and
            `NO_SCORE` where k is smaller or no item is left.
        """
        seen = self._index.lookup(history)
        known = tf.ragged.boolean_mask(seen, seen >= FIRST_ITEM_INDEX)
        scores = tf.where(
            known.row_lengths()[:, tf.newaxis] > 0,
            tf.matmul(self._encode(known), self._vectors(), transpose_b=True),
            self._popularity,
        )
        excluded = self._index.lookup(exclude)
        excluded = tf.broadcast_to(
            excluded, [tf.shape(seen)[0], tf.shape(excluded)[1]]
        )
        if self._exclude_history:
            excluded = tf.concat([excluded, seen], axis=1)
        return self._best(scores, excluded, k)

    def user_embedding(self, history: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encodes histories.

        Args:
            history: `[batch, length]` string, oldest first.

        Returns:
            `embedding`, `[batch, embedding_dim]` float32; zero for a history
            without a known item.
        """
        seen = self._index.lookup(history)
        known = tf.ragged.boolean_mask(seen, seen >= FIRST_ITEM_INDEX)
        return {"embedding": self._encode(known)}

    def item_embedding(self, item_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encodes items.

        Args:
            item_ids: `[batch]` string.

        Returns:
            `embedding`, `[batch, embedding_dim]` float32, and `is_known`,
            `[batch]` boolean; zero for an unknown item.
        """
        indices = self._index.lookup(item_ids)
        is_known = indices >= FIRST_ITEM_INDEX
        vectors = tf.gather(self._vectors(), indices)
        return {
            "embedding": tf.where(is_known[:, tf.newaxis], vectors, 0.0),
            "is_known": is_known,
        }

    def similar_items(
        self, item_ids: tf.Tensor, k: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Finds the items whose vectors have the highest cosine.

        Args:
            item_ids: `[batch]` string.
            k: As for `recommend`.

        Returns:
            As for `recommend`, without the item itself; an unknown item has
            no similar ones.
        """
        indices = self._index.lookup(item_ids)
        table = self._vectors()
        norms = tf.gather(self._norms, indices)[:, tf.newaxis] * self._norms
        cosines = tf.math.divide_no_nan(
            tf.matmul(tf.gather(table, indices), table, transpose_b=True),
            norms,
        )
        is_known = (indices >= FIRST_ITEM_INDEX)[:, tf.newaxis]
        scores = tf.where(is_known, cosines, -np.inf)
        return self._best(scores, indices[:, tf.newaxis], k)

    def _vectors(self) -> tf.Tensor:
        """Returns `[vocabulary_size, embedding_dim]` float32."""
        if self._baked is not None:
            return tf.convert_to_tensor(self._baked)
        return tf.cast(self._candidate_tower.all_candidates(), tf.float32)

    def _encode(self, known: tf.RaggedTensor) -> tf.Tensor:
        """Returns `[batch, embedding_dim]` of `[batch, (length)]` indices."""
        history_ids = known[:, -self._max_length :].to_tensor()
        vectors = self._history_tower(history_ids, training=False)
        return tf.cast(vectors, tf.float32)

    def _best(
        self, scores: tf.Tensor, excluded: tf.Tensor, k: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Lists the items with the highest scores.

        Args:
            scores: `[batch, vocabulary_size]` float32.
            excluded: `[batch, n]` int64 indices.
            k: `[batch]` or `[1]` int32.

        Returns:
            See `recommend`.
        """
        tf.debugging.assert_positive(k, message="`k` must be positive.")
        num_rows = tf.shape(scores)[0]
        k = tf.broadcast_to(k, [num_rows])
        never = tf.tile([[PADDING_INDEX, UNKNOWN_INDEX]], [num_rows, 1])
        columns = tf.concat([tf.cast(excluded, tf.int32), never], axis=1)
        rows = tf.range(num_rows)[:, tf.newaxis]
        places = tf.stack(
            [tf.broadcast_to(rows, tf.shape(columns)), columns], 2
        )
        scores = tf.tensor_scatter_nd_update(
            scores, places, tf.fill(tf.shape(columns), -np.inf)
        )
        # The largest of no k at all, in an empty batch, is below 0.
        width = tf.clip_by_value(tf.reduce_max(k), 0, tf.shape(self._ids)[0])
        best = tf.math.top_k(scores, width)
        is_item = tf.range(width)[tf.newaxis] < k[:, tf.newaxis]
        is_item &= best.values > -np.inf
        row = tf.where(is_item, best.indices - FIRST_ITEM_INDEX, 0)
        return {
            "item_ids": tf.where(is_item, tf.gather(self._ids, row), ""),
            "scores": tf.where(is_item, best.values, NO_SCORE),
        }


def _signature(function: Callable, **inputs: tf.TensorSpec) -> Callable:
    """Returns a graph function with named inputs."""
    return tf.function(
        function,
        input_signature=[
            tf.TensorSpec(spec.shape, spec.dtype, name)
            for name, spec in inputs.items()
        ],
    )


def write_saved_model(
    recommender: Recommender,
    path: str | os.PathLike[str],
    *,
    exclude_history: bool = True,
) -> None:
    """Writes the SavedModel.

    Args:
        recommender: The model with its vocabulary.
        path: The folder to write.
        exclude_history: Whether `recommend` leaves out items of the history.
    """
    served = ServedModel(recommender, exclude_history)
    tf.saved_model.save(
        served.resources, os.fspath(path), signatures=served.signatures()
    )


def check_saved_model(
    recommender: Recommender,
    path: str | os.PathLike[str],
    *,
    exclude_history: bool = True,
) -> None:
    """Loads a SavedModel and compares it with the model.

    Args:
        recommender: The model with its vocabulary.
        path: What `write_saved_model` wrote.
        exclude_history: As when it was written.

    Raises:
        MismatchError: It answers otherwise.
    """
    loaded = tf.saved_model.load(os.fspath(path))
    answers = ask_model(recommender, exclude_history=exclude_history)
    vocabulary = recommender.vocabulary
    history = _padded_ids(vocabulary, answers.histories)
    recommended = loaded.signatures["recommend"](
        history=history,
        exclude=tf.constant([[""]]),
        k=tf.constant([LIST_LENGTH]),
    )
    answers.check_lists(
        _indices(vocabulary, recommended["item_ids"]),
        recommended["scores"].numpy(),
        "SavedModel",
    )
    encoded = loaded.signatures["user_embedding"](history=history)
    answers.check(
        encoded["embedding"].numpy(),
        answers.user_vectors,
        "SavedModel: user vectors",
    )
    items = np.unique(answers.items[answers.items > 0])
    ids = tf.constant(vocabulary.decode(items).tolist())
    vectors = answers.item_vectors[items]
    encoded = loaded.signatures["item_embedding"](item_ids=ids)
    answers.check(
        encoded["embedding"].numpy(), vectors, "SavedModel: item vectors"
    )
    similar = loaded.signatures["similar_items"](
        item_ids=ids, k=tf.constant([LIST_LENGTH])
    )
    found = _indices(vocabulary, similar["item_ids"])
    answers.check(
        similar["scores"].numpy()[found > 0],
        _cosines(vectors[:, np.newaxis], answers.item_vectors[found])[
            found > 0
        ],
        "SavedModel: similarities",
    )


def _padded_ids(
    vocabulary: Vocabulary, histories: list[np.ndarray]
) -> tf.Tensor:
    """Returns `[num_histories, length]` string, "" behind each history.

    An unknown item gets an id that is not in the vocabulary.
    """
    unknown = "unknown"
    while int(vocabulary.encode([unknown])[0]) != UNKNOWN_INDEX:
        unknown += "?"
    rows = [
        [
            unknown
            if index == UNKNOWN_INDEX
            else vocabulary.decode(index).item()
            for index in history
        ]
        for history in histories
    ]
    return tf.ragged.constant(rows, dtype=tf.string).to_tensor()


def _indices(vocabulary: Vocabulary, item_ids: tf.Tensor) -> np.ndarray:
    """Returns the indices of raw ids, padding for ""."""
    texts = np.array(
        [[each.decode() for each in row] for row in item_ids.numpy()], object
    )
    return np.where(
        texts == "", PADDING_INDEX, vocabulary.encode(texts.tolist())
    )


def _cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return np.divide(
        (left * right).sum(axis=-1),
        norms,
        where=norms > 0,
        out=np.zeros_like(norms),
    )
