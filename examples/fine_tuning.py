"""Fine-tuning a trained model on new interactions, in a custom loop.

    python examples/fine_tuning.py runs/movielens-small

The items must be known to the model. For new items, and for training that can
be stopped and resumed, use `python -m recsys.extend`.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
import tensorflow as tf

import recsys


def make_dataset(
    histories: list[list[str]], vocabulary: recsys.data.vocabulary.Vocabulary
) -> tf.data.Dataset:
    """Returns batches of every next item of some histories of raw ids."""
    rows = [vocabulary.encode(history) for history in histories]
    ids = tf.ragged.constant(rows, dtype=tf.int32).to_tensor()
    batch = {"history_ids": ids[:, :-1], "target_ids": ids[:, 1:]}
    return tf.data.Dataset.from_tensor_slices(batch).batch(64)


def main(
    workdir: str, histories: list[list[str]] | None = None, num_epochs: int = 3
) -> list[float]:
    """Fine-tunes a model.

    Args:
        workdir: A workdir of recsys.train.
        histories: Raw item ids, oldest first. Default: ten users who
            all watch the same ten items.
        num_epochs: Passes over them.

    Returns:
        The mean loss of each epoch.
    """
    trained = recsys.load(workdir)
    if histories is None:
        ids = trained.vocabulary.item_ids[:10].tolist()
        histories = [ids[i:] + ids[:i] for i in range(10)]
    train_ds = make_dataset(histories, trained.vocabulary)
    model, optimizer = trained.model, keras.optimizers.Adam(1e-3)

    @tf.function
    def train_step(batch):
        with tf.GradientTape() as tape:
            loss, num_targets = model.next_item_loss(batch)
            loss /= num_targets
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    losses = []
    for _ in range(num_epochs):
        losses.append(np.mean([train_step(batch) for batch in train_ds]))
    print("loss:", " -> ".join(f"{loss:.3f}" for loss in losses))
    # The recommender follows, since it holds the same model.
    for film in trained.recommend(histories[0][:2], k=3):
        print(film.title, f"{film.score:.3f}")
    return losses


if __name__ == "__main__":
    main(sys.argv[1])
