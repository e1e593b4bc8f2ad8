"""Features as vectors: of items, and of events, requests and users."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from recsys.ids import FIRST_ITEM_INDEX


@keras.saving.register_keras_serializable(package="recsys")
class ItemFeatures(keras.layers.Layer):
    """Maps integer item ids of any rank to the vectors of their features.

    With the values vₖ of an item, their weights wₖ and its vector x, the
    answer is s (Σₖ wₖ E[vₖ] + W x), where E and W are trained. An item that
    was never trained gets a useful vector from values that others have as
    well. What each item's features are is part of the layer: it needs no
    further input, and holds them in memory and in files.

    Adam moves each weight by about the learning rate, however often a value
    occurs. The scale s makes steps of the features s times as long as those
    of the items' rows, which are to hold only what the features cannot tell.

    Both towers can share one layer (`item_features=`).

    Example, of four items with one or two values out of three:

    >>> features = ItemFeatures(6, 4, num_values=4, values_per_item=2)
    >>> features.set_features(
    ...     values=[[1, 2], [1, 0], [3, 0], [2, 3]],
    ...     weights=[[0.7, 0.7], [1, 0], [1, 0], [0.7, 0.7]],
    ... )
    >>> features(np.array([2, 5])).shape
    TensorShape([2, 4])

    Args:
        vocabulary_size: Rows: items, padding (0) and unknown (1).
        embedding_dim: Length of each vector.
        num_values: Rows of E, row 0, which stands for no value, included.
        values_per_item: The most values that an item has.
        vector_dim: Length of the vectors x; 0 where there are none.
        scale: The factor s of the answer.
        embeddings_initializer: A Keras initializer for E and W, default normal
            with a standard deviation of 0.02 / `scale`.
        **kwargs: Keras's own layer arguments.

    Raises:
        ValueError: A size is too small, or there are no features at all.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        num_values: int,
        values_per_item: int,
        vector_dim: int = 0,
        scale: float = 4.0,
        embeddings_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, size, lowest in (
            ("vocabulary_size", vocabulary_size, FIRST_ITEM_INDEX + 1),
            ("embedding_dim", embedding_dim, 1),
            ("num_values", num_values, 1),
            ("values_per_item", values_per_item, 0),
            ("vector_dim", vector_dim, 0),
        ):
            if size < lowest:
                raise ValueError(
                    f"`{name}` must be at least {lowest}. Received: {size}"
                )
        if not values_per_item and not vector_dim:
            raise ValueError(
                "`values_per_item` or `vector_dim` must be positive. "
                "Received: 0 and 0"
            )
        self.vocabulary_size = vocabulary_size
        self.embedding_dim = embedding_dim
        if not scale > 0:
            raise ValueError(f"`scale` must be positive. Received: {scale}")
        self.num_values = num_values
        self.values_per_item = values_per_item
        self.vector_dim = vector_dim
        self.scale = scale
        if embeddings_initializer is None:
            embeddings_initializer = keras.initializers.RandomNormal(
                stddev=0.02 / scale
            )
        self.embeddings_initializer = keras.initializers.get(
            embeddings_initializer
        )

    def build(self, input_shape: Any = None) -> None:
        """Creates E and W, and the features of every item, all empty."""
        rows, dim = self.vocabulary_size, self.embedding_dim
        self.values: Any = None
        self.value_weights: Any = None
        self.vectors: Any = None
        if self.values_per_item:
            self.embeddings = self.add_weight(
                name="embeddings",
                shape=(self.num_values, dim),
                initializer=self.embeddings_initializer,
                autocast=False,
            )
            self.values = self._constant(
                "values", (rows, self.values_per_item), "int32"
            )
            self.value_weights = self._constant(
                "value_weights", (rows, self.values_per_item), "float32"
            )
        if self.vector_dim:
            self.projection = self.add_weight(
                name="projection",
                shape=(self.vector_dim, dim),
                initializer=self.embeddings_initializer,
                autocast=False,
            )
            self.vectors = self._constant(
                "vectors", (rows, self.vector_dim), "float32"
            )
        self.built = True

    def set_features(
        self, values: Any = None, weights: Any = None, vectors: Any = None
    ) -> None:
        """Sets the features of all items.

        Args:
            values: `[num_items, values_per_item]` int from 0 to
                `num_values - 1`; row i is of id i + 2.
            weights: `[num_items, values_per_item]` float, 0 where there is no
                value.
            vectors: `[num_items, vector_dim]` float.

        Raises:
            ValueError: A shape is wrong or a value out of range.
        """
        if not self.built:
            self.build()
        num_items = self.vocabulary_size - FIRST_ITEM_INDEX
        for name, given, variable, width in (
            ("values", values, "values", self.values_per_item),
            ("weights", weights, "value_weights", self.values_per_item),
            ("vectors", vectors, "vectors", self.vector_dim),
        ):
            shape = (0,) if given is None else np.shape(given)
            if shape != (num_items, width) and (given is not None or width):
                raise ValueError(
                    f"`{name}` must have the shape {(num_items, width)}. "
                    f"Received: {shape if given is not None else None}"
                )
            if not width:
                continue
            rows = np.asarray(given)
            if name == "values" and (
                rows.min() < 0 or rows.max() >= self.num_values
            ):
                raise ValueError(
                    f"`values` must be from 0 to {self.num_values - 1}. "
                    f"Received: {rows.min()} to {rows.max()}"
                )
            none = np.zeros((FIRST_ITEM_INDEX, width))
            getattr(self, variable).assign(np.concatenate([none, rows]))

    def call(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Looks up the features of items and adds up their vectors.

        Args:
            ids: `[...]` integer item ids, dense or ragged, of any rank.

        Returns:
            `[..., embedding_dim]`; zero for padding and unknown.
        """
        if isinstance(ids, tf.RaggedTensor):
            return tf.ragged.map_flat_values(self._vectors, ids)
        return self._vectors(tf.convert_to_tensor(ids))

    def embed(
        self, values: Any = None, weights: Any = None, vectors: Any = None
    ) -> tf.Tensor:
        """Returns the vectors of features, of items that may have no id yet.

        Args:
            values: `[..., width]` int, as in `set_features`; None only if the
                layer has no values.
            weights: `[..., width]` float, as in `set_features`.
            vectors: `[..., vector_dim]` float; None only if the layer has no
                vectors.

        Returns:
            `[..., embedding_dim]`.
        """
        parts = []
        if self.values_per_item:
            parts.append(weighted_sum(self.embeddings, values, weights))
        if self.vector_dim:
            projection = tf.convert_to_tensor(self.projection)
            vectors = tf.cast(vectors, projection.dtype)
            parts.append(tf.einsum("...x,xd->...d", vectors, projection))
        return tf.cast(self.scale * tf.add_n(parts), self.compute_dtype)

    def extended(
        self, values: Any = None, weights: Any = None, vectors: Any = None
    ) -> ItemFeatures:
        """Returns a layer with further items behind those of this one.

        E and W are copied, so the vectors of the old items do not change, and
        the new items have the vectors that `embed` returns for them.

        Args:
            values: `[num_new, width]`, as in `set_features`.
            weights: `[num_new, width]`.
            vectors: `[num_new, vector_dim]`.
        """
        added = [values, weights, vectors]
        sizes = {"vocabulary_size": self.vocabulary_size}
        sizes["vocabulary_size"] += len(next(x for x in added if x is not None))
        if self.values_per_item:
            width = max(self.values_per_item, np.shape(values)[1])
            sizes["values_per_item"] = width
        layer = self.from_config({**self.get_config(), **sizes})
        tables = (self.values, self.value_weights, self.vectors)
        layer.set_features(
            *(
                None if table is None else _stacked(table, rows)
                for table, rows in zip(tables, added, strict=True)
            )
        )
        for old, new in zip(
            self.trainable_weights, layer.trainable_weights, strict=True
        ):
            new.assign(old)
        return layer

    def _vectors(self, ids: tf.Tensor) -> tf.Tensor:
        if not ids.dtype.is_integer:
            ids = tf.cast(ids, tf.int64)
        features = [
            None
            if table is None
            else tf.gather(tf.convert_to_tensor(table), ids)
            for table in (self.values, self.value_weights, self.vectors)
        ]
        return self.embed(*features)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "embedding_dim": self.embedding_dim,
            "num_values": self.num_values,
            "values_per_item": self.values_per_item,
            "vector_dim": self.vector_dim,
            "scale": self.scale,
            "embeddings_initializer": keras.initializers.serialize(
                self.embeddings_initializer
            ),
        }

    def _constant(
        self, name: str, shape: tuple[int, int], dtype: str
    ) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=shape,
            initializer="zeros",
            dtype=dtype,
            trainable=False,
            autocast=False,
        )


def weighted_sum(table: Any, values: Any, weights: Any) -> tf.Tensor:
    """Adds up rows of a table.

    Args:
        table: `[num_values, dim]`.
        values: `[..., width]` int, rows of the table.
        weights: `[..., width]` float, 0 where there is none.

    Returns:
        `[..., dim]`.
    """
    # Most items have far fewer values than the one with the most.
    # The product makes the gradient dense. It would be a list of many
    # repeated rows, which Adam is slow on, and squares before it adds them.
    table = tf.convert_to_tensor(table) * 1.0
    weights = tf.cast(weights, table.dtype)
    shape = tf.shape(weights)
    flat = tf.reshape(weights, [-1])
    # In 32 bits, which LiteRT can divide.
    places = tf.cast(tf.where(flat != 0)[:, 0], tf.int32)
    rows = tf.gather(table, tf.gather(tf.reshape(values, [-1]), places))
    rows *= tf.gather(flat, places)[:, tf.newaxis]
    sums = tf.math.unsorted_segment_sum(
        rows,
        places // shape[-1],
        tf.reduce_prod(shape[:-1]),
    )
    dim = table.shape[-1]
    sums = tf.reshape(sums, tf.concat([shape[:-1], [dim]], 0))
    return tf.ensure_shape(sums, [*weights.shape[:-1], dim])


@keras.saving.register_keras_serializable(package="recsys")
class FeatureSum(keras.layers.Layer):
    """Adds up the vectors of the features of events, requests or users.

    With values vₖ and weights wₖ the answer is s Σₖ wₖ E[vₖ]; see
    `ItemFeatures`. What the values mean is the caller's matter; unknown
    features have weights of 0, and no features the vector 0.

    Args:
        num_values: Rows of E, row 0, which stands for no value, included.
        embedding_dim: Length of the vectors.
        scale: The factor s of the answer.
        **kwargs: Keras's own layer arguments.

    Raises:
        ValueError: A size or the scale is not positive.
    """

    def __init__(
        self,
        num_values: int,
        embedding_dim: int,
        scale: float = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, size in (
            ("num_values", num_values),
            ("embedding_dim", embedding_dim),
            ("scale", scale),
        ):
            if not size > 0:
                raise ValueError(f"`{name}` must be positive. Received: {size}")
        self.num_values = num_values
        self.embedding_dim = embedding_dim
        self.scale = scale

    def build(self, input_shape: Any = None) -> None:
        """Creates E, small."""
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.num_values, self.embedding_dim),
            initializer=keras.initializers.RandomNormal(
                stddev=0.02 / self.scale
            ),
            autocast=False,
        )
        self.built = True

    def call(self, values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Adds up vectors.

        Args:
            values: `[..., width]` int from 0 to `num_values - 1`.
            weights: `[..., width]` float.

        Returns:
            `[..., embedding_dim]`.
        """
        found = weighted_sum(self.embeddings, values, weights)
        return tf.cast(self.scale * found, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_values": self.num_values,
            "embedding_dim": self.embedding_dim,
            "scale": self.scale,
        }


def _stacked(table: keras.Variable, rows: Any) -> np.ndarray:
    """Returns the rows of the items and then others, as wide as the widest."""
    parts = [table.numpy()[FIRST_ITEM_INDEX:], np.asarray(rows)]
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts]
    )
