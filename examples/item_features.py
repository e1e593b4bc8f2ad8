"""Recommends films that nobody has watched, by their features.

Run it from a checkout; it takes about ten seconds:

    python examples/item_features.py

Two groups of users watch one genre each. A model learns from the films they
watched, with their genres and years; then two new films are released.
"""

from __future__ import annotations

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf

import recsys
from recsys.data.features import ItemEncoder, parse_columns

NUM_FILMS = 40  # Films 0 to 19 are comedies, 20 to 39 are horror films.


def main() -> dict[str, float]:
    """Trains, encodes the new films and scores them for a horror fan.

    Returns:
        The score of each new film.
    """
    keras.utils.set_random_seed(0)
    films = pa.table(
        {
            "genres": [["Comedy"]] * 20 + [["Horror"]] * 20,
            "year": [1980 + film % 20 for film in range(NUM_FILMS)],
        }
    )
    encoder = ItemEncoder.fit(films, parse_columns("genres,year", films))
    known = encoder.encode(films)

    # One table and one layer of features under both towers.
    vocabulary_size = NUM_FILMS + 2  # Ids begin at 2.
    table = recsys.SharedItemEmbedding(vocabulary_size, embedding_dim=16)
    features = recsys.ItemFeatures(
        vocabulary_size,
        embedding_dim=16,
        num_values=encoder.num_values,
        values_per_item=known.values.shape[1],
    )
    features.set_features(known.values, known.weights)
    shared = {"item_features": features, "id_dropout": 0.3}
    model = recsys.TwoTower(
        recsys.HistoryTower(table, recsys.MeanPooling(), **shared),
        recsys.CandidateTower(table, **shared),
    )
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.fit(_watched(), batch_size=32, epochs=10, verbose=0)

    # The new films have no row in the table: their features stand for them.
    new_films = pa.table(
        {"genres": [["Comedy"], ["Horror"]], "year": [2000] * 2}
    )
    new = encoder.encode(new_films)
    vectors = features.embed(new.values, new.weights)
    horror_fan = model.history_tower(np.array([[22, 30, 35]]))
    comedy, horror = (
        tf.matmul(vectors, horror_fan, transpose_b=True)[:, 0]
    ).numpy()
    return {"new comedy": float(comedy), "new horror film": float(horror)}


def _watched() -> dict[str, np.ndarray]:
    """Returns histories and, at each position, the next film."""
    rng = np.random.default_rng(0)
    first = np.repeat([2, 22], 64)[:, np.newaxis]
    films = first + rng.permuted(np.tile(np.arange(20), (128, 1)), axis=1)
    films = films[:, :9].astype(np.int32)
    return {"history_ids": films[:, :-1], "target_ids": films[:, 1:]}


if __name__ == "__main__":
    for name, score in main().items():
        print(f"{name}: {score:.2f}")
