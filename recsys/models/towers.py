"""The two towers: a history of items to a vector, an item to a vector."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from recsys.ids import FIRST_ITEM_INDEX
from recsys.models.history_encoders import SelfAttentionEncoder, accepted_by
from recsys.models.shared_item_embedding import (
    SharedItemEmbedding,
    deserialize,
    keep_frozen,
    serialize,
    traced_spec,
)
from recsys.models.transformer_block import pick

# What features may be of.
PARTS = ("history", "context", "user")


@keras.saving.register_keras_serializable(package="recsys")
class HistoryTower(keras.layers.Layer):
    """The query tower: item ids, oldest first, to a vector.

    Args:
        embedding: The shared item table.
        encoder: A layer from `[batch, length, embedding_dim]`, and `mask` if
            its `call` takes one, to the same shape. Position t should read
            positions up to t only, if it is to be trained on every position
            at once. Default: `SelfAttentionEncoder()`.
        item_features: A layer from ids `[...]` to `[..., embedding_dim]`
            that is added to the item vectors before the encoder, or None.
        id_dropout: The share of positions at which training sees the
            features only, so that these learn to stand for an item alone.
        item_dropout: The share of positions whose whole vector training hides
            from the encoder, so that no single item decides alone. What is
            left is not scaled up.
        history_features: A layer from values and weights, `[..., width]`, to
            `[..., embedding_dim]`, such as `FeatureSum`: what is known of each
            event, added to its item's vector. None: the tower reads none.
        context_features: Likewise, what is known when what follows an event
            is asked for, added to the same vector.
        user_features: Likewise, what is known of the user: a position before
            the history, so that there is a vector without any event.
        feature_dropout: The share of the histories that training sees without
            the features of the history, of the context and of the user, each
            drawn by itself.
        transition_dim: Entries of a sketch of the history that follow the
            encoder's; the candidate tower must have as many. With the rows
            kᵢ of `transition_keys`, which are not trained, the sketch is
            w Σ dᵃ kᵢ over the known items i of the history, where a is the
            number of known items after i, w the weight and d the decay. Its
            product with an item's `transition_values` says how strongly that
            item follows these in a log: see `recsys.training.initial_table`.
            Both are zero until they are assigned, and change no score.
        transition_weight: w above, finite and at least 0.
        transition_decay: d above, within [0, 1].
        **kwargs: Keras's own layer arguments.

    Raises:
        TypeError: `embedding` is not a `SharedItemEmbedding`.
        ValueError: A share is not within [0, 1), `id_dropout` is without
            item features, or a value for the transitions is out of range.
    """

    def __init__(
        self,
        embedding: SharedItemEmbedding,
        encoder: keras.layers.Layer | None = None,
        item_features: keras.layers.Layer | None = None,
        id_dropout: float = 0.0,
        item_dropout: float = 0.0,
        history_features: keras.layers.Layer | None = None,
        context_features: keras.layers.Layer | None = None,
        user_features: keras.layers.Layer | None = None,
        feature_dropout: float = 0.0,
        transition_dim: int = 0,
        transition_weight: float = 8.0,
        transition_decay: float = 0.8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embedding = _checked(embedding)
        self.transition_dim = _checked_dim(transition_dim)
        for name, value, most in (
            ("transition_weight", transition_weight, np.finfo(np.float32).max),
            ("transition_decay", transition_decay, 1),
        ):
            if not 0 <= value <= most:
                raise ValueError(
                    f"`{name}` must be within [0, {most:g}]. Received: {value}"
                )
        self.transition_weight = transition_weight
        self.transition_decay = transition_decay
        self.encoder = SelfAttentionEncoder() if encoder is None else encoder
        self.item_features = item_features
        self.id_dropout = _checked_dropout(id_dropout, item_features)
        self.item_dropout = _checked_share("item_dropout", item_dropout)
        self.history_features = history_features
        self.context_features = context_features
        self.user_features = user_features
        self.feature_dropout = _checked_share(
            "feature_dropout", feature_dropout
        )
        if id_dropout or item_dropout or feature_dropout:
            self._seeds = keras.random.SeedGenerator()
        self._encoder_arguments = accepted_by(self.encoder)

    def build(self, input_shape: Any = None) -> None:
        """Creates the weights of the table, features and encoder."""
        _build_once(self.embedding, (None, None))
        _build_once(self.item_features, (None, None))
        for part in PARTS:
            _build_once(getattr(self, f"{part}_features"), (None, None))
        if self.user_features is not None and not hasattr(self, "start"):
            self.start = self.add_weight(
                name="start",
                shape=(self.embedding.embedding_dim,),
                initializer="zeros",
            )
        _build_once(self.encoder, (None, None, self.embedding.embedding_dim))
        _add_transitions(self, "transition_keys")
        self.built = True
        keep_frozen(self)

    def call(
        self,
        ids: tf.Tensor | tf.RaggedTensor,
        training: bool | None = None,
        return_sequences: bool = False,
        features: Mapping[str, tf.Tensor] | None = None,
        with_start: bool = False,
    ) -> tf.Tensor:
        """Encodes histories.

        Args:
            ids: `[batch, length]` integer item ids, oldest first, padded
                with 0 on either side, or ragged; the answer is the same.
            training: Whether dropout is active.
            return_sequences: Return the encoder's vector at every position,
                for training.
            features: What is known besides, each entry where the tower reads
                it; what is missing is unknown, and other entries are ignored:
                `history_features`, `[batch, length, width]` int rows of the
                layer's table, with `history_weights` of the same shape, float
                (default 1, and 0 for row 0); `context_features` and
                `context_weights`, likewise, of what was asked for after each
                event, or `[batch, width]` for that after the last one;
                `user_features` and `user_weights`, `[batch, width]`;
                `history_times`, `[batch, length]` int64 seconds, and
                `request_times`, likewise, of what was asked for (default: the
                times of the history), -1 for unknown.
            with_start: With `return_sequences` and `user_features`: return
                the vector before the first event as well, first.

        Returns:
            `[batch, output_dim]`: the vector at each history's last item
            (without any, zero, or with `user_features` the vector at the
            start), and the sketch. With `return_sequences` `[batch, length,
            embedding_dim]`, zero at padding, or `[batch, 1 + length,
            embedding_dim]`.

        Raises:
            ValueError: `ids`, features or the encoder's output have another
                shape.
        """
        if isinstance(ids, tf.RaggedTensor):
            ids = ids.to_tensor()
        ids = self.embedding.integer_ids(ids)
        if ids.shape.rank not in (None, 2):
            raise ValueError(
                "`ids` must be histories, [batch, length]. Received shape: "
                f"{ids.shape}"
            )
        mask = tf.not_equal(ids, 0)
        # The mask goes to the encoder as an argument, if it takes one. Attached
        # to the vectors too, it would make Keras warn where it does not.
        vectors = tf.identity(self.embedding(ids))
        vectors = _with_features(self, vectors, ids, training)
        if training and self.item_dropout:
            vectors *= _kept(self, ids, self.item_dropout)
        found = _Known(self, features or {}, mask, training)
        vectors, mask, times = found.added(vectors)
        last = last_positions(mask)
        arguments: dict[str, Any] = {"mask": mask, "training": training}
        if times is not None:
            arguments["times"] = times
        if not return_sequences:
            # Some encoders make little of all other positions.
            arguments["only_positions"] = last
        outputs = self.encoder(
            vectors,
            **{
                name: value
                for name, value in arguments.items()
                if name in self._encoder_arguments
            },
        )
        outputs = tf.cast(outputs, self.compute_dtype)
        has_one = "only_positions" in self._encoder_arguments & arguments.keys()
        _check_encoded(vectors, outputs, has_one)
        if return_sequences:
            events = outputs
            if self.user_features is not None:
                events = outputs[:, 1:]
            events *= tf.cast(found.mask, outputs.dtype)[..., tf.newaxis]
            if self.user_features is None or not with_start:
                return events
            start = pick(found.start_position, outputs)[:, tf.newaxis]
            return tf.concat([start, events], axis=1)
        if "only_positions" not in self._encoder_arguments:
            vectors = pick(last, outputs)
        else:
            vectors = tf.where(last[:, tf.newaxis] >= 0, outputs, 0)
        if not self.transition_dim:
            return vectors
        return tf.concat([vectors, self._sketch(ids, vectors.dtype)], axis=1)

    def _sketch(self, ids: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """`[batch, transition_dim]` of `[batch, length]` ids."""
        is_item = tf.cast(ids >= FIRST_ITEM_INDEX, tf.float32)
        after = tf.cumsum(is_item, axis=1, exclusive=True, reverse=True)
        weights = is_item * self.transition_decay**after
        keys = tf.gather(tf.convert_to_tensor(self.transition_keys), ids)
        sketch = tf.einsum("bl,bld->bd", weights, tf.cast(keys, tf.float32))
        return tf.cast(self.transition_weight * sketch, dtype)

    @property
    def output_dim(self) -> int:
        """Entries of a query: `embedding_dim` and `transition_dim`."""
        return self.embedding.embedding_dim + self.transition_dim

    def compute_output_shape(self, ids_shape: Any) -> tuple[int | None, ...]:
        """`[batch, output_dim]`, without `return_sequences`."""
        return (*ids_shape[:-1], self.output_dim)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Shape and type of the answer to a symbolic call."""
        return traced_spec(self, *args, **kwargs)

    def compute_mask(
        self,
        ids: tf.Tensor,
        previous_mask: tf.Tensor | None = None,
    ) -> None:
        """No mask leaves the tower: its default output has one vector."""
        return None

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "embedding": serialize(self.embedding),
            "encoder": serialize(self.encoder),
            "item_features": serialize(self.item_features),
            "id_dropout": self.id_dropout,
            "item_dropout": self.item_dropout,
            **{
                f"{part}_features": serialize(getattr(self, f"{part}_features"))
                for part in PARTS
            },
            "feature_dropout": self.feature_dropout,
            "transition_dim": self.transition_dim,
            "transition_weight": self.transition_weight,
            "transition_decay": self.transition_decay,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HistoryTower:
        """Makes a tower from `get_config`'s answer."""
        parts = [f"{p}_features" for p in PARTS if f"{p}_features" in config]
        nested = ("embedding", "encoder", "item_features", *parts)
        return super().from_config(_with_layers(config, nested))


@keras.saving.register_keras_serializable(package="recsys")
class CandidateTower(keras.layers.Layer):
    """The candidate tower: an item id to a vector.

    Without features it is the row of the shared table itself; with them the
    feature vector is added to that row. With a `transition_dim`, the item's
    transition values follow.

    Args:
        embedding: The shared item table.
        item_features: A layer from ids `[...]` to `[..., embedding_dim]`
            that is added to the item vectors, or None.
        id_dropout: The share of candidates of which training sees the
            features only, so that these learn to stand for an item alone.
        transition_dim: Entries of `transition_values`, which are not trained
            and follow the item's own; see `HistoryTower`.
        **kwargs: Keras's own layer arguments.

    Raises:
        TypeError: `embedding` is not a `SharedItemEmbedding`.
        ValueError: `id_dropout` is not within [0, 1), or without features, or
            `transition_dim` is negative.
    """

    def __init__(
        self,
        embedding: SharedItemEmbedding,
        item_features: keras.layers.Layer | None = None,
        id_dropout: float = 0.0,
        transition_dim: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embedding = _checked(embedding)
        self.transition_dim = _checked_dim(transition_dim)
        self.item_features = item_features
        self.id_dropout = _checked_dropout(id_dropout, item_features)
        if id_dropout:
            self._seeds = keras.random.SeedGenerator()

    def build(self, input_shape: Any = None) -> None:
        """Creates the weights of the table and the features."""
        _build_once(self.embedding, (None,))
        _build_once(self.item_features, (None,))
        _add_transitions(self, "transition_values")
        self.built = True
        keep_frozen(self)

    def call(
        self,
        ids: tf.Tensor,
        training: bool | None = None,
        with_transitions: bool = True,
    ) -> tf.Tensor:
        """Encodes candidates.

        Args:
            ids: `[...]` integer item ids of any rank.
            training: Whether `id_dropout` is active.
            with_transitions: False leaves out what is not trained.

        Returns:
            `[..., embedding_dim + transition_dim]`.
        """
        ids = self.embedding.integer_ids(ids)
        # Without the table's mask, which a sum with features would not have.
        vectors = tf.identity(self.embedding(ids))
        vectors = _with_features(self, vectors, ids, training)
        if not self.transition_dim or not with_transitions:
            return vectors
        values = tf.gather(tf.convert_to_tensor(self.transition_values), ids)
        return tf.concat([vectors, tf.cast(values, vectors.dtype)], axis=-1)

    @property
    def output_dim(self) -> int:
        """Entries of a vector: `embedding_dim` and `transition_dim`."""
        return self.embedding.embedding_dim + self.transition_dim

    @property
    def is_table(self) -> bool:
        """Whether an item's vector is its row of the table, and no more."""
        return self.item_features is None and not self.transition_dim

    def compute_output_shape(self, ids_shape: Any) -> tuple[int | None, ...]:
        """`[..., output_dim]`."""
        return (*ids_shape, self.output_dim)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Shape and type of the answer to a symbolic call."""
        return traced_spec(self, *args, **kwargs)

    def all_candidates(
        self, training: bool | None = None, with_transitions: bool = True
    ) -> tf.Tensor:
        """Returns `[vocabulary_size, output_dim]`, every row's vector.

        Row i is the vector of id i. Rows 0 and 1, padding and unknown, are
        there so that ids index the result, and are never candidates.

        Args:
            training: Whether `id_dropout` is active.
            with_transitions: False leaves out what is not trained.
        """
        if not self.built:
            self.build()
        table = self.embedding.table.rows()
        ids = tf.range(self.embedding.vocabulary_size)
        vectors = _with_features(self, table, ids, training)
        if not self.transition_dim or not with_transitions:
            return vectors
        values = tf.cast(self.transition_values, vectors.dtype)
        return tf.concat([vectors, values], axis=1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "embedding": serialize(self.embedding),
            "item_features": serialize(self.item_features),
            "id_dropout": self.id_dropout,
            "transition_dim": self.transition_dim,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CandidateTower:
        """Makes a tower from `get_config`'s answer."""
        nested = ("embedding", "item_features")
        return super().from_config(_with_layers(config, nested))


def _checked(embedding: SharedItemEmbedding) -> SharedItemEmbedding:
    if not isinstance(embedding, SharedItemEmbedding):
        raise TypeError(
            "`embedding` must be a SharedItemEmbedding. Received: "
            f"{type(embedding).__name__}"
        )
    return embedding


def _check_encoded(
    vectors: tf.Tensor, outputs: tf.Tensor, has_one: bool
) -> None:
    """Raises ValueError unless an encoder's output has the shape it should."""
    expected = vectors.shape
    if has_one:
        expected = expected[:1] + expected[2:]
    if not expected.is_compatible_with(outputs.shape):
        raise ValueError(
            "`encoder` must return vectors of the same shape as it receives, "
            f"[batch, length, embedding_dim]. Expected: {expected}. "
            f"Received: {outputs.shape}"
        )


def _checked_share(name: str, share: float) -> float:
    if not 0 <= share < 1:
        raise ValueError(
            f"`{name}` must be at least 0 and below 1. Received: {share}"
        )
    return share


def _checked_dim(transition_dim: int) -> int:
    if transition_dim < 0 or transition_dim != int(transition_dim):
        raise ValueError(
            "`transition_dim` must be a whole number that is not negative. "
            f"Received: {transition_dim}"
        )
    return int(transition_dim)


def _add_transitions(tower: HistoryTower | CandidateTower, name: str) -> None:
    """Adds the weight that makes a sketch, if the tower has one."""
    if tower.transition_dim and not hasattr(tower, name):
        shape = (tower.embedding.vocabulary_size, tower.transition_dim)
        weight = tower.add_weight(
            name=name, shape=shape, initializer="zeros", trainable=False
        )
        setattr(tower, name, weight)


def _checked_dropout(
    id_dropout: float, item_features: keras.layers.Layer | None
) -> float:
    _checked_share("id_dropout", id_dropout)
    if id_dropout and item_features is None:
        raise ValueError(
            "`id_dropout` must be given with `item_features` only. Received: "
            f"id_dropout={id_dropout} and item_features=None"
        )
    return id_dropout


def _with_features(
    tower: HistoryTower | CandidateTower,
    vectors: tf.Tensor | tf.RaggedTensor,
    ids: tf.Tensor | tf.RaggedTensor,
    training: bool | None,
) -> tf.Tensor | tf.RaggedTensor:
    """Adds the features of the ids, if any, to their rows of the table."""
    vectors = tf.cast(vectors, tower.compute_dtype)
    if tower.item_features is None:
        return vectors
    if training and tower.id_dropout:
        # Kept rows are not scaled up: what remains is what serving sees, an
        # item with a row or one without.
        vectors *= _kept(tower, ids, tower.id_dropout)
    return vectors + tf.cast(tower.item_features(ids), vectors.dtype)


def _kept(
    tower: HistoryTower | CandidateTower, ids: tf.Tensor, dropout: float
) -> tf.Tensor:
    """Draws `[..., 1]`, 0 for the share of the ids to drop and 1 for others."""
    drawn = keras.random.uniform(tf.shape(ids), seed=tower._seeds)
    return tf.cast(drawn >= dropout, tower.compute_dtype)[..., tf.newaxis]


class _Known:
    """What is known of the histories in a call of a `HistoryTower`."""

    def __init__(
        self,
        tower: HistoryTower,
        features: Mapping[str, tf.Tensor],
        mask: tf.Tensor,
        training: bool | None,
    ) -> None:
        self.mask = mask
        self._tower = tower
        self._features = features
        self._training = training
        self._sees_context: tf.Tensor | None = None

    @functools.cached_property
    def start_position(self) -> tf.Tensor:
        """`[batch]` int32: of the start, the place before the first event."""
        positions = tf.range(tf.shape(self.mask)[1])
        first = tf.where(self.mask, positions, tf.int32.max)
        first = tf.reduce_min(first, axis=1)
        return tf.where(first == tf.int32.max, 0, first)

    def added(
        self, vectors: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, tf.Tensor] | None]:
        """Adds features to the vectors of the items.

        Args:
            vectors: `[batch, length, dim]`.

        Returns:
            The vectors that the encoder reads and their mask, with a start if
            the tower has one, and the times that it reads, if any.
        """
        tower, mask = self._tower, self.mask
        for part in ("history", "context"):
            found = self._vectors(part)
            if found is None:
                continue
            if len(found.shape) == 2:
                last = tf.one_hot(
                    last_positions(mask), tf.shape(mask)[1], dtype=found.dtype
                )
                found = last[..., tf.newaxis] * found[:, tf.newaxis]
            vectors += found
        times = self._times()
        if tower.user_features is None:
            return vectors, mask, times
        start = tf.cast(tower.start, vectors.dtype)[tf.newaxis]
        found = self._vectors("user")
        if found is not None:
            start += found
        place = tf.one_hot(
            self.start_position, tf.shape(mask)[1] + 1, dtype=vectors.dtype
        )
        # Beside the first event, wherever that is, as distances count.
        vectors = tf.pad(vectors, [[0, 0], [1, 0], [0, 0]])
        mask = tf.pad(mask, [[0, 0], [1, 0]])
        vectors *= tf.cast(mask, vectors.dtype)[..., tf.newaxis]
        vectors += place[..., tf.newaxis] * start[:, tf.newaxis]
        if times is not None:
            asked, known = (
                tf.pad(each, [[0, 0], [1, 0]], constant_values=-1)
                for each in times
            )
            times = asked, known
        return vectors, mask | (place > 0), times

    def _vectors(self, part: str) -> tf.Tensor | None:
        """Returns the vectors of a part, None where nothing is known."""
        layer = getattr(self._tower, f"{part}_features")
        values = self._features.get(f"{part}_features")
        if layer is None or values is None:
            return None
        values = tf.convert_to_tensor(values)
        weights = self._features.get(f"{part}_weights")
        if weights is None:
            weights = tf.cast(values != 0, tf.float32)
        ranks = {"history": (3,), "context": (2, 3), "user": (2,)}[part]
        if values.shape.rank not in (None, *ranks):
            shapes = {2: "[batch, width]", 3: "[batch, length, width]"}
            raise ValueError(
                f"`{part}_features` must be "
                f"{' or '.join(shapes[rank] for rank in ranks)}. Received "
                f"shape: {values.shape}"
            )
        found = tf.cast(layer(values, weights), self._tower.compute_dtype)
        if self._training and self._tower.feature_dropout:
            rows = tf.zeros(
                [tf.shape(values)[0], *[1] * (len(found.shape) - 2)]
            )
            kept = _kept(self._tower, rows, self._tower.feature_dropout)
            if part == "context":
                self._sees_context = tf.reshape(kept, [-1, 1]) > 0
            found *= kept
        return found

    def _times(self) -> tuple[tf.Tensor, tf.Tensor] | None:
        """Returns when each position asks, and when its event was."""
        known = self._features.get("history_times")
        if known is None:
            return None
        known = tf.where(self.mask, tf.cast(known, tf.int64), -1)
        asked = self._features.get("request_times")
        if asked is None:
            return known, known
        asked = tf.where(self.mask, tf.cast(asked, tf.int64), -1)
        if self._sees_context is not None:
            asked = tf.where(self._sees_context, asked, known)
        return asked, known


def _build_once(layer: keras.layers.Layer | None, shape: Any) -> None:
    """Builds a layer that another tower may have built already."""
    if layer is not None and not layer.built:
        layer.build(shape)


def last_positions(mask: tf.Tensor) -> tf.Tensor:
    """Returns `[batch]` int32, each row's last true position, -1 if none."""
    positions = tf.where(mask, tf.range(tf.shape(mask)[1]), -1)
    return tf.reduce_max(positions, axis=1)


def _with_layers(
    config: dict[str, Any], names: tuple[str, ...]
) -> dict[str, Any]:
    """Returns the config with its serialized layers made into layers."""
    nested = {name: deserialize(config[name]) for name in names}
    return {**config, **nested}
