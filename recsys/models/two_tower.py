"""The two-tower model: histories and candidates meet in a dot product."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from recsys import losses
from recsys.data.vocabulary import FIRST_ITEM_INDEX
from recsys.models.towers import CandidateTower, HistoryTower


@keras.saving.register_keras_serializable(package="recsys")
class TwoTower(keras.Model):
    """Scores items for histories; trains with `fit` or in any loop.

    A batch is a dictionary with `history_ids`, `[batch, length]`, and for
    training `target_ids`, `[batch, length]`: the item that follows each
    position, 0 where nothing is to be learned. The loss is the mean
    cross-entropy of the full softmax over all items.

    Example:

    >>> table = SharedItemEmbedding(vocabulary_size=10, embedding_dim=4)
    >>> model = TwoTower(HistoryTower(table), CandidateTower(table))
    >>> model.compile(optimizer="adam")
    >>> history = model.fit(train_ds)                       # doctest: +SKIP

    Args:
        history_tower: The query tower.
        candidate_tower: The candidate tower, over the same table.
        **kwargs: Keras's own model arguments.

    Raises:
        ValueError: The towers do not share one table.
    """

    def __init__(
        self,
        history_tower: HistoryTower,
        candidate_tower: CandidateTower,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if history_tower.embedding is not candidate_tower.embedding:
            raise ValueError(
                "`history_tower` and `candidate_tower` must share one "
                "SharedItemEmbedding, received "
                f"{history_tower.embedding.name} and "
                f"{candidate_tower.embedding.name}"
            )
        self.history_tower = history_tower
        self.candidate_tower = candidate_tower
        self._loss_mean = keras.metrics.Mean(name="loss")

    def build(self, input_shape: Any = None) -> None:
        """Creates every weight of both towers."""
        self.history_tower.build()
        self.candidate_tower.build()
        self.built = True

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The mean loss, which Keras resets at each epoch."""
        return [self._loss_mean]

    def call(
        self, inputs: dict[str, tf.Tensor], training: bool | None = None
    ) -> tf.Tensor:
        """Scores candidates.

        Args:
            inputs: `history_ids`, `[batch, length]` int, and optionally
                `candidate_ids`, `[batch, num_candidates]` int. Other entries
                are ignored.
            training: Whether dropout is active.

        Returns:
            Scores, `[batch, num_candidates]`, or without `candidate_ids`
            `[batch, vocabulary_size]`, where columns 0 and 1, padding and
            unknown, are the lowest float: they are never candidates.
        """
        queries = self.history_tower(inputs["history_ids"], training=training)
        if "candidate_ids" in inputs:
            candidates = self.candidate_tower(inputs["candidate_ids"])
            return tf.einsum("bd,bcd->bc", queries, candidates)
        scores = tf.matmul(
            queries, self.candidate_tower.all_candidates(), transpose_b=True
        )
        never = tf.fill([tf.shape(scores)[0], 2], scores.dtype.min)
        return tf.concat([never, scores[:, 2:]], axis=1)

    def next_item_loss(
        self, inputs: dict[str, tf.Tensor], training: bool = True
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Full-softmax loss of every next item in a batch of histories.

        Args:
            inputs: `history_ids` and `target_ids`, `[batch, length]` int.
            training: Whether dropout is active.

        Returns:
            The sum of the cross-entropies and the number of targets, both
            float32 scalars.
        """
        queries = self.history_tower(
            inputs["history_ids"], training=training, return_sequences=True
        )
        targets = tf.reshape(inputs["target_ids"], [-1])
        weights = tf.cast(targets >= FIRST_ITEM_INDEX, tf.float32)
        loss = losses.full_softmax(
            tf.reshape(queries, [-1, queries.shape[-1]]),
            self.candidate_tower.all_candidates()[FIRST_ITEM_INDEX:],
            targets - FIRST_ITEM_INDEX,
            weights,
        )
        return loss, tf.reduce_sum(weights)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of Keras's `fit`."""
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        with tf.GradientTape() as tape:
            loss, count = self.next_item_loss(inputs)
            loss = tf.math.divide_no_nan(loss, count)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        self._loss_mean.update_state(loss, sample_weight=count)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of Keras's `evaluate`."""
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        loss, count = self.next_item_loss(inputs, training=False)
        loss = tf.math.divide_no_nan(loss, count)
        self._loss_mean.update_state(loss, sample_weight=count)
        return self.get_metrics_result()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "history_tower": keras.saving.serialize_keras_object(
                self.history_tower
            ),
            "candidate_tower": keras.saving.serialize_keras_object(
                self.candidate_tower
            ),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> TwoTower:
        """Makes a model from `get_config`'s answer, over one table.

        Keras restores a shared layer as one only inside its own file
        format; elsewhere each tower would come back with a table of its
        own. So the candidate tower is given the history tower's.
        """
        config = dict(config)
        with keras.saving.custom_object_scope(custom_objects or {}):
            history_tower = keras.saving.deserialize_keras_object(
                config.pop("history_tower")
            )
            candidate = dict(config.pop("candidate_tower"))
            candidate["config"] = {
                **candidate["config"],
                "embedding": history_tower.embedding,
            }
            candidate_tower = keras.saving.deserialize_keras_object(candidate)
        return cls(history_tower, candidate_tower, **config)
