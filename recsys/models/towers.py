"""The two towers: a history of items to a vector, an item to a vector."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from recsys.models.history_encoders import SelfAttentionEncoder
from recsys.models.shared_item_embedding import (
    SharedItemEmbedding,
    deserialize,
    keep_frozen,
    serialize,
    traced_spec,
)
from recsys.models.transformer_block import pick


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
        **kwargs: Keras's own layer arguments.

    Raises:
        TypeError: `embedding` is not a `SharedItemEmbedding`.
        ValueError: `id_dropout` or `item_dropout` is not within [0, 1), or
            `id_dropout` is without features.
    """

    def __init__(
        self,
        embedding: SharedItemEmbedding,
        encoder: keras.layers.Layer | None = None,
        item_features: keras.layers.Layer | None = None,
        id_dropout: float = 0.0,
        item_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embedding = _checked(embedding)
        self.encoder = SelfAttentionEncoder() if encoder is None else encoder
        self.item_features = item_features
        self.id_dropout = _checked_dropout(id_dropout, item_features)
        self.item_dropout = _checked_share("item_dropout", item_dropout)
        if id_dropout or item_dropout:
            self._seeds = keras.random.SeedGenerator()
        self._encoder_arguments = set(
            inspect.signature(self.encoder.call).parameters
        )
        if "mask" in self._encoder_arguments:
            # A keras.Sequential takes masks but does not say so, and Keras
            # would warn at every call.
            self.encoder.supports_masking = True

    def build(self, input_shape: Any = None) -> None:
        """Creates the weights of the table, features and encoder."""
        _build_once(self.embedding, (None, None))
        _build_once(self.item_features, (None, None))
        _build_once(self.encoder, (None, None, self.embedding.embedding_dim))
        self.built = True
        keep_frozen(self)

    def call(
        self,
        ids: tf.Tensor | tf.RaggedTensor,
        training: bool | None = None,
        return_sequences: bool = False,
    ) -> tf.Tensor:
        """Encodes histories.

        Args:
            ids: `[batch, length]` integer item ids, oldest first, padded
                with 0 on either side, or ragged; the answer is the same.
            training: Whether dropout is active.
            return_sequences: Return the vector at every position.

        Returns:
            `[batch, embedding_dim]`, the vector at each history's last item
            (zero for an empty history); with `return_sequences`
            `[batch, length, embedding_dim]`, zero at padding.

        Raises:
            ValueError: `ids` or the encoder's output have another shape.
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
        last = last_positions(mask)
        arguments: dict[str, Any] = {"mask": mask, "training": training}
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
            return outputs * tf.cast(mask, outputs.dtype)[..., tf.newaxis]
        if "only_positions" not in self._encoder_arguments:
            return pick(last, outputs)
        return tf.where(last[:, tf.newaxis] >= 0, outputs, 0)

    def compute_output_shape(self, ids_shape: Any) -> tuple[int | None, ...]:
        """`[batch, embedding_dim]`, without `return_sequences`."""
        return (*ids_shape[:-1], self.embedding.embedding_dim)

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
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HistoryTower:
        """Makes a tower from `get_config`'s answer."""
        nested = ("embedding", "encoder", "item_features")
        return super().from_config(_with_layers(config, nested))


@keras.saving.register_keras_serializable(package="recsys")
class CandidateTower(keras.layers.Layer):
    """The candidate tower: an item id to a vector.

    Without features it is the row of the shared table itself; with them the
    feature vector is added to that row.

    Args:
        embedding: The shared item table.
        item_features: A layer from ids `[...]` to `[..., embedding_dim]`
            that is added to the item vectors, or None.
        id_dropout: The share of candidates of which training sees the
            features only, so that these learn to stand for an item alone.
        **kwargs: Keras's own layer arguments.

    Raises:
        TypeError: `embedding` is not a `SharedItemEmbedding`.
        ValueError: `id_dropout` is not within [0, 1), or without features.
    """

    def __init__(
        self,
        embedding: SharedItemEmbedding,
        item_features: keras.layers.Layer | None = None,
        id_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embedding = _checked(embedding)
        self.item_features = item_features
        self.id_dropout = _checked_dropout(id_dropout, item_features)
        if id_dropout:
            self._seeds = keras.random.SeedGenerator()

    def build(self, input_shape: Any = None) -> None:
        """Creates the weights of the table and the features."""
        _build_once(self.embedding, (None,))
        _build_once(self.item_features, (None,))
        self.built = True
        keep_frozen(self)

    def call(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Encodes candidates.

        Args:
            ids: `[...]` integer item ids of any rank.
            training: Whether `id_dropout` is active.

        Returns:
            `[..., embedding_dim]`.
        """
        ids = self.embedding.integer_ids(ids)
        # Without the table's mask, which a sum with features would not have.
        vectors = tf.identity(self.embedding(ids))
        return _with_features(self, vectors, ids, training)

    def compute_output_shape(self, ids_shape: Any) -> tuple[int | None, ...]:
        """`[..., embedding_dim]`."""
        return (*ids_shape, self.embedding.embedding_dim)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Shape and type of the answer to a symbolic call."""
        return traced_spec(self, *args, **kwargs)

    def all_candidates(self, training: bool | None = None) -> tf.Tensor:
        """Returns `[vocabulary_size, embedding_dim]`, every row's vector.

        Row i is the vector of id i. Rows 0 and 1, padding and unknown, are
        there so that ids index the result, and are never candidates.

        Args:
            training: Whether `id_dropout` is active.
        """
        if not self.built:
            self.build()
        table = self.embedding.table.rows()
        ids = tf.range(self.embedding.vocabulary_size)
        return _with_features(self, table, ids, training)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "embedding": serialize(self.embedding),
            "item_features": serialize(self.item_features),
            "id_dropout": self.id_dropout,
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
