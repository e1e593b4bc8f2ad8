"""Optimizers whose cost does not grow with the embedding table.

Keras's own optimizers read and write every row of a table at each step. Those
here touch the rows that have a gradient, which are the items of the batch and
its negatives, and nothing else: each step takes as long with ten million items
as with ten thousand.

A *table* is a variable of two dimensions named `embeddings`, as that of
`SharedItemEmbedding` and of `keras.layers.Embedding`. Its gradients from all
places where it was looked up are merged first, so that a row that occurs
several times gets one update with the sum. Where a table has a dense gradient,
from the full softmax for one, all of its rows are touched. Every other
variable gets Adam.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

_TABLE_NAME = "embeddings"


@keras.saving.register_keras_serializable(package="recsys")
class LazyAdam(keras.optimizers.Adam):
    """Adam that updates the rows of a table that have a gradient.

    The moments of a row are those of its own gradients: a step that does not
    touch the row does not decay them. Bias correction counts all steps.
    Where every row is touched at every step, this is Adam. Weight decay,
    decoupled as in AdamW, is applied to touched rows too.

    Memory: two more floats for each of the table's.

    Args:
        learning_rate: Float, or a Keras schedule.
        beta_1: Decay of the first moment.
        beta_2: Decay of the second moment.
        epsilon: Added to the root of the second moment.
        **kwargs: Of Keras's optimizers: `weight_decay`, `clipnorm`,
            `clipvalue`, `global_clipnorm`, `loss_scale_factor`, `name`.

    Raises:
        ValueError: `use_ema` or `gradient_accumulation_steps` is given, both
            of which go through the whole table at each step; or `amsgrad`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **kwargs: Any,
    ) -> None:
        for name in ("use_ema", "gradient_accumulation_steps", "amsgrad"):
            if kwargs.get(name):
                raise ValueError(
                    f"`{name}` must not be given: it would touch every row of "
                    f"the table. Received: {kwargs[name]}"
                )
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)

    def update_step(
        self, gradient: Any, variable: tf.Variable, learning_rate: Any
    ) -> None:
        """Updates one variable; called by Keras."""
        if not _is_table(variable):
            super().update_step(_dense(gradient), variable, learning_rate)
            return
        rate = tf.cast(learning_rate, variable.dtype)
        if not isinstance(gradient, tf.IndexedSlices):
            gradient = tf.convert_to_tensor(gradient)
            every = tf.range(tf.shape(gradient)[0])
            gradient = tf.IndexedSlices(gradient, every)
        gradient = merge_rows(gradient)
        values = tf.cast(gradient.values, variable.dtype)
        self._update_rows(gradient.indices, values, variable, rate)

    def _update_rows(
        self,
        rows: tf.Tensor,
        gradient: tf.Tensor,
        variable: tf.Variable,
        rate: tf.Tensor,
    ) -> None:
        """Updates `[num_rows]` distinct rows of a table."""
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, variable.dtype)
        scale = tf.sqrt(1 - tf.pow(self.beta_2, step))
        scale /= 1 - tf.pow(self.beta_1, step)
        moments = []
        for slot, memory, value in (
            (self._momentums[index], self.beta_1, gradient),
            (self._velocities[index], self.beta_2, tf.square(gradient)),
        ):
            old = tf.gather(slot.value, rows)
            moments.append(old + (value - old) * (1 - memory))
            slot.value.scatter_update(tf.IndexedSlices(moments[-1], rows))
        first, second = moments
        change = rate * scale * first / (tf.sqrt(second) + self.epsilon)
        self._subtract(rows, change, variable, rate)

    def _subtract(
        self,
        rows: tf.Tensor,
        change: tf.Tensor,
        variable: tf.Variable,
        rate: tf.Tensor,
    ) -> None:
        """Subtracts from rows, and decays them."""
        if self.weight_decay and super()._use_weight_decay(variable):
            change += tf.gather(variable, rows) * self.weight_decay * rate
        variable.scatter_sub(tf.IndexedSlices(change, rows))

    def _use_weight_decay(self, variable: tf.Variable) -> bool:
        """Keeps Keras from decaying whole tables."""
        return not _is_table(variable) and super()._use_weight_decay(variable)

    def _clip_gradients(self, gradients: list[Any]) -> list[Any]:
        """Clips by the norm of merged rows, which is that of the gradient."""
        if not (self.clipnorm or self.global_clipnorm or self.clipvalue):
            return gradients
        gradients = [
            merge_rows(gradient)
            if isinstance(gradient, tf.IndexedSlices)
            else gradient
            for gradient in gradients
        ]
        clipped = super()._clip_gradients([_values(g) for g in gradients])
        return [
            tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
            if isinstance(gradient, tf.IndexedSlices)
            else values
            for gradient, values in zip(gradients, clipped, strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        del config["amsgrad"]
        return config


@keras.saving.register_keras_serializable(package="recsys")
class RowwiseAdagrad(LazyAdam):
    """Adagrad with one accumulator per row of a table, Adam for the rest.

    With g the merged gradient of a row of length d and a its accumulator,
    a ← a + g·g / d, then row ← row − rate · g / (√a + ε), where rate is
    `learning_rate * table_rate_factor`. Rows without a gradient stay as they
    are. (Adagrad: Duchi et al. 2011; one accumulator per row: Gupta et al.
    2014, https://arxiv.org/abs/1412.7109.)

    Memory: one float for each row of the table.

    Args:
        learning_rate: Float, or a Keras schedule.
        beta_1: Of Adam, for all but the tables.
        beta_2: Of Adam, for all but the tables.
        epsilon: Of Adam, and ε above.
        table_rate_factor: How much higher the tables' learning rate is: that
            of Adagrad falls with the number of updates, Adam's does not.
        initial_accumulator: What accumulators start from.
        **kwargs: As for `LazyAdam`.

    Raises:
        ValueError: As for `LazyAdam`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        table_rate_factor: float = 10.0,
        initial_accumulator: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)
        self.table_rate_factor = table_rate_factor
        self.initial_accumulator = initial_accumulator

    def add_optimizer_variables(
        self,
        trainable_variables: list[keras.Variable],
        name: str | list[str],
        initializer: Any = "zeros",
    ) -> Any:
        """Makes Adam's moments for all but the tables; called by Keras."""
        rest = [v for v in trainable_variables if not _is_table(v)]
        made = super().add_optimizer_variables(rest, name, initializer)
        if isinstance(name, str):
            return _with_gaps(trainable_variables, made)
        return tuple(_with_gaps(trainable_variables, slots) for slots in made)

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the moments and accumulators."""
        if self.built:
            return
        super().build(variables)
        initializer = keras.initializers.Constant(self.initial_accumulator)
        self._accumulators = [
            self.add_variable(
                (variable.shape[0],),
                initializer=initializer,
                dtype=variable.dtype,
                name=f"accumulator_{index}",
            )
            if _is_table(variable)
            else None
            for index, variable in enumerate(variables)
        ]

    def _update_rows(
        self,
        rows: tf.Tensor,
        gradient: tf.Tensor,
        variable: tf.Variable,
        rate: tf.Tensor,
    ) -> None:
        slot = self._accumulators[self._get_variable_index(variable)].value
        total = tf.gather(slot, rows)
        total += tf.reduce_mean(tf.square(gradient), axis=1)
        slot.scatter_update(tf.IndexedSlices(total, rows))
        rate *= self.table_rate_factor
        root = tf.sqrt(total)[:, tf.newaxis] + self.epsilon
        self._subtract(rows, rate * gradient / root, variable, rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "table_rate_factor": self.table_rate_factor,
            "initial_accumulator": self.initial_accumulator,
        }


def merge_rows(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """Sums the values of equal rows.

    Args:
        gradient: Any number of values for each row.

    Returns:
        Each row once, in the order of first occurrence.
    """
    rows, positions = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(
        gradient.values, positions, tf.shape(rows)[0]
    )
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def _is_table(variable: Any) -> bool:
    name = variable.name.rpartition("/")[2].partition(":")[0]
    return name == _TABLE_NAME and len(variable.shape) == 2


def _with_gaps(variables: list[Any], slots: list[Any]) -> list[Any]:
    """Puts None in the tables' places, so that slots go by index."""
    rest = iter(slots)
    return [None if _is_table(v) else next(rest) for v in variables]


def _values(gradient: Any) -> Any:
    return (
        gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    )


def _dense(gradient: Any) -> Any:
    """Returns a dense gradient; other variables than tables can have slices."""
    return (
        tf.convert_to_tensor(gradient)
        if isinstance(gradient, tf.IndexedSlices)
        else gradient
    )


@keras.saving.register_keras_serializable(package="recsys")
class LaterSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate schedule that starts at a later step.

    Args:
        schedule: The schedule.
        first_step: The step at which it starts.
    """

    def __init__(
        self,
        schedule: keras.optimizers.schedules.LearningRateSchedule,
        first_step: int,
    ) -> None:
        super().__init__()
        self._schedule = schedule
        self._first_step = first_step

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of a step."""
        return self._schedule(step - self._first_step)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "schedule": keras.saving.serialize_keras_object(self._schedule),
            "first_step": self._first_step,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LaterSchedule:
        """Makes a schedule from `get_config`'s answer."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["first_step"])
