"""The train step: one update of a model, by one replica or many."""

from __future__ import annotations

import keras
import tensorflow as tf

from recsys.models.two_tower import TwoTower
from recsys.negatives import Negatives, NegativeSampler

# What a step takes: rows and lengths differ between batches.
BATCH_SIGNATURE = {
    name: tf.TensorSpec([None, None], tf.int32)
    for name in ("history_ids", "target_ids")
}
# A process's rows of a batch, and which of its rows they are.
PART_SIGNATURE = {
    **BATCH_SIGNATURE,
    "places": tf.TensorSpec([None], tf.int64),
    "num_rows": tf.TensorSpec([], tf.int64),
}


class TrainStep:
    """One update, to be made into a `tf.function`.

    With a negative sampler and one of `recsys.optimizers`, nothing in it
    reads or writes the whole item table. Under a strategy each replica calls
    it and takes its own share of the rows. The negatives are those that one
    replica would draw for the whole batch, whichever their source.

    Args:
        model: A built model.
        optimizer: An optimizer, built for the model's variables.
        sampler: Draws negatives for the sampled softmax; None for the full
            one.
        seed: Of the negatives, together with the number of the step.
    """

    def __init__(
        self,
        model: TwoTower,
        optimizer: keras.optimizers.Optimizer,
        sampler: NegativeSampler | None,
        seed: int,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._sampler = sampler
        self._seed = seed

    def __call__(
        self, batch: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Updates the model.

        Args:
            batch: `history_ids` and `target_ids`, `[num_rows, length]` int32;
                under a strategy the process's rows, as in `PART_SIGNATURE`.

        Returns:
            The summed loss and the number of targets of the whole batch,
            float32 scalars.
        """
        if "places" not in batch:
            return self._model.update(
                batch, self._optimizer, self._negatives(batch)
            )
        context = tf.distribute.get_replica_context()
        own = _rows_of_replica(batch, context)
        negatives = None
        if self._sampler is not None:
            whole = _whole_batch(own, batch["num_rows"], context)
            negatives = self._negatives(whole)
            assert negatives is not None  # There is a sampler.
            negatives = negatives.of_places(own["places"])
        loss, count = self._model.update(own, self._optimizer, negatives)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, loss), count

    def _negatives(self, batch: dict[str, tf.Tensor]) -> Negatives | None:
        if self._sampler is None:
            return None
        # The optimizer counts the steps, in checkpoints too.
        step = tf.cast(self._optimizer.iterations, tf.int64)
        seed = tf.stack([tf.constant(self._seed, tf.int64), step])
        return self._sampler.draw(batch, seed)


def _rows_of_replica(
    batch: dict[str, tf.Tensor], context: tf.distribute.ReplicaContext
) -> dict[str, tf.Tensor]:
    """Returns the rows of one of the process's replicas."""
    count = len(context.strategy.extended.worker_devices)
    number = context.replica_id_in_sync_group % count
    num_rows = tf.shape(batch["places"])[0]
    rows = slice(num_rows * number // count, num_rows * (number + 1) // count)
    return {
        name: batch[name][rows]
        for name in ("history_ids", "target_ids", "places")
    }


def _whole_batch(
    own: dict[str, tf.Tensor],
    num_rows: tf.Tensor,
    context: tf.distribute.ReplicaContext,
) -> dict[str, tf.Tensor]:
    """Returns the batch that all replicas have parts of, in its order."""
    names = list(BATCH_SIGNATURE)
    length = tf.shape(own["target_ids"], tf.int64)[1]
    # All have the same shape, and zeros in the places of others.
    scattered = [
        tf.scatter_nd(
            own["places"][:, tf.newaxis],
            tf.cast(own[name], tf.int64),
            [num_rows, length],
        )
        for name in names
    ]
    whole = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack(scattered))
    return dict(zip(names, tf.unstack(tf.cast(whole, tf.int32)), strict=True))
