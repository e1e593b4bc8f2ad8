"""One update of a model from a batch."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from recsys.models.two_tower import TwoTower
from recsys.negatives import Negatives, NegativeSampler

# What a step takes: rows and lengths differ between batches.
BATCH_SIGNATURE = {
    name: tf.TensorSpec([None, None], tf.int32)
    for name in ("history_ids", "target_ids")
}


class TrainStep:
    """One update, to be made into a `tf.function`.

    With a negative sampler and one of `recsys.optimizers`, nothing in it
    reads or writes the whole item table.

    Args:
        model: A built model.
        optimizer: An optimizer, built for the model's variables.
        sampler: Draws negatives for the sampled softmax; None for the full
            one.
        seed: Of the negatives, together with the number of the step.
        candidate_ids: Of the full softmax, as in `TwoTower.next_item_loss`.
    """

    def __init__(
        self,
        model: TwoTower,
        optimizer: keras.optimizers.Optimizer,
        sampler: NegativeSampler | None,
        seed: int,
        candidate_ids: tf.Tensor | None = None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._sampler = sampler
        self._seed = seed
        self._candidate_ids = candidate_ids

    def __call__(
        self, batch: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Updates the model.

        Args:
            batch: `history_ids` and `target_ids`, `[num_rows, length]` int32.

        Returns:
            The summed loss and the number of targets, float32 scalars.
        """
        negatives = None
        if self._sampler is not None:
            negatives = self._negatives(batch)
        loss, num_targets, gradients = self._differentiate(batch, negatives)
        self._optimizer.apply(gradients, self._model.trainable_variables)
        return loss, num_targets

    def _negatives(self, batch: dict[str, tf.Tensor]) -> Negatives:
        assert self._sampler is not None
        # The optimizer counts the steps, in checkpoints too.
        step = tf.cast(self._optimizer.iterations, tf.int64)
        seed = tf.stack([tf.constant(self._seed, tf.int64), step])
        return self._sampler.draw(batch, seed)

    def _differentiate(
        self,
        batch: dict[str, tf.Tensor],
        negatives: Negatives | None,
        num_targets: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, list[Any]]:
        """Returns a batch's loss, number of targets and gradients.

        Args:
            batch: The batch.
            negatives: Of its rows.
            num_targets: What the gradients are divided by. Default: the
                batch's own number of targets.
        """
        with tf.GradientTape() as tape:
            loss, own_targets = self._model.next_item_loss(
                batch,
                candidate_ids=self._candidate_ids,
                negatives=negatives,
            )
            if num_targets is None:
                num_targets = own_targets
            mean = tf.math.divide_no_nan(loss, num_targets)
        gradients = tape.gradient(mean, self._model.trainable_variables)
        return loss, own_targets, gradients
