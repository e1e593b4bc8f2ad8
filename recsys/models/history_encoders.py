"""Encoders from the item vectors of a history to one vector per position.

Every encoder is causal: the vector at a position depends on that item and
those before it, so one pass over a history trains on every next item in it.
Each takes `[batch, length, dim]` and `mask`, `[batch, length]` boolean, true
at real items, and ignores padding wherever it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from recsys.models.shared_item_embedding import (
    deserialize,
    keep_frozen,
    serialize,
    traced_spec,
)
from recsys.models.transformer_block import (
    NUM_TIME_BUCKETS,
    Dropout,
    Packing,
    RMSNorm,
    TransformerBlock,
    pick,
    time_bias,
)


def accepted_by(encoder: keras.layers.Layer) -> set[str]:
    """Returns the names of the arguments that an encoder's `call` takes.

    One that takes a mask is marked to support masking.
    """
    names = set(inspect.signature(encoder.call).parameters)
    if "mask" in names:
        # A keras.Sequential takes masks but does not say so, and Keras would
        # warn at every call.
        encoder.supports_masking = True
    return names


class _Encoder(keras.layers.Layer):
    """What the encoders have in common: their answer has the vectors' shape."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_output_shape(self, vectors_shape: Any) -> Any:
        """`[batch, length, dim]`, as the vectors."""
        return vectors_shape

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Shape and type of the answer to a symbolic call."""
        return traced_spec(self, *args, **kwargs)


@keras.saving.register_keras_serializable(package="recsys")
class MeanPooling(_Encoder):
    """The mean of the item vectors so far, without weights of its own.

    Args:
        dropout: Share of the vectors' entries dropped in training.
        **kwargs: Keras's own layer arguments.
    """

    def __init__(self, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = Dropout(dropout, dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Creates nothing: the layer has no weights."""
        self.built = True
        keep_frozen(self)

    def call(
        self,
        vectors: tf.Tensor,
        mask: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Averages the vectors up to each position.

        Args:
            vectors: `[batch, length, dim]`.
            mask: `[batch, length]` boolean, or None if nothing is padding.
            training: Whether dropout is active.

        Returns:
            `[batch, length, dim]`, at each position the mean of the real
            vectors up to it; zero before the first of them.
        """
        vectors = self.dropout(vectors, training=training)
        # Sums are float32: in half precision a long history would stall.
        total = tf.cast(vectors, tf.float32)
        present = tf.ones(tf.shape(vectors)[:2], tf.float32)
        if mask is not None:
            present = tf.cast(mask, tf.float32)
            total *= present[..., tf.newaxis]
        count = tf.cumsum(present, axis=1)[..., tf.newaxis]
        mean = tf.math.divide_no_nan(tf.cumsum(total, axis=1), count)
        return tf.cast(mean, vectors.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "dropout": self.dropout.rate}


@keras.saving.register_keras_serializable(package="recsys")
class GRUEncoder(_Encoder):
    """A gated recurrent unit over the history.

    After GRU4Rec (Hidasi et al. 2016, https://arxiv.org/abs/1511.06939).

    Args:
        units: Size of the recurrent state; default the vectors' own.
        dropout: Share of the entries dropped in training, before the unit
            and after it.
        projection: For Keras, the configuration of a quantized projection;
            leave it out.
        **kwargs: Keras's own layer arguments.
    """

    def __init__(
        self,
        units: int | None = None,
        dropout: float = 0.2,
        projection: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.projection: Any = None
        if projection is not None:
            self.projection = keras.layers.Dense.from_config(projection)
        self.dropout = Dropout(dropout, dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Creates the recurrent unit and the projection of its state."""
        dim = input_shape[-1]
        self.gru = keras.layers.GRU(
            self.units or dim, return_sequences=True, dtype=self.dtype_policy
        )
        self.gru.build(input_shape)
        if self.projection is None:
            self.projection = keras.layers.Dense(dim, dtype=self.dtype_policy)
        self.projection.build((None, None, self.units or dim))
        self.built = True
        keep_frozen(self)

    def call(
        self,
        vectors: tf.Tensor,
        mask: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Encodes histories.

        Args:
            vectors: `[batch, length, dim]`.
            mask: `[batch, length]` boolean, or None if nothing is padding.
            training: Whether dropout is active.

        Returns:
            `[batch, length, dim]`.
        """
        vectors = self.dropout(vectors, training=training)
        if vectors.shape[1] == 0:
            return vectors  # Keras's GRU needs a step.
        states = self.gru(vectors, mask=mask, training=training)
        return self.projection(self.dropout(states, training=training))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        projection = None
        # A projection that is not quantized follows from the input's shape.
        if self.projection and self.projection.quantization_mode:
            projection = self.projection.get_config()
        return {
            **super().get_config(),
            "units": self.units,
            "dropout": self.dropout.rate,
            "projection": projection,
        }


@keras.saving.register_keras_serializable(package="recsys")
class SelfAttentionEncoder(_Encoder):
    """A stack of causal self-attention blocks (see `transformer_block`).

    The order of a history enters through the blocks' relative-position
    biases alone, so padding on either side changes nothing.

    Args:
        num_blocks: Number of blocks.
        num_heads: Attention heads of each block; divides the vectors' dim.
        dropout: Share of the entries dropped in training, from the input
            and from the output of each branch.
        max_distance: Distances in positions from this on share one bias.
        reads_times: Whether attention has a learned bias by the time between
            two events as well, the same in all blocks.
        **kwargs: Keras's own layer arguments.

    Raises:
        ValueError: An argument is out of range; at build, when `num_heads`
            does not divide the vectors' dim.
    """

    def __init__(
        self,
        num_blocks: int = 2,
        num_heads: int = 2,
        dropout: float = 0.2,
        max_distance: int = 200,
        reads_times: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (
            ("num_blocks", num_blocks),
            ("num_heads", num_heads),
            ("max_distance", max_distance),
        ):
            if value < 1:
                raise ValueError(
                    f"`{name}` must be positive. Received: {value}"
                )
        self.num_blocks = num_blocks
        self.num_heads = num_heads
        self.max_distance = max_distance
        self.reads_times = reads_times
        self._skips_padding = False
        self.dropout = Dropout(dropout, dtype=self.dtype_policy)

    @property
    def skips_padding(self) -> bool:
        """Whether training leaves padding out of everything but attention.

        That is faster where much of a batch is padding, and hardly slower
        where nothing is. It needs a mask. What is not padding gets the same
        vectors, up to rounding, but for dropout, which draws other numbers;
        padding gets zeros. False at first, and not saved with the model. XLA
        cannot compile it, so that Keras's `fit` does without XLA.
        """
        return self._skips_padding

    @skips_padding.setter
    def skips_padding(self, value: bool) -> None:
        self._skips_padding = bool(value)
        self.supports_jit = not value

    def build(self, input_shape: Any) -> None:
        """Creates the blocks."""
        self.blocks = [
            TransformerBlock(
                num_heads=self.num_heads,
                dropout=self.dropout.rate,
                max_distance=self.max_distance,
                dtype=self.dtype_policy,
                name=f"block_{i}",
            )
            for i in range(self.num_blocks)
        ]
        for block in self.blocks:
            block.build(input_shape)
            # tf.train.Checkpoint passes over Keras layers in a list.
            setattr(self, block.name, block)
        self.norm = RMSNorm(dtype=self.dtype_policy, name="norm")
        self.norm.build(input_shape)
        if self.reads_times:
            self.time_bias = self.add_weight(
                name="time_bias",
                shape=(self.num_heads, NUM_TIME_BUCKETS),
                initializer="zeros",
            )
        self.built = True
        keep_frozen(self)

    def call(
        self,
        vectors: tf.Tensor,
        mask: tf.Tensor | None = None,
        training: bool | None = None,
        only_positions: tf.Tensor | None = None,
        times: tuple[tf.Tensor, tf.Tensor] | None = None,
    ) -> tf.Tensor:
        """Encodes histories.

        Args:
            vectors: `[batch, length, dim]`.
            mask: `[batch, length]` boolean, or None if nothing is padding.
            training: Whether dropout is active.
            only_positions: `[batch]` int32, the one position of each row that
                is wanted, which spares most of the last block; -1 where none
                is. Default: all.
            times: With `reads_times`, when each position attends, and when
                its event was; both `[batch, length]` int64 seconds, -1 for
                unknown. Default: all are unknown.

        Returns:
            `[batch, length, dim]`, normalized; `[batch, dim]` with
            `only_positions`.
        """
        known: dict[str, Any] = {"mask": mask, "training": training}
        packing = None
        can_skip = mask is not None and only_positions is None
        if self.skips_padding and training and can_skip:
            known["packing"] = packing = Packing(mask)
            vectors = packing.pack(vectors)
        # The table is initialized small; blocks work on unit scale.
        scale = tf.sqrt(tf.cast(tf.shape(vectors)[-1], vectors.dtype))
        hidden = self.dropout(vectors * scale, training=training)
        *first_blocks, last_block = self.blocks
        if self.reads_times and times is not None:
            known["pair_bias"] = time_bias(self.time_bias, *times, training)
        for block in first_blocks:
            hidden = block(hidden, **known)
        if "pair_bias" in known and only_positions is not None:
            known["pair_bias"] = tf.gather(
                known["pair_bias"],
                tf.maximum(only_positions, 0),
                axis=2,
                batch_dims=1,
            )
        hidden = last_block(hidden, only_positions=only_positions, **known)
        hidden = self.norm(hidden)
        return hidden if packing is None else packing.unpack(hidden)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_blocks": self.num_blocks,
            "num_heads": self.num_heads,
            "dropout": self.dropout.rate,
            "max_distance": self.max_distance,
            "reads_times": self.reads_times,
        }


@keras.saving.register_keras_serializable(package="recsys")
class EncoderEnsemble(_Encoder):
    """Several encoders side by side, each of its own slice of the vectors.

    An item's vector is the concatenation of its vectors for the encoders, and
    so is what comes out: dot products with it are the sums of the encoders'.
    See `recsys.models.ensemble`.

    Args:
        encoders: Layers from `[batch, length, dim]` to the same shape, as
            `HistoryTower` takes them.
        dims: The length of each one's slice.
        **kwargs: Keras's own layer arguments.

    Raises:
        ValueError: `dims` and `encoders` are empty or differ in length, or a
            dim is not a positive whole number; at build, when they do not add
            up to the vectors' dim.
    """

    def __init__(
        self,
        encoders: Sequence[keras.layers.Layer],
        dims: Sequence[int],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not encoders or len(encoders) != len(dims):
            raise ValueError(
                "`dims` and `encoders` must have the same length, at least 1. "
                f"Received: {len(dims)} and {len(encoders)}"
            )
        if wrong := [dim for dim in dims if dim < 1 or dim != int(dim)]:
            raise ValueError(
                f"`dims` must be positive whole numbers. Received: {wrong[0]}"
            )
        self.dims = [int(dim) for dim in dims]
        self.encoders = list(encoders)
        self._accepted = [accepted_by(encoder) for encoder in encoders]
        for number, encoder in enumerate(self.encoders):
            # tf.train.Checkpoint passes over Keras layers in a list.
            setattr(self, f"encoder_{number}", encoder)

    def build(self, input_shape: Any) -> None:
        """Creates the weights of every encoder."""
        if sum(self.dims) != input_shape[-1]:
            raise ValueError(
                "`dims` must add up to the vectors' dim, "
                f"{input_shape[-1]}. Received: {self.dims}"
            )
        for encoder, dim in zip(self.encoders, self.dims, strict=True):
            if not encoder.built:
                encoder.build((*input_shape[:-1], dim))
        self.built = True
        keep_frozen(self)

    def call(
        self,
        vectors: tf.Tensor,
        mask: tf.Tensor | None = None,
        training: bool | None = None,
        only_positions: tf.Tensor | None = None,
        times: tuple[tf.Tensor, tf.Tensor] | None = None,
    ) -> tf.Tensor:
        """Encodes histories.

        Args:
            vectors: `[batch, length, sum of dims]`.
            mask: `[batch, length]` boolean, or None if nothing is padding.
            training: Whether dropout is active.
            only_positions: `[batch]` int32, the one position of each row that
                is wanted, -1 where none is. Default: all.
            times: As for `SelfAttentionEncoder`.

        Returns:
            `[batch, length, sum of dims]`, or `[batch, sum of dims]` with
            `only_positions`.
        """
        arguments: Mapping[str, Any] = {
            "mask": mask,
            "training": training,
            "only_positions": only_positions,
            "times": times,
        }
        found = []
        slices = tf.split(vectors, self.dims, axis=-1)
        for encoder, accepted, each in zip(
            self.encoders, self._accepted, slices, strict=True
        ):
            known = {n: x for n, x in arguments.items() if n in accepted}
            outputs = tf.cast(encoder(each, **known), self.compute_dtype)
            if only_positions is not None and "only_positions" not in accepted:
                outputs = pick(only_positions, outputs)
            found.append(outputs)
        return tf.concat(found, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "encoders": [serialize(encoder) for encoder in self.encoders],
            "dims": self.dims,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EncoderEnsemble:
        """Makes a layer from `get_config`'s answer."""
        encoders = [deserialize(each) for each in config["encoders"]]
        return cls(**{**config, "encoders": encoders})
