"""One embedding table for every place in a model where an item appears."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

POOLINGS = ("mean", "sum", "sqrtn")


@keras.saving.register_keras_serializable(package="recsys")
class SharedItemEmbedding(keras.layers.Layer):
    """Maps integer item ids of any rank to vectors of one shared table.

    Id 0 is padding: its vector is exactly zero and it is masked. Id 1 is
    the unknown item. Calling one instance in several places shares the
    table between them; two instances never share.

    A multi-valued feature (`[..., num_values]` ids) can be pooled into one
    vector, which is what `tf.feature_column.shared_embedding_columns` did:
    with weights w and vectors v of the non-padding values, `sum` is
    Σwv, `mean` is Σwv / Σw and `sqrtn` is Σwv / √Σw². Where nothing is left
    to pool, the result is zero.

    Example:

    >>> table = SharedItemEmbedding(vocabulary_size=10, embedding_dim=4)
    >>> table(np.array([[5, 2, 0]])).shape
    TensorShape([1, 3, 4])
    >>> table(np.array([[5, 2, 0]]), pooling="mean").shape
    TensorShape([1, 4])

    Args:
        vocabulary_size: Rows of the table, padding and unknown included.
        embedding_dim: Length of each vector.
        embeddings_initializer: A Keras initializer, default normal with a
            standard deviation of 0.02. Row 0 is never read, whatever it
            holds.
        **kwargs: Keras's own layer arguments (`name`, `dtype`, …).

    Raises:
        ValueError: `vocabulary_size` is under 3 (padding, unknown and one
            item) or `embedding_dim` is under 1.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        embeddings_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if vocabulary_size < 3:
            raise ValueError(
                "`vocabulary_size` must be at least 3 (padding, unknown and "
                f"one item), received {vocabulary_size}"
            )
        if embedding_dim < 1:
            raise ValueError(
                f"`embedding_dim` must be positive, received {embedding_dim}"
            )
        self.vocabulary_size = vocabulary_size
        self.embedding_dim = embedding_dim
        if embeddings_initializer is None:
            embeddings_initializer = keras.initializers.RandomNormal(
                stddev=0.02
            )
        self.embeddings_initializer = keras.initializers.get(
            embeddings_initializer
        )
        self.supports_masking = True
        self._table: keras.Variable | None = None

    @property
    def embeddings(self) -> keras.Variable:
        """`[vocabulary_size, embedding_dim]`, the one table.

        Raises:
            ValueError: The layer has not been built yet.
        """
        if self._table is None:
            raise ValueError(
                "`embeddings` exists only after the layer is built: call the "
                f"layer on ids or call `build()` first, received {self.name} "
                "unbuilt"
            )
        return self._table

    def build(self, input_shape: Any = None) -> None:
        """Creates the table; the shape of the ids does not matter."""
        if self._table is None:
            self._table = self.add_weight(
                name="embeddings",
                shape=(self.vocabulary_size, self.embedding_dim),
                initializer=self.embeddings_initializer,
            )
        self.built = True

    def call(
        self,
        ids: tf.Tensor | tf.RaggedTensor,
        weights: tf.Tensor | tf.RaggedTensor | None = None,
        pooling: str | None = None,
    ) -> tf.Tensor | tf.RaggedTensor:
        """Looks the ids up.

        Args:
            ids: `[...]` integers from 0 to `vocabulary_size - 1`, dense or
                ragged, of any rank.
            weights: Shaped as `ids`, one weight per value; only with
                `pooling`.
            pooling: None, or "mean", "sum" or "sqrtn" over the last axis.

        Returns:
            `[..., embedding_dim]`, or with `pooling` the same without the
            pooled axis. Ragged ids without pooling give a ragged tensor.

        Raises:
            ValueError: An unknown `pooling`, or `weights` without one.
        """
        if pooling is not None and pooling not in POOLINGS:
            raise ValueError(
                f"`pooling` must be one of {POOLINGS}, received {pooling!r}"
            )
        if weights is not None and pooling is None:
            raise ValueError(
                "`weights` needs `pooling`, received weights and pooling=None"
            )
        if isinstance(ids, tf.RaggedTensor):
            if pooling is None:
                return tf.ragged.map_flat_values(self._lookup, ids)
            ids = ids.to_tensor()
        if isinstance(weights, tf.RaggedTensor):
            weights = weights.to_tensor()
        vectors = self._lookup(ids)
        if pooling is None:
            return vectors
        return self._pool(tf.convert_to_tensor(ids), vectors, weights, pooling)

    def compute_mask(
        self,
        ids: tf.Tensor,
        previous_mask: tf.Tensor | None = None,
    ) -> tf.Tensor | None:
        """`[...]` boolean, true for every id but padding."""
        if isinstance(ids, tf.RaggedTensor):
            return None
        return tf.not_equal(ids, 0)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "embedding_dim": self.embedding_dim,
            "embeddings_initializer": keras.initializers.serialize(
                self.embeddings_initializer
            ),
        }

    def _lookup(self, ids: tf.Tensor) -> tf.Tensor:
        ids = tf.convert_to_tensor(ids)
        table = tf.convert_to_tensor(self.embeddings)
        vectors = tf.cast(tf.gather(table, ids), self.compute_dtype)
        return vectors * tf.cast(ids != 0, vectors.dtype)[..., tf.newaxis]

    def _pool(
        self,
        ids: tf.Tensor,
        vectors: tf.Tensor,
        weights: tf.Tensor | None,
        pooling: str,
    ) -> tf.Tensor:
        present = tf.cast(tf.not_equal(ids, 0), vectors.dtype)
        if weights is not None:
            present *= tf.cast(weights, vectors.dtype)
        total = tf.einsum("...vd,...v->...d", vectors, present)
        if pooling == "sum":
            return total
        if pooling == "mean":
            norm = tf.reduce_sum(present, axis=-1, keepdims=True)
        else:
            norm = tf.sqrt(
                tf.reduce_sum(tf.square(present), axis=-1, keepdims=True)
            )
        return tf.math.divide_no_nan(total, norm)
