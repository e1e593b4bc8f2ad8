"""A user feature next to the history, a text vector next to the item.

Run it from a checkout; it takes about ten seconds:

    python examples/extra_inputs.py

The towers are Keras layers, so more inputs need no subclass: a functional
model adds the outputs of other layers to the towers' outputs.
"""

from __future__ import annotations

import keras
import numpy as np

import recsys

VOCABULARY_SIZE, DIM, NUM_COUNTRIES, TEXT_DIM = 50, 16, 3, 8


def build_model() -> keras.Model:
    """Returns a model from five inputs to one score per candidate."""
    history_ids = keras.Input((None,), dtype="int32", name="history_ids")
    country = keras.Input((), dtype="int32", name="country")
    candidate_ids = keras.Input((None,), dtype="int32", name="candidate_ids")
    text = keras.Input((None, TEXT_DIM), name="text")

    table = recsys.SharedItemEmbedding(VOCABULARY_SIZE, DIM)
    queries = keras.layers.Add(name="queries")(
        [
            recsys.HistoryTower(table, recsys.MeanPooling())(history_ids),
            keras.layers.Embedding(NUM_COUNTRIES, DIM)(country),
        ]
    )
    candidates = keras.layers.Add(name="candidates")(
        [
            recsys.CandidateTower(table)(candidate_ids),
            keras.layers.Dense(DIM, use_bias=False)(text),
        ]
    )
    scores = keras.layers.Dot(axes=(1, 2))([queries, candidates])
    return keras.Model([history_ids, country, candidate_ids, text], scores)


def main() -> keras.Model:
    """Trains on users whose taste in texts depends on their country.

    Returns:
        The model, trained.
    """
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    texts = rng.standard_normal((VOCABULARY_SIZE, TEXT_DIM)).astype("float32")
    tastes = rng.standard_normal((NUM_COUNTRIES, TEXT_DIM))
    country = rng.integers(NUM_COUNTRIES, size=512).astype("int32")
    candidate_ids = rng.integers(2, VOCABULARY_SIZE, (512, 5)).astype("int32")
    liking = np.einsum("uct,ut->uc", texts[candidate_ids], tastes[country])
    inputs = {
        "history_ids": rng.integers(2, VOCABULARY_SIZE, (512, 4), "int32"),
        "country": country,
        "candidate_ids": candidate_ids,
        "text": texts[candidate_ids],
    }
    model = build_model()
    model.compile(
        keras.optimizers.Adam(0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        inputs, liking.argmax(axis=1), batch_size=64, epochs=8, verbose=0
    )
    accuracy = history.history["accuracy"]
    print(
        f"accuracy: {accuracy[0]:.2f} at first, {accuracy[-1]:.2f} at the end"
    )
    return model


if __name__ == "__main__":
    main()
