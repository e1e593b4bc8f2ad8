"""The train step: one update of a model, by one replica or many."""

from __future__ import annotations

import keras
import tensorflow as tf

from recsys.models.two_tower import TwoTower
from recsys.negatives import Negatives, NegativeSampler

# The input of a step; rows and lengths differ between batches.
BATCH_SIGNATURE = {
    name: tf.TensorSpec([None, None], tf.int32)
    for name in ("history_ids", "target_ids")
}
# A process's rows of a batch, and their positions in it.
PART_SIGNATURE = {
    **BATCH_SIGNATURE,
    "places": tf.TensorSpec([None], tf.int64),
    "num_rows": tf.TensorSpec([], tf.int64),
}


class TrainStep:
    """One update of the model, to be wrapped in a `tf.function`.

    With a negative sampler and an optimizer from `recsys.optimizers`, it never
    reads or writes the whole item table. Under a strategy each replica calls
    it and takes its own share of the rows; the negatives are the ones that a
    single replica would draw for the whole batch.

    Args:
        model: A built model.
        optimizer: An optimizer, built for the model's variables.
        sampler: Draws the negatives of the sampled softmax; None for the full
            softmax.
        seed: Seed of the negatives, combined with the step's number.
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
                under a strategy this process's rows, as in `PART_SIGNATURE`.

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
        # The optimizer's step count is part of every checkpoint.
        step = tf.cast(self._optimizer.iterations, tf.int64)
        seed = tf.stack([tf.constant(self._seed, tf.int64), step])
        return self._sampler.draw(batch, seed)


def _rows_of_replica(
    batch: dict[str, tf.Tensor], context: tf.distribute.ReplicaContext
) -> dict[str, tf.Tensor]:
    """Returns this replica's share of the process's rows."""
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
    """Gathers the whole batch from all replicas, in its order."""
    names = list(BATCH_SIGNATURE)
    length = tf.shape(own["target_ids"], tf.int64)[1]
    # Equal shapes, with zeros where another replica has the rows.
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
