"""A SavedModel that takes and returns raw ids, for TensorFlow alone.

It has one signature for each kind of request, all over batches of strings, as
TensorFlow Serving's REST interface needs: every input and output has the batch
as its first axis, and scores are finite, since JSON has no infinity.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from recsys.data.vocabulary import Vocabulary
from recsys.ids import FIRST_ITEM_INDEX, PADDING_INDEX, UNKNOWN_INDEX
from recsys.recommender import Recommender
from recsys.serving.features import FeatureTensors

# The score of a place in a list where no item is left.
NO_SCORE = tf.float32.min

_STRINGS = tf.TensorSpec([None], tf.string)
_ROWS_OF_STRINGS = tf.TensorSpec([None, None], tf.string)
_NUMBERS = tf.TensorSpec([None], tf.int32)


class ServedModel:
    """The model as functions of tensors of raw ids.

    Ids that are not in the vocabulary, and "" as padding, are ignored
    anywhere.

    Args:
        recommender: The model with its vocabulary.
        exclude_history: Whether `recommend` excludes items of the history.

    Attributes:
        resources: The variables and the vocabulary, which a SavedModel must
            track; the item table is in it once.
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
        self._features: FeatureTensors | None = None
        if recommender.side is not None:
            self._features = FeatureTensors(recommender.side)
        self._baked: tf.Variable | None = None
        if model.candidate_tower.item_features is not None:
            # Otherwise each request would compute the features of all items.
            self._baked = tf.Variable(
                vectors, trainable=False, name="item_vectors"
            )
        # Beside the table, which it would repeat if all vectors were baked.
        self._values: list[tf.Variable] = []
        if self._baked is None and model.candidate_tower.transition_dim:
            self._values = [model.candidate_tower.transition_values.value]
        self.resources = tf.Module(name="recsys")
        # The variables alone: layers would add what Keras keeps in them.
        self.resources.held = [
            self._index,
            *(variable.value for variable in model.history_tower.variables),
            *([] if self._baked is None else [self._baked]),
            *self._values,
            *([] if self._features is None else self._features.resources),
        ]

    def signatures(self) -> dict[str, Callable]:
        """Returns the functions by name; the default is `recommend`."""
        recommend = _signature(
            self.recommend,
            history=_ROWS_OF_STRINGS,
            exclude=_ROWS_OF_STRINGS,
            k=_NUMBERS,
        )
        with_features = {}
        if self._features is not None:
            inputs = self._features.inputs()
            with_features["recommend_with_features"] = _signature(
                lambda history, items, exclude, k, *features: (
                    self.recommend_among(
                        history,
                        items,
                        exclude,
                        k,
                        dict(zip(inputs, features, strict=True)),
                    )
                ),
                history=_ROWS_OF_STRINGS,
                items=_ROWS_OF_STRINGS,
                exclude=_ROWS_OF_STRINGS,
                k=_NUMBERS,
                **inputs,
            )
        return {
            **with_features,
            "serving_default": recommend,
            "recommend": recommend,
            # Not an input of `recommend`: none can be left out of a request.
            "recommend_among": _signature(
                self.recommend_among,
                history=_ROWS_OF_STRINGS,
                items=_ROWS_OF_STRINGS,
                exclude=_ROWS_OF_STRINGS,
                k=_NUMBERS,
            ),
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
            exclude: `[batch, n]` or `[1, n]` string, items to exclude.
            k: `[batch]` or `[1]` int32, how many items, from 1.

        Returns:
            `item_ids` and `scores`, `[batch, width]`, where the width is the
            largest k, or the number of items if that is smaller; "" and
            `NO_SCORE` where k is smaller or no item is left.
        """
        return self.recommend_among(history, None, exclude, k)

    def recommend_among(
        self,
        history: tf.Tensor,
        items: tf.Tensor | None,
        exclude: tf.Tensor,
        k: tf.Tensor,
        features: Mapping[str, tf.Tensor] | None = None,
    ) -> dict[str, tf.Tensor]:
        """Recommends some of the items.

        Args:
            history: As for `recommend`.
            items: `[batch, n]` or `[1, n]` string, the only items to
                recommend; None, or a row of "" alone, for all.
            exclude: As for `recommend`.
            k: As for `recommend`.
            features: What is known besides, as `FeatureTensors.inputs` says:
                inputs of the signature `recommend_with_features`. Default:
                unknown.

        Returns:
            As for `recommend`.
        """
        seen = self._index.lookup(history)
        is_known = seen >= FIRST_ITEM_INDEX
        known = tf.ragged.boolean_mask(seen, is_known)
        has_vector = known.row_lengths() > 0
        entries = None
        if features is not None and self._features is not None:
            entries = self._features.entries(
                features, history != "", is_known, self._max_length
            )
            if "user_weights" in entries:
                has_vector |= tf.reduce_any(entries["user_weights"] != 0, 1)
        scores = tf.where(
            has_vector[:, tf.newaxis],
            self._products(self._encode(known, entries)),
            self._popularity,
        )
        excluded = self._index.lookup(exclude)
        excluded = tf.broadcast_to(
            excluded, [tf.shape(seen)[0], tf.shape(excluded)[1]]
        )
        if self._exclude_history:
            excluded = tf.concat([excluded, seen], axis=1)
        if items is not None:
            shape = tf.stack([tf.shape(items)[0], tf.shape(scores)[1]])
            allowed = tf.cast(self._index.lookup(items), tf.int32)
            has_none = tf.reduce_all(items == "", axis=1, keepdims=True)
            allowed = has_none | _is_listed(allowed, shape)
            scores = tf.where(allowed, scores, NO_SCORE)
        return self._listed(scores, excluded, k)

    def user_embedding(self, history: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encodes histories.

        Args:
            history: `[batch, length]` string, oldest first.

        Returns:
            `embedding`, `[batch, dim]` float32; zero for a history
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
            `embedding`, `[batch, dim]` float32, and `is_known`,
            `[batch]` boolean; zero for an unknown item.
        """
        indices = self._index.lookup(item_ids)
        is_known = indices >= FIRST_ITEM_INDEX
        vectors = self._vectors_of(indices)
        return {
            "embedding": tf.where(is_known[:, tf.newaxis], vectors, 0.0),
            "is_known": is_known,
        }

    def similar_items(
        self, item_ids: tf.Tensor, k: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Finds the items with the most similar vectors, by their cosine.

        Args:
            item_ids: `[batch]` string.
            k: As for `recommend`.

        Returns:
            As for `recommend`, without the item itself; an unknown item has
            no similar ones.
        """
        indices = self._index.lookup(item_ids)
        norms = tf.gather(self._norms, indices)[:, tf.newaxis] * self._norms
        cosines = tf.math.divide_no_nan(
            self._products(self._vectors_of(indices)), norms
        )
        is_known = (indices >= FIRST_ITEM_INDEX)[:, tf.newaxis]
        scores = tf.where(is_known, cosines, NO_SCORE)
        return self._listed(scores, indices[:, tf.newaxis], k)

    def _columns(self) -> list[tf.Tensor]:
        """Returns what stands side by side in all items' vectors, float32."""
        if self._baked is not None:
            return [tf.convert_to_tensor(self._baked)]
        table = self._candidate_tower.all_candidates(with_transitions=False)
        return [tf.cast(each, tf.float32) for each in (table, *self._values)]

    def _vectors_of(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns `[batch, dim]` float32 of `[batch]` indices."""
        found = [tf.gather(each, indices) for each in self._columns()]
        return tf.concat(found, axis=1)

    def _products(self, vectors: tf.Tensor) -> tf.Tensor:
        """Returns `[batch, vocabulary_size]` of `[batch, dim]` vectors."""
        columns = self._columns()
        parts = tf.split(vectors, [each.shape[1] for each in columns], axis=1)
        return tf.add_n(
            [
                tf.matmul(part, each, transpose_b=True)
                for part, each in zip(parts, columns, strict=True)
            ]
        )

    def _encode(
        self,
        known: tf.RaggedTensor,
        entries: Mapping[str, tf.Tensor] | None = None,
    ) -> tf.Tensor:
        """Returns `[batch, dim]` of `[batch, (length)]` indices."""
        history_ids = known[:, -self._max_length :].to_tensor()
        known_besides = {} if entries is None else {"features": entries}
        vectors = self._history_tower(
            history_ids, training=False, **known_besides
        )
        return tf.cast(vectors, tf.float32)

    def _listed(
        self, scores: tf.Tensor, excluded: tf.Tensor, k: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns the outputs of `recommend` without excluded indices."""
        tf.debugging.assert_positive(k, message="`k` must be positive.")
        k = tf.broadcast_to(k, tf.shape(scores)[:1])
        # The largest k of an empty batch is below 0.
        width = tf.clip_by_value(tf.reduce_max(k), 0, tf.shape(self._ids)[0])
        items, scores = best_items(scores, tf.cast(excluded, tf.int32), width)
        is_item = (tf.range(width) < k[:, tf.newaxis]) & (items > 0)
        row = tf.where(is_item, items - FIRST_ITEM_INDEX, 0)
        return {
            "item_ids": tf.where(is_item, tf.gather(self._ids, row), ""),
            "scores": tf.where(is_item, scores, NO_SCORE),
        }


def best_items(
    scores: tf.Tensor, excluded: tf.Tensor | None, k: tf.Tensor | int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the items with the highest scores, in a graph.

    Uses only operations that LiteRT has, too.

    Args:
        scores: `[batch, vocabulary_size]` float32.
        excluded: `[batch, n]` int32 indices; None for none.
        k: int32 scalar, from 0 to the number of items.

    Returns:
        `[batch, k]` int32 indices, best first, the lower index first where
        scores are equal, and their scores; 0 and `NO_SCORE` where no item is
        left.
    """
    if excluded is not None:
        is_excluded = _is_listed(excluded, tf.shape(scores))
        scores = tf.where(is_excluded, NO_SCORE, scores)
    # Padding and unknown are not candidates.
    best = tf.math.top_k(scores[:, FIRST_ITEM_INDEX:], k)
    items = tf.where(
        best.values > NO_SCORE, best.indices + FIRST_ITEM_INDEX, PADDING_INDEX
    )
    return items, best.values


def _is_listed(indices: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Returns `[batch, vocabulary_size]`: whether `[batch, n]` has an index."""
    rows = tf.range(tf.shape(indices)[0])[:, tf.newaxis]
    places = tf.stack([tf.zeros_like(indices) + rows, indices], axis=2)
    ones = tf.ones_like(indices, tf.float32)
    return tf.scatter_nd(places, ones, shape) > 0


def _signature(function: Callable, **inputs: tf.TensorSpec) -> Callable:
    """Returns a graph function with named inputs."""
    return tf.function(function).get_concrete_function(
        *(
            tf.TensorSpec(spec.shape, spec.dtype, name)
            for name, spec in inputs.items()
        )
    )


def write_saved_model(
    recommender: Recommender,
    folder: pathlib.Path,
    *,
    exclude_history: bool = True,
) -> None:
    """Writes the SavedModel.

    Args:
        recommender: The model with its vocabulary.
        folder: The folder to write.
        exclude_history: Whether `recommend` excludes items of the history.
    """
    served = ServedModel(recommender, exclude_history)
    tf.saved_model.save(
        served.resources, os.fspath(folder), signatures=served.signatures()
    )


def ask_saved_model(
    recommender: Recommender,
    folder: pathlib.Path,
    histories: list[np.ndarray],
    k: int,
) -> dict[str, np.ndarray]:
    """Loads the SavedModel and asks it about some histories.

    Args:
        recommender: The model that it was made from.
        folder: The folder of `write_saved_model`.
        histories: Vocabulary indices of each.
        k: Length of the lists.

    Returns:
        `items`, `scores` and `user_vectors`; see
        `recsys.serving.formats.Answers`.
    """
    signatures = tf.saved_model.load(os.fspath(folder)).signatures
    vocabulary = recommender.vocabulary
    history = _padded_ids(vocabulary, histories)
    listed = signatures["recommend"](
        history=history, exclude=tf.constant([[""]]), k=tf.constant([k])
    )
    ids = [
        [each.decode() for each in row] for row in listed["item_ids"].numpy()
    ]
    items = vocabulary.encode(np.array(ids, object))
    return {
        "items": np.where(items == UNKNOWN_INDEX, PADDING_INDEX, items),
        "scores": listed["scores"].numpy(),
        "user_vectors": signatures["user_embedding"](history=history)[
            "embedding"
        ].numpy(),
    }


def _padded_ids(
    vocabulary: Vocabulary, histories: list[np.ndarray]
) -> tf.Tensor:
    """`[num_histories, length]` raw ids, an empty text behind each."""
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
