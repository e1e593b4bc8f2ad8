"""One embedding table for every place in a model where an item appears.

Keras marks a layer that it meets twice while it writes a file with a
`shared_object_id`, but the mark on the first place is lost when that place is
inside another layer or a functional sub-model; the file then loads as two
layers, one of them without weights, which is an error. So the layers of this
package set the mark themselves, at every place.

`to_json`, `get_config` and .h5 files of a functional model have no marks at
all in Keras; there the layers of this package write and read them too. The
configuration of a single layer has none: `from_config` makes new layers.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.models import functional

_PROBE = keras.initializers.Zeros()


# Keras's name for the objects that the file being read has brought so far.
_LOADED = "shared_objects/id_to_obj_map"


def marks_shared() -> bool:
    """Returns whether a file or a functional model is being written."""
    if _outermost(functional.Functional.get_config) is not None:
        return True
    # In a file Keras notices repetitions.
    keras.saving.serialize_keras_object(_PROBE)
    again = keras.saving.serialize_keras_object(_PROBE)
    return "shared_object_id" in again


@contextlib.contextmanager
def _sharing() -> Iterator[bool]:
    """Makes layers with one mark one layer; yields whether that is possible.

    It is while Keras reads a .keras file, and while it rebuilds a functional
    model from a configuration, of which all parts belong together.
    """
    if global_state.get_global_attribute(_LOADED) is not None:
        yield True
        return
    frame = _outermost(functional.functional_from_config)
    if frame is None or "created_layers" not in frame.f_locals:
        yield False
        return
    # Kept among the layers of the model being rebuilt, in the one place that
    # lives exactly as long as the rebuilding. Layer names are strings.
    loaded = frame.f_locals["created_layers"].setdefault(_PROBE, {})
    global_state.set_global_attribute(_LOADED, loaded)
    try:
        yield True
    finally:
        global_state.set_global_attribute(_LOADED, None)


def _outermost(function: Callable) -> types.FrameType | None:
    """Returns the outermost running call of a function, if any."""
    found: types.FrameType | None = None
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is function.__code__:
            found = frame
        frame = frame.f_back
    return found


def forget(layer: keras.layers.Layer) -> None:
    """Keeps Keras from marking a layer that is being written.

    From the third place on Keras would load the layer of the second one, and
    then mistake its calls there for those of the sub-model being loaded
    ("not connected to `inputs`"). A layer that holds what is shared in a layer
    of its own may as well be several.

    Args:
        layer: The layer whose `get_config` calls this.
    """
    # Keras has no public name for what it has seen.
    seen = global_state.get_global_attribute("shared_objects/id_to_config_map")
    if seen is not None:
        seen.pop(id(layer), None)


def serialize(layer: keras.layers.Layer | None) -> dict[str, Any] | None:
    """Returns a layer's configuration for that of a layer which holds it."""
    config = keras.saving.serialize_keras_object(layer)
    if layer is not None and marks_shared():
        config["shared_object_id"] = id(layer)
    return config


def deserialize(config: Any) -> Any:
    """Returns the layer of a serialized one; anything else as it is."""
    if isinstance(config, dict):
        with _sharing():
            return keras.saving.deserialize_keras_object(config)
    return config


def keep_frozen(layer: keras.layers.Layer) -> None:
    """Freezes what a layer made of its own while it was frozen itself.

    Keras freezes the parts that a layer has when `trainable` is set, and asks
    each variable whether it is trained. To be called at the end of `build`.

    Args:
        layer: The layer that was built.
    """
    if not layer.trainable:
        # TensorFlow skips an assignment that changes nothing.
        keras.layers.Layer.trainable.fset(layer, False)


def traced_spec(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
    """Returns the spec of a symbolic call as Keras finds it by tracing.

    A layer that has `compute_output_shape` would be asked that instead, without
    the arguments that change the shape.
    """
    return super(keras.layers.Layer, layer).compute_output_spec(*args, **kwargs)


POOLINGS = ("mean", "sum", "sqrtn")

# Up to where each type counts without gaps.
_EXACT_IDS = {
    tf.bfloat16: 2**8,
    tf.float16: 2**11,
    tf.float32: 2**24,
    tf.float64: 2**53,
}


@keras.saving.register_keras_serializable(package="recsys")
class ItemTable(keras.layers.Layer):
    """The variable of a `SharedItemEmbedding`; not for use by itself.

    A layer of its own because Keras cannot load a file in which one layer is
    called in two functional sub-models. What it loads is two embeddings;
    since both hold this one layer, they have one variable nevertheless.

    Args:
        vocabulary_size: Rows.
        embedding_dim: Columns.
        initializer: A Keras initializer.
        regularizer: A Keras regularizer, or None.
        constraint: A Keras constraint, or None.
        lora_rank: Rank of the low-rank update, or None for none.
        lora_alpha: The update is scaled by `lora_alpha / lora_rank`.
        **kwargs: Keras's own layer arguments.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        initializer: Any,
        regularizer: Any = None,
        constraint: Any = None,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.shape = (vocabulary_size, embedding_dim)
        self.initializer = keras.initializers.get(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self._saved_shape: tuple[int, ...] | None = None

    def build(self, input_shape: Any = None) -> None:
        """Creates the variable."""
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=self.shape,
            initializer=_InPieces(self.initializer),
            regularizer=self.regularizer,
            constraint=self.constraint,
            # In mixed precision rows are cast, not the whole table.
            autocast=False,
        )
        self.built = True
        if self.lora_rank:
            self.enable_lora(self.lora_rank, self.lora_alpha)
        keep_frozen(self)

    def enable_lora(
        self,
        rank: int,
        lora_alpha: float | None = None,
        a_initializer: Any = "he_uniform",
        b_initializer: Any = "zeros",
    ) -> None:
        """Freezes the table and adds a trainable low-rank update to it."""
        if self.constraint is not None:
            raise ValueError(
                "LoRA needs a table without `embeddings_constraint`. "
                f"Received: {self.constraint}"
            )
        self._tracker.unlock()
        self.lora_rank, self.lora_alpha = rank, lora_alpha
        self.lora_a, self.lora_b = (
            self.add_weight(
                name=f"lora_embeddings_{name}",
                shape=shape,
                initializer=initializer,
                regularizer=self.regularizer,
                autocast=False,
            )
            for name, shape, initializer in (
                ("a", (self.shape[0], rank), a_initializer),
                ("b", (rank, self.shape[1]), b_initializer),
            )
        )
        self.embeddings.trainable = False
        self._tracker.lock()

    def rows(self, ids: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the rows of `[...]` ids, or all: `[..., embedding_dim]`."""
        if ids is None:
            rows = tf.convert_to_tensor(self.embeddings)
        else:
            # From the variable itself: a tensor of it would be a copy of the
            # whole table, once an optimizer has updated single rows.
            rows = tf.gather(self.embeddings.value, ids)
        if not self.lora_rank:
            return rows
        scale = (self.lora_alpha or self.lora_rank) / self.lora_rank
        factor = self.lora_a.value
        factor = factor if ids is None else tf.gather(factor, ids)
        update = tf.einsum("...r,rd->...d", factor, self.lora_b.value)
        return rows + scale * update

    def load_own_variables(self, store: Any) -> None:
        """Loads the table.

        Raises:
            ValueError: The saved table has another shape.
        """
        # A file has the table at its first place alone, while Keras tries the
        # other places after an error and would report the last one.
        if "0" in store.keys():  # noqa: SIM118
            self._saved_shape = tuple(store["0"].shape)
        if self._saved_shape not in (None, self.shape):
            raise ValueError(
                "the saved item table must have the shape of the model's, "
                f"{self.shape}. Received: {self._saved_shape}"
            )
        super().load_own_variables(store)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        vocabulary_size, embedding_dim = self.shape
        return {
            **super().get_config(),
            "vocabulary_size": vocabulary_size,
            "embedding_dim": embedding_dim,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
        }


class _InPieces(keras.initializers.Initializer):
    """Fills a large table piece by piece."""

    # All at once, drawing ten million vectors takes several times the memory of
    # the table. TensorFlow keeps what the pieces took, so they are small: 4 MB.

    _NUM_AT_ONCE = 2**20

    def __init__(self, initializer: keras.initializers.Initializer) -> None:
        self._initializer = initializer

    def __call__(self, shape: Any, dtype: Any = None) -> tf.Tensor:
        """Returns the values of the whole table."""
        initializer = self._initializer
        num_rows, columns = shape
        if num_rows * columns <= self._NUM_AT_ONCE or not isinstance(
            initializer,
            keras.initializers.RandomNormal
            | keras.initializers.RandomUniform
            | keras.initializers.TruncatedNormal,
        ):
            return initializer(shape, dtype=dtype)
        pieces = self._pieces(num_rows, columns, dtype)
        if tf.distribute.has_strategy():
            # A variable made here would be one of the strategy's, with copies.
            return tf.concat([values for _, values in pieces], axis=0)
        table = tf.Variable(tf.zeros(shape, dtype), trainable=False)
        for begin, values in pieces:
            # Assigning to a slice would copy the table each time.
            rows = tf.range(begin, begin + values.shape[0])
            table.scatter_update(tf.IndexedSlices(values, rows))
        return table.read_value_no_copy()

    def _pieces(
        self, num_rows: int, columns: int, dtype: Any
    ) -> Iterator[tuple[int, tf.Tensor]]:
        """Yields where each piece begins, and its values."""
        initializer = self._initializer
        step = max(1, self._NUM_AT_ONCE // columns)
        for begin in range(0, num_rows, step):
            end = min(begin + step, num_rows)
            yield begin, initializer((end - begin, columns), dtype=dtype)
            # An initializer returns the same values at each call.
            if isinstance(initializer.seed, int):
                config = {
                    **initializer.get_config(),
                    "seed": (initializer.seed + 1) % 2**31,
                }
                initializer = type(initializer).from_config(config)


@keras.saving.register_keras_serializable(package="recsys")
class SharedItemEmbedding(keras.layers.Embedding):
    """Maps integer item ids of any rank to vectors of one shared table.

    Id 0 is padding: its vector is exactly zero and it is masked. Id 1 is
    the unknown item. Calling one instance in several places shares the
    table between them; two instances never share. Files of every format,
    `to_json` and `from_config` keep it so. `keras.models.clone_model` copies
    the layers of a functional model one by one, so that its towers get a table
    each; cloning a `TwoTower` keeps one.

    A multi-valued feature (`[..., num_values]` ids) can be pooled into one
    vector, which is what `tf.feature_column.shared_embedding_columns` did:
    with weights w and vectors v of the non-padding values, `sum` is
    Σwv, `mean` is Σwv / Σw and `sqrtn` is Σwv / √Σw². Where nothing is left
    to pool, the result is zero.

    Examples:
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
        embeddings_regularizer: A Keras regularizer of the table, or None.
        embeddings_constraint: A Keras constraint of the table, or None; for
            vectors of bounded length `keras.constraints.MaxNorm(2, axis=1)`.
            Like a regularizer, it reads the whole table at every step.
        mask_zero: Always True; accepted because `keras.layers.Embedding` has
            it.
        weights: Initial values of the table, `[vocabulary_size,
            embedding_dim]`, or a list of that array.
        lora_rank: Freezes the table and trains an update of this rank.
        lora_alpha: Scales the update by `lora_alpha / lora_rank`; default 1.
        table: For Keras, which gives the one table of a file to each layer
            of it; leave it out.
        **kwargs: Keras's own layer arguments (`name`, `dtype`, …).

    Raises:
        ValueError: `vocabulary_size` is under 3 (padding, unknown and one
            item), `embedding_dim` is under 1, `weights` have another shape,
            or `mask_zero` is False.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        embeddings_initializer: Any = None,
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        mask_zero: bool = True,
        weights: Any = None,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        table: ItemTable | None = None,
        **kwargs: Any,
    ) -> None:
        if vocabulary_size < 3:
            raise ValueError(
                "`vocabulary_size` must be at least 3 (padding, unknown and "
                f"one item). Received: {vocabulary_size}"
            )
        if embedding_dim < 1:
            raise ValueError(
                f"`embedding_dim` must be positive. Received: {embedding_dim}"
            )
        if not mask_zero:
            raise ValueError(
                "`mask_zero` must be True: id 0 is padding. Received: "
                f"{mask_zero}"
            )
        if embeddings_initializer is None:
            embeddings_initializer = keras.initializers.RandomNormal(
                stddev=0.02
            )
        super().__init__(
            int(vocabulary_size),
            int(embedding_dim),
            embeddings_initializer,
            embeddings_regularizer,
            embeddings_constraint,
            **kwargs,
        )
        self.vocabulary_size = vocabulary_size
        self.embedding_dim = embedding_dim
        # Masks are attached by `call`, which knows of `pooling`; Keras would
        # ask `compute_mask`, which does not.
        self.supports_masking = False
        self.table = table or ItemTable(
            vocabulary_size,
            embedding_dim,
            self.embeddings_initializer,
            self.embeddings_regularizer,
            self.embeddings_constraint,
            lora_rank,
            lora_alpha,
            dtype=self.dtype_policy,
            trainable=self.trainable,
            name="table",
        )
        if weights is not None:
            self.build()
            self.table.embeddings.assign(self._checked_weights(weights))

    @property
    def embeddings(self) -> keras.Variable:
        """`[vocabulary_size, embedding_dim]`, the one table.

        Raises:
            ValueError: The layer has not been built yet.
        """
        if not self.table.built:
            raise ValueError(
                "`embeddings` must be read after the layer is built: call the "
                "layer on ids, or `build()`, first. Received: the unbuilt "
                f"layer {self.name}"
            )
        return self.table.embeddings

    def build(self, input_shape: Any = None) -> None:
        """Creates the table; the shape of the ids does not matter."""
        if not self.table.built:
            self.table.build()
        self.built = True

    def enable_lora(
        self,
        rank: int,
        lora_alpha: float | None = None,
        a_initializer: Any = "he_uniform",
        b_initializer: Any = "zeros",
    ) -> None:
        """Freezes the table and trains a low-rank update of it.

        As for `keras.layers.Embedding`, but files hold the update by itself.
        Compile a model after this rather than before.

        Args:
            rank: Rank of the update.
            lora_alpha: Scales the update by `lora_alpha / rank`; default 1.
            a_initializer: A Keras initializer of `[vocabulary_size, rank]`.
            b_initializer: A Keras initializer of `[rank, embedding_dim]`.

        Raises:
            ValueError: The layer is not built, has a constraint, or has an
                update already.
        """
        if not self.table.built or self.table.lora_rank:
            state = "one with LoRA" if self.table.built else "an unbuilt layer"
            raise ValueError(
                "`enable_lora` needs a built layer without LoRA. Received: "
                f"{state}"
            )
        self.table.enable_lora(rank, lora_alpha, a_initializer, b_initializer)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Tells Keras that the table stays as it is; `quantize` then warns."""
        raise self._not_implemented_error(self.quantize)

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing: the variables are the table's."""

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing: the variables are the table's."""

    def _checked_weights(self, weights: Any) -> np.ndarray:
        """Returns the initial table, which may be the item of a list."""
        shape = self.table.shape
        values = np.asarray(weights, self.table.embeddings.dtype)
        if values.shape == (1, *shape):
            values = values[0]
        if values.shape != shape:
            raise ValueError(
                f"`weights` must have the shape {shape}. "
                f"Received: {values.shape}"
            )
        return values

    def call(
        self,
        ids: tf.Tensor | tf.RaggedTensor,
        weights: tf.Tensor | tf.RaggedTensor | None = None,
        pooling: str | None = None,
    ) -> tf.Tensor | tf.RaggedTensor:
        """Looks up the ids.

        Args:
            ids: `[...]` integers from 0 to `vocabulary_size - 1`, dense,
                ragged or sparse, of any rank. What a sparse tensor leaves out
                is padding.
            weights: Shaped as `ids`, one weight per value; only with
                `pooling`.
            pooling: None, or "mean", "sum" or "sqrtn" over the last axis.

        Returns:
            `[..., embedding_dim]`, or with `pooling` the same without the
            pooled axis. Ragged ids without pooling give a ragged tensor.

        Raises:
            TypeError: `ids` are of a type that cannot tell all ids apart.
            ValueError: An unknown `pooling`, `weights` without one, or of
                another shape than the ids, or a single id to pool.
        """
        if pooling is not None and pooling not in POOLINGS:
            raise ValueError(
                f"`pooling` must be None or one of {', '.join(POOLINGS)}. "
                f"Received: {pooling!r}"
            )
        if weights is not None and pooling is None:
            raise ValueError(
                "`weights` must be given with `pooling` only. Received: "
                "weights and pooling=None"
            )
        if isinstance(weights, tf.SparseTensor):
            weights = tf.sparse.to_dense(weights)
        ids = self.integer_ids(ids)
        if pooling is not None and ids.shape.rank == 0:
            raise ValueError(
                "`ids` must have an axis to pool, [..., num_values]. "
                "Received: a scalar"
            )
        if weights is not None:
            _check_weights(ids, weights)
        if isinstance(ids, tf.RaggedTensor):
            if pooling is None:
                return tf.ragged.map_flat_values(self._lookup, ids)
            ids = ids.to_tensor()
        if isinstance(weights, tf.RaggedTensor):
            weights = weights.to_tensor()
        vectors = self._lookup(ids)
        if pooling is not None:
            vectors = self._pool(ids, vectors, weights, pooling)
        mask = self._output_mask(ids, pooling)
        if mask is not None:
            vectors._keras_mask = mask
        return vectors

    def integer_ids(
        self, ids: tf.Tensor | tf.RaggedTensor
    ) -> tf.Tensor | tf.RaggedTensor:
        """Returns ids of any numeric type as int32 or int64.

        Keras makes floats of them where someone's input or signature names no
        type; these are as good as long as they count without gaps.

        Raises:
            TypeError: `ids` are of a type that cannot tell all ids apart.
        """
        if isinstance(ids, tf.SparseTensor):
            ids = tf.sparse.to_dense(ids)
        if not isinstance(ids, tf.RaggedTensor):
            ids = tf.convert_to_tensor(ids)
        if ids.dtype in (tf.int32, tf.int64):
            return ids
        largest = _EXACT_IDS.get(ids.dtype, 0)
        if not ids.dtype.is_integer and self.vocabulary_size > largest:
            raise TypeError(
                "`ids` must be integers, as from keras.Input(…, "
                f'dtype="int32"). Received dtype: {ids.dtype.name}, which is '
                f"exact up to {largest}, for {self.vocabulary_size} ids"
            )
        return tf.cast(ids, tf.int64)

    def compute_output_spec(
        self,
        ids: keras.KerasTensor,
        weights: keras.KerasTensor | None = None,
        pooling: str | None = None,
    ) -> keras.KerasTensor:
        """Shape, type and mask of the answer to a symbolic call."""
        vectors = traced_spec(self, ids, weights=weights, pooling=pooling)
        if ids.sparse:
            ids = keras.KerasTensor(ids.shape, ids.dtype)
        mask = None if ids.ragged else self._output_mask(ids, pooling)
        if mask is not None:
            vectors._keras_mask = mask
        return vectors

    def compute_output_shape(self, ids_shape: Any) -> tuple[int | None, ...]:
        """`[..., embedding_dim]`, without `pooling`."""
        return (*ids_shape, self.embedding_dim)

    def compute_mask(
        self,
        ids: tf.Tensor | tf.RaggedTensor,
        previous_mask: tf.Tensor | None = None,
    ) -> tf.Tensor | None:
        """`[...]` boolean, true for every id but padding; None if ragged."""
        if isinstance(ids, tf.RaggedTensor):
            return None
        return keras.ops.not_equal(ids, 0)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, in a model also which table."""
        config = {
            **keras.layers.Layer.get_config(self),
            "vocabulary_size": self.vocabulary_size,
            "embedding_dim": self.embedding_dim,
            "embeddings_initializer": keras.initializers.serialize(
                self.embeddings_initializer
            ),
            "embeddings_regularizer": keras.regularizers.serialize(
                self.embeddings_regularizer
            ),
            "embeddings_constraint": keras.constraints.serialize(
                self.embeddings_constraint
            ),
            "lora_rank": self.table.lora_rank,
            "lora_alpha": self.table.lora_alpha,
        }
        if marks_shared():
            forget(self)
            config["table"] = serialize(self.table)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SharedItemEmbedding:
        """Makes a layer; as a part of a model, over the table it names."""
        with _sharing() as shares:
            table = deserialize(config.get("table")) if shares else None
        return cls(**{**config, "table": table})

    def _lookup(self, ids: tf.Tensor) -> tf.Tensor:
        vectors = tf.cast(self.table.rows(ids), self.compute_dtype)
        # Not a product: row 0 may hold anything, NaN as well.
        is_item = (ids != 0)[..., tf.newaxis]
        return tf.where(is_item, vectors, tf.zeros([], vectors.dtype))

    def _output_mask(
        self, ids: tf.Tensor, pooling: str | None
    ) -> tf.Tensor | None:
        """The mask of the answer.

        A pooled vector is a value like any other, so one per row has no mask:
        Keras would leave rows without values out of a loss. One per position
        is padding where no value is left.
        """
        mask = self.compute_mask(ids)
        if pooling is None:
            return mask
        return keras.ops.any(mask, axis=-1) if len(ids.shape) > 2 else None

    def _pool(
        self,
        ids: tf.Tensor,
        vectors: tf.Tensor,
        weights: tf.Tensor | None,
        pooling: str,
    ) -> tf.Tensor:
        # Sums are float32: in half precision many values would stall.
        present = tf.cast(tf.not_equal(ids, 0), tf.float32)
        if weights is not None:
            present *= tf.cast(weights, tf.float32)
        wide = tf.cast(vectors, tf.float32)
        pooled = tf.einsum("...vd,...v->...d", wide, present)
        if pooling == "mean":
            norm = tf.reduce_sum(present, axis=-1, keepdims=True)
            pooled = tf.math.divide_no_nan(pooled, norm)
        elif pooling == "sqrtn":
            norm = tf.reduce_sum(tf.square(present), axis=-1, keepdims=True)
            pooled = tf.math.divide_no_nan(pooled, tf.sqrt(norm))
        return tf.cast(pooled, vectors.dtype)


def _check_weights(
    ids: tf.Tensor | tf.RaggedTensor, weights: tf.Tensor | tf.RaggedTensor
) -> None:
    """Raises ValueError unless there is one weight per id."""
    if isinstance(ids, tf.RaggedTensor) != isinstance(weights, tf.RaggedTensor):
        kinds = [
            "ragged" if isinstance(each, tf.RaggedTensor) else "dense"
            for each in (weights, ids)
        ]
        raise ValueError(
            "`weights` must be shaped as `ids`, one weight per id. Received: "
            f"{kinds[0]} weights for {kinds[1]} ids"
        )
    if isinstance(ids, tf.RaggedTensor):
        pairs = list(
            zip(ids.nested_row_splits, weights.nested_row_splits, strict=False)
        )
        same_rank = ids.ragged_rank == weights.ragged_rank
    else:
        weights = tf.convert_to_tensor(weights)
        same_rank = ids.shape.is_compatible_with(weights.shape)
        pairs = [(tf.shape(ids), tf.shape(weights))]
    message = (
        f"`weights` must be shaped as `ids`, {ids.shape}, one weight per id. "
        f"Received: {weights.shape}"
    )
    if not same_rank:
        raise ValueError(message)
    for one, other in pairs:
        one, other = tf.cast(one, tf.int64), tf.cast(other, tf.int64)
        if tf.executing_eagerly() and (
            one.shape != other.shape or bool(tf.reduce_any(one != other))
        ):
            raise ValueError(f"{message}, with rows of other lengths")
        tf.debugging.assert_equal(one, other, message)
