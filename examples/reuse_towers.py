"""The trained towers in a model of your own, in ten lines.

python examples/reuse_towers.py runs/movielens-small
"""

from __future__ import annotations

import sys

import keras
import numpy as np

import recsys


def main(workdir: str) -> keras.Model:
    """Makes a model of the probability that a user likes an item.

    Args:
        workdir: A workdir of recsys.train.

    Returns:
        A model from history and candidate ids to a probability, compiled: its
        `fit` trains the towers further, with one item table as before.
    """
    trained = recsys.load(workdir)
    history_ids = keras.Input((None,), dtype="int32", name="history_ids")
    item_id = keras.Input((), dtype="int32", name="item_id")
    user = trained.model.history_tower(history_ids)
    item = trained.model.candidate_tower(item_id)
    score = keras.layers.Dot(axes=1)([user, item])
    liked = keras.layers.Dense(1, "sigmoid")(score)
    model = keras.Model([history_ids, item_id], liked)
    model.compile("adam", "binary_crossentropy")

    # Raw ids become indices in one place.
    history = trained.vocabulary.encode(trained.vocabulary.item_ids[:3])
    item = history[:1]
    print(f"{model([history[np.newaxis], item]).numpy().item():.3f}")
    return model


if __name__ == "__main__":
    main(sys.argv[1])
